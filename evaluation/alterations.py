"""Alterations of images by name and strength: the paper's evaluation grid, and some beyond it.

All functions take and give RGB, uint8 (height, width, 3), and keep the size. Strengths are those of arXiv 2512.14421's
robustness table: blur with a kernel of 9, noise as a part of the full range, rotation in degrees with black corners,
brightness and contrast as torchvision's `adjust_*` factors, JPEG by quality.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["BEYOND_THE_PAPER", "PAPER_GRID", "alter", "warped"]

Pixels = NDArray[np.uint8]

PAPER_GRID = MappingProxyType(
    {
        "blur": (0.1, 1.0, 2.0, 6.0),
        "noise": (0.01, 0.1, 0.2, 0.3),
        "rotation": (5.0, 10.0, 20.0, 30.0),
        "brightness": (1.1, 1.3, 1.6, 2.0),
        "contrast": (1.1, 1.3, 1.6, 2.0),
        "jpeg": (95.0, 70.0, 40.0, 10.0),
    }
)
BEYOND_THE_PAPER = MappingProxyType(
    {"mirror": (1.0,), "crop": (0.7,), "half size": (0.5,), "caption": (1.0,), "border": (0.08,), "invert": (1.0,)}
)
BLUR_KERNEL = 9
GREY = np.array([0.299, 0.587, 0.114], np.float32)


def alter(image: Pixels, transform: str, strength: float, rng: np.random.Generator) -> Pixels:
    """Apply one named alteration. Noise, the sense of a rotation, the place of a crop, and captions' and borders' looks are random.

    Raises:
        KeyError: an unknown name.
    """
    return _TRANSFORMS[transform](image, strength, rng)


def _blur(image: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    return cv2.GaussianBlur(image, (BLUR_KERNEL, BLUR_KERNEL), sigma).astype(np.uint8)


def _noise(image: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    return _levels(image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(255.0 * sigma))


def _rotation(image: Pixels, degrees: float, rng: np.random.Generator) -> Pixels:
    return warped(image, degrees if rng.random() < 0.5 else -degrees, 1.0, (0.0, 0.0))


def _brightness(image: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    return _levels(image * np.float32(factor))


def _contrast(image: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    middle = float((image @ GREY).mean())
    return _levels(middle + (image - np.float32(middle)) * np.float32(factor))


def _jpeg(image: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return np.ascontiguousarray(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1])


def _mirror(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    return np.ascontiguousarray(image[:, ::-1])


def _crop(image: Pixels, area: float, rng: np.random.Generator) -> Pixels:
    """A random window of this part of the area, enlarged to the whole."""
    height, width = image.shape[:2]
    side = float(np.sqrt(area))
    top, left = (int(rng.integers(0, max(1, int(length * (1 - side)) + 1))) for length in (height, width))
    window = image[top : top + int(height * side), left : left + int(width * side)]
    return cv2.resize(window, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def _half_size(image: Pixels, scale: float, rng: np.random.Generator) -> Pixels:
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(1, int(width * scale)), max(1, int(height * scale))), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def _invert(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    return (255 - image).astype(np.uint8)


def _caption(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """A line of drawn letters on a bar along the top or the bottom, a tenth to a sixth of the height."""
    height = len(image)
    bar = max(4, int(height * rng.uniform(0.1, 0.17)))
    top = 0 if rng.random() < 0.5 else height - bar
    dark = rng.random() < 0.5
    captioned = image.copy()
    captioned[top : top + bar] = 0 if dark else 255
    letters = "".join(rng.choice(list("ABCDEFGHIJKLMNOPRSTUVWabcdefghiklmnorstuv 0123456789"), 40))
    ink = int(rng.integers(200, 256)) if dark else int(rng.integers(0, 56))
    place, pen = (4, top + int(bar * 0.7)), max(1, bar // 16)
    cv2.putText(captioned, letters, place, cv2.FONT_HERSHEY_SIMPLEX, bar / 40, (ink, ink, ink), pen, cv2.LINE_AA)
    return captioned


def _border(image: Pixels, width_part: float, rng: np.random.Generator) -> Pixels:
    """A frame of one colour around the whole image, this part of the side wide; the image shrinks into it."""
    height, width = image.shape[:2]
    across, down = int(width * width_part), int(height * width_part)
    framed = np.empty_like(image)
    framed[:] = rng.integers(0, 256, 3) if rng.random() < 0.5 else int(rng.choice([0, 255]))
    inside = cv2.resize(image, (width - 2 * across, height - 2 * down), interpolation=cv2.INTER_AREA)
    framed[down : height - down, across : width - across] = inside
    return framed


def warped(image: Pixels, degrees: float, scale: float, shift: tuple[float, float]) -> Pixels:
    """Rotate about the middle, scale and move (by parts of the size); black where nothing was."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    matrix[:, 2] += np.array(shift) * (width, height)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR).astype(np.uint8)


def _levels(values: NDArray[np.float32]) -> Pixels:
    return np.asarray(np.clip(values + 0.5, 0, 255), np.uint8)


_TRANSFORMS: dict[str, Callable[[Pixels, float, np.random.Generator], Pixels]] = {
    "blur": _blur,
    "noise": _noise,
    "rotation": _rotation,
    "brightness": _brightness,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "mirror": _mirror,
    "crop": _crop,
    "half size": _half_size,
    "caption": _caption,
    "border": _border,
    "invert": _invert,
}
