"""The search in a gallery: exactly, by codes and the head (see `flat`), or through the graph (see `graph`); and their caches.

Whatever finds candidates, every one is scored by the head: what is reported is always the model's own score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryError
from ...model.bundle import Bundle
from ...model.head import Floats
from ...system.cpu import cpu_limit
from ..storage.store import Store
from .exact import CACHE_FROM, Flat, Places
from .hits import name_vectors
from .hnsw import Graph, GraphExhaustedError, graph_there, load_graph, remove_graph, save_graph
from .results import Search, SearchResult
from .speed import exact_enough
from .vector_cache import CacheError, remove_caches

__all__ = ["Searcher"]

QUERIES_AT_ONCE = 32
SCORED_AT_ONCE = 512
"""Vectors scored at once: 1 MB of float32 at 512 features, which stays in the processor's cache."""
ADDED_AT_ONCE = 4096
"""Vectors that the graph is given at once."""
FIRST_CANDIDATES = 512
"""Of the graph's answer. With 64 it had .978 of the matches in a million vectors, with 256 .999, with 384 all (image-index.md):
among so many, images that are no match lie nearer by squared L2 than some that are."""
MOST_CANDIDATES = 16384
"""So far the graph's search is widened. Wider, the exact search is quicker."""
UNGRAPHED = 2000
"""Vectors newer than the graph that are searched flat; beyond, they are put into it."""
ATTEMPTS = 5
_NOTHING: Places = np.empty(0, np.int64)


class _ChangedError(Exception):
    """Another process erased what was being looked at: the search has to be done again."""


@dataclass(frozen=True, eq=False)
class _Found:
    """Places that a query led to, ascending; the head's scores of them where they are known; whether the exact search found
    them, so that none is missing."""

    places: Places
    scores: NDArray[np.float64] | None = None
    complete: bool = True


class Searcher:
    """The state of searching: vectors, graph. One thread at a time; `Gallery` sees to it."""

    def __init__(self, store: Store, bundle: Bundle, warn: Callable[[str], None], *, persistent: bool) -> None:
        self._store = store
        self._head = bundle.head
        self._fingerprint = bundle.fingerprint
        self._folder: Path = store.folder
        self._warn = warn
        self._persistent = persistent
        self.flat = Flat(bundle.head, store.folder, bundle.fingerprint, warn)
        self._graph: Graph | None = None
        self._graph_failed = False
        self._members: tuple[tuple[Sequence[str], str, int], NDArray[np.bool_]] | None = None
        self._generation = store.generation

    def close(self) -> None:
        self.flat.close()
        self._graph = None

    # -- caches ----------------------------------------------------------------------------------------------------

    def update(self, *, graph: bool = False) -> None:
        """For a writer: bring the caches on disk up to date. A graph is kept where there is one, where the gallery is too large
        to be searched exactly in good time, or where `graph` asks for it.

        Raises:
            GalleryError: the disk is full. The gallery is unharmed, and older caches still count.
        """
        count = self._store.counts()[1]
        if count > CACHE_FROM:
            self.flat.write_cache(self._store)
        self.flat.refresh(self._store)
        if count and (graph or graph_there(self._folder) or not exact_enough(count, self.flat.code_width)):
            self._graph_failed = False
            self._current_graph(newest=True)

    def rewrite(self) -> None:
        """For a writer, after an erasure: write the caches without what was erased.

        Raises:
            GalleryError: the disk is full.
        """
        graph = self._saved_graph("it is made again")
        self.flat.refresh(self._store)
        if graph is not None:
            gone = self.flat.ids[~self.flat.alive]
            if graph.worn_by(len(gone)):
                graph = None  # to make it again is quicker, too, than to take so many out one by one
            else:
                graph.erase(gone)
        if len(self.flat) > CACHE_FROM:
            self.flat.write_cache(self._store, anew=True)
        else:
            self.flat.forget()
            remove_caches(self._folder)  # also one that cannot be read: what was erased may be in it
        self.flat.refresh(self._store)
        self._graph = None
        if graph is not None and len(graph):
            graph.content = self.flat.content(graph.newest)
            save_graph(graph, self._folder, self._fingerprint)
            self._graph = graph
        else:
            wanted = graph_there(self._folder) and len(self.flat) > 0
            remove_graph(self._folder, to_be_made_again=wanted)
            if wanted:
                self._graph = Graph(self._head.features, cpu_limit())
                self._current_graph(newest=True)

    def _saved_graph(self, otherwise: str) -> Graph | None:
        """The graph on disk, if there is one, whole and of these vectors; what is done `otherwise` is said."""
        if not graph_there(self._folder):
            return None
        self.flat.refresh(self._store)
        try:
            graph = load_graph(self._folder, self._fingerprint, self._head.features, cpu_limit())
            count = self._after(graph)
            there = int(self.flat.alive[:count].sum()) <= len(graph) <= count
            if not there or graph.content != self.flat.content(graph.newest):
                raise GalleryError("the search graph does not match the images of the index")
        except GalleryError as error:
            self._warn(f"{error}; {otherwise}")
            return None
        return graph

    def _current_graph(self, *, newest: bool = False) -> Graph:
        """The graph, loaded or made, with all but the newest vectors in it; with all of them where `newest` asks for it."""
        flat = self.flat
        if self._graph is None:
            making = f"making the search graph of {len(flat)} vectors"
            if not graph_there(self._folder):
                self._warn(f"the index has no search graph yet; {making}")
            self._graph = self._saved_graph(making)
        if self._graph is None:
            self._graph = Graph(self._head.features, cpu_limit())
        missing = self._newer(self._graph, None)
        if len(missing) > UNGRAPHED or (len(missing) and (newest or not len(self._graph))):
            self._graph.reserve(len(missing))
            for start in range(0, len(missing), ADDED_AT_ONCE):
                places = missing[start : start + ADDED_AT_ONCE]
                self._graph.extend(flat.ids[places], self._head.weighted(flat.take(places)))
            self._graph.content = flat.content(self._graph.newest)
            if self._persistent:
                try:
                    save_graph(self._graph, self._folder, self._fingerprint)
                except GalleryError as error:
                    if newest:
                        raise
                    self._warn(f"{error}; the search goes on without saving it")
        return self._graph

    # -- searching -------------------------------------------------------------------------------------------------

    def search(
        self, queries: Floats, threshold: float, top: int, how: Search, galleries: Sequence[str] | None
    ) -> list[SearchResult]:
        """See `Gallery.search`, which has checked what was asked."""
        for _ in range(ATTEMPTS):
            try:
                self.flat.refresh(self._store)
                if self._generation != self._store.generation:  # another index: nothing known of the old one holds
                    self._generation = self._store.generation
                    self._graph, self._graph_failed, self._members = None, False, None
                return self._search(queries, threshold, top, how, galleries)
            except _ChangedError:
                continue
            except CacheError as error:
                self.flat.distrust(str(error))
        raise GalleryError(f"{self._folder} was modified repeatedly during the search: try again")

    def _search(
        self, queries: Floats, threshold: float, top: int, how: Search, galleries: Sequence[str] | None
    ) -> list[SearchResult]:
        """Each query by all its renderings: what any of them leads to is a candidate of the query."""
        members = None if galleries is None else self._members_of(galleries)
        graph = self._graph_for(how)
        renderings = 1 if queries.ndim == 2 else queries.shape[1]
        views = queries.reshape(-1, queries.shape[-1])
        found: list[_Found] = []
        if graph is not None:
            found = [self._by_graph(graph, view, threshold, top, members) for view in views]
        else:
            for start in range(0, len(views), QUERIES_AT_ONCE):
                found += map(_Found, self.flat.candidates(views[start : start + QUERIES_AT_ONCE], threshold, members))
        results: list[SearchResult] = []
        for start in range(0, len(views), renderings):
            its = _together(found[start : start + renderings])
            scores = its.scores
            if scores is None:
                scores = np.max([self._scores(view, its.places) for view in views[start : start + renderings]], axis=0)
            results.append(self._result(its.places, scores, threshold, top, galleries, its.complete))
        return results

    def _graph_for(self, how: Search) -> Graph | None:
        """The graph to search through, or None for the exact search. `auto` never waits for a graph to be made."""
        if how is Search.EXACT or not len(self.flat):
            return None
        if how is Search.HNSW:
            return self._current_graph()
        if exact_enough(len(self.flat), self.flat.code_width) or self._graph_failed:
            return None
        if self._graph is None:
            self._graph = self._saved_graph("searching exactly; 'lcmem-onnx index add' or 'index compact' makes it again")
        self._graph_failed = self._graph is None
        return self._current_graph() if self._graph else None

    def _members_of(self, galleries: Sequence[str]) -> NDArray[np.bool_]:
        """Which rows some image of these galleries has; kept until images change."""
        state = (galleries, self._store.meta("pictures"), len(self.flat.ids))
        if self._members is None or self._members[0] != state:
            self._members = state, np.isin(self.flat.ids, self._store.vectors_of(galleries), assume_unique=True)
        return self._members[1]

    def _by_graph(self, graph: Graph, query: Floats, threshold: float, top: int, members: NDArray[np.bool_] | None) -> _Found:
        """Candidates through the graph: never complete, unless the query was left to the exact search.

        The search is widened until it reaches the radius beyond which nothing can match, or all of the graph; or until no match
        is among the farther half of what was found; or as far as it goes. None of these proves that nothing is missing: the
        graph may fail to reach a vector however near it is.
        """
        flat = self.flat
        if not flat.within_one(query):  # embeddings of no encoder of ours: squared differences bound nothing there
            return _Found(flat.candidates(query[None], threshold, members)[0])
        weighted, coded = self._head.weighted(query), flat.coded(query, threshold)
        all_wanted = members is None and flat.all_alive
        count = max(FIRST_CANDIDATES, 4 * top)
        newer = self._newer(graph, members)
        while True:
            try:
                labels, distances = graph.nearest(weighted, count)
            except GraphExhaustedError:  # as among thousands of near-equal vectors: the exact search does not depend on it
                return _Found(flat.candidates(query[None], threshold, members)[0])
            places, there = flat.places_of(labels)
            if there is not None:
                places = places[there]  # a graph that was loaded before a compaction still has what is gone
            ended = len(labels) >= len(graph) or float(distances[-1]) > coded.radius
            wanted = None if all_wanted else self._wanted(places, members)
            read = flat.worth_reading(coded, places, wanted)
            scores = self._scores(query, places[read])
            if ended or count >= MOST_CANDIDATES or not (scores[read >= len(places) // 2] >= threshold).any():
                break
            count = min(4 * count, MOST_CANDIDATES)
        places = places[read]
        if wanted is not None:
            scores[~wanted[read]] = -1.0
        best = scores.max(initial=-1.0)
        if best < 0:  # these are all of other galleries, or erased; and what is newer need not be nearer than the rest
            return _Found(flat.candidates(query[None], threshold, members)[0])
        kept = (scores >= min(threshold, best)) & (scores >= 0)
        places, scores = places[kept], scores[kept]
        if len(newer):
            places, scores = np.concatenate([places, newer]), np.concatenate([scores, self._scores(query, newer)])
        order = places.argsort()
        return _Found(places[order], scores[order], complete=False)

    def _newer(self, graph: Graph, members: NDArray[np.bool_] | None) -> Places:
        """Wanted rows that are not in the graph yet."""
        start = self._after(graph)
        if start == len(self.flat.ids):
            return _NOTHING
        newer = np.arange(start, len(self.flat.ids))
        return newer[self._wanted(newer, members)]

    def _wanted(self, places: Places, members: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        alive = self.flat.alive[places]
        return alive if members is None else alive & members[places]

    def _after(self, graph: Graph) -> int:
        """The first place beyond the graph."""
        return int(self.flat.ids.searchsorted(graph.newest, side="right"))

    def _scores(self, query: Floats, places: Places) -> NDArray[np.float64]:
        """The head's scores of a query, (features,), with some rows."""
        scores = np.empty(len(places))
        for start in range(0, len(places), SCORED_AT_ONCE):
            scores[start : start + SCORED_AT_ONCE] = self._head.scores(
                query, self.flat.take(places[start : start + SCORED_AT_ONCE])
            )
        return scores

    def _result(
        self,
        places: Places,
        scores: NDArray[np.float64],
        threshold: float,
        top: int,
        galleries: Sequence[str] | None,
        complete: bool,
    ) -> SearchResult:
        """The images of the rows that a query led to, which have these scores."""
        flat, store = self.flat, self._store
        order = np.argsort(-scores, kind="stable")
        found = int((scores >= threshold).sum())
        best = order[: max(1, found)]
        ids = flat.ids[places[best]].tolist()
        named = name_vectors(store, ids, scores[best].tolist(), found, top, galleries)
        if store.generation != self._generation:
            raise _ChangedError
        if len(named.frames) < found or (ids and not named.hits):
            if store.newest() != (flat.newest, flat.erasure) or galleries is not None:
                self._members = None
                raise _ChangedError
            # Each vector is some image's; were it passed over, a match would be reported as clear.
            raise GalleryError(f"{self._folder} is damaged: embeddings without images. Restore it from a backup, or build it again")
        hits = tuple(named.hits)
        return SearchResult(
            hits if found else (), len(set(named.frames)), hits[0] if hits else None, named.identities(top), complete
        )


def _together(found: Sequence[_Found]) -> _Found:
    """What the renderings of one query led to."""
    if len(found) == 1:
        return found[0]
    places = sorted(set().union(*(one.places.tolist() for one in found)))
    return _Found(np.array(places, np.int64), None, all(one.complete for one in found))
