"""Realistic alterations: each does what its name says, on any size, the same way for the same generator."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.evaluation.protocols import CELLS, GRIDS, REALISTIC_CELLS, Cell, cell_rng, realistically_altered
from lcmem_onnx.evaluation.realistic import HELD_OUT, REALISTIC, alter_realistically
from lcmem_onnx.models.synthetic.scenes import scene
from lcmem_onnx.runtime.images.preprocess import resize
from PIL import Image, ImageOps

EVERY = [(name, strength) for name, strengths in REALISTIC.items() for strength in strengths]
MAGENTA = (255, 0, 255)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Oblong and colored, with every level in use."""
    return np.ascontiguousarray(scene(7, 128)[:96])


@pytest.fixture(scope="module")
def other() -> np.ndarray:
    return scene(8, 80)


def altered(image: np.ndarray, name: str, strength: float = 1.0, other: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    return alter_realistically(image, name, strength, np.random.default_rng(seed), other)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.reshape(-1).astype(float), second.reshape(-1).astype(float))[0, 1])


# -- every cell -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "strength"), EVERY)
def test_a_cell_changes_the_image_and_depends_on_its_generator_alone(
    name: str, strength: float, image: np.ndarray, other: np.ndarray
) -> None:
    before = image.copy()
    once, again = (altered(image, name, strength, other, 3) for _ in range(2))
    assert once.dtype == np.uint8
    assert once.ndim == 3
    assert once.shape[2] == 3
    assert np.array_equal(once, again)
    assert np.array_equal(image, before)
    assert once.flags.c_contiguous
    assert not np.array_equal(resize(once, 64), resize(image, 64))


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(EVERY), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_any_size_is_taken(height: int, width: int, cell: tuple[str, float], seed: int) -> None:
    rng = np.random.default_rng([height, width, seed])
    small, other = (rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((height, width), (width, height)))
    out = alter_realistically(small, *cell, np.random.default_rng(seed), other)
    assert out.dtype == np.uint8
    assert out.shape[2] == 3
    assert min(out.shape[:2]) >= 1


def test_the_grid_is_broad_and_names_what_is_held_out() -> None:
    names = [cell.name for cell in GRIDS["all"]]
    assert len(set(names)) == len(names)
    assert GRIDS["all"] == (*GRIDS["paper"], *GRIDS["realistic"])
    assert GRIDS["paper"] == CELLS
    held_out = {cell.transform for cell in REALISTIC_CELLS if cell.held_out}
    assert held_out == set(HELD_OUT) == {"heat map", "photo of a screen", "page figure", "viewer screenshot"}
    assert sum(not cell.held_out for cell in REALISTIC_CELLS) >= 28
    assert not any(cell.held_out for cell in CELLS)


def test_cells_are_altered_at_the_images_own_size_and_then_resized(image: np.ndarray) -> None:
    cell = Cell("crop to", 0.5, "realistic")
    (found,) = realistically_altered(image, "a.png", 7, 48, [cell])
    own = alter_realistically(image, "crop to", 0.5, cell_rng(7, "a.png", cell))
    assert own.shape[0] < 96
    expected = Image.fromarray(own).resize((48, 48), Image.Resampling.BILINEAR)
    assert np.array_equal(found, np.asarray(expected))


def test_the_generator_of_a_cell_is_the_one_it_always_was() -> None:
    """Figures of earlier versions stay comparable: the paper's cells draw the same numbers."""
    assert cell_rng(42, "a.png", Cell("noise", 0.1)).integers(0, 2**62) == 1949514460913247845
    assert cell_rng(42, "a.png", Cell("crop", 0.7, "beyond")).integers(0, 2**62) == 4455024050531244912


def test_an_unknown_name_and_a_missing_partner_are_errors(image: np.ndarray) -> None:
    with pytest.raises(KeyError):
        altered(image, "nonsense")
    with pytest.raises(ValueError, match="needs another image"):
        altered(image, "collage", 2.0)


# -- display settings and processing ----------------------------------------------------------------------------------


def test_gray_and_geometry_are_pillows(image: np.ndarray) -> None:
    pillow = Image.fromarray(image)
    assert np.abs(altered(image, "gray").astype(int) - np.asarray(pillow.convert("L").convert("RGB"))).max() <= 1
    assert np.array_equal(altered(image, "mirrored"), np.asarray(ImageOps.mirror(pillow)))
    assert np.array_equal(altered(image, "upside down"), np.asarray(ImageOps.flip(pillow)))
    for degrees in (90.0, 180.0, 270.0):
        assert np.array_equal(altered(image, "turn", degrees), np.asarray(pillow.rotate(degrees, expand=True)))


def test_solarizing_a_full_range_is_pillows() -> None:
    ramp = np.repeat(np.tile(np.arange(256, dtype=np.uint8), (64, 1))[..., None], 3, axis=2)
    ramp[:, :4], ramp[:, -4:] = 0, 255
    assert np.abs(altered(ramp, "solarize").astype(int) - np.asarray(ImageOps.solarize(Image.fromarray(ramp)))).max() <= 1


def test_a_dark_image_is_solarized_too(image: np.ndarray) -> None:
    dark = (image // 4).astype(np.uint8)
    assert correlation(altered(dark, "solarize"), dark) < 0.6


def test_gamma_is_pillows_point(image: np.ndarray) -> None:
    for exponent in (0.5, 2.0):
        expected = Image.fromarray(image).point([round(255 * (level / 255) ** exponent) for level in range(256)] * 3)
        assert np.abs(altered(image, "gamma", exponent).astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize(("name", "low", "high"), [("window 20-80", 20, 80), ("window 40-95", 40, 95)])
def test_a_window_sends_its_percentiles_to_black_and_white(name: str, low: int, high: int) -> None:
    ramp = np.repeat(np.tile(np.linspace(20, 220, 200).astype(np.uint8), (50, 1))[..., None], 3, axis=2)
    row = altered(ramp, name)[0, :, 0]
    assert (row == 0).mean() == pytest.approx(low / 100, abs=0.03)
    assert (row >= 254).mean() == pytest.approx(1 - high / 100, abs=0.03)
    assert (np.diff(row.astype(int)) >= 0).all()


def test_adaptive_equalization_raises_local_contrast_with_its_limit() -> None:
    flat = np.repeat((100 + scene(7, 128)[..., 1:2] // 16).astype(np.uint8), 3, axis=2)
    spreads = [cv2.blur((part.astype(np.float32) - cv2.blur(part, (9, 9))) ** 2, (9, 9)).mean() for part in
               (flat, altered(flat, "clahe", 2.0), altered(flat, "clahe", 6.0))]  # fmt: skip
    assert spreads[0] < spreads[1] < spreads[2]


def test_a_palette_has_few_levels_and_a_cast_moves_channels_apart(image: np.ndarray) -> None:
    assert len(np.unique(altered(image, "posterize", 8.0))) <= 8
    gray = np.full((40, 40, 3), 128, np.uint8)
    cast = altered(gray, "color cast", 0.3)[0, 0].astype(int)
    assert cast.max() - cast.min() == pytest.approx(0.6 * 128, abs=2)


# -- things drawn on the image ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text overlay", "marks", "watermark"])
def test_what_is_drawn_covers_a_part(name: str, image: np.ndarray) -> None:
    changed = (altered(np.full((256, 256, 3), 120, np.uint8), name, REALISTIC[name][0]) != 120).any(axis=2).mean()
    assert 0.005 < changed < 0.45


@given(st.integers(0, 200))
@settings(max_examples=30, deadline=None)
def test_redaction_blacks_out_about_its_area(seed: int) -> None:
    white = np.full((120, 200, 3), 255, np.uint8)
    out = altered(white, "black box", 0.15, seed=seed)
    assert set(np.unique(out)) == {0, 255}
    assert 0.04 < (out == 0).mean() < 0.2


# -- geometry ---------------------------------------------------------------------------------------------------------


@given(st.integers(20, 200), st.integers(20, 200), st.sampled_from([0.7, 0.5, 0.25]), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_a_crop_is_a_window_of_its_area(height: int, width: int, area: float, seed: int) -> None:
    y, x = np.mgrid[:height, :width]
    places = np.stack([y, x, y * 0], axis=2).astype(np.uint8)
    out = altered(places, "crop to", area, seed=seed)
    tall, wide = out.shape[:2]
    assert tall * wide == pytest.approx(area * height * width, rel=0.13, abs=height + width)
    assert np.array_equal(out, places[out[0, 0, 0] :, out[0, 0, 1] :][:tall, :wide])


def test_a_shift_moves_without_resampling(image: np.ndarray) -> None:
    height, width = image.shape[:2]
    for seed in range(6):
        out = altered(image, "shift", 0.2, seed=seed)
        moved = [
            (down, across)
            for down in (-round(0.2 * height), round(0.2 * height))
            for across in (-round(0.2 * width), round(0.2 * width))
            if np.array_equal(
                out,
                np.asarray(Image.fromarray(image).transform((width, height), Image.Transform.AFFINE, (1, 0, -across, 0, 1, -down))),
            )
        ]
        assert len(moved) == 1


def test_a_letterbox_is_16_by_9_and_keeps_every_pixel(image: np.ndarray) -> None:
    for given_image in (image, np.ascontiguousarray(image.transpose(1, 0, 2))):
        out = altered(given_image, "letterbox")
        assert max(out.shape[:2]) / min(out.shape[:2]) == pytest.approx(16 / 9, rel=0.02)
        height, width = given_image.shape[:2]
        top, left = (out.shape[0] - height) // 2, (out.shape[1] - width) // 2
        assert np.array_equal(out[top : top + height, left : left + width], given_image)


def test_a_straightened_image_shows_no_corner_of_what_lies_outside() -> None:
    """Its own corners just touch the border of the image, a dark line here."""
    inside = np.full((90, 160, 3), 200, np.uint8)
    inside[0], inside[-1], inside[:, 0], inside[:, -1] = 0, 0, 0, 0
    assert (altered(inside, "straightened", 5.0) < 150).mean() < 0.002


def test_other_aspects_are_other(image: np.ndarray) -> None:
    assert altered(image, "other aspect").shape[:2] == (96, 96)
    assert sorted(altered(np.zeros((80, 80, 3), np.uint8), "other aspect").shape[:2]) == [60, 80]
    assert sorted(altered(np.zeros((80, 80, 3), np.uint8), "stretch", 1.5).shape[:2]) == [80, 120]


# -- resampling and re-encoding ---------------------------------------------------------------------------------------


def test_less_detail_but_the_same_image(image: np.ndarray) -> None:
    for name in ("quarter size", "thumbnail", "resized jpeg", "webp", "denoise", "motion blur"):
        out = altered(image, name, REALISTIC[name][0])
        assert correlation(resize(out, 64), resize(image, 64)) > 0.8
    assert max(altered(np.zeros((200, 100, 3), np.uint8), "thumbnail", 64.0).shape[:2]) == 64
    assert altered(image, "quarter size", 0.25).shape == image.shape


# -- the image in something else --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", [2.0, 4.0])
def test_a_collage_holds_the_image_untouched_and_another_one(tiles: float, image: np.ndarray, other: np.ndarray) -> None:
    out = altered(image, "collage", tiles, other)
    area = out.shape[0] * out.shape[1] / (image.shape[0] * image.shape[1])
    assert tiles <= area < 1.1 * tiles
    found = cv2.matchTemplate(out, image, cv2.TM_SQDIFF)
    assert found.min() <= 1.0
    whole = resize(other, 96)
    shown = cv2.matchTemplate(out, cv2.resize(whole, image.shape[1::-1]), cv2.TM_CCOEFF_NORMED)
    assert shown.max() > 0.8


@pytest.mark.parametrize(("name", "least", "most"), [("page figure", 0.04, 0.5), ("viewer screenshot", 0.2, 0.8)])
def test_a_page_and_a_window_hold_the_whole_image(name: str, least: float, most: float) -> None:
    """A magenta image with a green frame: all four sides of the frame are seen, and the rest is not the image."""
    image = np.full((90, 120, 3), MAGENTA, np.uint8)
    image[:6], image[-6:], image[:, :6], image[:, -6:] = ((0, 255, 0),) * 4
    for seed in range(8):
        out = altered(image, name, seed=seed).astype(int)
        inside = (out[..., 0] > 200) & (out[..., 1] < 60) & (out[..., 2] > 200)
        frame = (out[..., 0] < 60) & (out[..., 1] > 200) & (out[..., 2] < 60)
        assert least < (inside | frame).mean() < most
        (top, bottom), (left, right) = (np.flatnonzero(inside.any(axis=axis))[[0, -1]] for axis in (1, 0))
        middle_y, middle_x = (top + bottom) // 2, (left + right) // 2
        for beside in (frame[:top, middle_x], frame[bottom:, middle_x], frame[middle_y, :left], frame[middle_y, right:]):
            assert beside.sum() >= 3
    # Text and lines around it, not a plain ground.
    rest = out[~(inside | frame)]
    assert rest.std() > 15


def test_a_heat_map_is_a_colored_veil() -> None:
    gray = np.repeat(scene(7, 96)[..., 1:2], 3, axis=2)
    weak, strong = (altered(gray, "heat map", opacity) for opacity in (0.4, 0.6))
    assert np.ptp(weak.astype(int), axis=2).max() > 80
    assert correlation(weak, gray) > correlation(strong, gray) > 0.2


def test_a_photo_of_a_screen_is_bent_and_dark_around(image: np.ndarray) -> None:
    white = np.full((120, 160, 3), 220, np.uint8)
    careful, careless = (altered(white, "photo of a screen", strength) for strength in (1.0, 2.0))
    for out in (careful, careless):
        corners = out[[2, 2, -3, -3], [2, -3, 2, -3]].astype(int)
        assert np.median(corners) < 130 < np.median(out)
    assert (careless < 100).mean() > (careful < 100).mean()
    assert correlation(resize(altered(image, "photo of a screen", 1.0), 32), resize(image, 32)) > 0.5
