"""Who a DICOM object belongs to, by its header. What is read here goes into a keyed hash (`gallery.pseudonyms`) alone."""

from __future__ import annotations

import warnings
from collections.abc import MutableSequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["NOBODY", "Identifiers", "identifiers_of"]


@dataclass(frozen=True)
class Identifiers:
    """A patient's and a study's own identifiers, as they stand in the header; None where they are missing or empty.

    Attributes:
        patient_id: (0010,0020). issuer: (0010,0021), the house that gave it: the number means a patient only within it.
        study_uid: (0020,000D).
    """

    patient_id: str | None = field(default=None, repr=False)
    issuer: str | None = field(default=None, repr=False)
    study_uid: str | None = field(default=None, repr=False)


NOBODY = Identifiers()


def identifiers_of(dataset: Dataset) -> Identifiers:
    """Read them from a header. A value that cannot be decoded is taken byte by byte: a damaged name must not hide a patient."""
    return Identifiers(_text(dataset, "PatientID"), _text(dataset, "IssuerOfPatientID"), _text(dataset, "StudyInstanceUID"))


def _text(dataset: Dataset, keyword: str) -> str | None:
    if keyword not in dataset:
        return None
    raw = dataset.get_item(keyword)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unknown character set, which pydicom replaces; the same one each time
            value = dataset[keyword].value
    except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, RecursionError):
        value = getattr(raw, "value", None)
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    elif isinstance(value, MutableSequence):  # a backslash within makes several values of one: the whole is the identifier
        value = "\\".join(map(str, value))
    return str(value or "").strip(" \0") or None
