"""Images of a file list, read ahead in threads by the runtime's own reader, and altered there too."""

from __future__ import annotations

import bisect
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from lcmem_onnx.runtime.decode_pool import map_ahead
from lcmem_onnx.runtime.errors import FileListError, ImageError, Reason, UsageError
from lcmem_onnx.runtime.images.image import DEFAULT_LIMITS, Limits, open_image, read_file
from lcmem_onnx.runtime.images.preprocess import is_blank, resize

from .compare import Pixels
from .filelist import Listed
from .protocols import Cell, altered, realistically_altered
from .realistic import NEEDS_OTHER

__all__ = ["Store", "Unreadable", "Versions", "read_ahead", "read_image"]


@dataclass(frozen=True)
class Unreadable:
    """A listed image that is left out, with the stable code of `runtime.errors.Reason` and words for people."""

    name: str
    ds_name: str
    split: str
    reason: str
    detail: str


@dataclass(frozen=True, eq=False)
class Versions:
    """An image and what was made of it: `original` uint8 (size, size, 3), `copies` uint8 (cells, size, size, 3)."""

    original: Pixels
    copies: Pixels


def read_image(row: Listed, size: int, limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """First frame of a listed image, resized as the runtime does it: RGB, uint8 (size, size, 3).

    Raises:
        ImageError: it cannot be read, or shows nothing.
    """
    return _read(row, size, limits)[1]


def _read(row: Listed, size: int, limits: Limits = DEFAULT_LIMITS) -> tuple[Pixels, Pixels]:
    """First frame of a listed image at its own resolution, and resized."""
    try:
        opened = open_image(read_file(row.path, limits), limits, row.path.name)
        frame = opened.frame(0)
        image = resize(frame, size)
    except MemoryError as error:
        raise ImageError(Reason.OUT_OF_MEMORY, "there was not enough memory to read it") from error
    if is_blank(image):
        raise ImageError(Reason.BLANK, "it shows nothing: every pixel is the same, so it would match any other blank image")
    return frame, image


class _Partners:
    """Finds the other image of a collage: of the same data set and split, of another identity.

    All images of a split lie on a ring, at places that the seed and their names give; the partner is the next one of another
    identity. So it does not depend on the order of the list, and an image more changes the partner of its neighbours alone.
    """

    def __init__(self, rows: Sequence[Listed], seed: int) -> None:
        self._seed = seed
        self._rings: dict[tuple[str, str], list[tuple[bytes, str, Listed]]] = {}
        for row in rows:
            self._rings.setdefault((row.ds_name, row.split), []).append((self._place(row.name), row.name, row))
        for ring in self._rings.values():
            ring.sort(key=lambda entry: entry[:2])

    def read(self, row: Listed, size: int) -> Pixels:
        """The partner's first frame at its own resolution; partners that cannot be read are passed over.

        Raises:
            FileListError: no other identity of the split can be read.
        """
        ring = self._rings[row.ds_name, row.split]
        begin = bisect.bisect_right(ring, (self._place(row.name), row.name), key=lambda entry: entry[:2])
        for step in range(len(ring)):
            partner = ring[(begin + step) % len(ring)][2]
            if partner.identity == row.identity:
                continue
            try:
                return _read(partner, size)[0]
            except ImageError:
                continue
        of = f"{row.split} of {row.ds_name!r}" if row.ds_name else row.split
        raise FileListError(f"{of} has 1 identities that can be read; it takes two or more to have pairs of different images")

    def _place(self, name: str) -> bytes:
        return _place(self._seed, name, "partner")


def read_ahead(
    rows: Sequence[Listed], size: int, cells: Sequence[Cell], seed: int, workers: int, most_altered: int | None = None
) -> Iterator[Versions | Unreadable]:
    """Each image of the list with its altered copies, in the list's order.

    Args:
        rows: what to read.
        size: working size. The paper's alterations and those beyond are made at it, realistic ones at the image's own size.
        cells: what to make of each image, realistic ones last; of VAL's the paper's alone, for nothing is fitted on the others.
        seed: of the alterations.
        workers: threads.
        most_altered: images of each split of each data set that are altered, chosen by seed and name; all if None. The others
            come with no copies.
    """

    plain = [cell for cell in cells if not cell.realistic]
    realistic = [cell for cell in cells if cell.realistic]
    partners = _Partners(rows, seed) if any(cell.transform in NEEDS_OTHER for cell in realistic) else None

    chosen_rows = _drawn(rows, seed, most_altered)

    def versions(row: Listed) -> Versions | Unreadable:
        try:
            frame, image = _read(row, size)
        except ImageError as error:
            return Unreadable(row.name, row.ds_name, row.split, error.reason.value, str(error))
        copies = [np.empty((0, *image.shape), np.uint8)]
        if chosen_rows is not None and row not in chosen_rows:
            return Versions(image, copies[0])
        if chosen := [cell for cell in plain if cell.paper or row.split != "VAL"]:
            copies.append(altered(image, row.name, seed, chosen))
        if realistic and row.split != "VAL":
            other = None if partners is None else partners.read(row, size)
            copies.append(realistically_altered(frame, row.name, seed, size, realistic, other))
        return Versions(image, np.concatenate(copies))

    return map_ahead(versions, rows, workers=workers, depth=2 * workers + 1, name="lcmem-evaluate")


def _drawn(rows: Sequence[Listed], seed: int, most: int | None) -> frozenset[Listed] | None:
    """Up to `most` rows of each split of each data set, whatever their order in the list; None for all."""
    if most is None:
        return None
    groups: dict[tuple[str, str], list[Listed]] = {}
    for row in sorted(rows, key=lambda row: _place(seed, row.name, "altered")):
        groups.setdefault((row.ds_name, row.split), []).append(row)
    return frozenset(row for group in groups.values() for row in group[:most])


def _place(seed: int, name: str, purpose: str) -> bytes:
    """Put a name at a place that the seed gives, of each purpose another one."""
    return hashlib.sha256(f"{seed}\0{name}\0{purpose}".encode("utf-8", "surrogateescape")).digest()


class Store:
    """Images of one size in a temporary file, for scorers that must see both images of a pair: a list may not fit in memory."""

    def __init__(self, size: int) -> None:
        self._shape = (size, size, 3)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the store
        self._place: dict[int, int] = {}

    def put(self, number: int, image: Pixels) -> None:
        """Keep an image by its number.

        Raises:
            UsageError: the disk is full.
        """
        try:
            self._place[number] = self._file.seek(0, 2)
            self._file.write(image.tobytes())
        except OSError as error:
            raise UsageError(
                f"the images do not fit into {tempfile.gettempdir()} ({error.strerror}), where baselines that compare pixels "
                "need them: set TMPDIR to a larger disk, or leave mse, ssim and ncc out"
            ) from error

    def get(self, number: int) -> Pixels:
        """The image with this number, uint8 (size, size, 3)."""
        self._file.seek(self._place[number])
        data = self._file.read(int(np.prod(self._shape)))
        return np.frombuffer(data, np.uint8).reshape(self._shape)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()
