"""Decoded samples of a raster image to RGB renderings: bit depth, sample format, polarity, palette, transparency.

A decoder gives arrays; what they look like on a screen is decided here, for all raster formats alike:

* Unsigned samples of up to 16 bits are scaled by their nominal depth (see `depth`).
* Other samples (signed, 32 bits and more, floating point) have no depth to go by: from the smallest to the largest finite one.
* Grey of more than 8 bits has a second rendering by `PERCENTILES` of its values, as a DICOM object's grey has.
* An image with transparency is flattened on white, then on black. A fully opaque one has one rendering, as if it had no alpha.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import ImageError, Reason
from ..bit_depth import nominal_depth, percentile_range, stretched, to_8_bit
from ..content_flags import ContentFlag
from ..preprocess import BLANK_LEVELS, Pixels

__all__ = [
    "Alpha",
    "Decoded",
    "Renderings",
    "color_renderings",
    "converted",
    "flattened",
    "grey_renderings",
    "has_hidden_image",
    "levels",
]

Renderings = tuple[NDArray[np.uint8], ...]
_HIDDEN_PIXELS = 1024
"""Fewer transparent pixels than these hold nothing that a person would recognize."""
_LOOKED_AT = 1 << 15
_HIDDEN_LEVELS = 8 * BLANK_LEVELS
"""Spread of the colors under full transparency, of 255, up to which they count as one color."""
_SMALL = 256
_FAINT = 0.1
"""Share of the other rendering's edges below which an image has vanished in its background, as black lines do in black."""


@dataclass(frozen=True, eq=False)
class Alpha:
    """Opacity of each pixel.

    Attributes:
        values: uint8 or uint16 (height, width), or floats from 0 to 1.
        top: the value that means opaque.
        premultiplied: whether the colors are stored multiplied by it ("associated" alpha).
    """

    values: NDArray[Any]
    top: float
    premultiplied: bool = False

    @property
    def opaque(self) -> bool:
        """Whether every pixel is."""
        return bool(self.values.min() >= self.top)


@dataclass(frozen=True, eq=False)
class Decoded:
    """One frame as it was decoded.

    Attributes:
        renderings: not yet turned; an image as Pillow decoded it where nothing had to be done to it.
        orientation: as EXIF numbers it, 1 to 8.
        notes: what decoding it has shown.
    """

    renderings: tuple[Pixels, ...]
    orientation: int = 1
    notes: frozenset[ContentFlag] = frozenset()


def levels(values: NDArray[Any], top: int | None = None) -> NDArray[np.uint8]:
    """Scale unsigned samples to uint8 of the same shape, by their nominal depth.

    Args:
        values: unsigned integers.
        top: the largest value that the file allows; None where that is all that the dtype holds.
    """
    if values.dtype.itemsize == 1 and top in (None, 255):
        return values
    if top in (None, 0xFFFF):  # the file's depth says nothing: radiographs of 12 bits are kept in 16
        return to_8_bit(values, nominal_depth(int(values.max())))
    table = np.minimum(np.rint(np.arange(max(int(values.max()), top) + 1) * (255 / top)), 255).astype(np.uint8)
    scaled: NDArray[np.uint8] = table[values]
    return scaled


def grey_renderings(
    values: NDArray[Any], *, top: int | None = None, inverted: bool = False, alpha: Alpha | None = None
) -> Renderings:
    """Render grey samples.

    Args:
        values: (height, width), of any integer or floating-point dtype.
        top: the largest value that the file allows for unsigned samples; None for all that the dtype holds.
        inverted: whether 0 is white.
        alpha: opacity.

    Returns:
        RGB, uint8 (height, width, 3), one to four of them; first as a viewer shows it on white.

    Raises:
        ImageError: not-finite, where no value is finite.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        greys = [levels(values, top)]
        if values.dtype.itemsize == 2 and (top is None or top > 255):
            greys.append(_by_percentiles(values))
    else:
        finite = _finite(values)
        greys = [stretched(_filled(values), float(finite.min()), float(finite.max())), _by_percentiles(_filled(values))]
    rendered: list[NDArray[np.uint8]] = []
    for grey in greys:
        rgb = np.repeat((255 - grey if inverted else grey)[..., None], 3, axis=2)
        rendered += flattened(rgb, alpha)
    return tuple(rendered)


def color_renderings(values: NDArray[Any], *, top: int | None = None, alpha: Alpha | None = None) -> Renderings:
    """Render RGB samples.

    Args:
        values: (height, width, 3), of any integer or floating-point dtype.
        top: the largest value that the file allows for unsigned samples; None for all that the dtype holds.
        alpha: opacity.

    Returns:
        RGB, uint8 (height, width, 3), one or two of them.

    Raises:
        ImageError: not-finite, where no value is finite.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return flattened(levels(values, top), alpha)
    finite = _finite(values)
    low, high = float(finite.min()), float(finite.max())
    if values.dtype.kind == "f" and low >= 0 and high <= 1:  # as such files have it by convention
        low, high = 0.0, 1.0
    return flattened(stretched(_filled(values), low, high), alpha)


def converted(mode: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert 8-bit colors of another space to RGB as Pillow does, without a profile.

    Args:
        mode: "CMYK", "YCbCr" or "LAB".
        values: uint8 or int8 (height, width, channels).

    Returns:
        RGB, uint8 (height, width, 3).

    Raises:
        ImageError: unsupported; samples of another dtype.
    """
    if values.dtype not in (np.uint8, np.int8):
        raise ImageError(Reason.UNSUPPORTED, f"{mode} of {values.dtype} samples is not supported")
    size = (values.shape[1], values.shape[0])
    return np.array(Image.frombytes(mode, size, np.ascontiguousarray(values).tobytes(), "raw", mode).convert("RGB"), np.uint8)


def flattened(rgb: NDArray[np.uint8], alpha: Alpha | None) -> Renderings:
    """Put an image on white and on black.

    Args:
        rgb: uint8 (height, width, 3).
        alpha: its opacity; None for an opaque image.

    Returns:
        The image itself where it is opaque; else on white, and on black. A rendering in which the image vanishes is left out: what
        little remains, as a gray dot beside black lines on black, would match whatever else leaves the same.
    """
    if alpha is None or alpha.opaque:
        return (rgb,)
    opacity = alpha.values
    if alpha.top != 255:
        opacity = np.rint(np.clip(opacity * np.float64(255 / alpha.top), 0, 255))
    shares = cv2.merge([np.ascontiguousarray(opacity, np.uint8)] * 3)
    colors = np.ascontiguousarray(rgb)
    black = np.asarray(colors if alpha.premultiplied else cv2.multiply(colors, shares, scale=1 / 255), np.uint8)
    white = np.asarray(cv2.add(black, 255 - shares), np.uint8)
    edges = _edges(white), _edges(black)
    if edges[1] < _FAINT * edges[0]:
        return (white,)
    return (black,) if edges[0] < _FAINT * edges[1] else (white, black)


def _edges(rgb: NDArray[np.uint8]) -> float:
    """How much there is to see: the sum of differences between neighbours, in a small version."""
    step = max(1, max(rgb.shape[:2]) // (2 * _SMALL))
    rgb = np.ascontiguousarray(rgb[::step, ::step])
    height, width = rgb.shape[:2]
    scale = min(1.0, _SMALL / max(height, width))
    small = cv2.resize(rgb, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
    return float(sum(np.abs(np.diff(small.astype(np.float32), axis=axis)).sum() for axis in (0, 1)))


def has_hidden_image(rgb: NDArray[np.uint8], alpha: Alpha | None) -> bool:
    """Whether fully transparent pixels differ in color, so that an image shows once the transparency is dropped."""
    if alpha is None or alpha.premultiplied:
        return False
    unseen = rgb[alpha.values == 0]
    if len(unseen) < _HIDDEN_PIXELS:
        return False
    unseen = unseen[:: max(1, len(unseen) // _LOOKED_AT)]
    low, high = np.percentile(unseen, (1, 99), axis=0, method="inverted_cdf").astype(np.int16)
    return bool((high - low).max() > _HIDDEN_LEVELS)


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind != "f":
        return values
    mask = np.isfinite(values)
    if mask.all():
        return values
    finite: NDArray[Any] = values[mask]
    if not finite.size:
        raise ImageError(Reason.NOT_FINITE, "all pixels are NaN or infinite")
    return finite


def _filled(values: NDArray[Any]) -> NDArray[Any]:
    """Values in which what is not a number is the smallest finite one; infinite ones stay."""
    if values.dtype.kind != "f":
        return values
    missing = np.isnan(values)
    return np.where(missing, _finite(values).min(), values) if missing.any() else values


def _by_percentiles(values: NDArray[Any]) -> NDArray[np.uint8]:
    return stretched(values, *percentile_range(*np.unique(_finite(values), return_counts=True)))
