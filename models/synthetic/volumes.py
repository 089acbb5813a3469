"""Slices of CT and MR volumes as grey images, uint8 (height, width), windowed to the volume's own percentiles."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import nibabel
import nrrd
import numpy as np
from lcmem_onnx.runtime.errors import TrainingError
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import OrientationError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

__all__ = ["axial_slices", "planes_apart"]

APART_MM = 8.0
"""Distance of two slices that are taken for different images. Closer ones show nearly the same."""
WINDOW = (1.0, 99.5)
"""Percentiles of a volume's values that become black and white."""
SHOWS_SOMETHING = 12.0
"""Standard deviation of grey values, above which a slice shows more than background."""
SHOWS_MUCH = 25.0
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    StopIteration,
    zlib.error,
    nrrd.NRRDError,
    OverflowError,
    MemoryError,
    ImageFileError,
    HeaderDataError,
    OrientationError,
)
"""What nibabel and nrrd raise on files that are damaged, cut off, empty or of another kind."""
NARROWEST_MM, WIDEST_MM = 0.01, 100.0
"""Sides of a voxel that are believed."""
SHORTEST_SIDE = 96
LONGEST_SIDE = 512

Pixels = NDArray[np.uint8]


def axial_slices(path: Path) -> Iterator[Pixels]:
    """Every axial slice of an NRRD volume that shows something.

    Raises:
        TrainingError: it cannot be read, or is no volume.
    """
    levels, _ = _levels(path, lambda: (nrrd.read(str(path))[0], ()))
    for index in range(levels.shape[2]):
        plane = np.ascontiguousarray(levels[:, :, index].T)
        if plane.std() > SHOWS_SOMETHING:
            yield plane


def planes_apart(path: Path) -> Iterator[Pixels]:
    """Axial, coronal and sagittal slices of a NIfTI volume, `APART_MM` apart, with square pixels; those that show much.

    Raises:
        TrainingError: it cannot be read, or is no volume.
    """

    def read() -> tuple[NDArray[Any], Sequence[float]]:
        image: Any = nibabel.as_closest_canonical(nibabel.load(path))  # type: ignore[no-untyped-call]
        return np.squeeze(np.asarray(image.dataobj)), [float(each) for each in image.header.get_zooms()[:3]]

    levels, spacing = _levels(path, read)
    if not all(NARROWEST_MM <= each <= WIDEST_MM for each in spacing):
        raise TrainingError(f"{path.name} has voxels of {spacing} mm, which cannot be: fetch its package again")
    for axis in (2, 1, 0):
        across, along = (spacing[each] for each in range(3) if each != axis)
        step = max(1, round(APART_MM / spacing[axis]))
        for start in range(step // 2, levels.shape[axis], step):
            plane = _square(np.take(levels, start, axis).T[::-1, ::-1], across, along)
            if min(plane.shape) >= SHORTEST_SIDE and plane.std() > SHOWS_MUCH:
                yield plane


def _levels(path: Path, read: Callable[[], tuple[NDArray[Any], Sequence[float]]]) -> tuple[Pixels, Sequence[float]]:
    """A volume's grey levels, uint8 with three axes, and what else `read` gives."""
    try:
        with np.errstate(all="ignore"):  # a header's infinities, which are seen below
            volume, spacing = read()
    except UNREADABLE as error:
        why = " ".join(str(error).split()) or "it is empty"
        raise TrainingError(f"{path.name} cannot be read as a volume: {why}. Fetch its package again") from error
    if volume.ndim != 3 or 0 in volume.shape or volume.dtype.kind not in "iuf":
        raise TrainingError(f"{path.name} is no volume of grey values, but {volume.dtype} {volume.shape}")
    return _windowed(volume), spacing


def _windowed(volume: NDArray[Any]) -> Pixels:
    low, high = np.percentile(volume, WINDOW)
    scaled = (volume.astype(np.float32) - low) / max(float(high - low), 1e-6)
    return np.asarray(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def _square(plane: Pixels, across: float, along: float) -> Pixels:
    """With pixels as wide as they are high, the smaller of the two; no longer than `LONGEST_SIDE`."""
    height, width = plane.shape
    pixel = min(across, along)
    wide, tall = width * across / pixel, height * along / pixel
    shrink = min(1.0, LONGEST_SIDE / max(wide, tall))
    size = (max(1, round(wide * shrink)), max(1, round(tall * shrink)))
    resized = cv2.resize(np.ascontiguousarray(plane), size, interpolation=cv2.INTER_AREA if shrink < 1 else cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8)
