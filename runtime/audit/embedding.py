"""The screener's own pipeline, for files whose embeddings are wanted frame by frame, each frame seen in several ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LcmemError, PictureError, Reason
from ..head import Floats
from ..notes import Note
from ..pictures import boundary, views_of
from ..screening import Screener, Where

__all__ = ["Embedded", "Look", "Seeing"]

Look = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""A way to look at a frame: RGB, uint8 (height, width, 3), to the same of any size."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """What became of one file.

    Attributes:
        content: sha256 of the file; None when it could not be read.
        embeddings: frame's number to float32 (looks x renderings, features), all renderings of the first look first.
        errors: what could not be embedded, a (frame or None, reason) each.
        notes: what else it holds.
        known: the caller has it already, so nothing was embedded.
    """

    content: bytes | None
    embeddings: dict[int, Floats] = field(repr=False)
    errors: tuple[tuple[int | None, Reason], ...] = ()
    notes: tuple[Note, ...] = ()
    known: bool = False


class _Views:
    """A picture each of whose frames is seen in several ways; else as the picture that it stands for."""

    def __init__(self, picture: Any, looks: tuple[Look, ...]) -> None:
        self._picture, self._looks = picture, looks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._picture, name)

    def views(self, number: int, size: int) -> tuple[NDArray[np.uint8], ...]:
        """As `Picture.views`, look after look; of each as many as of the first, which is the picture as it is."""
        renderings = self._picture.renderings(number)
        seen: list[NDArray[np.uint8]] = []
        with boundary():
            many = 0
            for look in self._looks:
                views = views_of([look(rendering) for rendering in renderings], size)
                many = many or len(views)
                seen += (*views, *views[-1:] * many)[:many]
        return tuple(seen)


class Seeing(Screener):
    """A screener's bundle, encoder and decoders, with ways to look at each frame; none stands for the frame as it is."""

    def __init__(self, screener: Screener, looks: tuple[Look, ...] = ()) -> None:
        vars(self).update(vars(screener))
        self._looks = looks

    def _open(self, data: bytes, name: str) -> Any:
        picture = super()._open(data, name)
        return _Views(picture, self._looks) if self._looks else picture

    def embed_each(self, paths: Iterable[Where], known: Callable[[bytes], bool]) -> Iterator[Embedded]:
        """Embed files, each frame of them, in batches across files.

        Args:
            paths: files and folders (recursive), or what `walk` found in them.
            known: asked, from several threads, for a file's sha256 whether its embeddings are at hand already.

        Yields:
            An `Embedded` a file, in order.
        """
        frames: dict[int, Floats] = {}
        errors: list[tuple[int | None, Reason]] = []
        for frame in self._embedded(self._frames_ahead(paths, None, lambda content, path: known(content))):
            if isinstance(frame.value, np.ndarray) and frame.number is not None:
                frames[frame.number] = frame.value
            elif isinstance(frame.value, LcmemError):
                reason = frame.value.reason if isinstance(frame.value, PictureError) else Reason.NOT_FINITE
                errors.append((frame.number, reason))
            if frame.last:
                at_hand = not frames and not errors
                yield Embedded(frame.content, frames, tuple(errors), frame.notes, at_hand)
                frames, errors = {}, []
