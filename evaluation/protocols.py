"""Which images are compared with which: the paper's two protocols as lists of pairs, the same ones for the same seed.

* Re-identification: for every image of an identity with two or more, one pair of the same identity (its next image,
  cyclic) and one of different ones (the first image of a random other identity), within one `ds_name`, drawn as the
  reference draws them.
* Copy detection: every image with itself, altered, a pair a cell; against pairs of images of different identities.
  Images of one identity are neither: to LCMem they show the same, though they are no copies.

The order of the file list decides which image is an identity's first and next, as in the reference.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from lcmem_onnx.runtime.images.preprocess import resize
from numpy.typing import NDArray

from .alterations import BEYOND_THE_PAPER, PAPER_GRID, alter
from .realistic import HELD_OUT, REALISTIC, alter_realistically

__all__ = [
    "CELLS",
    "GRIDS",
    "REALISTIC_CELLS",
    "Cell",
    "Pairs",
    "altered",
    "cell_rng",
    "different_pairs",
    "realistically_altered",
    "reidentification_pairs",
]

Indices = NDArray[np.int64]
Pixels = NDArray[np.uint8]
ENUMERATE_UP_TO = 20_000_000
"""Pairs that are written down before some are drawn; of more, pairs are drawn one by one and repeated ones dropped."""


@dataclass(frozen=True)
class Cell:
    """One transform at one strength.

    Attributes:
        transform: its name.
        strength: its strength, in units of the transform's own; 1 where there is none to choose.
        grid: "paper", "beyond" or "realistic".
        held_out: whether the training of the bundled model never draws it.
    """

    transform: str
    strength: float
    grid: str = "paper"
    held_out: bool = False

    @property
    def paper(self) -> bool:
        """Whether it is one of the paper's 24."""
        return self.grid == "paper"

    @property
    def realistic(self) -> bool:
        """Whether it belongs to the realistic grid, whose cells alter an image at its own resolution."""
        return self.grid == "realistic"

    @property
    def name(self) -> str:
        """As tables show it: "blur 0.1"; a transform that has no strength to choose stands alone."""
        return f"{self.transform} {self.strength:g}" if self.strength != 1 or self.paper or self._has_strengths else self.transform

    @property
    def _has_strengths(self) -> bool:
        return self.realistic and len(REALISTIC[self.transform]) > 1


def _cells(grid: str, table: Mapping[str, tuple[float, ...]]) -> tuple[Cell, ...]:
    return tuple(
        Cell(transform, strength, grid, grid == "realistic" and transform in HELD_OUT)
        for transform, strengths in table.items()
        for strength in strengths
    )


CELLS = _cells("paper", PAPER_GRID) + _cells("beyond", BEYOND_THE_PAPER)
"""The paper's 24 cells and six beyond them."""
REALISTIC_CELLS = _cells("realistic", REALISTIC)
GRIDS: Mapping[str, tuple[Cell, ...]] = MappingProxyType(
    {"paper": CELLS, "realistic": REALISTIC_CELLS, "all": CELLS + REALISTIC_CELLS}
)
"""Cells by the names that `evaluate --grid` takes."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs by the images' numbers: `first` and `second`, int64 (n,) each."""

    first: Indices
    second: Indices

    def __len__(self) -> int:
        return len(self.first)


def reidentification_pairs(
    identities: Sequence[str], rng: random.Random | None = None, groups: Sequence[str] | None = None
) -> tuple[Pairs, Pairs]:
    """The pairs of one data set: those of one identity, and as many of different ones, image by image.

    The reference's draw: identities are counted in sorted order (as numbers, if all are numbers, since it reads its list with
    pandas), the other one is drawn again until it is another, and one generator serves all data sets, in the list's order.

    Args:
        identities: of each image, in the list's order.
        rng: draws the other identities; `random.Random(42)` if not given.
        groups: of each image: which of an identity's images are comparable (same view, level, contrast). A pair of the same
            identity is then of one group: the next image of that group, cyclic; an image alone in its group has no pair.

    Returns:
        Pairs of the same identity and pairs of different ones; the n-th of both have the same first image. Both are empty
        when no identity (no group) has two images, or when there is only one identity.
    """
    rng = rng or random.Random(42)
    images: dict[str, list[int]] = {}
    for number, identity in enumerate(identities):
        images.setdefault(identity, []).append(number)
    everyone = sorted(images, key=int) if all(identity.isdecimal() for identity in images) else sorted(images)
    same: list[tuple[int, int]] = []
    different: list[tuple[int, int]] = []
    for own, identity in enumerate(everyone):
        if len(everyone) < 2:
            continue
        for number, following in _comparable(images[identity], groups):
            same.append((number, following))
            other = own
            while other == own:
                other = rng.randint(0, len(everyone) - 1)
            different.append((number, images[everyone[other]][0]))
    return _pairs(same), _pairs(different)


def _comparable(numbers: Sequence[int], groups: Sequence[str] | None) -> Iterator[tuple[int, int]]:
    """Each of an identity's images with the next one of its group, cyclic."""
    members: dict[str, list[int]] = {}
    for number in numbers:
        members.setdefault("" if groups is None else groups[number], []).append(number)
    place = {number: index for each in members.values() for index, number in enumerate(each)}
    for number in numbers:
        group = members["" if groups is None else groups[number]]
        if len(group) > 1:
            yield number, group[(place[number] + 1) % len(group)]


def different_pairs(identities: Sequence[str], most: int, seed: int = 42) -> Pairs:
    """All pairs of images of different identities, the smaller number first; `most` random ones where there are more.

    Args:
        identities: of each image.
        most: pairs to give at most, 1 or more.
        seed: of the draw.
    """
    _, codes = np.unique(np.asarray(identities, dtype=object).astype(str), return_inverse=True)
    count = len(codes)
    rng = np.random.default_rng([seed, count, most])
    every = count * (count - 1) // 2
    if every <= max(ENUMERATE_UP_TO, 4 * most):
        first, second = np.triu_indices(count, 1)
        differ = codes[first] != codes[second]
        first, second = first[differ], second[differ]
        if len(first) > most:
            kept = np.sort(rng.choice(len(first), most, replace=False))
            first, second = first[kept], second[kept]
        return Pairs(first, second)
    drawn = np.empty(0, np.int64)
    # A pair as one number, so that repeated ones are found. So many images have enough pairs unless nearly all are of one
    # identity, hence the bound on the rounds.
    for _ in range(64):
        one, other = np.sort(rng.integers(0, count, (2, 2 * most)), axis=0)
        fresh = (one * count + other)[codes[one] != codes[other]]
        together = np.concatenate([drawn, fresh])
        drawn = together[np.sort(np.unique(together, return_index=True)[1])][:most]
        if len(drawn) == most:
            break
    drawn = np.sort(drawn)
    return Pairs(drawn // count, drawn % count)


def cell_rng(seed: int, name: str, cell: Cell) -> np.random.Generator:
    """The generator for one alteration of one image: it depends on nothing else, neither on order nor on other images."""
    text = f"{seed}\0{name}\0{cell.transform}\0{cell.strength!r}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:16], "little"))


def altered(image: Pixels, name: str, seed: int, cells: Sequence[Cell] = CELLS) -> Pixels:
    """Alter one image in every cell of the paper's grid and beyond it; the size stays.

    Args:
        image: RGB, uint8 (height, width, 3).
        name: the image's name in its file list.
        seed: of the evaluation.
        cells: none of the realistic grid.

    Returns:
        uint8 (cells, height, width, 3).
    """
    return np.stack([alter(image, cell.transform, cell.strength, cell_rng(seed, name, cell)) for cell in cells])


def realistically_altered(
    image: Pixels, name: str, seed: int, size: int, cells: Sequence[Cell] = REALISTIC_CELLS, other: Pixels | None = None
) -> Pixels:
    """Alter one image in every cell of the realistic grid at its own resolution, then resize as the runtime does.

    Args:
        image: RGB, uint8 (height, width, 3), not resized.
        name: the image's name in its file list.
        seed: of the evaluation.
        size: side of what is returned, in pixels.
        cells: of the realistic grid.
        other: RGB, uint8, any size: an image of another identity, for collages.

    Returns:
        uint8 (cells, size, size, 3).
    """
    return np.stack(
        [
            resize(alter_realistically(image, cell.transform, cell.strength, cell_rng(seed, name, cell), other), size)
            for cell in cells
        ]
    )


def _pairs(pairs: Sequence[tuple[int, int]]) -> Pairs:
    array = np.asarray(pairs, np.int64).reshape(-1, 2)
    return Pairs(array[:, 0], array[:, 1])
