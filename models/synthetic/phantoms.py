"""Radiograph-like phantoms: the anatomy is the identity, everything else is the visit.

A phantom is a pure function of two seeds. The identity's seed fixes the kind of image (chest, hand, knee, skull, head slice,
abdominal slice, slice through a random volume) and every length, angle, curve and texture of the anatomy. The visit's seed
fixes what changes between two examinations of one person:

* pose: turned by up to 8 degrees, 15 % larger or smaller, moved by up to a twentieth of the image, breath, a little softness;
* field: half of the images show a part of it, 72 to 100 % of the area, enlarged, or have black collimation;
* exposure and window: quantiles, gamma, scatter, sharpening, noise, side marker;
* findings (nodule, shadowing, fluid) and devices (pacemaker, tubes, electrodes), in half and in a third of the images.

It is a cartoon of projection: enough to pose the problem of re-identification (images of one kind look alike, and identity is
in small differences of shape), not a model of X-ray physics.
"""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from .anatomy.abdomen import abdomen
from .anatomy.chest import chest
from .anatomy.hand import hand
from .anatomy.head import head
from .anatomy.knee import knee
from .anatomy.skull import skull
from .anatomy.volume import volume
from .film import Film, Visit, ellipse, waves
from .scenes import fractal

__all__ = ["KINDS", "kind_of", "phantom"]

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
LARGEST_TURN = 8.0
LARGEST_SCALE = 0.15


class Anatomy(Protocol):
    """Draws one kind of image: `rng` is the identity's, the film holds the visit."""

    def __call__(self, rng: np.random.Generator, film: Film) -> None: ...


def _visit(seed: tuple[int, int]) -> Visit:
    rng = np.random.default_rng([0x715170, *seed])
    scale = float(rng.uniform(1.0 - LARGEST_SCALE, 1.0 + LARGEST_SCALE))
    aspect = float(rng.uniform(0.98, 1.02))
    return Visit(
        turn=float(np.radians(rng.uniform(-LARGEST_TURN, LARGEST_TURN))),
        scale=(scale * aspect, scale / aspect),
        shift=(float(rng.uniform(-0.1, 0.1)), float(rng.uniform(-0.1, 0.1))),
        warp=rng.normal(0.0, 0.008, (2, 3, 3)),
        breath=float(rng.uniform(-1.0, 1.0)),
        rng=rng,
    )


KINDS: dict[str, tuple[float, Anatomy]] = {
    "chest": (0.3, chest),
    "hand": (0.12, hand),
    "knee": (0.12, knee),
    "skull": (0.12, skull),
    "head": (0.12, head),
    "abdomen": (0.1, abdomen),
    "volume": (0.12, volume),
}
"""Kinds of phantom with the share of identities that are of each."""
PROJECTIONS = ("chest", "hand", "knee", "skull")


def kind_of(identity: int) -> str:
    """The kind of image that this identity's phantoms are, a key of `KINDS`."""
    rng = np.random.default_rng([0x1DE27, identity])
    return str(rng.choice(list(KINDS), p=[share for share, _ in KINDS.values()]))


def phantom(identity: int, visit: int, size: int = 256) -> Pixels:
    """One radiograph-like image, (size, size, 3) uint8, its three channels equal.

    Args:
        identity: seed of the anatomy; images with the same one are "the same person".
        visit: seed of everything that differs between examinations of one person.
        size: side in pixels; the same two seeds give the same scene at any size, apart from noise.
    """
    kind = kind_of(identity)
    film = Film(size, _visit((identity, visit)))
    KINDS[kind][1](np.random.default_rng([0xA7A70, identity]), film)
    if film.visit.rng.random() < 0.5:
        _finding(film)
    if film.visit.rng.random() < 0.35:
        _device(film)
    grey = _develop(film, projection=kind in PROJECTIONS)
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
    """Thickness to grey: window by the image's own quantiles, gamma, scatter, noise, collimation, side marker."""
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
    field = rng.random()
    if field < 0.25:
        side = float(np.sqrt(rng.uniform(0.72, 1.0)))
        top, left = (int(rng.uniform(0.0, 1.0 - side) * size) for _ in range(2))
        window = grey[top : top + int(side * size), left : left + int(side * size)]
        grey = np.asarray(cv2.resize(window, (size, size), interpolation=cv2.INTER_LINEAR))
    elif field < 0.5:
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
