"""Pairs of pictures to learn from: two of one identity, one side altered.

Each pair is a function of the seed, the epoch and its number alone. So an epoch is the same whoever loads it, with however many
processes, and after a kill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from lcmem_onnx.runtime.errors import TrainingError
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..augment import AUGMENTATIONS
from .config import Config, Data
from .pictures import Identity, Pictures

__all__ = ["EpochPairs", "PairedPictures", "channels_first", "chosen_identities", "shares"]


def shares(groups: Mapping[str, Sequence[int]], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """How often each group is drawn from, summing to 1: by its weight, or by its size where none is given."""
    wanted = [weights.get(name, len(its)) for name, its in groups.items()]
    return np.array(wanted, np.float64) / sum(wanted)


def chosen_identities(
    identities: Sequence[Identity], count: int, chunk: int, weights: dict[str, float], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Numbers of the identities of `count` pairs, in chunks of one data set in which no identity comes twice.

    A data set with fewer identities than a chunk gives what it has, and another data set fills the rest.

    Raises:
        TrainingError: all data sets together have fewer identities than a chunk.
    """
    if min(chunk, count) > len(identities):
        raise TrainingError(
            f"data.chunk is {chunk}, but a split has only {len(identities)} identities, none of which may come twice in a chunk: "
            "lower it"
        )
    groups: dict[str, list[int]] = {}
    for number, identity in enumerate(identities):
        groups.setdefault(identity.ds_name if chunk else "", []).append(number)
    names = list(groups)
    likely = shares(groups, weights)
    chosen: list[int] = []
    size = chunk or count
    while len(chosen) < count:
        group = groups[names[int(rng.choice(len(names), p=likely))]]
        room = size - len(chosen) % size
        taken = set(chosen[len(chosen) - len(chosen) % size :])
        free = [number for number in group if number not in taken] if chunk else group
        chosen += list(rng.permutation(free)[: min(room, len(free), count - len(chosen))])
    return np.array(chosen)


class EpochPairs(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of one epoch: whose they are, and the random numbers of each. What a pair is of is the subclass's."""

    def __init__(self, data: Data, identities: Sequence[Identity], pairs: int, seed: int) -> None:
        self._data, self._identities = data, identities
        self._pairs, self._seed = pairs, seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        rng = np.random.default_rng([self._seed, epoch])
        self._order = chosen_identities(self._identities, self._pairs, self._data.chunk, dict(self._data.weights), rng)

    def __len__(self) -> int:
        return self._pairs

    def _drawn(self, number: int) -> tuple[np.random.Generator, tuple[int, ...]]:
        """The random numbers of a pair, and the numbers of its identity's pictures."""
        return np.random.default_rng([self._seed, self._epoch, number]), self._identities[self._order[number]].pictures


class PairedPictures(EpochPairs):
    """Pairs of pictures, each two tensors, uint8 (3, size, size)."""

    def __init__(self, config: Config, pictures: Pictures, identities: Sequence[Identity], pairs: int, *, seed: int) -> None:
        super().__init__(config.data, identities, pairs, seed)
        self._alter = AUGMENTATIONS[config.training.augmentation]
        self._pictures = pictures

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rng, its = self._drawn(number)
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
        return channels_first(first), channels_first(second)

    def _window(self, number: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        if self._data.window < 1.0:
            return self._pictures.window(number, self._data.window, rng)
        return self._pictures.whole(number)


def channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 (height, width, 3) to a tensor (3, height, width) of its own."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
