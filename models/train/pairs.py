"""Pairs of pictures to learn from: two of one identity, one side altered.

Each pair is a function of the seed, the epoch and its number alone. So an epoch is the same whoever loads it, with however many
processes, and after a kill.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..augment import AUGMENTATIONS
from .config import Config
from .pictures import Identity, Pictures

__all__ = ["PairedPictures", "chosen_identities"]


def chosen_identities(
    identities: Sequence[Identity], count: int, chunk: int, weights: dict[str, float], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Numbers of the identities of `count` pairs, in chunks of one data set in which no identity comes twice.

    A data set with fewer identities than a chunk gives what it has, and another data set fills the rest.
    """
    groups: dict[str, list[int]] = {}
    for number, identity in enumerate(identities):
        groups.setdefault(identity.ds_name if chunk else "", []).append(number)
    names = list(groups)
    shares = np.array([weights.get(name, len(groups[name])) for name in names], np.float64)
    shares /= shares.sum()
    chosen: list[int] = []
    size = chunk or count
    while len(chosen) < count:
        group = groups[names[int(rng.choice(len(names), p=shares))]]
        room = size - len(chosen) % size
        taken = set(chosen[len(chosen) - len(chosen) % size :])
        free = [number for number in group if number not in taken] if chunk else group
        chosen += list(rng.permutation(free)[: min(room, len(free), count - len(chosen))])
    return np.array(chosen)


class PairedPictures(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of one epoch, each two tensors, uint8 (3, size, size)."""

    def __init__(self, config: Config, pictures: Pictures, identities: Sequence[Identity], pairs: int, *, seed: int) -> None:
        self._data = config.data
        self._alter = AUGMENTATIONS[config.training.augmentation]
        self._pictures, self._identities = pictures, identities
        self._pairs, self._seed = pairs, seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        rng = np.random.default_rng([self._seed, epoch])
        self._order = chosen_identities(self._identities, self._pairs, self._data.chunk, dict(self._data.weights), rng)

    def __len__(self) -> int:
        return self._pairs

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self._seed, self._epoch, number])
        its = self._identities[self._order[number]].pictures
        if len(its) == 1:
            first = self._window(its[0], rng)
            second = self._alter(first, rng)
        else:
            one, other = (int(at) for at in rng.choice(its, 2, replace=False))
            first = self._pictures.whole(one)
            if rng.random() < self._data.same_picture:
                second = self._alter(first, rng)
            else:
                second = self._pictures.whole(other)
                if rng.random() >= self._data.unaltered:
                    second = self._alter(second, rng)
        if rng.random() < 0.5:
            first, second = second, first
        return _tensor(first), _tensor(second)

    def _window(self, number: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        if self._data.window < 1.0:
            return self._pictures.window(number, self._data.window, rng)
        return self._pictures.whole(number)


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
