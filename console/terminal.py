"""Terminal output: tables, facts, progress. The commands print JSON themselves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..runtime.calibration.alarms import Alarms
    from ..runtime.calibration.open_set import Suspect
    from ..runtime.calibration.threshold import AlterationMisses, Calibration, Decision, Forecast
    from ..runtime.results import Result
    from ..runtime.screening import Comparison

__all__ = [
    "LABELS",
    "as_number",
    "console_on",
    "is_table",
    "next_step",
    "print_calibration",
    "print_card",
    "print_comparison",
    "print_copies",
    "print_facts",
    "print_results",
    "print_suspects",
    "printable",
    "progress",
    "say",
    "stepping",
    "warn",
]

PIPE_WIDTH = 160
UNBOUNDED = 100_000
STACKED_BELOW = 100
"""Terminal width below which long paths are printed below each other, since narrow columns would fold them too often."""
STYLES = {"clear": "green", "match": "bold red", "error": "bold yellow"}
T = TypeVar("T")
Row: TypeAlias = "tuple[Text, Text, Text, Text]"
"""Verdict, image, score, and the gallery image or the error."""


def printable(text: str) -> str:
    """Escape text for one line of a terminal, since file names may contain newlines and escape sequences."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def progress(items: Iterable[T], total: int | None, what: str, quiet: bool, place: Callable[[T], str]) -> Generator[T, None, None]:
    """Yield the items; on a terminal, show a progress bar with rate and time left, counted in images rather than frames.

    Close the iterator before printing to stdout, which may be the same terminal. Lines for stderr appear above the bar.
    """
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
    with Progress(*columns, console=console_on(sys.stderr), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(what, total=total, rate="")
        last = None
        for item in items:
            if place(item) != last:
                last = place(item)
                # Average over the whole time: results arrive in batches, and rich's own rate is that of one batch.
                elapsed = bar.tasks[task].elapsed
                bar.update(task, advance=1, rate=f"{(bar.tasks[task].completed + 1) / elapsed:.1f}/s" if elapsed else "")
            yield item


@contextmanager
def stepping(quiet: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """Yield a function that takes a step's number (from 1), the number of steps, and a description; None where nothing is shown.

    On a terminal, a bar shows them and the time since the start. Lines for stderr (`say`) appear above it.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("step {task.fields[number]} of {task.total}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console_on(sys.stderr), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=1, number=1)
        yield lambda number, total, what: bar.update(task, completed=number - 1, total=total, number=number, description=what)


def say(line: str) -> None:
    """Print a line on stderr, above a progress bar if there is one: rich replaces `sys.stderr`, which `err=True` would bypass."""
    click.echo(line, file=sys.stderr)


def warn(line: str) -> None:
    """Print a warning on stderr."""
    say(f"warning: {printable(line)}")


def console_on(stream: IO[str]) -> Console:
    """Return a console with the terminal's width, or `PIPE_WIDTH` if the stream is not a terminal."""
    from rich.console import Console

    # A pipe has no width, and rich would fold paths to 80 columns.
    return Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False)


def _wide(rows: Sequence[Row]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("verdict", "image", "score", "gallery image or error"):
        table.add_column(column, overflow="fold", justify="right" if column == "score" else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _stacked(rows: Sequence[Row]) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(overflow="fold")
    for verdict, name, score, about in rows:
        table.add_row(verdict, name)
        table.add_row(score, about)
    return table


def print_results(
    results: list[Result],
    size: int,
    counts: dict[str, int],
    skipped: str,
    decision: Decision,
    stopped: str | None = None,
) -> None:
    """Print a table of results, then the counts, the gallery's size in frames, the skipped files, the threshold and the next step.

    Args:
        results: results to list.
        size: frames in the gallery.
        counts: images or frames by verdict.
        skipped: skipped files in words, or an empty string.
        decision: the threshold and its source.
        stopped: why and where the scan ended early; None if it is complete.
    """
    from rich.text import Text

    console = console_on(sys.stdout)
    if results:
        rows = [_row(result) for result in results]
        table = _wide(rows)
        if console.width < STACKED_BELOW:
            unfolded = console.measure(table, options=console.options.update_width(UNBOUNDED)).maximum
            table = table if unfolded <= console.width else _stacked(rows)
        console.print(table)
    others = f"\n{skipped}" if skipped else ""
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    if stopped:
        console.print(Text(printable(stopped), STYLES["error"]))
    console.print(Text(f"{verdicts}, against {size} in the gallery.{others}"))
    console.print(Text(f"threshold {decision.threshold:.4g}: {printable(decision.words)}", "dim"))
    console.print(Text(f"next  {next_step(counts, complete=stopped is None)}"))


def next_step(counts: Mapping[str, int], *, complete: bool) -> str:
    """Return in plain words what a user should do after a scan.

    Args:
        counts: images or frames by verdict (clear, match, error).
        complete: whether all images were screened.
    """
    if not complete:
        return "run the scan again: images that were not screened may match"
    if counts["match"] and counts["error"]:
        return "hold back the matches and compare them with the gallery; fix the errors and scan those images again"
    if counts["match"]:
        return "hold back the matching images, and compare each with its gallery image"
    if counts["error"]:
        return "fix the errors and scan those images again: they may match"
    if counts["clear"]:
        return "nothing to do: no image reached the threshold"
    return "check the paths: no image was screened"


def _row(result: Result) -> Row:
    from rich.text import Text

    hit = result.matches[0] if result.matches else result.nearest
    name = printable(result.path) + (f" frame {result.frame}" if result.frame else "")
    about = f"{printable(result.detail or '')} [{result.reason}]"
    if hit:
        about = _shortened(hit.key) + (f" frame {hit.frame}" if hit.frame else "")
        if result.total > 1:
            about += f" and {result.total - 1} more"
        if not result.matches:
            about = f"nearest: {about}"
    if result.notes:
        about += f" (not screened: {', '.join(note.value for note in result.notes)})"
    return (
        Text(result.verdict.value, STYLES[result.verdict.value]),
        Text(name),
        Text(f"{hit.score:.4f}" if hit else ""),
        Text(about, "" if result.matches or not hit else "dim"),
    )


def _shortened(key: str) -> str:
    """Return a key (an absolute path) relative to the current folder if it is below it."""
    try:
        return printable(str(Path(key).relative_to(Path.cwd())))
    except ValueError:
        return printable(key)


def print_comparison(comparison: Comparison, first: Path, second: Path, decision: Decision) -> None:
    from rich.text import Text

    console = console_on(sys.stdout)
    frames = f" (frames {comparison.frames[0]} and {comparison.frames[1]})" if any(comparison.frames) else ""
    verdict = comparison.verdict.value
    words = "the same" if verdict == "match" else "not the same"
    console.print(
        Text.assemble(
            (verdict, STYLES[verdict]),
            f"  {printable(str(first))} and {printable(str(second))}{frames}: {words}, by a score of {comparison.score:.4f}",
        )
    )
    console.print(Text(f"threshold {comparison.threshold:.4g}: {printable(decision.words)}", "dim"))


def print_calibration(
    found: Calibration,
    ahead: Sequence[Forecast],
    alarms: Sequence[Alarms],
    *,
    left_out: int = 0,
    repeated: int = 0,
    unreadable: int = 0,
    dry_run: bool = False,
) -> None:
    """Print a calibrated threshold, its measurement and miss rate, alternatives, and a forecast as the gallery grows."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from ..runtime.calibration.threshold import percent

    console = console_on(sys.stdout)
    target = percent(found.wanted)
    if found.copies:
        console.print(_copies_table(found.copies))
        console.print(Text(_copies_in_words(found.copies), "dim"))
    if alarms:
        console.print(_alarms_table(alarms, found))
    if ahead:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        columns = ["gallery size", "strangers flagged at this threshold", "at most", f"threshold for {target}"]
        for column in (*columns, "mates missed there") if found.misses else columns:
            table.add_column(column, justify="left" if column == columns[0] else "right")
        for each in ahead:
            now = each.size == found.growth.size
            row = [f"{each.size:,}" + (" (now)" if now else ""), percent(each.fpir), percent(each.at_most)]
            row += ["too few negatives" if each.threshold is None else f"{each.threshold:.4g}"]
            row += [percent(each.misses.fnir) if each.misses else ""] if found.misses else []
            table.add_row(*row, style="bold" if now else None)
        console.print(table)
    low, high = found.threshold_interval.low, found.threshold_interval.high
    bounds = f"{low:.4g} to {high:.4g}" if high < 1.0 else f"{low:.4g} or more"
    console.print(Text(f"threshold {found.threshold:.4g} (95 % interval {bounds}), measured on {found.date[:10]}", "bold"))
    share = f"{percent(found.fpir)} ({percent(found.fpir_interval.low)} to {percent(found.fpir_interval.high)})"
    console.print(
        Text(
            f"strangers: {share} of {found.negatives:,} images reach it in a gallery of {found.growth.size:,} vectors, a "
            f"false positive identification rate (FPIR); the target is {target}"
        )
    )
    if found.misses:
        seen, between = found.misses, found.misses.interval
        console.print(
            Text(
                f"mates: {seen.missed:,} of {seen.mates:,} stay below it, a miss rate (FNIR) of {percent(seen.fnir)} "
                f"({percent(between.low)} to {percent(between.high)})"
            )
        )
    counts = {"excluded as suspect": left_out, "duplicate": repeated, "unreadable": unreadable}
    if aside := ", ".join(f"{count:,} {what}" for what, count in counts.items() if count):
        console.print(Text(f"not counted: {aside}"))
    if found.witnesses < found.negatives:
        console.print(
            Text(f"the {found.negatives:,} negatives are from {found.witnesses:,} patients; the intervals count patients")
        )
    if not found.enough:
        console.print(
            Text(
                f"too few negatives for {target}: {found.witnesses:,} support {percent(found.supported)} at best (rule of "
                f"three). The threshold is a best guess; {found.needed:,} negatives would support {target}",
                STYLES["error"],
            )
        )
    elif found.witnesses < found.needed_for_precision:
        console.print(Text(f"{found.needed_for_precision:,} negatives would determine the rate to about ±30 % (rule of 30)", "dim"))
    if dry_run:
        console.print(Text("the threshold was not saved (--dry-run)"))


def print_copies(missed: Sequence[AlterationMisses], threshold: float, words: str) -> None:
    """Print the altered copies that a threshold misses, and the source of the threshold."""
    from rich.text import Text

    console = console_on(sys.stdout)
    console.print(_copies_table(missed))
    console.print(Text(_copies_in_words(missed), "dim"))
    console.print(Text(f"threshold {threshold:.4g}: {printable(words)}", "bold"))


def _copies_table(missed: Sequence[AlterationMisses]) -> Table:
    """Return a table of alterations, the most missed one first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ..runtime.calibration.threshold import percent

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("altered copies of the index's images", "missed", "FNIR", "95 % interval"):
        table.add_column(column, justify="left" if column.startswith("altered") else "right")
    for each in sorted(missed, key=lambda each: -each.misses.fnir):
        seen = each.misses
        ends = (percent(seen.interval.low), percent(seen.interval.high))
        row = (each.alteration, f"{seen.missed:,} of {seen.mates:,}", percent(seen.fnir))
        table.add_row(*row, f"up to {ends[1]}" if not seen.missed else " to ".join(ends))
    return table


def _copies_in_words(missed: Sequence[AlterationMisses]) -> str:
    return (
        f"{missed[0].misses.mates:,} images of the index, each altered in {len(missed)} ways. Other examinations of the same "
        "patients are missed more often than altered copies: measure those with --pairs"
    )


def _alarms_table(alarms: Sequence[Alarms], found: Calibration) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ..runtime.calibration.threshold import percent
    from ..runtime.results import ThresholdSource

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    copies = any(each.copies for each in alarms)
    columns = ("threshold", "for", "held of 1,000 strangers' images", *(("copies missed", "most of") if copies else ()))
    for column in columns:
        table.add_column(column, justify="left" if column in ("for", "most of") else "right")
    for each in alarms:
        low, high = (f"{1000 * end:.3g}" for end in (each.fpir_interval.low, each.fpir_interval.high))
        held = f"0 (up to {high})" if not each.fpir else f"{each.holds_per_1000:.3g} ({low} to {high})"
        words = "pairs (bundle)" if each.wanted is None else percent(each.wanted)
        if each.source is ThresholdSource.STRANGERS:
            words += " (bundle)"
        row = [f"{each.threshold:.4g}", words, held]
        if each.worst is not None and each.fnir is not None:
            row += [percent(each.fnir), f"{each.worst.alteration}, {percent(each.worst.misses.fnir)}" if each.fnir else ""]
        table.add_row(*row, style="bold" if each.threshold == found.threshold else None)
    return table


def print_suspects(suspects: Sequence[Suspect], as_json: bool) -> None:
    """Print suspects (images that are probably not negatives), each with the gallery image it resembles."""
    if as_json:
        for each in suspects:
            line = {"path": each.path, "suspicion": each.suspicion.value, "key": each.key, "score": each.score}
            click.echo(json.dumps({"schema_version": 1, **line}))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("suspicion", "negative", "score", "gallery image"):
        table.add_column(column, overflow="fold", justify="right" if column == "score" else "left")
    for each in suspects:
        score = "" if each.score is None else f"{each.score:.4f}"
        table.add_row(each.suspicion.value, Text(printable(each.path)), score, Text(_shortened(each.key or "")))
    console_on(sys.stdout).print(table)


LABELS = {"pictures": "images"}
"""What a person reads for a fact whose JSON key has another word: programs rely on the key."""


def print_facts(facts: dict[str, object], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"schema_version": 1, **{name.replace(" ", "_"): value for name, value in facts.items()}}))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(
            Text(LABELS.get(name, name).replace("_", " ").replace("a picture", "an image"), "bold"), Text(printable(str(value)))
        )
    console_on(sys.stdout).print(table)


def print_card(card: Mapping[str, Any]) -> None:
    """Print a model card: its sentences with their names, and its figures (mappings of rows to columns) as tables."""
    from rich.table import Table
    from rich.text import Text

    console = console_on(sys.stdout)
    sentences = Table.grid(padding=(0, 2))
    tables = []
    for name, value in _flattened(card):
        if isinstance(value, Mapping):
            tables.append((name, value))
        else:
            sentences.add_row(Text(name, "bold"), Text(as_number(value)))
    console.print()
    console.print(sentences)
    for title, rows in tables:
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        table = Table(box=None, padding=(0, 1), title=Text(title, "bold"), title_justify="left")
        for column in ("", *columns):
            table.add_column(Text(printable(column)), justify="right" if column else "left")
        for name, row in rows.items():
            table.add_row(Text(printable(name)), *(Text(as_number(row[column]) if column in row else "") for column in columns))
        console.print()
        console.print(table)


def _flattened(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a card: sentences, numbers, and tables."""
    for name, value in values.items():
        label = printable(name.replace("_", " "))
        if not isinstance(value, Mapping) or is_table(value):
            yield label, value
        elif all(isinstance(inner, int | float) for inner in value.values()):
            yield label, ", ".join(f"{printable(inner)}: {as_number(number)}" for inner, number in value.items())
        else:
            yield from _flattened(value)


def is_table(value: object) -> bool:
    """Return whether a part of a card is a mapping of rows to columns."""
    rows = list(value.values()) if isinstance(value, Mapping) else []
    return bool(rows) and all(isinstance(row, Mapping) and not any(isinstance(x, Mapping) for x in row.values()) for row in rows)


def as_number(value: object) -> str:
    """Format a value of a table: numbers with four significant digits, "-" for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
