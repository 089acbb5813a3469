"""The bundled model on the TEST split of its images, cell by cell, next to pHash, PDQ and any ONNX embedder.

python benchmarks/bundled_model.py images/list.csv [--bundle DIR] [--baseline sscd_distilled.onnx] [--json FILE]

One table a kind of image (the list's column `kind`, or its data sets), each with its own negatives, pairs of different identities
of one data set, and its own thresholds. The second threshold of a kind is just above the highest of its negatives.
Every scorer sees the same arrays. SSCD: docs/evaluation.md says where it comes from. models.image_folder rebuilds the images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from lcmem_onnx import Screener
from lcmem_onnx.evaluation.evaluate import evaluate
from lcmem_onnx.evaluation.filelist import Listed, read_file_list
from lcmem_onnx.evaluation.measures import limit_for, share_at
from lcmem_onnx.evaluation.networks import BundleScorer
from lcmem_onnx.evaluation.protocols import CELLS
from lcmem_onnx.evaluation.scorers import open_baselines
from lcmem_onnx.evaluation.scoring import Plan, Scored, score_all
from lcmem_onnx.runtime.system.cpu import cpu_limit, cpu_name

PHOTOGRAPH = Path(__file__).parent.parent / "examples" / "pictures" / "gallery" / "astronaut.jpg"
PAPER = np.array([cell.paper for cell in CELLS])
Cells = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("list", type=Path, help="list.csv of the images")
    parser.add_argument("--bundle", type=Path, help="another bundle than the one of the package")
    parser.add_argument("--baseline", action="append", default=[], help="besides phash and pdq")
    parser.add_argument("--json", type=Path, help="all figures")
    options = parser.parse_args()
    screener = Screener(options.bundle, provider="cpu")
    size = sum(path.stat().st_size for path in screener.bundle.path.rglob("*")) / 1e6
    print(f"{screener.bundle.name}, {size:.1f} MB; {cpu_name()}, {cpu_limit()} threads, {time.strftime('%Y-%m-%d')}\n")
    print(f"one image, file to embedding: {_milliseconds(screener):.1f} ms\n")
    print(_identified(options.list, screener), flush=True)

    groups: dict[str, list[Listed]] = {}
    for row in read_file_list(options.list):
        if row.split == "TEST":
            groups.setdefault(row.kind or row.ds_name or "images", []).append(row)
    figures: dict[str, Any] = {}
    for group, chosen in groups.items():
        figures[group] = _copies(chosen, screener, options.baseline)
        print(_table(group, figures[group]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _milliseconds(screener: Screener, runs: int = 30) -> float:
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        screener.embed(PHOTOGRAPH)
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def _identified(listing: Path, screener: Screener) -> str:
    found = evaluate(listing, [BundleScorer(screener)], protocol="reid", fit_on="test", false_positives=(1e-3,))
    lines = ["| re-identification | identities | pairs | AUC | 95 % | recall at 0.1 % |", "| --- | --- | --- | --- | --- | --- |"]
    for part in found.reidentification:
        pairs, recall = part.pairs, next((at.recall for at in part.at if at.limit.wanted == 1e-3), None)
        shown = "too few pairs" if recall is None else f"{recall:.3f}"
        lines.append(
            f"| {part.ds_name or 'all'} | {part.identities} | {pairs.same} | {pairs.auc:.4f} | "
            f"{pairs.auc_interval.low:.4f} to {pairs.auc_interval.high:.4f} | {shown} |"
        )
    return "\n".join(lines) + "\n"


def _copies(rows: list[Listed], screener: Screener, baselines: list[str]) -> dict[str, Any]:
    """How much was measured; and `["scorers"][name][rate]`: threshold, cells, and mean and worst of the paper's."""
    scorers = [BundleScorer(screener), *open_baselines(("phash", "pdq", *baselines), (screener.bundle.name,))]
    plan = Plan(CELLS, reidentification=False, seed=42, size=screener.bundle.image_size, pair_negatives=1, workers=cpu_limit())
    scoring = score_all(rows, scorers, plan)
    figures: dict[str, Any] = {"pictures": len(rows), "negatives": 0, "milliseconds": scoring.milliseconds, "scorers": {}}
    for scorer in scorers:
        scored = Scored.together(list(scoring.scores[scorer.name].values()))
        fitted = limit_for(1e-3, scored.negatives).threshold
        above = float(np.nextafter(scored.negatives[-1], np.inf))
        figures["negatives"] = len(scored.negatives)
        figures["scorers"][scorer.name] = {
            name: _recalls(scored, threshold) for name, threshold in (("0.1 %", fitted), ("none", above)) if threshold is not None
        }
    return figures


def _recalls(scored: Scored, threshold: float) -> dict[str, Any]:
    recall = np.array([share_at(column, threshold) for column in scored.copies.T])
    return {
        "threshold": threshold,
        "mean": float(recall[PAPER].mean()),
        "worst": float(recall[PAPER].min()),
        "cells": {cell.name: float(value) for cell, value in zip(CELLS, recall, strict=True)},
    }


def _table(group: str, figures: dict[str, Any]) -> str:
    """Cells down, scorers across, at 0.1 % and at no false positive among the pairs there are; the best of a cell in bold."""
    scorers = figures["scorers"]
    columns = [(name, rate) for rate in ("0.1 %", "none") for name in scorers if rate in scorers[name]]
    lines = [
        f"{group}: {figures['pictures']} images, {figures['negatives']} pairs of different ones; recall at thresholds that 0.1 % "
        "and none of them reach",
        "",
        "| cell | " + " | ".join(f"{name}, {rate}" for name, rate in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for cell in CELLS:
        lines.append(
            f"| {cell.name} | " + _line(columns, {each: scorers[each[0]][each[1]]["cells"][cell.name] for each in columns})
        )
    for key, title in (("mean", "**mean of the paper's 24**"), ("worst", "**worst of them**")):
        lines.append(f"| {title} | " + _line(columns, {each: scorers[each[0]][each[1]][key] for each in columns}))
    return "\n".join(lines) + "\n"


def _line(columns: list[tuple[str, str]], values: dict[tuple[str, str], float]) -> str:
    best = {rate: max(value for (_, its), value in values.items() if its == rate) for _, rate in columns}
    return " | ".join(f"**{values[at]:.3f}**" if values[at] == best[at[1]] else f"{values[at]:.3f}" for at in columns) + " |"


if __name__ == "__main__":
    main()
