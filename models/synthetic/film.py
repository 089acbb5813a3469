"""A film: thickness maps drawn from anatomical outlines, moved by a visit's pose on the way.

Shapes are drawn in a plane of about 2 by 2 units, added up, and become grey values when the film is developed (`phantoms`).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["TEXTURE_SIZE", "Film", "Floats", "Points", "Visit", "ellipse", "waves"]

Floats = NDArray[np.float32]
Points = NDArray[np.float64]
Pixels = NDArray[np.uint8]

TEXTURE_SIZE = 256


@dataclass(frozen=True)
class Visit:
    """What differs between two images of one person. Lengths are in half image widths, angles in radians."""

    turn: float
    scale: tuple[float, float]
    shift: tuple[float, float]
    warp: Points
    breath: float
    """From -1, breathed out, to 1, breathed in; in a hand, how far the fingers are spread."""
    rng: np.random.Generator
    """For findings, devices, exposure and noise, in the order they are drawn."""


class Film:
    """A thickness map in the making: shapes go in by their anatomical coordinates, the pose is applied on the way."""

    def __init__(self, size: int, visit: Visit) -> None:
        self.size = size
        self.visit = visit
        self.thickness: Floats = np.zeros((size, size), np.float32)

    def place(self, points: Points) -> Points:
        """Anatomical coordinates (N, 2), x to the right and y down in about [-1, 1], to pixels."""
        x, y = points[:, 0], points[:, 1]
        waves = (
            np.stack([np.sin(np.pi * (k + 1) * x / 2) for k in range(3)]),
            np.stack([np.cos(np.pi * (k + 1) * y / 2) for k in range(3)]),
        )
        dx, dy = (np.einsum("ij,in,jn->n", w, *waves) for w in self.visit.warp)
        x, y = (x + dx) * self.visit.scale[0], (y + dy) * self.visit.scale[1]
        c, s = np.cos(self.visit.turn), np.sin(self.visit.turn)
        moved = np.stack([x * c - y * s + self.visit.shift[0], x * s + y * c + self.visit.shift[1]], axis=1)
        return np.asarray((moved + 1.0) * (self.size / 2))

    def _add(self, mask: Pixels, amount: float, softness: float) -> Floats:
        layer = mask.astype(np.float32) / np.float32(255.0)
        if softness > 0:
            layer = np.asarray(cv2.GaussianBlur(layer, (0, 0), max(softness * self.size / 2, 0.3)))
        self.thickness += layer * np.float32(amount)
        return layer

    def area(self, points: Points, amount: float, softness: float = 0.01) -> Floats:
        """Add a filled outline; `softness` is the blur of its edge. Returns how far it covers each pixel."""
        mask = np.zeros((self.size, self.size), np.uint8)
        cv2.fillPoly(mask, [np.round(self.place(points) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        return self._add(mask, amount, softness)

    def curve(self, points: Points, width: float, amount: float, softness: float = 0.006) -> None:
        """Add a line of constant width."""
        mask = np.zeros((self.size, self.size), np.uint8)
        pixels = np.round(self.place(points) * 16).astype(np.int32)
        pen = max(1, round(width * self.size / 2 * self.visit.scale[0]))
        cv2.polylines(mask, [pixels], False, 255, pen, cv2.LINE_AA, 4)
        self._add(mask, amount, softness)

    def tube(self, points: Points, width: float, amount: float) -> None:
        """A line with a denser rim, as the cortex of a bone has it."""
        self.curve(points, width, amount * 0.6, 0.008)
        self.curve(points, width * 1.05, amount * 0.4, 0.003)
        self.curve(points, width * 0.55, -amount * 0.35, 0.006)

    def grain(self, texture: Floats, cover: Floats, amount: float) -> None:
        """Add an identity's texture, carried along by the pose, where `cover` is above zero."""
        corners = np.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
        source = ((corners + 1.0) * (TEXTURE_SIZE / 2)).astype(np.float32)
        matrix = cv2.getAffineTransform(source, self.place(corners).astype(np.float32))
        moved = cv2.warpAffine(texture, matrix, (self.size, self.size), borderMode=cv2.BORDER_REFLECT)
        self.thickness += moved * cover * np.float32(amount)


def ellipse(x: float, y: float, a: float, b: float, turn: float = 0.0, waves: Points | None = None) -> Points:
    """An outline of 48 points; `waves` (K, 2) are amplitude and phase of its 2nd, 3rd... harmonics."""
    t = np.linspace(0.0, 2 * np.pi, 48, endpoint=False)
    r = np.ones_like(t)
    for order, (amplitude, phase) in enumerate(waves if waves is not None else (), start=2):
        r = r + amplitude * np.cos(order * t + phase)
    u, v = a * r * np.cos(t), b * r * np.sin(t)
    return np.stack([x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)], axis=1)


def waves(rng: np.random.Generator, size: float, orders: int = 4) -> Points:
    """Random harmonics for `ellipse`, weaker with their order."""
    amplitudes = rng.normal(0.0, size, orders) / np.arange(1, orders + 1)
    return np.stack([amplitudes, rng.uniform(0.0, 2 * np.pi, orders)], axis=1)
