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
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import GalleryError, UsageError
from ..head import Floats, check_threshold
from ..machine import cpu_limit
from .database import check_there, create_database
from .erasure import compact_database, compaction_due, erase, mark_compacted
from .flat import Flat
from .graph import Graph, GraphExhaustedError, load_graph, remove_graph, save_graph
from .locking import WriterLock
from .pseudonyms import SiteKey
from .records import DEFAULT_GALLERY, Entry, Record, Row
from .results import Hit, Identity, Search, SearchResult
from .store import Store

__all__ = ["EXACT_UP_TO", "Added", "Gallery"]

EXACT_UP_TO = 20_000
"""Distinct vectors up to which `auto` searches exactly. Scoring 20,000 vectors of 512 takes about as long as embedding a
picture with the bundled model; beyond, the graph is faster."""
CHUNK = 4096
"""Vectors scored at once: 8 MB of float32 at 512 features, which stays in the cache."""
FIRST_CANDIDATES = 64
SITE_KEY = "site-key"
"""The setting that says under which site key the index's pseudonyms were made."""


class Added(StrEnum):
    """What `Gallery.add` will do with a picture: `new` is embedded, `known` is there, `copy` is there under another key."""

    NEW = "new"
    KNOWN = "known"
    COPY = "copy"


class Gallery:
    """An index: open or create one, add to it, search it, remove from it. Close it, or use it in a `with`.

    Threads may share it: additions and searches take turns where they must. Several processes may have the same folder open;
    one of them may write (see `locking`), and the others see what it has committed at their next search.
    """

    def __init__(
        self, store: Store, bundle: Bundle, *, persistent: bool, warn: Callable[[str], None], lock: WriterLock | None = None
    ) -> None:
        self.bundle = bundle
        self.folder = store.folder
        self._store = store
        self._writer_lock = lock
        self._persistent = persistent
        self._warn = warn
        self._searching = threading.RLock()
        self._flat = Flat(bundle.features)
        self._graph: Graph | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._site_key: SiteKey | None = None

    @classmethod
    def create(cls, folder: str | os.PathLike[str], bundle: Bundle, warn: Callable[[str], None] = lambda line: None) -> Gallery:
        """Make an empty gallery in a folder, opened for writing.

        Raises:
            GalleryError: the folder holds a gallery already, or cannot be written.
        """
        create_database(Path(folder), bundle.fingerprint, bundle.features)
        return cls.open(folder, bundle, read_only=False, warn=warn)

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
            read_only: refuse changes; a search graph is then not written either. False takes the writer's lock until
                `close`, brings an index of an older format up to date, and finishes a compaction that was interrupted.
            warn: is told what the gallery mends by itself, a line each.

        Raises:
            GalleryError: it is missing or damaged, of another format, or another process has it open for writing.
            GalleryMismatchError: it was made with another bundle.
        """
        path = Path(folder)
        if read_only:
            store = Store(path, bundle.fingerprint, bundle.features, read_only=True)
            return cls(store, bundle, persistent=False, warn=warn)
        check_there(path)
        lock = WriterLock(path)
        try:
            store = Store(path, bundle.fingerprint, bundle.features)
            gallery = cls(store, bundle, persistent=True, warn=warn, lock=lock)
        except BaseException:
            lock.release()
            raise
        try:
            if compaction_due(store):
                gallery.compact()
        except BaseException:
            gallery.close()
            raise
        return gallery

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
        gallery._site_key = SiteKey.passing()
        return gallery

    def close(self) -> None:
        self._store.close()
        if self._writer_lock:
            self._writer_lock.release()
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
        """Counts and identity, for people: pictures, frames, distinct vectors, groups, age, the bundle's fingerprint."""
        frames, vectors = self._store.counts()
        return {
            "path": str(self.folder),
            "pictures": self._store.files(),
            "frames": frames,
            "distinct_vectors": vectors,
            "galleries": {
                name: {"pictures": pictures, "frames": its_frames, "patients": patients}
                for name, (pictures, its_frames, patients) in self._store.galleries().items()
            },
            "created": self._store.meta("created"),
            "format_version": int(self._store.meta("format_version")),
            "fingerprint": self.bundle.fingerprint,
            "search": Search.EXACT.value if vectors <= EXACT_UP_TO else Search.HNSW.value,
        }

    def galleries(self) -> list[str]:
        """The names of the groups that hold pictures, sorted."""
        return list(self._store.galleries())

    # -- settings ----------------------------------------------------------------------------------------------------

    def setting(self, name: str) -> str | None:
        """A value that was kept with the index under `name`, or None.

        Raises:
            GalleryError: the settings are not as they were written.
        """
        return self._store.setting(name)

    def set_setting(self, name: str, value: str | None) -> None:
        """Keep a value with the index, on disk when this returns; None removes it."""
        self._store.set_setting(name, value)

    def site_key(self) -> SiteKey:
        """The site key that this index's pseudonyms are made with; opened when it is first needed.

        Raises:
            UsageError: there is no key, or it is another than the one that the index was filled with: the same patient would
                get a second pseudonym, and an erasure would miss the first.
        """
        if self._site_key is None:
            key = SiteKey.open()
            known = self._store.setting(SITE_KEY)
            if known is None and not self._store.read_only:
                self._store.set_setting(SITE_KEY, key.name)
            elif known is not None and known != key.name:
                raise UsageError(
                    f"the pseudonyms in {self.folder} were made with another site key ({known}, not {key.name}): "
                    "set LCMEM_ONNX_SITE_KEY to the file of that key"
                )
            self._site_key = key
        return self._site_key

    # -- adding ----------------------------------------------------------------------------------------------------

    def status(self, key: str, content: bytes, gallery: str = DEFAULT_GALLERY) -> Added:
        """What adding the file with sha256 `content` under `key` to a gallery would be.

        A key that stands for another picture counts as new: `add` then refuses it.
        """
        known = self._store.content_of(key, gallery)
        if known and known[0] == content and known[1]:
            return Added.KNOWN
        return Added.COPY if self._store.complete_copy(content) else Added.NEW

    def holds(self, key: str, gallery: str = DEFAULT_GALLERY) -> bool:
        """Whether a picture is there under this key, with all its frames."""
        known = self._store.content_of(key, gallery)
        return bool(known and known[1])

    def add(self, entry: Entry) -> None:
        """Add one picture with its embeddings; it is on disk when this returns.

        Raises:
            KeyConflictError: the key stands for a picture of other content.
            GalleryError: it cannot be written, or an embedding is not finite. Nothing that was there is harmed.
        """
        self._store.add([entry])

    def add_all(self, entries: Iterable[Entry]) -> None:
        """Add several pictures in one transaction: all are on disk when this returns, or none. Raises as `add` does."""
        self._store.add(entries)

    def add_copy(self, key: str, content: bytes, gallery: str = DEFAULT_GALLERY) -> None:
        """Name a picture that is in the index already under another key or in another gallery; its embeddings are shared.

        Raises:
            GalleryError: no picture of this content is there, or it cannot be written.
            KeyConflictError: the key stands for a picture of other content.
        """
        original = self._store.complete_copy(content)
        if original is None:
            raise GalleryError(f"no picture with sha256 {content.hex()} is in {self.folder}")
        self._store.add([], [((gallery, key), original)])

    def entries(self, galleries: Collection[str] | None = None) -> Iterator[Record]:
        """All that is kept, frame by frame, for export; each embedding is checked against its digest.

        Raises:
            GalleryError: an embedding is damaged.
            UsageError: a gallery of that name holds nothing.
        """
        return self._store.records(self._chosen(galleries))

    def update_graph(self) -> None:
        """Bring the saved search graph up to date, if the gallery is large enough to need one."""
        if self._store.counts()[1] > EXACT_UP_TO:
            with self._searching:
                self._current_graph()

    # -- erasing -----------------------------------------------------------------------------------------------------

    def remove(
        self,
        *,
        key: str | None = None,
        patient: str | None = None,
        study: str | None = None,
        gallery: str | None = None,
        compact: bool = True,
    ) -> int:
        """Remove the pictures for which all that is given holds. They are in no result from then on, in no process.

        Args:
            key: a picture's name.
            patient, study: pseudonyms, as `site_key()` makes them.
            gallery: a group; alone, all of it.
            compact: also remove them from the disk before this returns. False leaves that to a later `compact`, or to the
                next opening for writing: for many removals in a row.

        Returns:
            How many pictures were removed.

        Raises:
            UsageError: nothing was given.
            GalleryError: it cannot be written. Then nothing was removed, or, after a full disk in compaction, all from results.
        """
        removed = erase(self._store, key=key, patient=patient, study=study, gallery=gallery)
        if removed and compact:
            self.compact()
        return removed

    def compact(self) -> None:
        """Remove from the disk what was removed from the gallery: the database and its caches are written anew without it.

        Raises:
            GalleryError: the disk is full, or another process reads for too long. The gallery is unharmed, and what could not
                be done is done at the next opening for writing.
        """
        with self._searching:
            remove_graph(self.folder)
            self._graph = None
            compact_database(self._store)
            mark_compacted(self._store)
            self.update_graph()

    # -- searching -------------------------------------------------------------------------------------------------

    def search(
        self,
        queries: Floats,
        threshold: float,
        *,
        top: int = 5,
        how: Search | str = Search.AUTO,
        galleries: Collection[str] | None = None,
    ) -> list[SearchResult]:
        """Find gallery pictures that show the same as each query.

        Args:
            queries: embeddings, float32 (n, features); or (n, renderings, features), of which the one that scores best counts.
            threshold: score in (0, 1) at or above which a picture is a match.
            top: how many matches, and how many identities, to return for each query.
            how: see `Search`.
            galleries: names of the groups to search in; None searches all.

        Returns:
            A result for each query, in order.

        Raises:
            UsageError: a query of another shape, a threshold outside (0, 1), `top` below 1, an unknown `how`, or a gallery
                that holds nothing.
            GalleryError: the gallery is damaged.
        """
        check_threshold(threshold)
        if queries.ndim not in (2, 3) or queries.shape[-1] != self.bundle.features or 0 in queries.shape[1:]:
            raise UsageError(f"queries must have shape (n, {self.bundle.features}); these have {queries.shape}")
        if top < 1:
            raise UsageError(f"{top} matches cannot be returned; ask for 1 or more")
        try:
            how = Search(how)
        except ValueError as error:
            raise UsageError(f"unknown way to search {how!r}; known are {', '.join(Search)}") from error
        chosen = self._chosen(galleries)
        with self._searching:
            self._refresh()
            exact = how is Search.EXACT or (how is Search.AUTO and len(self._flat) <= EXACT_UP_TO) or not len(self._flat)
            graph = None if exact else self._current_graph()
            members = None if chosen is None else self._store.vectors_of(chosen)
            return [self._search_one(np.atleast_2d(query), threshold, top, graph, chosen, members) for query in queries]

    def _chosen(self, galleries: Collection[str] | None) -> list[str] | None:
        """Names of galleries that exist: a mistyped one would find nothing, and everything would be clear."""
        if galleries is None:
            return None
        chosen = [galleries] if isinstance(galleries, str) else sorted(set(galleries))
        known = self.galleries()
        missing = [name for name in chosen if name not in known]
        if missing or not chosen:
            what = f"no gallery {missing[0]!r}" if missing else "nothing to choose from an empty list of galleries"
            raise UsageError(f"{self.folder} has {what}; it has {', '.join(known) or 'none'}")
        return chosen

    def _search_one(
        self,
        views: Floats,
        threshold: float,
        top: int,
        graph: Graph | None,
        chosen: list[str] | None,
        members: NDArray[np.int64] | None,
    ) -> SearchResult:
        ids, vectors = self._flat.ids, self._flat.embeddings
        if graph is not None:
            # Where the graph cannot answer, as among thousands of near-equal vectors, everything is scored: right, if slower.
            with contextlib.suppress(GraphExhaustedError):
                found_by = [self._candidates(graph, view, threshold, top) for view in views]
                places = np.unique(np.concatenate(found_by))
                ids, vectors = ids[places], vectors[places]
        if members is not None:
            inside = np.isin(ids, members)
            if not inside.any():  # the graph's nearest are all of other galleries: the nearest of these is looked for among all
                ids, vectors = self._flat.ids, self._flat.embeddings
                inside = np.isin(ids, members)
            ids, vectors = ids[inside], vectors[inside]
        scores = np.max([self._scores(view, vectors) for view in views], axis=0)
        order = np.argsort(-scores, kind="stable")
        found = int((scores >= threshold).sum())
        hits: list[Hit] = []
        shown: set[tuple[str, str, int]] = set()
        people: dict[tuple[str, ...], Identity] = {}
        for at in order[: max(1, found)]:
            vector, score = int(ids[at]), float(scores[at])
            if len(hits) < top:
                # Of a frame that two of its renderings lead to, the better one counts.
                for row in self._store.rows(vector, top + len(shown), chosen):
                    if (row.gallery, row.key, row.frame) not in shown and len(hits) < top:
                        shown.add((row.gallery, row.key, row.frame))
                        hits.append(_hit(row, score))
            if found and len(people) < top:
                for row in self._store.people(vector, top, chosen):
                    who = (row.patient,) if row.patient is not None else (row.gallery, row.key)
                    people.setdefault(who, Identity(row.patient, _hit(row, score)))
            if len(hits) >= top and (not found or len(people) >= top):
                break
        total, renderings = self._store.pictures_of(ids[order[:found]].tolist(), chosen) if found else (0, 0)
        if renderings < found or (len(ids) and not hits):
            # Each vector is some picture's; were it passed over, a match would be reported as clear.
            raise GalleryError(f"{self.folder} is damaged: embeddings have lost their pictures. Restore it, or build it again")
        best = tuple(sorted(people.values(), key=lambda one: -one.score))[:top]
        return SearchResult(tuple(hits[:top]) if found else (), total, hits[0] if hits else None, best)

    def _scores(self, query: Floats, vectors: Floats) -> NDArray[np.float64]:
        parts = [self.bundle.head.scores(query, vectors[at : at + CHUNK]) for at in range(0, len(vectors), CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0)

    def _candidates(self, graph: Graph, query: Floats, threshold: float, top: int) -> NDArray[np.int64]:
        """Places of the vectors that may match: widen the graph's search until it reaches the radius beyond which nothing can."""
        head = self.bundle.head
        weighted = head.weighted(query)
        radius = head.radius(threshold, query, self._flat.low, self._flat.high)
        count = max(FIRST_CANDIDATES, 4 * top)
        while True:
            labels, distances = graph.nearest(weighted, count)
            if len(labels) >= len(graph) or distances[-1] > radius:
                break
            count *= 4
        return np.searchsorted(self._flat.ids, np.sort(labels))

    def _refresh(self) -> None:
        if self._flat.refresh(self._store):
            self._graph = None

    def _content(self, newest: int) -> str:
        """sha256 of the vectors up to an id, with their ids: a graph left over from another database shows by it."""
        count = int(np.searchsorted(self._flat.ids, newest, side="right"))
        digest = hashlib.sha256(self._flat.ids[:count].tobytes())
        digest.update(np.ascontiguousarray(self._flat.embeddings[:count]).data)
        return digest.hexdigest()

    def _current_graph(self) -> Graph:
        """The graph with every vector in it: loaded, extended by what is new, or made again."""
        self._refresh()
        ids = self._flat.ids
        if self._graph is None:
            try:
                self._graph = load_graph(self.folder, self.bundle.fingerprint, self.bundle.features, cpu_limit())
                if self._graph.content != self._content(self._graph.newest):
                    raise GalleryError("the search graph is of other pictures than the index holds")
            except GalleryError as error:
                self._warn(f"{error}; making the search graph of {len(ids)} vectors")
                self._graph = Graph(self.bundle.features, cpu_limit())
        if len(self._graph) != len(ids):
            if len(self._graph) > len(ids):
                self._graph = Graph(self.bundle.features, cpu_limit())
            new = ids > self._graph.newest
            self._graph.extend(ids[new], self.bundle.head.weighted(self._flat.embeddings[new]))
            self._graph.content = self._content(self._graph.newest)
            if self._persistent:
                save_graph(self._graph, self.folder, self.bundle.fingerprint)
        return self._graph


def _hit(row: Row, score: float) -> Hit:
    return Hit(row.key, row.frame, score, row.gallery, row.patient, row.study)
