"""Axial slices of heads."""

from __future__ import annotations

import cv2
import numpy as np

from ..film import TEXTURE_SIZE, Film, ellipse, waves
from ..scenes import fractal


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
