"""How fast this machine searches exactly: up to how many vectors `auto` does."""

from __future__ import annotations

import time
from functools import cache

import numpy as np

from ...system.cpu import cpu_limit
from .l1_codes import BLOCK, near

__all__ = ["exact_enough"]

SECONDS = 0.1
"""What one exact search may take, for missing nothing. Through the graph of as many it takes a tenth of that (image-index.md)."""
FEW_BLOCKS, BLOCKS, ROUNDS = 2, 8, 3
LEAST = 200_000
"""So many are searched exactly on any machine, and nothing is measured."""


def exact_enough(count: int, width: int) -> bool:
    """Whether one exact search of so many vectors, whose codes have `width` bytes, takes no longer than `SECONDS`."""
    return count <= LEAST or count <= _limit(width)


@cache
def _limit(width: int) -> int:
    """Vectors that are searched exactly within `SECONDS`, by a measurement of about 30 ms, made once a process when first needed.

    Its blocks stay in the processor's cache and a million vectors do not, so that it comes out up to half too high. A busy moment
    makes it lower.
    """
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (BLOCKS * BLOCK, max(1, width)), dtype=np.uint8)
    blocks = [(start, codes[start : start + BLOCK]) for start in range(0, len(codes), BLOCK)]
    far, slack = np.array([-1e9]), np.zeros(1, np.float32)
    taken = []
    for count in (FEW_BLOCKS, BLOCKS):
        some, rounds = blocks[:count], []
        for _ in range(ROUNDS):
            before = time.perf_counter()
            near(some, [0.0] * count, codes[:1], slack, 1.0, far, np.zeros(1), cpu_limit())
            rounds.append(time.perf_counter() - before)
        taken.append(min(rounds))
    # What a call takes whatever there is to search is no part of it; a busy moment must not make it nothing.
    more = max(taken[1] - taken[0], taken[1] / 4)
    return max(LEAST, int((BLOCKS - FEW_BLOCKS) * BLOCK * SECONDS / more))
