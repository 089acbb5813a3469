"""Which threshold an audit takes, and what it says chance would give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy")
from lcmem_onnx.runtime.audit.thresholds import Basis, Limit, RateRange, by_chance, choose_limit
from lcmem_onnx.runtime.errors import UsageError
from lcmem_onnx.runtime.model.bundle import Bundle, open_bundle


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The bundled one without its strangers' tail, with a threshold between `LOW` and `HIGH`, whatever is shipped."""
    shipped = open_bundle()
    return replace(shipped, threshold=replace(shipped.threshold, value=0.5), strangers=None)


HIGH = np.linspace(0.80, 0.99, 400)
LOW = np.linspace(0.01, 0.30, 400)


def test_a_given_one_comes_first_then_the_indexs_then_the_holdouts_then_the_bundles(bundle: Bundle) -> None:
    stored = Limit(0.93, 0.0, 0.0, Basis.INDEX, "calibrated", stored_rate=RateRange(0.001, 0.01, 0.02))
    assert choose_limit(bundle, 0.01, given=0.5, stored=stored, holdout=HIGH).basis is Basis.GIVEN
    assert choose_limit(bundle, 0.01, given=None, stored=stored, holdout=HIGH).value == 0.93
    by_holdout = choose_limit(bundle, 0.01, given=None, stored=None, holdout=HIGH)
    assert by_holdout.basis is Basis.HOLDOUT
    assert by_holdout.rank == 4
    assert (by_holdout.value <= HIGH).sum() == 4
    assert by_holdout.compare <= by_holdout.near <= by_holdout.value
    assert choose_limit(bundle, 0.01, given=None, stored=None, holdout=None).value == bundle.threshold.value


def test_it_is_never_below_the_bundles(bundle: Bundle) -> None:
    chosen = choose_limit(bundle, 0.01, given=None, stored=None, holdout=LOW)
    assert (chosen.basis, chosen.value, chosen.rank) == (Basis.BUNDLE, bundle.threshold.value, None)
    chance = by_chance(bundle, chosen, images=400, found=0, gallery=100, holdout=LOW, looks=1)
    assert chance.basis is Basis.HOLDOUT
    assert chance.count is not None
    assert (chance.count.low, chance.count.expected) == (0, 0.0)
    assert 0 < chance.count.high < 10
    assert chance.p == 1.0


def test_a_holdout_that_is_too_small_is_warned_of(bundle: Bundle) -> None:
    chosen = choose_limit(bundle, 0.01, given=None, stored=None, holdout=HIGH[:20])
    assert chosen.rank == 1
    assert chosen.warning is not None
    assert "it would take 99 images, and there are 20" in chosen.warning


def test_scores_of_exactly_1_leave_a_threshold_that_decides(bundle: Bundle) -> None:
    assert 0.99 < choose_limit(bundle, 0.01, given=None, stored=None, holdout=np.ones(300)).value < 1.0


def test_without_a_holdout_the_cards_pair_rates_are_reckoned_with_and_called_an_assumption(bundle: Bundle) -> None:
    own = choose_limit(bundle, 0.01, given=None, stored=None, holdout=None)
    small, large = (by_chance(bundle, own, images=1000, found=0, gallery=size, holdout=None, looks=1) for size in (10, 10_000))
    assert small.count is not None
    assert large.count is not None
    rate = bundle.manifest["card"]["figures"]["copies, at the bundle's threshold"]["all"]["false positives"]
    assert small.rate == pytest.approx(1 - (1 - rate) ** 10)
    assert small.count.low <= small.count.expected <= small.count.high
    assert large.count.expected > 990  # the pair threshold is of no use there, and that shows
    assert "Your images may be of another kind" in small.assumption
    other = by_chance(
        bundle,
        choose_limit(bundle, 0.01, given=0.9, stored=None, holdout=None),
        images=9,
        found=0,
        gallery=9,
        holdout=None,
        looks=1,
    )
    assert (other.count, other.basis) == (None, Basis.NOTHING)
    more = by_chance(bundle, own, images=1000, found=0, gallery=10, holdout=None, looks=6)
    assert more.count is not None
    assert more.count.high > small.count.high


def test_a_calibrations_promise_is_passed_on(bundle: Bundle) -> None:
    stored = Limit(0.93, 0.0, 0.0, Basis.INDEX, "calibrated", stored_rate=RateRange(0.005, 0.01, 0.02))
    chosen = choose_limit(bundle, 0.01, given=None, stored=stored, holdout=None)
    chance = by_chance(bundle, chosen, images=1000, found=0, gallery=9, holdout=None, looks=1)
    assert chance.count is not None
    assert (chance.basis, chance.count.expected) == (Basis.INDEX, 10.0)
    assert chance.count.low < 5
    assert chance.count.high > 20


@pytest.mark.parametrize("wanted", [0.0, -1.0, 0.6, float("nan")])
def test_a_wanted_rate_that_makes_no_sense_is_said(bundle: Bundle, wanted: float) -> None:
    with pytest.raises(UsageError, match="makes no sense"):
        choose_limit(bundle, wanted, given=None, stored=None, holdout=HIGH)
