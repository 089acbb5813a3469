"""The parts of PNG, WebP, GIF, JP2, JPEG XL, HEIC and AVIF files that are not pixels, and where such files end."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import imagecodecs

from .boxes import Box, boxes_in
from .notes import Note

__all__ = ["Contents", "bmff_contents", "box_contents", "gif_contents", "png_contents", "riff_contents"]

_INFLATED = 1 << 24
"""Bytes of compressed metadata that are looked at."""
_PNG_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"fdAT", b"fcTL", b"acTL", b"iCCP"}
_PNG_KNOWN = _PNG_PIXELS | {
    b"tRNS", b"cHRM", b"gAMA", b"sBIT", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"tEXt", b"zTXt", b"iTXt", b"bKGD", b"hIST", b"pHYs",
    b"sPLT", b"eXIf", b"tIME",
}  # fmt: skip
_HEX_PROFILE = re.compile(rb"^\s*[\w ]*\s+\d+\s+([0-9a-fA-F\s]+)$")
_WEBP_PIXELS = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"}
_JPEG_2000_BOXES = {b"jP  ", b"ftyp", b"jp2h", b"jp2c", b"rreq", b"free"}
_JPEG_XL_BOXES = {b"JXL ", b"ftyp", b"jxlc", b"jxlp", b"jxll", b"jxli", b"jbrd", b"free"}
_METADATA_BOXES = {b"Exif", b"xml ", b"uuid", b"jumb", b"brob", b"uinf", b"asoc", b"lbl "}
_BMFF_BOXES = {b"ftyp", b"meta", b"mdat", b"free", b"skip", b"moov", b"mini"}
_CODED = {b"av01", b"hvc1", b"lhv1", b"avc1", b"vvc1", b"jpeg", b"j2k1", b"grid", b"iovl", b"iden", b"tmap", b"unci", b"mski"}


@dataclass(frozen=True)
class Contents:
    """What a file has besides its pixels.

    Attributes:
        metadata: pieces in which images may be.
        end: where the image ends; None where that is not known.
        unknown: bytes of parts that no standard knows.
        notes: flags.
    """

    metadata: tuple[bytes, ...] = ()
    end: int | None = None
    unknown: int = 0
    notes: frozenset[Note] = field(default_factory=frozenset)


def png_contents(data: bytes) -> Contents:
    """Return the chunks of a PNG file."""
    metadata: list[bytes] = []
    at, unknown = 8, 0
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            return Contents(tuple(metadata), None, unknown)
        content = data[at + 8 : at + 8 + length] if kind not in _PNG_PIXELS else b""
        at += 12 + length
        if kind == b"IEND":
            return Contents(tuple(metadata), at, unknown)
        if content:
            metadata += [content, *_texts(kind, content)]
        unknown += length if kind not in _PNG_KNOWN else 0
    return Contents(tuple(metadata), None, unknown)


def _texts(kind: bytes, content: bytes) -> list[bytes]:
    """What the text chunks hold in a form that hides it: deflated, or as hexadecimal digits."""
    _, _, text = content.partition(b"\0")
    if kind == b"zTXt":
        text = _inflated(text[1:])
    elif kind == b"iTXt" and len(text) > 2:
        packed = text[0] == 1
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
        text = _inflated(text) if packed else text
    elif kind != b"tEXt":
        return []
    digits = _HEX_PROFILE.match(text)
    if digits:
        packed_digits = digits[1].translate(None, b" \t\r\n")
        return [text, bytes.fromhex(packed_digits[: len(packed_digits) // 2 * 2].decode())]
    return [text]


def _inflated(text: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(text, _INFLATED)
    except zlib.error:
        return b""


def riff_contents(data: bytes) -> Contents:
    """Return the chunks of a WebP file."""
    end = 8 + int.from_bytes(data[4:8], "little")
    end += end % 2
    metadata: list[bytes] = []
    at, unknown = 12, 0
    while at + 8 <= min(end, len(data)):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind not in _WEBP_PIXELS:
            metadata.append(data[at + 8 : at + 8 + length])
            unknown += length if kind not in (b"EXIF", b"XMP ") else 0
        at += 8 + length + length % 2
    return Contents(tuple(metadata), end, unknown)


def gif_contents(data: bytes) -> Contents:
    """Return the extensions of a GIF file."""
    metadata: list[bytes] = []
    at = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    while at + 1 < len(data):
        mark = data[at]
        if mark == 0x3B:
            return Contents(tuple(metadata), at + 1)
        if mark == 0x21:
            pieces, at = _sub_blocks(data, at + 2)
            metadata.append(b"".join(pieces))
        elif mark == 0x2C and at + 10 < len(data):
            table = data[at + 9]
            _, at = _sub_blocks(data, at + 11 + (3 << ((table & 7) + 1) if table & 0x80 else 0))
        else:
            return Contents(tuple(metadata), at)
    return Contents(tuple(metadata), at + 1 if at < len(data) and data[at] == 0x3B else None)


def _sub_blocks(data: bytes, at: int) -> tuple[list[bytes], int]:
    """Blocks of up to 255 bytes up to an empty one, and where what follows begins."""
    pieces: list[bytes] = []
    while at < len(data) and data[at]:
        pieces.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return pieces, at + 1


def box_contents(data: bytes, notes: Collection[Note] = ()) -> Contents:
    """Return the boxes of a JP2 or JPEG XL file; of a bare codestream, where it ends if its last bytes say so."""
    if data[:4] == b"\xff\x4f\xff\x51":
        return Contents(end=_codestream_end(data), notes=frozenset(notes))
    if data[:2] == b"\xff\x0a":  # its end shows in decoding only
        return Contents(notes=frozenset(notes))
    metadata: list[bytes] = []
    end, unknown = 0, 0
    for box in boxes_in(data):
        end = box.end
        if box.kind in _JPEG_2000_BOXES | _JPEG_XL_BOXES:
            continue
        content = data[box.start : box.end]
        if box.kind == b"brob" and len(content) > 4:
            content = _unbrotlied(content[4:])
        metadata.append(content)
        unknown += len(content) if box.kind not in _METADATA_BOXES else 0
    return Contents(tuple(metadata), end, unknown, frozenset(notes))


def _codestream_end(data: bytes) -> int | None:
    """Where a JPEG 2000 codestream ends: behind the tile parts, whose lengths are given."""
    at = data.find(b"\xff\x90")
    while at >= 0 and data[at : at + 2] == b"\xff\x90" and at + 12 <= len(data):
        length = int.from_bytes(data[at + 6 : at + 10], "big")
        if not length:
            return None
        at += length
    return at + 2 if at >= 0 and data[at : at + 2] == b"\xff\xd9" else None


def _unbrotlied(content: bytes) -> bytes:
    try:
        return bytes(imagecodecs.brotli_decode(content, out=_INFLATED))
    except (RuntimeError, ValueError, MemoryError):
        return content


def bmff_contents(data: bytes, info: Mapping[str, Any], *, screened_tracks: bool) -> Contents:
    """Return the metadata of a HEIC or AVIF file, and flags on its further images.

    Args:
        info: what the decoder gives: "exif", "xmp".
        screened_tracks: whether the decoder gives the frames of an image sequence.
    """
    metadata = [bytes(value) for name in ("exif", "xmp") if isinstance(value := info.get(name), bytes)]
    notes: set[Note] = set()
    end, unknown = 0, 0
    for box in boxes_in(data):
        end = box.end
        if box.kind == b"meta":
            notes |= _further_images(data, box)
        elif box.kind == b"moov" and not screened_tracks:
            notes.add(Note.EMBEDDED_IMAGE)
        elif box.kind not in _BMFF_BOXES:
            metadata.append(data[box.start : box.end])
            unknown += box.end - box.start
            if box.kind == b"mpvd":
                notes.add(Note.APPENDED_DATA)
    return Contents(tuple(metadata), end, unknown, frozenset(notes))


def _further_images(data: bytes, meta: Box) -> set[Note]:
    """Flags on images that are not the primary one, nor a part of it, nor its opacity."""
    items: dict[int, bytes] = {}
    primary = 0
    links: list[tuple[bytes, int, tuple[int, ...]]] = []
    opacity = False
    for box in boxes_in(data, meta.start + 4, meta.end):
        content = data[box.start : box.end]
        try:
            if box.kind == b"pitm":
                primary = int.from_bytes(content[4 : 6 if content[0] == 0 else 8], "big")
            elif box.kind == b"iinf":
                items = _items(data, box)
            elif box.kind == b"iref":
                links = _links(data, box)
            elif box.kind == b"iprp":
                opacity = b"auxid:1\0" in content or b":alpha\0" in content
        except (IndexError, struct.error):
            return {Note.EMBEDDED_IMAGE}
    shown = {primary}
    for _ in range(8):  # tiles of the primary image, and of what it is made from
        shown |= {target for kind, origin, targets in links if kind == b"dimg" and origin in shown for target in targets}
    helpers = {origin for kind, origin, targets in links if kind in (b"auxl", b"thmb") and shown.intersection(targets)}
    derived = {target for kind, origin, targets in links if kind == b"dimg" and items.get(origin) == b"tmap" for target in targets}
    helpers |= derived | {item for item, kind in items.items() if kind == b"tmap"}
    helpers |= {target for kind, origin, targets in links if kind == b"dimg" and origin in helpers for target in targets}
    notes: set[Note] = set()
    others = {item for item, kind in items.items() if kind in _CODED} - shown
    auxiliary = others & helpers
    if len(auxiliary) > opacity:
        notes.add(Note.AUXILIARY_IMAGE)
    if others - helpers:
        notes.add(Note.EMBEDDED_IMAGE)
    return notes


def _items(data: bytes, box: Box) -> dict[int, bytes]:
    """Items' numbers and types."""
    start = box.start + (6 if data[box.start] == 0 else 8)
    items: dict[int, bytes] = {}
    for entry in boxes_in(data, start, box.end):
        version = data[entry.start]
        if entry.kind != b"infe" or version < 2:
            continue
        at = entry.start + 4
        width = 2 if version == 2 else 4
        items[int.from_bytes(data[at : at + width], "big")] = data[at + width + 2 : at + width + 6]
    return items


def _links(data: bytes, box: Box) -> list[tuple[bytes, int, tuple[int, ...]]]:
    """References: their kind, from which item, to which."""
    form, width = (">H", 2) if data[box.start] == 0 else (">I", 4)
    links = []
    for entry in boxes_in(data, box.start + 4, box.end):
        (origin,) = struct.unpack_from(form, data, entry.start)
        (count,) = struct.unpack_from(">H", data, entry.start + width)
        targets = struct.unpack_from(f">{count}{form[1]}", data, entry.start + width + 2)
        links.append((entry.kind, origin, targets))
    return links
