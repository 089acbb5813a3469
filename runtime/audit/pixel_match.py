"""Do two images agree pixel by pixel, once one is laid over the other? It tells a copy from another image of a patient.

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

from ..model.head import Floats
from .thumbnails import Alignment, oriented

__all__ = ["AGREES", "NOT_COMPARABLE", "agreement"]

AGREES = 0.86
"""Correlation of detail from which two images count as one, altered (docs/audit.md says what was measured)."""
SIDE, COARSE = 128, 32
ANGLES = (*range(-40, 45, 5), 180)
REFINED = 3
"""Starts that are refined."""
HOPEFUL = 0.3
"""Correlation at half the size below which two images have nothing in common: of 225 altered copies one was below 0.44."""
ROUGH_STEPS, FINE_STEPS = 15, 50
"""Steps of ECC at half the size and at the whole. More at half the size changed no decision on 300 pairs and took twice as long."""
BEHIND = 0.2
"""A start that has come this much less far than the best at half the size is given up."""
INSIDE = 0.99
FINE, ROUGH = 1.2, 3.0
"""Standard deviations, in pixels of `SIDE`, of the two blurs between which detail lies."""
LEAST_OVERLAP = 0.1
NOT_COMPARABLE = -1.0
"""The result for two images of which too little shows in both, or too little that is neither black nor white."""
CLIPPED = 0.02

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Grey:
    fine: Floats
    coarse: Floats


def agreement(first: Pixels, second: Pixels, alignment: Alignment | None = None) -> float:
    """Correlation of detail, -1 to 1, of two images, RGB uint8 (height, width, 3), laid over each other as well as can be.

    Args:
        alignment: where to start, as `thumbnails.align` found it for the two. Without one it is searched for among turns about the
            middle, mirrored and not, so a quarter turn or a crop is not found.
    """
    if alignment is not None:
        first = np.asarray(oriented(first, alignment.orientation), np.uint8)
    one, other = _grey(first), _grey(second)
    sides = other.fine, np.ascontiguousarray(other.fine[:, ::-1])
    if alignment is not None:
        starts = [(False, alignment.matrix(SIDE // 2), alignment.matrix(SIDE))]
    else:
        turns = _starts(one.coarse, other.coarse)[:REFINED]
        starts = [(mirrored, _rotation(angle, SIDE // 2), _rotation(angle, SIDE)) for mirrored, angle in turns]
    # First at half the size, where a step costs a quarter: most pairs have nothing in common, and are done with there.
    half_one = _halved(one.fine)
    detail = _detail(half_one)
    halves = []
    for mirrored, half_start, start in starts:
        half = _halved(sides[mirrored])
        matrix = _refined(half_one, half, half_start, ROUGH_STEPS)
        # Clipped pixels count here: left out with their neighbours, too little would be left at this size.
        alike = _correlation(detail, _moved(_detail(half), matrix), _shown(half, matrix))
        halves.append((alike, mirrored, start, matrix))
    best_half = max(alike for alike, *_ in halves)
    if best_half < HOPEFUL:
        return best_half
    best = NOT_COMPARABLE
    for alike, mirrored, start, matrix in halves:
        if alike < max(HOPEFUL, best_half - BEHIND):
            continue
        side = sides[mirrored]
        for moving in (_refined(one.fine, side, _doubled(matrix), FINE_STEPS), start):
            best = max(best, _agree(one.fine, side, moving))
    return best


def _starts(one: Floats, other: Floats) -> list[tuple[bool, float]]:
    """Mirrored or not, and degrees turned: best correlation first."""
    ways = [(mirrored, angle) for mirrored in (False, True) for angle in ANGLES]
    sides = other, np.ascontiguousarray(other[:, ::-1])
    moved = np.stack([_moved(sides[mirrored], _rotation(angle, COARSE)) for mirrored, angle in ways]).reshape(len(ways), -1)
    shown = np.tile(_turned_discs(), (2, 1))
    here = one.reshape(1, -1) * shown
    there = moved * shown
    # Pearson's over each way's own part of the image, for all ways at once, in float64: squares of sums are taken off.
    count = shown.sum(axis=1, dtype=np.float64)
    sums, others = here.sum(axis=1, dtype=np.float64), there.sum(axis=1, dtype=np.float64)
    both = np.einsum("ij,ij->i", here, there, dtype=np.float64) - sums * others / count
    power = np.einsum("ij,ij->i", here, here, dtype=np.float64) - sums * sums / count
    powers = np.einsum("ij,ij->i", there, there, dtype=np.float64) - others * others / count
    norm = np.sqrt(np.maximum(power, 0) * np.maximum(powers, 0))
    correlations = np.where(norm > 1e-6, both / np.maximum(norm, 1e-6), 0.0)
    return [ways[at] for at in np.argsort(-correlations, kind="stable")]


def _agree(one: Floats, other: Floats, matrix: Floats) -> float:
    """Correlation of detail where both have something to show that no exposure made flat."""
    shown = _shown(other, matrix) & (_moved(_unclipped(other), matrix) > INSIDE) & (_unclipped(one) > INSIDE)
    return _correlation(_detail(one), _moved(_detail(other), matrix), shown)


def _grey(image: Pixels) -> _Grey:
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
    fine = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(cv2.GaussianBlur(fine, (0, 0), 2.0), (COARSE, COARSE), interpolation=cv2.INTER_AREA)
    return _Grey(np.asarray(fine, np.float32), np.asarray(coarse, np.float32))


def _halved(image: Floats) -> Floats:
    return np.asarray(cv2.resize(image, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA), np.float32)


def _doubled(matrix: Floats) -> Floats:
    """The same movement between images of twice the size; a pixel's middle lies at half a pixel."""
    doubled = matrix.copy()
    doubled[:, 2] = 2 * matrix[:, 2] + 0.5 - 0.5 * (matrix[:, 0] + matrix[:, 1])
    return doubled


def _rotation(degrees: float, side: int) -> Floats:
    """Where a pixel of the result comes from, float32 (2, 3)."""
    middle = (side - 1) / 2
    return np.asarray(cv2.getRotationMatrix2D((middle, middle), degrees, 1.0), np.float32)


def _moved(image: Floats, matrix: Floats) -> Floats:
    """The image seen through a matrix."""
    size = (image.shape[1], image.shape[0])
    return np.asarray(cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP), np.float32)


def _shown(image: Floats, matrix: Floats) -> Mask:
    """Where an image seen through a matrix has something to show."""
    return np.asarray(_moved(np.ones_like(image), matrix) > INSIDE)


@lru_cache(maxsize=1)
def _turned_discs() -> Floats:
    """For each angle, 1 in the middle of a coarse image where what is turned has something to show: (angles, pixels)."""
    whole = np.ones((COARSE, COARSE), np.float32)
    shown = [_shown(whole, _rotation(angle, COARSE)) & _disc(COARSE) for angle in ANGLES]
    return np.stack(shown).reshape(len(ANGLES), -1).astype(np.float32)


@lru_cache(maxsize=3)
def _disc(side: int) -> Mask:
    """The middle of an image: its corners are what rotation makes black."""
    rows, columns = np.ogrid[:side, :side]
    return np.asarray((rows - side / 2) ** 2 + (columns - side / 2) ** 2 <= (0.48 * side) ** 2)


def _refined(one: Floats, other: Floats, start: Floats, steps: int) -> Floats:
    """What ECC makes of the start; the start itself where that does not converge."""
    blurred = [cv2.GaussianBlur(image, (0, 0), FINE) for image in (one, other)]
    enough = cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, steps, 1e-4
    try:
        _, matrix = cv2.findTransformECC(blurred[0], blurred[1], start.copy(), cv2.MOTION_AFFINE, enough)
    except cv2.error:  # it says so by an error when it does not converge, as for two images that have nothing in common
        return start
    return np.asarray(matrix, np.float32)


def _unclipped(image: Floats) -> Floats:
    """1 where a pixel and its neighbours are neither black nor white: what a strong exposure made flat tells nothing."""
    shown = ((image > CLIPPED) & (image < 1 - CLIPPED)).astype(np.float32)
    return np.asarray(cv2.erode(shown, np.ones((3, 3), np.uint8)), np.float32)


def _detail(image: Floats) -> Floats:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), FINE) - cv2.GaussianBlur(image, (0, 0), ROUGH), np.float32)


def _correlation(one: Floats, other: Floats, inside: Mask) -> float:
    """Pearson's, over the middle, where both have something to show."""
    inside = inside & _disc(len(one))
    if inside.mean() < LEAST_OVERLAP:
        return NOT_COMPARABLE
    a, b = one[inside], other[inside]
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 1e-6 else 0.0
