"""Best scores and all matches of many embeddings against many: exact, and quick enough for 10,000 against 10,000.

The gallery's codes (see `gallery.codes`) say what can match and what can be nearest before the head scores it: nothing is missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..gallery import Gallery
from ..gallery.codes import BLOCK, Coder, near
from ..head import Floats, Head
from ..machine import cpu_limit

__all__ = ["Found", "InIndex", "InMemory", "Match", "Searchable"]

CHUNK = 64
"""Vectors scored at once: 128 KB at 512 features, which stays in the processor's second cache."""
AT_ONCE = 256


@dataclass(frozen=True)
class Match:
    """A reference picture and the head's score for it, in (0, 1)."""

    key: str
    frame: int
    score: float


@dataclass(frozen=True)
class Found:
    """What a query found: the best matches, how many there are, and the nearest picture, match or not."""

    matches: tuple[Match, ...]
    total: int
    nearest: Match


class Searchable(Protocol):
    """Something that can be searched; `exact` says whether it misses nothing."""

    exact: bool

    def __len__(self) -> int: ...

    def search(self, queries: Floats, threshold: float, top: int) -> list[Found]: ...


class InMemory:
    """Embeddings in memory, searched exactly.

    Args:
        head: of the bundle that they are of.
        keys: (n,), a name for each; several rows may be of one picture.
        frames: (n,), which frame of it.
        embeddings: float32 (n, features), n of 1 or more.
    """

    exact = True

    def __init__(self, head: Head, keys: Sequence[str], frames: Sequence[int], embeddings: Floats) -> None:
        if not len(embeddings):
            raise UsageError("there is nothing to search in")
        self._head, self._keys, self._frames, self._embeddings = head, keys, frames, embeddings
        self._count = len(set(zip(keys, frames, strict=True)))
        self._low, self._high = embeddings.min(axis=0), embeddings.max(axis=0)
        self._coder = Coder(head)
        codes, slack = self._coder.encode(embeddings)
        starts = range(0, len(codes), BLOCK)
        self._blocks = [(at, codes[at : at + BLOCK]) for at in starts]
        self._slacks = [float(slack[at : at + BLOCK].max()) for at in starts]

    def __len__(self) -> int:
        """How many frames; of one that has two renderings both are searched."""
        return self._count

    def search(self, queries: Floats, threshold: float, top: int) -> list[Found]:
        """For each query, float32 (n, features), the `top` best at or above the threshold, their number, and the nearest."""
        found: list[Found] = []
        for start in range(0, len(queries), AT_ONCE):
            found += self._search_some(queries[start : start + AT_ONCE], threshold, top)
        return found

    def _search_some(self, queries: Floats, threshold: float, top: int) -> list[Found]:
        codes, slacks = self._coder.encode(queries)
        radii = np.array([self._head.radius(threshold, query, self._low, self._high) for query in queries])
        reach = np.array([self._head.reach(query, self._low, self._high) for query in queries])
        candidates = near(self._blocks, self._slacks, codes, slacks, self._coder.step, radii, reach, cpu_limit())
        return [
            self._found(query, places, self._logits(query, places), threshold, top)
            for query, places in zip(queries, candidates, strict=True)
        ]

    def _logits(self, query: Floats, places: NDArray[np.int64]) -> NDArray[np.float64]:
        parts = (places[at : at + CHUNK] for at in range(0, len(places), CHUNK))
        return np.concatenate([self._head.logits(query, self._embeddings[part]) for part in parts])

    def _found(self, query: Floats, places: NDArray[np.int64], logits: NDArray[np.float64], threshold: float, top: int) -> Found:
        scores = 1.0 / (1.0 + np.exp(-logits))
        order = np.lexsort((places, -scores))
        best: dict[str, Match] = {}  # a picture once, by its best frame
        for at in order:
            if best and scores[at] < threshold:
                break
            best.setdefault(self._keys[places[at]], self._match(places[at], scores[at]))
        ranked = list(best.values())
        total = len(ranked) if ranked[0].score >= threshold else 0
        return Found(tuple(ranked[:top]) if total else (), total, ranked[0])

    def _match(self, place: int, score: float) -> Match:
        return Match(self._keys[place], self._frames[place], float(score))


class InIndex:
    """An index, searched as `scan` does it."""

    def __init__(self, gallery: Gallery, how: str) -> None:
        self._gallery, self._how = gallery, how
        self.exact = how == "exact"

    def __len__(self) -> int:
        return len(self._gallery)

    def search(self, queries: Floats, threshold: float, top: int) -> list[Found]:
        """As `InMemory.search`; the nearest is exact where the search is."""
        results = self._gallery.search(queries, threshold, top=top, how=self._how)
        found = []
        for result in results:
            if result.nearest is None:
                raise UsageError("there is nothing to search in")
            matches = tuple(Match(hit.key, hit.frame, hit.score) for hit in result.matches)
            found.append(Found(matches, result.total, Match(result.nearest.key, result.nearest.frame, result.nearest.score)))
        return found
