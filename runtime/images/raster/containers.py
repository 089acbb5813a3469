"""The parts of PNG, WebP, GIF, Targa, JP2, JPEG XL, HEIC and AVIF files that are not pixels, and where such files end."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import imagecodecs

from ..content_flags import ContentFlag
from ..formats import TGA_FOOTER
from .boxes import Box, boxes_in

__all__ = [
    "Contents",
    "bmff_contents",
    "box_contents",
    "gif_contents",
    "png_contents",
    "riff_contents",
    "targa_contents",
    "without_large_texts",
]

_INFLATED = 1 << 24
"""Bytes of compressed metadata that are looked at, in a PNG file of all its texts together."""
_LARGEST_TEXT, _LARGEST_TEXTS = 1 << 20, 1 << 26
"""Bytes that a compressed text or color profile of a PNG file, and all its texts together, may inflate to: Pillow's bounds."""
_PNG_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"fdAT", b"fcTL", b"acTL", b"iCCP"}
_PNG_KNOWN = _PNG_PIXELS | {
    b"tRNS", b"cHRM", b"gAMA", b"sBIT", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"tEXt", b"zTXt", b"iTXt", b"bKGD", b"hIST", b"pHYs",
    b"sPLT", b"eXIf", b"tIME",
}  # fmt: skip
_PNG_TEXTS = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}
_HEX_PROFILE = re.compile(rb"^\s*[\w ]*\s+\d+\s+([0-9a-fA-F\s]+)$")
_WEBP_PIXELS = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"}
_JPEG_2000_BOXES = {b"jP  ", b"ftyp", b"jp2h", b"jp2c", b"rreq", b"free"}
_JPEG_XL_BOXES = {b"JXL ", b"ftyp", b"jxlc", b"jxlp", b"jxll", b"jxli", b"jbrd", b"free"}
_METADATA_BOXES = {b"Exif", b"xml ", b"uuid", b"jumb", b"brob", b"uinf", b"asoc", b"lbl "}
_BMFF_BOXES = {b"ftyp", b"meta", b"mdat", b"free", b"skip", b"moov", b"mini"}
_TARGA_AREA_BYTES, _TARGA_FOOTER_BYTES = 495, 26
_MAX_THUMBNAILS = 4
_CODED = {b"av01", b"hvc1", b"lhv1", b"avc1", b"vvc1", b"jpeg", b"j2k1", b"grid", b"iovl", b"iden", b"tmap", b"unci", b"mski"}


@dataclass(frozen=True)
class Contents:
    """What a file has besides its pixels.

    Attributes:
        metadata: pieces in which images may be.
        end: where the image ends; None where that is not known.
        unknown: bytes of parts that no standard knows.
        notes: flags.
        thumbnails: the file once more for each thumbnail, which it then shows.
    """

    metadata: tuple[bytes, ...] = ()
    end: int | None = None
    unknown: int = 0
    notes: frozenset[ContentFlag] = field(default_factory=frozenset)
    thumbnails: tuple[bytes, ...] = ()


def targa_contents(data: bytes) -> Contents:
    """Return the extension area of a Targa file, and whether it has a thumbnail; what else follows the pixels is appended."""
    end = _targa_end(data)
    if not data.endswith(TGA_FOOTER):
        return Contents(end=end)
    footer = len(data) - _TARGA_FOOTER_BYTES
    area = int.from_bytes(data[footer : footer + 4], "little")
    if not end <= area <= footer - _TARGA_AREA_BYTES:
        area = footer
    behind = area + _TARGA_AREA_BYTES if area < footer else footer
    notes = {ContentFlag.EMBEDDED_IMAGE} if any(data[area + 486 : area + 490]) and area < footer else set()
    if any(data[end:area]) or any(data[behind:footer]):
        notes.add(ContentFlag.APPENDED_DATA)
    return Contents(metadata=(data[area:behind],), notes=frozenset(notes))


def _targa_end(data: bytes) -> int:
    """Where the pixels of a Targa file end."""
    width, height = int.from_bytes(data[12:14], "little"), int.from_bytes(data[14:16], "little")
    colors = int.from_bytes(data[5:7], "little") * ((data[7] + 7) // 8) if data[1] else 0
    position, bits = 18 + data[0] + colors, data[16]
    size = (bits + 7) // 8
    if not data[2] & 8:
        return position + height * (width * size if bits >= 8 else (width * bits + 7) // 8)
    left = width * height
    while left > 0 and position < len(data):
        count = (data[position] & 127) + 1
        position += 1 + (size if data[position] & 128 else count * size)
        left -= count
    return position


def png_contents(data: bytes) -> Contents:
    """Return the chunks of a PNG file."""
    metadata: list[bytes] = []
    position, unknown, left = 8, 0, _INFLATED
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if position + 12 + length > len(data):
            return Contents(tuple(metadata), None, unknown)
        content = data[position + 8 : position + 8 + length] if kind not in _PNG_PIXELS else b""
        position += 12 + length
        if kind == b"IEND":
            return Contents(tuple(metadata), position, unknown)
        unseen = kind in _PNG_TEXTS and (left <= 0 or _text_size(kind, data[position - 4 - length : position - 4]) is None)
        if content:
            texts = [] if unseen else _texts(kind, content)
            metadata += [content, *texts]
            left -= max(sum(map(len, texts)) - length, 0)
        unknown += _LARGEST_TEXT if unseen else length if kind not in _PNG_KNOWN else 0
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
        packed_digits = re.sub(rb"\s", b"", digits[1])
        return [text, bytes.fromhex(packed_digits[: len(packed_digits) // 2 * 2].decode())]
    return [text]


def without_large_texts(data: bytes) -> bytes:
    """Return a PNG file without the texts and color profiles that are too large for Pillow, which refuses the whole file for them.

    Nothing of them shows in the image.
    """
    kept: list[bytes] = [data[:8]]
    position, total, whole = 8, 0, True
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind == b"IEND" or end > len(data):
            break
        keep = True
        if kind in _PNG_TEXTS:
            size = _text_size(kind, data[position + 8 : end - 4]) if total <= _LARGEST_TEXTS else 0
            if kind != b"iCCP" and size is not None:
                total += size
            keep = size is not None and total <= _LARGEST_TEXTS
        if keep:
            kept.append(data[position:end])
        whole = whole and keep
        position = end
    return data if whole else b"".join((*kept, data[position:]))


def _text_size(kind: bytes, content: bytes) -> int | None:
    """How long the text or profile of a chunk is, uncompressed; None for a compressed one above `_LARGEST_TEXT`."""
    _, _, text = content.partition(b"\0")
    if kind in (b"zTXt", b"iCCP"):
        text = text[1:]
    elif kind == b"iTXt" and text[:1] == b"\1":
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        return len(text)
    inflater = zlib.decompressobj()
    try:
        size = len(inflater.decompress(text, _LARGEST_TEXT))
    except zlib.error:  # which Pillow passes over
        return 0
    return None if inflater.unconsumed_tail else size


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
    position, unknown = 12, 0
    while position + 8 <= min(end, len(data)):
        kind, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if kind not in _WEBP_PIXELS:
            metadata.append(data[position + 8 : position + 8 + length])
            unknown += length if kind not in (b"EXIF", b"XMP ") else 0
        position += 8 + length + length % 2
    return Contents(tuple(metadata), end, unknown)


def gif_contents(data: bytes) -> Contents:
    """Return the extensions of a GIF file."""
    metadata: list[bytes] = []
    position = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    while position + 1 < len(data):
        mark = data[position]
        if mark == 0x3B:
            return Contents(tuple(metadata), position + 1)
        if mark == 0x21:
            pieces, position = _sub_blocks(data, position + 2)
            metadata.append(b"".join(pieces))
        elif mark == 0x2C and position + 10 < len(data):
            table = data[position + 9]
            _, position = _sub_blocks(data, position + 11 + (3 << ((table & 7) + 1) if table & 0x80 else 0))
        else:
            return Contents(tuple(metadata), position)
    return Contents(tuple(metadata), position + 1 if position < len(data) and data[position] == 0x3B else None)


def _sub_blocks(data: bytes, at: int) -> tuple[list[bytes], int]:
    """Blocks of up to 255 bytes up to an empty one, and where what follows begins."""
    pieces: list[bytes] = []
    while at < len(data) and data[at]:
        pieces.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return pieces, at + 1


def box_contents(data: bytes, notes: Collection[ContentFlag] = ()) -> Contents:
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
    position = data.find(b"\xff\x90")
    while position >= 0 and data[position : position + 2] == b"\xff\x90" and position + 12 <= len(data):
        length = int.from_bytes(data[position + 6 : position + 10], "big")
        if not length:
            return None
        position += length
    return position + 2 if position >= 0 and data[position : position + 2] == b"\xff\xd9" else None


def _unbrotlied(content: bytes) -> bytes:
    try:
        return bytes(imagecodecs.brotli_decode(content, out=_INFLATED))
    except (RuntimeError, ValueError, MemoryError):
        return content


def bmff_contents(data: bytes, info: Mapping[str, Any], *, all_screened: bool) -> Contents:
    """Return the metadata of a HEIC or AVIF file, and flags on its further images.

    Args:
        info: what the decoder gives: "exif", "xmp".
        all_screened: whether the decoder gives each image that is not hidden, but no image sequences (pi-heif for HEIC); else it
            gives the primary image or the sequence (Pillow for AVIF).
    """
    metadata = [bytes(value) for name in ("exif", "xmp") if isinstance(value := info.get(name), bytes)]
    notes: set[ContentFlag] = set()
    thumbnails: tuple[bytes, ...] = ()
    end, unknown = 0, 0
    for box in boxes_in(data):
        end = box.end
        if box.kind == b"meta":
            found = _read_items(data, box)
            if found is None:
                notes.add(ContentFlag.EMBEDDED_IMAGE)
                continue
            notes |= found.notes(all_screened)
            thumbnails = tuple(_made_primary(data, found, item) for item in found.thumbnails[:_MAX_THUMBNAILS])
            if len(found.thumbnails) > _MAX_THUMBNAILS:
                notes.add(ContentFlag.EMBEDDED_IMAGE)
        elif box.kind == b"moov" and all_screened:
            notes.add(ContentFlag.EMBEDDED_IMAGE)
        elif box.kind not in _BMFF_BOXES:
            metadata.append(data[box.start : box.end])
            unknown += box.end - box.start
            if box.kind == b"mpvd":
                notes.add(ContentFlag.APPENDED_DATA)
    return Contents(tuple(metadata), end, unknown, frozenset(notes), thumbnails)


@dataclass(frozen=True)
class _Items:
    """The items of a HEIC or AVIF file.

    Attributes:
        kinds: an item's number to its type; `hidden`: those that are not to be shown.
        links: references: their kind, from which item, to which.
        opacities: items that are the opacity of others.
        primary: the item that is shown; `primary_at`: where its number lies, (start, bytes).
        link_names: where the kinds of the references lie.
    """

    kinds: Mapping[int, bytes]
    hidden: frozenset[int]
    links: tuple[tuple[bytes, int, tuple[int, ...]], ...]
    opacities: frozenset[int]
    primary: int
    primary_at: tuple[int, int]
    link_names: tuple[int, ...]

    def _parts_of(self, items: set[int]) -> set[int]:
        """The items and all that they are made from, as tiles of a grid."""
        found = set(items)
        for _ in range(8):
            found |= {target for kind, origin, targets in self.links if kind == b"dimg" and origin in found for target in targets}
        return found

    @property
    def thumbnails(self) -> tuple[int, ...]:
        """Thumbnails of the primary image."""
        return tuple(origin for kind, origin, targets in self.links if kind == b"thmb" and self.primary in targets)

    def notes(self, all_screened: bool) -> set[ContentFlag]:
        """Flags on images that are neither screened, nor a part of what is, nor its opacity, nor a thumbnail of the primary one."""
        images = {item for item, kind in self.kinds.items() if kind in _CODED}
        others = images - self._parts_of({self.primary}) - self._parts_of({*self.thumbnails, *self.opacities})
        mapped = self._parts_of({item for item, kind in self.kinds.items() if kind == b"tmap"})
        auxiliary = self._parts_of({origin for kind, origin, _ in self.links if kind == b"auxl"}) | mapped
        rest = others - auxiliary
        if all_screened:
            rest -= self._parts_of(rest - self.hidden - {origin for kind, origin, _ in self.links if kind == b"thmb"})
        found = {ContentFlag.AUXILIARY_IMAGE} if others & auxiliary else set()
        return found | ({ContentFlag.EMBEDDED_IMAGE} if rest else set())


def _made_primary(data: bytes, items: _Items, item: int) -> bytes:
    """A copy of the file in which another item is the primary one, and no thumbnail."""
    copy = bytearray(data)
    start, length = items.primary_at
    copy[start : start + length] = item.to_bytes(length, "big")
    for position in items.link_names:
        if copy[position : position + 4] == b"thmb":
            copy[position : position + 4] = b"free"
    return bytes(copy)


def _read_items(data: bytes, meta: Box) -> _Items | None:
    """Read a meta box; None if it cannot be."""
    kinds: dict[int, bytes] = {}
    hidden: set[int] = set()
    links: list[tuple[bytes, int, tuple[int, ...]]] = []
    names: list[int] = []
    opacities: frozenset[int] = frozenset()
    primary, primary_at = 0, (0, 0)
    try:
        for box in boxes_in(data, meta.start + 4, meta.end):
            version = data[box.start]
            if box.kind == b"pitm":
                primary_at = box.start + 4, 2 if version == 0 else 4
                primary = int.from_bytes(data[primary_at[0] : sum(primary_at)], "big")
            elif box.kind == b"iinf":
                for entry in boxes_in(data, box.start + (6 if version == 0 else 8), box.end):
                    item, kind = _item(data, entry)
                    kinds[item] = kind
                    if data[entry.start + 3] & 1:
                        hidden.add(item)
            elif box.kind == b"iref":
                for entry in boxes_in(data, box.start + 4, box.end):
                    links.append(_link(data, entry, 2 if version == 0 else 4))
                    names.append(entry.offset + 4)
            elif box.kind == b"iprp":
                opacities = _opacities(data, box)
    except (IndexError, struct.error):
        return None
    return _Items(kinds, frozenset(hidden), tuple(links), opacities, primary, primary_at, tuple(names))


def _item(data: bytes, entry: Box) -> tuple[int, bytes]:
    """An item's number and type."""
    width = 2 if data[entry.start] < 3 else 4
    position = entry.start + 4
    return int.from_bytes(data[position : position + width], "big"), data[position + width + 2 : position + width + 6]


def _link(data: bytes, entry: Box, width: int) -> tuple[bytes, int, tuple[int, ...]]:
    """A reference: its kind, from which item, to which."""
    form = "H" if width == 2 else "I"
    origin, count = struct.unpack_from(f">{form}H", data, entry.start)
    return entry.kind, origin, struct.unpack_from(f">{count}{form}", data, entry.start + width + 2)


def _opacities(data: bytes, iprp: Box) -> frozenset[int]:
    """Items that a property says are the opacity of others."""
    meant: set[int] = set()
    found: set[int] = set()
    for box in boxes_in(data, iprp.start, iprp.end):
        if box.kind == b"ipco":
            for number, prop in enumerate(boxes_in(data, box.start, box.end), 1):
                name = data[prop.start + 4 : prop.end].partition(b"\0")[0] if prop.kind == b"auxC" else b""
                if name.endswith((b"alpha", b"auxid:1")):
                    meant.add(number)
        elif box.kind == b"ipma":
            version, flags = data[box.start], data[box.start + 3]
            (count,) = struct.unpack_from(">I", data, box.start + 4)
            position = box.start + 8
            width, wide = (2 if version < 1 else 4), flags & 1
            for _ in range(min(count, 1 << 16)):
                item = int.from_bytes(data[position : position + width], "big")
                properties = data[position + width]
                position += width + 1
                for _ in range(properties):
                    number = int.from_bytes(data[position : position + 1 + wide], "big") & (0x7FFF if wide else 0x7F)
                    position += 1 + wide
                    if number in meant:
                        found.add(item)
    return frozenset(found)
