"""Embeddings by a file's content, kept between runs, so that an interrupted audit goes on where it was.

One SQLite file, keyed by the bundle's fingerprint, the way of looking and the file's sha256: no name of a picture is in it. What
is in it is personal data all the same, since embeddings recognise.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import GalleryError
from ..head import Floats

__all__ = ["Cache"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS embeddings (
    model TEXT NOT NULL, content BLOB NOT NULL, frame INTEGER NOT NULL, frames INTEGER NOT NULL,
    views INTEGER NOT NULL, notes TEXT NOT NULL, embedding BLOB NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (model, content, frame)
) WITHOUT ROWID
"""
KEEP_EVERY = 1.0
"""Seconds between commits: what an interruption may cost."""
BUSY_SECONDS = 10.0


class Cache:
    """Embeddings of files that were embedded before, by the same model in the same way. Threads take turns.

    Args:
        path: the file; made if need be, readable by its owner alone.
        model: what the embeddings depend on beside the file: a bundle's fingerprint, with the ways of looking.
        features: length of an embedding.

    Raises (on opening, and from every method):
        GalleryError: it is damaged, locked or cannot be written.
    """

    def __init__(self, path: Path, model: str, features: int) -> None:
        self._path, self._model, self._features = path, model, features
        self._lock = threading.RLock()
        try:
            path.touch(mode=0o600, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(SCHEMA)
            rows = self._connection.execute("SELECT DISTINCT content FROM embeddings WHERE model = ?", (model,))
            self._known = {bytes(content) for (content,) in rows}
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        self._kept_at = time.monotonic()

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        """How many files of this model it holds."""
        return len(self._known)

    def close(self) -> None:
        """Keep what was put, and close the file."""
        try:
            self._keep()
        finally:
            self._connection.close()

    def known(self, content: bytes) -> bool:
        """Whether the file with this sha256 is in it, whole."""
        with self._lock:
            return content in self._known

    def put(self, content: bytes, frames: dict[int, Floats], notes: str = "") -> None:
        """Add a file: each of its frames' number to float32 (views, features), and what is to be remembered of it."""
        rows = []
        for frame, embedding in frames.items():
            data = np.ascontiguousarray(embedding, "<f4").tobytes()
            digest = _digest(content, frame, notes, data)
            rows.append((self._model, content, frame, len(frames), len(embedding), notes, data, digest))
        with self._lock:
            try:
                if not self._connection.in_transaction:
                    self._connection.execute("BEGIN")
                self._connection.executemany("INSERT OR IGNORE INTO embeddings VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
                self._known.add(content)
                if time.monotonic() - self._kept_at > KEEP_EVERY:
                    self._keep()
            except sqlite3.Error as error:
                raise self._unusable(error) from error

    def get(self, content: bytes) -> tuple[dict[int, Floats], str]:
        """A known file's frames and notes, as they were put.

        Raises:
            GalleryError: a row is damaged. A wrong embedding could hide a match.
        """
        query = (
            "SELECT frame, frames, views, notes, embedding, digest FROM embeddings WHERE model = ? AND content = ? ORDER BY frame"
        )
        with self._lock:
            try:
                rows = self._connection.execute(query, (self._model, content)).fetchall()
            except sqlite3.Error as error:
                raise self._unusable(error) from error
        found: dict[int, Floats] = {}
        for frame, frames, views, notes, data, digest in rows:
            right = digest == _digest(content, frame, notes, data) and len(data) == 4 * views * self._features
            if not right or frames != len(rows):
                raise GalleryError(
                    f"{self._path} is damaged: an embedding in it is not as it was written. Remove it and start again"
                )
            found[frame] = np.frombuffer(data, "<f4").astype(np.float32).reshape(views, self._features)
        return found, rows[0][3] if rows else ""

    def _keep(self) -> None:
        with self._lock:
            if self._connection.in_transaction:
                try:
                    self._connection.execute("COMMIT")
                except sqlite3.Error as error:
                    raise self._unusable(error) from error
            self._kept_at = time.monotonic()

    def _unusable(self, error: Exception) -> GalleryError:
        return GalleryError(f"{self._path} cannot be used: {error}. Is the disk full, or another audit at work in this folder?")


def _digest(content: bytes, frame: int, notes: str, data: bytes) -> bytes:
    return hashlib.blake2b(content + frame.to_bytes(4, "big") + repr(notes).encode() + data, digest_size=16).digest()
