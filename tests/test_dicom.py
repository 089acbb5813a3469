"""DICOM rendering against numpy and a second decoder, all of pydicom's own files, and hostile objects."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.errors import ImageError, Reason
from lcmem_onnx.runtime.images.content_flags import SUSPICIOUS, ContentFlag
from lcmem_onnx.runtime.images.image import SAME_LEVELS, ImageFile, Kind, Limits, open_image
from lcmem_onnx.runtime.images.preprocess import is_blank
from lcmem_onnx.runtime.images.sandbox import DecoderPool
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import pixel_array
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.sequence import Sequence

# The objects are odd on purpose, and pydicom says so.
pytestmark = pytest.mark.filterwarnings("ignore")

SHIPPED = Path(pydicom.__file__).parent / "data"
UNREADABLE = {
    "JPEG2000-embedded-sequence-delimiter.dcm",
    "MR_truncated.dcm",
    "meta_missing_tsyntax.dcm",
    "nested_priv_SQ.dcm",
}


def shipped(name: str) -> Path:
    return next(SHIPPED.rglob(name))


def dicom(
    values: NDArray[Any],
    *,
    syntax: str = uid.ExplicitVRLittleEndian,
    photometric: str = "MONOCHROME2",
    stored: int | None = None,
    frames: int | None = None,
    **elements: Any,
) -> FileDataset:
    """An object with these stored values: (rows, columns), with samples last, with frames first when there are `frames`."""
    shape = values.shape[1:] if frames else values.shape
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.UID(syntax)
    meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = shape[:2]
    dataset.SamplesPerPixel = shape[2] if len(shape) > 2 else 1
    if dataset.SamplesPerPixel > 1:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.BitsStored = stored or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    if frames:
        dataset.NumberOfFrames = frames
    dataset.PixelData = values.tobytes()
    dataset["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def written(dataset: FileDataset) -> bytes:
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=False)
    return file.getvalue()


def opened(dataset: FileDataset) -> ImageFile:
    return open_image(written(dataset))


def grey_of(dataset: FileDataset, number: int = 0) -> NDArray[np.uint8]:
    pixels = opened(dataset).frame(number)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def ramp(low: int, high: int, dtype: str) -> NDArray[Any]:
    return np.linspace(low, high, 48 * 40).astype(dtype).reshape(48, 40)


def windowed(values: NDArray[Any], centre: float, width: float) -> NDArray[Any]:
    """PS3.3 C.11.2.1.2.1 in its own words."""
    x = values.astype(float)
    y = ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255
    y[x <= centre - 0.5 - (width - 1) / 2] = 0
    y[x > centre - 0.5 + (width - 1) / 2] = 255
    return y


def near(ours: NDArray[np.uint8], theirs: NDArray[Any]) -> None:
    assert np.abs(ours.astype(float) - theirs).max() <= 0.5 + 1e-6


# -- the grey pipeline -----------------------------------------------------------------------------------------------


def test_ct_with_rescale_and_window() -> None:
    values = ramp(0, 4095, "uint16")
    data = dicom(values, stored=12, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    near(grey_of(data), windowed(values.astype(int) - 1024, 40, 400))


def test_the_first_of_several_windows() -> None:
    values = ramp(0, 4095, "uint16")
    data = dicom(values, stored=12, WindowCenter=[2000, 10], WindowWidth=[1000, 20])
    near(grey_of(data), windowed(values, 2000, 1000))


def test_signed_values_and_a_rescale_that_is_no_whole_number() -> None:
    values = ramp(-2000, 2000, "int16")
    data = dicom(values, RescaleSlope="0.5", RescaleIntercept="3", WindowCenter=-100, WindowWidth=700)
    near(grey_of(data), windowed(values * 0.5 + 3, -100, 700))


def test_other_window_functions() -> None:
    values = ramp(0, 4095, "uint16")
    exact = dicom(values, stored=12, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    near(grey_of(exact), np.clip((values - 1500.0) / 1000, 0, 1) * 255)
    sigmoid = dicom(values, stored=12, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    near(grey_of(sigmoid), 255 / (1 + np.exp(-4 * (values - 2000.0) / 1000)))


def test_monochrome1_is_inverted_once_even_beside_an_inverse_presentation() -> None:
    values = ramp(0, 4095, "uint16")
    shape = {"stored": 12, "WindowCenter": 2048, "WindowWidth": 4096}
    plain = grey_of(dicom(values, **shape))
    inverted = grey_of(dicom(values, photometric="MONOCHROME1", PresentationLUTShape="INVERSE", **shape))
    assert np.abs(255 - inverted.astype(int) - plain).max() <= 1


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_takes_no_part_in_the_contrast(photometric: str) -> None:
    values = ramp(100, 1000, "int16")
    values[:5] = -2000
    values[5:8] = -1990
    data = dicom(values, photometric=photometric)
    data.add_new("PixelPaddingValue", "SS", -2000)
    data.add_new("PixelPaddingRangeLimit", "SS", -1985)
    grey = grey_of(data)
    assert (grey[:8] == 0).all()
    low, high = values[8:].min(), values[8:].max()
    share = (values[8:] - float(low)) / (high - low)
    near(grey[8:], 255 * (share if photometric == "MONOCHROME2" else 1 - share))


def test_nothing_but_padding_is_blank() -> None:
    data = dicom(ramp(0, 100, "uint16"))
    data.add_new("PixelPaddingValue", "US", 0)
    data.add_new("PixelPaddingRangeLimit", "US", 65535)
    assert is_blank(opened(data).frame(0))


def test_without_a_window_8_bits_keep_their_range_and_16_are_stretched() -> None:
    np.testing.assert_array_equal(grey_of(dicom(ramp(50, 90, "uint8"))), ramp(50, 90, "uint8"))
    values = ramp(500, 900, "uint16")
    near(grey_of(dicom(values)), (values - 500.0) / 400 * 255)


@pytest.mark.parametrize(
    "elements",
    [
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": 0, "RescaleIntercept": 5},
        {"WindowCenter": 600, "WindowWidth": 0},
        {"WindowCenter": 600, "WindowWidth": "0.5"},
        {"WindowCenter": None, "WindowWidth": None},
        {"WindowCenter": 30000, "WindowWidth": 10},  # shows nothing of what is there
    ],
)
def test_useless_rescales_and_windows_do_not_hide_an_image(elements: dict[str, Any]) -> None:
    values = ramp(500, 900, "uint16")
    near(grey_of(dicom(values, **elements)), (values - 500.0) / 400 * 255)


def lut(entries: list[int], first: int, bits: int) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = entries
    item["LUTData"].VR = "US"
    return Sequence([item])


def test_lookup_tables_of_modality_and_voi() -> None:
    values = ramp(0, 255, "uint8")
    squares = [(at * at) // 16 for at in range(256)]  # to 4064: 12 bits
    data = dicom(values, VOILUTSequence=lut(squares, 0, 16), WindowCenter=1, WindowWidth=2)
    near(grey_of(data), np.array(squares)[values] / 4095 * 255)
    backwards = list(range(255, -1, -1))
    data = dicom(values, ModalityLUTSequence=lut(backwards, 0, 8), WindowCenter=128, WindowWidth=256)
    near(grey_of(data), windowed(255 - values.astype(int), 128, 256))


def test_enhanced_multiframe_takes_each_frames_own_rescale_and_window() -> None:
    values = np.stack([ramp(0, 1000, "uint16"), ramp(200, 4000, "uint16")])
    data = dicom(values, frames=2, stored=12)
    shared, voi = Dataset(), Dataset()
    voi.WindowCenter, voi.WindowWidth = 100, 900
    shared.FrameVOILUTSequence = Sequence([voi])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for slope, intercept in ((1, -100), (0.25, 10)):
        transformation, group = Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, intercept
        group.PixelValueTransformationSequence = Sequence([transformation])
        groups.append(group)
    own = Dataset()
    own.WindowCenter, own.WindowWidth = 500, 1000
    groups[1].FrameVOILUTSequence = Sequence([own])
    data.PerFrameFunctionalGroupsSequence = Sequence(groups)
    near(grey_of(data, 0), windowed(values[0].astype(int) - 100, 100, 900))
    near(grey_of(data, 1), windowed(values[1] * 0.25 + 10, 500, 1000))


def floats(values: NDArray[np.floating[Any]], **elements: Any) -> FileDataset:
    data = dicom(ramp(0, 1, "float32"), **elements)
    data.Rows, data.Columns = values.shape
    data.BitsAllocated = 8 * values.dtype.itemsize
    del data.PixelData, data.BitsStored, data.HighBit, data.PixelRepresentation
    if values.dtype.itemsize == 4:
        data.FloatPixelData = values.tobytes()
    else:
        data.DoubleFloatPixelData = values.tobytes()
    return data


def test_floats_are_stretched() -> None:
    values = np.linspace(-1.5, 7, 48 * 40, dtype=np.float32).reshape(48, 40)
    near(grey_of(floats(values)), (values + 1.5) / 8.5 * 255)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_of_floats_the_finite_part_is_shown(odd: float) -> None:
    values = np.linspace(-1.5, 7, 48 * 40, dtype=np.float32).reshape(48, 40)
    values[:, :5] = odd
    low, high = values[:, 5:].min(), values[:, 5:].max()
    first, second = opened(floats(values)).renderings(0)
    near(first[:, 5:, 0], (values[:, 5:] - low) / (high - low) * 255)
    assert not first[:, :5].any()
    assert not second[:, :5].any()
    values[:] = odd
    with pytest.raises(ImageError) as caught:
        opened(floats(values)).frame(0)
    assert caught.value.reason is Reason.NOT_FINITE


def test_floats_near_the_largest_of_their_type_do_not_overflow() -> None:
    values = np.linspace(-1, 1, 48 * 40).reshape(48, 40) * 1.7e308
    near(grey_of(floats(values)), np.linspace(0, 255, 48 * 40).reshape(48, 40))


@pytest.mark.parametrize(("dtype", "prefix", "vr"), [("float32", "Float", "FL"), ("float64", "DoubleFloat", "FD")])
@pytest.mark.parametrize("limit", [None, -9000.0])
def test_padding_of_floats_is_masked(dtype: str, prefix: str, vr: str, limit: float | None) -> None:
    values = np.linspace(10, 90, 48 * 40).astype(dtype).reshape(48, 40)
    values[:7] = -9999.1 if limit is None else -9500
    data = floats(values)
    data.add_new(f"{prefix}PixelPaddingValue", vr, -9999.1)
    if limit is not None:
        data.add_new(f"{prefix}PixelPaddingRangeLimit", vr, limit)
    grey = grey_of(data)
    assert not grey[:7].any()
    near(grey[7:], (values[7:] - values[7].min()) / (90 - values[7].min()) * 255)


# -- the second rendering ----------------------------------------------------------------------------------------------


def by_percentiles(values: NDArray[Any]) -> NDArray[Any]:
    """Brute force: the values in order, the first above which a share of them lies."""
    ordered = np.sort(values.astype(float), axis=None)
    low, high = (ordered[int(np.ceil(share * ordered.size)) - 1] for share in (0.005, 0.995))
    return np.clip((values - low) / (high - low), 0, 1) * 255


@pytest.mark.parametrize(
    ("dtype", "slope", "photometric"),
    [
        ("uint16", None, "MONOCHROME2"),
        ("int16", 0.5, "MONOCHROME2"),
        ("uint16", -2, "MONOCHROME1"),
        ("uint8", None, "MONOCHROME1"),
        ("int32", 3, "MONOCHROME2"),
    ],
)
def test_the_second_rendering_goes_by_percentiles(dtype: str, slope: float | None, photometric: str) -> None:
    rng = np.random.default_rng(3)
    spread = {"uint8": 30, "int32": 10_000_000}.get(dtype, 300)
    values = np.clip(rng.normal(spread * 4, spread, (48, 40)), 0, None).astype(dtype)
    values[0, :3] = np.iinfo(dtype).max  # hot pixels
    rescale = {} if slope is None else {"RescaleSlope": slope, "RescaleIntercept": 7}
    first, second = opened(dicom(values, photometric=photometric, **rescale)).renderings(0)
    expected = by_percentiles(values.astype(float) * (slope or 1) + (7 if slope else 0))
    near(second[..., 0], 255 - expected if photometric == "MONOCHROME1" else expected)
    assert first.shape == second.shape


def test_copies_that_lost_their_window_or_were_given_another_share_a_rendering() -> None:
    values = (ramp(0, 4095, "int64") ** 2 // 4096).astype("uint16")
    original = opened(dicom(values, stored=12, WindowCenter=300, WindowWidth=200)).views(0, 40)
    copies = [
        dicom(values, stored=12),
        dicom(values, stored=12, WindowCenter=3000, WindowWidth=900),
        dicom(values, stored=12, WindowCenter=30000, WindowWidth=1),
        dicom(values, stored=12, RescaleSlope=2, RescaleIntercept=-1000),
        dicom((values * 4).astype("uint16"), stored=14),
    ]
    assert len(original) == 2
    for copy in copies:
        assert any(np.abs(view.astype(int) - original[1]).mean() <= SAME_LEVELS for view in opened(copy).views(0, 40))
    apart = np.abs(opened(copies[1]).views(0, 40)[0].astype(int) - original[0])
    assert apart.mean() > 40  # by the windows alone they are different images


def test_an_image_that_only_the_second_rendering_shows_is_seen() -> None:
    values = np.random.default_rng(5).integers(1000, 1100, (48, 40)).astype("uint16")
    values[0, :2] = 4000
    data = dicom(values, stored=12, WindowCenter=4000, WindowWidth=100)  # black but for two pixels
    first, second = opened(data).renderings(0)
    assert (first[1:] == 0).all()
    near(second[..., 0], by_percentiles(values))
    views = opened(data).views(0, 40)
    assert any(view.std() > 30 for view in views)


def test_equal_renderings_are_one_view_and_blank_ones_none() -> None:
    values = ramp(0, 255, "uint8")
    assert len(opened(dicom(values)).renderings(0)) == 2
    assert len(opened(dicom(values)).views(0, 40)) == 1
    flat = dicom(np.full((48, 40), 700, "uint16"))
    with pytest.raises(ImageError) as caught:
        opened(flat).views(0, 40)
    assert caught.value.reason is Reason.BLANK


def test_padding_that_hides_an_image_is_no_padding() -> None:
    values = ramp(0, 4000, "uint16")
    data = dicom(values, stored=12)
    data.add_new("PixelPaddingValue", "US", 100)
    data.add_new("PixelPaddingRangeLimit", "US", 3900)
    near(grey_of(data), values / 4000 * 255)


def test_unused_bits_below_the_stored_ones_are_left_out() -> None:
    values = ramp(0, 4095, "uint16")
    rng = np.random.default_rng(0)
    shifted = (values << 4) | rng.integers(0, 16, values.shape).astype("uint16")
    data = dicom(shifted, stored=12)
    data.HighBit = 15
    np.testing.assert_array_equal(opened(data).frame(0), opened(dicom(values, stored=12)).frame(0))


def test_unused_bits_above_the_stored_ones_are_left_out() -> None:
    """Old objects keep overlays there."""
    values = ramp(0, 4095, "uint16")
    np.testing.assert_array_equal(grey_of(dicom(values | 0x8000, stored=12)), grey_of(dicom(values, stored=12)))


# -- frames that a header hides, and many of them ---------------------------------------------------------------------


def rle(values: NDArray[Any]) -> bytes:
    return bytes(RLELosslessEncoder.encode(dicom(values, stored=12), index=0))


@pytest.mark.parametrize("said", [1, 2])
@pytest.mark.parametrize("with_table", [True, False])
@pytest.mark.parametrize("codec", ["native", "jpegls", "jpeg2k", "rle"])
def test_frames_beyond_those_that_the_header_tells_of_are_refused(codec: str, with_table: bool, said: int) -> None:
    values = np.stack([ramp(0, 4000, "uint16")] * 3)
    syntax, encode = {
        "native": (uid.ExplicitVRLittleEndian, None),
        "jpegls": (uid.JPEGLSLossless, imagecodecs.jpegls_encode),
        "jpeg2k": (uid.JPEG2000Lossless, lambda frame: imagecodecs.jpeg2k_encode(frame, reversible=True, codecformat="j2k")),
        "rle": (uid.RLELossless, rle),
    }[codec]
    data = dicom(values, syntax=syntax, frames=3, stored=12)
    if encode:
        data.PixelData = encapsulate([encode(frame) for frame in values], has_bot=with_table)
    opened(data).frame(2)
    data.NumberOfFrames = said
    if said == 1:
        del data.NumberOfFrames
    with pytest.raises(ImageError, match="holds more") as caught:
        opened(data)
    assert caught.value.reason is Reason.DAMAGED


def test_a_header_that_says_smaller_frames_than_there_are_is_refused() -> None:
    data = dicom(ramp(0, 4000, "uint16"), stored=12)
    data.Rows = 10
    with pytest.raises(ImageError, match="holds more"):
        opened(data)


def test_an_offset_table_that_leaves_a_frame_out_does_not_hide_it() -> None:
    values = np.stack([ramp(0, 4000, "uint16"), ramp(4000, 0, "uint16")])
    frames = [imagecodecs.jpegls_encode(frame) for frame in values]
    data = dicom(values, syntax=uid.JPEGLSLossless, frames=2, stored=12, WindowCenter=2000, WindowWidth=4000)
    data.PixelData = encapsulate(frames, has_bot=True)
    lying = data.PixelData[:8] + struct.pack("<2I", 0, 0) + data.PixelData[16:]
    assert lying != data.PixelData
    data.PixelData = lying
    for number in (0, 1):
        near(grey_of(data, number), windowed(values[number], 2000, 4000))
    data.PixelData = encapsulate(frames)
    data.ExtendedOffsetTable = struct.pack("<2Q", 0, 0)
    data.ExtendedOffsetTableLengths = struct.pack("<2Q", *(len(frame) for frame in frames))
    near(grey_of(data, 1), windowed(values[1], 2000, 4000))


@pytest.mark.parametrize("lie", ["both the first", "both the second", "the second in the middle of a frame"])
def test_an_offset_table_of_frames_in_fragments_hides_none(lie: str) -> None:
    values = np.stack([ramp(0, 4000, "uint16"), ramp(4000, 0, "uint16")])
    frames = [imagecodecs.jpegls_encode(frame) for frame in values]
    data = dicom(values, syntax=uid.JPEGLSLossless, frames=2, stored=12, WindowCenter=2000, WindowWidth=4000)
    data.PixelData = encapsulate(frames, fragments_per_frame=2, has_bot=True)
    near(grey_of(data, 1), windowed(values[1], 2000, 4000))
    second = struct.unpack("<I", data.PixelData[12:16])[0]
    half = 8 + struct.unpack("<I", data.PixelData[20:24])[0]
    table = {"both the first": (0, 0), "both the second": (second, second), "the second in the middle of a frame": (0, half)}[lie]
    data.PixelData = data.PixelData[:8] + struct.pack("<2I", *table) + data.PixelData[16:]
    shown = []
    for number in (0, 1):
        with contextlib.suppress(ImageError):
            shown.append(grey_of(data, number))
    if len(shown) == 2:  # else there was an error, which is as good
        for frame, stored in zip(shown, values, strict=True):
            near(frame, windowed(stored, 2000, 4000))


def test_an_element_that_is_there_twice_is_refused() -> None:
    """Viewers differ in which of the two they take."""
    sound = written(dicom(ramp(0, 4000, "uint16"), stored=12))
    at = sound.index(b"\xe0\x7f\x10\x00OW")
    for doubled in (sound[:at] + sound[at:] * 2, sound.replace(ROWS, ROWS + b"\x0a\x00" + ROWS, 1)):
        with pytest.raises(ImageError, match="duplicate element") as caught:
            open_image(doubled)
        assert caught.value.reason is Reason.DAMAGED


@pytest.mark.parametrize("with_table", [True, False])
def test_a_thousand_frames_each_its_own(with_table: bool) -> None:
    values = np.add.outer(np.arange(1000, dtype="uint16"), ramp(0, 2000, "uint16")[:8, :8])
    data = dicom(values, syntax=uid.RLELossless, frames=1000, stored=12, WindowCenter=2048, WindowWidth=4096)
    data.PixelData = encapsulate([rle(frame) for frame in values], has_bot=with_table)
    image = opened(data)
    for number in (0, 1, 499, 999):
        near(image.frame(number)[..., 0], windowed(values[number], 2048, 4096))


# -- notes ------------------------------------------------------------------------------------------------------------


def item(**elements: Any) -> Sequence:
    inside = Dataset()
    for keyword, value in elements.items():
        setattr(inside, keyword, value)
    return Sequence([inside])


def overlay(data: FileDataset) -> None:
    data.add_new(0x60000010, "US", 48)
    data.add_new(0x60003000, "OW", bytes(240))


def private(data: FileDataset, size: int) -> None:
    block = data.private_block(0x0011, "TESTS", create=True)
    block.add_new(0x01, "OB", bytes(size))


def nested_in(data: FileDataset, keyword: str) -> None:
    inside = Dataset()
    inside.Rows = inside.Columns = 4
    inside.add_new("PixelData", "OB", bytes(16))
    setattr(data, keyword, Sequence([inside]))


@pytest.mark.parametrize(
    ("change", "notes"),
    [
        (lambda data: None, ()),
        (overlay, ("overlay",)),
        (lambda data: setattr(data, "BurnedInAnnotation", "YES"), ("burned-in-annotation",)),
        (lambda data: setattr(data, "BurnedInAnnotation", "NO"), ()),
        (lambda data: setattr(data, "RecognizableVisualFeatures", "YES"), ("recognizable-visual-features",)),
        (lambda data: nested_in(data, "IconImageSequence"), ("icon",)),
        (lambda data: nested_in(data, "ReferencedImageSequence"), ("nested-pixels",)),
        (lambda data: private(data, 70000), ("private-data",)),
        (lambda data: private(data, 1000), ()),
        (lambda data: data.add_new(0xFFFCFFFC, "OB", bytes(70000)), ("private-data",)),
        (lambda data: data.add_new(0x0018FFF0, "OB", bytes(70000)), ("private-data",)),
        (lambda data: data.add_new(0xFFFCFFFC, "OB", bytes(1000)), ()),
        (lambda data: setattr(data, "preamble", b"II*\0" + bytes(124)), ("two-formats",)),
        (lambda data: setattr(data, "preamble", b"MZ" + bytes(126)), ("executable-preamble",)),
        (lambda data: setattr(data, "PatientID", "a\nb"), ("malformed-identifier",)),
        (lambda data: setattr(data, "SOPInstanceUID", "../../etc"), ("malformed-identifier",)),
        (lambda data: setattr(data, "SpecificCharacterSet", "NOT A SET"), ("unknown-character-set",)),
        (lambda data: setattr(data, "SpecificCharacterSet", ["", "ISO 2022 IR 87"]), ()),
        (lambda data: setattr(data, "RescaleSlope", 0), ("useless-rescale",)),
        (lambda data: setattr(data, "RescaleSlope", None), ("useless-rescale",)),
        (lambda data: setattr(data, "WindowWidth", 0), ("useless-window",)),
        (lambda data: setattr(data, "WindowWidth", None), ()),
    ],
)
def test_notes_of_what_is_not_screened(change: Callable[[FileDataset], None], notes: tuple[str, ...]) -> None:
    data = dicom(ramp(0, 4000, "uint16"), stored=12)
    change(data)
    image = opened(data)
    assert image.notes == notes
    assert not is_blank(image.frame(0))


def test_shipped_files_with_overlays_and_icons_are_noted_and_not_suspicious() -> None:
    assert {ContentFlag.OVERLAY, ContentFlag.ICON} <= set(open_image(shipped("examples_overlay.dcm").read_bytes()).notes)
    for name in ("CT_small.dcm", "MR_small.dcm", "examples_overlay.dcm", "rtdose.dcm", "SC_rgb_jpeg_dcmtk.dcm"):
        assert not SUSPICIOUS & set(open_image(shipped(name).read_bytes()).notes)


# -- colour ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes(bits: int) -> None:
    values = ramp(0, 255, "uint8")
    tables = np.random.default_rng(0).integers(0, 2**bits, (3, 256)).astype(f"<u{bits // 8}")
    data = dicom(values, photometric="PALETTE COLOR")
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        data.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, bits])
        data.add_new(f"{colour}PaletteColorLookupTableData", "OW", table.tobytes())
    expected = tables[:, values].transpose(1, 2, 0) * (255 / (2**bits - 1))
    assert np.abs(opened(data).frame(0) - expected).max() <= 0.5 + 1e-6


def test_a_shipped_palette_file_is_the_table_looked_up() -> None:
    path = shipped("examples_palette.dcm")
    source = pydicom.dcmread(path)
    stored = pixel_array(source, index=0)
    words = [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
    tables = np.stack([np.frombuffer(source[word].value, "<u2") for word in words])
    first = source.RedPaletteColorLookupTableDescriptor[1]
    at = np.clip(stored.astype(int) - first, 0, tables.shape[1] - 1)
    expected = tables[:, at].transpose(1, 2, 0) / 65535 * 255
    assert np.abs(open_image(path.read_bytes()).frame(0) - expected).max() <= 0.5 + 1e-6


def test_rgb_of_8_16_and_32_bits() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 256, (20, 30, 3)).astype("uint8")
    np.testing.assert_array_equal(opened(dicom(values, photometric="RGB")).frame(0), values)
    for bits in (16, 32):
        deep = rng.integers(0, 2**bits, (20, 30, 3)).astype(f"uint{bits}")
        frame = opened(dicom(deep, photometric="RGB")).frame(0)
        assert np.abs(frame - deep / (2**bits - 1) * 255).max() <= 0.51


def colours() -> NDArray[np.uint8]:
    """Smooth, so that lossy compression keeps it, and far from grey, so that a wrong colour space shows."""
    corners = np.array([[[220, 40, 30], [30, 200, 50]], [[40, 60, 210], [200, 190, 20]]], np.uint8)
    return np.asarray(Image.fromarray(corners).resize((64, 48), Image.Resampling.BICUBIC))


def packed(codestream: bytes, shape: tuple[int, ...], syntax: str, photometric: str) -> FileDataset:
    data = dicom(np.zeros(shape, np.uint8), syntax=syntax, photometric=photometric)
    data.PixelData = encapsulate([codestream])
    data["PixelData"].VR = "OB"
    return data


def jpeg(colour_space: str, marked: bool) -> bytes:
    """The image in baseline JPEG, as YCbCr or RGB; without its markers nothing in the file says which."""
    file = io.BytesIO()
    Image.fromarray(colours()).save(file, "JPEG", quality=95, subsampling=0, keep_rgb=colour_space == "RGB")
    source = file.getvalue()
    return source if marked else source[:2] + source[source.index(b"\xff\xdb") :]


@pytest.mark.parametrize("colour_space", ["RGB", "YCbCr"])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422"])
def test_jpeg_colours_go_by_the_codestreams_markers(colour_space: str, photometric: str) -> None:
    source = jpeg(colour_space, marked=True)
    data = packed(source, (48, 64, 3), uid.JPEGBaseline8Bit, photometric)
    assert np.abs(opened(data).frame(0).astype(int) - colours()).max() < 16


def test_jpeg_colours_go_by_the_header_where_there_are_no_markers() -> None:
    data = packed(jpeg("YCbCr", marked=False), (48, 64, 3), uid.JPEGBaseline8Bit, "YBR_FULL_422")
    assert np.abs(opened(data).frame(0).astype(int) - colours()).max() < 16


@pytest.mark.parametrize(
    ("syntax", "photometric", "source"),
    [
        (uid.JPEGLSLossless, "RGB", imagecodecs.jpegls_encode(colours())),
        (uid.JPEG2000Lossless, "YBR_RCT", imagecodecs.jpeg2k_encode(colours(), reversible=True, codecformat="j2k")),
        (uid.JPEG2000Lossless, "YBR_RCT", imagecodecs.jpeg2k_encode(colours(), reversible=True, codecformat="jp2")),
        (uid.HTJ2KLossless, "YBR_RCT", imagecodecs.htj2k_encode(colours(), reversible=True)),
        (uid.JPEGLossless, "RGB", imagecodecs.jpeg8_encode(colours(), lossless=True, predictor=4)),
        (uid.JPEGLosslessSV1, "RGB", imagecodecs.jpeg8_encode(colours(), lossless=True, predictor=1)),
    ],
)
def test_lossless_codecs_give_the_image_back(syntax: str, photometric: str, source: bytes) -> None:
    np.testing.assert_array_equal(opened(packed(source, (48, 64, 3), syntax, photometric)).frame(0), colours())


@pytest.mark.parametrize("codec", ["jpegls", "ljpeg", "jpeg2k"])
def test_signed_values_survive_codecs_that_know_no_sign(codec: str) -> None:
    values = ramp(-1900, 2000, "int16")
    unsigned = (values & 0xFFF).astype("uint16")  # 12 bits, as two's complement
    if codec == "jpegls":
        syntax, source = uid.JPEGLSLossless, imagecodecs.jpegls_encode(unsigned)
    elif codec == "ljpeg":
        syntax, source = uid.JPEGLosslessSV1, imagecodecs.jpeg8_encode(unsigned, lossless=True, bitspersample=12)
    else:
        syntax = uid.JPEG2000Lossless
        source = imagecodecs.jpeg2k_encode(unsigned, reversible=True, codecformat="j2k", bitspersample=12)
    data = dicom(values, syntax=syntax, stored=12, WindowCenter=0, WindowWidth=3000)
    data.PixelData = encapsulate([source])
    near(grey_of(data), windowed(values, 0, 3000))


# -- pydicom's files -------------------------------------------------------------------------------------------------


def with_pixels() -> list[Path]:
    found = []
    for path in sorted(path for path in SHIPPED.rglob("*") if path.is_file()):
        try:
            dataset = pydicom.dcmread(path, force=True)
            pixels = any(word in dataset for word in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
        except Exception:  # noqa: BLE001  # not DICOM: the folder has licences and lists too
            continue
        if pixels:
            found.append(path)
    return found


@pytest.mark.parametrize("path", with_pixels(), ids=lambda path: path.name)
def test_pydicoms_own_files(path: Path) -> None:
    if path.name in UNREADABLE:
        with pytest.raises(ImageError):
            open_image(path.read_bytes(), name_hint="x.dcm").frame(0)
        return
    image = open_image(path.read_bytes(), name_hint="x.dcm")
    assert image.kind is Kind.DICOM
    source = pydicom.dcmread(path, force=True)
    for number in {0, image.frames - 1}:
        frame = image.frame(number)
        assert frame.shape == (source.Rows, source.Columns, 3)
        assert not is_blank(frame)


@pytest.mark.parametrize("name", ["JPEG2000.dcm", "MR_small_jpeg_ls_lossless.dcm", "693_J2KI.dcm", "SC_rgb_jpeg_gdcm.dcm"])
def test_compressed_files_against_gdcm(name: str) -> None:
    pytest.importorskip("gdcm")
    theirs = pixel_array(pydicom.dcmread(shipped(name)), index=0, decoding_plugin="gdcm")
    image = open_image(shipped(name).read_bytes())
    np.testing.assert_array_equal(image._source._values(0), theirs)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_rgb_dcmtk_+eb+cr.dcm"])
def test_colours_of_jpeg_files_against_pillow(name: str) -> None:
    theirs = pixel_array(pydicom.dcmread(shipped(name)), index=0, decoding_plugin="pillow")
    ours = open_image(shipped(name).read_bytes()).frame(0)
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_12_bit_jpeg_extended() -> None:
    """The one shipped file is the image of JPEG2000.dcm, coded anew: GDCM and Pillow cannot read it."""
    data = shipped("JPGExtended.dcm").read_bytes()
    stored = imagecodecs.jpeg8_decode(get_frame(pydicom.dcmread(io.BytesIO(data)).PixelData, 0, number_of_frames=1))
    near(open_image(data).frame(0)[..., 0], stored / stored.max() * 255)
    other = pixel_array(pydicom.dcmread(shipped("JPEG2000.dcm")), index=0)
    assert np.corrcoef(stored.ravel(), other.ravel())[0, 1] > 0.95


def test_compressed_and_plain_versions_of_one_image_look_the_same() -> None:
    plain = open_image(shipped("MR_small.dcm").read_bytes()).frame(0)
    for name in ("MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"):
        np.testing.assert_array_equal(open_image(shipped(name).read_bytes()).frame(0), plain)


def test_frames_can_be_decoded_in_threads() -> None:
    paths = [path for path in with_pixels() if path.name not in UNREADABLE][:40]
    alone = [open_image(path.read_bytes(), name_hint="x.dcm").frame(0) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda path: open_image(path.read_bytes(), name_hint="x.dcm").frame(0), paths * 3))
    for number, frame in enumerate(together):
        np.testing.assert_array_equal(frame, alone[number % len(paths)])


# -- hostile objects -------------------------------------------------------------------------------------------------


def changed(**elements: Any) -> bytes:
    """A sound object of 48 x 40 with some elements replaced (None deletes them)."""
    data = dicom(ramp(0, 4000, "uint16"), stored=12)
    for keyword, value in elements.items():
        if value is None:
            del data[keyword]
        else:
            setattr(data, keyword, value)
    return written(data)


def one(syntax: str, frame: bytes, **elements: Any) -> bytes:
    data = dicom(ramp(0, 4000, "uint16"), syntax=syntax, stored=12)
    data.PixelData = encapsulate([frame])
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return written(data)


def deflated(body: bytes) -> bytes:
    head = changed()
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    meta = pydicom.filebase.DicomBytesIO()
    file_meta = pydicom.dcmread(io.BytesIO(head)).file_meta
    file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    pydicom.filewriter.write_file_meta_info(meta, file_meta)
    return head[:132] + meta.getvalue() + compressor.compress(body) + compressor.flush()


def nested(depth: int) -> bytes:
    """Sequences in sequences, of undefined length."""
    opening = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    sound = changed()
    at = sound.index(b"\x28\x00\x02\x00US")
    return sound[:at] + opening * depth + closing * depth + sound[at:]


def without_pixels_but_nested() -> bytes:
    data = dicom(ramp(0, 4000, "uint16"), stored=12)
    nested_in(data, "IconImageSequence")
    del data.PixelData
    return written(data)


SOUND = written(dicom(ramp(0, 4000, "uint16"), stored=12))
BOMB_HEAD = b"\x08\x00\x05\x00OB\0\0" + struct.pack("<I", 1 << 26)
ROWS = b"\x28\x00\x10\x00US\x02\x00"
BIG_JPEG = b"\xff\xd8\xff\xc0\x00\x0b\x08\xff\xff\xff\xff\x01\x01\x11\x00\xff\xd9"
HOSTILE: dict[str, Callable[[], bytes]] = {
    "preamble only": lambda: SOUND[:132],
    "random": lambda: SOUND[:132] + np.random.default_rng(0).bytes(5000),
    "random text": lambda: b"hello " * 100,
    "truncated in the header": lambda: SOUND[:300],
    "truncated in the pixels": lambda: SOUND[:-1000],
    "rows 0": lambda: changed(Rows=0),
    "columns 0": lambda: changed(Columns=0),
    "no rows": lambda: changed(Rows=None),
    "bits stored 0": lambda: changed(BitsStored=0),
    "bits stored above allocated": lambda: changed(BitsStored=17),
    "bits allocated 7": lambda: changed(BitsAllocated=7),
    "samples 0": lambda: changed(SamplesPerPixel=0),
    "samples 3 in grey": lambda: changed(SamplesPerPixel=3),
    "rgb with one sample": lambda: changed(PhotometricInterpretation="RGB"),
    "ybr with one sample": lambda: changed(PhotometricInterpretation="YBR_FULL"),
    "unknown photometric": lambda: changed(PhotometricInterpretation="HSV"),
    "no photometric": lambda: changed(PhotometricInterpretation=None),
    "palette without a table": lambda: changed(PhotometricInterpretation="PALETTE COLOR"),
    "no pixels": lambda: changed(PixelData=None),
    "huge in RLE": lambda: one(uid.RLELossless, bytes(64), Rows=65535, Columns=65535),
    "rle of nothing": lambda: one(uid.RLELossless, bytes(2)),
    "1e5 frames": lambda: changed(NumberOfFrames=100000),
    "4000 frames": lambda: changed(NumberOfFrames=4000),
    "deflate bomb": lambda: deflated(BOMB_HEAD + bytes(1 << 26)),
    "deflate of nothing": lambda: deflated(b""),
    "deflate cut off": lambda: deflated(SOUND[300:])[:-9],
    "nested 5000": lambda: nested(5000),
    "length 0xFFFFFFF0": lambda: SOUND[: SOUND.index(b"\xe0\x7f\x10\x00OW") + 8] + b"\xf0\xff\xff\xff" + bytes(100),
    "private transfer syntax": lambda: changed().replace(b"1.2.840.10008.1.2.1\0", b"1.2.999.10008.1.2.1\0"),
    "transfer syntax that does not fit": lambda: changed().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"),
    "jpeg of another size": lambda: one(uid.JPEGBaseline8Bit, jpeg("YCbCr", marked=True)),
    "jpeg of 65535 x 65535": lambda: one(uid.JPEGBaseline8Bit, BIG_JPEG),
    "jpeg of nothing": lambda: one(uid.JPEGBaseline8Bit, b"\xff\xd8\xff\xd9"),
    "jpeg 2000 of nothing": lambda: one(uid.JPEG2000, b"\xff\x4f\xff\x51" + bytes(60)),
    "jpeg-ls cut off": lambda: one(uid.JPEGLSLossless, imagecodecs.jpegls_encode(ramp(0, 4000, "uint16"))[:60]),
    "no codestream": lambda: one(uid.JPEGBaseline8Bit, bytes(2)),
    "empty": lambda: b"",
    "pixels in a sequence alone": lambda: without_pixels_but_nested(),
    "two kinds of pixels": lambda: changed(FloatPixelData=np.zeros((48, 40), "float32").tobytes()),
    "pixels of no bytes": lambda: changed(PixelData=b""),
    "highest bit outside": lambda: changed(HighBit=16),
    "sequence that never ends": lambda: SOUND[:300] + b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + bytes(8),
    "mpeg": lambda: one(uid.MPEG2MPML, b"\0" * 100),
}


def decode_some(data: bytes, decoders: DecoderPool | None = None) -> None:
    limits = Limits(max_inflated_bytes=1 << 24)
    image = decoders.open(data, "x.dcm") if decoders else open_image(data, limits, "x.dcm")
    for number in range(min(image.frames, 3)):
        image.frame(number)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_objects_are_refused_quickly_and_in_little_memory(name: str) -> None:
    data = HOSTILE[name]()
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ImageError) as caught:
            decode_some(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert peak < 100 << 20
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty", Reason.EMPTY_FILE),
        ("pixels in a sequence alone", Reason.NO_PIXELS),
        ("huge in RLE", Reason.TOO_LARGE),
        ("1e5 frames", Reason.TOO_LARGE),
        ("deflate bomb", Reason.TOO_LARGE),
        ("private transfer syntax", Reason.UNSUPPORTED),
        ("mpeg", Reason.UNSUPPORTED),
        ("unknown photometric", Reason.UNSUPPORTED),
        ("no pixels", Reason.NO_PIXELS),
        ("random text", Reason.NOT_AN_IMAGE),
        ("truncated in the pixels", Reason.DAMAGED),
        ("jpeg of 65535 x 65535", Reason.DAMAGED),
    ],
)
def test_what_hostile_objects_are_refused_for(name: str, reason: Reason) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(HOSTILE[name](), Limits(max_inflated_bytes=1 << 24), "x.dcm").frame(0)
    assert caught.value.reason is reason


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecoderPool]:
    with DecoderPool(Limits(max_inflated_bytes=1 << 24)) as made:
        yield made


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="isolation needs Linux")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_objects_are_refused_alike_in_a_process_of_their_own(name: str, decoders: DecoderPool) -> None:
    data = HOSTILE[name]()
    with pytest.raises(ImageError) as here:
        decode_some(data)
    with pytest.raises(ImageError) as there:
        decode_some(data, decoders)
    assert there.value.reason is here.value.reason


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"MZ" + SOUND[2:],
        lambda: changed(PatientID="a\nb", SOPInstanceUID="../../etc"),
        lambda: changed(SpecificCharacterSet="NOT A SET", PatientName="x"),
        lambda: SOUND[132:],
    ],
    ids=["executable preamble", "hostile identifiers", "unknown character set", "no preamble"],
)
def test_odd_objects_with_sound_pixels_decode(make: Callable[[], bytes]) -> None:
    assert not is_blank(open_image(make(), name_hint="x.DCM").frame(0))


def test_deflated_objects_within_the_bound_decode() -> None:
    plain = open_image(SOUND)
    start = SOUND.index(b"\x08\x00\x16\x00UI")
    np.testing.assert_array_equal(open_image(deflated(SOUND[start:])).frame(0), plain.frame(0))


def test_a_bad_frame_leaves_the_others_alone() -> None:
    good = imagecodecs.jpegls_encode(ramp(0, 4000, "uint16"))
    data = dicom(np.stack([ramp(0, 4000, "uint16")] * 3), syntax=uid.JPEGLSLossless, frames=3, stored=12)
    data.PixelData = encapsulate([good, good[:80], good])
    image = opened(data)
    with pytest.raises(ImageError):
        image.frame(1)
    np.testing.assert_array_equal(image.frame(0), image.frame(2))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["plain", "jpegls", "jpeg2k", "jpeg"]), st.data())
def test_flipped_bytes_raise_nothing_else(kind: str, data: st.DataObject) -> None:
    name = {"plain": "CT_small.dcm", "jpegls": "MR_small_jpeg_ls_lossless.dcm", "jpeg2k": "MR_small_jp2klossless.dcm"}
    source = bytearray(shipped(name.get(kind, "SC_rgb_small_odd_jpeg.dcm")).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        source[data.draw(st.integers(0, len(source) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = open_image(bytes(source), Limits(max_pixels=1 << 22, max_frames=16), "x.dcm")
        image.frame(0)
    except ImageError:
        pass
