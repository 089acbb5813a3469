"""The vectors of a gallery in the order of their ids, kept in step with the store, and the exact search over them.

Most rows lie in the flat cache (see `cache`), the newest, and all of a small gallery, in memory. A row has a place, from 0;
erased rows keep theirs until the cache is written anew, and are passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryError
from ...model.head import Floats, Head
from ...system.cpu import cpu_limit
from ..storage.records import EMPTY, Tally, row_digest
from ..storage.store import Store
from .l1_codes import BLOCK, Coder, Codes, near, near_enough
from .vector_cache import Cache, CacheError, CacheManifest, Writer, open_cache, row_sums

__all__ = ["CACHE_FROM", "Flat", "Places", "Query"]

CACHE_FROM = 4096
"""Rows from which on there is a cache, and rows by which it may lag behind. So many are read from SQLite in 50 ms."""
READ_AT_ONCE = 32768
"""Rows in memory while the cache is written: 64 MB at 512 features."""
Places = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Query:
    """A query's code, uint8 (width,), with its slack, and how far from it matches may be (see `codes`)."""

    code: Codes
    slack: np.float32
    radius: float
    reach: float


class Flat:
    """See the module. One thread at a time; `Gallery` sees to it.

    Attributes:
        ids: int64 (rows,), ascending.
        alive: bool (rows,), False for erased rows.
        low, high: of each feature over all rows, float32 (features,).
        newest, erasure: up to which vector and erasure it follows the store.
    """

    def __init__(self, head: Head, folder: Path, fingerprint: str, warn: Callable[[str], None]) -> None:
        self._head = head
        self._coder = Coder(head)
        self._folder = folder
        self._fingerprint = fingerprint
        self._warn = warn
        self._cache: Cache | None = None
        self._trusted = True
        self._generation = 0
        self._reset()

    def _reset(self) -> None:
        self.close()
        features = self._head.features
        self.ids: NDArray[np.int64] = np.empty(0, np.int64)
        self.alive: NDArray[np.bool_] = np.empty(0, np.bool_)
        self.low: Floats = np.full(features, np.inf, np.float32)
        self.high: Floats = np.full(features, -np.inf, np.float32)
        self.newest = -1  # so that the first look always reads, whatever the file says of its newest
        self.erasure = 0
        self._sums: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._tally = EMPTY
        self._tail: Floats = np.empty((0, features), np.float32)
        self._tail_codes: tuple[Codes, Floats] | None = None

    def close(self) -> None:
        if self._cache:
            self._cache.close()
            self._cache = None

    def __len__(self) -> int:
        """How many rows are alive."""
        return self._tally.rows

    @property
    def all_alive(self) -> bool:
        """Whether no row is erased."""
        return self._tally.rows == len(self.ids)

    @property
    def code_width(self) -> int:
        return self._coder.width

    def distrust(self, why: str) -> None:
        """The cache is damaged: go on with what SQLite holds, from the next `refresh` on."""
        self._warn(f"{why}; reading the vectors from the database")
        self._trusted = False
        self._reset()

    def forget(self) -> None:
        """Read all anew at the next `refresh`."""
        self._reset()

    @property
    def cached(self) -> int:
        """How many rows lie in the cache."""
        return len(self._cache.ids) if self._cache else 0

    # -- in step with the store ------------------------------------------------------------------------------------

    def refresh(self, store: Store) -> None:
        """Read what was added or erased since the last time, by this process or another.

        Raises:
            GalleryError: the vectors are not those that were written.
        """
        now = store.newest()
        if store.generation != self._generation:
            self._generation = store.generation
            self._warn(f"{self._folder} was replaced by another index: searching that from now on")
            self._trusted = True
            self._reset()
        if now == (self.newest, self.erasure):
            return
        if self._trusted and (not len(self.ids) or now[1] != self.erasure):
            self._open_cache()
        try:
            self._follow(store)
        except GalleryError as error:
            if not self._cache:
                raise
            self.distrust(f"the cached vectors are of another state of the index ({error})")
            self._follow(store)

    def _open_cache(self) -> None:
        """Take up the cache as it is now on disk, if it is not the one in use."""
        try:
            cache = open_cache(self._folder, self._fingerprint, self._head.features, self._coder.width)
        except GalleryError as error:
            self.distrust(str(error))
            return
        if cache is None or (self._cache and self._cache.manifest.name == cache.manifest.name):
            if cache:
                cache.close()
            return
        self._reset()
        self._cache = cache
        manifest = cache.manifest
        self.ids, self._sums = cache.ids, cache.sums
        self.alive = np.ones(manifest.rows, np.bool_)
        self.low, self.high = np.asarray(manifest.low, np.float32), np.asarray(manifest.high, np.float32)
        self.newest, self.erasure, self._tally = manifest.newest, manifest.erasure, Tally.parse(manifest.tally)

    def _follow(self, store: Store) -> None:
        changes = store.changes(self.newest, self.erasure)
        places = np.searchsorted(self.ids, changes.erased)
        known = places < len(self.ids)
        places = places[known][self.ids[places[known]] == changes.erased[known]]
        if len(places):  # mostly none, and numpy imports 50 ms of its own for this
            places = np.unique(places)
        places = places[self.alive[places]]
        tally = self._tally.minus(self._digests(places)).with_others(changes.added)
        if tally != changes.tally:
            raise store.damaged("its vectors are not those that were written")
        if len(places):
            self.alive = self.alive.copy()
            self.alive[places] = False
        if len(changes.ids):
            self.ids = np.concatenate([self.ids, changes.ids])
            self.alive = np.concatenate([self.alive, np.ones(len(changes.ids), np.bool_)])
            self._sums = np.concatenate([self._sums, row_sums(changes.embeddings)])
            self._tail = np.concatenate([self._tail, changes.embeddings])
            self._tail_codes = None
            self.low = np.minimum(self.low, changes.embeddings.min(axis=0))
            self.high = np.maximum(self.high, changes.embeddings.max(axis=0))
        self._tally, self.newest, self.erasure = tally, changes.newest, changes.erasure

    def _digests(self, places: Places) -> list[bytes]:
        """As the store takes them over `vectors`."""
        rows = zip(self.ids[places].tolist(), self.take(places), strict=True)
        return [row_digest(number, hashlib.sha256(row.astype("<f4").tobytes()).digest()) for number, row in rows]

    def take(self, places: Places) -> Floats:
        """Embeddings of some rows, float32 (n, features).

        Raises:
            GalleryError: one is damaged in the cache.
        """
        cached = self.cached
        if self._cache is None or not len(places) or places.min() >= cached:
            return self._tail[places - cached]
        if places.max() < cached:
            return self._cache.embeddings(places)
        found = np.empty((len(places), self._head.features), np.float32)
        inside = places < cached
        found[inside] = self._cache.embeddings(places[inside])
        found[~inside] = self._tail[places[~inside] - cached]
        return found

    def content(self, newest: int) -> str:
        """sha256 over the ids and sums of the rows up to an id: by it a graph of other vectors is told."""
        count = int(np.searchsorted(self.ids, newest, side="right"))
        digest = hashlib.sha256(np.ascontiguousarray(self.ids[:count], "<i8").data)
        digest.update(np.ascontiguousarray(self._sums[:count], "<u8").data)
        return digest.hexdigest()

    # -- the cache -------------------------------------------------------------------------------------------------

    def write_cache(self, store: Store, *, anew: bool = False) -> None:
        """Bring the cache on disk up to date, for a writer; `anew` leaves erased rows out. Few rows at a time are in memory.

        Raises:
            GalleryError: the vectors are not those that were written, or the disk is full. An older cache still counts.
        """
        if not anew and not self._cache and self._trusted:
            self._open_cache()
        after = None if anew or not self._cache else self._cache.manifest
        if after and after.newest == store.newest()[0]:
            return
        try:
            if self._cache and after:
                self._cache.check_all()  # to append to a damaged file would pass the damage on
            self._write(store, after)
        except CacheError as error:
            if after is None:
                raise
            self._warn(f"{error}; writing them anew from the database")
            self._write(store, None)
        self._reset()
        self._trusted = True
        self.refresh(store)

    def _write(self, store: Store, after: CacheManifest | None) -> None:
        newest, erasure, tally = (after.newest, after.erasure, Tally.parse(after.tally)) if after else (0, 0, EMPTY)
        with contextlib.closing(Writer(self._folder, self._coder, self._head.features, self._fingerprint, after)) as writer:
            while True:
                changes = store.changes(newest, self.erasure, limit=READ_AT_ONCE)
                writer.append(changes.ids, changes.embeddings)
                tally = tally.with_others(changes.added)
                if len(changes.ids) < READ_AT_ONCE:
                    break
                newest = int(changes.ids[-1])
            if after is None and tally != changes.tally:
                raise store.damaged("its vectors are not those that were written")
            writer.finish(changes.newest, erasure if after else changes.erasure, tally)

    # -- the exact search ------------------------------------------------------------------------------------------

    def candidates(self, queries: Floats, threshold: float, members: NDArray[np.bool_] | None) -> list[Places]:
        """For each query, the places of all rows that may score `threshold`, and of all that may be its nearest, ascending.

        Args:
            queries: embeddings, float32 (n, features).
            threshold: score in (0, 1).
            members: bool (rows,): which rows to search among; None for all.

        Raises:
            GalleryError: the cache is damaged.
        """
        wanted = self.alive if members is None else self.alive & members
        if not self._cache and len(self.ids) <= CACHE_FROM:
            return [np.flatnonzero(wanted)] * len(queries)
        places = None if wanted.all() else np.flatnonzero(wanted)
        blocks, slacks = self._blocks(None if places is None else wanted)
        if not blocks:
            return [np.empty(0, np.int64)] * len(queries)
        codes, query_slacks = self._coder.encode(queries)
        radii = np.array([self._head.radius(threshold, query, self.low, self.high) for query in queries])
        reach = np.array([self._head.reach(query, self.low, self.high) for query in queries])
        found = near(blocks, slacks, codes, query_slacks, self._coder.step, radii, reach, cpu_limit())
        return found if places is None else [places[position] for position in found]

    def worth_reading(self, query: Query, places: Places, wanted: NDArray[np.bool_] | None) -> Places:
        """Which of some rows may score the threshold, or be the nearest of the wanted ones: indices into `places`, ascending.

        By their codes, which take less to read than embeddings and their checksums. Rows that have none yet are all worth it.

        Args:
            query: from `coded`.
            places: (n,).
            wanted: bool (n,), which of these are searched among; None for all.

        Raises:
            GalleryError: the cache is damaged.
        """
        if self._cache is None or not len(places):
            return np.arange(len(places))
        if int(places.max()) < self.cached:
            return self._near_enough(self._cache, query, places, wanted).nonzero()[0]
        inside = places < self.cached
        marked = ~inside
        marked[inside] = self._near_enough(self._cache, query, places[inside], None if wanted is None else wanted[inside])
        return marked.nonzero()[0]

    def _near_enough(self, cache: Cache, query: Query, places: Places, wanted: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        sums, slack = cache.code_distances(query.code, places)
        widths = slack + query.slack
        return near_enough(sums, widths, self._coder.step, wanted, query.radius, query.reach)

    def places_of(self, ids: NDArray[np.int64]) -> tuple[Places, NDArray[np.bool_] | None]:
        """Where some ids are, and which of them are there at all; None where all are."""
        if not len(self.ids):
            return np.zeros(len(ids), np.int64), np.zeros(len(ids), np.bool_)
        places = ids - self.ids[0]  # where no id was erased before
        if int(places.min(initial=0)) >= 0 and int(places.max(initial=0)) < len(self.ids) and (self.ids[places] == ids).all():
            return places, None
        places = self.ids.searchsorted(ids)
        places[places == len(self.ids)] = 0
        there = self.ids[places] == ids
        return places, None if there.all() else there

    def within_one(self, query: Floats) -> bool:
        """Whether no feature of a query, (features,), differs by more than 1 from that of any row: what `Head.radius` takes for
        granted of squared distances. Embeddings in [0, 1] are so; any finite values can be kept."""
        return bool(np.maximum(query - self.low, self.high - query).max(initial=0.0) <= 1.0)

    def coded(self, query: Floats, threshold: float) -> Query:
        """A query, (features,), as `worth_reading` takes it."""
        (code,), (slack,) = self._coder.encode(query[None])
        radius = self._head.radius(threshold, query, self.low, self.high)
        return Query(code, slack, radius, self._head.reach(query, self.low, self.high))

    def _blocks(self, wanted: NDArray[np.bool_] | None) -> tuple[list[tuple[int, Codes]], list[float]]:
        """Codes block by block, of the wanted rows alone, numbered from 0, and the largest slack of each."""
        parts: list[tuple[int, Codes, Floats]] = []
        if self._cache:
            self._cache.check_codes()
            parts.append((0, self._cache.codes, self._cache.slack))
        if len(self._tail):
            if self._tail_codes is None:
                encoded = [self._coder.encode(self._tail[start : start + BLOCK]) for start in range(0, len(self._tail), BLOCK)]
                self._tail_codes = np.concatenate([one for one, _ in encoded]), np.concatenate([one for _, one in encoded])
            parts.append((self.cached, *self._tail_codes))
        blocks: list[tuple[int, Codes]] = []
        slacks: list[float] = []
        number = 0
        for first, codes, slack in parts:
            for start in range(0, len(codes), BLOCK):
                block, its_slack = codes[start : start + BLOCK], slack[start : start + BLOCK]
                if wanted is not None:
                    chosen = wanted[first + start : first + start + len(block)]
                    if not chosen.any():
                        continue
                    if not chosen.all():
                        block, its_slack = block[chosen], its_slack[chosen]
                blocks.append((number, block))
                slacks.append(float(its_slack.max()))
                number += len(block)
        return blocks, slacks
