"""Run an audit: read the sets, search, choose the threshold, compare pixels, grade each released image.

`audit` is the whole in order; the steps of `_Steps` follow in the order in which it takes them. `report` writes the result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..calibration.threshold import decide_threshold, stored_calibration
from ..errors import ImageError, UsageError
from ..images.formats import read_file
from ..screening import Screener
from ..system.cpu import cpu_limit
from .best_pairs import BestPair, best_pairs, search_in_batches
from .embedding import frame_of
from .findings import Finding, Grade
from .inputs import Inputs, find_sets, kept_back, read_inputs
from .neighbours import Match
from .output_folder import PRIVATE, prepare_output
from .pixel_match import AGREES, agreement
from .reference import Reference, is_index, searchable_set
from .request import Progress, Request, check_request, without_progress
from .result import Audit, Looking, Memorization, Tests
from .sets import ImageSet, folder_of
from .statistics import Excess, Nearest, by_trial, nearer, shift
from .suspects import CERTAIN, Other, Suspect, Suspicion, Vetted, vet
from .thresholds import Basis, ByChance, Limit, RateRange, by_chance, choose_limit
from .tta import LOOKS

__all__ = ["PRIVATE", "Audit", "Looking", "Memorization", "Progress", "Request", "Tests", "audit", "is_index"]

COMPARED_AT_MOST = 4_000
"""Pairs that are compared pixel by pixel, best scores first: some 25 ms each."""
FEWEST_FOR_TESTS = 5

Doubles = NDArray[np.float64]
Pixels = NDArray[np.uint8]
log = logging.getLogger(__name__)


def audit(
    screener: Screener,
    request: Request,
    progress: Progress = without_progress,
    warn: Callable[[str], None] = log.warning,
) -> Audit:
    """Audit a released set against a reference.

    What was embedded is kept in the private part of `request.out`, so that an audit that was interrupted goes on there.

    Args:
        screener: with the bundle to use; of the index, where the reference is one.
        request: what is asked for.
        progress: see `Progress`.
        warn: is told what an index mends by itself, and other things that the user should see at once; by default they are logged.

    Raises:
        UsageError: something that cannot be audited as it was asked.
        GalleryError: the index cannot be used, or nothing of the reference can be read.
    """
    started = time.monotonic()
    check_request(request)
    files = find_sets(request)
    request = replace(request, out=prepare_output(request.out, request.released, kept_back(request)))
    with ExitStack() as resources:
        inputs = read_inputs(screener, request, files, progress, warn, resources)
        steps = _Steps(screener, request, progress, inputs.reference)
        released = inputs.released

        holdout = steps.vet_holdout(inputs.holdout, released) if inputs.holdout else None
        stored = steps.stored_limit()
        limit = steps.choose_limit(stored, holdout.scores if holdout else None)
        pairs = steps.search(released, "searching", limit.value)
        chance = steps.expect_by_chance(limit, pairs, holdout, released.looks)
        comparison = steps.compare_pixels(released, pairs, limit.compare)
        promoted = steps.expect_promoted(holdout, pairs, limit) if holdout else None
        tests = steps.test_memorization(holdout, released, pairs) if holdout else None
        findings = steps.grade(inputs, pairs, limit, comparison.agreements)
        _name_references(inputs, findings)
        return Audit(
            request=request,
            bundle=screener.bundle,
            variant=screener.encoder.variant,
            provider=screener.encoder.provider,
            released=released,
            reference=inputs.reference.images,
            holdout=inputs.holdout,
            index=inputs.reference.described(),
            gallery=len(inputs.reference.searchable),
            exact=inputs.reference.searchable.exact,
            findings=findings,
            limit=limit,
            chance=chance,
            promoted=promoted,
            compared=comparison.compared,
            not_compared=comparison.not_compared,
            tests=tests,
            looking=steps.compare_looks(limit, pairs, holdout, stored) if request.tta else None,
            pseudonyms=inputs.pseudonyms,
            seconds=time.monotonic() - started,
            caveats=inputs.caveats,
            pixels=inputs.reference.pixels,
            released_pixels=lambda index, frame: steps.pixels(released, index, frame),
        )


def _name_references(inputs: Inputs, findings: Sequence[Finding]) -> None:
    """Give each reference image that was found a pseudonym, so that which have one does not depend on what a report shows."""
    for finding in findings:
        for match in (finding.nearest, *finding.matches):
            if match and finding.grade is not Grade.CLEAR:
                inputs.pseudonyms.name(match.key)


@dataclass(frozen=True, eq=False)
class _Holdout:
    """The hold-out without its suspects.

    Attributes:
        images: the whole set.
        pairs: the best pair with the reference of each image that can be read, by its number in the set.
        counted: the images that count.
        vetted: what is suspect or repeated, and what comparing pixels gave.
        kept: suspects that count all the same.
    """

    images: ImageSet = field(repr=False)
    pairs: Mapping[int, BestPair] = field(repr=False)
    counted: Sequence[int] = field(repr=False)
    vetted: Vetted
    kept: tuple[Suspect, ...]

    @property
    def scores(self) -> Doubles:
        """Best score of each image that counts, float64 (counted,)."""
        return np.array([self.pairs[index].best.score for index in self.counted], np.float64)

    @property
    def plain_scores(self) -> Doubles:
        """The same of the images as they are, without other looks."""
        return np.array([self.pairs[index].plain.score for index in self.counted], np.float64)


@dataclass(frozen=True)
class _Comparison:
    """What comparing pixels gave.

    Attributes:
        agreements: by an image's number, the correlation of detail with its nearest reference image, -1 to 1; None where one of the
            two files is not at hand.
        compared: how many pairs were compared.
        not_compared: how many would have been, with more time.
    """

    agreements: Mapping[int, float | None] = field(repr=False)
    compared: int
    not_compared: int


class _Steps:
    """The steps of one audit, and what they share."""

    def __init__(self, screener: Screener, request: Request, progress: Progress, reference: Reference) -> None:
        self._screener, self._request, self._progress, self._reference = screener, request, progress, reference
        self._bundle = screener.bundle

    def search(self, images: ImageSet, what: str, threshold: float | None) -> dict[int, BestPair]:
        """Find the best pair of each image that has an embedding; matches only with a threshold."""
        return best_pairs(self._reference.searchable, images, threshold, self._request.top, self._progress, what)

    # -- hold-out and threshold ------------------------------------------------------------------------------------

    def vet_holdout(self, images: ImageSet, released: ImageSet) -> _Holdout:
        """Search for the hold-out's images, and leave out those that are suspect or repeated.

        Raises:
            UsageError: no image is left.
        """
        pairs = self.search(images, "searching for the hold-out", None)
        vetted = vet(self._screener, images, released, self._reference, pairs, self._progress)
        keep = self._request.suspects == "keep"
        kept = tuple(suspect for suspect in vetted.suspects if keep and suspect.suspicion not in CERTAIN)
        left_out = {suspect.index for suspect in (*vetted.suspects, *vetted.repeated)} - {suspect.index for suspect in kept}
        counted = [index for index in images.readable if index not in left_out]
        if not counted:
            raise UsageError(_nothing_left(self._request.holdout, vetted.suspects))
        return _Holdout(images, pairs, counted, vetted, kept)

    def stored_limit(self) -> Limit | None:
        """Return the threshold that a calibration left with the index, and what it promises at the index's size."""
        gallery = self._reference.gallery
        calibration = stored_calibration(gallery) if gallery else None
        if gallery is None or calibration is None:
            return None
        decision = decide_threshold(gallery)
        growth, size = calibration.growth, gallery.vectors()
        high = growth.at_most(size, calibration.fpir_interval.high)
        middle = min(growth.expected(size), high)
        rate = RateRange(min(calibration.fpir_interval.low, middle), middle, high)
        warning = " ".join(decision.warnings) or None
        return Limit(decision.threshold, 0.0, 0.0, Basis.INDEX, decision.words, warning=warning, stored_rate=rate)

    def choose_limit(self, stored: Limit | None, holdout_scores: Doubles | None) -> Limit:
        """Choose the threshold by the request, the index's calibration, the hold-out or the bundle."""
        asked, size = self._request, len(self._reference.searchable)
        return choose_limit(
            self._bundle,
            asked.wanted,
            given=asked.threshold,
            stored=stored,
            holdout=holdout_scores,
            gallery=size,
            fpir=asked.fpir,
        )

    # -- what chance gives -----------------------------------------------------------------------------------------

    def expect_by_chance(self, limit: Limit, pairs: Mapping[int, BestPair], holdout: _Holdout | None, looks: int) -> ByChance:
        """Estimate how many released images reach the threshold by chance."""
        found = sum(pair.best.score >= limit.value for pair in pairs.values())
        return self._by_chance(limit, len(pairs), found, holdout.scores if holdout else None, looks)

    def _by_chance(self, limit: Limit, images: int, found: int, holdout_scores: Doubles | None, looks: int) -> ByChance:
        size = len(self._reference.searchable)
        return by_chance(self._bundle, limit, images=images, found=found, gallery=size, holdout=holdout_scores, looks=looks)

    def expect_promoted(self, holdout: _Holdout, pairs: Mapping[int, BestPair], limit: Limit) -> Excess | None:
        """Estimate how many released images below the threshold would agree with a reference image by their pixels by chance.

        None where no pixels of the reference are at hand.
        """
        counted = {index: holdout.pairs[index] for index in holdout.counted}
        agreements = self.compare_pixels(holdout.images, counted, limit.compare, holdout.vetted.agreements).agreements
        if not self._reference.images and all(value is None for value in agreements.values()):
            return None
        promoted = sum(
            value is not None and value >= AGREES and counted[index].best.score < limit.value for index, value in agreements.items()
        )
        return by_trial(len(pairs), promoted, len(holdout.counted))

    def test_memorization(self, holdout: _Holdout, released: ImageSet, pairs: Mapping[int, BestPair]) -> Tests:
        """Compare the released images with the hold-out, where both have enough images."""
        enough = min(len(holdout.counted), len(pairs)) >= FEWEST_FOR_TESTS
        return Tests(
            images=len(holdout.counted),
            suspects=holdout.vetted.suspects,
            kept=holdout.kept,
            repeated=holdout.vetted.repeated,
            not_aligned=holdout.vetted.not_aligned,
            scores=holdout.scores,
            memorization=self._memorization(holdout, released, pairs) if enough else None,
        )

    def _memorization(self, holdout: _Holdout, released: ImageSet, pairs: Mapping[int, BestPair]) -> Memorization:
        """Make both tests on images as they are: images with several looks would have more chances than others."""
        ordered = [pairs[index].plain for index in sorted(pairs)]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(match.key for match in ordered))}
        to_reference = Nearest(
            np.array([match.score for match in ordered]), np.array([numbers[match.key] for match in ordered], np.int64)
        )
        return Memorization(
            shift(to_reference.scores, holdout.plain_scores),
            nearer(
                to_reference, self._nearest_in_holdout(holdout, released, sorted(pairs)), self._reference.size, len(holdout.counted)
            ),
        )

    def _nearest_in_holdout(self, holdout: _Holdout, released: ImageSet, indices: Sequence[int]) -> Nearest:
        """Find the nearest hold-out image that counts of the released images `indices`."""
        rows = np.flatnonzero(np.isin(holdout.images.of, holdout.counted))
        searchable = searchable_set(self._screener, holdout.images, rows)
        queries = released.embeddings[:, 0]
        searched = search_in_batches(searchable, queries, None, 1)
        best: dict[int, Match] = {}
        for row, found in enumerate(self._progress(searched, len(queries), "comparing with the hold-out")):
            index = int(released.of[row])
            if index not in best or found.nearest.score > best[index].score:
                best[index] = found.nearest
        numbers = {holdout.images.items[index].name: number for number, index in enumerate(holdout.counted)}
        return Nearest(
            np.array([best[index].score for index in indices]), np.array([numbers[best[index].key] for index in indices], np.int64)
        )

    def compare_looks(self, limit: Limit, pairs: Mapping[int, BestPair], holdout: _Holdout | None, stored: Limit | None) -> Looking:
        """Say what the same audit finds without other looks."""
        scores = holdout.plain_scores if holdout else None
        plain = self.choose_limit(stored, scores)
        with_looks = {index for index, pair in pairs.items() if pair.best.score >= limit.value}
        without = {index for index, pair in pairs.items() if pair.plain.score >= plain.value}
        chance = self._by_chance(plain, len(pairs), len(without), scores, looks=1)
        return Looking(len(LOOKS), plain, chance, len(without), len(with_looks - without), len(without - with_looks))

    # -- pixels ----------------------------------------------------------------------------------------------------

    def compare_pixels(
        self,
        images: ImageSet,
        pairs: Mapping[int, BestPair],
        least: float,
        known: Mapping[int, float | None] | None = None,
    ) -> _Comparison:
        """Compare images that score `least` or more with their nearest reference image, the best first.

        Args:
            images: the set.
            pairs: of each image that is to be compared, by its number in the set.
            least: score from which on images are compared.
            known: agreements that need no comparison any more.
        """
        known = known or {}
        wanted = sorted((index for index, pair in pairs.items() if pair.best.score >= least), key=lambda i: -pairs[i].best.score)
        chosen = wanted[:COMPARED_AT_MOST]

        def compared(index: int) -> float | None:
            if index in known:
                return known[index]
            reference = self._reference.pixels(pairs[index].best)
            own = self.pixels(images, index, pairs[index].frame) if reference is not None else None
            return None if own is None or reference is None else agreement(own, reference)

        agreements: dict[int, float | None] = {}
        if chosen:
            with ThreadPoolExecutor(cpu_limit(), thread_name_prefix="lcmem-compare") as pool:
                results = self._progress(pool.map(compared, chosen), len(chosen), "comparing pixels")
                agreements = dict(zip(chosen, results, strict=True))
        return _Comparison(agreements, sum(value is not None for value in agreements.values()), len(wanted) - len(chosen))

    def pixels(self, images: ImageSet, index: int, frame: int) -> Pixels | None:
        """Decode a frame, RGB uint8 (height, width, 3); None where it cannot be read any more."""
        path = images.items[index].path
        try:
            return frame_of(self._screener, read_file(path, self._screener.limits), path.name, frame)
        except ImageError:  # it was read before: the file has gone since, or memory is short
            return None

    # -- grades ----------------------------------------------------------------------------------------------------

    def grade(
        self, inputs: Inputs, pairs: Mapping[int, BestPair], limit: Limit, agreements: Mapping[int, float | None]
    ) -> list[Finding]:
        """Return a finding for each released file, in order."""
        return [
            self._finding(inputs, index, pairs.get(index), limit, agreements.get(index))
            for index in range(len(inputs.released.items))
        ]

    def _finding(self, inputs: Inputs, index: int, pair: BestPair | None, limit: Limit, agrees: float | None) -> Finding:
        item = inputs.released.items[index]
        finding = Finding(
            index=index,
            name=item.name,
            sha256=item.content.hex() if item.content else None,
            grade=Grade.UNREADABLE,
            reasons=item.errors,
            labels={"folder": folder_of(item.name), **inputs.labels.get(item.name, {})},
        )
        if pair is None:
            return finding
        matched = pair.best.score >= limit.value
        return replace(
            finding,
            grade=_grade(pair.best.score, limit, agrees, identical=self._reference.holds(item.content)),
            score=pair.best.score,
            plain_score=pair.plain.score,
            frame=pair.frame,
            look=list(LOOKS)[pair.look],
            nearest=pair.best,
            agreement=agrees,
            matches=pair.matches if matched else (),
            total=pair.total if matched else 0,
        )


def _grade(score: float, limit: Limit, agrees: float | None, *, identical: bool) -> Grade:
    """Grade an image by its best score, and its agreement with the nearest reference image (None where it was not compared)."""
    if identical:
        return Grade.IDENTICAL
    if agrees is not None and agrees >= AGREES:
        return Grade.MEMORIZED
    if score >= limit.value:
        return Grade.MATCH if agrees is None else Grade.REIDENTIFIED
    return Grade.NEAR if score >= limit.near else Grade.CLEAR


def _nothing_left(holdout: Path | None, suspects: Sequence[Suspect]) -> str:
    """Say what is wrong with a hold-out of which no image counts."""
    start = f"the hold-out {holdout} has no image that can be read"
    if not suspects:
        return f"{start}: give images like the reference's that are not in it, or no hold-out"
    if all(suspect.suspicion is Suspicion.SAME_PATIENT for suspect in suspects):
        return (
            f"{start} and is not of a patient of the reference: give images of other patients, or --ignore-patients where the "
            "headers are anonymous"
        )
    where = "release" if all(suspect.other is Other.RELEASED for suspect in suspects) else "reference"
    return f"{start} and is not in the {where} too: give images like the reference's that are not in it, or no hold-out"
