"""One encoder in a process of its own, started by `drift`: embeddings, time and memory. Imports nothing but the runtime."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np
from lcmem_onnx.runtime.model.session import open_session

from .child_process import end_with_starter

__all__ = ["main"]

TIMED = 5


def main(model: Path, images: Path, answer: Path) -> None:
    """Embed the images of an .npy file one by one, and save embeddings, milliseconds an image and peak megabytes as .npz."""
    session = open_session(model, "cpu").session
    name = session.get_inputs()[0].name
    rows = np.load(images, allow_pickle=False)
    embeddings, taken = [], []
    for row in rows:
        started = time.perf_counter()
        embeddings.append(session.run(None, {name: row[None]})[0])
        taken.append(time.perf_counter() - started)
    np.savez(
        answer,
        embeddings=np.concatenate(embeddings),
        milliseconds=1000 * statistics.median(taken[-TIMED:]),
        peak_mb=_peak_mb() - rows.nbytes / 2**20,
    )


def _peak_mb() -> float:
    """Largest resident memory of this process; not a number where the system does not tell.

    Not getrusage's: on Linux that begins with what the process had that started this one, and that one holds torch.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), float("nan"))


if __name__ == "__main__":
    end_with_starter()
    main(*map(Path, sys.argv[1:4]))
