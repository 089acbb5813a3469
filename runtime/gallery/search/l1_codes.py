"""Embeddings in a byte a feature, and how far a pair can be by its bytes: what lets an exact search pass over most of a gallery.

The head's distance d1 = sum a |x - y| (see `head`) is an L1 distance of the weighted embeddings a·e. Written in bytes, with one
step s for all features, the L1 distance of the bytes times s differs from d1 by at most what rounding took from either side,
and that is known for each vector: its slack. So s·L1(bytes) - slack(x) - slack(y) never exceeds d1, and a pair for which even
that lies beyond the radius R(t) cannot score t.

The squared L2 distance of `head` bounds d1 as well, and one matrix product gives it for all pairs. But it is a weak bound where
differences are small: over embeddings of the bundled model it leaves 47 % of a gallery within R(t), the bytes leave .05 %, and
OpenCV sums absolute differences of bytes faster than a matrix product of floats runs.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ...model.head import Floats, Head

__all__ = ["BLOCK", "Coder", "Codes", "distances", "near", "near_enough"]

Codes = NDArray[np.uint8]
BLOCK = 4096
"""Vectors compared at once: 2 MB of codes at 512 features, which stays in the cache while 32 queries pass over them."""
KEPT = 8
"""Nearest of a block that are kept of the first pass; a block that may hold more is asked again."""


class Coder:
    """The head's distance in bytes. Features whose weight is positive do not take part: they can only make a pair more alike.

    Attributes:
        step: what one unit of a byte is worth in d1.
    """

    def __init__(self, head: Head) -> None:
        self._used = np.flatnonzero(head.weight < 0)
        self._weights: Floats = -head.weight[self._used].astype(np.float32)
        self.step = float(self._weights.max(initial=0.0)) / 255.0 or 1.0
        self._scale = self._weights / np.float32(self.step)
        self._all_used = len(self._used) == head.features

    @property
    def width(self) -> int:
        """Bytes of a code."""
        return len(self._used)

    def encode(self, embeddings: Floats) -> tuple[Codes, Floats]:
        """Codes, uint8 (n, width), and slacks, float32 (n,), of embeddings (n, features).

        Values outside [0, 1] only widen the slack.
        """
        scaled = (embeddings if self._all_used else embeddings[:, self._used]) * self._scale
        codes = np.rint(scaled)
        np.maximum(codes, 0, out=codes)
        np.minimum(codes, 255, out=codes)
        rounded = np.abs(scaled - codes).sum(axis=1, dtype=np.float64)
        # A millionth for the rounding of this very arithmetic, in float32, of values up to 255.
        slack = rounded + 1e-6 * np.abs(scaled, out=scaled).sum(axis=1, dtype=np.float64)
        return codes.astype(np.uint8), (slack * (self.step * (1 + 1e-6))).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Pass:
    """The nearest of each block for each query: distances and places, int32 (queries, blocks, KEPT), padded with -1."""

    distances: NDArray[np.int32]
    places: NDArray[np.int32]


def near(
    blocks: list[tuple[int, Codes]],
    slacks: list[float],
    queries: Codes,
    query_slacks: Floats,
    step: float,
    radii: NDArray[np.float64],
    reach: NDArray[np.float64],
    threads: int,
) -> list[NDArray[np.int64]]:
    """For each query, the places of all vectors that may lie within its radius, and of all that may be its nearest.

    Args:
        blocks: (place of the first vector, codes (n, width)) each.
        slacks: the largest slack of each block.
        queries, query_slacks: codes and slacks of the queries.
        step: see `Coder`.
        radii: R(t) for each query, float64 (queries,).
        reach: the most that positive weights can add for each query.
        threads: how many blocks to work on at once.

    Returns:
        int64 places, ascending, for each query.
    """
    first = _first_pass(blocks, queries, threads)
    unit = np.where(first.places < 0, np.inf, step * first.distances.astype(np.float64))
    widths = np.asarray(slacks, np.float64)[None, :, None] + query_slacks.astype(np.float64)[:, None, None]
    most = (unit + widths).min(axis=(1, 2), initial=np.inf)
    nearest = np.array([_nearest_limit(float(one), float(its)) for one, its in zip(most, reach, strict=True)])
    limit = np.maximum(radii, nearest)[:, None, None]
    inside = unit - widths <= limit
    found: list[NDArray[np.int64]] = []
    starts = np.array([start for start, _ in blocks], np.int64)
    for query in range(len(queries)):
        full = inside[query, :, -1]  # even the last that was kept may match: there may be more
        some = inside[query] & ~full[:, None]
        position, rank = np.nonzero(some)
        parts = [starts[position] + first.places[query, position, rank]]
        for block in np.flatnonzero(full):
            start, codes = blocks[block]
            sums = distances(queries[query], codes)
            parts.append(start + np.flatnonzero(step * sums - widths[query, block, 0] <= limit[query, 0, 0]))
        found.append(np.sort(np.concatenate(parts)))
    return found


def _first_pass(blocks: list[tuple[int, Codes]], queries: Codes, threads: int) -> _Pass:
    shape = (len(queries), len(blocks), KEPT)
    distances, places = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)

    def work(number: int) -> None:
        codes = blocks[number][1]
        kept = min(KEPT, len(codes))
        if not queries.shape[1]:
            places[:, number, :kept] = np.arange(kept)
            return
        # One query a call: OpenCV would share several out among threads of its own, which wait for each other at each block.
        for query in range(len(queries)):
            sums, order = cv2.batchDistance(queries[query : query + 1], codes, cv2.CV_32S, normType=cv2.NORM_L1, K=kept)
            distances[query, number, :kept], places[query, number, :kept] = sums[0], order[0]

    if threads == 1 or len(blocks) == 1:
        for number in range(len(blocks)):
            work(number)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(len(blocks))))
    return _Pass(distances, places)


def distances(query: Codes, codes: Codes) -> NDArray[np.int32]:
    """L1 distances of one code (width,) to many, (n, width): int32 (n,).

    OpenCV is asked for the one nearest of each of the many, among one: so it gives them all, in their order.
    """
    if not len(codes) or not len(query):
        return np.zeros(len(codes), np.int32)
    return np.asarray(cv2.batchDistance(codes, query[None], cv2.CV_32S, normType=cv2.NORM_L1, K=1)[0][:, 0], np.int32)


def near_enough(
    sums: NDArray[np.int32], widths: Floats, step: float, wanted: NDArray[np.bool_] | None, radius: float, reach: float
) -> NDArray[np.bool_]:
    """As `near`, for one query and a few vectors: which may lie within the radius or be the nearest of the wanted ones.

    Args:
        sums: the L1 distances of the codes, (n,).
        widths: the slacks of query and vector together, (n,).
        step, radius, reach: see `near`.
        wanted: which of them are searched among, (n,); None for all.

    Returns:
        bool (n,).
    """
    unit = step * sums  # float64
    most = unit + widths
    nearest = (most if wanted is None else most[wanted]).min(initial=math.inf)
    marked: NDArray[np.bool_] = unit - widths <= max(radius, _nearest_limit(float(nearest), reach))
    return marked


def _nearest_limit(most: float, reach: float) -> float:
    """The distance beyond which nothing can be the nearest, if something is no farther than `most`: that scores at least as if
    it had no help of positive weights, and another can beat it with all of theirs, `reach`."""
    limit = most + reach
    return limit + 1e-3 * max(1.0, abs(limit))  # for rounding in the head's float32, as in `Head.radius`
