"""How far a variant is from torch on images and pairs, and the gates that it must pass to be written.

Each measured image is embedded as it is and altered in three ways, by torch and by the variant in a process of its own; every two
of these are a pair, of the same image or of different ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from lcmem_onnx.models.lcmem import LCMem
from lcmem_onnx.runtime.errors import ExportError
from numpy.typing import NDArray

from .child_process import run_child
from .parity import embed_pixels

__all__ = ["GATES", "Drift", "Measured", "measured_in_torch"]

Scores = NDArray[np.float64]
Embeddings = NDArray[np.float32]

GATES: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "fp32": {"score_p99": 1e-3},
        "fp16": {"score_p99": 0.005},
        "int8": {"flip_rate": 0.005, "auc_fall": 0.002},
    }
)
"""Largest allowed values of a variant's drift, by the names of `Drift`'s fields."""


@dataclass(frozen=True)
class Drift:
    """A variant against torch in fp32.

    Attributes:
        images: embedded images, altered ones included.
        pairs, same: all pairs, and those of one image.
        embedding_max, embedding_p99: absolute differences over all features: the largest, and the 99th percentile.
        score_max, score_p99: the same of the pairs' scores.
        flips, flip_rate: pairs that the threshold decides otherwise, and their share.
        auc, auc_fall: area under the ROC curve, and how much less that is than torch's.
        milliseconds: an image, alone in a batch, on the exporting machine.
        peak_mb: largest resident memory of the process, Python and its packages included; None where the system does not tell.
        past: the gates that it does not pass, in words.
    """

    images: int
    pairs: int
    same: int
    embedding_max: float
    embedding_p99: float
    score_max: float
    score_p99: float
    flips: int
    flip_rate: float
    auc: float
    auc_fall: float
    milliseconds: float
    peak_mb: float | None
    past: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Its key for the number of images is `pictures`: manifests have it so."""
        content = asdict(self)
        return {"pictures": content.pop("images"), **content}


@dataclass(frozen=True, eq=False)
class Measured:
    """What torch makes of the measured images: uint8 (n, size, size, 3), what each shows, embeddings (n, features)."""

    network: LCMem
    threshold: float
    images: NDArray[np.uint8]
    shows: NDArray[np.int64]
    embeddings: Embeddings

    def first(self, count: int) -> Measured:
        """The first so many images alone."""
        return replace(self, images=self.images[:count], shows=self.shows[:count], embeddings=self.embeddings[:count])

    def drift(self, variant: str, graph: Path, work: Path) -> Drift:
        """Measure one encoder.

        Raises:
            ExportError: it does not run, or gives values that are not finite.
        """
        images, answer = work / "pictures.npy", work / "answer.npz"
        np.save(images, self.images)
        run_child("measure-encoder", (graph, images, answer), f"the {variant} encoder")
        with np.load(answer, allow_pickle=False) as arrays:
            embeddings, milliseconds, peak = arrays["embeddings"], float(arrays["milliseconds"]), float(arrays["peak_mb"])
        if embeddings.shape != self.embeddings.shape or not np.isfinite(embeddings).all():
            raise ExportError(f"the {variant} encoder's embeddings are not finite or of shape {embeddings.shape}")
        return self._compared(variant, embeddings, milliseconds, peak)

    def _compared(self, variant: str, embeddings: Embeddings, milliseconds: float, peak: float) -> Drift:
        first, second = np.triu_indices(len(self.shows), 1)
        same = self.shows[first] == self.shows[second]
        wanted, got = self._scores(self.embeddings), self._scores(embeddings)
        away, apart = np.abs(embeddings - self.embeddings), np.abs(got - wanted)
        flips = int(((got >= self.threshold) != (wanted >= self.threshold)).sum())
        aucs = [_auc(scores[same], scores[~same]) for scores in (wanted, got)]
        drift = Drift(
            images=len(self.shows),
            pairs=len(same),
            same=int(same.sum()),
            embedding_max=float(away.max()),
            embedding_p99=float(np.percentile(away, 99)),
            score_max=float(apart.max()),
            score_p99=float(np.percentile(apart, 99)),
            flips=flips,
            flip_rate=flips / len(same),
            auc=aucs[1],
            auc_fall=aucs[0] - aucs[1],
            milliseconds=milliseconds,
            peak_mb=peak if np.isfinite(peak) else None,
        )
        past = tuple(
            f"{name} is {getattr(drift, name):.2g}, allowed is {most:g}"
            for name, most in GATES[variant].items()
            if not getattr(drift, name) <= most
        )
        return replace(drift, past=past)

    def _scores(self, embeddings: Embeddings) -> Scores:
        """Scores of all pairs, in `triu_indices`' order."""
        rows = torch.from_numpy(embeddings)
        first, second = torch.triu_indices(len(rows), len(rows), 1)
        with torch.no_grad():
            return torch.sigmoid(self.network.logit(rows[first], rows[second]).double()).numpy()


def measured_in_torch(network: LCMem, threshold: float, images: NDArray[np.uint8], shows: NDArray[np.int64]) -> Measured:
    """Embed the images in torch, in fp32, one by one."""
    return Measured(network, threshold, images, shows, embed_pixels(network, images))


def _auc(same: Scores, different: Scores) -> float:
    """Mann and Whitney's statistic: how often a pair of the same scores above one of different images; ties count half."""
    below = np.searchsorted(np.sort(different), same, "left") + np.searchsorted(np.sort(different), same, "right")
    return float(below.mean() / (2 * len(different)))
