"""What a scorer is: something that gives two images a score, higher for more alike. Two kinds, by what can be done ahead."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Embedder", "Floats", "PairScorer", "Pixels", "Scorer", "cosine"]

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@runtime_checkable
class Embedder(Protocol):
    """Makes a vector of each image and compares vectors, so that all pairs of a data set can be scored."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def about(self) -> str:
        """What it is, in a line: source, size, measure."""

    def embed(self, images: Pixels) -> Floats:
        """RGB, uint8 (n, size, size, 3), to float32 (n, features)."""

    def compare(self, query: Floats, gallery: Floats) -> NDArray[np.float64]:
        """Scores of one vector, (features,), with others, (n, features): float64 (n,), symmetric, higher is more alike."""


@runtime_checkable
class PairScorer(Protocol):
    """Must see both images; only a sample of the pairs of a data set can be scored."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def about(self) -> str:
        """What it is, in a line."""

    def score(self, first: Pixels, second: Pixels) -> float:
        """Score of two RGB images, uint8 (size, size, 3), symmetric, higher is more alike."""


Scorer = Embedder | PairScorer


def cosine(query: Floats, gallery: Floats) -> NDArray[np.float64]:
    """Products of one vector, (features,), with others, (n, features): float64 (n,). Of unit vectors it is the cosine."""
    products: NDArray[np.float64] = (gallery @ query).astype(np.float64)
    return products
