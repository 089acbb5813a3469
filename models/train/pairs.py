"""Pairs of images to learn from: two of one identity, one side altered.

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

from .augment import AUGMENTATIONS
from .config import Config, Data
from .images import Identity, ImageSet

__all__ = ["EpochPairs", "PairedImages", "channels_first", "chosen_identities", "shares"]


def shares(groups: Mapping[str, Sequence[int]], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """How often each group is drawn from, summing to 1: by its weight, or by its size where none is given."""
    wanted = [weights.get(name, len(its)) for name, its in groups.items()]
    return np.array(wanted, np.float64) / sum(wanted)


class _Deck:
    """One data set's identities, dealt in ever new orders: all of them before one comes again."""

    def __init__(self, numbers: Sequence[int], rng: np.random.Generator) -> None:
        self._numbers, self._rng = numbers, rng
        self._left: list[int] = []

    def deal(self, taken: set[int]) -> int | None:
        """The next that is not taken; None if all are."""
        for _ in range(2 * len(self._numbers)):  # the rest of a round, and a whole one
            if not self._left:
                self._left = self._rng.permutation(self._numbers).tolist()
            if (number := self._left.pop()) not in taken:
                return number
        return None


def chosen_identities(
    identities: Sequence[Identity], count: int, batch: int, chunk: int, weights: Mapping[str, float], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Numbers of the identities of `count` pairs. None comes twice in a batch, where it would count against itself.

    With a `chunk`, as many neighbours are of one data set; with weights alone, each pair's data set is drawn by them. A data set
    that has no more to give to a batch leaves the rest to the others.

    Raises:
        TrainingError: all data sets together have fewer identities than a batch.
    """
    if min(batch, count) > len(identities):
        raise TrainingError(
            f"training.pairs is {batch}, but a split has only {len(identities)} identities, none of which may come twice in a "
            "batch: lower it"
        )
    groups: dict[str, list[int]] = {}
    for number, identity in enumerate(identities):
        groups.setdefault(identity.ds_name if chunk or weights else "", []).append(number)
    likely = shares(groups, weights)
    decks = [_Deck(its, rng) for its in groups.values()]
    run = chunk or (1 if weights else batch)
    chosen: list[int] = []
    while len(chosen) < count:
        taken: set[int] = set()
        drawn_from = likely.copy()
        deck = _drawn(drawn_from, rng)
        for place in range(min(batch, count - len(chosen))):
            if place and place % run == 0:
                deck = _drawn(drawn_from, rng)
            dealt = decks[deck].deal(taken)
            while dealt is None:
                drawn_from[deck] = 0.0
                deck = _drawn(drawn_from, rng)
                dealt = decks[deck].deal(taken)
            taken.add(dealt)
            chosen.append(dealt)
    return np.array(chosen)


def _drawn(likely: NDArray[np.float64], rng: np.random.Generator) -> int:
    return int(rng.choice(len(likely), p=likely / likely.sum()))


class EpochPairs(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of one epoch: whose they are, and the random numbers of each. What a pair is of is the subclass's."""

    whole_batches = False

    def __init__(self, data: Data, identities: Sequence[Identity], pairs: int, batch: int, seed: int) -> None:
        self._data, self._identities = data, identities
        self._pairs, self._seed = pairs, seed
        self.batch = batch
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        rng = np.random.default_rng([self._seed, epoch])
        self._order = chosen_identities(self._identities, self._pairs, self.batch, self._data.chunk, self._data.weights, rng)

    def __len__(self) -> int:
        return self._pairs

    def _drawn(self, number: int) -> tuple[np.random.Generator, tuple[int, ...]]:
        """The random numbers of a pair, and the numbers of its identity's images."""
        return np.random.default_rng([self._seed, self._epoch, number]), self._identities[self._order[number]].images


class PairedImages(EpochPairs):
    """Pairs of images, each two tensors, uint8 (3, size, size)."""

    def __init__(
        self, config: Config, images: ImageSet, identities: Sequence[Identity], pairs: int, *, batch: int, seed: int
    ) -> None:
        super().__init__(config.data, identities, pairs, batch, seed)
        self._alter = AUGMENTATIONS[config.training.augmentation]
        self._images = images

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rng, its = self._drawn(number)
        if len(its) == 1:
            first = self._window(its[0], rng)
            second = self._alter(first, rng)
        else:
            one, other = (int(position) for position in rng.choice(its, 2, replace=False))
            first = self._images.whole(one)
            if rng.random() < self._data.same_image:
                second = self._alter(first, rng)
            else:
                second = self._images.whole(other)
                if rng.random() >= self._data.unaltered:
                    second = self._alter(second, rng)
        if rng.random() < 0.5:
            first, second = second, first
        return channels_first(first), channels_first(second)

    def _window(self, number: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        if self._data.window < 1.0:
            return self._images.window(number, self._data.window, rng)
        return self._images.whole(number)


def channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 (height, width, 3) to a tensor (3, height, width) of its own."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
