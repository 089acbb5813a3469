"""Embeddings by a file's content, kept between runs, so that an interrupted audit goes on where it was.

One SQLite file, keyed by the bundle's fingerprint, the way of looking and the file's sha256: no name of an image is in it, and of
a patient only a pseudonym. What is in it is personal data all the same, since embeddings recognise, and thumbnails show.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ..errors import GalleryError
from ..model.head import Floats
from .thumbnails import SIDE

__all__ = ["Cache", "Cached"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS embeddings (
    model TEXT NOT NULL, content BLOB NOT NULL, frame INTEGER NOT NULL, frames INTEGER NOT NULL,
    views INTEGER NOT NULL, notes TEXT NOT NULL, embedding BLOB NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (model, content, frame)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS frames (
    model TEXT NOT NULL, content BLOB NOT NULL, frame INTEGER NOT NULL, patient TEXT NOT NULL,
    thumbnail BLOB NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (model, content, frame)
) WITHOUT ROWID
"""
KEEP_EVERY = 1.0
"""Seconds between commits: what an interruption may cost."""
BUSY_SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class Cached:
    """What is kept of a file.

    Attributes:
        embeddings: frame's number to float32 (views, features).
        thumbnails: frame's number to uint8 (SIDE, SIDE), of the same frames.
        notes: what is to be remembered of it.
        patient: pseudonym of its patient, if one is known.
    """

    embeddings: dict[int, Floats] = field(repr=False)
    thumbnails: dict[int, NDArray[np.uint8]] = field(repr=False)
    notes: str = ""
    patient: str | None = None


class Cache:
    """What was found in files that were embedded before, by the same model in the same way. Threads take turns.

    Args:
        path: the file; made if need be, readable by its owner alone.
        model: what the embeddings depend on beside the file: a bundle's fingerprint, with the ways of looking.
        features: length of an embedding.
        key: name of the key that the patients' pseudonyms are made with. What has a pseudonym by another key is not known.

    Raises (on opening, and from every method):
        GalleryError: it is damaged, locked or cannot be written.
    """

    def __init__(self, path: Path, model: str, features: int, key: str = "") -> None:
        self._path, self._model, self._features, self._key = path, model, features, key
        self._lock = threading.RLock()
        try:
            path.touch(mode=0o600, exist_ok=True)
            path.chmod(0o600)  # the mask may have taken bits from it; the files beside it that SQLite makes have its mode
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(SCHEMA)
            rows = self._connection.execute(
                "SELECT content FROM embeddings WHERE model = ? INTERSECT "
                "SELECT content FROM frames WHERE model = ? AND (patient = '' OR substr(patient, 1, ?) = ?)",
                (model, model, len(key) + 1, f"{key}:"),
            )
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

    def put(self, content: bytes, file: Cached) -> None:
        """Add a file."""
        rows, small = [], []
        patient = f"{self._key}:{file.patient}" if file.patient else ""
        for frame, embedding in file.embeddings.items():
            data = np.ascontiguousarray(embedding, "<f4").tobytes()
            digest = _digest(content, frame, file.notes, data)
            rows.append((self._model, content, frame, len(file.embeddings), len(embedding), file.notes, data, digest))
            pixels = file.thumbnails[frame].tobytes()
            small.append((self._model, content, frame, patient, pixels, _digest(content, frame, patient, pixels)))
        with self._lock:
            try:
                if not self._connection.in_transaction:
                    self._connection.execute("BEGIN")
                self._connection.executemany("INSERT OR IGNORE INTO embeddings VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
                self._connection.executemany("INSERT OR REPLACE INTO frames VALUES (?, ?, ?, ?, ?, ?)", small)
                self._known.add(content)
                if time.monotonic() - self._kept_at > KEEP_EVERY:
                    self._keep()
            except sqlite3.Error as error:
                raise self._unusable(error) from error

    def get(self, content: bytes) -> Cached:
        """A known file, as it was put.

        Raises:
            GalleryError: a row is damaged. A wrong embedding could hide a match.
        """
        query = (
            "SELECT e.frame, e.frames, e.views, e.notes, e.embedding, e.digest, f.patient, f.thumbnail, f.digest "
            "FROM embeddings e JOIN frames f USING (model, content, frame) WHERE e.model = ? AND e.content = ? ORDER BY e.frame"
        )
        with self._lock:
            try:
                rows = self._connection.execute(query, (self._model, content)).fetchall()
            except sqlite3.Error as error:
                raise self._unusable(error) from error
        found = Cached({}, {}, rows[0][3], rows[0][6].partition(":")[2] or None) if rows else Cached({}, {})
        for frame, frames, views, notes, data, digest, patient, pixels, other in rows:
            right = digest == _digest(content, frame, notes, data) and len(data) == 4 * views * self._features
            right = right and other == _digest(content, frame, patient, pixels) and len(pixels) == SIDE * SIDE
            if not right or frames != len(rows):
                raise GalleryError(
                    f"{self._path} is damaged: an embedding in it is not as it was written. Remove it and start again"
                )
            found.embeddings[frame] = np.frombuffer(data, "<f4").astype(np.float32).reshape(views, self._features)
            found.thumbnails[frame] = np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE)
        return found

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


def _digest(content: bytes, frame: int, text: str, data: bytes) -> bytes:
    return hashlib.blake2b(content + frame.to_bytes(4, "big") + repr(text).encode() + data, digest_size=16).digest()
