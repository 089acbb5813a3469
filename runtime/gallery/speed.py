"""How fast this machine searches exactly: up to how many vectors `auto` does."""

from __future__ import annotations

import time
from functools import cache

import numpy as np

from ..machine import cpu_limit
from .codes import BLOCK, near

__all__ = ["exact_limit"]

SECONDS = 0.05
"""What one exact search may take; embedding a picture takes about as long, so that neither waits much for the other."""
BLOCKS, ROUNDS = 8, 3
LEAST = 20_000


@cache
def exact_limit(width: int) -> int:
    """Vectors that are searched exactly within `SECONDS`, by a measurement of about 10 ms, made once a process when first needed.

    Either answer is right; the measurement only decides which comes sooner, so a busy moment does no harm.

    Args:
        width: bytes of a code (see `codes`).
    """
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (BLOCKS * BLOCK, max(1, width)), dtype=np.uint8)
    blocks = [(at, codes[at : at + BLOCK]) for at in range(0, len(codes), BLOCK)]
    far, slack = np.array([-1e9]), np.zeros(1, np.float32)
    taken = []
    for _ in range(ROUNDS):
        before = time.perf_counter()
        near(blocks, [0.0] * len(blocks), codes[:1], slack, 1.0, far, np.zeros(1), cpu_limit())
        taken.append(time.perf_counter() - before)
    return max(LEAST, int(len(codes) * SECONDS / min(taken)))
