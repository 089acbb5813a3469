"""Files in, pixels out, in order: threads read, decode and resize images ahead of the encoder.

A file's failure is its own: it travels along in the file's place, as a `FailedFrame`, and the next file follows.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError, LcmemError, Reason
from .images.content_flags import ContentFlag
from .images.dicom.identifiers import NOBODY, Identifiers
from .images.discovery import Found, Skipped, Supplied, Unfound, image_name, walk_or_supplied
from .images.formats import DEFAULT_LIMITS, Limits, read_file
from .images.image import ImageFile, open_image

if TYPE_CHECKING:
    from .images.sandbox import DecoderPool, SandboxedImageFile

    OpenImage = ImageFile | SandboxedImageFile
    Views = Callable[[OpenImage, int, int], Sequence[NDArray[np.uint8]]]

__all__ = [
    "FRAMES_AHEAD",
    "DecodePool",
    "DecodeResult",
    "DecodedFrame",
    "FailedFrame",
    "Frame",
    "KnownFile",
    "PathOrFound",
    "SourceFile",
    "map_ahead",
]

Item = TypeVar("Item")
Made = TypeVar("Made")

PathOrFound = str | os.PathLike[str] | Found | Unfound | Skipped | Supplied
"""A file or folder to search, what an earlier search found (a program that shows progress has searched its folders already), or
an image supplied under a name of its own."""
FRAMES_AHEAD = 16
"""Frames of an image that are decoded before its turn comes. The rest of a long image is decoded when it is that image's turn, so
that a file of 4,000 frames does not fill the memory."""


@dataclass(frozen=True, eq=False)
class SourceFile:
    """A file, or an image supplied otherwise.

    Attributes:
        path: its name in results, as valid text.
        key: its name in a gallery.
        content: sha256 (32 bytes); None when it could not be read.
        frames: how many frames it has; 0 when it was not opened.
        identifiers: of the patient and the study, from its header.
    """

    path: str
    key: str
    content: bytes | None = None
    frames: int = 0
    identifiers: Identifiers = NOBODY


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame on its way through the pipeline. Each stage has its own subclass.

    Attributes:
        file: where it comes from.
        number: from 0; None where the file as a whole is meant.
        notes: what else the file holds, as far as it is known by now: some flags show in decoding only.
    """

    file: SourceFile
    number: int | None
    notes: tuple[ContentFlag, ...]

    @property
    def last(self) -> bool:
        """Whether no other frame of the same file follows."""
        return self.number is None or self.number == self.file.frames - 1


@dataclass(frozen=True, eq=False)
class DecodedFrame(Frame):
    """A frame as the encoder is to see it: `views` (see `ImageFile.views`), uint8 (views, size, size, 3)."""

    number: int
    views: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FailedFrame(Frame):
    """A frame that could not be decoded or embedded, or a file that could not be opened, and why."""

    error: LcmemError


@dataclass(frozen=True, eq=False)
class KnownFile(Frame):
    """A file that the caller knows already. It is read and hashed, and not opened."""


DecodeResult = DecodedFrame | FailedFrame | KnownFile


@dataclass(frozen=True, eq=False)
class _OpenedFile:
    """A file whose first frames are decoded; `image` where there are more."""

    file: SourceFile
    notes: tuple[ContentFlag, ...]
    ahead: tuple[NDArray[np.uint8] | ImageError, ...]
    image: OpenImage | None


class DecodePool:
    """Reads, decodes and resizes images in threads, a few images ahead of the caller.

    Args:
        size: side of what the encoder sees, in pixels.
        workers: threads.
        depth: images that are read ahead at most, 1 or more.
        limits: bounds on what is decoded.
        isolate: decode each image in a process of its own (see `images.sandbox`). `close` then ends these processes.

    Raises:
        UsageError: `isolate` works on Linux only.
    """

    def __init__(self, size: int, *, workers: int, depth: int, limits: Limits = DEFAULT_LIMITS, isolate: bool = False) -> None:
        self._size = size
        self._workers = workers
        self._depth = depth
        self._limits = limits
        self._sandbox = _sandbox(limits) if isolate else None

    def close(self) -> None:
        """End the decoders' processes, where there are any. They are started again when they are needed."""
        if self._sandbox:
            self._sandbox.close()

    def open(self, data: bytes, name: str = "") -> OpenImage:
        """Open a file's bytes, in a process of its own where the pool isolates. Close what is returned.

        Raises:
            ImageError: see `open_image` and `SandboxedImageFile`.
        """
        return self._sandbox.open(data, name) if self._sandbox else open_image(data, self._limits, name)

    def frames(
        self,
        paths: Iterable[PathOrFound],
        on_skip: Callable[[Path], None] | None = None,
        known: Callable[[bytes, str], bool] | None = None,
        views: Views | None = None,
    ) -> Iterator[DecodeResult]:
        """Decode the frames of all images, in order.

        Args:
            paths: files and folders (recursive), or what `walk` found in them.
            on_skip: is told of files in folders that are not images.
            known: asked, from the threads, whether a file of this sha256 and key may be left out.
            views: makes a frame's views from the opened image, the frame's number and the size; None takes `ImageFile.views`.

        Yields:
            A frame at a time; a `KnownFile` for a file that is left out, a `FailedFrame` for one that cannot be opened.
        """
        views = views or _own_views
        prepare = partial(self._prepare, known=known, views=views)
        located = _locate(paths, on_skip)
        with closing(map_ahead(prepare, located, workers=self._workers, depth=self._depth, name="lcmem-decode")) as prepared:
            # `map` keeps no file's frames while the next file is waited for, as a loop's variable would.
            yield from chain.from_iterable(map(partial(self._frames_of, views=views), prepared))

    def _prepare(
        self, located: tuple[SourceFile, Found | Supplied | Unfound], known: Callable[[bytes, str], bool] | None, views: Views
    ) -> _OpenedFile | FailedFrame | KnownFile:
        """A worker's part: read, hash, decode, resize. An image's own errors are a result, not an exception."""
        file, found = located
        if isinstance(found, Unfound):
            return FailedFrame(file, None, (), found.error)
        try:
            data = found.read() if isinstance(found, Supplied) else read_file(found.path, self._limits)
            content = hashlib.sha256(data).digest()
            file = replace(file, content=content)
            if known and known(content, file.key):
                return KnownFile(file, None, ())
            image = self.open(data, "" if isinstance(found, Supplied) else found.path.name)
            ahead = tuple(self._decode(image, number, views) for number in range(min(image.frames, FRAMES_AHEAD)))
        except ImageError as error:
            return FailedFrame(file, None, (), error)
        except MemoryError:
            return FailedFrame(file, None, (), ImageError(Reason.OUT_OF_MEMORY, "there was not enough memory to read it"))
        file = replace(file, frames=image.frames, identifiers=image.identifiers)
        if image.frames > len(ahead):
            return _OpenedFile(file, image.notes, ahead, image)
        image.close()
        return _OpenedFile(file, image.notes, ahead, None)

    def _decode(self, image: OpenImage, number: int, views: Views) -> NDArray[np.uint8] | ImageError:
        try:
            return np.stack(views(image, number, self._size))
        except ImageError as error:
            return error
        except MemoryError:
            return ImageError(Reason.OUT_OF_MEMORY, "there was not enough memory to decode it")

    def _frames_of(self, prepared: _OpenedFile | FailedFrame | KnownFile, views: Views) -> Iterator[DecodeResult]:
        """Yield the frames that are decoded already, and decode the rest."""
        if not isinstance(prepared, _OpenedFile):
            yield prepared
            return
        file, image = prepared.file, prepared.image
        for number, decoded in enumerate(prepared.ahead):
            yield _frame(file, number, prepared.notes, decoded)
        if image is None:
            return
        for number in range(len(prepared.ahead), file.frames):
            decoded = self._decode(image, number, views)
            if number == file.frames - 1:
                image.close()
            yield _frame(file, number, image.notes, decoded)


def map_ahead(
    function: Callable[[Item], Made], items: Iterable[Item], *, workers: int, depth: int, name: str
) -> Generator[Made, None, None]:
    """Call a function on each item in threads, ahead of the caller, and yield the results in the order of the items.

    Args:
        function: called in the threads. What it raises is raised here, when the item's turn comes.
        items: taken one by one, in the caller's thread. A generator is closed at the end, before the threads are waited for, so
            that what supplies the items can stop the threads that wait for it.
        workers: threads.
        depth: items that are in work or done and not yet yielded, at most; 1 or more.
        name: of the threads, in front of their numbers.
    """
    pending: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        if isinstance(items, Generator):
            items.close()
        pool.shutdown(wait=True, cancel_futures=True)


def _locate(
    paths: Iterable[PathOrFound], on_skip: Callable[[Path], None] | None
) -> Generator[tuple[SourceFile, Found | Supplied | Unfound], None, None]:
    """Find the images, and name each. A generator of paths is closed at the end."""
    try:
        for found in walk_or_supplied(paths):
            if isinstance(found, Skipped):
                if on_skip:
                    on_skip(found.path)
            elif isinstance(found, Supplied):
                yield SourceFile(found.key, found.key), found
            else:
                yield SourceFile(image_name(found.path), _key(found.path)), found
    finally:
        if isinstance(paths, Generator):
            paths.close()


def _key(path: Path) -> str:
    """An image's key: its absolute path, so that it means the same wherever the command is run, as valid text."""
    return image_name(os.path.abspath(path))


def _own_views(image: OpenImage, number: int, size: int) -> Sequence[NDArray[np.uint8]]:
    return image.views(number, size)


def _frame(
    file: SourceFile, number: int, notes: tuple[ContentFlag, ...], decoded: NDArray[np.uint8] | ImageError
) -> DecodedFrame | FailedFrame:
    if isinstance(decoded, ImageError):
        return FailedFrame(file, number, notes, decoded)
    return DecodedFrame(file, number, notes, decoded)


def _sandbox(limits: Limits) -> DecoderPool:
    from .images.sandbox import DecoderPool

    return DecoderPool(limits)
