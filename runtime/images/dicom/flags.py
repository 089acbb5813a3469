"""The flags of a DICOM object (see `content_flags`)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset

from ..content_flags import PRIVATE_BYTES, ContentFlag
from .elements import first_number, items_of, stated_frames, value_of
from .lookup_table import read_table

__all__ = ["flags_of"]

_ELEMENTS = 100_000
"""Looked at, at most: a hostile object has millions."""
_TABLES = 16
"""Lookup tables of a sequence that are looked at, at most."""
_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_ICON = 0x00880200
_DOCUMENT = 0x00420011
_OVERLAY_DATA = 0x3000
_PADDING = 0xFFFCFFFC


_MACH_O = ("feedface", "feedfacf", "cefaedfe", "cffaedfe", "cafebabe")
_PROGRAMS = (b"MZ", b"\x7fELF", b"#!", *(bytes.fromhex(magic) for magic in _MACH_O))
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_IDENTIFIERS = ("PatientID", "PatientName", "AccessionNumber", "StudyID", "IssuerOfPatientID")
_UID_FORM = re.compile(r"[0-9.]{1,64}")
_CONTROLS = re.compile(r"[\x00-\x1a\x1c-\x1f\x7f]")
"""Without ESC, which switches character sets."""


def flags_of(dataset: Dataset, preamble: bytes) -> tuple[ContentFlag, ...]:
    """Return what an object holds besides its frames, each flag once, sorted.

    Args:
        dataset: with its pixels.
        preamble: the 128 bytes before the header, or nothing.
    """

    found = set(_of_header(dataset)) | set(_of_preamble(preamble))
    private = 0
    try:
        for looked_at, (element, inside) in enumerate(_elements(dataset)):
            group, number = element.tag >> 16, element.tag & 0xFFFF
            if looked_at == _ELEMENTS:
                found.add(ContentFlag.UNREADABLE_ELEMENTS)
                break
            if element.tag == _ICON:
                found.add(ContentFlag.ICON)
            elif element.tag in _PIXELS and inside and inside[0] != _ICON:
                found.add(ContentFlag.NESTED_PIXELS)
            elif element.tag == _DOCUMENT:
                found.add(ContentFlag.ENCAPSULATED_DOCUMENT)
            elif 0x6000 <= group <= 0x60FF and number == _OVERLAY_DATA:
                found.add(ContentFlag.OVERLAY)
            elif (group % 2 or element.tag == _PADDING or not dictionary_has_tag(element.tag)) and isinstance(element.value, bytes):
                private += len(element.value)
    except Exception:  # noqa: BLE001  # whatever pydicom raises on a damaged element: the note tells of it
        found.add(ContentFlag.UNREADABLE_ELEMENTS)
    if private > PRIVATE_BYTES:
        found.add(ContentFlag.PRIVATE_DATA)
    return tuple(sorted(found))


def _elements(dataset: Dataset) -> Iterator[tuple[DataElement | RawDataElement, tuple[int, ...]]]:
    """Every element, and the sequences that it is in, outermost first. Values are not converted but for sequences."""
    waiting: list[tuple[Dataset, tuple[int, ...]]] = [(dataset, ())]
    while waiting:
        level, inside = waiting.pop()
        for tag in level.keys():  # noqa: SIM118  # iterating over a Dataset itself converts each element
            element = level.get_item(tag)
            yield element, inside
            if _is_sequence(element):
                waiting += [(item, (*inside, int(tag))) for item in level[tag].value or ()]


def _is_sequence(element: DataElement | RawDataElement) -> bool:

    if element.VR in (None, "UN"):  # implicit: the dictionary tells
        return dictionary_has_tag(element.tag) and dictionary_VR(element.tag) == "SQ"
    return element.VR == "SQ"


def _of_preamble(preamble: bytes) -> Iterator[ContentFlag]:
    if preamble.strip(b"\0"):
        yield ContentFlag.EXECUTABLE_PREAMBLE if preamble.startswith(_PROGRAMS) else ContentFlag.TWO_FORMATS


def _of_header(dataset: Dataset) -> Iterator[ContentFlag]:

    for keyword, note in (
        ("BurnedInAnnotation", ContentFlag.BURNED_IN_ANNOTATION),
        ("RecognizableVisualFeatures", ContentFlag.RECOGNIZABLE_FEATURES),
    ):
        if _text(dataset, keyword).upper() == "YES":
            yield note
    uids = [text for keyword in _UIDS if (text := _text(dataset, keyword))]
    if not all(_UID_FORM.fullmatch(text) for text in uids) or any(_CONTROLS.search(_text(dataset, word)) for word in _IDENTIFIERS):
        yield ContentFlag.MALFORMED_IDENTIFIER
    sets = dataset.get("SpecificCharacterSet") or ""
    for name in [sets] if isinstance(sets, str) else sets:
        if str(name).strip() not in python_encoding:
            yield ContentFlag.UNKNOWN_CHARACTER_SET
    if "RescaleSlope" in dataset and not first_number(value_of(dataset, "RescaleSlope")):
        yield ContentFlag.USELESS_RESCALE
    width = value_of(dataset, "WindowWidth")
    if width not in (None, "") and not (first_number(width) or 0) > 0:
        yield ContentFlag.USELESS_WINDOW
    if stated_frames(dataset) is None:
        yield ContentFlag.USELESS_FRAME_COUNT
    tables = [item for keyword in ("ModalityLUTSequence", "VOILUTSequence") for item in items_of(dataset, keyword, stop=_TABLES)]
    if not all((table := read_table(item)) and table.shows for item in tables):
        yield ContentFlag.USELESS_TABLE
    if _text(dataset, "PhotometricInterpretation").startswith("MONOCHROME") and "RedPaletteColorLookupTableDescriptor" in dataset:
        yield ContentFlag.SUPPLEMENTAL_PALETTE


def _text(dataset: Dataset, keyword: str) -> str:

    return str(value_of(dataset, keyword) or "").strip(" \0")
