"""What was done of an archive, beside the index: one small SQLite file.

The index itself knows the images that are in it. The journal knows the rest: objects that hold no image or cannot be read
(they are not fetched again and again), studies that were walked to their end, and how far Orthanc's changes were followed. It
holds pseudonyms and keyed hashes alone. Losing it costs time, never an image: an entry is written after what it stands for is in
the index.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import GalleryError

__all__ = ["JOURNAL", "Journal"]

JOURNAL = "archive.sqlite"
VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS settled (key TEXT PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS walked (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursors (source BLOB PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class Journal:
    """The journal in an index's folder; made when there is none. What was walked is told apart by the `group` that is filled.

    Raises (from every method):
        GalleryError: it cannot be read or written.
    """

    def __init__(self, folder: Path, group: str) -> None:
        self.path = folder / JOURNAL
        self._group = group.encode("utf-8", "surrogatepass") + b"\0"
        self._lock = threading.Lock()
        with self._explained():
            self._connection = sqlite3.connect(self.path, isolation_level=None, timeout=10.0, check_same_thread=False)
            try:
                version = self._connection.execute("PRAGMA user_version").fetchone()[0]
                if version not in (0, VERSION):
                    raise GalleryError(
                        f"{self.path} is of version {version}, this lcmem-onnx reads {VERSION}: update it, or delete the file"
                    )
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = NORMAL")  # a lost entry is looked at again
                self._connection.executescript(SCHEMA + f"PRAGMA user_version = {VERSION};")
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        self._connection.close()

    def is_settled(self, key: str) -> bool:
        """Whether this object was looked at and holds nothing that can be added."""
        return self._one("SELECT 1 FROM settled WHERE key = ?", key) is not None

    def settle(self, key: str, reason: str) -> None:
        self._write("INSERT OR REPLACE INTO settled VALUES (?, ?)", key, reason)

    def unsettle(self) -> None:
        """Forget what could not be read and what was walked, so that all of it is tried again."""
        self._write("DELETE FROM settled")
        self._write("DELETE FROM walked")
        self._write("DELETE FROM cursors")

    def is_walked(self, digest: bytes) -> bool:
        return self._one("SELECT 1 FROM walked WHERE digest = ?", self._group + digest) is not None

    def walk(self, digest: bytes) -> None:
        self._write("INSERT OR IGNORE INTO walked VALUES (?)", self._group + digest)

    def cursor(self, source: bytes) -> str | None:
        """How far this source was followed."""
        return self._one("SELECT value FROM cursors WHERE source = ?", self._group + source)

    def set_cursor(self, source: bytes, value: str) -> None:
        self._write("INSERT OR REPLACE INTO cursors VALUES (?, ?)", self._group + source, value)

    def _one(self, query: str, *values: object) -> str | None:
        with self._explained():
            row = self._connection.execute(query, values).fetchone()
        return str(row[0]) if row else None

    def _write(self, query: str, *values: object) -> None:
        with self._explained():
            self._connection.execute(query, values)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except sqlite3.Error as error:
            raise GalleryError(f"{self.path}, which says what was fetched, cannot be used: {error}. It may be deleted") from error
