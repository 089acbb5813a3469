"""What training draws on real images: sizes, determinism, inference's own resizing, and that overlays are opaque."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.models.train import realistic
from lcmem_onnx.models.train.realistic import ALTERATIONS, altered_copy, another_examination
from lcmem_onnx.runtime.images.preprocess import resize
from PIL import Image

PHOTOGRAPH = Path(__file__).parent.parent / "examples" / "pictures" / "gallery" / "astronaut.jpg"


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    with Image.open(PHOTOGRAPH) as image:
        image.thumbnail((288, 288))
        return np.asarray(image.convert("RGB"))[:216]


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ALTERATIONS)
def test_each_alteration_gives_an_rgb_image_and_leaves_its_input_alone(name: str, photograph: np.ndarray) -> None:
    draw = ALTERATIONS[name][1]
    before = photograph.copy()
    changed = 0
    for seed in range(6):
        altered = draw(photograph, np.random.default_rng(seed))
        assert altered.dtype == np.uint8
        assert altered.ndim == 3
        assert altered.shape[2] == 3
        assert min(altered.shape[:2]) >= 16
        assert (altered == draw(photograph, np.random.default_rng(seed))).all(), "a function of the seed"
        changed += altered.shape != photograph.shape or bool((altered != photograph).any())
    assert (photograph == before).all()
    assert changed >= (0 if name == "collage" else 4)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_images_of_any_size_can_be_altered(height: int, width: int, seed: int) -> None:
    image, rng = random_image(height, width), np.random.default_rng(seed)
    assert altered_copy(image, 32, rng, at_once=(3,), another=lambda: random_image(9, 20)).shape == (32, 32, 3)
    assert another_examination(image, 32, rng).shape == (32, 32, 3)


def test_what_is_not_altered_is_resized_as_inference_does(photograph: np.ndarray) -> None:
    plain = altered_copy(photograph, 256, np.random.default_rng(0), at_once=(0,))
    assert (plain == resize(photograph, 256)).all()


def test_noise_and_recompression_come_before_and_after_resizing(photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(realistic, "ALTERATIONS", {"noise": (1.0, lambda image, rng: seen.append(image.shape[:2]) or image)})
    for seed in range(200):
        altered_copy(photograph, 64, np.random.default_rng(seed), at_once=(1,))
    assert set(seen) == {(64, 64), photograph.shape[:2]}
    assert np.mean([shape == (64, 64) for shape in seen]) == pytest.approx(0.6, abs=0.12)


def test_weights_say_what_is_drawn(photograph: np.ndarray) -> None:
    alone = dict.fromkeys(ALTERATIONS, 0.0) | {"mirror": 1.0}
    copies = [altered_copy(photograph, 64, np.random.default_rng(seed), at_once=(1,), weights=alone) for seed in range(12)]
    mirrored = {resize(np.ascontiguousarray(each), 64).tobytes() for each in (photograph[:, ::-1], photograph[::-1])}
    assert {copy.tobytes() for copy in copies} == mirrored


def test_a_collage_shows_the_other_image(photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realistic, "ALTERATIONS", {"collage": ALTERATIONS["collage"], "mirror": (1e-9, ALTERATIONS["mirror"][1])})
    red = np.zeros((40, 80, 3), np.uint8)
    red[..., 0] = 255
    for seed in range(8):
        copy = altered_copy(photograph, 128, np.random.default_rng(seed), at_once=(1,), another=lambda: red)
        share = ((copy[..., 0] > 250) & (copy[..., 1] < 5)).mean()
        assert 0.3 < share < 0.75, "one or two of two or three"
    assert (altered_copy(photograph, 128, np.random.default_rng(0), at_once=(1,)) == resize(photograph[:, ::-1], 128)).mean() > 0.9


@pytest.mark.parametrize("draw", ["_marks", "_erased", "_caption", "_border", "_letterbox", "_catheters"])
def test_what_is_drawn_on_an_image_is_opaque(draw: str) -> None:
    """A translucent overlay, which training must not know, would let black and white through where it is drawn."""

    def translucent(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.concatenate([image[:150], (0.5 * image[150:] + np.array([100, 0, 0])).astype(np.uint8)])

    def through(draw: object) -> float:
        shares = []
        for seed in range(40):
            on_black, on_white = (
                draw(np.full((200, 240, 3), level, np.uint8), np.random.default_rng(seed)).astype(int) for level in (0, 255)
            )
            drawn = (on_black != 0).any(axis=2) & (on_white != 255).any(axis=2)
            shares.append((drawn & (abs(on_black - on_white) > 20).any(axis=2)).mean())
        return max(shares)

    assert through(getattr(realistic, draw)) < 0.05, "the smoothed edges of letters and lines alone"
    assert through(translucent) > 0.2


def test_training_draws_nothing_that_is_held_out() -> None:
    held_out = ("heat", "overlay", "screen", "moire", "glare", "page", "viewer", "perspective")
    assert not [name for name in ALTERATIONS if any(word in name for word in held_out)]


def test_another_examination_keeps_a_radiographs_gray() -> None:
    ramp = np.repeat(np.tile(np.arange(256, dtype=np.uint8), (200, 1))[..., None], 3, axis=2)
    colored = 0
    for seed in range(60):
        found = another_examination(ramp, 64, np.random.default_rng(seed)).astype(int)
        colored += bool((np.ptp(found, axis=2) > 24).mean() > 0.2)
    assert colored <= 6, "color noise, and a colored border, are rare"
