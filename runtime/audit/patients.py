"""Whose images are whose: from a CSV list, where headers do not say or are not to be trusted."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UsageError
from ..system.csv_list import read_csv_list

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
        for row in read_csv_list(path, ("path", COLUMNS), what="list of patients", error=UsageError):
            name, patient = row.get("path"), row.get(next(column for column in COLUMNS if column in row.values))
            if not name or not patient:
                continue
            key = os.path.realpath(base / name)
            if self._patients.setdefault(key, patient) != patient:
                raise UsageError(f"{row.where} gives {name} a second patient: one image has one patient")

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
