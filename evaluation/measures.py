"""Figures from scores: scikit-learn's curves, and thresholds at wanted rates of false positives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_auc_score

__all__ = ["AtRecall", "Separation", "Threshold", "best_f1", "separation", "threshold_at"]

Scores = NDArray[np.float64]
RESAMPLES = 1000
LEVEL = 0.95
RECALLS = (0.95, 0.99)


@dataclass(frozen=True)
class AtRecall:
    """Precision and false-positive rate at the highest threshold that reaches a recall."""

    recall: float
    threshold: float
    precision: float
    false_positive_rate: float


@dataclass(frozen=True)
class Separation:
    """How well scores tell positives from negatives. `auc_low` and `auc_high`: 95 % bootstrap interval, pairs resampled."""

    positives: int
    negatives: int
    auc: float
    auc_low: float
    auc_high: float
    best_f1: float
    best_f1_threshold: float
    best_f1_precision: float
    best_f1_recall: float
    at_recall: tuple[AtRecall, ...]


@dataclass(frozen=True)
class Threshold:
    """A threshold and where it comes from. `resolved`: there are negatives enough for the rate, at least one may pass."""

    value: float
    source: str
    resolved: bool


def separation(positives: Scores, negatives: Scores, seed: int = 0) -> Separation:
    """All figures of one set of pairs. Both must hold at least one score."""
    labels = np.concatenate([np.ones(len(positives), np.int8), np.zeros(len(negatives), np.int8)])
    scores = np.concatenate([positives, negatives])
    low, high = _auc_interval(positives, negatives, seed)
    value, threshold, precision, recall = best_f1(positives, negatives)
    return Separation(
        positives=len(positives),
        negatives=len(negatives),
        auc=float(roc_auc_score(labels, scores)),
        auc_low=low,
        auc_high=high,
        best_f1=value,
        best_f1_threshold=threshold,
        best_f1_precision=precision,
        best_f1_recall=recall,
        at_recall=tuple(_at_recall(positives, negatives, wanted) for wanted in RECALLS),
    )


def best_f1(positives: Scores, negatives: Scores) -> tuple[float, float, float, float]:
    """The best F1, its threshold ("at or above"), and its precision and recall."""
    labels = np.concatenate([np.ones(len(positives), np.int8), np.zeros(len(negatives), np.int8)])
    precision, recall, thresholds = precision_recall_curve(labels, np.concatenate([positives, negatives]))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    at = int(np.argmax(f1[:-1]))
    return float(f1[at]), float(thresholds[at]), float(precision[at]), float(recall[at])


def _auc_interval(positives: Scores, negatives: Scores, seed: int) -> tuple[float, float]:
    """Resample positives and negatives, each with replacement. Ranks stand for scores, so that ties count half."""
    rng = np.random.default_rng(seed)
    levels, ranks = np.unique(np.concatenate([positives, negatives]), return_inverse=True)
    ones, others = ranks[: len(positives)], ranks[len(positives) :]
    found = []
    for _ in range(RESAMPLES):
        drawn = np.bincount(rng.choice(ones, len(ones)), minlength=len(levels))
        against = np.bincount(rng.choice(others, len(others)), minlength=len(levels))
        below = np.cumsum(against) - against
        found.append(float((drawn * (below + 0.5 * against)).sum() / (len(ones) * len(others))))
    low, high = np.quantile(found, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def _at_recall(positives: Scores, negatives: Scores, wanted: float) -> AtRecall:
    needed = math.ceil(wanted * len(positives) - 1e-9)
    threshold = float(np.sort(positives)[::-1][max(needed, 1) - 1])
    hits, false = int((positives >= threshold).sum()), int((negatives >= threshold).sum())
    return AtRecall(wanted, threshold, hits / (hits + false), false / len(negatives))


def threshold_at(negatives: Scores, rate: float, source: str) -> Threshold:
    """The smallest score that at most this share of the negatives reaches."""
    allowed = math.floor(rate * len(negatives) + 1e-9)
    reached = np.sort(negatives)[::-1]
    value = np.nextafter(reached[allowed], np.inf) if allowed < len(reached) else reached[-1]
    return Threshold(float(value), source, allowed >= 1)
