"""Counts to intervals, and the tests of memorization. The distributions are scipy's; what stands here is which of them, and why.

The unit is the image (a file), not the frame: frames of one file are no independent witnesses. What is assumed throughout is
that images are; several images of one patient in a set make every interval here too narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..calibration.intervals import CONFIDENCE, Interval

__all__ = [
    "Excess",
    "Nearer",
    "Nearest",
    "Shift",
    "by_rank",
    "by_rate",
    "by_trial",
    "excess_by_rank",
    "excess_by_trial",
    "nearer",
    "rate_interval",
    "shift",
]

TAIL = (1 - CONFIDENCE) / 2
PERMUTATIONS = 9_999
SEED = 7
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Excess:
    """How many images a set without copies would have at or above the threshold by chance.

    Attributes:
        expected: the mean.
        low, high: with 95 % probability or more the count lies between them, both included.
    """

    expected: float
    low: int
    high: int


@dataclass(frozen=True)
class Shift:
    """Mann-Whitney U of released against hold-out, one-sided: are released images nearer to the reference?

    Attributes:
        above: share of (released, hold-out) pairs in which the released image scores higher, ties counting half.
        interval: of that share, by DeLong's variance.
        p: of `above` or more, if both sets' scores had one distribution.
    """

    above: float
    interval: Interval
    p: float


@dataclass(frozen=True)
class Nearer:
    """Whether released images lie nearer to the reference than to the hold-out.

    Attributes:
        share: of released images whose nearest among reference and hold-out together is a reference image, ties half.
        by_chance: the reference's share of both together.
        p: of `share` or more when the labels "reference" and "hold-out" are dealt anew among the images, keeping how often
            each is somebody's nearest.
    """

    share: float
    by_chance: float
    p: float


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest image of one set to each of n released images.

    Attributes:
        scores: float64 (n,), the score with it.
        images: int64 (n,), which image of the set it is, from 0.
    """

    scores: Doubles
    images: NDArray[np.int64]


def rate_interval(count: int, total: int) -> Interval:
    """Clopper-Pearson's interval of a rate: it covers in 95 % of cases or more, whatever the rate is; (0, 1) of nothing."""
    if not total:
        return Interval(0.0, 1.0)
    low = float(stats.beta.ppf(TAIL, count, total - count + 1)) if count else 0.0
    high = float(stats.beta.ppf(1 - TAIL, count + 1, total - count)) if count < total else 1.0
    return Interval(low, high)


def by_rank(images: int, rank: int, holdout: int) -> Excess:
    """False positives when the threshold is the hold-out's score of this rank, 1 being the highest.

    Of continuous scores from one distribution, how many of `images` reach the rank-th highest of `holdout` is beta-binomial
    (rank, holdout + 1 - rank), whatever the distribution: Wilks, 1942.
    """
    law = stats.betabinom(images, rank, holdout + 1 - rank)
    return Excess(images * rank / (holdout + 1), int(law.ppf(TAIL)), int(law.ppf(1 - TAIL)))


def by_trial(images: int, exceeding: int, holdout: int) -> Excess:
    """False positives when the threshold was fixed beforehand and `exceeding` of `holdout` reach it.

    Given how many of both sets together reach it, those in one are hypergeometric, whatever the rate is. The interval holds the
    counts that this does not reject: Thatcher, 1964; it covers in 95 % of cases or more.
    """

    both = images + holdout

    def too_few(count: int) -> bool:
        return float(stats.hypergeom.cdf(count, both, images, exceeding + count)) <= TAIL

    def too_many(count: int) -> bool:
        return float(stats.hypergeom.cdf(exceeding, both, holdout, exceeding + count)) <= TAIL

    low = _first(lambda count: not too_few(count), images)
    return Excess(images * exceeding / holdout, low, _first(too_many, images + 1) - 1)


def _first(holds: Callable[[int], bool], end: int) -> int:
    """The least count below `end` for which a condition holds that holds for all larger ones too; `end` if there is none."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def by_rate(images: int, low: float, middle: float, high: float) -> Excess:
    """False positives when the rate for one image is between two values: binomial, out to the ends of both."""
    return Excess(images * middle, int(stats.binom.ppf(TAIL, images, low)), int(stats.binom.ppf(1 - TAIL, images, high)))


def excess_by_rank(found: int, images: int, rank: int, holdout: int) -> float:
    """Probability of `found` or more by chance, where `by_rank` gives the interval."""
    return float(stats.betabinom.sf(found - 1, images, rank, holdout + 1 - rank))


def excess_by_trial(found: int, images: int, exceeding: int, holdout: int) -> float:
    """Probability of `found` or more by chance, where `by_trial` gives the interval: Fisher's exact test, one-sided."""
    return float(stats.hypergeom.sf(found - 1, images + holdout, images, found + exceeding))


def shift(released: Doubles, holdout: Doubles) -> Shift:
    """Mann-Whitney U of best scores, (n,) and (m,), two or more of each."""
    n, m = len(released), len(holdout)
    test = stats.mannwhitneyu(released, holdout, alternative="greater", method="asymptotic")
    above = float(test.statistic) / (n * m)
    ranks = stats.rankdata(np.concatenate([released, holdout]))
    # Placements: of each released score the share of hold-out scores below it, and the other way round.
    beaten = (ranks[:n] - stats.rankdata(released)) / m
    beating = 1.0 - (ranks[n:] - stats.rankdata(holdout)) / n
    error = float(np.sqrt(beaten.var(ddof=1) / n + beating.var(ddof=1) / m))
    reach = float(stats.norm.ppf(1 - TAIL)) * error
    return Shift(above, Interval(max(0.0, above - reach), min(1.0, above + reach)), float(test.pvalue))


def nearer(
    to_reference: Nearest,
    to_holdout: Nearest,
    reference: int,
    holdout: int,
    seed: int = SEED,
) -> Nearer:
    """Permutation test: is the nearest image of reference and hold-out together a reference image more often than by chance?

    Args:
        to_reference, to_holdout: the nearest image of each set to each released image.
        reference, holdout: how many images each of the two has.
        seed: of the permutations.
    """
    won, tied = to_reference.scores > to_holdout.scores, to_reference.scores == to_holdout.scores
    share = float((won + 0.5 * tied).mean())
    # Images of both together that are somebody's nearest, with how often; a tie is half a time for each.
    times = np.concatenate(
        [
            np.bincount(to_reference.images, np.where(won, 2, np.where(tied, 1, 0))),
            np.bincount(to_holdout.images, np.where(won, 0, np.where(tied, 1, 2))),
        ]
    ).astype(np.int64)
    often, images = np.unique(times[times > 0], return_counts=True)
    kinds = np.append(images, reference + holdout - images.sum())
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(kinds, reference, PERMUTATIONS)
    twice = drawn[:, :-1] @ often
    as_many = int((twice >= round(2 * share * len(to_reference.scores))).sum())
    return Nearer(share, reference / (reference + holdout), (1 + as_many) / (1 + PERMUTATIONS))
