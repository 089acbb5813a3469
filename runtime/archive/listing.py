"""What an archive lists, and what a search in it is: the terms that its two protocols share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.filereader import read_dataset

from ..errors import ImageError, Reason, UsageError
from .journal import Journal

__all__ = ["Instance", "Mark", "Query", "check_uid", "holds_images", "parse_query"]

Query = tuple[tuple[str, str], ...]
"""What to search for: keywords of DICOM attributes with their values, sorted."""

WITHOUT_IMAGES = tuple(
    f"1.2.840.10008.5.1.4.1.1.{family}."
    for family in ("9", "11", "88", "104")  # waveforms, presentation states, structured reports, encapsulated documents
)


@dataclass(frozen=True)
class Instance:
    """An object of the archive.

    Attributes:
        uid: its SOP Instance UID.
        fetch: gives its bytes, as a file; may be called in any thread. Raises ImageError, ArchiveError.
        sop_class: its SOP Class UID, where the listing says it.
    """

    uid: str
    fetch: Callable[[], bytes]
    sop_class: str | None = None


@dataclass(frozen=True)
class Mark:
    """Stands in a listing after some instances: when all of them are done, `set` says so in the journal.

    Attributes:
        set: writes the mark.
        alone: it speaks of the instances since the mark before it; otherwise of all that came before.
    """

    set: Callable[[Journal], None]
    alone: bool


def holds_images(instance: Instance) -> bool:
    """Whether an object may hold an image, by its class; one of an unknown class may."""
    return instance.sop_class is None or not instance.sop_class.startswith(WITHOUT_IMAGES)


def parse_query(terms: Iterable[str]) -> Query:
    """Searches as they are typed, `Keyword=value` each.

    Raises:
        UsageError: a term without '=', an attribute that DICOM does not have, or one that is given twice. A server may ignore
            what it does not know and answer with all that it has, so nothing that is misspelt is passed on.
    """
    query: dict[str, str] = {}
    for term in terms:
        name, equals, value = term.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UsageError(f"--query {term!r} is not of the form StudyDate=20260101-20260131")
        keyword = name
        if len(name) == 8 and all(digit in "0123456789abcdefABCDEF" for digit in name):
            keyword = keyword_for_tag(int(name, 16))
        tag = tag_for_keyword(keyword)
        if tag is None or dictionary_VR(tag) == "SQ":
            raise UsageError(
                f"--query {name}: DICOM has no such attribute to search for; StudyDate, PatientID and Modality are some"
            )
        if keyword in query:
            raise UsageError(f"--query {keyword} is given twice")
        query[keyword] = value
    return tuple(sorted(query.items()))


def check_uid(data: bytes, uid: str) -> bytes:
    """The same bytes, when they are the DICOM object that was asked for.

    Raises:
        ImageError: they are another, or none.
    """
    if data[128:132] != b"DICM":
        raise ImageError(Reason.DAMAGED, "the archive answered something that is no DICOM file")
    if data[132:136] == b"\x02\x00\x00\x00" and len(data) >= 144:
        # The length of group 2, so that nothing after it is looked at: it may be deflated.
        length = int.from_bytes(data[140:144], "little")
        try:
            meta = read_dataset(io.BytesIO(data[132 : 144 + length]), is_implicit_VR=False, is_little_endian=True)
            found = str(meta.get("MediaStorageSOPInstanceUID", uid))
        except Exception as error:
            # pydicom raises errors of every kind on damaged files.
            raise ImageError(Reason.DAMAGED, f"its header is damaged ({type(error).__name__})") from error
        if found != uid:
            raise ImageError(Reason.DAMAGED, "the archive answered another object than the one asked for")
    return data
