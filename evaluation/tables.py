"""How an evaluation looks on a terminal: scorers as columns, a table for re-identification, one a limit for copy detection."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lcmem_onnx.display import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .evaluate import CopyAt, CopyDetection, Evaluation, Grid, Reidentification
    from .measures import Limit

__all__ = ["print_evaluation", "progress_bar"]

PIPE_WIDTH = 100
SHOW_UNREADABLE = 10
BARS = {"pictures": "reading and scoring pictures", "pairs": "comparing pictures"}


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """On a terminal a bar on stderr, by the callback that `evaluate` takes; elsewhere, or when quiet, nothing."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    tasks: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(BARS[what], total=total)
            bar.update(tasks[what], completed=done)

        yield tell


def print_evaluation(evaluation: Evaluation) -> None:
    """Tables and notes on stdout."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    for seen in evaluation.data_sets:
        name = printable(seen.ds_name) or "the list"
        vals = f"; {seen.val_pictures} VAL pictures" if seen.val_pictures else ""
        console.print(Text(f"{name}: {seen.pictures} TEST pictures of {seen.identities} identities{vals}"))
    if evaluation.reidentification:
        _print_reidentification(evaluation, console)
    if evaluation.copy_detection:
        _print_copy_detection(evaluation, console)
    table = _table("", [facts.name for facts in evaluation.scorers])
    table.add_row("milliseconds", *(f"{facts.milliseconds:.1f}" for facts in evaluation.scorers))
    _print(console, "Time: a picture embedded, or two compared where there are no embeddings", table)
    for note in evaluation.notes:
        console.print(Text(f"note: {printable(note)}", "dim"))
    for lost in evaluation.unreadable[:SHOW_UNREADABLE]:
        console.print(Text(f"not read: {printable(lost.name)}: {printable(lost.detail)} [{lost.reason}]", "yellow"))
    if len(evaluation.unreadable) > SHOW_UNREADABLE:
        console.print(Text(f"not read: {len(evaluation.unreadable) - SHOW_UNREADABLE} more (--json lists them)", "yellow"))


def _print_reidentification(evaluation: Evaluation, console: Console) -> None:
    overall = [part for part in evaluation.reidentification if part.ds_name is None]
    pairs = [part.pairs for part in overall]
    title = f"Re-identification: {pairs[0].same} pairs of one identity, {pairs[0].different} of different ones"
    table = _table("", [part.scorer for part in overall])
    table.add_row("AUC", *(f"{of.auc:.4f}" for of in pairs), style="bold")
    table.add_row("  95 % from", *(f"{of.auc_interval.low:.4f}" for of in pairs))
    table.add_row("  to", *(f"{of.auc_interval.high:.4f}" for of in pairs))
    table.add_section()
    table.add_row("best F1", *(_figure(of.f1) for of in pairs))
    table.add_row("  precision", *(_figure(of.precision) for of in pairs))
    table.add_row("  recall", *(_figure(of.recall) for of in pairs))
    for number, wanted in enumerate(pairs[0].at_recall):
        table.add_section()
        table.add_row(f"precision at recall {wanted.recall:g}", *(_figure(of.at_recall[number].precision) for of in pairs))
        table.add_row("  false positives", *(_rate(of.at_recall[number].false_positive_rate) for of in pairs))
    table.add_section()
    for limit in _limits([at.limit for part in overall for at in part.at]):
        recalls = [_recall(part, limit) for part in overall]
        table.add_row(f"recall at {_short(limit)}", *map(_figure, recalls), style="bold")
    for ds_name in _data_sets(evaluation):
        there = {part.scorer: part for part in evaluation.reidentification if part.ds_name == ds_name}
        if there:
            table.add_section()
            table.add_row(f"{printable(ds_name)}: AUC", *(f"{there[part.scorer].pairs.auc:.4f}" for part in overall))
            for limit in _limits([at.limit for part in there.values() for at in part.at]):
                recalls = [_recall(there[part.scorer], limit) for part in overall]
                table.add_row(f"  recall at {_short(limit)}", *map(_figure, recalls))
    _print(console, title, table)


def _print_copy_detection(evaluation: Evaluation, console: Console) -> None:
    from .protocols import CELLS

    overall = [part for part in evaluation.copy_detection if part.ds_name is None]
    for limit in _limits([at.limit for part in overall for at in part.at]):
        reached = {part.scorer: at for part in overall if (at := _at(part, limit)) and at.cells}
        table = _table("cell", list(reached))
        cells = [at.cells or {} for at in reached.values()]
        for paper, label, grids in (
            (True, "the paper's 24", [at.paper for at in reached.values()]),
            (False, "beyond the paper", [at.beyond for at in reached.values()]),
        ):
            for cell in CELLS:
                if cell.paper is paper:
                    table.add_row(cell.name, *(_figure(recalls[cell.name]) for recalls in cells))
            _add_grid(table, label, grids)
        for ds_name in _data_sets(evaluation):
            there = {part.scorer: part for part in evaluation.copy_detection if part.ds_name == ds_name}
            found = [_at(there[scorer], limit) for scorer in reached]
            _add_grid(table, printable(ds_name), [at.paper if at else None for at in found], "")
        table.add_row("threshold", *(_threshold(at.limit.threshold) for at in reached.values()))
        table.add_row("false positives", *(_rate(at.limit.false_positive_rate) for at in reached.values()))
        table.add_row("  of pairs", *(str(at.limit.negatives) for at in reached.values()))
        _print(console, f"Copy detection at {limit.name}: recall, {overall[0].pictures} pictures a cell", table)
    table = _table("", [part.scorer for part in overall])
    table.add_row("AUC", *(f"{part.auc:.4f}" for part in overall), style="bold")
    table.add_row("  95 % from", *(f"{part.auc_interval.low:.4f}" for part in overall))
    table.add_row("  to", *(f"{part.auc_interval.high:.4f}" for part in overall))
    _print(console, "Copy detection, the paper's 24 cells together, whatever the threshold", table)


def _add_grid(table: Table, label: str, grids: Sequence[Grid | None], style: str = "bold") -> None:
    table.add_section()
    table.add_row(f"{label}: mean", *(_figure(grid.mean if grid else None) for grid in grids), style=style)
    table.add_row("  worst", *(_figure(grid.worst if grid else None) for grid in grids), style=style)
    table.add_section()


def _data_sets(evaluation: Evaluation) -> list[str]:
    """Names of the data sets, when there are several; of one the figures are those over all."""
    names = [seen.ds_name for seen in evaluation.data_sets]
    return names if len(names) > 1 else []


def _limits(limits: Sequence[Limit]) -> list[Limit]:
    """One a rate that somebody has a threshold for, the highest rate first; the best F1 and the bundle's last."""
    reached = {limit.name: limit for limit in limits if limit.threshold is not None}
    return sorted(reached.values(), key=lambda limit: (limit.wanted is None, -(limit.wanted or 0), limit.given))


def _at(part: CopyDetection, limit: Limit) -> CopyAt | None:
    return next((at for at in part.at if at.limit.name == limit.name), None)


def _recall(part: Reidentification, limit: Limit) -> float | None:
    return next((at.recall for at in part.at if at.limit.name == limit.name), None)


def _print(console: Console, title: str, table: Table) -> None:
    """The title stands apart: rich would fold it to a narrow table's width."""
    from rich.text import Text

    console.print()
    console.print(Text(title, "bold"))
    console.print(table)


def _table(label: str, scorers: Sequence[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(label, no_wrap=True)
    for name in scorers:
        table.add_column(printable(name), justify="right", overflow="fold")
    return table


def _short(limit: Limit) -> str:
    return "bundle's" if limit.given else f"{100 * (limit.wanted or 0):g} %"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _threshold(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 0 else f"{value:.4g}"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.3g} %"
