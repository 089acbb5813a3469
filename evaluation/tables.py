"""An evaluation as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .evaluate import ALL, CopyDetection, Evaluation, Recalls
from .protocols import CELLS

__all__ = ["print_evaluation"]

TOO_FEW = "* fewer negatives than the rate needs: the threshold is above all of them"


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Re-identification, copy detection at each threshold, and the cells at the first of them, all data sets together."""
    if evaluation.re_identification:
        console.print(_re_identification(evaluation))
    if evaluation.copy_detection:
        console.print(_copy_detection(evaluation))
        console.print(_cells(evaluation, next(iter(next(iter(evaluation.copy_detection.values()))))))
    console.print(
        Text(
            f"{evaluation.pictures} pictures at {evaluation.size} x {evaluation.size}, seed {evaluation.seed}; thresholds fitted "
            f"on {evaluation.fitted_on}; negatives are pairs of different identities within one data set",
            "dim",
        )
    )
    for note in evaluation.notes:
        console.print(Text(note, "yellow"))
    if evaluation.unreadable:
        console.print(Text(f"{len(evaluation.unreadable)} pictures could not be read and were left out:", "yellow"))
        for name, why in evaluation.unreadable[:5]:
            console.print(Text(f"  {name}: {why}", "yellow"))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right", overflow="fold")
    return table


def _percent(rate: float) -> str:
    return f"{100 * rate:g}%"


def _re_identification(evaluation: Evaluation) -> Table:
    table = _table(
        "Re-identification", "data set", "scorer", "pairs", "AUC (95 %)", "best F1: P / R", "P / FPR at R .95", "P / FPR at R .99",
        *(f"R at {_percent(rate)} FP" for rate in evaluation.rates),
    )  # fmt: skip
    labels = next(iter(evaluation.re_identification.values()))
    for label in labels:
        for scorer, sets in evaluation.re_identification.items():
            found = sets[label]
            its = found.separation
            table.add_row(
                label or "-",
                scorer,
                f"{its.positives} + {its.negatives}",
                f"{its.auc:.3f} ({its.auc_low:.3f} to {its.auc_high:.3f})",
                f"{its.best_f1_precision:.3f} / {its.best_f1_recall:.3f}",
                *(f"{each.precision:.3f} / {each.false_positive_rate:.3f}" for each in its.at_recall),
                *(f"{recall:.3f}{'' if threshold.resolved else '*'}" for _, threshold, recall in found.recalls),
            )
    if any(
        not threshold.resolved
        for sets in evaluation.re_identification.values()
        for f in sets.values()
        for _, threshold, _ in f.recalls
    ):
        table.caption = "* fewer negatives than the rate needs: the threshold is above all of them"
        table.caption_justify = "left"
    return table


def _named(recalls: Recalls) -> str:
    star = "" if recalls.threshold.resolved else "*"
    return f"{_percent(recalls.rate)} FP{star}" if recalls.rate is not None else recalls.threshold.source


def _copy_detection(evaluation: Evaluation) -> Table:
    """A row a scorer: recall, mean over the 24 cells and worst of them, at each threshold."""
    sources = list(dict.fromkeys(_named(its) for its in _every_recall(evaluation)))
    table = _table(
        "Copy detection: recall over the paper's 24 cells, mean / worst, by threshold", "data set", "scorer", "pictures",
        "negatives", "AUC", *sources,
    )  # fmt: skip
    for label in next(iter(evaluation.copy_detection.values())):
        for scorer, sets in evaluation.copy_detection.items():
            found: CopyDetection = sets[label]
            by_source = {_named(recalls): f"{recalls.mean:.3f} / {recalls.worst:.3f}" for recalls in found.recalls}
            table.add_row(
                label or "-", scorer, str(found.pictures), str(found.negatives), f"{found.separation.auc:.4f}",
                *(by_source.get(source, "") for source in sources),
            )  # fmt: skip
    if any("*" in source for source in sources):
        table.caption, table.caption_justify = TOO_FEW, "left"
    return table


def _every_recall(evaluation: Evaluation) -> Iterator[Recalls]:
    for sets in evaluation.copy_detection.values():
        for found in sets.values():
            yield from found.recalls


def _cells(evaluation: Evaluation, label: str) -> Table:
    name = "all data sets" if label == ALL else label or "all pictures"
    scorers = list(evaluation.copy_detection)
    first = evaluation.copy_detection[scorers[0]][label].recalls[0]
    table = _table(f"Recall by cell, {name}, at {_named(first)}", "alteration", "", *scorers)
    for cell in CELLS:
        values = [evaluation.copy_detection[scorer][label].recalls[0].cells[cell.name] for scorer in scorers]
        best = max(values)
        table.add_row(
            cell.name,
            "" if cell.in_paper else "beyond the paper",
            *(Text(f"{value:.3f}", "bold" if value == best else "") for value in values),
        )
    return table
