"""LCMem's head: two embeddings to a score, and the bound that lets an L2 search find every match.

The head is logit = w . |e1 - e2| + b, score = sigmoid(logit) (arXiv 2512.14421, section 3). With a_i = -w_i where w_i < 0
and d1 = sum a_i |x_i - y_i|, the logit is at most b - d1 + P, where P is the most that the positive weights can add. So
"score >= t" implies d1 <= R(t) = b + P - logit(t). Embeddings lie in [0, 1], hence |x_i - y_i|² <= |x_i - y_i|, and the
squared L2 distance between sqrt(a)·x and sqrt(a)·y is a lower bound of d1: a search by L2 over sqrt(a)·e, out to squared
distance R(t), can miss no pair that scores at or above t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

__all__ = ["Floats", "Head", "check_threshold"]

Floats = NDArray[np.float32]


def check_threshold(value: float) -> float:
    """Return `value`, a score threshold.

    Raises:
        UsageError: it is not strictly between 0 and 1 (a sigmoid reaches neither, so such a threshold decides nothing).
    """
    if not 0.0 < value < 1.0:
        raise UsageError(f"threshold must be between 0 and 1 (exclusive), got {value}")
    return value


@dataclass(frozen=True, eq=False)
class Head:
    """The head's weights: `weight` float32 (features,), any sign; `bias` a float."""

    weight: Floats
    bias: float

    @property
    def features(self) -> int:
        """Length of the embeddings that this head compares."""
        return len(self.weight)

    def logits(self, query: Floats, gallery: Floats) -> NDArray[np.float64]:
        """Logits of one query, (features,), against a gallery, (n, features): float64 (n,). Higher is more alike.

        The differences are float32, as in torch; their sum is taken by BLAS in float32 and the bias added in float64.
        """
        logits: NDArray[np.float64] = (np.abs(gallery - query) @ self.weight).astype(np.float64)
        return logits + self.bias

    def scores(self, query: Floats, gallery: Floats) -> NDArray[np.float64]:
        """Probabilities of "same" in (0, 1), float64 (n,), for one query (features,) against a gallery (n, features)."""
        return sigmoid(self.logits(query, gallery))

    def score(self, first: Floats, second: Floats) -> float:
        """Probability, in (0, 1), that two embeddings (features,) show the same."""
        return float(self.scores(first, second[None])[0])

    @cached_property
    def root_weights(self) -> Floats:
        """sqrt(a), float32 (features,): where w_i < 0, the root of -w_i; elsewhere 0."""
        return np.sqrt(np.maximum(-self.weight, 0.0)).astype(np.float32)

    @cached_property
    def _has_positive(self) -> bool:
        return bool((self.weight > 0).any())

    def weighted(self, embeddings: Floats) -> Floats:
        """Embeddings (..., features) to the space sqrt(a)·e that the search graph lives in, same shape, float32."""
        return np.ascontiguousarray(embeddings * self.root_weights, dtype=np.float32)

    def reach(self, query: Floats, low: Floats, high: Floats) -> float:
        """P: the most that the positive weights can add for this query in a gallery between `low` and `high` (see `radius`)."""
        if not self._has_positive:
            return 0.0
        furthest = np.maximum(np.abs(query - low), np.abs(high - query)).astype(np.float64)
        positive = np.maximum(self.weight, 0.0).astype(np.float64)
        return float(positive @ np.where(positive > 0, furthest, 0.0))

    def radius(self, threshold: float, query: Floats, low: Floats, high: Floats) -> float:
        """R(t): beyond this squared L2 distance in `weighted` space no gallery vector scores at or above `threshold`.

        Args:
            threshold: score in (0, 1).
            query: embedding (features,).
            low, high: smallest and largest value of each feature in the gallery, (features,) each. They bound what the
                positive weights can add for this query (P), more tightly than 1 does.

        Returns:
            The radius, widened by a thousandth for float32 rounding; negative when nothing can match.
        """
        radius = self.bias + self.reach(query, low, high) - math.log(threshold / (1.0 - threshold))
        return radius + 1e-3 * max(1.0, abs(radius))


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)) without overflow, and without losing the small ones to 0, float64."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)
