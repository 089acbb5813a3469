"""Raster formats: each against its independent decoder or its own pixels, here and in processes of their own, sound and hostile."""

from __future__ import annotations

import io
import itertools
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.errors import ImageError, Reason
from lcmem_onnx.runtime.images.content_flags import ContentFlag
from lcmem_onnx.runtime.images.discovery import Found, walk
from lcmem_onnx.runtime.images.formats import HEAD, Kind, Limits, sniff
from lcmem_onnx.runtime.images.image import open_image
from lcmem_onnx.runtime.images.raster import heif, jpeg2000
from lcmem_onnx.runtime.images.sandbox import DecoderPool
from PIL import Image

from .raster_files import HEIGHT, WIDTH, animated, colors, opacity, rgba, samples, saved, tiff_of

SAMPLES = samples()
KINDS = {
    "avif": Kind.AVIF, "bmp": Kind.BMP, "gif": Kind.GIF, "jls": Kind.JPEG_LS, "jpg": Kind.JPEG, "jp2": Kind.JPEG_2000,
    "j2k": Kind.JPEG_2000, "jxl": Kind.JPEG_XL, "pam": Kind.NETPBM, "pfm": Kind.NETPBM, "pgm": Kind.NETPBM, "png": Kind.PNG,
    "ppm": Kind.NETPBM, "tga": Kind.TGA, "tif": Kind.TIFF, "webp": Kind.WEBP, "heic": Kind.HEIC,
}  # fmt: skip
EXACT = {"bmp", "jls", "jp2", "jxl-animation", "pgm", "png-deep", "ppm", "ppm-plain", "pfm", "tga", "tif", "tif-pages"}
SIZE_LIMIT = Limits(max_pixels=WIDTH * HEIGHT - 1)


def hint(name: str) -> str:
    return f"x.{name.partition('-')[0]}"


def reason_of(call: Callable[[], object]) -> Reason:
    with pytest.raises(ImageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value.reason


def all_frames(data: bytes, name: str = "", limits: Limits = Limits()) -> list[tuple[np.ndarray, ...]]:  # noqa: B008
    image = open_image(data, limits, name)
    return [image.renderings(number) for number in range(image.frames)]


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecoderPool]:
    if not sys.platform.startswith("linux"):
        pytest.skip("isolation needs Linux")
    with DecoderPool() as made:
        yield made


@pytest.fixture(scope="module")
def heic() -> bytes:
    """A HEIC file with opacity, written by ImageMagick's or libheif's own tools."""
    pytest.importorskip("pi_heif", reason="pi-heif is not installed")
    if not shutil.which("convert"):
        pytest.skip("ImageMagick's convert is not installed")
    done = subprocess.run(["convert", "png:-", "-quality", "95", "heic:-"], input=saved(colors(), "PNG"), capture_output=True)
    if done.returncode or not done.stdout:
        pytest.skip("this ImageMagick does not write HEIC")
    return done.stdout


# -- sound files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_formats_are_told_by_content_and_decoded(name: str) -> None:
    data = SAMPLES[name]
    image = open_image(data, name_hint=hint(name))
    assert image.kind is KINDS[name.partition("-")[0]]
    if image.kind is not Kind.TGA:  # which has no mark
        assert sniff(data[:HEAD]) is image.kind
    frames = [image.renderings(number) for number in range(image.frames)]
    for renderings in frames:
        for rendering in renderings:
            assert (rendering.dtype, rendering.shape) == (np.uint8, (HEIGHT, WIDTH, 3))
    if name in EXACT:
        grey = name == "pgm"
        np.testing.assert_array_equal(frames[0][0][..., : 1 if grey else 3], colors()[..., : 1 if grey else 3])


@pytest.mark.parametrize("name", SAMPLES)
def test_isolated_they_are_the_same(name: str, decoders: DecoderPool) -> None:
    here, there = open_image(SAMPLES[name], name_hint=hint(name)), decoders.open(SAMPLES[name], hint(name))
    assert (there.kind, there.frames, there.notes) == (here.kind, here.frames, here.notes)
    for number in range(here.frames):
        for ours, theirs in (
            (here.renderings(number), there.renderings(number)),
            (here.views(number, 32), there.views(number, 32)),
        ):
            assert len(ours) == len(theirs)
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(one, other)
        assert there.notes == here.notes
    there.close()


def test_heic(heic: bytes, decoders: DecoderPool) -> None:
    image = open_image(heic)
    assert (image.kind, image.frames) == (Kind.HEIC, 1)
    assert np.abs(image.frame(0).astype(int) - colors()).mean() < 12  # its chroma is halved
    isolated = decoders.open(heic)
    np.testing.assert_array_equal(isolated.frame(0), image.frame(0))
    isolated.close()
    assert reason_of(lambda: open_image(heic, SIZE_LIMIT)) is Reason.TOO_LARGE
    for share in (0.05, 0.4, 0.9):
        assert reason_of(lambda share=share: all_frames(heic[: int(share * len(heic))])) is Reason.DAMAGED


def test_heic_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    with pytest.raises(ImageError, match=r"pip install 'lcmem-onnx\[heic\]'") as caught:
        open_image(data)
    assert caught.value.reason is Reason.UNSUPPORTED
    assert heif.INSTALL in str(caught.value)


@pytest.mark.parametrize(
    ("brand", "compatible", "kind"),
    [
        (b"avif", b"mif1", Kind.AVIF),
        (b"avis", b"msf1", Kind.AVIF),
        (b"mif1", b"miafavif", Kind.AVIF),
        (b"mif1", b"heic", Kind.HEIC),
        (b"heic", b"mif1", Kind.HEIC),
        (b"heix", b"", Kind.HEIC),
        (b"mif1", b"", Kind.HEIC),
        (b"isom", b"mp41", None),
        (b"qt  ", b"", None),
    ],
)
def test_brands(brand: bytes, compatible: bytes, kind: Kind | None) -> None:
    head = struct.pack(">I", 16 + len(compatible)) + b"ftyp" + brand + bytes(4) + compatible
    assert sniff(head + bytes(HEAD)) is kind


@pytest.mark.parametrize(
    "text", [b"P1 is a protein", b"P5 and P6 are formats", b"PF 12 hello", b"P7 is here", b"P3\n# only a comment", b"P4"]
)
def test_texts_are_no_netpbm(text: bytes) -> None:
    assert sniff(text + b" " * 100) is None


def test_a_folder_with_all_of_them(tmp_path: Path) -> None:
    for name, data in SAMPLES.items():
        (tmp_path / f"{name}.{name.partition('-')[0]}").write_bytes(data)
    (tmp_path / "notes.txt").write_text("no image")
    found = [item.path.name for item in walk([tmp_path]) if isinstance(item, Found)]
    assert len(found) == len(SAMPLES)


# -- samples of all formats --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize(
    ("order", "compression", "tile"), [("<", None, None), (">", None, None), ("<", "zlib", (32, 32)), (">", "lzw", None)]
)
def test_tiff_sample_formats(
    dtype: str, photometric: str, order: str, compression: str | None, tile: tuple[int, int] | None
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    levels = colors()[..., 1]
    levels = (255.0 * (levels - levels.min()) / (levels.max() - levels.min())).round()
    span = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    stored = (levels / 255 if span is None else span.min + levels / 255 * (float(span.max) - span.min)).astype(dtype)
    file = io.BytesIO()
    tifffile.imwrite(file, stored, photometric=photometric, byteorder=order, compression=compression, tile=tile)
    shown = open_image(file.getvalue()).frame(0)[..., 0].astype(float)
    assert np.abs((255 - shown if photometric == "miniswhite" else shown) - levels).max() <= 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_colors(dtype: str, planar: str) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    top = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    stored = (colors() / 255 * top).round(12).astype(dtype)
    file = io.BytesIO()
    tifffile.imwrite(file, stored if planar == "contig" else np.moveaxis(stored, 2, 0), photometric="rgb", planarconfig=planar)
    assert np.abs(open_image(file.getvalue()).frame(0).astype(int) - colors()).max() <= 1


@pytest.mark.parametrize("compression", ["zlib", None])
def test_complex_numbers_are_not_supported(compression: str | None) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    file = io.BytesIO()
    tifffile.imwrite(file, colors()[..., 0].astype(np.complex64), compression=compression)
    assert reason_of(lambda: all_frames(file.getvalue())) is Reason.UNSUPPORTED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({259: (3, [34712])}, Reason.UNSUPPORTED),  # JPEG 2000
        ({259: (3, [50002])}, Reason.UNSUPPORTED),  # JPEG XL
        ({262: (3, [32803])}, Reason.UNSUPPORTED),  # a color filter array
        ({277: (3, [7]), 258: (3, [8] * 7)}, Reason.UNSUPPORTED),
        ({339: (3, [6]), 258: (3, [64])}, Reason.UNSUPPORTED),
        ({258: (3, [8, 16, 8]), 277: (3, [3]), 262: (3, [2])}, Reason.UNSUPPORTED),
        ({256: (4, [0])}, Reason.DAMAGED),
        ({257: (4, [4000])}, Reason.DAMAGED),  # more rows than there are
        ({273: (4, [1 << 30])}, Reason.DAMAGED),
        ({259: (3, [5])}, Reason.DAMAGED),  # no LZW data
        ({256: (4, [1 << 20]), 257: (4, [1 << 20])}, Reason.TOO_LARGE),
        ({256: (4, [0xFFFFFFFF]), 257: (4, [0xFFFFFFFF])}, Reason.TOO_LARGE),
        ({322: (4, [1 << 30]), 323: (4, [1 << 30])}, Reason.TOO_LARGE),
    ],
)
def test_what_is_wrong_with_a_tiff(
    changes: dict[int, tuple[int, list[int]]], reason: Reason, capfd: pytest.CaptureFixture[str]
) -> None:
    assert reason_of(lambda: all_frames(tiff_of([changes]))) is reason
    assert capfd.readouterr().err == ""


def test_nothing_is_printed_of_damaged_files(capfd: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    for name, data in SAMPLES.items():
        for _ in range(10):
            broken = bytearray(data)
            for at in generator.integers(8, len(broken), 4):
                broken[at] = generator.integers(256)
            try:
                all_frames(bytes(broken), hint(name), Limits(max_pixels=1 << 20, max_frames=16))
            except ImageError:
                continue
    interlaced = imagecodecs.png_encode(colors().astype(np.uint16) * 257)
    all_frames(interlaced)
    assert capfd.readouterr() == ("", "")


ODD_CHROMA = [
    ((1, 1), (2, 1), (1, 1)),
    ((1, 1), (2, 1), (2, 2)),
    ((1, 1), (4, 1), (4, 1)),
    ((2, 2), (2, 2), (2, 2)),
    ((1, 1), (162, 1), (1, 1)),
]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("steps", ODD_CHROMA)
def test_colors_that_openjpeg_cannot_convert_are_refused_in_silence(
    declared: bool, steps: tuple[tuple[int, int], ...], capfd: pytest.CaptureFixture[str]
) -> None:
    """It prints a line for them and goes on with YCbCr as RGB."""
    code = imagecodecs.jpeg2k_encode(colors(), codecformat="jp2", mct=False)
    at = code.index(b"\xff\x4f\xff\x51") + 42
    data = code[:at] + b"".join(bytes((7, *step)) for step in steps) + code[at + 9 :]
    if declared:
        data = data.replace(struct.pack(">4s3BI", b"colr", 1, 0, 0, 16), struct.pack(">4s3BI", b"colr", 1, 0, 0, 18))
    assert reason_of(lambda: all_frames(data)) is Reason.UNSUPPORTED
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("step", [(1, 1), (2, 1), (2, 2)])
def test_colors_of_usual_subsampling_are_not_refused_for_it(step: tuple[int, int]) -> None:
    jpeg2000.check_chroma(((1, 1), step, step), True)
    jpeg2000.check_chroma(((1, 1), step, step), False)
    jpeg2000.check_chroma(((1, 1), (2, 2)), True)


@pytest.mark.parametrize("bits", [12, 16])
def test_lossless_and_deep_jpegs(bits: int) -> None:
    values = (colors()[..., 0].astype(np.uint16) << (bits - 8)) + (colors()[..., 0] >> (16 - bits))
    for data in (imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=bits), imagecodecs.jpegls_encode(values)):
        renderings = open_image(data).renderings(0)
        assert len(renderings) == 2
        assert np.abs(renderings[0][..., 0].astype(int) - colors()[..., 0]).max() <= 1
        assert reason_of(lambda data=data: all_frames(data[: len(data) // 2])) is Reason.DAMAGED


def test_a_cut_jpeg_ls_does_not_take_long() -> None:
    """CharLS looks for the rest of such data for 20 seconds."""
    data = SAMPLES["jls"]
    began = time.monotonic()
    for end in range(70, len(data) - 2, 40):
        assert reason_of(lambda end=end: all_frames(data[:end])) is Reason.DAMAGED
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["hierarchical", "no height", "no frame"])
def test_jpegs_that_are_refused(kind: str) -> None:
    data = bytearray(SAMPLES["jpg"])
    at = data.find(b"\xff\xc0")
    if kind == "hierarchical":
        data[at + 1] = 0xC5
    elif kind == "no height":
        data[at + 5 : at + 7] = b"\0\0"
    else:
        data[at + 1] = 0xE5
    assert reason_of(lambda: all_frames(bytes(data))) is (Reason.DAMAGED if kind == "no frame" else Reason.UNSUPPORTED)


# -- several images in one file ----------------------------------------------------------------------------------------


def test_several_netpbm_images_in_one_file() -> None:
    data = SAMPLES["ppm"] + SAMPLES["pgm"] + SAMPLES["pam"]
    image = open_image(data)
    assert image.frames == 3
    np.testing.assert_array_equal(image.frame(0), colors())
    np.testing.assert_array_equal(image.frame(1)[..., 2], colors()[..., 0])
    assert reason_of(lambda: open_image(data, Limits(max_frames=2))) is Reason.TOO_LARGE
    assert reason_of(lambda: open_image(data[:-1])) is Reason.DAMAGED


@pytest.mark.parametrize(("form", "options"), [("AVIF", {"quality": 100, "subsampling": "4:4:4"}), ("WEBP", {"lossless": True})])
def test_animations(form: str, options: dict[str, object]) -> None:
    data = animated(form, 4, **options)
    frames = all_frames(data)
    assert len(frames) == 4
    for number, (frame,) in enumerate(frames):
        assert np.abs(frame.astype(int) - np.roll(colors(), 9 * number, axis=1)).mean() < 3
    assert reason_of(lambda: open_image(data, Limits(max_frames=3))) is Reason.TOO_LARGE


@pytest.mark.parametrize("at_once", [0, 1 << 26])
def test_jpeg_xl_animations(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from lcmem_onnx.runtime.images.raster import jpegxl

    monkeypatch.setattr(jpegxl, "_AT_ONCE", at_once)
    expected = np.stack([colors(), colors()[::-1], colors()[:, ::-1]])
    image = open_image(SAMPLES["jxl-animation"])
    assert image.frames == 3
    for number in (2, 0, 1):
        np.testing.assert_array_equal(image.frame(number), expected[number])
    assert reason_of(lambda: open_image(SAMPLES["jxl-animation"], Limits(max_frames=2))) is Reason.TOO_LARGE
    grey = imagecodecs.jpegxl_encode(expected[..., 0], lossless=True)
    np.testing.assert_array_equal(open_image(grey).frame(1)[..., 0], expected[1, ..., 0])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([1, 2, 3, 4]), st.sampled_from(["u1", "u2", "f4"]), st.booleans())
def test_jpeg_xl_headers_are_read_right(width: int, height: int, channels: int, dtype: str, boxes: bool) -> None:
    """Size, bits and opacity are read from the header's bits here; libjxl has the last word in decoding."""
    values = np.zeros((height, width, channels), dtype)
    values[: height // 2] = 1 if dtype == "f4" else np.iinfo(dtype).max
    values[..., channels - 1] = values.max() if channels in (2, 4) else values[..., channels - 1]
    data = imagecodecs.jpegxl_encode(values[..., 0] if channels == 1 else values, lossless=True, effort=1, usecontainer=boxes)
    frame = open_image(data).frame(0)
    assert frame.shape == (height, width, 3)
    if height > 1:
        assert (frame[0] == 255).all()
        assert (frame[-1] == 0).all()
    assert reason_of(lambda: open_image(data, Limits(max_pixels=width * height - 1))) is Reason.TOO_LARGE


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8, 10, 12, 16])
@pytest.mark.parametrize("codec", ["jp2", "j2k"])
def test_jpeg_2000_of_all_depths(bits: int, codec: str) -> None:
    top = (1 << bits) - 1
    values = (colors()[..., 0].astype(int) * top // 228).clip(0, top).astype(np.uint8 if bits <= 8 else np.uint16)
    values[0, 0] = top
    data = imagecodecs.jpeg2k_encode(values, level=0, bitspersample=bits, codecformat=codec)
    renderings = open_image(data).renderings(0)
    assert len(renderings) == (1 if bits <= 8 else 2)
    assert np.abs(renderings[0][..., 0] - values * (255 / top)).max() <= 0.51


def test_a_second_codestream_of_a_jpx_file_is_a_frame() -> None:
    first, second = SAMPLES["jp2"], saved(np.ascontiguousarray(colors()[::-1]), "JPEG2000", no_jp2=True)
    at = first.find(b"jp2c") - 4
    whole = first[:at] + struct.pack(">I", len(first) - at) + first[at + 4 :]
    image = open_image(whole + struct.pack(">I", 8 + len(second)) + b"jp2c" + second)
    assert image.frames == 2
    np.testing.assert_array_equal(image.frame(0), colors())
    np.testing.assert_array_equal(image.frame(1), colors()[::-1])


# -- TIFF directories --------------------------------------------------------------------------------------------------


def test_sub_directories_are_frames_behind_the_pages() -> None:
    data = tiff_of([{}, {}, {}, {}, {}], children={0: [2, 3], 2: [4]})
    image = open_image(data)
    assert image.frames == 5
    seen = {image.frame(number)[..., 0].tobytes() for number in range(5)}
    expected = {np.roll(colors()[..., 0], 13 * number, axis=1).tobytes() for number in range(5)}
    assert seen == expected
    np.testing.assert_array_equal(image.frame(1)[..., 0], np.roll(colors()[..., 0], 13, axis=1))  # the second page
    assert reason_of(lambda: open_image(data, Limits(max_frames=4))) is Reason.TOO_LARGE


@pytest.mark.parametrize("children", [{0: [1], 1: [0]}, {0: [0]}, {0: [1, 1, 1]}, {0: [1], 1: [1]}])
def test_directories_that_point_in_circles(children: dict[int, list[int]]) -> None:
    began = time.monotonic()
    image = open_image(tiff_of([{}, {}], children=children))
    assert image.frames == (1 if children == {0: [0]} else 2) or children == {0: [0]}
    for number in range(image.frames):
        image.frame(number)
    assert time.monotonic() - began < 2


def test_a_chain_of_pages_without_end_is_too_large() -> None:
    """Each directory is another one, so no circle: they overlap."""
    data = bytearray(b"II*\0\x08\0\0\0" + bytes(120_000))
    for at in range(8, 100_000, 18):
        struct.pack_into("<HHHIII", data, at, 1, 256, 4, 1, 1, at + 18)
    began = time.monotonic()
    assert reason_of(lambda: open_image(bytes(data))) in (Reason.TOO_LARGE, Reason.DAMAGED)
    assert time.monotonic() - began < 2


def test_a_page_that_cannot_be_read_does_not_hide_the_others() -> None:
    data = bytearray(tiff_of([{}, {}]))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, len(data) + 1000)
    image = open_image(bytes(data))
    assert image.frames == 2
    np.testing.assert_array_equal(image.frame(0)[..., 0], colors()[..., 0])
    assert reason_of(lambda: image.frame(1)) is Reason.DAMAGED


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "raw"])
def test_orientation_of_each_page(orientation: int, compression: str) -> None:
    upright = saved(colors(), "TIFF", compression=compression)
    turned = saved(colors(), "TIFF", compression=compression, tiffinfo={274: orientation})
    expected = Image.fromarray(open_image(upright).frame(0))
    exif = Image.Exif()
    exif[274] = orientation
    from PIL import ImageOps

    expected.getexif()[274] = orientation
    np.testing.assert_array_equal(open_image(turned).frame(0), np.asarray(ImageOps.exif_transpose(expected)))


def test_big_tiffs() -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    for order in "<>":
        file = io.BytesIO()
        with tifffile.TiffWriter(file, bigtiff=True, byteorder=order) as writer:
            writer.write(colors(), photometric="rgb", subifds=1)
            writer.write(np.ascontiguousarray(colors()[::-1]), photometric="rgb")
            writer.write(np.ascontiguousarray(colors()[:, ::-1]), photometric="rgb")
        image = open_image(file.getvalue())
        assert image.frames == 3
        found = {image.frame(number).tobytes() for number in range(3)}
        assert found == {colors().tobytes(), colors()[::-1].tobytes(), np.ascontiguousarray(colors()[:, ::-1]).tobytes()}


def test_channels_beyond_color_are_flagged() -> None:
    data = saved(Image.fromarray(rgba()).convert("RGBA"), "TIFF")
    at = data.find(struct.pack("<HHI", 338, 3, 1))
    plain = data[: at + 8] + struct.pack("<H", 0) + data[at + 10 :]
    image = open_image(plain)
    np.testing.assert_array_equal(image.frame(0), colors())
    assert ContentFlag.EXTRA_CHANNELS in image.notes


# -- hostile files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_too_many_pixels(name: str) -> None:
    assert reason_of(lambda: open_image(SAMPLES[name], SIZE_LIMIT, hint(name))) is Reason.TOO_LARGE
    open_image(SAMPLES[name], Limits(max_pixels=WIDTH * HEIGHT), hint(name)).frame(0)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("share", [0.03, 0.3, 0.6, 0.9])
@pytest.mark.filterwarnings("ignore")
def test_truncated_files_are_damaged(name: str, share: float) -> None:
    data = SAMPLES[name]
    cut = data[: max(26, int(len(data) * share))]
    assert reason_of(lambda: all_frames(cut, hint(name))) is Reason.DAMAGED


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.data())
@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_raise_nothing_else(name: str, data: st.DataObject) -> None:
    source = bytearray(SAMPLES[name])
    for _ in range(data.draw(st.integers(1, 6))):
        source[data.draw(st.integers(0, min(len(source), 500) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = open_image(bytes(source), Limits(max_pixels=1 << 18, max_frames=8), hint(name))
        for number in range(image.frames):
            image.renderings(number)
        assert all(isinstance(note, ContentFlag) for note in image.notes)
    except ImageError:
        pass


def bombs() -> dict[str, bytes]:
    """Files of a few bytes that say that they are huge."""
    size = struct.pack(">II", 60_000, 60_000)
    jp2 = bytearray(SAMPLES["jp2"])
    siz = jp2.find(b"\xff\x51")
    jp2[siz + 6 : siz + 14] = size
    avif = bytearray(SAMPLES["avif"])
    avif[avif.find(b"ispe") + 8 : avif.find(b"ispe") + 16] = size
    jpeg = bytearray(SAMPLES["jpg"])
    jpeg[jpeg.find(b"\xff\xc0") + 5 : jpeg.find(b"\xff\xc0") + 9] = b"\xff\xff\xff\xff"
    jls = bytearray(SAMPLES["jls"])
    jls[jls.find(b"\xff\xf7") + 5 : jls.find(b"\xff\xf7") + 9] = b"\xff\xff\xff\xff"
    tga = bytearray(SAMPLES["tga"])
    tga[12:16] = b"\xff\xff\xff\xff"
    # a JPEG XL header: not small, the longest sides, no ratio
    bits = "0" + "11" + "1" * 30 + "000" + "11" + "1" * 30 + "1"
    jxl = b"\xff\x0a" + int(bits[::-1], 2).to_bytes(16, "little") + bytes(100)
    return {
        "jp2": bytes(jp2), "avif": bytes(avif), "jpg": bytes(jpeg), "jls": bytes(jls), "tga": bytes(tga), "jxl": jxl,
        "ppm": b"P6 60000 60000 255\n" + bytes(100), "ppm-plain": b"P3 60000 60000 255\n1 2 3",
        "pfm": b"PF\n60000 60000\n-1\n" + bytes(100),
        "pam": b"P7\nWIDTH 60000\nHEIGHT 60000\nDEPTH 3\nMAXVAL 255\nENDHDR\n" + bytes(100),
        "tif": tiff_of([{256: (4, [60_000]), 257: (4, [60_000])}]),
    }  # fmt: skip


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_by_their_headers(name: str) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert reason_of(lambda: open_image(bombs()[name], name_hint=hint(name))) in (Reason.TOO_LARGE, Reason.DAMAGED)
    assert time.monotonic() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_reasons_and_exit_codes_of_the_command(tmp_path: Path, images: Path, tiny_bundle: Path) -> None:
    """One line for each file, errors among them, here and isolated."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("avif", "jxl", "jp2", "jls", "tga", "ppm", "tif-subifd"):
        data, suffix = SAMPLES[name], name.partition("-")[0]
        (folder / f"good-{name}.{suffix}").write_bytes(data)
        (folder / f"cut-{name}.{suffix}").write_bytes(data[: len(data) // 2])
    for extra in ([], ["--isolate"] if sys.platform.startswith("linux") else []):
        command = [
            sys.executable,
            "-m",
            "lcmem_onnx.cli",
            "scan",
            str(folder),
            "--against",
            str(images),
            "--bundle",
            str(tiny_bundle),
        ]
        done = subprocess.run(
            [*command, "--json", "-q", *extra], capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"}
        )
        assert (done.returncode, done.stderr) == (2, "")
        lines = [line for line in map(json.loads, done.stdout.splitlines()) if "verdict" in line]
        verdicts = {(Path(line["path"]).name.partition("-")[0], line["verdict"] == "error") for line in lines}
        assert verdicts == {("good", False), ("cut", True)}
        assert {line["reason"] for line in lines if line["verdict"] == "error"} == {"damaged"}


@pytest.mark.parametrize(("width", "height", "top"), list(itertools.product((1, 3, 9), (1, 2), (1, 2, 255, 256, 65535))))
def test_netpbm_of_all_sizes_and_depths(width: int, height: int, top: int) -> None:
    values = np.random.default_rng(top).integers(0, top + 1, (height, width, 3))
    values[0, 0] = top
    expected = values * (255 / top)
    texts = f"P3 # colors\n{width} {height}\n{top}\n".encode() + b"\n".join(b"%d" % value for value in values.ravel())
    packed = f"P6\n{width} {height} {top}\n".encode() + values.astype(">u2" if top > 255 else "u1").tobytes()
    for data in (texts, packed):
        assert np.abs(open_image(data).frame(0) - expected).max() <= 0.51


@pytest.mark.parametrize(
    "data",
    [
        b"P2 2 2 255\n1 2 3",
        b"P2 2 2 255\n1 2 3 x",
        b"P2 2 2 9\n1 2 3 10",
        b"P1 2 2\n012",
        b"P5 2 2 0\n1234",
        b"P5 0 2 255\n",
        b"P6 2 2 70000\n" + bytes(99),
    ],
)
def test_netpbm_files_that_are_wrong(data: bytes) -> None:
    assert reason_of(lambda: all_frames(data)) is Reason.DAMAGED


def test_opacity_in_all_of_them() -> None:
    expected = Image.alpha_composite(Image.new("RGBA", (WIDTH, HEIGHT), "white"), Image.fromarray(rgba()))
    for name in ("avif-opacity", "j2k-opacity", "jxl-boxes", "pam", "png", "tga-lengths", "webp"):
        white, _ = open_image(SAMPLES[name], name_hint=hint(name)).renderings(0)
        apart = np.abs(white.astype(int) - np.asarray(expected.convert("RGB")))
        assert apart.mean() < (6 if name in ("avif-opacity", "jxl-boxes", "webp", "j2k-opacity") else 0.6), name
    assert opacity().min() == 0


TEXTS = {"zTXt": b"k\0\0", "iTXt": b"k\0\1\0\0\0", "iCCP": b"k\0\0", "tEXt": b"k\0"}


def chunk(kind: str, size: int) -> bytes:
    """A chunk with a text or color profile of this size, compressed where it can be."""
    text = bytes(size) if kind == "tEXt" else zlib.compress(bytes(size))
    content = kind.encode() + TEXTS[kind] + text
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


@pytest.mark.parametrize("before_pixels", [True, False])
@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP"])
@pytest.mark.parametrize("size", [2**20, 2**20 + 1, 2**26])
@pytest.mark.parametrize("mode", ["color", "transparent", "16 bits"])
def test_more_metadata_than_pillow_reads_does_not_hide_a_png(kind: str, size: int, before_pixels: bool, mode: str) -> None:
    if size == 2**26 and mode != "color":
        pytest.skip("one mode is enough for the largest")
    data = saved(rgba() if mode == "transparent" else rgba()[..., :3], "PNG")
    if mode == "16 bits":
        data = imagecodecs.png_encode(rgba()[..., :3].astype(np.uint16) * 257)
    at = 33 if before_pixels else len(data) - 12
    start = time.process_time()
    image = open_image(data[:at] + chunk(kind, size) + data[at:])
    for one, other in zip(image.renderings(0), open_image(data).renderings(0), strict=True):
        np.testing.assert_array_equal(one, other)
    assert time.process_time() - start < 2
    assert (ContentFlag.PRIVATE_DATA in image.notes) == (size > 2**20)


@pytest.mark.parametrize(("kind", "size"), [("zTXt", 2**20), ("zTXt", 2**24), ("iTXt", 2**20)])
def test_many_texts_of_a_png_cost_little_memory(kind: str, size: int) -> None:
    data = saved(rgba()[..., :3], "PNG")
    whole = data[:33] + chunk(kind, size) * 100 + data[33:]
    tracemalloc.start()
    image = open_image(whole)
    shown = image.frame(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(shown, open_image(data).frame(0))
    assert peak < 2**27
    assert ContentFlag.PRIVATE_DATA in image.notes
