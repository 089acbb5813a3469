"""A watched folder: files that have stopped changing are claimed by a rename, copied into the spool, and removed.

    .lcmem-claimed/   claimed, and not yet known to be in the spool: taken up again after a crash
    .lcmem-refused/   too large to be taken

Only regular files are taken, links never. Polling, since network folders tell nobody what changes in them.
"""

from __future__ import annotations

import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import GatewayError
from .json_logging import Log
from .settings import FolderSettings
from .spool import Arrival, Source, Spool, SpoolFullError, TooLargeError

__all__ = ["FolderWatcher"]

CLAIMED, REFUSED = ".lcmem-claimed", ".lcmem-refused"
MAX_BYTES = 2 << 30

log = Log("watch")

Seen = tuple[int, int, int]
"""Inode, size, time of the last change: a file has settled when these stay the same."""


class FolderWatcher:
    """Watches one folder.

    Raises:
        GatewayError: it is no folder, or cannot be written.
    """

    def __init__(self, settings: FolderSettings, spool: Spool) -> None:
        self._settings = settings
        self._spool = spool
        self._folder = settings.path
        self._seen: dict[Path, tuple[Seen, float]] = {}
        self._odd: set[Path] = set()
        if not self._folder.is_dir():
            raise GatewayError(f"folder: {self._folder} is no folder")
        try:
            for inside in (CLAIMED, REFUSED):
                (self._folder / inside).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise GatewayError(f"folder: {self._folder} cannot be written: {error.strerror}") from error

    def run(self, stop: threading.Event) -> None:
        """Look again and again, until `stop`."""
        log.info("watching", folder=self._settings.name)
        while not stop.is_set():
            try:
                self.look()
            except (GatewayError, OSError) as error:
                log.error("folder-not-readable", folder=self._settings.name, error=type(error).__name__)
            stop.wait(self._settings.poll_seconds)

    def look(self) -> int:
        """Take in what has settled, and what an earlier run had claimed. Returns how many files were taken."""
        taken = sum(self._take(path) for path in self._in(self._folder / CLAIMED))
        now = time.monotonic()
        found: dict[Path, tuple[Seen, float]] = {}
        for path, status in self._files(self._folder):
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            before, since = self._seen.get(path, (None, now))
            since = since if before == seen else now
            if now - since >= self._settings.settle_seconds:
                taken += self._claim(path)
            else:
                found[path] = (seen, since)
        self._seen = found
        return taken

    def _in(self, folder: Path) -> Iterator[Path]:
        for name in sorted(os.listdir(folder)):
            yield folder / name

    def _files(self, folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
        """Regular files below a folder; hidden ones are left alone, as programs write under such names what is not finished."""
        waiting = [folder]
        while waiting:
            try:
                with os.scandir(waiting.pop()) as entries:
                    inside = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
            except FileNotFoundError:
                continue
            for entry in inside:
                path = Path(entry.path)
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(path)
                elif stat.S_ISREG(status.st_mode):
                    yield path, status
                elif path not in self._odd:
                    self._odd.add(path)
                    log.warning("not-taken", folder=self._settings.name, reason="not-a-regular-file")

    def _claim(self, path: Path) -> bool:
        claimed = self._folder / CLAIMED / secrets.token_hex(16)
        try:
            os.rename(path, claimed)
        except FileNotFoundError:
            return False  # somebody else took it
        except OSError as error:
            log.error("not-taken", folder=self._settings.name, reason="cannot-be-claimed", error=error.strerror)
            return False
        return self._take(claimed)

    def _take(self, claimed: Path) -> bool:
        arrival = Arrival(Source.FOLDER, calling_aet=self._settings.name)
        try:
            with open(os.open(claimed, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise OSError("not a regular file")
                received = self._spool.files.copy(file, MAX_BYTES)
                after = os.fstat(file.fileno())
            try:
                if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                    log.warning("not-taken", folder=self._settings.name, reason="still-changing")
                    return False
                stored = self._spool.put_file(received, arrival)
            finally:
                received.unlink(missing_ok=True)
        except TooLargeError:
            log.error("not-taken", folder=self._settings.name, reason="too-large", moved_to=REFUSED)
            os.rename(claimed, self._folder / REFUSED / claimed.name)
            return False
        except SpoolFullError:
            log.error("not-taken", folder=self._settings.name, reason="disk-above-watermark")
            return False
        except FileNotFoundError:
            return False
        except (GatewayError, OSError) as error:
            log.error("not-taken", folder=self._settings.name, reason="cannot-be-read", error=type(error).__name__)
            return False
        claimed.unlink()
        log.info("received", object=stored.id, known=stored.known, folder=self._settings.name)
        return True
