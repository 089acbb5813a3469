"""One frame seen in several ways, mirrored or turned, and what became of a file that was embedded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .errors import Reason
from .head import Floats
from .pictures import Picture

__all__ = ["Embedded", "Look", "Views"]

Look = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""A way to look at a frame: RGB, uint8 (height, width, 3), to the same of any size."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """What became of one file that was to be embedded.

    Attributes:
        path: the file, as valid text.
        content: sha256 of the file; None when it could not be read.
        frames: how many it has; 0 when it could not be opened, or is known.
        embeddings: frame's number to float32 (looks, features).
        errors: what could not be embedded, a (frame or None, reason, detail) each.
        known: the caller has it already, so nothing was embedded.
    """

    path: str
    content: bytes | None
    frames: int
    embeddings: dict[int, Floats] = field(repr=False)
    errors: tuple[tuple[int | None, Reason, str], ...] = ()
    known: bool = False


class Views:
    """A picture whose frames are those of another, each seen in several ways: frame n is way n % ways of frame n // ways.

    Frames are to be asked for by one thread at a time.
    """

    def __init__(self, picture: Picture, looks: tuple[Look, ...]) -> None:
        self._picture, self._looks = picture, looks
        self._seen: tuple[int, NDArray[np.uint8]] | None = None
        self.frames = picture.frames * len(looks)
        self.identifiers = picture.identifiers

    def frame(self, number: int) -> NDArray[np.uint8]:
        """As `Picture.frame`. The frame that was decoded last is kept, for its other looks come next."""
        of, way = divmod(number, len(self._looks))
        if self._seen is None or self._seen[0] != of:
            self._seen = of, self._picture.frame(of)
        return self._looks[way](self._seen[1])
