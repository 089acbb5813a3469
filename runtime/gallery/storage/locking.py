"""One writer at a time, across processes: a lock that the system takes back when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ...errors import GalleryError
from ...system.file_lock import try_lock

__all__ = ["LOCK", "WriterLock"]

LOCK = "writer.lock"


class WriterLock:
    """The right to write in an index's folder, held from opening to `release`.

    The file stays when the lock is given back: a process that waits on a file that is then removed would hold a lock that no
    one else sees. It names its holder, for the message that another writer gets.

    Raises:
        GalleryError: another process, or another gallery of this one, holds it; or the folder cannot be written or locked.
    """

    def __init__(self, folder: Path) -> None:
        self._file = -1
        path = folder / LOCK
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError as error:
            raise GalleryError(
                f"{folder} is not writable ({error.strerror}): give a folder with write permission, or open the index read-only"
            ) from error
        try:
            locked = try_lock(self._file)
        except OSError as error:
            self.release()
            raise GalleryError(
                f"{folder} cannot be locked against a second writer ({error.strerror}): give a folder on a file system that "
                "supports locks, or open the index read-only"
            ) from error
        if not locked:
            holder = os.pread(self._file, 20, 0).decode("ascii", "replace").strip() if hasattr(os, "pread") else ""
            self.release()
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise GalleryError(
                f"{folder} is being written by {who}: an index allows one writer at a time. Try again when it has finished "
                "(searching is not affected)"
            )
        with contextlib.suppress(OSError):  # who holds it is told for convenience; a full disk must not keep a lock from working
            os.ftruncate(self._file, 0)
            os.write(self._file, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        if self._file >= 0:
            os.close(self._file)  # which gives the lock back
            self._file = -1
