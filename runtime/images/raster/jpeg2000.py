"""JPEG 2000 files: JP2, JPX and JPH containers and bare codestreams, each codestream a frame, decoded by OpenJPEG."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from ...errors import ImageError, Reason
from ..content_flags import ContentFlag
from ..formats import Limits
from .boxes import Box, boxes_in
from .jpeg import check_size
from .renderings import Alpha, Decoded, color_renderings, converted, flattened, grey_renderings, has_hidden_image

__all__ = ["Jpeg2000", "check_chroma"]

_CODESTREAM = b"\xff\x4f\xff\x51"
_MAX_COMPONENTS = 8
_CMYK, _SRGB, _GREY, _SYCC = 12, 16, 17, 18
_COLORS = {_CMYK: 4, _SRGB: 3, _GREY: 1, _SYCC: 3}
_OPACITY, _PREMULTIPLIED = 1, 2
_CHROMA = {((1, 1), step, step) for step in ((1, 1), (2, 1), (2, 2))}
"""Subsampling of YCbCr, (columns, rows) of each component, that OpenJPEG converts: 4:4:4, 4:2:2, 4:2:0."""


@dataclass(frozen=True)
class _Size:
    """What a codestream's SIZ segment says: size in pixels, and of each component the bits, whether it is signed, and its steps."""

    width: int
    height: int
    bits: tuple[int, ...]
    signed: tuple[bool, ...]
    steps: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Colors:
    """What a JP2 header says of the channels.

    Attributes:
        space: number of an enumerated color space; None for a profile, or where nothing is said.
        opacity: the channel that is the opacity, and whether the colors are premultiplied; None if there is none.
        defined: whether the header says at all what the channels are.
        palette: bits of a palette's entries, and how many channels it gives; None if there is none.
    """

    space: int | None = None
    opacity: tuple[int, bool] | None = None
    defined: bool = False
    palette: tuple[int, int] | None = None


class Jpeg2000:
    """A JPEG 2000 file whose headers have been read.

    Args:
        data: the file.
        limits: on what is decoded.

    Raises:
        ImageError: damaged, too-large or unsupported.
    """

    def __init__(self, data: bytes, limits: Limits) -> None:
        self._data = data
        self._limits = limits
        self._colors = _Colors()
        if data.startswith(_CODESTREAM):
            self._codestreams = [(0, len(data))]
        else:
            self._codestreams = []
            for box in boxes_in(data):
                if box.kind == b"jp2c":
                    self._codestreams.append((box.start, box.end))
                elif box.kind == b"jp2h" and not self._colors.defined:
                    self._colors = _colors(data, box)
        if not self._codestreams:
            raise ImageError(Reason.DAMAGED, "it has no JPEG 2000 codestream")
        if len(self._codestreams) > limits.max_frames:
            raise ImageError(Reason.TOO_LARGE, f"it has more than {limits.max_frames} frames")
        self._size(0)

    @property
    def frames(self) -> int:
        """How many codestreams there are."""
        return len(self._codestreams)

    def _size(self, number: int) -> _Size:
        start, end = self._codestreams[number]
        size = _read_size(self._data[start : min(end, start + 64 + 3 * _MAX_COMPONENTS)])
        check_size(size.width, size.height, self._limits)
        return size

    def decode(self, number: int) -> Decoded:
        """Decode one frame.

        Raises:
            ImageError: too-large, unsupported or damaged.
            Exception: whatever imagecodecs raises on a damaged codestream.
        """
        size = self._size(number)
        start, end = self._codestreams[number]
        if self._data.find(b"\xff\xd9", max(start, end - 1024), end) < 0:  # OpenJPEG takes a cut one for whole
            raise ImageError(Reason.DAMAGED, "its JPEG 2000 codestream is truncated")
        whole = number == 0  # with the container, whose palette and channel order apply to the first one
        check_chroma(size.steps, whole and self._colors.space == _SYCC)
        try:
            values = imagecodecs.jpeg2k_decode(self._data if whole else self._data[start:end])
        except NotImplementedError as error:
            raise ImageError(Reason.UNSUPPORTED, f"this JPEG 2000 layout is not supported ({error})") from error
        values = values[..., None] if values.ndim == 2 else values
        if values.shape[:2] != (size.height, size.width):
            raise ImageError(Reason.DAMAGED, f"its JPEG 2000 codestream gave an array of {values.shape}")
        return _rendered(values, size, self._colors if whole else _Colors())


def _read_size(source: bytes) -> _Size:
    """Read a codestream's SIZ segment."""
    if source[:4] != _CODESTREAM or len(source) < 45:
        raise ImageError(Reason.DAMAGED, "its JPEG 2000 codestream has an invalid start")
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", source, 8)
    (components,) = struct.unpack_from(">H", source, 40)
    if components > _MAX_COMPONENTS:
        raise ImageError(Reason.UNSUPPORTED, f"JPEG 2000 images of {components} components are not supported")
    if not tile_width or not tile_height or not components or right <= left or bottom <= top:
        raise ImageError(Reason.DAMAGED, "its JPEG 2000 codestream has no size")
    depths = source[42 : 42 + 3 * components : 3]
    return _Size(
        right - left,
        bottom - top,
        tuple((depth & 0x7F) + 1 for depth in depths),
        tuple(depth >= 0x80 for depth in depths),
        tuple(zip(source[43 : 43 + 3 * components : 3], source[44 : 44 + 3 * components : 3], strict=False)),
    )


def check_chroma(steps: Sequence[tuple[int, int]], declared: bool) -> None:
    """Refuse colors that OpenJPEG takes for YCbCr and does not convert: it prints a line on stderr, and leaves them as they are.

    Args:
        steps: of each component, columns and rows between two of its samples.
        declared: whether the file says that it is YCbCr; else OpenJPEG tells it by the subsampling.

    Raises:
        ImageError: unsupported.
    """
    guessed = len(steps) == 3 and steps[0][0] == steps[0][1] and steps[1][0] != 1
    if ((declared and len(steps) >= 3) or guessed) and tuple(steps[:3]) not in _CHROMA:
        raise ImageError(Reason.UNSUPPORTED, "JPEG 2000 colors with this subsampling are not supported")


def _colors(data: bytes, header: Box) -> _Colors:
    """Read a JP2 header box."""
    space, palette = None, None
    opacity: tuple[int, bool] | None = None
    defined = False
    for box in boxes_in(data, header.start, header.end):
        content = data[box.start : box.end]
        if box.kind == b"colr" and space is None and len(content) >= 7 and content[0] == 1:
            (space,) = struct.unpack_from(">I", content, 3)
        elif box.kind == b"pclr" and len(content) >= 4:
            palette = (max(content[3 : 3 + content[2]], default=7) & 0x7F) + 1, content[2]
        elif box.kind == b"cdef" and len(content) >= 2:
            defined = True
            (count,) = struct.unpack_from(">H", content)
            for channel, kind, _ in struct.iter_unpack(">3H", content[2 : 2 + 6 * count][: (len(content) - 2) // 6 * 6]):
                if kind in (_OPACITY, _PREMULTIPLIED):
                    opacity = channel, kind == _PREMULTIPLIED
    return _Colors(space, opacity, defined, palette)


def _rendered(values: NDArray[Any], size: _Size, colors: _Colors) -> Decoded:
    """Samples (height, width, channels) to renderings."""
    channels = values.shape[2]
    if colors.space is not None and colors.space not in _COLORS:
        raise ImageError(Reason.UNSUPPORTED, f"JPEG 2000 color space {colors.space} is not supported")
    bits = colors.palette[0] if colors.palette else size.bits[0]
    top = (1 << bits) - 1 if values.dtype.kind == "u" else None
    count = _COLORS.get(colors.space or 0, 1 if channels <= 2 else 3)
    if channels < count:
        raise ImageError(Reason.DAMAGED, f"its JPEG 2000 header says {count} colors, but it has {channels} channels")
    opacity = colors.opacity
    if not colors.defined and channels == count + 1:
        opacity = count, False
    alpha = None
    if opacity is not None and count <= opacity[0] < channels:
        alpha = Alpha(values[..., opacity[0]], top or (1 << (bits - 1)) - 1, opacity[1])
    notes = {ContentFlag.EXTRA_CHANNELS} if channels > count + (alpha is not None) else set()
    if count == 1:
        renderings = grey_renderings(np.ascontiguousarray(values[..., 0]), top=top, alpha=alpha)
    elif count == 4:
        renderings = flattened(converted("CMYK", 255 - values[..., :4]), alpha)
    else:
        renderings = color_renderings(values[..., :3], top=top, alpha=alpha)
    if alpha is not None and values.dtype == np.uint8 and has_hidden_image(values[..., :count], alpha):
        notes.add(ContentFlag.HIDDEN_PIXELS)
    return Decoded(renderings, 1, frozenset(notes))
