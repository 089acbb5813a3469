"""HEIC files, decoded by pi-heif (libheif and libde265, no encoder), an optional package."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from .errors import PictureError, Reason
from .files import Limits
from .jpeg import check_size
from .notes import Note
from .renderings import Alpha, Decoded, color_renderings, flattened, grey_renderings, has_hidden_image

__all__ = ["INSTALL", "Heif"]

INSTALL = "pip install 'lcmem-onnx[heic]'"


class Heif:
    """A HEIC file whose header has been read; each of its images is a frame, the primary one first.

    Args:
        data: the file.
        limits: on what is decoded.

    Raises:
        PictureError: unsupported, where pi-heif is not installed; too-large.
        Exception: whatever pi-heif raises on a damaged file.
    """

    def __init__(self, data: bytes, limits: Limits) -> None:
        try:
            import pi_heif
        except ImportError as error:
            raise PictureError(Reason.UNSUPPORTED, f"HEIC images need an optional package: {INSTALL}") from error
        self._limits = limits
        self._file = pi_heif.open_heif(BytesIO(data), convert_hdr_to_8bit=False)
        images = list(self._file)
        for image in images:
            check_size(*image.size, limits)
        if len(images) > limits.max_frames:
            raise PictureError(Reason.TOO_LARGE, f"it has more than {limits.max_frames} frames")
        first = self._file.primary_index
        self._images = [images[first], *images[:first], *images[first + 1 :]]
        self.frames = len(self._images)
        self.info: dict[str, Any] = self._images[0].info

    def decode(self, number: int) -> Decoded:
        """Decode one frame. libheif has turned it already."""
        image = self._images[number]
        values = np.asarray(image)
        depth = int(image.info.get("bit_depth", 8))
        mode = image.mode.partition(";")[0]
        return Decoded((values,), 1) if mode == "?" else _rendered(values, mode, depth)


def _rendered(values: Any, mode: str, depth: int) -> Decoded:
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
    return Decoded(renderings, 1, frozenset({Note.HIDDEN_PIXELS} if hidden else set()))
