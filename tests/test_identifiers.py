"""Whose an object is: what the header says, however badly."""

from __future__ import annotations

import pytest
from lcmem_onnx.runtime.images.dicom.identifiers import Identifiers, identifiers_of
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag


def header(**values: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def raw(value: bytes, charset: str | None = None) -> Dataset:
    dataset = Dataset()
    if charset:
        tag = Tag(0x00080005)
        dataset[tag] = RawDataElement(tag, "CS", len(charset), charset.encode(), 0, False, True)
    dataset[Tag(0x00100020)] = RawDataElement(Tag(0x00100020), "LO", len(value), value, 0, False, True)
    return dataset


def test_what_is_there_is_read_without_padding() -> None:
    found = identifiers_of(header(PatientID=" 4711 ", IssuerOfPatientID="St. Mary", StudyInstanceUID="1.2.3"))
    assert found == Identifiers("4711", "St. Mary", "1.2.3")
    assert "4711" not in repr(found)


@pytest.mark.parametrize("dataset", [Dataset(), header(PatientID="", StudyInstanceUID=""), header(PatientID=None), raw(b"  \0")])
def test_what_is_missing_or_empty_is_none(dataset: Dataset) -> None:
    assert identifiers_of(dataset) == Identifiers()


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (raw(b"a\\b"), "a\\b"),
        (raw(b"line\nbreak"), "line\nbreak"),
        (raw(b"M\xfcller", "ISO_IR 100"), "Müller"),
    ],
)
def test_odd_values_are_one_identifier(dataset: Dataset, expected: str) -> None:
    assert identifiers_of(dataset).patient_id == expected


@pytest.mark.parametrize("charset", ["nonsense", "ISO_IR 192"])
def test_what_cannot_be_decoded_still_tells_patients_apart(charset: str) -> None:
    one, other = (identifiers_of(raw(value, charset)).patient_id for value in (b"\xff\xfe1", b"\xff\xfe2"))
    assert one
    assert other
    assert one != other
