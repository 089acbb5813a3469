"""RGB pixels to the network's input size, as the reference does it, and the test for an image that shows nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UsageError

__all__ = ["BLANK_LEVELS", "PREPROCESSING", "Pixels", "as_array", "check_rgb", "is_blank", "resize", "turned"]

Pixels = NDArray[np.uint8] | Image.Image
"""One image: RGB, uint8 (height, width, 3), or as Pillow decoded it, in mode RGB or L. Between the two lies a copy, which costs as
much as the decoding: so what is only resized stays as it is."""

BLANK_LEVELS = 2
"""An image whose values span no more levels than this (of 255, in each channel) shows nothing that an eye can see.
Rounding and lossy compression turn an empty image into one of 1 or 2 levels; the faintest radiographs seen span
tens."""

PREPROCESSING: dict[str, Any] = {
    "resize": "bilinear",
    "antialias": True,
    "keep_aspect": False,
    "resampler": "Pillow",
    "rounding": "uint8 after each pass",
    "range": [0.0, 1.0],
}
"""What a bundle's manifest says of the way from RGB pixels to the network: this module, then division by 255 in the
graph."""


_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Turn an image so that it is seen as EXIF's orientation, 1 to 8, says; other values mean nothing."""
    if isinstance(pixels, Image.Image):
        return pixels.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else pixels
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def as_array(pixels: Pixels) -> NDArray[np.uint8]:
    """Return RGB, uint8 (height, width, 3): the array itself, or a copy of what Pillow decoded."""
    return np.array(pixels.convert("RGB"), np.uint8) if isinstance(pixels, Image.Image) else pixels


def resize(pixels: Pixels, size: int) -> NDArray[np.uint8]:
    """Resize to a square by bilinear interpolation, antialiased where it shrinks; the aspect ratio is not kept.

    It is Pillow that resamples, because the reference's `transforms.Resize` does it on a PIL image: a triangle filter
    that widens with the scale, along one axis and then the other, rounded to uint8 between the two. (Rows come first;
    Pillow 13 begins with the columns where that is less work, which moves some values by one level.) OpenCV's resizing
    and ONNX's Resize operator give other values (up to 28 and 7 levels off), and with them other scores.

    Args:
        pixels: of any size from 1 x 1. Grey in one channel gives what the same grey in three gives.
        size: the side, 1 or more.

    Returns:
        uint8 (size, size, 3), a new array.

    Raises:
        UsageError: an array of another shape or dtype, an image of another mode, or a size below 1.
    """
    if isinstance(pixels, Image.Image):
        image = pixels
        if image.mode not in ("RGB", "L"):
            raise UsageError(f"an image must have mode RGB or L to be resized, got {image.mode}")
    else:
        check_rgb(pixels)
        image = Image.fromarray(np.ascontiguousarray(pixels))
    if size < 1:
        raise UsageError(f"image size must be 1 or more, got {size}")
    return as_array(image.resize((size, size), Image.Resampling.BILINEAR))


def check_rgb(pixels: NDArray[np.uint8]) -> None:
    """Raise a UsageError unless `pixels` is an RGB image: uint8 (height, width, 3), not empty."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise UsageError(f"an image must be RGB, uint8 (height, width, 3), got {pixels.dtype} {pixels.shape}")


def is_blank(pixels: NDArray[np.uint8]) -> bool:
    """Whether an image shows nothing: no channel spans more than `BLANK_LEVELS` levels.

    Such an image is never passed as clear: its embedding says nothing, and any other blank image would match it.
    Each channel counts by itself, so that a plain red image is blank too. Ask it of the resized image: that is what
    the network sees.

    Args:
        pixels: uint8 (height, width, channels).
    """
    # Along the columns first, whose rows are long enough to be compared many values at once.
    spread = pixels.max(axis=0).max(axis=0).astype(np.int16) - pixels.min(axis=0).min(axis=0)
    return bool((spread <= BLANK_LEVELS).all())
