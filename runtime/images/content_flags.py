"""Flags on what a file holds besides the pixels that are screened: told, and left to the caller's rules.

A verdict is on the frames. An overlay is drawn over them by viewers but is not in them; an icon, and pixels in a sequence or in
private elements, are images of their own. None of them is rendered here, so that a verdict `clear` does not vouch for them.

Some notes are of headers that no sound device writes, though the pixels decode: `SUSPICIOUS`. A gallery takes such images; to
pass one on as clear is another matter, and `screening` does not. Elements that devices do write badly (a character set's name, a
window of width 0) are noted, and do not change the verdict.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the notes' names are needed also where no DICOM object is: pydicom takes long to import
    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.dataset import Dataset

__all__ = ["PRIVATE_BYTES", "SUSPICIOUS", "Note", "notes_of"]

PRIVATE_BYTES = 1 << 16
"""Private and unknown elements that hold more than this together are noted: there is room for an image in them."""
_ELEMENTS = 100_000
"""Looked at, at most: a hostile object has millions."""
_TABLES = 16
"""Lookup tables of a sequence that are looked at, at most."""
_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_ICON = 0x00880200
_DOCUMENT = 0x00420011
_OVERLAY_DATA = 0x3000
_PADDING = 0xFFFCFFFC


class Note(StrEnum):
    """Codes that programs may rely on, across versions."""

    OVERLAY = "overlay"
    """Graphics in groups 6000 to 60FF, which viewers draw over the image. They may spell a name."""
    BURNED_IN_ANNOTATION = "burned-in-annotation"
    """The header says that the pixels themselves have annotations that identify the patient."""
    RECOGNIZABLE_FEATURES = "recognizable-visual-features"
    """The header says that a face can be recognised in the pixels, or made from them."""
    ICON = "icon"
    """An icon: a small image of its own, often of what the frames showed before they were changed."""
    NESTED_PIXELS = "nested-pixels"
    """Pixels in a sequence that is no icon's."""
    PRIVATE_DATA = "private-data"
    """More than 64 KiB in private elements, in elements that DICOM does not know, or in padding behind the pixels."""
    ENCAPSULATED_DOCUMENT = "encapsulated-document"
    """A PDF or another document."""
    TWO_FORMATS = "two-formats"
    """The 128 bytes before the header are not empty: the file may be read as another format too, with another image."""
    UNREADABLE_ELEMENTS = "unreadable-elements"
    """Some elements could not be read, or there were too many to look at all."""
    EXECUTABLE_PREAMBLE = "executable-preamble"
    """The 128 bytes before the header are those of a program (CVE-2019-11687)."""
    MALFORMED_IDENTIFIER = "malformed-identifier"
    """A UID with other characters than digits and dots, or an identifier with control characters."""
    UNKNOWN_CHARACTER_SET = "unknown-character-set"
    """Its texts are in a character set that DICOM does not know."""
    USELESS_RESCALE = "useless-rescale"
    """A rescale slope that is empty, 0 or not a number: it is left out."""
    USELESS_WINDOW = "useless-window"
    """The first window is unusable, such as one of width 0: it is left out."""
    USELESS_TABLE = "useless-table"
    """A modality or VOI LUT is empty, or gives one value for all: it is left out."""
    USELESS_FRAME_COUNT = "useless-frame-count"
    """The number of frames is not a number, or below 1: the pixels tell it."""
    USELESS_PALETTE = "useless-palette"
    """The header says that some values of a grayscale image have colors, but no palette can be read: it is left out."""
    SUPPLEMENTAL_PALETTE = "supplemental-palette"
    """Some values of a grayscale image have colors, which many viewers do not show. Frames are screened in color and in gray."""
    EMBEDDED_IMAGE = "embedded-image"
    """A thumbnail or preview in the metadata of a raster image that does not show what the image shows, or cannot be compared."""
    AUXILIARY_IMAGE = "auxiliary-image"
    """A depth map, gain map or another image of a HEIC, AVIF, JPEG 2000 or JPEG XL file that viewers do not show."""
    APPENDED_DATA = "appended-data"
    """Data after the end of a raster image, or between its parts: another image, a video, an archive."""
    HIDDEN_PIXELS = "hidden-pixels"
    """Fully transparent pixels whose colors vary: an image that shows once the transparency is dropped."""
    EXTRA_CHANNELS = "extra-channels"
    """Channels beyond color and transparency."""


SUSPICIOUS = frozenset(
    {
        Note.EXECUTABLE_PREAMBLE,
        Note.MALFORMED_IDENTIFIER,
        Note.UNREADABLE_ELEMENTS,
    }
)
_MACH_O = ("feedface", "feedfacf", "cefaedfe", "cffaedfe", "cafebabe")
_PROGRAMS = (b"MZ", b"\x7fELF", b"#!", *(bytes.fromhex(magic) for magic in _MACH_O))
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_IDENTIFIERS = ("PatientID", "PatientName", "AccessionNumber", "StudyID", "IssuerOfPatientID")
_UID_FORM = re.compile(r"[0-9.]{1,64}")
_CONTROLS = re.compile(r"[\x00-\x1a\x1c-\x1f\x7f]")
"""Without ESC, which switches character sets."""


def notes_of(dataset: Dataset, preamble: bytes) -> tuple[Note, ...]:
    """What an object holds beside its frames, each note once, sorted.

    Args:
        dataset: with its pixels.
        preamble: the 128 bytes before the header, or nothing.
    """
    from pydicom.datadict import dictionary_has_tag

    found = set(_of_header(dataset)) | set(_of_preamble(preamble))
    private = 0
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
            elif (group % 2 or element.tag == _PADDING or not dictionary_has_tag(element.tag)) and isinstance(element.value, bytes):
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
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    if element.VR in (None, "UN"):  # implicit: the dictionary tells
        return dictionary_has_tag(element.tag) and dictionary_VR(element.tag) == "SQ"
    return element.VR == "SQ"


def _of_preamble(preamble: bytes) -> Iterator[Note]:
    if preamble.strip(b"\0"):
        yield Note.EXECUTABLE_PREAMBLE if preamble.startswith(_PROGRAMS) else Note.TWO_FORMATS


def _of_header(dataset: Dataset) -> Iterator[Note]:
    from pydicom.charset import python_encoding

    from .dicom.elements import first_number, items_of, stated_frames, value_of
    from .dicom.lookup_table import read_table

    for keyword, note in (
        ("BurnedInAnnotation", Note.BURNED_IN_ANNOTATION),
        ("RecognizableVisualFeatures", Note.RECOGNIZABLE_FEATURES),
    ):
        if _text(dataset, keyword).upper() == "YES":
            yield note
    uids = [text for keyword in _UIDS if (text := _text(dataset, keyword))]
    if not all(_UID_FORM.fullmatch(text) for text in uids) or any(_CONTROLS.search(_text(dataset, word)) for word in _IDENTIFIERS):
        yield Note.MALFORMED_IDENTIFIER
    sets = dataset.get("SpecificCharacterSet") or ""
    for name in [sets] if isinstance(sets, str) else sets:
        if str(name).strip() not in python_encoding:
            yield Note.UNKNOWN_CHARACTER_SET
    if "RescaleSlope" in dataset and not first_number(value_of(dataset, "RescaleSlope")):
        yield Note.USELESS_RESCALE
    width = value_of(dataset, "WindowWidth")
    if width not in (None, "") and not (first_number(width) or 0) > 0:
        yield Note.USELESS_WINDOW
    if stated_frames(dataset) is None:
        yield Note.USELESS_FRAME_COUNT
    tables = [item for keyword in ("ModalityLUTSequence", "VOILUTSequence") for item in items_of(dataset, keyword, stop=_TABLES)]
    if not all((table := read_table(item)) and table.shows for item in tables):
        yield Note.USELESS_TABLE
    if _text(dataset, "PhotometricInterpretation").startswith("MONOCHROME") and "RedPaletteColorLookupTableDescriptor" in dataset:
        yield Note.SUPPLEMENTAL_PALETTE


def _text(dataset: Dataset, keyword: str) -> str:
    from .dicom.elements import value_of

    return str(value_of(dataset, keyword) or "").strip(" \0")
