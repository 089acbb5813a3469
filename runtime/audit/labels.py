"""What a CSV list says of released images: a class, a data set. And the folder each lies in, which needs no list."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..errors import UsageError

__all__ = ["LABELS", "folder_of", "read_labels"]

LABELS = ("class", "ds_name")
"""Columns that are looked for, beside `path`."""


def folder_of(name: str) -> str:
    """The first folder of a relative name; "." for what lies in none."""
    parts = PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 else "."


def read_labels(path: Path, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read a CSV file with a header: `path`, relative to the released folder, and `class` or `ds_name` or both.

    Args:
        names: of the released images.

    Returns:
        A released image's name to its labels.

    Raises:
        UsageError: it cannot be read, lacks a column, names an image twice, or none of the released ones.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path} cannot be read as a CSV list: {cause}") from error
    columns = [label for label in LABELS if rows and label in rows[0]]
    if not rows or "path" not in rows[0] or not columns:
        raise UsageError(f"{path} is no list of labels: its first line must name the columns path and class or ds_name")
    labels: dict[str, dict[str, str]] = {}
    for row in rows:
        name = PurePosixPath(row["path"] or "").as_posix()
        if name in labels:
            raise UsageError(f"{path} names {name} twice")
        labels[name] = {column: row[column] for column in columns if row[column]}
    known = set(names)
    if not known & labels.keys():
        raise UsageError(f"{path} names none of the released images: its paths must be relative to the released folder")
    return {name: each for name, each in labels.items() if name in known}
