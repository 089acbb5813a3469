"""PNG, JPEG, TIFF, WebP, BMP and GIF to RGB frames.

Pillow reads and decodes, because it is strict: OpenCV fills what a truncated JPEG lacks with grey and says nothing.
16-bit colour alone is then read again by OpenCV, because Pillow drops its lower bytes.

As viewers show it, a picture is turned by its EXIF orientation: the reference does not do so, but a copy that a viewer
saved again has it baked in, and would else be missed. Alpha is dropped, as `convert("RGB")` does in the reference.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from .depth import PERCENTILES, nominal_depth, stretched, to_8_bit
from .errors import PictureError, Reason
from .files import Kind, Limits
from .notes import Note
from .preprocess import Pixels, turned

__all__ = ["Raster", "open_raster"]

# The readers themselves instead of Image.open, which warns of large pictures, and refuses larger ones, by a global
# setting.
_READERS: dict[Kind, Callable[[BytesIO], ImageFile.ImageFile]] = {
    Kind.PNG: PngImagePlugin.PngImageFile,
    Kind.JPEG: JpegImagePlugin.JpegImageFile,
    Kind.TIFF: TiffImagePlugin.TiffImageFile,
    Kind.WEBP: WebPImagePlugin.WebPImageFile,
    Kind.BMP: BmpImagePlugin.BmpImageFile,
    Kind.GIF: GifImagePlugin.GifImageFile,
}
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0


class Raster:
    """One picture whose header has passed. Frames may be asked for from several threads; they are decoded one after
    another.

    Attributes:
        frames: pages of a TIFF, frames of an animation; else 1.
    """

    def __init__(self, data: bytes, kind: Kind, limits: Limits, frames: int) -> None:
        self.frames = frames
        self._data = data
        self._kind = kind
        self._limits = limits
        self._lock = threading.Lock()
        self._image: ImageFile.ImageFile | None = None

    @property
    def notes(self) -> tuple[Note, ...]:
        """None: what these formats hold beside their frames is not looked for."""
        return ()

    def renderings(self, number: int) -> tuple[Pixels, ...]:
        """Decode one frame and render it; first as a viewer shows it.

        Grey values of more than 8 bits have a second rendering, by `PERCENTILES` of them: they may be a DICOM object's stored
        values, exported without its window.

        Raises:
            PictureError: too large, of a layout that is not read, or not finite.
            Exception: whatever Pillow raises on a damaged file.
        """
        if ImageFile.LOAD_TRUNCATED_IMAGES:
            raise PictureError(
                Reason.UNSUPPORTED, "this program sets Pillow's LOAD_TRUNCATED_IMAGES: damage would not show; unset it"
            )
        with self._lock:
            # An animation's frames build on one another, so the reader is kept from frame to frame. It is dropped after
            # an error, and for going back, at which Pillow's PNG reader fails once it has loaded the last frame.
            image, self._image = self._image, None
            if image is None or number < image.tell():
                image = _open(self._data, self._kind)
            image.seek(number)
            _check_size(image, self._limits)
            deep = _is_deep(image, self._data, self._kind)
            inverted = self._kind is Kind.TIFF and _tiff_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO
            image.load()
            renderings = self._pixels(image, number, deep, inverted)
            # Pillow turns TIFFs itself while loading.
            orientation = 1 if self._kind is Kind.TIFF else image.getexif().get(_ORIENTATION, 1)
            if self.frames > 1:
                self._image = image
        return tuple(turned(pixels, orientation) for pixels in renderings)

    def _pixels(self, image: ImageFile.ImageFile, number: int, deep: bool, inverted: bool) -> tuple[Pixels, ...]:
        if image.mode.startswith("I;16"):
            grey = np.asarray(image)
            shown = to_8_bit(grey, nominal_depth(int(grey.max())))
            return _grey(shown, inverted), _grey(_by_percentiles(grey), inverted)
        if image.mode in ("I", "F"):
            grey = np.asarray(image)
            # 32-bit values have no depth to go by, so from the smallest to the largest.
            if not np.isfinite(grey).all():
                raise PictureError(Reason.NOT_FINITE, "its pixels are not all finite numbers")
            shown = stretched(grey, float(grey.min()), float(grey.max()))
            return _grey(shown, inverted), _grey(_by_percentiles(grey), inverted)
        if deep:
            return (_deep_colour(self._data, image, number, self._kind),)
        # Transparency of a palette is alpha, which is dropped; left in, converting warns about it.
        image.info.pop("transparency", None)
        if image.mode in ("RGB", "L") and self.frames == 1:  # nobody changes it any more
            return (image,)
        return (image.convert("RGB"),)


def open_raster(data: bytes, kind: Kind, limits: Limits) -> Raster:
    """Read a picture's header and decide whether it may be decoded.

    Raises:
        PictureError: over a limit.
        Exception: whatever Pillow raises on a damaged header.
    """
    image = _open(data, kind)
    _check_size(image, limits)
    if getattr(image, "is_animated", False):
        try:  # counts no further than it must: a TIFF's list of pages can be millions long
            image.seek(limits.max_frames)
        except EOFError:
            image = _open(data, kind)  # after a seek beyond the end Pillow's count of a TIFF's pages is wrong
        else:
            raise PictureError(Reason.TOO_LARGE, f"it has more than {limits.max_frames} frames")
    return Raster(data, kind, limits, int(getattr(image, "n_frames", 1)))


def _open(data: bytes, kind: Kind) -> ImageFile.ImageFile:
    return _READERS[kind](BytesIO(data))


def _check_size(image: Image.Image, limits: Limits) -> None:
    if image.width * image.height > limits.max_pixels:
        size = f"{image.width} x {image.height} pixels"
        raise PictureError(Reason.TOO_LARGE, f"it is {size}, more than {limits.max_pixels}")


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    return image.tag_v2.get(tag) if isinstance(image, TiffImagePlugin.TiffImageFile) else None


def _is_deep(image: Image.Image, data: bytes, kind: Kind) -> bool:
    """Whether the file has more than 8 bits a sample, whatever Pillow makes of it."""
    if kind is Kind.PNG:
        return data[12:16] == b"IHDR" and data[24] > 8
    bits = _tiff_tag(image, _BITS_PER_SAMPLE)
    return kind is Kind.TIFF and bits is not None and max(bits) > 8


def _grey(levels: NDArray[np.uint8], inverted: bool) -> NDArray[np.uint8]:
    """Grey as RGB. Pillow inverts 8-bit TIFFs whose 0 is white, but not deeper ones."""
    return np.repeat((255 - levels if inverted else levels)[..., None], 3, axis=2)


def _by_percentiles(values: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return stretched(values, float(low), float(high))


def _deep_colour(data: bytes, image: Image.Image, number: int, kind: Kind) -> NDArray[np.uint8]:
    """16-bit colour, or grey with alpha, read by OpenCV: 8-bit RGB by nominal depth."""
    if image.mode not in ("RGB", "RGBA", "RGBX", "LA") or (kind is Kind.PNG and number):
        raise PictureError(Reason.UNSUPPORTED, f"16-bit pictures of mode {image.mode} are not read; save with 8 bits")
    buffer = np.frombuffer(data, np.uint8)
    if kind is Kind.TIFF:
        read, pages = cv2.imdecodemulti(buffer, cv2.IMREAD_UNCHANGED, range=(number, number + 1))
        values = pages[0] if read and len(pages) else None
    else:
        values = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    size = (image.height, image.width)
    if values is None or values.dtype != np.uint16 or values.ndim != 3 or values.shape[:2] != size:
        raise PictureError(Reason.UNSUPPORTED, "its 16-bit colour could not be read; save it with 8 bits")
    colours = np.asarray(values)[..., 2::-1]  # from blue, green, red, alpha
    return to_8_bit(colours, nominal_depth(int(colours.max())))
