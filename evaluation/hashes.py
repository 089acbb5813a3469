"""Perceptual hashes as embeddings: each bit a -1 or a 1, so that the cosine is 1 - 2 (differing bits) / bits."""

from __future__ import annotations

import imagehash
import numpy as np
import pdqhash
from numpy.typing import NDArray
from PIL import Image

from .compare import Floats, cosine

__all__ = ["PHash", "Pdq"]


class PHash:
    """pHash of 64 bits, as the ImageHash library computes it (DCT of a 32 x 32 grey image, against the median)."""

    name = "phash"
    about = "pHash, 64 bits (ImageHash); share of equal bits"

    def embed(self, images: NDArray[np.uint8]) -> Floats:
        return np.stack([_signs(imagehash.phash(Image.fromarray(image)).hash) for image in images])

    def compare(self, query: Floats, gallery: Floats) -> NDArray[np.float64]:
        return _equal_bits(query, gallery)


class Pdq:
    """PDQ of 256 bits, as the pdqhash library computes it. An image's quality is not looked at: every pair is scored."""

    name = "pdq"
    about = "PDQ, 256 bits (pdqhash); share of equal bits"

    def embed(self, images: NDArray[np.uint8]) -> Floats:
        return np.stack([_signs(pdqhash.compute(np.ascontiguousarray(image))[0]) for image in images])

    def compare(self, query: Floats, gallery: Floats) -> NDArray[np.float64]:
        return _equal_bits(query, gallery)


def _signs(bits: NDArray[np.generic]) -> Floats:
    return np.where(np.asarray(bits).reshape(-1) != 0, 1, -1).astype(np.float32)


def _equal_bits(query: Floats, gallery: Floats) -> NDArray[np.float64]:
    return (1.0 + cosine(query, gallery) / len(query)) / 2.0
