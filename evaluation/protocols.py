"""Which pictures are compared with which: the paper's two protocols as lists of pairs, the same ones for the same seed.

* Re-identification: for every picture of an identity with two or more, one pair of the same identity (its next picture,
  cyclic) and one of different ones (the first picture of a random other identity), within one `ds_name`, drawn as the
  reference draws them.
* Copy detection: every picture with itself, altered, a pair a cell; against pairs of pictures of different identities.
  Pictures of one identity are neither: to LCMem they show the same, though they are no copies.

The order of the file list decides which picture is an identity's first and next, as in the reference.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .alterations import BEYOND_THE_PAPER, PAPER_GRID, alter

__all__ = ["CELLS", "Cell", "Pairs", "altered", "cell_rng", "different_pairs", "reidentification_pairs"]

Indices = NDArray[np.int64]
Pixels = NDArray[np.uint8]
ENUMERATE_UP_TO = 20_000_000
"""Pairs that are written down before some are drawn; of more, pairs are drawn one by one and repeated ones dropped."""


@dataclass(frozen=True)
class Cell:
    """One transform at one strength; `paper` tells the paper's 24 from those beyond it."""

    transform: str
    strength: float
    paper: bool

    @property
    def name(self) -> str:
        """As tables show it: "blur 0.1"; a transform that has no strength to choose stands alone."""
        return f"{self.transform} {self.strength:g}" if self.strength != 1 or self.paper else self.transform


CELLS = tuple(
    Cell(transform, strength, paper)
    for grid, paper in ((PAPER_GRID, True), (BEYOND_THE_PAPER, False))
    for transform, strengths in grid.items()
    for strength in strengths
)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs by the pictures' numbers: `first` and `second`, int64 (n,) each."""

    first: Indices
    second: Indices

    def __len__(self) -> int:
        return len(self.first)


def reidentification_pairs(identities: Sequence[str], rng: random.Random | None = None) -> tuple[Pairs, Pairs]:
    """The pairs of one data set: those of one identity, and as many of different ones, picture by picture.

    The reference's draw: identities are counted in sorted order (as numbers, if all are numbers, since it reads its list with
    pandas), the other one is drawn again until it is another, and one generator serves all data sets, in the list's order.

    Args:
        identities: of each picture, in the list's order.
        rng: draws the other identities; `random.Random(42)` if not given.

    Returns:
        Pairs of the same identity and pairs of different ones; the n-th of both have the same first picture. Both are empty
        when no identity has two pictures, or when there is only one identity.
    """
    rng = rng or random.Random(42)
    pictures: dict[str, list[int]] = {}
    for number, identity in enumerate(identities):
        pictures.setdefault(identity, []).append(number)
    everyone = sorted(pictures, key=int) if all(identity.isdecimal() for identity in pictures) else sorted(pictures)
    same: list[tuple[int, int]] = []
    different: list[tuple[int, int]] = []
    for own, identity in enumerate(everyone):
        numbers = pictures[identity]
        if len(numbers) < 2 or len(everyone) < 2:
            continue
        for place, number in enumerate(numbers):
            same.append((number, numbers[(place + 1) % len(numbers)]))
            other = own
            while other == own:
                other = rng.randint(0, len(everyone) - 1)
            different.append((number, pictures[everyone[other]][0]))
    return _pairs(same), _pairs(different)


def different_pairs(identities: Sequence[str], most: int, seed: int = 42) -> Pairs:
    """All pairs of pictures of different identities, the smaller number first; `most` random ones where there are more.

    Args:
        identities: of each picture.
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
    # A pair as one number, so that repeated ones are found. So many pictures have enough pairs unless nearly all are of one
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
    """The generator for one alteration of one picture: it depends on nothing else, neither on order nor on other pictures."""
    text = f"{seed}\0{name}\0{cell.transform}\0{cell.strength!r}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:16], "little"))


def altered(picture: Pixels, name: str, seed: int, cells: Sequence[Cell] = CELLS) -> Pixels:
    """One picture in every cell.

    Args:
        picture: RGB, uint8 (height, width, 3).
        name: the picture's name in its file list.
        seed: of the evaluation.

    Returns:
        uint8 (cells, height, width, 3).
    """
    return np.stack([alter(picture, cell.transform, cell.strength, cell_rng(seed, name, cell)) for cell in cells])


def _pairs(pairs: Sequence[tuple[int, int]]) -> Pairs:
    array = np.asarray(pairs, np.int64).reshape(-1, 2)
    return Pairs(array[:, 0], array[:, 1])
