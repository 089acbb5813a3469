"""A gallery of embeddings on disk or in memory, and the search in it.

Small galleries are searched exactly: each query is scored against every vector by the head. Large ones are searched through
the graph out to the radius that the head's bound gives (see `head`), and every candidate is scored by the head: what is
reported is always the model's own score.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import GalleryError, UsageError
from ..head import Floats, check_threshold
from ..machine import cpu_limit
from .graph import Graph, GraphExhaustedError, load_graph, save_graph
from .store import Entry, Store, Tally

__all__ = ["EXACT_UP_TO", "Added", "Gallery", "Hit", "Search", "SearchResult"]

EXACT_UP_TO = 20_000
"""Distinct vectors up to which `auto` searches exactly. Scoring 20,000 vectors of 512 takes about as long as embedding a
picture with the bundled model; beyond, the graph is faster."""
CHUNK = 4096
"""Vectors scored at once: 8 MB of float32 at 512 features, which stays in the cache."""
FIRST_CANDIDATES = 64


class Search(StrEnum):
    """How to search: `exact` scores every vector; `hnsw` asks the graph; `auto` takes exact up to `EXACT_UP_TO`."""

    AUTO = "auto"
    EXACT = "exact"
    HNSW = "hnsw"


class Added(StrEnum):
    """What `Gallery.add` will do with a picture: `new` is embedded, `known` is there, `copy` is there under another key."""

    NEW = "new"
    KNOWN = "known"
    COPY = "copy"


@dataclass(frozen=True)
class Hit:
    """A gallery picture's frame and the head's score for it, in (0, 1)."""

    key: str
    frame: int
    score: float


@dataclass(frozen=True)
class SearchResult:
    """What a query found.

    Attributes:
        matches: pictures at or above the threshold, best first, at most as many as asked for.
        total: how many there are at or above the threshold; with the graph, how many it found.
        nearest: the best picture, whether or not it is a match; None in an empty gallery.
    """

    matches: tuple[Hit, ...]
    total: int
    nearest: Hit | None


class Gallery:
    """An index: open or create one, add to it, search it. Close it, or use it in a `with`.

    Not to be shared between threads without a lock; several processes may have the same folder open, one of them writing.
    """

    def __init__(self, store: Store, bundle: Bundle, *, persistent: bool, warn: Callable[[str], None]) -> None:
        self.bundle = bundle
        self.folder = store.folder
        self._store = store
        self._persistent = persistent
        self._warn = warn
        self._loaded_up_to = -1
        self._tally = Tally()
        self._ids: NDArray[np.int64] = np.empty(0, np.int64)
        self._vectors: Floats = np.empty((0, bundle.features), np.float32)
        self._low: Floats = np.full(bundle.features, np.inf, np.float32)
        self._high: Floats = np.full(bundle.features, -np.inf, np.float32)
        self._graph: Graph | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def create(cls, folder: str | os.PathLike[str], bundle: Bundle, warn: Callable[[str], None] = lambda line: None) -> Gallery:
        """Make an empty gallery in a folder.

        Raises:
            GalleryError: the folder holds a gallery already, or cannot be written.
        """
        store = Store.create(Path(folder), bundle.fingerprint, bundle.features)
        return cls(store, bundle, persistent=True, warn=warn)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        bundle: Bundle,
        *,
        read_only: bool = True,
        warn: Callable[[str], None] = lambda line: None,
    ) -> Gallery:
        """Open a gallery that exists.

        Args:
            folder: where it lies.
            bundle: the bundle it was made with.
            read_only: refuse additions; a search graph is then not written either.
            warn: is told what the gallery mends by itself, a line each.

        Raises:
            GalleryError: it is missing or damaged, or of another format.
            GalleryMismatchError: it was made with another bundle.
        """
        store = Store(Path(folder), bundle.fingerprint, bundle.features, read_only=read_only)
        return cls(store, bundle, persistent=not read_only, warn=warn)

    @classmethod
    def temporary(cls, bundle: Bundle) -> Gallery:
        """A gallery that is gone when it is closed; its embeddings touch the disk only in a private temporary folder.

        Raises:
            GalleryError: the temporary folder cannot be made or written.
        """
        try:
            folder = tempfile.TemporaryDirectory(prefix="lcmem-gallery-")
        except OSError as error:
            raise GalleryError(f"there is no place for a temporary index: {error.strerror}. Set TMPDIR to a folder") from error
        try:
            gallery = cls.create(folder.name, bundle)
        except BaseException:
            folder.cleanup()
            raise
        gallery._persistent = False
        gallery._temporary = folder
        return gallery

    def close(self) -> None:
        self._store.close()
        if self._temporary:
            self._temporary.cleanup()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        """How many pictures' frames it holds."""
        return self._store.counts()[0]

    def describe(self) -> dict[str, object]:
        """Counts and identity, for people: pictures, frames, distinct vectors, when it was made, the bundle's fingerprint."""
        frames, vectors = self._store.counts()
        return {
            "path": str(self.folder),
            "pictures": self._store.files(),
            "frames": frames,
            "distinct_vectors": vectors,
            "created": self._store.created(),
            "fingerprint": self.bundle.fingerprint,
            "search": Search.EXACT.value if vectors <= EXACT_UP_TO else Search.HNSW.value,
        }

    # -- adding ----------------------------------------------------------------------------------------------------

    def status(self, key: str, content: bytes) -> Added:
        """What adding the file with sha256 `content` under `key` would be.

        A key that stands for another picture counts as new: `add` then refuses it.
        """
        known = self._store.content_of(key)
        if known and known[0] == content and known[1]:
            return Added.KNOWN
        return Added.COPY if self._store.complete_copy(content) else Added.NEW

    def holds(self, key: str) -> bool:
        """Whether a picture is there under this key, with all its frames."""
        known = self._store.content_of(key)
        return bool(known and known[1])

    def add(self, entry: Entry) -> None:
        """Add one picture with its embeddings; it is on disk when this returns.

        Raises:
            KeyConflictError: the key stands for a picture of other content.
            GalleryError: it cannot be written, or an embedding is not finite. Nothing that was there is harmed.
        """
        self._store.add([entry])

    def add_copy(self, key: str, content: bytes) -> None:
        """Name a picture that is in the gallery already under another key; its embeddings are shared.

        Raises:
            GalleryError: no picture of this content is there, or it cannot be written.
            KeyConflictError: the key stands for a picture of other content.
        """
        original = self._store.complete_copy(content)
        if original is None:
            raise GalleryError(f"no picture with sha256 {content.hex()} is in {self.folder}")
        self._store.add([Entry(key, content, 0, {})], [(key, original)])

    def update_graph(self) -> None:
        """Bring the saved search graph up to date, if the gallery is large enough to need one."""
        if self._store.counts()[1] > EXACT_UP_TO:
            self._current_graph()

    # -- searching -------------------------------------------------------------------------------------------------

    def search(self, queries: Floats, threshold: float, *, top: int = 5, how: Search | str = Search.AUTO) -> list[SearchResult]:
        """Find gallery pictures that show the same as each query.

        Args:
            queries: embeddings, float32 (n, features).
            threshold: score in (0, 1) at or above which a picture is a match.
            top: how many matches to return for each query.
            how: see `Search`.

        Returns:
            A result for each query, in order.

        Raises:
            UsageError: a query of another shape, a threshold outside (0, 1), `top` below 1, or an unknown `how`.
            GalleryError: the gallery is damaged.
        """
        check_threshold(threshold)
        if queries.ndim != 2 or queries.shape[1] != self.bundle.features:
            raise UsageError(f"queries must have shape (n, {self.bundle.features}); these have {queries.shape}")
        if top < 1:
            raise UsageError(f"{top} matches cannot be returned; ask for 1 or more")
        try:
            how = Search(how)
        except ValueError as error:
            raise UsageError(f"unknown way to search {how!r}; known are {', '.join(Search)}") from error
        self._load_new_vectors()
        exact = how is Search.EXACT or (how is Search.AUTO and len(self._ids) <= EXACT_UP_TO) or not len(self._ids)
        graph = None if exact else self._current_graph()
        return [self._search_one(query, threshold, top, graph) for query in queries]

    def _search_one(self, query: Floats, threshold: float, top: int, graph: Graph | None) -> SearchResult:
        ids, vectors = self._ids, self._vectors
        if graph is not None:
            # Where the graph cannot answer, as among thousands of near-equal vectors, everything is scored: right, if slower.
            with contextlib.suppress(GraphExhaustedError):
                ids, vectors = self._candidates(graph, query, threshold, top)
        scores = self._scores(query, vectors)
        order = np.argsort(-scores, kind="stable")
        found = int((scores >= threshold).sum())
        hits: list[Hit] = []
        for at in order[: max(1, min(found, top))]:
            rows = self._store.rows(int(ids[at]), top - len(hits) or 1)
            hits += [Hit(row.key, row.frame, float(scores[at])) for row in rows]
            if len(hits) >= top:
                break
        total = self._store.pictures_of(ids[order[:found]].tolist()) if found else 0
        if total < found or (len(ids) and not hits):
            # Each vector is some picture's; were it passed over, a match would be reported as clear.
            raise GalleryError(f"{self.folder} is damaged: embeddings have lost their pictures. Restore it, or build it again")
        return SearchResult(tuple(hits[:top]) if found else (), total, hits[0] if hits else None)

    def _scores(self, query: Floats, vectors: Floats) -> NDArray[np.float64]:
        parts = [self.bundle.head.scores(query, vectors[at : at + CHUNK]) for at in range(0, len(vectors), CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0)

    def _candidates(self, graph: Graph, query: Floats, threshold: float, top: int) -> tuple[NDArray[np.int64], Floats]:
        """Vectors that may match: widen the graph's search until it reaches the radius beyond which nothing can."""
        head = self.bundle.head
        weighted = head.weighted(query)
        radius = head.radius(threshold, query, self._low, self._high)
        count = max(FIRST_CANDIDATES, 4 * top)
        while True:
            labels, distances = graph.nearest(weighted, count)
            if len(labels) >= len(graph) or distances[-1] > radius:
                break
            count *= 4
        places = np.searchsorted(self._ids, np.sort(labels))
        return self._ids[places], self._vectors[places]

    def _load_new_vectors(self) -> None:
        """Read what was added since the last search, by this process or another."""
        newest = self._store.newest()
        if newest == self._loaded_up_to:
            return
        ids, vectors, self._tally = self._store.vectors(max(self._loaded_up_to, 0), self._tally)
        self._ids = np.concatenate([self._ids, ids])
        self._vectors = np.concatenate([self._vectors, vectors])
        if len(vectors):
            self._low = np.minimum(self._low, vectors.min(axis=0))
            self._high = np.maximum(self._high, vectors.max(axis=0))
        # What was read, and not what `newest` said before: another process may have added in between.
        self._loaded_up_to = int(self._ids[-1]) if len(self._ids) else newest

    def _content(self, newest: int) -> str:
        """sha256 of the vectors up to an id, with their ids: a graph left over from another database shows by it."""
        count = int(np.searchsorted(self._ids, newest, side="right"))
        digest = hashlib.sha256(self._ids[:count].tobytes())
        digest.update(np.ascontiguousarray(self._vectors[:count]).data)
        return digest.hexdigest()

    def _current_graph(self) -> Graph:
        """The graph with every vector in it: loaded, extended by what is new, or made again."""
        self._load_new_vectors()
        if self._graph is None:
            try:
                self._graph = load_graph(self.folder, self.bundle.fingerprint, self.bundle.features, cpu_limit())
                if self._graph.content != self._content(self._graph.newest):
                    raise GalleryError("the search graph is of other pictures than the index holds")
            except GalleryError as error:
                self._warn(f"{error}; making the search graph of {len(self._ids)} vectors")
                self._graph = Graph(self.bundle.features, cpu_limit())
        if self._graph.newest < self._loaded_up_to or len(self._graph) != len(self._ids):
            if len(self._graph) > len(self._ids):
                self._graph = Graph(self.bundle.features, cpu_limit())
            new = self._ids > self._graph.newest
            self._graph.extend(self._ids[new], self.bundle.head.weighted(self._vectors[new]))
            self._graph.content = self._content(self._graph.newest)
            if self._persistent:
                save_graph(self._graph, self.folder, self.bundle.fingerprint)
        return self._graph
