"""On disk, not in the system's memory: what a power cut must not take, nor a kill leave half written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["put_whole", "sync"]


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


def put_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Have a file written beside and renamed: under its name there is the old content or the new one.

    Raises:
        OSError: it cannot be written, synced or renamed; and what `write` raises.
    """
    unfinished = path.with_name(f".unfinished-{path.name}")
    write(unfinished)
    sync(unfinished)
    unfinished.replace(path)
