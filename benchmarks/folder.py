"""A folder of photographs through the bundled model: images a second from file to verdict, and memory as it goes.

    python benchmarks/folder.py [--images 1000] [--rounds 1] [--variant auto] [--threads N]

JPEGs of 2 megapixels, made from the example photographs, each another one. `--rounds 10` screens them ten times and prints the
resident memory after each round: it must not grow. Beside the rate stands the processor time that an image took, all threads
together, which other work on the machine changes little; cores divided by it is the rate of a machine that does nothing else and
whose cores are all kept busy. Last come the parts of the way, one by one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from lcmem_onnx import Gallery, Screener
from lcmem_onnx.runtime.images.formats import read_file
from lcmem_onnx.runtime.images.image import open_image
from lcmem_onnx.runtime.system.cpu import cpu_limit, cpu_name, versions
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures" / "gallery"
WIDTH, HEIGHT = 1600, 1250
PARTS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--variant", default="auto")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    screener = Screener(provider="cpu", variant=options.variant, threads=options.threads)
    threads = options.threads or cpu_limit()
    print(f"{cpu_name()}, {threads} threads, {screener.encoder.variant}, onnxruntime {versions()['onnxruntime']}, "
          f"{time.strftime('%Y-%m-%d')}\n")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, Gallery.temporary(screener.bundle) as gallery:
        size = _make(Path(folder), options.images)
        for _ in screener.index([EXAMPLES], gallery):
            pass
        print(f"{options.images} JPEGs, {size / options.images / 1e3:.0f} kB each\n")
        print("| images | a second | processor ms an image | resident MB |\n| --- | --- | --- | --- |")
        for number in range(1, options.rounds + 1):
            started, used = time.monotonic(), time.process_time()
            done = sum(1 for _ in screener.screen([Path(folder)], gallery))
            rate, used = done / (time.monotonic() - started), 1000 * (time.process_time() - used) / done
            print(f"| {number * done} | {rate:.1f} | {used:.1f} | {_resident():.0f} |", flush=True)
        _parts(screener, sorted(Path(folder).iterdir())[:PARTS])


def _parts(screener: Screener, paths: list[Path]) -> None:
    """Medians of what an image's way is made of, by the processor's clock."""
    taken: dict[str, list[float]] = {"read, decode and resize": [], "encode (all threads)": []}
    for path in paths:
        clock = [time.process_time()]
        views = open_image(read_file(path)).views(0, screener.bundle.image_size)
        clock.append(time.process_time())
        screener.encoder.embed_resized(np.stack(views))
        clock.append(time.process_time())
        for its, before, after in zip(taken.values(), clock, clock[1:], strict=False):
            its.append(1000 * (after - before))
    print("\n| part | processor ms |\n| --- | --- |")
    for part, its in taken.items():
        print(f"| {part} | {statistics.median(its):.1f} ({min(its):.1f} to {max(its):.1f}) |")


def _make(folder: Path, count: int) -> int:
    """Crops of the examples, enlarged, with a little noise: what a decoder meets. Gives their bytes."""
    originals = [Image.open(path).convert("RGB") for path in sorted(EXAMPLES.glob("*.jpg"))]
    total = 0
    for number in range(count):
        rng = np.random.default_rng(number)
        image = originals[number % len(originals)]
        left, top = (int(rng.integers(0, side // 4)) for side in image.size)
        cropped = image.crop((left, top, left + image.width * 3 // 4, top + image.height * 3 // 4))
        pixels = np.asarray(cropped.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = pixels + rng.integers(-6, 7, (HEIGHT, WIDTH, 1), dtype=np.int16)
        path = folder / f"{number:05}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=88)
        total += path.stat().st_size
    return total


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    main()
