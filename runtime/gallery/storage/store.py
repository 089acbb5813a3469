"""A gallery's rows: embeddings and names, read, added and removed in transactions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryError, KeyConflictError
from ...images.reader_version import READER_VERSION
from ...model.head import Floats
from .database import Database, create_database
from .records import EMPTY, Entry, Record, Row, Tally, check_gallery_name, row_digest
from .schema import COLUMNS, DATABASE

__all__ = ["DATABASE", "Changes", "Entry", "Store"]

READ_AT_ONCE = 500
"""Parameters in one query; SQLite allows 999 in old builds."""
MANY_ROWS = 5000
"""Images that are read at once; where more have one embedding, SQLite sorts and counts them."""
ROW = "key, frame, gallery, patient, study"
BY_VECTOR = "id IN (SELECT id FROM pictures WHERE vector = ?)"
"""By way of the id, so that `vector` is read from the row itself and not from SQLite's index, which may be what is damaged."""


@dataclass(frozen=True, eq=False)
class Changes:
    """What happened to the vectors since a reader last looked, all of one moment.

    Attributes:
        ids: of new vectors, int64 (n,), ascending.
        embeddings: of these, float32 (n, features).
        added: the tally of these.
        erased: ids of vectors that are gone, among them such as the reader never knew.
        erasure: the number of the last of them, to go on from.
        newest: the highest id that was ever given, to go on from.
        tally: of all vectors that are there now.
    """

    ids: NDArray[np.int64]
    embeddings: Floats
    added: Tally
    erased: NDArray[np.int64]
    erasure: int
    newest: int
    tally: Tally


class Store(Database):
    """An open gallery file and what can be done with its rows. Raises as `Database` does."""

    @classmethod
    def create(cls, folder: Path, fingerprint: str, features: int) -> Store:
        """Make an empty gallery and open it; see `create_database`."""
        create_database(folder, fingerprint, features)
        return cls(folder, fingerprint, features)

    @classmethod
    def of_any_bundle(cls, folder: Path, *, read_only: bool = True) -> Store:
        """Open a gallery whatever bundle it was made with."""
        return cls(folder, None, 0, read_only=read_only)

    # -- reading ---------------------------------------------------------------------------------------------------

    def counts(self) -> tuple[int, int]:
        """(renderings of images' frames, distinct vectors)."""
        with self.explained():
            return self.tally("pictures").rows, self.tally("vectors").rows

    def frames(self, galleries: Sequence[str] | None = None) -> int:
        """How many images' frames there are, in all or in some galleries."""
        where, names = _within(galleries)
        with self.explained():
            query = f"SELECT count(*) FROM pictures WHERE rendering = 0{where}"
            return int(self.connection.execute(query, names).fetchone()[0])

    def frames_of_older_readers(self) -> int:
        """How many images' frames were read by an older version than this one."""
        with self.explained():
            query = "SELECT count(*) FROM pictures WHERE rendering = 0 AND reader < ?"
            return int(self.connection.execute(query, (READER_VERSION,)).fetchone()[0])

    def holds_pseudonyms(self) -> bool:
        """Whether the patient or the study of any image is known."""
        with self.explained():
            query = "SELECT 1 FROM pictures WHERE patient IS NOT NULL OR study IS NOT NULL LIMIT 1"
            return self.connection.execute(query).fetchone() is not None

    def files(self) -> int:
        """How many images there are, each with all its frames: keys, counted in each gallery."""
        with self.explained():
            query = "SELECT count(*) FROM (SELECT DISTINCT gallery, key FROM pictures)"
            return int(self.connection.execute(query).fetchone()[0])

    def galleries(self) -> dict[str, tuple[int, int, int]]:
        """By gallery's name: (images, frames, patients that are known)."""
        query = (
            "SELECT gallery, count(DISTINCT key), sum(rendering = 0), count(DISTINCT patient) FROM pictures "
            "GROUP BY gallery ORDER BY gallery"
        )
        with self.explained():
            return {str(name): (files, frames, patients) for name, files, frames, patients in self.connection.execute(query)}

    def holds(self, gallery: str) -> bool:
        """Whether a gallery of this name has an image."""
        with self.explained():
            return self.connection.execute("SELECT 1 FROM pictures WHERE gallery = ? LIMIT 1", (gallery,)).fetchone() is not None

    def newest(self) -> tuple[int, int]:
        """(highest vector id ever given, number of the last erasure). Both only grow: they tell whether anything changed.

        Raises:
            GalleryMismatchError: the images were embedded again with another bundle since the gallery was opened.
        """
        query = """SELECT coalesce((SELECT seq FROM main.sqlite_sequence WHERE name = 'vectors'), 0),
                          coalesce((SELECT max(number) FROM erased), 0),
                          (SELECT value FROM meta WHERE name = 'fingerprint')"""
        with self.explained():
            vector, erasure, fingerprint = self.connection.execute(query).fetchone()
        if fingerprint != self.fingerprint:
            raise self.mismatch(str(fingerprint))
        return int(vector), int(erasure)

    def changes(self, after: int = 0, erasure: int = 0, limit: int = -1) -> Changes:
        """The vectors with an id above `after`, at most `limit` of them, and those erased since `erasure`.

        Raises:
            GalleryError: an embedding differs from its checksum.
        """
        ids, embeddings, digests = [], [], []
        with self.explained(), self.snapshot():
            tally = self.tally("vectors")
            gone = self.connection.execute(
                "SELECT vector, number FROM erased WHERE number > ? ORDER BY number", (erasure,)
            ).fetchall()
            newest = self.newest()[0]
            query = "SELECT id, digest, embedding FROM vectors WHERE id > ? ORDER BY id LIMIT ?"
            for number, digest, embedding in self.connection.execute(query, (after, limit)):
                self._check_embedding(number, digest, embedding)
                ids.append(number)
                embeddings.append(embedding)
                digests.append(row_digest(number, digest))
        matrix = np.frombuffer(b"".join(embeddings), dtype="<f4").reshape(len(ids), self.features)
        return Changes(
            np.asarray(ids, dtype=np.int64),
            matrix.astype(np.float32, copy=False),
            EMPTY.plus(digests),
            np.asarray([vector for vector, _ in gone], dtype=np.int64),
            gone[-1][1] if gone else erasure,
            newest,
            tally,
        )

    def _check_embedding(self, number: int, digest: bytes, embedding: bytes) -> None:
        whole = isinstance(embedding, bytes) and len(embedding) == 4 * self.features
        if not whole or hashlib.sha256(embedding).digest() != digest:
            raise self.damaged(f"vector {number} does not match its checksum")

    def rows(self, vectors: Sequence[int], galleries: Sequence[str] | None = None) -> dict[int, list[Row]] | None:
        """The images that have these vectors, by vector, in the order of their addition; None where they are thousands.

        At most `READ_AT_ONCE` vectors.
        """
        where, names = _within(galleries)
        marks, numbers = _marks(vectors)
        inner = f"SELECT id FROM pictures WHERE vector IN ({marks})"  # see BY_VECTOR
        query = f"SELECT {ROW}, vector FROM pictures WHERE id IN ({inner}){where} ORDER BY id LIMIT ?"
        found: dict[int, list[Row]] = {vector: [] for vector in vectors}
        with self.explained():
            rows = self.connection.execute(query, (*numbers, *names, MANY_ROWS)).fetchall()
            if len(rows) == MANY_ROWS:
                return None
            for *row, vector in rows:
                if vector not in found:
                    raise self.damaged("its own index leads to other images")
                found[vector].append(Row(*row))
        return found

    def first_rows(self, vector: int, limit: int, galleries: Sequence[str] | None = None) -> list[Row]:
        """The images that have this vector, by key, frame and gallery, at most `limit`: of thousands."""
        where, names = _within(galleries)
        query = f"SELECT {ROW}, vector FROM pictures WHERE {BY_VECTOR}{where} ORDER BY key, frame, gallery LIMIT ?"
        return self._rows_of(vector, query, (*names, limit))

    def first_people(self, vector: int, limit: int, galleries: Sequence[str] | None = None) -> list[Row]:
        """Of those images, one of each patient; an image whose patient is not known stands for itself. At most `limit`."""
        where, names = _within(galleries)
        query = f"""SELECT {ROW}, vector FROM (SELECT {ROW}, vector, min(id) FROM pictures WHERE {BY_VECTOR}{where}
                    GROUP BY patient, CASE WHEN patient IS NULL THEN gallery || char(0) || key END) ORDER BY key, gallery LIMIT ?"""
        return self._rows_of(vector, query, (*names, limit))

    def _rows_of(self, vector: int, query: str, parameters: tuple[str | int, ...]) -> list[Row]:
        with self.explained():
            rows = self.connection.execute(query, (vector, *parameters)).fetchall()
            if any(row[-1] != vector for row in rows):
                raise self.damaged("its own index leads to other images")
        return [Row(*row[:-1]) for row in rows]

    def frames_of(self, vectors: Sequence[int], galleries: Sequence[str] | None = None) -> list[tuple[str, str, int]]:
        """(gallery, key, frame) of each rendering of an image's frame that has one of these vectors."""
        where, names = _within(galleries)
        found: list[tuple[str, str, int]] = []
        with self.explained():
            for start in range(0, len(vectors), READ_AT_ONCE):
                marks, numbers = _marks(vectors[start : start + READ_AT_ONCE])
                query = f"SELECT gallery, key, frame FROM pictures WHERE vector IN ({marks}){where}"
                found += self.connection.execute(query, (*numbers, *names))
        return found

    def vectors_of(self, galleries: Sequence[str]) -> NDArray[np.int64]:
        """Ids of the vectors that some image of these galleries has, int64, ascending."""
        where, names = _within(galleries)
        with self.explained():
            rows = self.connection.execute(f"SELECT DISTINCT vector FROM pictures WHERE 1{where} ORDER BY vector", names)
            return np.fromiter((vector for (vector,) in rows), dtype=np.int64)

    def content_of(self, key: str, gallery: str) -> tuple[bytes, bool] | None:
        """The sha256 that a key stands for in a gallery and whether all its frames are there, or None."""
        with self.explained():
            row = self.connection.execute(
                "SELECT content, count(DISTINCT frame) = frames FROM pictures WHERE gallery = ? AND key = ? "
                "GROUP BY content, frames",
                (gallery, key),
            ).fetchone()
        return (bytes(row[0]), bool(row[1])) if row else None

    def complete_copy(self, content: bytes) -> tuple[str, str] | None:
        """A (gallery, key) under which this very file is there with all its frames, or None; by the newest reader."""
        with self.explained():
            row = self.connection.execute(
                "SELECT gallery, key FROM pictures WHERE content = ? GROUP BY gallery, key, frames "
                "HAVING count(DISTINCT frame) = frames ORDER BY min(reader) DESC LIMIT 1",
                (content,),
            ).fetchone()
        return (str(row[0]), str(row[1])) if row else None

    def records(self, galleries: Sequence[str] | None = None) -> Iterator[Record]:
        """All that is kept, a frame at a time, ordered by the time of addition, each embedding checked.

        Other threads may use the store in between, so an addition made meanwhile may or may not be among them.

        Raises:
            GalleryError: an embedding is damaged, or another index has taken this one's place meanwhile.
        """
        where, names = _within(galleries)
        query = f"""SELECT pictures.id, key, content, frame, frames, gallery, patient, study, vectors.id, digest, embedding,
                    rendering, reader
                    FROM pictures JOIN vectors ON vectors.id = vector WHERE pictures.id > ?{where} ORDER BY pictures.id LIMIT ?"""
        last, generation = 0, None
        while True:
            with self.explained():
                generation = self.generation if generation is None else generation
                if self.generation != generation:
                    raise GalleryError(f"{self.folder} was replaced by another index while it was being read: open the index again")
                part = self.connection.execute(query, (last, *names, READ_AT_ONCE)).fetchall()
            for number, key, content, frame, frames, gallery, patient, study, vector, digest, embedding, rendering, reader in part:
                with self.explained():
                    self._check_embedding(vector, digest, embedding)
                values = np.frombuffer(embedding, dtype="<f4").astype(np.float32, copy=False)
                yield Record(key, content, frame, frames, gallery, patient, study, values, rendering, reader)
                last = number
            if len(part) < READ_AT_ONCE:
                return

    def setting(self, name: str) -> str | None:
        """A value that was kept with the index, or None.

        Raises:
            GalleryError: a setting is not as it was written.
        """
        with self.explained(), self.snapshot():
            if self.read_only and not self.meta("settings"):
                return None  # of a format that has none
            settings = dict(self.connection.execute("SELECT name, value FROM settings"))
            if EMPTY.plus(row_digest(*item) for item in settings.items()) != self.tally("settings"):
                raise self.damaged("its settings do not match their checksum")
        return settings.get(name)

    # -- writing ---------------------------------------------------------------------------------------------------

    def set_setting(self, name: str, value: str | None) -> None:
        """Keep a value with the index; None removes it."""
        self.setting(name)  # which checks what is there
        with self.explained(), self.transaction():
            if value is None:
                self.connection.execute("DELETE FROM settings WHERE name = ?", (name,))
            else:
                self.connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))
            rows = self.connection.execute("SELECT name, value FROM settings")
            self.set_meta("settings", EMPTY.plus(row_digest(*row) for row in rows))

    def add(self, entries: Iterable[Entry], copies: Sequence[tuple[tuple[str, str], tuple[str, str]]] = ()) -> None:
        """Add images, and names for images that are there already, in one transaction: all of them or none.

        Args:
            entries: new images.
            copies: ((gallery, new key), (gallery, key) of the same content): the vectors are shared, nothing is embedded again.

        Raises:
            KeyConflictError: a key is taken, in its gallery, by an image of other content.
            GalleryError: as for the class. What was in the gallery before is unharmed.
            UsageError: a gallery's name that is none.
        """
        with self.explained(), self.transaction():
            images, vectors = self.tally("pictures"), self.tally("vectors")
            new_rows: list[bytes] = []
            new_vectors: list[bytes] = []
            for entry in entries:
                gallery = check_gallery_name(entry.gallery)
                self._refuse_conflict(entry.key, gallery, entry.content)
                there = self._frames_of(entry.key, gallery)
                for frame in entry.embeddings.keys() - there:
                    image = (entry.key, int(frame), int(entry.frames), bytes(entry.content))
                    whose = (gallery, entry.patient, entry.study)
                    views = [self._vector_id(view, new_vectors) for view in np.atleast_2d(entry.embeddings[frame])]
                    for rendering, vector in enumerate(dict.fromkeys(views)):
                        new_rows.append(self._insert((*image, vector, *whose, rendering, entry.reader)))
            for (gallery, key), (other, original) in copies:
                there = self._frames_of(key, check_gallery_name(gallery))
                query = f"SELECT {COLUMNS} FROM pictures WHERE gallery = ? AND key = ?"
                for _, *row, _, patient, study, rendering, reader in self.connection.execute(query, (other, original)).fetchall():
                    frame, frames, content, vector = row
                    self._refuse_conflict(key, gallery, content)
                    if frame not in there:
                        whose = (gallery, patient, study)
                        new_rows.append(self._insert((key, frame, frames, content, vector, *whose, rendering, reader)))
            self.set_meta("pictures", images.plus(new_rows))
            self.set_meta("vectors", vectors.plus(new_vectors))

    def _frames_of(self, key: str, gallery: str) -> set[int]:
        """The frames that are there, which stay as they are. To store their embeddings anew could leave a vector, one that
        differs in its last bit, without an image."""
        query = "SELECT frame FROM pictures WHERE gallery = ? AND key = ?"
        return {frame for (frame,) in self.connection.execute(query, (gallery, key))}

    def _insert(self, row: tuple[str, int, int, bytes, int, str, str | None, str | None, int, int]) -> bytes:
        """Insert a row of `pictures` and return its digest: of plain texts, as they are read back, whatever kind was given."""
        row = tuple(str.__str__(value) if isinstance(value, str) else value for value in row)  # type: ignore[assignment]
        self.connection.execute(f"INSERT INTO pictures ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return row_digest(*row)

    def _refuse_conflict(self, key: str, gallery: str, content: bytes) -> None:
        known = self.content_of(key, gallery)
        if known and known[0] != content:
            raise KeyConflictError(
                f"key {key!r} is already in the index for a different image (sha256 {known[0].hex()[:12]}, got "
                f"{content.hex()[:12]}): give the changed image another name"
            )

    def _vector_id(self, embedding: Floats, new: list[bytes]) -> int:
        """The id of an embedding, which is inserted if it is new; its row's digest is then appended to `new`."""
        if embedding.shape != (self.features,):
            raise GalleryError(f"an embedding must be {self.features} finite numbers, got shape {embedding.shape}")
        if not np.isfinite(embedding).all():
            raise GalleryError(f"an embedding must be {self.features} finite numbers, got NaN or infinity")
        data = np.ascontiguousarray(embedding, dtype="<f4").tobytes()
        digest = hashlib.sha256(data).digest()
        query = "INSERT OR IGNORE INTO vectors (digest, embedding) VALUES (?, ?)"
        inserted = self.connection.execute(query, (digest, data)).rowcount == 1
        number = int(self.connection.execute("SELECT id FROM vectors WHERE digest = ?", (digest,)).fetchone()[0])
        if inserted:
            new.append(row_digest(number, digest))
        return number


def _marks(vectors: Sequence[int]) -> tuple[str, list[int]]:
    """Placeholders for some ids, and the ids, the last of them repeated: so that statements are few and stay prepared."""
    count = next(size for size in (1, 4, 16, 64, READ_AT_ONCE) if size >= len(vectors))
    return ",".join("?" * count), [*vectors, *[vectors[-1]] * (count - len(vectors))]


def _within(galleries: Sequence[str] | None) -> tuple[str, tuple[str, ...]]:
    """A condition on `gallery` to append, with its parameters; none where all galleries are meant."""
    if galleries is None:
        return "", ()
    return f" AND gallery IN ({','.join('?' * len(galleries))})", tuple(galleries)
