"""Whether a scan's threshold floods: images match many different patients, as only a threshold that is too low makes them.

A high share of matches says nothing by itself: the scanned images may well be copies of the gallery's, or show its patients. But
an image shows one patient. That it matches a second one is a false positive, which a threshold for a false-positive
identification rate (FPIR) allows in at most that share of the images. So the images that match several patients are counted, and
a scan is said to flood when so many have a chance of less than one in a thousand at the expected rate (binomial).

Where the index does not know patients, an image of the gallery may show the same patient as the next one, so `MANY` different
images must match. Plain copies are not counted at all: what else they match is no mistake of their verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..model.head import Head
from ..model.strangers import DEFAULT_FPIR, logit
from ..results import Result, ThresholdSource, Verdict
from .intervals import incomplete_beta
from .open_set import COPY_SHARE
from .threshold import Decision, percent

__all__ = ["MANY", "Flood", "FloodWatch"]

MANY = 5
"""Different images of unknown patients that an image must match to count. A scan must list so many matches."""
IMPROBABLE = 1e-3
FEWEST = 3
"""Images that must match several patients: fewer may be a matter of one examination."""


@dataclass(frozen=True)
class Flood:
    """A threshold that is too low for a gallery.

    Attributes:
        images: images judged, without plain copies.
        flooded: how many of them match several patients.
        expected: the share of them that may, at most about.
        threshold: the score that was needed for a match.
        by_patient: whether patients were told apart by the index; else `MANY` different images.
    """

    images: int
    flooded: int
    expected: float
    threshold: float
    by_patient: bool

    def in_words(self) -> str:
        what = "two or more different patients" if self.by_patient else f"{MANY} or more different images"
        return (
            f"the threshold {self.threshold:.4g} is too low for this gallery: {self.flooded:,} of {self.images:,} images match "
            f"{what} each, expected at most about {percent(self.expected)}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "several_patients": self.flooded,
            "expected_at_most": self.expected,
            "threshold": self.threshold,
            "by_patient": self.by_patient,
        }


class FloodWatch:
    """Counts a scan's results, by the first frame of each image that was judged.

    Args:
        decision: the scan's threshold. A calibrated one is not doubted.
        head: the bundle's head.
    """

    def __init__(self, decision: Decision, head: Head) -> None:
        self._decision = decision
        least = logit(decision.threshold)
        self._copy = head.bias - COPY_SHARE * max(0.0, head.bias - least)
        self._seen: str | None = None
        self._images = 0
        self._patients = 0
        self._unknown = 0

    def see(self, result: Result) -> None:
        """Count a result; those of one image must follow each other."""
        if self._decision.source is ThresholdSource.INDEX or result.verdict is Verdict.ERROR or result.path == self._seen:
            return
        self._seen = result.path
        if result.nearest is not None and (result.nearest.score >= 1.0 or logit(result.nearest.score) >= self._copy):
            return
        self._images += 1
        patients = {one.patient for one in result.identities if one.patient is not None}
        if len(patients) > 1:
            self._patients += 1
        elif not patients and len({one.score for one in result.identities}) >= MANY:  # equal scores: one image, there twice
            self._unknown += 1

    def flood(self) -> Flood | None:
        """Return what was found; None where the counts are what the threshold allows."""
        flooded = self._patients + self._unknown
        expected = DEFAULT_FPIR if self._decision.expected is None else self._decision.expected
        if flooded < FEWEST or incomplete_beta(flooded, self._images - flooded + 1, expected) >= IMPROBABLE:
            return None
        return Flood(self._images, flooded, expected, self._decision.threshold, by_patient=self._patients >= self._unknown)
