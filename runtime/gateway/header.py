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
from .files import measure_meta

__all__ = ["Header", "HeaderError", "read_header"]

HEAD_BYTES = 4 << 20
"""Bytes, inflated ones too, in which everything up to the study's UID must be."""
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
            found = read_dataset(
                BytesIO(data), syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian, stop_when=_after_study
            )
            return Header(
                _text(found, "SOPClassUID"),
                _text(found, "SOPInstanceUID"),
                _text(found, "StudyInstanceUID"),
                _text(found, "Modality"),
                str(syntax),
            )
    except Exception as error:
        # pydicom raises anything on a hostile object: RecursionError, KeyError and struct.error among them.
        raise HeaderError(f"its header cannot be read ({type(error).__name__})") from error


def _after_study(tag: BaseTag, vr: str | None, length: int) -> bool:
    return int(tag) > LAST


def _text(found: Dataset, keyword: str) -> str:
    value = found.get(keyword)
    return str(value).strip("\0 ")[:LONGEST] if value is not None else ""
