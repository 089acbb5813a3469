"""Read elements of a DICOM dataset, however carelessly they were written.

A value that cannot be read counts as missing, so that one odd element does not hide an image. Callers decide whether they can do
without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

__all__ = ["first_number", "items_of", "numbers_of", "stated_frames", "value_of", "words_of"]

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, OverflowError, ArithmeticError)
"""What pydicom raises where a value does not fit its element."""

_MOST_WORDS = 1 << 17
"""Words read of an element, at most: a table has 65,536 entries, and a segmented one is smaller."""
_BINARY = frozenset({None, "US", "SS", "OW", "OB", "UN", "US or SS", "US or OW", "US or SS or OW", "OB or OW"})
"""VRs whose bytes are 16-bit words; None in implicit VR."""


def value_of(dataset: Dataset, keyword: str) -> Any:
    """Return an element's value, or None where it is missing, empty, or cannot be converted."""
    try:
        return dataset.get(keyword)
    except UNREADABLE:
        return None


def items_of(dataset: Dataset, keyword: str, start: int = 0, stop: int | None = None) -> list[Dataset]:
    """Return the items of a sequence, from `start` to before `stop`; none where the element is missing or is not a sequence."""
    value = value_of(dataset, keyword)
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return []
    return [item for item in value[start:stop] if isinstance(item, Dataset)]


def numbers_of(value: Any) -> list[float | None]:
    """Return the numbers of a value, in order: None for each that is empty, not a number, or not finite.

    A decimal comma counts as a point: some vendors write numbers as their country does.

    Args:
        value: of an element of any VR: a number, text with backslashes between the parts, bytes of such text, or a list of these.
    """
    if value is None:
        return []
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        return [_number(part) for part in value.split("\\")]
    if isinstance(value, Sequence):
        return [_number(part) for part in value]
    return [_number(value)]


def first_number(value: Any) -> float | None:
    """Return the first number of a value; None if it is missing, empty, not a number, or not finite."""
    numbers = numbers_of(value)
    return numbers[0] if numbers else None


def _number(part: Any) -> float | None:
    if isinstance(part, str):
        part = part.strip(" \0\t\r\n")
        if "." not in part and part.count(",") == 1:
            part = part.replace(",", ".")
    try:
        number = float(part)
    except UNREADABLE:
        return None
    return number if math.isfinite(number) else None


def stated_frames(dataset: Dataset) -> int | None:
    """Return the number of frames that the header states, 1 where it states none; None where what it states is no such number."""
    element = dataset.get_item("NumberOfFrames")
    value = element.value if element is not None else None
    if (value.strip(b" \0") if isinstance(value, bytes) else value) in (None, "", b""):
        return 1
    number = first_number(value_of(dataset, "NumberOfFrames"))
    return int(number) if number is not None and number == int(number) and number >= 1 else None


def words_of(dataset: Dataset, keyword: str) -> NDArray[np.uint16]:
    """Return the 16-bit words of an element, unsigned, whatever VR it was written with; empty where it has none.

    US, SS, OW, OB and UN are the same bytes in the file. What they mean depends on other elements, which the VR often
    contradicts.
    """
    element = dataset.get_item(keyword)  # not converted: the conversion depends on a VR that may be wrong
    value = None if element is None else element.value
    if element is None or value is None or element.VR not in _BINARY:
        return np.zeros(0, np.uint16)
    if isinstance(value, bytes):
        little = element.is_little_endian if isinstance(element, RawDataElement) else dataset.original_encoding[1] is not False
        held = value[: 2 * _MOST_WORDS]
        # OB in big endian: bytes keep their places, so the first of two is the low one.
        order = "<u2" if little or element.VR == "OB" else ">u2"
        words = np.frombuffer(held + bytes(len(held) % 2), order)
        return words.astype(np.uint16)
    numbers = [0 if number is None else int(number) & 0xFFFF for number in numbers_of(value)[:_MOST_WORDS]]
    return np.array(numbers, np.uint16)
