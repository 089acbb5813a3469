"""Slices of people that never were: each slice of a real volume, smoothly deformed.

Public packages hold the volumes of a handful of people. A network that has seen no two chests at the same height learns to tell
a chest from a head, and takes the chests of two patients for one. A smooth deformation keeps what all people share (texture, the
order of organs) and changes what sets them apart (widths, outlines, distances), which turning, cropping or mirroring a copy
does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import cv2
import numpy as np
from lcmem_onnx.console.exit_codes import Ending
from lcmem_onnx.evaluation.filelist import Listed, read_file_list, write_file_list
from lcmem_onnx.runtime.errors import TrainingError
from numpy.typing import NDArray
from tqdm import tqdm

from .generate import write_png

__all__ = ["another_body", "bodies"]

STRETCH, SHEAR = 0.14, 0.05
"""Greatest change of width or height, and of the axes' angle, as shares."""
BENDS = ((3, 0.024), (5, 0.012), (9, 0.004))
"""Control points a side, less the two outside of it, and the standard deviation of their displacement as a share of the side."""
SHADES = 0.12
"""Standard deviation of the logarithm of the exponent that the grey values are raised to."""

Pixels = NDArray[np.uint8]


def another_body(slice_: Pixels, rng: np.random.Generator) -> Pixels:
    """A slice, uint8 (height, width) or (height, width, 3), as of another person; of the same shape."""
    height, width = slice_.shape[:2]
    y, x = np.meshgrid(np.linspace(-0.5, 0.5, height), np.linspace(-0.5, 0.5, width), indexing="ij")
    stretch = np.exp(rng.uniform(-STRETCH, STRETCH, 2))
    shear = rng.uniform(-SHEAR, SHEAR)
    sources = np.stack([x * stretch[0] + shear * y, y * stretch[1]])
    for points, by in BENDS:
        for axis in range(2):
            field = rng.normal(0.0, by, (points + 2, points + 2)).astype(np.float32)
            sources[axis] += cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    to_x, to_y = ((part + 0.5) * (side - 1) for part, side in zip(sources, (width, height), strict=True))
    bent = cv2.remap(slice_, to_x.astype(np.float32), to_y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    levels = 255.0 * (np.arange(256) / 255.0) ** np.exp(rng.normal(0.0, SHADES))
    return np.asarray(cv2.LUT(bent, np.round(levels).astype(np.uint8)), np.uint8)


def bodies(slices: Sequence[Listed], out: Path, count: int, first: int = 0) -> list[Listed]:
    """Write `count` other bodies of each slice, and `list.csv`, into `out`; each image is an identity of its own.

    An image is a function of the slice's place in the list and its own number, counted from `first`.

    Raises:
        TrainingError: there are no slices, one cannot be read, or `out` cannot be written.
    """
    if not slices:
        raise TrainingError("no slice to deform: no volume could be fetched. See above which packages failed, and run it again")
    rows = []
    try:
        (out / "pictures").mkdir(parents=True, exist_ok=True)
        for place, row in enumerate(tqdm(slices, desc="bodies", disable=None)):
            read = cv2.imread(str(row.path), cv2.IMREAD_GRAYSCALE)
            if read is None:
                raise TrainingError(f"{row.path} cannot be read as an image: fetch it again")
            slice_ = np.asarray(read, np.uint8)
            for number in range(first, first + count):
                name = f"pictures/{place:04d}-{number:02d}.png"
                write_png(out / name, another_body(slice_, np.random.default_rng([0, place, number])))
                rows.append(replace(row, identity=f"{row.identity}-{number}", name=name, path=out / name, ds_name="bodies"))
        write_file_list(out / "list.csv", rows)
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error}") from error
    return rows


@click.command(cls=Ending)
@click.option(
    "--slices",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="A file list, later.csv of models.photographs say; its data set 'slices' is deformed.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for images and list.csv.")
@click.option("--count", type=click.IntRange(1, 100), default=14, show_default=True, help="Bodies of each slice.")
def main(slices: Path, out: Path, count: int) -> None:
    """Deform slices of real volumes into those of people who never were."""
    rows = bodies([row for row in read_file_list(slices) if row.ds_name == "slices"], out, count)
    click.echo(f"{len(rows)} images are in {out}", err=True)


if __name__ == "__main__":
    main()
