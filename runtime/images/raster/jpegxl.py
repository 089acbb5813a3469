"""JPEG XL files, decoded by libjxl through imagecodecs. The image header is read here, so that sizes are known before."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from ...errors import ImageError, Reason
from ..content_flags import ContentFlag
from ..formats import Limits
from .boxes import boxes_in
from .jpeg import check_size
from .renderings import Alpha, Decoded, color_renderings, grey_renderings, has_hidden_image

__all__ = ["JpegXl"]

_HEADER_BYTES = 4096
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_ALPHA, _SPOT, _CFA = 0, 2, 5
_MAX_CHANNELS = 16
_AT_ONCE = 1 << 26
"""Samples of an animation up to which all of its frames are decoded together, since each may need those before it."""


class _Bits:
    """Reads a codestream's header, the lowest bit of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._number = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """Read `count` bits."""
        if count > self._left:
            raise ImageError(Reason.DAMAGED, "its JPEG XL header is truncated")
        value = self._number & ((1 << count) - 1)
        self._number >>= count
        self._left -= count
        return value

    def one_of(self, *choices: tuple[int, int]) -> int:
        """Read a number that is coded in one of four ways: (bits, offset) each."""
        bits, offset = choices[self.take(2)]
        return self.take(bits) + offset


@dataclass(frozen=True)
class _Header:
    """What a JPEG XL header says."""

    width: int
    height: int
    bits: int
    animated: bool
    preview: bool
    extra: tuple[int, ...]
    premultiplied: bool


class JpegXl:
    """A JPEG XL file whose header has been read. Frames may not be decoded by two threads at once.

    Args:
        data: the file.
        limits: on what is decoded.

    Raises:
        ImageError: damaged, too-large or unsupported.
    """

    def __init__(self, data: bytes, limits: Limits) -> None:
        self._data = data
        self._header = _read_header(_codestream_head(data))
        check_size(self._header.width, self._header.height, limits)
        if set(self._header.extra) - {_ALPHA} and _ALPHA not in self._header.extra:
            raise ImageError(Reason.UNSUPPORTED, "JPEG XL images with inks or other channels without opacity are not supported")
        self.frames = self._count(limits.max_frames) if self._header.animated else 1
        self._all: NDArray[Any] | None = None

    @property
    def notes(self) -> frozenset[ContentFlag]:
        """What the header says there is besides the frames."""
        return frozenset({ContentFlag.AUXILIARY_IMAGE} if self._header.preview else set())

    def _count(self, most: int) -> int:
        """Count an animation's frames without decoding them: imagecodecs does so before it looks at the array for the pixels."""
        try:
            imagecodecs.jpegxl_decode(self._data, out=np.empty(1, np.uint8))
        except ValueError as error:
            found = re.search(r"shape=\(([\d, ]+)\)\s*$", str(error))
            if not found:
                raise ImageError(Reason.UNSUPPORTED, "the frames of a JPEG XL animation could not be counted") from error
            shape = [int(number) for number in found[1].split(",") if number.strip()]
            # (height, width) or (height, width, samples); with the number of frames before it if there are several
            several = len(shape) == 4 or (len(shape) == 3 and shape[2] > 4)
            frames = shape[0] if several else 1
            if frames > most:
                raise ImageError(Reason.TOO_LARGE, f"it has more than {most} frames") from error
            return frames
        return 1

    def decode(self, number: int) -> Decoded:
        """Decode one frame.

        Raises:
            ImageError: unsupported or damaged.
            Exception: whatever imagecodecs raises on a damaged codestream.
        """
        header = self._header
        if self.frames > 1 and self.frames * header.width * header.height <= _AT_ONCE:
            if self._all is None:
                self._all = imagecodecs.jpegxl_decode(self._data)
            values = self._all[number]
        else:
            values = imagecodecs.jpegxl_decode(self._data, index=number)
        size = (header.height, header.width)
        if values.ndim not in (2, 3) or values.shape[:2] not in (size, size[::-1]):  # libjxl turns it as the header says
            raise ImageError(Reason.DAMAGED, f"its JPEG XL codestream gave an array of {values.shape}")
        values = values[..., None] if values.ndim == 2 else values
        channels = values.shape[2]
        top = (1 << header.bits) - 1 if values.dtype.kind == "u" else None
        alpha = None
        if channels in (2, 4):
            alpha = Alpha(values[..., -1], 1.0 if top is None else top, header.premultiplied)
        notes = {ContentFlag.EXTRA_CHANNELS} if set(header.extra) - {_ALPHA} or header.extra.count(_ALPHA) > 1 else set()
        if channels <= 2:
            renderings = grey_renderings(np.ascontiguousarray(values[..., 0]), top=top, alpha=alpha)
        else:
            renderings = color_renderings(values[..., :3], top=top, alpha=alpha)
        if alpha is not None and values.dtype == np.uint8 and has_hidden_image(values[..., : channels - 1], alpha):
            notes.add(ContentFlag.HIDDEN_PIXELS)
        return Decoded(renderings, 1, frozenset(notes))


def _codestream_head(data: bytes) -> bytes:
    """The beginning of the codestream, which may lie in boxes."""
    if data[:2] == b"\xff\x0a":
        return data[:_HEADER_BYTES]
    head = b""
    for box in boxes_in(data):
        if box.kind == b"jxlc":
            return data[box.start : min(box.end, box.start + _HEADER_BYTES)]
        if box.kind == b"jxlp":  # in parts, each behind its number
            head += data[box.start + 4 : min(box.end, box.start + 4 + _HEADER_BYTES)]
            if len(head) >= _HEADER_BYTES:
                break
    return head


def _read_size(bits: _Bits) -> tuple[int, int]:
    """Width and height."""
    small = bits.take(1)

    def side() -> int:
        return 8 * (bits.take(5) + 1) if small else bits.one_of((9, 1), (13, 1), (18, 1), (30, 1))

    height, ratio = side(), bits.take(3)
    if not ratio:
        return side(), height
    numerator, denominator = _RATIOS[ratio]
    return height * numerator // denominator, height


def _skip_preview_size(bits: _Bits) -> None:
    small = bits.take(1)

    def side() -> None:
        bits.one_of((0, 16), (0, 32), (5, 1), (9, 33)) if small else bits.one_of((6, 1), (8, 65), (10, 321), (12, 1345))

    side()
    if not bits.take(3):
        side()


def _read_depth(bits: _Bits) -> int:
    """Bits a sample."""
    if not bits.take(1):
        return bits.one_of((0, 8), (0, 10), (0, 12), (6, 1))
    depth = bits.one_of((0, 32), (0, 16), (0, 24), (6, 1))
    bits.take(4)
    return depth


def _read_channel(bits: _Bits) -> tuple[int, bool]:
    """An extra channel's type, and for opacity whether the colors are premultiplied."""
    if bits.take(1):
        return _ALPHA, False
    kind = bits.one_of((0, 0), (0, 1), (4, 2), (6, 18))
    _read_depth(bits)
    bits.one_of((0, 0), (0, 3), (0, 4), (3, 1))
    bits.take(8 * bits.one_of((0, 0), (4, 0), (5, 16), (10, 48)))
    premultiplied = kind == _ALPHA and bool(bits.take(1))
    if kind == _SPOT:
        bits.take(64)
    if kind == _CFA:
        bits.one_of((0, 1), (2, 0), (4, 3), (8, 19))
    return kind, premultiplied


def _read_header(head: bytes) -> _Header:
    """Read a codestream's image header (ISO/IEC 18181-1, annexes D and E)."""
    if head[:2] != b"\xff\x0a":
        raise ImageError(Reason.DAMAGED, "its JPEG XL codestream has an invalid start")
    bits = _Bits(head[2:])
    width, height = _read_size(bits)
    animated = preview = False
    depth = 8
    extra: list[tuple[int, bool]] = []
    if not bits.take(1):
        if bits.take(1):
            bits.take(3)
            if bits.take(1):
                _read_size(bits)
            if preview := bool(bits.take(1)):
                _skip_preview_size(bits)
            if animated := bool(bits.take(1)):
                bits.one_of((0, 100), (0, 1000), (10, 1), (30, 1))
                bits.one_of((0, 1), (0, 1001), (8, 1), (10, 1))
                bits.one_of((0, 0), (3, 0), (16, 0), (32, 0))
                bits.take(1)
        depth = _read_depth(bits)
        bits.take(1)
        channels = bits.one_of((0, 0), (0, 1), (4, 2), (12, 1))
        if channels > _MAX_CHANNELS:
            raise ImageError(Reason.UNSUPPORTED, f"JPEG XL images of {channels} extra channels are not supported")
        extra = [_read_channel(bits) for _ in range(channels)]
    kinds = tuple(kind for kind, _ in extra)
    return _Header(width, height, depth, animated, preview, kinds, any(flag for _, flag in extra))
