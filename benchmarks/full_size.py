"""The full-size network through the whole line: time, memory, agreement with torch, speed. Prints a table.

    python benchmarks/full_size.py [--runs 3]

The network has Stable Diffusion 2's VAE shape and a ConvNeXt-Tiny, at 512 x 512, with random weights: none are public. ConvNeXt's
layer scales are raised so that its blocks take part, and the head so that scores spread; the spread of embeddings is printed,
since differences between numbers that are all alike would prove nothing. Everything is measured here and
now; a bound that is missed is printed as missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from lcmem_onnx import open_bundle
from lcmem_onnx.export.parity import choose_images, embed_in_torch
from lcmem_onnx.models.autoencoder import AutoencoderShape
from lcmem_onnx.models.checkpoint import load_lcmem
from lcmem_onnx.models.convnext import ConvNeXtShape
from lcmem_onnx.models.lcmem import LCMem
from lcmem_onnx.runtime.model.encoder import Encoder
from lcmem_onnx.runtime.screening import Screener
from lcmem_onnx.runtime.system.cpu import cpu_limit, cpu_name, versions


def make_checkpoint(path: Path) -> None:
    torch.manual_seed(0)
    network = LCMem(ConvNeXtShape(), AutoencoderShape(3, (128, 256, 512, 512), 2, 4)).eval()
    with torch.no_grad():
        for name, parameter in network.model.named_parameters():
            if "layer_scale" in name:
                parameter.fill_(0.3)
        network.fc_end.weight.uniform_(-0.05, 0.0)
        network.fc_end.bias.fill_(1.0)
    torch.save(network.state_dict(), path)


def row(what: str, measured: str, bound: str, met: bool) -> None:
    print(f"| {what} | {measured} | {bound} | {'yes' if met else '**no**'} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="alternating timed runs of each runtime")
    runs = parser.parse_args().runs
    threads = cpu_limit()
    torch.set_num_threads(threads)
    packages = ", ".join(f"{name} {version}" for name, version in versions().items() if name in ("python", "onnxruntime"))
    print(f"{cpu_name()}, {threads} threads, torch {torch.__version__}, {packages}, {time.strftime('%Y-%m-%d')}\n")
    print("| what | measured | bound | met |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, out = Path(folder) / "full.pth", Path(folder) / "full"
        make_checkpoint(checkpoint)

        started = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "lcmem_onnx.export.command",
            "--ckpt",
            str(checkpoint),
            "--out",
            str(out),
            "--variants",
            "fp32",
            "-q",
        ]
        subprocess.run(command, check=True)
        seconds = time.monotonic() - started
        # The larger of the export and its proof, which runs as a process of its own after the tracing.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        row("export, time", f"{seconds:.0f} s", "under 300 s", seconds < 300)
        row("export, peak memory of its largest process", f"{peak:.2f} GiB", "under 5 GB", peak * 2**30 < 5e9)

        manifest = json.loads((out / "bundle.json").read_text())
        parity = manifest["parity"]["fp32"]
        largest = parity["embedding_max"]
        batches = ", ".join(map(str, parity["batch_sizes"]))
        row(f"embeddings, ONNX against torch, batches of {batches}", f"{largest:.1e}", "1e-4", largest <= 1e-4)

        images = choose_images(None)[:2]
        network = load_lcmem(checkpoint).network
        reference = torch.from_numpy(embed_in_torch(network, images, 512))
        screener = Screener(out, provider="cpu", threads=threads)
        differences, scores = [], []
        for a, b in combinations(range(len(images)), 2):
            with torch.no_grad():
                expected = float(torch.sigmoid(network.logit(reference[a : a + 1], reference[b : b + 1]))[0])
            scores.append(expected)
            differences.append(abs(screener.compare(images[a], images[b]).score - expected))
        row(
            "scores, file to verdict against torch with Pillow",
            f"{max(differences):.1e}",
            "2e-3",
            max(differences) <= 2e-3,
        )
        spread = float(reference.std())

        encoder = Encoder(open_bundle(out), provider="cpu", threads=threads)
        batch = np.random.default_rng(0).integers(0, 256, (1, 512, 512, 3), dtype=np.uint8)
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous().float() / 255
        onnx_seconds, torch_seconds = [], []
        for _ in range(runs):
            started = time.monotonic()
            encoder.embed_resized(batch)
            onnx_seconds.append(time.monotonic() - started)
            started = time.monotonic()
            with torch.no_grad():
                network.embed(pixels)
            torch_seconds.append(time.monotonic() - started)
        ours, theirs = statistics.median(onnx_seconds), statistics.median(torch_seconds)
        ratios = [slow / fast for slow, fast in zip(torch_seconds, onnx_seconds, strict=True)]
        row(
            f"onnxruntime against torch eager, median of {runs} alternating runs",
            f"{ours:.2f} s against {theirs:.2f} s: {statistics.median(ratios):.2f} times as fast "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            "1.3 times",
            statistics.median(ratios) >= 1.3,
        )
    print(f"\nEmbeddings' standard deviation {spread:.3f}; scores compared {', '.join(f'{score:.3f}' for score in scores)}")


if __name__ == "__main__":
    main()
