"""The runtime's side of the proof, started as a process of its own by `parity`. Imports nothing but the runtime."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from lcmem_onnx.runtime.images.formats import read_file
from lcmem_onnx.runtime.images.image import open_image
from lcmem_onnx.runtime.model.bundle import open_bundle
from lcmem_onnx.runtime.model.encoder import Encoder

from .child_process import end_with_starter

__all__ = ["main"]


def main(request: Path, answer: Path) -> None:
    """Embed the requested images at each batch size, score all pairs, and save the arrays as .npz."""
    wanted = json.loads(request.read_text())
    bundle = open_bundle(wanted["bundle"], unproven=True)
    encoder = Encoder(bundle, provider="cpu")
    images = [open_image(read_file(Path(path))).frame(0) for path in wanted["pictures"]]
    embeddings = {
        size: np.concatenate([encoder.embed(images[start : start + size]) for start in range(0, len(images), size)])
        for size in wanted["batch_sizes"]
    }
    single = embeddings[min(embeddings)]
    scores = [bundle.head.score(single[a], single[b]) for a, b in combinations(range(len(single)), 2)]
    arrays: dict[str, Any] = {f"batch_{size}": rows for size, rows in embeddings.items()}
    np.savez(answer, scores=np.asarray(scores), **arrays)


if __name__ == "__main__":
    end_with_starter()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
