"""DICOM objects to RGB frames: the header is checked first, then frames are decoded one at a time and shown as a viewer
shows them.

Grey values go through the pipeline in `grey`. Overlays are not burned in: `notes` tells of them, and of whatever else is
in the object and is not screened.

pydicom raises anything on a hostile object (RecursionError among it): callers must expect any Exception; `images`
does.
"""

from __future__ import annotations

import hashlib
import zlib
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_fragments, generate_frames
from pydicom.filereader import data_element_generator, read_dataset

from ...errors import ImageError, Reason
from ..bit_depth import to_8_bit
from ..content_flags import ContentFlag
from .codecs import COMPRESSED, Expected, decode_codestream
from .elements import first_number, stated_frames, value_of
from .flags import flags_of
from .grayscale import merged_groups, render_grey
from .identifiers import identifiers_of
from .lookup_table import Palette, read_palette
from .native_frames import decode_native, frame_bits, unpack_rle_bits

__all__ = ["Dicom", "open_dicom"]

_NATIVE = {uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian}
_DEFLATED = str(uid.DeflatedExplicitVRLittleEndian)
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_READ = {*_NATIVE, *COMPRESSED, uid.RLELossless, _DEFLATED_FRAMES}
"""Transfer syntaxes that are decoded, without deflate, which is undone first."""
_SAMPLES = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}
_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_MODULE = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
_PIXEL_GROUPS = (0x0028, 0x7FE0)
_DEFERRED = 1024
"""Bytes of an element above which its value is passed over where elements are only counted."""
_CODESTREAM_STARTS = (
    b"\xff\xd8\xff",
    b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cjP",
    *(bytes([n, 0, 0, 0, 64, 0, 0, 0]) for n in range(1, 16)),
)
"""Of JPEG and JPEG-LS, JPEG 2000, JP2, and RLE, whose first segment follows 64 bytes of offsets."""


class Dicom:
    """One object whose header has passed. Frames may be decoded from several threads.

    Attributes:
        frames: how many there are, 1 or more.
        notes: what else is in the object, and is not screened.
        identifiers: whose it is, by its header.
    """

    def __init__(self, dataset: Dataset, syntax: str, expected: Expected, frames: int, notes: tuple[ContentFlag, ...]) -> None:
        self.frames = frames
        self.notes = notes
        self.identifiers = identifiers_of(dataset)
        self._dataset = dataset
        self._syntax = syntax
        self._expected = expected
        if "NumberOfFrames" in dataset:
            dataset.add_new("NumberOfFrames", "IS", frames)  # pydicom takes the element's own word for it
        self._palette = _palette_of(dataset, expected)
        if self._palette is None and _says_supplemental(dataset, expected):
            self.notes = tuple(sorted({*notes, ContentFlag.USELESS_PALETTE}))
        self._encoded: list[bytes] | None = None
        if syntax not in _NATIVE:
            self._encoded = _encoded_frames(dataset, frames)
            del dataset.PixelData  # the frames are copies

    def renderings(self, number: int) -> tuple[NDArray[np.uint8], ...]:
        """Decode one frame and render it: RGB, uint8 (rows, columns, 3) each; first as a viewer shows it.

        Grey frames have two renderings, see `grey`. Colours have no window, so one. A grey frame with a supplemental palette
        (PS3.3 C.7.6.19) has its colours in the first, and is grey in the second, as viewers without such palettes show it.

        Raises:
            ImageError: the frame is missing, of another size than the header says, without a finite value or a palette.
            Exception: whatever pydicom or a decoder raises on a damaged frame.
        """
        expected = self._expected
        values = self._values(number)
        if expected.photometric == "PALETTE COLOR":
            if self._palette is None:
                raise ImageError(Reason.DAMAGED, "its header says PALETTE COLOR, but it has no palette")
            return (self._palette.colours(values, expected.signed),)
        if expected.samples == 3:
            return (to_8_bit(values, expected.bits_stored),)
        tags = merged_groups(self._dataset, number)
        greys = tuple(_as_rgb(grey) for grey in render_grey(values, tags, expected))
        if self._palette is None or values.dtype.kind == "f":
            return greys
        coloured = values >= self._palette.start(expected.signed, float(values.min()), float(values.max()))
        if not coloured.any():
            return greys
        first = _as_rgb(render_grey(values, tags, expected, coloured)[0])
        first[coloured] = self._palette.colours(values[coloured], expected.signed)
        return first, greys[-1]

    def _values(self, number: int) -> NDArray[Any]:
        """Stored values, or RGB."""
        expected = self._expected
        if self._encoded is None:
            return decode_native(self._dataset, self._syntax, number, expected)
        if number >= len(self._encoded):
            held = len(self._encoded)
            raise ImageError(Reason.DAMAGED, f"its header says {self.frames} frames, but it holds {held}")
        frame = self._encoded[number]
        if self._syntax in COMPRESSED:
            return decode_codestream(frame, self._syntax, expected)
        alone = Dataset()  # pydicom would look for the frame from the first one on, each time
        for keyword in _PIXEL_MODULE:
            if keyword in self._dataset:
                alone[keyword] = self._dataset[keyword]
        if self._syntax == _DEFLATED_FRAMES:
            alone.add_new("PixelData", "OB", _inflate(frame, 0, -(-frame_bits(expected) // 8) + 1))
        elif expected.bits_allocated == 1:
            alone.add_new("PixelData", "OB", unpack_rle_bits(frame, expected))
        else:
            alone.PixelData = encapsulate([frame])
            return decode_native(alone, self._syntax, 0, expected)
        return decode_native(alone, uid.ExplicitVRLittleEndian, 0, expected)


def _as_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=2)


def _palette_of(dataset: Dataset, expected: Expected) -> Palette | None:
    """The palette, of PALETTE COLOR or a supplemental one; None where it does not apply.

    A damaged supplemental palette is left out, which is noted.
    """
    if expected.photometric == "PALETTE COLOR":
        return read_palette(dataset)
    if not _says_supplemental(dataset, expected):
        return None
    try:
        return read_palette(dataset)
    except ImageError:
        return None


def _says_supplemental(dataset: Dataset, expected: Expected) -> bool:
    """Whether Pixel Presentation says that values of a grey image have colours, by a supplemental palette."""
    presentation = str(value_of(dataset, "PixelPresentation") or "MONOCHROME").strip(" \0").upper()
    return expected.photometric.startswith("MONOCHROME") and presentation != "MONOCHROME"


def _encoded_frames(dataset: Dataset, frames: int) -> list[bytes]:
    """The frames' codestreams, in the order in which they lie there.

    Raises:
        ImageError: there are more of them than the header says, or a table of offsets leaves some out: those would go unseen.
    """
    _, *fragments = generate_fragments(dataset.PixelData)  # the first is the table of offsets
    if len(fragments) == frames:
        return fragments  # whatever the tables say; with an extended one there is a fragment to each frame
    encoded = list(islice(generate_frames(dataset.PixelData, number_of_frames=frames), frames + 1))
    # A single frame is given all fragments, so their beginnings are counted too.
    if max(len(encoded), _starts_in(fragments)) > frames:
        raise ImageError(Reason.DAMAGED, f"its header says {frames} frames, but it holds more")
    if _digest(encoded) != _digest(fragments):
        raise ImageError(Reason.DAMAGED, "its table of offsets leaves some of its pixels out")
    return encoded


def _digest(parts: list[bytes]) -> bytes:
    digest = hashlib.blake2b()
    for part in parts:
        digest.update(part)
    return digest.digest()


def open_dicom(data: bytes, *, max_pixels: int, max_frames: int, max_inflated: int) -> Dicom:
    """Read an object's header and decide whether its frames may be decoded.

    Args:
        data: the file, with or without the 128-byte preamble.
        max_pixels: of a frame.
        max_frames: of the object.
        max_inflated: bytes that a deflated object may grow to.

    Raises:
        ImageError: not DICOM, no pixels, an unknown transfer syntax, over a limit, or a header that contradicts
        itself. Exception: whatever pydicom raises on a damaged object.
    """
    has_preamble = data[128:132] == b"DICM"
    syntax, body = _transfer_syntax(data, 132 if has_preamble else 0)  # a meta group may stand without a preamble
    if syntax == _DEFLATED:
        # dcmread inflates without a bound: 1.9 MB became 2 GB.
        data_set, body = _inflate(data, body, max_inflated), 0
        dataset = read_dataset(BytesIO(data_set), False, True)
        syntax = str(uid.ExplicitVRLittleEndian)
    else:
        data_set = data
        dataset = dcmread(BytesIO(data), force=True)
    if not any(word in dataset for word in _PIXEL_KEYWORDS):
        if has_preamble or "SOPClassUID" in dataset:
            raise ImageError(Reason.NO_PIXELS, "DICOM object without pixels")
        raise ImageError(Reason.NOT_AN_IMAGE, "it is not DICOM")
    _refuse_doubles(data_set, body, dataset)
    if not syntax:
        syntax = _guessed_syntax(dataset)
    if syntax not in _READ:
        name = uid.UID(syntax).name
        raise ImageError(Reason.UNSUPPORTED, f"unsupported transfer syntax {name[:100]!r}")
    expected = _check_header(dataset, max_pixels)
    frames = stated_frames(dataset) or _held_frames(dataset, syntax, expected)
    if frames > max_frames:
        raise ImageError(Reason.TOO_LARGE, f"it has {frames} frames, more than {max_frames}")
    if syntax in _NATIVE:
        _check_length(dataset, expected, frames)
    notes = flags_of(dataset, data[:128] if has_preamble else b"")
    return Dicom(dataset, syntax, expected, frames, notes)


def _refuse_doubles(data: bytes, body: int, dataset: Dataset) -> None:
    """Raise an ImageError if an element that decides on the image is there twice: pydicom takes the last, others the first.

    Args:
        data: with the dataset from `body` on.
        dataset: the same, read.
    """
    implicit, little = dataset.original_encoding
    if implicit is None or little is None or data[body : body + 2] == b"\x02\x00":
        return  # not as it was read from a file, or behind a group 2 that only pydicom makes out
    file = BytesIO(data)
    file.seek(body)
    seen: set[int] = set()
    for element in data_element_generator(file, implicit, little, defer_size=_DEFERRED):
        tag = int(element.tag)
        if tag in seen and tag >> 16 in _PIXEL_GROUPS:
            name = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
            raise ImageError(Reason.DAMAGED, f"duplicate element {name}, of which viewers display either")
        seen.add(tag)


def _transfer_syntax(data: bytes, at: int) -> tuple[str, int]:
    """The transfer syntax in the file meta group (explicit, little endian) that begins `at`, "" if none; and where it ends."""
    syntax = ""
    while data[at : at + 2] == b"\x02\x00" and at + 8 <= len(data):
        long = data[at + 4 : at + 6] in (b"OB", b"OW", b"UN", b"UT", b"SQ")
        start = at + (12 if long else 8)
        length = int.from_bytes(data[start - 4 : start] if long else data[start - 2 : start], "little")
        if data[at + 2 : at + 4] == b"\x10\x00":
            syntax = data[start : start + length][:64].decode("ascii", "replace").strip("\0 ")
        at = start + length
    return syntax, at


def _guessed_syntax(dataset: Dataset) -> str:
    """Of an object without one. Compressed pixels have no length; which codec they need cannot be told."""
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise ImageError(Reason.UNSUPPORTED, "missing transfer syntax of compressed pixels")
    implicit, little = dataset.original_encoding
    if implicit:
        return str(uid.ImplicitVRLittleEndian)
    return str(uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian)


def _inflate(data: bytes, start: int, limit: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(memoryview(data)[start:], limit + 1)
    if len(inflated) > limit:
        raise ImageError(Reason.TOO_LARGE, f"it inflates to more than {limit} bytes")
    if not inflater.eof:
        raise ImageError(Reason.DAMAGED, "its deflated data are truncated")
    return inflated


def _held_frames(dataset: Dataset, syntax: str, expected: Expected) -> int:
    """How many frames the pixels fill, for a header that does not tell: 1 at least, which then may be cut off."""
    if syntax in _NATIVE:
        keyword = next(word for word in _PIXEL_KEYWORDS if word in dataset)
        return max(8 * len(dataset[keyword].value or b"") // frame_bits(expected), 1)
    _, *fragments = generate_fragments(dataset.PixelData)  # the first is the table of offsets
    if syntax == _DEFLATED_FRAMES:  # one fragment a frame, without a mark
        return max(len(fragments), 1)
    return max(_starts_in(fragments), 1)


def _starts_in(fragments: list[bytes]) -> int:
    """How many fragments begin a frame."""
    return sum(fragment[:8].startswith(_CODESTREAM_STARTS) for fragment in fragments)


def _check_length(dataset: Dataset, expected: Expected, frames: int) -> None:
    """Raise an ImageError if native pixels would fill more frames than the header tells of: those would go unseen."""
    keyword = next(word for word in _PIXEL_KEYWORDS if word in dataset)
    bits = frame_bits(expected)
    surplus = 8 * len(dataset[keyword].value or b"") - frames * bits
    if surplus >= max(bits, 16):
        size = f"{expected.columns} x {expected.rows} pixels"
        raise ImageError(Reason.DAMAGED, f"its header says {frames} frames of {size}, but it holds more")


def _check_header(dataset: Dataset, max_pixels: int) -> Expected:
    """What the header says of each frame.

    Raises:
        ImageError: it is missing, impossible, or over a limit.
    """

    def whole(keyword: str, default: int | None = None) -> int:
        value = dataset.get(keyword)
        if default is not None and value in (None, "", b""):
            return default
        number = first_number(value)
        if number is None or number != int(number):
            raise ImageError(Reason.DAMAGED, f"its header has no usable {keyword}")
        return int(number)

    rows, columns, samples = whole("Rows"), whole("Columns"), whole("SamplesPerPixel", 1)
    allocated = whole("BitsAllocated")
    stored, signed = whole("BitsStored", allocated), whole("PixelRepresentation", 0)
    high_bit = 0 if allocated == 1 else whole("HighBit", stored - 1)
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip()
    if rows < 1 or columns < 1:
        raise ImageError(Reason.DAMAGED, f"its header says {columns} x {rows} pixels")
    if rows * columns > max_pixels:
        raise ImageError(Reason.TOO_LARGE, f"its frames are {columns} x {rows} pixels, more than {max_pixels}")
    if photometric not in _SAMPLES:
        raise ImageError(Reason.UNSUPPORTED, f"unsupported photometric interpretation {photometric[:40]!r}")
    if samples != _SAMPLES[photometric]:
        raise ImageError(Reason.DAMAGED, f"its header says {photometric}, but {samples} samples a pixel")
    if allocated not in (1, 8, 16, 32, 64) or not 1 <= stored <= allocated or signed not in (0, 1):
        figures = f"{stored} bits stored in {allocated}, representation {signed}"
        raise ImageError(Reason.DAMAGED, f"its header says {figures}")
    if allocated == 1 and samples > 1:
        raise ImageError(Reason.UNSUPPORTED, "its colors have 1 bit a sample")
    if high_bit >= allocated or (samples == 3 and high_bit >= stored):
        figures = f"{stored} bits stored in {allocated}, the highest of them at {high_bit}"
        raise ImageError(Reason.DAMAGED, f"its header says {figures}")
    return Expected(rows, columns, samples, stored, signed == 1, photometric, high_bit, allocated)
