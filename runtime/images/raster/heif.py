"""HEIC files, decoded by pi-heif (libheif and libde265, no encoder), an optional package."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ImageError, Reason
from ..content_flags import ContentFlag
from ..formats import Limits
from .jpeg import check_size
from .renderings import Alpha, Decoded, color_renderings, flattened, grey_renderings, has_hidden_image

__all__ = ["INSTALL", "Heif"]

INSTALL = "pip install 'lcmem-onnx[heic]'"


class Heif:
    """A HEIC file whose header has been read; each of its images is a frame, the primary one first.

    Args:
        data: the file.
        limits: on what is decoded.

    Raises:
        ImageError: unsupported, where pi-heif is not installed; too-large.
        Exception: whatever pi-heif raises on a damaged file.
    """

    def __init__(self, data: bytes, limits: Limits) -> None:
        try:
            import pi_heif
        except ImportError as error:
            raise ImageError(Reason.UNSUPPORTED, f"HEIC images require an optional package: {INSTALL}") from error
        self._data = data
        self._limits = limits
        self._reader: Callable[..., Any] = pi_heif.open_heif
        images = self._images()
        if len(images) > limits.max_frames:
            raise ImageError(Reason.TOO_LARGE, f"it has more than {limits.max_frames} frames")
        self.frames = len(images)
        self.info: dict[str, Any] = images[0].info

    def _images(self) -> list[Any]:
        """The images, not yet decoded."""
        file = self._reader(BytesIO(self._data), convert_hdr_to_8bit=False)
        images = list(file)
        for image in images:
            width, height = image.size
            check_size(width, height, self._limits)
        first = file.primary_index
        return [images[first], *images[:first], *images[first + 1 :]]

    def decode(self, number: int) -> Decoded:
        """Decode one frame. libheif has turned it already."""
        image = self._images()[number]  # anew, since one keeps its pixels
        values = np.array(image, copy=True)[: image.size[1], : image.size[0]]  # the memory is pi-heif's, and rows may be longer
        return _rendered(values, image.mode.partition(";")[0])


def _rendered(values: NDArray[Any], mode: str) -> Decoded:
    top = 0xFFFF if values.dtype.itemsize == 2 else 255
    alpha = None
    if mode in ("RGBA", "LA", "RGBa"):
        alpha = Alpha(values[..., -1], top, mode == "RGBa")
    hidden = False
    if mode in ("L", "LA"):
        renderings = grey_renderings(np.ascontiguousarray(values[..., 0] if values.ndim == 3 else values), top=top, alpha=alpha)
    else:
        rgb = np.ascontiguousarray(values[..., :3])
        renderings = color_renderings(rgb, top=top, alpha=alpha) if top > 255 else flattened(rgb, alpha)
        hidden = top == 255 and has_hidden_image(rgb, alpha)
    return Decoded(renderings, 1, frozenset({ContentFlag.HIDDEN_PIXELS} if hidden else set()))
