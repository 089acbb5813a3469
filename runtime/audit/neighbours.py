"""Best scores and all matches of many embeddings against many: exact, and quick enough for 10,000 against 10,000.

The head is logit = b - d + p, where d = sum of a |x - y| over its negative weights (a = -w) and p what its positive ones add
(see `head`). d is first taken between embeddings rounded to 8 bits, which a processor does 32 at a time (OpenCV's
batchDistance). By the triangle inequality the rounded d is off by no more than the two vectors' own rounding, which is known
for each. So what can match, and what can be nearest, is certain before the head scores it: nothing is missed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..gallery import Gallery
from ..model.head import Floats, Head
from ..system.cpu import cpu_limit

__all__ = ["Found", "InIndex", "InMemory", "Match", "Searchable"]

CANDIDATES = 64
"""Of each query, scored by the head at first. Where their bound does not reach, everything is scored."""
CHUNK = 64
"""Vectors scored at once: 128 KB at 512 features, which stays in the processor's second cache."""
AT_ONCE = 64
LEVELS = 255
NO_MATCH = 1 - 1e-12
"""A threshold that asks for the nearest alone: only equal embeddings come near it."""
ROUNDING = 1e-3
"""Logits by which float32 sums may differ; bounds are widened by it."""


@dataclass(frozen=True)
class Match:
    """A reference image and the head's score for it, in (0, 1)."""

    key: str
    frame: int
    score: float


@dataclass(frozen=True)
class Found:
    """What a query found: the best matches, how many there are, and the nearest image, match or not."""

    matches: tuple[Match, ...]
    total: int
    nearest: Match


class Searchable(Protocol):
    """Something that can be searched."""

    @property
    def exact(self) -> bool:
        """Whether all searches until now were exact, so that no match is missing."""
        ...

    def __len__(self) -> int: ...

    def search(self, queries: Floats, threshold: float | None, top: int) -> list[Found]: ...

    def closest(self, queries: Floats, top: int) -> list[tuple[Match, ...]]: ...


class InMemory:
    """Embeddings in memory, searched exactly.

    Args:
        head: of the bundle that they are of.
        keys: (n,), a name for each; several rows may be of one image.
        frames: (n,), which frame of it.
        embeddings: float32 (n, features), n of 1 or more.
    """

    exact = True

    def __init__(self, head: Head, keys: Sequence[str], frames: Sequence[int], embeddings: Floats) -> None:
        if not len(embeddings):
            raise UsageError("there is nothing to search in")
        self._head, self._keys, self._frames, self._embeddings = head, keys, frames, embeddings
        self._count = len(set(zip(keys, frames, strict=True)))
        self._distance = np.maximum(-head.weight, 0.0)
        self._quantum = max(float(self._distance.max()), 1e-9) / LEVELS
        self._low, self._high = embeddings.min(axis=0), embeddings.max(axis=0)
        self._rounded, self._off = self._round(embeddings)

    def __len__(self) -> int:
        """How many frames; of one that has two renderings both are searched."""
        return self._count

    def _round(self, embeddings: Floats) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """In units of the quantum, uint8 (n, features), and by how much each vector is off, in logits, (n,)."""
        exact = embeddings * (self._distance / np.float32(self._quantum))
        rounded = np.clip(np.rint(exact), 0, LEVELS)
        return rounded.astype(np.uint8), np.abs(exact - rounded).sum(axis=1, dtype=np.float64) * self._quantum

    def search(self, queries: Floats, threshold: float | None, top: int) -> list[Found]:
        """For each query, float32 (n, features), the `top` best at or above the threshold, their number, and the nearest.

        Without a threshold the nearest alone, which is much quicker where much is alike: what else might match needs no look.
        """
        threshold = NO_MATCH if threshold is None else threshold
        starts = range(0, len(queries), AT_ONCE)
        with ThreadPoolExecutor(min(cpu_limit(), max(1, len(starts))), thread_name_prefix="lcmem-nearest") as pool:
            found = pool.map(lambda start: self._search_some(queries[start : start + AT_ONCE], threshold, top), starts)
            return [each for some in found for each in some]

    def _search_some(self, queries: Floats, threshold: float, top: int) -> list[Found]:
        rounded, off = self._round(queries)
        count = min(max(CANDIDATES, 2 * top), len(self._embeddings))
        distances, places = cv2.batchDistance(rounded, self._rounded, cv2.CV_32S, normType=cv2.NORM_L1, K=count)
        worst = float(self._off.max())
        found = []
        for row, query in enumerate(queries):
            candidates = places[row]
            logits = self._head.logits(query, self._embeddings[candidates])
            # Of all that is no candidate, the logit is at most this: it is no nearer than the farthest candidate.
            reach = self._head.reach(query, self._low, self._high)
            beyond = self._head.bias + reach - float(distances[row, -1]) * self._quantum + off[row] + worst + ROUNDING
            if count < len(self._embeddings) and beyond >= min(float(logits.max()), math.log(threshold / (1 - threshold))):
                candidates = np.arange(len(self._embeddings))
                logits = self._logits(query)
            found.append(self._found(query, candidates, logits, threshold, top))
        return found

    def closest(self, queries: Floats, top: int) -> list[tuple[Match, ...]]:
        """For each query, float32 (n, features), up to `top` images that score high, best first.

        They are the best of the `CANDIDATES` that are nearest by their rounded embeddings. So, unlike `search`, this may miss one.
        """
        starts = range(0, len(queries), AT_ONCE)
        with ThreadPoolExecutor(min(cpu_limit(), max(1, len(starts))), thread_name_prefix="lcmem-nearest") as pool:
            found = pool.map(lambda start: self._closest_of(queries[start : start + AT_ONCE], top), starts)
            return [each for some in found for each in some]

    def _closest_of(self, queries: Floats, top: int) -> list[tuple[Match, ...]]:
        count = min(max(CANDIDATES, 2 * top), len(self._embeddings))
        _, places = cv2.batchDistance(self._round(queries)[0], self._rounded, cv2.CV_32S, normType=cv2.NORM_L1, K=count)
        closest = []
        for query, near in zip(queries, places, strict=True):
            scores = 1.0 / (1.0 + np.exp(-self._head.logits(query, self._embeddings[near])))
            best: dict[str, Match] = {}
            for rank in np.argsort(-scores, kind="stable"):
                best.setdefault(self._keys[near[rank]], self._match(near[rank], scores[rank]))
            closest.append(tuple(best.values())[:top])
        return closest

    def _logits(self, query: Floats) -> NDArray[np.float64]:
        """Of everything."""
        every = self._embeddings
        return np.concatenate([self._head.logits(query, every[start : start + CHUNK]) for start in range(0, len(every), CHUNK)])

    def _found(self, query: Floats, places: NDArray[np.int64], logits: NDArray[np.float64], threshold: float, top: int) -> Found:
        scores = 1.0 / (1.0 + np.exp(-logits))
        order = np.lexsort((places, -scores))
        best: dict[str, Match] = {}  # an image once, by its best frame
        for rank in order:
            if best and scores[rank] < threshold:
                break
            best.setdefault(self._keys[places[rank]], self._match(places[rank], scores[rank]))
        ranked = list(best.values())
        total = len(ranked) if ranked[0].score >= threshold else 0
        return Found(tuple(ranked[:top]) if total else (), total, ranked[0])

    def _match(self, place: int, score: float) -> Match:
        return Match(self._keys[place], self._frames[place], float(score))


class InIndex:
    """An index, searched as `scan` does it."""

    def __init__(self, gallery: Gallery, how: str) -> None:
        self._gallery, self._how = gallery, how
        self._exact = True

    @property
    def exact(self) -> bool:
        """Whether all searches until now were exact; "auto" decides query by query."""
        return self._exact

    def __len__(self) -> int:
        return len(self._gallery)

    def search(self, queries: Floats, threshold: float | None, top: int) -> list[Found]:
        """As `InMemory.search`; the nearest is exact where the search is."""
        results = self._gallery.search(queries, NO_MATCH if threshold is None else threshold, top=top, how=self._how)
        found = []
        for result in results:
            self._exact &= result.complete
            if result.nearest is None:
                raise UsageError("there is nothing to search in")
            matches = tuple(Match(hit.key, hit.frame, hit.score) for hit in result.matches)
            found.append(Found(matches, result.total, Match(result.nearest.key, result.nearest.frame, result.nearest.score)))
        return found

    def closest(self, queries: Floats, top: int) -> list[tuple[Match, ...]]:
        """As `InMemory.closest`: those that match by the bundle's threshold, or else the nearest."""
        found = self.search(queries, self._gallery.bundle.threshold.value, top)
        return [each.matches or (each.nearest,) for each in found]
