"""Altered copies of real images for training, as users make them, and simulated further examinations of a radiograph.

`altered_copy` draws one to three of 40 alterations: display settings, processing, geometry, marks, frames, collages, noise, blur
and re-encoding. They apply at the image's own resolution; Pillow's bilinear filter then resizes to the network's input, exactly as
inference does. Noise, blur and JPEG partly come after that, since files are also degraded at small sizes.

Three kinds of alteration are left out on purpose, so that their recall tells whether the network generalizes (docs/evaluation.md):
heat maps and any other translucent colored overlay, photos of a screen (perspective with moire or glare), and images inside pages
or viewers. Nothing here may draw the like.

All functions take and return RGB, uint8 (height, width, 3); all randomness comes from the given generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from lcmem_onnx.runtime.images.preprocess import resize
from numpy.typing import NDArray

__all__ = ["ALTERATIONS", "altered_copy", "another_examination"]

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Draw = Callable[[Pixels, np.random.Generator], Pixels]
AnotherImage = Callable[[], Pixels]
"""Gives an image of another identity, for collages."""

AT_ONCE = (1, 1, 1, 2, 2, 3)
"""How many alterations a copy has, each number as likely as it is frequent here."""
LATE = frozenset({"noise", "blur", "jpeg", "speckle"})
LATE_SHARE = 0.6
"""Share of the draws of `LATE` that apply after resizing."""
LETTERS = tuple("ABCDEFGHKLMNPRSTUVXabcdeglmnopstu0123456789 :/-.,()")
SMALLEST_CROP = 24


def altered_copy(
    image: Pixels,
    size: int,
    rng: np.random.Generator,
    *,
    at_once: Sequence[int] = AT_ONCE,
    another: AnotherImage | None = None,
    weights: Mapping[str, float] = MappingProxyType({}),
) -> Pixels:
    """Return an altered copy at the network's size, uint8 (size, size, 3).

    Args:
        image: uint8 (height, width, 3), at its own resolution.
        size: side of the network's input in pixels.
        at_once: numbers of alterations to choose from.
        another: gives the images beside this one in a collage; without it no collage is drawn.
        weights: how often an alteration is drawn, where that is not as `ALTERATIONS` has it.
    """
    shares = {name: weights.get(name, usual) for name, (usual, _) in ALTERATIONS.items() if name != "collage" or another}
    late: list[Draw] = []
    likely = np.array(list(shares.values()))
    for name in rng.choice(list(shares), int(rng.choice(at_once)), replace=False, p=likely / likely.sum()):
        draw = ALTERATIONS[str(name)][1]
        if name in LATE and rng.random() < LATE_SHARE:
            late.append(draw)
        elif name == "collage" and another is not None:
            image = _collage(image, rng, another())
        else:
            image = draw(image, rng)
    image = resize(image, size)
    for draw in late:
        image = draw(image, rng)
    return np.ascontiguousarray(image)


def another_examination(image: Pixels, size: int, rng: np.random.Generator) -> Pixels:
    """Return a radiograph as from another examination of the same patient, uint8 (size, size, 3).

    Posture and breath (a smooth deformation, a mild perspective, rotation, scale, stretch), the field, exposure and processing
    (up to three changes of tone), catheters (curved lines), and the file's own losses.
    """
    height, width = image.shape[:2]
    if rng.random() < 0.8:
        image = _elastic(image, rng, rng.uniform(0.003, 0.014))
    if rng.random() < 0.4:
        image = _perspective(image, rng)
    image = _affine(image, rng, rng.normal() * 4.0, np.exp(rng.normal() * 0.07), rng.normal(size=2) * 0.03)
    if rng.random() < 0.7:
        image = _resized(image, width, max(32, int(height * np.exp(rng.normal() * 0.08))))
    if rng.random() < 0.6:
        image = _crop(image, rng, 0.75)
    for draw in rng.permutation(np.array([*_TONES, None, None, None, None], object))[:3]:
        if draw is not None:
            image = draw(image, rng)
    if rng.random() < 0.3:
        image = _catheters(image, rng)
    if rng.random() < 0.3:
        image = _noise(image, rng) if rng.random() < 0.3 else _blur(image, rng) if rng.random() < 0.4 else _jpeg(image, rng)
    if rng.random() < 0.08:
        image = _mirror(image, rng)
    return resize(image, size)


# Geometry.


def _affine(image: Pixels, rng: np.random.Generator, degrees: float, scale: float, shift: NDArray[np.float64]) -> Pixels:
    """Rotate about the middle, scale and move; black, mirrored or colored where nothing was."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    matrix[:, 2] += np.asarray(shift * (width, height), np.float64)
    border = rng.random()
    mode = cv2.BORDER_REFLECT if 0.7 <= border < 0.85 else cv2.BORDER_CONSTANT
    fill = _color(rng) if border >= 0.85 else (0, 0, 0)
    return np.asarray(
        cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=mode, borderValue=fill), np.uint8
    )


def _rotation(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Up to 38 degrees; a uniform angle of the disc, so that large ones are more frequent."""
    degrees = rng.choice([-1.0, 1.0]) * 38.0 * np.sqrt(rng.random())
    scale = rng.uniform(0.85, 1.15) if rng.random() < 0.4 else 1.0
    shift = rng.uniform(-0.06, 0.06, 2) if rng.random() < 0.4 else np.zeros(2)
    return _affine(image, rng, degrees, scale, shift)


def _shift(image: Pixels, rng: np.random.Generator) -> Pixels:
    degrees = rng.uniform(-5.0, 5.0) if rng.random() < 0.3 else 0.0
    return _affine(image, rng, degrees, 1.0, rng.uniform(-0.22, 0.22, 2))


def _zoom(image: Pixels, rng: np.random.Generator) -> Pixels:
    return _affine(image, rng, 0.0, rng.uniform(0.6, 1.4), rng.uniform(-0.08, 0.08, 2))


def _quarter_turn(image: Pixels, rng: np.random.Generator) -> Pixels:
    return np.ascontiguousarray(np.rot90(image, int(rng.integers(1, 4))))


def _mirror(image: Pixels, rng: np.random.Generator) -> Pixels:
    return np.ascontiguousarray(image[:, ::-1] if rng.random() < 0.8 else image[::-1])


def _upside_down(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Turned by 180 degrees or, as often, mirrored top to bottom."""
    return np.ascontiguousarray(image[::-1, ::-1] if rng.random() < 0.5 else image[::-1])


def _crop(image: Pixels, rng: np.random.Generator, smallest: float = 0.22) -> Pixels:
    """A random window of `smallest` to all of the area, its aspect ratio sometimes another."""
    height, width = image.shape[:2]
    side = np.sqrt(rng.uniform(smallest, 1.0))
    aspect = np.exp(rng.uniform(-0.25, 0.25)) if rng.random() < 0.4 else 1.0
    tall = min(height, max(SMALLEST_CROP, int(height * side * aspect)))
    wide = min(width, max(SMALLEST_CROP, int(width * side / aspect)))
    top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
    return np.ascontiguousarray(image[top : top + tall, left : left + wide])


def _square(image: Pixels, rng: np.random.Generator) -> Pixels:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    if rng.random() < 0.4:
        top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def _aspect(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Cut off a little, then stretch or squash."""
    height, width = image.shape[:2]
    return _resized(_crop(image, rng, 0.75), max(32, int(width * np.exp(rng.uniform(-0.45, 0.45)))), height)


def _elastic(image: Pixels, rng: np.random.Generator, strength: float | None = None) -> Pixels:
    """Displace by a smooth random field with a deviation of `strength` times the longer side."""
    height, width = image.shape[:2]
    points = int(rng.integers(3, 12))
    by = (rng.uniform(0.004, 0.02) if strength is None else strength) * max(height, width)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    across, down = (
        np.float32(by) * cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
        for field in rng.standard_normal((2, points, points), dtype=np.float32)
    )
    bent = cv2.remap(image, columns + across, rows + down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(bent, np.uint8)


def _perspective(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Move each corner by up to 6 % of the side, as an oblique beam does."""
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    moved = corners + (rng.uniform(-0.06, 0.06, (4, 2)) * (width, height)).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(corners, moved)
    return np.asarray(cv2.warpPerspective(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT), np.uint8)


def _resized(image: Pixels, width: int, height: int, method: int = cv2.INTER_LINEAR) -> Pixels:
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


# Tone and color.


def _levels(values: NDArray[Any]) -> Pixels:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def _mapped(image: Pixels, curve: Callable[[Floats], NDArray[np.floating]]) -> Pixels:
    """Apply a function of 0 to 255 to every value."""
    return np.asarray(cv2.LUT(image, _levels(curve(np.arange(256, dtype=np.float32)))), np.uint8)


def _on_lightness(image: Pixels, change: Callable[[Pixels], Pixels]) -> Pixels:
    lab = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.uint8)
    lab[..., 0] = change(np.ascontiguousarray(lab[..., 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def _clahe(image: Pixels, rng: np.random.Generator) -> Pixels:
    tiles = int(rng.integers(2, 13))
    equalizer = cv2.createCLAHE(rng.uniform(1.2, 7.0), (tiles, tiles))
    return _on_lightness(image, lambda lightness: np.asarray(equalizer.apply(lightness), np.uint8))


def _equalized(image: Pixels, rng: np.random.Generator) -> Pixels:
    return _on_lightness(image, lambda lightness: np.asarray(cv2.equalizeHist(lightness), np.uint8))


def _local_contrast(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Amplify, or keep alone, what differs from the surroundings."""
    values = image.astype(np.float32)
    detail = values - cv2.GaussianBlur(values, (0, 0), rng.uniform(4.0, 30.0))
    if rng.random() < 0.7:
        return _levels(values + detail * rng.uniform(0.4, 2.0))
    return _levels(128.0 + detail * rng.uniform(1.0, 2.0))


def _gamma(image: Pixels, rng: np.random.Generator) -> Pixels:
    exponent = np.exp(rng.uniform(-1.0, 1.0))
    return _mapped(image, lambda level: 255.0 * (level / 255.0) ** exponent)


def _window(image: Pixels, rng: np.random.Generator) -> Pixels:
    low, high = np.percentile(image[::4, ::4], [rng.uniform(0, 48), rng.uniform(55, 100)])
    return _mapped(image, lambda level: (level - low) * 255.0 / max(high - low, 8.0))


def _factor(rng: np.random.Generator, darker: float) -> float:
    """Between .4 and 2.4, with the share `darker` below 1.3: brightening saturates and so loses more than darkening."""
    return float(rng.uniform(0.4, 1.3) if rng.random() < darker else rng.uniform(1.3, 2.4))


def _brightness(image: Pixels, rng: np.random.Generator) -> Pixels:
    factor = _factor(rng, 0.3)
    return _mapped(image, lambda level: level * factor)


def _contrast(image: Pixels, rng: np.random.Generator) -> Pixels:
    factor, middle = _factor(rng, 0.4), float(image[::4, ::4].mean())
    return _mapped(image, lambda level: middle + (level - middle) * factor)


def _tone_curve(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A rising curve through five random points, near black at its start and near white at its end."""
    ends = np.sort(rng.uniform(0, 255, 5))
    ends[0], ends[-1] = ends[0] * 0.3, 255 - (255 - ends[-1]) * 0.3
    return _mapped(image, lambda level: np.interp(level, (0, 64, 128, 192, 255), ends))


def _solarized(image: Pixels, rng: np.random.Generator) -> Pixels:
    limit = rng.uniform(80, 220)
    return _mapped(image, lambda level: np.where(level < limit, level, 255.0 - level))


def _posterized(image: Pixels, rng: np.random.Generator) -> Pixels:
    steps = int(rng.integers(3, 9))
    return _mapped(image, lambda level: np.round(level / 255.0 * steps) / steps * 255.0)


def _uneven_light(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Multiply by a smooth random field, up to 60 % brighter or darker at its extremes."""
    height, width = image.shape[:2]
    points = int(rng.integers(2, 5))
    coarse = rng.uniform(-1.0, 1.0, (points, points)).astype(np.float32) * np.float32(rng.uniform(0.2, 0.6))
    field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return _levels(image * (1.0 + field)[..., None])


def _inverted(image: Pixels, rng: np.random.Generator) -> Pixels:
    return np.subtract(255, image, dtype=np.uint8)


def _gray(image: Pixels, rng: np.random.Generator) -> Pixels:
    return np.repeat(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)[..., None], 3, axis=2)


def _color_cast(image: Pixels, rng: np.random.Generator) -> Pixels:
    return _levels(image * rng.uniform(0.6, 1.4, 3).astype(np.float32) + rng.uniform(-30, 30, 3).astype(np.float32))


def _hue(image: Pixels, rng: np.random.Generator) -> Pixels:
    hsv = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), np.float32)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(-30, 30)) % 180
    hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.2, 1.9), 0, 255)
    return np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB), np.uint8)


# Degradation.


def _jpeg(image: Pixels, rng: np.random.Generator) -> Pixels:
    quality = int(rng.integers(5, 60)) if rng.random() < 0.7 else int(rng.integers(60, 97))
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])


def _noise(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Gaussian, mostly with a deviation of 5 to 34 % of the range; of each channel, or of all channels alike."""
    channels = 3 if rng.random() < 0.6 else 1
    deviation = 255.0 * (rng.uniform(0.05, 0.34) if rng.random() < 0.75 else rng.uniform(0.01, 0.1))
    return _levels(image + rng.standard_normal((*image.shape[:2], channels), dtype=np.float32) * np.float32(deviation))


def _speckle(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Salt and pepper on .5 to 6 % of the pixels."""
    drawn, share = rng.random(image.shape[:2], dtype=np.float32), rng.uniform(0.005, 0.06)
    speckled = image.copy()
    speckled[drawn < share / 2] = 0
    speckled[drawn > 1 - share / 2] = 255
    return speckled


def _blur(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Gaussian, whole or cut off at a kernel of 9 as torchvision's and the paper's is."""
    kernel, sigma = ((0, 0), rng.uniform(0.3, 5.0)) if rng.random() < 0.6 else ((9, 9), rng.uniform(1.0, 7.0))
    return np.asarray(cv2.GaussianBlur(image, kernel, sigma), np.uint8)


def _motion_blur(image: Pixels, rng: np.random.Generator) -> Pixels:
    length = int(rng.integers(3, 13))
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1.0 / length
    middle = (length - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), rng.uniform(0, 180), 1.0)
    turned = np.asarray(cv2.warpAffine(kernel, matrix, (length, length)), np.float32)
    return np.asarray(cv2.filter2D(image, -1, turned / max(float(turned.sum()), 1e-3)), np.uint8)


def _denoised(image: Pixels, rng: np.random.Generator) -> Pixels:
    if rng.random() < 0.6:
        return np.asarray(cv2.medianBlur(image, int(rng.choice([3, 5, 7]))), np.uint8)
    return np.asarray(cv2.bilateralFilter(image, 7, rng.uniform(20, 90), 5), np.uint8)


def _sharpened(image: Pixels, rng: np.random.Generator) -> Pixels:
    values = image.astype(np.float32)
    return _levels(values + (values - cv2.GaussianBlur(values, (0, 0), rng.uniform(0.7, 2.0))) * rng.uniform(0.5, 3.0))


def _resampled(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Shrink to 12 to 70 % and enlarge again."""
    height, width = image.shape[:2]
    scale = rng.uniform(0.12, 0.7)
    down = int(rng.choice([cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_LINEAR], p=[0.7, 0.1, 0.2]))
    up = int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_NEAREST], p=[0.5, 0.4, 0.1]))
    return _resized(_resized(image, max(16, int(width * scale)), max(16, int(height * scale)), down), width, height, up)


# Things drawn on the image, and around it. All opaque.


def _color(rng: np.random.Generator) -> tuple[int, int, int]:
    """Any color, or black or white."""
    if rng.random() < 0.5:
        red, green, blue = (int(level) for level in rng.integers(0, 256, 3))
        return red, green, blue
    level = int(rng.choice([0, 255]))
    return level, level, level


def _write(image: Pixels, rng: np.random.Generator, place: tuple[int, int] | None = None) -> None:
    """Write up to 23 random letters onto the image itself."""
    height, width = image.shape[:2]
    scale = rng.uniform(0.25, 1.6) * height / 288
    where = place or (int(rng.integers(-10, max(1, width - 20))), int(rng.integers(min(8, height - 1), height)))
    letters = "".join(rng.choice(LETTERS, int(rng.integers(1, 24))))
    thickness = max(1, int(scale * rng.uniform(1, 3)))
    cv2.putText(image, letters, where, int(rng.integers(0, 8)), scale, _color(rng), thickness, cv2.LINE_AA)


def _marks(image: Pixels, rng: np.random.Generator) -> Pixels:
    """One to seven arrows, boxes, circles, lines and words."""
    drawn = image.copy()
    height, width = drawn.shape[:2]
    pen = max(1, min(height, width) // 90)
    for _ in range(int(rng.integers(1, 8))):
        start = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        end = tuple(
            int(np.clip(position + rng.normal() * side * 0.25, 0, side))
            for position, side in zip(start, (width, height), strict=True)
        )
        color, thickness = _color(rng), int(rng.integers(1, 4)) * pen
        kind = rng.choice(["arrow", "box", "circle", "text", "filled box", "line"], p=np.array([1, 1, 1, 2, 1, 1]) / 7)
        if kind == "arrow":
            cv2.arrowedLine(drawn, start, end, color, thickness)
        elif kind == "box":
            cv2.rectangle(drawn, start, end, color, thickness)
        elif kind == "circle":
            cv2.circle(drawn, start, int(rng.uniform(0.03, 0.22) * width), color, thickness)
        elif kind == "text":
            _write(drawn, rng)
        elif kind == "line":
            cv2.line(drawn, start, end, color, thickness)
        elif rng.random() < 0.6:
            cv2.rectangle(drawn, start, end, color, cv2.FILLED)
    return drawn


def _watermark(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Blend lines of letters in white, gray or black over the whole image, at 15 to 60 %, upright or turned."""
    height, width = image.shape[:2]
    side = int(np.ceil(np.hypot(height, width)))
    cover = np.zeros((side, side), np.uint8)
    letters = "".join(rng.choice(LETTERS, int(rng.integers(4, 16))))
    scale, font = rng.uniform(0.5, 1.6) * side / 400, int(rng.integers(0, 8))
    pen = max(1, int(scale * rng.uniform(1, 3)))
    wide, tall = (max(1, length) for length in cv2.getTextSize(letters, font, scale, pen)[0])
    for row, bottom in enumerate(range(tall, side + tall, max(tall, int(tall * rng.uniform(1.3, 6))))):
        for left in range(-(row % 2) * wide // 2, side, wide + tall):
            cv2.putText(cover, letters, (left, bottom), font, scale, 255, pen, cv2.LINE_AA)
    if rng.random() < 0.7:
        cover = np.asarray(
            cv2.warpAffine(cover, cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(-60, 60), 1.0), (side, side))
        )
    top, left = (side - height) // 2, (side - width) // 2
    share = (cover[top : top + height, left : left + width].astype(np.float32) * np.float32(rng.uniform(0.15, 0.6) / 255))[
        ..., None
    ]
    return _levels(image * (1 - share) + np.float32(rng.choice([0, 128, 255, 255])) * share)


def _erased(image: Pixels, rng: np.random.Generator) -> Pixels:
    """One or two rectangles of one color, each 10 to 45 % of the sides."""
    drawn = image.copy()
    height, width = drawn.shape[:2]
    for _ in range(int(rng.integers(1, 3))):
        tall, wide = int(height * rng.uniform(0.1, 0.45)), int(width * rng.uniform(0.1, 0.45))
        top, left = int(rng.integers(0, height - tall)), int(rng.integers(0, width - wide))
        drawn[top : top + tall, left : left + wide] = _color(rng)
    return drawn


def _caption(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A bar with letters along the top or the bottom, over the image or beside it."""
    height, width = image.shape[:2]
    bar = np.empty((min(height, max(4, int(height * rng.uniform(0.06, 0.2)))), width, 3), np.uint8)
    bar[:] = _color(rng)
    _write(bar, rng, (4, int(len(bar) * 0.7)))
    at_top = rng.random() < 0.5
    kept = (image[len(bar) :] if at_top else image[: height - len(bar)]) if rng.random() < 0.5 else image
    return np.concatenate([bar, kept] if at_top else [kept, bar])


def _border(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A frame of one color, 2 to 25 % of the side wide and not always as wide on each side."""
    height, width = image.shape[:2]
    part = rng.uniform(0.02, 0.25)
    top, bottom, left, right = (
        int(part * side * (rng.random() if rng.random() < 0.4 else 1.0)) for side in (height, height, width, width)
    )
    return _framed(image, top, bottom, left, right, _color(rng))


def _letterbox(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Pad to a square; an image that is nearly one gets bars on two sides."""
    height, width = image.shape[:2]
    down, across = (max(height, width) - height, max(height, width) - width)
    if max(height, width) < 1.1 * min(height, width):
        part = rng.uniform(0.05, 0.3)
        down, across = (2 * int(height * part), 0) if rng.random() < 0.5 else (0, 2 * int(width * part))
    color = (0, 0, 0) if rng.random() < 0.6 else _color(rng)
    return _framed(image, down // 2, down - down // 2, across // 2, across - across // 2, color)


def _framed(image: Pixels, top: int, bottom: int, left: int, right: int, color: tuple[int, int, int]) -> Pixels:
    return np.asarray(cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=color), np.uint8)


def _collage(image: Pixels, rng: np.random.Generator, other: Pixels) -> Pixels:
    """The image in a row, a column or a square with one to three others as large as itself, with a gap or without."""
    height, width = image.shape[:2]
    if rng.random() < 0.3:
        rows = [[_resized(other, width, height)] * 2 for _ in range(2)]
        rows[int(rng.integers(0, 2))][int(rng.integers(0, 2))] = image
        return np.concatenate([np.concatenate(row, axis=1) for row in rows])
    images = [_resized(other, width, height)] * int(rng.integers(1, 3))
    images.insert(int(rng.integers(0, len(images) + 1)), image)
    axis, gap, color = int(rng.integers(0, 2)), int(rng.integers(0, 12)), _color(rng)
    separator = np.empty((gap, width, 3) if axis == 0 else (height, gap, 3), np.uint8)
    separator[:] = color
    parts = [part for each in images for part in (separator, each)][1:]
    return np.concatenate(parts, axis=axis)


def _catheters(image: Pixels, rng: np.random.Generator) -> Pixels:
    """One to three bright curved lines."""
    drawn = image.copy()
    height, width = drawn.shape[:2]
    for _ in range(int(rng.integers(1, 4))):
        steps = np.concatenate([[[rng.uniform(0, width), rng.uniform(0, height)]], rng.normal(size=(7, 2)) * 0.09 * width])
        level = int(rng.integers(150, 256))
        points = np.cumsum(steps, axis=0).astype(np.int32)
        cv2.polylines(drawn, [points], False, (level, level, level), int(rng.integers(1, 4)), cv2.LINE_AA)
    return drawn


_TONES: tuple[Draw, ...] = (_gamma, _tone_curve, _contrast, _brightness, _window, _clahe, _local_contrast)


def _alone(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A collage of nothing but the image; `altered_copy` gives it others."""
    return image


ALTERATIONS: Mapping[str, tuple[float, Draw]] = MappingProxyType(
    {
        "rotation": (5.0, _rotation),
        "shift": (2.5, _shift),
        "zoom": (1.2, _zoom),
        "quarter turn": (1.4, _quarter_turn),
        "mirror": (1.8, _mirror),
        "crop": (4.0, _crop),
        "clahe": (2.2, _clahe),
        "equalize": (0.6, _equalized),
        "local contrast": (0.8, _local_contrast),
        "gamma": (1.0, _gamma),
        "window": (2.5, _window),
        "brightness": (5.0, _brightness),
        "contrast": (2.0, _contrast),
        "tone curve": (0.8, _tone_curve),
        "solarize": (0.7, _solarized),
        "uneven light": (0.7, _uneven_light),
        "posterize": (0.6, _posterized),
        "jpeg": (2.0, _jpeg),
        "noise": (7.0, _noise),
        "speckle": (0.5, _speckle),
        "blur": (2.0, _blur),
        "motion blur": (0.8, _motion_blur),
        "denoise": (0.5, _denoised),
        "sharpen": (0.4, _sharpened),
        "gray": (0.8, _gray),
        "color cast": (0.6, _color_cast),
        "hue": (0.4, _hue),
        "invert": (1.5, _inverted),
        "resample": (0.9, _resampled),
        "marks": (2.0, _marks),
        "watermark": (0.8, _watermark),
        "erase": (0.5, _erased),
        "caption": (0.6, _caption),
        "border": (1.0, _border),
        "letterbox": (0.8, _letterbox),
        "square": (0.5, _square),
        "aspect": (1.1, _aspect),
        "collage": (1.2, _alone),
        "elastic": (0.5, _elastic),
        "upside down": (0.0, _upside_down),  # only where a recipe asks for it: quarter turns and mirror draw it too, but seldom
    }
)
"""Of each alteration how often it is drawn, as a weight, and what draws it."""
