"""Intervals against scipy, and against what they promise: how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lcmem_onnx.runtime.calibration.intervals import CONFIDENCE, clopper_pearson, incomplete_beta, order_interval, supported_rate

special = pytest.importorskip("scipy.special")
stats = pytest.importorskip("scipy.stats")


@given(st.floats(-1, 5), st.floats(-1, 5), st.floats(-4, 4))
def test_the_incomplete_beta_function_is_scipys(log_a: float, log_b: float, away: float) -> None:
    a, b = 10**log_a, 10**log_b
    mean, spread = a / (a + b), (a * b) ** 0.5 / (a + b) / (a + b + 1) ** 0.5
    x = min(1.0, max(0.0, mean + away * spread))
    assert incomplete_beta(a, b, x) == pytest.approx(special.betainc(a, b, x), abs=1e-8)


@pytest.mark.parametrize(
    ("errors", "tries"), [(0, 1), (1, 1), (0, 10), (3, 100), (10, 1000), (100, 100), (30, 1_000_000), (2.5, 41.5)]
)
def test_clopper_pearson_is_the_beta_distributions(errors: float, tries: float) -> None:
    found = clopper_pearson(errors, tries)
    assert found.low == pytest.approx(stats.beta.ppf(0.025, errors, tries - errors + 1) if errors else 0.0, rel=1e-6, abs=1e-12)
    assert found.high == pytest.approx(stats.beta.ppf(0.975, errors + 1, tries - errors) if errors < tries else 1.0, rel=1e-6)


@pytest.mark.parametrize("share", [0.002, 0.02, 0.3])
def test_clopper_pearson_holds_the_truth_as_often_as_it_says(share: float) -> None:
    tries = 200
    chances = stats.binom.pmf(range(tries + 1), tries, share)
    held = sum(
        chance
        for seen, chance in enumerate(chances)
        if chance > 1e-9 and (found := clopper_pearson(seen, tries)).low <= share <= found.high
    )
    assert held >= CONFIDENCE


@pytest.mark.parametrize(("rate", "count"), [(0.01, 1000), (0.05, 200), (0.5, 20), (0.001, 100), (0.3, 3)])
def test_the_order_interval_holds_the_quantile_and_no_narrower_one_does(rate: float, count: int) -> None:
    above, below = order_interval(rate, count)
    tail = (1 - CONFIDENCE) / 2
    reached = lambda rank: stats.binom.sf(rank - 1, count, rate)  # noqa: E731
    assert above == 0 or 1 - reached(above) <= tail
    assert above == count or 1 - reached(above + 1) > tail
    assert below > count or reached(below) <= tail
    assert reached(below - 1) > tail


def test_the_order_interval_holds_a_real_quantile() -> None:
    """Normal scores, whose quantile is known."""
    random = np.random.default_rng(5)
    truth = stats.norm.isf(0.02)
    above, below = order_interval(0.02, 500)
    drawn = -np.sort(-random.normal(size=(2000, 500)), axis=1)
    held = ((drawn[:, below - 1] <= truth) & (truth <= drawn[:, above - 1])).mean()
    assert held >= CONFIDENCE - 0.01


def test_the_supported_rate_is_the_rule_of_three() -> None:
    assert supported_rate(1000) == pytest.approx(3 / 1000, rel=0.01)
    assert supported_rate(1000) == pytest.approx(1 - 0.05**0.001)
    assert supported_rate(1) == pytest.approx(0.95)
