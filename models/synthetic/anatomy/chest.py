"""Frontal chest radiographs."""

from __future__ import annotations

import numpy as np

from ..film import TEXTURE_SIZE, Film, ellipse, waves
from ..scenes import fractal


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
