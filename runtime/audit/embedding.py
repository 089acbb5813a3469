"""The screener's own pipeline, for files whose embeddings are wanted frame by frame, each frame seen in several ways."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, LcmemError, Reason
from ..images.content_flags import ContentFlag
from ..images.dicom.identifiers import NOBODY, Identifiers
from ..images.image import boundary, views_of
from ..model.head import Floats
from ..screening import Screener, Where
from .thumbnails import thumbnail

__all__ = ["Embedded", "Look", "Seeing", "frame_of"]

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
        thumbnails: of the frames that have embeddings, see `thumbnail`.
        identifiers: whose it is, by its header.
    """

    content: bytes | None
    embeddings: dict[int, Floats] = field(repr=False)
    errors: tuple[tuple[int | None, Reason], ...] = ()
    notes: tuple[ContentFlag, ...] = ()
    known: bool = False
    thumbnails: dict[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)
    identifiers: Identifiers = NOBODY


def frame_of(screener: Screener, data: bytes, name: str, number: int) -> NDArray[np.uint8]:
    """Decode one frame of a file as the screener does, in a process of its own if it was told so: RGB, uint8 (height, width, 3).

    Raises:
        ImageError: it cannot be decoded.
    """
    return Seeing(screener).frame(data, name, number)


class _Views:
    """An image each of whose frames is seen in several ways; else as the image that it stands for."""

    def __init__(self, image: Any, looks: tuple[Look, ...]) -> None:
        self._image, self._looks = image, looks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image, name)

    def views(self, number: int, size: int) -> tuple[NDArray[np.uint8], ...]:
        """As `ImageFile.views`, look after look; of each as many as of the first, which is the image as it is."""
        renderings = self._image.renderings(number)
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

    def open(self, data: bytes, name: str = "") -> Any:
        image = super().open(data, name)
        return _Views(image, self._looks) if self._looks else image

    def frame(self, data: bytes, name: str, number: int) -> NDArray[np.uint8]:
        """See `frame_of`."""
        image = super().open(data, name)
        try:
            return image.frame(number)
        finally:
            image.close()

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
        waiting: deque[NDArray[np.uint8] | None] = deque()
        small: dict[int, NDArray[np.uint8]] = {}

        def with_thumbnails() -> Iterator[Any]:
            """The frames on their way to the network; their pixels are not there any more when they come back, in this order."""
            for frame in self._frames_ahead(paths, None, lambda content, path: known(content)):
                waiting.append(thumbnail(frame.value[0]) if isinstance(frame.value, np.ndarray) else None)
                yield frame

        for frame in self._embedded(with_thumbnails()):
            mini = waiting.popleft()
            if isinstance(frame.value, np.ndarray) and frame.number is not None and mini is not None:
                frames[frame.number] = frame.value
                small[frame.number] = mini
            elif isinstance(frame.value, LcmemError):
                reason = frame.value.reason if isinstance(frame.value, ImageError) else Reason.NOT_FINITE
                errors.append((frame.number, reason))
            if frame.last:
                at_hand = not frames and not errors
                yield Embedded(frame.content, frames, tuple(errors), frame.notes, at_hand, small, frame.identifiers)
                frames, errors, small = {}, [], {}
