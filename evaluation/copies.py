"""What a gallery misses: a sample of its own images, altered as users alter images, is searched for in it.

An altered copy is a mate of the image that it was made of, so this measures a false-negative identification rate (FNIR) without
further data. It says nothing of further examinations of the gallery's patients: they look less alike than any copy.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lcmem_onnx.runtime.calibration.threshold import AlterationMisses, Doubles, misses
from lcmem_onnx.runtime.errors import ImageError, Reason
from lcmem_onnx.runtime.gallery import Gallery
from lcmem_onnx.runtime.images.formats import read_file
from lcmem_onnx.runtime.images.preprocess import is_blank, resize
from lcmem_onnx.runtime.model.head import Floats, sigmoid
from lcmem_onnx.runtime.screening import Screener
from numpy.typing import NDArray

from .protocols import Cell, altered, realistically_altered

__all__ = ["ALTERATIONS", "CopyScores", "Sampled", "sample", "score_copies"]

AT_WORKING_SIZE = (
    Cell("jpeg", 30.0),
    Cell("noise", 0.1),
    Cell("blur", 2.0),
    Cell("brightness", 1.3),
    Cell("contrast", 1.3),
    Cell("rotation", 5.0),
    Cell("border", 0.08, "beyond"),
)
AT_OWN_SIZE = (
    Cell("window 20-80", 1.0, "realistic"),
    Cell("clahe", 2.0, "realistic"),
    Cell("gray", 1.0, "realistic"),
    Cell("text overlay", 1.0, "realistic"),
    Cell("crop to", 0.7, "realistic"),
    Cell("mirrored", 1.0, "realistic"),
    Cell("quarter size", 0.25, "realistic"),
)
ALTERATIONS = AT_WORKING_SIZE + AT_OWN_SIZE
"""What is made of each image. Names and strengths are those of `evaluate --grid all`, which makes them in the same way."""
SEED = 42
DRAWN_PER_IMAGE = 10
"""Images drawn for each one wanted: files may have moved since they were indexed."""

Watch = Callable[[Iterable["Sampled"]], Iterable["Sampled"]]
"""Passes images on, and may show progress."""


@dataclass(frozen=True)
class Sampled:
    """An image of a gallery: its key, which is the path of its file when it was indexed, and that file's sha256 (32 bytes)."""

    key: str
    content: bytes


@dataclass(frozen=True, eq=False)
class CopyScores:
    """Scores of altered copies with the images that they were made of.

    Attributes:
        scores: float64 (images, `ALTERATIONS`).
        unavailable: images passed over: the file is not there, has changed, or its first frame cannot be read now.
    """

    scores: Doubles
    unavailable: int

    def misses(self, threshold: float) -> tuple[AlterationMisses, ...]:
        """Count the copies that stay below a threshold, by alteration."""
        columns = zip(ALTERATIONS, self.scores.T, strict=True)
        return tuple(AlterationMisses(cell.name, misses(scores, threshold)) for cell, scores in columns)


def sample(gallery: Gallery, count: int) -> list[Sampled]:
    """Draw images of a gallery whose first frame is indexed. The same gallery gives the same ones.

    Args:
        gallery: the gallery.
        count: images wanted. `DRAWN_PER_IMAGE` times as many are drawn where there are so many.
    """
    first_frames = (record for record in gallery.entries() if record.frame == 0 and record.rendering == 0)
    places = ((_place(record.content), record.content, record.key) for record in first_frames)
    keys: dict[bytes, str] = {}
    for _, content, key in heapq.nsmallest(count * DRAWN_PER_IMAGE, places):
        keys.setdefault(content, key)  # one file may be there under several keys
    return [Sampled(key, content) for content, key in keys.items()]


def _place(content: bytes) -> bytes:
    """Where a file comes in the order in which images are drawn."""
    return hashlib.sha256(SEED.to_bytes(4, "little") + content).digest()


def score_copies(
    screener: Screener, gallery: Gallery, sampled: Iterable[Sampled], count: int, watch: Watch | None = None
) -> CopyScores | None:
    """Alter images of a gallery and score the copies with all that the gallery holds of their originals.

    Args:
        screener: of the gallery's bundle.
        gallery: the gallery.
        sampled: from `sample`.
        count: images after which to stop.
        watch: see `Watch`.

    Returns:
        The scores; None where none of the images is at hand.

    Raises:
        EncodingError: the network's output is not finite.
    """
    copies: dict[bytes, Floats] = {}
    unavailable = 0
    for image in watch(sampled) if watch else sampled:
        if len(copies) == count:
            break
        try:
            pixels = _altered(screener, image)
        except ImageError:
            unavailable += 1
            continue
        batches = np.split(pixels, range(screener.encoder.batch, len(pixels), screener.encoder.batch))
        copies[image.content] = np.concatenate([screener.encoder.embed_resized(batch) for batch in batches])
    if not copies:
        return None
    originals: dict[bytes, list[Floats]] = {content: [] for content in copies}
    for record in gallery.entries():
        if record.content in originals:
            originals[record.content].append(record.embedding)
    head = gallery.bundle.head
    logits = [[head.logits(copy, np.stack(originals[content])).max() for copy in each] for content, each in copies.items()]
    return CopyScores(sigmoid(np.asarray(logits, np.float64)), unavailable)


def _altered(screener: Screener, image: Sampled) -> NDArray[np.uint8]:
    """Return the image in all `ALTERATIONS` at the working size, uint8 (alterations, size, size, 3).

    Raises:
        ImageError: the file is not there, is another one now, or its first frame cannot be read or is blank.
    """
    path, size = Path(image.key), screener.bundle.image_size
    data = read_file(path, screener.limits) if path.is_absolute() else b""
    if hashlib.sha256(data).digest() != image.content:
        raise ImageError(Reason.READ_FAILED, "it is not the file that was indexed")
    with closing(screener.open(data, path.name)) as opened:
        frame = opened.frame(0)
    small = resize(frame, size)
    if is_blank(small):
        raise ImageError(Reason.BLANK, "it shows nothing")
    name = image.content.hex()
    return np.concatenate(
        [altered(small, name, SEED, AT_WORKING_SIZE), realistically_altered(frame, name, SEED, size, AT_OWN_SIZE)]
    )
