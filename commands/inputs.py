"""What a command was asked to read: arguments, names on stdin, folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..runtime.images.discovery import Found, Unfound

__all__ = ["inputs", "say_skipped", "skipped_in_words", "walk"]


def inputs(paths: Iterable[str], null: bool) -> list[Path]:
    """The arguments as paths; '-' stands for the names on stdin."""
    inputs: list[Path] = []
    for path in paths:
        if path == "-":
            if sys.stdin is None:
                raise click.UsageError("stdin is closed, and '-' asks for the names on it")
            names = sys.stdin.buffer.read().split(b"\0" if null else b"\n")
            inputs += [
                Path(os.fsdecode(name)) for name in (names if null else (name.removesuffix(b"\r") for name in names)) if name
            ]
        else:
            inputs.append(Path(path))
    if not inputs:
        raise click.UsageError("stdin named no images")
    return inputs


def walk(paths: Iterable[Path]) -> tuple[list[Found | Unfound], dict[str, int]]:
    """Return all images to be read, and how many files were skipped for which reason.

    Folders are walked once, before the work: the progress bar needs the count.
    """
    from ..runtime.images.discovery import Skipped, SkipReason, counted, walk

    found: list[Found | Unfound] = []
    skipped: list[SkipReason] = []
    for item in walk(paths):
        if isinstance(item, Skipped):
            skipped.append(item.reason)
        else:
            found.append(item)
    return found, counted(skipped)


def skipped_in_words(skipped: Mapping[str, int]) -> str:
    """Return the counts of skipped files by reason, and a warning where such files may hold images; empty where there are none."""
    from ..runtime.images.discovery import MAY_HOLD_IMAGES, in_words

    if not skipped:
        return ""
    containers = " and ".join(reason for reason in skipped if reason in MAY_HOLD_IMAGES)
    warning = f" ({containers} files may hold images, which were not looked for)" if containers else ""
    return f"skipped: {in_words(skipped)}{warning}"


def say_skipped(skipped: Mapping[str, int], quiet: bool, whose: str = "") -> None:
    """Print a note on stderr about files that were skipped; `whose` says in which folder, where that is not plain."""
    if skipped and not quiet:
        click.echo(f"note: {skipped_in_words(skipped)}{whose}", err=True)
