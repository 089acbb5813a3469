"""An evaluation as pictures: ROC curves, recall by strength, and where the scores lie. Drawn by matplotlib without a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lcmem_onnx.runtime.errors import UsageError
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from .alterations import PAPER_GRID
from .evaluate import Evaluation

__all__ = ["save_plots"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's, which people with any colour vision tell apart."""
LOWEST_RATE = 1e-6


def save_plots(evaluation: Evaluation, folder: Path, suffix: str = "png") -> list[Path]:
    """Write all plots that the evaluation has figures for, and give their paths.

    Raises:
        UsageError: the folder cannot be written.
    """
    figures = {}
    for protocol, curves in evaluation.curves.items():
        figures[f"roc-{protocol.replace(' ', '-')}"] = _roc(evaluation, protocol)
        figures[f"scores-{protocol.replace(' ', '-')}"] = _histogram(evaluation, protocol, next(iter(curves)))
    if evaluation.copy_detection:
        for label in next(iter(evaluation.copy_detection.values())):
            figures[f"recall-{label or 'pictures'}"] = _recall(evaluation, label)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            path = folder / f"{name}.{suffix}"
            FigureCanvasAgg(figure)
            figure.savefig(path, dpi=150)
            written.append(path)
    except OSError as error:
        raise UsageError(f"plots cannot be written to {folder}: {error}") from error
    return written


def _roc(evaluation: Evaluation, protocol: str) -> Figure:
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for colour, (name, (positives, negatives)) in zip(COLOURS, evaluation.curves[protocol].items(), strict=False):
        labels = np.concatenate([np.ones(len(positives)), np.zeros(len(negatives))])
        false, true, _ = roc_curve(labels, np.concatenate([positives, negatives]), drop_intermediate=True)
        axes.step(np.maximum(false, LOWEST_RATE), true, where="post", label=name, color=colour)
    axes.set_xscale("log")
    axes.set(xlabel="false-positive rate", ylabel="recall", title=protocol.capitalize(), ylim=(0, 1.02), xlim=(LOWEST_RATE, 1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _histogram(evaluation: Evaluation, protocol: str, scorer: str) -> Figure:
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    positives, negatives = evaluation.curves[protocol][scorer]
    bins = np.linspace(float(min(positives.min(), negatives.min())), float(max(positives.max(), negatives.max())) + 1e-9, 60)
    for scores, label, colour in ((negatives, "different", COLOURS[0]), (positives, "the same", COLOURS[1])):
        axes.hist(
            scores, bins, weights=np.full(len(scores), 1 / len(scores)), alpha=0.6, color=colour, label=f"{label} ({len(scores)})"
        )
    axes.set_yscale("log")
    axes.set(xlabel=f"score of {scorer}", ylabel="share of pairs", title=protocol.capitalize())
    axes.legend(frameon=False, fontsize=8)
    return figure


def _recall(evaluation: Evaluation, label: str) -> Figure:
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    grid = figure.subplots(2, 3, sharey=True)
    first = next(iter(evaluation.copy_detection.values()))[label].recalls[0]
    for axes, (transform, strengths) in zip(grid.flat, PAPER_GRID.items(), strict=True):
        for colour, (name, sets) in zip(COLOURS, evaluation.copy_detection.items(), strict=False):
            cells = sets[label].recalls[0].cells
            axes.plot(
                range(len(strengths)),
                [cells[f"{transform} {strength:g}"] for strength in strengths],
                "o-",
                color=colour,
                label=name,
            )
        axes.set_xticks(range(len(strengths)), [f"{strength:g}" for strength in strengths])
        axes.set(title=transform, ylim=(-0.02, 1.04))
        axes.grid(alpha=0.3)
    grid[0, 0].legend(frameon=False, fontsize=7)
    figure.supylabel(f"recall at {first.threshold.source}")
    figure.suptitle(f"Copy detection: {label or 'all pictures'}")
    return figure
