"""CSV file lists, for training and evaluation alike.

Columns, as the reference has them: `Split` (TRAIN, VAL or TEST), `id` (identity: patient, person, object), `path` (relative to
a base folder), and optionally `ds_name` (data set; pairs are made within one). Other columns are ignored, and the order of
columns is free.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lcmem_onnx.runtime.errors import FileListError

__all__ = ["SPLITS", "Listed", "read_file_list", "write_file_list"]

SPLITS = ("TRAIN", "VAL", "TEST")
REQUIRED = ("Split", "id", "path")
NAMED_AT_ONCE = 3


@dataclass(frozen=True)
class Listed:
    """One line of a file list. `name` is the path as the list has it, `path` where it lies."""

    split: str
    identity: str
    name: str
    path: Path
    ds_name: str = ""


def read_file_list(listing: Path, base: Path | None = None) -> list[Listed]:
    """Read and check a file list, all splits, in its own order.

    Args:
        listing: the CSV file, UTF-8, with a header line.
        base: what paths are relative to; the list's own folder if not given.

    Raises:
        FileListError: unreadable, a column or a value is missing, a split that is none of the three, a picture that does not
            exist, or an identity of one data set that stands in two splits: what is measured then would be known from training.
    """
    base = listing.parent if base is None else base
    try:
        with listing.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            lacking = [column for column in REQUIRED if column not in (reader.fieldnames or ())]
            if lacking:
                raise FileListError(
                    f"{listing} has no column {', '.join(map(repr, lacking))}: a file list has the columns Split, id, path and, "
                    f"if wanted, ds_name; this one has {', '.join(map(repr, reader.fieldnames or ())) or 'none'}"
                )
            rows = [_listed(row, reader.line_num, listing, base) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileListError(f"{listing} cannot be read as a CSV file list: {error}") from error
    if not rows:
        raise FileListError(f"{listing} lists no picture")
    missing = [row.name for row in rows if not row.path.is_file()]
    if missing:
        raise FileListError(f"{listing} lists {len(missing)} pictures that are not below {base}: {_some(missing)}")
    home: dict[tuple[str, str], str] = {}
    torn = {row.identity for row in rows if home.setdefault((row.ds_name, row.identity), row.split) != row.split}
    if torn:
        raise FileListError(
            f"{listing} has {len(torn)} identities in more than one split ({_some(sorted(torn))}): what training has seen may not "
            "be measured on. Split by identity, not by picture"
        )
    return rows


def write_file_list(listing: Path, rows: Iterable[Listed]) -> None:
    """Write rows as a file list that `read_file_list` reads; paths are written as each row's `name`."""
    with listing.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow([*REQUIRED, "ds_name"])
        writer.writerows([row.split, row.identity, row.name, row.ds_name] for row in rows)


def _listed(row: dict[str, str | None], line: int, listing: Path, base: Path) -> Listed:
    for column in REQUIRED:
        if not row[column]:
            raise FileListError(f"{listing} line {line} has no value for {column!r}")
    split, identity, name = (str(row[column]).strip() for column in REQUIRED)
    if split.upper() not in SPLITS:
        raise FileListError(f"{listing} line {line} has the split {split!r}; TRAIN, VAL or TEST was expected")
    return Listed(split.upper(), identity, name, base / name, (row.get("ds_name") or "").strip())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_AT_ONCE} more" if len(names) > NAMED_AT_ONCE else ""
    return ", ".join(map(repr, names[:NAMED_AT_ONCE])) + more
