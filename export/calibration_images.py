"""The images that an export is measured on and calibrated with: the user's, or some of the package's own and drawn ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lcmem_onnx.evaluation.alterations import alter
from lcmem_onnx.models.synthetic.phantoms import phantom
from lcmem_onnx.models.synthetic.scenes import scene
from lcmem_onnx.runtime.errors import ImageError, UsageError
from lcmem_onnx.runtime.images.formats import read_file
from lcmem_onnx.runtime.images.image import open_image
from lcmem_onnx.runtime.images.preprocess import is_blank, resize
from numpy.typing import NDArray

from .parity import SAMPLES, SUFFIXES, images_in

__all__ = ["ALTERATIONS", "SMALL", "ImageSets", "choose_sets", "with_copies"]

ImageSet = NDArray[np.uint8]
SMALL = 256
MEASURED, CALIBRATED = (16, 3), (96, 8)
"""At most so many images, up to `SMALL` and above. Measured ones are embedded four times each, altered, in torch and in every
variant: an image of the full-size network takes five seconds on two cores, and an export shall take minutes."""
DRAWN = 3_000_000
"""First seed of drawn images: beyond those that any training draws."""
ALTERATIONS = (("rotation", 10.0), ("brightness", 1.3), ("jpeg", 40.0))


@dataclass(frozen=True, eq=False)
class ImageSets:
    """Images at the network's size, uint8 (n, size, size, 3): no image is in both sets.

    Attributes:
        measured: what drift is measured on.
        calibration: what int8 is calibrated with.
        about: where the two are from, in words.
        warning: what a user should know of the calibration set, if anything.
    """

    measured: ImageSet
    calibration: ImageSet
    about: str
    warning: str | None


def choose_sets(folder: Path | None, calibration: Path | None, size: int, calibration_name: str | None = None) -> ImageSets:
    """Read the user's images, spread over the folders, or take the package's and draw others.

    Args:
        folder: images to measure on; if None, some of `calibration` that calibration does not use, or the package's.
        calibration: images to calibrate with; if None, drawn ones.
        size: the network's image size.
        calibration_name: what `calibration` holds, in words; None calls it by its path.

    Raises:
        UsageError: a folder holds too few images.
    """
    few = int(size > SMALL)
    measured, calibrated = MEASURED[few], CALIBRATED[few]
    if calibration is None:
        warning = "int8 is calibrated on drawn images: give some like your own with --calibration DIR"
        about = f"{folder or 'images of the package and drawn ones'}; drawn ones"
        seen = _read(_listed(folder), measured, size) if folder else _own(measured, size)
        return ImageSets(seen, _drawn(DRAWN + 1000, calibrated, size), about, warning)
    found, called = _listed(calibration), calibration_name or str(calibration)
    if folder is not None:
        return ImageSets(_read(_listed(folder), measured, size), _read(found, calibrated, size), f"{folder}; {called}", None)
    if len(found) < 8:
        raise UsageError(f"{calibration} holds {len(found)} images; calibration takes 8 or more, 64 are better")
    # Every fourth to measure on, spread like the rest.
    kept_back, rest = found[::4], [path for index, path in enumerate(found) if index % 4]
    return ImageSets(_read(kept_back, measured, size), _read(rest, calibrated, size), f"{called}, split", None)


def with_copies(images: ImageSet) -> tuple[ImageSet, NDArray[np.int64]]:
    """Each image followed by its altered copies, (n * 4, size, size, 3), and which image each shows, (n * 4,)."""
    versions: list[ImageSet] = []
    shows: list[int] = []
    for number, image in enumerate(images):
        rng = np.random.default_rng([0xD81F7, number])
        versions.append(image)
        versions.extend(alter(image, name, strength, rng) for name, strength in ALTERATIONS)
        shows.extend([number] * (1 + len(ALTERATIONS)))
    return np.stack(versions), np.array(shows)


def _own(count: int, size: int) -> ImageSet:
    """The package's images, and drawn ones."""
    samples = _read(_listed(SAMPLES), count, size)
    missing = count - len(samples)
    return np.concatenate([samples, _drawn(DRAWN, missing, size)]) if missing > 0 else samples


def _drawn(first: int, count: int, size: int) -> ImageSet:
    """As many scenes as phantoms, or one more."""
    scenes, phantoms = (range(first, first + half) for half in (count - count // 2, count // 2))
    return np.stack([*(scene(seed, size) for seed in scenes), *(phantom(seed, 0, size) for seed in phantoms)])


def _listed(folder: Path) -> list[Path]:
    return images_in(folder, SUFFIXES | {".dcm"})


def _read(paths: Sequence[Path], most: int, size: int) -> ImageSet:
    """Up to `most` readable images that show something, evenly chosen."""
    step = max(1, len(paths) // most)
    images: list[ImageSet] = []
    for path in [*paths[::step], *(path for index, path in enumerate(paths) if index % step)]:
        if len(images) == most:
            break
        try:
            resized = resize(open_image(read_file(path)).frame(0), size)
        except ImageError:
            continue  # a scan would report it; here another image serves as well
        if not is_blank(resized):
            images.append(resized)
    if len(images) < 2:
        where = paths[0].parent if paths else "the folder"
        raise UsageError(f"{where} holds {len(images)} images that can be read and show something; two or more are needed")
    return np.stack(images)
