"""Whose images are whose: from a CSV list, where headers do not say or are not to be trusted."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from ..errors import UsageError

__all__ = ["LISTED", "Patients"]

LISTED = "list:"
"""Marks a patient that a list names; another is a pseudonym of a header's number."""
COLUMNS = ("patient", "id")


class Patients:
    """A list of images with their patients.

    Args:
        path: a CSV file with a header: `path`, absolute or relative to the list's folder, and `patient` or `id`. Other columns
            are ignored. Images without a line, or with an empty value, have no known patient.

    Raises:
        UsageError: it cannot be read, lacks a column, or gives an image two patients.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._used = path, False
        base = Path(os.path.abspath(path)).parent
        self._patients: dict[str, str] = {}
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                columns = reader.fieldnames or ()
                column = next((name for name in COLUMNS if name in columns), None)
                if "path" not in columns or column is None:
                    raise UsageError(
                        f"{path} must have the columns path and patient (or id); its first line has {', '.join(columns) or 'none'}"
                    )
                for row in reader:
                    name, patient = (row["path"] or "").strip(), (row[column] or "").strip()
                    if not name or not patient:
                        continue
                    key = os.path.realpath(base / name)
                    if self._patients.setdefault(key, patient) != patient:
                        raise UsageError(f"{path} line {reader.line_num} gives {name} a second patient: one image has one patient")
        except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"{path} cannot be read as a CSV list of patients: {cause}") from error

    def of(self, image: Path) -> str | None:
        """The patient of an image, with a mark that tells it from a header's; None where the list does not say."""
        patient = self._patients.get(os.path.realpath(image))
        if patient is None:
            return None
        self._used = True
        return LISTED + patient

    def check_used(self) -> None:
        """Raise a UsageError if no image that was asked for is in the list: then its paths are probably wrong."""
        if not self._used:
            raise UsageError(
                f"{self._path} names none of the audit's images: its paths must be absolute, or relative to the list's folder"
            )
