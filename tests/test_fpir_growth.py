"""How false alarms grow with the gallery: against enumeration, and against simulated strangers whose chances are known."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from lcmem_onnx.runtime.calibration.fpir_growth import Growth, rarefied
from numpy.typing import NDArray


def test_rarefaction_is_the_mean_over_all_subsets() -> None:
    size = 7
    matched = [{0}, {1, 2}, {3, 4, 5, 6}, set(), set(range(7))]
    counts = np.array([len(each) for each in matched])
    for smaller in range(size + 1):
        subsets = list(combinations(range(size), smaller))
        flagged = [sum(bool(each & set(subset)) for each in matched) / len(matched) for subset in subsets]
        assert rarefied(counts, size, smaller) == pytest.approx(np.mean(flagged), abs=1e-12)


def strangers(kind: str, count: int, mean: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Each stranger's chance to match one gallery vector."""
    if kind == "alike":
        return np.full(count, mean)
    if kind == "gamma":
        return random.gamma(0.3, mean / 0.3, count)
    return np.where(random.random(count) < 0.02, mean / 0.02, 0.0)  # a few resemble many, the rest nobody


@pytest.mark.parametrize("kind", ["alike", "gamma", "few"])
def test_larger_galleries_are_foreseen(kind: str) -> None:
    random = np.random.default_rng(2)
    size, times, mean = 2000, 5, 1e-5
    chances = strangers(kind, 40_000, mean, random)
    counts = random.binomial(size, chances)
    later = counts + random.binomial(size * (times - 1), chances)
    growth = Growth.of(counts, size)
    truth = float((later > 0).mean())
    assert growth.expected(size) == pytest.approx(growth.share)
    if kind == "few":
        # No gamma distribution: too much is expected, which is the safe side, and less than the bound.
        assert truth < growth.expected(size * times) < growth.at_most(size * times)
    else:
        assert growth.expected(size * times) == pytest.approx(truth, rel=0.1)
    assert growth.expected(size // 2) == pytest.approx(growth.half, rel=1e-6)
    assert growth.share <= truth <= growth.at_most(size * times) * 1.02
    independent = 1 - (1 - counts.sum() / (size * len(counts))) ** (size * times)
    if kind == "alike":
        assert growth.at_most(size * times) == pytest.approx(truth, rel=0.05)
    else:
        # The formula for pairs takes all strangers for equal, and foretells more than comes.
        assert independent > 1.05 * truth


@pytest.mark.parametrize(
    ("growth", "expected"),
    [(Growth(100, 0.0, 0.0), 0.0), (Growth(100, 1.0, 1.0), 1.0), (Growth(100, 0.1, 0.1), 0.1), (Growth(100, 0.1, 0.0), 1 - 0.9**4)],
)
def test_nothing_breaks_where_there_is_nothing_to_learn_from(growth: Growth, expected: float) -> None:
    assert growth.expected(400) == pytest.approx(expected)


def test_what_is_expected_grows_and_stays_below_the_bound() -> None:
    growth = Growth(1000, 0.02, 0.013)
    sizes = [100, 500, 1000, 2000, 10_000, 10**6, 10**9]
    shares = [growth.expected(size) for size in sizes]
    assert shares == sorted(shares)
    assert all(growth.share <= growth.expected(size) <= growth.at_most(size) <= 1 for size in sizes[2:])
