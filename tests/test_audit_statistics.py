"""The audit's statistics against exact sums and simulation, never against themselves."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest

pytest.importorskip("scipy")
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.audit.statistics import (
    Nearest,
    by_rank,
    by_rate,
    by_trial,
    excess_by_rank,
    excess_by_trial,
    nearer,
    rate_interval,
    shift,
)


def tail(count: int, total: int, rate: float) -> float:
    """P(X >= count) of a binomial, summed."""
    return sum(comb(total, k) * rate**k * (1 - rate) ** (total - k) for k in range(count, total + 1))


def drawn(taken: int, ones: int, others: int, total: int) -> Fraction:
    """P(X = taken) when `total` are drawn without replacement from `ones` and `others`."""
    if not 0 <= taken <= ones or not 0 <= total - taken <= others:
        return Fraction(0)
    return Fraction(comb(ones, taken) * comb(others, total - taken), comb(ones + others, total))


@given(st.integers(1, 60).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
@settings(max_examples=40, deadline=None)
def test_a_rates_interval_is_where_the_binomials_tails_are_a_fortieth(case: tuple[int, int]) -> None:
    count, total = case
    ends = rate_interval(count, total)
    assert ends.low <= count / total <= ends.high
    if count:
        assert tail(count, total, ends.low) == pytest.approx(0.025, rel=1e-6)
    if count < total:
        assert 1 - tail(count + 1, total, ends.high) == pytest.approx(0.025, rel=1e-6)


def test_the_interval_of_nothing_says_nothing() -> None:
    assert (rate_interval(0, 0).low, rate_interval(0, 0).high) == (0.0, 1.0)
    assert rate_interval(0, 300).high == pytest.approx(1 - 0.025 ** (1 / 300))  # the "rule of three", two-sided


def test_false_positives_of_a_fixed_threshold_are_the_counts_that_fishers_test_keeps() -> None:
    images, holdout, exceeding = 40, 30, 3
    kept = []
    for count in range(images + 1):
        total = exceeding + count
        up_to = sum(drawn(x, images, holdout, total) for x in range(count + 1))
        as_many = sum(drawn(x, images, holdout, total) for x in range(count, total + 1))
        assert excess_by_trial(count, images, exceeding, holdout) == pytest.approx(float(as_many), abs=1e-12)
        if min(up_to, as_many) > Fraction(25, 1000):
            kept.append(count)
    got = by_trial(images, exceeding, holdout)
    assert (got.low, got.high) == (kept[0], kept[-1])
    assert kept == list(range(kept[0], kept[-1] + 1))
    assert got.expected == pytest.approx(4.0)


@pytest.mark.parametrize(("exceeding", "high"), [(0, None), (30, 40)])
def test_false_positives_at_the_ends(exceeding: int, high: int | None) -> None:
    got = by_trial(40, exceeding, 30)
    assert 0 <= got.low <= got.expected <= got.high <= 40
    if exceeding == 0:
        assert got.low == 0
        assert 0 < got.high < 40
    else:
        assert got.high == high


def test_false_positives_of_a_threshold_by_rank_are_what_sorting_gives() -> None:
    """The law does not depend on the distribution, so ranks of a shuffle are the whole truth."""
    images, rank, holdout = 50, 2, 80
    rng = np.random.default_rng(0)
    scores = rng.random((20_000, images + holdout))
    limits = np.sort(scores[:, :holdout], axis=1)[:, -rank]
    counts = (scores[:, holdout:] >= limits[:, None]).sum(axis=1)
    law = by_rank(images, rank, holdout)
    assert law.expected == pytest.approx(counts.mean(), rel=0.03)
    assert ((counts >= law.low) & (counts <= law.high)).mean() >= 0.95
    for found in (1, 3, 6):
        assert excess_by_rank(found, images, rank, holdout) == pytest.approx((counts >= found).mean(), abs=0.01)


@pytest.mark.parametrize("rate", [0.002, 0.02, 0.3])
def test_false_positives_of_a_fixed_threshold_are_covered(rate: float) -> None:
    rng = np.random.default_rng(1)
    inside = 0
    laws = {}
    for exceeding, count in zip(rng.binomial(200, rate, 2000), rng.binomial(300, rate, 2000), strict=True):
        law = laws.setdefault(int(exceeding), by_trial(300, int(exceeding), 200))
        inside += law.low <= count <= law.high
    assert inside >= 1880  # 95 % of 2000, less two standard deviations


def test_false_positives_of_a_rate_reach_from_the_low_one_to_the_high_one() -> None:
    law = by_rate(1000, 0.001, 0.004, 0.01)
    assert law.expected == pytest.approx(4.0)
    assert tail(law.high + 1, 1000, 0.01) <= 0.025 < tail(law.high, 1000, 0.01)
    assert law.low == 0


def test_a_shift_is_what_counting_pairs_gives_and_its_p_value_is_uniform_without_one() -> None:
    rng = np.random.default_rng(2)
    released, holdout = rng.normal(0.4, 1, 60), rng.normal(0, 1, 50).round(1)
    released[:10] = released[:10].round(1)
    pairs = (released[:, None] > holdout).mean() + 0.5 * (released[:, None] == holdout).mean()
    found = shift(released, holdout)
    assert found.above == pytest.approx(pairs)
    assert found.interval.low < found.above < found.interval.high
    null = [shift(rng.normal(size=40), rng.normal(size=30)) for _ in range(200)]
    assert np.mean([each.p < 0.05 for each in null]) == pytest.approx(0.05, abs=0.04)
    assert np.mean([each.interval.low <= 0.5 <= each.interval.high for each in null]) >= 0.9


def test_nearer_is_blind_to_a_generator_that_is_merely_poor_and_sees_one_that_copies() -> None:
    rng = np.random.default_rng(3)

    def judge(copied: int) -> float:
        reference, holdout = rng.normal(size=(80, 6)), rng.normal(size=(60, 6))
        released = 0.5 * rng.normal(size=(70, 6))  # too narrow: nearer to everything than a hold-out image is
        released[:copied] = reference[:copied] + 0.05 * rng.normal(size=(copied, 6))
        near = []
        for others in (reference, holdout):
            distances = np.linalg.norm(released[:, None] - others, axis=2)
            near.append(Nearest(-distances.min(axis=1), distances.argmin(axis=1)))
        return nearer(near[0], near[1], 80, 60, seed=int(rng.integers(1 << 30))).p

    null = [judge(0) for _ in range(80)]
    assert np.mean([p < 0.05 for p in null]) <= 0.12
    assert np.mean([judge(45) < 0.05 for _ in range(20)]) >= 0.9


def test_nearer_counts_ties_half_and_keeps_popular_images_together() -> None:
    """All released images have one nearest image each way: the label of one image decides, so p is no smaller than that."""
    hub = np.zeros(50, np.int64)
    found = nearer(Nearest(np.full(50, 0.9), hub), Nearest(np.full(50, 0.1), hub), 30, 30)
    assert found.share == 1.0
    assert found.p == pytest.approx(0.5, abs=0.03)
    tied = nearer(Nearest(np.full(50, 0.5), hub), Nearest(np.full(50, 0.5), hub), 30, 30)
    assert tied.share == 0.5
