"""Inputs of a command: paths as arguments, paths on stdin, folders."""

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
    """Return the arguments as paths; '-' is replaced by the paths on stdin."""
    inputs: list[Path] = []
    for path in paths:
        if path == "-":
            if sys.stdin is None:
                raise click.UsageError("'-' reads paths from stdin, but stdin is closed")
            names = sys.stdin.buffer.read().split(b"\0" if null else b"\n")
            inputs += [
                Path(os.fsdecode(name)) for name in (names if null else (name.removesuffix(b"\r") for name in names)) if name
            ]
        else:
            inputs.append(Path(path))
    if not inputs:
        raise click.UsageError("no paths on stdin: expected one path per line, or NUL-separated with --null")
    return inputs


def walk(paths: Iterable[Path]) -> tuple[list[Found | Unfound], dict[str, int]]:
    """Return all images to read, and the number of skipped files by reason.

    Folders are walked before the work, since the progress bar needs the count.
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
    """Return the counts of skipped files by reason, with a warning if they may contain images; empty if no file was skipped."""
    from ..runtime.images.discovery import MAY_HOLD_IMAGES, in_words

    if not skipped:
        return ""
    containers = " and ".join(reason for reason in skipped if reason in MAY_HOLD_IMAGES)
    warning = f" ({containers} files may contain images, which were not screened)" if containers else ""
    return f"skipped: {in_words(skipped)}{warning}"


def say_skipped(skipped: Mapping[str, int], quiet: bool, whose: str = "") -> None:
    """Print a note about skipped files on stderr; `whose` is appended to say which folder they are in."""
    if skipped and not quiet:
        click.echo(f"note: {skipped_in_words(skipped)}{whose}", err=True)
