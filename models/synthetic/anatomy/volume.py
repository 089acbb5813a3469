"""CT-like slices through one random volume: the volume is the identity, the level of the slice belongs to the visit."""

from __future__ import annotations

import numpy as np

from ..film import TEXTURE_SIZE, Film, ellipse, waves
from ..scenes import fractal

LEVEL_MOVES = 0.03
"""How far, in half image widths, a second examination's slice may lie above or below the first: about half a centimetre."""


def volume(rng: np.random.Generator, film: Film) -> None:
    """A body of ellipsoids cut near its middle: wall, bones, organs, vessels, air. Each one's cross-section follows the level."""
    level = LEVEL_MOVES * film.visit.breath
    a, b, wall = rng.uniform(0.62, 0.9), rng.uniform(0.5, 0.72), rng.uniform(0.04, 0.14)
    shape = waves(rng, 0.03)
    film.area(ellipse(0, 0, a, b, waves=shape), rng.uniform(0.16, 0.26), 0.008)
    inside = film.area(ellipse(0, 0, a - wall, b - wall, waves=shape), 0.12, 0.01)
    film.grain(fractal(rng, TEXTURE_SIZE, rng.uniform(0.9, 1.5)), inside, 0.03)
    for count, sizes, amounts in (
        (int(rng.integers(4, 9)), (0.12, 0.32), (-0.3, 0.2)),
        (int(rng.integers(10, 22)), (0.04, 0.12), (-0.2, 0.25)),
        (int(rng.integers(10, 26)), (0.015, 0.04), (0.1, 0.35)),
    ):
        for _ in range(count):
            angle, distance = rng.uniform(0.0, 2 * np.pi), np.sqrt(rng.uniform(0.0, 0.75))
            x, y = (a - wall) * distance * np.cos(angle), (b - wall) * distance * np.sin(angle)
            size, height = rng.uniform(*sizes), rng.uniform(*sizes) * 1.5
            amount, outline = rng.uniform(*amounts), waves(rng, 0.1)
            stretch, turn, offset = rng.uniform(0.6, 1.0), rng.uniform(0.0, np.pi), rng.uniform(-0.8, 0.8) * height
            cut = 1.0 - ((level - offset) / height) ** 2
            if cut > 0.02:
                film.area(ellipse(x, y, size * np.sqrt(cut), size * stretch * np.sqrt(cut), turn, outline), amount, 0.008)
    film.area(
        ellipse(
            rng.normal(0.0, 0.03),
            b * rng.uniform(0.4, 0.62),
            rng.uniform(0.09, 0.14),
            rng.uniform(0.07, 0.11),
            waves=waves(rng, 0.08),
        ),
        0.4,
        0.008,
    )
    for angle in np.arange(rng.uniform(0.0, 0.4), 2 * np.pi, rng.uniform(0.35, 0.6)):
        x, y = (a - wall * 0.7) * np.cos(angle), (b - wall * 0.7) * np.sin(angle)
        heading = float(np.arctan2(b * np.cos(angle), -a * np.sin(angle)))
        film.area(ellipse(x, y, rng.uniform(0.04, 0.09), 0.02, heading), 0.4, 0.006)
