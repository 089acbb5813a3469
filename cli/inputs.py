"""What a command was asked to read: arguments, names on stdin, folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..runtime.files import Found, Unfound

__all__ = ["inputs", "say_skipped", "walk"]


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
        raise click.UsageError("stdin named no pictures")
    return inputs


def walk(paths: Iterable[Path]) -> tuple[list[Found | Unfound], int]:
    """All pictures to be read, and how many other files lay among them. Walked once: the progress bar needs the count."""
    from ..runtime.files import Skipped, walk

    found: list[Found | Unfound] = []
    skipped = 0
    for item in walk(paths):
        if isinstance(item, Skipped):
            skipped += 1
        else:
            found.append(item)
    return found, skipped


def say_skipped(skipped: int, quiet: bool, whose: str = "") -> None:
    """Also where stdout is for programs: among what was skipped may be a picture that no one can tell from its first bytes."""
    if skipped and not quiet:
        click.echo(f"note: {skipped}{whose} files are no pictures and were skipped", err=True)
