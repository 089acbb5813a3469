"""Hands from the back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ..film import TEXTURE_SIZE, Film, ellipse, waves
from ..scenes import fractal


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
