"""What decoding in a process of its own costs, in processor time, which a busy machine does not change much.

    python benchmarks/isolation.py

One CT slice of 128 x 128 and one of 512 x 512 made of it, opened and rendered for a network of 256 x 256: in this process, and
in a child each, all that both sides and the forking process use counted; and the resident memory of the process that forks.
"""

from __future__ import annotations

import io
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pydicom
from lcmem_onnx.runtime.images.image import open_image
from lcmem_onnx.runtime.images.sandbox import DecoderPool

ROUNDS = 40
TICK = 1000 / os.sysconf("SC_CLK_TCK")


def used_by(process: int) -> float:
    """Milliseconds of processor time of a process and its reaped children."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return sum(int(field) for field in fields[11:15]) * TICK


def larger(path: Path, times: int) -> bytes:
    dataset = pydicom.dcmread(path)
    pixels = np.kron(dataset.pixel_array, np.ones((times, times), dataset.pixel_array.dtype))
    dataset.Rows, dataset.Columns, dataset.PixelData = *pixels.shape, pixels.tobytes()
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def main() -> None:
    warnings.simplefilter("ignore")
    path = Path(pydicom.__file__).parent / "data" / "test_files" / "CT_small.dcm"
    with DecoderPool() as decoders:
        decoders.open(path.read_bytes()).close()
        process = decoders._process
        if process is None:
            raise SystemExit("the forking process has gone")
        for name, data in (("128 x 128", path.read_bytes()), ("512 x 512", larger(path, 4))):
            began = time.process_time()
            for _ in range(ROUNDS):
                open_image(data).views(0, 256)
            here = (time.process_time() - began) * 1000 / ROUNDS
            began, before = time.process_time(), used_by(process.pid)
            for _ in range(ROUNDS):
                image = decoders.open(data)
                image.views(0, 256)
                image.close()
            there = ((time.process_time() - began) * 1000 + used_by(process.pid) - before) / ROUNDS
            print(f"{name}: {here:.1f} ms here, {there:.1f} ms isolated")
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        print(next(line for line in status.splitlines() if line.startswith("VmRSS")))


if __name__ == "__main__":
    main()
