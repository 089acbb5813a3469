"""How results look on a terminal: tables, facts, progress. Data for programs is printed by the commands themselves, as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .runtime.bundle import Bundle
    from .runtime.gallery import Gallery
    from .runtime.screening import Comparison, Result

__all__ = ["print_card", "print_comparison", "print_facts", "print_results", "printable", "progress", "warn"]

PIPE_WIDTH = 160
STYLES = {"clear": "green", "match": "bold red", "error": "bold yellow"}
T = TypeVar("T")


def printable(text: str) -> str:
    """Text safe for one line on a terminal: a file's name may hold newlines and escape sequences."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def progress(items: Iterable[T], total: int, what: str, quiet: bool, place: Callable[[T], str]) -> Iterator[T]:
    """Pass items on; on a terminal show a bar with rate and time left, by pictures and not by frames."""
    if quiet or not sys.stderr.isatty():
        yield from items
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console(sys.stderr), transient=True) as bar:
        task = bar.add_task(what, total=total, rate="")
        last = None
        for item in items:
            if place(item) != last:
                last = place(item)
                speed = bar.tasks[task].speed
                bar.update(task, advance=1, rate=f"{speed:.1f}/s" if speed else "")
            yield item


def warn(line: str) -> None:
    click.echo(f"warning: {printable(line)}", err=True)


def _console(stream: IO[str]) -> Console:
    from rich.console import Console

    # A pipe has no width: without one, rich would fold a path into 80 columns.
    return Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False)


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column == "score" else "left")
    return table


def print_results(
    results: list[Result],
    bundle: Bundle,
    gallery: Gallery,
    counts: dict[str, int],
    skipped: int,
    threshold: float | None,
) -> None:
    from rich.text import Text

    console = _console(sys.stdout)
    if results:
        table = _table("verdict", "picture", "score", "gallery picture, or what is wrong")
        for result in results:
            hit = result.matches[0] if result.matches else result.nearest
            style = STYLES[result.verdict.value]
            name = printable(result.path) + (f" frame {result.frame}" if result.frame else "")
            about = f"{printable(result.detail or '')} [{result.reason}]"
            if hit:
                about = _shortened(hit.key) + (f" frame {hit.frame}" if hit.frame else "")
                if result.total > 1:
                    about += f" and {result.total - 1} more"
                if not result.matches:
                    about = f"nearest: {about}"
            table.add_row(
                Text(result.verdict.value, style),
                Text(name),
                f"{hit.score:.4f}" if hit else "",
                Text(about, "" if result.matches or not hit else "dim"),
            )
        console.print(table)
    limit = bundle.threshold.value if threshold is None else threshold
    source = bundle.threshold.source if threshold is None else "given with --threshold"
    others = f" {skipped} other files skipped." if skipped else ""
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    console.print(Text(f"{verdicts}, against {len(gallery)} in the gallery.{others}"))
    console.print(Text(f"threshold {limit:.4g}: {source}", "dim"))


def _shortened(key: str) -> str:
    """A key, which is an absolute path, as seen from here when it lies below."""
    try:
        return printable(str(Path(key).relative_to(Path.cwd())))
    except ValueError:
        return printable(key)


def print_comparison(comparison: Comparison, first: Path, second: Path, bundle: Bundle, *, given: bool) -> None:
    from rich.text import Text

    console = _console(sys.stdout)
    frames = f" (frames {comparison.frames[0]} and {comparison.frames[1]})" if any(comparison.frames) else ""
    verdict = comparison.verdict.value
    words = "the same" if verdict == "match" else "not the same"
    console.print(
        Text.assemble(
            (verdict, STYLES[verdict]),
            f"  {printable(str(first))} and {printable(str(second))}{frames}: {words}, by a score of {comparison.score:.4f}",
        )
    )
    source = "given with --threshold" if given else bundle.threshold.source
    console.print(Text(f"threshold {comparison.threshold:.4g}: {source}", "dim"))


def print_facts(facts: dict[str, object], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"schema_version": 1, **{name.replace(" ", "_"): value for name, value in facts.items()}}))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name.replace("_", " "), "bold"), Text(printable(str(value))))
    _console(sys.stdout).print(table)


def print_card(card: Mapping[str, Any]) -> None:
    """A model card: sentences beside their names, figures below, a group at a time."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in _flattened(card):
        table.add_row(Text(name, "bold"), Text(value))
    console = _console(sys.stdout)
    console.print()
    console.print(table)


def _flattened(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows for people: a mapping of plain numbers becomes one row, a mapping of anything else is opened."""
    for name, value in values.items():
        label = printable(name.replace("_", " "))
        if not isinstance(value, Mapping):
            yield label, _number(value)
        elif all(isinstance(inner, int | float) for inner in value.values()):
            yield label, ", ".join(f"{printable(inner)}: {_number(number)}" for inner, number in value.items())
        else:
            yield "", ""
            yield label, ""
            yield from _flattened(value)


def _number(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
