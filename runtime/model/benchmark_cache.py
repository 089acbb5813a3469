"""What `lcmem-onnx doctor --bench` measured on this machine, kept in the user's cache folder for `--variant auto`."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from platformdirs import user_cache_path

from ..errors import UsageError
from ..system.atomic_write import put_whole
from ..system.cpu import cpu_limit, cpu_name
from .bundle import Bundle
from .session import open_session

__all__ = ["measure_variants", "measured", "remember"]

FILE = "timings.json"
ROUNDS, SECONDS = 25, 20.0


def measured(bundle: Bundle, threads: int | None = None) -> dict[str, float] | None:
    """Milliseconds an image by variant's name, as `remember` left them for this bundle, processor and number of threads.

    None where there is nothing, or nothing that can be read: then nobody measured, and that is all that follows from it.
    """
    try:
        kept = json.loads(_file().read_text(encoding="utf-8"))[_key(bundle, threads)]
        return {str(name): float(value) for name, value in kept.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(bundle: Bundle, timings: Mapping[str, float], threads: int | None = None) -> Path:
    """Keep what was measured, and give the file.

    Raises:
        UsageError: the cache folder cannot be written.
    """
    file = _file()
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    content = {**(kept if isinstance(kept, dict) else {}), _key(bundle, threads): dict(timings)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        put_whole(file, lambda draft: draft.write_text(json.dumps(content, indent=1), encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror or error}. Set XDG_CACHE_HOME to a writable folder") from error
    return file


def measure_variants(bundle: Bundle, threads: int | None = None) -> dict[str, float]:
    """Median milliseconds an image on the CPU, one at a time, of each variant in turn, so that a busy moment hits all alike."""
    size = bundle.image_size
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    sessions = {name: open_session(variant.on_cpu, "cpu", threads).session for name, variant in bundle.variants.items()}
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    started = time.perf_counter()
    for round_ in range(1 + ROUNDS):
        for name, session in sessions.items():
            before = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: image})
            if round_:  # the first is slower
                taken[name].append(1000 * (time.perf_counter() - before))
        if round_ >= 2 and time.perf_counter() - started > SECONDS:
            break
    return {name: statistics.median(its) for name, its in taken.items()}


def _file() -> Path:
    return user_cache_path("lcmem-onnx", appauthor=False) / FILE


def _key(bundle: Bundle, threads: int | None) -> str:
    """What times depend on: the files, the processor, the threads and onnxruntime."""
    facts = [bundle.manifest["files"], cpu_name(), threads or cpu_limit(), ort.__version__]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
