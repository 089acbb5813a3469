"""A bundle's folder, put in its place whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lcmem_onnx.runtime.errors import BundleError, UsageError
from lcmem_onnx.runtime.model.bundle import FORMAT, MANIFEST, open_bundle
from lcmem_onnx.runtime.system.atomic_write import sync
from lcmem_onnx.runtime.system.file_lock import try_lock, wait_for_lock

__all__ = ["Draft", "check_free", "draft_beside", "put_in_place", "refuse_leftovers", "remove_abandoned"]

UNPROVEN, REPLACED = "unproven", "replaced"
"""What hidden folders beside the output are called while an export is at work."""
EXPORTED = re.compile(r"encoder\.(fp32|fp16|fp16-on-cpu|int8)\.(onnx|weights)|head\.json|preprocess\.onnx")
"""A bundle's files. Weights to export may well be called encoder.pth."""


class Draft(NamedTuple):
    """The folder that becomes the bundle, and one for what is needed on the way there."""

    bundle: Path
    work: Path


@contextmanager
def draft_beside(out: Path) -> Iterator[Draft]:
    """Two folders in a hidden one beside `out`, gone afterwards whatever happens; beside it, so that renaming stays on one file
    system, and so that what a killed export leaves lies where the next one of that name finds it (`remove_abandoned`).
    """
    missing = [folder for folder in (out.parent, *out.parent.parents) if not folder.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    made, lock = _locked_folder(out)
    try:
        draft = Draft(made / "bundle", made / "work")
        draft.bundle.mkdir()
        draft.work.mkdir()
        yield draft
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)
        for folder in missing:
            with contextlib.suppress(OSError):  # the bundle is in it
                folder.rmdir()


def _locked_folder(out: Path) -> tuple[Path, int]:
    """A hidden folder, and the descriptor whose lock says that its maker is alive: the kernel drops that when the maker dies."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=_hidden(out, UNPROVEN), dir=out.parent))
        try:
            lock = os.open(made, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # a file system without locks on folders: there nobody else gets one either
            wait_for_lock(lock)
        if made.exists():
            return made, lock
        os.close(lock)  # another export took it for abandoned before it was locked


def remove_abandoned(out: Path) -> list[Path]:
    """Remove what exports to `out` left that were killed, and say what. One that is at work holds a lock on its folder."""
    removed = []
    for folder in sorted(out.parent.glob(f"{glob.escape(_hidden(out, UNPROVEN))}*")):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        except OSError:
            continue  # not ours to read, or gone
        try:
            if not try_lock(lock):
                continue  # its export is at work
            shutil.rmtree(folder)
            removed.append(folder)
        except OSError:
            continue  # not ours to remove
        finally:
            os.close(lock)
    return removed


def refuse_leftovers(out: Path) -> None:
    """Name what an export that was killed while it replaced a bundle left behind: it may be the only copy of the older one.

    Raises:
        UsageError: there is something.
    """
    for older in sorted(out.parent.glob(f"{glob.escape(_hidden(out, REPLACED))}*")):
        what = "delete it" if out.exists() else f"rename it to {out} to have it back, or delete it"
        raise UsageError(f"{older} is the older bundle that an export was replacing when it was stopped: {what}, and export again")


def check_free(out: Path, *, replace: bool) -> None:
    """Refuse an output that is there already, unless it is a bundle, nothing else is in it, and it is to be replaced.

    Raises:
        UsageError: it may not be written.
    """
    if out.is_symlink() and not out.exists():
        raise UsageError(f"{out} is a link that leads nowhere: choose another --out, or delete it")
    if not out.exists():
        return
    if not replace:
        raise UsageError(f"{out} exists already: choose another --out, or replace it with --force")
    if not _has_manifest(out):
        raise UsageError(f"{out} exists and is no bundle, so --force does not replace it: choose another --out")
    # The checkpoint itself may lie there. A bundle whose manifest cannot be read may be replaced, being of no other use.
    foreign = {path.name for path in out.iterdir()} - {MANIFEST} - _listed(out)
    if foreign:
        raise UsageError(
            f"{out} holds what is no part of a bundle ({', '.join(sorted(foreign)[:3])}), so --force does not replace it: choose "
            "another --out, or move that away"
        )


def _has_manifest(out: Path) -> bool:
    """Whether there is a bundle's manifest, or one that nobody can read: other programs write a bundle.json, too."""
    try:
        content = json.loads((out / MANIFEST).read_bytes())
    except OSError:
        return False
    except (ValueError, RecursionError):
        return True
    return isinstance(content, dict) and content.get("format") == FORMAT


def _listed(out: Path) -> set[str]:
    """Names of a bundle's files by its manifest; where that is damaged, names that exports give."""
    try:
        return set(open_bundle(out).manifest["files"])
    except BundleError:
        return {path.name for path in out.iterdir() if EXPORTED.fullmatch(path.name)}


def put_in_place(draft: Path, out: Path, *, replace: bool) -> None:
    """Rename the finished draft to `out`. An older bundle there is moved aside, and deleted only when the new one is in place.

    Raises:
        UsageError: something is there that was not when the export began, or may not be replaced.
        OSError: it could not be renamed. What was at `out` is there again.
    """
    for path in (*draft.iterdir(), draft):
        sync(path)
    check_free(out, replace=replace)
    if not out.exists():
        draft.rename(out)
        sync(out.parent)
        return
    older = out.with_name(f"{_hidden(out, REPLACED)}{secrets.token_hex(4)}")
    try:
        out.rename(older)
        draft.rename(out)
    except BaseException:
        if older.is_dir() and not out.exists():
            older.rename(out)
        raise
    sync(out.parent)
    if older.is_symlink():  # the name was a link to a bundle elsewhere, which is left alone
        older.unlink()
    else:
        shutil.rmtree(older, ignore_errors=True)


def _hidden(out: Path, state: str) -> str:
    return f".{out.name}.{state}-"
