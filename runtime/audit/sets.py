"""The three sets of an audit, released, reference and hold-out: their files, embeddings, and what could not be read of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import Reason
from ..files import Found, Unfound, picture_name
from ..head import Floats
from ..notes import SUSPICIOUS, Note
from ..screening import Screener
from .cache import Cache
from .embedding import Look, Seeing

__all__ = ["Item", "PictureSet", "embed_set"]


@dataclass(frozen=True)
class Item:
    """A file of a set.

    Attributes:
        name: where it lies below the set's folder, as valid text with forward slashes.
        path: for opening it.
        content: its sha256; None when it could not be read.
        frames: how many frames were embedded.
        errors: what could not be, a (frame or None, reason) each; a header that no sound device writes is one as well.
        notes: what else the file holds, and is not looked at.
    """

    name: str
    path: Path
    content: bytes | None
    frames: int
    errors: tuple[tuple[int | None, Reason], ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(eq=False)
class PictureSet:
    """A set's files in order, and the embeddings of all their frames.

    Attributes:
        items: the files.
        skipped: other files that lay among them.
        embeddings: float32 (rows, looks, features), a row a rendering of a frame, once `seal` was called.
        of: (rows,), which item a row is of; `frames`: (rows,), which of its frames.
    """

    looks: int
    features: int
    skipped: int = 0
    items: list[Item] = field(default_factory=list)
    embeddings: Floats = field(init=False, repr=False)
    of: NDArray[np.int64] = field(init=False, repr=False)
    frames: NDArray[np.int64] = field(init=False, repr=False)
    _parts: list[Floats] = field(default_factory=list, repr=False)
    _rows: list[tuple[int, int]] = field(default_factory=list, repr=False)

    def add(self, item: Item, frames: dict[int, Floats]) -> None:
        """Append a file with its frames' embeddings, (looks x renderings, features) each."""
        for frame, embedding in sorted(frames.items()):
            for rendering in embedding.reshape(self.looks, -1, self.features).swapaxes(0, 1):
                self._rows.append((len(self.items), frame))
                self._parts.append(rendering)
        self.items.append(item)

    def seal(self) -> None:
        """All files are there."""
        self.embeddings = np.stack(self._parts) if self._parts else np.empty((0, self.looks, self.features), np.float32)
        rows = np.array(self._rows, np.int64).reshape(-1, 2)
        self.of, self.frames = rows[:, 0], rows[:, 1]
        self._parts, self._rows = [], []

    @property
    def readable(self) -> list[int]:
        """Which items have an embedding."""
        return [at for at, item in enumerate(self.items) if item.frames]

    @property
    def unreadable(self) -> list[int]:
        """Which items have none, or not all."""
        return [at for at, item in enumerate(self.items) if item.errors]

    @property
    def digest(self) -> str:
        """sha256 over the sha256s of all files, in the order of their values: the same set gives the same, under any names."""
        contents = sorted(item.content for item in self.items if item.content)
        return hashlib.sha256(b"".join(contents)).hexdigest()


def embed_set(
    screener: Screener, found: Sequence[Found | Unfound], root: Path, into: PictureSet, cache: Cache, looks: Sequence[Look]
) -> Iterator[Item]:
    """Embed a set's files, or take their embeddings from the cache; each is in `into` when its item is yielded.

    Args:
        found: what a walk found, without what it skipped.
        root: the folder that was walked; names are relative to it.
    """
    into.looks = max(1, len(looks))
    for file, done in zip(found, Seeing(screener, tuple(looks)).embed_each(found, cache.known), strict=True):
        frames, notes = done.embeddings, done.notes
        errors = list(done.errors)
        if done.known and done.content:
            frames, said = cache.get(done.content)
            notes = tuple(Note(note) for note in said.split())
        elif done.content and frames and not errors:
            cache.put(done.content, frames, " ".join(notes))
        if SUSPICIOUS.intersection(notes):
            errors.append((None, Reason.SUSPICIOUS_HEADER))
        item = Item(_name(file.path, root), file.path, done.content, len(frames), tuple(errors), notes)
        into.add(item, frames)
        yield item
    into.seal()


def _name(path: Path, root: Path) -> str:
    """Never an absolute path: those hold names of users and projects."""
    try:
        relative = path.relative_to(root)
    except ValueError:
        relative = Path(path.name)
    return picture_name(relative.as_posix() if relative.parts else path.name)
