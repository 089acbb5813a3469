"""DICOM objects to RGB frames: the header is checked first, then frames are decoded one at a time and shown as a viewer
shows them.

The order of the grey pipeline (PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.4 N.2): stored values, padding masked on them,
modality LUT or rescale, VOI LUT or window, MONOCHROME1 inverted once, padding to black, 8 bits. pydicom reads the two
LUTs from the top level only; an enhanced multi-frame object has them in its functional groups, so these are merged
first. Overlays are not burned in.

pydicom raises anything on a hostile object (RecursionError among it): callers must expect any Exception; `pictures`
does.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi

from .codestream import COMPRESSED, Expected, decode_codestream
from .depth import nominal_depth, to_8_bit
from .errors import PictureError, Reason
from .identifiers import identifiers_of
from .preprocess import BLANK_LEVELS

__all__ = ["Dicom", "open_dicom"]

_NATIVE = {uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian}
_DEFLATED = str(uid.DeflatedExplicitVRLittleEndian)
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

Floats = NDArray[np.float64]


class Dicom:
    """One object whose header has passed. Frames may be decoded from several threads.

    Attributes:
        frames: how many there are, 1 or more.
        identifiers: whose it is, by its header.
    """

    def __init__(self, dataset: Dataset, syntax: str, expected: Expected, frames: int) -> None:
        self.frames = frames
        self.identifiers = identifiers_of(dataset)
        self._dataset = dataset
        self._syntax = syntax
        self._expected = expected
        self._encoded: list[bytes] | None = None
        if syntax in COMPRESSED:
            offsets = (dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths"))
            extended = (offsets[0], offsets[1]) if offsets[0] and offsets[1] else None
            found = generate_frames(dataset.PixelData, number_of_frames=frames, extended_offsets=extended)
            self._encoded = list(islice(found, frames))
            del dataset.PixelData  # the frames are copies

    def frame(self, number: int) -> NDArray[np.uint8]:
        """Decode and render one frame: RGB, uint8 (rows, columns, 3).

        Raises:
            PictureError: the frame is missing, of another size than the header says, or not finite.
            Exception: whatever pydicom or a decoder raises on a damaged frame.
        """
        photometric = self._expected.photometric
        values = self._values(number)
        if photometric == "PALETTE COLOR":
            colours = apply_color_lut(values, self._dataset)[..., :3]
            # Some tables keep 8-bit entries in 16 bits, so the table's own largest entry tells its depth.
            deep = colours.dtype != np.uint8
            return to_8_bit(colours, nominal_depth(_largest_of_palette(self._dataset)) if deep else 8)
        if self._expected.samples == 3:
            return to_8_bit(values, self._expected.bits_stored)
        grey = _render(values, _merged(self._dataset, number), self._expected)
        return np.repeat(grey[..., None], 3, axis=2)

    def _values(self, number: int) -> NDArray[Any]:
        if self._encoded is None:
            return get_decoder(uid.UID(self._syntax)).as_array(self._dataset, index=number)[0]
        if number >= len(self._encoded):
            held = len(self._encoded)
            raise PictureError(Reason.DAMAGED, f"its header says {self.frames} frames, but it holds {held}")
        return decode_codestream(self._encoded[number], self._syntax, self._expected)


def open_dicom(data: bytes, *, max_pixels: int, max_frames: int, max_inflated: int) -> Dicom:
    """Read an object's header and decide whether its frames may be decoded.

    Args:
        data: the file, with or without the 128-byte preamble.
        max_pixels: of a frame.
        max_frames: of the object.
        max_inflated: bytes that a deflated object may grow to.

    Raises:
        PictureError: not DICOM, no pixels, an unknown transfer syntax, over a limit, or a header that contradicts
        itself. Exception: whatever pydicom raises on a damaged object.
    """
    has_preamble = data[128:132] == b"DICM"
    syntax, body = _transfer_syntax(data) if has_preamble else ("", 0)
    if syntax == _DEFLATED:
        # dcmread inflates without a bound: 1.9 MB became 2 GB.
        dataset = read_dataset(BytesIO(_inflate(data, body, max_inflated)), False, True)
        syntax = str(uid.ExplicitVRLittleEndian)
    else:
        dataset = dcmread(BytesIO(data), force=True)
    if not any(word in dataset for word in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        if has_preamble or "SOPClassUID" in dataset:
            raise PictureError(Reason.NO_PIXELS, "it is a DICOM object without pixels")
        raise PictureError(Reason.NOT_A_PICTURE, "it is not DICOM")
    if not syntax:
        syntax = _guessed_syntax(dataset)
    if syntax not in _NATIVE and syntax not in COMPRESSED and syntax != uid.RLELossless:
        name = uid.UID(syntax).name
        raise PictureError(Reason.UNSUPPORTED, f"its transfer syntax is not one that is decoded: {name[:100]!r}")
    expected, frames = _check_header(dataset, max_pixels, max_frames)
    return Dicom(dataset, syntax, expected, frames)


def _transfer_syntax(data: bytes) -> tuple[str, int]:
    """The transfer syntax in the file meta group (explicit, little endian), "" if none; and where the group ends."""
    at, syntax = 132, ""
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
        raise PictureError(Reason.UNSUPPORTED, "it names no transfer syntax, and its pixels are compressed")
    implicit, little = dataset.original_encoding
    if implicit:
        return str(uid.ImplicitVRLittleEndian)
    return str(uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian)


def _inflate(data: bytes, start: int, limit: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(memoryview(data)[start:], limit + 1)
    if len(inflated) > limit:
        raise PictureError(Reason.TOO_LARGE, f"it inflates to more than {limit} bytes")
    if not inflater.eof:
        raise PictureError(Reason.DAMAGED, "its deflated data end too early")
    return inflated


def _check_header(dataset: Dataset, max_pixels: int, max_frames: int) -> tuple[Expected, int]:
    """What the header says of the frames, and how many there are.

    Raises:
        PictureError: it is missing, impossible, or over a limit.
    """

    def whole(keyword: str, default: int | None = None) -> int:
        number = _number(dataset.get(keyword))
        if number is None and default is not None:
            return default
        if number is None or number != int(number):
            raise PictureError(Reason.DAMAGED, f"its header has no usable {keyword}")
        return int(number)

    rows, columns, samples = whole("Rows"), whole("Columns"), whole("SamplesPerPixel", 1)
    allocated, frames = whole("BitsAllocated"), whole("NumberOfFrames", 1)
    stored, signed = whole("BitsStored", allocated), whole("PixelRepresentation", 0)
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip()
    if rows < 1 or columns < 1 or frames < 1:
        raise PictureError(Reason.DAMAGED, f"its header says {frames} frames of {columns} x {rows} pixels")
    if rows * columns > max_pixels:
        raise PictureError(Reason.TOO_LARGE, f"its frames are {columns} x {rows} pixels, more than {max_pixels}")
    if frames > max_frames:
        raise PictureError(Reason.TOO_LARGE, f"it has {frames} frames, more than {max_frames}")
    if photometric not in _SAMPLES:
        raise PictureError(Reason.UNSUPPORTED, f"its photometric interpretation {photometric[:40]!r} is not known")
    if samples != _SAMPLES[photometric]:
        raise PictureError(Reason.DAMAGED, f"its header says {photometric}, but {samples} samples a pixel")
    if allocated not in (1, 8, 16, 32, 64) or not 1 <= stored <= allocated or signed not in (0, 1):
        figures = f"{stored} bits stored in {allocated}, representation {signed}"
        raise PictureError(Reason.DAMAGED, f"its header says {figures}")
    return Expected(rows, columns, samples, stored, signed == 1, photometric), frames


def _merged(dataset: Dataset, number: int) -> Dataset:
    """The grey pipeline's elements as they hold for one frame: top level, then shared groups, then the frame's own."""
    merged = Dataset()
    sources = [dataset]
    for keyword, item in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", number)):
        groups = dataset.get(keyword) or []
        if item < len(groups):
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                sources += list(groups[item].get(name) or [])[:1]
    for source in sources:
        for keyword in (
            "RescaleSlope",
            "RescaleIntercept",
            "ModalityLUTSequence",
            "WindowCenter",
            "WindowWidth",
            "VOILUTFunction",
            "VOILUTSequence",
            "PixelPaddingValue",
            "PixelPaddingRangeLimit",
        ):
            if source.get(keyword) is not None:  # an empty element hides none of the level above
                merged.add(source[keyword])
    return merged


def _render(values: NDArray[Any], tags: Dataset, expected: Expected) -> NDArray[np.uint8]:
    """Stored grey values to 8 bits, (rows, columns)."""
    padding = _padding(values, tags)
    seen = values[~padding] if padding is not None else values
    if values.dtype.kind == "f" and not np.isfinite(seen).all():
        raise PictureError(Reason.NOT_FINITE, "its pixels are not all finite numbers")
    if not seen.size:
        return np.zeros(values.shape, np.uint8)  # all padding: a blank picture, which the caller refuses
    low, high = seen.min(), seen.max()
    modality = _modality(tags)
    declared = _voi(tags, expected.signed)

    def shown(stored: NDArray[Any], look: Callable[[Floats], Floats]) -> NDArray[np.uint8]:
        grey = look(modality(stored))
        return np.asarray(np.rint(255 * (1 - grey if expected.photometric == "MONOCHROME1" else grey)), np.uint8)

    def rendered(look: Callable[[Floats], Floats]) -> NDArray[np.uint8]:
        if values.dtype.kind == "f" or int(high) - int(low) > 0xFFFF:
            return shown(values, look)
        # Every step depends on the value alone, so a table of the values that occur is exact, fast and small.
        table = shown(np.arange(int(low), int(high) + 1, dtype=np.int64), look)
        return np.asarray(table[np.clip(values, low, high).astype(np.int64) - int(low)])

    ends = modality(np.unique(seen) if _is_table(tags) else np.array([low, high]))
    if declared is None and values.dtype.kind != "f" and expected.bits_stored <= 8 and not expected.signed:
        ends = modality(np.array([0, 2**expected.bits_stored - 1]))
    contrast = _between(float(ends.min()), float(ends.max()))
    grey = rendered(declared or contrast)
    if declared and high > low and _spread(grey, padding) <= BLANK_LEVELS:
        # A window that hides a picture that is there, by mistake or on purpose: any viewer brings it back.
        grey = rendered(contrast)
    if padding is not None:
        grey[padding] = 0
    return grey


def _is_table(tags: Dataset) -> bool:
    return bool(tags.get("ModalityLUTSequence"))


def _spread(grey: NDArray[np.uint8], padding: NDArray[np.bool_] | None) -> int:
    seen = grey if padding is None else grey[~padding]
    return int(seen.max()) - int(seen.min())


def _padding(values: NDArray[Any], tags: Dataset) -> NDArray[np.bool_] | None:
    """Where stored values are padding, both ends of the range included; None if nothing is declared."""
    value = _number(tags.get("PixelPaddingValue"))
    if value is None:
        return None
    limit = _number(tags.get("PixelPaddingRangeLimit"))
    low, high = sorted((value, value if limit is None else limit))
    return (values >= low) & (values <= high)


def _modality(tags: Dataset) -> Callable[[NDArray[Any]], Floats]:
    """Stored values to the modality's own, such as Hounsfield units.

    A slope that is empty, 0 or not finite would leave nothing to see; such an object is taken as not rescaled.
    """
    if _is_table(tags):
        return lambda stored: np.asarray(apply_modality_lut(stored, tags), np.float64)
    slope, intercept = _number(tags.get("RescaleSlope")), _number(tags.get("RescaleIntercept"))
    if not slope:
        return lambda stored: stored.astype(np.float64)
    return lambda stored: stored.astype(np.float64) * slope + (intercept or 0.0)


def _voi(tags: Dataset, signed: bool) -> Callable[[Floats], Floats] | None:
    """Modality values to [0, 1]: the VOI LUT if there is one, else the first window, else None.

    Without either, 8-bit objects are shown over the range of their type and deeper ones from their smallest to their
    largest value that is no padding: in 16 bits a picture fills a small part of its type's range, and would be all but
    black. A window narrower than its function allows is ignored, as is an unknown function's name (LINEAR is the
    default).
    """
    if tags.get("VOILUTSequence"):
        item = tags.VOILUTSequence[0]
        tags.PixelRepresentation = int(signed)
        top = 2 ** nominal_depth(max(_largest_entry(item.LUTData), 1)) - 1
        return lambda values: np.clip(apply_voi(np.rint(values).astype(np.int64), tags).astype(np.float64) / top, 0, 1)
    centre, width = _number(tags.get("WindowCenter")), _number(tags.get("WindowWidth"))
    function = str(tags.get("VOILUTFunction") or "LINEAR").strip().upper()
    if centre is None or width is None or width <= 0:
        return None
    if function == "SIGMOID":
        return lambda values: 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500)))
    if function == "LINEAR_EXACT":
        return _between(centre - width / 2, centre + width / 2)
    return None if width < 1 else _between(centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _between(low: float, high: float) -> Callable[[Floats], Floats]:
    """A ramp from 0 at `low` to 1 at `high`; a step above `low` where the two are equal."""
    if not high > low:
        return lambda values: (values > low).astype(np.float64)
    return lambda values: np.clip((values - low) / (high - low), 0, 1)


def _number(value: Any) -> float | None:
    """The first number of a value; None if it is missing, empty, not a number or not finite."""
    if isinstance(value, (MultiValue, list, tuple)):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _largest_entry(table: Any) -> int:
    entries = np.frombuffer(table, "<u2") if isinstance(table, bytes) else np.asarray(table)
    return int(entries.max()) if entries.size else 0


def _largest_of_palette(dataset: Dataset) -> int:
    """Largest entry of a 16-bit palette; the top of its depth where it is segmented, which is not expanded here."""
    words = [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
    if not all(word in dataset for word in words):
        return 0xFFFF
    return max(_largest_entry(dataset[word].value) for word in words)
