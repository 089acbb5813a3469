"""The proof of an export: the bundle, as the runtime opens it in a fresh process, against torch with Pillow.

The fresh process shares nothing with the one that traced the network: no patched modules, no tensors that happen to be
alive, and the runtime's own code path from file to embedding. The torch side reads the same files with Pillow alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from lcmem_onnx.models.lcmem import LCMem
from lcmem_onnx.runtime.errors import ExportError, ImageError, UsageError
from lcmem_onnx.runtime.images.formats import read_file
from lcmem_onnx.runtime.images.image import open_image
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .child_process import run_child

__all__ = [
    "BATCH_SIZES",
    "EMBEDDING_TOLERANCE",
    "SAMPLES",
    "SCORE_TOLERANCE",
    "SUFFIXES",
    "Parity",
    "choose_images",
    "embed_pixels",
    "images_in",
    "measure",
    "prove",
]

SAMPLES = Path(__file__).parent / "pictures"
"""Real photographs and radiographs that come with the package; their licences lie beside them."""
BATCH_SIZES, BATCH_SIZES_OF_LARGE = (1, 2, 3), (1, 2)
"""For images up to `LARGE`, and above: each image more in a batch takes .9 GB in the full-size network."""
LARGE = 256
EMBEDDING_TOLERANCE = 1e-4
SCORE_TOLERANCE = 1e-3
MAX_IMAGES = 4
SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"}


@dataclass(frozen=True)
class Parity:
    """How far the bundle is from torch, on real images.

    `embedding_max` and `embedding_mean` are absolute differences over all features, images and batch sizes; `score_max`
    is that of the head's probabilities over all pairs of the images.
    """

    images: int
    pairs: int
    batch_sizes: tuple[int, ...]
    embedding_max: float
    embedding_mean: float
    score_max: float
    embedding_tolerance: float = EMBEDDING_TOLERANCE
    score_tolerance: float = SCORE_TOLERANCE
    reference: str = f"torch {torch.__version__}, fp32, images read and resized by Pillow"

    def as_json(self) -> dict[str, object]:
        """Its key for the number of images is `pictures`: manifests have it so."""
        content = asdict(self)
        return {"pictures": content.pop("images"), **content}


def choose_images(folder: Path | None) -> list[Path]:
    """The images to prove an export on: up to four from `folder`, or those that come with the package.

    Raises:
        UsageError: `folder` holds fewer than two images, or one that was chosen cannot be read.
    """
    source = folder or SAMPLES
    found = images_in(source, SUFFIXES)
    if len(found) < 2:
        raise UsageError(f"{source} holds {len(found)} images; two or more are needed to compare pairs")
    chosen = found[:: max(1, len(found) // MAX_IMAGES)][:MAX_IMAGES]
    for path in chosen:
        # Both sides, before the network is loaded: the runtime's limits hold off what Pillow would fill the memory with.
        try:
            open_image(read_file(path)).frame(0)
        except ImageError as error:
            raise UsageError(f"{path} cannot prove an export: {error} [{error.reason}]") from error
        _upright(path)
    return chosen


def images_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files below `folder` with one of these suffixes, sorted.

    Raises:
        UsageError: it is no folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder of images")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())


def _upright(path: Path) -> Image.Image:
    """An image as Pillow reads it, RGB, turned the way a viewer shows it.

    Raises:
        UsageError: Pillow cannot read it.
    """
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:
        # Pillow's decoders raise whatever a damaged file makes them stumble over, and an error of their own for large ones.
        raise UsageError(f"{path} cannot prove an export: Pillow says {str(error) or type(error).__name__}") from error


def embed_in_torch(network: LCMem, images: Sequence[Path], image_size: int) -> NDArray[np.float32]:
    """The reference's way from file to embedding: Pillow, then torch in fp32, an image at a time. (n, features)."""
    # As the runtime does and the reference does not: an image is turned the way a viewer shows it.
    resized = (_upright(path).resize((image_size, image_size), Image.Resampling.BILINEAR) for path in images)
    return embed_pixels(network, (np.asarray(image) for image in resized))


def embed_pixels(network: LCMem, images: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Images of the network's size, RGB, uint8 (size, size, 3), embedded by torch in fp32, one at a time. (n, features)."""
    embeddings = []
    for image in images:
        # Contiguous, as the reference's ToTensor makes it: on a permuted view torch computes in channels-last order, which on one
        # AMX machine was wrong by 5e-4 in the full-size network's embeddings where the ordinary order was wrong by 1e-6.
        pixels = torch.from_numpy(image.astype(np.float32) / 255.0).permute(2, 0, 1)[None].contiguous()
        with torch.no_grad():
            embeddings.append(network.embed(pixels)[0].numpy())
    return np.stack(embeddings)


def prove(network: LCMem, bundle: Path, images: Sequence[Path], image_size: int, work: Path) -> Parity:
    """Compare the bundle in `bundle` with `network` on `images`; `work` is a folder for the exchange.

    Raises:
        ExportError: the fresh process failed, an output is not finite, or a difference exceeds its tolerance.
    """
    expected = embed_in_torch(network, images, image_size)
    if not np.isfinite(expected).all():
        raise ExportError("the network gives values that are not finite, in torch already: the checkpoint is broken")
    request, answer = work / "request.json", work / "answer.npz"
    batch_sizes = BATCH_SIZES if image_size <= LARGE else BATCH_SIZES_OF_LARGE
    request.write_text(json.dumps({"bundle": str(bundle), "pictures": [str(path) for path in images], "batch_sizes": batch_sizes}))
    run_child("embed-files", (request, answer), "the bundle")
    with np.load(answer, allow_pickle=False) as arrays:
        actual = {size: arrays[f"batch_{size}"] for size in batch_sizes}
        scores = arrays["scores"]
    parity = measure(network, expected, actual, scores)
    if not parity.embedding_max <= EMBEDDING_TOLERANCE or not parity.score_max <= SCORE_TOLERANCE:
        raise ExportError(
            f"onnxruntime and torch disagree: embeddings by {parity.embedding_max:.2e} (allowed {EMBEDDING_TOLERANCE:.0e}), "
            f"scores by {parity.score_max:.2e} (allowed {SCORE_TOLERANCE:.0e}). Nothing was written"
        )
    return parity


def measure(
    network: LCMem, expected: NDArray[np.float32], actual: dict[int, NDArray[np.float32]], scores: NDArray[np.float64]
) -> Parity:
    """Differences of embeddings (n, features) per batch size, and of the scores of all pairs in `combinations` order.

    Raises:
        ExportError: a result has another shape, or is not finite.
    """
    for size, embeddings in actual.items():
        if embeddings.shape != expected.shape or not np.isfinite(embeddings).all():
            raise ExportError(f"the bundle's embeddings in batches of {size} are not finite or of shape {embeddings.shape}")
    pairs = list(combinations(range(len(expected)), 2))
    reference = torch.from_numpy(expected)
    with torch.no_grad():
        first, second = ([pair[side] for pair in pairs] for side in (0, 1))
        wanted = torch.sigmoid(network.logit(reference[first], reference[second])).numpy()
    if scores.shape != wanted.shape or not np.isfinite(scores).all():
        raise ExportError(f"the bundle's scores are not finite or of shape {scores.shape}")
    differences = np.stack([np.abs(embeddings - expected) for embeddings in actual.values()])
    return Parity(
        images=len(expected),
        pairs=len(pairs),
        batch_sizes=tuple(actual),
        embedding_max=float(differences.max()),
        embedding_mean=float(differences.mean()),
        score_max=float(np.abs(scores - wanted).max()),
    )
