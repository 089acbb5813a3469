"""What an object says of itself, read from its first megabytes and no further: never its pixels, and never more than is there."""

from __future__ import annotations

import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from ..errors import GatewayError
from ..images.dicom.identifiers import NOBODY, Identifiers, identifiers_of
from .object_files import measure_meta

__all__ = ["Header", "HeaderError", "read_header"]

HEAD_BYTES = 1 << 20
"""Bytes, inflated ones too, in which everything up to the study's UID must be."""
ELEMENTS = 2000
"""How many elements may come before it: a megabyte of zeros would be 130,000, which take pydicom seconds."""
LAST = 0x0020000D
"""StudyInstanceUID, the last element that is read."""
LONGEST = 64


class HeaderError(GatewayError):
    """An object's header cannot be read. `is_dicom` is false where there is no DICM mark and no file meta information."""

    def __init__(self, message: str, *, is_dicom: bool = True) -> None:
        super().__init__(message)
        self.is_dicom = is_dicom


@dataclass(frozen=True)
class Header:
    """As the data set has it; "" for what is missing. Raw: not for logs."""

    sop_class: str
    sop_instance: str
    study: str
    modality: str
    transfer_syntax: str
    identifiers: Identifiers = NOBODY
    """Whose it is; for pseudonyms alone."""


def read_header(path: Path) -> Header:
    """Read a DICOM file's header.

    Raises:
        HeaderError: it is no DICOM file, or damaged.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    meta, at = measure_meta(head)
    syntax = UID(meta.get(0x10, ""))
    if not at or not syntax:
        raise HeaderError("it has no DICM mark, or names no transfer syntax", is_dicom=bool(at))
    data = head[at:]
    try:
        if syntax == DeflatedExplicitVRLittleEndian:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, HEAD_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
            found = read_dataset(BytesIO(data), implicit, little, stop_when=_UpToStudy())
            return Header(
                _text(found, "SOPClassUID"),
                _text(found, "SOPInstanceUID"),
                _text(found, "StudyInstanceUID"),
                _text(found, "Modality"),
                str(syntax),
                identifiers_of(found),
            )
    except Exception as error:
        # pydicom raises anything on a hostile object: RecursionError, KeyError and struct.error among them.
        raise HeaderError(f"its header cannot be read ({type(error).__name__})") from error


class _UpToStudy:
    """Says when to stop: after the study's UID, or where the elements are not in order or too many, which is an error."""

    def __init__(self) -> None:
        self._last = -1
        self._count = 0

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        self._count += 1
        if int(tag) <= self._last or self._count > ELEMENTS:
            raise ValueError("elements out of order, or too many")
        self._last = int(tag)
        return self._last > LAST


def _text(found: Dataset, keyword: str) -> str:
    value = found.get(keyword)
    return str(value).strip("\0 ")[:LONGEST] if value is not None else ""
