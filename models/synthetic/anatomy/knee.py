"""Knees from the front."""

from __future__ import annotations

import numpy as np

from ..film import TEXTURE_SIZE, Film, Points, ellipse, waves
from ..scenes import fractal


def knee(rng: np.random.Generator, film: Film) -> None:
    """Thigh and calf, femur with its condyles, tibial plateau, fibula, patella; the gap between them and the axis vary."""
    texture = fractal(rng, TEXTURE_SIZE, 1.2)
    axis, gap = rng.normal(0.0, 0.06), rng.uniform(0.03, 0.08)
    joint = rng.uniform(-0.08, 0.12)
    thigh, calf = rng.uniform(0.5, 0.68), rng.uniform(0.4, 0.55)
    y = np.linspace(-1.3, 1.3, 40)
    bulge = (
        np.where(y < joint, thigh, calf)
        + 0.06 * np.sin(2.2 * y + rng.uniform(0, np.pi))
        - 0.05 * np.exp(-(((y - joint) / 0.2) ** 2))
    )
    sides = [np.stack([side * bulge * rng.uniform(0.94, 1.06) + axis * y, y], axis=1) for side in (-1.0, 1.0)]
    film.area(np.concatenate([sides[0], sides[1][::-1]]), 0.3, 0.03)
    shaft, flare = rng.uniform(0.17, 0.23), rng.uniform(0.34, 0.44)
    condyles = [rng.uniform(0.0, 0.05), rng.uniform(0.0, 0.05)]
    notch, depth = rng.normal(0.0, 0.02), rng.uniform(0.06, 0.13)
    _bone(film, _long_bone(rng, joint - gap / 2, -1.4, shaft, flare, condyles, notch, depth, axis), 0.36)
    _bone(film, _long_bone(rng, joint + gap / 2, 1.5, shaft * rng.uniform(0.85, 1.0), flare * rng.uniform(0.92, 1.06), [0.0, 0.0],
                           notch, -rng.uniform(0.02, 0.05), axis), 0.34)  # fmt: skip
    side = 1.0
    head = np.array([side * flare * rng.uniform(0.85, 1.05), joint + rng.uniform(0.16, 0.26)])
    film.area(ellipse(head[0], head[1], rng.uniform(0.06, 0.09), rng.uniform(0.07, 0.1), waves=waves(rng, 0.1)), 0.16, 0.008)
    film.tube(np.stack([head, [head[0] + axis - 0.04 * side, 1.5]]), rng.uniform(0.07, 0.1), 0.22)
    film.area(
        ellipse(rng.normal(0.0, 0.04) + 0.02 * film.visit.breath, joint - rng.uniform(0.2, 0.34), rng.uniform(0.15, 0.21),
                rng.uniform(0.17, 0.23), rng.uniform(-0.4, 0.4), waves(rng, 0.06)),
        0.1,
        0.012,
    )  # fmt: skip
    film.grain(texture, np.clip(film.thickness - 0.4, 0.0, 0.4), 0.12)
    for _ in range(int(rng.integers(0, 4))):
        film.area(ellipse(rng.uniform(-0.4, 0.4), joint + rng.normal(0.0, 0.08), r := rng.uniform(0.015, 0.04), r), 0.14, 0.006)


def _long_bone(
    rng: np.random.Generator,
    end: float,
    far: float,
    shaft: float,
    flare: float,
    condyles: list[float],
    notch: float,
    depth: float,
    axis: float,
) -> Points:
    """The outline of a bone that flares towards its joint at height `end`."""
    reach = np.linspace(0.0, 1.0, 24)
    heights = far + (end - far) * reach
    power = rng.uniform(5.0, 9.0)
    widths = shaft / 2 + (flare - shaft / 2) * reach**power
    left = np.stack([-widths * rng.uniform(0.94, 1.06) + axis * heights, heights + condyles[0] * reach**8], axis=1)
    right = np.stack([widths * rng.uniform(0.94, 1.06) + axis * heights, heights + condyles[1] * reach**8], axis=1)
    x = np.linspace(-flare, flare, 16)
    face = np.stack([x + axis * end, end - depth * np.exp(-(((x - notch) / (0.22 * flare)) ** 2))], axis=1)
    return np.concatenate([left, face, right[::-1]])


def _bone(film: Film, outline: Points, amount: float) -> None:
    film.area(outline, amount * 0.7, 0.008)
    film.curve(np.concatenate([outline, outline[:1]]), 0.03, amount * 0.4, 0.004)
