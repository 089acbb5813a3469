"""Photograph-like generated images: what the demonstration model learns copy detection on.

A scene is a pure function of its seed, so the training set is a range of numbers and needs no download and no licence.
Four families, after what makes natural images statistically natural: dead leaves (occlusion and scale invariance: Lee,
Mumford and Huang, IJCV 2001), fractal noise (the 1/f^b amplitude spectrum: Field, JOSA A 1987), still lifes (objects,
gradients, lettering and textures on a ground) and landscapes (bands of texture under a sky). A camera finishes each one:
tone curve, vignette, focus, grain.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["FAMILIES", "fractal", "scene"]

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

GREY_SHARE = 0.15
LETTERS = "ABCDEFGHIJKLMNOPRSTUVWXYZabcdefghijkmnoprstuvwxyz0123456789&%?!"
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX)


def scene(seed: int, size: int = 256) -> Pixels:
    """One generated image, (size, size, 3) uint8 RGB. The same seed and size give the same bytes on one machine."""
    rng = np.random.default_rng([0x5CE4E, seed])
    family = FAMILIES[int(rng.choice(len(FAMILIES), p=(0.35, 0.1, 0.35, 0.2)))]
    return _camera(rng, family(rng, size))


def fractal(rng: np.random.Generator, size: int, slope: float, stretch: float = 1.0) -> Floats:
    """A (size, size) field of zero mean and unit deviation with an amplitude spectrum of 1/f^slope.

    `stretch` above 1 makes the grain longer along x than along y, as in water, wood or grass seen from the side.
    """
    rows = np.fft.fftfreq(size)[:, None]
    columns = np.fft.rfftfreq(size)[None, :] * stretch
    frequency = np.sqrt(rows**2 + columns**2)
    frequency[0, 0] = 1.0
    spectrum = (rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)) / frequency**slope
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(size, size))
    return (field / max(float(field.std()), 1e-12)).astype(np.float32)


def _palette(rng: np.random.Generator, count: int) -> Floats:
    """`count` colours in [0, 1] that go together: a few hues, spread in lightness, some of them nearly grey."""
    hues = (rng.uniform(0.0, 180.0) + rng.choice([0.0, 15.0, 30.0, 90.0, 110.0], count) + rng.normal(0.0, 6.0, count)) % 180
    saturation = rng.beta(1.6, 2.4, count) * 255.0
    value = rng.uniform(0.08, 1.0, count) * 255.0
    hsv = np.stack([hues, saturation, value], axis=1)[None].astype(np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0] / 255.0, np.float32)


def _outline(rng: np.random.Generator, centre: tuple[float, float], radius: float) -> NDArray[np.int32]:
    """A closed outline: ellipse, box, irregular polygon or smooth blob, as fixed-point points for cv2 (4 binary places)."""
    kind = rng.integers(4)
    if kind == 1:
        angles = np.array([0.25, 0.75, 1.25, 1.75]) * np.pi
    elif kind == 2:
        angles = np.sort(rng.uniform(0.0, 2 * np.pi, int(rng.integers(3, 8))))
    else:
        angles = np.linspace(0.0, 2 * np.pi, 40, endpoint=False)
    radii = np.full(angles.shape, radius)
    if kind == 3:
        for order in range(2, 6):
            radii *= 1.0 + rng.normal(0.0, 0.35 / order) * np.cos(order * angles + rng.uniform(0.0, 2 * np.pi))
    turn, flat = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.4, 1.0)
    x, y = radii * np.cos(angles), radii * np.sin(angles) * flat
    points = np.stack([centre[0] + x * np.cos(turn) - y * np.sin(turn), centre[1] + x * np.sin(turn) + y * np.cos(turn)], axis=1)
    return np.round(points * 16.0).astype(np.int32)


def _texture(rng: np.random.Generator, size: int) -> Floats:
    """A (size, size) brightness pattern around 0: none, grain, stripes or checks."""
    kind = int(rng.choice(4, p=(0.35, 0.4, 0.15, 0.1)))
    if kind == 0:
        return np.zeros((size, size), np.float32)
    if kind == 1:
        return fractal(rng, size, rng.uniform(0.5, 1.5), rng.choice([1.0, 4.0])) * np.float32(0.12)
    angle, period = rng.uniform(0.0, np.pi), rng.uniform(0.02, 0.15) * size
    y, x = np.mgrid[:size, :size].astype(np.float32) * np.float32(2 * np.pi / period)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wave = np.sin(u) if kind == 2 else np.sin(u) * np.sin(v)
    return np.asarray(np.clip(wave * rng.uniform(1.0, 8.0), -1.0, 1.0) * rng.uniform(0.05, 0.2), np.float32)


def _gradient(rng: np.random.Generator, size: int, first: Floats, second: Floats) -> Floats:
    """(size, size, 3): one colour running into another, straight or from a bright spot."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / np.float32(size)
    if rng.random() < 0.5:
        angle = rng.uniform(0.0, 2 * np.pi)
        ramp = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + 0.5
    else:
        ramp = np.hypot(x - rng.uniform(0.0, 1.0), y - rng.uniform(0.0, 1.0))
    ramp = np.clip(ramp, 0.0, 1.0).astype(np.float32)[..., None]
    return np.asarray(first * (1.0 - ramp) + second * ramp, dtype=np.float32)


def _paint(rng: np.random.Generator, image: Floats, outline: NDArray[np.int32], colour: Floats, texture: Floats) -> None:
    """Fill an outline in place, shaded towards one side and textured, with a soft shadow or rim now and then."""
    size = image.shape[0]
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [outline], 255, cv2.LINE_AA, 4)
    left, top, width, height = cv2.boundingRect(mask)
    if width == 0 or height == 0:
        return
    if rng.random() < 0.3:
        shift = rng.uniform(0.01, 0.04, 2) * size
        shadow = cv2.GaussianBlur(mask, (0, 0), 0.015 * size)
        shadow = cv2.warpAffine(shadow, np.array([[1, 0, shift[0]], [0, 1, shift[1]]]), (size, size))
        image *= 1.0 - shadow[..., None].astype(np.float32) * np.float32(0.5 / 255.0)
    box = np.s_[top : top + height, left : left + width]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    angle, depth = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.0, 0.25)
    shade = (x * np.cos(angle) + y * np.sin(angle)) * np.float32(depth) + texture[box]
    cover = mask[box][..., None].astype(np.float32) / np.float32(255.0)
    image[box] = image[box] * (1.0 - cover) + np.clip(colour + shade[..., None], 0.0, 1.0) * cover


def _blend(image: Floats, mask: Pixels, colour: Floats) -> None:
    """Lay one colour over an image in place, as far as the mask (0 to 255) covers it."""
    cover = mask[..., None].astype(np.float32) / np.float32(255.0)
    image += (colour - image) * cover


def _dead_leaves(rng: np.random.Generator, size: int) -> Floats:
    """Opaque shapes that hide each other, with radii after a power law of exponent 3 between two limits."""
    colours = _palette(rng, int(rng.integers(5, 14)))
    image = _gradient(rng, size, colours[0], colours[1])
    textures = [_texture(rng, size) for _ in range(4)]
    smallest, largest = rng.uniform(0.015, 0.06), rng.uniform(0.2, 0.5)
    for _ in range(int(rng.integers(40, 220))):
        u = rng.random()
        radius = size / np.sqrt(u / smallest**2 + (1.0 - u) / largest**2)
        centre = (float(rng.uniform(0, size)), float(rng.uniform(0, size)))
        colour = np.clip(colours[rng.integers(len(colours))] + rng.normal(0.0, 0.05, 3), 0.0, 1.0).astype(np.float32)
        _paint(rng, image, _outline(rng, centre, float(radius)), colour, textures[rng.integers(4)])
    return image


def _clouds(rng: np.random.Generator, size: int) -> Floats:
    """Fractal noise put through a palette, sometimes folded, which gives veins and ridges."""
    field = fractal(rng, size, rng.uniform(0.9, 1.9), rng.choice([1.0, 1.0, 2.0, 5.0]))
    if rng.random() < 0.4:
        field = np.asarray(np.abs(field) * 2.0 - 1.5, np.float32)
    colours = _palette(rng, 4)
    position = np.clip(field * 0.75 + 1.5, 0.0, 2.999)
    low = position.astype(np.int64)
    part = (position - low)[..., None].astype(np.float32)
    tint = np.stack([fractal(rng, size, 1.6) for _ in range(3)], axis=2) * np.float32(0.05)
    return np.asarray(colours[low] * (1.0 - part) + colours[low + 1] * part + tint, dtype=np.float32)


def _still_life(rng: np.random.Generator, size: int) -> Floats:
    """A few large things, lines and lettering on a gradient or textured ground."""
    colours = _palette(rng, 10)
    image = _gradient(rng, size, colours[0], colours[1]) + _texture(rng, size)[..., None]
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 3.0)))
    for _ in range(int(rng.integers(2, 12))):
        centre = (float(rng.uniform(0.1, 0.9) * size), float(rng.uniform(0.1, 0.9) * size))
        outline = _outline(rng, centre, float(rng.uniform(0.05, 0.3) * size))
        colour, texture = colours[rng.integers(10)], _texture(rng, size)
        _paint(rng, image, outline, colour, texture)
    for _ in range(int(rng.integers(0, 6))):
        mask = np.zeros((size, size), np.uint8)
        ends = rng.integers(0, size, (2, 2))
        cv2.line(mask, ends[0].tolist(), ends[1].tolist(), 255, int(rng.integers(1, 6)), cv2.LINE_AA)
        _blend(image, mask, colours[rng.integers(10)])
    for _ in range(int(rng.integers(0, 4))):
        mask = np.zeros((size, size), np.uint8)
        word = "".join(rng.choice(list(LETTERS), int(rng.integers(2, 9))))
        place = (int(rng.integers(-10, size // 2)), int(rng.integers(size // 8, size)))
        scale, width = float(rng.uniform(0.4, 2.2) * size / 256), int(rng.integers(1, 5))
        cv2.putText(mask, word, place, FONTS[rng.integers(len(FONTS))], scale, 255, width, cv2.LINE_AA)
        _blend(image, mask, colours[rng.integers(10)])
    return image


def _landscape(rng: np.random.Generator, size: int) -> Floats:
    """A sky with clouds over two to five bands of ground, each with a ragged skyline, and perhaps houses or trees."""
    colours = _palette(rng, 8)
    image = _gradient(rng, size, colours[0], np.clip(colours[0] + 0.3, 0.0, 1.0))
    image += np.clip(fractal(rng, size, 1.4, 2.5), 0.0, 2.0)[..., None] * np.float32(rng.uniform(0.0, 0.25))
    bands = int(rng.integers(2, 6))
    columns = np.arange(size)
    for band, level in enumerate(np.sort(rng.uniform(0.2, 0.95, bands))):
        skyline = fractal(rng, size, rng.uniform(1.2, 2.2))[0]
        edge = (level + skyline * rng.uniform(0.005, 0.06)) * size
        outline = np.concatenate([np.stack([columns, edge], axis=1), [[size, size], [0, size]]])
        ground = colours[1 + band] * np.float32(rng.uniform(0.5, 1.0))
        texture = fractal(rng, size, rng.uniform(0.4, 1.3), rng.choice([1.0, 3.0])) * np.float32(rng.uniform(0.02, 0.14))
        _paint(rng, image, np.round(outline * 16).astype(np.int32), ground, texture)
        for _ in range(int(rng.integers(0, 5))):
            x, height = float(rng.uniform(0, size)), float(rng.uniform(0.02, 0.12) * size)
            base = float(edge[int(x)])
            _paint(rng, image, _outline(rng, (x, base), height), colours[rng.integers(8)], texture)
    return image


def _camera(rng: np.random.Generator, light: Floats) -> Pixels:
    """What a camera does to light in [0, 1]: focus, vignette, tone curve, grain; some images are grey."""
    size = light.shape[0]
    light = np.clip(cv2.GaussianBlur(light, (0, 0), float(rng.uniform(0.3, 1.2))), 0.0, 1.0)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    light *= (1.0 - np.float32(rng.uniform(0.0, 0.25)) * (x**2 + y**2) / 2.0)[..., None]
    light = light ** np.float32(rng.uniform(0.7, 1.4))
    light += rng.standard_normal(light.shape, dtype=np.float32) * np.float32(rng.uniform(0.0, 0.02))
    if rng.random() < GREY_SHARE:
        light = np.repeat(light.mean(axis=2, keepdims=True), 3, axis=2)
    low, high = np.percentile(light, (1, 99))
    if high - low < 0.5:
        light = (light - low) * np.float32(0.6 / max(high - low, 1e-3)) + np.float32(rng.uniform(0.05, 0.35))
    return np.round(np.clip(light, 0.0, 1.0) * 255.0).astype(np.uint8)


FAMILIES: tuple[Callable[[np.random.Generator, int], Floats], ...] = (_dead_leaves, _clouds, _still_life, _landscape)
