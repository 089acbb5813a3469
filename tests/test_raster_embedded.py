"""What a raster file holds besides its frames: thumbnails that show the same and others, and data behind the end."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
from lcmem_onnx.runtime.images.content_flags import ContentFlag
from lcmem_onnx.runtime.images.image import open_image
from lcmem_onnx.runtime.images.raster.thumbnails import shows_the_same
from lcmem_onnx.runtime.images.sandbox import DecoderPool
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .raster_files import rgba, samples, saved

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures" / "gallery"
PHOTOS = sorted(EXAMPLES.glob("*.jpg"))
EMBEDDED, APPENDED, AUXILIARY, PRIVATE = (
    ContentFlag.EMBEDDED_IMAGE,
    ContentFlag.APPENDED_DATA,
    ContentFlag.AUXILIARY_IMAGE,
    ContentFlag.PRIVATE_DATA,
)


def photo(number: int = 0) -> Image.Image:
    return Image.open(PHOTOS[number]).convert("RGB").resize((480, 360))


def thumbnail(image: Image.Image, form: str = "JPEG", size: tuple[int, int] = (160, 120)) -> bytes:
    return saved(image.resize(size, Image.Resampling.BILINEAR), form, **({"quality": 80} if form == "JPEG" else {}))


def flags(data: bytes, hint: str = "") -> set[ContentFlag]:
    """After all frames were decoded."""
    image = open_image(data, name_hint=hint)
    for number in range(image.frames):
        image.renderings(number)
    return set(image.notes)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(image: Image.Image, *segments: bytes) -> bytes:
    data = saved(image, "JPEG", quality=90)
    return data[:2] + b"".join(segments) + data[2:]


def exif(thumb: bytes | None = None, raw: NDArray[np.uint8] | None = None, orientation: int = 1, tag: int = 274) -> bytes:
    """EXIF data with a thumbnail in its second directory: JPEG, or uncompressed."""
    entries = [(tag, 3, 1, orientation)]
    first = 8
    second = first + 2 + 12 * len(entries) + 4
    if thumb is not None:
        rows = [(259, 3, 1, 6), (513, 4, 1, second + 2 + 36 + 4), (514, 4, 1, len(thumb))]
        tail = thumb
    else:
        assert raw is not None
        height, width = raw.shape[:2]
        begin = second + 2 + 12 * 9 + 4
        rows = [
            (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, begin), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, begin + 6),
            (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, raw.size),
        ]  # fmt: skip
        tail = struct.pack("<3H", 8, 8, 8) + raw.tobytes()

    def directory(items: list[tuple[int, int, int, int]], following: int) -> bytes:
        return (
            struct.pack("<H", len(items)) + b"".join(struct.pack("<HHII", *item) for item in items) + struct.pack("<I", following)
        )

    return b"II*\0" + struct.pack("<I", first) + directory(entries, second) + directory(rows, 0) + tail


def holders(thumb: bytes, raw: NDArray[np.uint8], image: Image.Image) -> dict[str, Callable[[], bytes]]:
    """Files of `image` that hold a thumbnail, by where it is: JPEG in all but the raw ones."""
    photoshop = b"Photoshop 3.0\0" + b"8BIM" + struct.pack(">HHI", 1036, 0, 28 + len(thumb)) + bytes(28) + thumb
    height, width = raw.shape[:2]
    small = np.asarray(Image.fromarray(raw).resize((width // 2, height // 2), Image.Resampling.BILINEAR))
    jfif = b"JFIF\0\1\1\0\0\1\0\1" + bytes([small.shape[1], small.shape[0]]) + small.tobytes()
    xmp = b"<x:xmpmeta><xmpGImg:image>" + base64.b64encode(thumb).replace(b"A", b"A&#xA;", 3) + b"</xmpGImg:image></x:xmpmeta>"
    extension = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 40
    jumbf = b"JP\0\1\0\0\0\1" + struct.pack(">I4s", 8 + len(thumb), b"jumb") + thumb
    plain = saved(image, "JPEG", quality=90)

    def png(name: bytes, content: bytes) -> bytes:
        data = saved(image, "PNG")
        chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        return data[:33] + chunk + data[33:]

    def webp(name: bytes, content: bytes) -> bytes:
        data = bytearray(saved(image, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(thumb)))
        at = data.find(b"EXIF")
        del data[at:]
        data += name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
        data[4:8] = struct.pack("<I", len(data) - 8)
        return bytes(data)

    def boxed(data: bytes, kind: bytes, content: bytes) -> bytes:
        return data + struct.pack(">I4s", 8 + len(content), kind) + content

    return {
        "jpeg exif": lambda: with_segments(image, segment(0xE1, b"Exif\0\0" + exif(thumb))),
        "jpeg exif uncompressed": lambda: with_segments(image, segment(0xE1, b"Exif\0\0" + exif(raw=small))),
        "jpeg photoshop": lambda: with_segments(image, segment(0xED, photoshop)),
        "jpeg photoshop in two segments": lambda: with_segments(
            image, segment(0xED, photoshop[:300]), segment(0xED, b"Photoshop 3.0\0" + photoshop[300:])
        ),
        "jpeg jfif": lambda: b"\xff\xd8" + segment(0xE0, jfif) + plain[20:],
        "jpeg jfxx": lambda: with_segments(image, segment(0xE0, b"JFXX\0\x10" + thumb)),
        "jpeg jfxx rgb": lambda: with_segments(
            image, segment(0xE0, b"JFXX\0\x13" + bytes([small.shape[1], small.shape[0]]) + small.tobytes())
        ),
        "jpeg xmp": lambda: with_segments(image, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)),
        "jpeg extended xmp": lambda: with_segments(
            image, segment(0xE1, extension + xmp[:700]), segment(0xE1, extension + xmp[700:])
        ),
        "jpeg jumbf": lambda: with_segments(image, segment(0xEB, jumbf)),
        "jpeg unknown application": lambda: with_segments(image, segment(0xE7, b"VENDOR\0" + thumb)),
        "jpeg comment": lambda: with_segments(image, segment(0xFE, b"look: " + thumb)),
        "png exif": lambda: png(b"eXIf", exif(thumb)),
        "png text": lambda: png(b"tEXt", b"Raw profile type exif\0\nexif\n%8d\n" % len(exif(thumb)) + exif(thumb).hex().encode()),
        "png deflated text": lambda: png(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n" % len(exif(thumb)) + exif(thumb).hex().encode())
        ),
        "png xmp": lambda: png(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
        "png private chunk": lambda: png(b"thMb", thumb),
        "webp exif": lambda: webp(b"EXIF", exif(thumb)),
        "webp xmp": lambda: webp(b"XMP ", xmp),
        "webp unknown chunk": lambda: webp(b"thmb", thumb),
        "tiff photoshop": lambda: saved(image, "TIFF", tiffinfo={34377: photoshop[14:]}),
        "tiff xmp": lambda: saved(image, "TIFF", tiffinfo={700: xmp}),
        "tiff private tag": lambda: saved(image, "TIFF", tiffinfo=_bytes_tag(65000, thumb)),
        "gif comment": lambda: _with_gif_extension(saved(image, "GIF"), 0xFE, thumb),
        "jp2 uuid": lambda: boxed(saved(image, "JPEG2000"), b"uuid", bytes(16) + thumb),
        "jxl exif": lambda: boxed(imagecodecs.jpegxl_encode(np.asarray(image), usecontainer=True), b"Exif", bytes(4) + exif(thumb)),
        "jxl packed": lambda: boxed(
            imagecodecs.jpegxl_encode(np.asarray(image), usecontainer=True),
            b"brob",
            b"Exif" + imagecodecs.brotli_encode(bytes(4) + exif(thumb)),
        ),
        "avif exif": lambda: saved(image, "AVIF", exif=exif(thumb, tag=296), quality=90),
    }  # fmt: skip


def _bytes_tag(number: int, content: bytes) -> object:
    from PIL import TiffImagePlugin

    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[number] = content
    info.tagtype[number] = 7
    return info


def _with_gif_extension(data: bytes, label: int, content: bytes) -> bytes:
    blocks = b"".join(bytes([len(content[at : at + 255])]) + content[at : at + 255] for at in range(0, len(content), 255))
    start = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    return data[:start] + bytes([0x21, label]) + blocks + b"\0" + data[start:]


NAMES = list(holders(b"", np.zeros((4, 4, 3), np.uint8), photo()))


@pytest.mark.parametrize("name", NAMES)
def test_a_thumbnail_is_flagged_only_where_it_shows_something_else(name: str) -> None:
    image, other = photo(0), photo(1)
    size = (96, 72) if "jfxx" in name or "jfif" in name or "two" in name else (160, 120)
    for shown, expected in ((image, False), (other, True)):
        raw = np.asarray(shown.resize(size, Image.Resampling.BILINEAR))
        data = holders(thumbnail(shown, size=size), raw, image)[name]()
        assert (EMBEDDED in flags(data)) is expected, (name, flags(data))
        assert not flags(data) - {EMBEDDED}


def test_until_its_frame_is_decoded_a_thumbnail_is_flagged() -> None:
    image = open_image(with_segments(photo(), segment(0xE1, b"Exif\0\0" + exif(thumbnail(photo())))))
    assert image.notes == (EMBEDDED,)
    image.frame(0)
    assert image.notes == ()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="isolation needs Linux")
def test_isolated_the_flags_are_the_same() -> None:
    with DecoderPool() as decoders:
        for shown in (0, 1):
            image = decoders.open(with_segments(photo(), segment(0xE1, b"Exif\0\0" + exif(thumbnail(photo(shown))))))
            assert image.notes == (EMBEDDED,)
            image.frame(0)
            assert image.notes == ((EMBEDDED,) if shown else ())
            image.close()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_and_its_thumbnail(orientation: int) -> None:
    """Both are stored as the sensor saw them; some programs turn the photo and leave the thumbnail."""
    assert not flags(with_segments(photo(), segment(0xE1, b"Exif\0\0" + exif(thumbnail(photo()), orientation=orientation))))
    turned = photo().rotate(90, expand=True)
    assert not flags(with_segments(turned, segment(0xE1, b"Exif\0\0" + exif(thumbnail(photo())))))


@pytest.mark.parametrize("number", range(len(PHOTOS)))
def test_the_same_in_small(number: int) -> None:
    image = photo(number)
    pixels = np.asarray(image)
    for size, sampling in (
        ((160, 120), Image.Resampling.BOX),
        ((320, 240), Image.Resampling.LANCZOS),
        ((128, 96), Image.Resampling.BICUBIC),
    ):
        small = image.resize(size, sampling)
        for quality in (60, 90):
            coded = np.asarray(Image.open(io.BytesIO(saved(small, "JPEG", quality=quality))).convert("RGB"))
            assert shows_the_same(pixels, coded)
        assert shows_the_same(pixels, np.asarray(small.filter(ImageFilter.UnsharpMask(1, 40, 0))))
        brighter = np.clip(np.asarray(small).astype(float) * 0.9 + 14, 0, 255).astype(np.uint8)
        assert shows_the_same(pixels, brighter)
    wide = image.crop((0, 45, 480, 315))
    barred = Image.new("RGB", (160, 120))
    barred.paste(wide.resize((160, 90)), (0, 15))
    assert shows_the_same(np.asarray(wide), np.asarray(barred))


@pytest.mark.parametrize("number", range(len(PHOTOS)))
def test_what_was_hidden_or_cut_off_in_the_image_is_found_in_its_thumbnail(number: int) -> None:
    image = photo(number)
    small = np.asarray(image.resize((160, 120)))
    covered = np.asarray(image).copy()
    level = 0 if covered[120:180, 200:280].mean() > 127 else 255
    covered[120:180, 200:280] = level
    assert not shows_the_same(covered, small)
    assert not shows_the_same(np.asarray(image.crop((0, 0, 384, 288))), small)
    for other in range(len(PHOTOS)):
        if other != number:
            assert not shows_the_same(np.asarray(photo(other)), small)


def test_small_and_odd_shapes_are_compared_without_an_error() -> None:
    for shape in ((1, 1), (1, 200), (200, 1), (2, 3), (5000, 3)):
        assert isinstance(shows_the_same(np.zeros((*shape, 3), np.uint8), np.asarray(photo().resize((160, 120)))), bool)
        assert isinstance(shows_the_same(np.asarray(photo()), np.zeros((*shape, 3), np.uint8)), bool)


# -- behind the end --------------------------------------------------------------------------------------------------


APPENDABLE = ["png", "gif", "webp", "jpg", "jls", "jp2", "jxl-boxes", "avif", "bmp", "ppm", "tif"]


@pytest.mark.parametrize("name", APPENDABLE)
def test_what_is_behind_the_end_is_flagged(name: str) -> None:
    data = samples()[name]
    assert flags(data) == set()
    assert APPENDED not in flags(data + bytes(700)), "padding"
    for appended in (thumbnail(photo(1)), thumbnail(photo(1), "PNG"), b"PK\3\4" + b"an archive" * 20):
        if name == "tif" and appended.startswith(b"PK"):
            continue  # dead space of a few bytes is usual there
        found = flags(data + appended)
        assert found & {APPENDED, EMBEDDED}, (name, found)
    large = np.random.default_rng(0).bytes(100_000)
    assert flags(data + large) & {APPENDED, PRIVATE, EMBEDDED}


def test_an_image_before_the_end_marker_of_another_format() -> None:
    """A GIF, ended early, with more behind its trailer; a PNG with a second one behind IEND."""
    png = saved(photo(), "PNG")
    assert APPENDED in flags(png + saved(photo(1), "PNG"))
    assert APPENDED in flags(samples()["gif"] + samples()["gif"])


def test_the_few_words_that_samsung_cameras_append_are_no_news() -> None:
    words = b"\0\0\x01\x0a\x0e\0\0\0Image_UTC_Data1633000000000SEFHk\0\0\0\x01\0\0\0\0\0\x01\x0a#\0\0\0#\0\0\0\x18\0\0\0SEFT"
    data = saved(photo(), "JPEG")
    assert flags(data + words) == set()
    assert APPENDED in flags(data + b"\0\0\0\x18ftypmp42" + bytes(90_000) + words), "a motion photo"
    assert APPENDED in flags(data + thumbnail(photo(1)) + words)


def test_multi_image_files() -> None:
    """MPO: each image is a frame, with its own orientation and thumbnail; those that the index leaves out are flagged."""
    images = [photo(0), photo(1), photo(2)]
    data = saved(images[0], "MPO", save_all=True, append_images=images[1:])
    opened = open_image(data)
    assert opened.frames == 3
    for number, image in enumerate(images):
        assert np.abs(opened.frame(number).astype(int) - np.asarray(image)).mean() < 8
    assert opened.notes == ()
    assert APPENDED in flags(data + thumbnail(photo(3)))
    broken = data.replace(b"MPF\0", b"XXX\0")
    assert open_image(broken).frames == 1
    assert APPENDED in flags(broken)


def test_large_segments_and_chunks_that_no_standard_knows() -> None:
    noise = np.random.default_rng(0).bytes(60_000)
    assert PRIVATE in flags(with_segments(photo(), segment(0xE9, noise), segment(0xEA, noise)))
    png = saved(photo(), "PNG")
    chunk = struct.pack(">I", 2 * len(noise)) + b"abCd" + 2 * noise
    assert PRIVATE in flags(png[:33] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + png[33:])
    profile = b"ICC_PROFILE\0\1\1" + noise
    assert flags(with_segments(photo(), segment(0xE2, profile), segment(0xE2, profile))) == set()


def test_many_thumbnails_and_damaged_ones_are_flagged_and_cost_little() -> None:
    small = thumbnail(photo(), size=(32, 24))
    assert EMBEDDED in flags(with_segments(photo(), *[segment(0xE7, small) for _ in range(40)]))
    assert EMBEDDED in flags(with_segments(photo(), segment(0xE7, small[: len(small) // 2])))
    huge = bytearray(small)
    at = huge.find(b"\xff\xc0")
    huge[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    assert EMBEDDED in flags(with_segments(photo(), segment(0xE7, bytes(huge))))


def test_unreferenced_parts_of_a_tiff() -> None:
    """Slices behind the first, as in stacks that only a comment describes, and images that no directory names."""
    data = saved(photo().convert("L"), "TIFF")
    assert flags(data) == set()
    assert APPENDED in flags(data + np.random.default_rng(0).bytes(480 * 360))
    assert APPENDED in flags(data + bytes(100) + thumbnail(photo(1)))
    assert flags(data + b"a few dead bytes") == set()


# -- HEIC and AVIF -----------------------------------------------------------------------------------------------------


def encoded(tmp_path: Path, suffix: str, *images: Image.Image, options: tuple[str, ...] = ()) -> bytes:
    """By libheif's own encoder."""
    if not shutil.which("heif-enc"):
        pytest.skip("libheif's heif-enc is not installed")
    if suffix == "heic":
        pytest.importorskip("pi_heif", reason="pi-heif is not installed")
    paths = []
    for number, image in enumerate(images):
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[-1])
    out = tmp_path / f"out.{suffix}"
    more = ("-A",) if suffix == "avif" else ()
    done = subprocess.run(["heif-enc", *paths, *options, *more, "-o", str(out)], capture_output=True)
    if done.returncode:
        pytest.skip("this heif-enc does not write such files")
    return out.read_bytes()


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_thumbnails_of_heic_and_avif(tmp_path: Path, suffix: str) -> None:
    data = encoded(tmp_path, suffix, photo(), options=("-t", "160"))
    assert open_image(data).notes == (EMBEDDED,)
    assert flags(data) == set()


def test_opacity_is_no_further_image(tmp_path: Path) -> None:
    assert flags(encoded(tmp_path, "heic", Image.fromarray(rgba()))) == set()
    assert flags(saved(rgba(), "AVIF")) == set()


def test_several_images_in_heic_are_frames_and_in_avif_a_flag(tmp_path: Path) -> None:
    heic = open_image(encoded(tmp_path, "heic", photo(0), photo(1)))
    assert heic.frames == 2
    assert np.abs(heic.frame(1).astype(int) - np.asarray(photo(1))).mean() < 12
    assert heic.notes == ()
    assert flags(encoded(tmp_path, "avif", photo(0), photo(1))) == {EMBEDDED}


# -- where flags go ----------------------------------------------------------------------------------------------------


def test_flags_reach_json_and_the_table(tmp_path: Path, images: Path, tiny_bundle: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(with_segments(photo(), segment(0xE1, b"Exif\0\0" + exif(thumbnail(photo(1))))) + b"PK\3\4 an archive")
    command = [sys.executable, "-m", "lcmem_onnx.cli", "scan", str(path), "--against", str(images), "--bundle", str(tiny_bundle)]
    for extra in ([], ["--isolate"] if sys.platform.startswith("linux") else []):
        done = subprocess.run([*command, "--json", "-q", *extra], capture_output=True, text=True, env=os.environ)
        (line,) = [line for line in map(json.loads, done.stdout.splitlines()) if "verdict" in line]
        assert line["notes"] == ["appended-data", "embedded-image"]
    table = subprocess.run([*command, "-q"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "300"}).stdout
    assert "not screened: appended-data, embedded-image" in " ".join(table.split())


def test_flags_of_frames_that_are_decoded_late(tmp_path: Path, images: Path, tiny_bundle: Path) -> None:
    """Beyond the frames that are decoded ahead, hidden pixels show when their turn comes."""
    from lcmem_onnx.runtime.decode_pool import FRAMES_AHEAD
    from lcmem_onnx.runtime.gallery import Gallery
    from lcmem_onnx.runtime.screening import Screener

    frames = [np.dstack([np.asarray(photo().resize((64, 48))), np.full((48, 64), 255, np.uint8)]) for _ in range(FRAMES_AHEAD + 3)]
    frames[-1] = frames[-1].copy()
    cv2.rectangle(frames[-1], (0, 0), (63, 40), (0, 0, 0), -1)
    frames[-1][:40, :, :3] = np.random.default_rng(0).integers(0, 256, (40, 64, 3))
    frames[-1][:40, :, 3] = 0
    path = tmp_path / "pages.tif"
    pages = [Image.fromarray(frame) for frame in frames]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    screener = Screener(tiny_bundle)
    with Gallery.temporary(screener.bundle) as gallery:
        list(screener.index([images], gallery))
        results = list(screener.screen([path], gallery, threshold=0.5))
    assert [result.notes for result in results[:-1]] == [()] * (len(frames) - 1)
    assert results[-1].notes == (ContentFlag.HIDDEN_PIXELS,)


@pytest.mark.parametrize("compression", [None, "tga_rle"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_data_behind_a_targa_image_are_flagged(mode: str, compression: str | None) -> None:
    if mode == "1" and compression:
        pytest.skip("Pillow does not write run lengths of 1 bit")
    data = saved(photo().convert(mode), "TGA", compression=compression)
    footer = data[-26:]
    assert footer.endswith(b"TRUEVISION-XFILE.\0")
    assert flags(data, "a.tga") == flags(data[:-26], "a.tga") == set()
    jpeg = thumbnail(photo(1))
    for altered in (data + jpeg, data[:-26] + jpeg, data[:-26] + jpeg + footer):
        assert flags(altered, "a.tga") == {APPENDED}


def test_a_postage_stamp_in_a_targa_image_is_flagged() -> None:
    pixels = saved(photo(), "TGA")[:-26]
    area = bytearray(495)
    area[:2] = struct.pack("<H", 495)
    footer = struct.pack("<II", len(pixels), 0) + b"TRUEVISION-XFILE.\0"
    assert flags(pixels + area + footer, "a.tga") == set()
    stamp = bytes([64, 48]) + photo(1).resize((64, 48)).tobytes()
    area[486:490] = struct.pack("<I", len(pixels))
    footer = struct.pack("<II", len(pixels) + len(stamp), 0) + b"TRUEVISION-XFILE.\0"
    assert flags(pixels + stamp + area + footer, "a.tga") == {APPENDED, EMBEDDED}
