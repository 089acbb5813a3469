"""Raster images of all formats to RGB frames, and the flags on what else they hold.

Pillow reads and decodes PNG, WebP, BMP, GIF, AVIF, Targa and ordinary JPEG, because it is strict: OpenCV fills what a truncated
JPEG lacks with grey and says nothing. imagecodecs decodes the rest (`tiff`, `jpeg2000`, `jpegxl`, lossless JPEG, 16-bit PNG), and
pi-heif HEIC. `netpbm` is read here.

An image is turned by its EXIF orientation, as viewers show it: a copy that a viewer saved again has it baked in, and would else be
missed. Transparent images are flattened, see `renderings`.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, Protocol

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    PngImagePlugin,
    TgaImagePlugin,
    WebPImagePlugin,
)

from ...errors import ImageError, Reason
from ..content_flags import ContentFlag
from ..formats import Kind, Limits
from ..preprocess import Pixels, turned
from .containers import without_large_texts
from .embedded_images import Embedded, find_embedded
from .heif import Heif
from .jpeg import JpegFile, check_size, decode_jpeg, read_jpeg
from .jpeg2000 import Jpeg2000
from .jpegxl import JpegXl
from .netpbm import Netpbm
from .renderings import Alpha, Decoded, color_renderings, flattened, grey_renderings, has_hidden_image
from .tiff import Tiff

__all__ = ["Raster", "open_raster"]

# The readers themselves instead of Image.open, which warns of large images, and refuses larger ones, by a global setting.
_READERS: dict[Kind, Callable[[BytesIO], ImageFile.ImageFile]] = {
    Kind.PNG: PngImagePlugin.PngImageFile,
    Kind.WEBP: WebPImagePlugin.WebPImageFile,
    Kind.BMP: BmpImagePlugin.BmpImageFile,
    Kind.GIF: GifImagePlugin.GifImageFile,
    Kind.AVIF: AvifImagePlugin.AvifImageFile,
    Kind.TGA: TgaImagePlugin.TgaImageFile,
}
_ORIENTATION = 0x0112
logging.getLogger("imagecodecs").addHandler(logging.NullHandler())  # else its warnings about odd files go to stderr
_NOT_SUPPORTED = re.compile(
    r"unsupported|not supported|not implemented|unknown (pixel |tga )?mode|no decode delegate|MAX_TEXT_(CHUNK|MEMORY)",
    re.IGNORECASE,
)
"""What Pillow says of sound files that it does not read, in exceptions that it also raises on damaged ones."""
_OPAQUE_IF_EMPTY = {Kind.BMP, Kind.TGA}
"""Formats many of whose writers leave the fourth channel at 0: where it is 0 everywhere, viewers show the image as opaque."""


class _Source(Protocol):
    """A file of one format, whose headers have been read."""

    @property
    def frames(self) -> int: ...

    def decode(self, number: int) -> Decoded: ...


class Raster:
    """One image file whose header has passed. Frames may be asked for from several threads; they are decoded one after another.

    Attributes:
        frames: pages, images in SubIFDs, frames of an animation, images of a multi-picture file; else 1.
    """

    def __init__(self, source: _Source, embedded: Embedded) -> None:
        self.frames = source.frames
        self._source = source
        self._embedded = embedded
        self._seen: set[ContentFlag] = set()
        self._lock = threading.Lock()

    @property
    def notes(self) -> tuple[ContentFlag, ...]:
        """Flags on what the file holds and the frames do not show, sorted.

        Some are known only once a frame has been decoded: whether a thumbnail shows what the first frame shows (until then, it is
        flagged), and whether transparent pixels hide an image. Ask for them after the frames.
        """
        return tuple(sorted(self._seen | self._embedded.notes))

    def renderings(self, number: int) -> tuple[Pixels, ...]:
        """Decode one frame and render it; first as a viewer shows it on white.

        Transparent images have a second rendering on black. Grey values of more than 8 bits have one by `PERCENTILES` of them: they
        may be a DICOM object's stored values, exported without its window.

        Raises:
            ImageError: too large, of a layout that is not read, or without a finite value.
            Exception: whatever the decoders raise on a damaged file.
        """
        with self._lock, _strict.pillow(), _unsupported():
            decoded = self._source.decode(number)
            self._seen |= decoded.notes
            self._embedded.compare(number, decoded.renderings[0])
        return tuple(turned(pixels, decoded.orientation) for pixels in decoded.renderings)


def open_raster(data: bytes, kind: Kind, limits: Limits) -> Raster:
    """Read an image's header and decide whether it may be decoded.

    Raises:
        ImageError: over a limit, or not supported.
        Exception: whatever Pillow raises on a damaged header.
    """
    with _strict.pillow():
        with _unsupported():
            source = _open(data, kind, limits)
        return Raster(source, find_embedded(data, kind, source, limits))


class _Strict:
    """Makes Pillow refuse damaged files while one is read, whatever the program sets for itself.

    `ImageFile.LOAD_TRUNCATED_IMAGES` belongs to the whole process, and some packages set it where they are imported. It is False
    from the first reader's start to the last one's end, then what it was before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._before = False

    @contextmanager
    def pillow(self) -> Iterator[None]:
        """A `with` in which damaged files are errors. It may be entered by several threads, and again within itself."""
        with self._lock:
            if not self._readers:
                self._before = False
            self._readers += 1
            self._before = self._before or ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if not self._readers:
                    ImageFile.LOAD_TRUNCATED_IMAGES = self._before or ImageFile.LOAD_TRUNCATED_IMAGES


_strict = _Strict()


def _open(data: bytes, kind: Kind, limits: Limits) -> _Source:
    sources: dict[Kind, Callable[[bytes, Limits], _Source]] = {
        Kind.TIFF: Tiff,
        Kind.JPEG: Jpeg,
        Kind.JPEG_LS: Jpeg,
        Kind.JPEG_2000: Jpeg2000,
        Kind.JPEG_XL: JpegXl,
        Kind.NETPBM: Netpbm,
        Kind.HEIC: Heif,
    }
    return sources[kind](data, limits) if kind in sources else _Pillow(data, kind, limits)


@contextmanager
def _unsupported() -> Iterator[None]:
    """A `with` in which a refusal of a sound file is an ImageError: unsupported."""
    try:
        yield
    except Image.DecompressionBombError as error:  # by a global setting of Pillow's, in frames that grow
        raise ImageError(Reason.TOO_LARGE, " ".join(str(error).split())[:120]) from error
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        if isinstance(error, NotImplementedError) or _NOT_SUPPORTED.search(str(error)):
            cause = " ".join(str(error).split())[:120]
            raise ImageError(Reason.UNSUPPORTED, f"this kind of file is not supported ({cause})") from error
        raise


class Jpeg:
    """A JPEG or JPEG-LS file; each image of a multi-picture file (MPO) is a frame.

    Args:
        data: the file.
        limits: on what is decoded.

    Raises:
        ImageError: damaged or too large.
    """

    def __init__(self, data: bytes, limits: Limits) -> None:
        self._data = data
        self._limits = limits
        self.header: JpegFile = read_jpeg(data)
        check_size(*self.header.size, limits)
        self.others = tuple(span for span in self.header.others if data[span[0] : span[0] + 3] == b"\xff\xd8\xff")
        self.frames = 1 + len(self.others)
        if self.frames > limits.max_frames:
            raise ImageError(Reason.TOO_LARGE, f"it has more than {limits.max_frames} frames")

    def decode(self, number: int) -> Decoded:
        """Decode one frame."""
        if number == 0:
            return decode_jpeg(self._data, self._limits, self.header)
        start, end = self.others[number - 1]
        return decode_jpeg(self._data[start:end], self._limits)


class _Pillow:
    """A file that Pillow reads."""

    def __init__(self, data: bytes, kind: Kind, limits: Limits) -> None:
        self._data = without_large_texts(data) if kind is Kind.PNG else data
        self._kind = kind
        self._limits = limits
        self._image: ImageFile.ImageFile | None = None
        image = self._reader()
        check_size(*image.size, limits)
        if getattr(image, "is_animated", False):
            try:
                image.seek(limits.max_frames)
            except EOFError:
                image = self._reader()
            else:
                raise ImageError(Reason.TOO_LARGE, f"it has more than {limits.max_frames} frames")
        self.frames = int(getattr(image, "n_frames", 1))
        self.info = image.info

    def _reader(self) -> ImageFile.ImageFile:
        return _READERS[self._kind](BytesIO(self._data))

    def decode(self, number: int) -> Decoded:
        """Decode one frame."""
        # An animation's frames build on one another, so the reader is kept from frame to frame. It is dropped after an error, and
        # for going back, at which Pillow's PNG reader fails once it has loaded the last frame.
        image, self._image = self._image, None
        if image is None or number < image.tell():
            image = self._reader()
        image.seek(number)
        check_size(*image.size, self._limits)
        if not image.tile and self._kind is Kind.TGA:
            raise ImageError(Reason.UNSUPPORTED, "Targa files of this type and depth are not supported")
        image.load()
        decoded = self._rendered(image, number)
        if self.frames > 1:
            self._image = image
        return decoded

    def _rendered(self, image: ImageFile.ImageFile, number: int) -> Decoded:
        orientation = image.getexif().get(_ORIENTATION, 1)
        deep = self._kind is Kind.PNG and self._data[12:16] == b"IHDR" and self._data[24] > 8
        if image.mode.startswith("I;16"):
            grey = np.asarray(image)
            key = image.info.get("transparency")
            alpha = Alpha((grey != key).astype(np.uint8), 1) if isinstance(key, int) else None
            return Decoded(grey_renderings(grey, alpha=alpha), orientation)
        if deep:
            return _deep_png(self._data, image, number, orientation)
        alpha = _alpha(image, self._data, self._kind)
        if alpha is None and image.mode in ("RGB", "L") and self.frames == 1:  # nothing changes it any more
            return Decoded((image,), orientation)
        rgb = _opaque(image)
        hidden = {ContentFlag.HIDDEN_PIXELS} if has_hidden_image(rgb, alpha) else set()
        return Decoded(flattened(rgb, alpha), orientation, frozenset(hidden))


def _opaque(image: Image.Image) -> NDArray[np.uint8]:
    """The colors alone. Converting would warn about a transparent one; the reader needs it for the next frame."""
    key = image.info.pop("transparency", None)
    try:
        return np.array(image.convert("RGB"), np.uint8)
    finally:
        if key is not None:
            image.info["transparency"] = key


def _alpha(image: Image.Image, data: bytes, kind: Kind) -> Alpha | None:
    """The opacity of an image of 8 bits a channel, or of one transparent color."""
    key = image.info.get("transparency")
    if image.mode in ("RGBA", "LA", "PA"):
        values = np.asarray(image.getchannel("A"))
        if kind in _OPAQUE_IF_EMPTY and (not values.any() or not _has_opacity(data, kind)):
            return None
        return Alpha(values, 255)
    if key is None:
        return None
    if image.mode == "P":
        return Alpha(np.asarray(image.convert("RGBA").getchannel("A")), 255)
    values = np.asarray(image.convert("L") if image.mode == "1" else image)
    if kind is Kind.PNG and data[24] < 8 and isinstance(key, int):  # Pillow scales such samples, but not the transparent one
        key = key * 255 // ((1 << data[24]) - 1)
    same = values == np.asarray(key)
    return Alpha((~(same.all(axis=-1) if same.ndim == 3 else same)).astype(np.uint8), 1)


def _has_opacity(data: bytes, kind: Kind) -> bool:
    """Whether a Targa file's header says that its fourth channel is the opacity. In one of 16 bits it rarely is."""
    return kind is not Kind.TGA or (data[17] & 15 == 8 and data[16] == 32) or data[1] == 1 or data[2] in (3, 11)


def _deep_png(data: bytes, image: Image.Image, number: int, orientation: int) -> Decoded:
    """16-bit color, or grey with alpha, of which Pillow drops the lower bytes."""
    if number:
        raise ImageError(Reason.UNSUPPORTED, "animations with 16 bits a channel are not supported; save with 8 bits")
    values: NDArray[Any] = imagecodecs.png_decode(data)
    if values.dtype != np.uint16 or values.ndim != 3 or values.shape[:2] != (image.height, image.width):
        raise ImageError(Reason.UNSUPPORTED, "its 16-bit color could not be read; save it with 8 bits")
    alpha = Alpha(values[..., -1], 0xFFFF) if values.shape[2] in (2, 4) else None
    if values.shape[2] <= 2:
        return Decoded(color_renderings(np.repeat(values[..., :1], 3, axis=2), alpha=alpha), orientation)
    return Decoded(color_renderings(values[..., :3], alpha=alpha), orientation)
