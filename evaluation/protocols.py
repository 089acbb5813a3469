"""The pairs that are measured: the paper's two protocols (arXiv 2512.14421, section 4), from a file list's rows."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lcmem_onnx.runtime.errors import FileListError

from .alterations import BEYOND_THE_PAPER, PAPER_GRID
from .filelist import Listed

__all__ = ["CELLS", "PAPER_CELLS", "Cell", "Pair", "alteration_rng", "data_sets", "re_identification_pairs", "spread"]

SEED = 42


@dataclass(frozen=True)
class Pair:
    """Two rows by their number, and whether they are of one identity."""

    first: int
    second: int
    same: bool


@dataclass(frozen=True)
class Cell:
    """One alteration at one strength."""

    transform: str
    strength: float
    in_paper: bool

    @property
    def name(self) -> str:
        return f"{self.transform} {self.strength:g}"


PAPER_CELLS = tuple(Cell(name, strength, True) for name, strengths in PAPER_GRID.items() for strength in strengths)
CELLS = PAPER_CELLS + tuple(Cell(name, strength, False) for name, strengths in BEYOND_THE_PAPER.items() for strength in strengths)


def data_sets(rows: Sequence[Listed]) -> dict[str, list[int]]:
    """Numbers of the rows of each `ds_name`, both in the list's order."""
    found: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        found.setdefault(row.ds_name, []).append(number)
    return found


def re_identification_pairs(rows: Sequence[Listed], seed: int = SEED) -> dict[str, list[Pair]]:
    """For every picture of an identity with two or more: one positive and one negative pair, within each `ds_name`.

    The positive is the next picture of the identity, cyclic; the negative the first picture of a random other identity. As in
    the reference, one `random.Random(seed)` draws for all data sets, in the order in which the list names them, and identities
    are counted in sorted order (as numbers, if all are): so the same list and seed give the reference's pairs.

    Raises:
        FileListError: no data set has an identity with two pictures and another to set against it.
    """
    rng = random.Random(seed)
    found: dict[str, list[Pair]] = {}
    for ds_name, numbers in data_sets(rows).items():
        pictures: dict[str, list[int]] = {}
        for number in numbers:
            pictures.setdefault(rows[number].identity, []).append(number)
        people = sorted(pictures, key=int) if all(name.isdecimal() for name in pictures) else sorted(pictures)
        if len(people) < 2:
            continue
        pairs: list[Pair] = []
        for at, name in enumerate(people):
            its = pictures[name]
            for number, picture in enumerate(its if len(its) > 1 else ()):
                pairs.append(Pair(picture, its[(number + 1) % len(its)], True))
                other = at
                while other == at:
                    other = rng.randint(0, len(people) - 1)
                pairs.append(Pair(picture, pictures[people[other]][0], False))
        if pairs:
            found[ds_name] = pairs
    if not found:
        raise FileListError(
            "there is nothing to re-identify: no data set (ds_name) of this split has an identity with two pictures or more, and "
            "another identity to set against it"
        )
    return found


def spread(rows: Sequence[Listed], limit: int | None) -> list[Listed]:
    """At most `limit` rows of each data set, one of each identity before a second of any; in the list's order."""
    if limit is None:
        return list(rows)
    kept: set[int] = set()
    for numbers in data_sets(rows).values():
        turns: dict[str, int] = {}
        ranked = []
        for number in numbers:
            turn = turns.get(rows[number].identity, 0)
            turns[rows[number].identity] = turn + 1
            ranked.append((turn, number))
        kept |= {number for _, number in sorted(ranked)[:limit]}
    return [row for number, row in enumerate(rows) if number in kept]


def alteration_rng(seed: int, picture: str, cell: Cell) -> np.random.Generator:
    """The generator of one picture's alteration: the same for every scorer, and whatever else is measured."""
    digest = hashlib.sha256(f"{seed}\0{picture}\0{cell.name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
