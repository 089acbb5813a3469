"""resize() against Pillow's algorithm written anew in numpy, against Pillow itself and against torch; is_blank()."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.errors import UsageError
from lcmem_onnx.runtime.images.preprocess import as_array, is_blank, resize, turned
from numpy.typing import NDArray
from PIL import Image


def noise(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def triangle_weights(source: int, target: int) -> NDArray[np.float64]:
    """(target, source): each row the triangle filter around one target pixel's centre, cut at the border, of sum 1."""
    scale = source / target
    reach = max(scale, 1.0)
    weights = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        last = min(int(centre + reach + 0.5), source)
        taps = [max(0.0, 1.0 - abs((at - centre + 0.5) * (1.0 / reach))) for at in range(first, last)]
        weights[row, first:last] = np.array(taps) * (1.0 / sum(taps))  # as doubles are, to the last bit: halves depend on it
    return weights


def one_pass(pixels: NDArray[np.int64], target: int) -> NDArray[np.int64]:
    """Resample the first axis in fixed point: weights of 22 fractional bits, the sum rounded to whole levels.

    In floats the many exact halves fall to either side, once in each pass, and two levels of difference result.
    """
    weights = np.floor(triangle_weights(len(pixels), target) * 2**22 + 0.5).astype(np.int64)
    return np.clip((np.tensordot(weights, pixels, 1) + 2**21) >> 22, 0, 255)


def resized_by_hand(pixels: NDArray[np.uint8], size: int, rows_first: bool = True) -> NDArray[np.int64]:
    """Along each row and then along each column, as Pillow does it; or, as Pillow 13 does where it is less work, reversed."""
    whole = pixels.astype(np.int64)
    if rows_first:
        return one_pass(one_pass(whole.swapaxes(0, 1), size).swapaxes(0, 1), size)
    return one_pass(one_pass(whole, size).swapaxes(0, 1), size).swapaxes(0, 1)


def check_by_hand(pixels: NDArray[np.uint8], size: int) -> None:
    """Equal to one order of the passes in every value, and to the other, as older Pillows have it, within two levels."""
    ours = resize(pixels, size)
    either = [np.abs(resized_by_hand(pixels, size, rows_first) - ours).max() for rows_first in (True, False)]
    assert min(either) == 0
    assert max(either) <= 2


sizes = st.integers(1, 90)


@settings(max_examples=120, deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 2**32 - 1))
def test_equals_the_algorithm_written_by_hand(height: int, width: int, size: int, seed: int) -> None:
    check_by_hand(noise(height, width, seed), size)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 700), (700, 1), (97, 1031), (513, 511), (256, 256), (40, 30)])
def test_equals_pillow_and_the_algorithm_at_the_networks_size(height: int, width: int) -> None:
    pixels = noise(height, width, 7)
    ours = resize(pixels, 256)
    theirs = np.asarray(Image.fromarray(pixels).resize((256, 256), Image.Resampling.BILINEAR))
    assert ours.shape == (256, 256, 3)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, theirs)
    check_by_hand(pixels, 256)


@pytest.mark.parametrize(("height", "width", "size"), [(300, 200, 64), (64, 64, 256), (500, 31, 128)])
def test_near_torchs_antialiased_interpolation(height: int, width: int, size: int) -> None:
    torch = pytest.importorskip("torch")
    pixels = noise(height, width, 3)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    theirs = torch.nn.functional.interpolate(tensor, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    # torch does not round between the passes: up to half a level each for the pass between and the result.
    assert np.abs(resize(pixels, size) - theirs).max() <= 1.01


@given(st.tuples(*[st.integers(0, 255)] * 3), sizes, sizes, sizes)
@settings(deadline=None)
def test_a_constant_image_stays_constant(colour: tuple[int, int, int], height: int, width: int, size: int) -> None:
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = colour
    resized = resize(pixels, size)
    assert (resized == np.array(colour, np.uint8)).all()
    assert is_blank(resized)


def test_takes_views_and_leaves_them_alone() -> None:
    pixels = noise(60, 50, 1)
    view = pixels[::-2, ::3, ::-1]
    before = pixels.copy()
    np.testing.assert_array_equal(resize(view, 20), resize(view.copy(), 20))
    np.testing.assert_array_equal(pixels, before)
    result = resize(noise(20, 20, 1), 20)
    result[0, 0] = 0  # writable, a copy even when nothing changes


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_refuses_other_arrays(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match="RGB"):
        resize(pixels, 8)


def test_refuses_a_size_below_one() -> None:
    with pytest.raises(UsageError, match="1 or more"):
        resize(noise(4, 4, 0), 0)


def test_blank_is_two_levels_in_every_channel() -> None:
    pixels = np.full((8, 8, 3), 100, np.uint8)
    pixels[0, 0, 1] = 102
    assert is_blank(pixels)
    pixels[0, 0, 1] = 103
    assert not is_blank(pixels)
    white = np.zeros((8, 8, 3), np.uint8)
    white[4] = 255
    assert not is_blank(white)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_what_pillow_decoded_is_resized_and_turned_as_its_array_is(
    height: int, width: int, size: int, orientation: int, seed: int
) -> None:
    """To the last bit, without the copy; grey in one channel as in three."""
    pixels = noise(height, width, seed)
    as_turned = turned(pixels, orientation)
    image = turned(Image.fromarray(pixels), orientation)
    np.testing.assert_array_equal(as_array(image), as_turned)
    np.testing.assert_array_equal(resize(image, size), resize(as_turned, size))
    grey = np.ascontiguousarray(pixels[..., 0])
    in_three = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(as_array(Image.fromarray(grey)), in_three)
    np.testing.assert_array_equal(resize(Image.fromarray(grey), size), resize(in_three, size))


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "CMYK", "I;16"])
def test_an_image_of_another_mode_is_not_resized(mode: str) -> None:
    with pytest.raises(UsageError, match="must have mode RGB or L to be resized, got"):
        resize(Image.new(mode, (4, 4)), 2)
