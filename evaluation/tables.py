"""How an evaluation looks on a terminal: scorers as columns, a table for re-identification, one a limit for copy detection."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from lcmem_onnx.console.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .evaluate import CopyAt, Evaluation, Grid, RecallAt, Reidentification
    from .measures import Limit
    from .protocols import Cell

__all__ = ["print_evaluation", "progress_bar"]

At = TypeVar("At", "CopyAt", "RecallAt")
"""What a data set has at one limit."""

PIPE_WIDTH = 100
NAME_WIDTH = 16
"""A scorer's name is folded beyond it, unless its numbers are as wide."""
UNBOUNDED = 100_000
SHOW_UNREADABLE = 10
GRID_LABELS = {"paper": "the paper's 24", "beyond": "beyond the paper", "realistic": "realistic", "held_out": "held out"}
"""What tables call the kinds of cells, in the order in which they are shown."""
BARS = {"pictures": "reading and scoring images", "pairs": "comparing images", "tail": "measuring the strangers' tail"}


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
        vals = f"; {seen.val_images} VAL images" if seen.val_images else ""
        console.print(Text(f"{name}: {seen.images} TEST images of {seen.identities} identities{vals}"))
    if evaluation.reidentification:
        _print_reidentification(evaluation, console)
    if evaluation.copy_detection:
        _print_copy_detection(evaluation, console)
    sheet = _Sheet("", [facts.name for facts in evaluation.scorers])
    sheet.row("milliseconds", (f"{facts.milliseconds:.1f}" for facts in evaluation.scorers))
    sheet.show(console, "Time: an image embedded, or two compared where there are no embeddings")
    for note in evaluation.notes:
        console.print(Text(f"note: {printable(note)}", "dim"))
    for lost in evaluation.unreadable[:SHOW_UNREADABLE]:
        console.print(Text(f"not read: {printable(lost.name)}: {printable(lost.detail)} [{lost.reason}]", "yellow"))
    if len(evaluation.unreadable) > SHOW_UNREADABLE:
        console.print(Text(f"not read: {len(evaluation.unreadable) - SHOW_UNREADABLE} more (--json lists them)", "yellow"))


def _print_reidentification(evaluation: Evaluation, console: Console) -> None:
    overall = [part for part in evaluation.reidentification if part.ds_name is None]
    pairs = [part.pairs for part in overall]
    sheet = _Sheet("", [part.scorer for part in overall])
    sheet.row("AUC", (f"{of.auc:.4f}" for of in pairs), "bold")
    sheet.row("  95 % from", (f"{of.auc_interval.low:.4f}" for of in pairs))
    sheet.row("  to", (f"{of.auc_interval.high:.4f}" for of in pairs))
    sheet.section()
    sheet.row("best F1 (chosen on these pairs)", (_figure(of.f1) for of in pairs))
    sheet.row("  precision", (_figure(of.precision) for of in pairs))
    sheet.row("  recall", (_figure(of.recall) for of in pairs))
    for number, wanted in enumerate(pairs[0].at_recall):
        sheet.section()
        sheet.row(f"precision at recall {wanted.recall:g}", (_figure(of.at_recall[number].precision) for of in pairs))
        sheet.row("  false positives", (_rate(of.at_recall[number].false_positive_rate) for of in pairs))
    sheet.section()
    _add_recalls(sheet, overall, "", "bold")
    for ds_name in _data_sets(evaluation):
        there = {part.scorer: part for part in evaluation.reidentification if part.ds_name == ds_name}
        if there:
            ordered = [there[part.scorer] for part in overall]
            sheet.section()
            sheet.row(f"{printable(ds_name)}: AUC", (f"{part.pairs.auc:.4f}" for part in ordered))
            _add_recalls(sheet, ordered, "  ", "")
    sheet.show(console, f"Re-identification: {pairs[0].same} pairs of one identity, {pairs[0].different} of different ones")


def _add_recalls(sheet: _Sheet, parts: Sequence[Reidentification], indent: str, style: str) -> None:
    """Recall at each limit, and how many false positives were measured there."""
    for limit in _limits([result.limit for part in parts for result in part.at]):
        reached = [_at(part.at, limit) for part in parts]
        sheet.row(f"{indent}recall at {_short(limit)}", (_figure(result.recall if result else None) for result in reached), style)
        if style:
            spreads = [result.recall_interval if result else None for result in reached]
            sheet.row("  95 % from", (_figure(spread.low if spread else None) for spread in spreads))
            sheet.row("  to", (_figure(spread.high if spread else None) for spread in spreads))
        sheet.row(f"{indent}  false positives", (_rate(result.limit.false_positive_rate if result else None) for result in reached))


def _print_copy_detection(evaluation: Evaluation, console: Console) -> None:
    overall = [part for part in evaluation.copy_detection if part.ds_name is None]
    for limit in _limits([result.limit for part in overall for result in part.at]):
        reached = {part.scorer: result for part in overall if (result := _at(part.at, limit)) and result.cells}
        sheet = _Sheet("cell", list(reached))
        cells = [result.cells or {} for result in reached.values()]
        for kind, label in GRID_LABELS.items():
            for cell in evaluation.cells:
                if _kind(cell) == kind:
                    held_out = " (held out)" if cell.held_out else ""
                    sheet.row(f"{cell.name}{held_out}", (_figure(recalls[cell.name]) for recalls in cells))
            _add_grid(sheet, label, [_grid_of(result, kind) for result in reached.values()])
        for ds_name in _data_sets(evaluation):
            there = {part.scorer: part for part in evaluation.copy_detection if part.ds_name == ds_name}
            found = [_at(there[scorer].at, limit) for scorer in reached]
            for kind, label in GRID_LABELS.items():
                if kind != "beyond":
                    title = printable(ds_name) if kind == "paper" else f"{printable(ds_name)}, {label}"
                    _add_grid(sheet, title, [_grid_of(result, kind) if result else None for result in found], "")
            _add_threshold(sheet, "  ", [result.limit if result and result.cells else None for result in found])
            sheet.section()
        _add_threshold(sheet, "", [result.limit for result in reached.values()])
        sheet.row("  of pairs", (str(result.limit.negatives) for result in reached.values()))
        sheet.show(console, f"Copy detection at {limit.title}: recall, {overall[0].images} images a cell")
    sheet = _Sheet("", [part.scorer for part in overall])
    sheet.row("AUC", (f"{part.auc:.4f}" for part in overall), "bold")
    sheet.row("  95 % from", (f"{part.auc_interval.low:.4f}" for part in overall))
    sheet.row("  to", (f"{part.auc_interval.high:.4f}" for part in overall))
    those = "the paper's 24" if overall[0].auc_of == "paper" else "the realistic"
    sheet.show(console, f"Copy detection, {those} cells together, whatever the threshold")


def _kind(cell: Cell) -> str:
    """A key of `GRID_LABELS`."""
    return "held_out" if cell.held_out else cell.grid


def _grid_of(at: CopyAt, kind: str) -> Grid | None:
    """One of the grids of `GRID_LABELS`; None where it was not measured."""
    return {"paper": at.paper, "beyond": at.beyond, "realistic": at.realistic, "held_out": at.held_out}[kind]


def _add_grid(sheet: _Sheet, label: str, grids: Sequence[Grid | None], style: str = "bold") -> None:
    """Mean and worst of a grid, the mean over all data sets (in bold) with its interval; nothing where it was not measured."""
    if not any(grids):
        return
    sheet.section()
    sheet.row(f"{label}: mean", (_figure(grid.mean if grid else None) for grid in grids), style)
    if style:
        sheet.row("  95 % from", (_figure(grid.mean_interval.low if grid else None) for grid in grids))
        sheet.row("  to", (_figure(grid.mean_interval.high if grid else None) for grid in grids))
    sheet.row("  worst", (_figure(grid.worst if grid else None) for grid in grids), style)
    if style:
        sheet.section()


def _add_threshold(sheet: _Sheet, indent: str, limits: Sequence[Limit | None]) -> None:
    """Thresholds, whose pairs they were fitted on, and what they let through when measured: each data set has its own."""
    sheet.row(f"{indent}threshold", (_threshold(limit.threshold if limit else None) for limit in limits))
    sheet.row(f"{indent}  from", (limit.source if limit else "" for limit in limits))
    sheet.row(f"{indent}false positives", (_rate(limit.false_positive_rate if limit else None) for limit in limits))


def _data_sets(evaluation: Evaluation) -> list[str]:
    """Names of the data sets, when there are several; of one the figures are those over all."""
    names = [seen.ds_name for seen in evaluation.data_sets]
    return names if len(names) > 1 else []


def _limits(limits: Sequence[Limit]) -> list[Limit]:
    """One a rate that somebody has a threshold for, the highest rate first; the best F1 and the bundle's last."""
    reached = {limit.name: limit for limit in limits if limit.threshold is not None}
    return sorted(reached.values(), key=lambda limit: (limit.wanted is None, -(limit.wanted or 0), limit.given))


def _at(ats: Sequence[At], limit: Limit) -> At | None:
    return next((result for result in ats if result.limit.name == limit.name), None)


class _Sheet:
    """Rows with a column a scorer, shown as one table, or as several where the scorers do not fit side by side."""

    def __init__(self, label: str, scorers: Sequence[str]) -> None:
        self._label = label
        self._scorers = [printable(name) for name in scorers]
        self._rows: list[tuple[str, list[str], str] | None] = []

    def row(self, label: str, values: Iterable[str], style: str = "") -> None:
        """One more row, a value a scorer."""
        self._rows.append((label, list(values), style))

    def section(self) -> None:
        """Set what follows apart from what was."""
        if self._rows and self._rows[-1] is not None:
            self._rows.append(None)

    def show(self, console: Console, title: str) -> None:
        """The title stands apart: rich would fold it to a narrow table's width."""
        from rich.text import Text

        begin = 0
        while begin < len(self._scorers):
            end = begin + 1
            while end < len(self._scorers) and self._width(console, begin, end + 1) <= console.width:
                end += 1
            console.print()
            console.print(Text(f"{title}{', more columns' if begin else ''}", "bold"))
            console.print(self._table(console, begin, end))
            begin = end

    def _width(self, console: Console, begin: int, end: int) -> int:
        from rich.measure import Measurement

        return Measurement.get(console, console.options.update(width=UNBOUNDED), self._table(console, begin, end)).maximum

    def _table(self, console: Console, begin: int, end: int) -> Table:
        """The columns from `begin` to `end`: as wide as their numbers, which are never folded; long names are."""
        from rich.box import SIMPLE_HEAD
        from rich.cells import cell_len
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        labels = max(cell_len(label) for label in [self._label, *(row[0] for row in self._rows if row)])
        table.add_column(self._label, no_wrap=True, overflow="ellipsis", width=min(labels, console.width // 2))
        for number in range(begin, end):
            numbers = max(cell_len(row[1][number]) for row in self._rows if row)
            name = min(cell_len(self._scorers[number]), NAME_WIDTH)
            table.add_column(self._scorers[number], justify="right", overflow="fold", width=max(numbers, name))
        for row in self._rows:
            if row is None:
                table.add_section()
            else:
                table.add_row(row[0], *row[1][begin:end], style=row[2] or None)
        return table


def _short(limit: Limit) -> str:
    return "the bundle's" if limit.given else f"wanted {100 * (limit.wanted or 0):g} % ({limit.source})"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _threshold(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 0 else f"{value:.4g}"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.3g} %"
