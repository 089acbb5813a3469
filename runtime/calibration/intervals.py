"""Intervals for a share and for a threshold, from the binomial distribution and no assumption on scores.

Both are exact in the sense of Clopper and Pearson (Biometrika 26, 1934): they hold the truth at least as often as they say. The
runtime has no scipy, so the incomplete beta function stands here; tests compare it with scipy's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["CONFIDENCE", "Interval", "clopper_pearson", "incomplete_beta", "order_interval", "supported_rate"]

CONFIDENCE = 0.95
MOST_TERMS = 10_000
HALVINGS = 60
"""Of [0, 1]; what is left is below the distance of two doubles near 1."""


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included, with a confidence of `CONFIDENCE`.

    The function that makes it says how: exact (`clopper_pearson`), or by resampling (the bootstraps of an evaluation).
    """

    low: float
    high: float


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for a and b above 0 and x in [0, 1].

    P(K >= k) = I_p(k, n - k + 1) for a binomial K of n tries with chance p. By the continued fraction of DLMF 8.17.22, evaluated
    forwards (Lentz's way), on the side of the mean where it converges fast.
    """
    if x <= 0.0 or x >= 1.0:
        return float(x > 0.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    upper, lower, fraction = 1.0, 0.0, 1.0
    for step in range(MOST_TERMS):
        m = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        lower = 1.0 + term * lower
        lower = 1.0 / (lower if abs(lower) > tiny else tiny)
        upper = 1.0 + term / upper
        upper = upper if abs(upper) > tiny else tiny
        fraction *= upper * lower
        if step and abs(upper * lower - 1.0) < 1e-15:
            break
    # The first term, 1, doubles the fraction: Lentz starts from 1 + 1 / (1 + ...).
    return min(1.0, math.exp(front) / a * (fraction - 1.0))


def clopper_pearson(errors: float, tries: float) -> Interval:
    """The interval of a share of which `errors` out of `tries` were seen.

    Args:
        errors: from 0 to `tries`. It need not be whole: where images of one patient are no independent witnesses, both numbers
            are scaled down to as many tries as there are patients (Korn and Graubard, Survey Methodology 24, 1998).
        tries: above 0.
    """
    tail = (1.0 - CONFIDENCE) / 2
    low = 0.0 if errors <= 0 else _where(lambda p: incomplete_beta(errors, tries - errors + 1, p) >= tail)
    high = 1.0 if errors >= tries else _where(lambda p: incomplete_beta(errors + 1, tries - errors, p) >= 1.0 - tail)
    return Interval(low, high)


def order_interval(rate: float, count: int) -> tuple[int, int]:
    """Between which of `count` scores the one lies that a share `rate` of all scores reaches.

    Returns:
        (above, below): ranks from 1, the highest score first. The wanted score is at most that of rank `above`, and at least
        that of rank `below`, with `CONFIDENCE`. `above` is 0 where even the highest score may be too low, `below` is above
        `count` where even the lowest may be too high.
    """
    tail = (1.0 - CONFIDENCE) / 2

    def reached(rank: int) -> float:
        """Chance that at least `rank` of the scores reach the wanted one."""
        return 1.0 if rank <= 0 else 0.0 if rank > count else incomplete_beta(rank, count - rank + 1, rate)

    above = _last(lambda rank: 1.0 - reached(rank) <= tail, count)
    below = _last(lambda rank: reached(rank) > tail, count) + 1
    return above, below


def supported_rate(tries: float, errors: float = 0.0) -> float:
    """The smallest rate that `tries` searches can support: were it higher, seeing `errors` or fewer had a chance under 5 %.

    With no error it is close to 3 / tries, the rule of three.
    """
    return _where(lambda p: incomplete_beta(errors + 1, tries - errors, p) >= CONFIDENCE)


def _where(reached: Callable[[float], bool]) -> float:
    """The smallest number in [0, 1] for which a condition holds that holds from some number on."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The last of 0 to `most` for which a condition holds that holds up to some number, 0 included."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
