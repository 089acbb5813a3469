"""Small gray thumbnails of frames: they find near-copies that the model does not, such as flipped ones, at little cost.

A thumbnail has two uses. Its tones, 8 x 8, nominate candidates among many images, in each of the eight orientations. Its detail,
32 x 32, is then aligned with a candidate's: oriented, shifted, and scaled as a crop needs. Two different radiographs share most of
their tones and much less of their detail. The alignment is where a comparison at full detail starts (see `agreement`).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..model.head import Floats

__all__ = ["SIDE", "Alignment", "Pixels", "align", "candidates", "oriented", "thumbnail"]

SIDE = 32
TONES = 8
ORIENTATIONS = 8
"""Four turns by a right angle, as they are and mirrored."""
SMOOTH, GROUND = 0.5, 1.2
"""Standard deviations, in pixels, of the two blurs between which detail lies."""
LEAST_CONTRAST = 1e-3
FLAT = 0.02
"""Standard deviation of saturated detail below which there is none; usually it is about 0.5."""
SATURATION = 1.5
"""Standard deviations of detail at which it saturates: a caption's edges must not outweigh the rest."""
SHIFT = 2
"""Pixels that an uncropped image may be shifted by."""
CROPS = (31, 29, 27, 25)
"""Sides, in pixels, that a crop of one image may have in the other, tried first: down to 78 % of its side."""
HOPEFUL = 0.5
"""Correlation at one of these from which the sides next to it are tried."""
AT_ONCE = 512
"""Thumbnails compared with all others at once: 40 MB for 10,000."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Alignment:
    """How one image lies over another.

    Attributes:
        correlation: of the thumbnails' detail where they overlap, -1 to 1.
        orientation: of the first image, see `oriented`.
        scale, shift: where a point of the oriented first image lies in the second: scale times its (x, y), plus the shift, as parts
            of the side.
    """

    correlation: float
    orientation: int
    scale: float
    shift: tuple[float, float]

    def matrix(self, side: int) -> Floats:
        """Return the affine matrix, float32 (2, 3), between pixels of images of this side; a pixel's center lies at a half."""
        middle = 0.5 * self.scale - 0.5
        x, y = (side * each + middle for each in self.shift)
        return np.array([[self.scale, 0, x], [0, self.scale, y]], np.float32)


def thumbnail(image: Pixels) -> Pixels:
    """Return the thumbnail, uint8 (SIDE, SIDE), of an RGB image, uint8 (height, width, 3). The aspect ratio is not kept."""
    gray = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def oriented(image: NDArray[np.generic], orientation: int) -> NDArray[np.generic]:
    """Return an image, (height, width, ...), turned by 90 degrees `orientation // 2` times and then mirrored if it is odd."""
    turned = np.rot90(image, orientation // 2)
    return np.ascontiguousarray(turned[:, ::-1] if orientation % 2 else turned)


def candidates(queries: Pixels, gallery: Pixels, top: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the most similar thumbnails by their tones, in the best of the eight orientations.

    Args:
        queries: uint8 (n, SIDE, SIDE).
        gallery: uint8 (m, SIDE, SIDE).
        top: how many to return for each query; fewer where the gallery has fewer.

    Returns:
        Positions in the gallery, int64 (n, min(top, m)), the most similar first, and the tones' correlations, of the same shape.
    """
    top = min(top, len(gallery))
    best = np.empty((len(queries), top), np.int64)
    correlations = np.empty((len(queries), top), np.float32)
    tones = _tones(gallery)
    for start in range(0, len(queries), AT_ONCE):
        asked = _tones(queries[start : start + AT_ONCE]).reshape(-1, TONES, TONES)
        alike = np.full((len(asked), len(gallery)), -np.inf, np.float32)
        for orientation in range(ORIENTATIONS):
            turned = np.stack([oriented(each, orientation) for each in asked]).reshape(len(asked), -1)
            np.maximum(alike, turned @ tones.T, out=alike)
        nearest = np.argpartition(-alike, top - 1, axis=1)[:, :top] if top else np.empty((len(asked), 0), np.int64)
        found = np.take_along_axis(alike, nearest, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        best[start : start + AT_ONCE] = np.take_along_axis(nearest, order, axis=1)
        correlations[start : start + AT_ONCE] = np.take_along_axis(found, order, axis=1)
    return best, correlations


def align(first: Pixels, second: Pixels, *, crops: bool) -> Alignment:
    """Return the best alignment of two thumbnails, uint8 (SIDE, SIDE).

    Args:
        crops: look for one as a crop of the other too, as they are and mirrored. Without it they lie over each other as a whole, in
            the two orientations that suit their tones best.
    """
    mine, theirs = _detail(first), _detail(second)
    best = Alignment(-1.0, 0, 1.0, (0.0, 0.0))
    # A crop changes the tones of each place, so they do not say how it is oriented.
    for orientation in (0, 1) if crops else _likeliest(first, second):
        turned = np.asarray(oriented(mine, orientation), np.float32)
        found, x, y = _located(theirs, np.ascontiguousarray(turned[SHIFT:-SHIFT, SHIFT:-SHIFT]))
        if found > best.correlation:
            best = Alignment(found, orientation, 1.0, ((x - SHIFT) / SIDE, (y - SHIFT) / SIDE))
        if crops:
            best = max(best, *_cropped(turned, theirs, orientation), key=lambda each: each.correlation)
    return best


def _likeliest(first: Pixels, second: Pixels) -> list[int]:
    """Return the two orientations of the first thumbnail in which its tones are most similar to the second's."""
    theirs, mine = _tones(second[None])[0], _tones(first[None])[0].reshape(TONES, TONES)
    alike = [float(oriented(mine, orientation).ravel() @ theirs) for orientation in range(ORIENTATIONS)]
    return sorted(range(ORIENTATIONS), key=lambda orientation: -alike[orientation])[:2]


def _cropped(mine: Floats, theirs: Floats, orientation: int) -> list[Alignment]:
    """Return the best alignments of the first as a crop of the second, and of the second as a crop of the first."""

    def first_in_second(side: int) -> Alignment:
        scale = side / SIDE
        found, x, y = _located(theirs, _shrunk(mine, side))
        return Alignment(found, orientation, scale, (x / SIDE, y / SIDE))

    def second_in_first(side: int) -> Alignment:
        scale = side / SIDE
        found, x, y = _located(mine, _shrunk(theirs, side))
        return Alignment(found, orientation, 1 / scale, (-x / SIDE / scale, -y / SIDE / scale))

    best = []
    for located in (first_in_second, second_in_first):
        side, found = max(((side, located(side)) for side in CROPS), key=lambda each: each[1].correlation)
        if found.correlation >= HOPEFUL:
            found = max(found, located(side - 1), located(side + 1), key=lambda each: each.correlation)
        best.append(found)
    return best


def _tones(thumbnails: Pixels) -> Floats:
    """Return unit vectors, float32 (n, TONES * TONES); of a flat thumbnail, zeros."""
    small = np.stack([cv2.resize(each, (TONES, TONES), interpolation=cv2.INTER_AREA) for each in thumbnails], dtype=np.float32)
    vectors = small.reshape(len(thumbnails), -1)
    vectors -= vectors.mean(axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6), np.float32)


def _detail(small: Pixels) -> Floats:
    gray = small.astype(np.float32) / 255.0
    detail = cv2.GaussianBlur(gray, (0, 0), SMOOTH) - cv2.GaussianBlur(gray, (0, 0), GROUND)
    return np.asarray(np.tanh(detail / (SATURATION * (float(detail.std()) + LEAST_CONTRAST))), np.float32)


def _shrunk(detail: Floats, side: int) -> Floats:
    return np.asarray(cv2.resize(detail, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _located(image: Floats, part: Floats) -> tuple[float, int, int]:
    """Return the best normalized correlation of a part with the image, and the part's column and row there."""
    if min(float(part.std()), float(image.std())) < FLAT:  # OpenCV calls what is flat equal to everything
        return -1.0, 0, 0
    _, best, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(image, part, cv2.TM_CCOEFF_NORMED))
    return float(best), x, y
