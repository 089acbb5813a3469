"""How the share of flagged strangers grows with the gallery.

A search for a stranger (one with no mate in the gallery) is a false positive when any of N gallery vectors scores at or above
the threshold. If every stranger met every gallery vector with one and the same chance, that share would be 1 - (1 - FMR)^N.
They do not: a few strangers resemble many gallery images, the rest none, and then the formula foretells too much.

What is known is how many gallery vectors c each stranger matched. From that the share at every smaller size n follows exactly, as
the mean over all subsets of the gallery: 1 - C(N - c, n) / C(N, n), the rarefaction of ecologists (Hurlbert, Ecology 52, 1971).

For a larger size two figures are given. Both take it that the images to come resemble those that are there.

* `expected`: strangers differ in their chance by a gamma distribution, so that the share is 1 - (1 + n m / k)^-k; m and k are
  such that the shares at N and at N / 2 come out as they are.
* `at_most`: 1 - (1 - share)^(n / N). Whatever the strangers' chances are, the mean of p^(n/N) is no smaller than the power
  of the mean (Jensen), so no distribution of chances gives more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Growth", "rarefied"]

INDEPENDENT = 1e9
"""k from which the gamma distribution is a point."""


def rarefied(counts: NDArray[np.int64], size: int, smaller: int) -> float:
    """The share of strangers that `smaller` vectors, drawn from a gallery of `size`, would flag, on average over all draws.

    Args:
        counts: how many of the gallery's vectors each stranger matched, (strangers,).
        size: the gallery's, in vectors.
        smaller: from 0 to `size`.
    """
    values, often = np.unique(counts, return_counts=True)
    clear = sum(int(n) * math.exp(_log_unmet(int(c), size, smaller)) for c, n in zip(values, often, strict=True))
    return max(0.0, 1.0 - clear / len(counts))


def _log_unmet(count: int, size: int, smaller: int) -> float:
    """log of C(size - count, smaller) / C(size, smaller): the chance to draw none of `count`."""
    if count > size - smaller:
        return -math.inf
    logs = math.lgamma(size - count + 1) - math.lgamma(size - count - smaller + 1)
    return logs - math.lgamma(size + 1) + math.lgamma(size - smaller + 1)


@dataclass(frozen=True)
class Growth:
    """The share of flagged strangers as a function of the gallery's size.

    Attributes:
        size: of the gallery it was measured in, in distinct vectors.
        share: measured there.
        half: what half of that gallery would give.
    """

    size: int
    share: float
    half: float

    @classmethod
    def of(cls, counts: NDArray[np.int64], size: int) -> Growth:
        """From how many of the gallery's `size` vectors each stranger matched, (strangers,)."""
        return cls(size, float((counts > 0).mean()), rarefied(counts, size, size // 2))

    def expected(self, size: float) -> float:
        """The share at another size, below or above the measured one."""
        if self.share >= 1.0 or self.share <= 0.0:
            return self.share
        whole, half = -math.log1p(-self.share), -math.log1p(-min(self.half, self.share))
        ratio = whole / half if half else 2.0
        if ratio <= 1.0 + 1e-9:
            return self.share
        x = _solve(ratio)
        if not x:
            return self.at_most(size)
        shape = whole / math.log1p(x)
        return -math.expm1(-shape * math.log1p(x * size / self.size))

    def at_most(self, size: float, share: float | None = None) -> float:
        """What the share at a larger size cannot exceed if it is `share` (the measured one) at this."""
        share = self.share if share is None else share
        if share >= 1.0:
            return 1.0
        return max(share, -math.expm1(math.log1p(-share) * size / self.size)) if size >= self.size else share


def _solve(ratio: float) -> float:
    """x with log(1 + x) / log(1 + x / 2) = ratio, which falls from 2 to 1 as x grows; 0 where strangers hardly differ."""
    low, high = math.log(1.0 / INDEPENDENT), math.log(1e30)

    def at(log_x: float) -> float:
        x = math.exp(log_x)
        return math.log1p(x) / math.log1p(x / 2)

    if ratio >= at(low):
        return 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) > ratio else (low, middle)
    return math.exp(low)
