"""On disk, not in the system's memory: what a power cut must not take, nor a kill leave half written."""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

__all__ = ["put_whole", "sync"]

Result = TypeVar("Result")


def sync(path: Path) -> None:
    """Have a file's bytes, or the names in a folder, on disk.

    Raises:
        OSError: it cannot be opened or synced.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_whole(path: Path, write: Callable[[Path], Result], *, private: bool = False, alone: bool = False) -> Result:
    """Have a file written beside and renamed: under its name there is the old content or the new one. Gives what `write` gives.

    The draft is `.NAME.TOKEN`, with the name's suffix behind it for what decides by that how to write. Several may be in the
    making at once, and a process that is killed leaves its own behind.

    Args:
        write: writes the file that it is given, which may be there already, empty.
        private: readable for its owner alone.
        alone: nobody else writes this file, so drafts of it are what killed processes left, and are removed first.

    Raises:
        OSError: it cannot be written, synced or renamed; and what `write` raises. The draft is removed.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}{path.suffix}")
    try:
        if alone:
            for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
                left.unlink(missing_ok=True)
        if private:
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        result = write(draft)
        sync(draft)
        draft.replace(path)
        return result
    finally:
        draft.unlink(missing_ok=True)
