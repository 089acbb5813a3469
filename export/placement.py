"""A bundle's folder, put in its place whole or not at all."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lcmem_onnx.runtime.errors import UsageError

__all__ = ["draft_beside", "put_in_place", "refuse_leftovers"]

UNPROVEN, REPLACED = "unproven", "replaced"
"""What hidden folders beside the output are called while an export is at work."""


@contextmanager
def draft_beside(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, gone afterwards whatever happens; beside it, so that renaming stays on one file system."""
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=_hidden(out, UNPROVEN), dir=out.parent))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def refuse_leftovers(out: Path) -> None:
    """Name what an export that was killed while it replaced a bundle left behind: it may be the only copy of the older one.

    Raises:
        UsageError: there is something.
    """
    for older in sorted(out.parent.glob(f"{glob.escape(_hidden(out, REPLACED))}*")):
        what = "delete it" if out.exists() else f"rename it to {out} to have it back, or delete it"
        raise UsageError(f"{older} is the older bundle that an export was replacing when it was stopped: {what}, and export again")


def put_in_place(draft: Path, out: Path) -> None:
    """Rename the finished draft to `out`. An older bundle there is moved aside, and deleted only when the new one is in place.

    Raises:
        OSError: it could not be renamed. What was at `out` is there again.
    """
    draft.chmod(0o755)  # mkdtemp makes folders that only their owner may enter; a bundle is read by the gateway's user
    for path in draft.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    if not out.exists():
        draft.rename(out)
        return
    older = out.with_name(f"{_hidden(out, REPLACED)}{secrets.token_hex(4)}")
    try:
        out.rename(older)
        draft.rename(out)
    except BaseException:
        if older.is_dir() and not out.exists():
            older.rename(out)
        raise
    if older.is_symlink():  # the name was a link to a bundle elsewhere, which is left alone
        older.unlink()
    else:
        shutil.rmtree(older, ignore_errors=True)


def _hidden(out: Path, state: str) -> str:
    return f".{out.name}.{state}-"
