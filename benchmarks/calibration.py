"""Does what is foreseen for a larger gallery come? Drawn phantoms: galleries of several sizes, calibrated, and then grown.

python benchmarks/calibration.py [--gallery 6000] [--strangers 1500] [--embeddings FILE.npz]

Each phantom is another identity, as each stranger is. The thresholds are set with half of the strangers against a part of the
gallery and looked at with the other half against more of it. `--embeddings` keeps the embeddings for another run.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from lcmem_onnx import Screener
from lcmem_onnx.models.synthetic.phantoms import phantom
from lcmem_onnx.runtime.calibration.threshold import calibrate
from lcmem_onnx.runtime.images.preprocess import resize
from lcmem_onnx.runtime.model.head import sigmoid
from lcmem_onnx.runtime.system.cpu import cpu_limit, cpu_name
from numpy.typing import NDArray

FIRST_OF_GALLERY, FIRST_STRANGER = 50_000_000, 60_000_000
"""Seeds that no training and no test uses."""
KEPT = 64


def embed(screener: Screener, first: int, count: int) -> NDArray[np.float32]:
    size = screener.bundle.image_size
    batches = [range(at, min(at + 8, first + count)) for at in range(first, first + count, 8)]
    return np.concatenate(
        [screener.encoder.embed_resized(np.stack([resize(phantom(seed, 0, size), size) for seed in batch])) for batch in batches]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gallery", type=int, default=6000)
    parser.add_argument("--strangers", type=int, default=1500)
    parser.add_argument("--embeddings", type=Path)
    options = parser.parse_args()
    screener = Screener(provider="cpu")
    print(f"{screener.bundle.name}; {cpu_name()}, {cpu_limit()} threads, {time.strftime('%Y-%m-%d')}\n")
    if options.embeddings and options.embeddings.exists():
        kept = np.load(options.embeddings)
        gallery, strangers = kept["gallery"], kept["strangers"]
    else:
        gallery = embed(screener, FIRST_OF_GALLERY, options.gallery)
        strangers = embed(screener, FIRST_STRANGER, options.strangers)
        if options.embeddings:
            np.savez(options.embeddings, gallery=gallery, strangers=strangers)
    scores = sigmoid(np.stack([screener.bundle.head.logits(stranger, gallery) for stranger in strangers]))
    random = np.random.default_rng(1)
    scores = scores[random.permutation(len(scores))][:, random.permutation(scores.shape[1])]
    ones, others = scores[: len(scores) // 2], scores[len(scores) // 2 :]
    print(f"{len(ones)} strangers to calibrate with, {len(others)} to look with\n")
    print("| wanted FPIR | calibrated with | grown to | expected | at most | came | by independent pairs |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for rate in (0.02, 0.05, 0.1):
        for size in (scores.shape[1] // 10, scores.shape[1] // 4):
            tops = -np.sort(-ones[:, :size], axis=1)[:, :KEPT]
            found = calibrate(tops, size, rate, screener.bundle.fingerprint)
            independent = float((ones[:, :size] >= found.threshold).mean())
            for grown in dict.fromkeys((size, 2 * size, 4 * size, scores.shape[1])):
                came = float((others[:, :grown].max(axis=1) >= found.threshold).mean())
                figures = (
                    found.growth.expected(grown),
                    found.growth.at_most(grown, found.fpir_interval.high),
                    came,
                    -np.expm1(grown * np.log1p(-independent)),
                )
                print(f"| {rate:.0%} | {size:,} | {grown:,} | " + " | ".join(f"{100 * each:.1f} %" for each in figures) + " |")


if __name__ == "__main__":
    main()
