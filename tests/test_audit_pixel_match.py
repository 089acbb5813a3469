"""Pixels laid over each other: copies agree, other images do not, whatever the exposure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lcmem_onnx.evaluation.alterations import alter
from lcmem_onnx.runtime.audit.pixel_match import AGREES, agreement
from lcmem_onnx.runtime.images.image import open_image
from numpy.typing import NDArray

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"


def image(name: str) -> NDArray[np.uint8]:
    path = EXAMPLES / name
    return open_image(path.read_bytes(), name_hint=path.name).frame(0)


@pytest.mark.parametrize(
    ("transform", "strength"),
    [("blur", 2.0), ("noise", 0.1), ("rotation", 30.0), ("brightness", 2.0), ("contrast", 2.0), ("jpeg", 10.0), ("mirror", 1.0)],
)
@pytest.mark.parametrize("name", ["gallery/chelsea.jpg", "gallery/camera.jpg"])
def test_an_altered_copy_agrees(name: str, transform: str, strength: float) -> None:
    original = image(name)
    assert agreement(alter(original, transform, strength, np.random.default_rng(0)), original) >= AGREES


def test_other_images_do_not_agree() -> None:
    ones = ["gallery/astronaut.jpg", "gallery/camera.jpg", "queries/other-mr-slice.dcm"]
    for one in ones:
        for other in ("gallery/ct-slice.dcm", "queries/other-coffee.jpg", "gallery/retina.jpg"):
            assert agreement(image(one), image(other)) < 0.7, (one, other)


def test_flat_images_agree_with_nothing() -> None:
    flat = np.full((40, 60, 3), 90, np.uint8)
    assert agreement(flat, flat) < AGREES
    assert agreement(flat, image("gallery/camera.jpg")) < AGREES
