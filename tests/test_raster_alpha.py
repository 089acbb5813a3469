"""Transparent images: flattened on white and on black, against Pillow, in every format and kind of transparency."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.errors import ImageError, Reason
from lcmem_onnx.runtime.images.content_flags import ContentFlag
from lcmem_onnx.runtime.images.image import open_image
from lcmem_onnx.runtime.images.raster.renderings import Alpha, flattened, has_hidden_image
from numpy.typing import NDArray
from PIL import Image

from .raster_files import HEIGHT, WIDTH, colors, opacity, rgba, saved, tiff_of


def composed(image: Image.Image, background: str) -> NDArray[np.uint8]:
    """Pillow's flattening."""
    layer = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", layer.size, background), layer).convert("RGB"))


def check(data: bytes, image: Image.Image, most: int = 1, hint: str = "") -> None:
    """Both renderings are right to a level."""
    renderings = open_image(data, name_hint=hint).renderings(0)
    assert len(renderings) == 2
    for rendering, background in zip(renderings, ("white", "black"), strict=True):
        assert np.abs(rendering.astype(int) - composed(image, background)).max() <= most


def reopened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_flattening_is_right_to_a_level(seed: int, width: int, height: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = Image.fromarray(values)
    renderings = flattened(values[..., :3], Alpha(values[..., 3], 255))
    if len(renderings) == 2:
        for rendering, background in zip(renderings, ("white", "black"), strict=True):
            assert np.abs(rendering.astype(int) - composed(image, background)).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "TGA"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opacity_channels(form: str, mode: str) -> None:
    if mode == "LA" and form == "WEBP":
        pytest.skip(f"{form} has no grey with opacity")
    image = Image.fromarray(rgba()).convert(mode)
    check(saved(image, form, **({"lossless": True, "exact": True} if form == "WEBP" else {})), image, hint="x.tga")


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_transparent_palettes(form: str) -> None:
    image = Image.fromarray(colors()).quantize(60)
    key = int(np.bincount(np.asarray(image).ravel()).argmax())
    data = saved(image, form, transparency=key)
    check(data, reopened(data))


def test_opacities_of_a_palette() -> None:
    image = Image.fromarray(colors()).quantize(60)
    data = saved(image, "PNG", transparency=bytes(4 * number for number in range(60)))
    check(data, reopened(data))


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_one_transparent_color(mode: str) -> None:
    image = Image.fromarray(colors() // 40 * 40).convert(mode)
    key = image.getpixel((40, 25))
    data = saved(image, "PNG", transparency=1 if mode == "1" else key)
    values = np.asarray(image.convert("RGB"))
    same = (values == (255 if mode == "1" else key)).all(axis=-1)
    assert 0 < same.sum() < same.size
    renderings = open_image(data).renderings(0)
    assert len(renderings) == (1 if mode == "1" else 2)  # white that is transparent vanishes on white, or black on black
    for rendering, level in zip(renderings, (255, 0), strict=False):
        np.testing.assert_array_equal(rendering[same], level)
        np.testing.assert_array_equal(rendering[~same], values[~same])


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_one_transparent_level_of_grey_pngs(bits: int) -> None:
    """Pillow scales the samples of few bits, but not the level that is transparent."""
    values = colors()[..., 1].astype(np.uint16) * (257 if bits == 16 else 1) >> (8 - min(bits, 8))
    key = int(values[30, 40])
    if bits == 16:
        rows = values.astype(">u2").tobytes()
        lines = b"".join(b"\0" + rows[at : at + 2 * WIDTH] for at in range(0, len(rows), 2 * WIDTH))
    else:
        planes = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :].reshape(HEIGHT, -1)
        lines = b"".join(b"\0" + row.tobytes() for row in np.packbits(planes, axis=1))

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0))
    data += chunk(b"tRNS", struct.pack(">H", key)) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    first = open_image(data).renderings(0)[0]
    same = values == key
    assert len(np.unique(first[same])) == 1
    assert first[same].max() == (0 if bits == 1 and key == 0 else 255)  # black that is transparent vanishes on white
    assert np.abs(first[~same][:, 0] - values[~same] * (255 / ((1 << bits) - 1))).max() <= 3


@pytest.mark.parametrize("channels", [2, 4])
def test_sixteen_bit_pngs(channels: int) -> None:
    deep = np.dstack([colors() if channels == 4 else colors()[..., :1], opacity()]).astype(np.uint16) * 257
    deep[0, 0] = 65535
    data = imagecodecs.png_encode(deep)
    image = Image.fromarray(
        np.dstack([np.broadcast_to(deep[..., :-1] >> 8, (HEIGHT, WIDTH, 3)), deep[..., -1] >> 8]).astype(np.uint8)
    )
    check(data, image)


@pytest.mark.parametrize("associated", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_associated_and_unassociated_opacity_of_tiffs(associated: bool, bits: int, compression: str | None) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    values = rgba().astype(float)
    if associated:
        values[..., :3] *= values[..., 3:] / 255
    stored = np.rint(values).astype(np.uint8) if bits == 8 else np.rint(values * 257).astype(np.uint16)
    if bits == 16:
        stored[0, -1] = 65535
    file = io.BytesIO()
    kind = "assocalpha" if associated else "unassalpha"
    tifffile.imwrite(file, stored, photometric="rgb", extrasamples=[kind], compression=compression)
    image = Image.fromarray(rgba())
    if bits == 16:
        image.putpixel((WIDTH - 1, 0), (255, 255, 255, 255))
    check(file.getvalue(), image)


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "AVIF"])
def test_each_frame_of_an_animation_is_composed(form: str) -> None:
    """Against Pillow's own composition of frames: discs that move over a transparent ground."""
    frames = []
    for number in range(3):
        canvas = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
        cv2.circle(canvas, (20 + 20 * number, 30), 12, (200, 40 * number, 60, 255), -1)
        frames.append(Image.fromarray(canvas))
    options = (
        {"lossless": True} if form == "WEBP" else {"quality": 100, "subsampling": "4:4:4"} if form == "AVIF" else {"disposal": 2}
    )
    if form == "PNG":
        options = {"disposal": 1, "blend": 0}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], duration=100, **options)
    image, theirs = open_image(data), Image.open(io.BytesIO(data))
    assert image.frames == 3
    for number in range(3):
        theirs.seek(number)
        white, black = image.renderings(number)
        assert np.abs(white.astype(int) - composed(theirs.copy(), "white")).max() <= 1
        assert np.abs(black.astype(int) - composed(theirs.copy(), "black")).max() <= 1
        assert np.abs(white.astype(int) - composed(frames[number], "white")).mean() < 2


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "AVIF", "TGA", "BMP", "JPEG2000"])
def test_an_opaque_image_has_one_rendering_as_if_it_had_no_alpha(form: str) -> None:
    image = Image.fromarray(colors())
    image.putalpha(255)
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(image, form, **options)
    (rendering,) = open_image(data, name_hint="x.tga").renderings(0)
    np.testing.assert_array_equal(rendering, np.asarray(reopened(data).convert("RGB")))


@pytest.mark.parametrize("form", ["BMP", "TGA"])
def test_a_fourth_channel_that_was_left_empty_is_no_opacity(form: str) -> None:
    values = rgba()
    values[..., 3] = 0
    data = saved(values, form)
    (rendering,) = open_image(data, name_hint="x.tga").renderings(0)
    np.testing.assert_array_equal(rendering, colors())


def drawing(ink: int) -> bytes:
    """Lines in one color on a transparent ground."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for at in range(0, WIDTH, 11):
        cv2.line(mask, (at, 0), (WIDTH - at, HEIGHT), 255, 2)
    return saved(np.dstack([np.full((HEIGHT, WIDTH, 3), ink, np.uint8), mask]), "PNG")


@pytest.mark.parametrize(("ink", "background"), [(0, "white"), (255, "black")])
def test_what_vanishes_in_one_background_is_shown_on_the_other(ink: int, background: str) -> None:
    data = drawing(ink)
    (rendering,) = open_image(data).renderings(0)
    assert np.abs(rendering.astype(int) - composed(reopened(data), background)).max() <= 1
    assert len(open_image(data).views(0, 32)) == 1


def test_a_wholly_transparent_image_is_blank() -> None:
    values = rgba()
    values[..., 3] = 0
    image = open_image(saved(values, "PNG"))
    with pytest.raises(ImageError) as caught:
        image.views(0, 32)
    assert caught.value.reason is Reason.BLANK
    assert image.notes == (ContentFlag.HIDDEN_PIXELS,)


def test_colors_under_full_transparency_are_flagged_where_they_vary() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    alpha = np.zeros((100, 100), np.uint8)
    alpha[:20] = 255
    assert has_hidden_image(noise, Alpha(alpha, 255))
    assert not has_hidden_image(np.full_like(noise, 90), Alpha(alpha, 255))
    assert not has_hidden_image(noise, None)
    assert not has_hidden_image(noise, Alpha(np.full_like(alpha, 255), 255))
    cleared = np.where(alpha[..., None] > 0, noise, 0).astype(np.uint8)
    for colored, flags in ((noise, (ContentFlag.HIDDEN_PIXELS,)), (cleared, ())):
        image = open_image(saved(np.dstack([colored, alpha]), "PNG"))
        image.frame(0)
        assert image.notes == flags


def test_deep_grey_with_opacity_has_four_renderings() -> None:
    levels = np.random.default_rng(0).integers(0, 3000, (HEIGHT, WIDTH)).astype(np.uint16)
    key = int(levels[0, 0])
    data = bytearray(imagecodecs.png_encode(levels))
    body = b"tRNS" + struct.pack(">H", key)
    data[33:33] = struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body))
    renderings = open_image(bytes(data)).renderings(0)
    assert len(renderings) == 4
    assert [int(rendering[0, 0, 0]) for rendering in renderings] == [255, 0, 255, 0]


def test_indexing_and_screening_of_a_drawing_on_a_transparent_ground(tmp_path: Path, tiny_bundle: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "drawing.png").write_bytes(drawing(0))
    (tmp_path / "flat.png").write_bytes(saved(composed(reopened(drawing(0)), "white"), "PNG"))
    index = str(tmp_path / "idx")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lcmem_onnx.cli", *arguments, "--bundle", str(tiny_bundle)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ)

    assert run("index", "build", str(folder), "--index", index, "-q").returncode == 0
    done = run("scan", str(tmp_path / "flat.png"), "--index", index, "--json", "-q")
    (line,) = [line for line in map(json.loads, done.stdout.splitlines()) if "verdict" in line]
    assert (done.returncode, line["verdict"]) == (1, "match")
    done = run("scan", str(folder / "drawing.png"), "--index", index, "--json", "-q")
    assert done.returncode == 1


def test_grey_tiffs_with_opacity() -> None:
    values = tiff_of([{}])
    image = open_image(values)
    assert len(image.renderings(0)) == 1
