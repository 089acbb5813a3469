"""Grey stored values to 8 bits: what a viewer shows, and what is there.

The order (PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.4 N.2): padding masked on stored values, modality LUT or rescale, then VOI LUT or
window, MONOCHROME1 inverted once, padding to black. pydicom reads the two LUTs from the top level only; an enhanced multi-frame
object has them in its functional groups, so these are merged first.

One odd element does not hide an image: a table, window or rescale that cannot be used is left out, and the next one is taken.

A frame has two renderings. The first is the declared window's. An anonymised copy has often lost that window, or was given
another, and then looks like another image. So there is a second, which depends on the values alone: from their 0.5th to their
99.5th percentile. An image and its copy both have it, whatever became of the window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ...errors import ImageError, Reason
from ..bit_depth import percentile_range
from ..preprocess import BLANK_LEVELS
from .codecs import Expected
from .elements import first_number, items_of, numbers_of, value_of
from .lookup_table import LookupTable, read_table

__all__ = ["merged_groups", "padding_mask", "render_grey"]

Floats = NDArray[np.float64]
Look = Callable[[Floats], Floats]
_AT_ONCE = 1 << 20
_MOST_LOOKS = 16
"""VOI LUTs and windows that are tried, at most: a hostile object has thousands."""
_FUNCTIONAL_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_SEQUENCES = ("ModalityLUTSequence", "VOILUTSequence")
_PADDINGS = (
    ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
    ("PixelPaddingValue", "PixelPaddingRangeLimit"),
)
_NUMBERS = (
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    *(keyword for pair in _PADDINGS for keyword in pair),
)


def merged_groups(dataset: Dataset, number: int) -> Dataset:
    """The grey pipeline's elements as they hold for one frame: top level, then shared groups, then the frame's own."""
    merged = Dataset()
    sources = [dataset]
    for keyword, item in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", number)):
        for group in items_of(dataset, keyword, item, item + 1):
            sources += [inside for name in _FUNCTIONAL_GROUPS for inside in items_of(group, name, stop=1)]
    for source in sources:
        # What is empty or cannot be read hides none of the level above.
        found = [keyword for keyword in _NUMBERS if any(each is not None for each in numbers_of(value_of(source, keyword)))]
        found += [keyword for keyword in _SEQUENCES if items_of(source, keyword, stop=1)]
        found += ["VOILUTFunction"] if value_of(source, "VOILUTFunction") else []
        for keyword in found:
            merged.add(source[keyword])
    return merged


def render_grey(
    values: NDArray[Any], tags: Dataset, expected: Expected, apart: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.uint8], ...]:
    """Stored grey values to 8 bits.

    Args:
        values: stored values, (rows, columns): whole numbers or floats.
        tags: the grey pipeline's elements as they hold for this frame, see `merged_groups`.
        expected: the header's figures.
        apart: where values are not grey, (rows, columns): they become black and take no part in the contrast.

    Returns:
        Two renderings, uint8 (rows, columns): by the declared VOI LUT or window, and by `PERCENTILES` of the values that are no
        padding. One, all black, where all is padding: a blank image, which the caller refuses. Padding and values that are not
        finite are black.

    Raises:
        ImageError: not-finite, where no value is finite.
    """
    if values.dtype.kind == "f":
        values, apart = _finite(values, apart)
    padding = padding_mask(values, tags, expected)
    hidden = _either(apart, padding)
    seen = values[~hidden] if hidden is not None else values
    if not seen.size:
        return (np.zeros(values.shape, np.uint8),)
    modality = _modality(tags, expected, seen)
    inverted = expected.photometric == "MONOCHROME1"
    scale = _Scale(seen, modality, inverted)
    looks = list(islice(_looks(tags, modality, scale.ends()), _MOST_LOOKS))
    if padding is not None:
        greys = values if apart is None else values[~apart]
        masked = padding if apart is None else padding[~apart]
        unmasked = _Scale(greys, modality, inverted)
        if _shows(greys, unmasked, looks[:1], masked):
            hidden, scale = apart, unmasked
    contrast = _between(*scale.ends())
    if not looks and values.dtype.kind != "f" and expected.bits_stored <= 8 and not expected.signed:
        contrast = _between(*modality.range_of(0, 2**expected.bits_stored - 1))
    shown = (scale.rendered(values, look) for look in looks)
    first = next((each for each in shown if scale.low == scale.high or _spread(_outside(each, hidden)) > BLANK_LEVELS), None)
    if first is None:  # no window, or windows that hide an image that is there: any viewer brings it back
        first = scale.rendered(values, contrast)
    low, high = scale.percentiles()
    second = scale.rendered(values, _between(low, high) if low < high else _between(*scale.ends()))
    if hidden is not None:
        first[hidden] = second[hidden] = 0
    return first, second


def _finite(values: NDArray[Any], apart: NDArray[np.bool_] | None) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Set values that are not finite apart, and replace them by one that is.

    Raises:
        ImageError: there is none.
    """
    finite = np.isfinite(values)
    if finite.all():
        return values, apart
    if not finite.any():
        raise ImageError(Reason.NOT_FINITE, "all pixels are NaN or infinite")
    return np.where(finite, values, values[finite][0]), _either(apart, ~finite)


def _either(one: NDArray[np.bool_] | None, other: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    if one is None or other is None:
        return other if one is None else one
    return one | other


def _outside(levels: NDArray[np.uint8], hidden: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    return levels if hidden is None else levels[~hidden]


class _Scale:
    """The values of a frame that count, and what the modality makes of them.

    Every step of the pipeline depends on the value alone, so for whole numbers a table of those that occur is exact, fast and
    small.
    """

    def __init__(self, seen: NDArray[Any], modality: Modality, inverted: bool) -> None:
        self.low, self.high = seen.min(), seen.max()
        self._seen = seen
        self._modality = modality
        self._inverted = inverted
        self._table: NDArray[np.int64] | None = None
        if seen.dtype.kind != "f" and int(self.high) - int(self.low) <= 0xFFFF:
            self._table = np.arange(int(self.low), int(self.high) + 1, dtype=np.int64)
            self._counts = np.zeros(len(self._table), np.int64)
            for part in _parts(seen.reshape(-1)):
                self._counts += np.bincount(part.astype(np.int64) - int(self.low), minlength=len(self._table))

    def ends(self) -> tuple[float, float]:
        """The smallest and the largest modality value. A table need not rise, nor does a negative slope."""
        values = self._modality(np.array([self.low, self.high]) if self._table is None else self._table[self._counts > 0])
        return float(values.min()), float(values.max())

    def percentiles(self) -> tuple[float, float]:
        """Modality values at `PERCENTILES`, fill values apart (see `percentile_range`)."""
        if self._table is None:
            return percentile_range(*np.unique(self._modality(self._seen), return_counts=True))
        values = self._modality(self._table)
        order = np.argsort(values, kind="stable")
        order = order[self._counts[order] > 0]
        return percentile_range(values[order], self._counts[order])

    def rendered(self, values: NDArray[Any], look: Look) -> NDArray[np.uint8]:
        """These values, or more of them, which are cut off at the ends of those that count, as `look` shows them."""
        if self._table is None:
            return self._shown(values, look)
        levels = self._shown(self._table, look)
        shown = np.empty(values.size, np.uint8)
        for part, target in zip(_parts(values.reshape(-1)), _parts(shown), strict=True):
            target[:] = levels[np.clip(part, self.low, self.high).astype(np.int64) - int(self.low)]
        return shown.reshape(values.shape)

    def _shown(self, stored: NDArray[Any], look: Look) -> NDArray[np.uint8]:
        grey = look(self._modality(stored))
        return np.asarray(np.rint(255 * (1 - grey if self._inverted else grey)), np.uint8)


def _parts(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """A flat array in pieces: the indices into a table take 8 bytes a pixel."""
    for start in range(0, len(flat), _AT_ONCE):
        yield flat[start : start + _AT_ONCE]


def _shows(values: NDArray[Any], scale: _Scale, looks: list[Look], padding: NDArray[np.bool_]) -> bool:
    """Whether what is declared to be padding would show something, were it not masked.

    Many viewers do not mask it. Padding is one value, or some that look the same; a range of it with an image in it hides that
    image from us alone.
    """
    if not padding.any():
        return False
    return _spread(scale.rendered(values, looks[0] if looks else _between(*scale.ends()))[padding]) > BLANK_LEVELS


def _spread(levels: NDArray[np.uint8]) -> int:
    return int(levels.max()) - int(levels.min())


def padding_mask(values: NDArray[Any], tags: Dataset, expected: Expected | None = None) -> NDArray[np.bool_] | None:
    """Where stored values are padding, both ends of the range included; None if nothing is declared.

    Args:
        values: stored values.
        tags: with the padding's elements.
        expected: the header's figures. With them, a 16-bit value that was written with the wrong sign is read with the right one.
    """
    for keywords in _PADDINGS if values.dtype.kind == "f" else _PADDINGS[-1:]:
        value, limit = (first_number(value_of(tags, keyword)) for keyword in keywords)
        if value is None:
            continue
        ends = [value, value if limit is None else limit]
        if values.dtype.kind == "f":
            ends = [float(values.dtype.type(end)) for end in ends]
        elif expected is not None and expected.bits_stored <= 16:
            ends = [_with_sign(end, expected.signed) for end in ends]
        return (values >= min(ends)) & (values <= max(ends))
    return None


def _with_sign(word: float, signed: bool) -> float:
    """A 16-bit number, which may have been written with the wrong VR of US and SS."""
    if signed:
        return word - 0x10000 if word > 0x7FFF else word
    return word + 0x10000 if word < 0 else word


class Modality:
    """Stored values to the modality's own, such as Hounsfield units: by a table, or by slope and intercept.

    Attributes:
        signed: whether its values can be negative. The VOI LUT's first value mapped is then a signed number.
    """

    def __init__(self, signed: bool) -> None:
        self.signed = signed

    def __call__(self, stored: NDArray[Any]) -> Floats:
        return stored.astype(np.float64)

    def range_of(self, low: float, high: float) -> tuple[float, float]:
        """The smallest and the largest value that it can give for stored values from `low` to `high`."""
        ends = self(np.array([low, high]))
        return float(ends.min()), float(ends.max())


class _Rescale(Modality):
    def __init__(self, slope: float, intercept: float, stored: tuple[float, float]) -> None:
        self._slope, self._intercept = slope, intercept
        super().__init__(self.range_of(*stored)[0] < 0)

    def __call__(self, stored: NDArray[Any]) -> Floats:
        return stored.astype(np.float64) * self._slope + self._intercept


class _Table(Modality):
    def __init__(self, table: LookupTable, start: int) -> None:
        super().__init__(signed=False)
        self._table, self._start = table, start

    def __call__(self, stored: NDArray[Any]) -> Floats:
        return self._table.look_up(stored, self._start).astype(np.float64)

    def range_of(self, low: float, high: float) -> tuple[float, float]:
        return 0.0, float(2**self._table.bits - 1)


def _modality(tags: Dataset, expected: Expected, seen: NDArray[Any]) -> Modality:
    """The modality LUT, else the rescale, else the stored values as they are.

    A table that shows nothing of what is there is left out, and so is a slope that is empty, 0 or not finite: it would leave
    nothing to see.
    """
    low, high = seen.min(), seen.max()
    for item in items_of(tags, "ModalityLUTSequence", stop=_MOST_LOOKS):
        if (table := read_table(item)) and table.shows:
            by_table = _Table(table, table.start(expected.signed, float(low), float(high)))
            ends = _Scale(seen, by_table, inverted=False).ends()
            if low == high or ends[0] < ends[1]:
                return by_table
    slope, intercept = (first_number(value_of(tags, keyword)) for keyword in ("RescaleSlope", "RescaleIntercept"))
    if not slope:
        return Modality(signed=expected.signed or low < 0)
    stored = (float(low), float(high))
    if seen.dtype.kind != "f":
        most = 2**expected.bits_stored
        stored = (-most / 2, most / 2 - 1) if expected.signed else (0.0, most - 1.0)
    return _Rescale(slope, intercept or 0.0, stored)


def _looks(tags: Dataset, modality: Modality, ends: tuple[float, float]) -> Iterator[Look]:
    """Each way from modality values to [0, 1] that is declared and can be used: the VOI LUTs, then the windows.

    Without any, 8-bit objects are shown over the range of their type and deeper ones from their smallest to their largest value
    that is no padding: in 16 bits an image fills a small part of its type's range, and would be all but black.

    Args:
        tags: with the VOI LUTs and windows.
        modality: what the values come from.
        ends: the smallest and the largest modality value.
    """
    for item in items_of(tags, "VOILUTSequence", stop=_MOST_LOOKS):
        if (table := read_table(item)) and table.shows:
            yield _by_table(table, table.start(modality.signed, *ends))
    function = str(value_of(tags, "VOILUTFunction") or "LINEAR").strip().upper()
    for centre, width in zip(numbers_of(value_of(tags, "WindowCenter")), numbers_of(value_of(tags, "WindowWidth")), strict=False):
        if centre is not None and width is not None and (look := _by_window(centre, width, function)):
            yield look


def _by_table(table: LookupTable, start: int) -> Look:
    top = 2**table.bits - 1
    return lambda values: np.clip(table.look_up(values, start).astype(np.float64) / top, 0, 1)


def _by_window(centre: float, width: float, function: str) -> Look | None:
    """A window; None if it is narrower than its function allows. A function of an unknown name is LINEAR, the default."""
    if width <= 0:
        return None
    if function == "SIGMOID":
        return lambda values: 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500)))
    if function == "LINEAR_EXACT":
        return _between(centre - width / 2, centre + width / 2)
    return None if width < 1 else _between(centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _between(low: float, high: float) -> Look:
    """A ramp from 0 at `low` to 1 at `high`; a step above `low` where the two are equal."""
    if not high > low:
        return lambda values: (values > low).astype(np.float64)
    if not np.isfinite(high - low):  # halves, exactly, where the whole is beyond what a float holds
        return lambda values: np.clip((values / 2 - low / 2) / (high / 2 - low / 2), 0, 1)
    return lambda values: np.clip((values - low) / (high - low), 0, 1)
