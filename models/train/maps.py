"""Stage `last-layers`: what the frozen early layers make of images and of altered copies of them, and pairs of that.

The early layers see each image once, with as many copies as the configuration wants; the last ones then learn from what is kept
on disk, hundreds of pairs a step where the whole network would manage fifty. So a batch holds the rare pairs of different images
that look alike, and those decide where a threshold lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from lcmem_onnx.evaluation.filelist import Listed
from numpy.typing import NDArray
from torch import Tensor

from ..lcmem import LCMem
from .augment import AUGMENTATIONS
from .cache import Halves, Recipe, cached, files_digest, weights_digest
from .config import Config
from .images import DECODERS, Identity, ImageSet
from .pairs import EpochPairs

__all__ = ["PairedMaps", "Views", "cached_maps"]

AT_ONCE = 8
"""Rows, each with its windows and copies."""
IMAGES_AT_ONCE = 12
"""See `kind_loss.VAE_AT_ONCE`."""


class Views:
    """Which slots of the cache show what: each row whole, then its windows; each of these unaltered, then its copies."""

    def __init__(self, config: Config, rows: Sequence[Listed]) -> None:
        self.copies = [config.data.copies.get(row.ds_name, 1) for row in rows]
        self.parts = [1 + config.data.windows.get(row.ds_name, 0) for row in rows]
        self.slots = [parts * (1 + copies) for parts, copies in zip(self.parts, self.copies, strict=True)]
        self._begins = list(accumulate(self.slots, initial=0))

    def slot(self, row: int, part: int, copy: int) -> int:
        """`part` 0 is the whole image, `copy` 0 unaltered."""
        return self._begins[row] + part * (1 + self.copies[row]) + copy


def cached_maps(
    network: LCMem, config: Config, rows: Sequence[Listed], views: Views, folder: Path, device: torch.device, seed: int
) -> Halves:
    """The map behind the frozen layers of each view, (views, channels, height, width).

    A view is a function of `seed`, its row's number, part and copy.

    Raises:
        TrainingError, FileListError: as `cached`.
    """
    size, layers = config.network.image_size, config.network.frozen
    alter = AUGMENTATIONS[config.training.augmentation]
    backbone = network.convnext

    def pixels(images: ImageSet, at: int, row: int) -> list[NDArray[np.uint8]]:
        its = []
        for part in range(views.parts[row]):
            rng = np.random.default_rng([seed, row, part])
            image = images.window(at, config.data.window, rng) if part else images.whole(at)
            if part and config.data.turned:
                image = _turned(image, rng)
            copies = (alter(image, np.random.default_rng([seed, row, part, copy])) for copy in range(1, 1 + views.copies[row]))
            its += [image, *copies]
        return its

    def seen(batch: NDArray[np.uint8]) -> Tensor:
        images = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float() / 255.0
        return backbone.early(network.latents(images), layers)

    def make(numbers: Sequence[int]) -> NDArray[np.float32]:
        images = ImageSet([rows[number] for number in numbers], size)
        with ThreadPoolExecutor(DECODERS) as pool:
            views_of_rows = pool.map(lambda place: pixels(images, *place), enumerate(numbers))
            every = np.stack([each for its in views_of_rows for each in its])
        with torch.no_grad():
            parts = [seen(every[at : at + IMAGES_AT_ONCE]).cpu() for at in range(0, len(every), IMAGES_AT_ONCE)]
        return torch.cat(parts).contiguous().numpy()

    network = network.to(device).eval()
    with torch.no_grad():
        shape = tuple(seen(np.zeros((1, size, size, 3), np.uint8)).shape[1:])
    frozen = tuple(f"model.features.{layer}." for layer in range(layers))
    made_of = {
        "rows": files_digest(rows),
        "weights": weights_digest(network, ("vae.", *frozen)),
        "augmentation": config.training.augmentation,
        "window": config.data.window,
        "turned": config.data.turned,
        "views": hashlib.sha256(repr((views.parts, views.copies)).encode()).hexdigest(),
        "size": size,
        "seed": seed,
    }
    return cached(folder, Recipe("maps", made_of, shape, views.slots, make, AT_ONCE))


def _turned(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """One of the square's eight positions."""
    turned = np.rot90(image, int(rng.integers(4)))
    return np.ascontiguousarray(turned[:, ::-1] if rng.random() < 0.5 else turned)


class PairedMaps(EpochPairs):
    """Pairs of maps: the first of an unaltered image, the second of a copy of it, or of another image of its identity."""

    def __init__(
        self, config: Config, maps: Halves, views: Views, identities: Sequence[Identity], pairs: int, *, batch: int, seed: int
    ) -> None:
        super().__init__(config.data, identities, pairs, batch, seed)
        self._maps, self._views = maps, views

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rng, its = self._drawn(number)
        views = self._views
        if len(its) == 1 or rng.random() < self._data.same_image:
            row = int(rng.choice(its))
            part, copy = int(rng.integers(views.parts[row])), int(rng.integers(1, 1 + views.copies[row]))
            slots = (views.slot(row, part, 0), views.slot(row, part, copy))
        else:
            one, other = (int(position) for position in rng.choice(its, 2, replace=False))
            copy = 0 if rng.random() < self._data.unaltered else int(rng.integers(1, 1 + views.copies[other]))
            slots = (views.slot(one, 0, 0), views.slot(other, 0, copy))
        first, second = (torch.from_numpy(np.asarray(self._maps[slot], np.float32)) for slot in slots)
        return first, second
