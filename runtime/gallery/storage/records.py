"""What a gallery keeps of an image, and the tally by which a lost or changed row shows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import UsageError
from ...images.reader_version import READER_VERSION
from ...model.head import Floats

__all__ = ["DEFAULT_GALLERY", "EMPTY", "Entry", "Record", "Row", "Tally", "check_gallery_name", "row_digest", "row_digests"]

DEFAULT_GALLERY = "default"
NAME_LENGTH = 200
DIGEST_BYTES = 16


@dataclass(frozen=True, eq=False)
class Entry:
    """One image to add.

    Attributes:
        key: its name, unique within its gallery; any text.
        content: sha256 (32 bytes) of the file, by which it is recognised again.
        frames: how many frames the file has.
        embeddings: frame's number (from 0) to its embedding, float32 (features,), or to those of its renderings, float32
            (renderings, features). Fewer than `frames` when some could not be read: then the image is not complete, and
            adding it again tries the others again.
        gallery: the group within the index that it belongs to: a site, a cohort, a training set.
        patient, study: pseudonyms (see `pseudonyms`), or None where they are not known.
        reader: the version of the code that made its renderings (see `reader`).
    """

    key: str
    content: bytes
    frames: int
    embeddings: dict[int, Floats]
    gallery: str = DEFAULT_GALLERY
    patient: str | None = None
    study: str | None = None
    reader: int = READER_VERSION


@dataclass(frozen=True)
class Row:
    """A gallery image's frame, as found by a search."""

    key: str
    frame: int
    gallery: str
    patient: str | None
    study: str | None


@dataclass(frozen=True, eq=False)
class Record:
    """A rendering of an image's frame with all that is kept of it, for export. `embedding` is float32 (features,)."""

    key: str
    content: bytes
    frame: int
    frames: int
    gallery: str
    patient: str | None
    study: str | None
    embedding: Floats
    rendering: int = 0
    reader: int = READER_VERSION


@dataclass(frozen=True)
class Tally:
    """How many rows, and the sum of their digests modulo 2^128, which does not depend on their order."""

    rows: int = 0
    total: int = 0

    def plus(self, digests: Iterable[bytes]) -> Tally:
        rows, total = _sum(digests)
        return Tally(self.rows + rows, (self.total + total) % (1 << 128))

    def minus(self, digests: Iterable[bytes]) -> Tally:
        rows, total = _sum(digests)
        return Tally(self.rows - rows, (self.total - total) % (1 << 128))

    def with_others(self, others: Tally) -> Tally:
        return Tally(self.rows + others.rows, (self.total + others.total) % (1 << 128))

    def __str__(self) -> str:
        return f"{self.rows} {self.total:032x}"

    @classmethod
    def parse(cls, text: str) -> Tally:
        """The inverse of `str`.

        Raises:
            ValueError: it is no tally.
        """
        rows, total = text.split(" ")
        return cls(int(rows), int(total, 16))


EMPTY = Tally()


def row_digest(*values: str | int | bytes | None) -> bytes:
    """16 bytes that stand for a row. `repr` tells texts, numbers and bytes apart, and where one value ends."""
    return hashlib.blake2b(repr(values).encode("utf-8", "backslashreplace"), digest_size=DIGEST_BYTES).digest()


def row_digests(rows: Iterable[Sequence[str | int | bytes | None]]) -> list[bytes]:
    """`row_digest` of each of many rows, which are tuples."""
    blake2b = hashlib.blake2b
    return [blake2b(repr(row).encode("utf-8", "backslashreplace"), digest_size=DIGEST_BYTES).digest() for row in rows]


def _sum(digests: Iterable[bytes]) -> tuple[int, int]:
    """How many, and their sum: 4 bytes of each at a time, of which 2^32 would fit in 64 bits."""
    joined = b"".join(digests)
    columns = np.frombuffer(joined, ">u4").reshape(-1, DIGEST_BYTES // 4)
    total = 0
    for column in columns.sum(axis=0, dtype=np.uint64).tolist():
        total = (total << 32) + column
    return len(columns), total


def check_gallery_name(name: str) -> str:
    """Return `name`, a gallery's.

    Raises:
        UsageError: it is empty, longer than 200 characters, or holds a control character: it is shown and typed.
    """
    if not name or len(name) > NAME_LENGTH or not name.isprintable():
        raise UsageError(f"invalid gallery name {name[:40]!r}: expected 1 to {NAME_LENGTH} printable characters")
    return name
