"""Held-out figures of a network in torch: copy detection by cell, re-identification, and a decision threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lcmem_onnx.evaluation.alterations import BEYOND_THE_PAPER, PAPER_GRID, alter
from numpy.typing import NDArray

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
    """Recall of each cell, for a model card.

    `threshold` is the one that this set's own negatives give, and `mean_recall`, `worst_recall`, `cells` and `beyond` are at it;
    what ends in `_at_decision` is at the threshold that the model ships with.
    """

    pictures: int
    negative_pairs: int
    threshold: float
    mean_recall: float
    worst_recall: float
    worst_cell: str
    cells: dict[str, float]
    beyond: dict[str, float]
    mean_recall_at_decision: float
    worst_recall_at_decision: float
    false_positives_at_decision: float


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


def copy_detection(network: LCMem, pictures: Pixels, rate: float, decision: float, rng: np.random.Generator) -> Figures:
    """Recall of each alteration at two thresholds: the one that `rate` of this set's own negatives reach, and `decision`."""
    originals = embed_pictures(network, pictures)
    negatives = negative_scores(network, originals)
    threshold = quantile_threshold(negatives, rate)

    def scores_of(grid: Any) -> dict[str, NDArray[np.float64]]:
        found = {}
        for transform, strengths in grid.items():
            for strength in strengths:
                altered = np.stack([alter(picture, transform, strength, rng) for picture in pictures])
                found[f"{transform} {strength:g}"] = _scores(network, originals, embed_pictures(network, altered))
        return found

    def recalls(scored: dict[str, NDArray[np.float64]], at: float) -> dict[str, float]:
        return {cell: float((scores >= at).mean()) for cell, scores in scored.items()}

    scored = scores_of(PAPER_GRID)
    cells, decided = recalls(scored, threshold), recalls(scored, decision)
    worst = min(cells, key=lambda cell: cells[cell])
    return Figures(
        pictures=len(pictures),
        negative_pairs=len(negatives),
        threshold=threshold,
        mean_recall=float(np.mean(list(cells.values()))),
        worst_recall=cells[worst],
        worst_cell=worst,
        cells=cells,
        beyond=recalls(scores_of(BEYOND_THE_PAPER), threshold),
        mean_recall_at_decision=float(np.mean(list(decided.values()))),
        worst_recall_at_decision=min(decided.values()),
        false_positives_at_decision=float((negatives >= decision).mean()),
    )


def re_identification(network: LCMem, pool: Pool, kinds: Sequence[str], rate: float) -> dict[str, dict[str, float]]:
    """Two visits of one phantom against visits of others of its own kind, all kinds together and each by itself.

    Negatives of another kind would flatter: a hand is no chest, and telling them apart is no re-identification.

    Args:
        kinds: the kind of each identity in the pool.
        rate: false positives at which the recall is taken.
    """
    first, second = (embed_pictures(network, np.repeat(pool.phantoms[:, visit][..., None], 3, axis=3)) for visit in (0, 1))
    positives = _scores(network, first, second)
    others = {kind: [at for at, its in enumerate(kinds) if its == kind] for kind in sorted(set(kinds))}
    negatives = {
        kind: np.concatenate([_scores(network, first[[at] * (len(own) - 1)], second[[b for b in own if b != at]]) for at in own])
        for kind, own in others.items()
        if len(own) > 1
    }
    found = {"all kinds": _separation(positives, np.concatenate(list(negatives.values())), rate)}
    for kind, scores in negatives.items():
        found[kind] = _separation(positives[others[kind]], scores, rate)
    return found


def _separation(positives: NDArray[np.float64], negatives: NDArray[np.float64], rate: float) -> dict[str, float]:
    """AUC, as the chance that a positive scores above a negative, ties half; and recall at `rate` false positives."""
    ordered = np.sort(negatives)
    below, upto = (np.searchsorted(ordered, positives, side=side) for side in ("left", "right"))
    return {
        "pairs": len(positives),
        "negative_pairs": len(negatives),
        "auc": float((below + upto).mean() / 2 / len(negatives)),
        "recall": float((positives >= quantile_threshold(negatives, rate)).mean()),
    }
