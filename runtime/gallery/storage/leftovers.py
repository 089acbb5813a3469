"""What killed processes left behind: temporary galleries, found by the lock that died with them, and temporary files."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from ...errors import GalleryError
from .locking import WriterLock

__all__ = ["PREFIX", "remove_drafts", "remove_leftovers"]

PREFIX = "lcmem-onnx-temporary-gallery-"
"""A name that nobody gives an index that is to stay: what is called so may be removed."""
YOUNG = 60.0
"""Seconds in which a folder is left alone: its process may be about to take the lock."""


def remove_leftovers() -> None:
    """Remove this user's temporary galleries whose process is gone; they hold embeddings. What cannot be removed stays."""
    try:
        folders = [path for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if _is_old_and_ours(path)]
    except OSError:
        return  # a temporary folder that cannot be listed: nothing of this run depends on it
    for folder in folders:
        try:
            lock = WriterLock(folder)
        except GalleryError:
            continue  # its process lives, or there is no telling
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _is_old_and_ours(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    # As `tempfile` makes them: this user's, and closed to all others.
    ours = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    return stat.S_ISDIR(found.st_mode) and ours and time.time() - found.st_mtime > YOUNG


def remove_drafts(folder: Path, *patterns: str) -> None:
    """Remove what processes that were killed left half written; for the folder's only writer.

    Drafts hold embeddings, so what is erased from the index must not stay in them.

    Raises:
        GalleryError: one cannot be removed.
    """
    try:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise GalleryError(f"cannot remove the temporary files of a killed process in {folder}: {error.strerror}") from error
