"""The three sets of an audit, released, reference and hold-out: their files, labels, embeddings, and what could not be read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..errors import Reason, UsageError
from ..images.content_flags import SUSPICIOUS, ContentFlag
from ..images.discovery import Found, Skipped, Unfound, image_name, walk
from ..model.head import Floats
from ..privacy import SiteKey
from ..screening import Screener
from ..system.csv_list import read_csv_list
from .embedding import Look, Seeing
from .embedding_cache import Cache, Cached
from .thumbnails import SIDE

__all__ = ["LABELS", "ImageSet", "Item", "SetFiles", "embed_set", "find_images", "folder_of", "read_labels"]

LABELS = ("class", "ds_name")
"""Columns of a list of labels, beside `path`."""


@dataclass(frozen=True)
class SetFiles:
    """The files of a set before they are read: images, paths that could not be searched, and how many other files were skipped."""

    images: tuple[Found | Unfound, ...]
    skipped: int


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
        patient: pseudonym of its patient, by its header or a list; None where none is known.
    """

    name: str
    path: Path
    content: bytes | None
    frames: int
    errors: tuple[tuple[int | None, Reason], ...] = ()
    notes: tuple[ContentFlag, ...] = ()
    patient: str | None = None


@dataclass(eq=False)
class ImageSet:
    """A set's files in order, and the embeddings of all their frames.

    Attributes:
        items: the files.
        skipped: other files that lay among them.
        embeddings: float32 (rows, looks, features), a row a rendering of a frame, once `seal` was called.
        of: (rows,), which item a row is of; `frames`: (rows,), which of its frames.
        thumbnails: uint8 (frames, SIDE, SIDE), one a frame; `thumbnail_of`: (frames, 2), its item and frame.
    """

    looks: int
    features: int
    skipped: int = 0
    items: list[Item] = field(default_factory=list)
    embeddings: Floats = field(init=False, repr=False)
    of: NDArray[np.int64] = field(init=False, repr=False)
    frames: NDArray[np.int64] = field(init=False, repr=False)
    thumbnails: NDArray[np.uint8] = field(init=False, repr=False)
    thumbnail_of: NDArray[np.int64] = field(init=False, repr=False)
    _parts: list[Floats] = field(default_factory=list, repr=False)
    _rows: list[tuple[int, int]] = field(default_factory=list, repr=False)
    _small: list[NDArray[np.uint8]] = field(default_factory=list, repr=False)
    _small_of: list[tuple[int, int]] = field(default_factory=list, repr=False)

    def add(self, item: Item, frames: dict[int, Floats], thumbnails: dict[int, NDArray[np.uint8]]) -> None:
        """Append a file with its frames' embeddings, (looks x renderings, features) each, and their thumbnails."""
        for frame, embedding in sorted(frames.items()):
            for rendering in embedding.reshape(self.looks, -1, self.features).swapaxes(0, 1):
                self._rows.append((len(self.items), frame))
                self._parts.append(rendering)
            self._small_of.append((len(self.items), frame))
            self._small.append(thumbnails[frame])
        self.items.append(item)

    def seal(self) -> None:
        """All files are there."""
        self.embeddings = np.stack(self._parts) if self._parts else np.empty((0, self.looks, self.features), np.float32)
        rows = np.array(self._rows, np.int64).reshape(-1, 2)
        self.of, self.frames = rows[:, 0], rows[:, 1]
        self.thumbnails = np.stack(self._small) if self._small else np.empty((0, SIDE, SIDE), np.uint8)
        self.thumbnail_of = np.array(self._small_of, np.int64).reshape(-1, 2)
        self._parts, self._rows, self._small, self._small_of = [], [], [], []

    @property
    def readable(self) -> list[int]:
        """Which items have an embedding."""
        return [index for index, item in enumerate(self.items) if item.frames]

    @property
    def unreadable(self) -> list[int]:
        """Which items have none, or not all."""
        return [index for index, item in enumerate(self.items) if item.errors]

    @property
    def digest(self) -> str:
        """sha256 over the sha256s of all files, in the order of their values: the same set gives the same, under any names."""
        contents = sorted(item.content for item in self.items if item.content)
        return hashlib.sha256(b"".join(contents)).hexdigest()


def find_images(folder: Path, what: str) -> SetFiles:
    """Find the images of a set.

    Args:
        folder: the set's folder, searched with all folders below it.
        what: what the set is to the audit ("the reference"), for messages.

    Raises:
        UsageError: there is no image in it, or it cannot be searched.
    """
    images: list[Found | Unfound] = []
    skipped = 0
    for found in walk([folder]):
        if isinstance(found, Skipped):
            skipped += 1
        else:
            images.append(found)
    if not images:
        raise UsageError(f"{folder} holds no image: {what} must be there")
    if isinstance(images[0], Unfound) and images[0].path == folder:
        raise UsageError(f"{folder} cannot be searched for {what}: {images[0].error}")
    return SetFiles(tuple(images), skipped)


def folder_of(name: str) -> str:
    """Return the first folder of a relative name; "." for a file that lies in none."""
    parts = PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 else "."


def read_labels(path: Path, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read a CSV list with the columns `path`, relative to the released folder, and `class` or `ds_name` or both.

    Args:
        path: the list.
        names: of the released images.

    Returns:
        A released image's name to its labels.

    Raises:
        UsageError: it cannot be read, lacks a column, names an image twice, or none of the released ones.
    """
    labels: dict[str, dict[str, str]] = {}
    for row in read_csv_list(path, ("path", LABELS), what="list of labels", error=UsageError):
        name = PurePosixPath(row.values["path"]).as_posix()
        if name in labels:
            raise UsageError(f"{path} names {name} twice")
        labels[name] = {column: row.values[column] for column in LABELS if row.values.get(column)}
    known = set(names)
    if not known & labels.keys():
        raise UsageError(f"{path} names none of the released images: its paths must be relative to the released folder")
    return {name: values for name, values in labels.items() if name in known}


def embed_set(
    screener: Screener,
    found: Sequence[Found | Unfound],
    root: Path,
    into: ImageSet,
    cache: Cache,
    looks: Sequence[Look],
    key: SiteKey,
) -> Iterator[Item]:
    """Embed a set's files, or take their embeddings from the cache; each is in `into` when its item is yielded.

    Args:
        found: what a walk found, without what it skipped.
        root: the folder that was walked; names are relative to it.
        key: for the patients' pseudonyms; the cache's.
    """
    into.looks = max(1, len(looks))
    for file, done in zip(found, Seeing(screener, tuple(looks)).embed_each(found, cache.known), strict=True):
        whose = done.identifiers
        patient = key.patient(whose.patient_id, whose.issuer) if whose.patient_id else None
        kept = Cached(done.embeddings, done.thumbnails, " ".join(done.notes), patient)
        errors = list(done.errors)
        if done.known and done.content:
            kept = cache.get(done.content)
        elif done.content and kept.embeddings and not errors:
            cache.put(done.content, kept)
        notes = tuple(ContentFlag(note) for note in kept.notes.split())
        if SUSPICIOUS.intersection(notes):
            errors.append((None, Reason.SUSPICIOUS_HEADER))
        item = Item(_name(file.path, root), file.path, done.content, len(kept.embeddings), tuple(errors), notes, kept.patient)
        into.add(item, kept.embeddings, kept.thumbnails)
        yield item
    into.seal()


def _name(path: Path, root: Path) -> str:
    """Never an absolute path: those hold names of users and projects."""
    try:
        relative = path.relative_to(root)
    except ValueError:
        relative = Path(path.name)
    return image_name(relative.as_posix() if relative.parts else path.name)
