"""Do two pictures agree pixel by pixel, once one is laid over the other? It tells a copy from another picture of a patient.

Both are made grey and small, one is mirrored and turned until it fits best, and the fit is refined (OpenCV's ECC, affine). What is
then compared is detail: differences between two blurs, so that neither a changed exposure nor the outline that all chest
radiographs share counts. No model has a part in it, so it is a second witness to what the model says.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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
"""Starts that are refined."""
HOPEFUL = 0.3
"""Correlation at half the size below which two pictures have nothing in common."""
ECC_STEPS = cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-4
INSIDE = 0.99
FINE, ROUGH = 1.2, 3.0
"""Standard deviations, in pixels of `SIDE`, of the two blurs between which detail lies."""
LEAST_OVERLAP = 0.1
CLIPPED = 0.02

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


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
            starts.append((_correlation(one.coarse, _moved(turned, matrix), _inside(angle, COARSE)), mirrored, angle))
    starts.sort(key=lambda start: -start[0])
    # First at half the size, where a step costs a quarter: most pairs have nothing in common, and are done with there.
    half_one = _halved(one.fine)
    halves = []
    for _, mirrored, angle in starts[:REFINED]:
        turned = np.ascontiguousarray(other.fine[:, ::-1]) if mirrored else other.fine
        half = _halved(turned)
        matrix = _refined(half_one, half, _rotation(angle, SIDE // 2))
        # Clipped pixels count here: left out with their neighbours, too little would be left at this size.
        alike = _correlation(_detail(half_one), _moved(_detail(half), matrix), _shown(half, matrix))
        halves.append((alike, mirrored, angle, matrix))
    best = max(alike for alike, *_ in halves)
    if best < HOPEFUL:
        return best
    best = -1.0
    for _, mirrored, angle, matrix in halves:
        turned = np.ascontiguousarray(other.fine[:, ::-1]) if mirrored else other.fine
        for moving in (_refined(one.fine, turned, _doubled(matrix)), _rotation(angle, SIDE)):
            best = max(best, _agree(one.fine, turned, moving))
    return best


def _agree(one: Floats, other: Floats, matrix: Floats) -> float:
    """Correlation of detail where both have something to show that no exposure made flat."""
    shown = _shown(other, matrix) & (_moved(_unclipped(other), matrix) > INSIDE) & (_unclipped(one) > INSIDE)
    return _correlation(_detail(one), _moved(_detail(other), matrix), shown)


def _grey(picture: Pixels) -> _Grey:
    grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
    fine = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(cv2.GaussianBlur(fine, (0, 0), 2.0), (COARSE, COARSE), interpolation=cv2.INTER_AREA)
    return _Grey(np.asarray(fine, np.float32), np.asarray(coarse, np.float32))


def _halved(picture: Floats) -> Floats:
    return np.asarray(cv2.resize(picture, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA), np.float32)


def _doubled(matrix: Floats) -> Floats:
    """The same movement between pictures of twice the size; a pixel's middle lies at half a pixel."""
    doubled = matrix.copy()
    doubled[:, 2] = 2 * matrix[:, 2] + 0.5 - 0.5 * (matrix[:, 0] + matrix[:, 1])
    return doubled


def _rotation(degrees: float, side: int) -> Floats:
    """Where a pixel of the result comes from, float32 (2, 3)."""
    middle = (side - 1) / 2
    return np.asarray(cv2.getRotationMatrix2D((middle, middle), degrees, 1.0), np.float32)


def _moved(picture: Floats, matrix: Floats) -> Floats:
    """The picture seen through a matrix."""
    size = (picture.shape[1], picture.shape[0])
    return np.asarray(cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP), np.float32)


def _shown(picture: Floats, matrix: Floats) -> Mask:
    """Where a picture seen through a matrix has something to show."""
    return np.asarray(_moved(np.ones_like(picture), matrix) > INSIDE)


@lru_cache(maxsize=len(ANGLES))
def _inside(degrees: float, side: int) -> Mask:
    """Where a picture that is turned has something to show."""
    return _shown(np.ones((side, side), np.float32), _rotation(degrees, side))


@lru_cache(maxsize=3)
def _disc(side: int) -> Mask:
    """The middle of a picture: its corners are what rotation makes black."""
    rows, columns = np.ogrid[:side, :side]
    return np.asarray((rows - side / 2) ** 2 + (columns - side / 2) ** 2 <= (0.48 * side) ** 2)


def _refined(one: Floats, other: Floats, start: Floats) -> Floats:
    """What ECC makes of the start; the start itself where that does not converge."""
    blurred = [cv2.GaussianBlur(picture, (0, 0), FINE) for picture in (one, other)]
    try:
        _, matrix = cv2.findTransformECC(blurred[0], blurred[1], start.copy(), cv2.MOTION_AFFINE, ECC_STEPS)
    except cv2.error:  # it says so by an error when it does not converge, as for two pictures that have nothing in common
        return start
    return np.asarray(matrix, np.float32)


def _unclipped(picture: Floats) -> Floats:
    """1 where a pixel and its neighbours are neither black nor white: what a strong exposure made flat tells nothing."""
    shown = ((picture > CLIPPED) & (picture < 1 - CLIPPED)).astype(np.float32)
    return np.asarray(cv2.erode(shown, np.ones((3, 3), np.uint8)), np.float32)


def _detail(picture: Floats) -> Floats:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), FINE) - cv2.GaussianBlur(picture, (0, 0), ROUGH), np.float32)


def _correlation(one: Floats, other: Floats, inside: Mask) -> float:
    """Pearson's, over the middle, where both have something to show."""
    inside = inside & _disc(len(one))
    if inside.mean() < LEAST_OVERLAP:
        return -1.0
    a, b = one[inside], other[inside]
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 1e-6 else 0.0
