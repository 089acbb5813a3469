"""The pictures of a file list, decoded once and kept in memory, and windows of them at the network's size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from lcmem_onnx.evaluation.filelist import Listed, read_file_list
from lcmem_onnx.runtime.errors import FileListError, PictureError
from lcmem_onnx.runtime.pictures import open_picture
from numpy.typing import NDArray
from tqdm import tqdm

from .config import Data

__all__ = ["Identity", "Pictures", "identities", "listed"]

Pixels = NDArray[np.uint8]
DECODERS = 4
KEPT_SIDE = 1.5
"""Pictures are kept no larger than this many times the network's input, on their shorter side: enough for a window of half."""


@dataclass(frozen=True)
class Identity:
    """One identity of one data set, and the numbers of its pictures."""

    ds_name: str
    name: str
    pictures: tuple[int, ...]


def listed(data: Data, split: str) -> list[Listed]:
    """The rows of one split, of all lists together.

    Raises:
        FileListError: a list is wrong, an identity is in two splits across lists, or the split has fewer than two identities.
    """
    rows = [row for path in data.lists for row in read_file_list(path, data.base)]
    counted: dict[str, set[str]] = {}
    home: dict[tuple[str, str], str] = {}
    torn = sorted({row.identity for row in rows if home.setdefault((row.ds_name, row.identity), row.split) != row.split})
    if torn:
        raise FileListError(
            f"{len(torn)} identities are in more than one split of the lists {', '.join(map(str, data.lists))} ({torn[0]!r}, ...): "
            "what training has seen may not be measured on"
        )
    chosen = [row for row in rows if row.split == split and _wanted(data, row, counted)]
    if len({(row.ds_name, row.identity) for row in chosen}) < 2:
        raise FileListError(
            f"the {split} split of {', '.join(map(str, data.lists))} has fewer than two identities: there is nothing to tell apart"
        )
    return chosen


def _wanted(data: Data, row: Listed, counted: dict[str, set[str]]) -> bool:
    """Whether a row is of the first identities of its data set, as many as `data.most` takes."""
    its = counted.setdefault(row.ds_name, set())
    if row.identity not in its and len(its) >= data.most.get(row.ds_name, math.inf):
        return False
    its.add(row.identity)
    return True


def identities(rows: Sequence[Listed]) -> list[Identity]:
    """Rows grouped by data set and identity, in the rows' order."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        numbers.setdefault((row.ds_name, row.identity), []).append(number)
    return [Identity(ds_name, name, tuple(its)) for (ds_name, name), its in numbers.items()]


class Pictures:
    """Pictures by their number in the rows, decoded by the runtime's own reader; grey ones are kept with one channel.

    Raises:
        FileListError: one cannot be read.
    """

    def __init__(self, rows: Sequence[Listed], size: int) -> None:
        self.size = size
        with ThreadPoolExecutor(DECODERS) as pool:
            read = pool.map(self._read, (row.path for row in rows))
            self._kept = list(tqdm(read, total=len(rows), desc="reading pictures", disable=None, leave=False))

    def __len__(self) -> int:
        return len(self._kept)

    def _read(self, path: Path) -> Pixels:
        try:
            pixels = open_picture(path.read_bytes(), name_hint=path.name).frame(0)
        except (OSError, PictureError) as error:
            raise FileListError(f"{path} cannot be read: {error}") from error
        shrink = KEPT_SIDE * self.size / min(pixels.shape[:2])
        if shrink < 1:
            pixels = cv2.resize(pixels, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA).astype(np.uint8)
        if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
            return np.ascontiguousarray(pixels[..., :1])
        return pixels

    def whole(self, number: int) -> Pixels:
        """The picture at the network's size, uint8 (size, size, 3)."""
        return self._fitted(self._kept[number])

    def window(self, number: int, smallest: float, rng: np.random.Generator) -> Pixels:
        """A random part of the picture, of `smallest` to all of its area, at the network's size."""
        kept = self._kept[number]
        height, width = kept.shape[:2]
        side = float(np.sqrt(rng.uniform(smallest, 1.0)))
        tall, wide = max(1, int(height * side)), max(1, int(width * side))
        top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
        return self._fitted(kept[top : top + tall, left : left + wide])

    def _fitted(self, pixels: Pixels) -> Pixels:
        size = self.size
        if pixels.shape[:2] != (size, size):
            shrinks = min(pixels.shape[:2]) > size
            method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            resized = cv2.resize(pixels, (size, size), interpolation=method)
            pixels = np.asarray(resized, np.uint8).reshape(size, size, -1)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
