"""Fill values that no header declares do not hide an image from the rendering that goes by its values."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lcmem_onnx.runtime.images.bit_depth import PERCENTILES, percentile_range
from lcmem_onnx.runtime.images.image import open_image
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

SIZE = 96


def scene(top: float) -> NDArray[np.float64]:
    """A smooth image of many tones, from 0 to `top`."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    tones = np.sin(9 * x) * np.cos(7 * y) + x
    return (tones - tones.min()) / np.ptp(tones) * top


def with_margins(image: NDArray[np.float64], fill: float, dtype: str) -> NDArray[np.generic]:
    filled = image.copy()
    filled[:12] = filled[:, :12] = fill
    return filled.astype(dtype)


def tiff(values: NDArray[np.generic]) -> bytes:
    file = BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    return file.getvalue()


def dicom(values: NDArray[np.generic]) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = values.dtype.itemsize * 8
    if values.dtype.kind == "f":
        dataset.FloatPixelData = values.tobytes()
    else:
        dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
        dataset.PixelRepresentation = int(values.dtype.kind == "i")
        dataset.add_new("PixelData", "OW", values.tobytes())
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("write", "dtype", "top", "fill"),
    [
        *((tiff, "float32", 1.0, fill) for fill in (-3.4028235e38, -1e30, -9999.0, 3.4e38)),
        (tiff, "int32", 255.0, -(2**31)),
        (tiff, "uint16", 255.0, 65535),
        *((dicom, "float32", 255.0, fill) for fill in (-3.4028235e38, 1e30, -9999.0)),
        (dicom, "int16", 255.0, -32768),
        (dicom, "int16", 255.0, -2000),
        (dicom, "uint16", 4095.0, 65535),
    ],
)
def test_an_image_with_filled_margins_shows_what_it_shows_without_them(write, dtype: str, top: float, fill: float) -> None:  # type: ignore[no-untyped-def]
    plain = open_image(write(scene(top).astype(dtype)), name_hint="a.dcm").renderings(0)[-1]
    filled = open_image(write(with_margins(scene(top), fill, dtype)), name_hint="a.dcm").renderings(0)[-1]
    inside = (slice(12, None), slice(12, None))
    assert np.abs(filled[inside].astype(int) - plain[inside]).max() <= 8  # the margins hid some of the darkest tones
    assert set(np.unique(filled[:12])) == {0 if fill < 0 else 255}


@pytest.mark.parametrize("tones", [(0, 255), (0, 254, 255), (0, 60000, 60001, 65535)])
def test_a_drawing_in_a_few_tones_keeps_its_background(tones: tuple[int, ...]) -> None:
    values, counts = np.array(tones), np.full(len(tones), 500)
    assert percentile_range(values, counts) == (tones[0], tones[-1])


@given(arrays(np.int64, st.integers(1, 400), elements=st.integers(-40, 40)))
def test_without_fill_values_it_gives_numpys_percentiles(values: NDArray[np.int64]) -> None:
    expected = np.percentile(values, PERCENTILES, method="inverted_cdf")
    assert percentile_range(*np.unique(values, return_counts=True)) == tuple(expected)


@given(
    arrays(np.float64, st.integers(200, 600), elements=st.floats(0, 1), unique=True),
    st.sampled_from([-1.7e308, -1e30, -9999.0, 9999.0, 1.7e308]),
    st.integers(20, 400),
)
def test_a_frequent_far_value_does_not_count(values: NDArray[np.float64], fill: float, times: int) -> None:
    filled = np.concatenate([values, np.full(times, fill)])
    expected = np.percentile(values, PERCENTILES, method="inverted_cdf")
    assert percentile_range(*np.unique(filled, return_counts=True)) == tuple(expected)
