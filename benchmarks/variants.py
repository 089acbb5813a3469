"""Speed, size, memory and drift of the variants, beside torch, for the bundled model's shape and for the full-size network.

    python benchmarks/variants.py [--runs 5] [--compile] [--small-only | --full-only] [--side 512] [--quick]

On two cores with nothing else to do the whole takes half an hour, most of it the full-size export with its proofs; `--quick` proves
and calibrates on two images, and so says little of drift. Weights are random (but for `--ckpt`, a checkpoint in
place of the small network): time does not depend on them.

Runs alternate, so that a busy moment hits all alike; given are the median and the spread, and the median processor time of all
threads together, which other work on the machine changes little. Where there is a GPU, the same follows on it, in batches, beside
torch in fp16 with channels_last, and compiled. (The GPU's part was written by the documentation and has not been run.)
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads would spin through the next one's turn

import numpy as np
import torch
from full_size import make_checkpoint
from lcmem_onnx import open_bundle
from lcmem_onnx.export.pipeline import Request, export_bundle
from lcmem_onnx.models.autoencoder import AutoencoderShape
from lcmem_onnx.models.checkpoint import load_lcmem, save_lcmem
from lcmem_onnx.models.convnext import ConvNeXtShape
from lcmem_onnx.models.lcmem import LCMem
from lcmem_onnx.models.synthetic.scenes import scene
from lcmem_onnx.runtime.model.bundle import Bundle
from lcmem_onnx.runtime.model.encoder import Encoder
from lcmem_onnx.runtime.model.session import available_providers
from lcmem_onnx.runtime.system.cpu import cpu_features, cpu_limit, cpu_name, versions
from PIL import Image

BATCHES = (1, 4, 16, 64)
"""On a GPU."""


@dataclass
class Taken:
    """Milliseconds of each run: by the clock on the wall, and of the processor."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


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
    parser.add_argument("--full-only", action="store_true")
    parser.add_argument("--side", type=int, default=512, help="image size of the full-size network")
    parser.add_argument("--quick", action="store_true", help="two images for calibration and proof")
    parser.add_argument("--ckpt", type=Path, help="a checkpoint to measure in place of the small network")
    parser.add_argument("--work", type=Path, help="folder for the bundles; one that is there already is not exported again")
    options = parser.parse_args()
    threads = cpu_limit()
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    print(f"{cpu_name()} ({', '.join(cpu_features() or [])}), {threads} threads, torch {torch.__version__}, "
          f"onnxruntime {versions()['onnxruntime']}, {time.strftime('%Y-%m-%d')}\n")  # fmt: skip
    with tempfile.TemporaryDirectory() as passing:
        folder = options.work or Path(passing)
        folder.mkdir(exist_ok=True)
        if not options.full_only:
            small = options.ckpt or folder / "small.pth"
            if not options.ckpt:
                small_checkpoint(small)
            measure(small, folder / "small", None, 5 * options.runs, options.compile, options.quick)
        if not options.small_only:
            full = folder / "full.pth"
            make_checkpoint(full)
            measure(full, folder / "full", options.side, options.runs, options.compile, options.quick)


def measure(checkpoint: Path, out: Path, side: int | None, runs: int, compiled: bool, quick: bool) -> None:
    if not out.exists():
        started = time.monotonic()
        few = _drawn(out.with_name(f"{out.name}-pictures")) if quick else None
        request = Request(checkpoint, out, image_size=side, images=few, calibration=few, allow_drift=True)
        export_bundle(request, lambda line: print(f"    {line}", flush=True))
        print(f"\nexported in {time.monotonic() - started:.0f} s", flush=True)
    bundle = open_bundle(out)
    print(f"\n{bundle.manifest['checkpoint']['description']}\n", flush=True)
    network = load_lcmem(checkpoint).network
    on_cpu(bundle, network, runs, compiled)
    if torch.cuda.is_available() and "cuda" in available_providers():
        on_gpu(bundle, network, runs)


def on_cpu(bundle: Bundle, network: LCMem, runs: int, compiled: bool) -> None:
    batch = _images(bundle, 1)
    pixels = _pixels(batch)
    contenders: dict[str, Callable[[], object]] = {"torch eager": lambda: network.embed(pixels)}
    if compiled:
        faster = torch.compile(network.embed)
        contenders["torch.compile"] = lambda: faster(pixels)
    for name in bundle.variants:
        encoder = Encoder(bundle, variant=name, provider="cpu")
        contenders[name] = lambda encoder=encoder: encoder.embed_resized(batch)
    taken = alternate(contenders, runs)
    print("| | ms an image | spread | processor ms | times as fast as torch eager (processor) | MB | of fp32 | peak MB | "
          "99 % of scores within | flips |\n" + "| --- " * 10 + "|")  # fmt: skip
    eager = taken["torch eager"]
    for name, its in taken.items():
        line = f"| {name} | {_times(its, eager)} |"
        if name in bundle.variants:
            entry = bundle.manifest["variants"][name]
            drift, here = entry["drift"], entry.get("drift_on_cpu", entry["drift"])
            share = bundle.variants[name].bytes / bundle.variants["fp32"].bytes
            line += f" {entry['bytes'] / 1e6:.1f} | {share:.2f} | {here['peak_mb']:.0f} | "
            line += f"{drift['score_p99']:.1e} | {drift['flips']} of {drift['pairs']} |"
        else:
            line += " | | | | |"
        print(line, flush=True)
    print(flush=True)


def on_gpu(bundle: Bundle, network: LCMem, runs: int) -> None:
    """Images as bytes in the host's memory to embeddings there, for torch as for onnxruntime, so that copies count for both."""
    half = network.half().to("cuda").to(memory_format=torch.channels_last)
    compiled = torch.compile(half.embed)
    encoders = {name: Encoder(bundle, variant=name, provider="cuda") for name in ("fp32", "fp16")}
    print(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}\n")
    for size in BATCHES:
        batch = _images(bundle, size)

        def in_torch(embed: Callable[[torch.Tensor], torch.Tensor], batch: np.ndarray = batch) -> object:
            pixels = torch.from_numpy(batch).to("cuda", non_blocking=True).permute(0, 3, 1, 2)
            pixels = (pixels.half() / 255).contiguous(memory_format=torch.channels_last)
            return embed(pixels).cpu()  # waits for the result

        contenders: dict[str, Callable[[], object]] = {
            "torch fp16, channels_last": lambda call=in_torch: call(half.embed),
            "torch fp16, channels_last, compiled": lambda call=in_torch: call(compiled),
        }
        for name, encoder in encoders.items():
            contenders[name] = lambda encoder=encoder, batch=batch: encoder.embed_resized(batch)
        taken = alternate(contenders, runs, warm=3)
        eager = taken["torch fp16, channels_last"]
        print(f"batches of {size}\n\n| | ms a batch | spread | processor ms | times as fast as torch fp16 (processor) | "
              f"images a second |\n{'| --- ' * 6}|")  # fmt: skip
        for name, its in taken.items():
            print(f"| {name} | {_times(its, eager)} | {1000 * size / statistics.median(its.wall):.0f} |", flush=True)
        print(flush=True)


def alternate(contenders: Mapping[str, Callable[[], object]], runs: int, warm: int = 1) -> dict[str, Taken]:
    """Each in turn, `runs` times, after `warm` turns that do not count."""
    taken = {name: Taken() for name in contenders}
    for run in range(runs + warm):
        for name, embed in contenders.items():
            wall, processor = time.perf_counter(), time.process_time()
            embed()
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            if run >= warm:
                taken[name].wall.append(1000 * wall)
                taken[name].processor.append(1000 * processor)
    return taken


def _times(its: Taken, eager: Taken) -> str:
    wall, processor = (
        statistics.median(slow / fast for slow, fast in zip(theirs, ours, strict=True))
        for theirs, ours in ((eager.wall, its.wall), (eager.processor, its.processor))
    )
    spread = f"{min(its.wall):.1f} to {max(its.wall):.1f}"
    used = statistics.median(its.processor)
    return f"{statistics.median(its.wall):.1f} | {spread} | {used:.1f} | {wall:.2f} ({processor:.2f})"


def _images(bundle: Bundle, count: int) -> np.ndarray:
    size = bundle.image_size
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def _pixels(batch: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous().float() / 255


def _drawn(folder: Path) -> Path:
    """Two images: fewer prove nothing, and `--quick` wants to prove as little as it can."""
    folder.mkdir(exist_ok=True)
    for seed in range(2):
        Image.fromarray(scene(seed, 512)).save(folder / f"{seed}.png")
    return folder


if __name__ == "__main__":
    main()
