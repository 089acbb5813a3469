"""CSV file lists, for training and evaluation alike.

Columns, as the reference has them: `Split` (TRAIN, VAL or TEST), `id` (identity: patient, person, object), `path` (relative to
a base folder, or absolute), and optionally `ds_name` (data set; pairs are made within one), `group` (the identity made finer:
images of one view, side, level or contrast, which alone are compared as the same) and `kind` (radiograph, photograph, ...). Other
columns are ignored, and the order of columns is free.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lcmem_onnx.runtime.errors import FileListError
from lcmem_onnx.runtime.system.atomic_write import put_whole
from lcmem_onnx.runtime.system.csv_list import CsvRow, read_csv_list, shortened, some_of

__all__ = ["SPLITS", "Listed", "read_file_list", "write_file_list"]

SPLITS = ("TRAIN", "VAL", "TEST")
REQUIRED = ("Split", "id", "path")
OPTIONAL = ("ds_name", "group", "kind")


@dataclass(frozen=True)
class Listed:
    """One line of a file list. `name` is the path as the list has it, `path` where it lies; what the list lacks is empty."""

    split: str
    identity: str
    name: str
    path: Path
    ds_name: str = ""
    group: str = ""
    kind: str = ""


def read_file_list(listing: Path, base: Path | None = None) -> list[Listed]:
    """Read and check a file list, all splits, in its own order.

    Args:
        listing: the CSV file, UTF-8, with a header line.
        base: what paths are relative to; the list's own folder if not given.

    Raises:
        FileListError: unreadable, a column or a value is missing, a split that is none of the three, an image that does not
            exist or is listed twice, or an identity of one data set that stands in two splits: what is measured then would be
            known from training.
    """
    base = listing.parent if base is None else base
    rows = [_listed(row, base) for row in read_csv_list(listing, REQUIRED, optional=OPTIONAL)]
    if not rows:
        raise FileListError(f"{listing} lists no image")
    # Not Path.is_file, which raises where a name is too long.
    missing = [row.name for row in rows if not os.path.isfile(row.path)]
    if missing:
        raise FileListError(
            f"{listing} lists {len(missing)} images that are not there: {some_of(missing)}. Paths are absolute, or relative to "
            f"{base.absolute()} here (--base gives another folder)"
        )
    _check_listed_once(rows, listing)
    home: dict[tuple[str, str], str] = {}
    torn = {row.identity for row in rows if home.setdefault((row.ds_name, row.identity), row.split) != row.split}
    if torn:
        raise FileListError(
            f"{listing} has {len(torn)} identities in more than one split ({some_of(sorted(torn))}): what training has seen "
            "may not be measured on. Split by identity, not by image"
        )
    return rows


def write_file_list(listing: Path, rows: Iterable[Listed]) -> None:
    """Write rows as a file list that `read_file_list` reads, whole or not at all; paths are written as each row's `name`.

    Raises:
        OSError: it cannot be written.
    """
    written = list(rows)

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as lines:
            writer = csv.writer(lines)
            more = [column for column in OPTIONAL if column == "ds_name" or any(getattr(row, column) for row in written)]
            writer.writerow([*REQUIRED, *more])
            writer.writerows([row.split, row.identity, row.name, *(getattr(row, column) for column in more)] for row in written)

    put_whole(listing, write)


def _check_listed_once(rows: Iterable[Listed], listing: Path) -> None:
    """Each image once: in two splits it would be known from training, under two identities it contradicts itself."""
    first: dict[str, Listed] = {}
    for row in rows:
        # Not resolved: 41,000 images on a network drive would take minutes.
        other = first.setdefault(os.path.normcase(os.path.abspath(row.path)), row)
        if other is row:
            continue
        if other.split != row.split:
            how = f"in two splits, {other.split} and {row.split}: what training has seen may not be measured on"
        elif other.identity != row.identity:
            how = f"under two identities, {shortened(other.identity)!r} and {shortened(row.identity)!r}"
        elif other.ds_name != row.ds_name:
            how = f"in two data sets, {shortened(other.ds_name)!r} and {shortened(row.ds_name)!r}"
        else:
            how = "twice"
        raise FileListError(f"{listing} lists one image {how}: {shortened(row.name)!r}. List each image once")


def _listed(row: CsvRow, base: Path) -> Listed:
    split, identity, name = (row.require(column) for column in REQUIRED)
    if split.upper() not in SPLITS:
        raise FileListError(f"{row.where} has the split {shortened(split)!r}; TRAIN, VAL or TEST was expected")
    return Listed(split.upper(), identity, name, base / name, *(row.get(column) for column in OPTIONAL))
