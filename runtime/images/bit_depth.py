"""Deep pixels to 8 bits.

Radiograph sets keep 10, 12 or 14-bit values in 16-bit files without saying so (PadChest's PNGs do); divided by 257 they
would be all but black. So values are scaled by their nominal depth: the smallest of 8, 10, 12, 14 and 16 bits that
holds the largest of them. It depends on one value only, and not on the image's own contrast as stretching from
minimum to maximum would.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PERCENTILES", "nominal_depth", "percentile_range", "stretched", "to_8_bit"]

PERCENTILES = (0.5, 99.5)
"""Black and white of the rendering that goes by an image's values alone. Not 0 and 100: a few hot pixels would decide."""

_DEPTHS = (8, 10, 12, 14, 16)
_FILL_GAP = 4
"""A fill value lies further from the other values than this many times what they span."""
_FEWEST_LEVELS = 32
"""Different values that remain beside a fill value. A drawing in a few tones has none: its background belongs to it."""


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


def percentile_range(values: NDArray[Any], counts: NDArray[np.int64]) -> tuple[float, float]:
    """Return the values at `PERCENTILES`, each one that occurs (numpy's method `inverted_cdf`), without fill values.

    Margins and gaps are often filled with a value that no header declares: -9999, 65535, the smallest number of the type. Where it
    is frequent, the percentiles would go by it, and the image itself would become one tone. So an extreme value that is frequent
    and far from all others does not count.

    Args:
        values: each value that occurs, ascending.
        counts: how often each of them occurs.
    """
    exact = np.asarray(values, np.float64)
    first, last = 0, len(exact)
    while last - first > _FEWEST_LEVELS:
        low, high = _at_percentiles(counts[first:last])
        quarter = exact[first:last] / 4  # the difference of two large doubles is beyond their range
        if low == 0 and quarter[1] - quarter[0] > _FILL_GAP * (quarter[-1] - quarter[1]):
            first += 1
        elif high == last - first - 1 and quarter[-1] - quarter[-2] > _FILL_GAP * (quarter[-2] - quarter[0]):
            last -= 1
        else:
            break
    low, high = _at_percentiles(counts[first:last])
    return float(exact[first + low]), float(exact[first + high])


def _at_percentiles(counts: NDArray[np.int64]) -> tuple[int, int]:
    """Positions of the values at `PERCENTILES`."""
    upto = np.cumsum(counts)
    low, high = (int(np.searchsorted(upto, share / 100 * upto[-1])) for share in PERCENTILES)
    return low, high
