"""What a DICOM object holds besides the pixels that are screened: told, and left to the caller's rules.

A verdict is on the frames. An overlay is drawn over them by viewers but is not in them; an icon, and pixels in a sequence or in
private elements, are pictures of their own. None of them is rendered here, so that a verdict `clear` does not vouch for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset

__all__ = ["PRIVATE_BYTES", "Note", "notes_of"]

PRIVATE_BYTES = 1 << 16
"""Private elements that hold more than this together are noted: there is room for a picture in them."""
_ELEMENTS = 100_000
"""Looked at, at most: a hostile object has millions."""
_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_ICON = 0x00880200
_DOCUMENT = 0x00420011
_OVERLAY_DATA = 0x3000


class Note(StrEnum):
    """Codes that programs may rely on, across versions."""

    OVERLAY = "overlay"
    """Graphics in groups 6000 to 60FF, which viewers draw over the picture. They may spell a name."""
    BURNED_IN_ANNOTATION = "burned-in-annotation"
    """The header says that the pixels themselves have annotations that identify the patient."""
    RECOGNIZABLE_FEATURES = "recognizable-visual-features"
    """The header says that a face can be recognised in the pixels, or made from them."""
    ICON = "icon"
    """An icon: a small picture of its own, often of what the frames showed before they were changed."""
    NESTED_PIXELS = "nested-pixels"
    """Pixels in a sequence that is no icon's."""
    PRIVATE_DATA = "private-data"
    """More than 64 KiB in private elements."""
    ENCAPSULATED_DOCUMENT = "encapsulated-document"
    """A PDF or another document."""
    TWO_FORMATS = "two-formats"
    """The 128 bytes before the header are not empty: the file may be read as another format, with another picture."""
    UNREADABLE_ELEMENTS = "unreadable-elements"
    """Some elements could not be read, or there were too many to look at all."""


def notes_of(dataset: Dataset, preamble: bytes) -> tuple[Note, ...]:
    """What an object holds beside its frames, each note once, sorted.

    Args:
        dataset: with its pixels.
        preamble: the 128 bytes before the header, or nothing.
    """
    found: set[Note] = set()
    private = 0
    for keyword, note in (
        ("BurnedInAnnotation", Note.BURNED_IN_ANNOTATION),
        ("RecognizableVisualFeatures", Note.RECOGNIZABLE_FEATURES),
    ):
        if str(dataset.get(keyword) or "").strip().upper() == "YES":
            found.add(note)
    if preamble.strip(b"\0"):
        found.add(Note.TWO_FORMATS)
    try:
        for looked_at, (element, inside) in enumerate(_elements(dataset)):
            group, number = element.tag >> 16, element.tag & 0xFFFF
            if looked_at == _ELEMENTS:
                found.add(Note.UNREADABLE_ELEMENTS)
                break
            if element.tag == _ICON:
                found.add(Note.ICON)
            elif element.tag in _PIXELS and inside and inside[0] != _ICON:
                found.add(Note.NESTED_PIXELS)
            elif element.tag == _DOCUMENT:
                found.add(Note.ENCAPSULATED_DOCUMENT)
            elif 0x6000 <= group <= 0x60FF and number == _OVERLAY_DATA:
                found.add(Note.OVERLAY)
            elif group % 2 and isinstance(element.value, bytes):
                private += len(element.value)
    except Exception:  # noqa: BLE001  # whatever pydicom raises on a damaged element: the note tells of it
        found.add(Note.UNREADABLE_ELEMENTS)
    if private > PRIVATE_BYTES:
        found.add(Note.PRIVATE_DATA)
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
