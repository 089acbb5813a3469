"""Any file to RGB frames: what it is, whether it may be decoded, and its frames one by one.

A file is told by its first bytes, not by its name, and its header is checked before anything is decoded. Whatever goes
wrong with one file or one frame is an ImageError. Nothing here changes global settings of Pillow or pydicom, which an
embedding program shares, but for one that would hide damage (see `raster`); so frames may be decoded in threads. Both
libraries may issue Python warnings about odd files; whether they are shown is left to the program too, since warning
filters are global (an error filter makes of such a file a damaged one).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, Reason
from .content_flags import ContentFlag
from .dicom.identifiers import Identifiers
from .discovery import Found, Skipped, Unfound, image_name, walk
from .formats import DEFAULT_LIMITS, DICOM_SUFFIXES, HEAD, TGA_SUFFIXES, Kind, Limits, identify, read_file, refusal, sniff
from .preprocess import Pixels, as_array, is_blank, resize
from .raster.raster_file import Raster, open_raster

if TYPE_CHECKING:
    from .dicom.dicom_object import Dicom

__all__ = [
    "DEFAULT_LIMITS",
    "HEAD",
    "ContentFlag",
    "Found",
    "ImageFile",
    "Kind",
    "Limits",
    "Skipped",
    "Unfound",
    "boundary",
    "image_name",
    "open_image",
    "read_file",
    "sniff",
    "views_of",
    "walk",
]

SAME_LEVELS = 2.0
"""Two renderings whose resized pixels differ by no more than this on average, of 255, count as one."""


@dataclass(frozen=True)
class ImageFile:
    """A file whose header has passed. Frames may be asked for from several threads, in any order.

    Attributes:
        kind: the format, by content.
    """

    kind: Kind
    _source: Dicom | Raster = field(repr=False)

    @property
    def frames(self) -> int:
        """How many frames there are, 1 or more."""
        return self._source.frames

    @property
    def notes(self) -> tuple[ContentFlag, ...]:
        """What else the file holds, and is not screened. Of a raster image some show in decoding only: ask after the frames."""
        return self._source.notes

    @property
    def identifiers(self) -> Identifiers:
        """Whose it is, by its header: of DICOM objects; other files do not say."""
        return getattr(self._source, "identifiers", Identifiers())

    def close(self) -> None:
        """Does nothing here; `SandboxedImageFile` ends its process."""

    def frame(self, number: int) -> NDArray[np.uint8]:
        """Decode frame `number`, from 0: RGB, uint8 (height, width, 3), as a viewer shows it.

        Raises:
            ImageError: this frame cannot be decoded; others may.
            IndexError: there is no such frame.
        """
        return self.renderings(number)[0]

    def renderings(self, number: int) -> tuple[NDArray[np.uint8], ...]:
        """Frame `number` as a viewer shows it on white; where it is transparent also on black; of more than 8 bits or a DICOM
        object's grey also by its values alone.

        Returns:
            One to four, RGB, uint8 (height, width, 3).

        Raises:
            As for `frame`.
        """
        shown = self._shown(number)
        with boundary():
            return tuple(as_array(pixels) for pixels in shown)

    def _shown(self, number: int) -> tuple[Pixels, ...]:
        """The renderings, in the form in which they were decoded."""
        if not 0 <= number < self.frames:
            raise IndexError(f"frame {number} does not exist: the image has {self.frames} frames")
        with boundary():
            return self._source.renderings(number)

    def views(self, number: int, size: int) -> tuple[NDArray[np.uint8], ...]:
        """What the network is to see of frame `number`: its renderings, resized; without blank ones, and each once.

        Args:
            number: from 0.
            size: the side, in pixels.

        Returns:
            One to four, uint8 (size, size, 3).

        Raises:
            As for `frame`; ImageError: blank, where no rendering shows anything.
        """
        shown = self._shown(number)
        with boundary():
            return views_of(shown, size)


def views_of(renderings: Sequence[Pixels], size: int) -> tuple[NDArray[np.uint8], ...]:
    """See `ImageFile.views`."""
    views: list[NDArray[np.uint8]] = []
    for rendering in renderings:
        view = resize(rendering, size)
        if not is_blank(view) and all(_difference(view, other) > SAME_LEVELS for other in views):
            views.append(view)
    if not views:
        raise ImageError(Reason.BLANK, "blank image: all pixels are equal, so it would match any other blank image")
    return tuple(views)


def _difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())


def open_image(data: bytes, limits: Limits = DEFAULT_LIMITS, name_hint: str = "") -> ImageFile:
    """Tell what a file is and read its header; its frames are decoded when they are asked for.

    Args:
        data: the file's content.
        limits: what may be decoded.
        name_hint: the file's name. It only serves DICOM objects without a preamble, which are tried as such when their
            suffix is .dcm, .dicom or .ima, and Targa files, which have no mark at their beginning.

    Raises:
        ImageError: empty-file, not-a-picture, unsupported, no-pixels, too-large, damaged, out-of-memory.
    """
    if not data:
        raise ImageError(Reason.EMPTY_FILE, "empty file (0 bytes)")
    kind = sniff(data[:HEAD])
    suffix = PurePath(name_hint).suffix.lower()
    if kind is None and suffix in DICOM_SUFFIXES:
        kind = Kind.DICOM
    if kind is None and suffix in TGA_SUFFIXES:
        kind = Kind.TGA
    if kind is None:
        found = identify(BytesIO(data))
        if not isinstance(found, Kind):
            raise refusal(found)
        kind = found
    with boundary():
        opened = _open_dicom(data, limits) if kind is Kind.DICOM else open_raster(data, kind, limits)
    if opened.frames < 1:
        raise ImageError(Reason.DAMAGED, f"damaged: {kind.value} file without an image")
    return ImageFile(kind, opened)


def _open_dicom(data: bytes, limits: Limits) -> Dicom:
    from .dicom.dicom_object import open_dicom

    return open_dicom(data, max_pixels=limits.max_pixels, max_frames=limits.max_frames, max_inflated=limits.max_inflated_bytes)


@contextmanager
def boundary() -> Iterator[None]:
    """A `with` in which any error is an ImageError: the one place where a decoder's errors become ImageErrors.

    On hostile files Pillow, pydicom and the codecs raise errors of every kind, RecursionError, SyntaxError and
    struct.error among them, so nothing narrower than Exception will do.
    """
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(Reason.OUT_OF_MEMORY, "not enough memory to decode the image") from error
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ImageError(Reason.DAMAGED, f"damaged image, cannot be decoded ({cause[:160]})") from error
