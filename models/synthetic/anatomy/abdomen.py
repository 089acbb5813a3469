"""Axial slices of the upper abdomen."""

from __future__ import annotations

import numpy as np

from ..film import TEXTURE_SIZE, Film, ellipse, waves
from ..scenes import fractal


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
