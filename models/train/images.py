"""The images of a file list, read and decoded when they are asked for, at the network's size or at their own.

None is kept in memory: a list of 100,000 files takes 0.1 GB. Images are resized by
`runtime.preprocess.resize`, as inference does it: another filter in training would be a train/serve skew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lcmem_onnx.evaluation.filelist import Listed, read_file_list
from lcmem_onnx.runtime.errors import FileListError, ImageError
from lcmem_onnx.runtime.images.image import DEFAULT_LIMITS, open_image, read_file
from lcmem_onnx.runtime.images.preprocess import resize
from numpy.typing import NDArray
from PIL import Image

from .config import Data

__all__ = ["Identity", "ImageSet", "identities", "listed"]

Pixels = NDArray[np.uint8]
DECODERS = 4
"""Threads that decode where many images are wanted at once."""
WORKING_SIDE = 1.5
"""Images are altered at their own resolution, but no larger than this many times the network's input on their shorter side."""


@dataclass(frozen=True)
class Identity:
    """One identity of one data set (or one group of it: one view, side or contrast), and the numbers of its images."""

    ds_name: str
    name: str
    images: tuple[int, ...]


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


def identities(rows: Sequence[Listed], *, by_group: bool = False) -> list[Identity]:
    """Rows gathered by data set and identity, in the rows' order; `by_group` by the list's `group` where it has one."""
    numbers: dict[tuple[str, str, str], list[int]] = {}
    for number, row in enumerate(rows):
        numbers.setdefault((row.ds_name, row.identity, row.group if by_group else ""), []).append(number)
    return [Identity(ds_name, name, tuple(its)) for (ds_name, name, _), its in numbers.items()]


class ImageSet:
    """Images by their number in the rows, read by the runtime's own reader each time one is asked for.

    Every method raises a FileListError that names the file if it cannot be read.
    """

    def __init__(self, rows: Sequence[Listed], size: int) -> None:
        self._rows, self.size = rows, size

    def __len__(self) -> int:
        return len(self._rows)

    def original(self, number: int) -> Pixels:
        """Return the image at its own resolution: RGB, uint8 (height, width, 3), the first frame of several."""
        path = self._rows[number].path
        try:
            return open_image(read_file(path, DEFAULT_LIMITS), DEFAULT_LIMITS, path.name).frame(0)
        except (OSError, ImageError) as error:
            raise FileListError(f"{path} cannot be read: {error}. Repair it, or take it off the list") from error

    def working(self, number: int) -> Pixels:
        """Return the image as it is altered: at its own resolution, shrunk where that is far above the network's."""
        pixels = self.original(number)
        height, width = pixels.shape[:2]
        scale = WORKING_SIDE * self.size / min(height, width)
        if scale >= 1:
            return pixels
        smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
        return np.asarray(Image.fromarray(pixels).resize(smaller, Image.Resampling.BILINEAR))

    def whole(self, number: int) -> Pixels:
        """Return the image at the network's size, uint8 (size, size, 3)."""
        return resize(self.original(number), self.size)

    def window(self, number: int, smallest: float, rng: np.random.Generator) -> Pixels:
        """Return a random part of the image, of `smallest` to all of its area, at the network's size."""
        pixels = self.original(number)
        height, width = pixels.shape[:2]
        side = float(np.sqrt(rng.uniform(smallest, 1.0)))
        tall, wide = max(1, int(height * side)), max(1, int(width * side))
        top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
        return resize(pixels[top : top + tall, left : left + wide], self.size)
