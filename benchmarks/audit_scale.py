"""How long an audit of many images takes whose embeddings are at hand, and how much memory.

Images are small smooth ones, drawn; embeddings are synthetic (a sigmoid of few latent dimensions, so that nearest images score
somewhere in the middle, as those of one kind do) and put where an audit keeps what it embedded. 1 % of the released images are
altered copies of reference images, in pixels and in embeddings. The audit runs in a process of its own, as a user runs it.

    python benchmarks/audit_scale.py --images 10000 --work scale
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import cv2
import numpy as np
from lcmem_onnx.runtime.audit.embedding_cache import Cache, Cached
from lcmem_onnx.runtime.audit.run import PRIVATE
from lcmem_onnx.runtime.audit.thumbnails import thumbnail
from lcmem_onnx.runtime.images.reader_version import READER_VERSION
from lcmem_onnx.runtime.model.bundle import open_bundle
from numpy.typing import NDArray

LATENT, SPREAD, SIDE = 10, 1.1, 96


def latent_to_embedding(latent: NDArray[np.float64], features: int) -> NDArray[np.float32]:
    weights = np.random.default_rng(1).normal(0, SPREAD / np.sqrt(LATENT), (LATENT, features))
    return (1 / (1 + np.exp(-latent @ weights))).astype(np.float32)


def drawn(rng: np.random.Generator) -> NDArray[np.uint8]:
    coarse = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), np.uint8)


def make(work: Path, images: int) -> int:
    """Write the three sets and their embeddings, and say how many are copies."""
    bundle = open_bundle()
    rng = np.random.default_rng(0)
    copies = images // 100
    shutil.rmtree(work, ignore_errors=True)
    private = work / "report" / PRIVATE
    private.mkdir(parents=True, mode=0o700)
    originals: list[NDArray[np.uint8]] = []
    latents: NDArray[np.float64] = np.empty((0, LATENT))
    model = f"{bundle.fingerprint}/reader{READER_VERSION}"
    with Cache(private / "embeddings.sqlite", model, bundle.features) as cache:
        for name in ("reference", "released", "holdout"):
            latent = rng.normal(size=(images, LATENT))
            shown = [drawn(rng) for _ in range(images)]
            if name == "reference":
                originals, latents = shown[:copies], latent[:copies]
            if name == "released":
                latent[:copies] = latents + rng.normal(0, 0.02, latents.shape)
                shown[:copies] = [cv2.convertScaleAbs(original, alpha=0.9, beta=8) for original in originals]
            embeddings = latent_to_embedding(latent, bundle.features)
            for number, (image, embedding) in enumerate(zip(shown, embeddings, strict=True)):
                path = work / name / f"{number % 10}" / f"{number:06d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), image)
                kept = Cached({0: embedding[None]}, {0: thumbnail(image[..., ::-1])})
                cache.put(hashlib.sha256(path.read_bytes()).digest(), kept)
    return copies


@click.command()
@click.option("--images", default=10_000, show_default=True, help="In each of the three sets.")
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for all that is made.")
@click.option("--pdf", is_flag=True, help="As for the command.")
def main(images: int, work: Path, pdf: bool) -> None:
    copies = make(work, images)
    command = [sys.executable, "-c", "from lcmem_onnx.cli import main; main()", "audit", "-q", "--json"]
    command += ["--pdf"] if pdf else []
    for name, folder in (("released", "released"), ("reference", "reference"), ("holdout", "holdout"), ("out", "report")):
        command += [f"--{name}", str(work / folder)]
    started = time.monotonic()
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if finished.returncode != 1:
        raise SystemExit(f"the audit ended with {finished.returncode}: {finished.stderr}")
    report = json.loads((work / "report" / "report.json").read_text())
    listed = sum(int(Path(pair["path"]).stem) < copies for pair in report["found"])
    result = {
        "images in each set": images,
        "seconds, whole process": round(seconds, 1),
        "peak memory, MB": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000),
        "copies": copies,
        "listed": listed,
        "others listed": len(report["found"]) - listed,
        "announced by chance": report["by_chance"]["matches"],
        "threshold": round(report["threshold"]["value"], 4),
        "compared pixel by pixel": report["repeat"]["compared_by_pixels"],
        "report.html, MB": round(os.path.getsize(work / "report" / "report.html") / 1e6, 1),
    }
    click.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
