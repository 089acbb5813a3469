"""Radiograph-like phantoms: the anatomy is the identity, everything else is the visit.

A phantom is a pure function of two seeds. The identity's seed fixes the kind of picture (chest, hand, head slice, abdominal
slice) and every length, angle, curve and texture of the anatomy. The visit's seed fixes what changes between two
examinations of one person: pose, breath, field, exposure, window, noise, a finding, a device, a side marker.

Shapes are drawn as thicknesses in a plane of about 2 by 2 units, moved by the pose while they are drawn, added up, and turned
into grey by a window, bone bright. It is a cartoon of projection: enough to pose the problem of re-identification (pictures of
one kind look alike, and identity is in small differences of shape), not a model of X-ray physics.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from .scenes import fractal

__all__ = ["KINDS", "kind_of", "phantom"]

Floats = NDArray[np.float32]
Points = NDArray[np.float64]
Pixels = NDArray[np.uint8]

TEXTURE_SIZE = 256


@dataclass(frozen=True)
class Visit:
    """What differs between two pictures of one person. Lengths are in half picture widths, angles in radians."""

    turn: float
    scale: tuple[float, float]
    shift: tuple[float, float]
    warp: Points
    breath: float
    """From -1, breathed out, to 1, breathed in; in a hand, how far the fingers are spread."""
    rng: np.random.Generator
    """For findings, devices, exposure and noise, in the order they are drawn."""


def _visit(seed: tuple[int, int]) -> Visit:
    rng = np.random.default_rng([0x715170, *seed])
    scale = float(rng.uniform(0.86, 1.16))
    aspect = float(rng.uniform(0.96, 1.04))
    return Visit(
        turn=float(np.radians(rng.normal(0.0, 4.0))),
        scale=(scale * aspect, scale / aspect),
        shift=(float(rng.uniform(-0.1, 0.1)), float(rng.uniform(-0.1, 0.1))),
        warp=rng.normal(0.0, 0.018, (2, 3, 3)),
        breath=float(rng.uniform(-1.0, 1.0)),
        rng=rng,
    )


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


class Anatomy(Protocol):
    """Draws one kind of picture: `rng` is the identity's, the film holds the visit."""

    def __call__(self, rng: np.random.Generator, film: Film) -> None: ...


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


def chest(rng: np.random.Generator, film: Film) -> None:
    """Frontal chest: body, lungs, heart, aortic arch, spine, ribs, clavicles, vessels."""
    breath = film.visit.breath
    width, top = rng.uniform(0.56, 0.7), rng.uniform(-0.82, -0.7)
    domes = rng.uniform(0.28, 0.52) + np.array([0.0, rng.uniform(-0.02, 0.1)]) + 0.05 * breath
    texture = fractal(rng, TEXTURE_SIZE, rng.uniform(1.0, 1.4))
    body = film.area(ellipse(0.0, 0.35, width * 1.42, 1.35, waves=waves(rng, 0.03)), 0.55, 0.05)
    film.grain(texture, body, 0.03)
    film.area(ellipse(0.0, -1.05, rng.uniform(0.2, 0.28), 0.5), 0.25, 0.06)
    for side, dome in zip((-1.0, 1.0), domes, strict=True):
        t = np.linspace(0.0, 1.0, 30)
        apex = top + rng.uniform(-0.04, 0.04)
        outer = side * (0.2 + (width - 0.2) * np.sin(np.pi / 2 * t ** rng.uniform(0.45, 0.75)))
        wall = np.stack([outer, apex + (dome + 0.16 - apex) * t], axis=1)
        crest, foot = rng.uniform(0.35, 0.65), rng.uniform(0.08, 0.2)
        lift = dome - foot * np.sin(np.pi * np.clip(t, 0, 1) ** (1.0 / (0.5 + crest)))
        base = np.stack([side * (width - (width - 0.12) * t), lift + 0.16 * (1 - t)], axis=1)
        inner = np.stack([side * (0.12 - 0.02 * np.sin(np.pi * t)), dome + (apex + 0.05 - dome) * t], axis=1)
        lung = film.area(np.concatenate([wall, base, inner]), -0.42, 0.012)
        film.grain(texture, lung, 0.02)
        _vessels(rng, film, side, width, 0.5 * (top + dome))
    heart_y = float(domes.mean()) - rng.uniform(0.17, 0.27)
    tilt, swell = rng.uniform(0.2, 0.8), waves(rng, 0.05)
    film.area(ellipse(rng.uniform(0.06, 0.16), heart_y, rng.uniform(0.24, 0.36), rng.uniform(0.19, 0.27), tilt, swell), 0.34, 0.02)
    film.area(ellipse(rng.uniform(0.03, 0.09), top + rng.uniform(0.26, 0.4), rng.uniform(0.07, 0.14), 0.12), 0.2, 0.02)
    film.area(ellipse(0.0, heart_y - 0.35, rng.uniform(0.1, 0.15), 0.5), 0.16, 0.03)
    film.curve(np.array([[0.0, -1.0], [rng.uniform(-0.03, 0.03), top + 0.42]]), rng.uniform(0.06, 0.09), -0.15, 0.012)
    bend, phase = rng.normal(0.0, 0.05), rng.uniform(0.0, np.pi)
    y = np.linspace(-1.0, 1.2, 40)
    spine = np.stack([bend * np.sin(1.8 * y + phase) + rng.normal(0.0, 0.015), y], axis=1)
    film.curve(spine, rng.uniform(0.13, 0.18), 0.16, 0.012)
    pitch = rng.uniform(0.125, 0.155)
    for level in np.arange(-1.0 + rng.uniform(0.0, pitch), 1.2, pitch):
        x = float(np.interp(level, spine[:, 1], spine[:, 0]))
        film.curve(np.array([[x - 0.07, level], [x + 0.07, level + rng.normal(0.0, 0.01)]]), 0.025, 0.09)
    _ribs(rng, film, width, top, breath)
    for side in (-1.0, 1.0):
        a, b, arch = rng.uniform(-0.86, -0.72), rng.uniform(-0.95, -0.74), rng.uniform(-0.06, 0.06)
        t = np.linspace(0.0, 1.0, 20)
        across = side * (0.07 + t * (width * 1.15 - 0.07))
        film.tube(
            np.stack([across, a + (b - a) * t + arch * np.sin(2 * np.pi * t) - 0.03 * np.sin(np.pi * t)], axis=1),
            rng.uniform(0.05, 0.08),
            0.2,
        )
        film.area(
            ellipse(side * width * rng.uniform(1.2, 1.32), rng.uniform(-0.75, -0.6), 0.13, 0.16, waves=waves(rng, 0.05)), 0.2, 0.012
        )
        film.curve(
            np.array([[side * width * 0.98, -0.7], [side * width * rng.uniform(0.95, 1.1), rng.uniform(-0.2, 0.0)]]),
            0.07,
            0.06,
            0.02,
        )


def _ribs(rng: np.random.Generator, film: Film, width: float, top: float, breath: float) -> None:
    spacing, drop, thick = rng.uniform(0.125, 0.165), rng.uniform(0.12, 0.3), rng.uniform(0.035, 0.06)
    for side in (-1.0, 1.0):
        lean = rng.normal(0.0, 0.02)
        for number in range(9):
            start = top + 0.02 + spacing * number + rng.normal(0.0, 0.012)
            reach = width * min(1.0, 0.55 + 0.13 * number) * 1.03
            fall = (drop + lean + rng.normal(0.0, 0.02)) * (1.0 - 0.12 * breath) * (0.6 + 0.08 * number)
            t = np.linspace(0.0, 1.0, 24)
            back = np.stack(
                [side * (0.08 + (reach - 0.08) * np.sin(np.pi / 2 * t)), start - 0.05 * np.sin(np.pi * t) + fall * t**2], axis=1
            )
            film.tube(back, thick * rng.uniform(0.85, 1.15), 0.13)
            if number < 7:
                depth = rng.uniform(0.75, 1.0)
                front = np.stack(
                    [side * (reach - (reach - 0.3) * t**1.4), start + fall + (fall * depth + 0.1) * np.sin(np.pi / 2 * t)], axis=1
                )
                film.curve(front, thick, 0.045, 0.008)


def _vessels(rng: np.random.Generator, film: Film, side: float, width: float, hilum_y: float) -> None:
    hilum = np.array([side * rng.uniform(0.13, 0.18), hilum_y + rng.uniform(-0.08, 0.1)])
    film.area(ellipse(hilum[0], hilum[1], 0.07, rng.uniform(0.09, 0.14), waves=waves(rng, 0.12)), 0.12, 0.025)
    for angle in np.linspace(-1.3, 1.3, 7) + rng.normal(0.0, 0.15, 7):
        length, bow = rng.uniform(0.25, 0.5), rng.normal(0.0, 0.3)
        t = np.linspace(0.0, 1.0, 12)
        heading = angle + bow * t
        path = hilum + np.stack([side * t * length * np.cos(heading), t * length * np.sin(heading)], axis=1)
        film.curve(path[:7], 0.03, 0.06, 0.008)
        film.curve(path, 0.016, 0.06, 0.006)
        fork = rng.uniform(0.3, 0.8) * rng.choice([-1.0, 1.0])
        twig = path[6] + np.stack([side * t * 0.2 * np.cos(angle + fork), t * 0.2 * np.sin(angle + fork)], axis=1)
        film.curve(twig, 0.012, 0.05, 0.005)


def hand(rng: np.random.Generator, film: Film) -> None:
    """A hand from the back: forearm, carpals, metacarpals and phalanges."""
    texture = fractal(rng, TEXTURE_SIZE, 1.0)
    size, spread, slim = rng.uniform(0.85, 1.05), rng.uniform(0.16, 0.24), rng.uniform(0.85, 1.2)
    spread += 0.03 * film.visit.breath
    fingers = np.array([[0.52, 0.46, 0.3, 0.22], [0.56, 0.52, 0.34, 0.23], [0.52, 0.48, 0.32, 0.22], [0.47, 0.38, 0.23, 0.2]])
    fingers = np.concatenate([[[0.38, 0.34, 0.26, 0.0]], fingers]) * size * rng.normal(1.0, 0.06, (5, 4))
    angles = np.array([-0.95, -1.0 * spread, 0.0, 0.9 * spread, 1.9 * spread]) + rng.normal(0.0, 0.04, 5)
    roots = np.array([[-0.24, 0.42], [-0.15, 0.3], [-0.02, 0.27], [0.1, 0.3], [0.2, 0.36]]) + rng.normal(0.0, 0.012, (5, 2))
    angles = angles + film.visit.rng.normal(0.0, 0.03, 5)
    outlines = []
    for root, lengths, angle, thick in zip(roots, fingers, angles, (0.085, 0.08, 0.08, 0.075, 0.065), strict=True):
        chain, place = [root], root
        for joint, length in enumerate(lengths[lengths > 0]):
            heading = angle * (0.75 if joint == 0 else 1.0)
            place = place + length * np.array([np.sin(heading), -np.cos(heading)])
            chain.append(place)
        outlines.append((np.array(chain), thick * slim))
    for joints, thick in outlines:
        film.curve(joints, thick * 2.3, 0.16, 0.02)
    film.area(ellipse(0.0, 0.25, 0.33, 0.42, waves=waves(rng, 0.03)), 0.2, 0.03)
    film.curve(np.array([[0.0, 0.5], [0.03, 1.4]]), 0.42, 0.22, 0.02)
    for joints, thick in outlines:
        for number, (a, b) in enumerate(pairwise(joints)):
            along, gap = (b - a), 0.02 / max(float(np.hypot(*(b - a))), 0.05)
            ends = a + along * gap, b - along * gap
            film.tube(np.array(ends), thick * (0.72 - 0.08 * number), 0.3)
            for end, knob in zip(ends, rng.uniform(0.45, 0.62, 2), strict=True):
                film.area(ellipse(end[0], end[1], thick * knob, thick * knob * 0.8, waves=waves(rng, 0.06)), 0.14, 0.008)
    for row, count in ((0.42, 4), (0.53, 3)):
        for place_x in np.linspace(-0.17, 0.18, count):
            x, y = place_x + rng.normal(0.0, 0.015), row + rng.normal(0.0, 0.015)
            film.area(
                ellipse(x, y, rng.uniform(0.05, 0.075), rng.uniform(0.05, 0.07), rng.uniform(0, np.pi), waves(rng, 0.12)),
                0.26,
                0.008,
            )
    film.tube(np.array([[-0.1, 0.68], [-0.06, 1.5]]), rng.uniform(0.16, 0.22), 0.3)
    film.tube(np.array([[0.14, 0.7 + rng.normal(0.0, 0.03)], [0.13, 1.5]]), rng.uniform(0.09, 0.13), 0.3)
    film.grain(texture, np.clip(film.thickness - 0.25, 0.0, 0.3), 0.12)


def head(rng: np.random.Generator, film: Film) -> None:
    """An axial head slice: scalp, skull, brain with furrows, ventricles."""
    a, b, bone, egg = rng.uniform(0.6, 0.7), rng.uniform(0.76, 0.88), rng.uniform(0.045, 0.08), waves(rng, 0.025)
    film.area(ellipse(0, 0, a + 0.06, b + 0.06, waves=egg), 0.18, 0.01)
    film.area(ellipse(0, 0, a, b, waves=egg), 0.62, 0.008)
    inside = film.area(ellipse(0, 0, a - bone, b - bone * rng.uniform(0.9, 1.5), waves=egg + [[0.0, 0.1]] * 4), -0.42, 0.008)
    film.grain(fractal(rng, TEXTURE_SIZE, 1.3), inside, 0.025)
    furrows = fractal(rng, TEXTURE_SIZE, 1.9)
    furrows = np.exp(-((furrows / np.float32(0.12)) ** 2)).astype(np.float32)
    core = np.zeros_like(film.thickness)
    cv2.fillPoly(core, [np.round(film.place(ellipse(0, 0, a * 0.62, b * 0.66))).astype(np.int32)], 1.0)
    film.grain(furrows, inside * (1.0 - cv2.GaussianBlur(core, (0, 0), 0.03 * film.size)), -0.16)
    film.curve(
        np.array([[rng.normal(0.0, 0.015), -b + 0.1], [rng.normal(0.0, 0.02), 0.0], [rng.normal(0.0, 0.015), b - 0.1]]), 0.02, -0.07
    )
    for side in (-1.0, 1.0):
        long, open_ = rng.uniform(0.14, 0.24), rng.uniform(0.03, 0.075)
        film.area(
            ellipse(
                side * rng.uniform(0.07, 0.11),
                rng.uniform(-0.22, -0.12),
                open_,
                long,
                -side * rng.uniform(0.1, 0.4),
                waves(rng, 0.08),
            ),
            -0.14,
            0.01,
        )
        film.area(
            ellipse(
                side * rng.uniform(0.14, 0.22),
                rng.uniform(0.18, 0.3),
                open_ * 0.9,
                long * 0.8,
                side * rng.uniform(0.2, 0.6),
                waves(rng, 0.08),
            ),
            -0.14,
            0.01,
        )
        film.area(
            ellipse(side * rng.uniform(0.14, 0.2), rng.uniform(-0.02, 0.08), 0.09, 0.15, side * 0.3, waves(rng, 0.1)), 0.05, 0.02
        )
        if rng.random() < 0.4:
            film.area(ellipse(side * rng.uniform(0.15, 0.24), rng.uniform(0.15, 0.3), 0.02, 0.025), 0.3, 0.006)
    if rng.random() < 0.4:
        film.area(ellipse(rng.normal(0.0, 0.01), rng.uniform(0.1, 0.2), 0.02, 0.02), 0.35, 0.006)


def abdomen(rng: np.random.Generator, film: Film) -> None:
    """An axial slice of the upper abdomen: wall, ribs, vertebra, liver, spleen, kidneys, aorta, gut."""
    a, b, wall = rng.uniform(0.78, 0.92), rng.uniform(0.56, 0.68), rng.uniform(0.05, 0.16)
    shape = waves(rng, 0.025)
    film.area(ellipse(0, 0, a, b, waves=shape), 0.22, 0.008)
    inner = film.area(ellipse(0, -0.01, a - wall, b - wall, waves=shape), 0.16, 0.01)
    film.area(ellipse(0, -0.01, a - wall - 0.05, b - wall - 0.05, waves=shape), -0.12, 0.01)
    film.grain(fractal(rng, TEXTURE_SIZE, 1.2), inner, 0.025)
    turn = rng.uniform(-0.4, 0.1)
    film.area(
        ellipse(
            -a * rng.uniform(0.38, 0.46),
            rng.uniform(-0.14, 0.0),
            a * rng.uniform(0.32, 0.42),
            b * rng.uniform(0.5, 0.62),
            turn,
            waves(rng, 0.1),
        ),
        0.2,
        0.01,
    )
    film.area(
        ellipse(
            a * rng.uniform(0.55, 0.63),
            rng.uniform(0.05, 0.2),
            rng.uniform(0.09, 0.14),
            rng.uniform(0.16, 0.24),
            rng.uniform(-0.5, 0.3),
            waves(rng, 0.08),
        ),
        0.21,
        0.01,
    )
    film.area(
        ellipse(
            a * rng.uniform(0.25, 0.42),
            rng.uniform(-0.28, -0.15),
            rng.uniform(0.14, 0.24),
            rng.uniform(0.1, 0.17),
            rng.uniform(-0.5, 0.5),
            waves(rng, 0.12),
        ),
        0.14,
        0.01,
    )
    film.area(
        ellipse(a * rng.uniform(0.25, 0.42), rng.uniform(-0.35, -0.22), rng.uniform(0.06, 0.14), rng.uniform(0.03, 0.07)),
        -0.3,
        0.01,
    )
    for side in (-1.0, 1.0):
        x, y, tilt = side * rng.uniform(0.27, 0.37), rng.uniform(0.14, 0.26), side * rng.uniform(-0.8, 0.2)
        film.area(ellipse(x, y, rng.uniform(0.08, 0.12), rng.uniform(0.11, 0.16), tilt, waves(rng, 0.08)), 0.24, 0.008)
        film.area(ellipse(x - side * 0.03, y, 0.035, 0.06, tilt), -0.18, 0.012)
        film.area(ellipse(side * rng.uniform(0.14, 0.2), rng.uniform(0.3, 0.36), 0.1, 0.09, waves=waves(rng, 0.06)), 0.14, 0.01)
    film.area(ellipse(rng.uniform(0.02, 0.09), rng.uniform(0.04, 0.1), r := rng.uniform(0.045, 0.065), r), 0.26, 0.006)
    film.area(ellipse(-rng.uniform(0.08, 0.14), rng.uniform(0.02, 0.08), 0.06, 0.045), 0.22, 0.006)
    film.area(
        ellipse(0, rng.uniform(0.2, 0.24), rng.uniform(0.11, 0.14), rng.uniform(0.09, 0.12), waves=waves(rng, 0.05)), 0.42, 0.01
    )
    film.area(ellipse(0, rng.uniform(0.34, 0.37), 0.045, 0.04), -0.2, 0.008)
    film.curve(np.array([[0.0, 0.38], [rng.normal(0.0, 0.02), b - 0.1]]), 0.04, 0.4)
    first, gap = rng.uniform(0.0, 0.3), rng.uniform(0.36, 0.5)
    for angle in np.arange(first, 2 * np.pi, gap):
        x, y = (a - wall - 0.03) * np.cos(angle), (b - wall - 0.03) * np.sin(angle)
        heading = np.arctan2(b * np.cos(angle), -a * np.sin(angle))
        film.area(ellipse(x, y, rng.uniform(0.05, 0.09), 0.02, heading), 0.45, 0.006)
    for _ in range(int(rng.integers(4, 10))):
        film.area(
            ellipse(rng.uniform(-0.35, 0.45), rng.uniform(-0.38, 0.0), r := rng.uniform(0.03, 0.07), r, waves=waves(rng, 0.15)),
            rng.choice([-0.2, 0.16]),
            0.01,
        )


KINDS: dict[str, tuple[float, Anatomy]] = {
    "chest": (0.55, chest),
    "hand": (0.15, hand),
    "head": (0.15, head),
    "abdomen": (0.15, abdomen),
}
"""Kinds of phantom with the share of identities that are of each."""


def kind_of(identity: int) -> str:
    """The kind of picture that this identity's phantoms are, a key of `KINDS`."""
    rng = np.random.default_rng([0x1DE27, identity])
    return str(rng.choice(list(KINDS), p=[share for share, _ in KINDS.values()]))


def phantom(identity: int, visit: int, size: int = 256) -> Pixels:
    """One radiograph-like picture, (size, size, 3) uint8, its three channels equal.

    Args:
        identity: seed of the anatomy; pictures with the same one are "the same person".
        visit: seed of everything that differs between examinations of one person.
        size: side in pixels; the same two seeds give the same scene at any size, apart from noise.
    """
    kind = kind_of(identity)
    film = Film(size, _visit((identity, visit)))
    KINDS[kind][1](np.random.default_rng([0xA7A70, identity]), film)
    if kind == "chest" and film.visit.rng.random() < 0.5:
        _finding(film)
    if kind == "chest" and film.visit.rng.random() < 0.35:
        _device(film)
    grey = _develop(film, projection=kind in ("chest", "hand"))
    return np.repeat(grey[..., None], 3, axis=2)


def _finding(film: Film) -> None:
    """A nodule, an area of shadowing, or fluid at a lung's base: comes and goes between visits."""
    rng = film.visit.rng
    side, kind = rng.choice([-1.0, 1.0]), rng.integers(3)
    if kind == 0:
        film.area(
            ellipse(side * rng.uniform(0.2, 0.5), rng.uniform(-0.5, 0.2), r := rng.uniform(0.03, 0.08), r, waves=waves(rng, 0.1)),
            0.15,
            0.012,
        )
    elif kind == 1:
        x, y, a, b = side * rng.uniform(0.25, 0.45), rng.uniform(-0.4, 0.25), rng.uniform(0.1, 0.25), rng.uniform(0.1, 0.25)
        cover = film.area(ellipse(x, y, a, b, waves=waves(rng, 0.2)), rng.uniform(0.08, 0.2), 0.06)
        film.thickness += fractal(rng, film.size, 1.2) * cover * np.float32(0.04)
    else:
        film.area(ellipse(side * 0.45, 0.5, 0.3, rng.uniform(0.15, 0.35), waves=waves(rng, 0.05)), 0.3, 0.04)


def _device(film: Film) -> None:
    """A pacemaker with its lead, a drawn-out line or tube, or electrodes with their wires: denser than bone."""
    rng = film.visit.rng
    side, kind = rng.choice([-1.0, 1.0]), rng.integers(3)
    t = np.linspace(0.0, 1.0, 30)
    if kind == 0:
        x, y = side * rng.uniform(0.42, 0.55), rng.uniform(-0.62, -0.48)
        film.area(ellipse(x, y, 0.1, 0.085, rng.uniform(0, np.pi)), 0.9, 0.004)
        end = rng.uniform((0.05, 0.1), (0.25, 0.35))
        film.curve(
            np.stack([x + (end[0] - x) * t**0.7, y - 0.12 * np.sin(np.pi * t) + (end[1] - y) * t**2], axis=1), 0.012, 0.6, 0.003
        )
    elif kind == 1:
        film.curve(
            np.stack([rng.normal(0.0, 0.04) + 0.03 * np.sin(2 * t), -1.1 + t * rng.uniform(0.7, 1.9)], axis=1),
            rng.uniform(0.012, 0.035),
            0.25,
            0.003,
        )
    else:
        for _ in range(int(rng.integers(2, 5))):
            x, y, bow = rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.5), rng.normal(0.0, 0.3)
            film.area(ellipse(x, y, 0.035, 0.035), 0.5, 0.003)
            film.curve(
                np.stack([x + bow * np.sin(np.pi * t) + t * rng.uniform(-0.6, 0.6), y + t * rng.choice([-1.0, 1.0]) * 1.4], axis=1),
                0.009,
                0.45,
                0.002,
            )


def _develop(film: Film, projection: bool) -> Pixels:
    """Thickness to grey: window by the picture's own quantiles, gamma, scatter, noise, collimation, side marker."""
    rng, size = film.visit.rng, film.size
    thickness = film.thickness
    if projection:
        y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
        angle, heel = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.0, 0.06)
        thickness = thickness + np.float32(heel) * (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)))
        thickness += cv2.GaussianBlur(thickness, (0, 0), 0.12 * size) * np.float32(rng.uniform(0.0, 0.25))
    low, high = np.percentile(thickness, (rng.uniform(0.2, 3.0), rng.uniform(97.5, 99.8)))
    width = max(float(high - low), 1e-3)
    grey = np.clip((thickness - low - width * rng.uniform(-0.06, 0.06)) / (width * rng.uniform(0.85, 1.15)), 0.0, 1.0)
    grey = grey ** np.float32(rng.uniform(0.65, 1.5))
    if rng.random() < 0.4:
        grey += (grey - cv2.GaussianBlur(grey, (0, 0), 0.02 * size)) * np.float32(rng.uniform(0.3, 1.5))
    grey = cv2.GaussianBlur(grey, (0, 0), float(rng.uniform(0.3, 0.9)) * size / 256)
    noise = cv2.GaussianBlur(rng.standard_normal((size, size), dtype=np.float32), (0, 0), 0.6)
    grey = grey * np.float32(rng.uniform(0.85, 1.0)) + noise * np.float32(rng.uniform(0.005, 0.04))
    if projection and rng.random() < 0.35:
        edges = (rng.uniform(0.0, 0.1, 4) * size).astype(int)
        shutter = np.zeros_like(grey)
        shutter[edges[0] : size - edges[1], edges[2] : size - edges[3]] = 1.0
        grey *= shutter
    if projection and rng.random() < 0.5:
        mark = np.zeros((size, size), np.uint8)
        place = (int(size * rng.choice([0.06, 0.86])), int(size * rng.uniform(0.1, 0.2)))
        cv2.putText(mark, str(rng.choice(["L", "R", "AP", "PA"])), place, cv2.FONT_HERSHEY_SIMPLEX, size / 300, 255, 2, cv2.LINE_AA)
        grey = np.maximum(grey, mark.astype(np.float32) / np.float32(255.0) * np.float32(0.95))
    return np.asarray(np.round(np.clip(grey, 0.0, 1.0) * 255.0), np.uint8)
