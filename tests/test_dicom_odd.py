"""Odd DICOM elements: lookup tables in every form, useless windows, misspelled character sets, 1-bit frames, codestreams' colors.

What is right comes from DCMTK's dcmj2pnm and ImageMagick where they are installed, else from numpy.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.errors import ImageError, Reason
from lcmem_onnx.runtime.images.content_flags import SUSPICIOUS, ContentFlag
from lcmem_onnx.runtime.images.dicom.elements import first_number, numbers_of, words_of
from lcmem_onnx.runtime.images.dicom.lookup_table import read_palette, read_table
from lcmem_onnx.runtime.images.image import ImageFile, Limits, open_image
from lcmem_onnx.runtime.images.sandbox import DecoderPool
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.pixels.processing import convert_color_space
from pydicom.sequence import Sequence
from pydicom.tag import Tag

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parent.parent
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="isolation needs Linux")
dcmtk = pytest.mark.skipif(not shutil.which("dcmj2pnm"), reason="DCMTK is not installed")
SYNTAXES = {"implicit": uid.ImplicitVRLittleEndian, "explicit": uid.ExplicitVRLittleEndian, "big": uid.ExplicitVRBigEndian}


def dicom(values: NDArray[Any], photometric: str = "MONOCHROME2", syntax: str = "explicit", **elements: Any) -> FileDataset:
    """An object with these stored values, (rows, columns) or (rows, columns, 3), in the byte order of its syntax."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = SYNTAXES.get(syntax, uid.UID(syntax))
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel = 3 if values.ndim == 3 else 1
    if values.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = data.BitsStored = 8 * values.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    order = ">" if syntax == "big" else "<"
    packed = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if syntax == "big" and values.dtype.itemsize == 1:
        packed = np.frombuffer(packed, "<u2").byteswap().tobytes()
    data.add_new("PixelData", "OW", packed)
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def written(data: FileDataset) -> bytes:
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=False)
    return file.getvalue()


def opened(data: FileDataset) -> ImageFile:
    return open_image(written(data))


def grey(data: FileDataset, number: int = 0) -> NDArray[np.int64]:
    return opened(data).frame(number)[..., 0].astype(np.int64)


def put(data: Dataset, keyword: str, text: bytes, vr: str = "DS") -> None:
    """Set an element's bytes, unchecked."""
    tag = Tag(keyword)
    value = text + b" " * (len(text) % 2)
    data._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


VALUES = (np.arange(48 * 40) * 4095 // (48 * 40 - 1)).astype("uint16").reshape(48, 40)
OCTETS = (np.arange(48 * 40) * 255 // (48 * 40 - 1)).astype("uint8").reshape(48, 40)
CURVE = np.rint(np.sqrt(np.linspace(0, 1, 4096)) * 4095).astype("uint16")


# -- lookup tables ---------------------------------------------------------------------------------------------------------


def lut(entries: NDArray[Any], first: int = 0, bits: int = 12, vr: str = "US", order: str = "<") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 0x10000, first % 0x10000, bits])
    if vr in ("US", "SS"):
        item.add_new("LUTData", vr, entries.astype("u2" if vr == "US" else "i2").tolist())
    else:
        item.add_new("LUTData", vr, entries.astype(f"{order}u2").tobytes())
    return item


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize(
    ("syntax", "vr"),
    [
        *(("explicit", vr) for vr in ("US", "SS", "OW", "OB", "UN")),
        *(("implicit", vr) for vr in ("US", "OW")),
        *(("big", vr) for vr in ("US", "SS", "OW")),
    ],
)
def test_a_table_is_read_whatever_its_vr_and_byte_order(keyword: str, syntax: str, vr: str) -> None:
    item = lut(CURVE, vr=vr, order=">" if syntax == "big" else "<")
    data = dicom(VALUES, syntax=syntax, BitsStored=12, HighBit=11, **{keyword: Sequence([item])})
    mapped = CURVE[VALUES].astype(float)
    expected = mapped / 4095 * 255 if keyword == "VOILUTSequence" else (mapped - mapped.min()) / np.ptp(mapped) * 255
    assert np.abs(grey(data) - expected).max() <= 0.5 + 1e-6
    assert not opened(data).notes


@pytest.mark.parametrize("count", [256, 255])
@pytest.mark.parametrize(("syntax", "vr"), [("explicit", "OW"), ("explicit", "OB"), ("big", "OW"), ("implicit", "OW")])
def test_entries_of_8_bits_packed_in_words(count: int, syntax: str, vr: str) -> None:
    entries = (255 - np.arange(count)).astype("uint8")
    packed = entries.tobytes() + bytes(count % 2)
    if syntax == "big":
        packed = np.frombuffer(packed, "<u2").byteswap().tobytes()
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [count, 0, 8])
    item.add_new("LUTData", vr, packed)
    data = dicom(OCTETS, syntax=syntax, VOILUTSequence=Sequence([item]))
    np.testing.assert_array_equal(grey(data), entries[np.minimum(OCTETS, count - 1)])


@pytest.mark.parametrize("bits", [0, 8, 16, 32])
def test_bits_that_do_not_fit_the_entries_are_not_believed(bits: int) -> None:
    data = dicom(VALUES, BitsStored=12, HighBit=11, VOILUTSequence=Sequence([lut(CURVE, bits=bits)]))
    assert np.abs(grey(data) - CURVE[VALUES] / 4095 * 255).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("bits", [9, 11, 13])
def test_bits_that_fit_the_entries_are_believed(bits: int) -> None:
    """Also where the largest entry needs fewer: 0 to 2**bits - 1 is black to white (PS3.3 C.11.2.1.1)."""
    entries = CURVE >> (13 - bits)
    data = dicom(VALUES, BitsStored=12, HighBit=11, VOILUTSequence=Sequence([lut(entries, bits=bits)]))
    assert np.abs(grey(data) - entries[VALUES] / (2**bits - 1) * 255).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("said", "held"), [(4096, 3000), (3000, 4096), (0, 4096)])
def test_the_data_tell_how_many_entries_there_are(said: int, held: int) -> None:
    item = lut(CURVE[:held])
    item.LUTDescriptor = [said, 0, 12]
    data = dicom(VALUES, BitsStored=12, HighBit=11, VOILUTSequence=Sequence([item]))
    assert np.abs(grey(data) - CURVE[np.minimum(VALUES, held - 1)] / 4095 * 255).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("dtype", "low", "first", "rescale"),
    [
        ("int16", -2000, -2000, None),
        ("uint16", 40000, 40000, None),
        ("uint16", 0, -1024, -1024),  # a rescale makes the input signed
        ("int16", 0, 0, None),
    ],
)
@pytest.mark.parametrize("vr", ["US", "SS"])
def test_the_first_value_mapped_has_the_sign_of_the_input(dtype: str, low: int, first: int, rescale: int | None, vr: str) -> None:
    stored = (VALUES.astype(int) + low).astype(dtype)
    item = lut(CURVE)
    word = first % 0x10000
    value = word if vr == "US" else word - 0x10000 * (word > 0x7FFF)
    item.add_new("LUTDescriptor", vr, [4096, value, 12])
    more = {} if rescale is None else {"RescaleSlope": 1, "RescaleIntercept": rescale}
    data = dicom(stored, VOILUTSequence=Sequence([item]), **more)
    assert np.abs(grey(data) - CURVE[VALUES] / 4095 * 255).max() <= 0.5 + 1e-6


def useless_tables() -> Iterator[Any]:
    def item(**elements: tuple[str, Any]) -> Dataset:
        made = Dataset()
        for keyword, (vr, value) in elements.items():
            made.add_new(keyword, vr, value)
        return made

    some = CURVE.tolist()
    yield pytest.param([], id="no item")
    yield pytest.param([item()], id="empty item")
    yield pytest.param([item(LUTDescriptor=("US", None), LUTData=("US", some))], id="empty descriptor")
    yield pytest.param([item(LUTDescriptor=("US", [4096, 0]), LUTData=("US", some))], id="descriptor of two")
    yield pytest.param([item(LUTDescriptor=("US", [4096, 0, 12]))], id="no data")
    yield pytest.param([item(LUTDescriptor=("US", [4096, 0, 12]), LUTData=("OW", b""))], id="empty data")
    yield pytest.param([item(LUTData=("US", some))], id="no descriptor")
    yield pytest.param([item(LUTDescriptor=("US", [1, 0, 12]), LUTData=("US", [7]))], id="one entry")
    yield pytest.param([item(LUTDescriptor=("US", [9, 0, 12]), LUTData=("US", [7] * 9))], id="all the same")
    yield pytest.param([item(LUTDescriptor=("LO", "4096"), LUTData=("LO", "0"))], id="text")


@pytest.mark.parametrize("items", list(useless_tables()))
def test_a_useless_voi_lut_leaves_the_next_one_or_the_window(items: list[Dataset]) -> None:
    shape = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 1000, "WindowWidth": 500}
    plain, odd = dicom(VALUES, **shape), dicom(VALUES, **shape, VOILUTSequence=Sequence(items))
    np.testing.assert_array_equal(grey(odd), grey(plain))
    assert (ContentFlag.USELESS_TABLE in opened(odd).notes) == bool(items)
    followed = dicom(VALUES, **shape, VOILUTSequence=Sequence([*items, lut(CURVE)]))
    assert np.abs(grey(followed) - CURVE[VALUES] / 4095 * 255).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("items", list(useless_tables()))
def test_a_useless_modality_lut_leaves_the_rescale(items: list[Dataset]) -> None:
    shape = {"BitsStored": 12, "HighBit": 11, "RescaleSlope": 2, "RescaleIntercept": -9, "WindowCenter": 3000, "WindowWidth": 900}
    np.testing.assert_array_equal(grey(dicom(VALUES, **shape, ModalityLUTSequence=Sequence(items))), grey(dicom(VALUES, **shape)))


def test_a_sequence_that_is_none_is_left_out() -> None:
    data = dicom(VALUES, BitsStored=12, HighBit=11)
    for keyword in ("VOILUTSequence", "ModalityLUTSequence", "SharedFunctionalGroupsSequence"):
        put(data, keyword, b"none", "LO")
    np.testing.assert_array_equal(grey(data), grey(dicom(VALUES, BitsStored=12, HighBit=11)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.binary(max_size=600), st.sampled_from(["US", "SS", "OW", "OB", "UN"]), st.booleans())
def test_any_bytes_are_a_table_or_none(descriptor: bytes, data: bytes, vr: str, little: bool) -> None:
    item = Dataset()
    for keyword, value in (("LUTDescriptor", descriptor), ("LUTData", data)):
        tag = Tag(keyword)
        item._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, little)
    table = read_table(item)
    if table is None:
        assert len(descriptor) < 5 or not data
        return
    assert 1 <= len(table.entries) <= 0x10000
    assert int(table.entries.max()) < 2**table.bits <= 0x10000
    start = table.start(vr == "SS", -100, 100)
    found = table.look_up(np.array([-(1 << 31), start, 1 << 31]), start)
    assert found.tolist() == [table.entries[0], table.entries[0], table.entries[-1]]


def test_words_are_the_same_in_both_byte_orders() -> None:
    tag = Tag("LUTData")
    for order, little in (("<", True), (">", False)):
        for vr in ("US", "OW", "UN", None):
            dataset = Dataset()
            value = np.array([1, 0x203, 0xFFFE], f"{order}u2").tobytes()
            dataset._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, vr is None, little)
            assert words_of(dataset, "LUTData").tolist() == [1, 0x203, 0xFFFE]


# -- numbers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        ("40", [40.0]),
        (" 40,5 ", [40.5]),
        ("40,5\\80,25", [40.5, 80.25]),
        ("1,024.5", [None]),
        ("1,2,3", [None]),
        ("", [None]),
        ("\\5", [None, 5.0]),
        ("nan\\inf\\1e400\\7", [None, None, None, 7.0]),
        (b"-1,5\\2 ", [-1.5, 2.0]),
        (None, []),
        (3, [3.0]),
        ([1, "2,5", None, "x"], [1.0, 2.5, None, None]),
    ],
)
def test_numbers_of_a_value(value: Any, numbers: list[float | None]) -> None:
    assert numbers_of(value) == numbers
    assert first_number(value) == (numbers[0] if numbers else None)


@pytest.mark.parametrize(
    ("centre", "width"),
    [
        (b"1000,0", b"500,0"),
        (b"1000\\9", b"500\\9"),
        (b"9\\1000", b"0\\500"),
        (b"9\\1000", b"-3\\500"),
        (b"9\\1000", b"\\500"),
        (b"\\1000", b"400\\500"),
        (b"nan\\1000", b"400\\500"),
        (b"bone\\1000,0", b"1e400\\500,0"),
        (b"30000\\1000", b"10\\500"),  # shows nothing of what is there
        (b"9\\9\\9\\1000", b"0\\0.5\\\\500"),
    ],
)
def test_the_first_window_that_shows_something_is_taken(centre: bytes, width: bytes) -> None:
    shape = {"BitsStored": 12, "HighBit": 11}
    plain, odd = dicom(VALUES, **shape, WindowCenter=1000, WindowWidth=500), dicom(VALUES, **shape)
    put(odd, "WindowCenter", centre)
    put(odd, "WindowWidth", width)
    np.testing.assert_array_equal(grey(odd), grey(plain))
    assert not SUSPICIOUS & set(opened(odd).notes)


def test_thousands_of_useless_windows_cost_little() -> None:
    data = dicom(VALUES, BitsStored=12, HighBit=11)
    put(data, "WindowCenter", b"\\".join([b"30000"] * 9000))
    put(data, "WindowWidth", b"\\".join([b"10"] * 9000))
    began = time.monotonic()
    np.testing.assert_array_equal(grey(data), grey(dicom(VALUES, BitsStored=12, HighBit=11)))
    assert time.monotonic() - began < 3


def test_a_rescale_with_decimal_commas() -> None:
    shape = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 1000, "WindowWidth": 500}
    plain, odd = dicom(VALUES, **shape, RescaleSlope="0.5", RescaleIntercept="-10.5"), dicom(VALUES, **shape)
    put(odd, "RescaleSlope", b"0,5")
    put(odd, "RescaleIntercept", b"-10,5")
    np.testing.assert_array_equal(grey(odd), grey(plain))


USELESS_COUNTS = [b"0", b"-1", b"abc", b"1A", b"2.5", b"nan", b"?", b"\xff\xfe"]


@pytest.mark.parametrize("text", [b"", b"1 ", b" 1", b"00001", b"1.0", b"1\\2", *USELESS_COUNTS])
@pytest.mark.parametrize("encoded", [False, True])
def test_odd_numbers_of_frames_are_one(text: bytes, encoded: bool) -> None:
    data = dicom(VALUES, BitsStored=12, HighBit=11)
    plain = grey(data)
    if encoded:
        data.file_meta.TransferSyntaxUID = uid.JPEGLSLossless
        data.add_new("PixelData", "OB", encapsulate([imagecodecs.jpegls_encode(VALUES)]))
    put(data, "NumberOfFrames", text, "IS")
    assert opened(data).frames == 1
    assert opened(data).notes == ((ContentFlag.USELESS_FRAME_COUNT,) if text in USELESS_COUNTS else ())
    np.testing.assert_array_equal(grey(data), plain)


def rle(values: NDArray[np.uint16]) -> bytes:
    return bytes(
        RLELosslessEncoder.encode(
            np.ascontiguousarray(values),
            rows=values.shape[0],
            columns=values.shape[1],
            samples_per_pixel=1,
            number_of_frames=1,
            bits_allocated=16,
            bits_stored=12,
            pixel_representation=0,
            photometric_interpretation="MONOCHROME2",
        )
    )


@pytest.mark.parametrize("text", USELESS_COUNTS)
@pytest.mark.parametrize("codec", ["implicit", "explicit", "big", "jpegls", "jpegls with a table", "rle", "deflated", "1 bit"])
def test_where_the_number_of_frames_is_useless_the_pixels_tell_it(text: bytes, codec: str) -> None:
    frames = [VALUES, VALUES[::-1], VALUES[:, ::-1]]

    def opened_with(count: bytes) -> ImageFile:
        data = dicom(np.concatenate(frames), "MONOCHROME2", codec if codec in SYNTAXES else "explicit", Rows=48)
        data.BitsStored, data.HighBit = 12, 11
        put(data, "NumberOfFrames", count, "IS")
        if codec == "deflated":
            return open_image(deflated(data, [frame.tobytes() for frame in frames]))
        if codec.startswith("jpegls"):
            data.file_meta.TransferSyntaxUID = uid.JPEGLSLossless
            encoded = encapsulate([imagecodecs.jpegls_encode(frame) for frame in frames], has_bot="table" in codec)
            data.add_new("PixelData", "OB", encoded)
        elif codec == "rle":
            data.file_meta.TransferSyntaxUID = uid.RLELossless
            data.add_new("PixelData", "OB", encapsulate([rle(frame) for frame in frames]))
        elif codec == "1 bit":
            data.BitsAllocated, data.BitsStored, data.HighBit = 1, 1, 0
            data.add_new("PixelData", "OB", np.packbits(np.concatenate(frames) > 2000, bitorder="little").tobytes())
        return opened(data)

    plain, odd = opened_with(b"3"), opened_with(text)
    assert (plain.frames, odd.frames, odd.notes) == (3, 3, (ContentFlag.USELESS_FRAME_COUNT,))
    for number in range(3):
        np.testing.assert_array_equal(odd.frame(number), plain.frame(number))


@pytest.mark.parametrize("text", [b"1e999 ", b"0x1   ", b"......", b"\xff\xff\xff\xff\xff\xff"])
def test_numbers_of_frames_that_pydicom_itself_cannot_read(text: bytes) -> None:
    data = dicom(VALUES, BitsStored=12, HighBit=11)
    put(data, "NumberOfFrames", b"77777 ", "IS")
    image = open_image(written(data).replace(b"77777 ", text))
    assert (image.frames, image.notes) == (1, (ContentFlag.USELESS_FRAME_COUNT,))
    assert image.frame(0).shape == (48, 40, 3)


def test_a_useless_number_of_frames_keeps_to_the_limits() -> None:
    data = dicom(np.zeros((480, 40), np.uint16), Rows=1)
    put(data, "NumberOfFrames", b"abc", "IS")
    with pytest.raises(ImageError) as caught:
        open_image(written(data), Limits(max_frames=479))
    assert caught.value.reason is Reason.TOO_LARGE


MISSPELLED = [
    "ISO-IR 100", "ISO IR 100", "ISO_IR_100", "ISO_IR100", "iso_ir 100", "ISO_2022_IR_6", "ISO_2022-IR-100", "ISO-IR-192",
    "UTF-8", "latin1", "ISO_IR 999", "ISO_IR 138,ISO_IR 100", "NONSENSE\\ISO 2022 IR 87", "ISO 2022 IR 6\\NONSENSE",
]  # fmt: skip


@pytest.mark.parametrize("name", MISSPELLED)
def test_a_misspelled_character_set_is_a_note_and_hides_nothing(name: str) -> None:
    data = dicom(VALUES, BitsStored=12, HighBit=11, PatientID="PAT-0042", PatientName="Doe^Jane", StudyInstanceUID="1.2.3.4")
    plain = opened(data)
    put(data, "SpecificCharacterSet", name.encode(), "CS")
    odd = opened(data)
    assert odd.notes == (ContentFlag.UNKNOWN_CHARACTER_SET,)
    assert not SUSPICIOUS & set(odd.notes)
    assert odd.identifiers == plain.identifiers
    assert odd.identifiers.patient_id == "PAT-0042"
    np.testing.assert_array_equal(odd.frame(0), plain.frame(0))


# -- padding ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "vr", "value"), [("int16", "US", 63536), ("int16", "SS", -2000), ("uint16", "SS", -2)])
def test_padding_of_the_wrong_sign_is_masked(dtype: str, vr: str, value: int) -> None:
    values = VALUES.astype(dtype)
    values[:9] = np.array(value % 0x10000).astype("uint16").astype(dtype)
    data = dicom(values, WindowCenter=2000, WindowWidth=4000)
    data.add_new("PixelPaddingValue", vr, value)
    shown = grey(data)
    assert not shown[:9].any()
    assert shown[9:].max() > 200


# -- 1 bit a pixel -----------------------------------------------------------------------------------------------------------

SIZES = [(8, 8, 1), (7, 5, 1), (13, 11, 3), (99, 101, 3), (1, 17, 5), (16, 16, 2), (3, 3, 40), (1, 3, 9)]


def bits(rows: int, columns: int, frames: int) -> NDArray[np.uint8]:
    return np.random.default_rng(rows).integers(0, 2, (frames, rows, columns)).astype("uint8")


def one_bit(values: NDArray[np.uint8], syntax: str = "explicit") -> FileDataset:
    frames, rows, columns = values.shape
    data = dicom(np.zeros((rows, columns), np.uint8), BitsAllocated=1, BitsStored=1, HighBit=0, NumberOfFrames=frames)
    data.file_meta.TransferSyntaxUID = SYNTAXES.get(syntax, uid.UID(syntax))
    return data


def packed(values: NDArray[np.uint8]) -> bytes:
    octets = np.packbits(values.reshape(-1), bitorder="little").tobytes()
    return octets + bytes(len(octets) % 2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("syntax", "vr"), [("explicit", "OB"), ("explicit", "OW"), ("implicit", "OW"), ("big", "OB"), ("big", "OW")]
)
def test_frames_of_1_bit_of_any_size(size: tuple[int, int, int], syntax: str, vr: str) -> None:
    values = bits(*size)
    data = one_bit(values, syntax)
    octets = packed(values)
    if syntax == "big" and vr == "OW":
        octets = np.frombuffer(octets, "<u2").byteswap().tobytes()
    data.add_new("PixelData", vr, octets)
    image = opened(data)
    assert image.frames == len(values)
    for number, frame in enumerate(values):
        np.testing.assert_array_equal(image.frame(number)[..., 0], 255 * frame)


@pytest.mark.parametrize("size", SIZES)
def test_frames_of_1_bit_in_rle(size: tuple[int, int, int]) -> None:
    values = bits(*size)
    data = one_bit(values, uid.RLELossless)
    header = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56)
    segments = [imagecodecs.packbits_encode(np.packbits(frame.reshape(-1), bitorder="little").tobytes()) for frame in values]
    data.add_new("PixelData", "OB", encapsulate([header + one + bytes(len(one) % 2) for one in segments]))
    for number, frame in enumerate(values):
        np.testing.assert_array_equal(opened(data).frame(number)[..., 0], 255 * frame)


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (bytes(64), "0 segments"),
        (b"\x02\0\0\0\x40\0\0\0" + bytes(80), "2 segments"),
        (b"\x01\0\0\0\x40\0\0\0" + bytes(56) + b"\x01ab", "truncated"),
        (b"\x01\0\0\0\xff\xff\xff\xff" + bytes(56), ""),
    ],
)
def test_damaged_rle_of_1_bit_is_refused(frame: bytes, text: str) -> None:
    data = one_bit(bits(99, 101, 1), uid.RLELossless)
    data.add_new("PixelData", "OB", encapsulate([frame]))
    with pytest.raises(ImageError, match=text) as caught:
        opened(data).frame(0)
    assert caught.value.reason is Reason.DAMAGED


def test_1_bit_that_is_cut_off_is_damaged_where_it_ends() -> None:
    values = bits(99, 101, 3)
    data = one_bit(values)
    data.add_new("PixelData", "OB", packed(values)[:2600])
    image = opened(data)
    np.testing.assert_array_equal(image.frame(1)[..., 0], 255 * values[1])
    with pytest.raises(ImageError, match="truncated in frame 3") as caught:
        image.frame(2)
    assert caught.value.reason is Reason.DAMAGED


def test_colors_of_1_bit_are_unsupported() -> None:
    data = dicom(np.zeros((8, 8, 3), np.uint8), "RGB", BitsAllocated=1, BitsStored=1, HighBit=0)
    with pytest.raises(ImageError) as caught:
        opened(data)
    assert caught.value.reason is Reason.UNSUPPORTED


# -- frame-wise deflate --------------------------------------------------------------------------------------------------------


def deflated(data: FileDataset, frames: list[bytes]) -> bytes:
    """An object in Deflated Image Frame Compression, which pydicom does not write."""
    data.file_meta.TransferSyntaxUID = uid.RLELossless
    parts = []
    for frame in frames:
        deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        parts.append(deflater.compress(frame) + deflater.flush())
    data.add_new("PixelData", "OB", encapsulate(parts))
    source = written(data)
    old, new = (
        b"\2\0\x10\0UI" + len(name).to_bytes(2, "little") + name for name in (b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.8.1\0")
    )
    assert old in source
    return source.replace(old, new)


def test_deflated_frames_are_read() -> None:
    values = bits(13, 11, 3)
    frames = [np.packbits(frame.reshape(-1), bitorder="little").tobytes() for frame in values]
    image = open_image(deflated(one_bit(values), frames))
    for number, frame in enumerate(values):
        np.testing.assert_array_equal(image.frame(number)[..., 0], 255 * frame)
    deep = dicom(VALUES, BitsStored=12, HighBit=11)
    plain = grey(deep)
    np.testing.assert_array_equal(open_image(deflated(deep, [VALUES.tobytes()])).frame(0)[..., 0], plain)


def test_a_deflated_frame_that_grows_beyond_its_size_is_refused() -> None:
    data = deflated(one_bit(bits(13, 11, 1)), [bytes(50 << 20)])
    tracemalloc.start()
    try:
        with pytest.raises(ImageError) as caught:
            open_image(data).frame(0)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.reason is Reason.TOO_LARGE


# -- palettes ------------------------------------------------------------------------------------------------------------------


def with_palette(data: FileDataset, tables: NDArray[Any], first: int, bits_: int, segmented: bool = False) -> FileDataset:
    order = ">" if data.file_meta.TransferSyntaxUID == uid.ExplicitVRBigEndian else "<"
    for colour, entries in zip(("Red", "Green", "Blue"), tables, strict=True):
        count = 256 if segmented else len(entries)
        data.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [count % 0x10000, first % 0x10000, bits_])
        keyword = f"{'Segmented' * segmented}{colour}PaletteColorLookupTableData"
        data.add_new(keyword, "OW", np.asarray(entries).astype(f"{order}u2").tobytes())
    return data


HUES = np.stack([np.linspace(0, 65535, 256), np.linspace(65535, 0, 256), np.full(256, 9000)]).astype("uint16")


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_palette_in_every_byte_order(syntax: str) -> None:
    data = with_palette(dicom(OCTETS, "PALETTE COLOR", syntax), HUES, 0, 16)
    expected = HUES[:, OCTETS].transpose(1, 2, 0) / 65535 * 255
    assert np.abs(opened(data).frame(0) - expected).max() <= 0.5 + 1e-6


def expanded(segments: list[int], bits_: int = 16) -> list[int]:
    data = dicom(OCTETS, "PALETTE COLOR")
    words = np.array(segments, "<u2")
    if bits_ == 8:
        octets = np.array(segments, "u1")
        words = np.frombuffer(octets.tobytes() + bytes(len(octets) % 2), "<u2")
    palette = read_palette(with_palette(data, np.stack([words] * 3), 0, bits_, segmented=True))
    assert palette is not None
    return [int(entry) for entry in palette.tables[0].entries]


@pytest.mark.parametrize("bits_", [8, 16])
def test_segments_are_expanded(bits_: int) -> None:
    assert expanded([0, 3, 5, 6, 7], bits_) == [5, 6, 7]
    assert expanded([0, 1, 10, 1, 4, 18], bits_) == [10, 12, 14, 16, 18]
    # An indirect segment repeats some, from a place in bytes: here the linear one, which goes on from the last entry.
    place = [6, 0] if bits_ == 16 else [3, 0, 0, 0]
    assert expanded([0, 1, 10, 1, 4, 18, 2, 1, *place], bits_) == [10, 12, 14, 16, 18, 18, 18, 18, 18]


@pytest.mark.parametrize("bits_", [8, 16])
def test_segments_against_pydicom(bits_: int) -> None:
    """pydicom's own expansion, of random segments."""
    from pydicom.pixels.processing import _expand_segmented_lut

    rng = np.random.default_rng(bits_)
    for _ in range(20):
        segments: list[int] = [0, 2, 3, 200]
        for _ in range(int(rng.integers(1, 6))):
            length = int(rng.integers(1, 9))
            if rng.integers(2):
                segments += [0, length, *rng.integers(0, 2**bits_, length).tolist()]
            else:
                segments += [1, length, int(rng.integers(0, 2**bits_))]
        theirs = _expand_segmented_lut(tuple(segments), "<B" if bits_ == 8 else "<H")
        assert expanded(segments, bits_) == theirs


@pytest.mark.parametrize(
    "segments",
    [
        [1, 4, 18],  # a line from nowhere
        [7, 1, 1],
        [0, 0],
        [0, 1, 5, 2, 9, 6, 0],  # an indirect one that repeats itself
        [2, 1, 0, 0],
        [0, 1, 5, 2, 1, 0xFFFE, 0xFFFF, 9, 9, 9],
    ],
)
def test_damaged_segments_are_refused(segments: list[int]) -> None:
    data = with_palette(dicom(OCTETS, "PALETTE COLOR"), np.array([segments] * 3), 0, 16, segmented=True)
    with pytest.raises(ImageError) as caught:
        opened(data).frame(0)
    assert caught.value.reason is Reason.DAMAGED
    assert "\n" not in str(caught.value)


def test_segments_that_repeat_nothing_for_ever_end() -> None:
    empty = [0, 0] * 20000
    words = [0, 1, 5, *empty, *([2, 20000, 6, 0] * 1000)]
    data = with_palette(dicom(OCTETS, "PALETTE COLOR"), np.array([words] * 3), 0, 16, segmented=True)
    began = time.monotonic()
    opened(data).frame(0)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_supplemental_palette_colors_its_part_and_leaves_the_rest_gray(syntax: str) -> None:
    values = VALUES.copy()
    window = {"WindowCenter": 1500, "WindowWidth": 3000}
    plain = opened(dicom(values, syntax=syntax, **window))
    data = with_palette(dicom(values, syntax=syntax, PixelPresentation="COLOR", **window), HUES, 3840, 16)
    first, second = opened(data).renderings(0)
    coloured = values >= 3840
    expected = HUES[:, values[coloured].astype(int) - 3840].T / 65535 * 255
    assert np.abs(first[coloured] - expected).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(first[~coloured], plain.frame(0)[~coloured])
    np.testing.assert_array_equal(second, plain.renderings(0)[1])  # as viewers without such palettes show it
    assert ContentFlag.SUPPLEMENTAL_PALETTE in opened(data).notes
    data.PixelPresentation = "MONOCHROME"
    np.testing.assert_array_equal(opened(data).frame(0), plain.frame(0))
    assert ContentFlag.SUPPLEMENTAL_PALETTE in opened(data).notes


def test_a_damaged_supplemental_palette_leaves_the_image_gray() -> None:
    plain = dicom(VALUES, BitsStored=12, HighBit=11)
    data = dicom(VALUES, BitsStored=12, HighBit=11, PixelPresentation="COLOR")
    with_palette(data, np.array([[9, 9, 9]] * 3), 100, 16, segmented=True)
    np.testing.assert_array_equal(grey(data), grey(plain))
    assert opened(data).notes == (ContentFlag.SUPPLEMENTAL_PALETTE, ContentFlag.USELESS_PALETTE)


@pytest.mark.parametrize("missing", ["all", "Red", "Green", "Blue"])
@pytest.mark.parametrize("element", ["Descriptor", "Data"])
def test_a_supplemental_palette_that_lacks_a_table_is_noted(missing: str, element: str) -> None:
    plain = dicom(VALUES, BitsStored=12, HighBit=11)
    data = with_palette(dicom(VALUES, BitsStored=12, HighBit=11, PixelPresentation="COLOR"), HUES, 3840, 16)
    assert ContentFlag.USELESS_PALETTE not in opened(data).notes
    for color in ("Red", "Green", "Blue") if missing == "all" else (missing,):
        del data[f"{color}PaletteColorLookupTable{element}"]
    if element == "Descriptor" and missing in ("Green", "Blue"):
        assert ContentFlag.USELESS_PALETTE not in opened(data).notes  # the red one serves for all
        return
    np.testing.assert_array_equal(grey(data), grey(plain))
    assert ContentFlag.USELESS_PALETTE in opened(data).notes
    data.PixelPresentation = "MONOCHROME"
    assert ContentFlag.USELESS_PALETTE not in opened(data).notes


# -- codestreams without an end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gray8", "gray16", "color", "near"])
def test_a_jpeg_ls_codestream_without_its_end_is_read_or_refused_at_once(kind: str) -> None:
    """CharLS looks for the end marker for up to 20 seconds, also where every pixel is there."""
    rng = np.random.default_rng(3)
    shape, dtype = ((48, 40, 3), np.uint8) if kind == "color" else ((48, 40), np.uint16 if kind == "gray16" else np.uint8)
    values = rng.integers(0, 256, shape).astype(dtype)
    data = dicom(values, "RGB" if kind == "color" else "MONOCHROME2", uid.JPEGLSNearLossless)
    code = imagecodecs.jpegls_encode(values, level=2 if kind == "near" else 0)
    assert code.endswith(b"\xff\xd9")

    def shown(source: bytes) -> NDArray[np.uint8]:
        data.add_new("PixelData", "OB", encapsulate([source]))
        return opened(data).frame(0)

    whole = shown(code)
    began = time.process_time()
    for lost in (1, 2):
        np.testing.assert_array_equal(shown(code[: len(code) - lost]), whole)
    for lost in (5, 10, 11, 50, 51, 300, len(code) // 2, len(code) - 60):
        for end in (b"", b"\0", b"\xff", b"\xff\xff", b"\xff\xd8", b"\xff\xd9"):
            with pytest.raises(ImageError) as caught:
                shown(code[: len(code) - lost] + end)
            assert caught.value.reason is Reason.DAMAGED
    assert time.process_time() - began < 2


# -- codestreams' colors ---------------------------------------------------------------------------------------------------------


def colours() -> NDArray[np.uint8]:
    corners = np.array([[[220, 40, 30], [30, 200, 50]], [[40, 60, 210], [200, 190, 20]]], np.uint8)
    return np.asarray(Image.fromarray(corners).resize((64, 48), Image.Resampling.BICUBIC))


def coded(code: bytes, syntax: str, photometric: str) -> FileDataset:
    data = dicom(colours(), photometric, syntax)
    data.add_new("PixelData", "OB", encapsulate([code]))
    return data


def test_jpeg_2000_colors_that_openjpeg_cannot_convert_are_refused_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    code = imagecodecs.jpeg2k_encode(colours(), codecformat="j2k", mct=False)
    data = coded(code[:42] + bytes((7, 1, 1, 7, 2, 1, 7, 1, 1)) + code[51:], uid.JPEG2000, "YBR_FULL")
    with pytest.raises(ImageError) as caught:
        opened(data).frame(0)
    assert caught.value.reason is Reason.UNSUPPORTED
    assert capfd.readouterr() == ("", "")


HEADERS = ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize(
    ("syntax", "code", "levels"),
    [
        (uid.JPEG2000Lossless, imagecodecs.jpeg2k_encode(colours(), reversible=True, codecformat="j2k"), 0),
        (uid.JPEG2000Lossless, imagecodecs.jpeg2k_encode(colours(), reversible=True, codecformat="jp2"), 0),
        (uid.JPEG2000, imagecodecs.jpeg2k_encode(colours(), level=60, codecformat="j2k"), 8),
        (uid.HTJ2KLossless, imagecodecs.htj2k_encode(colours(), reversible=True), 0),
        (uid.HTJ2KLosslessRPCL, imagecodecs.htj2k_encode(colours(), reversible=True), 0),
        (uid.HTJ2K, imagecodecs.htj2k_encode(colours(), level=0.001), 8),
    ],
)
def test_a_transformed_codestream_is_rgb_whatever_the_header_says(header: str, syntax: str, code: bytes, levels: int) -> None:
    shown = opened(coded(bytes(code), syntax, header)).frame(0)
    assert np.abs(shown.astype(int) - colours()).max() <= levels


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("codec", ["jpeg2k", "htj2k"])
def test_of_one_that_is_not_transformed_the_header_tells(header: str, codec: str) -> None:
    stored = convert_color_space(colours(), "RGB", "YBR_FULL") if header.startswith("YBR_FULL") else colours()
    if codec == "jpeg2k":
        syntax, code = uid.JPEG2000Lossless, imagecodecs.jpeg2k_encode(stored, reversible=True, codecformat="j2k", mct=False)
    else:
        syntax, code = uid.HTJ2KLossless, imagecodecs.htj2k_encode(stored, reversible=True, rgb=False)
    shown = opened(coded(bytes(code), syntax, header)).frame(0)
    assert np.abs(shown.astype(int) - colours()).max() <= 2


def test_the_first_tiles_own_coding_style_counts() -> None:
    """A tile-part header may have a COD of its own, which overrides the main one."""
    code = bytearray(imagecodecs.jpeg2k_encode(colours(), reversible=True, codecformat="j2k"))
    at = code.index(b"\xff\x52")
    style = bytes(code[at : at + 2 + int.from_bytes(code[at + 2 : at + 4], "big")])
    code[at + 8] = 0
    tile = code.index(b"\xff\x90")
    size = int.from_bytes(code[tile + 6 : tile + 10], "big")
    if size:
        code[tile + 6 : tile + 10] = (size + len(style)).to_bytes(4, "big")
    code[tile + 12 : tile + 12] = style
    np.testing.assert_array_equal(opened(coded(bytes(code), uid.JPEG2000Lossless, "YBR_FULL")).frame(0), colours())


def test_a_jp2_file_that_says_ycc_is_converted_once() -> None:
    stored = convert_color_space(colours(), "RGB", "YBR_FULL")
    code = bytearray(imagecodecs.jpeg2k_encode(stored, reversible=True, codecformat="jp2", mct=False))
    code[code.index(b"colr") + 10] = 18
    for header in HEADERS:
        shown = opened(coded(bytes(code), uid.JPEG2000Lossless, header)).frame(0)
        assert np.abs(shown.astype(int) - colours()).max() <= 2


@pytest.mark.skipif(not shutil.which("convert"), reason="ImageMagick is not installed")
@pytest.mark.parametrize("header", ["YBR_FULL", "YBR_FULL_422"])
def test_colors_of_jpeg_2000_against_imagemagick(header: str, tmp_path: Path) -> None:
    code = bytes(imagecodecs.jpeg2k_encode(colours(), level=45, codecformat="j2k"))
    (tmp_path / "a.j2k").write_bytes(code)
    done = subprocess.run(["convert", str(tmp_path / "a.j2k"), str(tmp_path / "a.png")], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this ImageMagick does not read JPEG 2000")
    theirs = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert np.abs(opened(coded(code, uid.JPEG2000, header)).frame(0) - theirs).max() <= 1


@pytest.mark.parametrize("sampling", ["422", "420"])
@pytest.mark.parametrize("header", ["RGB", "YBR_FULL_422"])
def test_a_subsampled_jpeg_without_markers_is_ycc(sampling: str, header: str) -> None:
    code = bytes(imagecodecs.jpeg8_encode(colours(), level=95, colorspace="RGB", outcolorspace="YCBCR", subsampling=sampling))
    bare = code[:2] + code[code.index(b"\xff\xdb") :]
    assert np.abs(opened(coded(bare, uid.JPEGBaseline8Bit, header)).frame(0).astype(int) - colours()).max() < 20


@pytest.mark.parametrize("codec", ["jpegls", "jpeg2k", "ljpeg"])
def test_stored_bits_at_the_top_of_a_codestreams_words(codec: str) -> None:
    shape = {"BitsStored": 12, "WindowCenter": 1000, "WindowWidth": 500}
    plain = grey(dicom(VALUES, HighBit=11, **shape))
    noise = np.random.default_rng(0).integers(0, 16, VALUES.shape).astype("uint16")
    for high, words in ((15, (VALUES << 4) | noise), (11, VALUES | (noise << 12))):  # unused bits below and above
        syntax, code = {
            "jpegls": (uid.JPEGLSLossless, lambda words: imagecodecs.jpegls_encode(words)),
            "jpeg2k": (uid.JPEG2000Lossless, lambda words: imagecodecs.jpeg2k_encode(words, reversible=True, codecformat="j2k")),
            "ljpeg": (uid.JPEGLosslessSV1, lambda words: imagecodecs.jpeg8_encode(words, lossless=True, bitspersample=16)),
        }[codec]
        data = dicom(words, syntax=syntax, HighBit=high, **shape)
        data.add_new("PixelData", "OB", encapsulate([bytes(code(words))]))
        np.testing.assert_array_equal(grey(data), plain)


@pytest.mark.parametrize("order", ["all four bytes", "two words"])
@pytest.mark.parametrize(("dtype", "scale"), [("uint32", 1), ("uint32", 524287), ("int32", 262139)])
def test_32_bits_in_big_endian_in_either_order(order: str, dtype: str, scale: int) -> None:
    """DCMTK cuts them into words, the low one first, as PS3.5 does; others swap all four bytes."""
    values = (VALUES.astype("int64") * scale).astype(dtype)
    if dtype == "int32":
        values -= np.int32(1 << 29)
    window = {"WindowCenter": float(values.mean()), "WindowWidth": float(values.max() - values.min())}
    plain = grey(dicom(values, **window))
    data = dicom(values, syntax="big", **window)
    if order == "two words":
        data.PixelData = np.frombuffer(values.tobytes(), "<u2").byteswap().tobytes()
    np.testing.assert_array_equal(grey(data), plain)


# -- hostile ---------------------------------------------------------------------------------------------------------------------


def nested_tables(depth: int) -> bytes:
    """VOI LUT sequences in each other, of undefined length."""
    opening = b"\x28\x00\x10\x30SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    sound = written(dicom(VALUES, BitsStored=12, HighBit=11))
    at = sound.index(b"\xe0\x7f\x10\x00OW")
    return sound[:at] + opening * depth + closing * depth + sound[at:]


def claimed(keyword: str, length: int) -> bytes:
    """A table that claims to be longer than the file."""
    item = lut(CURVE, vr="OW")
    sound = written(dicom(VALUES, BitsStored=12, HighBit=11, **{keyword: Sequence([item])}))
    at = sound.index(b"\x28\x00\x06\x30OW") + 8
    return sound[:at] + length.to_bytes(4, "little") + sound[at + 4 :]


def bomb() -> bytes:
    data = one_bit(np.zeros((1, 8, 8), np.uint8))
    data.Rows = data.Columns = 65535
    data.add_new("PixelData", "OB", bytes(16))
    return written(data)


def many_items() -> bytes:
    """A sequence of 5,000 empty items, and the window after them."""
    return written(dicom(VALUES, WindowCenter=9, WindowWidth=9, VOILUTSequence=Sequence([Dataset() for _ in range(5000)])))


HOSTILE = {
    "tables in tables": lambda: nested_tables(3000),
    "1 bit of 65535 x 65535": bomb,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tables_and_bits_are_refused_quickly_and_in_little_memory(name: str) -> None:
    data = HOSTILE[name]()
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ImageError) as caught:
            open_image(data, name_hint="x.dcm").frame(0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.reason in (Reason.DAMAGED, Reason.TOO_LARGE)
    assert "\n" not in str(caught.value)
    assert peak < 100 << 20
    assert time.monotonic() - began < 5


def test_thousands_of_empty_tables_cost_little() -> None:
    began = time.monotonic()
    open_image(many_items()).frame(0)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("length", [0xFFFFFFFE, 1 << 20, 8200])
def test_a_table_that_claims_more_than_the_file_holds_takes_no_more_memory(keyword: str, length: int) -> None:
    """What is there may be a table still, so an image or an error is right."""
    data = claimed(keyword, length)
    tracemalloc.start()
    try:
        with contextlib.suppress(ImageError):
            open_image(data, name_hint="x.dcm").frame(0)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@linux
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tables_and_bits_are_refused_alike_in_a_process_of_their_own(name: str) -> None:
    data = HOSTILE[name]()
    with pytest.raises(ImageError) as here:
        open_image(data, name_hint="x.dcm").frame(0)
    with DecoderPool(Limits()) as decoders, pytest.raises(ImageError) as there:
        decoders.open(data, "x.dcm").frame(0)
    assert there.value.reason is here.value.reason


# -- the sweep -------------------------------------------------------------------------------------------------------------------


def sweep() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dicom_sweep", ROOT / "benchmarks" / "dicom_sweep.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


REFUSED = {f"MONOCHROME{number} 6 bits in uint8" for number in (1, 2)}
"""In near-lossless JPEG-LS, as DCMTK writes it: CharLS refuses it, see docs/dicom.md."""


def outcomes(every: int, tmp_path: Path) -> None:
    found = list(sweep().sweep(tmp_path, lambda number, name: number % every == 0))
    compared = [one for one in found if not one.untold]
    assert len(compared) >= 1900 // every
    assert [one for one in compared if one.kind == "different" or (one.kind == "refused" and one.feature not in REFUSED)] == []


@dcmtk
def test_a_fiftieth_of_the_sweep_against_dcmtk(tmp_path: Path) -> None:
    outcomes(50, tmp_path)


@dcmtk
@pytest.mark.slow
def test_a_fifth_of_the_sweep_against_dcmtk(tmp_path: Path) -> None:
    outcomes(5, tmp_path)
