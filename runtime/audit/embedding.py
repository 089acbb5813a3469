"""The screener's own pipeline, for files whose embeddings are wanted frame by frame, each frame seen in several ways."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..decode_pool import DecodedFrame, DecodeResult, FailedFrame, KnownFile, PathOrFound
from ..errors import ImageError, Reason
from ..images.content_flags import ContentFlag
from ..images.dicom.identifiers import NOBODY, Identifiers
from ..images.image import boundary, views_of
from ..model.head import Floats
from ..screening import EmbeddedFrame, Screener
from .thumbnails import thumbnail

if TYPE_CHECKING:
    from ..decode_pool import OpenImage

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
    with closing(screener.open(data, name)) as image:
        return image.frame(number)


class Seeing:
    """A screener's bundle, encoder and decoders, with ways to look at each frame; none stands for the frame as it is."""

    def __init__(self, screener: Screener, looks: tuple[Look, ...] = ()) -> None:
        self._screener = screener
        self._looks = looks

    def embed_each(self, paths: Iterable[PathOrFound], known: Callable[[bytes], bool]) -> Iterator[Embedded]:
        """Embed files, each frame of them, in batches across files.

        Args:
            paths: files and folders (recursive), or what `walk` found in them.
            known: asked, from several threads, for a file's sha256 whether its embeddings are at hand already.

        Yields:
            An `Embedded` a file, in order.
        """
        frames: dict[int, Floats] = {}
        errors: list[tuple[int | None, Reason]] = []
        thumbnails: dict[int, NDArray[np.uint8]] = {}
        waiting: deque[NDArray[np.uint8] | None] = deque()

        def with_thumbnails() -> Iterator[DecodeResult]:
            """Yield the frames on their way to the encoder, which returns them in this order, without their pixels."""
            views = self._views if self._looks else None
            for frame in self._screener.decode_pool.frames(paths, known=lambda content, _: known(content), views=views):
                waiting.append(thumbnail(frame.views[0]) if isinstance(frame, DecodedFrame) else None)
                yield frame

        for frame in self._screener.embed_frames(with_thumbnails()):
            small = waiting.popleft()
            if isinstance(frame, EmbeddedFrame) and small is not None:
                frames[frame.number] = frame.embeddings
                thumbnails[frame.number] = small
            elif isinstance(frame, FailedFrame):
                errors.append((frame.number, frame.error.reason if isinstance(frame.error, ImageError) else Reason.NOT_FINITE))
            if frame.last:
                file, at_hand = frame.file, isinstance(frame, KnownFile)
                yield Embedded(file.content, frames, tuple(errors), frame.notes, at_hand, thumbnails, file.identifiers)
                frames, errors, thumbnails = {}, [], {}

    def _views(self, image: OpenImage, number: int, size: int) -> list[NDArray[np.uint8]]:
        """As `ImageFile.views`, look after look; of each as many as of the first, which is the image as it is."""
        renderings = image.renderings(number)
        seen: list[NDArray[np.uint8]] = []
        with boundary():
            many = 0
            for look in self._looks:
                views = views_of([look(rendering) for rendering in renderings], size)
                many = many or len(views)
                seen += (*views, *views[-1:] * many)[:many]
        return seen
