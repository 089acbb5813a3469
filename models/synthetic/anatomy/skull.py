"""Skulls from the side."""

from __future__ import annotations

import numpy as np

from ..film import TEXTURE_SIZE, Film, ellipse, waves
from ..scenes import fractal


def skull(rng: np.random.Generator, film: Film) -> None:
    """Lateral skull: vault with its sutures and vessel grooves, base, sinuses, orbit, jaws with teeth, cervical spine."""
    texture = fractal(rng, TEXTURE_SIZE, 1.5)
    a, b, bone = rng.uniform(0.6, 0.7), rng.uniform(0.5, 0.6), rng.uniform(0.04, 0.075)
    x0, y0, tilt, egg = 0.08, -0.22, rng.uniform(-0.15, 0.15), waves(rng, 0.025)
    film.area(ellipse(x0, y0, a + 0.05, b + 0.05, tilt, egg), 0.12, 0.015)
    vault = film.area(ellipse(x0, y0, a, b, tilt, egg), 0.5, 0.006)
    film.area(ellipse(x0, y0, a - bone, b - bone * rng.uniform(0.8, 1.4), tilt, egg), -0.26, 0.006)
    film.grain(texture, vault, 0.04)
    for _ in range(int(rng.integers(3, 7))):
        start, bow = rng.uniform(-0.4, 0.6), rng.normal(0.0, 0.25)
        t = np.linspace(0.0, 1.0, 20)
        path = np.stack([start + bow * t + 0.03 * np.sin(rng.uniform(4, 9) * t), y0 - b * 0.9 + t * rng.uniform(0.3, 0.9)], axis=1)
        film.curve(path, rng.uniform(0.012, 0.022), rng.choice([-0.06, 0.06]), 0.006)
    base = np.array(
        [[-0.42, 0.05], [-0.15, rng.uniform(0.05, 0.13)], [0.02, rng.uniform(0.1, 0.2)], [0.3, rng.uniform(0.18, 0.3)], [0.6, 0.12]]
    )
    film.curve(base, rng.uniform(0.06, 0.1), 0.24, 0.012)
    film.area(
        ellipse(
            rng.uniform(0.12, 0.22), rng.uniform(0.12, 0.2), rng.uniform(0.1, 0.15), rng.uniform(0.09, 0.13), waves=waves(rng, 0.15)
        ),
        0.3,
        0.015,
    )
    film.area(
        ellipse(rng.uniform(-0.1, 0.0), rng.uniform(0.03, 0.1), rng.uniform(0.04, 0.06), rng.uniform(0.03, 0.05)), -0.18, 0.008
    )
    film.area(
        ellipse(-0.54, rng.uniform(-0.2, -0.08), rng.uniform(0.03, 0.07), rng.uniform(0.06, 0.14), 0.3, waves(rng, 0.15)),
        -0.25,
        0.008,
    )
    film.area(
        ellipse(rng.uniform(-0.44, -0.36), rng.uniform(0.06, 0.14), rng.uniform(0.1, 0.14), rng.uniform(0.09, 0.12)), -0.1, 0.012
    )
    film.area(
        ellipse(
            rng.uniform(-0.42, -0.34),
            rng.uniform(0.26, 0.34),
            rng.uniform(0.1, 0.15),
            rng.uniform(0.08, 0.12),
            waves=waves(rng, 0.1),
        ),
        -0.1,
        0.01,
    )
    upper, lower = rng.uniform(0.4, 0.46), rng.uniform(0.5, 0.56) + 0.015 * film.visit.breath
    film.area(np.array([[-0.62, 0.2], [-0.2, 0.2], [-0.1, upper], [-0.62, upper]]), 0.16, 0.02)
    chin, angle = rng.uniform(0.74, 0.86), rng.uniform(0.1, 0.2)
    film.curve(
        np.array(
            [
                [-0.58, lower + 0.06],
                [-0.56, chin],
                [-0.3, chin - 0.03],
                [angle, chin - rng.uniform(0.14, 0.24)],
                [angle + 0.07, 0.22],
            ]
        ),
        rng.uniform(0.13, 0.18),
        0.22,
        0.012,
    )
    pitch, count = rng.uniform(0.065, 0.08), int(rng.integers(5, 8))
    for row, height in ((upper, 1.0), (lower, -1.0)):
        for number in range(count):
            if rng.random() < 0.12:
                continue
            x = -0.58 + pitch * number + rng.normal(0.0, 0.006)
            film.area(ellipse(x, row, pitch * 0.42, rng.uniform(0.05, 0.08), rng.normal(0.0, 0.12)), 0.2, 0.004)
            if rng.random() < 0.18:
                film.area(ellipse(x, row + 0.02 * height, pitch * 0.3, 0.018), 0.5, 0.003)
    lean = rng.normal(0.1, 0.1)
    for level in range(5):
        x, y = 0.26 + lean * level * 0.2 + rng.normal(0.0, 0.01), 0.34 + level * rng.uniform(0.15, 0.17)
        film.area(ellipse(x, y, rng.uniform(0.09, 0.12), 0.055, rng.normal(0.1, 0.1), waves(rng, 0.08)), 0.24, 0.008)
        film.area(ellipse(x + rng.uniform(0.22, 0.3), y + 0.03, rng.uniform(0.06, 0.1), 0.03, rng.normal(0.4, 0.15)), 0.14, 0.01)
