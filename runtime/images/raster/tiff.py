"""TIFF and BigTIFF: every page and every image in a SubIFD is a frame, decoded by libtiff through imagecodecs.

The directories are read here, within bounds and without following a loop, so that sizes are known before anything is decoded and
no image in the file is left out. Pillow is not used: it refuses sound files of many sample formats, reads signed bytes as
unsigned ones, and its libtiff prints on stderr.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from ...errors import ImageError, Reason
from ..content_flags import ContentFlag
from ..formats import Limits
from .jpeg import check_size, decode_jpeg, read_jpeg
from .renderings import Alpha, Decoded, Renderings, color_renderings, converted, flattened, grey_renderings, has_hidden_image

__all__ = ["Directory", "Tiff", "read_directories"]

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MAX_ENTRIES = 4096
_MAX_VALUES = 1 << 22
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES, STRIP_ROWS, STRIP_BYTES, PLANAR = 273, 274, 277, 278, 279, 284
COLOR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 320, 322, 323, 324, 325
YCBCR_SUBSAMPLING = 530
SUB_IFDS, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_OFFSET, JPEG_BYTES = 330, 332, 338, 339, 513, 514
OTHER_DIRECTORIES = (34665, 34853, 40965)
"""EXIF, GPS and interoperability: directories without images."""
ICC_PROFILE, XMP, JPEG_TABLES = 34675, 700, 347
_PIXELS = ((STRIP_OFFSETS, STRIP_BYTES), (TILE_OFFSETS, TILE_BYTES), (JPEG_OFFSET, JPEG_BYTES))
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 4, 5, 6, 8
_COLORS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _MASK: 1, _CMYK: 4, _YCBCR: 3, _LAB: 3}
_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34887, 34925, 50000, 50001})
"""Those that libtiff decodes here; an error in another one says that it is not supported, not that the file is damaged."""
_OLD_JPEG, _JPEG = 6, 7
_REFUSED = re.compile(r"not configured|can not handle|not supported|not implemented|unsupported", re.IGNORECASE)
_ASSOCIATED, _UNASSOCIATED = 1, 2
_MAX_SAMPLES = 8
_MAX_BYTES_A_PIXEL = 64


@dataclass(frozen=True, eq=False)
class Directory:
    """One image file directory (IFD).

    Attributes:
        offset: where it lies.
        length: bytes that its table takes.
        following: offset of the next one, 0 for none.
        entries: tag to (type, count, offset of the values).
        nested: whether it is a SubIFD, and not a page.
    """

    data: bytes | memoryview = field(repr=False)
    order: str
    offset: int
    length: int
    following: int
    entries: dict[int, tuple[int, int, int]]
    nested: bool = False

    def span(self, tag: int) -> tuple[int, int]:
        """Where a tag's values lie: offset and bytes; (0, 0) if it is missing."""
        kind, count, offset = self.entries.get(tag, (1, 0, 0))
        return offset, count * _SIZES.get(kind, 1)

    def integers(self, tag: int) -> tuple[int, ...]:
        """Return a tag's values; none if it is missing.

        Raises:
            ImageError: damaged; they are not integers, or lie outside of the file.
        """
        if tag not in self.entries:
            return ()
        kind, count, offset = self.entries[tag]
        code = _INTEGERS.get(kind)
        if code is None or count > _MAX_VALUES or offset + count * _SIZES[kind] > len(self.data):
            raise ImageError(Reason.DAMAGED, f"its TIFF tag {tag} has no readable integers")
        return struct.unpack_from(f"{self.order}{count}{code}", self.data, offset)

    def integer(self, tag: int, default: int) -> int:
        """Return a tag's first value."""
        values = self.integers(tag)
        return values[0] if values else default

    @property
    def is_image(self) -> bool:
        """Whether it describes an image, and not something else."""
        return WIDTH in self.entries or JPEG_OFFSET in self.entries


def read_directory(data: bytes | memoryview, order: str, big: bool, offset: int, nested: bool = False) -> Directory:
    """Read one directory's table.

    Raises:
        ImageError: damaged; it lies outside of the file, or has more entries than any file.
    """
    counter, entry = ("Q", 20) if big else ("H", 12)
    start = offset + struct.calcsize(counter)
    if offset < 8 or start > len(data):
        raise ImageError(Reason.DAMAGED, f"a TIFF directory is outside the file, at byte {offset}")
    (count,) = struct.unpack_from(order + counter, data, offset)
    end = start + count * entry
    pointer = "Q" if big else "I"
    if not 0 < count <= _MAX_ENTRIES or end > len(data):
        raise ImageError(Reason.DAMAGED, f"its TIFF directory at byte {offset} has {count} entries")
    inline = 8 if big else 4
    entries: dict[int, tuple[int, int, int]] = {}
    for index in range(start, end, entry):
        tag, kind, number = struct.unpack_from(f"{order}HH{pointer}", data, index)
        place = index + entry - inline
        if number * _SIZES.get(kind, 1) > inline:
            (place,) = struct.unpack_from(order + pointer, data, place)
        entries.setdefault(tag, (kind, number, place))
    following = 0
    if end + inline <= len(data):  # some writers leave the last pointer out
        (following,) = struct.unpack_from(order + pointer, data, end)
    return Directory(data, order, offset, end + inline - offset, following, entries, nested)


def read_directories(data: bytes | memoryview, most: int) -> Iterator[Directory | ImageError]:
    """Yield the pages in order, then the images in their SubIFDs, each once however the directories point at each other.

    Args:
        data: the file.
        most: directories to read at most.

    Yields:
        Directories, or an error in place of one that cannot be read: it may be an image.

    Raises:
        ImageError: damaged; the header points nowhere. too-large; there are more than `most`.
    """
    order, big, first = _header(data)
    seen: set[int] = set()
    pending: list[tuple[int, bool]] = [(first, False)]
    nested: list[int] = []
    while pending or nested:
        offset, inside = pending.pop() if pending else (nested.pop(0), True)
        if not offset or offset in seen:
            continue
        seen.add(offset)
        if len(seen) > most:
            raise ImageError(Reason.TOO_LARGE, f"it has more than {most} frames")
        try:
            directory = read_directory(data, order, big, offset, inside)
            below = directory.integers(SUB_IFDS)
        except ImageError as error:
            if offset == first:
                raise
            yield error
            continue
        pending.append((directory.following, inside))
        nested += below[: most + 1]
        if directory.is_image or not inside:
            yield directory


def _header(data: bytes | memoryview) -> tuple[str, bool, int]:
    """Byte order, whether it is a BigTIFF, and where the first directory lies."""
    order = "<" if bytes(data[:2]) == b"II" else ">"
    if len(data) < 16:
        raise ImageError(Reason.DAMAGED, "its TIFF header is truncated")
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    return order, big, struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]


@dataclass(frozen=True)
class _Layout:
    """What a directory says of its pixels."""

    width: int
    height: int
    photometric: int
    samples: int
    bits: int
    format: int
    compression: int
    planar: bool
    extra: tuple[int, ...]
    orientation: int
    plain_ycbcr: bool = False


class Tiff:
    """A TIFF file whose directories have been read. Frames may not be decoded by two threads at once.

    Args:
        data: the file.
        limits: on what is decoded.
        embedded: whether this is EXIF data, whose first directory need not be an image.

    Raises:
        ImageError: damaged or too large.
    """

    def __init__(self, data: bytes, limits: Limits, *, embedded: bool = False) -> None:
        self._data = data
        self._limits = limits
        self.directories = list(read_directories(data, limits.max_frames))
        self._order, self._big, self._first = _header(data)
        self._patched: bytearray | None = None
        for directory in () if embedded else self.directories[:1]:
            if isinstance(directory, Directory):
                self._layout(directory)

    @property
    def frames(self) -> int:
        """How many images there are."""
        return len(self.directories)

    def decode(self, number: int) -> Decoded:
        """Decode one frame.

        Raises:
            ImageError: too-large, unsupported, damaged or not-finite.
            Exception: whatever imagecodecs raises on a damaged file.
        """
        directory = self.directories[number]
        if isinstance(directory, ImageError):
            raise ImageError(directory.reason, str(directory))
        if JPEG_OFFSET in directory.entries and not {STRIP_OFFSETS, TILE_OFFSETS} & directory.entries.keys():
            return self._interchange_jpeg(directory)
        layout = self._layout(directory)
        if layout.compression == _JPEG:
            return _rendered(self._jpeg_samples(directory, layout), layout, directory)
        # libtiff converts these colors to RGB, and turns the image while doing so. Both are done here, and hidden from it.
        changes = {}
        if layout.photometric in (_CMYK, _LAB) or (layout.photometric == _YCBCR and layout.plain_ycbcr):
            changes[PHOTOMETRIC] = _RGB
        if layout.photometric == _YCBCR or layout.compression == _OLD_JPEG:
            changes[ORIENTATION] = 1
        colors = _COLORS[layout.photometric]
        if layout.planar and layout.samples > colors and not {_ASSOCIATED, _UNASSOCIATED} & set(layout.extra):
            changes |= {SAMPLES: colors}  # planes of no known meaning may be missing
        return _rendered(self._samples(directory, layout, changes), layout, directory)

    def spans(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return which parts of the file, (start, end) each, are pixels, and which are anything else that the directories name."""
        pixels: list[tuple[int, int]] = []
        named = [(0, 16 if self._big else 8)]
        waiting = [directory for directory in self.directories if isinstance(directory, Directory)]
        while waiting:
            directory = waiting.pop()
            named.append((directory.offset, directory.offset + directory.length))
            named += [(start, start + length) for start, length in map(directory.span, directory.entries)]
            for offsets, lengths in _PIXELS:
                if {offsets, lengths} <= directory.entries.keys():
                    starts, sizes = directory.integers(offsets), directory.integers(lengths)
                    pixels += [(start, start + size) for start, size in zip(starts, sizes, strict=False)]
                elif offsets in directory.entries:  # without lengths; so everything may be pixels
                    pixels.append((0, len(self._data)))
            for tag in OTHER_DIRECTORIES:
                if tag in directory.entries:
                    try:
                        waiting.append(read_directory(self._data, self._order, self._big, directory.integer(tag, 0)))
                    except ImageError:
                        continue
        return pixels, named

    def values_of(self, tag: int) -> list[tuple[int, int]]:
        """Return where a tag's values lie, (start, end) for each directory that has it."""
        found = (directory.span(tag) for directory in self.directories if isinstance(directory, Directory))
        return [(start, start + length) for start, length in found if length]

    def packets(self) -> list[bytes]:
        """Return the XMP packets, in which images are texts."""
        return [self._data[start:end] for start, end in self.values_of(XMP)]

    def _layout(self, directory: Directory) -> _Layout:
        """Check that a directory's image can be decoded within the limits."""
        width, height = directory.integer(WIDTH, 0), directory.integer(HEIGHT, 0)
        if JPEG_OFFSET in directory.entries and not width:
            return _Layout(0, 0, _YCBCR, 3, 8, 1, 7, False, (), 1)
        if width < 1 or height < 1:
            raise ImageError(Reason.DAMAGED, f"its TIFF directory says {width} x {height} pixels")
        if width * height > self._limits.max_pixels:
            raise ImageError(Reason.TOO_LARGE, f"it is {width} x {height} pixels, more than {self._limits.max_pixels}")
        bits = directory.integers(BITS) or (1,)
        samples = directory.integer(SAMPLES, len(bits))
        bits = bits[:samples] or bits
        formats = directory.integers(SAMPLE_FORMAT) or (1,)
        # The tag is required. Without it, readers take bytes and bits for white is zero, and deeper samples for black is zero.
        photometric = directory.integer(PHOTOMETRIC, _WHITE_IS_ZERO if bits[0] <= 8 else _BLACK_IS_ZERO)
        colors = _COLORS.get(photometric)
        if colors is None:
            raise ImageError(Reason.UNSUPPORTED, f"TIFF photometric interpretation {photometric} is not supported")
        if samples < colors:
            raise ImageError(Reason.DAMAGED, f"its TIFF directory says {samples} samples a pixel for {colors} colors")
        if photometric == _CMYK and directory.integer(INK_SET, 1) != 1:
            raise ImageError(Reason.UNSUPPORTED, "TIFF inks other than CMYK are not supported")
        if len(set(bits)) > 1 or len(set(formats)) > 1:
            raise ImageError(Reason.UNSUPPORTED, "TIFF samples of different depths in one image are not supported")
        if formats[0] in (5, 6):
            raise ImageError(Reason.UNSUPPORTED, "TIFF samples that are complex numbers are not supported")
        if formats[0] not in (1, 2, 3, 4) or not 1 <= bits[0] <= 64:
            raise ImageError(Reason.UNSUPPORTED, f"TIFF samples of format {formats[0]} and {bits[0]} bits are not supported")
        extra = directory.integers(EXTRA_SAMPLES)
        if samples > _MAX_SAMPLES or (colors == 1 and samples > 2) or samples * bits[0] > 8 * _MAX_BYTES_A_PIXEL:
            raise ImageError(Reason.UNSUPPORTED, f"TIFF images of {samples} channels are not supported; save each as a page")
        for tag in (TILE_WIDTH, TILE_HEIGHT):
            if directory.integer(tag, 0) > max(width, height, 1 << 14):
                raise ImageError(Reason.TOO_LARGE, f"its TIFF tiles are {directory.integer(tag, 0)} pixels wide or high")
        return _Layout(
            width,
            height,
            photometric,
            samples,
            bits[0],
            formats[0],
            directory.integer(COMPRESSION, 1),
            directory.integer(PLANAR, 1) == 2,
            extra if len(extra) == samples - colors else (extra + (0,) * samples)[: samples - colors],
            directory.integer(ORIENTATION, 1),
            directory.integer(COMPRESSION, 1) == 1 and directory.integers(YCBCR_SUBSAMPLING) == (1, 1),
        )

    def _samples(self, directory: Directory, layout: _Layout, changes: dict[int, int]) -> NDArray[Any]:
        """The decoded samples, (height, width, samples).

        Args:
            changes: tags whose values libtiff is told to be others.
        """
        try:
            with self._pointed_at(directory, changes) as data:
                values = imagecodecs.tiff_decode(data)
        except ValueError as error:  # its TiffError is a RuntimeError; this is of formats that it does not know
            raise ImageError(Reason.UNSUPPORTED, f"this TIFF layout is not supported ({str(error)[:80]})") from error
        except RuntimeError as error:
            if layout.compression in _COMPRESSIONS and not _REFUSED.search(str(error)):
                raise
            what = f"TIFF compression {layout.compression} with {layout.bits} bits a sample"
            raise ImageError(Reason.UNSUPPORTED, f"{what} is not supported ({str(error)[:80]})") from error
        if layout.planar and values.ndim == 3 and values.shape[0] == changes.get(SAMPLES, layout.samples):
            values = np.moveaxis(values, 0, -1)
        values = values.reshape(values.shape[0], values.shape[1], -1) if values.ndim >= 2 else values
        if values.shape[:2] != (layout.height, layout.width):
            raise ImageError(Reason.DAMAGED, f"its TIFF strips gave an array of {values.shape}")
        return values

    @contextmanager
    def _pointed_at(self, directory: Directory, changes: dict[int, int]) -> Iterator[bytes | bytearray]:
        """The file with its header pointing at a directory, so that libtiff need not walk there, and with some tags changed."""
        changed = {
            tag: value for tag, value in changes.items() if tag in directory.entries and directory.integer(tag, value) != value
        }
        if directory.offset == self._first and not changed:
            yield self._data
            return
        if self._patched is None:
            self._patched = bytearray(self._data)
        form, place = (self._order + "Q", 8) if self._big else (self._order + "I", 4)
        struct.pack_into(form, self._patched, place, directory.offset)
        for tag, value in changed.items():
            kind, _, place = directory.entries[tag]
            struct.pack_into(self._order + _INTEGERS[kind], self._patched, place, value)
        try:
            yield self._patched
        finally:
            for tag in changed:
                start, length = directory.span(tag)
                self._patched[start : start + length] = self._data[start : start + length]

    def _jpeg_samples(self, directory: Directory, layout: _Layout) -> NDArray[Any]:
        """The samples of strips or tiles that are JPEG images, (height, width, samples); YCbCr as RGB.

        libtiff is not asked: imagecodecs has it convert to RGB without a fourth component, and go on where data are damaged.
        """
        tiled = TILE_OFFSETS in directory.entries
        width = directory.integer(TILE_WIDTH, 0) if tiled else layout.width
        height = directory.integer(TILE_HEIGHT, 0) if tiled else min(directory.integer(STRIP_ROWS, layout.height), layout.height)
        offsets, sizes = (directory.integers(tag) for tag in _PIXELS[tiled])
        if min(width, height) < 1:
            raise ImageError(Reason.DAMAGED, f"its TIFF strips or tiles are {width} x {height} pixels")
        across, down = -(-layout.width // width), -(-layout.height // height)
        planes = layout.samples if layout.planar else 1
        if min(len(offsets), len(sizes)) < across * down * planes:
            raise ImageError(Reason.DAMAGED, f"it has {len(offsets)} TIFF strips or tiles, expected {across * down * planes}")
        start, length = directory.span(JPEG_TABLES)
        tables = self._data[start : start + length] or None
        values = np.zeros((layout.height, layout.width, layout.samples), np.uint8 if layout.bits <= 8 else np.uint16)
        for number in range(across * down * planes):
            plane, place = divmod(number, across * down)
            row, column = divmod(place, across)
            piece = self._jpeg_piece(offsets[number], sizes[number], tables, layout)
            target = values[row * height : (row + 1) * height, column * width : (column + 1) * width]
            target = target[..., plane : plane + 1] if layout.planar else target
            if piece.shape[2] != target.shape[2] or piece.shape[0] < target.shape[0] or piece.shape[1] < target.shape[1]:
                raise ImageError(Reason.DAMAGED, f"a TIFF strip or tile is an array of {piece.shape}")
            target[:] = piece[: target.shape[0], : target.shape[1]]
        return values

    def _jpeg_piece(self, begin: int, size: int, tables: bytes | None, layout: _Layout) -> NDArray[Any]:
        """One strip or tile, (height, width, components)."""
        header = read_jpeg(self._data, begin)
        check_size(*header.size, self._limits)
        if header.end is None or header.end > begin + size:
            raise ImageError(Reason.DAMAGED, "a TIFF strip or tile of JPEG data is truncated")
        spaces = {1: (None, None), 3: ("RGB", "RGB"), 4: ("CMYK", "CMYK")}
        if header.components not in spaces:
            raise ImageError(Reason.UNSUPPORTED, f"JPEG of {header.components} components in TIFF is not supported")
        color, out = spaces[header.components]
        if layout.photometric == _YCBCR and header.components == 3:
            color = "YCBCR"
        data = self._data[begin : begin + size]
        piece = imagecodecs.jpeg8_decode(data, tables=tables, colorspace=color, outcolorspace=out)
        return piece[..., None] if piece.ndim == 2 else piece

    def _interchange_jpeg(self, directory: Directory) -> Decoded:
        """A JPEG file in the TIFF, as thumbnails and camera raw files have it."""
        start, length = directory.integer(JPEG_OFFSET, 0), directory.integer(JPEG_BYTES, 0)
        return decode_jpeg(self._data[start : start + length], self._limits)


def _rendered(values: NDArray[Any], layout: _Layout, directory: Directory) -> Decoded:
    """Samples to renderings."""
    colors = 3 if layout.photometric == _YCBCR else _COLORS[layout.photometric]
    notes: set[ContentFlag] = set()
    extra = layout.extra
    # Where libtiff converts colors, it drops the channels beyond them.
    alpha = _alpha(values, layout, colors)
    if (alpha is None and extra) or len(extra) > 1:
        notes.add(ContentFlag.EXTRA_CHANNELS)
    if layout.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _MASK):
        renderings = _grey(values[..., 0], layout, alpha)
    elif layout.photometric == _PALETTE:
        renderings = color_renderings(_through_palette(values[..., 0], layout, directory), alpha=alpha)
    elif layout.photometric == _LAB:
        renderings = flattened(converted("LAB", values[..., :3]), alpha)
    elif layout.photometric == _CMYK:
        renderings = flattened(_from_cmyk(values[..., :4]), alpha)
    elif layout.plain_ycbcr:
        renderings = flattened(converted("YCbCr", values[..., :3]), alpha)
    else:
        renderings = color_renderings(values[..., :3], alpha=alpha)
    if has_hidden_image(renderings[-1] if alpha is None else _plain(values, layout), alpha):
        notes.add(ContentFlag.HIDDEN_PIXELS)
    return Decoded(renderings, layout.orientation, frozenset(notes))


def _plain(values: NDArray[Any], layout: _Layout) -> NDArray[np.uint8]:
    """The colors without their transparency, as three channels of 8 bits, to look for hidden images."""
    colors = values[..., :3] if values.shape[-1] >= 3 else values[..., :1]
    high = colors.max()
    scaled = colors.astype(np.float32) * (255 / float(high)) if high > 255 else colors
    return np.broadcast_to(np.clip(scaled, 0, 255).astype(np.uint8), (*values.shape[:2], 3))


def _alpha(values: NDArray[Any], layout: _Layout, colors: int) -> Alpha | None:
    """The opacity, where the first extra channel is that."""
    if not layout.extra or layout.extra[0] not in (_ASSOCIATED, _UNASSOCIATED) or values.shape[-1] <= colors:
        return None
    kind = values.dtype.kind
    top = 1.0 if kind == "f" else float((1 << (layout.bits - (kind == "i"))) - 1)
    return Alpha(values[..., colors], top, layout.extra[0] == _ASSOCIATED)


def _grey(values: NDArray[Any], layout: _Layout, alpha: Alpha | None) -> Renderings:
    inverted = layout.photometric == _WHITE_IS_ZERO
    if values.dtype.kind == "b" or layout.bits == 1:
        values = values.astype(np.uint8)
    top = (1 << layout.bits) - 1 if values.dtype.kind == "u" and layout.bits < 8 else None
    return grey_renderings(np.ascontiguousarray(values), top=top, inverted=inverted, alpha=alpha)


def _through_palette(indices: NDArray[Any], layout: _Layout, directory: Directory) -> NDArray[np.uint8]:
    """Indices to RGB, uint8 (height, width, 3)."""
    entries = np.array(directory.integers(COLOR_MAP), np.uint16)
    if layout.bits > 16 or entries.size != 3 << layout.bits or indices.dtype.kind not in "ub":
        raise ImageError(Reason.DAMAGED, f"its TIFF palette has {entries.size} entries for {layout.bits} bits")
    # Some writers keep 8-bit entries in the 16.
    table = (entries if entries.max() < 256 else entries // 256).astype(np.uint8).reshape(3, -1).T
    colors: NDArray[np.uint8] = table[indices.astype(np.intp)]
    return colors


def _from_cmyk(values: NDArray[Any]) -> NDArray[np.uint8]:
    """CMYK to RGB, without a profile."""
    return converted("CMYK", (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values)
