"""Curves of an evaluation as files: ROC, recall by transform and strength, histograms of scores. Matplotlib without pyplot."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from lcmem_onnx.runtime.errors import UsageError
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from .evaluate import CopyAt, Evaluation
from .measures import Limit
from .protocols import CELLS, Cell
from .scoring import Scored

__all__ = ["FORMATS", "prepare_folder", "write_plots"]

FORMATS = ("png", "svg")
DOTS = 150
MOST_POINTS = 200_000
"""Negatives that a curve is drawn from; of more, evenly many of the sorted ones, which moves no curve by a line's width."""
SVG_SALT = "lcmem-onnx"
UNITS: Mapping[str, str] = MappingProxyType(
    {
        "blur": "sigma, pixels",
        "noise": "sigma, share of the full range",
        "rotation": "degrees",
        "brightness": "factor",
        "contrast": "factor",
        "jpeg": "quality",
    }
)
"""What the paper's strengths are of."""


def prepare_folder(folder: Path) -> None:
    """Make the folder, and see that files can be made in it: to be done before hours of measuring.

    Raises:
        UsageError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def write_plots(evaluation: Evaluation, folder: Path, kind: str = "png") -> list[Path]:
    """Write what the evaluation's protocols allow, and say what was written. All data sets together.

    Args:
        folder: made if need be; files of the same names are replaced.
        kind: one of `FORMATS`.

    Raises:
        UsageError: another format, or the folder cannot be written to.
    """
    if kind not in FORMATS:
        raise UsageError(f"plots are written as {' or '.join(FORMATS)}, not as {kind!r}")
    scores = {name: Scored.together(list(parts.values())) for name, parts in evaluation.scoring.scores.items()}
    shipped = {facts.name: facts.threshold for facts in evaluation.scorers if facts.threshold is not None}
    figures: dict[str, Figure] = {}
    if evaluation.reidentification:
        pairs = {name: (scored.same, scored.different) for name, scored in scores.items()}
        figures["reidentification-roc"] = _roc(pairs, "Re-identification")
        figures["reidentification-scores"] = _histograms(
            pairs, "Re-identification", ("one identity", "different identities"), shipped
        )
    if evaluation.copy_detection:
        of = evaluation.copy_detection[0].auc_of
        chosen = np.asarray([cell.grid == of for cell in evaluation.cells])
        pairs = {name: (scored.copies[:, chosen].reshape(-1), scored.negatives) for name, scored in scores.items()}
        those = "the paper's 24 cells" if of == "paper" else "the realistic cells"
        figures["copy-detection-roc"] = _roc(pairs, f"Copy detection, {those}")
        figures["copy-detection-scores"] = _histograms(pairs, "Copy detection", ("altered copies", "different images"), shipped)
        figures |= _recalls(evaluation)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_written(figure, folder / f"{name}.{kind}") for name, figure in figures.items()]
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"plots cannot be written to {folder}: {error.strerror or error}. Give --plots a folder of yours")


def _written(figure: Figure, path: Path) -> Path:
    from matplotlib import rc_context

    FigureCanvasAgg(figure)
    # Without a salt, ids in an SVG differ from run to run; without a date, the same figures give the same file.
    with rc_context({"svg.hashsalt": SVG_SALT}):
        figure.savefig(path, dpi=DOTS, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def _roc(pairs: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]], title: str) -> Figure:
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    least = 1.0
    for number, (name, (same, different)) in enumerate(pairs.items()):
        different = _thinned(different)
        truth = np.concatenate([np.ones(len(same), np.int8), np.zeros(len(different), np.int8)])
        false, true, _ = roc_curve(truth, np.concatenate([same, different]))
        least = min(least, 1.0 / len(different))
        axes.step(np.maximum(false, 1e-12), true, where="post", label=name, **_style(number))
    axes.set(xscale="log", xlim=(least, 1), ylim=(0, 1.02), xlabel="false-positive rate", ylabel="recall", title=title)
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside lower center", ncols=min(len(pairs), 3))
    return figure


def _histograms(
    pairs: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    title: str,
    labels: tuple[str, str],
    shipped: Mapping[str, float],
) -> Figure:
    """Shares on a logarithmic axis, for what decides is the few of different images that score high."""
    figure = Figure(figsize=(6, 1.2 + 2.0 * len(pairs)), layout="constrained")
    figure.suptitle(title)
    legend: dict[str, Any] = {}
    for axes, (name, both) in zip(figure.subplots(len(pairs), squeeze=False)[:, 0], pairs.items(), strict=True):
        every = np.concatenate(both)
        edges = np.linspace(every.min(), max(every.max(), every.min() + 1e-9), 61)
        for values, label, colour in zip(both, labels, ("tab:green", "tab:red"), strict=True):
            axes.hist(values, edges, weights=np.full(len(values), 1 / len(values)), alpha=0.6, label=label, color=colour)
        if name in shipped:
            axes.axvline(shipped[name], color="black", linestyle="--", linewidth=1.2, label="the bundle's threshold")
        # From half a pair, so that a single one is seen.
        axes.set(yscale="log", ylim=(0.5 / max(map(len, both)), 1.5), xlabel="score", ylabel="share of pairs")
        axes.set_title(name, fontsize="medium")
        handles, texts = axes.get_legend_handles_labels()
        legend |= dict(zip(texts, handles, strict=True))
    figure.legend(list(legend.values()), list(legend), fontsize="small", loc="outside lower center", ncols=len(legend))
    return figure


def _recalls(evaluation: Evaluation) -> dict[str, Figure]:
    """A figure a limit that can be fitted: recall against strength, our model's line the thick one."""
    overall = [part for part in evaluation.copy_detection if part.ds_name is None]
    figures = {}
    for name in dict.fromkeys(result.limit.name for part in overall for result in part.at):
        reached = {part.scorer: result for part in overall for result in part.at if result.limit.name == name and result.cells}
        if reached:
            part = _file_part(next(iter(reached.values())).limit)
            if any(cell.paper for cell in evaluation.cells):
                figures[f"copy-detection-recall-{part}"] = _recall_figure(reached)
            if realistic := [cell for cell in evaluation.cells if cell.realistic]:
                figures[f"copy-detection-realistic-{part}"] = _realistic_figure(reached, realistic)
    return figures


def _file_part(limit: Limit) -> str:
    if limit.wanted is not None:
        return f"{limit.wanted:g}"
    return "bundle-threshold" if limit.given else "best-f1"


def _recall_figure(reached: dict[str, CopyAt]) -> Figure:
    transforms = list(dict.fromkeys(cell.transform for cell in CELLS if cell.paper))
    figure = Figure(figsize=(11, 8), layout="constrained")
    limit = next(iter(reached.values())).limit
    figure.suptitle(f"Recall of altered copies at {limit.title}\nin brackets the false positives measured on TEST")
    grid = figure.add_gridspec(3, 3)
    for number, transform in enumerate(transforms):
        axes = figure.add_subplot(grid[divmod(number, 3)])
        cells = [cell for cell in CELLS if cell.transform == transform]
        _lines(axes, reached, [cell.name for cell in cells], [f"{cell.strength:g}" for cell in cells])
        axes.set_xlabel(UNITS[transform])
        axes.set_title(transform, fontsize="medium")
    axes = figure.add_subplot(grid[2, :])
    beyond = [cell.name for cell in CELLS if cell.grid == "beyond"]
    places = np.arange(len(beyond))
    width = 0.8 / len(reached)
    for number, (name, result) in enumerate(reached.items()):
        heights = [(result.cells or {})[cell] for cell in beyond]
        axes.bar(
            places + (number + 0.5) * width - 0.4, heights, width, label=_measured(name, result), color=_style(number)["color"]
        )
    axes.set_xticks(places, beyond)
    axes.set(ylim=(0, 1.03), ylabel="recall")
    axes.set_title("beyond the paper", fontsize="medium")
    figure.legend(*axes.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=min(len(reached), 6))
    return figure


def _realistic_figure(reached: dict[str, CopyAt], cells: Sequence[Cell]) -> Figure:
    """Recall of each realistic cell with its interval, a dot a scorer; held-out cells last."""
    ordered = sorted(cells, key=lambda cell: cell.held_out)
    figure = Figure(figsize=(8, 1.6 + 0.24 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    limit = next(iter(reached.values())).limit
    figure.suptitle(f"Recall of realistic copies at {limit.title}\nin brackets the false positives measured on TEST")
    places = np.arange(len(ordered), dtype=np.float64)
    for number, (name, result) in enumerate(reached.items()):
        found, spread = result.cells or {}, result.cell_intervals or {}
        values = np.asarray([found[cell.name] for cell in ordered])
        ends = np.asarray([[spread[cell.name].low, spread[cell.name].high] for cell in ordered])
        style = _style(number)
        axes.errorbar(
            values,
            places + (number + 0.5) / len(reached) * 0.7 - 0.35,
            xerr=np.maximum(0.0, [values - ends[:, 0], ends[:, 1] - values]),
            fmt="o",
            markersize=4,
            elinewidth=1,
            color=style["color"],
            zorder=style["zorder"],
            label=_measured(name, result),
        )
    axes.set_yticks(places, [f"{cell.name} (held out)" if cell.held_out else cell.name for cell in ordered], fontsize="small")
    axes.set(xlim=(-0.02, 1.02), xlabel="recall, with its 95 % interval", ylim=(len(ordered) - 0.4, -0.6))
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside lower center", ncols=min(len(reached), 3))
    return figure


def _lines(axes: Axes, reached: dict[str, CopyAt], cells: Sequence[str], strengths: Sequence[str]) -> None:
    for number, (name, result) in enumerate(reached.items()):
        axes.plot(strengths, [(result.cells or {})[cell] for cell in cells], marker="o", markersize=3, label=name, **_style(number))
    axes.set(ylim=(0, 1.03), ylabel="recall")
    axes.grid(alpha=0.3)


def _measured(name: str, at: CopyAt) -> str:
    """A scorer's name with the rate that its threshold has, which is not the wanted one."""
    rate = at.limit.false_positive_rate
    return name if rate is None else f"{name} ({100 * rate:.3g} %)"


def _style(number: int) -> dict[str, Any]:
    """The first scorer, ours, is black and thick and on top."""
    if number == 0:
        return {"color": "black", "linewidth": 2.5, "zorder": 3}
    return {"color": f"C{(number - 1) % 10}", "linewidth": 1.2, "zorder": 2}


def _thinned(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(values) <= MOST_POINTS:
        return values
    return np.sort(values)[np.linspace(0, len(values) - 1, MOST_POINTS).astype(np.int64)]
