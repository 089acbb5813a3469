"""The audit itself: three sets embedded, searched, compared, judged. What comes out is an `Audit`, which `report` writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..calibration.threshold import decide_threshold, stored_calibration
from ..errors import GalleryError, ImageError, UsageError
from ..gallery import Gallery
from ..images.formats import read_file
from ..images.reader_version import READER_VERSION
from ..model.bundle import Bundle
from ..model.head import check_threshold
from ..model.strangers import check_rate
from ..privacy import ReportPseudonyms, SiteKey
from ..screening import Screener
from ..system.cpu import cpu_limit
from .embedding import frame_of
from .embedding_cache import Cache
from .findings import Finding, Grade
from .folders import PRIVATE, prepare_output, walked
from .labels import folder_of, read_labels
from .neighbours import Found, InMemory, Match
from .patients import Patients
from .pixel_match import AGREES, agreement
from .reference import Reference, is_index, searchable_set
from .sets import ImageSet, Item, embed_set
from .statistics import Excess, Nearer, Shift, by_trial, nearer, shift
from .suspects import CERTAIN, Other, Suspect, Suspicion, vet
from .thresholds import Basis, ByChance, Limit, by_chance, choose_limit
from .tta import LOOKS, VERSION

__all__ = ["PRIVATE", "Audit", "Looking", "Memorization", "Progress", "Request", "Tests", "audit", "is_index"]

COMPARED_AT_MOST = 4_000
"""Pairs that are compared pixel by pixel, best scores first: some 25 ms each."""
BATCH = 256
FEWEST_FOR_TESTS = 5

T = TypeVar("T")
Doubles = NDArray[np.float64]
Progress = Callable[[Iterable[T], int, str], Iterable[T]]
"""Passes items on, and shows how far it is: items, how many there will be, what is done with them."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        released: folder of images that are to be released.
        reference: folder of images that must not be given away, or an index of them.
        out: folder for the report and its private part.
        holdout: folder of images like the reference's that are not in it.
        threshold: score in (0, 1); None chooses one (see `limits`).
        wanted: share of images without a copy that may reach a chosen threshold.
        tta: look at released images mirrored and turned too.
        search: how an index is searched: "auto", "exact" or "hnsw".
        top: reference images to list for one released image.
        labels: CSV file with a class or data set for released images.
        fpir: as `wanted`, where there is no hold-out and the bundle's strangers set the threshold; None takes 5 %.
        patients: CSV file with the patients of images of any set (see `Patients`).
        ignore_patients: take no notice of the patients in DICOM headers, which may be anonymous.
        suspects: "leave-out" suspects of the hold-out (see `suspects`), or "keep" those that are not certain.
    """

    released: Path
    reference: Path
    out: Path
    holdout: Path | None = None
    threshold: float | None = None
    wanted: float = 0.01
    tta: bool = False
    search: str = "auto"
    top: int = 10
    labels: Path | None = None
    fpir: float | None = None
    patients: Path | None = None
    ignore_patients: bool = False
    suspects: str = "leave-out"


@dataclass(frozen=True)
class Looking:
    """What `--tta` changed: the same audit without it beside this one.

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
    """Released beside hold-out: `shift` asks whether released images are nearer to the reference than hold-out images are,
    `nearer` whether released images are nearer to the reference than to the hold-out."""

    shift: Shift
    nearer: Nearer


@dataclass(frozen=True)
class Tests:
    """What a hold-out was good for.

    Attributes:
        images: that were used.
        suspects: images that are copies of reference or released ones, or of a patient of the reference.
        kept: those of them that were counted all the same, as the user told us.
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
        kept = {suspect.at for suspect in self.kept}
        return tuple(suspect for suspect in self.suspects if suspect.at not in kept)


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


def audit(
    screener: Screener,
    request: Request,
    progress: Progress = lambda items, total, what: items,  # type: ignore[type-arg]
    warn: Callable[[str], None] = lambda line: None,
) -> Audit:
    """Audit a released set against a reference.

    What was embedded is kept in the private part of `request.out`, so that an audit that was interrupted goes on there.

    Args:
        screener: with the bundle to use; of the index, where the reference is one.
        progress: see `Progress`.
        warn: is told what an index mends by itself, and other things that the user should see at once.

    Raises:
        UsageError: something that cannot be audited as it was asked.
        GalleryError: the index cannot be used, or nothing of the reference can be read.
    """
    started = time.monotonic()
    if request.threshold is not None:
        check_threshold(request.threshold)
    if request.fpir is not None and check_rate(request.fpir) and request.holdout:
        raise UsageError("a hold-out sets the threshold by the wanted rate (--wanted-rate): leave --fpir away, or the hold-out")
    if request.top < 1:
        raise UsageError(f"{request.top} matches cannot be listed; ask for 1 or more")
    if request.suspects not in ("leave-out", "keep"):
        raise UsageError(f"suspects must be leave-out or keep, got {request.suspects}")
    kept_back = {"the reference": request.reference, **({"the hold-out": request.holdout} if request.holdout else {})}
    folders = {"the released images": request.released, **kept_back}
    # Before anything is written or embedded: a set without an image ends the audit.
    sets = {what: walked(folder, what) for what, folder in folders.items() if what != "the reference" or not is_index(folder)}
    request = replace(request, out=prepare_output(request.out, request.released, kept_back))
    private = request.out / PRIVATE
    patients = Patients(request.patients) if request.patients else None
    looks = tuple(LOOKS.values()) if request.tta else ()
    caveats: list[str] = []
    with ExitStack() as open_things:
        gallery = None
        if is_index(request.reference):
            gallery = open_things.enter_context(Gallery.open(request.reference, screener.bundle, warn=warn))
            if not len(gallery):
                raise GalleryError(f"{request.reference} holds no images, so nothing can be found in it: add some first")
        pseudonyms = ReportPseudonyms(private / "pseudonyms.key")
        own_key = SiteKey(pseudonyms.secret)
        reference = Reference(screener, gallery, request.search) if gallery is not None else None
        if reference is not None:
            open_things.callback(reference.close)
        key = own_key
        if gallery is not None and reference is not None and request.holdout and reference.patients and not request.ignore_patients:
            try:
                key = gallery.site_key()
            except UsageError as error:
                warn(f"patients of the hold-out are not compared with the index's: {error}")
                caveats.append("The hold-out's patients could not be compared with the reference's, for want of the site key.")

        def embedded(folder: Path, what: str, looks_here: Sequence[object]) -> ImageSet:
            found, skipped = sets[what]
            into = ImageSet(max(1, len(looks_here)), screener.bundle.features, skipped)
            model = f"{screener.bundle.fingerprint}/reader{READER_VERSION}" + (f"/tta{VERSION}" if looks_here else "")
            with Cache(private / "embeddings.sqlite", model, screener.bundle.features, key.name) as cache:
                steps = embed_set(screener, found, folder, into, cache, looks if looks_here else (), key)
                for _ in progress(steps, len(found), f"reading {what}"):
                    pass
            into.items = [_with_patient(item, patients, request.ignore_patients) for item in into.items]
            return into

        if reference is None:
            images = embedded(request.reference, "the reference", ())
            if not len(images.embeddings):
                raise GalleryError(f"{request.reference} holds no image that can be read: there is nothing to compare with")
            reference = Reference(screener, images, request.search)
        else:
            reference.name_patients(patients, comparable=key is not own_key)
        released = embedded(request.released, "the released images", looks)
        holdout = embedded(request.holdout, "the hold-out", looks) if request.holdout else None
        if patients:
            patients.check_used()
        if holdout and not reference.has_keys and any(item.patient for item in holdout.items):
            caveats.append("The hold-out's patients could not be compared with the reference's: the index was not read as a whole.")
        names = [item.name for item in released.items]
        labels = read_labels(request.labels, names) if request.labels else {}
        work = _Work(screener, request, progress, reference, caveats)
        return work.audit(released, holdout, labels, pseudonyms, started)


def _with_patient(item: Item, patients: Patients | None, ignore_header: bool) -> Item:
    """An item with the patient that a list gives it, or else the one of its header."""
    listed = patients.of(item.path) if patients else None
    return replace(item, patient=listed or (None if ignore_header else item.patient))


class _Work:
    """One audit under way: what its steps share."""

    def __init__(
        self,
        screener: Screener,
        request: Request,
        progress: Progress,  # type: ignore[type-arg]
        reference: Reference,
        caveats: Sequence[str],
    ) -> None:
        self.screener, self.request, self.progress = screener, request, progress
        self.reference, self.gallery, self.searchable = reference, reference.gallery, reference.searchable
        self.bundle = screener.bundle
        self.caveats = tuple(caveats)

    def audit(
        self,
        released: ImageSet,
        holdout: ImageSet | None,
        labels: dict[str, dict[str, str]],
        pseudonyms: ReportPseudonyms,
        started: float,
    ) -> Audit:
        request = self.request
        held = self._best(holdout, "searching for the hold-out", None) if holdout else {}
        tests, kept, known = self._vetted(holdout, released, held) if holdout else (None, [], {})
        scores = _scores(held, kept)
        stored = self._stored_limit()
        limit = self._limit(stored, scores)
        best = self._best(released, "searching", limit.value)
        chance = self._chance(limit, best, scores, released.looks)
        agreeing, compared, left = self._compare(released, best, limit.compare, {})
        held_agreeing, _, _ = self._compare(holdout, {at: held[at] for at in kept}, limit.compare, known) if holdout else ({}, 0, 0)
        findings = [self._finding(released, at, best.get(at), limit, agreeing.get(at), labels) for at in range(len(released.items))]
        promoted = None
        if holdout and tests:
            promoted_there = sum(
                agreeing_there is not None and agreeing_there >= AGREES and held[at].best.score < limit.value
                for at, agreeing_there in held_agreeing.items()
            )
            if self.reference.images or any(value is not None for value in held_agreeing.values()):
                promoted = by_trial(len(best), promoted_there, len(kept))
            tests = replace(
                tests,
                scores=scores if scores is not None else np.empty(0),
                memorization=self._memorization(released, holdout, kept, best, held),
            )
        for finding in findings:  # so that what has a pseudonym does not depend on what a report shows
            for match in (finding.nearest, *finding.matches):
                if match and finding.grade is not Grade.CLEAR:
                    pseudonyms.name(match.key)
        return Audit(
            request=request,
            bundle=self.bundle,
            variant=self.screener.encoder.variant,
            provider=self.screener.encoder.provider,
            released=released,
            reference=self.reference.images,
            holdout=holdout,
            index=self.reference.described(),
            gallery=len(self.searchable),
            exact=self.searchable.exact,
            findings=findings,
            limit=limit,
            chance=chance,
            promoted=promoted,
            compared=compared,
            not_compared=left,
            tests=tests,
            looking=self._looking(limit, best, held, kept, stored) if request.tta else None,
            pseudonyms=pseudonyms,
            seconds=time.monotonic() - started,
            caveats=self.caveats,
            pixels=self.reference.pixels,
            released_pixels=lambda at, frame: self._pixels(released.items[at].path, frame),
        )

    def _vetted(
        self, holdout: ImageSet, released: ImageSet, held: dict[int, _Best]
    ) -> tuple[Tests, list[int], dict[int, float | None]]:
        """The hold-out without its suspects: what is known of it, the items that count, and what comparing their pixels gave.

        Raises:
            UsageError: nothing is left of it.
        """
        nearest = {at: (each.frame, each.best) for at, each in held.items()}
        vetted = vet(self.screener, holdout, released, self.reference, nearest, self.progress)
        keep = self.request.suspects == "keep"
        kept = tuple(suspect for suspect in vetted.suspects if keep and suspect.suspicion not in CERTAIN)
        left_out = {suspect.at for suspect in (*vetted.suspects, *vetted.repeated)} - {suspect.at for suspect in kept}
        counted = [at for at in holdout.readable if at not in left_out]
        if not counted:
            raise UsageError(_nothing_left(self.request.holdout, vetted.suspects))
        tests = Tests(len(counted), vetted.suspects, kept, vetted.repeated, vetted.not_aligned, np.empty(0), None)
        return tests, counted, vetted.agreements

    # -- thresholds ------------------------------------------------------------------------------------------------

    def _stored_limit(self) -> Limit | None:
        """The threshold that a calibration left with the index, and what it promises at the index's size."""
        calibration = stored_calibration(self.gallery) if self.gallery else None
        if self.gallery is None or calibration is None:
            return None
        decision = decide_threshold(self.gallery)
        growth, size = calibration.growth, self.gallery.vectors()
        ends = calibration.fpir_interval
        high = growth.at_most(size, ends.high)
        middle = min(growth.expected(size), high)
        rate = (min(ends.low, middle), middle, high)
        warning = " ".join(decision.warnings) or None
        return Limit(decision.threshold, 0.0, 0.0, Basis.INDEX, decision.words, warning=warning, stored_rate=rate)

    def _limit(self, stored: Limit | None, scores: Doubles | None) -> Limit:
        asked, size = self.request, len(self.searchable)
        return choose_limit(
            self.bundle, asked.wanted, given=asked.threshold, stored=stored, holdout=scores, gallery=size, fpir=asked.fpir
        )

    def _chance(self, limit: Limit, best: dict[int, _Best], scores: Doubles | None, looks: int) -> ByChance:
        found = sum(each.best.score >= limit.value for each in best.values())
        return by_chance(
            self.bundle, limit, images=len(best), found=found, gallery=len(self.searchable), holdout=scores, looks=looks
        )

    def _looking(
        self, limit: Limit, best: dict[int, _Best], held: dict[int, _Best], kept: list[int], stored: Limit | None
    ) -> Looking:
        scores = np.array([held[at].plain.score for at in kept]) if kept else None
        plain = self._limit(stored, scores)
        with_looks = {at for at, each in best.items() if each.best.score >= limit.value}
        without = {at for at, each in best.items() if each.plain.score >= plain.value}
        chance = by_chance(
            self.bundle, plain, images=len(best), found=len(without), gallery=len(self.searchable), holdout=scores, looks=1
        )
        return Looking(len(LOOKS), plain, chance, len(without), len(with_looks - without), len(without - with_looks))

    # -- searching -------------------------------------------------------------------------------------------------

    def _best(self, images: ImageSet, what: str, threshold: float | None) -> dict[int, _Best]:
        """The best pair of each image that has an embedding, over its frames and looks; matches only with a threshold."""
        queries = images.embeddings.reshape(-1, self.bundle.features)
        best: dict[int, _Best] = {}

        def steps() -> Iterator[int]:
            for start in range(0, len(queries), BATCH):
                for offset, found in enumerate(self.searchable.search(queries[start : start + BATCH], threshold, self.request.top)):
                    row, look = divmod(start + offset, images.looks)
                    at = int(images.of[row])
                    best[at] = _Best.of(found, int(images.frames[row]), look, best.get(at), self.request.top)
                    yield at

        for _ in self.progress(steps(), len(queries), what):
            pass
        return best

    def _memorization(
        self, released: ImageSet, holdout: ImageSet, kept: list[int], best: dict[int, _Best], held: dict[int, _Best]
    ) -> Memorization | None:
        """Both tests, on images as they are: an image that was looked at in more ways would have more chances than another."""
        if len(kept) < FEWEST_FOR_TESTS or len(best) < FEWEST_FOR_TESTS:
            return None
        other = searchable_set(self.screener, holdout, np.flatnonzero(np.isin(holdout.of, kept)))
        places = {holdout.items[at].name: place for place, at in enumerate(kept)}
        found = list(
            self.progress(_searched(other, released.embeddings[:, 0]), len(released.embeddings), "comparing with the hold-out")
        )
        to_holdout: dict[int, Match] = {}
        for row, match in enumerate(found):
            at = int(released.of[row])
            if at not in to_holdout or match.score > to_holdout[at].score:
                to_holdout[at] = match
        order = sorted(best)
        keys = {key: number for number, key in enumerate(dict.fromkeys(best[at].plain.key for at in order))}
        return Memorization(
            shift(np.array([best[at].plain.score for at in order]), np.array([held[at].plain.score for at in kept])),
            nearer(
                (np.array([best[at].plain.score for at in order]), np.array([keys[best[at].plain.key] for at in order])),
                (np.array([to_holdout[at].score for at in order]), np.array([places[to_holdout[at].key] for at in order])),
                self.reference.size,
                len(kept),
            ),
        )

    # -- pixels ----------------------------------------------------------------------------------------------------

    def _compare(
        self, images: ImageSet, best: dict[int, _Best], least: float, known: dict[int, float | None]
    ) -> tuple[dict[int, float | None], int, int]:
        """Correlation of detail with the nearest reference image, of each image that scores `least` or more; how many
        were compared, and how many were not for want of time. What is `known` already is not compared again."""
        wanted = sorted((at for at, each in best.items() if each.best.score >= least), key=lambda at: -best[at].best.score)
        chosen, left = wanted[:COMPARED_AT_MOST], len(wanted) - COMPARED_AT_MOST

        def compared(at: int) -> float | None:
            if at in known:
                return known[at]
            other = self.reference.pixels(best[at].best)
            own = self._pixels(images.items[at].path, best[at].frame) if other is not None else None
            return None if own is None or other is None else agreement(own, other)

        values: dict[int, float | None] = {}
        if chosen:
            with ThreadPoolExecutor(cpu_limit(), thread_name_prefix="lcmem-compare") as pool:
                results = self.progress(pool.map(compared, chosen), len(chosen), "comparing pixels")
                values = dict(zip(chosen, results, strict=True))
        return values, sum(value is not None for value in values.values()), max(0, left)

    def _pixels(self, path: Path, frame: int) -> NDArray[np.uint8] | None:
        try:
            return frame_of(self.screener, read_file(path, self.screener.limits), path.name, frame)
        except ImageError:  # it was read a moment ago: it has gone, or memory has
            return None

    # -- judging ---------------------------------------------------------------------------------------------------

    def _finding(
        self,
        released: ImageSet,
        at: int,
        best: _Best | None,
        limit: Limit,
        agrees: float | None,
        labels: dict[str, dict[str, str]],
    ) -> Finding:
        item = released.items[at]
        sha256 = item.content.hex() if item.content else None
        known = {"folder": folder_of(item.name), **labels.get(item.name, {})}
        if best is None:
            return Finding(at, item.name, sha256, Grade.UNREADABLE, reasons=item.errors, labels=known)
        score, matched = best.best.score, best.best.score >= limit.value
        if self.reference.holds(item.content):
            grade = Grade.IDENTICAL
        elif agrees is not None and agrees >= AGREES:
            grade = Grade.MEMORIZED
        elif matched:
            grade = Grade.MATCH if agrees is None else Grade.REIDENTIFIED
        else:
            grade = Grade.NEAR if score >= limit.near else Grade.CLEAR
        return Finding(
            at,
            item.name,
            sha256,
            grade,
            score,
            best.plain.score,
            best.frame,
            list(LOOKS)[best.look],
            best.best,
            agrees,
            best.matches if matched else (),
            best.total if matched else 0,
            item.errors,
            known,
        )


@dataclass(frozen=True)
class _Best:
    """The best pair of an image so far, over frames and looks; `plain`: the best of its frames as they are."""

    best: Match
    plain: Match
    frame: int
    look: int
    matches: tuple[Match, ...]
    total: int

    @staticmethod
    def of(found: Found, frame: int, look: int, before: _Best | None, top: int) -> _Best:
        if before is None:  # the first look is the plain one
            return _Best(found.nearest, found.nearest, frame, look, found.matches, found.total)
        plain = found.nearest if look == 0 and found.nearest.score > before.plain.score else before.plain
        together: dict[str, Match] = {}
        for match in (*before.matches, *found.matches):
            if match.key not in together or match.score > together[match.key].score:
                together[match.key] = match
        matches = sorted(together.values(), key=lambda match: -match.score)
        total = max(before.total, found.total, len(matches))
        if found.nearest.score > before.best.score:
            return _Best(found.nearest, plain, frame, look, tuple(matches[:top]), total)
        return _Best(before.best, plain, before.frame, before.look, tuple(matches[:top]), total)


def _searched(other: InMemory, queries: NDArray[np.float32]) -> Iterator[Match]:
    for start in range(0, len(queries), BATCH):
        for found in other.search(queries[start : start + BATCH], None, 1):
            yield found.nearest


def _scores(held: dict[int, _Best], kept: list[int]) -> Doubles | None:
    return np.array([held[at].best.score for at in kept], np.float64) if kept else None


def _nothing_left(holdout: Path | None, suspects: Sequence[Suspect]) -> str:
    """What is wrong with a hold-out of which nothing can be counted."""
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
