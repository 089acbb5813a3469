"""Held-out figures of a network in torch: copy detection by cell, re-identification, and a decision threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .augment import BEYOND_THE_PAPER, PAPER_GRID, alter
from .lcmem import LCMem
from .pairs import Pool

__all__ = [
    "FALSE_POSITIVES",
    "Figures",
    "copy_detection",
    "embed_pictures",
    "negative_scores",
    "quantile_threshold",
    "re_identification",
]

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
FALSE_POSITIVES = 1e-3
EMBED_AT_ONCE = 32


@dataclass(frozen=True)
class Figures:
    """Recall a cell at a threshold, in words for a model card."""

    pictures: int
    negative_pairs: int
    threshold: float
    mean_recall: float
    worst_recall: float
    worst_cell: str
    cells: dict[str, float]
    beyond: dict[str, float]


def embed_pictures(network: LCMem, pictures: Pixels) -> Floats:
    """uint8 (n, size, size, 3) to float32 (n, features), in fp32."""
    parts = []
    with torch.no_grad():
        for at in range(0, len(pictures), EMBED_AT_ONCE):
            pixels = torch.from_numpy(pictures[at : at + EMBED_AT_ONCE]).permute(0, 3, 1, 2).float() / 255.0
            parts.append(network.embed(pixels).numpy())
    return np.concatenate(parts)


def _scores(network: LCMem, first: Floats, second: Floats) -> NDArray[np.float64]:
    with torch.no_grad():
        return torch.sigmoid(network.logit(torch.from_numpy(first), torch.from_numpy(second)).double()).numpy()


def negative_scores(network: LCMem, embeddings: Floats) -> NDArray[np.float64]:
    """Scores of all pairs of different pictures, n (n - 1) / 2 of them."""
    return np.concatenate(
        [
            _scores(network, embeddings[at : at + 1].repeat(len(embeddings) - at - 1, 0), embeddings[at + 1 :])
            for at in range(len(embeddings) - 1)
        ]
    )


def quantile_threshold(negatives: NDArray[np.float64], rate: float) -> float:
    """The smallest score that at most this share of the negatives reaches."""
    allowed = math.floor(rate * len(negatives))
    return float(np.nextafter(np.sort(negatives)[::-1][allowed], np.inf))


def copy_detection(network: LCMem, pictures: Pixels, rate: float, rng: np.random.Generator) -> Figures:
    """Recall of each alteration at the threshold that `rate` of the pairs of different pictures of this set reach."""
    originals = embed_pictures(network, pictures)
    negatives = negative_scores(network, originals)
    threshold = quantile_threshold(negatives, rate)

    def recalls(grid: Any) -> dict[str, float]:
        found = {}
        for transform, strengths in grid.items():
            for strength in strengths:
                altered = np.stack([alter(picture, transform, strength, rng) for picture in pictures])
                scores = _scores(network, originals, embed_pictures(network, altered))
                found[f"{transform} {strength:g}"] = float((scores >= threshold).mean())
        return found

    cells = recalls(PAPER_GRID)
    worst = min(cells, key=lambda cell: cells[cell])
    return Figures(
        pictures=len(pictures),
        negative_pairs=len(negatives),
        threshold=threshold,
        mean_recall=float(np.mean(list(cells.values()))),
        worst_recall=cells[worst],
        worst_cell=worst,
        cells=cells,
        beyond=recalls(BEYOND_THE_PAPER),
    )


def re_identification(network: LCMem, pool: Pool, rate: float) -> dict[str, float]:
    """Two visits of one phantom against visits of different ones: AUC, and recall at `rate` false positives."""
    embeddings = [embed_pictures(network, np.repeat(pool.phantoms[:, visit][..., None], 3, axis=3)) for visit in (0, 1)]
    positives = _scores(network, *embeddings)
    count = len(positives)
    others = np.concatenate([_scores(network, embeddings[0], np.roll(embeddings[1], shift, axis=0)) for shift in range(1, count)])
    rank = np.searchsorted(np.sort(others), positives, side="left") + 0.5 * (
        np.searchsorted(np.sort(others), positives, side="right") - np.searchsorted(np.sort(others), positives, side="left")
    )
    return {
        "pairs": count,
        "negative_pairs": len(others),
        "auc": float(rank.mean() / len(others)),
        "recall": float((positives >= quantile_threshold(others, rate)).mean()),
    }
