"""Batches of one kind of image: which identities a batch holds, and what the two images of each pair are.

Two radiographs of different patients are hard to tell apart; a radiograph and a flower are not. So a batch is of one kind
(`data.kinds`), and all its negatives are hard ones. A batch is a function of the seed, the epoch and its number alone: an epoch is
the same with any number of loading processes, and after a kill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from lcmem_onnx.evaluation.filelist import Listed
from lcmem_onnx.runtime.errors import TrainingError
from lcmem_onnx.runtime.images.preprocess import resize
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from .config import Config, Kind
from .images import Identity, ImageSet, identities
from .pairs import channels_first
from .realistic import altered_copy, another_examination

__all__ = ["KindBatches", "training_batches", "validation_batches"]

Pixels = NDArray[np.uint8]
SIMULATED = 0.5
"""Share of the altered second images that simulate another examination; the rest has one alteration."""


class _Drawn:
    """The identities of one kind, as groups of images that may be paired, and how a batch is drawn from them."""

    def __init__(self, kind: Kind, groups: Sequence[Identity]) -> None:
        self.kind, self.groups = kind, groups
        self._several = [number for number, group in enumerate(groups) if len(group.images) > 1]
        self._of_set = [[n for n, group in enumerate(groups) if group.ds_name == ds_name] for ds_name in kind.sets]

    def batch(self, pairs: int, rng: np.random.Generator) -> list[int]:
        """Numbers of up to `pairs` groups, none twice, in the order of their choice."""
        chosen = _some(self._several, round(self.kind.several * pairs), rng)
        large = [numbers for numbers in self._of_set if len(numbers) >= pairs]
        if large and rng.random() < self.kind.one_set:
            chosen += _some(large[int(rng.integers(len(large)))], pairs // 2, rng)
        chosen += _some(range(len(self.groups)), pairs, rng)
        return list(dict.fromkeys(chosen))[:pairs]


def _some(numbers: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
    """Up to `count` of the numbers in random order, in a time that does not depend on how many there are."""
    places = rng.choice(len(numbers), min(count, len(numbers)), replace=False) if numbers else ()
    return [numbers[place] for place in places]


class KindBatches(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Each item is a batch: first and second images, uint8 (B, 3, size, size), identities, int64 (B,), and the kind's number.

    `kinds` says of each batch which kind it is of, or, if it is None, every epoch draws that by the kinds' weights. Until epoch
    `small_epochs` images have the side `small_size`.
    """

    batch = 1
    whole_batches = True

    def __init__(
        self,
        config: Config,
        rows: Sequence[Listed],
        count: int,
        *,
        seed: int,
        kinds: Sequence[int] | None = None,
        small: bool = False,
    ) -> None:
        self._config, self._count, self._seed, self._kinds, self._small = config, count, seed, kinds, small
        self._images = ImageSet(rows, config.network.image_size)
        groups = identities(rows, by_group=True)
        names = dict.fromkeys((group.ds_name, group.name) for group in groups)
        self._number_of = {name: number for number, name in enumerate(names)}
        self._drawn = [
            _Drawn(kind, [group for group in groups if group.ds_name in kind.sets]) for kind in config.data.kinds.values()
        ]
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Draw the kinds and identities of all batches of an epoch."""
        training = self._config.training
        small = self._small and epoch < training.small_epochs
        self.size = training.small_size if small else self._config.network.image_size
        self._epoch = epoch
        rng = np.random.default_rng([self._seed, epoch])
        weights = np.array([drawn.kind.weight for drawn in self._drawn])
        kinds = self._kinds or rng.choice(len(weights), self._count, p=weights / weights.sum()).tolist()
        self._batches = [(kind, self._drawn[kind].batch(training.pairs, rng)) for kind in kinds]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kind, chosen = self._batches[number]
        drawn = self._drawn[kind]
        rng = np.random.default_rng([self._seed, self._epoch, number])
        groups = [drawn.groups[each] for each in chosen]
        pairs = [self._pair(drawn.kind, group, rng) for group in groups]
        first, second = (torch.stack([channels_first(pair[side]) for pair in pairs]) for side in (0, 1))
        owners = torch.tensor([self._number_of[group.ds_name, group.name] for group in groups])
        return first, second, owners, torch.tensor(kind)

    def _pair(self, kind: Kind, group: Identity, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        """Two images of one identity: the first mostly as it is, the second an altered copy or another image."""
        data, images, size = self._config.data, self._images, self.size
        weights = self._config.training.alterations
        number = int(rng.choice(group.images))
        image = images.working(number)
        first = resize(image, size)
        if rng.random() < data.first_altered:
            first = altered_copy(image, size, rng, at_once=(1,), weights=weights)
        if len(group.images) > 1 and rng.random() < kind.other_image:
            image = images.working(int(rng.choice([other for other in group.images if other != number])))
            if rng.random() < data.unaltered:
                return first, resize(image, size)
            if rng.random() < SIMULATED:
                return first, another_examination(image, size, rng)
            return first, altered_copy(image, size, rng, at_once=(1,), weights=weights)
        if rng.random() < kind.examination:
            return first, another_examination(image, size, rng)

        def another() -> Pixels:
            return images.working(int(rng.integers(len(images))))

        return first, altered_copy(image, size, rng, another=another, weights=weights)


def training_batches(config: Config, rows: Sequence[Listed]) -> KindBatches:
    """The batches of the TRAIN split, `training.steps` x `training.accumulate` an epoch; 0 steps draw each image about once.

    Raises:
        TrainingError: a data set belongs to no kind, or a kind has too few identities.
    """
    kinds, training = config.data.kinds, config.training
    counts = _identities_of(kinds, rows)
    present = {row.ds_name for row in rows}
    named = {ds_name for kind in kinds.values() for ds_name in kind.sets}
    if strangers := sorted(present - named):
        raise TrainingError(
            f"the TRAIN split has the data sets {', '.join(map(repr, strangers))}, which belong to no kind: add them to "
            "data.kinds.NAME.sets, or take them off the list"
        )
    for name, count in counts.items():
        if count < 2:
            raise TrainingError(
                f"data.kinds.{name} ({', '.join(kinds[name].sets)}) has {count} identities in the TRAIN split, and a batch needs "
                "two: add images, or remove the kind"
            )
    steps = training.steps or max(1, len(rows) // (training.pairs * training.accumulate))
    return KindBatches(config, rows, steps * training.accumulate, seed=config.seed, small=True)


def validation_batches(config: Config, rows: Sequence[Listed]) -> KindBatches:
    """The batches of the VAL split, the same ones each epoch, each kind about as often as in training.

    A kind of fewer than two identities is left out: there is nothing to tell apart.

    Raises:
        TrainingError: all kinds are left out.
    """
    kinds = config.data.kinds
    weights = np.array(
        [
            kind.weight if count > 1 else 0.0
            for kind, count in zip(kinds.values(), _identities_of(kinds, rows).values(), strict=True)
        ]
    )
    if not weights.any():
        raise TrainingError("no kind of data.kinds has two identities in the VAL split: there is nothing to validate on")
    wanted = config.training.validation_pairs / config.training.pairs * weights / weights.sum()
    numbers = [kind for kind, count in enumerate(wanted) for _ in range(max(1, round(count)) if count else 0)]
    return KindBatches(config, rows, len(numbers), seed=config.seed + 1, kinds=numbers)


def _identities_of(kinds: Mapping[str, Kind], rows: Sequence[Listed]) -> dict[str, int]:
    """How many identities each kind has."""
    return {name: len({(row.ds_name, row.identity) for row in rows if row.ds_name in kind.sets}) for name, kind in kinds.items()}
