"""Measures: hand-computed numbers, scikit-learn's where it has the same, and laws of thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lcmem_onnx.evaluation.measures import (
    PairOwners,
    auc,
    best_f1,
    best_f1_limit,
    given_limit,
    limit_for,
    mean_interval,
    mean_intervals,
    pairs_needed,
    placements,
    separation,
    share_at,
)
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

SCORES = st.lists(st.integers(0, 8), min_size=1, max_size=60).map(lambda values: np.asarray(values, np.float64) / 8)


def test_separation_by_hand() -> None:
    """Sorted: .9 s, .8 s, .7 d, .6 s, .5 d, .4 s, .3 d, .2 d. Of 16 (same, different) pairs 13 are in order."""
    same, different = np.array([0.9, 0.8, 0.6, 0.4]), np.array([0.7, 0.5, 0.3, 0.2])
    figures = separation(same, different, np.arange(4), recalls=(0.5, 0.75, 1.0))
    assert (figures.same, figures.different) == (4, 4)
    assert figures.auc == pytest.approx(13 / 16)
    # F1 by threshold: .9 .400, .8 .667, .7 .571, .6 .750, .5 .667, .4 .800, .3 .727, .2 .667
    assert (figures.f1, figures.threshold) == (pytest.approx(0.8), 0.4)
    assert (figures.precision, figures.recall) == (pytest.approx(4 / 6), 1.0)
    half, most, all_of_them = figures.at_recall
    assert (half.threshold, half.precision, half.false_positive_rate) == (0.8, 1.0, 0.0)
    assert (most.threshold, most.precision, most.false_positive_rate) == (0.6, 0.75, 0.25)
    assert (all_of_them.threshold, all_of_them.precision, all_of_them.false_positive_rate) == (0.4, pytest.approx(4 / 6), 0.5)
    assert figures.auc_interval.low <= figures.auc <= figures.auc_interval.high


def test_ties_count_half() -> None:
    assert auc(np.array([0.5, 0.5]), np.array([0.5])) == 0.5
    assert auc(np.array([0.5, 0.9]), np.array([0.5, 0.1])) == pytest.approx(3.5 / 4)


def test_perfect_scores_have_no_width() -> None:
    figures = separation(np.full(9, 0.9), np.full(9, 0.1), np.arange(9))
    assert (figures.auc, figures.auc_interval.low, figures.auc_interval.high, figures.f1) == (1.0, 1.0, 1.0, 1.0)


def test_the_interval_is_that_of_scikit_learns_auc_on_drawn_identities() -> None:
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(20), 3)
    same, different = rng.normal(1, 1, 60).round(1), rng.normal(0, 1, 60).round(1)
    found = separation(same, different, clusters, seed=5).auc_interval
    draws, values = np.random.default_rng(5), []
    for _ in range(1000):
        chosen = np.concatenate([np.flatnonzero(clusters == identity) for identity in draws.integers(0, 20, 20)])
        scores = np.concatenate([same[chosen], different[chosen]])
        values.append(roc_auc_score(np.repeat([1, 0], len(chosen)), scores))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=1e-12)


def test_pairs_of_one_identity_are_no_independent_witnesses() -> None:
    rng = np.random.default_rng(0)
    same, different = np.repeat(rng.normal(1, 1, 12), 10), np.repeat(rng.normal(0, 1, 12), 10)
    by_identity = separation(same, different, np.repeat(np.arange(12), 10)).auc_interval
    by_pair = separation(same, different, np.arange(120)).auc_interval
    assert by_identity.high - by_identity.low > 1.5 * (by_pair.high - by_pair.low)


@given(SCORES, SCORES)
def test_mean_placement_is_the_auc(same: np.ndarray, different: np.ndarray) -> None:
    assert placements(same, np.sort(different)).mean() == pytest.approx(auc(same, different))


@given(SCORES, st.sampled_from([0.5, 0.25, 0.1, 0.03]))
def test_a_fitted_threshold_keeps_the_rate_and_is_the_lowest_that_does(negatives: np.ndarray, rate: float) -> None:
    limit = limit_for(rate, np.sort(negatives))
    if len(negatives) < pairs_needed(rate):
        assert limit.threshold is None
        assert limit.false_positive_rate is None
        assert f"{pairs_needed(rate)} pairs" in str(limit.problem)
        assert str(len(negatives)) in str(limit.problem)
        return
    assert limit.threshold is not None
    assert share_at(negatives, limit.threshold) == limit.false_positive_rate
    assert (negatives >= limit.threshold).sum() <= len(negatives) * rate + 1e-9
    # The next lower score would let too many through.
    below = float(np.nextafter(limit.threshold, -np.inf))
    assert (negatives >= below).sum() > np.floor(len(negatives) * rate + 1e-9)


def test_a_threshold_from_val_is_measured_on_test() -> None:
    test, val = np.linspace(0, 1, 11), np.linspace(0, 0.5, 20)
    limit = limit_for(0.1, test, val)
    assert limit.threshold is not None
    assert (limit.source, limit.fitted_on, limit.negatives) == ("VAL", 20, 11)
    # Two of VAL's twenty may reach it, so it lies just above the third largest, 0.447.
    assert limit.threshold == pytest.approx(0.5 * 17 / 19)
    assert limit.false_positive_rate == pytest.approx(6 / 11)
    assert limit_for(0.1, test).source == "TEST"
    assert limit_for(0.1, test, val[:5]).problem == "a false-positive rate of 0.1 needs 10 pairs of different images; VAL has 5"


def test_a_given_threshold_is_only_measured() -> None:
    limit = given_limit(0.5, np.array([0.1, 0.5, 0.7, 0.2]))
    assert (limit.threshold, limit.false_positive_rate, limit.source, limit.wanted) == (0.5, 0.5, "bundle", None)


def test_the_best_f1_does_not_depend_on_how_many_negatives_there_are() -> None:
    same, different = np.array([0.9, 0.8, 0.6, 0.3]), np.array([0.7, 0.4, 0.2, 0.1, 0.05])

    def f1(threshold: float) -> float:
        found, wrong = (same >= threshold).mean(), (different >= threshold).mean()
        return float(2 * found / (found + wrong + 1))

    best = max((*same, *different), key=f1)
    for many in (1, 40):
        found = best_f1(same, np.repeat(different, many))
        assert (found.threshold, found.f1, found.recall) == (best, pytest.approx(f1(best)), pytest.approx((same >= best).mean()))


def test_a_threshold_of_the_best_f1_is_fitted_on_val_and_measured_on_test() -> None:
    limit = best_f1_limit(np.array([0.1, 0.2, 0.6, 0.9]), np.array([[0.5, 0.9], [0.8, 0.9]]), np.array([0.1, 0.2, 0.3]))
    assert (limit.threshold, limit.false_positive_rate, limit.source, limit.fitted_on, limit.given) == (0.5, 0.5, "VAL", 3, False)
    assert limit.name == "the best F1 on VAL"


@pytest.mark.parametrize(("rate", "needed"), [(0.1, 10), (0.001, 1000), (0.00001, 100_000), (0.3, 4)])
def test_a_rate_needs_so_many_pairs_that_one_may_err(rate: float, needed: int) -> None:
    assert pairs_needed(rate) == needed


def test_the_interval_of_a_mean() -> None:
    values = np.repeat([0.0, 1.0], 200)
    found = mean_interval(values)
    assert (found.low, found.high) == (pytest.approx(0.45, abs=0.015), pytest.approx(0.55, abs=0.015))
    assert mean_interval(values) == found


def test_the_interval_of_a_mean_draws_identities() -> None:
    values = np.repeat([0.0, 1.0], 200)
    by_identity = mean_interval(values, np.arange(400) // 20)
    assert by_identity.high - by_identity.low > 3 * (mean_interval(values).high - mean_interval(values).low)
    # An identity of a single image each is an image; one alone has no width.
    assert mean_interval(values, np.arange(400)) == mean_interval(values)
    assert mean_interval(values, np.zeros(400, np.int64)).low == 0.5


def test_a_wanted_rate_is_called_one() -> None:
    test = np.linspace(0, 1, 101)
    assert limit_for(0.05, test).title == "a wanted 5 % false positives (fitted on TEST)"
    assert limit_for(0.05, test, test).title.endswith("(fitted on VAL)")
    assert given_limit(0.5, test).title == "the bundle's threshold"


def test_intervals_of_several_means_are_those_of_each() -> None:
    rng = np.random.default_rng(2)
    values, clusters = rng.random((60, 4)) < [0.1, 0.5, 0.9, 1.0], np.arange(60) // 3
    for column, found in enumerate(mean_intervals(values, clusters, 9)):
        own = mean_interval(values[:, column].astype(np.float64), clusters, 9)
        assert (found.low, found.high) == pytest.approx((own.low, own.high))


def test_intervals_of_f1_and_of_rates_at_a_recall_are_scikit_learns_on_drawn_identities() -> None:
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(15), 2)
    same, different = rng.normal(1, 1, 30).round(1), rng.normal(0, 1, 30).round(1)
    found = separation(same, different, clusters, recalls=(0.8,), seed=5)
    draws, rows = np.random.default_rng(5), []
    for _ in range(1000):
        chosen = np.concatenate([np.flatnonzero(clusters == identity) for identity in draws.integers(0, 15, 15)])
        truth, scores = np.r_[np.ones(len(chosen)), np.zeros(len(chosen))], np.r_[same[chosen], different[chosen]]
        precisions, recalls, _ = precision_recall_curve(truth, scores)
        f1 = (2 * precisions * recalls / np.maximum(precisions + recalls, 1e-300)).max()
        false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
        at = int(np.argmax(true >= 0.8 - 1e-12))
        rows.append((f1, true[at] / (true[at] + false[at]), false[at]))
    expected = np.quantile(np.asarray(rows), [0.025, 0.975], axis=0)
    (reached,) = found.at_recall
    for column, interval in enumerate((found.f1_interval, reached.precision_interval, reached.false_positive_interval)):
        assert (interval.low, interval.high) == pytest.approx(tuple(expected[:, column]))
    assert found.precision_interval.low <= found.precision <= found.precision_interval.high
    assert found.recall_interval.low <= found.recall <= found.recall_interval.high


def test_the_interval_of_a_false_positive_rate_draws_both_identities_of_a_pair() -> None:
    """Against counting the pairs of every resample one by one, of two data sets whose identities are not the same."""
    rng = np.random.default_rng(4)
    parts, scores, listed = [], [], []
    for offset, identities in ((0, rng.integers(0, 9, 30)), (9, rng.integers(0, 7, 20))):
        _, identities = np.unique(identities, return_inverse=True)
        first, second = np.triu_indices(len(identities), 1)
        differ = identities[first] != identities[second]
        first, second = identities[first[differ]], identities[second[differ]]
        parts.append(PairOwners.of(identities, first, second))
        scores.append(rng.random(len(first)))
        listed += list(zip(first + offset, second + offset, strict=True))
    score = np.concatenate(scores)
    order = np.argsort(score)
    owners = PairOwners.together(parts).ordered(order)
    reached = int((score >= 0.9).sum())
    found = owners.share_interval(reached, 6)
    draws, shares = np.random.default_rng(6), []
    pairs = np.asarray(listed)
    for _ in range(1000):
        weight = np.bincount(draws.integers(0, 16, 16), minlength=16)
        weights = weight[pairs[:, 0]] * weight[pairs[:, 1]]
        shares.append(weights[score >= 0.9].sum() / weights.sum())
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(shares, [0.025, 0.975])))
    assert owners.share_interval(0) is None


def test_very_many_pairs_at_a_threshold_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    identities = np.arange(120)
    first, second = np.triu_indices(120, 1)
    owners = PairOwners.of(identities, first, second)
    whole = owners.share_interval(4000)
    monkeypatch.setattr("lcmem_onnx.evaluation.measures.MOST_REACHED", 1500)
    sampled = owners.share_interval(4000)
    assert whole is not None
    assert sampled is not None
    assert (sampled.low, sampled.high) == pytest.approx((whole.low, whole.high), rel=0.1)
