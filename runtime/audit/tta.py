"""The ways in which `--tta` looks at a released image beside as it is: mirrored and turned, which the paper calls its weak side.

Only what is asked about is looked at in several ways, never the reference: a match of a mirrored query with a reference image
is what a match with the mirrored reference would be.
"""

from __future__ import annotations

from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from .embedding import Look

__all__ = ["LOOKS", "VERSION"]

Pixels = NDArray[np.uint8]
VERSION = 1
"""Of the list below: cached embeddings are of one version of it."""


def _as_it_is(image: Pixels) -> Pixels:
    return image


def _mirrored(image: Pixels) -> Pixels:
    return np.ascontiguousarray(image[:, ::-1])


def _upside_down(image: Pixels) -> Pixels:
    return np.ascontiguousarray(image[::-1])


def _half_turn(image: Pixels) -> Pixels:
    return np.ascontiguousarray(image[::-1, ::-1])


def _turned(degrees: float) -> Look:
    def turn(image: Pixels) -> Pixels:
        """About the middle, black where nothing was, as an altered copy would be."""
        height, width = image.shape[:2]
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
        return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR).astype(np.uint8)

    return turn


LOOKS = MappingProxyType(
    {
        "as it is": _as_it_is,
        "mirrored": _mirrored,
        "upside down": _upside_down,
        "half a turn": _half_turn,
        "15 degrees to the left": _turned(15.0),
        "15 degrees to the right": _turned(-15.0),
    }
)
"""By name; the first is the image itself."""
