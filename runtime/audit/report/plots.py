"""The report's plots: matplotlib's SVG, coloured by the page's own variables, so that they are dark on a dark page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

__all__ = ["distribution", "exceedance"]

Doubles = NDArray[np.float64]
TICKS = (1e-6, 1e-5, 1e-4, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
INK, RELEASED, HOLDOUT, LIMIT, FAINT = "#010101", "#020202", "#030303", "#040404", "#050505"
"""Stand-ins: matplotlib writes them, `_svg` makes page variables of them."""
VARIABLES = {
    INK: "currentColor",
    RELEASED: "var(--released)",
    HOLDOUT: "var(--holdout)",
    LIMIT: "var(--limit)",
    FAINT: "var(--line)",
}
SIZE = (4.8, 3.3)
BINS = 50


def distribution(released: Doubles, holdout: Doubles | None, limit: float) -> str:
    """Best score of each image, as shares a bin on a logarithmic axis: what decides are the few that score high."""
    with rc_context(_settings("distribution")):
        figure, axes = _figure(released, holdout, limit)
        every = _logits(np.concatenate([released, *([] if holdout is None else [holdout])]))
        edges = np.linspace(every.min() - 0.1, every.max() + 0.1, BINS + 1)
        for scores, label, colour, style in _series(released, holdout):
            shares, _ = np.histogram(_logits(scores), edges)
            axes.stairs(shares / len(scores), edges, color=colour, linewidth=1.6, linestyle=style, label=label, baseline=1e-9)
            axes.stairs(shares / len(scores), edges, color=colour, alpha=0.16, fill=True, baseline=1e-9)
        fewest = min(len(scores) for scores, *_ in _series(released, holdout))
        axes.set(yscale="log", ylim=(0.5 / max(len(released), fewest), 1.0), ylabel="share of the images")
        return _svg(figure, axes, "distribution")


def exceedance(released: Doubles, holdout: Doubles | None, limit: float) -> str:
    """Share of the images that score at least so high: copies show as a shelf on the right."""
    with rc_context(_settings("exceedance")):
        figure, axes = _figure(released, holdout, limit)
        for scores, label, colour, style in _series(released, holdout):
            ordered = np.sort(_logits(scores))
            axes.step(
                ordered, 1.0 - np.arange(len(ordered)) / len(ordered), color=colour, linewidth=1.8, linestyle=style, label=label
            )
        axes.set(yscale="log", ylim=(0.5 / len(released), 1.4), ylabel="share that scores at least this")
        return _svg(figure, axes, "exceedance")


def _series(released: Doubles, holdout: Doubles | None) -> Sequence[tuple[Doubles, str, str, str]]:
    both = [(released, f"released ({len(released):,})", RELEASED, "-")]
    if holdout is not None and len(holdout):
        both.append((holdout, f"hold-out ({len(holdout):,})", HOLDOUT, "--"))
    return both


def _figure(released: Doubles, holdout: Doubles | None, limit: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    every = _logits(np.concatenate([released, *([] if holdout is None else [holdout]), [limit]]))
    low, high = every.min() - 0.3, every.max() + 0.3
    ticks = [tick for tick in TICKS if low <= _logits(np.array([tick]))[0] <= high]
    axes.set_xticks(_logits(np.array(ticks)), [f"{tick:g}" if tick >= 1e-3 else f"1e{round(np.log10(tick))}" for tick in ticks])
    axes.set_xlim(low, high)
    axes.set_xlabel("score of the nearest reference image")
    axes.axvline(float(_logits(np.array([limit]))[0]), color=LIMIT, linewidth=1.4, linestyle=":", label=f"threshold {limit:.4g}")
    return figure, axes


def _logits(scores: Doubles) -> Doubles:
    held = np.clip(scores, 1e-9, 1 - 1e-9)
    return np.asarray(np.log(held / (1 - held)), np.float64)


def _settings(salt: str) -> dict[Any, Any]:
    """Text stays text, which readers can search and screen readers speak; ids differ between figures of one page."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": FAINT,
    }


def _svg(figure: Figure, axes: Axes, name: str) -> str:
    """An <svg> element for an HTML page, whose ids are its own."""
    axes.grid(axis="y", linewidth=0.6)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, place: f"{100 * share:g} %"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_axisbelow(True)
    axes.legend(
        frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, handlelength=2.0, columnspacing=1.2
    )
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    # The page gives it its width; matplotlib's points would not shrink on a narrow screen.
    return re.sub(
        r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1), count=1
    )
