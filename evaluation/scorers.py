"""The baselines by name, by file, and by bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from lcmem_onnx.runtime.errors import UsageError
from lcmem_onnx.runtime.model.bundle import MANIFEST
from lcmem_onnx.runtime.model.session import AUTO
from lcmem_onnx.runtime.screening import Screener

from .compare import Scorer
from .hashes import Pdq, PHash
from .networks import FREE_SIZE, BundleScorer, OnnxScorer, RandomNetwork
from .pixelwise import Mse, Ncc, Ssim

__all__ = ["BASELINES", "open_baselines"]

BASELINES: Mapping[str, Callable[[], Scorer]] = MappingProxyType(
    {"mse": Mse, "ssim": Ssim, "ncc": Ncc, "phash": PHash, "pdq": Pdq, "random": RandomNetwork}
)
"""Those that need no file."""


def open_baselines(
    wanted: tuple[str, ...],
    taken: tuple[str, ...] = (),
    *,
    values: str = "imagenet",
    free_size: int = FREE_SIZE,
    provider: str = AUTO,
    threads: int | None = None,
) -> list[Scorer]:
    """Open baselines in the order given; one that was asked for twice is opened once.

    Args:
        wanted: a name of `BASELINES`, an ONNX file, or the folder of another bundle, each.
        taken: names that are not to be given again; a second one of a name gets a number.
        values, free_size: see `OnnxScorer`.
        provider, threads: for those that onnxruntime runs.

    Raises:
        UsageError: neither a name nor a file that is there, or no embedder.
        BundleError, ProviderError: a file does not open.
    """
    scorers: list[Scorer] = []
    names = list(taken)
    for item in dict.fromkeys(wanted):
        path = Path(item)
        if item in BASELINES:
            scorers.append(BASELINES[item]())
        elif path.is_dir() and (path / MANIFEST).is_file():
            screener = Screener(path, provider=provider, threads=threads)
            scorers.append(BundleScorer(screener, _free(screener.bundle.name, names)))
        elif path.is_file():
            name = _free(path.stem, names)
            scorers.append(OnnxScorer(path, name=name, values=values, free_size=free_size, provider=provider, threads=threads))
        else:
            raise UsageError(f"{item!r} is no baseline: give {', '.join(BASELINES)}, an ONNX file, or the folder of another bundle")
        names.append(scorers[-1].name)
    return scorers


def _free(name: str, taken: list[str]) -> str:
    number, free = 1, name
    while free in taken or free in BASELINES:
        number += 1
        free = f"{name} ({number})"
    return free
