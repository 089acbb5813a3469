"""Alterations of images as users meet them: display settings, annotations, crops, turns, re-encoding, images inside others.

Each one takes RGB, uint8 (height, width, 3) of any size and returns RGB, uint8; the size may change. All randomness comes from the
given generator. `REALISTIC` lists them with their strengths; `HELD_OUT` lists those that the training of the bundled model never
draws, so that their recall tells whether the model generalizes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from .surroundings import collage, heat_map, lettering, page_figure, photo_of_a_screen, viewer_screenshot

__all__ = ["HELD_OUT", "NEEDS_OTHER", "REALISTIC", "alter_realistically"]

Pixels = NDArray[np.uint8]

REALISTIC = MappingProxyType(
    {
        # Display settings and image processing.
        "clahe": (2.0, 6.0),
        "local contrast": (1.0,),
        "equalize": (1.0,),
        "gamma": (0.5, 2.0),
        "window 20-80": (1.0,),
        "window 40-95": (1.0,),
        "solarize": (1.0,),
        "gray": (1.0,),
        "color cast": (0.3,),
        "posterize": (8.0,),
        "uneven light": (0.5,),
        "sharpen": (2.0,),
        "denoise": (1.0,),
        "motion blur": (0.04,),
        # Things drawn on the image.
        "text overlay": (1.0,),
        "marks": (1.0,),
        "black box": (0.15,),
        "watermark": (0.35,),
        # Geometry.
        "crop to": (0.7, 0.5, 0.25),
        "shift": (0.1, 0.2),
        "turn": (90.0, 180.0, 270.0),
        "mirrored": (1.0,),
        "upside down": (1.0,),
        "straightened": (5.0,),
        "letterbox": (1.0,),
        "stretch": (1.5,),
        "other aspect": (1.0,),
        # The image beside others.
        "collage": (2.0, 4.0),
        # Resampling and re-encoding.
        "quarter size": (0.25,),
        "thumbnail": (64.0,),
        "resized jpeg": (30.0,),
        "webp": (20.0,),
        "crop, gray, jpeg": (1.0,),
        # Held out.
        "heat map": (0.4, 0.6),
        "photo of a screen": (1.0, 2.0),
        "page figure": (1.0,),
        "viewer screenshot": (1.0,),
    }
)
HELD_OUT = frozenset({"heat map", "photo of a screen", "page figure", "viewer screenshot"})
"""Transforms that the training of the bundled model never draws, nor anything that looks the same."""
NEEDS_OTHER = frozenset({"collage"})
"""Transforms that need another image."""


def alter_realistically(
    image: Pixels, transform: str, strength: float, rng: np.random.Generator, other: Pixels | None = None
) -> Pixels:
    """Apply one alteration of `REALISTIC`.

    Args:
        image: RGB, uint8 (height, width, 3), 1 x 1 or larger.
        transform: a name of `REALISTIC`.
        strength: its strength; the unit depends on the transform. Transforms without a strength ignore it.
        rng: the source of all randomness.
        other: RGB, uint8, an image of something else; needed by `NEEDS_OTHER` alone.

    Returns:
        RGB, uint8 (height, width, 3), a new array; the size may differ from that of `image`.

    Raises:
        KeyError: an unknown name.
        ValueError: `other` is missing.
    """
    if transform in NEEDS_OTHER:
        if other is None:
            raise ValueError(f"{transform} needs another image")
        return collage(image, other, int(strength), rng)
    return np.ascontiguousarray(_TRANSFORMS[transform](image, strength, rng))


# -- display settings and image processing ----------------------------------------------------------------------------


def _on_lightness(image: Pixels, change: Callable[[Pixels], Pixels]) -> Pixels:
    """Change the lightness (L of CIELAB) and keep the color."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[..., 0] = change(np.ascontiguousarray(lab[..., 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def _clahe(image: Pixels, clip_limit: float, rng: np.random.Generator) -> Pixels:
    """Apply contrast-limited adaptive histogram equalization on 8 x 8 tiles."""
    return _on_lightness(image, lambda values: np.asarray(cv2.createCLAHE(clip_limit, (8, 8)).apply(values), np.uint8))


def _local_contrast(image: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    """Add the difference to a wide blur ("clarity"): an unsharp mask with a radius of 5 % of the shorter side."""
    return _unsharp(image, max(1.0, 0.05 * min(image.shape[:2])), amount)


def _sharpen(image: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    return _unsharp(image, 1.5, amount)


def _unsharp(image: Pixels, sigma: float, amount: float) -> Pixels:
    return np.asarray(cv2.addWeighted(image, 1.0 + amount, cv2.GaussianBlur(image, (0, 0), sigma), -amount, 0.0), np.uint8)


def _equalize(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    return _on_lightness(image, lambda values: np.asarray(cv2.equalizeHist(values), np.uint8))


def _mapped(image: Pixels, curve: NDArray[np.floating]) -> Pixels:
    """Send each of the 256 levels through a curve."""
    return np.asarray(cv2.LUT(image, np.clip(np.rint(curve), 0, 255).astype(np.uint8)), np.uint8)


LEVELS = np.arange(256, dtype=np.float64)


def _gamma(image: Pixels, exponent: float, rng: np.random.Generator) -> Pixels:
    return _mapped(image, 255.0 * (LEVELS / 255.0) ** exponent)


def _window(low: float, high: float) -> Callable[[Pixels, float, np.random.Generator], Pixels]:
    """Spread the lightness between two percentiles over the full range, as a viewer's window/level does."""

    def apply(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
        def spread(lightness: Pixels) -> Pixels:
            bottom, top = np.percentile(lightness, [low, high])
            return _mapped(lightness, (LEVELS - bottom) * (255.0 / max(top - bottom, 1.0)))

        return _on_lightness(image, spread)

    return apply


def _solarize(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Invert the levels above the middle of those in use (their 1st to 99th percentile)."""
    darkest, lightest = np.percentile(image, [1.0, 99.0])
    return _mapped(image, np.minimum(LEVELS, darkest + lightest - LEVELS))


def _gray(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    return _spread(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8))


def _spread(gray: Pixels) -> Pixels:
    return np.repeat(gray[..., None], 3, axis=2)


def _color_cast(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Scale the channels apart: one up, one down by `strength`, the third in between."""
    gains = rng.permutation(np.array([1.0 + strength, 1.0 - strength, 1.0 + strength * rng.uniform(-0.5, 0.5)]))
    return np.stack([_mapped(image[..., channel], LEVELS * gains[channel]) for channel in range(3)], axis=2)


def _posterize(image: Pixels, levels: float, rng: np.random.Generator) -> Pixels:
    """Keep this many levels a channel, as a palette image does."""
    step = 255.0 / (levels - 1.0)
    return _mapped(image, np.rint(LEVELS / step) * step)


def _uneven_light(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Multiply by a smooth field between 1 - `strength` and 1 + `strength`: coil sensitivity, a lamp at one side, vignetting."""
    height, width = image.shape[:2]
    corners = np.array([-1.0, 1.0, *rng.uniform(-1.0, 1.0, 2)])
    coarse = rng.permutation(corners).reshape(2, 2).astype(np.float32)
    field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.clip(image * (1.0 + np.float32(strength) * field)[..., None] + 0.5, 0, 255), np.uint8)


def _denoise(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Smooth with an edge-preserving filter, as the denoising of a camera or of a viewer does."""
    smooth = cv2.bilateralFilter(image, 7, 45.0 * strength, 3.0)
    return np.asarray(cv2.medianBlur(smooth, 3), np.uint8)


def _motion_blur(image: Pixels, length: float, rng: np.random.Generator) -> Pixels:
    """Blur along a random direction, over this part of the shorter side."""
    side = max(3, int(length * min(image.shape[:2])) | 1)
    kernel = np.zeros((side, side), np.float32)
    angle, middle = rng.uniform(0.0, np.pi), side // 2
    reach = np.array([np.cos(angle), np.sin(angle)]) * middle
    ends = [tuple(round(float(middle + sign * part)) for part in reach) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE), np.uint8)


# -- things drawn on the image ----------------------------------------------------------------------------------------


def _text_overlay(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Write lines of text into the corners, as a workstation or a camera does; no bar behind them."""
    height, width = image.shape[:2]
    drawn = image.copy()
    line = max(4, int(min(height, width) * rng.uniform(0.05, 0.075)))
    ink = _INKS[int(rng.integers(len(_INKS)))]
    corners = rng.permutation(4)[: int(rng.integers(2, 5))]
    for corner in corners:
        lines = int(rng.integers(2, 5))
        left = line // 2 if corner % 2 == 0 else int(width * 0.58)
        top = line if corner < 2 else height - lines * line - line // 2
        for number in range(lines):
            lettering(drawn, (left, top + number * line), line, ink, int(width * 0.4), rng, shadow=True)
    return drawn


def _marks(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Draw what readers draw: arrows, boxes, circles, callipers with a number, a side marker."""
    height, width = image.shape[:2]
    side = min(height, width)
    drawn = image.copy()
    pen = max(1, round(side / 110))
    for kind in [*rng.permutation(5)[:3], *rng.integers(0, 5, int(rng.integers(1, 4)))]:
        color = _INKS[int(rng.integers(len(_INKS)))]
        position = np.array([rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height])
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.3) * side
        to = position + length * np.array([np.cos(angle), np.sin(angle)])
        first, second = (tuple(int(value) for value in point) for point in (position, to))
        if kind == 0:
            cv2.arrowedLine(drawn, second, first, color, 2 * pen, cv2.LINE_AA, tipLength=0.3)
        elif kind == 1:
            cv2.rectangle(drawn, first, second, color, pen)
        elif kind == 2:
            cv2.ellipse(drawn, first, (int(length / 2), int(length * rng.uniform(0.25, 0.5))), 0, 0, 360, color, pen, cv2.LINE_AA)
        elif kind == 3:
            across = 0.02 * side * np.array([-np.sin(angle), np.cos(angle)])
            cv2.line(drawn, first, second, color, pen, cv2.LINE_AA)
            for end in (position, to):
                cap = [tuple(int(value) for value in end + sign * across) for sign in (-1, 1)]
                cv2.line(drawn, cap[0], cap[1], color, pen, cv2.LINE_AA)
            text = f"{rng.uniform(2, 90):.1f} mm"
            cv2.putText(drawn, text, second, cv2.FONT_HERSHEY_SIMPLEX, side / 700, color, pen, cv2.LINE_AA)
        else:
            place = (int(width * rng.choice([0.06, 0.84])), int(height * rng.uniform(0.12, 0.3)))
            cv2.putText(drawn, str(rng.choice(["L", "R"])), place, cv2.FONT_HERSHEY_DUPLEX, side / 220, color, 2 * pen, cv2.LINE_AA)
    return drawn


_INKS = ((255, 255, 255), (255, 255, 0), (255, 40, 40), (60, 255, 60), (0, 220, 255), (0, 0, 0))


def _black_box(image: Pixels, area: float, rng: np.random.Generator) -> Pixels:
    """Black out boxes of this part of the area in all, as a redaction of text or faces does."""
    height, width = image.shape[:2]
    drawn = image.copy()
    boxes = int(rng.integers(1, 4))
    for _ in range(boxes):
        aspect = np.exp(rng.uniform(0.0, 1.2))
        tall, wide = (min(1.0, np.sqrt(area / boxes * ratio)) for ratio in (1 / aspect, aspect))
        top, left = rng.uniform(0.0, 1.0 - tall) * height, rng.uniform(0.0, 1.0 - wide) * width
        drawn[int(top) : int(np.ceil(top + tall * height)), int(left) : int(np.ceil(left + wide * width))] = 0
    return drawn


def _watermark(image: Pixels, opacity: float, rng: np.random.Generator) -> Pixels:
    """Repeat one translucent line of text along diagonals, as image agencies do."""
    height, width = image.shape[:2]
    side = int(np.ceil(np.hypot(height, width)))
    line = max(6, int(min(height, width) * rng.uniform(0.08, 0.11)))
    cover = np.zeros((side, side), np.uint8)
    word = str(rng.choice(["PREVIEW", "SAMPLE COPY", "(c) archive", "DO NOT COPY", "CONFIDENTIAL"]))
    pen = max(1, line // 9)
    scale = cv2.getFontScaleFromHeight(cv2.FONT_HERSHEY_DUPLEX, line, pen)
    wide = cv2.getTextSize(word, cv2.FONT_HERSHEY_DUPLEX, scale, pen)[0][0]
    for row, bottom in enumerate(range(line, side + line, 3 * line)):
        for left in range(-(row % 2) * wide, side, int(1.5 * wide)):
            cv2.putText(cover, word, (left, bottom), cv2.FONT_HERSHEY_DUPLEX, scale, 255, pen, cv2.LINE_AA)
    turned = cv2.warpAffine(cover, cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(20.0, 40.0), 1.2), (side, side))
    top, left = (side - height) // 2, (side - width) // 2
    part = (turned[top : top + height, left : left + width].astype(np.float32) * np.float32(opacity / 255.0))[..., None]
    return np.asarray(image * (1 - part) + 255 * part + 0.5, np.uint8)


# -- geometry ---------------------------------------------------------------------------------------------------------


def _crop_to(image: Pixels, area: float, rng: np.random.Generator) -> Pixels:
    """Keep a window of this part of the area at a random place; its aspect ratio differs by up to a fifth."""
    height, width = image.shape[:2]
    aspect = np.exp(rng.uniform(-0.1, 0.1))
    tall, wide = (max(1, round(length * min(1.0, side))) for length, side in _window_sides(height, width, area, aspect))
    top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
    return image[top : top + tall, left : left + wide]


def _window_sides(height: int, width: int, area: float, aspect: float) -> tuple[tuple[int, float], tuple[int, float]]:
    side = float(np.sqrt(area))
    return (height, side / aspect), (width, side * aspect)


def _shift(image: Pixels, part: float, rng: np.random.Generator) -> Pixels:
    """Move by this part of the size along both axes, in random senses; black where nothing was."""
    height, width = image.shape[:2]
    down, across = (round(length * part) * int(rng.choice([-1, 1])) for length in (height, width))
    moved = np.zeros_like(image)
    moved[max(0, down) : height + min(0, down), max(0, across) : width + min(0, across)] = image[
        max(0, -down) : height + min(0, -down), max(0, -across) : width + min(0, -across)
    ]
    return moved


def _turn(image: Pixels, degrees: float, rng: np.random.Generator) -> Pixels:
    """Turn counterclockwise by a multiple of 90 degrees."""
    return np.rot90(image, round(degrees / 90.0))


def _mirrored(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    return image[:, ::-1]


def _upside_down(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Mirror top and bottom."""
    return image[::-1]


def _straightened(image: Pixels, degrees: float, rng: np.random.Generator) -> Pixels:
    """Rotate by a small angle and keep the largest upright window of the same aspect ratio without corners."""
    height, width = image.shape[:2]
    sense = 1.0 if rng.random() < 0.5 else -1.0
    radians = np.deg2rad(degrees)
    longer = max(height, width) / min(height, width)
    scale = np.cos(radians) + longer * np.sin(radians)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), sense * degrees, scale)
    return np.asarray(
        cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def _letterbox(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Fit into a frame of 16:9 (a tall image: of 9:16) with bars of one color, mostly black."""
    height, width = image.shape[:2]
    ratio = 16 / 9 if width >= height else 9 / 16
    framed_width, framed_height = max(width, round(height * ratio)), max(height, round(width / ratio))
    color = 0 if rng.random() < 0.6 else int(rng.integers(0, 256))
    framed = np.full((framed_height, framed_width, 3), color, np.uint8)
    top, left = (framed_height - height) // 2, (framed_width - width) // 2
    framed[top : top + height, left : left + width] = image
    return framed


def _stretch(image: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    """Stretch one axis by `factor`: the aspect ratio is lost, the content is whole."""
    height, width = image.shape[:2]
    size = (round(width * factor), height) if rng.random() < 0.5 else (width, round(height * factor))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def _other_aspect(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Keep the middle at another aspect ratio: the square of an oblong image, 4:3 or 3:4 of a square one."""
    height, width = image.shape[:2]
    if max(height, width) >= 1.15 * min(height, width):
        tall = wide = min(height, width)
    elif rng.random() < 0.5:
        tall, wide = max(1, round(0.75 * width)), width
    else:
        tall, wide = height, max(1, round(0.75 * height))
    tall, wide = min(tall, height), min(wide, width)
    top, left = (height - tall) // 2, (width - wide) // 2
    return image[top : top + tall, left : left + wide]


# -- resampling and re-encoding ---------------------------------------------------------------------------------------


def _reduced(image: Pixels, scale: float) -> Pixels:
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _quarter_size(image: Pixels, scale: float, rng: np.random.Generator) -> Pixels:
    """Reduce the sides by this factor and enlarge to the old size again."""
    height, width = image.shape[:2]
    return np.asarray(cv2.resize(_reduced(image, scale), (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def _thumbnail(image: Pixels, side: float, rng: np.random.Generator) -> Pixels:
    """Reduce to this many pixels along the longer side."""
    return _reduced(image, min(1.0, side / max(image.shape[:2])))


def _encoded(image: Pixels, suffix: str, parameter: int, quality: float) -> Pixels:
    _, data = cv2.imencode(suffix, np.ascontiguousarray(image[..., ::-1]), [parameter, int(quality)])
    return np.asarray(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1], np.uint8)


def _resized_jpeg(image: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    """Resize to 45 to 70 % of the sides and save as JPEG, as a messenger does."""
    return _encoded(_reduced(image, rng.uniform(0.45, 0.7)), ".jpg", cv2.IMWRITE_JPEG_QUALITY, quality)


def _webp(image: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    return _encoded(image, ".webp", cv2.IMWRITE_WEBP_QUALITY, quality)


def _crop_gray_jpeg(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Combine three: crop to 80 % of the area, gray, JPEG of quality 40."""
    cropped = np.ascontiguousarray(_crop_to(image, 0.8, rng))
    return _encoded(_gray(cropped, strength, rng), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 40)


_TRANSFORMS: dict[str, Callable[[Pixels, float, np.random.Generator], Pixels]] = {
    "clahe": _clahe,
    "local contrast": _local_contrast,
    "equalize": _equalize,
    "gamma": _gamma,
    "window 20-80": _window(20.0, 80.0),
    "window 40-95": _window(40.0, 95.0),
    "solarize": _solarize,
    "gray": _gray,
    "color cast": _color_cast,
    "posterize": _posterize,
    "uneven light": _uneven_light,
    "sharpen": _sharpen,
    "denoise": _denoise,
    "motion blur": _motion_blur,
    "text overlay": _text_overlay,
    "marks": _marks,
    "black box": _black_box,
    "watermark": _watermark,
    "crop to": _crop_to,
    "shift": _shift,
    "turn": _turn,
    "mirrored": _mirrored,
    "upside down": _upside_down,
    "straightened": _straightened,
    "letterbox": _letterbox,
    "stretch": _stretch,
    "other aspect": _other_aspect,
    "quarter size": _quarter_size,
    "thumbnail": _thumbnail,
    "resized jpeg": _resized_jpeg,
    "webp": _webp,
    "crop, gray, jpeg": _crop_gray_jpeg,
    "heat map": heat_map,
    "photo of a screen": photo_of_a_screen,
    "page figure": page_figure,
    "viewer screenshot": viewer_screenshot,
}
