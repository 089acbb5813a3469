"""The variants of an encoder: how each is made from the fp32 graph, measured, and described in the manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration_images import ALTERATIONS, SMALL
from .drift import Drift, Measured
from .half import HALF, HALF_ON_CPU, HALF_WEIGHTS, write_half
from .int8 import INT8, Layer, Quantiser, outliers, quantiser

__all__ = ["AUTO_EXCLUDE", "ENCODER", "VARIANTS", "Made", "Making", "Weighed", "weigh"]

VARIANTS = ("fp32", "fp16", "int8")
ENCODER = "encoder.fp32.onnx"
AUTO_EXCLUDE = "auto"
ON_GPU_GRAPH = 2 * (1 + len(ALTERATIONS))
SWEPT = 4
"""Calibration images that the sweep embeds with each layer."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """A variant's files: the graph, the one that a CPU gets if that is another, and all that they need."""

    file: str
    files: tuple[str, ...]
    on_cpu: str | None = None
    kept_in_float: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weighed:
    """A variant as measured: its manifest entry, its files, and the gates that it does not pass."""

    entry: dict[str, Any]
    files: tuple[str, ...]
    past: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Making:
    """What variants are made from, and where.

    Attributes:
        fp32: the traced encoder.
        folder: where its variants go.
        calibration: uint8 (n, size, size, 3), for int8.
        exclude: beginnings of layers' names that int8 keeps in float; "auto" finds out.
        say: is told what takes long.
    """

    fp32: Path
    folder: Path
    calibration: NDArray[np.uint8]
    exclude: tuple[str, ...]
    say: Say

    def make(self, name: str) -> Made:
        """Write one of `VARIANTS`.

        Raises:
            UsageError: a layer to exclude does not exist.
            ExportError: onnxruntime's tools cannot.
        """
        if name == "fp16":
            write_half(self.fp32, self.folder)
            return Made(HALF, (HALF, HALF_ON_CPU, HALF_WEIGHTS), on_cpu=HALF_ON_CPU)
        if name == "int8":
            with quantiser(self.fp32, self.calibration, self.fp32.parent) as ready:
                kept = ready.kept([layer for layer in self.exclude if layer != AUTO_EXCLUDE])
                if AUTO_EXCLUDE in self.exclude:
                    kept = [*kept, *(layer for layer in self._swept(ready) if layer not in kept)]
                ready.write(self.folder / INT8, kept)
            return Made(INT8, (INT8,), kept_in_float=tuple(layer.weight for layer in kept))
        return Made(ENCODER, (ENCODER,))

    def _swept(self, ready: Quantiser) -> list[Layer]:
        self.say(f"sweeping  {len(ready.layers)} layers, each quantised alone, for int8")
        found = list(ready.sensitivities(self.calibration[:SWEPT]))
        worst = sorted(found, key=lambda each: -each[1])[:3]
        self.say("sweeping  most sensitive: " + ", ".join(f"{layer.weight} {damage:.1e}" for layer, damage in worst))
        return outliers(found)


def weigh(name: str, made: Made, folder: Path, measured: Measured, work: Path, say: Say) -> Weighed:
    """Measure a variant against torch, and describe it. `work` is a folder for the exchange."""
    size = sum((folder / file).stat().st_size for file in made.files)
    # A CPU has no fp16 arithmetic: a large network's graph for GPUs takes many times as long there, and two images must do.
    few = made.on_cpu is not None and measured.images.shape[1] > SMALL
    drift = (measured.first(ON_GPU_GRAPH) if few else measured).drift(name, folder / made.file, work)
    entry: dict[str, Any] = {"file": made.file, "bytes": size, "drift": drift.as_json()}
    shown, past = drift, drift.past
    if made.on_cpu:
        shown = measured.drift(name, folder / made.on_cpu, work)
        entry |= {"on_cpu": made.on_cpu, "drift_on_cpu": shown.as_json()}
        past = (*past, *(f"on a CPU {reason}" for reason in shown.past))
    if made.kept_in_float:
        entry["kept_in_float"] = list(made.kept_in_float)
    entry["past_gate"] = bool(past)
    say(_line(name, size, drift, shown))
    for reason in past:
        say(f"          past its gate: {reason}")
    return Weighed(entry, made.files, past)


def _line(name: str, size: int, drift: Drift, on_cpu: Drift) -> str:
    peak = "" if on_cpu.peak_mb is None else f", {on_cpu.peak_mb:.0f} MB at its peak"
    return (
        f"{name:<9} {size / 1e6:.1f} MB, {on_cpu.milliseconds:.0f} ms an image{peak}; scores of {drift.pairs} pairs differ from "
        f"torch's by {drift.score_p99:.1e} (99 %) and {drift.score_max:.1e} (all); {drift.flips} decided otherwise; AUC "
        f"{drift.auc:.4f}, torch's {drift.auc + drift.auc_fall:.4f}"
    )
