"""What a user waits for and downloads: start of the command line, size of the wheel, one image of the bundled model.

python benchmarks/package.py [--runs 10]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lcmem_onnx import Screener
from lcmem_onnx.runtime.system.cpu import cpu_limit, cpu_name

ROOT = Path(__file__).parent.parent
IMAGE = ROOT / "examples" / "pictures" / "gallery" / "astronaut.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    print(f"{cpu_name()}, {cpu_limit()} threads, {time.strftime('%Y-%m-%d')}\n")
    print("| what | measured | bound | met |\n| --- | --- | --- | --- |")

    script = Path(sys.executable).parent / "lcmem-onnx"
    seconds = []
    for _ in range(runs + 1):
        started = time.monotonic()
        subprocess.run([script, "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.monotonic() - started)
    median = statistics.median(seconds[1:])
    spread = f"{min(seconds[1:]):.2f} to {max(seconds[1:]):.2f}"
    print(f"| `lcmem-onnx --help` | {median:.2f} s ({spread}) | under 0.4 s | {'yes' if median < 0.4 else '**no**'} |")

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], check=True, capture_output=True)
        size = next(Path(folder).glob("*.whl")).stat().st_size / 1e6
    print(f"| wheel with its bundle | {size:.1f} MB | under 40 MB | {'yes' if size < 40 else '**no**'} |")

    screener = Screener(provider="cpu")
    screener.embed(IMAGE)
    seconds = []
    for _ in range(5 * runs):
        started = time.monotonic()
        screener.embed(IMAGE)
        seconds.append(time.monotonic() - started)
    print(f"| one image, file to embedding, bundled model | {1000 * statistics.median(seconds):.1f} ms | | |")


if __name__ == "__main__":
    main()
