"""An image inside something else: next to another image, under a heat map, on a screen, on a page, in a viewer's window.

All functions take and return RGB, uint8 (height, width, 3). All randomness comes from the given generator.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["collage", "heat_map", "lettering", "page_figure", "photo_of_a_screen", "viewer_screenshot"]

Pixels = NDArray[np.uint8]
Color = tuple[int, ...]

TEXT = (
    "the of and in to with was were for patient patients image images chest view left right lateral study series control "
    "group findings shown after before treatment at follow-up baseline no acute change small large lesion arrow figure "
    "table results methods method we used between from both model data set figures report date scan contrast mean score "
    "year age male female normal mild moderate upper lower lobe region tissue sample stain field width level window kV mAs "
    "12 3 45 0.8 1.25 2019 2021 07:42 #18 10 mm 98 %"
)
WORDS = tuple(TEXT.split())
PAGE = (1131, 800)
"""Height and width of a page in pixels: A4 at about 97 dots per inch."""
WINDOWS = ((720, 1280), (800, 1280), (768, 1024))
SCREEN_SIDE = 512
"""Longer side of a photo of a screen, in pixels."""


def lettering(
    canvas: Pixels,
    place: tuple[int, int],
    line: int,
    ink: Color,
    width: int,
    rng: np.random.Generator,
    *,
    font: int = cv2.FONT_HERSHEY_SIMPLEX,
    shadow: bool = False,
) -> None:
    """Write one line of words into `canvas`, in place.

    Args:
        canvas: where to write.
        place: left and top of the line, in pixels.
        line: height of the line, in pixels.
        ink: RGB.
        width: about how wide the line may become, in pixels; it has one word at least.
        rng: draws the words.
        font: one of OpenCV's.
        shadow: whether to draw a shadow below the letters, dark for light ink and light for dark ink.
    """
    scale = cv2.getFontScaleFromHeight(font, max(1, round(0.55 * line)))
    pen = max(1, line // 14)
    letters = width / (scale * _letter_width(font))
    words = rng.choice(WORDS, max(1, int(letters / 4)))
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    text = " ".join(words[: max(1, int(np.searchsorted(ends, letters, side="right")))])
    position = (place[0], place[1] + round(0.75 * line))
    if shadow:
        below = (position[0] + pen, position[1] + pen)
        cv2.putText(canvas, text, below, font, scale, (0, 0, 0) if max(ink) > 100 else (230, 230, 230), pen, cv2.LINE_AA)
    cv2.putText(canvas, text, position, font, scale, ink, pen, cv2.LINE_AA)


@cache
def _letter_width(font: int) -> float:
    """Mean width of a letter at scale 1, in pixels."""
    return float(cv2.getTextSize(TEXT, font, 1.0, 1)[0][0] / len(TEXT))


def collage(image: Pixels, other: Pixels, tiles: int, rng: np.random.Generator) -> Pixels:
    """Put the image next to another one: two tiles side by side or stacked, or four in a square; one of them is the image.

    The other tiles show `other`, whole, mirrored and as a detail. Tiles have the size of `image`; a thin gap may separate them.
    """
    height, width = image.shape[:2]
    gap = int(rng.choice([0, max(1, min(height, width) // 40)]))
    ground = int(rng.choice([0, 255]))
    detail = other[other.shape[0] // 4 :, other.shape[1] // 4 :]
    shown = [image, *(_resized(each, height, width) for each in (other, np.ascontiguousarray(other[:, ::-1]), detail)[: tiles - 1])]
    rows, columns = (2, 2) if tiles > 2 else (1, 2) if rng.random() < 0.7 else (2, 1)
    canvas = np.full((rows * height + (rows - 1) * gap, columns * width + (columns - 1) * gap, 3), ground, np.uint8)
    for place, number in enumerate(rng.permutation(len(shown))):
        top, left = (place // columns) * (height + gap), (place % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = shown[int(number)]
    return canvas


def heat_map(image: Pixels, opacity: float, rng: np.random.Generator) -> Pixels:
    """Lay a jet-colored activation map of one to four spots over the whole image, as a class activation map is shown."""
    height, width = image.shape[:2]
    y, x = np.arange(height, dtype=np.float32)[:, None] / height, np.arange(width, dtype=np.float32)[None] / width
    heat = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(1, 5))):
        across, down = rng.uniform(0.08, 0.28, 2)
        left, top = rng.uniform(0.15, 0.85, 2)
        heat += rng.uniform(0.5, 1.0) * np.exp(-(((x - left) / across) ** 2)) * np.exp(-(((y - top) / down) ** 2))
    levels = (heat * (255.0 / max(float(heat.max()), 1e-6))).astype(np.uint8)
    colored = cv2.applyColorMap(levels, cv2.COLORMAP_JET)[..., ::-1]
    return np.asarray(cv2.addWeighted(image, 1.0 - opacity, np.ascontiguousarray(colored), opacity, 0.0), np.uint8)


def photo_of_a_screen(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Photograph the image on a screen: perspective, a moire pattern, glare, a color cast, uneven light, noise, JPEG.

    Args:
        strength: 1 is a careful photograph, 2 a careless one.
    """
    height, width = image.shape[:2]
    scale = SCREEN_SIDE / max(height, width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    shown = _resized(image, tall, wide)
    margin = np.array([wide, tall]) * rng.uniform(0.04, 0.07, 2) * strength
    corners = np.array([[0, 0], [wide, 0], [wide, tall], [0, tall]], np.float32)
    inward = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    seen = corners + inward * margin * rng.uniform(0.2, 1.6, (4, 2))
    matrix = cv2.getPerspectiveTransform(corners, seen.astype(np.float32))
    bezel = int(rng.integers(8, 40))
    photo = cv2.warpPerspective(shown, matrix, (wide, tall), flags=cv2.INTER_LINEAR, borderValue=(bezel,) * 3).astype(np.float32)
    # Coordinates from -0.5 to 0.5 of the longer side.
    longer = float(max(tall, wide))
    y = ((np.arange(tall, dtype=np.float32) - tall / 2) / longer)[:, None]
    x = ((np.arange(wide, dtype=np.float32) - wide / 2) / longer)[None]
    # The screen's pixels beat with those of the camera: nearly straight waves, each channel a third of a period on.
    depth, waves, tilt, bend = 0.05 + 0.05 * strength, rng.uniform(25.0, 70.0), rng.uniform(0.0, np.pi), rng.uniform(-0.2, 0.2)
    along = x * float(np.cos(tilt)) + y * float(np.sin(tilt))
    phase = (along + bend * x * y) * np.float32(2 * np.pi * waves)
    gains = rng.uniform(0.8, 1.05, 3) * rng.uniform(0.85, 1.1)
    falloff = np.exp(np.float32(-0.35 * strength) * ((x - rng.uniform(-0.2, 0.2)) ** 2 + (y - rng.uniform(-0.2, 0.2)) ** 2))
    for channel in range(3):
        light = falloff * np.float32(gains[channel])
        photo[..., channel] *= light * (1.0 + np.float32(depth) * np.sin(phase + np.float32(channel * 2 * np.pi / 3)))
    for _ in range(int(rng.integers(1, 3))):
        left, top, reach, turn = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(0.08, 0.22), rng.uniform(0.0, np.pi)
        sine, cosine = float(np.sin(turn)), float(np.cos(turn))
        along, across = (x - left) * cosine + (y - top) * sine, (y - top) * cosine - (x - left) * sine
        glare = np.exp(-((along / (2.5 * reach)) ** 2) - (across / reach) ** 2)
        photo += np.float32(60.0 * strength * rng.uniform(0.5, 1.0)) * glare[..., None]
    photo += rng.standard_normal((tall, wide, 1), dtype=np.float32) * np.float32(3.0 * strength)
    taken = cv2.GaussianBlur(np.clip(photo, 0, 255).astype(np.uint8), (0, 0), 0.8 * strength)
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(taken[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 90))])
    return np.asarray(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1], np.uint8)


def page_figure(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Print the image as a figure on a page of a paper or a report: headings, one or two columns of text, a caption."""
    tall, wide = PAGE
    page = np.full((tall, wide, 3), int(rng.integers(246, 256)), np.uint8)
    font = cv2.FONT_HERSHEY_COMPLEX if rng.random() < 0.5 else cv2.FONT_HERSHEY_SIMPLEX
    columns, margin, line = int(rng.integers(1, 3)), 70, int(rng.integers(15, 19))
    gutter = 24
    across = (wide - 2 * margin - (columns - 1) * gutter) // columns
    lettering(page, (margin, 40), 30, (10, 10, 10), wide - 2 * margin, rng, font=font)
    figure_width = across if columns == 2 and rng.random() < 0.5 else int((wide - 2 * margin) * rng.uniform(0.55, 0.95))
    height, width = image.shape[:2]
    scale = min(figure_width / width, 0.5 * tall / height)
    figure = _resized(image, max(1, round(height * scale)), max(1, round(width * scale)))
    top = int(rng.uniform(100, 0.85 * tall - figure.shape[0] - 4 * line))
    left = margin if figure_width == across and columns == 2 else (wide - figure.shape[1]) // 2
    caption = top + figure.shape[0] + 6
    # A figure as wide as a column leaves the other one to the text.
    taken = range(1) if figure_width == across and columns == 2 else range(columns)
    for column in range(columns):
        start = margin + column * (across + gutter)
        for number, y in enumerate(range(90, tall - margin, line)):
            inside = column in taken and top - line < y < caption + 3 * line
            if not inside and number % 11 != 10:
                lettering(page, (start, y), line, (25, 25, 25), across if number % 11 != 9 else across // 2, rng, font=font)
    page[top : top + figure.shape[0], left : left + figure.shape[1]] = figure
    for number in range(2):
        lettering(page, (left, caption + number * line), line - 2, (25, 25, 25), max(120, figure.shape[1]), rng, font=font)
    return page


def viewer_screenshot(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Take a screenshot of a program that shows the image: title bar, tool bar, a list at one side, text over the image."""
    tall, wide = WINDOWS[int(rng.integers(len(WINDOWS)))]
    dark = rng.random() < 0.65
    ground, face, ink = ((24, 26, 30), (52, 55, 62), (225, 225, 225)) if dark else ((240, 240, 240), (214, 218, 224), (20, 20, 20))
    accent = tuple(int(level) for level in rng.choice([30, 110, 200], 3))
    window = np.empty((tall, wide, 3), np.uint8)
    window[:] = ground
    title, tools, list_width = 30, int(rng.integers(36, 60)), int(rng.uniform(0.14, 0.24) * wide)
    window[:title] = accent if rng.random() < 0.5 else face
    lettering(window, (12, 4), 22, (255, 255, 255) if dark else ink, wide // 3, rng)
    for number in range(3):
        cv2.circle(window, (wide - 20 - 26 * number, title // 2), 6, (200, 200 - 60 * number, 70 * number), -1, cv2.LINE_AA)
    window[title : title + tools] = face
    for number in range(int(rng.integers(6, 14))):
        left = 10 + number * (tools + 4)
        box = tuple(int(level) for level in rng.integers(90, 200, 3))
        cv2.rectangle(window, (left, title + 8), (left + tools - 16, title + tools - 8), box, 2 if rng.random() < 0.6 else -1)
    top, bottom = title + tools, tall - 24
    on_left = rng.random() < 0.6
    pane = 0 if on_left else wide - list_width
    window[top:bottom, pane : pane + list_width] = face
    for number, y in enumerate(range(top + 10, bottom - 30, 26)):
        if number == 2:
            window[y - 2 : y + 22, pane : pane + list_width] = accent
        lettering(window, (pane + 10, y), 20, ink, list_width - 24, rng)
    window[bottom:] = face
    lettering(window, (10, bottom + 2), 20, ink, wide // 2, rng)
    height, width = image.shape[:2]
    room_tall, room_wide = bottom - top, wide - list_width
    if dark:
        window[top:bottom, list_width if on_left else 0 : wide if on_left else wide - list_width] = 0
    scale = min(room_tall / height, room_wide / width) * rng.uniform(0.75, 1.0)
    shown = _resized(image, max(1, int(height * scale)), max(1, int(width * scale)))
    at_top = top + (room_tall - shown.shape[0]) // 2
    at_left = (list_width if on_left else 0) + (room_wide - shown.shape[1]) // 2
    window[at_top : at_top + shown.shape[0], at_left : at_left + shown.shape[1]] = shown
    for number in range(int(rng.integers(2, 5))):
        place = ((list_width if on_left else 0) + 12, top + 8 + 22 * number)
        lettering(window, place, 20, (235, 235, 120), room_wide // 4, rng, shadow=True)
    return window


def _resized(image: Pixels, height: int, width: int) -> Pixels:
    shrinks = height * width < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=method), np.uint8)
