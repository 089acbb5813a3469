"""What int8 decides otherwise: index in one variant, query in another, on one split of a file list.

    python benchmarks/int8_decisions.py --list list.csv [--bundle BUNDLE] [--split VAL] [--index fp16] [--query int8]

Strangers are pairs of images of one data set with different identities (and groups). Copies are images altered by `--copies` cells
of the paper's grid and the realistic one, against their originals. At the bundle's threshold, and a logit around it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lcmem_onnx import open_bundle
from lcmem_onnx.evaluation.alterations import PAPER_GRID, alter
from lcmem_onnx.evaluation.filelist import read_file_list
from lcmem_onnx.evaluation.realistic import NEEDS_OTHER, REALISTIC, alter_realistically
from lcmem_onnx.runtime.images.formats import read_file
from lcmem_onnx.runtime.images.image import open_image
from lcmem_onnx.runtime.images.preprocess import resize
from lcmem_onnx.runtime.model.bundle import Bundle
from lcmem_onnx.runtime.model.encoder import Encoder
from numpy.typing import NDArray

CELLS = [(alter, name, strength) for name, strengths in PAPER_GRID.items() for strength in strengths] + [
    (alter_realistically, name, strength)
    for name, strengths in REALISTIC.items()
    if name not in NEEDS_OTHER
    for strength in strengths
]
OFFSETS = (-1.0, 0.0, 1.0)

Floats = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, help="default: the package's own")
    parser.add_argument("--split", default="VAL")
    parser.add_argument("--index", default="fp16")
    parser.add_argument("--query", default="int8")
    parser.add_argument("--copies", type=int, default=4, help="altered copies of each image")
    parser.add_argument("--every", type=int, default=1, help="take each so-manieth image")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    rows = [row for row in read_file_list(options.list) if row.split == options.split][:: options.every]
    rng = np.random.default_rng(0)
    images, copies, of = [], [], []
    for number, row in enumerate(rows):
        pixels = open_image(read_file(row.path)).frame(0)
        images.append(resize(pixels, bundle.image_size))
        for cell in rng.permutation(len(CELLS))[: options.copies]:
            change, name, strength = CELLS[cell]
            copies.append(resize(change(pixels, name, strength, rng), bundle.image_size))
            of.append(number)
    index, query = (Encoder(bundle, variant=name, provider="cpu") for name in (options.index, options.query))
    stored, asked = _embed(index, images), _embed(query, images)
    altered = [_embed(encoder, copies) for encoder in (index, query)]
    sets = np.array([row.ds_name for row in rows])
    who = np.array([f"{row.ds_name} {row.identity}" for row in rows])
    groups = np.array([f"{row.ds_name} {row.group}" if row.group else one for row, one in zip(rows, who, strict=True)])
    different = (sets[:, None] == sets) & (who[:, None] != who) & (groups[:, None] != groups)
    pairs = [np.stack([_logits(bundle, one, stored) for one in its])[different] for its in (stored, asked)]
    same = [np.array([_logits(bundle, one, stored[at][None])[0] for one, at in zip(its, of, strict=True)]) for its in altered]
    print(f"{len(rows)} images, {len(copies)} copies, {int(different.sum())} pairs; {options.query} against {options.index}")
    for what, (wanted, got) in (("strangers", pairs), ("copies", same)):
        apart = np.abs(_scores(got) - _scores(wanted))
        print(f"{what}: scores differ by {np.percentile(apart, 99):.4f} (99 %), logits by {(got - wanted).mean():+.3f} on "
              f"average and {(got - wanted).std():.3f} (standard deviation)")  # fmt: skip
        for offset in OFFSETS:
            limit = float(np.log(bundle.threshold.value / (1 - bundle.threshold.value))) + offset
            flipped = (got >= limit) != (wanted >= limit)
            print(
                f"  threshold {_scores(limit):.4f}: {(wanted >= limit).mean():.4%} reach it, {flipped.mean():.4%} decided otherwise"
            )


def _embed(encoder: Encoder, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    return np.concatenate([encoder.embed_resized(image[None]) for image in images])


def _logits(bundle: Bundle, one: NDArray[np.float32], others: NDArray[np.float32]) -> Floats:
    weight = np.asarray(bundle.head.weight, np.float64)
    return np.asarray(bundle.head.bias + np.abs(others - one).astype(np.float64) @ weight)


def _scores(logits: Floats | float) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.asarray(logits))))


if __name__ == "__main__":
    main()
