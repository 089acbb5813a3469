"""What a threshold costs and what it misses: images of strangers that it holds, next to altered copies that stay below it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..model.strangers import DEFAULT_FPIR
from ..results import ThresholdSource
from .intervals import Interval, clopper_pearson
from .threshold import AlterationMisses, Calibration, Decision, Doubles, calibrate

__all__ = ["RATES", "Alarms", "alarm_load"]

RATES = (0.001, 0.01, 0.05, 0.1)
"""False-positive identification rates whose thresholds are shown next to the wanted one's."""


@dataclass(frozen=True)
class Alarms:
    """One threshold.

    Attributes:
        threshold: the score, in (0, 1).
        source: `index` where it follows from the negatives; else where a scan without a calibration takes it from.
        wanted: the FPIR that it is for; None where it is for pairs.
        fpir: share of the negatives' images that reach it, each with its interval.
        copies: altered copies that stay below it, by alteration; empty where they were not measured.
    """

    threshold: float
    source: ThresholdSource
    wanted: float | None
    fpir: float
    fpir_interval: Interval
    copies: tuple[AlterationMisses, ...]

    @property
    def holds_per_1000(self) -> float:
        """Images held, of 1,000 images of strangers."""
        return 1000 * self.fpir

    @property
    def fnir(self) -> float | None:
        """The mean over the alterations of the share of copies that stay below; None where they were not measured."""
        return sum(each.misses.fnir for each in self.copies) / len(self.copies) if self.copies else None

    @property
    def worst(self) -> AlterationMisses | None:
        """The alteration that is missed most; None where none was measured."""
        return max(self.copies, key=lambda each: each.misses.fnir, default=None)

    def as_json(self) -> dict[str, Any]:
        low, high = self.fpir_interval.low, self.fpir_interval.high
        return {
            "threshold": self.threshold,
            "threshold_source": self.source.value,
            "wanted": self.wanted,
            "fpir": self.fpir,
            "fpir_interval": {"low": low, "high": high},
            "holds_per_1000": self.holds_per_1000,
            "holds_per_1000_interval": {"low": 1000 * low, "high": 1000 * high},
            "copies_fnir": self.fnir,
            "copies_worst": self.worst.alteration if self.worst else None,
            "copies_worst_fnir": self.worst.misses.fnir if self.worst else None,
        }


def alarm_load(
    calibration: Calibration,
    tops: Doubles,
    otherwise: Decision,
    copies: Callable[[float], tuple[AlterationMisses, ...]] | None = None,
) -> list[Alarms]:
    """Return what a few thresholds cost: those for `RATES` and the wanted rate, and the one that an uncalibrated scan takes.

    Args:
        calibration: from `calibrate` with the same `tops`.
        tops: the negatives' best scores in the gallery, (negatives, kept).
        otherwise: how a scan without a calibration decides.
        copies: gives the altered copies that stay below a threshold; None where they were not measured.

    Returns:
        By threshold, lowest first. Rates so low that the negatives cannot tell them apart from a higher one are left out.
    """
    scale = calibration.witnesses / calibration.negatives
    found: dict[float, Alarms] = {}
    for rate in sorted({*RATES, calibration.wanted}, key=lambda rate: (rate != calibration.wanted, -rate)):
        fitted = calibration
        if rate != calibration.wanted:
            try:
                fitted = calibrate(tops, calibration.growth.size, rate, calibration.fingerprint, witnesses=calibration.witnesses)
            except UsageError:  # too many of the negatives score 1 for so low a rate
                continue
        found.setdefault(
            fitted.threshold,
            Alarms(
                fitted.threshold,
                ThresholdSource.INDEX,
                rate,
                fitted.fpir,
                fitted.fpir_interval,
                copies(fitted.threshold) if copies else (),
            ),
        )
    flagged = int((tops[:, 0] >= otherwise.threshold).sum())
    interval = clopper_pearson(flagged * scale, calibration.witnesses)
    wanted = (otherwise.fpir or DEFAULT_FPIR) if otherwise.source is ThresholdSource.STRANGERS else None
    missed = copies(otherwise.threshold) if copies else ()
    uncalibrated = Alarms(otherwise.threshold, otherwise.source, wanted, flagged / len(tops), interval, missed)
    return sorted([*found.values(), uncalibrated], key=lambda each: each.threshold)
