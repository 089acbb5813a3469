"""Scores to figures. The metrics are scikit-learn's; what stands here is the choice of thresholds and the intervals.

A score at or above a threshold is a match, everywhere. Higher is more alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lcmem_onnx.runtime.calibration.intervals import CONFIDENCE, Interval
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

__all__ = [
    "AtRecall",
    "BestF1",
    "Limit",
    "PairOwners",
    "Separation",
    "auc",
    "best_f1",
    "best_f1_limit",
    "given_limit",
    "limit_for",
    "mean_interval",
    "mean_intervals",
    "pairs_needed",
    "placements",
    "separation",
    "share_at",
]

Doubles = NDArray[np.float64]
RESAMPLES = 1000
MOST_REACHED = 5000
"""Pairs at or above a threshold that the interval of their share is drawn from: more of them move it by 1 % of itself."""
GIVEN = "bundle"
"""`Limit.source` of a threshold that was not fitted."""


@dataclass(frozen=True)
class AtRecall:
    """Precision and false-positive rate at the highest threshold that reaches a wanted recall, each with its interval."""

    recall: float
    threshold: float
    precision: float
    false_positive_rate: float
    precision_interval: Interval
    false_positive_interval: Interval


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
        precision, recall, threshold: where F1 is best, and `f1` itself; intervals choose that threshold anew in each resample.
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
    f1_interval: Interval
    precision_interval: Interval
    recall_interval: Interval


@dataclass(frozen=True, eq=False)
class PairOwners:
    """Whose images pairs of different images show, for a bootstrap that draws identities.

    Attributes:
        first, second: identity of each side, int32 (pairs,), from 0 over all data sets.
        images: for each data set the number of images of each of its identities, (identities,); in the order of numbering.
        pairs: for each data set how many of the pairs are its own.
    """

    first: NDArray[np.int32]
    second: NDArray[np.int32]
    images: tuple[NDArray[np.int64], ...]
    pairs: tuple[int, ...]

    @staticmethod
    def of(identities: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]) -> PairOwners:
        """Make the owners of one data set's pairs; `identities` are of its images, from 0."""
        return PairOwners(first.astype(np.int32), second.astype(np.int32), (np.bincount(identities),), (len(first),))

    @staticmethod
    def together(parts: Sequence[PairOwners]) -> PairOwners:
        """Join several data sets: identities of one are not those of another."""
        offsets = np.cumsum([0, *(sum(map(len, part.images)) for part in parts)])
        return PairOwners(
            np.concatenate([part.first + np.int32(offset) for part, offset in zip(parts, offsets, strict=False)]),
            np.concatenate([part.second + np.int32(offset) for part, offset in zip(parts, offsets, strict=False)]),
            tuple(counts for part in parts for counts in part.images),
            tuple(count for part in parts for count in part.pairs),
        )

    def ordered(self, order: NDArray[np.int64]) -> PairOwners:
        """Return the same pairs in another order."""
        return PairOwners(self.first[order], self.second[order], self.images, self.pairs)

    def share_interval(self, reached: int, seed: int = 42) -> Interval | None:
        """Bootstrap interval of the share of the last `reached` pairs among all of them.

        Identities are drawn; a pair counts as often as its two identities were drawn together. How many pairs there are in all is
        then known from the images of the identities drawn (where pairs are a sample, in proportion).

        Args:
            reached: how many of the pairs, the last ones, reach the threshold.
            seed: of the bootstrap.

        Returns:
            None where no pair reaches it.
        """
        if not reached:
            return None
        rng = np.random.default_rng(seed)
        taken = np.arange(len(self.first) - reached, len(self.first))
        if reached > MOST_REACHED:
            taken = rng.choice(taken, MOST_REACHED, replace=False)
        first, second = self.first[taken], self.second[taken]
        counts = np.concatenate(self.images).astype(np.float64)
        begins = np.cumsum([0, *map(len, self.images[:-1])])
        # A data set without pairs has a part of length 0, or one identity: it takes no part.
        parts = [
            (slice(begin, begin + len(own)), pairs)
            for begin, own, pairs in zip(begins.tolist(), self.images, self.pairs, strict=True)
            if pairs
        ]
        scales = [pairs / _pair_count(counts[part]) for part, pairs in parts]
        shares = []
        for _ in range(RESAMPLES):
            weight = np.bincount(rng.integers(0, len(counts), len(counts)), minlength=len(counts)).astype(np.float64)
            weighted = weight * counts
            every = sum(scale * _pair_count(weighted[part]) for (part, _), scale in zip(parts, scales, strict=True))
            if every:
                shares.append(float(weight[first] @ weight[second]) * (reached / len(taken)) / every)
        return interval(np.asarray(shares))


def _pair_count(images: Doubles) -> float:
    """How many pairs of images of different identities there are."""
    return float((images.sum() ** 2 - (images**2).sum()) / 2)


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
        false_positive_interval: of that rate, over identities; None where no negative reaches the threshold, of which resampling
            tells nothing.
    """

    wanted: float | None
    threshold: float | None
    source: str
    fitted_on: int
    false_positive_rate: float | None
    negatives: int
    problem: str | None = None
    false_positive_interval: Interval | None = None

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
    """Where F1 is best, if pairs of the same and of different images were equally many: each side's weights sum to the same.

    The protocols have as many of one as of the other for re-identification. Of copy detection all pairs of different images
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
        same, different: scores; the n-th of both come from the same first image.
        clusters: (pairs,), which identity that image shows, 0 and up. The bootstrap draws identities, not pairs: the pairs of
            one are no independent witnesses, and drawing them would give an interval that is too narrow.
        recalls: at which to give precision and false-positive rate.
        seed: of the bootstrap.
    """
    truth, scores = _together(same, different)
    best = best_f1(same, different)
    false, true, edges = roc_curve(truth, scores, drop_intermediate=False)
    spread = _resampled(same, different, clusters, recalls, seed)
    at_recall = []
    for number, wanted in enumerate(recalls):
        at = int(np.argmax(true >= wanted - 1e-12))
        found, wrong = true[at] * len(same), false[at] * len(different)
        precision = float(found / (found + wrong))
        at_recall.append(
            AtRecall(wanted, float(edges[at]), precision, float(false[at]), spread[4 + 2 * number], spread[5 + 2 * number])
        )
    return Separation(
        same=len(same),
        different=len(different),
        auc=auc(same, different),
        auc_interval=spread[0],
        f1=best.f1,
        precision=best.precision,
        recall=best.recall,
        threshold=best.threshold,
        at_recall=tuple(at_recall),
        f1_interval=spread[1],
        precision_interval=spread[2],
        recall_interval=spread[3],
    )


def _resampled(
    same: Doubles, different: Doubles, clusters: NDArray[np.int64], recalls: Sequence[float], seed: int
) -> list[Interval]:
    """Intervals of AUC, best F1, its precision and recall, then precision and false-positive rate at each wanted recall.

    A pair's weight is how often its identity was drawn; one sort serves all resamples. Same and different pairs have the same
    total weight, since the n-th of both have the same identity.
    """
    levels, rank = np.unique(-np.concatenate([same, different]), return_inverse=True)
    rank_same, rank_different = rank[: len(same)], rank[len(same) :]
    rng = np.random.default_rng(seed)
    many = int(clusters.max()) + 1
    rows = []
    for _ in range(RESAMPLES):
        weight = np.bincount(rng.integers(0, many, many), minlength=many)[clusters].astype(np.float64)
        total = weight.sum()
        if not total:
            continue
        # Shares at or above each level, the highest level first.
        wrong = np.bincount(rank_different, weight, len(levels))
        true = np.cumsum(np.bincount(rank_same, weight, len(levels))) / total
        false = np.cumsum(wrong) / total
        beaten = 1.0 - false + wrong / (2 * total)
        precision = true / np.maximum(true + false, 1e-300)
        best = int(np.argmax(true / (true + false + 1.0)))
        row = [
            float(weight @ beaten[rank_same]) / total,
            2 * true[best] / (true[best] + false[best] + 1.0),
            precision[best],
            true[best],
        ]
        for wanted in recalls:
            at = int(np.searchsorted(true, wanted - 1e-12))
            row += [precision[at], false[at]]
        rows.append(row)
    return [interval(column) for column in np.asarray(rows).T]


def interval(values: Doubles) -> Interval:
    """Return the percentile interval of a bootstrap: the middle `CONFIDENCE` of resampled values."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def mean_interval(values: Doubles, clusters: NDArray[np.int64] | None = None, seed: int = 42) -> Interval:
    """Bootstrap interval of a mean over images.

    Args:
        values: (images,), one an image.
        clusters: (images,), which identity each shows, 0 and up: identities are drawn, with all their images. Without it
            images are drawn.
        seed: of the bootstrap.
    """
    return mean_intervals(values[:, None], clusters, seed)[0]


def mean_intervals(values: NDArray[np.generic], clusters: NDArray[np.int64] | None = None, seed: int = 42) -> list[Interval]:
    """Bootstrap intervals of several means over the same images, from the same draws.

    Args:
        values: (images, means), one an image and mean.
        clusters, seed: as for `mean_interval`.
    """
    which = np.arange(len(values)) if clusters is None else clusters
    many = int(which.max()) + 1
    sums = np.zeros((many, values.shape[1]))
    np.add.at(sums, which, values.astype(np.float64))
    counts = np.bincount(which, minlength=many).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, values.shape[1]))
    for row in means:
        weight = np.bincount(rng.integers(0, many, many), minlength=many).astype(np.float64)
        row[:] = (weight @ sums) / (weight @ counts)
    return [interval(column) for column in means.T]


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
        problem = f"a false-positive rate of {rate:g} needs {needed} pairs of different images; {source} has {len(fitted)}"
        return Limit(rate, None, source, len(fitted), None, len(test), problem)
    # So many negatives may reach the threshold; it lies just above the next one, which may be tied with some of them.
    allowed = math.floor(len(fitted) * rate + 1e-9)
    threshold = float(np.nextafter(fitted[len(fitted) - 1 - allowed], np.inf))
    return Limit(rate, threshold, source, len(fitted), share_at(test, threshold), len(test))


def best_f1_limit(test: Doubles, val_copies: Doubles, val: Doubles) -> Limit:
    """The threshold of the best F1 on VAL's copies (any shape) and pairs of different images, as the paper fits it."""
    threshold = best_f1(val_copies.reshape(-1), val).threshold
    return Limit(None, threshold, "VAL", len(val), share_at(test, threshold), len(test))


def pairs_needed(rate: float) -> int:
    """Pairs of different images without which a false-positive rate cannot be told from 0: one must be allowed to err."""
    return math.ceil(1.0 / rate - 1e-9)


def given_limit(threshold: float, test: Doubles) -> Limit:
    """A threshold that a bundle brings, with the false-positive rate that it has here."""
    return Limit(None, threshold, GIVEN, 0, share_at(test, threshold) if len(test) else None, len(test))
