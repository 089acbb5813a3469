"""PBM, PGM, PPM, PAM and PFM files. A binary file may hold several images, one behind the other: each is a frame."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ImageError, Reason
from ..content_flags import ContentFlag
from ..formats import Limits
from .jpeg import check_size
from .renderings import Alpha, Decoded, color_renderings, grey_renderings, has_hidden_image

__all__ = ["Netpbm"]

_SPACE = rb"(?:[ \t\r\n\v\f]|#[^\r\n]*[\r\n])"
_PLAIN_HEADER = re.compile(rb"P([1-6])" + _SPACE + rb"+(\d{1,9})" + _SPACE + rb"+(\d{1,9})")
_MAXIMUM = re.compile(_SPACE + rb"+(\d{1,9})")
_FLOAT_HEADER = re.compile(rb"P([Ff])\s+(\d{1,9})\s+(\d{1,9})\s+([-+0-9.eE]{1,40})[ \t\r]?\n")
_HEADER_BYTES = 4096
_ANOTHER = re.compile(rb"P[1-7Ff][\s#]")
_SEPARATORS = b" \t\r\n\v\f"
_COLORS = {"BLACKANDWHITE": 1, "GRAYSCALE": 1, "RGB": 3}


@dataclass(frozen=True)
class _Image:
    """One image's header, and where its samples lie."""

    kind: str
    width: int
    height: int
    channels: int
    top: int
    start: int
    end: int
    alpha: bool = False
    order: str = ">"

    @property
    def dtype(self) -> np.dtype[Any]:
        if self.kind in "fF":
            return np.dtype(self.order + "f4")
        return np.dtype("u1") if self.top < 256 else np.dtype(">u2")


class Netpbm:
    """A file whose headers have been read.

    Args:
        data: the file.
        limits: on what is decoded.

    Raises:
        ImageError: damaged, too-large or unsupported.
    """

    def __init__(self, data: bytes, limits: Limits) -> None:
        self._data = data
        self._images: list[_Image] = []
        position = 0
        while True:
            if len(self._images) == limits.max_frames:
                raise ImageError(Reason.TOO_LARGE, f"it has more than {limits.max_frames} frames")
            image = _read_header(data, position)
            check_size(image.width, image.height, limits)
            self._images.append(image)
            position = self.end = image.end
            if image.kind in "123" or not _ANOTHER.match(data, position):
                break

    @property
    def frames(self) -> int:
        """How many images there are."""
        return len(self._images)

    def decode(self, number: int) -> Decoded:
        """Decode one frame.

        Raises:
            ImageError: damaged or not-finite.
        """
        image = self._images[number]
        values = _samples(self._data, image)
        colors = image.channels - image.alpha
        alpha = Alpha(values[..., -1], image.top) if image.alpha else None
        top = None if image.kind in "fF" else image.top
        if colors == 1:
            grey = np.ascontiguousarray(values[..., 0])
            renderings = grey_renderings(grey, top=top, inverted=image.kind in "14", alpha=alpha)
        else:
            renderings = color_renderings(np.ascontiguousarray(values[..., :3]), top=top, alpha=alpha)
        hidden = alpha is not None and values.dtype == np.uint8 and has_hidden_image(values[..., :colors], alpha)
        return Decoded(renderings, 1, frozenset({ContentFlag.HIDDEN_PIXELS} if hidden else set()))


def _read_header(data: bytes, at: int) -> _Image:
    if data[at : at + 2] == b"P7":
        return _read_arbitrary(data, at)
    head = data[at : at + _HEADER_BYTES]
    if found := _FLOAT_HEADER.match(head):
        return _read_float(found, at, len(data))
    found = _PLAIN_HEADER.match(head)
    if not found:
        raise ImageError(Reason.DAMAGED, f"it has no readable Netpbm header at byte {at}")
    kind, width, height = found[1].decode(), int(found[2]), int(found[3])
    behind, top = found.end(), 1
    if kind not in "14":
        maximum = _MAXIMUM.match(head, behind)
        if not maximum:
            raise ImageError(Reason.DAMAGED, "its Netpbm header has no largest value")
        behind, top = maximum.end(), int(maximum[1])
    channels = 3 if kind in "36" else 1
    return _checked(kind, width, height, channels, top, at + behind + 1, data)


def _read_float(found: re.Match[bytes], at: int, length: int) -> _Image:
    try:
        scale = float(found[4])
    except ValueError as error:
        raise ImageError(Reason.DAMAGED, "its PFM header has no readable scale") from error
    kind, width, height = found[1].decode(), int(found[2]), int(found[3])
    channels = 3 if kind == "F" else 1
    start = at + found.end()
    end = start + 4 * width * height * channels
    if not width or not height or end > length:
        raise ImageError(Reason.DAMAGED, f"truncated: {width} x {height} pixels require {end - start} bytes")
    return _Image(kind, width, height, channels, 1, start, end, order="<" if scale < 0 else ">")


def _read_arbitrary(data: bytes, at: int) -> _Image:
    """A PAM header: lines of a keyword and a value."""
    end = data.find(b"ENDHDR\n", at, at + _HEADER_BYTES)
    if end < 0:
        if data[at : at + 6] == b"P7 332":
            raise ImageError(Reason.UNSUPPORTED, "XV thumbnails (P7 332) are not supported")
        raise ImageError(Reason.DAMAGED, "its PAM header has no end")
    fields: dict[str, str] = {}
    for line in data[at:end].decode("ascii", "replace").splitlines()[1:]:
        word, _, value = line.partition(" ")
        if word and not word.startswith("#"):
            fields[word] = f"{fields.get(word, '')} {value.strip()}".strip()
    try:
        width, height, depth, top = (int(fields[word]) for word in ("WIDTH", "HEIGHT", "DEPTH", "MAXVAL"))
    except (KeyError, ValueError) as error:
        raise ImageError(Reason.DAMAGED, "its PAM header lacks a readable size") from error
    name = fields.get("TUPLTYPE", "")
    colors = _COLORS.get(name.removesuffix("_ALPHA"), 1 if depth <= 2 else 3)
    alpha = depth == colors + 1
    if depth not in (colors, colors + 1):
        raise ImageError(Reason.UNSUPPORTED, f"PAM images of type {name[:40]!r} with {depth} channels are not supported")
    return _checked("7", width, height, depth, top, end + 7, data, alpha)


def _checked(kind: str, width: int, height: int, channels: int, top: int, start: int, data: bytes, alpha: bool = False) -> _Image:
    """A header whose figures are possible, and whose samples are there."""
    if width < 1 or height < 1 or not 1 <= top <= 0xFFFF:
        raise ImageError(Reason.DAMAGED, f"its Netpbm header says {width} x {height} pixels of up to {top}")
    if kind in "123":  # texts, as long as their numbers
        end, needed = len(data), start + width * height * channels
    elif kind == "4":
        end = needed = start + (width + 7) // 8 * height
    else:
        end = needed = start + width * height * channels * (1 if top < 256 else 2)
    if needed > len(data):
        raise ImageError(Reason.DAMAGED, f"truncated: {width} x {height} pixels do not fit in {len(data)} bytes")
    return _Image(kind, width, height, channels, top, start, end, alpha)


def _samples(data: bytes, image: _Image) -> NDArray[Any]:
    """Samples, (height, width, channels), of the machine's byte order."""
    shape = (image.height, image.width, image.channels)
    values: NDArray[Any]
    if image.kind in "123":
        values = _plain_samples(data, image)
    elif image.kind == "4":
        rows = np.frombuffer(data, np.uint8, image.end - image.start, image.start).reshape(image.height, -1)
        values = np.unpackbits(rows, axis=1, count=image.width)
    else:
        values = np.frombuffer(data, image.dtype, image.height * image.width * image.channels, image.start)
        values = values.astype(values.dtype.newbyteorder("="))
    values = values.reshape(shape)
    if image.kind in "fF":
        return values[::-1]  # rows go from bottom to top
    if values.max() > image.top:
        raise ImageError(Reason.DAMAGED, f"it has samples above the {image.top} of its header")
    return values


def _plain_samples(data: bytes, image: _Image) -> NDArray[Any]:
    """The numbers of a file in which they are texts."""
    count = image.width * image.height * image.channels
    text = data[image.start - 1 :]
    if b"#" in text:
        text = re.sub(rb"#[^\r\n]*", b"", text)
    if text.translate(None, b"0123456789" + _SEPARATORS):
        raise ImageError(Reason.DAMAGED, "its samples contain characters other than digits")
    if image.kind == "1":  # digits need no space between them
        digits: NDArray[Any] = np.frombuffer(text.translate(None, _SEPARATORS), np.uint8)[:count] - ord("0")
    else:
        digits = np.fromstring(text, np.int64, count=-1, sep=" ")[:count]
    if digits.size < count:
        raise ImageError(Reason.DAMAGED, f"truncated: {digits.size} samples, expected {count}")
    if digits.min() < 0 or digits.max() > image.top:
        raise ImageError(Reason.DAMAGED, f"it has samples above the {image.top} of its header")
    return digits.astype(np.uint8 if image.top < 256 else np.uint16)
