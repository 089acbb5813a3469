"""Speed, size, memory and drift of the variants, beside torch, for the bundled model's shape and for the full-size network.

    python benchmarks/variants.py [--runs 5] [--compile] [--small-only]

Weights are random (but for `--ckpt`, a checkpoint in place of the small network): time does not depend on them. Runs alternate, so
that a busy moment hits all alike; given are the median and the spread. Drift, sizes and peak memory are the export's own figures.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads would spin through the next one's turn

import numpy as np
import torch
from full_size import make_checkpoint
from lcmem_onnx import open_bundle
from lcmem_onnx.export.package import Request, export_bundle
from lcmem_onnx.models.autoencoder import AutoencoderShape
from lcmem_onnx.models.checkpoint import load_lcmem, save_lcmem
from lcmem_onnx.models.convnext import ConvNeXtShape
from lcmem_onnx.models.lcmem import LCMem
from lcmem_onnx.runtime.encoder import Encoder
from lcmem_onnx.runtime.machine import cpu_features, cpu_limit, cpu_name, versions


def small_checkpoint(path: Path) -> None:
    """The bundled model's shape."""
    torch.manual_seed(0)
    shape = AutoencoderShape(48, (32, 64), 1, 8, 8, middle_attention=False)
    save_lcmem(LCMem(ConvNeXtShape(8, (48, 96, 192, 256), (2, 2, 6, 2), 2, 512), shape), path, image_size=256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="alternating timed runs of each; five times as many of the small one")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too; it needs a C++ compiler and minutes")
    parser.add_argument("--small-only", action="store_true")
    parser.add_argument("--ckpt", type=Path, help="a checkpoint to measure in place of the small network")
    options = parser.parse_args()
    threads = cpu_limit()
    torch.set_num_threads(threads)
    print(f"{cpu_name()} ({', '.join(cpu_features() or [])}), {threads} threads, torch {torch.__version__}, "
          f"onnxruntime {versions()['onnxruntime']}, {time.strftime('%Y-%m-%d')}\n")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        small = options.ckpt or Path(folder) / "small.pth"
        if not options.ckpt:
            small_checkpoint(small)
        measure(small, Path(folder) / "small", 5 * options.runs, options.compile)
        if not options.small_only:
            full = Path(folder) / "full.pth"
            make_checkpoint(full)
            measure(full, Path(folder) / "full", options.runs, options.compile)


def measure(checkpoint: Path, out: Path, runs: int, compiled: bool) -> None:
    started = time.monotonic()
    export_bundle(Request(checkpoint, out, allow_drift=True), lambda line: print(f"    {line}", flush=True))
    bundle = open_bundle(out)
    print(f"\n{bundle.manifest['checkpoint']['description']}; exported in {time.monotonic() - started:.0f} s\n")
    network = load_lcmem(checkpoint).network
    size = bundle.image_size
    batch = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous().float() / 255
    contenders: dict[str, Callable[[], object]] = {"torch eager": lambda: network.embed(pixels)}
    if compiled:
        faster = torch.compile(network.embed)
        contenders["torch.compile"] = lambda: faster(pixels)
    for name in bundle.variants:
        encoder = Encoder(bundle, variant=name, provider="cpu")
        contenders[name] = lambda encoder=encoder: encoder.embed_resized(batch)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.no_grad():
        for run in range(runs + 1):
            for name, embed in contenders.items():
                before = time.perf_counter()
                embed()
                if run:
                    taken[name].append(1000 * (time.perf_counter() - before))
    print("| | ms a picture | spread | times as fast as torch eager | MB | of fp32 | peak MB | 99 % of scores within | flips |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    eager = taken["torch eager"]
    for name, its in taken.items():
        ratio = statistics.median(slow / fast for slow, fast in zip(eager, its, strict=True))
        line = f"| {name} | {statistics.median(its):.1f} | {min(its):.1f} to {max(its):.1f} | {ratio:.2f} |"
        if name in bundle.variants:
            entry = bundle.manifest["variants"][name]
            drift, here = entry["drift"], entry.get("drift_on_cpu", entry["drift"])
            share = bundle.variants[name].bytes / bundle.variants["fp32"].bytes
            line += f" {entry['bytes'] / 1e6:.1f} | {share:.2f} | {here['peak_mb']:.0f} | {drift['score_p99']:.1e} | "
            line += f"{drift['flips']} of {drift['pairs']} |"
        else:
            line += " | | | | |"
        print(line, flush=True)
    print()


if __name__ == "__main__":
    main()
