"""Thumbnails find a copy in any orientation and as a crop, and the pixels agree from where they lay it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.audit.pixel_match import AGREES, NOT_COMPARABLE, agreement
from lcmem_onnx.runtime.audit.suspects import PROMISING
from lcmem_onnx.runtime.audit.thumbnails import ORIENTATIONS, SIDE, Alignment, align, candidates, oriented, thumbnail
from numpy.typing import NDArray

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures" / "gallery"
NAMES = ("astronaut", "camera", "chelsea", "retina")


def image(name: str) -> NDArray[np.uint8]:
    return np.asarray(cv2.imread(str(EXAMPLES / f"{name}.jpg"))[..., ::-1], np.uint8)


def drawn(seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return np.asarray(
        cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (96, 80), interpolation=cv2.INTER_CUBIC), np.uint8
    )


@given(seed=st.integers(0, 10_000), orientation=st.integers(0, ORIENTATIONS - 1))
@settings(max_examples=40, deadline=None)
def test_a_copy_in_any_orientation_is_nominated_and_laid_over_its_original(seed: int, orientation: int) -> None:
    gallery = np.stack([thumbnail(drawn(seed + number)) for number in range(20)])
    square = np.asarray(cv2.resize(drawn(seed), (96, 96)), np.uint8)
    copy = np.asarray(oriented(square, orientation), np.uint8)
    places, correlations = candidates(thumbnail(copy)[None], gallery, 3)
    assert places[0, 0] == 0
    assert correlations[0, 0] > 0.99
    assert (np.diff(correlations[0]) <= 0).all()
    found = align(thumbnail(copy), thumbnail(square), crops=False)
    assert found.correlation > 0.99
    np.testing.assert_array_equal(oriented(copy, found.orientation), square)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("part", [0.86, 0.93])
def test_a_crop_is_located_where_it_was_taken(name: str, mirrored: bool, part: float) -> None:
    whole = image(name)
    height, width = whole.shape[:2]
    down, across = round(part * height), round(part * width)
    top, left = (height - down) // 3, (width - across) // 2
    crop = whole[top : top + down, left : left + across]
    crop = np.ascontiguousarray(crop[:, ::-1] if mirrored else crop)
    found = align(thumbnail(crop), thumbnail(whole), crops=True)
    assert found.correlation >= PROMISING
    assert found.orientation == int(mirrored)
    assert found.scale == pytest.approx(part, abs=1.5 / SIDE)
    assert found.shift == pytest.approx((left / width, top / height), abs=1.5 / SIDE)
    assert agreement(crop, whole, found) >= AGREES
    inverse = align(thumbnail(whole), thumbnail(crop), crops=True)  # and the other way round
    assert inverse.scale == pytest.approx(1 / part, abs=2 / SIDE)
    assert agreement(whole, crop, inverse) >= AGREES


def test_different_images_are_neither_promising_nor_agree() -> None:
    for first in NAMES:
        for second in NAMES:
            if first != second:
                found = align(thumbnail(image(first)), thumbnail(image(second)), crops=True)
                assert found.correlation < PROMISING, (first, second)
                assert agreement(image(first), image(second), found) < AGREES


def test_flat_images_resemble_nothing() -> None:
    flat = np.full((SIDE, SIDE), 90, np.uint8)
    textured = thumbnail(image("camera"))
    assert align(flat, textured, crops=True).correlation < PROMISING
    assert align(flat, flat, crops=False).correlation < PROMISING
    places, correlations = candidates(np.stack([flat, textured]), np.stack([textured]), 5)
    assert places.tolist() == [[0], [0]]
    assert correlations[:, 0] == pytest.approx([0, 1], abs=1e-5)
    assert candidates(np.empty((0, SIDE, SIDE), np.uint8), np.stack([textured]), 5)[0].shape == (0, 1)
    white = np.full((64, 64, 3), 255, np.uint8)
    assert agreement(white, white, Alignment(1.0, 0, 1.0, (0.0, 0.0))) in (NOT_COMPARABLE, 0.0)


@given(
    scale=st.sampled_from([0.5, 0.75, 0.8, 1.0, 1.25]),
    x=st.integers(-8, 8),
    y=st.integers(-8, 8),
    side=st.sampled_from([32, 64, 128]),
)
def test_an_alignments_matrix_maps_centers_of_pixels(scale: float, x: int, y: int, side: int) -> None:
    shift = (x / 32, y / 32)
    matrix = Alignment(1.0, 0, scale, shift).matrix(side).astype(np.float64)
    for column, row in ((0, 0), (side - 1, 3), (7, side // 2)):
        mapped = matrix @ (column, row, 1.0)
        expected = [scale * (column + 0.5) + side * shift[0] - 0.5, scale * (row + 0.5) + side * shift[1] - 0.5]
        np.testing.assert_allclose(mapped, expected, atol=1e-4)
