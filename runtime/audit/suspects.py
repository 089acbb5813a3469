"""Which images of a hold-out are suspects: copies of reference or released images, or images of a patient of the reference.

A hold-out shows what images without a copy score. One that holds copies of the reference raises the threshold to where the copies
in the release are missed, so suspects are looked for before anything is derived from it. Candidates are nominated by the model's
score and, since the model does not see all flipped copies, by thumbnails (see `thumbnails`). A candidate is a suspect when its
pixels agree once it is aligned (see `agreement`), whatever the model says.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from ..calibration.open_set import copy_score
from ..errors import ImageError
from ..images.formats import read_file
from ..model.head import Floats, sigmoid
from ..screening import Screener
from ..system.cpu import cpu_limit
from .best_pairs import BestPair
from .embedding import frame_of
from .neighbours import Match, Searchable
from .patients import LISTED
from .pixel_match import AGREES, NOT_COMPARABLE, agreement
from .reference import Reference, searchable_set
from .request import Progress
from .sets import ImageSet
from .thumbnails import Alignment, align, candidates, thumbnail

__all__ = ["CERTAIN", "Other", "Suspect", "Suspicion", "Vetted", "vet"]

BY_SCORE, BY_SCORE_OF_INDEX, BY_SCORE_ELSEWHERE = 5, 3, 2
"""Candidates that the model's score nominates: in the reference; in an index, whose images must be decoded; elsewhere."""
BY_TONES = 2
"""Candidates that the thumbnails' tones nominate. An index has no thumbnails."""
LIKELY = 0.8
"""Correlation of tones from which they are candidates. Of 800 copies none was below 0.86 (brightened by a half; flipped: 1.00)."""
PROMISING = 0.62
"""Correlation of aligned thumbnails from which the pixels are compared. Of 1,440 altered copies (recompressed, cropped to 85 to 97
percent of the side, brightened, flipped, turned) none was below 0.65; of 500 pairs of different chest radiographs, the nearest by
score, 7 % are above."""
COMPARED = 2
"""Promising candidates whose pixels are compared, for each image and each set."""
OVEREXPOSED = 0.9
"""The same from which an image is a suspect that is so black or white that its pixels cannot be compared, if it matches as well."""
PAIRS_AT_MOST = 20_000
"""Candidates that are aligned, for each set: 1 ms each by score, and a quarter of that by tones. The highest scores go first."""
FREELY, FREELY_AT_MOST = 0.2, 1_000
"""Share of the hold-out, the highest scores first, that is compared with its nearest reference image in any turn, some 16 ms each.
The threshold depends on the highest scores alone."""
BATCH = 256

Pixels = NDArray[np.uint8]


class Suspicion(StrEnum):
    """What a suspect is. `same-pixels`: another file with the same pixels. `altered-copy`: its pixels agree with the other's once
    aligned. `like-a-copy`: it scores like a copy, and the other image was not at hand to be compared."""

    SAME_FILE = "same-file"
    SAME_PIXELS = "same-pixels"
    SAME_PATIENT = "same-patient"
    ALTERED_COPY = "altered-copy"
    LIKE_A_COPY = "like-a-copy"


CERTAIN = frozenset({Suspicion.SAME_FILE, Suspicion.SAME_PIXELS, Suspicion.SAME_PATIENT})
"""What is never counted: a match is right there."""


class Other(StrEnum):
    """Where the image is that a suspect resembles. Within the hold-out it is a repetition, and counted once."""

    REFERENCE = "reference"
    RELEASED = "released"
    HOLDOUT = "holdout"


@dataclass(frozen=True)
class Suspect:
    """An image of the hold-out that is no independent stranger.

    Attributes:
        index: which item of the hold-out.
        suspicion: what it is.
        other: where the other image is.
        key: of the other image: the reference's key, or its name below its folder; None where an index cannot tell.
        score: the model's, for the two; None where it was not asked.
        agreement: of their pixels; None where they were not compared.
    """

    index: int
    suspicion: Suspicion
    other: Other
    key: str | None
    score: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Vetted:
    """A hold-out, looked through.

    Attributes:
        suspects: resemble the reference or the release, one for each item.
        repeated: copies of an earlier image of the hold-out.
        not_aligned: candidates that were left aside, for there were too many.
        agreements: of images that were compared with their nearest reference image in any turn, by their index.
    """

    suspects: tuple[Suspect, ...]
    repeated: tuple[Suspect, ...]
    not_aligned: int
    agreements: dict[int, float | None] = field(repr=False)


@dataclass(frozen=True)
class _Pair:
    """A frame of the hold-out and a candidate. `score` is known of those that the model nominated."""

    frame: int
    candidate: Match
    score: float | None


@dataclass(frozen=True)
class _Nomination:
    """A pair that may be a copy: how likely it is (to rank it), the item of the hold-out, and the pair."""

    rank: float
    index: int
    pair: _Pair


@dataclass(frozen=True)
class _Nominated:
    """The candidates of each image by its index, and how many were left aside, for there were too many."""

    pairs: Mapping[int, Sequence[_Pair]]
    too_many: int


@dataclass(frozen=True)
class _Certain:
    """What files and patients alone tell: suspects, and repetitions within the hold-out, by their index."""

    suspects: dict[int, Suspect]
    repeated: dict[int, Suspect]


class _Side:
    """A set that the hold-out is compared with.

    Attributes:
        other, searchable: which, and how its candidates are found.
        images: the embedded set; None for an index.
        pixels: decodes a frame; None where it is not at hand.
        by_score: candidates that the model's score nominates for a frame.
        thumbnails: of each frame, by its image's name; none of an index.
        rows: where the embeddings of each frame are.
    """

    def __init__(
        self, other: Other, searchable: Searchable, images: ImageSet | None, pixels: Callable[[Match], Pixels | None]
    ) -> None:
        self.other, self.searchable, self.images, self.pixels = other, searchable, images, pixels
        self.by_score = BY_SCORE_ELSEWHERE if other is not Other.REFERENCE else BY_SCORE if images else BY_SCORE_OF_INDEX
        self.thumbnails: dict[tuple[str, int], Pixels] = {}
        self.rows: dict[tuple[str, int], list[int]] = defaultdict(list)
        if images is not None:
            names = [item.name for item in images.items]
            for (index, frame), small in zip(images.thumbnail_of.tolist(), images.thumbnails, strict=True):
                self.thumbnails[names[index], frame] = small
            for row, (index, frame) in enumerate(zip(images.of.tolist(), images.frames.tolist(), strict=True)):
                self.rows[names[index], frame].append(row)


class _Remembered:
    """Decoded frames of the images that are looked at, each decoded once."""

    def __init__(self, decode: Callable[[Match], Pixels | None]) -> None:
        self._decode = decode
        self._frames: dict[tuple[str, int], Pixels | None] = {}

    def __call__(self, match: Match) -> Pixels | None:
        key = match.key, match.frame
        if key not in self._frames:
            self._frames[key] = self._decode(match)
        return self._frames[key]


def vet(
    screener: Screener,
    holdout: ImageSet,
    released: ImageSet,
    reference: Reference,
    nearest: Mapping[int, BestPair],
    progress: Progress,
) -> Vetted:
    """Look for suspects in a hold-out.

    Args:
        nearest: the best pair of each readable item with the reference.
        progress: see `Progress`.
    """
    return _Vetting(screener, holdout, released, reference, nearest).run(progress)


class _Vetting:
    def __init__(
        self,
        screener: Screener,
        holdout: ImageSet,
        released: ImageSet,
        reference: Reference,
        nearest: Mapping[int, BestPair],
    ) -> None:
        self.screener, self.holdout, self.released = screener, holdout, released
        self.reference, self.nearest = reference, nearest
        self.head = screener.bundle.head
        self.own = self._side(Other.HOLDOUT, holdout)
        self.sides = (
            _Side(Other.REFERENCE, reference.searchable, reference.images, reference.pixels),
            self._side(Other.RELEASED, released),
            self.own,
        )
        self.places = {item.name: index for index, item in enumerate(holdout.items)}
        self.agreements: dict[int, float | None] = {}

    def _side(self, other: Other, images: ImageSet) -> _Side:
        paths = {item.name: item.path for item in images.items}

        def pixels(match: Match) -> Pixels | None:
            path = paths[match.key]
            try:
                return frame_of(self.screener, read_file(path, self.screener.limits), path.name, match.frame)
            except ImageError:  # it was read a moment ago: it has gone, or memory has
                return None

        return _Side(other, searchable_set(self.screener, images), images, pixels)

    def run(self, progress: Progress) -> Vetted:
        certain = self._certain()
        suspects, repeated = certain.suspects, certain.repeated
        remaining = [index for index in self.holdout.readable if index not in suspects and index not in repeated]
        nominated = [self._nominate(side, set(remaining)) for side in self.sides]
        many = min(math.ceil(FREELY * len(remaining)), FREELY_AT_MOST)
        freely = set(sorted(remaining, key=lambda index: -self.nearest[index].best.score)[:many])
        limit = self._copy_score(remaining)

        def examine(index: int) -> list[Suspect]:
            return list(self._examine(index, [each.pairs.get(index, ()) for each in nominated], index in freely, limit))

        with ThreadPoolExecutor(cpu_limit(), thread_name_prefix="lcmem-vet") as pool:
            for found in progress(pool.map(examine, remaining), len(remaining), "checking the hold-out"):
                for suspect in found:
                    (repeated if suspect.other is Other.HOLDOUT else suspects).setdefault(suspect.index, suspect)
        return Vetted(
            tuple(suspect for _, suspect in sorted(suspects.items())),
            tuple(suspect for index, suspect in sorted(repeated.items()) if index not in suspects),
            sum(each.too_many for each in nominated),
            self.agreements,
        )

    # -- without pixels --------------------------------------------------------------------------------------------

    def _certain(self) -> _Certain:
        """Find suspects and repetitions by their files and patients."""
        suspects: dict[int, Suspect] = {}
        repeated: dict[int, Suspect] = {}
        released = {item.content: item.name for item in reversed(self.released.items) if item.content}
        listed = {item.patient: item.name for item in self.released.items if (item.patient or "").startswith(LISTED)}
        patients = {patient: key for key, patient in self.reference.patients.items()}
        seen: dict[bytes, str] = {}
        for index in self.holdout.readable:
            item = self.holdout.items[index]
            content, patient = item.content, item.patient
            if content is None:
                continue
            if self.reference.holds(content):
                suspects[index] = Suspect(index, Suspicion.SAME_FILE, Other.REFERENCE, self.reference.key_of(content))
            elif content in released:
                suspects[index] = Suspect(index, Suspicion.SAME_FILE, Other.RELEASED, released[content])
            elif patient in patients:
                suspects[index] = Suspect(index, Suspicion.SAME_PATIENT, Other.REFERENCE, patients[patient])
            elif patient in listed:
                suspects[index] = Suspect(index, Suspicion.SAME_PATIENT, Other.RELEASED, listed[patient])
            elif content in seen:
                repeated[index] = Suspect(index, Suspicion.SAME_FILE, Other.HOLDOUT, seen[content])
            else:
                seen[content] = item.name
        return _Certain(suspects, repeated)

    def _copy_score(self, remaining: Sequence[int]) -> float | None:
        """Return the score from which an image is like a copy where an index's images are not at hand; None for a folder."""
        if self.reference.gallery is None or not remaining:
            return None
        return copy_score(self.reference.gallery, np.array([self.nearest[index].best.score for index in remaining]))

    # -- candidates ------------------------------------------------------------------------------------------------

    def _nominate(self, side: _Side, remaining: set[int]) -> _Nominated:
        """Find candidates of each image that is not a suspect yet."""
        pairs: dict[int, list[_Pair]] = defaultdict(list)
        too_many = 0
        for nominations in (self._by_score(side, remaining), self._by_tones(side, remaining)):
            if side.other is Other.HOLDOUT:
                nominations = self._each_once(nominations, remaining)
            ranked = sorted(nominations, key=lambda nomination: -nomination.rank)
            too_many += max(0, len(ranked) - PAIRS_AT_MOST)
            for nomination in ranked[:PAIRS_AT_MOST]:
                pairs[nomination.index].append(nomination.pair)
        return _Nominated(pairs, too_many)

    def _each_once(self, nominations: Iterable[_Nomination], remaining: set[int]) -> Iterator[_Nomination]:
        """Yield pairs within the hold-out, each once: the later image is the one that may repeat the other."""
        seen: set[tuple[int, int, int, int]] = set()
        for nomination in nominations:
            index, pair = nomination.index, nomination.pair
            other = self.places[pair.candidate.key]
            if other == index or other not in remaining:
                continue
            if other > index:
                mine = Match(self.holdout.items[index].name, pair.frame, pair.candidate.score)
                index, other, pair = other, index, _Pair(pair.candidate.frame, mine, pair.score)
            which = index, pair.frame, other, pair.candidate.frame
            if which not in seen:
                seen.add(which)
                yield _Nomination(nomination.rank, index, pair)

    def _by_score(self, side: _Side, remaining: set[int]) -> Iterator[_Nomination]:
        """Nominate candidates by the model's score, over all looks."""
        looks = self.holdout.looks
        rows = [row for row, index in enumerate(self.holdout.of.tolist()) if index in remaining]
        top = side.by_score + (side.other is Other.HOLDOUT)  # itself
        best: dict[tuple[int, int], dict[str, Match]] = defaultdict(dict)
        queries: Floats = self.holdout.embeddings[rows].reshape(-1, self.screener.bundle.features)
        for start in range(0, len(queries), BATCH):
            for offset, matches in enumerate(side.searchable.closest(queries[start : start + BATCH], top)):
                row = rows[(start + offset) // looks]
                found = best[int(self.holdout.of[row]), int(self.holdout.frames[row])]
                for match in matches:
                    if match.key not in found or match.score > found[match.key].score:
                        found[match.key] = match
        for (index, frame), found in best.items():
            for match in sorted(found.values(), key=lambda match: -match.score)[:top]:
                yield _Nomination(match.score, index, _Pair(frame, match, match.score))

    def _by_tones(self, side: _Side, remaining: set[int]) -> Iterator[_Nomination]:
        """Nominate candidates by the correlation of thumbnails' tones."""
        if side.images is None:
            return
        asked = [row for row, (index, _) in enumerate(self.holdout.thumbnail_of.tolist()) if index in remaining]
        top = BY_TONES + (side.other is Other.HOLDOUT)
        found, correlations = candidates(self.holdout.thumbnails[asked], side.images.thumbnails, top)
        for row, near, alike in zip(asked, found.tolist(), correlations.tolist(), strict=True):
            index, frame = self.holdout.thumbnail_of[row].tolist()
            for place, correlation in zip(near, alike, strict=True):
                if correlation >= LIKELY:
                    other, other_frame = side.images.thumbnail_of[place].tolist()
                    candidate = Match(side.images.items[other].name, other_frame, 0.0)
                    yield _Nomination(correlation, index, _Pair(frame, candidate, None))

    # -- pixels ----------------------------------------------------------------------------------------------------

    def _examine(self, index: int, nominated: Sequence[Sequence[_Pair]], freely: bool, limit: float | None) -> Iterator[Suspect]:
        """Yield the suspicions that an image raises, the reference's first."""
        own = _Remembered(self.own.pixels)
        for side, pairs in zip(self.sides, nominated, strict=True):
            suspect = self._aligned(index, own, side, pairs)
            if suspect is None and side.other is Other.REFERENCE:
                suspect = self._nearest(index, own, freely, limit)
            if suspect is not None:
                yield suspect

    def _aligned(self, index: int, own: _Remembered, side: _Side, pairs: Sequence[_Pair]) -> Suspect | None:
        """The first of the best aligned candidates whose pixels agree."""
        candidates_pixels = _Remembered(side.pixels)
        name = self.holdout.items[index].name
        aligned: list[tuple[Alignment, _Pair]] = []
        for pair in pairs:
            small = side.thumbnails.get((pair.candidate.key, pair.candidate.frame))
            if small is None and (pixels := candidates_pixels(pair.candidate)) is not None:
                small = thumbnail(pixels)
            if small is not None:
                found = align(self.own.thumbnails[name, pair.frame], small, crops=pair.score is not None)
                if found.correlation >= PROMISING:
                    aligned.append((found, pair))
        aligned.sort(key=lambda each: -each[0].correlation)
        for alignment, pair in aligned[:COMPARED]:
            first, second = own(Match(name, pair.frame, 0.0)), candidates_pixels(pair.candidate)
            if first is None or second is None:
                continue
            score = self._score(name, side, pair)
            if np.array_equal(first, second):
                return Suspect(index, Suspicion.SAME_PIXELS, side.other, pair.candidate.key, score, 1.0)
            value = agreement(first, second, alignment)
            if value >= AGREES:
                return Suspect(index, Suspicion.ALTERED_COPY, side.other, pair.candidate.key, score, value)
            matches = score is not None and score >= self.screener.bundle.threshold.value
            if value == NOT_COMPARABLE and matches and alignment.correlation >= OVEREXPOSED:
                return Suspect(index, Suspicion.ALTERED_COPY, side.other, pair.candidate.key, score)
        return None

    def _nearest(self, index: int, own: _Remembered, freely: bool, limit: float | None) -> Suspect | None:
        """What comparing an image with its nearest reference image says, in any turn; by the score alone if that is not at hand."""
        frame, match = self.nearest[index].frame, self.nearest[index].best
        value: float | None = None
        if freely:
            first, second = own(Match(self.holdout.items[index].name, frame, 0.0)), self.reference.pixels(match)
            value = None if first is None or second is None else agreement(first, second)
            self.agreements[index] = value
        if value is not None and value >= AGREES:
            return Suspect(index, Suspicion.ALTERED_COPY, Other.REFERENCE, match.key, match.score, value)
        if value is None and limit is not None and match.score >= limit:
            return Suspect(index, Suspicion.LIKE_A_COPY, Other.REFERENCE, match.key, match.score)
        return None

    def _score(self, name: str, side: _Side, pair: _Pair) -> float | None:
        """The model's score for a pair, over all renderings and looks."""
        if pair.score is not None or side.images is None:
            return pair.score
        mine = self.holdout.embeddings[self.own.rows[name, pair.frame]].reshape(-1, self.screener.bundle.features)
        theirs = side.images.embeddings[side.rows[pair.candidate.key, pair.candidate.frame], 0]
        logits = [float(self.head.logits(rendering, theirs).max()) for rendering in mine]
        return float(sigmoid(np.array(max(logits))))
