"""DICOM lookup tables: modality and VOI LUTs, palettes, and palettes in segments.

Writers disagree on each figure of a descriptor, and on the VR of descriptor and data. So a table is read from the bytes alone, as
DCMTK reads it: the number of entries is what the data hold, and an entry is as wide as the data say where the descriptor
contradicts them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ...errors import ImageError, Reason
from ..bit_depth import nominal_depth, to_8_bit
from .elements import words_of

__all__ = ["LookupTable", "Palette", "read_palette", "read_table"]

_MOST_ENTRIES = 1 << 16
_DEPTH = 16
_AT_ONCE = 1 << 20
_MOST_SEGMENTS = 1 << 17
_COLOURS = ("Red", "Green", "Blue")
_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2


@dataclass(frozen=True)
class LookupTable:
    """A table from input values to entries.

    Attributes:
        entries: unsigned, (n,), n from 1 to 65536.
        first: the first input value mapped, as the 16-bit word in the descriptor: whether it is signed depends on the input.
        bits: of an entry's range, 1 to 16: an entry of 2**bits - 1 is white.
    """

    entries: NDArray[Any]
    first: int
    bits: int

    @property
    def shows(self) -> bool:
        """Whether the table tells any two inputs apart."""
        return bool(self.entries.min() < self.entries.max())

    def start(self, signed: bool, low: float, high: float) -> int:
        """Return the first input value mapped.

        Args:
            signed: whether the input can be negative; the word in the descriptor is then a signed one.
            low: smallest input value, high: largest. A descriptor whose range misses all of them by this reading was written
                the other way, if by that its range meets them.
        """
        negative = self.first - 0x10000 if self.first > 0x7FFF else self.first
        either = (negative, self.first) if signed else (self.first, negative)
        meets = (start for start in either if start <= high and start + len(self.entries) - 1 >= low)
        return next(meets, either[0])

    def look_up(self, values: NDArray[Any], start: int) -> NDArray[Any]:
        """Return the entries for input values, same shape; inputs outside the table get its first or last entry."""
        position = np.clip(np.rint(values) if values.dtype.kind == "f" else values, start, start + len(self.entries) - 1)
        found: NDArray[Any] = self.entries[position.astype(np.int64) - start]
        return found


def read_table(item: Dataset, descriptor: str = "LUTDescriptor", data: str = "LUTData") -> LookupTable | None:
    """Read a lookup table; None where descriptor or data are missing, empty, or of a VR that holds no words.

    Args:
        item: with the two elements.
        descriptor: keyword of three words: number of entries (0 is 65,536), first value mapped, bits of an entry.
        data: keyword of the entries: words, or bytes packed two to a word.
    """
    described = words_of(item, descriptor)
    words = words_of(item, data)
    if len(described) < 3 or not len(words):
        return None
    count, first, bits = (int(word) for word in described[:3])
    return _table(_entries(words, count or _MOST_ENTRIES, bits), first, bits)


def _table(entries: NDArray[np.uint16], first: int, bits: int) -> LookupTable:
    largest = int(entries.max())
    # Tables of fewer bits are often declared as of 16, which would make them all but black.
    fits = 1 <= bits < _DEPTH and largest < 1 << bits
    return LookupTable(entries, first, bits if fits else nominal_depth(largest))


def _entries(words: NDArray[np.uint16], count: int, bits: int) -> NDArray[np.uint16]:
    """Entries of 16 bits, or of 8 bits packed low byte first where the words are half as many as the entries."""
    packed = len(words) == (count + 1) // 2 < count or (len(words) < count and bits <= 8 and int(words.max()) > 0xFF)
    if packed:
        return words.astype("<u2").view(np.uint8)[:count].astype(np.uint16)
    return words[:_MOST_ENTRIES]


@dataclass(frozen=True)
class Palette:
    """Three tables, from stored values to red, green and blue."""

    tables: tuple[LookupTable, LookupTable, LookupTable]

    def start(self, signed: bool, low: float, high: float) -> int:
        """Return the first stored value that has a colour; arguments as for `LookupTable.start`."""
        return self.tables[0].start(signed, low, high)

    def colours(self, values: NDArray[Any], signed: bool) -> NDArray[np.uint8]:
        """Return the colours of stored values.

        Args:
            values: whole numbers, any shape, not empty.
            signed: whether the header says that they can be negative.

        Returns:
            RGB, uint8, shape of `values` and 3.
        """
        low, high = float(values.min()), float(values.max())
        bits = max(table.bits for table in self.tables)
        flat = values.reshape(-1)
        found = np.empty((len(flat), 3), np.uint8)
        for channel, table in enumerate(self.tables):
            shown = replace(table, entries=to_8_bit(table.entries, bits))
            start = table.start(signed, low, high)
            for index in range(0, len(flat), _AT_ONCE):
                found[index : index + _AT_ONCE, channel] = shown.look_up(flat[index : index + _AT_ONCE], start)
        return found.reshape(*values.shape, 3)


def read_palette(dataset: Dataset) -> Palette | None:
    """Read a palette, plain or in segments; None where a colour has no table.

    Raises:
        ImageError: damaged segments.
    """
    tables = []
    for colour in _COLOURS:
        described = next(
            (words for name in (colour, "Red") if len(words := words_of(dataset, f"{name}PaletteColorLookupTableDescriptor")) >= 3),
            None,
        )
        if described is None:
            return None
        count, first, bits = (int(word) for word in described[:3])
        words = words_of(dataset, f"{colour}PaletteColorLookupTableData")
        if len(words):
            entries = _entries(words, count or _MOST_ENTRIES, bits)
        elif len(words := words_of(dataset, f"Segmented{colour}PaletteColorLookupTableData")):
            entries = _expanded(words, count or _MOST_ENTRIES, bits)
        else:
            return None
        tables.append(_table(entries, first, bits))
    red, green, blue = tables
    return Palette((red, green, blue))


def _expanded(words: NDArray[np.uint16], count: int, bits: int) -> NDArray[np.uint16]:
    """Expand a segmented table (PS3.3 C.7.9.2) to at most `count` entries.

    Segments of bytes and of words do not look alike, so a descriptor that names the wrong width is noticed.

    Raises:
        ImageError: as for `_segments`.
    """
    octets = words.astype("<u2").view(np.uint8)
    by_width = (octets, words) if bits <= 8 else (words, octets)
    try:
        return _segments(by_width[0], count)
    except ImageError as error:
        try:
            return _segments(by_width[1], count)
        except ImageError:
            raise error from None


def _segments(data: NDArray[Any], count: int) -> NDArray[np.uint16]:
    """Expand segments: discrete ones, linear ones, and indirect ones, which repeat some from a place in the data.

    Args:
        data: uint8 or uint16.
        count: of entries, at most.

    Raises:
        ImageError: a segment of an unknown kind, a linear one without a start, an indirect one inside another or to a place
            outside the data, or no entries.
    """
    width = data.dtype.itemsize
    digits = 4 // width  # of an indirect segment's place: a 32-bit number of bytes
    entries: list[NDArray[Any]] = []
    have, position, back, copied = 0, 0, 0, 0  # while segments are `copied`, `back` is where to go on after them
    for _ in range(_MOST_SEGMENTS):
        if have >= count or position + 2 > len(data):
            break
        kind, length = int(data[position]), int(data[position + 1])
        position += 2
        part = data[:0]
        if kind == _DISCRETE:
            part = data[position : position + length]
            position += length
        elif kind == _LINEAR and have and position < len(data):
            part = np.rint(np.linspace(int(entries[-1][-1]), int(data[position]), length + 1)[1:]).astype(data.dtype)
            position += 1
        elif kind == _INDIRECT and not copied and position + digits <= len(data):
            back = position + digits
            position = int.from_bytes(data[position:back].astype(f"<u{width}").tobytes(), "little") // width
            if position + 2 > len(data):
                raise ImageError(Reason.DAMAGED, "its palette repeats segments that it does not hold")
            copied = length
            if copied:
                continue
            position = back
        else:
            raise ImageError(Reason.DAMAGED, f"its palette has an unexpected segment of type {kind}")
        if len(part):
            entries.append(part)
            have += len(part)
        if copied:
            copied -= 1
            position = position if copied else back
    if not have:
        raise ImageError(Reason.DAMAGED, "its palette has no entries")
    return np.concatenate(entries)[:count].astype(np.uint16)
