"""The result of an audit: all that a report says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..model.bundle import Bundle
from ..privacy import ReportPseudonyms
from .findings import Finding
from .neighbours import Match
from .request import Request
from .sets import ImageSet
from .statistics import Excess, Nearer, Shift
from .suspects import Suspect
from .thresholds import ByChance, Limit

__all__ = ["Audit", "Looking", "Memorization", "Tests"]

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Looking:
    """What `--tta` changed, compared with the same audit without it.

    Attributes:
        ways: in how many ways each image was looked at.
        plain: the threshold, and what chance gives, without it.
        plain_found: images at or above that threshold, looked at as they are.
        gained, lost: images that only this audit has at or above its threshold, and those that only the other has.
    """

    ways: int
    plain: Limit
    plain_chance: ByChance
    plain_found: int
    gained: int
    lost: int


@dataclass(frozen=True)
class Memorization:
    """Two tests of the released images against the hold-out.

    Attributes:
        shift: whether released images are nearer to the reference than hold-out images are.
        nearer: whether released images are nearer to the reference than to the hold-out.
    """

    shift: Shift
    nearer: Nearer


@dataclass(frozen=True)
class Tests:
    """What a hold-out was good for.

    Attributes:
        images: that were used.
        suspects: images that are copies of reference or released ones, or of a patient of the reference.
        kept: those of them that were counted all the same, because the user asked for it.
        repeated: copies of another image of the hold-out, which is counted once.
        not_aligned: candidates for suspects that were not looked at, for there were too many.
        scores: best score of each against the reference, (images,).
        memorization: None where there are too few images.
    """

    images: int
    suspects: tuple[Suspect, ...]
    kept: tuple[Suspect, ...]
    repeated: tuple[Suspect, ...]
    not_aligned: int
    scores: Doubles = field(repr=False)
    memorization: Memorization | None

    @property
    def left_out(self) -> tuple[Suspect, ...]:
        """The suspects that were not counted."""
        kept = {suspect.index for suspect in self.kept}
        return tuple(suspect for suspect in self.suspects if suspect.index not in kept)


@dataclass(frozen=True, eq=False)
class Audit:
    """All that a report says.

    Attributes:
        request, bundle: what was asked for, and the model.
        variant, provider: what the model ran on.
        released, reference, holdout: the sets; no reference set where it was an index.
        index: what the index says of itself, without its path.
        gallery: reference frames that were searched.
        exact: whether the search misses nothing.
        findings: one for each released file, in order.
        limit, chance: the threshold, and what chance alone gives.
        promoted: what chance gives of images that only the comparison of pixels found; None without a hold-out.
        compared: pairs that were compared pixel by pixel, and `not_compared`, pairs that would have been.
        tests: of the hold-out.
        looking: what --tta changed.
        pseudonyms: of reference images.
        seconds: what it took.
        caveats: what could not be done, in words.
        pixels, released_pixels: decode a reference image's frame, and that of a released item; None where the file is not at hand.
    """

    request: Request
    bundle: Bundle
    variant: str
    provider: str
    released: ImageSet = field(repr=False)
    reference: ImageSet | None = field(repr=False)
    holdout: ImageSet | None = field(repr=False)
    index: Mapping[str, object] | None
    gallery: int
    exact: bool
    findings: list[Finding] = field(repr=False)
    limit: Limit
    chance: ByChance
    promoted: Excess | None
    compared: int
    not_compared: int
    tests: Tests | None
    looking: Looking | None
    pseudonyms: ReportPseudonyms
    seconds: float
    caveats: tuple[str, ...]
    pixels: Callable[[Match], NDArray[np.uint8] | None] = field(repr=False)
    released_pixels: Callable[[int, int], NDArray[np.uint8] | None] = field(repr=False)
