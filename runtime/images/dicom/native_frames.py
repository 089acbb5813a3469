"""Native (uncompressed) and RLE frames of a DICOM object to stored values."""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder

from ...errors import ImageError, Reason
from .codecs import Expected

__all__ = ["decode_native", "frame_bits", "unpack_rle_bits"]

_RLE_HEADER = 64
"""Bytes: the number of segments and where each begins, 32 bits each."""


def frame_bits(expected: Expected) -> int:
    """Return the size of a native frame in bits."""
    bits = expected.rows * expected.columns * expected.samples * expected.bits_allocated
    return bits * 2 // 3 if expected.photometric == "YBR_FULL_422" else bits


def decode_native(dataset: Dataset, syntax: str, number: int, expected: Expected) -> NDArray[Any]:
    """Decode one frame of native or RLE pixels.

    Args:
        dataset: with the pixels.
        syntax: UID of a native transfer syntax, or of RLE Lossless (of 8 bits allocated or more).
        number: of the frame, from 0.
        expected: the header's figures.

    Returns:
        Stored values, (rows, columns), or RGB, (rows, columns, 3).

    Raises:
        ImageError: the frame is cut off.
        Exception: whatever pydicom raises on a damaged frame.
    """
    if expected.bits_allocated == 1:
        return _decode_bits(dataset, syntax, number, expected)
    above = max(expected.high_bit + 1 - expected.bits_stored, 0)
    decoder = get_decoder(uid.UID(syntax))
    two_orders = syntax == uid.ExplicitVRBigEndian and expected.bits_allocated == 32 and "PixelData" in dataset
    if not above and not two_orders:
        return decoder.as_array(dataset, index=number)[0]
    # As ACR-NEMA allowed: unused bits below the stored ones, which pydicom takes to be the lowest.
    options: Any = {"correct_unused_bits": False}
    words = decoder.as_array(dataset, index=number, **options)[0]
    if two_orders:
        words = _in_order(words)
    values = words.astype(np.int64) >> above
    sign = 1 << (expected.bits_stored - 1)
    low = values & ((sign << 1) - 1)
    return (low ^ sign) - sign if expected.signed else low


def _in_order(words: NDArray[Any]) -> NDArray[Any]:
    """Put the halves of 32-bit big-endian values in order.

    PS3.5 cuts a value into 16-bit words, the low one first, and swaps the bytes within each; DCMTK writes them so. Others, pydicom
    among them, swap all four bytes. The header does not tell which, but by the wrong order an image is noise. Values below 65536
    look alike either way, so of two equally smooth ones the smaller values are taken.
    """
    unsigned = words.view("u4")
    swapped = ((unsigned << 16) | (unsigned >> 16)).view(words.dtype)
    return min(words, swapped, key=_roughness)


def _roughness(values: NDArray[Any]) -> tuple[float, float]:
    """The mean step between neighbors as a share of the range, and the largest magnitude."""
    wide = values.astype(np.float64)
    span = wide.max() - wide.min()
    steps = np.abs(np.diff(wide, axis=1))
    return (float(steps.mean() / span) if span and steps.size else 0.0, float(np.abs(wide).max()))


def _decode_bits(dataset: Dataset, syntax: str, number: int, expected: Expected) -> NDArray[np.uint8]:
    """Decode a frame of 1 bit a pixel: frames follow each other without a gap, so one may begin within a byte."""
    size = expected.rows * expected.columns
    start = number * size
    pixels = dataset["PixelData"]
    first, last = start // 16 * 2, -(-(start + size) // 16) * 2  # whole words
    octets = np.frombuffer(pixels.value[first:last], np.uint8)
    if syntax == uid.ExplicitVRBigEndian and pixels.VR == "OW":
        octets = octets[: len(octets) // 2 * 2].view("<u2").byteswap().view(np.uint8)
    bits = np.unpackbits(octets, bitorder="little")[start - 8 * first :][:size]
    if len(bits) < size:
        raise ImageError(Reason.DAMAGED, f"its pixel data are truncated in frame {number + 1}")
    return bits.reshape(expected.rows, expected.columns)


def unpack_rle_bits(frame: bytes, expected: Expected) -> bytes:
    """Return the packed bits of an RLE frame of 1 bit a pixel, which pydicom does not read.

    Raises:
        ImageError: it has another number of segments than one, or is cut off.
    """
    segments, start = (int.from_bytes(frame[position : position + 4], "little") for position in (0, 4))
    size = -(-expected.rows * expected.columns // 8)
    if segments != 1 or start < _RLE_HEADER:
        raise ImageError(Reason.DAMAGED, f"its RLE frame has {segments} segments, expected 1 for 1 bit per pixel")
    unpacked = bytes(imagecodecs.packbits_decode(frame[start:], out=size))
    if len(unpacked) < size:
        raise ImageError(Reason.DAMAGED, "its RLE frame is truncated")
    return unpacked
