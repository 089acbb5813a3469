"""Files to frames: the walk, reading, telling formats, and decoding against Pillow and numpy; bad files beside good."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.errors import ImageError, Reason
from lcmem_onnx.runtime.images.discovery import SkipReason
from lcmem_onnx.runtime.images.image import (
    Found,
    Kind,
    Limits,
    Skipped,
    Unfound,
    image_name,
    open_image,
    read_file,
    sniff,
    walk,
)
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

FORMATS = ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"]


def noise(height: int = 20, width: int = 30, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def reason_of(call: Callable[[], object]) -> Reason:
    with pytest.raises(ImageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value.reason


def tiff(values: NDArray[Any], order: str = "<", photometric: int | None = None, orientation: int = 1) -> bytes:
    """An uncompressed one-strip TIFF: Pillow writes no 16-bit colour and OpenCV no orientation."""
    height, width = values.shape[:2]
    samples = values.shape[2] if values.ndim == 3 else 1
    pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    bits = 8 * values.dtype.itemsize
    kinds = {"u": 1, "i": 2, "f": 3}
    entries = [
        (256, 4, width),
        (257, 4, height),
        (259, 3, 1),
        (262, 3, photometric if photometric is not None else (2 if samples == 3 else 1)),
        (273, 4, 8),
        (274, 3, orientation),
        (277, 3, samples),
        (278, 4, height),
        (279, 4, len(pixels)),
    ]
    directory = 8 + len(pixels)
    extra = directory + 2 + 12 * (len(entries) + 2) + 4
    table = b""
    rows: list[tuple[int, bytes]] = []
    for tag, form, value in entries:
        field = struct.pack(f"{order}{'I' if form == 4 else 'HH'}", *([value] if form == 4 else [value, 0]))
        rows.append((tag, struct.pack(f"{order}HHI", tag, form, 1) + field))
    for tag, value in ((258, bits), (339, kinds[values.dtype.kind])):
        if samples == 1:
            rows.append((tag, struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)))
        else:
            rows.append((tag, struct.pack(f"{order}HHII", tag, 3, samples, extra)))
            table += struct.pack(f"{order}{samples}H", *[value] * samples)
            extra += 2 * samples
    body = struct.pack(f"{order}H", len(rows)) + b"".join(row for _, row in sorted(rows)) + bytes(4) + table
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", directory) + pixels + body


# -- decoding --------------------------------------------------------------------------------------------------------


MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "JPEG": ["1", "L", "RGB", "CMYK"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"],
    "WEBP": ["L", "RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "GIF": ["1", "L", "P", "RGB", "RGBA"],
}


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in MODES.items() for mode in modes])
def test_eight_bit_images_are_what_pillow_makes_of_them(form: str, mode: str) -> None:
    image = Image.fromarray(noise()).convert(mode)
    data = saved(image, form)
    opened = open_image(data)
    assert (opened.kind, opened.frames) == (Kind(form.lower()), 1)
    frame = opened.frame(0)
    assert (frame.dtype, frame.flags.c_contiguous, frame.flags.writeable) == (np.uint8, True, True)
    np.testing.assert_array_equal(frame, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    with pytest.raises(IndexError):
        opened.frame(1)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(noise()), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(open_image(data).frame(0), np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_deep_tiffs(orientation: int) -> None:
    values = noise().astype(np.uint16) * 257
    turned = open_image(tiff(values, orientation=orientation)).frame(0)
    eight_bits = open_image(tiff(noise(), orientation=orientation)).frame(0)
    np.testing.assert_array_equal(turned, eight_bits)
    grey = open_image(tiff(values[..., 0], orientation=orientation)).frame(0)
    np.testing.assert_array_equal(grey[..., 0], eight_bits[..., 0])


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_images_by_nominal_depth(bits: int, suffix: str, channels: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (20, 30, channels)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    if channels == 4:
        values[..., 3] = 0xFFFF
    data = cv2.imencode(suffix, values)[1].tobytes()
    colours = values[..., 2::-1] if channels > 1 else np.repeat(values, 3, axis=2)
    expected = colours.astype(float) * 255 / (2**bits - 1)
    assert np.abs(open_image(data).frame(0) - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("order", ["<", ">"])
def test_deep_tiffs_of_either_byte_order_and_with_white_as_zero(order: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (20, 30)).astype(np.uint16)
    values[0, 0] = 65535
    upright = open_image(tiff(values, order)).frame(0)
    assert np.abs(upright[..., 0] - values / 257).max() <= 0.5 + 1e-9
    if order == "<":  # Pillow knows no such files of the other order
        np.testing.assert_array_equal(open_image(tiff(values, order, photometric=0)).frame(0), 255 - upright)


@pytest.mark.parametrize("dtype", ["int32", "float32", "int16"])
def test_values_without_a_depth_are_stretched(dtype: str) -> None:
    values = np.random.default_rng(1).integers(-3000, 9000, (20, 30)).astype(dtype)
    expected = (values.astype(float) - values.min()) / (float(values.max()) - values.min()) * 255
    assert np.abs(open_image(tiff(values)).frame(0)[..., 1] - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("bad", "shown"), [(np.nan, 0), (np.inf, 255), (-np.inf, 0)])
def test_the_finite_part_is_rendered(bad: float, shown: int, dtype: str) -> None:
    values = np.random.default_rng(3).uniform(-5, 9, (20, 30)).astype(dtype)
    whole = open_image(tiff(values)).renderings(0)
    values[0, :5] = np.sort(values, axis=None)[2]  # neither the smallest nor the largest goes with the margin
    expected = open_image(tiff(values)).renderings(0)
    values[0, :5] = bad
    for rendering, finite in zip(open_image(tiff(values)).renderings(0), expected, strict=True):
        assert (rendering[0, :5] == shown).all()
        assert np.abs(rendering[1:].astype(int) - finite[1:]).max() <= 3
    assert len(whole) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_image_without_a_finite_value_is_refused(bad: float) -> None:
    assert reason_of(lambda: open_image(tiff(np.full((20, 30), bad, np.float32))).frame(0)) is Reason.NOT_FINITE


def test_doubles_whose_range_is_beyond_theirs() -> None:
    values = (np.linspace(-1, 1, 600) * 1.7e308).reshape(20, 30)
    frame = open_image(tiff(values)).frame(0)
    np.testing.assert_allclose(frame[..., 0].ravel(), np.linspace(0, 255, 600), atol=0.51)


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_frames_of_animations_and_pages(form: str) -> None:
    images = [Image.fromarray(noise(seed=seed)) for seed in range(5)]
    data = saved(images[0], form, save_all=True, append_images=images[1:], **({"lossless": True} if form == "WEBP" else {}))
    image = open_image(data)
    assert image.frames == 5
    backwards = {number: image.frame(number) for number in reversed(range(5))}
    for number in range(5):
        np.testing.assert_array_equal(image.frame(number), backwards[number])
        if form != "GIF":
            np.testing.assert_array_equal(image.frame(number), noise(seed=number))
    with ThreadPoolExecutor(4) as pool:
        for number, frame in zip([*range(5)] * 4, pool.map(image.frame, [*range(5)] * 4), strict=True):
            np.testing.assert_array_equal(frame, backwards[number])
    assert reason_of(lambda: open_image(data, Limits(max_frames=4))) is Reason.TOO_LARGE
    assert open_image(data, Limits(max_frames=5)).frames == 5


def test_pages_of_sixteen_bit_colour() -> None:
    pages = [np.random.default_rng(seed).integers(0, 65536, (20, 30, 3)).astype(np.uint16) for seed in range(3)]
    image = open_image(cv2.imencodemulti(".tif", pages)[1].tobytes())
    assert image.frames == 3
    for number in (2, 0, 1):
        assert np.abs(image.frame(number) - pages[number][..., ::-1] / 257).max() <= 0.5 + 1e-9


# -- bad images ----------------------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def test_a_png_bomb_is_refused_by_its_header_without_a_warning() -> None:
    data = png_header(30000, 30000) + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")
    limit = Image.MAX_IMAGE_PIXELS
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason_of(lambda: open_image(data)) is Reason.TOO_LARGE
        assert open_image(png_header(10000, 10000) + chunk(b"IDAT", b"")).frames == 1
    assert time.monotonic() - began < 0.1
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("form", FORMATS)
def test_too_many_pixels(form: str) -> None:
    data = saved(Image.fromarray(noise()), form)
    assert reason_of(lambda: open_image(data, Limits(max_pixels=599))) is Reason.TOO_LARGE
    assert open_image(data, Limits(max_pixels=600)).frame(0).shape == (20, 30, 3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.03, 0.3, 0.9])
def test_truncated_images_are_damaged(form: str, share: float) -> None:
    data = saved(Image.fromarray(noise(200, 300)), form)
    cut = data[: max(24, int(len(data) * share))]
    assert reason_of(lambda: open_image(cut).frame(0)) is Reason.DAMAGED


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("directory", [0, 8, 1000, 0xFFFFFFFF])
def test_a_tiff_without_an_image_is_damaged(order: str, directory: int) -> None:
    """Its first directory is nowhere, behind the end, or empty: a file of 0 frames would be nothing that a scan could judge."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    data = mark + struct.pack(order + "I", directory) + bytes(40)
    assert reason_of(lambda: open_image(data)) is Reason.DAMAGED


@pytest.mark.parametrize("form", [".png", ".tif"])
def test_truncated_deep_images_are_damaged(form: str) -> None:
    data = cv2.imencode(form, noise(200, 300).astype(np.uint16) * 257)[1].tobytes()
    assert reason_of(lambda: open_image(data[: len(data) // 2]).frame(0)) is Reason.DAMAGED


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "GIF"])
def test_a_program_that_has_pillow_accept_damage(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sound files are read as ever, damaged ones stay damaged, and the program finds its setting as it left it."""
    data = saved(Image.fromarray(noise(60, 50)), form)
    expected = open_image(data).frame(0)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert np.array_equal(open_image(data).frame(0), expected)
    assert reason_of(lambda: open_image(data[: len(data) * 2 // 3]).frame(0)) is Reason.DAMAGED
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_program_that_has_pillow_accept_damage_reads_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saved(Image.fromarray(noise(300, 300)), "PNG")
    broken = whole[: len(whole) // 2]
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)

    def read(number: int) -> bool:
        if number % 2:
            return reason_of(lambda: open_image(broken).frame(0)) is Reason.DAMAGED
        return open_image(whole).frame(0).shape == (300, 300, 3)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(100)))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_weasyprint_in_the_same_process(tmp_path: Path) -> None:
    """It has Pillow accept damaged images in the whole process, from its import on: so a process of its own."""
    whole = tmp_path / "whole.png"
    whole.write_bytes(saved(Image.fromarray(noise()), "PNG"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(whole.read_bytes()[:-100])
    script = """
import sys
try:
    import weasyprint
except (ImportError, OSError) as error:
    sys.exit(f"no weasyprint: {error}")
from PIL import ImageFile
from lcmem_onnx.runtime.errors import ImageError
from lcmem_onnx.runtime.images.image import open_image, read_file
assert ImageFile.LOAD_TRUNCATED_IMAGES, "weasyprint no longer sets it: this test shows nothing"
print(open_image(read_file(sys.argv[1])).frame(0).shape)
try:
    open_image(read_file(sys.argv[2])).frame(0)
except ImageError as error:
    print(error.reason)
"""
    done = subprocess.run([sys.executable, "-c", script, whole, broken], capture_output=True, text=True, timeout=120)
    if done.stderr.startswith("no weasyprint"):
        pytest.skip(done.stderr.strip())
    assert (done.stdout, done.returncode) == ("(20, 30, 3)\ndamaged\n", 0), done.stderr


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"just a text", Reason.NOT_AN_IMAGE),
        (b"BM is how this text begins, and it goes on for a while", Reason.NOT_AN_IMAGE),
        (b"\0" * 500, Reason.UNSUPPORTED),  # of a format that is not known, so it may be an image
    ],
)
def test_other_files_are_no_images(data: bytes, reason: Reason) -> None:
    assert sniff(data) is None
    assert reason_of(lambda: open_image(data, name_hint="a.png")) is reason
    assert reason_of(lambda: open_image(data, name_hint="a.dcm")) in (Reason.NOT_AN_IMAGE, Reason.DAMAGED)


def test_nothing_at_all() -> None:
    assert reason_of(lambda: open_image(b"")) is Reason.EMPTY_FILE


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_raise_nothing_else(form: str, data: st.DataObject) -> None:
    source = bytearray(saved(Image.fromarray(noise(60, 50)), form))
    for _ in range(data.draw(st.integers(1, 6))):
        source[data.draw(st.integers(0, min(len(source), 400) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = open_image(bytes(source), Limits(max_pixels=1 << 20, max_frames=8))
        for number in range(image.frames):
            image.frame(number)
    except ImageError:
        pass


# -- reading ---------------------------------------------------------------------------------------------------------


def test_read_file(tmp_path: Path) -> None:
    path = tmp_path / "a\nb.png"
    path.write_bytes(b"12345")
    assert read_file(path) == b"12345"
    assert read_file(path, Limits(max_file_bytes=5)) == b"12345"
    assert reason_of(lambda: read_file(path, Limits(max_file_bytes=4))) is Reason.TOO_LARGE
    (tmp_path / "empty").touch()
    assert reason_of(lambda: read_file(tmp_path / "empty")) is Reason.EMPTY_FILE
    assert reason_of(lambda: read_file(tmp_path)) is Reason.NOT_A_FILE
    assert reason_of(lambda: read_file(tmp_path / "none")) is Reason.NOT_FOUND
    assert reason_of(lambda: read_file(path / "below")) is Reason.NOT_FOUND
    assert reason_of(lambda: read_file("nul\0")) is Reason.NOT_FOUND
    assert reason_of(lambda: read_file(tmp_path / ("x" * 5000))) is Reason.READ_FAILED


def test_a_pipe_and_a_device_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert reason_of(lambda: read_file(tmp_path / "pipe.png")) is Reason.NOT_A_FILE
    assert reason_of(lambda: read_file("/dev/zero")) is Reason.NOT_A_FILE


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a fake error: as root, which tests may run as, nothing is denied."""
    image = tmp_path / "a.png"
    image.write_bytes(b"x")

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "denied")

    monkeypatch.setattr(os, "open", deny)
    assert reason_of(lambda: read_file(image)) is Reason.NO_PERMISSION
    monkeypatch.setattr(os, "scandir", deny)
    items = list(walk([tmp_path]))
    assert [item.error.reason for item in items if isinstance(item, Unfound)] == [Reason.NO_PERMISSION]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
def test_a_folder_without_permission_as_another_user(tmp_path: Path) -> None:
    """For real, in a child process that gives up root where it has it."""
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "a.png").write_bytes(b"x")
    os.chmod(closed, 0)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(folder, 0o755)
    program = (
        "import os, sys, json\n"
        "from lcmem_onnx.runtime.images.image import walk, Unfound\n"
        "os.geteuid() or os.setuid(65534)\n"
        "print(json.dumps([item.error.reason for item in walk([sys.argv[1]]) if isinstance(item, Unfound)]))"
    )
    try:
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    finally:
        os.chmod(closed, 0o700)
    assert json.loads(done.stdout) == ["no-permission"]


# -- the walk --------------------------------------------------------------------------------------------------------


def test_walk_sorts_recurses_and_skips(tmp_path: Path) -> None:
    png = saved(Image.fromarray(noise()), "PNG")
    for name in ("b.PNG", "a/z.dcm", "a/no_suffix", "c.txt", "a/deep/er/x.ima", "B.jpeg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png if name == "a/no_suffix" else b"text")
    items = list(walk([tmp_path]))
    found = [item.path.relative_to(tmp_path).as_posix() for item in items if isinstance(item, Found)]
    assert found == ["B.jpeg", "a/deep/er/x.ima", "a/no_suffix", "a/z.dcm", "b.PNG"]
    assert [item for item in items if isinstance(item, Skipped)] == [Skipped(tmp_path / "c.txt", SkipReason.TEXT)]
    assert list(walk([tmp_path / "c.txt"])) == [Found(tmp_path / "c.txt")]  # named by the user: always tried
    assert list(walk(items)) == items


def test_walk_follows_no_links_to_folders_and_waits_for_no_pipe(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.png").write_bytes(b"x")
    (inside / "circle").symlink_to(inside)
    (inside / "away.png").symlink_to(outside)
    (inside / "file.png").symlink_to(outside / "secret.png")
    (inside / "broken.png").symlink_to(tmp_path / "none")
    os.mkfifo(inside / "pipe")
    items = {item.path.name: item for item in walk([inside])}
    assert isinstance(items["file.png"], Found)
    assert isinstance(items["broken.png"], Unfound)
    assert items["pipe"] == Skipped(inside / "pipe", SkipReason.SPECIAL_FILE)
    for name in ("circle", "away.png"):
        item = items[name]
        assert isinstance(item, Unfound)
        assert item.error.reason is Reason.LINK_TO_FOLDER
    assert len(items) == 5
    assert len(list(walk([inside / "circle"]))) == 5  # named by the user: followed


def test_walk_names_what_is_missing_or_empty_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes(b"text")
    (tmp_path / "a.png").touch()
    items = list(walk([tmp_path / "none", tmp_path / "empty", tmp_path / "texts", tmp_path / "a.png", "nul\0"]))
    reasons = [item.error.reason if isinstance(item, Unfound) else type(item) for item in items]
    assert reasons == [Reason.NOT_FOUND, Reason.EMPTY_FOLDER, Skipped, Reason.EMPTY_FOLDER, Found, Reason.NOT_FOUND]


def test_walk_is_lazy_and_stands_deep_nesting(tmp_path: Path) -> None:
    first = next(iter(walk([tmp_path / "none", *(Path("x") for _ in range(10))])))
    assert isinstance(first, Unfound)
    here = os.getcwd()
    try:  # deeper than Python's recursion would go, within the system's longest path
        os.chdir(tmp_path)
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        Path("a.png").touch()
        os.chdir(tmp_path)
        assert [type(item) for item in walk(["."])] == [Found]
    finally:
        # Taken down from the top, a folder at a time: pytest's own clean-up goes by recursion.
        os.chdir(tmp_path)
        while Path("d").exists():
            inner = next((entry for entry in os.listdir("d") if entry == "d"), None)
            if inner:
                os.rename("d/d", "next")
            shutil.rmtree("d")
            if inner:
                os.rename("next", "d")
        os.chdir(here)


def test_names_are_valid_text() -> None:
    assert image_name("plain/ü\nname.png") == "plain/ü\nname.png"
    assert image_name(Path(os.fsdecode(b"bad\xff\xfe.png"))) == "bad\\xff\\xfe.png"
    assert image_name("lone\ud800.png").encode() == b"lone\\ud800.png"


@given(st.binary(max_size=40))
def test_any_name_becomes_valid_text(raw: bytes) -> None:
    image_name(os.fsdecode(raw)).encode("utf-8")


def test_a_file_with_an_undecodable_name_is_found_and_read(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\n.png"
    with open(path, "wb") as file:  # a bytes path
        file.write(saved(Image.fromarray(noise()), "PNG"))
    (item,) = walk([tmp_path])
    assert isinstance(item, Found)
    np.testing.assert_array_equal(open_image(read_file(item.path)).frame(0), noise())
