"""Embeddings that an upgrade has made so far, beside the index: one small SQLite file, by the files' sha256.

It lets an upgrade that was killed go on where it stood, whatever the index's rows are called. It is for one bundle and one version
of the reader; what another one left is thrown away. Its embeddings are as private as the index's: the next compaction, and so
each erasure, removes it.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ...errors import GalleryError
from ...images.reader_version import READER_VERSION
from ...model.head import Floats
from .leftovers import remove_drafts

__all__ = ["Staging", "remove_staging"]

FILE = "upgrade.sqlite"
VERSION = 1
SCHEMA = """
CREATE TABLE target (value TEXT NOT NULL);
CREATE TABLE files (content BLOB PRIMARY KEY, frames INTEGER NOT NULL, whole INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE views (content BLOB NOT NULL, frame INTEGER NOT NULL, rendering INTEGER NOT NULL, digest BLOB NOT NULL,
    embedding BLOB NOT NULL, PRIMARY KEY (content, frame, rendering));
"""


class Staging:
    """The file in an index's folder; made where there is none. For the folder's only writer.

    Args:
        folder: the index's.
        fingerprint: of the bundle that embeds.
        features: length of its embeddings.

    Raises (from every method):
        GalleryError: it cannot be written; the index itself is unharmed.
    """

    def __init__(self, folder: Path, fingerprint: str, features: int) -> None:
        self.path = folder / FILE
        self._features = features
        target = f"{VERSION} {fingerprint} {features} {READER_VERSION}"
        if self.path.exists() and self._target() != target:
            remove_staging(folder)
        with self._explained():
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(self.path, isolation_level=None)
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = NORMAL")  # what a power cut takes is embedded again
                if self._connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None:
                    self._connection.executescript(f"BEGIN; {SCHEMA} INSERT INTO target VALUES ('{target}'); COMMIT;")
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _target(self) -> str | None:
        """What an existing file was made for; None where it is damaged or not finished."""
        try:
            connection = sqlite3.connect(self.path, isolation_level=None)
            try:
                row = connection.execute("SELECT value FROM target").fetchone()
            finally:
                connection.close()
        except sqlite3.Error:
            return None
        return str(row[0]) if row else None

    def contents(self, *, whole: bool) -> set[bytes]:
        """The sha256 of each file that is here; or only of those that are here with all frames that they should have."""
        with self._explained():
            rows = self._connection.execute("SELECT content FROM files WHERE whole >= ?", (whole,))
            return {bytes(content) for (content,) in rows}

    def put(self, content: bytes, frames: int, embeddings: Mapping[int, Floats], *, whole: bool) -> None:
        """Keep a file's embeddings.

        Args:
            content: its sha256.
            frames: how many frames it has.
            embeddings: frame's number to float32 (renderings, features).
            whole: whether these are all frames that it should have. Else another attempt reads it again.
        """
        rows = []
        for frame, views in embeddings.items():
            if views.ndim != 2 or views.shape[1] != self._features or not np.isfinite(views).all():
                raise GalleryError(f"an embedding must be {self._features} finite numbers, got shape {views.shape}")
            for rendering, view in enumerate(views):
                data = np.ascontiguousarray(view, "<f4").tobytes()
                rows.append((content, frame, rendering, hashlib.sha256(data).digest(), data))
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (content, frames, whole))
                self._connection.execute("DELETE FROM views WHERE content = ?", (content,))
                self._connection.executemany("INSERT INTO views VALUES (?, ?, ?, ?, ?)", rows)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def get(self, content: bytes) -> tuple[int, dict[int, list[tuple[bytes, bytes]]]]:
        """A file's number of frames, and by frame the (sha256, embedding as bytes) of each rendering.

        Raises:
            GalleryError: it is not as it was written.
        """
        with self._explained():
            row = self._connection.execute("SELECT frames FROM files WHERE content = ?", (content,)).fetchone()
            query = "SELECT frame, digest, embedding FROM views WHERE content = ? ORDER BY frame, rendering"
            rows = self._connection.execute(query, (content,)).fetchall()
        found: dict[int, list[tuple[bytes, bytes]]] = {}
        for frame, digest, embedding in rows:
            if len(embedding) != 4 * self._features or hashlib.sha256(embedding).digest() != digest:
                raise GalleryError(f"{self.path} is damaged: delete it, and run 'lcmem-onnx index upgrade' again")
            found.setdefault(frame, []).append((digest, embedding))
        return int(row[0]), found

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            cause = error.strerror if isinstance(error, OSError) else error
            full = ": the disk is full" if "full" in str(cause) else f" ({cause})"
            raise GalleryError(
                f"cannot write {self.path}, which stores the finished embeddings{full}. The index is unchanged; run the same "
                "command again to resume"
            ) from error


def remove_staging(folder: Path) -> None:
    """Remove what an upgrade kept. Raises GalleryError where it cannot be removed."""
    remove_drafts(folder, f"{FILE}*")
