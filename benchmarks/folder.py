"""A folder of photographs through the bundled model: pictures a second from file to embedding, and memory as it goes.

    python benchmarks/folder.py [--pictures 1000] [--rounds 1] [--variant auto]

JPEGs of 2 megapixels, made from the example photographs, each another one. `--rounds 10` screens them ten times and prints the
resident memory after each round: it must not grow.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from lcmem_onnx import Gallery, Screener
from lcmem_onnx.runtime.machine import cpu_limit, cpu_name
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures" / "gallery"
WIDTH, HEIGHT = 1600, 1250


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--variant", default="auto")
    options = parser.parse_args()
    screener = Screener(provider="cpu", variant=options.variant)
    print(f"{cpu_name()}, {cpu_limit()} threads, {screener.encoder.variant}, {time.strftime('%Y-%m-%d')}\n")
    with tempfile.TemporaryDirectory() as folder, Gallery.temporary(screener.bundle) as gallery:
        size = _make(Path(folder), options.pictures)
        for _ in screener.index([EXAMPLES], gallery):
            pass
        print(f"{options.pictures} JPEGs, {size / options.pictures / 1e3:.0f} kB each\n\n| pictures | a second | resident MB |")
        print("| --- | --- | --- |")
        for number in range(1, options.rounds + 1):
            started = time.monotonic()
            done = sum(1 for _ in screener.screen([Path(folder)], gallery))
            rate = done / (time.monotonic() - started)
            print(f"| {number * done} | {rate:.1f} | {_resident():.0f} |", flush=True)


def _make(folder: Path, count: int) -> int:
    """Crops of the examples, enlarged, with a little noise: what a decoder meets. Gives their bytes."""
    originals = [Image.open(path).convert("RGB") for path in sorted(EXAMPLES.glob("*.jpg"))]
    total = 0
    for number in range(count):
        rng = np.random.default_rng(number)
        picture = originals[number % len(originals)]
        left, top = (int(rng.integers(0, side // 4)) for side in picture.size)
        cropped = picture.crop((left, top, left + picture.width * 3 // 4, top + picture.height * 3 // 4))
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
