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

__all__ = ["SPLITS", "Listed", "read_file_list", "write_file_list"]

SPLITS = ("TRAIN", "VAL", "TEST")
REQUIRED = ("Split", "id", "path")
OPTIONAL = ("ds_name", "group", "kind")
NAMED_AT_ONCE = 3
LONGEST_SHOWN = 100


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
    try:
        with listing.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            lacking = [column for column in REQUIRED if column not in (reader.fieldnames or ())]
            if any("\0" in column for column in reader.fieldnames or ()):
                raise FileListError(_no_utf8(listing))
            if lacking:
                raise FileListError(
                    f"{listing} has no column {', '.join(map(repr, lacking))}: a file list has the columns Split, id, path and, "
                    f"if wanted, ds_name; this one has {', '.join(map(repr, reader.fieldnames or ())) or 'none'}"
                )
            rows = [_listed(row, reader.line_num, listing, base) for row in reader]
    except UnicodeDecodeError as error:
        raise FileListError(_no_utf8(listing)) from error
    except (OSError, csv.Error) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise FileListError(f"{_shortened(str(listing))} cannot be read as a CSV file list: {why}") from error
    if not rows:
        raise FileListError(f"{listing} lists no image")
    # Not Path.is_file, which raises where a name is too long.
    missing = [row.name for row in rows if not os.path.isfile(row.path)]
    if missing:
        raise FileListError(
            f"{listing} lists {len(missing)} images that are not there: {_some(missing)}. Paths are absolute, or relative to "
            f"{base.absolute()} here (--base gives another folder)"
        )
    _check_listed_once(rows, listing)
    home: dict[tuple[str, str], str] = {}
    torn = {row.identity for row in rows if home.setdefault((row.ds_name, row.identity), row.split) != row.split}
    if torn:
        raise FileListError(
            f"{listing} has {len(torn)} identities in more than one split ({_some(sorted(torn))}): what training has seen may not "
            "be measured on. Split by identity, not by image"
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
            how = f"under two identities, {_shortened(other.identity)!r} and {_shortened(row.identity)!r}"
        elif other.ds_name != row.ds_name:
            how = f"in two data sets, {_shortened(other.ds_name)!r} and {_shortened(row.ds_name)!r}"
        else:
            how = "twice"
        raise FileListError(f"{listing} lists one image {how}: {_shortened(row.name)!r}. List each image once")


def _listed(row: dict[str, str | None], line: int, listing: Path, base: Path) -> Listed:
    for column in REQUIRED:
        if not (row[column] or "").strip():
            raise FileListError(f"{listing} line {line} has no value for {column!r}")
    split, identity, name = (str(row[column]).strip() for column in REQUIRED)
    if split.upper() not in SPLITS:
        raise FileListError(f"{listing} line {line} has the split {_shortened(split)!r}; TRAIN, VAL or TEST was expected")
    return Listed(split.upper(), identity, name, base / name, *((row.get(column) or "").strip() for column in OPTIONAL))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_AT_ONCE} more" if len(names) > NAMED_AT_ONCE else ""
    return ", ".join(repr(_shortened(name)) for name in names[:NAMED_AT_ONCE]) + more


def _shortened(name: str) -> str:
    """A name as a message shows it: of a very long one, both ends."""
    half = LONGEST_SHOWN // 2
    return name if len(name) <= LONGEST_SHOWN else f"{name[:half]}...{name[-half:]}"


def _no_utf8(listing: Path) -> str:
    return f"{listing} is not UTF-8 text, so it cannot be read as a CSV file list: save it as UTF-8 (in a spreadsheet, 'CSV UTF-8')"
