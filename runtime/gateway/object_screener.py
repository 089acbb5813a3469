"""An object to an outcome: its header read, a rule chosen, every frame of it scored against that rule's gallery.

Whatever goes wrong on the way is an outcome too, with the verdict `error` and a reason; never is it `clear`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..calibration.threshold import decide_threshold
from ..errors import GalleryError, ImageError, LcmemError, Reason, UsageError
from ..gallery import Gallery
from ..gallery.storage.database import file_state
from ..gallery.storage.store import DATABASE
from ..images.discovery import Found, image_name
from ..images.formats import HEAD, Kind, sniff
from ..results import Result
from ..screening import Screener
from .dicom_header import Header, HeaderError, read_header
from .json_logging import Log
from .outcome import Cause, Near, Outcome
from .rules import Facts, choose_rule, decide
from .settings import GallerySettings, Rule, Settings
from .spool import Item, Source, Spool

__all__ = ["ObjectScreener"]

NO_HEADER = Header("", "", "", "", "")
"""Of an image that is no DICOM object. Rules that ask for a modality or a SOP class do not fit it."""

log = Log("screen")


@dataclass
class _Job:
    """An object whose frames are being scored."""

    item: Item
    rule: Rule
    header: Header
    began: float
    results: list[Result] = field(default_factory=list)


class ObjectScreener:
    """Screens objects of a spool. One thread's: neither galleries nor sessions are shared.

    Args:
        screener: a screener; None opens the model that the settings name.

    Raises:
        BundleError, ProviderError, UsageError: the model cannot be opened.
    """

    def __init__(self, settings: Settings, spool: Spool, screener: Screener | None = None) -> None:
        self._settings = settings
        self._spool = spool
        model = settings.model
        self._screener = screener or Screener(
            model.bundle, variant=model.variant, provider=model.provider, threads=model.threads, isolate=model.isolate
        )
        self._galleries: dict[str, Gallery] = {}
        self._files: dict[str, tuple[object, ...]] = {}
        """Which files the open galleries are."""

    def close(self) -> None:
        self._screener.close()
        for gallery in self._galleries.values():
            gallery.close()
        self._galleries.clear()

    def screen(self, items: Sequence[Item]) -> Iterator[tuple[Item, Outcome]]:
        """An outcome for each object, as they come."""
        jobs: dict[str, list[_Job]] = {}
        for item in items:
            try:
                prepared = self._prepare(item)
            except Exception as error:  # noqa: BLE001  # an object must not stop those behind it
                log.defect("defect", error)
                prepared = _failure(Cause.INTERNAL_ERROR)
            if isinstance(prepared, Outcome):
                yield item, prepared
            else:
                jobs.setdefault(prepared.rule.gallery, []).append(prepared)
        for name, group in jobs.items():
            yield from self._score(next(gallery for gallery in self._settings.gallery if gallery.name == name), group)

    def _prepare(self, item: Item) -> _Job | Outcome:
        began = time.monotonic()
        try:
            asked = item.source is Source.SCREEN and _other_image(self._spool.files.path(item.id))
            header = NO_HEADER if asked else read_header(self._spool.files.path(item.id))
        except HeaderError as error:
            return _failure(Cause.HEADER_UNREADABLE if error.is_dicom else Cause.NOT_DICOM)
        except FileNotFoundError:
            return _failure(Cause.BYTES_MISSING)
        except OSError as error:
            log.error("not-readable", object=item.id, error=type(error).__name__)
            return _failure(Reason.READ_FAILED)
        declared = (item.sop_instance, item.sop_class, item.transfer_syntax)
        if not asked and (declared != (header.sop_instance, header.sop_class, header.transfer_syntax) or not all(declared)):
            # Whoever looks at one identity must not be shown another; archives go by the one in the file meta information.
            return replace(_failure(Cause.IDENTITY_MISMATCH), study=header.study, identifiers=header.identifiers)
        rule = choose_rule(
            self._settings.rule,
            Facts(item.source.value, item.calling_aet, item.called_aet, header.modality, header.sop_class),
        )
        if rule is None:
            return replace(_failure(Cause.NO_RULE), study=header.study, identifiers=header.identifiers)
        return _Job(item, rule, header, began)

    def _score(self, against: GallerySettings, jobs: list[_Job]) -> Iterator[tuple[Item, Outcome]]:
        """Score the objects of one gallery together, so that their frames share batches."""
        name = against.name
        by_path = {image_name(self._spool.files.path(job.item.id)): job for job in jobs}
        paths = [self._spool.files.path(job.item.id) for job in jobs]
        cause: str = Cause.INTERNAL_ERROR
        try:
            gallery = self._gallery(against)
            index = index_digest(gallery)
            last: _Job | None = None
            for result in self._screener.screen(
                [Found(path) for path in paths],
                gallery,
                threshold=against.threshold,
                fpir=against.fpir,
                top=self._settings.screen.nearest,
                search="exact",  # what is forwarded must be proven clear, and no search graph proves that
                galleries=against.groups or None,
            ):
                job = by_path[result.path]
                if last is not None and last is not job:
                    yield last.item, self._outcome(last, index)
                    del by_path[image_name(self._spool.files.path(last.item.id))]
                job.results.append(result)
                last = job
            if last is not None:
                outcome = self._outcome(last, index)
                del by_path[image_name(self._spool.files.path(last.item.id))]
                yield last.item, outcome
            cause = Cause.INTERNAL_ERROR  # a file of which nothing was said, which does not happen
        except GalleryError as error:
            log.error("index-unavailable", gallery=name, error=type(error).__name__, detail=str(error))
            self._drop(name)
            cause = Cause.INDEX_UNAVAILABLE
        except UsageError as error:
            log.error("model-unavailable", gallery=name, detail=str(error))
            cause = Cause.MODEL_UNAVAILABLE
        except ImageError as error:
            cause = error.reason
        except LcmemError as error:
            log.error("not-screened", gallery=name, error=type(error).__name__)
        except Exception as error:  # noqa: BLE001  # whatever it is, these objects are not clear
            log.defect("defect", error)
        for job in by_path.values():
            yield job.item, self._failed(job, cause)

    def _gallery(self, against: GallerySettings) -> Gallery:
        file = index_file(against.index)
        if self._files.get(against.name) != file:
            self._drop(against.name)
        if against.name not in self._galleries:
            warn = lambda line: log.warning("gallery", gallery=against.name, detail=line)  # noqa: E731
            gallery = Gallery.open(against.index, self._screener.bundle, warn=warn)
            self._galleries[against.name] = gallery
            self._files[against.name] = file
            decision = decide_threshold(gallery, against.threshold, against.fpir, against.groups or None)
            log.info("threshold", gallery=against.name, threshold=decision.threshold, source=decision.source, detail=decision.words)
            for line in decision.warnings:
                log.warning("threshold", gallery=against.name, detail=line)
        return self._galleries[against.name]

    def _drop(self, name: str) -> None:
        """Forget a gallery that was damaged, removed or replaced, so that it is opened anew."""
        self._files.pop(name, None)
        gallery = self._galleries.pop(name, None)
        if gallery is not None:  # its truth is its length, which reads what may be gone
            gallery.close()

    def _failed(self, job: _Job, cause: str) -> Outcome:
        action, destinations = decide(job.rule, "error")
        return Outcome(
            "error",
            cause,
            action,
            destinations,
            job.rule.name,
            job.rule.gallery,
            study=job.header.study,
            identifiers=job.header.identifiers,
            timings=self._timings(job),
        )

    def _outcome(self, job: _Job, index: str) -> Outcome:
        worst = worst_frame(job.results)
        verdict: Literal["clear", "match", "error"] = worst.verdict.value
        reason: str = worst.reason.value
        notes = tuple(sorted({note.value for result in job.results for note in result.notes}))
        no_pixels = worst.reason is Reason.NO_PIXELS and len(job.results) == 1
        if verdict == "clear" and not all(result.complete for result in job.results):
            verdict, reason = "error", Cause.SEARCH_INCOMPLETE
        action, destinations = decide(job.rule, "no-pixels" if no_pixels else verdict)
        if verdict == "clear" and set(notes) & set(job.rule.hold_notes):
            reason, action, destinations = Cause.UNSCREENED_CONTENT, "quarantine", ()
        hits = worst.matches or ((worst.nearest,) if worst.nearest else ())
        return Outcome(
            verdict,
            reason,
            action,
            destinations,
            job.rule.name,
            job.rule.gallery,
            frames=sum(result.frame is not None for result in job.results),
            worst_frame=worst.frame,
            threshold=worst.threshold,
            threshold_source=worst.threshold_source,
            nearest=tuple(Near(hit.key, hit.frame, hit.score, hit.patient) for hit in hits[: self._settings.screen.nearest]),
            model=self._screener.bundle.fingerprint,
            index=index,
            study=job.header.study,
            identifiers=job.header.identifiers,
            notes=notes,
            timings=self._timings(job),
        )

    def _timings(self, job: _Job) -> dict[str, float]:
        return {"waited": max(0.0, time.time() - job.item.arrived), "screening": time.monotonic() - job.began}


def worst_frame(results: Sequence[Result]) -> Result:
    """The frame that decides: the best match, else the first that was not judged, else the one nearest to a gallery image."""

    def badness(result: Result) -> tuple[int, float]:
        rank = {"match": 2, "error": 1, "clear": 0}[result.verdict.value]
        return rank, (result.nearest.score if result.nearest and rank != 1 else 0.0)

    return max(results, key=badness)


def _other_image(path: Path) -> bool:
    """Whether a file is an image, and not DICOM, by its first bytes. Such may be asked about; none is ever sent on."""
    with open(path, "rb") as file:
        return sniff(file.read(HEAD)) not in (None, Kind.DICOM)


def index_file(index: Path) -> tuple[object, ...]:
    """What tells an index's file from another one in its place: an open one goes on answering when it has been removed or replaced.

    Of an index that this process may not write also when it changed: SQLite reads such a file as one that never does.

    Raises:
        GalleryError: it is not there.
    """
    try:
        return file_state(index / DATABASE)
    except OSError as error:
        raise GalleryError(f"{index} is no index now: its {DATABASE} cannot be found ({error.strerror})") from error


def index_digest(gallery: Gallery) -> str:
    """What tells one state of an index from another: sha256 of its model, when it was made, and how much it holds."""
    facts = {name: value for name, value in gallery.describe().items() if name != "path"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _failure(cause: str) -> Outcome:
    """Of an object that met no rule: it stays here."""
    return Outcome("error", cause, "quarantine")
