"""What the released images are compared with: a folder that was embedded, or an index."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..gallery import Added, Gallery
from ..gallery.storage.schema import DATABASE
from ..images.formats import read_file
from ..screening import Screener
from .embedding import frame_of
from .neighbours import InIndex, InMemory, Match, Searchable
from .patients import Patients
from .sets import ImageSet, Item

__all__ = ["Reference", "is_index", "searchable_set"]

IN_MEMORY_UP_TO = 200_000
"""Frames of an index up to which it is searched in memory: 0.5 GB at 512 features."""


def is_index(path: Path) -> bool:
    """Whether a folder is an index, and not one of images."""
    return (path / DATABASE).is_file()


def searchable_set(screener: Screener, images: ImageSet, rows: NDArray[np.int64] | None = None) -> InMemory:
    """Return a set that can be searched, as it is looked at plainly: its keys are the items' names.

    Args:
        rows: of its embeddings, those to search in; None for all.
    """
    rows = np.arange(len(images.of)) if rows is None else rows
    return InMemory(
        screener.bundle.head,
        [images.items[int(images.of[row])].name for row in rows],
        [int(images.frames[row]) for row in rows],
        np.ascontiguousarray(images.embeddings[rows, 0]),
    )


class Reference:
    """The reference of an audit.

    Attributes:
        searchable: its frames, to be searched.
        images: the embedded set; None for an index.
        gallery: the index; None for a folder.
        patients: patient of each key, where one is known.
        has_keys: whether it is known what its keys and patients are: not of an index that is too large, or searched by its graph.
    """

    def __init__(self, screener: Screener, source: ImageSet | Gallery, search: str) -> None:
        """Args: source: the set, embedded, or an index that is open; search: how an index is searched."""
        self._screener = screener
        self.images = source if isinstance(source, ImageSet) else None
        self.gallery = source if isinstance(source, Gallery) else None
        self.patients: dict[str, str] = {}
        self.searchable: Searchable
        self._contents: dict[str, bytes] | None
        self._items: dict[str, Item] = {}
        self._verified: dict[str, bytes | None] = {}
        self._closed = False
        if isinstance(source, ImageSet):
            self._items = {item.name: item for item in source.items}
            self._contents = {item.name: item.content for item in source.items if item.content}
            self.patients = {item.name: item.patient for item in source.items if item.patient}
            self.searchable = searchable_set(screener, source)
        else:
            self.searchable, self._contents = self._of_index(source, search)
        self._keys = {content: key for key, content in reversed((self._contents or {}).items())}

    @property
    def has_keys(self) -> bool:
        return self._contents is not None

    @property
    def size(self) -> int:
        """How many images it has."""
        if self.images is not None:
            return len(self.images.readable)
        count = self.gallery.describe()["pictures"] if self.gallery is not None else 0
        return int(str(count))

    def holds(self, content: bytes | None) -> bool:
        """Whether a file with this sha256 is in it."""
        if content is None:
            return False
        if self._contents is not None:
            return content in self._keys
        return self.gallery is not None and self.gallery.status("", content) is not Added.NEW

    def key_of(self, content: bytes) -> str | None:
        """The key of a file with this sha256; None where it is not there, or an index is too large to tell."""
        return self._keys.get(content)

    def path_of(self, key: str) -> Path:
        """Where the image of a key should be."""
        return self._items[key].path if key in self._items else Path(key)

    def pixels(self, match: Match) -> NDArray[np.uint8] | None:
        """A frame, RGB uint8 (height, width, 3), or None where its file is not at hand as it was indexed."""
        path = self.path_of(match.key)
        try:
            if self.gallery is not None and not (path.is_absolute() and path.is_file()):
                return None
            data = read_file(path, self._screener.limits)
            content = hashlib.sha256(data).digest()
            if not self._as_read(match.key, content):
                return None
            return frame_of(self._screener, data, path.name, match.frame)
        except (ImageError, OSError, ValueError):
            return None

    def _as_read(self, key: str, content: bytes) -> bool:
        """Whether a key had this content. An index that was not read as a whole is asked as long as it is open."""
        if self._contents is not None:
            return self._contents.get(key) == content
        if key not in self._verified and self.gallery is not None and not self._closed:
            self._verified[key] = content if self.gallery.status(key, content) is Added.KNOWN else None
        return self._verified.get(key) == content

    def close(self) -> None:
        """The index is being closed."""
        self._closed = True

    def name_patients(self, patients: Patients | None, *, comparable: bool) -> None:
        """Add the patients that a list gives to an index's images; its own are dropped where they cannot be compared."""
        if not comparable:
            self.patients = {}
        if patients and self._contents:
            listed = {key: patients.of(Path(key)) for key in self._contents}
            self.patients.update({key: patient for key, patient in listed.items() if patient})

    def described(self) -> Mapping[str, object] | None:
        """What an index says of itself, but for where it lies; None for a folder."""
        if self.gallery is None:
            return None
        facts = self.gallery.describe()
        names = ("pictures", "frames", "distinct_vectors", "created", "fingerprint", "search")
        return {name: facts[name] for name in names if name in facts}

    def _of_index(self, gallery: Gallery, how: str) -> tuple[Searchable, dict[str, bytes] | None]:
        """An index to search, with its files' sha256 by key: in memory, exactly, unless it is large or its graph is asked for."""
        if how == "hnsw" or len(gallery) > IN_MEMORY_UP_TO:
            return InIndex(gallery, how), None
        keys, frames, contents = [], [], {}
        embeddings = []
        for record in gallery.entries():
            keys.append(record.key)
            frames.append(record.frame)
            embeddings.append(record.embedding)
            contents[record.key] = record.content
            if record.patient:
                self.patients[record.key] = record.patient
        return InMemory(self._screener.bundle.head, keys, frames, np.stack(embeddings)), contents
