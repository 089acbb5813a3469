"""The files of a report, replaced together: after a run that fails the folder holds the earlier report, whole, or none.

All files are first written to a staging folder in the private part, with the access that they are to have. Then the earlier
report's files are moved aside, those that the new report lacks too, and the new ones are moved in. A failure on the way moves
everything back; after a crash the next run does. The page goes first and comes last, so a folder without it holds no report.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...system.atomic_write import put_whole, sync
from ..output_folder import PRIVATE, PRIVATE_FILE, PRIVATE_FOLDER

__all__ = ["replace_together"]

STAGING, DISCARDED = ".replacing-", ".replaced-"
NEW, OLD, PLAN = "new", "old", "plan"
TOKEN = "[0-9a-f]" * 16
"""What version 0.1.0 put into the names of its temporary files."""


def replace_together(out: Path, new: Mapping[str, bytes], names: Sequence[str]) -> None:
    """Replace a report's files by new ones.

    Args:
        out: the report's folder, which has its private part.
        new: file names, relative to `out`, with their content.
        names: all that a report may consist of, the page first. Files of these names that are not in `new` are removed.

    Raises:
        OSError: something cannot be written or moved; the earlier files are back.
    """
    private = out / PRIVATE
    for left in private.glob(f"{DISCARDED}*"):
        shutil.rmtree(left)
    for left in private.glob(f"{STAGING}*"):
        _recover(out, left)
    staging = private / f"{STAGING}{secrets.token_hex(8)}"
    order = [name for name in names if name in new]
    try:
        for folder in (staging, staging / NEW, staging / OLD):
            folder.mkdir(mode=PRIVATE_FOLDER)
        for name in order:
            _write(staging / NEW / _flat(name), new[name], private=Path(name).parts[0] == PRIVATE)
        # From here on the next run undoes a crash, for which it needs to know which names are new ones.
        put_whole(staging / PLAN, lambda draft: draft.write_text("\n".join(order), encoding="utf-8"), private=True)
        for name in names:
            if _is_file(out / name, replaced=name in new):
                (out / name).replace(staging / OLD / _flat(name))
        for name in reversed(order):
            (staging / NEW / _flat(name)).replace(out / name)
        for folder in sorted({(out / name).parent for name in order}):
            sync(folder)
    except BaseException:
        if staging.exists():
            _undo(out, staging)
            _discard(staging)
        raise
    _discard(staging)
    for name in names:
        path = out / name
        for temporary in path.parent.glob(f".{path.name}.{TOKEN}{path.suffix}"):
            temporary.unlink(missing_ok=True)


def _is_file(path: Path, *, replaced: bool) -> bool:
    """Return whether there is a file, or a link, to be moved aside. A folder of that name is not ours: refuse to replace it."""
    if path.is_dir() and not path.is_symlink():
        if replaced:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return False
    return os.path.lexists(path)


def _recover(out: Path, staging: Path) -> None:
    """Undo a replacement that did not come to its end. Of one that did, remove the earlier files."""
    planned = _planned(staging)
    if not planned or any((staging / NEW / _flat(name)).exists() for name in planned):
        _undo(out, staging)
    _discard(staging)


def _discard(staging: Path) -> None:
    """Remove a staging folder. It is renamed first: half removed, it would be taken for a replacement that is to be undone."""
    discarded = staging.with_name(staging.name.replace(STAGING, DISCARDED))
    staging.replace(discarded)
    shutil.rmtree(discarded, ignore_errors=True)  # what is left of it, the next run removes


def _undo(out: Path, staging: Path) -> None:
    """Remove the new files that are in place, and move the earlier ones back."""
    for name in _planned(staging):
        if not (staging / NEW / _flat(name)).exists():
            (out / name).unlink(missing_ok=True)
    for path in sorted((staging / OLD).iterdir()) if (staging / OLD).exists() else []:
        path.replace(out / path.name.replace("+", os.sep))


def _planned(staging: Path) -> list[str]:
    """Return the names of the new files; none before the first file of the report was moved."""
    plan = staging / PLAN
    return plan.read_text(encoding="utf-8").split("\n") if plan.exists() else []


def _flat(name: str) -> str:
    return name.replace("/", "+")


def _write(path: Path, content: bytes, *, private: bool) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE if private else 0o666)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if private:
        path.chmod(PRIVATE_FILE)  # the mask may have taken bits from it
