"""Grey stored values to 8 bits: what a viewer shows, and what is there.

The order (PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.4 N.2): padding masked on stored values, modality LUT or rescale, then VOI LUT or
window, MONOCHROME1 inverted once, padding to black. pydicom reads the two LUTs from the top level only; an enhanced multi-frame
object has them in its functional groups, so these are merged first.

A frame has two renderings. The first is the declared window's. An anonymised copy has often lost that window, or was given
another, and then looks like another picture. So there is a second, which depends on the values alone: from their 0.5th to their
99.5th percentile. A picture and its copy both have it, whatever became of the window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_modality_lut, apply_voi

from .codestream import Expected
from .depth import PERCENTILES, nominal_depth
from .errors import PictureError, Reason
from .preprocess import BLANK_LEVELS

__all__ = ["first_number", "largest_entry", "merged_groups", "padding_mask", "render_grey"]

Floats = NDArray[np.float64]
_AT_ONCE = 1 << 20


def merged_groups(dataset: Dataset, number: int) -> Dataset:
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


def render_grey(values: NDArray[Any], tags: Dataset, expected: Expected) -> tuple[NDArray[np.uint8], ...]:
    """Stored grey values to 8 bits.

    Args:
        values: stored values, (rows, columns): whole numbers or floats.
        tags: the grey pipeline's elements as they hold for this frame, see `merged_groups`.
        expected: the header's figures.

    Returns:
        Two renderings, uint8 (rows, columns): by the declared VOI LUT or window, and by `PERCENTILES` of the values that are no
        padding. One, all black, where all is padding: a blank picture, which the caller refuses.

    Raises:
        PictureError: not-finite.
        Exception: whatever pydicom raises on a damaged table.
    """
    padding = padding_mask(values, tags)
    seen = values[~padding] if padding is not None else values
    if values.dtype.kind == "f" and not np.isfinite(seen).all():
        raise PictureError(Reason.NOT_FINITE, "its pixels are not all finite numbers")
    if not seen.size:
        return (np.zeros(values.shape, np.uint8),)
    modality = _modality(tags)
    declared = _voi(tags, expected.signed)
    inverted = expected.photometric == "MONOCHROME1"
    if padding is not None and _shows(values, _Scale(values, modality, inverted), declared, padding):
        padding, seen = None, values
    scale = _Scale(seen, modality, inverted)
    contrast = _between(*scale.ends())
    if declared is None and values.dtype.kind != "f" and expected.bits_stored <= 8 and not expected.signed:
        ends = modality(np.array([0, 2**expected.bits_stored - 1]))
        contrast = _between(float(ends.min()), float(ends.max()))
    first = scale.rendered(values, declared or contrast)
    if declared and scale.low < scale.high and _spread(first if padding is None else first[~padding]) <= BLANK_LEVELS:
        # A window that hides a picture that is there, by mistake or on purpose: any viewer brings it back.
        first = scale.rendered(values, contrast)
    low, high = scale.percentiles()
    second = scale.rendered(values, _between(low, high) if low < high else _between(*scale.ends()))
    if padding is not None:
        first[padding] = second[padding] = 0
    return first, second


class _Scale:
    """The values of a frame that count, and what the modality makes of them.

    Every step of the pipeline depends on the value alone, so for whole numbers a table of those that occur is exact, fast and
    small.
    """

    def __init__(self, seen: NDArray[Any], modality: Callable[[NDArray[Any]], Floats], inverted: bool) -> None:
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
        """Modality values at `PERCENTILES`: each one that occurs, by numpy's method `inverted_cdf`."""
        if self._table is None:
            low, high = np.percentile(self._modality(self._seen), PERCENTILES, method="inverted_cdf")
            return float(low), float(high)
        values = self._modality(self._table)
        order = np.argsort(values, kind="stable")
        upto = np.cumsum(self._counts[order])
        low, high = (values[order[np.searchsorted(upto, share / 100 * upto[-1])]] for share in PERCENTILES)
        return float(low), float(high)

    def rendered(self, values: NDArray[Any], look: Callable[[Floats], Floats]) -> NDArray[np.uint8]:
        """These values, or more of them, which are cut off at the ends of those that count, as `look` shows them."""
        if self._table is None:
            return self._shown(values, look)
        levels = self._shown(self._table, look)
        shown = np.empty(values.size, np.uint8)
        for part, target in zip(_parts(values.reshape(-1)), _parts(shown), strict=True):
            target[:] = levels[np.clip(part, self.low, self.high).astype(np.int64) - int(self.low)]
        return shown.reshape(values.shape)

    def _shown(self, stored: NDArray[Any], look: Callable[[Floats], Floats]) -> NDArray[np.uint8]:
        grey = look(self._modality(stored))
        return np.asarray(np.rint(255 * (1 - grey if self._inverted else grey)), np.uint8)


def _parts(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """A flat array in pieces: the indices into a table take 8 bytes a pixel."""
    for at in range(0, len(flat), _AT_ONCE):
        yield flat[at : at + _AT_ONCE]


def _shows(values: NDArray[Any], scale: _Scale, declared: Callable[[Floats], Floats] | None, padding: NDArray[np.bool_]) -> bool:
    """Whether what is declared to be padding would show something, were it not masked.

    Many viewers do not mask it. Padding is one value, or some that look the same; a range of it with a picture in it hides that
    picture from us alone.
    """
    if not padding.any():
        return False
    return _spread(scale.rendered(values, declared or _between(*scale.ends()))[padding]) > BLANK_LEVELS


def _is_table(tags: Dataset) -> bool:
    return bool(tags.get("ModalityLUTSequence"))


def _spread(levels: NDArray[np.uint8]) -> int:
    return int(levels.max()) - int(levels.min())


def padding_mask(values: NDArray[Any], tags: Dataset) -> NDArray[np.bool_] | None:
    """Where stored values are padding, both ends of the range included; None if nothing is declared."""
    value = first_number(tags.get("PixelPaddingValue"))
    if value is None:
        return None
    limit = first_number(tags.get("PixelPaddingRangeLimit"))
    low, high = sorted((value, value if limit is None else limit))
    return (values >= low) & (values <= high)


def _modality(tags: Dataset) -> Callable[[NDArray[Any]], Floats]:
    """Stored values to the modality's own, such as Hounsfield units.

    A slope that is empty, 0 or not finite would leave nothing to see; such an object is taken as not rescaled.
    """
    if _is_table(tags):
        return lambda stored: np.asarray(apply_modality_lut(stored, tags), np.float64)
    slope, intercept = first_number(tags.get("RescaleSlope")), first_number(tags.get("RescaleIntercept"))
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
        top = 2 ** nominal_depth(max(largest_entry(item.LUTData), 1)) - 1
        return lambda values: np.clip(apply_voi(np.rint(values).astype(np.int64), tags).astype(np.float64) / top, 0, 1)
    centre, width = first_number(tags.get("WindowCenter")), first_number(tags.get("WindowWidth"))
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


def first_number(value: Any) -> float | None:
    """The first number of a value; None if it is missing, empty, not a number or not finite."""
    if isinstance(value, (MultiValue, list, tuple)):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def largest_entry(table: Any) -> int:
    entries = np.frombuffer(table, "<u2") if isinstance(table, bytes) else np.asarray(table)
    return int(entries.max()) if entries.size else 0
