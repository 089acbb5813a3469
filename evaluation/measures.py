"""Scores to figures. The metrics are scikit-learn's; what stands here is the choice of thresholds and the intervals.

A score at or above a threshold is a match, everywhere. Higher is more alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

__all__ = [
    "AtRecall",
    "BestF1",
    "Interval",
    "Limit",
    "Separation",
    "auc",
    "best_f1",
    "best_f1_limit",
    "given_limit",
    "limit_for",
    "mean_interval",
    "pairs_needed",
    "placements",
    "separation",
    "share_at",
]

Doubles = NDArray[np.float64]
RESAMPLES = 1000
COVERAGE = 0.95
GIVEN = "bundle"
"""`Limit.source` of a threshold that was not fitted."""


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval of a bootstrap with 1000 resamples."""

    low: float
    high: float


@dataclass(frozen=True)
class AtRecall:
    """Precision and false-positive rate at the highest threshold that reaches a wanted recall."""

    recall: float
    threshold: float
    precision: float
    false_positive_rate: float


@dataclass(frozen=True)
class BestF1:
    """The threshold at which F1 is best, and what it gives."""

    f1: float
    precision: float
    recall: float
    threshold: float


@dataclass(frozen=True)
class Separation:
    """How well scores tell pairs of the same from pairs of different ones.

    Attributes:
        same, different: how many pairs there were of each.
        auc: area under the ROC curve, with its interval.
        precision, recall, threshold: where F1 is best, and `f1` itself.
        at_recall: precision and false-positive rate at wanted recalls.
    """

    same: int
    different: int
    auc: float
    auc_interval: Interval
    f1: float
    precision: float
    recall: float
    threshold: float
    at_recall: tuple[AtRecall, ...]


@dataclass(frozen=True)
class Limit:
    """A threshold, how it was found, and what it lets through.

    Attributes:
        wanted: the false-positive rate that it was fitted to; None for one that was given, or fitted to the best F1.
        threshold: None when there were too few negatives to fit it.
        source: "VAL", "TEST" or, of a given one, "bundle".
        fitted_on: negatives that it was fitted on; 0 for one that was given.
        false_positive_rate: measured on TEST's negatives.
        negatives: how many those are.
        problem: why there is no threshold, in words.
    """

    wanted: float | None
    threshold: float | None
    source: str
    fitted_on: int
    false_positive_rate: float | None
    negatives: int
    problem: str | None = None

    @property
    def given(self) -> bool:
        """Whether it came with the bundle, and was not fitted."""
        return self.source == GIVEN

    @property
    def name(self) -> str:
        """What it is called, and told from others by."""
        if self.wanted is not None:
            return f"{100 * self.wanted:g} % false positives"
        return "the bundle's threshold" if self.given else f"the best F1 on {self.source}"

    @property
    def title(self) -> str:
        """Its name for people: a wanted rate is called that, for the measured one is another, and who it was fitted on is said."""
        return self.name if self.wanted is None else f"a wanted {self.name} (fitted on {self.source})"


def auc(same: Doubles, different: Doubles) -> float:
    """Area under the ROC curve: how often a pair of the same scores above one of different ones; ties count half."""
    return float(roc_auc_score(*_together(same, different)))


def best_f1(same: Doubles, different: Doubles) -> BestF1:
    """Where F1 is best, if pairs of the same and of different pictures were equally many: each side's weights sum to the same.

    The protocols have as many of one as of the other for re-identification. Of copy detection all pairs of different pictures
    are scored, and how many those are would else decide the threshold.
    """
    truth, scores = _together(same, different)
    weights = np.where(truth == 1, 1.0 / len(same), 1.0 / len(different))
    precisions, reached, thresholds = precision_recall_curve(truth, scores, sample_weight=weights)
    f1 = 2 * precisions * reached / np.maximum(precisions + reached, 1e-300)
    # The last point, recall 0 at precision 1, has no threshold.
    at = int(f1[:-1].argmax())
    return BestF1(float(f1[at]), float(precisions[at]), float(reached[at]), float(thresholds[at]))


def _together(same: Doubles, different: Doubles) -> tuple[NDArray[np.int8], Doubles]:
    """Which pairs are of the same, 1 or 0, and all scores."""
    truth = np.concatenate([np.ones(len(same), np.int8), np.zeros(len(different), np.int8)])
    return truth, np.concatenate([same, different])


def separation(
    same: Doubles, different: Doubles, clusters: NDArray[np.int64], recalls: Sequence[float] = (0.95, 0.99), seed: int = 42
) -> Separation:
    """Measure a list of pairs.

    Args:
        same, different: scores; the n-th of both come from the same first picture.
        clusters: (pairs,), which identity that picture shows, 0 and up. The bootstrap draws identities, not pairs: the pairs of
            one are no independent witnesses, and drawing them would give an interval that is too narrow.
        recalls: at which to give precision and false-positive rate.
        seed: of the bootstrap.
    """
    truth, scores = _together(same, different)
    best = best_f1(same, different)
    false, true, edges = roc_curve(truth, scores, drop_intermediate=False)
    at_recall = []
    for wanted in recalls:
        at = int(np.argmax(true >= wanted - 1e-12))
        found, wrong = true[at] * len(same), false[at] * len(different)
        at_recall.append(AtRecall(wanted, float(edges[at]), float(found / (found + wrong)), float(false[at])))
    return Separation(
        same=len(same),
        different=len(different),
        auc=auc(same, different),
        auc_interval=_auc_interval(same, different, clusters, seed),
        f1=best.f1,
        precision=best.precision,
        recall=best.recall,
        threshold=best.threshold,
        at_recall=tuple(at_recall),
    )


def _auc_interval(same: Doubles, different: Doubles, clusters: NDArray[np.int64], seed: int) -> Interval:
    """Weighted AUCs, a pair's weight being how often its identity was drawn; one sort serves all resamples."""
    levels, rank = np.unique(np.concatenate([same, different]), return_inverse=True)
    rank_same, rank_different = rank[: len(same)], rank[len(same) :]
    rng = np.random.default_rng(seed)
    many = int(clusters.max()) + 1
    values = []
    for _ in range(RESAMPLES):
        weight = np.bincount(rng.integers(0, many, many), minlength=many)[clusters].astype(np.float64)
        below = np.bincount(rank_different, weight, len(levels))
        beaten = np.cumsum(below) - below / 2
        total = weight.sum()
        if total:
            values.append(float(weight @ beaten[rank_same]) / total**2)
    return interval(np.asarray(values))


def interval(values: Doubles) -> Interval:
    """The middle 95 % of resampled values."""
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(float(low), float(high))


def mean_interval(values: Doubles, clusters: NDArray[np.int64] | None = None, seed: int = 42) -> Interval:
    """Bootstrap interval of a mean over pictures.

    Args:
        values: (pictures,), one a picture.
        clusters: (pictures,), which identity each shows, 0 and up: identities are drawn, with all their pictures. Without it
            pictures are drawn.
        seed: of the bootstrap.
    """
    sums, counts = (values, np.ones(len(values))) if clusters is None else (np.bincount(clusters, values), np.bincount(clusters))
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(sums), len(sums))
        means.append(sums[drawn].sum() / counts[drawn].sum())
    return interval(np.asarray(means))


def placements(scores: Doubles, negatives: Doubles) -> Doubles:
    """Of each score, the share of negatives below it, ties counting half; same shape. Its mean is the AUC.

    Args:
        negatives: sorted.
    """
    below = np.searchsorted(negatives, scores, "left") + np.searchsorted(negatives, scores, "right")
    return np.asarray(below / (2.0 * len(negatives)), np.float64)


def share_at(scores: Doubles, threshold: float) -> float:
    """Share of the scores at or above a threshold: recall of the same, false-positive rate of different ones."""
    return float((scores >= threshold).mean())


def limit_for(rate: float, test: Doubles, val: Doubles | None = None) -> Limit:
    """The lowest threshold that at most this share of the negatives reaches.

    Args:
        rate: wanted false-positive rate in (0, 1).
        test: scores of TEST's negatives, sorted.
        val: of VAL's negatives, sorted. If given the threshold is fitted on them, else on TEST's own.
    """
    source, fitted = ("TEST", test) if val is None else ("VAL", val)
    needed = pairs_needed(rate)
    if len(fitted) < needed:
        problem = f"a false-positive rate of {rate:g} needs {needed} pairs of different pictures; {source} has {len(fitted)}"
        return Limit(rate, None, source, len(fitted), None, len(test), problem)
    # So many negatives may reach the threshold; it lies just above the next one, which may be tied with some of them.
    allowed = math.floor(len(fitted) * rate + 1e-9)
    threshold = float(np.nextafter(fitted[len(fitted) - 1 - allowed], np.inf))
    return Limit(rate, threshold, source, len(fitted), share_at(test, threshold), len(test))


def best_f1_limit(test: Doubles, val_copies: Doubles, val: Doubles) -> Limit:
    """The threshold of the best F1 on VAL's copies (any shape) and pairs of different pictures, as the paper fits it."""
    threshold = best_f1(val_copies.reshape(-1), val).threshold
    return Limit(None, threshold, "VAL", len(val), share_at(test, threshold), len(test))


def pairs_needed(rate: float) -> int:
    """Pairs of different pictures without which a false-positive rate cannot be told from 0: one must be allowed to err."""
    return math.ceil(1.0 / rate - 1e-9)


def given_limit(threshold: float, test: Doubles) -> Limit:
    """A threshold that a bundle brings, with the false-positive rate that it has here."""
    return Limit(None, threshold, GIVEN, 0, share_at(test, threshold) if len(test) else None, len(test))
