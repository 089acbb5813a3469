"""The threshold of an audit, and how many images of a set without copies would reach it at this gallery's size.

A threshold for pairs is none for a gallery: of 10,000 reference images, one that 0.1 % of the pairs reach is reached by every
image. So the hold-out, images that the reference does not have, sets it where there is one: it shows at this gallery's
size what chance does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration.intervals import Interval
from ..calibration.threshold import decide_size_threshold
from ..errors import UsageError
from ..model.bundle import Bundle
from ..model.strangers import flagged
from .statistics import Excess, by_rank, by_rate, by_trial, excess_by_rank, excess_by_trial, rate_interval

__all__ = ["NEAR_TIMES", "Basis", "ByChance", "Limit", "RateRange", "by_chance", "choose_limit"]

NEAR_TIMES, COMPARE_TIMES = 3, 10
"""Near the threshold is what three times as many hold-out images reach; pixels are compared from ten times as many on. That is
where three in four of the strongly turned copies of phantoms lie that the model alone misses (docs/audit.md)."""
NEAR_ODDS, COMPARE_ODDS = 4.0, 30.0
"""Without a hold-out: by how much the odds of being the same, as the model gives them, may be smaller than the threshold's."""
FIGURES = "copies, at the bundle's threshold"
"""The model card's table of false-positive rates at the threshold that the bundle ships with."""
FEWEST_PAIRS = 1000

Doubles = NDArray[np.float64]


class Basis(StrEnum):
    """Where a threshold, or what is expected by chance, comes from."""

    GIVEN = "given"
    INDEX = "index"
    HOLDOUT = "holdout"
    STRANGERS = "strangers"
    BUNDLE = "bundle"
    NOTHING = "nothing"


@dataclass(frozen=True)
class RateRange:
    """An estimated share of images, and the range in which it may lie."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Limit:
    """The threshold: a score at or above `value` is a match.

    Attributes:
        near: scores from here up to it are near it.
        compare: pairs that score so much or more are compared pixel by pixel.
        basis, source: where it comes from, for programs and in words.
        rank: of the hold-out's score that it is, 1 for the highest; None where it is no hold-out image's score.
        warning: what is wrong with it, in words.
        stored_rate: the false positive rate that an index's calibration promises.
    """

    value: float
    near: float
    compare: float
    basis: Basis
    source: str
    rank: int | None = None
    warning: str | None = None
    stored_rate: RateRange | None = None


@dataclass(frozen=True)
class ByChance:
    """How many images would reach the threshold if none were a copy.

    Attributes:
        count: expected, with a 95 % interval; None when nothing is known of it.
        rate, rate_interval: for one image.
        basis, assumption: where it comes from, for programs and in words.
        p: of as many as were found, or more, by chance; None without a hold-out.
    """

    count: Excess | None
    rate: float | None
    rate_interval: Interval | None
    basis: Basis
    assumption: str
    p: float | None = None


def choose_limit(
    bundle: Bundle,
    wanted: float,
    *,
    given: float | None,
    stored: Limit | None,
    holdout: Doubles | None,
    gallery: int = 1,
    fpir: float | None = None,
) -> Limit:
    """Choose the threshold.

    In this order: one that was given, the index's own, one that the hold-out sets, one for the gallery's size by the bundle's
    strangers, or the bundle's.

    Args:
        wanted: share of images without a copy that may reach it, in (0, 0.5].
        given: the user's, if any.
        stored: the index's calibration, if any.
        holdout: best scores of the hold-out's images, (m,); None without one.
        gallery: reference images that each image is compared with.
        fpir: the same share as `wanted`, for the bundle's strangers; None takes `DEFAULT_FPIR`.
    """
    if not 0.0 < wanted <= 0.5:
        raise UsageError(f"a wanted false-positive rate of {wanted} makes no sense: give one above 0 and up to 0.5, such as 0.01")
    if given is not None:
        return _with_near(Limit(given, 0.0, 0.0, Basis.GIVEN, "given with --threshold"), wanted, holdout)
    if stored is not None:
        return _with_near(stored, wanted, holdout)
    own = Limit(bundle.threshold.value, 0.0, 0.0, Basis.BUNDLE, f"the bundle's, for pairs: {bundle.threshold.source}")
    if holdout is None or not len(holdout):
        if bundle.strangers is None and fpir is None:
            return _with_near(own, wanted, None)
        decision = decide_size_threshold(bundle, fpir, gallery)
        warning = " ".join(decision.warnings) or None
        return _with_near(Limit(decision.threshold, 0.0, 0.0, Basis.STRANGERS, decision.words, warning=warning), wanted, None)
    ordered = np.sort(holdout)[::-1]
    rank = max(1, math.floor(wanted * (len(holdout) + 1)))
    value = min(float(ordered[rank - 1]), math.nextafter(1.0, 0.0))
    if value <= bundle.threshold.value:
        source = f"{own.source}. Fewer than the wanted {100 * wanted:g} % of the hold-out's images reach it"
        return _with_near(Limit(own.value, 0.0, 0.0, Basis.BUNDLE, source), wanted, holdout)
    fewest = math.ceil(1 / wanted) - 1
    warning = None
    if len(holdout) < fewest:
        warning = (
            f"The hold-out is too small for the wanted rate of {100 * wanted:g} %: it would take {fewest} images, and there are "
            f"{len(holdout)}. The threshold is its highest score, which "
            f"{100 / (len(holdout) + 1):.2g} % of others are expected to reach."
        )
    reach = "its highest score" if rank == 1 else f"the score that {rank} of its {len(holdout)} images reach"
    source = (
        f"set by the hold-out: {reach} against this reference, for a wanted false-positive rate of {100 * wanted:g} % an image; "
        f"the bundle's own, {own.value:.4g}, is for pairs"
    )
    return _with_near(Limit(value, 0.0, 0.0, Basis.HOLDOUT, source, rank, warning), wanted, holdout)


def _with_near(limit: Limit, wanted: float, holdout: Doubles | None) -> Limit:
    if holdout is None or not len(holdout):
        odds = limit.value / (1 - limit.value)
        near, compare = (odds / by / (1 + odds / by) for by in (NEAR_ODDS, COMPARE_ODDS))
    else:
        reached = max(wanted, float((holdout >= limit.value).mean()))
        near, compare = (float(np.quantile(holdout, max(0.0, 1 - times * reached))) for times in (NEAR_TIMES, COMPARE_TIMES))
    return replace(limit, near=min(near, limit.value), compare=min(compare, limit.value))


def by_chance(
    bundle: Bundle, limit: Limit, *, images: int, found: int, gallery: int, holdout: Doubles | None, looks: int
) -> ByChance:
    """What chance alone would give.

    Args:
        images: released ones that were judged.
        found: those of them at or above the threshold.
        gallery: reference frames that each was compared with.
        holdout: best scores of the hold-out's images, (m,), seen as the released ones were; None without one.
        looks: in how many ways each was looked at.
    """
    if holdout is not None and len(holdout):
        return _by_holdout(limit, images, found, holdout)
    more = "" if looks == 1 else f" Each image was looked at in {looks} ways, and the upper end allows for each of them by itself."
    if limit.stored_rate is not None:
        promised = limit.stored_rate
        low, middle, high = promised.low, promised.middle, 1 - (1 - promised.high) ** looks
        assumption = (
            "The index's calibration holds for the released images too: they differ from the reference as the negatives do that "
            "it was made with." + more
        )
        return ByChance(by_rate(images, low, middle, high), middle, Interval(low, high), Basis.INDEX, assumption)
    if limit.basis is Basis.STRANGERS and bundle.strangers is not None:
        low, middle, high = (flagged(rate, gallery) for rate in bundle.strangers.rates(limit.value))
        high = 1 - (1 - high) ** looks
        assumption = (
            f"No hold-out was given, so this is estimated from the bundle's pairs of different images: {100 * low:.2g} % to "
            f"{100 * high:.2g} % of strangers' images are flagged, by kind of image. Yours may be of another kind. A hold-out "
            "(--holdout) would measure it." + more
        )
        return ByChance(by_rate(images, low, middle, high), middle, Interval(low, high), Basis.STRANGERS, assumption)
    rates = _card_rates(bundle) if limit.basis is Basis.BUNDLE else None
    if rates is None:
        return ByChance(
            None,
            None,
            None,
            Basis.NOTHING,
            "Nothing is known of how many different images reach this threshold by chance. Give --holdout: images of the "
            "same kind that are not in the reference.",
        )
    low, middle, high = (1 - (1 - rate) ** gallery for rate in (rates.low, rates.middle, rates.high))
    high = 1 - (1 - high) ** looks
    assumption = (
        f"No hold-out was given, so this is reckoned from the bundle's own figures: {100 * rates.middle:.3g} % of the pairs of "
        f"different images that it was tested on reach the threshold ({100 * rates.low:.2g} % to {100 * rates.high:.2g} %, by kind "
        f"of image), and each released image makes {gallery:,} pairs, taken as independent. Your images may be of another "
        "kind. A hold-out (--holdout) would measure it." + more
    )
    return ByChance(by_rate(images, low, middle, high), middle, Interval(low, high), Basis.BUNDLE, assumption)


def _by_holdout(limit: Limit, images: int, found: int, holdout: Doubles) -> ByChance:
    many = len(holdout)
    if limit.rank is not None:
        rank = limit.rank
        rate, ends = rank / (many + 1), rate_interval(rank, many)
        count, p = by_rank(images, rank, many), excess_by_rank(found, images, rank, many)
    else:
        exceeding = int((holdout >= limit.value).sum())
        rate, ends = exceeding / many, rate_interval(exceeding, many)
        count, p = by_trial(images, exceeding, many), excess_by_trial(found, images, exceeding, many)
    assumption = (
        f"{many:,} hold-out images were compared with the same reference in the same way. If released images that are no "
        "copies are like them, and images are independent of each other (not many of one patient), this holds, however scores "
        "are distributed."
    )
    return ByChance(count, rate, ends, Basis.HOLDOUT, assumption, p)


def _card_rates(bundle: Bundle) -> RateRange | None:
    """Least, overall and largest share of pairs of different images at or above the bundle's threshold, by kind; or None."""
    card = bundle.manifest.get("card")
    figures = card.get("figures") if isinstance(card, Mapping) else None
    table = figures.get(FIGURES) if isinstance(figures, Mapping) else None
    if not isinstance(table, Mapping):
        return None
    rates: dict[str, float] = {}
    for kind, row in table.items():
        if isinstance(row, Mapping) and _is_rate(row.get("false positives")) and int(row.get("different pairs", 0)) >= FEWEST_PAIRS:
            rates[str(kind)] = float(row["false positives"])
    middle = rates.get("all")
    if middle is None:
        return None
    return RateRange(min(rates.values()), middle, max(rates.values()))


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1
