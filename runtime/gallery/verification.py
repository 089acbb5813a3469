"""Is everything in an index as it was written, and does its graph find what the exact search finds?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import GalleryError
from .search.hnsw import graph_there, load_graph
from .search.results import Search, SearchResult
from .search.searcher import Searcher
from .search.vector_cache import open_cache
from .storage.records import EMPTY
from .storage.store import Store

__all__ = ["Recall", "Verification", "verify"]

READ_AT_ONCE = 8192
MATCHES = 1000
ATTEMPTS = 5
SEED = 0


@dataclass(frozen=True)
class Recall:
    """How the graph's search compares with the exact one, on a sample of the gallery's own images as queries.

    Attributes:
        queries: how many.
        matches: images at or above the threshold that the exact search found, at most 1,000 a query.
        found: how many of these the graph's search found.
        proven: queries that the graph left to the exact search, which misses nothing.
    """

    queries: int
    matches: int
    found: int
    proven: int

    @property
    def share(self) -> float:
        """Recall of matches, 0 to 1."""
        return self.found / self.matches if self.matches else 1.0


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        problems: a sentence each; none in a sound index.
        checked: what was looked at and how many of it, by name.
        recall: None where there is no graph that could be asked.
    """

    problems: tuple[str, ...]
    checked: dict[str, int]
    recall: Recall | None


def verify(store: Store, searcher: Searcher, fingerprint: str, threshold: float, sample: int) -> Verification:
    """Read everything and compare it with its digests; then measure the graph. See `Gallery.verify`."""
    problems: list[str] = []
    checked: dict[str, int] = {}

    def attempt(name: str, check: Callable[[], int]) -> bool:
        try:
            checked[name] = check()
        except GalleryError as error:
            problems.append(str(error))
            return False
        return True

    sound = attempt("pages", lambda: _database(store))
    sound = attempt("vectors", lambda: _vectors(store)) and sound
    attempt("settings", lambda: _settings(store))
    attempt("cached vectors", lambda: _cache(store, searcher, fingerprint))
    recall = None
    if graph_there(store.folder) and sound:
        graph = attempt("vectors in the graph", lambda: len(load_graph(store.folder, fingerprint, store.features, 1)))
        if graph and sample:
            recall = _recall(store, searcher, threshold, sample)
    return Verification(tuple(problems), checked, recall)


def _database(store: Store) -> int:
    with store.explained():
        found = [row[0] for row in store.connection.execute("PRAGMA integrity_check(5)")]
        strangers = store.connection.execute("PRAGMA foreign_key_check").fetchall()
        pages = int(store.connection.execute("PRAGMA page_count").fetchone()[0])
    if found != ["ok"] or strangers:
        raise store.damaged("; ".join(map(str, found)) if found != ["ok"] else "images without a vector")
    return pages


def _vectors(store: Store) -> int:
    """All embeddings against their digests and the tally. A writer may add meanwhile: what it adds is read too.

    Where it erases, what was read before may be gone: then all is read again.
    """
    for _ in range(ATTEMPTS):
        erasure, last, tally = store.newest()[1], 0, EMPTY
        while True:
            changes = store.changes(last, erasure, limit=READ_AT_ONCE)
            tally = tally.with_others(changes.added)
            if len(changes.ids) < READ_AT_ONCE or changes.erasure != erasure:
                break
            last = int(changes.ids[-1])
        if changes.erasure == erasure:
            if tally != changes.tally:
                raise store.damaged("its vectors do not match their checksum")
            return tally.rows
    raise GalleryError(
        f"{store.folder} was modified repeatedly during verification: verify it again when no images are being erased"
    )


def _settings(store: Store) -> int:
    store.setting("")
    with store.explained():
        return int(store.connection.execute("SELECT count(*) FROM settings").fetchone()[0])


def _cache(store: Store, searcher: Searcher, fingerprint: str) -> int:
    cache = open_cache(store.folder, fingerprint, store.features, searcher.flat.code_width)
    if cache is None:
        return 0
    try:
        cache.check_all()
        return cache.manifest.rows
    finally:
        cache.close()


def _recall(store: Store, searcher: Searcher, threshold: float, sample: int) -> Recall:
    searcher.flat.refresh(store)
    places = np.flatnonzero(searcher.flat.alive)
    chosen = np.sort(np.random.default_rng(SEED).choice(places, min(sample, len(places)), replace=False))
    queries = searcher.flat.take(chosen)
    exact = searcher.search(queries, threshold, MATCHES, Search.EXACT, None)
    graph = searcher.search(queries, threshold, MATCHES, Search.HNSW, None)
    found = sum(len(_images(one) & _images(other)) for one, other in zip(exact, graph, strict=True))
    return Recall(len(chosen), sum(len(one.matches) for one in exact), found, sum(one.complete for one in graph))


def _images(result: SearchResult) -> set[tuple[str, str, int]]:
    """What was found, without the scores: BLAS rounds them by how many vectors it is given, so their last bits differ."""
    return {(hit.gallery, hit.key, hit.frame) for hit in result.matches}
