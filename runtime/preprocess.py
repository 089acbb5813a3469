"""RGB pixels to the network's input size, as the reference does it, and the test for a picture that shows nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import UsageError

__all__ = ["BLANK_LEVELS", "PREPROCESSING", "check_rgb", "is_blank", "resize"]

BLANK_LEVELS = 2
"""A picture whose values span no more levels than this (of 255, in each channel) shows nothing that an eye can see.
Rounding and lossy compression turn an empty picture into one of 1 or 2 levels; the faintest radiographs seen span
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


def resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize to a square by bilinear interpolation, antialiased where it shrinks; the aspect ratio is not kept.

    It is Pillow that resamples, because the reference's `transforms.Resize` does it on a PIL image: a triangle filter
    that widens with the scale, along one axis and then the other, rounded to uint8 between the two. (Rows come first;
    Pillow 13 begins with the columns where that is less work, which moves some values by one level.) OpenCV's resizing
    and ONNX's Resize operator give other values (up to 28 and 7 levels off), and with them other scores.

    Args:
        pixels: RGB, uint8 (height, width, 3), any size from 1 x 1.
        size: the side, 1 or more.

    Returns:
        uint8 (size, size, 3), a new array.

    Raises:
        UsageError: an array of another shape or dtype, or a size below 1.
    """
    check_rgb(pixels)
    if size < 1:
        raise UsageError(f"a picture cannot be resized to {size} x {size}; the size must be 1 or more")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR), dtype=np.uint8)


def check_rgb(pixels: NDArray[np.uint8]) -> None:
    """Raise a UsageError unless `pixels` is an RGB picture: uint8 (height, width, 3), not empty."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise UsageError(f"a picture must be RGB, uint8, (height, width, 3); this one is {pixels.dtype} {pixels.shape}")


def is_blank(pixels: NDArray[np.uint8]) -> bool:
    """Whether a picture shows nothing: no channel spans more than `BLANK_LEVELS` levels.

    Such a picture is never passed as clear: its embedding says nothing, and any other blank picture would match it.
    Each channel counts by itself, so that a plain red picture is blank too. Ask it of the resized picture: that is what
    the network sees.

    Args:
        pixels: uint8 (height, width, channels).
    """
    flat = pixels.reshape(-1, pixels.shape[-1])
    spread = flat.max(axis=0).astype(np.int16) - flat.min(axis=0)
    return bool((spread <= BLANK_LEVELS).all())
