"""What gives two pictures a score: a bundle, any ONNX embedder, and baselines that need no weights. Higher is more alike.

A scorer turns each picture into a row of numbers once, and scores rows against rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from lcmem_onnx.runtime.bundle import Bundle
from lcmem_onnx.runtime.encoder import Encoder
from lcmem_onnx.runtime.errors import UsageError
from lcmem_onnx.runtime.preprocess import resize
from lcmem_onnx.runtime.providers import open_session
from numpy.typing import NDArray

__all__ = ["BASELINES", "BundleScorer", "EmbedderFile", "Scorer", "scorer_for"]

Pixels = NDArray[np.uint8]
Rows = NDArray[Any]
Scores = NDArray[np.float64]
GREY_SIDE = 128
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
FREE_SIDE = 224
"""Side of the pictures for an embedder that does not say one."""


class Scorer(Protocol):
    """`rows(pictures)` gives (n, numbers); `scores` takes aligned rows to (n,); `every` takes n and m rows to (n, m).

    A scorer that is too slow for every pair says so in `all_pairs`, and a sample is taken.
    """

    name: str
    all_pairs: bool

    def rows(self, pictures: Sequence[Pixels]) -> Rows: ...

    def scores(self, first: Rows, second: Rows) -> Scores: ...

    def every(self, first: Rows, second: Rows) -> Scores: ...


class BundleScorer:
    """A bundle, by the runtime's own encoder and head."""

    all_pairs = True

    def __init__(self, bundle: Bundle, *, provider: str = "auto", threads: int | None = None) -> None:
        self.name, self.bundle = bundle.name, bundle
        self._encoder = Encoder(bundle, provider=provider, threads=threads)

    def rows(self, pictures: Sequence[Pixels]) -> Rows:
        return self._encoder.embed(pictures)

    def scores(self, first: Rows, second: Rows) -> Scores:
        return self.bundle.head.scores(np.zeros(first.shape[1], np.float32), np.abs(first - second))

    def every(self, first: Rows, second: Rows) -> Scores:
        return np.stack([self.bundle.head.scores(row, second) for row in first])


class _ByProduct:
    """Scorers whose score is a product of rows."""

    all_pairs = True

    def scores(self, first: Rows, second: Rows) -> Scores:
        return np.einsum("ij,ij->i", first, second, dtype=np.float64)

    def every(self, first: Rows, second: Rows) -> Scores:
        return np.asarray(first @ second.T, np.float64)


class EmbedderFile(_ByProduct):
    """Any ONNX model that embeds a picture; the score is the cosine. How it is fed is read off its input.

    uint8 inputs, NHWC or NCHW, are fed as they are; float inputs in [0, 1], normalised with ImageNet's mean and deviation.

    Raises:
        UsageError: the file does not open, or its first input is no picture.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.name = path.stem
        self._session = open_session(path, "cpu", threads).session
        taken = self._session.get_inputs()[0]
        shape = list(taken.shape)
        last, first = (shape[-1], shape[1]) if len(shape) == 4 else (None, None)
        if 3 not in (last, first):
            raise UsageError(
                f"{path} takes {taken.type} {shape}, which is no RGB picture: (n, height, width, 3) or (n, 3, height, width)"
            )
        self._input, self._channels_last = taken.name, last == 3
        self._uint8 = taken.type == "tensor(uint8)"
        side = shape[1 if self._channels_last else 2]
        self._side = side if isinstance(side, int) else FREE_SIDE
        self._one_by_one = isinstance(shape[0], int)

    def rows(self, pictures: Sequence[Pixels]) -> Rows:
        found = [self._embedded(picture) for picture in pictures]
        stacked = np.stack(found).astype(np.float32)
        return stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12)

    def _embedded(self, picture: Pixels) -> Rows:
        fed: Any = resize(picture, self._side)
        if not self._uint8:
            fed = (fed.astype(np.float32) / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
        if not self._channels_last:
            fed = np.ascontiguousarray(fed.transpose(2, 0, 1))
        return np.asarray(self._session.run(None, {self._input: fed[None]})[0]).reshape(-1)


def _grey(picture: Pixels, side: int) -> NDArray[np.float32]:
    return cv2.cvtColor(resize(picture, side), cv2.COLOR_RGB2GRAY).astype(np.float32)


class MeanSquaredError:
    """Minus the mean squared difference of grey pictures of 128 x 128, in [0, 1]."""

    name, all_pairs = "MSE", True

    def rows(self, pictures: Sequence[Pixels]) -> Rows:
        return np.stack([_grey(picture, GREY_SIDE).ravel() / 255.0 for picture in pictures])

    def scores(self, first: Rows, second: Rows) -> Scores:
        return -np.square(first - second).mean(axis=1, dtype=np.float64)

    def every(self, first: Rows, second: Rows) -> Scores:
        squares = np.square(first).sum(1)[:, None] + np.square(second).sum(1)[None] - 2 * (first @ second.T)
        return -np.asarray(squares, np.float64) / first.shape[1]


class Correlation(_ByProduct):
    """Normalised cross-correlation of grey pictures of 128 x 128, at zero shift."""

    name = "NCC"

    def rows(self, pictures: Sequence[Pixels]) -> Rows:
        grey = np.stack([_grey(picture, GREY_SIDE).ravel() for picture in pictures])
        grey -= grey.mean(axis=1, keepdims=True)
        return grey / np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-12)


class StructuralSimilarity:
    """scikit-image's SSIM of grey pictures of 128 x 128, with its defaults (windows of 7)."""

    name, all_pairs = "SSIM", False

    def rows(self, pictures: Sequence[Pixels]) -> Rows:
        return np.stack([_grey(picture, GREY_SIDE).astype(np.uint8) for picture in pictures])

    def scores(self, first: Rows, second: Rows) -> Scores:
        from skimage.metrics import structural_similarity

        return np.array([structural_similarity(one, other) for one, other in zip(first, second, strict=True)])

    def every(self, first: Rows, second: Rows) -> Scores:
        return np.stack([self.scores(np.broadcast_to(row, second.shape), second) for row in first])


class _Hash:
    """Hashes: the score is the share of equal bits."""

    all_pairs = True

    def scores(self, first: Rows, second: Rows) -> Scores:
        return (first == second).mean(axis=1)

    def every(self, first: Rows, second: Rows) -> Scores:
        one, other = first.astype(np.float32) * 2 - 1, second.astype(np.float32) * 2 - 1
        return np.asarray(one @ other.T, np.float64) / (2 * first.shape[1]) + 0.5


class PerceptualHash(_Hash):
    """imagehash's pHash of 64 bits."""

    name = "pHash"

    def rows(self, pictures: Sequence[Pixels]) -> Rows:
        import imagehash
        from PIL import Image

        return np.stack([np.asarray(imagehash.phash(Image.fromarray(picture)).hash).ravel() for picture in pictures])


class Pdq(_Hash):
    """PDQ's 256 bits (Facebook, 2019), by pdqhash."""

    name = "PDQ"

    def rows(self, pictures: Sequence[Pixels]) -> Rows:
        import pdqhash

        return np.stack([np.asarray(pdqhash.compute(np.ascontiguousarray(picture))[0], np.bool_) for picture in pictures])


class RandomNetwork(_ByProduct):
    """A network of random weights: three layers of 3 x 3 convolutions, ReLU and pooling, in numpy; the cosine of its features."""

    name = "random network"
    LAYERS = (3, 16, 32, 64)

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        sizes = zip(self.LAYERS, self.LAYERS[1:], strict=False)
        self._weights = [rng.standard_normal((9 * into, out), dtype=np.float32) / np.sqrt(4.5 * into) for into, out in sizes]

    def rows(self, pictures: Sequence[Pixels]) -> Rows:
        found = np.stack([self._features(picture) for picture in pictures])
        found -= found.mean(axis=1, keepdims=True)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

    def _features(self, picture: Pixels) -> NDArray[np.float32]:
        maps = (resize(picture, 64).astype(np.float32) / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
        for weights in self._weights:
            windows = np.lib.stride_tricks.sliding_window_view(np.pad(maps, ((1, 1), (1, 1), (0, 0))), (3, 3), axis=(0, 1))
            height, width = maps.shape[:2]
            maps = np.maximum(windows.reshape(height, width, -1) @ weights, 0.0)
            maps = maps.reshape(height // 2, 2, width // 2, 2, -1).max(axis=(1, 3))
        return maps.ravel()


BASELINES: dict[str, type[Any]] = {
    "mse": MeanSquaredError,
    "ssim": StructuralSimilarity,
    "ncc": Correlation,
    "phash": PerceptualHash,
    "pdq": Pdq,
    "random": RandomNetwork,
}
"""Baselines that need no downloaded weights, by the name that the command line gives them."""


def scorer_for(baseline: str, threads: int | None = None) -> Scorer:
    """A baseline by name, or an ONNX embedder by its file.

    Raises:
        UsageError: neither a baseline's name nor a file.
    """
    if baseline in BASELINES:
        scorer: Scorer = BASELINES[baseline]()
        return scorer
    if not Path(baseline).is_file():
        raise UsageError(f"{baseline!r} is neither a baseline ({', '.join(BASELINES)}) nor an ONNX file")
    return EmbedderFile(Path(baseline), threads)
