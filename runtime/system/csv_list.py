"""Read CSV lists that users write: UTF-8, a header line, columns in any order, further columns ignored."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import FileListError, LcmemError

__all__ = ["CsvRow", "read_csv_list", "shortened", "some_of"]

NAMED_AT_ONCE = 3
LONGEST_SHOWN = 100
LONGEST_HEADER = 200


@dataclass(frozen=True)
class CsvRow:
    """One row of a list.

    Attributes:
        where: file and line, for messages.
        values: each column's text as written; empty where the row is too short.
        error: raised where a value is missing.
    """

    where: str
    values: Mapping[str, str]
    error: type[LcmemError]

    def get(self, column: str) -> str:
        """Return a value without surrounding blanks; empty where the list has no such column or the row no value."""
        return self.values.get(column, "").strip()

    def require(self, column: str) -> str:
        """Return a value without surrounding blanks.

        Raises:
            LcmemError: of the list's type, if there is none.
        """
        value = self.get(column)
        if not value:
            raise self.error(f"{self.where} has no value for {column!r}")
        return value


Column = str | tuple[str, ...]
"""A column's name, or several names one of which must be there."""


def read_csv_list(
    path: Path,
    required: Sequence[Column],
    *,
    what: str = "file list",
    optional: Sequence[str] = (),
    error: type[LcmemError] = FileListError,
) -> Iterator[CsvRow]:
    """Yield the rows of a list with a header line, in order. Nothing is read before the first row is asked for.

    Args:
        path: the CSV file, UTF-8 with or without a byte order mark.
        required: columns that the header line must have.
        what: what the list is, for messages ("list of patients").
        optional: columns that it may have, for messages.
        error: type of the errors that are raised.

    Raises:
        LcmemError: of type `error`, if the file cannot be read, is not UTF-8 text or not CSV, or lacks a required column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, restval="")
            columns = tuple(reader.fieldnames or ())
            if any("\0" in column for column in columns):  # UTF-16 without a byte order mark is valid UTF-8
                raise error(_not_utf8(path, what))
            if missing := [column for column in required if not set(_names(column)).intersection(columns)]:
                raise error(
                    f"{path} has no column {', '.join(map(_quoted, missing))}: a {what} must have the columns "
                    f"{_expected(required, optional)}; this one has {', '.join(map(repr, columns))[:LONGEST_HEADER] or 'none'}"
                )
            for row in reader:
                values = {column: value for column, value in row.items() if column is not None}
                if any("\0" in value for value in values.values()):
                    raise error(f"{path} cannot be read as a CSV {what}: line {reader.line_num} holds a null character")
                yield CsvRow(f"{path} line {reader.line_num}", values, error)
    except UnicodeDecodeError as cause:
        raise error(_not_utf8(path, what)) from cause
    except OSError as cause:
        raise error(f"{shortened(str(path))} cannot be read as a CSV {what}: {cause.strerror or cause}") from cause
    except (csv.Error, ValueError) as cause:  # ValueError: a path with a null character
        raise error(f"{shortened(str(path))} cannot be read as a CSV {what}: {cause}") from cause


def some_of(names: Sequence[str]) -> str:
    """Return the first few names, quoted and shortened, and how many more there are."""
    more = f" and {len(names) - NAMED_AT_ONCE} more" if len(names) > NAMED_AT_ONCE else ""
    return ", ".join(repr(shortened(name)) for name in names[:NAMED_AT_ONCE]) + more


def shortened(name: str) -> str:
    """Return a name as a message shows it: of a very long one both ends."""
    half = LONGEST_SHOWN // 2
    return name if len(name) <= LONGEST_SHOWN else f"{name[:half]}...{name[-half:]}"


def _names(column: Column) -> tuple[str, ...]:
    return (column,) if isinstance(column, str) else column


def _quoted(column: Column) -> str:
    return " or ".join(map(repr, _names(column)))


def _expected(required: Sequence[Column], optional: Sequence[str]) -> str:
    """The columns in words: "a, b and c or d, optionally e"."""
    names = [" or ".join(_names(column)) for column in required]
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return f"{listed}, optionally {', '.join(optional)}" if optional else listed


def _not_utf8(path: Path, what: str) -> str:
    return f"{path} is not UTF-8 text, so it cannot be read as a CSV {what}: save it as UTF-8 (in a spreadsheet, 'CSV UTF-8')"
