"""Locks on open files, between processes. The system gives a lock back when its holder ends, however it ends.

A lock belongs to the open file, not to the process: descriptors that a child inherits hold it too, and two opens of one file in the
same process exclude each other. `fcntl.flock` and not `lockf`: a POSIX record lock is lost when any handle of the file is closed.

What differs between the callers stays with them. An index (`gallery.storage.locking`) refuses a second writer at once and names the
first; a gateway (`gateway.supervisor`) waits for the workers of one that has just died; an export (`export.output_folder`) locks a
folder, to tell one that is in use from an abandoned one.
"""

from __future__ import annotations

import sys

__all__ = ["try_lock", "wait_for_lock"]

if sys.platform == "win32":
    import msvcrt
    import os
    import time

    POLL_SECONDS = 0.05
    BEYOND_THE_TEXT = 1 << 30
    """Windows locks bytes, and others must be able to read the file's own."""

    def try_lock(descriptor: int, *, shared: bool = False) -> bool:
        """Lock an open file if no other process holds it, and return whether it is locked now. Every lock is exclusive here."""
        try:
            os.lseek(descriptor, BEYOND_THE_TEXT, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

    def wait_for_lock(descriptor: int, *, shared: bool = False) -> None:
        """Lock an open file, as soon as no other process holds it."""
        while not try_lock(descriptor, shared=shared):
            time.sleep(POLL_SECONDS)
else:
    import fcntl

    def try_lock(descriptor: int, *, shared: bool = False) -> bool:
        """Lock an open file if its other holders allow it, and return whether it is locked now.

        Args:
            descriptor: of the open file or folder. Closing it gives the lock back.
            shared: hold it beside other shared locks, and keep exclusive ones out.

        Raises:
            OSError: the file system has no locks.
        """
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait_for_lock(descriptor: int, *, shared: bool = False) -> None:
        """Lock an open file, as soon as its other holders allow it. Arguments and errors are those of `try_lock`."""
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
