"""Do two pictures agree pixel by pixel, once one is laid over the other? It tells a copy from another picture of a patient.

Both are made grey and small, one is mirrored and turned until it fits best, and the fit is refined (OpenCV's ECC, affine). What is
then compared is detail: differences between two blurs, so that neither a changed exposure nor the outline that all chest
radiographs share counts. No model has a part in it, so it is a second witness to what the model says.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..head import Floats

__all__ = ["AGREES", "agreement"]

AGREES = 0.86
"""Correlation of detail from which two pictures count as one, altered (docs/audit.md says what was measured)."""
SIDE, COARSE = 128, 32
ANGLES = (*range(-40, 45, 5), 180)
REFINED = 3
ECC_STEPS = cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-4
FINE, ROUGH = 1.2, 3.0
"""Standard deviations, in pixels of `SIDE`, of the two blurs between which detail lies."""
LEAST_OVERLAP = 0.1
CLIPPED = 0.02

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Grey:
    fine: Floats
    coarse: Floats


def agreement(first: Pixels, second: Pixels) -> float:
    """Correlation of detail, -1 to 1, of two pictures, RGB uint8 (height, width, 3), laid over each other as well as can be."""
    one, other = _grey(first), _grey(second)
    starts = []
    for mirrored in (False, True):
        turned = np.ascontiguousarray(other.coarse[:, ::-1]) if mirrored else other.coarse
        for angle in ANGLES:
            matrix = _rotation(angle, COARSE)
            moved, inside = _moved(turned, matrix)
            starts.append((_correlation(one.coarse, moved, inside), mirrored, angle))
    starts.sort(key=lambda start: -start[0])
    best = -1.0
    for _, mirrored, angle in starts[:REFINED]:
        turned = np.ascontiguousarray(other.fine[:, ::-1]) if mirrored else other.fine
        for matrix in _refined(one.fine, turned, _rotation(angle, SIDE)):
            moved, inside = _moved(_detail(turned), matrix)
            shown, _ = _moved(_unclipped(turned), matrix)
            best = max(best, _correlation(_detail(one.fine), moved, inside & (shown > 0.99) & (_unclipped(one.fine) > 0.99)))
    return best


def _grey(picture: Pixels) -> _Grey:
    grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
    fine = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(cv2.GaussianBlur(fine, (0, 0), 2.0), (COARSE, COARSE), interpolation=cv2.INTER_AREA)
    return _Grey(np.asarray(fine, np.float32), np.asarray(coarse, np.float32))


def _rotation(degrees: float, side: int) -> Floats:
    """Where a pixel of the result comes from, float32 (2, 3)."""
    middle = (side - 1) / 2
    return np.asarray(cv2.getRotationMatrix2D((middle, middle), degrees, 1.0), np.float32)


def _moved(picture: Floats, matrix: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """The picture seen through a matrix, and where it has something to show: inside, and off black corners of its own."""
    size = (picture.shape[1], picture.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(picture, matrix, size, flags=flags)
    whole = cv2.warpAffine(np.ones_like(picture), matrix, size, flags=flags)
    return np.asarray(moved, np.float32), np.asarray(whole > 0.99)


def _refined(one: Floats, other: Floats, start: Floats) -> list[Floats]:
    """The start, and what ECC makes of it where that converges."""
    blurred = [cv2.GaussianBlur(picture, (0, 0), FINE) for picture in (one, other)]
    try:
        _, matrix = cv2.findTransformECC(blurred[0], blurred[1], start.copy(), cv2.MOTION_AFFINE, ECC_STEPS)
    except cv2.error:  # it says so by an error when it does not converge, as for two pictures that have nothing in common
        return [start]
    return [start, np.asarray(matrix, np.float32)]


def _unclipped(picture: Floats) -> Floats:
    """1 where a pixel and its neighbours are neither black nor white: what a strong exposure made flat tells nothing."""
    shown = ((picture > CLIPPED) & (picture < 1 - CLIPPED)).astype(np.float32)
    return np.asarray(cv2.erode(shown, np.ones((3, 3), np.uint8)), np.float32)


def _detail(picture: Floats) -> Floats:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), FINE) - cv2.GaussianBlur(picture, (0, 0), ROUGH), np.float32)


def _correlation(one: Floats, other: Floats, inside: NDArray[np.bool_]) -> float:
    """Pearson's, over a disc in the middle (corners are what rotation makes black) where both have something to show."""
    side = len(one)
    rows, columns = np.ogrid[:side, :side]
    inside = inside & ((rows - side / 2) ** 2 + (columns - side / 2) ** 2 <= (0.48 * side) ** 2)
    if inside.mean() < LEAST_OVERLAP:
        return -1.0
    a, b = one[inside] - one[inside].mean(), other[inside] - other[inside].mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 1e-6 else 0.0
