"""Pictures of a file list, read ahead in threads by the runtime's own reader, and altered there too."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from lcmem_onnx.runtime.errors import PictureError, Reason, UsageError
from lcmem_onnx.runtime.pictures import DEFAULT_LIMITS, Limits, open_picture, read_file
from lcmem_onnx.runtime.preprocess import is_blank, resize

from .compare import Pixels
from .filelist import Listed
from .protocols import Cell, altered

__all__ = ["Store", "Unreadable", "Versions", "read_ahead", "read_picture"]


@dataclass(frozen=True)
class Unreadable:
    """A listed picture that is left out, with the stable code of `runtime.errors.Reason` and words for people."""

    name: str
    ds_name: str
    split: str
    reason: str
    detail: str


@dataclass(frozen=True, eq=False)
class Versions:
    """A picture and what was made of it: `original` uint8 (size, size, 3), `copies` uint8 (cells, size, size, 3)."""

    original: Pixels
    copies: Pixels


def read_picture(row: Listed, size: int, limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """First frame of a listed picture, resized as the runtime does it: RGB, uint8 (size, size, 3).

    Raises:
        PictureError: it cannot be read, or shows nothing.
    """
    try:
        opened = open_picture(read_file(row.path, limits), limits, row.path.name)
        picture = resize(opened.frame(0), size)
    except MemoryError as error:
        raise PictureError(Reason.OUT_OF_MEMORY, "there was not enough memory to read it") from error
    if is_blank(picture):
        raise PictureError(Reason.BLANK, "it shows nothing: every pixel is the same, so it would match any other blank picture")
    return picture


def read_ahead(
    rows: Sequence[Listed], size: int, cells: Sequence[Cell], seed: int, workers: int
) -> Iterator[Versions | Unreadable]:
    """Each picture of the list with its altered copies, in the list's order.

    Args:
        rows: what to read.
        size: working size; alterations are made at it.
        cells: what to make of each picture; of VAL's the paper's alone, for nothing is fitted on the others.
        seed: of the alterations.
        workers: threads.
    """

    def versions(row: Listed) -> Versions | Unreadable:
        try:
            picture = read_picture(row, size)
        except PictureError as error:
            return Unreadable(row.name, row.ds_name, row.split, error.reason.value, str(error))
        chosen = [cell for cell in cells if cell.paper or row.split != "VAL"]
        if not chosen:
            return Versions(picture, np.empty((0, *picture.shape), np.uint8))
        return Versions(picture, altered(picture, row.name, seed, chosen))

    waiting: deque[Future[Versions | Unreadable]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="lcmem-evaluate")
    try:
        for row in rows:
            waiting.append(pool.submit(versions, row))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Store:
    """Pictures of one size in a temporary file, for scorers that must see both pictures of a pair: a list may not fit in memory."""

    def __init__(self, size: int) -> None:
        self._shape = (size, size, 3)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the store
        self._place: dict[int, int] = {}

    def put(self, number: int, picture: Pixels) -> None:
        """Keep a picture by its number.

        Raises:
            UsageError: the disk is full.
        """
        try:
            self._place[number] = self._file.seek(0, 2)
            self._file.write(picture.tobytes())
        except OSError as error:
            raise UsageError(
                f"the pictures do not fit into {tempfile.gettempdir()} ({error.strerror}), where baselines that compare pixels "
                "need them: set TMPDIR to a larger disk, or leave mse, ssim and ncc out"
            ) from error

    def get(self, number: int) -> Pixels:
        """The picture with this number, uint8 (size, size, 3)."""
        self._file.seek(self._place[number])
        data = self._file.read(int(np.prod(self._shape)))
        return np.frombuffer(data, np.uint8).reshape(self._shape)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()
