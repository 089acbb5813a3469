"""Print a bundle's figures: thresholds by kind of image and gallery size, then the measurements of its model card.

A card's tables are mappings of rows to columns. Known tables (those of the bundled model) are shown in fewer columns: a mean and
the worst cell share one column, and an interval follows its value. Unknown tables are shown unchanged.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..console.terminal import as_number, console_on, is_table, printable

if TYPE_CHECKING:
    from rich.table import Table

    from ..runtime.model.strangers import Strangers

__all__ = ["SIZES", "print_figures", "print_strangers", "tables_of"]

SIZES = (1, 1_000, 100_000)
"""Gallery sizes, in images, to show thresholds for."""
ORDER = ("re-identification", "copies, at the bundle's threshold", "copies", "beside")
"""Beginnings of titles, most important first; other tables follow."""
BY_CELL = "by cell"
GRID = re.compile(r"^([\d.]+), worst ([\d.]+) \(.*\)$")
"""A mean over cells with the worst cell, in the format of model cards."""
SHORTER = {
    "pictures": "images",
    "false positives": "false\npositives",
    "identities": "patients",
    "beyond the paper": "beyond\nthe paper",
    "worst beyond the paper": "worst beyond\nthe paper",
    "realistic, trained": "realistic,\ntrained",
    "realistic, held out": "realistic,\nheld out",
}
INTERVAL = re.compile(r"^([\d.]+) to ([\d.]+)$")


def tables_of(figures: object) -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """Return the tables among a card's figures, by title."""
    return {title: rows for title, rows in figures.items() if is_table(rows)} if isinstance(figures, Mapping) else {}


def print_strangers(strangers: Strangers) -> None:
    """Print the threshold of each kind of image for galleries of `SIZES`, then the threshold used and the share it flags."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from ..runtime.calibration.threshold import percent
    from ..runtime.model.strangers import DEFAULT_FPIR, pair_rate

    console = console_on(sys.stdout)
    title = f"threshold at which at most about {percent(DEFAULT_FPIR)} of strangers' images are flagged, by gallery size"
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("kind")
    for column in (*(f"{size:,}" for size in SIZES), "images", "pairs", "measured to"):
        table.add_column(column, justify="right")
    for kind, tail in strangers.kinds.items():
        rates = [pair_rate(DEFAULT_FPIR, size) for size in SIZES]
        thresholds = [f"{tail.threshold(rate):.4g}{'*' if rate < tail.measured_to * (1 - 1e-9) else ''}" for rate in rates]
        table.add_row(Text(printable(kind)), *thresholds, f"{tail.images:,}", f"{tail.pairs:,}", f"{tail.measured_to:g}")
    found = [strangers.threshold_for(DEFAULT_FPIR, size) for size in SIZES]
    table.add_section()
    table.add_row("the one used", *(f"{each.threshold:.4g}{'*' if each.extrapolated else ''}" for each in found), style="bold")
    table.add_row("flagged, at most", *(percent(each.fpir) for each in found))
    console.print()
    console.print(Text(title, "bold"))
    console.print(table)
    console.print(Text(f"* extrapolated. From {printable(strangers.data)}", "dim"))


def print_figures(figures: Mapping[str, Mapping[str, Mapping[str, Any]]], *, cells: bool = False) -> None:
    """Print the figures, the most important table first, and then the sources of the rows.

    Args:
        figures: tables by title.
        cells: also show the tables of single alterations.
    """
    from rich.text import Text

    console = console_on(sys.stdout)
    sources: dict[str, str] = {}
    hidden = 0
    for title, rows in sorted(figures.items(), key=lambda item: _rank(item[0])):
        if BY_CELL in title and not cells:
            hidden += 1
            continue
        compact = BY_CELL not in title
        shown = [(_label(name, sources), dict(_shortened(row)) if compact else row) for name, row in rows.items()]
        pairs = compact and any("/" in str(value) for _, row in shown for value in row.values())
        console.print()
        console.print(Text(printable(title) + (" (mean/worst alteration)" if pairs and "/" not in title else ""), "bold"))
        console.print(_table(shown, sources, compact=compact))
    if sources:
        console.print()
    for name, source in sources.items():
        console.print(Text(f"{name}: {source}", "dim"))
    if hidden:
        console.print(Text(f"hidden tables of single alterations: {hidden} (--cells shows them, --json prints everything)", "dim"))


def _rank(title: str) -> int:
    return next((index for index, begin in enumerate(ORDER) if title.startswith(begin)), len(ORDER))


def _table(rows: Sequence[tuple[str, Mapping[str, Any]]], sources: dict[str, str], *, compact: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    table = Table(box=None, padding=(0, 1))
    for column in ("", *columns):
        label = column if compact else _label(column, sources)
        table.add_column(Text(SHORTER.get(label, label)), justify="right" if column else "left", no_wrap=compact)
    for name, row in rows:
        table.add_row(Text(name), *(Text(as_number(row[column]) if column in row else "") for column in columns))
    return table


def _label(name: str, sources: dict[str, str]) -> str:
    """Return a row's short name, and keep the source in brackets for the footnotes."""
    short, bracket, source = printable(name).partition(" (")
    if not bracket:
        return short
    source = source.removesuffix(")")
    return short if sources.setdefault(short, source) == source else printable(name)


def _shortened(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a row's columns, with related columns merged."""
    ends = INTERVAL.match(str(row.get("95 % interval"))) if _are_numbers(row.get("AUC")) else None
    in_one = _are_numbers(row.get("mean recall"), row.get("worst"))
    dropped = {"95 % interval"} if ends else set()
    dropped |= {"worst", "worst cell"} if in_one else set()
    dropped |= {"different pairs"} if "pictures" in row else set()
    dropped |= {"which"} if "worst beyond the paper" in row else set()
    for name, value in row.items():
        if name in dropped:
            continue
        if name == "mean recall" and in_one:
            yield "paper", f"{value:.3f}/{row['worst']:.3f}"
        elif name == "AUC" and ends:
            yield "AUC (95 % interval)", f"{value:.3f} ({float(ends[1]):.3f}-{float(ends[2]):.3f})"
        elif isinstance(value, str) and (found := GRID.match(value)):
            yield name, f"{float(found[1]):.3f}/{float(found[2]):.3f}"
        elif name.startswith("recall at "):
            limit = name.removeprefix("recall at ").replace("false positives", "f.p.").replace("the bundle's ", "")
            yield f"recall at\n{printable(limit)}", value
        elif name == "false positives" and isinstance(value, float):
            yield name, f"{100 * value:.2g} %"
        else:
            yield printable(name), value


def _are_numbers(*values: object) -> bool:
    return all(isinstance(value, int | float) for value in values)
