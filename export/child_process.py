"""What an export runs in a process of its own: the bundle's proof, and the measurement of one encoder.

Such a process shares nothing with the one that traced the network: neither patched modules nor tensors that happen to be alive, and
not torch's memory. So this module imports the runtime alone, without torch. The process ends with the export that started it; else
it would compute on for minutes after that one was killed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lcmem_onnx.runtime.errors import ExportError
from lcmem_onnx.runtime.images.formats import read_file
from lcmem_onnx.runtime.images.image import open_image
from lcmem_onnx.runtime.model.bundle import open_bundle
from lcmem_onnx.runtime.model.encoder import Encoder
from lcmem_onnx.runtime.model.session import open_session
from lcmem_onnx.runtime.system.parent_process import end_with_parent, lifeline
from lcmem_onnx.runtime.system.python_process import module_command

__all__ = ["main", "run_child"]

TIMED = 5
"""Images whose embedding is timed: the last ones, when the session is warm."""


def run_child(task: Literal["embed-files", "measure-encoder"], arguments: Sequence[Path], what: str) -> None:
    """Run one of this module's tasks in a process of its own.

    Args:
        task: its name.
        arguments: what it is given; the last one is the file that it must write.
        what: the tested thing, for the error.

    Raises:
        ExportError: it fails, or writes nothing.
    """
    answer = arguments[-1]
    answer.unlink(missing_ok=True)
    command = module_command("lcmem_onnx.export.child_process", task, *map(str, arguments))
    with lifeline() as stdin:
        finished = subprocess.run(
            command, stdin=stdin, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False
        )
    if finished.returncode != 0 or not answer.exists():
        said = finished.stderr.strip().splitlines()
        raise ExportError(f"{what} does not run in a fresh process (status {finished.returncode}): {said[-1] if said else ''}")


def _embed_files(request: Path, answer: Path) -> None:
    """Embed the requested image files with a bundle at each batch size, score all pairs, and save the arrays as .npz."""
    requested = json.loads(request.read_text())
    bundle = open_bundle(requested["bundle"], unproven=True)
    encoder = Encoder(bundle, provider="cpu")
    images = [open_image(read_file(Path(path))).frame(0) for path in requested["pictures"]]
    embeddings = {
        size: np.concatenate([encoder.embed(images[start : start + size]) for start in range(0, len(images), size)])
        for size in requested["batch_sizes"]
    }
    single = embeddings[min(embeddings)]
    scores = [bundle.head.score(single[first], single[second]) for first, second in combinations(range(len(single)), 2)]
    arrays: dict[str, Any] = {f"batch_{size}": rows for size, rows in embeddings.items()}
    np.savez(answer, scores=np.asarray(scores), **arrays)


def _measure_encoder(model: Path, images: Path, answer: Path) -> None:
    """Embed the images of an .npy file one by one, and save embeddings, milliseconds per image and peak megabytes as .npz."""
    session = open_session(model, "cpu").session
    name = session.get_inputs()[0].name
    rows = np.load(images, allow_pickle=False)
    embeddings, seconds = [], []
    for row in rows:
        started = time.perf_counter()
        embeddings.append(session.run(None, {name: row[None]})[0])
        seconds.append(time.perf_counter() - started)
    np.savez(
        answer,
        embeddings=np.concatenate(embeddings),
        milliseconds=1000 * statistics.median(seconds[-TIMED:]),
        peak_mb=_peak_mb() - rows.nbytes / 2**20,
    )


def _peak_mb() -> float:
    """Largest resident memory of this process in MB; not a number where the system does not tell.

    Not getrusage's: on Linux that begins with the memory of the process that started this one, which holds torch.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), float("nan"))


_TASKS: dict[str, Callable[..., None]] = {"embed-files": _embed_files, "measure-encoder": _measure_encoder}


def main(task: str, *arguments: str) -> None:
    """Do a task in this process, which ends with its parent."""
    end_with_parent()
    _TASKS[task](*map(Path, arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
