"""Image formats: which one a file is by its first bytes, and its content, within limits.

What is not a readable image is named by `file_signatures`.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from typing import BinaryIO

from ..errors import ImageError, Reason
from .compressed_files import compressed_content
from .file_signatures import ADVICE, UNKNOWN, Format, SkipReason, dicomdir_format, is_bare_dicom, recognize

__all__ = [
    "DEFAULT_LIMITS",
    "DICOM_SUFFIXES",
    "HEAD",
    "TGA_FOOTER",
    "TGA_SUFFIXES",
    "Kind",
    "Limits",
    "cannot_read",
    "identify",
    "open_regular",
    "read_file",
    "refusal",
    "sniff",
]

HEAD = 1024
"""Bytes that `sniff` needs: a DICOM file's mark comes after a preamble of 128, one without it is told by its elements, and a Netpbm
file's size comes after comments."""

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
TGA_SUFFIXES = frozenset({".tga", ".icb", ".vda", ".vst"})
"""Targa files have no mark at their beginning, so a file's name decides whether it is tried as one,"""
TGA_FOOTER = b"TRUEVISION-XFILE.\0"
"""or its last bytes, in files of the second version."""
_HEVC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_BLANKS = rb"(?:[ \t\r\n]|#[^\r\n]*[\r\n])+"
_NETPBM = re.compile(rb"P[1-6]" + _BLANKS + rb"\d+" + _BLANKS + rb"\d+\s|P[Ff]\s+\d+\s+\d+\s|P7(\n| 332\n)")
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}


@dataclass(frozen=True)
class Limits:
    """Bounds that a file must keep to, checked before the work they bound.

    Attributes:
        max_file_bytes: of a file.
        max_pixels: width times height of a frame. Decoding takes up to some 20 bytes a pixel.
        max_frames: of a file.
        max_inflated_bytes: what a deflated DICOM object may grow to.
        max_seconds: of processor time, for opening an image and for each of its frames. Kept only in `sandbox`, as is the next.
        max_memory_bytes: that decoding may take, beyond what the decoders themselves do. The file's content counts twice.
    """

    max_file_bytes: int = 2 << 30
    max_pixels: int = 1 << 27
    max_frames: int = 4096
    max_inflated_bytes: int = 1 << 29
    max_seconds: float = 30.0
    max_memory_bytes: int = 1 << 32


DEFAULT_LIMITS = Limits()


class Kind(StrEnum):
    """The formats that are read."""

    PNG = "png"
    JPEG = "jpeg"
    TIFF = "tiff"
    WEBP = "webp"
    BMP = "bmp"
    GIF = "gif"
    AVIF = "avif"
    HEIC = "heic"
    JPEG_XL = "jpeg-xl"
    JPEG_2000 = "jpeg-2000"
    JPEG_LS = "jpeg-ls"
    NETPBM = "netpbm"
    TGA = "tga"
    DICOM = "dicom"


def sniff(head: bytes) -> Kind | None:
    """What a file is, by its first `HEAD` bytes; None if it is no image that is read.

    DICOM goes first: its preamble may be the head of another format, to be readable as either.
    """
    if head[128:132] == b"DICM":
        return Kind.DICOM
    for mark, kind in (
        (b"\x89PNG\r\n\x1a\n", Kind.PNG),
        (b"\xff\xd8\xff", Kind.JPEG),
        (b"II*\0", Kind.TIFF),
        (b"MM\0*", Kind.TIFF),
        (b"II+\0", Kind.TIFF),
        (b"MM\0+", Kind.TIFF),
        (b"GIF87a", Kind.GIF),
        (b"GIF89a", Kind.GIF),
        (b"\xff\x4f\xff\x51", Kind.JPEG_2000),
        (b"\0\0\0\x0cjP  \r\n\x87\n", Kind.JPEG_2000),
        (b"\0\0\0\x0cJXL \r\n\x87\n", Kind.JPEG_XL),
        (b"\xff\x0a", Kind.JPEG_XL),
    ):
        if head.startswith(mark):
            return Kind.JPEG_LS if kind is Kind.JPEG and _is_jpeg_ls(head) else kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Kind.WEBP
    # Two letters are too little to tell a bitmap from a text that begins with BM.
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return Kind.BMP
    if _NETPBM.match(head):
        return Kind.NETPBM
    if head[4:8] == b"ftyp":
        return _by_brand(head)
    return Kind.DICOM if is_bare_dicom(head) else None


def _is_jpeg_ls(head: bytes) -> bool:
    """Whether the frame header of a JPEG file, as far as it can be seen, is that of JPEG-LS."""
    position = 2
    while position + 4 <= len(head) and head[position] == 0xFF and head[position + 1] not in (0xF7, 0xC0, 0xC2):
        position += 2 + int.from_bytes(head[position + 2 : position + 4], "big")
    return head[position : position + 2] == b"\xff\xf7"


def _by_brand(head: bytes) -> Kind | None:
    """HEIC or AVIF, by the brands of an ISO base media file: the major one, else what it is compatible with."""
    end = min(int.from_bytes(head[:4], "big"), len(head) - len(head) % 4)
    brands = [head[8:12], *(head[start : start + 4] for start in range(16, end, 4))]
    for brand in brands:
        if brand in (b"avif", b"avis"):
            return Kind.AVIF
        if brand in _HEVC_BRANDS:
            return Kind.HEIC
    return Kind.HEIC if brands[0] in (b"mif1", b"msf1") else None


def identify(stream: BinaryIO) -> Kind | Format:
    """Return what a file is by its content: an image that is read, or another format.

    A compressed file counts by its content: one of an image, or of a format that is not known, is an image that is not read; any
    other is an archive.

    Args:
        stream: the file, seekable.
    """
    stream.seek(0)
    kind = sniff(stream.read(HEAD))
    if kind is not None:
        return (dicomdir_format(stream) if kind is Kind.DICOM else None) or kind
    if stream.seek(0, os.SEEK_END) > len(TGA_FOOTER):
        stream.seek(-len(TGA_FOOTER), os.SEEK_END)
        if stream.read() == TGA_FOOTER:
            return Kind.TGA
    compressed = compressed_content(stream)
    return recognize(stream) if compressed is None else _of_compressed(*compressed)


def _of_compressed(name: str, head: bytes | None) -> Format:
    """What a compressed file counts as, by the start of its content; None where it cannot be unpacked."""
    if head is None:
        return Format(f"{name} file that cannot be looked into, so it may hold an image", advice="uncompress it")
    content = sniff(head[:HEAD]) or recognize(BytesIO(head))
    if isinstance(content, Kind):
        return Format(f"compressed {content.value}", advice="uncompress it")
    if content is UNKNOWN:
        return Format(f"{name} file of unknown content, so it may hold an image", advice="uncompress it")
    if content.skip is SkipReason.DOCUMENT:  # only its start is known, and images may follow
        return Format(f"compressed {content.name}, which may hold images", advice="uncompress it")
    if content.skip is not None:
        return Format(f"compressed file ({name})", SkipReason.ARCHIVE)
    return Format(f"compressed {content.name}", advice=f"uncompress it and {content.advice}")


def refusal(found: Format) -> ImageError:
    """Return the error of a file that is not an image that is read: `not-a-picture` where it is plainly not one, else
    `unsupported`."""
    if found.skip is not None:
        return ImageError(Reason.NOT_AN_IMAGE, f"not an image ({found.name}); supported formats are {', '.join(Kind)}")
    if found is UNKNOWN:
        return ImageError(Reason.UNSUPPORTED, f"unknown format, which may be an image; if it is one, {ADVICE}")
    return ImageError(Reason.UNSUPPORTED, f"unsupported image format: {found.name}; {found.advice}")


def read_file(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """A regular file's content.

    Raises:
        ImageError: not-found, no-permission, not-a-file (a folder, a pipe, a device), empty-file, too-large,
        read-failed,
            out-of-memory.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: to open a device may have effects
            raise ImageError(Reason.NOT_A_FILE, "not a regular file")
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limits.max_file_bytes:
                raise ImageError(Reason.TOO_LARGE, f"file too large: {size} bytes, at most {limits.max_file_bytes} are read")
            data = file.read(limits.max_file_bytes + 1) if size else b""
    except MemoryError as error:
        raise ImageError(Reason.OUT_OF_MEMORY, "not enough memory to read the file") from error
    except (OSError, ValueError) as error:
        raise cannot_read(error) from error
    if not data:
        raise ImageError(Reason.EMPTY_FILE, "empty file (0 bytes)")
    if len(data) > limits.max_file_bytes:
        raise ImageError(Reason.TOO_LARGE, f"the file grew beyond {limits.max_file_bytes} bytes while it was read")
    return data


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open for reading, without waiting for the other end should a pipe have taken the file's place.

    Raises:
        ImageError: it is not a regular file.
        OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ImageError(Reason.NOT_A_FILE, "not a regular file")
    return file


def cannot_read(error: Exception) -> ImageError:
    """What an OSError means for an image; a ValueError comes of a path with a NUL in it."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError)):
        return ImageError(Reason.NOT_FOUND, "file does not exist")
    if isinstance(error, PermissionError):
        return ImageError(Reason.NO_PERMISSION, "permission denied: give read permission")
    if isinstance(error, IsADirectoryError):
        return ImageError(Reason.NOT_A_FILE, "not a regular file")
    cause = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    return ImageError(Reason.READ_FAILED, f"cannot read the file: {cause}")
