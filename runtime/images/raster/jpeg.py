"""JPEG and JPEG-LS files: their segments, the images that a multi-picture index names, and decoding.

Pillow decodes what it can (baseline and progressive, 8 bits), imagecodecs the rest: lossless JPEG, 12 bits, JPEG-LS.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from ...errors import ImageError, Reason
from ..formats import Limits
from .renderings import Decoded, color_renderings, converted, grey_renderings

__all__ = ["JpegFile", "Segment", "decode_jpeg", "read_jpeg"]

_ORIENTATION = 0x0112
_STAND_ALONE = {0x01, *range(0xD0, 0xD9)}
_SCAN, _END = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}
_LOSSLESS, _JPEG_LS = 0xC3, 0xF7
_BY_PILLOW = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""What ends entropy-coded data. Within it, 0xFF is followed by 0 or a restart marker."""
_MAX_SEGMENTS = 1 << 16
_JUNK = 1 << 16
"""Bytes between two segments that are passed over."""
_MP_ENTRIES = 0xB002
_HIERARCHICAL = {0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF}


@dataclass(frozen=True)
class Segment:
    """One marker segment: its marker's second byte, and where its content lies."""

    marker: int
    start: int
    end: int


@dataclass(frozen=True)
class JpegFile:
    """What the markers say.

    Attributes:
        segments: all with a content, in order.
        frame: the frame header's marker (SOF), 0 if there is none.
        precision: bits a sample.
        size: width and height, in pixels.
        components: how many.
        end: where the image ends, behind its EOI marker; None if that is missing.
        others: where the further images of a multi-picture file lie, (start, end) each.
    """

    segments: tuple[Segment, ...]
    frame: int
    precision: int
    size: tuple[int, int]
    components: int
    end: int | None
    others: tuple[tuple[int, int], ...]


def read_jpeg(data: bytes, start: int = 0) -> JpegFile:
    """Read the markers of the JPEG image that begins at `start`. Nothing is decoded.

    Raises:
        ImageError: damaged; it does not begin with a marker, or has more segments than any file.
    """
    if data[start : start + 2] != b"\xff\xd8":
        raise ImageError(Reason.DAMAGED, "not a JPEG file: the start marker is missing")
    segments: list[Segment] = []
    header = (0, 0, (0, 0), 0)
    position, end = start + 2, None
    while position + 2 <= len(data):
        if data[position] != 0xFF:  # decoders look for the next marker too
            position = data.find(b"\xff", position, position + _JUNK)
            if position < 0:
                break
            continue
        marker = data[position + 1]
        if marker in (0, 0xFF):
            position += 1
        elif marker == _END:
            end = position + 2
            break
        elif marker in _STAND_ALONE:
            position += 2
        else:
            length = int.from_bytes(data[position + 2 : position + 4], "big")
            segment = Segment(marker, position + 4, min(position + 2 + max(length, 2), len(data)))
            segments.append(segment)
            if marker in _FRAMES and not header[0] and length >= 8 and segment.start + 6 <= len(data):
                precision, height, width, components = struct.unpack_from(">BHHB", data, segment.start)
                header = (marker, precision, (width, height), components)
            position = segment.end
            if marker == _SCAN:
                found = _next_marker(data, position, header[0])
                position = len(data) if found is None else found
        if len(segments) > _MAX_SEGMENTS:
            raise ImageError(Reason.DAMAGED, f"it has more than {_MAX_SEGMENTS} JPEG segments")
    return JpegFile(tuple(segments), *header, end, _others(data, start, segments))


def _next_marker(data: bytes, at: int, frame: int) -> int | None:
    """Where the entropy-coded data from `at` on ends."""
    if frame == _JPEG_LS:  # its bit stuffing is another: a marker's second byte has the highest bit
        position = data.find(b"\xff", at)
        while position >= 0 and position + 1 < len(data) and data[position + 1] < 0x80:
            position = data.find(b"\xff", position + 1)
        return position if position >= 0 else None
    found = _MARKER.search(data, at)
    return found.start() if found else None


def _others(data: bytes, start: int, segments: list[Segment]) -> tuple[tuple[int, int], ...]:
    """The images that a multi-picture index (CIPA DC-007) names, but for the first."""
    for segment in segments:
        if segment.marker == 0xE2 and data[segment.start : segment.start + 4] == b"MPF\0":
            base = segment.start + 4
            try:
                return tuple(_mp_entries(data[base : segment.end], base, len(data)))
            except struct.error:
                return ()
    return ()


def _mp_entries(block: bytes, base: int, size: int) -> list[tuple[int, int]]:
    order = "<" if block[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, directory)
    for start in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, _, length, place = struct.unpack_from(order + "HHII", block, start)
        if tag != _MP_ENTRIES:
            continue
        found = []
        for entry in range(place, min(place + length, len(block) - 15), 16):
            _, bytes_of, offset = struct.unpack_from(order + "III", block, entry)
            begin = base + offset
            if offset and begin < size and bytes_of:  # the offset 0 is the file's first image
                found.append((begin, min(begin + bytes_of, size)))
        return found
    return []


def decode_jpeg(data: bytes, limits: Limits, header: JpegFile | None = None) -> Decoded:
    """Decode one JPEG or JPEG-LS image.

    Args:
        data: the image from its first byte on.
        header: its markers, where they have been read.

    Raises:
        ImageError: too-large, unsupported or damaged.
        Exception: whatever the decoders raise on damaged data.
    """
    header = header or read_jpeg(data)
    check_size(*header.size, limits)
    if header.frame and not header.size[1]:
        raise ImageError(Reason.UNSUPPORTED, "JPEG files whose height follows the pixels (DNL) are not supported")
    if header.frame in _HIERARCHICAL or header.precision > 16:
        raise ImageError(Reason.UNSUPPORTED, f"JPEG process 0x{header.frame:02X} with {header.precision} bits is not supported")
    if header.frame == _JPEG_LS:
        _check_end(header)
        return _of_samples(imagecodecs.jpegls_decode(data), header, _orientation(data, header))
    ordinary = header.frame in _BY_PILLOW and header.precision == 8 and header.components in (1, 3, 4)
    if ordinary or not header.frame:  # Pillow finds its way through more damage
        image = JpegImagePlugin.JpegImageFile(BytesIO(data))
        check_size(*image.size, limits)
        image.load()
        shown = image if image.mode in ("RGB", "L") else image.convert("RGB")
        return Decoded((shown,), image.getexif().get(_ORIENTATION, 1))
    if header.frame == _LOSSLESS:  # libjpeg converts no colors in this process
        color = "RGB" if header.components == 3 else None
        _check_end(header)
        values = imagecodecs.jpeg8_decode(data, colorspace=color, outcolorspace=color)
    else:
        _check_end(header)
        values = imagecodecs.jpeg8_decode(data)
    return _of_samples(values, header, _orientation(data, header))


def _check_end(header: JpegFile) -> None:
    """Refuse what is cut off: libjpeg silently fills it with grey, and CharLS looks for the rest for 20 seconds."""
    if header.end is None:
        raise ImageError(Reason.DAMAGED, "its JPEG data are truncated")


def check_size(width: int, height: int, limits: Limits) -> None:
    """Raise an ImageError if an image of this size is not decoded."""
    if width * height > limits.max_pixels:
        raise ImageError(Reason.TOO_LARGE, f"it is {width} x {height} pixels, more than {limits.max_pixels}")


def _of_samples(values: NDArray[Any], header: JpegFile, orientation: int) -> Decoded:
    top = (1 << header.precision) - 1
    if values.shape[:2] != header.size[::-1]:
        raise ImageError(Reason.DAMAGED, f"its JPEG data gave an array of {values.shape}")
    if values.ndim == 2:
        return Decoded(grey_renderings(values, top=top), orientation)
    if values.shape[2] == 3:
        return Decoded(color_renderings(values, top=top), orientation)
    if values.shape[2] == 4 and values.dtype == np.uint8:
        return Decoded((converted("CMYK", values),), orientation)
    raise ImageError(Reason.UNSUPPORTED, f"JPEG files of {values.shape[2]} components are not supported")


def _orientation(data: bytes, header: JpegFile) -> int:
    for segment in header.segments:
        if segment.marker == 0xE1 and data[segment.start : segment.start + 6] == b"Exif\0\0":
            exif = Image.Exif()
            exif.load(data[segment.start : segment.end])
            return int(exif.get(_ORIENTATION, 1) or 1)
    return 1
