"""Scorers that are networks: a bundle of ours, any ONNX embedder, and one whose weights are random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from lcmem_onnx.runtime.errors import EncodingError, UsageError
from lcmem_onnx.runtime.images.preprocess import resize
from lcmem_onnx.runtime.model.session import AUTO, open_session
from lcmem_onnx.runtime.screening import Screener
from numpy.typing import NDArray
from PIL import Image

from .compare import Floats, Pixels, cosine

__all__ = ["RANGES", "BundleScorer", "OnnxScorer", "RandomNetwork"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RANGES: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = MappingProxyType(
    {
        "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
        "unit": ((0.0,) * 3, (1.0,) * 3),
        "symmetric": ((0.5,) * 3, (0.5,) * 3),
        "levels": ((0.0,) * 3, (1 / 255.0,) * 3),
    }
)
"""Mean and deviation that are taken off and divided by, after division by 255: ImageNet's, [0, 1], [-1, 1], [0, 255]."""
FREE_SIZE = 288
"""What a model of free size is fed unless told otherwise: the side that SSCD, the usual such model, was made for."""
TINY = 1e-12


class BundleScorer:
    """A bundle through the runtime, scored by its head: exactly what `scan` and `compare` do."""

    def __init__(self, screener: Screener, name: str | None = None) -> None:
        self.screener = screener
        self.bundle = screener.bundle
        self.name = name or screener.bundle.name
        self.about = f"bundle {self.bundle.fingerprint[:16]}, {self.bundle.image_size} x {self.bundle.image_size}; its head's score"

    def embed(self, images: Pixels) -> Floats:
        if images.shape[1:3] == (self.bundle.image_size,) * 2:
            return self.screener.encoder.embed_resized(images)
        return self.screener.encoder.embed(list(images))

    def compare(self, query: Floats, gallery: Floats) -> NDArray[np.float64]:
        return self.bundle.head.scores(query, gallery)


class OnnxScorer:
    """Any ONNX model that makes a vector of an image, by the cosine of its first output.

    How it is fed is read off its only input: uint8 as it is, floats by `values`; channels where the 3 is, second or last; the
    size that it declares, or `free_size` where it leaves that open. Images are resized as the runtime does it.

    A vector is an output (n, features), or (n, features, 1, 1); tokens or maps are none, and must be pooled in the graph.

    Raises:
        UsageError: not such a model.
        BundleError, ProviderError: it does not open; see `open_session`.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str | None = None,
        values: str = "imagenet",
        free_size: int = FREE_SIZE,
        provider: str = AUTO,
        threads: int | None = None,
    ) -> None:
        if values not in RANGES:
            raise UsageError(f"unknown range of values {values!r}; known are {', '.join(RANGES)}")
        self.name = name or path.stem
        self.path = path
        self._session = open_session(path, provider, threads).session
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise UsageError(f"{path} takes {len(inputs)} inputs; a baseline takes one, the image")
        kind, shape = inputs[0].type.removeprefix("tensor(").removesuffix(")"), list(inputs[0].shape)
        types = {"uint8": np.uint8, "float": np.float32, "float16": np.float16, "double": np.float64}
        if kind not in types or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise UsageError(
                f"{path} takes {kind} {shape}; a baseline takes uint8 or floats, (n, height, width, 3) or (n, 3, height, width)"
            )
        self._input, self._type = inputs[0].name, np.dtype(types[kind])
        output = self._session.get_outputs()[0]
        self._output = output.name
        # An unknown number of dimensions is declared as none; then the first batch tells.
        if output.shape and not _is_vector(output.shape):
            raise UsageError(self._no_vector(output.shape))
        self._channels_last = shape[3] == 3
        self._one_at_a_time = shape[0] == 1
        height, width = shape[1:3] if self._channels_last else shape[2:4]
        self._size = tuple(side if isinstance(side, int) else free_size for side in (height, width))
        mean, deviation = RANGES[values]
        self._mean, self._deviation = np.asarray(mean, np.float32), np.asarray(deviation, np.float32)
        fed = "uint8 levels" if self._type == np.uint8 else f"values {values}"
        self.about = f"{path.name}, {self._size[1]} x {self._size[0]}, {fed}; cosine"

    def embed(self, images: Pixels) -> Floats:
        batch = self._prepared(images)
        parts = [batch[index : index + 1] for index in range(len(batch))] if self._one_at_a_time else [batch]
        try:
            outputs = [np.asarray(self._session.run([self._output], {self._input: part})[0]) for part in parts]
        except Exception as error:
            # onnxruntime's exceptions have no common base below Exception.
            raise EncodingError(f"{self.path} failed on {batch.dtype} {batch.shape}: {error}") from error
        for part, output in zip(parts, outputs, strict=True):
            if not _is_vector(output.shape) or len(output) != len(part):
                raise UsageError(self._no_vector(output.shape))
        vectors = np.concatenate([output.reshape(len(output), -1) for output in outputs]).astype(np.float32)
        if not np.isfinite(vectors).all():
            raise EncodingError(f"{self.path} gave values that are not finite")
        return _unit(vectors)

    def compare(self, query: Floats, gallery: Floats) -> NDArray[np.float64]:
        return cosine(query, gallery)

    def _no_vector(self, shape: Sequence[Any]) -> str:
        return (
            f"{self.path} gives {self._output!r} {list(shape)}, which is no vector an image; a baseline's first output is "
            "(n, features) or (n, features, 1, 1), with two features or more: export it with a pooled vector as first output"
        )

    def _prepared(self, images: Pixels) -> NDArray[Any]:
        height, width = self._size
        if images.shape[1:3] != (height, width):
            images = np.stack([_resized(image, height, width) for image in images])
        values: NDArray[Any] = images
        if self._type != np.uint8:
            values = ((images.astype(np.float32) / 255.0 - self._mean) / self._deviation).astype(self._type)
        return np.ascontiguousarray(values if self._channels_last else values.transpose(0, 3, 1, 2))


class RandomNetwork:
    """A network that never learnt anything: three convolutions with fixed random weights, their statistics by cosine.

    It stands in for the paper's "random-weight features", whose architecture the paper's are not bound to: what such features
    find is what needs no learning. 64 x 64 RGB; 5 x 5, 3 x 3 and 3 x 3 kernels, stride 2, 16, 32 and 64 channels, ReLU; means
    over 2 x 2 fields; the mean vector of random noise images taken off, since ReLU features of all images point one way.
    """

    name = "random"
    about = "random network: three convolutions with weights from a fixed seed, in numpy; cosine"

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        shapes = ((5, 3, 16), (3, 16, 32), (3, 32, 64))
        self._layers = [
            (kernel, (rng.standard_normal((into * kernel**2, out)) * np.sqrt(2.0 / (into * kernel**2))).astype(np.float32))
            for kernel, into, out in shapes
        ]
        coarse = rng.integers(0, 256, (32, 4, 4, 3), dtype=np.uint8)
        noise = np.stack([cv2.resize(grid, (64, 64), interpolation=cv2.INTER_CUBIC) for grid in coarse])
        self._mean = self._features(noise).mean(axis=0)

    def embed(self, images: Pixels) -> Floats:
        small = np.stack([cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA) for image in images])
        return _unit(self._features(small) - self._mean)

    def compare(self, query: Floats, gallery: Floats) -> NDArray[np.float64]:
        return cosine(query, gallery)

    def _features(self, small: NDArray[Any]) -> Floats:
        values = small.astype(np.float32) / 127.5 - 1.0
        for kernel, weights in self._layers:
            windows = np.lib.stride_tricks.sliding_window_view(values, (kernel, kernel), axis=(1, 2))[:, ::2, ::2]
            values = np.maximum(windows.reshape(*windows.shape[:3], -1) @ weights, 0.0)
        side = values.shape[1] // 2 * 2
        fields = values[:, :side, :side].reshape(len(values), 2, side // 2, 2, side // 2, -1)
        return np.ascontiguousarray(fields.mean(axis=(2, 4)).reshape(len(values), -1), np.float32)


def _is_vector(shape: Sequence[Any]) -> bool:
    """Whether an output is a vector an image: declared, with names or None for free sizes, or as it came."""
    if len(shape) == 4:
        maps = [side for side in shape[2:] if isinstance(side, int)]
        return shape[1] != 1 and all(side == 1 for side in maps)
    return len(shape) == 2 and shape[1] not in (0, 1)


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), TINY), np.float32)


def _resized(image: Pixels, height: int, width: int) -> Pixels:
    if height == width:
        return resize(image, height)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR), np.uint8)
