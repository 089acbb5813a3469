"""Alterations by name, against Pillow where it has the same one, and the augmentations made of them."""

from __future__ import annotations

import numpy as np
import pytest
from lcmem_onnx.evaluation.alterations import BEYOND_THE_PAPER, PAPER_GRID, alter
from lcmem_onnx.models.synthetic.scenes import scene
from lcmem_onnx.models.train.augment import AUGMENTATIONS
from PIL import Image, ImageEnhance

GRID = [(name, strength) for table in (PAPER_GRID, BEYOND_THE_PAPER) for name, strengths in table.items() for strength in strengths]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return scene(7, 96)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


@pytest.mark.parametrize(("transform", "strength"), GRID)
def test_each_alteration_keeps_size_and_type_and_changes_something(transform: str, strength: float, image: np.ndarray) -> None:
    altered = alter(image, transform, strength, np.random.default_rng(0))
    assert altered.shape == image.shape
    assert altered.dtype == np.uint8
    if (transform, strength) != ("blur", 0.1):
        assert (altered != image).any()


@pytest.mark.parametrize("transform", PAPER_GRID)
def test_a_stronger_alteration_changes_more(transform: str, image: np.ndarray) -> None:
    changes = [difference(alter(image, transform, strength, np.random.default_rng(0)), image) for strength in PAPER_GRID[transform]]
    assert changes == sorted(changes)


@pytest.mark.parametrize(("transform", "enhancer"), [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast)])
def test_brightness_and_contrast_are_pillows(transform: str, enhancer: type, image: np.ndarray) -> None:
    """torchvision's `adjust_*` on a PIL image calls these."""
    expected = np.asarray(enhancer(Image.fromarray(image)).enhance(1.6))
    assert np.abs(alter(image, transform, 1.6, np.random.default_rng(0)).astype(int) - expected).max() <= 2


def test_a_caption_and_a_border_leave_the_rest_of_the_image(image: np.ndarray) -> None:
    captioned = alter(image, "caption", 1.0, np.random.default_rng(1))
    changed = (captioned != image).any(axis=(1, 2))
    assert 0.05 < changed.mean() < 0.2
    framed = alter(image, "border", 0.1, np.random.default_rng(1))
    assert (framed[:9] == framed[0, 0]).all()
    assert (framed[:, -9:] == framed[0, 0]).all()


def test_an_unknown_alteration_is_an_error(image: np.ndarray) -> None:
    with pytest.raises(KeyError):
        alter(image, "nonsense", 1.0, np.random.default_rng(0))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_is_repeatable_and_varied(name: str, image: np.ndarray) -> None:
    augment = AUGMENTATIONS[name]
    assert (augment(image, np.random.default_rng(5)) == augment(image, np.random.default_rng(5))).all()
    rng = np.random.default_rng(0)
    several = [augment(image, rng) for _ in range(20)]
    assert all(one.shape == image.shape and one.dtype == np.uint8 for one in several)
    assert np.std([difference(one, image) for one in several]) > 1
