"""The threshold of one index: a score that a wanted share of strangers' images reaches, and no more.

Terms are those of ISO/IEC 19795-1. The false-positive identification rate (FPIR) is the share of searches for somebody with no
mate in the gallery that find something; the false-negative identification rate (FNIR) is the share of searches for somebody with
a mate in which that mate is not returned. Here a search is an image: one of several frames counts once, by its best frame. FPIR
grows with the gallery, so a threshold for pairs is none for a gallery, nor is one for this gallery for one ten times as large.

The threshold is the lowest that at most the wanted share of the negatives reaches. It is not moved up for safety: a missed match
is worse than an image too many to look at. How far it may be off is said by intervals that need no assumption on scores (see
`intervals`), how it ages by `growth`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GalleryError, UsageError
from ..gallery.gallery import Gallery
from ..gallery.storage.schema import CALIBRATION_SETTING
from ..model.bundle import Bundle, seal
from ..model.head import check_threshold
from ..model.strangers import DEFAULT_FPIR, check_rate
from ..results import ThresholdSource
from .fpir_growth import Growth
from .intervals import Interval, clopper_pearson, order_interval, supported_rate

__all__ = [
    "AlterationMisses",
    "Calibration",
    "Decision",
    "Doubles",
    "Forecast",
    "Misses",
    "calibrate",
    "check_rate",
    "decide_pair_threshold",
    "decide_size_threshold",
    "decide_threshold",
    "decide_uncalibrated",
    "forecasts",
    "forget_calibration",
    "misses",
    "store_calibration",
    "stored_calibration",
]

Doubles = NDArray[np.float64]
FORMAT_VERSION = 1
MARGIN = 1e-4
"""By how much, in logits, a threshold lies above the negative that it must not let through. The scores of a scan and of a
calibration are float32 sums taken in another order, which differ by a tenth of this."""
WELL_BEYOND = 1.5
"""Times the size it was calibrated for, from which a scan warns."""
LARGE = 1000
"""Vectors from which a gallery without a calibration gets a note: 0.1 % of the pairs may be every search there."""
SIZES = (1, 2, 5, 10)
"""Times the present size, for the forecasts."""


@dataclass(frozen=True)
class Misses:
    """Searches with a mate in the gallery, and in how many of them the mate stayed below the threshold."""

    mates: int
    missed: int
    fnir: float
    interval: Interval


@dataclass(frozen=True)
class AlterationMisses:
    """Altered copies of the gallery's own images, searched for in it: `alteration` is named as in `evaluate --grid all`."""

    alteration: str
    misses: Misses


@dataclass(frozen=True)
class Calibration:
    """A threshold with what is known of it.

    Attributes:
        threshold: the score, in (0, 1).
        threshold_interval: where the threshold of the wanted rate lies; 0 or 1 at an end that the negatives do not bound.
        wanted: the FPIR that was asked for.
        fpir: what was measured at the threshold, with its interval.
        negatives: images that it was measured with.
        witnesses: how many of those are independent: their patients where those are known, else all.
        supported: the smallest rate that so many can support (see `supported_rate`).
        growth: how the FPIR at this threshold depends on the gallery's size, which is counted in distinct vectors.
        misses: at this threshold; None where no pairs were given.
        fingerprint: of the bundle.
        date: ISO 8601, UTC.
        copies: of altered copies of the gallery's own images, at this threshold; empty where they were not measured.
    """

    threshold: float
    threshold_interval: Interval
    wanted: float
    fpir: float
    fpir_interval: Interval
    negatives: int
    witnesses: int
    supported: float
    growth: Growth
    misses: Misses | None
    fingerprint: str
    date: str
    copies: tuple[AlterationMisses, ...] = ()

    @property
    def enough(self) -> bool:
        """Whether the negatives can support the wanted rate at all."""
        return self.supported <= self.wanted

    @property
    def needed(self) -> int:
        """Independent negatives that the wanted rate needs to be supported: the rule of three."""
        return math.ceil(math.log(0.05) / math.log1p(-self.wanted))

    @property
    def needed_for_precision(self) -> int:
        """Negatives of which 30 reach the threshold: then the rate is known to about a third of itself (the rule of 30)."""
        return math.ceil(30 / self.wanted)

    def in_words(self) -> str:
        """For the foot of a table."""
        low, high = percent(self.fpir_interval.low), percent(self.fpir_interval.high)
        return (
            f"set for this index on {self.date[:10]}: {percent(self.fpir)} ({low} to {high}) of {self.negatives:,} images of "
            f"strangers reach it in a gallery of {self.growth.size:,}; target {percent(self.wanted)}"
        )

    def as_json(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, **asdict(self)}


@dataclass(frozen=True)
class Forecast:
    """What to expect in a gallery of another size.

    Attributes:
        size: in distinct vectors.
        fpir: expected at the calibrated threshold.
        at_most: what it should not exceed: the upper end of the measured interval, grown by the bound.
        threshold: what would keep the wanted rate; None where the negatives are too few to tell.
        misses: at that threshold; None where it is not known, or no pairs were given.
    """

    size: int
    fpir: float
    at_most: float
    threshold: float | None
    misses: Misses | None


@dataclass(frozen=True)
class Decision:
    """The threshold of a scan, its source in a code and in words, and what should be said of it.

    `fpir` is the rate that the user asked for, so that an index that takes the place of this one is decided on the same way.
    `expected` is the share of strangers' images that is flagged at most, about; None where the source does not say.
    """

    threshold: float
    source: ThresholdSource
    words: str
    warnings: tuple[str, ...] = ()
    fpir: float | None = None
    expected: float | None = None


def percent(share: float) -> str:
    """A share for people: 0.0123 is '1.23 %'."""
    return f"{100 * share:.3g} %"


def calibrate(tops: Doubles, size: int, rate: float, fingerprint: str, *, witnesses: int | None = None) -> Calibration:
    """Set the threshold for a wanted FPIR.

    Args:
        tops: of each negative the best scores in the gallery, best first, (negatives, kept). Of more than that many gallery
            vectors above a threshold only these are counted, which is enough down to a tenth of the gallery with 64 kept.
        size: distinct vectors in the gallery.
        rate: wanted, in (0, 1).
        fingerprint: the bundle's.
        witnesses: independent ones among the negatives; None where all are.

    Raises:
        UsageError: a rate out of range, no negatives, or negatives so like the gallery that no threshold in (0, 1) gives the rate.
    """
    check_rate(rate)
    if not len(tops) or not size:
        raise UsageError("a threshold requires at least one negative and a gallery that is not empty")
    many = len(tops)
    witnesses = min(witnesses or many, many)
    best = np.sort(tops[:, 0])[::-1]
    threshold = _threshold(best, math.floor(many * rate + 1e-9))
    if threshold >= 1.0:
        raise UsageError(
            f"more than {percent(rate)} of the negatives score 1 against the gallery, so no threshold separates them from "
            "copies: use negatives of patients who are not in the gallery"
        )
    counts = (tops >= threshold).sum(axis=1)
    flagged = int((counts > 0).sum())
    scale = witnesses / many
    above, below = order_interval(rate, witnesses)
    above, below = math.floor(above / scale), math.ceil(below / scale)
    return Calibration(
        threshold=threshold,
        threshold_interval=Interval(float(best[below - 1]) if below <= many else 0.0, float(best[above - 1]) if above else 1.0),
        wanted=rate,
        fpir=flagged / many,
        fpir_interval=clopper_pearson(flagged * scale, witnesses),
        negatives=many,
        witnesses=witnesses,
        supported=supported_rate(witnesses),
        growth=Growth.of(counts, size),
        misses=None,
        fingerprint=fingerprint,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _threshold(best: Doubles, allowed: int) -> float:
    """Just above the best of the negatives that may not reach it; `best` is sorted, highest first."""
    if allowed >= len(best):
        return float(np.nextafter(0.0, 1.0))
    score = float(best[allowed])
    if score >= 1.0 or score <= 0.0:
        return score or float(np.nextafter(0.0, 1.0))
    logit = math.log(score) - math.log1p(-score) + MARGIN
    return 1.0 / (1.0 + math.exp(-logit)) if logit > -700 else score


def misses(mated: Doubles, threshold: float) -> Misses:
    """FNIR at a threshold from the scores of mates, (searches,)."""
    missed = int((mated < threshold).sum())
    return Misses(len(mated), missed, missed / len(mated), clopper_pearson(missed, len(mated)))


def forecasts(calibration: Calibration, tops: Doubles, mated: Doubles | None = None) -> list[Forecast]:
    """What to expect at this size and at larger ones.

    Args:
        calibration: from `calibrate` with the same `tops`.
        mated: scores of mates, (searches,).
    """
    size, growth = calibration.growth.size, calibration.growth
    best = np.sort(tops[:, 0])[::-1]
    found = []
    for times in SIZES:
        larger = size * times
        threshold: float | None = calibration.threshold
        if times > 1:
            # By the bound and not by what is expected: among so few negatives the highest say little of their kind.
            allowed = math.floor(len(best) * -math.expm1(math.log1p(-calibration.wanted) / times) + 1e-9)
            threshold = _threshold(best, allowed) if allowed else None
            threshold = None if threshold is not None and threshold >= 1.0 else threshold
        found.append(
            Forecast(
                larger,
                growth.expected(larger),
                growth.at_most(larger, calibration.fpir_interval.high),
                threshold,
                misses(mated, threshold) if mated is not None and threshold is not None else None,
            )
        )
    return found


# -- kept with the index -------------------------------------------------------------------------------------------


def store_calibration(gallery: Gallery, calibration: Calibration) -> None:
    """Keep a calibration with the index; scans use its threshold from then on.

    Raises:
        GalleryError: the index cannot be written.
    """
    gallery.set_setting(CALIBRATION_SETTING, json.dumps(seal(calibration.as_json())))


def forget_calibration(gallery: Gallery) -> None:
    """Take a calibration away: scans use the bundle's threshold again.

    Raises:
        GalleryError: the index cannot be written.
    """
    gallery.set_setting(CALIBRATION_SETTING, None)


def stored_calibration(gallery: Gallery) -> Calibration | None:
    """The calibration kept with an index, or None.

    Raises:
        GalleryError: it is damaged, of another format, or of another bundle. To go on with another threshold without a word could
            let a match pass.
    """
    text = gallery.setting(CALIBRATION_SETTING)
    if text is None:
        return None
    remedy = f"calibrate again, or give --threshold ('lcmem-onnx calibrate --index {gallery.folder} --forget' takes it away)"
    try:
        content = json.loads(text)
        if seal(content) != content:
            raise ValueError("checksum mismatch")
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise GalleryError(f"the calibration of {gallery.folder} has format {version}, expected {FORMAT_VERSION}: {remedy}")
        found = _parsed(content)
        check_threshold(found.threshold)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UsageError) as error:
        raise GalleryError(f"the calibration of {gallery.folder} is damaged ({error}): {remedy}") from error
    if found.fingerprint != gallery.bundle.fingerprint:
        raise GalleryError(f"the calibration of {gallery.folder} belongs to another model: {remedy}")
    return found


def _parsed(content: Mapping[str, Any]) -> Calibration:
    missed = content["misses"]
    copies = content.get("copies", ())  # older versions do not write it
    return Calibration(
        threshold=float(content["threshold"]),
        threshold_interval=Interval(**content["threshold_interval"]),
        wanted=float(content["wanted"]),
        fpir=float(content["fpir"]),
        fpir_interval=Interval(**content["fpir_interval"]),
        negatives=int(content["negatives"]),
        witnesses=int(content["witnesses"]),
        supported=float(content["supported"]),
        growth=Growth(**content["growth"]),
        misses=_parsed_misses(missed) if missed else None,
        fingerprint=str(content["fingerprint"]),
        date=str(content["date"]),
        copies=tuple(AlterationMisses(str(each["alteration"]), _parsed_misses(each["misses"])) for each in copies),
    )


def _parsed_misses(content: Mapping[str, Any]) -> Misses:
    return Misses(**{**content, "interval": Interval(**content["interval"])})


def decide_threshold(
    gallery: Gallery, given: float | None = None, fpir: float | None = None, galleries: Collection[str] | None = None
) -> Decision:
    """Choose the threshold to screen an index with.

    In this order: the given one; that of the index's calibration; that for a wanted FPIR at the index's size, by the bundle's
    strangers' tail; the bundle's, for pairs. Every way to screen asks here, so that a gateway and a scan of the same index decide
    alike.

    Args:
        gallery: the index.
        given: a score in (0, 1).
        fpir: wanted false-positive identification rate; None takes `DEFAULT_FPIR`.
        galleries: the groups of the index to be searched; None searches all.

    Raises:
        UsageError: the given threshold or rate is out of range, a rate is asked of a bundle without a tail, or there is no such
            group.
        GalleryError: the calibration of the index is damaged.
    """
    if fpir is not None:
        check_rate(fpir)
    if given is not None:
        return Decision(check_threshold(given), ThresholdSource.GIVEN, "given with --threshold", fpir=fpir)
    size = gallery.vectors()
    calibration = stored_calibration(gallery)
    if calibration is None:
        return decide_uncalibrated(gallery, fpir, galleries)
    warnings = []
    then, growth = calibration.growth.size, calibration.growth
    if fpir is not None:
        warnings.append(
            f"--fpir {percent(fpir)} is ignored: the index is calibrated for {percent(calibration.wanted)}. Calibrate again "
            "with --fpir, or remove the calibration with --forget"
        )
    if size > WELL_BEYOND * then:
        warnings.append(
            f"the index was calibrated with {then:,} vectors and now has {size:,}: expect {percent(growth.expected(size))} of "
            f"strangers' images to be flagged (at most {percent(growth.at_most(size, calibration.fpir_interval.high))}) instead of "
            f"{percent(calibration.wanted)}. Calibrate again"
        )
    elif size * WELL_BEYOND < then:
        warnings.append(
            f"the index was calibrated with {then:,} vectors and now has {size:,}: a lower threshold suffices. Calibrate again"
        )
    return Decision(calibration.threshold, ThresholdSource.INDEX, calibration.in_words(), tuple(warnings), fpir)


def decide_uncalibrated(gallery: Gallery, fpir: float | None = None, galleries: Collection[str] | None = None) -> Decision:
    """Choose the threshold of an index as if it had no calibration; arguments and errors as for `decide_threshold`."""
    size = gallery.vectors()
    if gallery.bundle.strangers is not None or fpir is not None:
        return decide_size_threshold(gallery.bundle, fpir, _searched(gallery, size, galleries))
    pairs = gallery.bundle.threshold
    note = f"it is a threshold for pairs, and this gallery holds {size:,}: 'lcmem-onnx calibrate' sets one for it"
    return Decision(pairs.value, ThresholdSource.BUNDLE, pairs.source, (note,) if size >= LARGE else ())


def decide_pair_threshold(bundle: Bundle, given: float | None = None, fpir: float | None = None) -> Decision:
    """Choose the threshold to compare two images with: the given one; that for a gallery of one; the bundle's, for pairs.

    Args:
        bundle: the model.
        given: a score in (0, 1).
        fpir: wanted false-positive identification rate in a gallery of one; None takes `DEFAULT_FPIR`.

    Raises:
        UsageError: the given threshold or rate is out of range, or a rate is asked of a bundle without a tail.
    """
    if fpir is not None:
        check_rate(fpir)
    if given is not None:
        return Decision(check_threshold(given), ThresholdSource.GIVEN, "given with --threshold", fpir=fpir)
    if bundle.strangers is not None or fpir is not None:
        return decide_size_threshold(bundle, fpir, 1)
    return Decision(bundle.threshold.value, ThresholdSource.BUNDLE, bundle.threshold.source)


def _searched(gallery: Gallery, vectors: int, galleries: Collection[str] | None) -> int:
    """About how many distinct vectors the groups hold that are searched, 1 or more."""
    frames = len(gallery)
    part = gallery.frames(galleries) / frames if galleries and frames else 1.0
    return max(1, round(part * vectors))


def decide_size_threshold(bundle: Bundle, fpir: float | None, size: int) -> Decision:
    """Choose the threshold for a gallery of `size` images by the bundle's strangers' tail; `fpir` None takes `DEFAULT_FPIR`.

    Raises:
        UsageError: the bundle has no tail, or the rate is out of range.
    """
    if bundle.strangers is None:
        raise UsageError(
            f"--fpir cannot set the threshold: {bundle.name} has no strangers' tail. Give --threshold, or calibrate the index "
            "with 'lcmem-onnx calibrate'"
        )
    found = bundle.strangers.threshold_for(DEFAULT_FPIR if fpir is None else fpir, size)
    tail = bundle.strangers.kinds[found.kind]
    beyond = f", extrapolated from {tail.pairs:,} pairs" if found.extrapolated else ""
    words = (
        f"at most about {percent(found.fpir)} of strangers' images flagged in a gallery of {size:,}, by the bundle's pairs of "
        f"different images (worst kind: {found.kind}{beyond})"
    )
    warning = (
        f"the bundle's strangers' tail ends at a pair rate of {tail.rates[-1]:g}: at most about {percent(found.fpir)} of "
        f"strangers' images are flagged in a gallery of {size:,} instead of {percent(found.wanted)}. "
        "Set a threshold with 'lcmem-onnx calibrate'"
    )
    return Decision(found.threshold, ThresholdSource.STRANGERS, words, (warning,) if found.beyond else (), fpir, found.fpir)
