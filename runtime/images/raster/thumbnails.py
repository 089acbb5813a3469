"""Whether a thumbnail shows what its image shows.

Nearly every photo of a camera holds a thumbnail of itself; to flag them all would hide the few that matter: those left by a program
that cropped, redacted or replaced the image and not its thumbnail.

Both are brought to a small grid, smoothed (resamplers, sharpening and JPEG differ by a pixel) and compared in blocks. Brightness
and contrast may differ as a whole; no single block may. So a thumbnail of a redacted image differs in the block that was redacted,
however alike the two are elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["shows_the_same"]

_GRID = 96
"""Longer side of the grid on which the two are compared, in pixels."""
_BLOCK = 6
_SMOOTHING = 1.2
_LEVELS = 24.0
"""Mean difference of a block, of 255, from which on it shows something else."""
_SLOPES = (0.6, 1.6)
"""Contrast of the thumbnail relative to the image's."""
_FURTHEST = 2
_SHIFTS = [(rows, columns) for rows in (-2, -1, 0, 1, 2) for columns in (-2, -1, 0, 1, 2) if rows or columns]
"""How far a block may lie from its place, in pixels of the grid."""
_MARGIN = 0.02
"""Share of each side that is not compared: thumbnails are cut to whole pixels and blocks."""


def shows_the_same(image: NDArray[np.uint8], thumbnail: NDArray[np.uint8]) -> bool:
    """Tell whether a thumbnail is the image made small.

    Args:
        image: RGB, uint8 (height, width, 3), not turned by EXIF.
        thumbnail: the same, of any size; it may have bars, be cropped to another shape, or be turned.

    Returns:
        False where any part of it may show something else.
    """
    small = _reduced(image, 4 * _GRID)
    for turned in (thumbnail, *(np.rot90(thumbnail, turns) for turns in (1, 2, 3)), thumbnail[..., ::-1]):
        if any(_alike(one, other) for one, other in _fitted(small, np.ascontiguousarray(turned))):
            return True
    return False


def _reduced(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The image with its longer side at most `side`."""
    height, width = image.shape[:2]
    step = max(height, width) // side  # single pixels will do, since several of them are averaged again
    image = image[::step, ::step] if step > 1 else image
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _fitted(image: NDArray[np.uint8], thumbnail: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Pairs of the same shape: stretched, without the thumbnail's bars, and with the image cropped to the thumbnail's shape."""
    shape, other = image.shape[1] / image.shape[0], thumbnail.shape[1] / thumbnail.shape[0]
    if abs(np.log(shape / other)) < 0.06:
        yield image, thumbnail
        return
    inner = _centred(thumbnail, shape)
    if _plain(thumbnail, inner):  # what it loses are bars, and not a part of an image
        yield image, inner
    yield _centred(image, other), thumbnail


def _centred(image: NDArray[np.uint8], shape: float) -> NDArray[np.uint8]:
    """The largest part around the middle whose width is `shape` times its height."""
    height, width = image.shape[:2]
    inner_width = min(width, max(1, round(height * shape)))
    inner_height = min(height, max(1, round(width / shape)))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return image[top : top + inner_height, left : left + inner_width]


def _plain(whole: NDArray[np.uint8], inner: NDArray[np.uint8]) -> bool:
    """Whether what lies around the inner part is of one color."""
    rows, columns = (whole.shape[0] - inner.shape[0]) // 2, (whole.shape[1] - inner.shape[1]) // 2
    rows, columns = max(rows - 1, 0), max(columns - 1, 0)
    strips = [whole[:rows], whole[len(whole) - rows :], whole[:, :columns], whole[:, whole.shape[1] - columns :]]
    return all(not strip.size or float(strip.reshape(-1, 3).std(axis=0).max()) < 8 for strip in strips)


def _alike(image: NDArray[np.uint8], thumbnail: NDArray[np.uint8]) -> bool:
    height, width = thumbnail.shape[:2]
    scale = min(1.0, _GRID / max(height, width))
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    ones, others = (_smoothed(pixels, size) for pixels in (image, thumbnail))
    rows, columns = (round(_MARGIN * side) for side in ones.shape[:2])
    ones, others = (pixels[rows : len(pixels) - rows, columns : pixels.shape[1] - columns] for pixels in (ones, others))
    matched = _matched(ones, others)
    # In place first, then with blocks moved a little: a camera crops its thumbnail from the sensor's image in its own way.
    nearest = _differences(matched, others)
    if nearest.max() >= _LEVELS:
        for shift in _SHIFTS:
            nearest = np.minimum(nearest, _differences(np.roll(matched, shift, (0, 1)), others))
        inner = nearest[_FURTHEST : len(nearest) - _FURTHEST, _FURTHEST : nearest.shape[1] - _FURTHEST]
        nearest = inner if inner.size else nearest
    return bool(nearest.max() < _LEVELS)


def _differences(ones: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean difference in the block around each pixel, of the channel that differs most."""
    difference = np.abs(ones - others).max(axis=2)
    return np.asarray(cv2.blur(difference, (min(_BLOCK, difference.shape[1]), min(_BLOCK, difference.shape[0]))), np.float32)


def _smoothed(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    shrinks = pixels.shape[1] >= size[0] and pixels.shape[0] >= size[1]
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(cv2.GaussianBlur(small.astype(np.float32), (0, 0), _SMOOTHING), np.float32)


def _matched(ones: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first with the second's brightness and contrast, channel by channel: colors of CMYK are converted in many ways."""
    first, second = ones.mean(axis=(0, 1)), others.mean(axis=(0, 1))
    variance = ones.var(axis=(0, 1))
    shared = ((ones - first) * (others - second)).mean(axis=(0, 1))
    slopes = np.clip(np.where(variance > 1, shared / np.maximum(variance, 1), 1), *_SLOPES)
    return np.asarray((ones - first) * slopes + second, np.float32)
