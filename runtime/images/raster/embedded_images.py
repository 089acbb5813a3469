"""What a raster file holds besides its frames: thumbnails and previews in metadata, auxiliary images, data behind the end.

None of it is screened. A thumbnail that shows what its frame shows is no news (see `thumbnails`); everything else is a flag.
Thumbnails are found wherever they are, not only where they belong: all metadata is searched for the beginnings of image files, in
EXIF, XMP (base64), Photoshop resources, maker notes and chunks that no standard knows. What has no such beginning is read from its
structure: uncompressed EXIF, JFIF and JFXX thumbnails.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, PngImagePlugin

from ...errors import ImageError
from ..content_flags import PRIVATE_BYTES, ContentFlag
from ..formats import Kind, Limits
from ..preprocess import Pixels, as_array
from .containers import Contents, bmff_contents, box_contents, gif_contents, png_contents, riff_contents, targa_contents
from .heif import Heif
from .jpeg import JpegFile, decode_jpeg, read_jpeg
from .thumbnails import shows_the_same
from .tiff import ICC_PROFILE, STRIP_OFFSETS, WIDTH, Directory, Tiff, read_directories

__all__ = ["Embedded", "find_embedded"]

_SIGNATURES = re.compile(
    rb"\xff\xd8\xff[\xc0-\xfe]|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBPVP8|\0\0\0\x0cjP  \r\n\x87\n|\0\0\0\x0cJXL \r\n\x87\n"
    rb"|\xff\x4f\xff\x51\0|ftyp(?:avif|avis|heic|heix|mif1)|\0\0\0\0DICM",
    re.DOTALL,
)
_BASE64 = re.compile(rb"(?:/9j/|iVBORw0KGgo)[A-Za-z0-9+/=\s]+(?:&#x?[0-9a-fA-F]{1,4};[A-Za-z0-9+/=\s]*)*")
_ENTITY = re.compile(rb"&#x?[0-9a-fA-F]{1,4};")
_PADDING = b"\0\xff\r\n\t \x1a"
_MAX_IMAGES = 16
"""Images in metadata that are looked at; more are flagged without."""
_SMALL = 64
"""Bytes in which there is no room for an image."""
_SAMSUNG_TRAILER = b"SEFT"
_KNOWN_APPLICATIONS = {0xE0, 0xE1, 0xE2, 0xED, 0xEE}
_XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_MULTI_PART = {0xED: (b"Photoshop 3.0\0", 14, 14), 0xE1: (_XMP_EXTENSION, 75, 75), 0xEB: (b"JP", 8, 16)}
"""Content that is split over segments of one marker: how each begins, how much of the first and of the others to leave out."""


@dataclass(frozen=True)
class _Image:
    """An image in metadata: how to decode it, and the frame that it should show."""

    decode: Callable[[], Pixels]
    frame: int


class Embedded:
    """Flags on what a file holds besides its frames. Not for several threads at once.

    Args:
        notes: flags that are known from the start.
        images: images in metadata, which are flagged until a frame is found to show the same.
    """

    def __init__(self, notes: Iterable[ContentFlag] = (), images: Iterable[_Image] = ()) -> None:
        self._notes = frozenset(notes)
        self._images = list(images)
        self._different = False
        if len(self._images) > _MAX_IMAGES:
            self._images, self._different = [], True

    @property
    def notes(self) -> frozenset[ContentFlag]:
        """The flags as far as they are known."""
        flagged = self._different or bool(self._images)
        return self._notes | ({ContentFlag.EMBEDDED_IMAGE} if flagged else frozenset())

    def compare(self, frame: int, shown: Pixels) -> None:
        """Compare a decoded frame, not turned by EXIF, with the images that should show it."""
        mine = [image for image in self._images if image.frame == frame]
        self._images = [image for image in self._images if image.frame != frame]
        self._different = self._different or not all(_shows(image, as_array(shown)) for image in mine)


def _shows(image: _Image, rgb: NDArray[np.uint8]) -> bool:
    try:
        return shows_the_same(rgb, as_array(image.decode()))
    except Exception:  # noqa: BLE001  # whatever a decoder raises on a damaged thumbnail: it stays flagged
        return False


def find_embedded(data: bytes, kind: Kind, source: Any, limits: Limits) -> Embedded:
    """Look for what a file holds besides its frames. Nothing is decoded yet.

    Args:
        data: the file.
        kind: its format.
        source: its reader, whose headers have passed.
        limits: on what is decoded.
    """
    try:
        return _found(data, kind, source, limits)
    except Exception:  # noqa: BLE001  # on hostile metadata the image itself is still screened, and the flag tells of the rest
        return Embedded({ContentFlag.EMBEDDED_IMAGE})


def _found(data: bytes, kind: Kind, source: Any, limits: Limits) -> Embedded:
    if kind in (Kind.JPEG, Kind.JPEG_LS):
        return _of_jpeg(data, source, limits)
    if kind is Kind.TIFF:
        return _of_tiff(data, source, limits)
    contents = _contents(data, kind, source)
    images = [image for blob in contents.metadata for image in _images_in(blob, limits)]
    images += [_Image(_decoder(_shown_by(kind), blob, limits), 0) for blob in contents.thumbnails]
    notes = set(contents.notes)
    if _holds_something(data[contents.end :] if contents.end is not None else b""):
        notes.add(ContentFlag.APPENDED_DATA)
    if contents.unknown > PRIVATE_BYTES:
        notes.add(ContentFlag.PRIVATE_DATA)
    return Embedded(notes, images)


def _contents(data: bytes, kind: Kind, source: Any) -> Contents:
    if kind is Kind.PNG:
        return png_contents(data)
    if kind is Kind.WEBP:
        return riff_contents(data)
    if kind is Kind.GIF:
        return gif_contents(data)
    if kind in (Kind.JPEG_2000, Kind.JPEG_XL):
        return box_contents(data, source.notes if kind is Kind.JPEG_XL else ())
    if kind in (Kind.HEIC, Kind.AVIF):
        return bmff_contents(data, source.info, all_screened=kind is Kind.HEIC)
    if kind is Kind.NETPBM:
        return Contents(end=source.end)
    if kind is Kind.BMP:
        return Contents(end=_bitmap_end(data))
    return targa_contents(data) if kind is Kind.TGA else Contents()


def _bitmap_end(data: bytes) -> int | None:
    """Where a bitmap says that it ends; None where what it says cannot be so."""
    declared, pixels = int.from_bytes(data[2:6], "little"), int.from_bytes(data[10:14], "little")
    return declared if pixels < declared <= len(data) else None


def _holds_something(trailer: bytes | memoryview) -> bool:
    """Whether data behind an image are more than padding."""
    return bool(bytes(trailer).strip(_PADDING))


# -- images in metadata ------------------------------------------------------------------------------------------------


def _images_in(blob: bytes, limits: Limits, frame: int = 0) -> Iterator[_Image]:
    """Yield the images in a piece of metadata."""
    if len(blob) < _SMALL:
        return
    yield from _by_signature(blob, limits, frame)
    for found in _BASE64.finditer(blob):
        text = _ENTITY.sub(b"", found.group())
        try:
            inner = base64.b64decode(text[: len(text) - len(text.translate(None, b" \t\r\n")) % 4 or None])
        except (binascii.Error, ValueError):
            inner = b""
        yield from _by_signature(inner, limits, frame) if inner else iter((_Image(_undecodable, frame),))
    for start in _exif_starts(blob):
        yield from _uncompressed_thumbnails(blob[start:], limits, frame)


def _by_signature(blob: bytes, limits: Limits, frame: int) -> Iterator[_Image]:
    for found in _SIGNATURES.finditer(blob):
        start = found.start()
        if found.group().startswith(b"\xff\xd8"):
            header = _jpeg_at(blob, start)
            if header is not None:
                yield _Image(_decoder(_thumbnail_of_jpeg, blob[start : header.end], limits), frame)
        elif found.group().startswith(b"\x89PNG"):
            yield _Image(_decoder(_thumbnail_of_png, blob[start:], limits), frame)
        else:
            yield _Image(_undecodable, frame)


def _jpeg_at(blob: bytes, start: int) -> JpegFile | None:
    """The markers of the JPEG image that begins here; None if there are only bytes that look so."""
    try:
        header = read_jpeg(blob, start)
    except ImageError:
        return None
    return header if header.frame and min(header.size) > 0 and 1 <= header.components <= 4 else None


def _decoder(decode: Callable[[bytes, Limits], Pixels], blob: bytes, limits: Limits) -> Callable[[], Pixels]:
    return lambda: decode(blob, limits)


def _thumbnail_of_jpeg(blob: bytes, limits: Limits) -> Pixels:
    return decode_jpeg(blob, limits).renderings[0]


def _thumbnail_of_png(blob: bytes, limits: Limits) -> Pixels:
    image = PngImagePlugin.PngImageFile(BytesIO(blob))
    if image.width * image.height > limits.max_pixels:
        return _undecodable()
    return np.array(image.convert("RGB"), np.uint8)


def _shown_by(kind: Kind) -> Callable[[bytes, Limits], Pixels]:
    """What decodes a HEIC or AVIF file."""

    def decode(blob: bytes, limits: Limits) -> Pixels:
        if kind is Kind.HEIC:
            return Heif(blob, limits).decode(0).renderings[0]
        image = AvifImagePlugin.AvifImageFile(BytesIO(blob))
        return np.array(image.convert("RGB"), np.uint8) if image.width * image.height <= limits.max_pixels else _undecodable()

    return decode


def _undecodable() -> Pixels:
    raise ValueError("unsupported format of an embedded image")


def _exif_starts(blob: bytes) -> Iterator[int]:
    """Where the TIFF structure of EXIF data may begin."""
    for mark in (b"II*\0", b"MM\0*"):
        if (start := blob.find(mark, 0, 16)) >= 0:
            yield start


def _uncompressed_thumbnails(exif: bytes, limits: Limits, frame: int) -> Iterator[_Image]:
    """Thumbnails whose pixels lie in EXIF data as in a TIFF file."""
    try:
        directories = list(read_directories(exif, 16))
    except ImageError:
        return
    for number, directory in enumerate(directories):
        if isinstance(directory, Directory) and {WIDTH, STRIP_OFFSETS} <= directory.entries.keys():
            yield _Image(_decoder(_tiff_frame(number), exif, limits), frame)


def _tiff_frame(number: int) -> Callable[[bytes, Limits], Pixels]:
    return lambda blob, limits: Tiff(blob, limits, embedded=True).decode(number).renderings[0]


# -- JPEG --------------------------------------------------------------------------------------------------------------


def _of_jpeg(data: bytes, source: Any, limits: Limits) -> Embedded:
    spans: list[tuple[int, int]] = []
    images: list[_Image] = []
    unknown = 0
    for frame, (start, end) in enumerate([(0, len(data)), *source.others]):
        header = source.header if not frame else _jpeg_at(data, start)
        if header is not None:
            images += _of_segments(data, header, limits, frame)
            applications = [one for one in header.segments if 0xE0 <= one.marker <= 0xEF and one.marker not in _KNOWN_APPLICATIONS]
            unknown += sum(one.end - one.start for one in applications)
            end = header.end or end  # the index may name more than the image
        spans.append((start, end))
    notes = set()
    if unknown > PRIVATE_BYTES:
        notes.add(ContentFlag.PRIVATE_DATA)
    if source.header.end is not None and any(_more_than_a_trailer(data[a:b]) for a, b in _gaps(spans, len(data))):
        notes.add(ContentFlag.APPENDED_DATA)
    return Embedded(notes, images)


def _gaps(spans: list[tuple[int, int]], end: int) -> Iterator[tuple[int, int]]:
    """What lies between and behind parts of a file."""
    reached = 0
    for start, stop in sorted(spans):
        if start > reached:
            yield reached, start
        reached = max(reached, stop)
    if reached < end:
        yield reached, end


def _more_than_a_trailer(gap: bytes) -> bool:
    """Whether data behind a photo are more than padding, or than the few words that Samsung's cameras put there."""
    if not _holds_something(gap):
        return False
    words = len(gap) <= PRIVATE_BYTES and gap.rstrip(_PADDING).endswith(_SAMSUNG_TRAILER)
    return not words or bool(_SIGNATURES.search(gap)) or b"ftyp" in gap


def _of_segments(data: bytes, header: JpegFile, limits: Limits, frame: int) -> Iterator[_Image]:
    """Images in the segments of one JPEG image."""
    parts: dict[int, list[bytes]] = {}
    for segment in header.segments:
        if not (0xE0 <= segment.marker <= 0xEF or segment.marker == 0xFE):
            continue
        content = data[segment.start : segment.end]
        mark, first, further = _MULTI_PART.get(segment.marker, (b"", 0, 0))
        if mark and content.startswith(mark):
            seen = parts.setdefault(segment.marker, [])
            seen.append(content[further if seen else first :])
        elif segment.marker == 0xE0 and content[:5] == b"JFIF\0":
            yield from _raw_thumbnail(content[12:14], content[14:], frame)
        elif segment.marker == 0xE0 and content[:5] == b"JFXX\0":
            yield from _jfxx(content, limits, frame)
        elif not content.startswith((b"ICC_PROFILE\0", b"Adobe", b"MPF\0")):
            yield from _images_in(content, limits, frame)
    for pieces in parts.values():
        yield from _images_in(b"".join(pieces), limits, frame)


def _raw_thumbnail(size: bytes, pixels: bytes, frame: int, palette: bytes = b"") -> Iterator[_Image]:
    """A JFIF thumbnail: RGB, or indices into a palette."""
    if len(size) < 2 or not size[0] or not size[1]:
        return
    width, height = size
    depth = 1 if palette else 3
    if len(pixels) < width * height * depth:
        yield _Image(_undecodable, frame)
        return
    values = np.frombuffer(pixels, np.uint8, width * height * depth).reshape(height, width, depth)
    rgb = np.frombuffer(palette, np.uint8).reshape(256, 3)[values[..., 0]] if palette else values
    yield _Image(lambda: rgb, frame)


def _jfxx(content: bytes, limits: Limits, frame: int) -> Iterator[_Image]:
    kind = content[5] if len(content) > 5 else 0
    if kind == 0x11 and len(content) >= 8 + 768:
        yield from _raw_thumbnail(content[6:8], content[8 + 768 :], frame, content[8 : 8 + 768])
    elif kind == 0x13:
        yield from _raw_thumbnail(content[6:8], content[8:], frame)
    else:
        yield from _images_in(content, limits, frame)


# -- TIFF --------------------------------------------------------------------------------------------------------------


def _of_tiff(data: bytes, source: Tiff, limits: Limits) -> Embedded:
    """Images in what is not pixels: tags, and parts of the file that no directory names."""
    pixels, named = source.spans()
    images = [
        image
        for start, end in _gaps([*pixels, *source.values_of(ICC_PROFILE)], len(data))
        if end - start >= _SMALL
        for image in _by_signature(data[start:end], limits, 0)
    ]
    notes = set()
    unnamed = [(start, end) for start, end in _gaps([*pixels, *named], len(data)) if _holds_something(data[start:end])]
    if sum(end - start for start, end in unnamed) > PRIVATE_BYTES or any(_SIGNATURES.search(data[a:b]) for a, b in unnamed):
        notes.add(ContentFlag.APPENDED_DATA)
    for blob in source.packets():
        images += [image for image in _images_in(blob, limits) if _BASE64.search(blob)]
    return Embedded(notes, images)
