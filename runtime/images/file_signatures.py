"""What a file is by its content, where it is not an image that is read.

A folder holds more than images. Only a file that is plainly not an image may be passed over: text, an archive, a program, and so
on (`SkipReason`). Everything else is an image in a format that is not read, or may be one, and counts as an error. So a format
that this list does not know costs a false alarm, never a leak.

The marks come from the formats' own specifications. `files.sniff` knows the formats that are read and goes first.
"""

from __future__ import annotations

import codecs
import re
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO

__all__ = [
    "ADVICE",
    "MAY_HOLD_IMAGES",
    "PROBE",
    "UNKNOWN",
    "Format",
    "SkipReason",
    "dicomdir_format",
    "is_bare_dicom",
    "is_text",
    "recognize",
]

PROBE = 4096
"""Bytes of a file's start that `recognize` looks at, and of its middle and end where the start reads as text."""
CHUNK = 1 << 20
OVERLAP = 256
"""Bytes that two chunks share when a document is searched; longer than any mark of an image in one."""


class SkipReason(StrEnum):
    """Why a file in a folder is not an image. Codes that programs may rely on, across versions.

    `archive` and `data` (tables, databases, model weights) may hold images; those are not looked for. A `document` holds none
    that could be found.
    """

    TEXT = "text"
    ARCHIVE = "archive"
    DOCUMENT = "document"
    DATA = "data"
    PROGRAM = "program"
    AUDIO = "audio"
    FONT = "font"
    DICOMDIR = "dicomdir"
    EMPTY = "empty"
    SPECIAL_FILE = "special-file"


MAY_HOLD_IMAGES = frozenset({SkipReason.ARCHIVE, SkipReason.DATA})
ADVICE = "convert it to PNG, TIFF or DICOM"


@dataclass(frozen=True)
class Format:
    """A format that is not read.

    Attributes:
        name: for people.
        skip: why such a file is not an image; None where it is one, or may be one.
        advice: for people: what to do with an image in this format.
    """

    name: str
    skip: SkipReason | None = None
    advice: str = ADVICE


UNKNOWN = Format("unknown")
_ARRAY = "save its images as PNG, TIFF or DICOM"
_VIDEO = "save its frames as images"
_EXTRACT = "save its images and scan those"


def _images(*rows: tuple[int, bytes, str]) -> list[tuple[int, bytes, Format]]:
    return [(position, mark, Format(name)) for position, mark, name in rows]


def _others(skip: SkipReason, *rows: tuple[int, bytes, str]) -> list[tuple[int, bytes, Format]]:
    return [(position, mark, Format(name, skip)) for position, mark, name in rows]


_ISO_BRANDS = {
    b"mif2": Format("HEIF"),
    b"crx ": Format("Canon raw (CR3)"),
    b"M4A ": Format("MPEG-4 audio", SkipReason.AUDIO),
    b"M4B ": Format("MPEG-4 audio", SkipReason.AUDIO),
}
"""By the major brand of an ISO base media file; any other is a video."""

_IFF = {
    b"AVI ": Format("AVI video", advice=_VIDEO),
    b"WAVE": Format("WAVE audio", SkipReason.AUDIO),
    b"AIFF": Format("AIFF audio", SkipReason.AUDIO),
    b"AIFC": Format("AIFF audio", SkipReason.AUDIO),
    b"RMID": Format("MIDI", SkipReason.AUDIO),
    b"ACON": Format("animated Windows cursor"),
    b"RDIB": Format("RIFF bitmap"),
    b"ILBM": Format("Amiga image (ILBM)"),
    b"PBM ": Format("Amiga image (PBM)"),
}
"""By the type of a RIFF or IFF file."""

_STRONG = [
    *_images(
        (0, b"II\xbc\x01", "JPEG XR"),
        (0, b"8BPS", "Photoshop (PSD)"),
        (0, b"gimp xcf", "GIMP (XCF)"),
        (0, b"v/1\x01", "OpenEXR"),
        (0, b"#?RADIANCE", "Radiance HDR"),
        (0, b"#?RGBE", "Radiance HDR"),
        (0, b"DDS \x7c\0\0\0", "DirectDraw surface (DDS)"),
        (0, b"\xabKTX ", "Khronos texture (KTX)"),
        (0, b"icns", "Apple icon (ICNS)"),
        (0, b"SIMPLE  =", "FITS"),
        (344, b"n+1\0", "NIfTI"),
        (344, b"ni1\0", "NIfTI"),
        (4, b"n+2\0", "NIfTI"),
        (4, b"ni2\0", "NIfTI"),
        (0, b"\x5c\1\0\0", "Analyze"),
        (0, b"\0\0\1\x5c", "Analyze"),
        (0, b"NRRD000", "NRRD"),
        (0, b"MATRIX7", "ECAT"),
        (0, b"!INTERFILE", "Interfile"),
        (0, b"ZISRAWFILE", "Zeiss microscopy (CZI)"),
        (0, b"\xda\xce\xbe\x0a", "Nikon microscopy (ND2)"),
        (0, b"\x01\xda", "SGI image"),
        (0, b"\x59\xa6\x6a\x95", "Sun raster"),
        (0, b"\xd7\xcd\xc6\x9a", "Windows metafile (WMF)"),
        (0, b"AT&TFORM", "DjVu"),
        (0, b"\x97JB2\r\n\x1a\n", "JBIG2"),
        (0, b"FLIF", "FLIF"),
        (0, b"BPG\xfb", "BPG"),
        (0, b"qoif", "QOI"),
        (0, b"farbfeld", "farbfeld"),
        (0, b"\x80\x2a\x5f\xd7", "Cineon"),
        (0, b"SDPX", "DPX"),
        (0, b"XPDS", "DPX"),
        (0, b"\x8aMNG\r\n\x1a\n", "MNG"),
        (0, b"\x8bJNG\r\n\x1a\n", "JNG"),
        (0, b"Paint Shop Pro Image File", "Paint Shop Pro"),
        (0, b"/* XPM */", "XPM"),
        (0, b"\x1bP", "sixel"),
        (0, b"IIRO\x08\0", "Olympus raw (ORF)"),
        (0, b"IIRS\x08\0", "Olympus raw (ORF)"),
        (0, b"MMOR\0\0", "Olympus raw (ORF)"),
        (0, b"IIU\0", "Panasonic raw (RW2)"),
        (0, b"FUJIFILMCCD-RAW", "Fujifilm raw (RAF)"),
        (0, b"FOVb", "Sigma raw (X3F)"),
        (0, b"\0MRM", "Minolta raw (MRW)"),
        (0, b"II\x1a\0\0\0HEAPCCDR", "Canon raw (CRW)"),
        (0, b"%!PS", "PostScript"),
        (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    ),
    *[
        (at, mark, Format(name, advice=_ARRAY))
        for at, mark, name in (
            (0, b"\x89HDF\r\n\x1a\n", "HDF5 arrays"),
            (0, b"CDF\1", "netCDF arrays"),
            (0, b"CDF\2", "netCDF arrays"),
            (0, b"CDF\5", "netCDF arrays"),
            (0, b"MATLAB 5.0 MAT-file", "MATLAB arrays"),
        )
    ],
    *[
        (at, mark, Format(f"{name} video", advice=_VIDEO))
        for at, mark, name in (
            (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
            (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media"),
            (0, b"FLV\1", "Flash"),
            (0, b".RMF", "RealMedia"),
            (0, b"\0\0\1\xba", "MPEG"),
            (0, b"\0\0\1\xb3", "MPEG"),
        )
    ],
    *_others(
        SkipReason.ARCHIVE,
        (0, b"PK\5\6", "empty ZIP archive"),
        (0, b"PK\7\x08", "ZIP archive"),
        (0, b"Rar!\x1a\x07", "RAR archive"),
        (0, b"7z\xbc\xaf\x27\x1c", "7z archive"),
        (0, b"xar!", "xar archive"),
        (0, b"MSCF", "cabinet"),
        (0, b"\xed\xab\xee\xdb", "RPM package"),
        (0, b"07070", "cpio archive"),
        (0, b"!<arch>\ndebian", "Debian package"),
    ),
    *_others(
        SkipReason.DATA,
        (0, b"SQLite format 3\0", "SQLite database"),
        (0, b"\0\1\0\0Standard ", "Access database"),
        (0, b"PAR1", "Parquet"),
        (0, b"ARROW1", "Arrow"),
        (0, b"FEA1", "Feather"),
        (0, b"ORC", "ORC"),
        (0, b"Obj\1", "Avro"),
        (0, b"GGUF", "model weights"),
        (0, b"RDX2\n", "R data"),
        (0, b"RDX3\n", "R data"),
        (0, b"$FL2", "SPSS data"),
        (0, b"$FL3", "SPSS data"),
        (0, b"bplist00", "property list"),
        (0, b"\0\0\0\1Bud1", "macOS folder settings"),
        (0, b"\0\5\x16\7", "macOS file attributes"),
        (0, b"L\0\0\0\1\x14\2\0", "Windows shortcut"),
        (0, b"DIRC\0\0\0", "git index"),
        (0, b"TZif", "time zone"),
        (0, b"PACK\0\0\0", "git objects"),
        (0, b"\xfftOc", "git objects"),
        (0, b"\xac\xed\0\5", "Java objects"),
        (0, b"\xde\x12\4\x95", "translations"),
        (16, b"\xde\xc0\xef\xbe", "LMDB database"),
    ),
    *_others(
        SkipReason.PROGRAM,
        (0, b"\x7fELF", "ELF program"),
        (0, b"\xfe\xed\xfa\xce", "Mach-O program"),
        (0, b"\xfe\xed\xfa\xcf", "Mach-O program"),
        (0, b"\xce\xfa\xed\xfe", "Mach-O program"),
        (0, b"\xcf\xfa\xed\xfe", "Mach-O program"),
        (0, b"\xca\xfe\xba\xbe", "Java class or Mach-O program"),
        (0, b"\0asm", "WebAssembly"),
        (0, b"dex\n", "Android program"),
        (0, b"!<arch>\n", "object code"),
        (0, b"BC\xc0\xde", "LLVM bitcode"),
    ),
    *_others(
        SkipReason.AUDIO,
        (0, b"ID3", "MP3 audio"),
        (0, b"fLaC", "FLAC audio"),
        (0, b"MThd", "MIDI"),
        (0, b"#!AMR", "AMR audio"),
        (0, b"caff", "Core Audio"),
        (0, b"wvpk", "WavPack audio"),
    ),
    *_others(
        SkipReason.FONT,
        (0, b"OTTO", "font"),
        (0, b"ttcf", "font"),
        (0, b"\0\1\0\0\0", "font"),
        (0, b"wOFF", "font"),
        (0, b"wOF2", "font"),
    ),
]
"""Marks of at least three bytes, or of two that do not begin a text: looked for before a file may count as text."""

_WEAK = _others(SkipReason.PROGRAM, (0, b"MZ", "Windows program"), (2, b"\r\n", "Python bytecode")) + _others(
    SkipReason.AUDIO,
    *((0, bytes((0xFF, second)), "MPEG audio") for second in (0xFB, 0xFA, 0xF3, 0xF2, 0xE3, 0xE2, 0xF1, 0xF9)),
)
"""Marks that a text may begin with too: looked for when a file is known not to be one."""

_PICKLE = re.compile(rb"\x80[\x02-\x05][\x80-\x95}()\]cK-NTUVXG]")
_ONNX = re.compile(rb"\x08[\x03-\x10][\x12\x3a\x42]")
_SAFETENSORS = re.compile(rb".{3}\0{5}\{\"", re.DOTALL)
_QUICKTIME = re.compile(rb"\0\0..(?:moov|mdat|wide|free|skip|pnot)", re.DOTALL)
_EMF = re.compile(rb"\x01\0\0\0.{36} EMF", re.DOTALL)
_ICO = re.compile(rb"\0\0[\x01\x02]\0[^\0]\0.{3}\0", re.DOTALL)
_PCX = re.compile(rb"\n[\0\x02-\x05][\0\x01][\x01\x02\x04\x08]")
_GIT = re.compile(rb"(?:blob|tree|commit|tag) \d+\0")
_MGH = re.compile(rb"\0\0\0\x01(?:\0\0..){4}\0\0\0[\0\x01\x03\x04]", re.DOTALL)
_NPY = re.compile(rb"\x93NUMPY[\x01-\x03].{3,5}\{.*'shape': \((\d*),?\)", re.DOTALL)
"""A NumPy array of no dimension or one."""
_PROLOG = re.compile(rb"\s+|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>\[]*(?:\[.*?\]\s*)?>|/\*.*?\*/", re.DOTALL | re.IGNORECASE)
"""What may stand before the root of an XML file or the first line of a C file."""
_SVG = re.compile(rb"<(?:\w+:)?svg[\s>]", re.IGNORECASE)
_XBM = re.compile(rb"#define\s+\w*width\s+\d+\s+#define\s+\w*height\s+\d+")
_METAIMAGE = re.compile(rb"(?:ObjectType\s*=\s*Image|NDims\s*=\s*\d)", re.IGNORECASE)
_TEXT_IMAGES = ((_SVG, "SVG"), (_XBM, "XBM"), (_METAIMAGE, "MetaImage"))
_BINARY_IMAGES = (
    (_ICO, "Windows icon or cursor"),
    (_EMF, "Windows metafile (EMF)"),
    (_PCX, "PCX"),
    (_MGH, "FreeSurfer (MGH)"),
)

_PDF = ("PDF document", re.compile(rb"/Subtype\s*/Image\b"))
_IMAGE_IN_OLE = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff[\xdb\xe0\xe1\xee]|II\*\0\x08\0\0\0|MM\0\*\0\0\0\x08| EMF\0\0\x01\0")
_IMAGE_IN_OFFICE = re.compile(
    rb"(?:(?:word|ppt|xl)/media/|Pictures/)[^\0/]{1,100}\.(?:png|jpe?g|gif|tiff?|bmp|emf|wmf|wdp|svg|webp|mp4|m4v|mov|avi|wmv)",
    re.IGNORECASE,
)
_IMAGE_IN_BOOK = re.compile(rb"\.(?:png|jpe?g|gif|svg|webp)", re.IGNORECASE)
_IMAGE_IN_RTF = re.compile(rb"\\pict\b")

_DICOMDIR = re.compile(rb"\x02\0\x02\0UI..1\.2\.840\.10008\.1\.3\.10[\0 ]*\x02\0", re.DOTALL)
"""The media storage SOP class (0002,0002) in the meta group, and the element behind it."""
_ICON_IN_DICOMDIR = re.compile(rb"\x88\0\0\x02SQ")
_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_FIRST_GROUPS = frozenset({0x0002, 0x0004, 0x0008, 0x0010, 0x0018, 0x0020, 0x0028})
_LONGEST_FIRST = 1 << 16
"""Bytes of an element at the start of an object that has no preamble; the sequences and pixels come later."""
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\x1b")) + b"\x7f"


def recognize(stream: BinaryIO) -> Format:
    """Return the format of a file that `files.sniff` does not know.

    Args:
        stream: the file, seekable. Its start is read, and all of it where it is a document, which may hold images.
    """
    stream.seek(0)
    head = stream.read(PROBE)
    if not head:
        return Format("empty", SkipReason.EMPTY)
    if (found := _by_marks(head)) is not None:
        return found
    if (document := _document(head)) is not None:
        return _as_document(stream, *document)
    if head.startswith(b"PK\3\4"):
        return _zip(head)
    if _is_tar(head):
        return Format("tar archive", SkipReason.ARCHIVE)
    body = _without_prolog(head.removeprefix(codecs.BOM_UTF8))
    for image, name in _TEXT_IMAGES:
        if image.match(body):
            return Format(name)
    if is_text(stream):
        return Format("text", SkipReason.TEXT)
    if b"%PDF-" in head[:1024]:  # behind something else, which viewers pass over
        return _as_document(stream, *_PDF)
    for position, mark, weak in _WEAK:
        if head.startswith(mark, position):
            return weak
    return UNKNOWN


def _by_marks(head: bytes) -> Format | None:
    for position, mark, found in _STRONG:
        if head.startswith(mark, position):
            return found
    if _QUICKTIME.match(head):
        return Format("QuickTime video", advice=_VIDEO)
    if head[4:8] == b"ftyp" and not head[0]:
        return _ISO_BRANDS.get(head[8:12], Format("MPEG-4 or QuickTime video", advice=_VIDEO))
    if head.startswith((b"RIFF", b"RIFX", b"FORM")) and head[8:12] in _IFF:
        return _IFF[head[8:12]]
    if head.startswith(b"OggS"):
        video = b"theora" in head or b"\x01video" in head
        return Format("Ogg video", advice=_VIDEO) if video else Format("Ogg audio", SkipReason.AUDIO)
    if head[0] == 0x47 and head[188:189] == b"\x47" and head[376:377] == b"\x47":
        return Format("MPEG transport stream video", advice=_VIDEO)
    if head.startswith(b"\x93NUMPY"):
        return Format("NumPy list", SkipReason.DATA) if _NPY.match(head) else Format("NumPy array", advice=_ARRAY)
    if _GIT.match(head):
        return Format("git object", SkipReason.ARCHIVE)
    if any(mark.match(head) for mark in (_PICKLE, _SAFETENSORS, _ONNX)):
        return Format("Python objects or model weights", SkipReason.DATA)
    return next((Format(name) for mark, name in _BINARY_IMAGES if mark.match(head)), None)


# -- documents and archives --------------------------------------------------------------------------------------------


def _document(head: bytes) -> tuple[str, re.Pattern[bytes]] | None:
    """A document's name, and what shows an image in its bytes. In a PDF the dictionaries of images are never compressed."""
    if head.startswith(b"%PDF-"):
        return _PDF
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return "Office document or other OLE file", _IMAGE_IN_OLE
    if head.startswith(b"{\\rtf"):
        return "RTF document", _IMAGE_IN_RTF
    if head.startswith(b"PK\3\4"):
        name = _first_name(head)
        content = head[30 + len(name) :][:200]
        if name == b"mimetype" and b"opendocument" in content:
            return "OpenDocument file", _IMAGE_IN_OFFICE
        if name == b"mimetype" and b"epub" in content:
            return "EPUB document", _IMAGE_IN_BOOK
        if name in (b"[Content_Types].xml", b"_rels/.rels", b"docProps/app.xml", b"docProps/core.xml"):
            return "Office document", _IMAGE_IN_OFFICE
    return None


def _as_document(stream: BinaryIO, name: str, image: re.Pattern[bytes]) -> Format:
    return Format(f"{name} with images", advice=_EXTRACT) if _holds(stream, image) else Format(name, SkipReason.DOCUMENT)


def _zip(head: bytes) -> Format:
    name = _first_name(head)
    content = head[30 + len(name) :][:200]
    if name == b"mimetype" and b"image/openraster" in content:
        return Format("OpenRaster image")
    if name == b"mimetype" and b"application/x-krita" in content:
        return Format("Krita image")
    if name.endswith(b".npy"):
        return Format("NumPy arrays (npz)", advice=_ARRAY)
    return Format("ZIP archive", SkipReason.ARCHIVE)


def _first_name(head: bytes) -> bytes:
    """The name of a ZIP archive's first member."""
    return head[30 : 30 + int.from_bytes(head[26:28], "little")]


def _holds(stream: BinaryIO, mark: re.Pattern[bytes]) -> bool:
    """Whether a mark is anywhere in a file."""
    stream.seek(0)
    kept = b""
    while chunk := stream.read(CHUNK):
        if mark.search(kept + chunk):
            return True
        kept = chunk[-OVERLAP:]
    return False


def _is_tar(head: bytes) -> bool:
    """Whether the checksum of a tar header holds, which old archives without the mark `ustar` have too."""
    header = head[:512]
    stated = re.match(rb"[ \0]*([0-7]+)[ \0]", header[148:156] + b"\0")
    if len(header) < 512 or stated is None or not header[0]:
        return False
    return int(stated[1], 8) == sum(header[:148]) + 8 * 32 + sum(header[156:])


# -- text --------------------------------------------------------------------------------------------------------------


def is_text(stream: BinaryIO) -> bool:
    """Whether a file's start, middle and end read as text: UTF-8, UTF-16 or UTF-32 with a mark, or lines in an older encoding."""
    size = stream.seek(0, 2)
    stream.seek(0)
    head = stream.read(PROBE)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-32" if head.startswith(codecs.BOM_UTF32_LE) else "utf-16"
        return _reads(head, encoding)
    for position in (size // 2, size - PROBE):
        if position > PROBE:
            stream.seek(position)
            if _controls_in(stream.read(PROBE)):
                return False
    if _controls_in(head):
        return False
    # In an older encoding any byte may stand for a letter. Pixels hold no line ends without other control characters.
    return b"\n" in head or _reads(head, "utf-8")


def _without_prolog(head: bytes) -> bytes:
    position = 0
    while found := _PROLOG.match(head, position):  # part by part: one expression for all would try every way to divide them
        position = found.end()
    return head[position:]


def _controls_in(data: bytes) -> bool:
    return len(data.translate(None, _CONTROLS)) != len(data)


def _reads(head: bytes, encoding: str) -> bool:
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeError:
        return False
    return not any(char < " " and char not in "\t\n\r\f\x1b" for char in text)


# -- DICOM without its mark --------------------------------------------------------------------------------------------


def is_bare_dicom(head: bytes) -> bool:
    """Whether a file begins with DICOM data elements, without the preamble that marks a DICOM file.

    Two elements at least, in ascending order, each with a length that fits: explicit or implicit VR, little or big endian, with
    the meta group (0002) or without.
    """
    return any(_begins_with_elements(head, explicit, order) for explicit in (True, False) for order in "<>")


def _begins_with_elements(head: bytes, explicit: bool, order: str) -> bool:
    position, last, elements = 0, -1, 0
    while position + 12 <= len(head) and elements < 4:
        group, element = struct.unpack_from(f"{order}HH", head, position)
        if (last < 0 and group not in _FIRST_GROUPS) or group << 16 | element <= last:
            return False
        if elements and last >> 16 == 2 and group > 2:
            return True  # the dataset behind a meta group may have another encoding
        last = group << 16 | element
        start = position + 8
        if explicit:
            vr = head[position + 4 : position + 6]
            if vr not in _VRS:
                return False
            if vr in _LONG_VRS:
                start = position + 12
        if explicit and start == position + 8:
            (length,) = struct.unpack_from(f"{order}H", head, position + 6)
        else:
            (length,) = struct.unpack_from(f"{order}I", head, start - 4)
        if length == 0xFFFFFFFF:
            return elements > 0  # a sequence, whose end is not known
        if length % 2 or length > _LONGEST_FIRST:
            return False
        position, elements = start + length, elements + 1
    return elements > 1


def dicomdir_format(stream: BinaryIO) -> Format | None:
    """Return what a DICOMDIR counts as; None where the file is another DICOM object.

    A DICOMDIR lists the objects of a medium and is not an image, but its records may hold icons of the images.
    """
    stream.seek(0)
    if not _DICOMDIR.search(stream.read(PROBE)):
        return None
    if _holds(stream, _ICON_IN_DICOMDIR):
        return Format("DICOMDIR with icons of its images", advice="remove the icons (0088,0200)")
    return Format("DICOMDIR", SkipReason.DICOMDIR)
