"""Where a gallery's embeddings and names are kept: one SQLite file, transactional.

Each distinct embedding is one row of `vectors`, however many pictures have it: copies are what is sought, and a search graph
with many equal points makes some of them unreachable. `vectors.digest` is the sha256 of the embedding's bytes; it makes
equal vectors one, and shows a damaged one when it is read.

SQLite does not notice a flipped bit in a row, nor a row that fell out of a damaged page; either may lose a match without a
word. So `meta` holds a tally of each table, kept in the same transaction: how many rows it has, and the sum of their digests,
which does not depend on their order. The tally of `pictures`, and that each of its rows has a vector and each vector a
picture, is checked on opening; that of `vectors` when they are read, since that reads all of the file.

An addition is acknowledged when its transaction has been committed with `synchronous=FULL`, so it survives a power cut.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import GalleryError, GalleryMismatchError, KeyConflictError, UsageError
from ..head import Floats

__all__ = ["DATABASE", "Entry", "Row", "Store"]

DATABASE = "gallery.sqlite"
FORMAT_VERSION = 2
BUSY_SECONDS = 10.0
READ_AT_ONCE = 500
"""Parameters in one query; SQLite allows 999 in old builds."""

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE vectors (id INTEGER PRIMARY KEY AUTOINCREMENT, digest BLOB NOT NULL UNIQUE, embedding BLOB NOT NULL);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    frame INTEGER NOT NULL,
    frames INTEGER NOT NULL,
    content BLOB NOT NULL,
    vector INTEGER NOT NULL REFERENCES vectors(id),
    UNIQUE (key, frame)
);
CREATE INDEX pictures_by_content ON pictures (content);
CREATE INDEX pictures_by_vector ON pictures (vector);
"""


@dataclass(frozen=True, eq=False)
class Entry:
    """One picture to add.

    Attributes:
        key: its name in the gallery, unique; any text.
        content: sha256 (32 bytes) of the file, by which it is recognised again.
        frames: how many frames the file has.
        embeddings: frame's number (from 0) to its embedding, float32 (features,). Fewer than `frames` when some could not
            be read: then the picture is not complete, and adding it again tries the others again.
    """

    key: str
    content: bytes
    frames: int
    embeddings: dict[int, Floats]


@dataclass(frozen=True)
class Row:
    """A gallery picture's frame, as found by a search."""

    key: str
    frame: int
    vector: int


@dataclass(frozen=True)
class Tally:
    """How many rows, and the sum of their digests modulo 2^128."""

    rows: int = 0
    total: int = 0

    def plus(self, digests: Iterable[bytes]) -> Tally:
        numbers = [int.from_bytes(digest, "big") for digest in digests]
        return Tally(self.rows + len(numbers), (self.total + sum(numbers)) % (1 << 128))

    def __str__(self) -> str:
        return f"{self.rows} {self.total:032x}"


EMPTY = Tally()


class Store:
    """An open gallery file. Threads take turns; several processes may have it open, one of them writing at a time.

    Raises (on opening, and from every method):
        GalleryError: missing, damaged, of another format, locked for too long, or the disk is full.
        GalleryMismatchError: made with another bundle.
    """

    def __init__(self, folder: Path, fingerprint: str, features: int, *, read_only: bool = False) -> None:
        self.folder = folder
        self.features = features
        self.path = folder / DATABASE
        if not self.path.is_file():
            raise GalleryError(f"{folder} is no index: it has no {DATABASE}. 'lcmem-onnx index build' makes one")
        self._lock = threading.RLock()
        self._process = os.getpid()
        with self._explained():
            self._connection = _connect(self.path, read_only=read_only)
            try:
                self._check_meta(fingerprint)
                self._check_pictures()
            except BaseException:
                self._connection.close()
                raise

    @classmethod
    def create(cls, folder: Path, fingerprint: str, features: int) -> Store:
        """Make an empty gallery in `folder`, which may exist but must hold no gallery.

        The file appears under its name only when it is whole, so a crash leaves no half gallery.
        """
        path = folder / DATABASE
        if path.exists():
            raise GalleryError(f"{folder} holds an index already: add to it with 'lcmem-onnx index add', or give another folder")
        draft = folder / f".{DATABASE}.{secrets.token_hex(8)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(draft, isolation_level=None)
            try:
                connection.executescript(SCHEMA)
                connection.executemany(
                    "INSERT INTO meta VALUES (?, ?)",
                    [
                        ("format_version", str(FORMAT_VERSION)),
                        ("fingerprint", fingerprint),
                        ("features", str(features)),
                        ("created", datetime.now(UTC).isoformat(timespec="seconds")),
                        ("pictures", str(EMPTY)),
                        ("vectors", str(EMPTY)),
                    ],
                )
                connection.execute("PRAGMA journal_mode = WAL")
            finally:
                connection.close()
            os.link(draft, path)  # fails where another process was quicker; renaming would replace its index
            draft.unlink()
        except (OSError, sqlite3.Error) as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            if isinstance(error, FileExistsError | NotADirectoryError) and not folder.is_dir():
                raise GalleryError(f"an index cannot be made in {folder}: there is a file of that name in its path") from error
            if isinstance(error, FileExistsError):
                raise GalleryError(f"{folder} holds an index already: another process was quicker") from error
            cause = error.strerror if isinstance(error, OSError) else None
            raise GalleryError(f"an index cannot be made in {folder}: {cause or error}") from error
        return cls(folder, fingerprint, features)

    def close(self) -> None:
        self._connection.close()

    def _check_meta(self, fingerprint: str) -> None:
        meta = dict(self._connection.execute("SELECT name, value FROM meta"))
        if meta.get("format_version") != str(FORMAT_VERSION):
            raise GalleryError(
                f"{self.folder} has index format {meta.get('format_version')}; this lcmem-onnx reads {FORMAT_VERSION}. "
                "Update lcmem-onnx, or build the index again"
            )
        if meta.get("fingerprint") != fingerprint or meta.get("features") != str(self.features):
            raise GalleryMismatchError(
                f"{self.folder} was made with another model (fingerprint {str(meta.get('fingerprint'))[:12]}, this bundle's is "
                f"{fingerprint[:12]}): its embeddings do not compare. Give the bundle it was made with, or build it again"
            )

    def _check_pictures(self) -> None:
        """Whether every row of `pictures` is as it was written, with its vector, and every vector has one."""
        with self._snapshot():
            tally = self._tally("pictures")
            used: set[int] = set()
            digests = []
            for row in self._connection.execute("SELECT key, frame, frames, content, vector FROM pictures"):
                used.add(row[4])
                digests.append(_row_digest(*row))
            known = {number for (number,) in self._connection.execute("SELECT id FROM vectors")}
        if EMPTY.plus(digests) != tally or used != known:
            raise self._damaged("its list of pictures is not as it was written")

    def _tally(self, table: str) -> Tally:
        (text,) = self._connection.execute("SELECT value FROM meta WHERE name = ?", (table,)).fetchone() or ("",)
        try:
            rows, total = str(text).split(" ")
            return Tally(int(rows), int(total, 16))
        except ValueError as error:
            raise self._damaged(f"it does not say how many {table} it has") from error

    def _damaged(self, what: str) -> GalleryError:
        return GalleryError(f"{self.path} is damaged ({what}): restore it from a copy, or build the index again")

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """What is read in here is of one moment, whatever another process writes meanwhile."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn SQLite's errors into ours, and let one thread at a time use the connection.

        Raises:
            UsageError: this process is a fork of the one that opened the gallery. A connection that two processes share can
                damage the file, as its locks are not the child's.
        """
        if os.getpid() != self._process:
            raise UsageError(f"this process is a fork, and {self.folder} was opened before it: open the index in each process")
        try:
            with self._lock:
                yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                raise GalleryError(f"{self.folder} is being written by another process: try again when it has finished") from error
            if "readonly" in text or "read-only" in text:
                raise GalleryError(f"{self.folder} may not be written: give a folder with write permission") from error
            if "full" in text:
                raise GalleryError(f"the disk of {self.folder} is full; what was in the index before is unharmed") from error
            raise GalleryError(f"{self.path} cannot be used: {text}") from error
        except (sqlite3.DatabaseError, UnicodeError) as error:  # text that is none, even in the schema, SQLite passes on
            raise self._damaged(str(error)) from error

    # -- reading ---------------------------------------------------------------------------------------------------

    def counts(self) -> tuple[int, int]:
        """(pictures' frames, distinct vectors)."""
        with self._explained():
            return (
                self._connection.execute("SELECT count(*) FROM pictures").fetchone()[0],
                self._connection.execute("SELECT count(*) FROM vectors").fetchone()[0],
            )

    def files(self) -> int:
        """How many keys there are."""
        with self._explained():
            return int(self._connection.execute("SELECT count(DISTINCT key) FROM pictures").fetchone()[0])

    def created(self) -> str:
        """When the gallery was made, ISO 8601 in UTC."""
        with self._explained():
            return str(self._connection.execute("SELECT value FROM meta WHERE name = 'created'").fetchone()[0])

    def newest(self) -> int:
        """The highest vector id, 0 when empty. Ids only grow, so this tells whether vectors were added."""
        with self._explained():
            return int(self._connection.execute("SELECT coalesce(max(id), 0) FROM vectors").fetchone()[0])

    def vectors(self, after: int = 0, before: Tally = EMPTY) -> tuple[NDArray[np.int64], Floats, Tally]:
        """All vectors with an id above `after`: ids int64 (n,), ascending, and embeddings float32 (n, features).

        Args:
            after: the highest id that was read earlier, 0 for none.
            before: the tally that came with it.

        Returns:
            ids, embeddings, and the tally of all vectors, these and the earlier ones.

        Raises:
            GalleryError: an embedding differs from its checksum, or vectors were lost.
        """
        ids, embeddings, digests = [], [], []
        with self._explained(), self._snapshot():
            expected = self._tally("vectors")
            query = "SELECT id, digest, embedding FROM vectors WHERE id > ? ORDER BY id"
            for number, digest, embedding in self._connection.execute(query, (after,)):
                whole = isinstance(embedding, bytes) and len(embedding) == 4 * self.features
                if not whole or hashlib.sha256(embedding).digest() != digest:
                    raise self._damaged(f"vector {number} is not as it was written")
                ids.append(number)
                embeddings.append(embedding)
                digests.append(_row_digest(number, digest))
        tally = before.plus(digests)
        if tally != expected:
            raise self._damaged("its vectors are not those that were written")
        matrix = np.frombuffer(b"".join(embeddings), dtype="<f4").reshape(len(ids), self.features)
        return np.asarray(ids, dtype=np.int64), matrix.astype(np.float32, copy=False), tally

    def rows(self, vector: int, limit: int) -> list[Row]:
        """The pictures that have this vector, by key and frame, at most `limit`."""
        with self._explained():
            return [
                Row(key, frame, vector)
                for key, frame in self._connection.execute(
                    "SELECT key, frame FROM pictures WHERE vector = ? ORDER BY key, frame LIMIT ?", (vector, limit)
                )
            ]

    def pictures_of(self, vectors: Sequence[int]) -> int:
        """How many pictures' frames have one of these vectors."""
        total = 0
        with self._explained():
            for at in range(0, len(vectors), READ_AT_ONCE):
                part = [int(number) for number in vectors[at : at + READ_AT_ONCE]]
                marks = ",".join("?" * len(part))
                query = f"SELECT count(*) FROM pictures WHERE vector IN ({marks})"
                total += self._connection.execute(query, part).fetchone()[0]
        return total

    def content_of(self, key: str) -> tuple[bytes, bool] | None:
        """The sha256 that a key stands for and whether all its frames are there, or None."""
        with self._explained():
            row = self._connection.execute(
                "SELECT content, count(*) = frames FROM pictures WHERE key = ? GROUP BY content, frames", (key,)
            ).fetchone()
        return (bytes(row[0]), bool(row[1])) if row else None

    def complete_copy(self, content: bytes) -> str | None:
        """A key under which this very file is in the gallery with all its frames, or None."""
        with self._explained():
            row = self._connection.execute(
                "SELECT key FROM pictures WHERE content = ? GROUP BY key, frames HAVING count(*) = frames LIMIT 1",
                (content,),
            ).fetchone()
        return str(row[0]) if row else None

    # -- writing ---------------------------------------------------------------------------------------------------

    def add(self, entries: Sequence[Entry], copies: Sequence[tuple[str, str]] = ()) -> None:
        """Add pictures, and names for pictures that are there already, in one transaction: all of them or none.

        Args:
            entries: new pictures.
            copies: (new key, key of the same content): the vectors are shared, nothing is embedded again.

        Raises:
            KeyConflictError: a key is taken by a picture of other content.
            GalleryError: as for the class. What was in the gallery before is unharmed.
        """
        with self._explained(), self._transaction():
            pictures, vectors = self._tally("pictures"), self._tally("vectors")
            new_rows: list[bytes] = []
            new_vectors: list[bytes] = []
            for entry in entries:
                self._refuse_conflict(entry.key, entry.content)
                there = self._frames_of(entry.key)
                for frame in entry.embeddings.keys() - there:
                    vector = self._vector_id(entry.embeddings[frame], new_vectors)
                    new_rows.append(self._insert((entry.key, int(frame), int(entry.frames), bytes(entry.content), vector)))
            for key, original in copies:
                there = self._frames_of(key)
                query = "SELECT frame, frames, content, vector FROM pictures WHERE key = ?"
                for row in self._connection.execute(query, (original,)).fetchall():
                    if row[0] not in there:
                        new_rows.append(self._insert((key, *row)))
            for name, tally in (("pictures", pictures.plus(new_rows)), ("vectors", vectors.plus(new_vectors))):
                self._connection.execute("UPDATE meta SET value = ? WHERE name = ?", (str(tally), name))

    def _frames_of(self, key: str) -> set[int]:
        """The frames that are there, which stay as they are. To store their embeddings anew could leave a vector, one that
        differs in its last bit, without a picture."""
        return {frame for (frame,) in self._connection.execute("SELECT frame FROM pictures WHERE key = ?", (key,))}

    def _insert(self, row: tuple[str, int, int, bytes, int]) -> bytes:
        """Insert a row of `pictures` and return its digest."""
        self._connection.execute("INSERT INTO pictures (key, frame, frames, content, vector) VALUES (?, ?, ?, ?, ?)", row)
        return _row_digest(*row)

    def _refuse_conflict(self, key: str, content: bytes) -> None:
        known = self.content_of(key)
        if known and known[0] != content:
            raise KeyConflictError(
                f"the key {key!r} is in the index already, for another picture (sha256 {known[0].hex()[:12]}, not "
                f"{content.hex()[:12]}): a key stands for one picture, so give the changed one another name"
            )

    def _vector_id(self, embedding: Floats, new: list[bytes]) -> int:
        """The id of an embedding, which is inserted if it is new; its row's digest is then appended to `new`."""
        if embedding.shape != (self.features,) or not np.isfinite(embedding).all():
            raise GalleryError(f"an embedding must be {self.features} finite numbers; this one has shape {embedding.shape}")
        data = np.ascontiguousarray(embedding, dtype="<f4").tobytes()
        digest = hashlib.sha256(data).digest()
        query = "INSERT OR IGNORE INTO vectors (digest, embedding) VALUES (?, ?)"
        inserted = self._connection.execute(query, (digest, data)).rowcount == 1
        number = int(self._connection.execute("SELECT id FROM vectors WHERE digest = ?", (digest,)).fetchone()[0])
        if inserted:
            new.append(_row_digest(number, digest))
        return number

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # After a failed COMMIT or a full disk SQLite may have rolled back by itself.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


def _row_digest(*values: str | int | bytes) -> bytes:
    """16 bytes that stand for a row. `repr` tells texts, numbers and bytes apart, and where one value ends."""
    return hashlib.blake2b(repr(values).encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open an existing gallery; on a medium that cannot be written, as an unchanging file without WAL."""
    uri = path.absolute().as_uri()
    if read_only:
        unwritable = not os.access(path.parent, os.W_OK) or not os.access(path, os.W_OK)
        mode = "?mode=ro&immutable=1" if unwritable and not path.with_name(path.name + "-wal").exists() else "?mode=ro"
    else:
        mode = "?mode=rw"
    connection = sqlite3.connect(uri + mode, uri=True, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection
