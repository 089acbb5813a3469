"""What the network sees of a frame: bit by bit what Pillow gives, however few copies lie between."""

from __future__ import annotations

import io

import numpy as np
import pytest
from lcmem_onnx.runtime.images.image import open_image
from numpy.typing import NDArray
from PIL import Image, ImageOps

SIZE = 64


def drawn(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def seen(image: Image.Image) -> NDArray[np.uint8]:
    """By Pillow alone: as a viewer turns it, in three channels, then resized."""
    whole = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("size", [(200, 150), (31, 90), (64, 64), (1, 40)])
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2, "progressive": True}])
def test_of_a_jpeg(mode: str, size: tuple[int, int], orientation: int, options: dict[str, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    drawn(*size).convert(mode).save(file, "JPEG", exif=exif, **options)
    image = open_image(file.getvalue())
    (view,) = image.views(0, SIZE)
    assert (view.dtype, view.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(view, seen(Image.open(file)))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_of_other_formats(form: str, mode: str) -> None:
    file = io.BytesIO()
    drawn(90, 70).convert(mode).save(file, form)
    (view,) = open_image(file.getvalue()).views(0, SIZE)
    np.testing.assert_array_equal(view, seen(Image.open(file)))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_frames_in_any_order(form: str) -> None:
    """A view does not change when the reader has gone on to another frame, which shares its memory."""
    frames = [drawn(80, 60, seed) for seed in range(4)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {}))
    wanted = []
    with Image.open(file) as image:
        for number in range(4):
            image.seek(number)
            wanted.append(seen(image.copy()))
    opened = open_image(file.getvalue())
    views = {number: opened.views(number, SIZE)[0] for number in (0, 2, 1, 3, 3, 0)}
    for number, view in views.items():
        np.testing.assert_array_equal(view, wanted[number])
