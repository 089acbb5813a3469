"""Boxes of ISO base media files (HEIC, AVIF), JP2 and JPEG XL containers: read within bounds, nothing decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Box", "boxes_in"]

_MAX_BOXES = 100_000


@dataclass(frozen=True)
class Box:
    """A box: its type, where it begins, and where its content begins and ends."""

    kind: bytes
    offset: int
    start: int
    end: int


def boxes_in(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """Yield the boxes between two offsets, as far as they can be read; what follows the last one is not in any box."""
    stop = len(data) if end is None else min(end, len(data))
    for _ in range(_MAX_BOXES):
        if start + 8 > stop:
            return
        length, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if length == 1 and start + 16 <= stop:
            (length,) = struct.unpack_from(">Q", data, start + 8)
            content = start + 16
        elif length == 0:
            length = stop - start
        if start + length > stop or start + length < content:
            return
        yield Box(kind, start, content, start + length)
        start += length
