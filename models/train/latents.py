"""Latents of all images of a file list, computed once and kept on disk (`cache`): what stage 1 learns from."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from lcmem_onnx.evaluation.filelist import Listed
from lcmem_onnx.runtime.errors import TrainingError
from numpy.typing import NDArray
from torch import Tensor

from ..lcmem import LCMem
from .cache import Halves, Recipe, cached, files_digest, weights_digest
from .config import Config
from .images import DECODERS, Identity, ImageSet
from .pairs import EpochPairs

__all__ = ["PairedLatents", "cached_latents"]

AT_ONCE = 32
CHANNEL_NORMALISATION = 0.01
"""Chance of the paper's stage-1 augmentation: a random channel of one side gets another mean and deviation."""


def cached_latents(network: LCMem, rows: Sequence[Listed], size: int, folder: Path, device: torch.device) -> Halves:
    """The latents of all rows, normalised sample-wise, (rows, channels, height, width).

    Raises:
        TrainingError, FileListError: as `cached`.
    """
    vae = network.vae
    if vae is None:
        raise TrainingError("latents are made by a VAE, and this network has none: set network.vae")

    def make(numbers: Sequence[int]) -> NDArray[np.float32]:
        images = ImageSet([rows[number] for number in numbers], size)
        with ThreadPoolExecutor(DECODERS) as pool:
            pixels = np.stack(list(pool.map(images.whole, range(len(numbers)))))
        with torch.no_grad():
            batch = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255.0
            return network.latents(batch).cpu().numpy()

    network = network.to(device).eval()
    side = size // vae.shape.downscale
    return cached(
        folder,
        Recipe(
            name="latents",
            made_of={"rows": files_digest(rows), "weights": weights_digest(network, ("vae.",)), "size": size},
            shape=(vae.shape.latent_channels, side, side),
            slots=[1] * len(rows),
            make=make,
            at_once=AT_ONCE,
        ),
    )


class PairedLatents(EpochPairs):
    """Pairs of latents, each two tensors (channels, height, width); the same latent twice for single images."""

    def __init__(
        self, config: Config, latents: Halves, identities: Sequence[Identity], pairs: int, *, batch: int, seed: int
    ) -> None:
        super().__init__(config.data, identities, pairs, batch, seed)
        self._latents = latents

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rng, its = self._drawn(number)
        one, other = (its[0], its[0]) if len(its) == 1 else (int(position) for position in rng.choice(its, 2, replace=False))
        first, second = (torch.from_numpy(np.asarray(self._latents[position], np.float32)) for position in (one, other))
        if rng.random() < CHANNEL_NORMALISATION:
            channel = int(rng.integers(len(second)))
            second[channel] = second[channel] * rng.uniform(0.5, 1.5) + rng.normal(0.0, 0.25)
        return first, second
