"""One compressed frame of a DICOM object to stored values: JPEG, JPEG-LS, JPEG 2000 and HTJ2K, by imagecodecs.

imagecodecs (BSD) alone decodes what GDCM, pyjpegls and pylibjpeg-openjpeg do together, and 12-bit JPEG Extended, which
neither they nor Pillow do; pylibjpeg-libjpeg, which does, is GPL. A codestream has a size of its own, which may differ
from its DICOM header's by any factor, so it is read and compared before anything is allocated for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.pixels.processing import convert_color_space

from ...errors import ImageError, Reason
from ..raster.jpeg import read_jpeg
from ..raster.jpeg2000 import check_chroma

__all__ = ["COMPRESSED", "Expected", "decode_codestream"]

_JPEG = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1}
_JPEG_LS = {uid.JPEGLSLossless, uid.JPEGLSNearLossless}
_JPEG_2000 = {uid.JPEG2000Lossless, uid.JPEG2000}
_HTJ2K = {uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K}
COMPRESSED: frozenset[str] = frozenset(str(syntax) for syntax in _JPEG | _JPEG_LS | _JPEG_2000 | _HTJ2K)
"""Transfer syntaxes that `decode_codestream` reads."""

_LOSSLESS = {
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
}
_LOSSLESS_FRAME = 0xC3
_JPEG_LS_FRAME = 0xF7
_FRAMES = {0xC0, 0xC1, 0xC2, _LOSSLESS_FRAME, _JPEG_LS_FRAME}
_CODING_STYLE, _START_OF_DATA = 0x52, 0x93
_SYCC = b"colr\x01\0\0\0\0\0\x12"
"""A JP2 file's box that says its colors are sYCC."""
_STAND_ALONE = {0x01, *range(0xD0, 0xD9)}
_COMPONENTS = 4
"""Of a JPEG 2000 codestream that are looked at: DICOM has 1 or 3."""


@dataclass(frozen=True)
class Expected:
    """What the DICOM header says of each frame: sizes in pixels, and where in a word its values are."""

    rows: int
    columns: int
    samples: int
    bits_stored: int
    signed: bool
    photometric: str
    high_bit: int
    bits_allocated: int


@dataclass(frozen=True)
class _Header:
    """What a codestream says of itself.

    Attributes:
        ycc: whether its samples, as the decoder gives them, are YCbCr (True) or RGB (False); None where it does not say.
    """

    rows: int
    columns: int
    samples: int
    precision: int
    lossless: bool = False
    ycc: bool | None = None


def decode_codestream(source: bytes, syntax: str, expected: Expected) -> NDArray[Any]:
    """Decode one frame.

    Args:
        source: the frame's codestream.
        syntax: UID of a transfer syntax in `COMPRESSED`.
        expected: the DICOM header's figures.

    Returns:
        Stored values, (rows, columns), or RGB, (rows, columns, 3): uint8 or uint16, int32 where the header says signed.

    Raises:
        ImageError: the codestream is no such thing, or of another size than the header says.
        Exception: anything that imagecodecs raises on a damaged codestream.
    """
    header = _jpeg_header(source) if syntax in _JPEG | _JPEG_LS else _jpeg2000_header(source)
    found, wanted = (header.rows, header.columns, header.samples), (expected.rows, expected.columns, expected.samples)
    if found != wanted:
        raise ImageError(Reason.DAMAGED, f"its codestream is {_size(found)}, but its header says {_size(wanted)}")
    if syntax in _JPEG:
        values = _decode_jpeg(source, header, expected)
    elif syntax in _JPEG_LS:
        values = _to_rgb(_decode_jpegls(source), expected)
    else:  # OpenJPEG reads HTJ2K too
        values = imagecodecs.jpeg2k_decode(source)
        if expected.samples == 3 and header.ycc is None:
            values = _to_rgb(values, expected)
    if values.shape != (wanted if expected.samples > 1 else wanted[:2]):
        raise ImageError(Reason.DAMAGED, f"its codestream gave an array of {values.shape} instead of {_size(wanted)}")
    bits = header.precision
    # A codestream of more bits than are stored holds whole words: the stored bits are where the header has them, and the sign is
    # the highest of them, or repeated above it.
    if bits > expected.bits_stored and (expected.signed or syntax in _LOSSLESS or header.lossless):
        values = values >> max(expected.high_bit + 1 - expected.bits_stored, 0)
        bits = expected.bits_stored
    return _stored(values, bits, expected.signed)


def _size(figures: tuple[int, int, int]) -> str:
    return f"{figures[1]} x {figures[0]} pixels of {figures[2]} samples"


def _decode_jpeg(source: bytes, header: _Header, expected: Expected) -> NDArray[Any]:
    if header.samples != 3:
        return imagecodecs.jpeg8_decode(source)
    if header.lossless:  # here libjpeg converts no colours, and the markers of such streams are not to be trusted
        return _to_rgb(imagecodecs.jpeg8_decode(source, colorspace="RGB", outcolorspace="RGB"), expected)
    # What the codestream's own markers say goes before the DICOM header, which often still tells of the time before
    # compression.
    ycc = expected.photometric.startswith("YBR") if header.ycc is None else header.ycc
    return imagecodecs.jpeg8_decode(source, colorspace="YCBCR" if ycc else "RGB", outcolorspace="RGB")


def _decode_jpegls(source: bytes) -> NDArray[Any]:
    """Decode a JPEG-LS codestream; where its end marker is missing, with one added: CharLS looks for it for many seconds.

    Raises:
        ImageError: pixels are missing too.
    """
    if read_jpeg(source).end is not None:
        return imagecodecs.jpegls_decode(source)
    # A fragment of odd length has a zero behind it, and of the marker one byte may be left.
    for rest in (source, source.removesuffix(b"\0").removesuffix(b"\xff")):
        try:
            return imagecodecs.jpegls_decode(rest + b"\xff\xd9")
        except imagecodecs.JpeglsError:
            continue
    raise ImageError(Reason.DAMAGED, "its JPEG-LS codestream is cut off")


def _to_rgb(values: NDArray[Any], expected: Expected) -> NDArray[Any]:
    """What a codestream that does not say its colors holds: YCbCr if the header says YBR_FULL, else RGB."""
    if expected.photometric in ("YBR_FULL", "YBR_FULL_422"):
        return convert_color_space(values, "YBR_FULL", "RGB")
    return values


def _stored(values: NDArray[Any], bits: int, signed: bool) -> NDArray[Any]:
    """Values of `bits` bits, as the header's Pixel Representation means them.

    Neither JPEG nor JPEG-LS tells whether a value is signed, and JPEG 2000 often tells it wrongly: the lowest bits are
    taken anew.
    """
    if not signed:
        unsigned = values.view(f"u{values.dtype.itemsize}")
        return unsigned if bits >= 8 * values.dtype.itemsize else unsigned & ((1 << bits) - 1)
    sign = 1 << (bits - 1)
    low = values.astype(np.int64) & ((1 << bits) - 1)
    return ((low ^ sign) - sign).astype(np.int32)


def _jpeg_header(source: bytes) -> _Header:
    """The frame header of a JPEG or JPEG-LS codestream."""
    position, adobe, jfif = 2, None, False
    if source[:2] != b"\xff\xd8":
        raise ImageError(Reason.DAMAGED, "its frame does not begin as a JPEG codestream does")
    while position + 4 <= len(source):
        if source[position] != 0xFF:
            break
        marker = source[position + 1]
        if marker == 0xFF or marker in _STAND_ALONE:
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(source[position + 2 : position + 4], "big")
        body = source[position + 4 : position + 2 + length]
        if marker in _FRAMES and len(body) >= 6:
            precision, rows, columns, samples = struct.unpack(">BHHB", body[:6])
            ids, sampling = body[6::3][:samples], body[7::3][:samples]
            ycc: bool | None = None
            if adobe is not None:
                ycc = adobe != 0
            elif ids.upper() == b"RGB":
                ycc = False
            elif jfif or len(set(sampling)) > 1:  # RGB is never coded with fewer samples of one color than of another
                ycc = True
            return _Header(rows, columns, samples, precision, marker == _LOSSLESS_FRAME, ycc)
        if marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            adobe = body[11]
        jfif = jfif or (marker == 0xE0 and body[:4] == b"JFIF")
        position += 2 + max(length, 2)
    raise ImageError(Reason.DAMAGED, "its JPEG codestream has no frame header that could be read")


def _jpeg2000_header(source: bytes) -> _Header:
    """The SIZ segment of a JPEG 2000 codestream, bare (as DICOM wants it) or in a JP2 file (as it occurs)."""
    start = source.find(b"\xff\x4f\xff\x51") if source[4:8] == b"jP  " else 0
    segment = source[start : start + 45]
    if start < 0 or segment[:4] != b"\xff\x4f\xff\x51" or len(segment) < 43:
        raise ImageError(Reason.DAMAGED, "its frame does not begin as a JPEG 2000 codestream does")
    right, bottom, left, top = struct.unpack(">4I", segment[8:24])
    tile_columns, tile_rows = struct.unpack(">2I", segment[24:32])
    samples = int.from_bytes(segment[40:42], "big")
    if not tile_columns or not tile_rows:
        raise ImageError(Reason.DAMAGED, "its JPEG 2000 codestream has tiles of no size")
    sycc = _SYCC in source[:start]
    components = source[start + 42 : start + 42 + 3 * min(samples, _COMPONENTS)]
    check_chroma(tuple(zip(components[1::3], components[2::3], strict=False)), sycc)
    # The decoder undoes the transform, and converts what a JP2 file says is YCbCr: then it gives RGB, whatever DICOM's header says.
    rgb = sycc or _component_transform(source, start + 2)
    return _Header(bottom - top, right - left, samples, (segment[42] & 0x7F) + 1, ycc=False if rgb else None)


def _component_transform(source: bytes, at: int) -> bool:
    """Whether a JPEG 2000 codestream's components are transformed, by its coding style (COD), its first tile's if that has one."""
    transformed = False
    while at + 9 <= len(source) and source[at] == 0xFF and source[at + 1] != _START_OF_DATA:
        if source[at + 1] == _CODING_STYLE:
            transformed = source[at + 8] == 1
        at += 2 + max(int.from_bytes(source[at + 2 : at + 4], "big"), 2)
    return transformed
