"""Deep pixels to 8 bits.

Radiograph sets keep 10, 12 or 14-bit values in 16-bit files without saying so (PadChest's PNGs do); divided by 257 they
would be all but black. So values are scaled by their nominal depth: the smallest of 8, 10, 12, 14 and 16 bits that
holds the largest of them. It depends on one value only, and not on the picture's own contrast as stretching from
minimum to maximum would.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PERCENTILES", "nominal_depth", "stretched", "to_8_bit"]

PERCENTILES = (0.5, 99.5)
"""Black and white of the rendering that goes by a picture's values alone. Not 0 and 100: a few hot pixels would decide."""

_DEPTHS = (8, 10, 12, 14, 16)


def nominal_depth(largest: int) -> int:
    """The smallest of 8, 10, 12, 14, 16 bits that holds `largest`; 16 for all above."""
    return next((bits for bits in _DEPTHS if largest < 2**bits), 16)


def to_8_bit(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Unsigned values of `bits` bits to uint8 of the same shape, rounded; what lies above the depth becomes 255."""
    if bits == 8 and values.dtype == np.uint8:
        return values
    if bits > 16:  # the lower bits do not show in 8, and a table of 2**32 entries would not fit
        values, bits = values >> (bits - 16), 16
    top = 2**bits - 1
    table = np.minimum(np.rint(np.arange(0x10000) * (255 / top)), 255).astype(np.uint8)
    levels: NDArray[np.uint8] = table[np.minimum(values, 0xFFFF)]
    return levels


def stretched(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Values to uint8 of the same shape, black at `low` and below, white at `high` and above; all black if the two are equal."""
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    exact = values.astype(np.float64)
    if not np.isfinite(high - low):  # the difference of two large doubles is beyond their range
        exact, low, high = exact / 4, low / 4, high / 4
    share = (exact - low) / (high - low)
    return np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)
