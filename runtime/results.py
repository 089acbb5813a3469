"""What comes of an image that is compared, indexed or embedded, and the verdict on one. `screening.Result` is the fourth."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .errors import Reason
from .gallery import Added, Hit, Identity, SearchResult
from .images.content_flags import SUSPICIOUS, ContentFlag
from .images.dicom.identifiers import NOBODY, Identifiers
from .model.head import Floats

__all__ = ["SCHEMA_VERSION", "Comparison", "Embedded", "EmbeddedFile", "Indexed", "Verdict", "hit_json", "judged"]

SCHEMA_VERSION = 1


class Verdict(StrEnum):
    """`clear`: nothing scored at or above the threshold. `match`: something did. `error`: it could not be judged."""

    CLEAR = "clear"
    MATCH = "match"
    ERROR = "error"


class ThresholdSource(StrEnum):
    """Where a threshold comes from.

    `given` by the user, set for the `index` by a calibration, taken from the bundle's `strangers` for the gallery's size, or the
    `bundle`'s, for pairs.
    """

    GIVEN = "given"
    INDEX = "index"
    STRANGERS = "strangers"
    BUNDLE = "bundle"


@dataclass(frozen=True)
class Result:
    """The verdict on one frame of one image.

    Attributes:
        path: the image, as valid text.
        frame: the frame's number from 0; None when the image as a whole could not be judged.
        verdict: see `Verdict`.
        reason: a stable code for programs.
        detail: for people: what is wrong, when the verdict is `error`.
        threshold: the score that was needed for a match.
        threshold_source: where that comes from.
        matches: gallery images at or above it, best first.
        total: how many there are, of which `matches` lists the best.
        nearest: the best gallery image, match or not.
        sha256: of the file, hex; None when it could not be read.
        identities: the patients of the matches, best first.
        notes: what else the file holds that was not screened, such as overlays and thumbnails (see `ContentFlag`).
        complete: False where the search went through the graph, so that a match may be missing (see `SearchResult`).
    """

    path: str
    frame: int | None
    verdict: Verdict
    reason: Reason
    threshold: float
    detail: str | None = None
    matches: tuple[Hit, ...] = ()
    total: int = 0
    nearest: Hit | None = None
    sha256: str | None = None
    identities: tuple[Identity, ...] = ()
    complete: bool = True
    notes: tuple[ContentFlag, ...] = ()
    threshold_source: ThresholdSource = ThresholdSource.GIVEN

    def as_json(self) -> dict[str, Any]:
        """The line of JSON that `scan --json` prints. Fields are added in later versions, never removed or redefined."""
        return {
            "schema_version": SCHEMA_VERSION,
            "path": self.path,
            "frame": self.frame,
            "verdict": self.verdict.value,
            "reason": self.reason.value,
            "detail": self.detail,
            "threshold": self.threshold,
            "threshold_source": self.threshold_source.value,
            "matches": [hit_json(hit) for hit in self.matches],
            "matches_total": self.total,
            "nearest": hit_json(self.nearest) if self.nearest else None,
            "sha256": self.sha256,
            "identities": [{"patient": one.patient, "score": one.score, "best": hit_json(one.best)} for one in self.identities],
            "complete": self.complete,
            "notes": [note.value for note in self.notes],
        }


@dataclass(frozen=True)
class Indexed:
    """What became of one image that was to be added to a gallery.

    Attributes:
        path: the image, as valid text; also its key, made absolute.
        added: new, known or copy; None when it was not added.
        frames: how many frames were added or are there.
        errors: what could not be read, a (frame or None, reason, detail) each.
    """

    path: str
    added: Added | None
    frames: int
    errors: tuple[tuple[int | None, Reason, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The line of JSON that `index build --json` and `index add --json` print."""
        return {
            "schema_version": SCHEMA_VERSION,
            "path": self.path,
            "added": self.added.value if self.added else None,
            "frames": self.frames,
            "errors": [{"frame": frame, "reason": reason.value, "detail": detail} for frame, reason, detail in self.errors],
        }


@dataclass(frozen=True)
class Comparison:
    """Two images compared; of multi-frame images, their two most alike frames. `threshold_source`: see `ThresholdSource`."""

    score: float
    logit: float
    threshold: float
    verdict: Verdict
    frames: tuple[int, int]
    threshold_source: str = "given"

    def as_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "score": self.score,
            "logit": self.logit,
            "threshold": self.threshold,
            "verdict": self.verdict.value,
            "frames": list(self.frames),
            "threshold_source": self.threshold_source,
        }


@dataclass(frozen=True, eq=False)
class Embedded:
    """An image's embeddings, for who compares them by themselves.

    Attributes:
        path: the image, as valid text.
        content: sha256 (32 bytes) of the file; None when it could not be read.
        embeddings: of all views (see `ImageFile.views`) of the frames that could be, float32 (views, features).
        errors: what could not be read, a (frame or None, reason, detail) each.
        identifiers: whose it is, where its header says so.
    """

    path: str
    content: bytes | None
    embeddings: Floats
    errors: tuple[tuple[int | None, Reason, str], ...] = ()
    identifiers: Identifiers = NOBODY


@dataclass(frozen=True, eq=False)
class EmbeddedFile:
    """A file's embeddings, frame by frame.

    Attributes:
        path: the file, as valid text.
        content: sha256 (32 bytes) of the file; None when it could not be read.
        frames: how many frames the file has; 0 when it could not be opened, or was left out.
        embeddings: frame's number to float32 (renderings, features), of the frames that could be read.
        errors: what could not be read, a (frame or None, reason, detail) each.
    """

    path: str
    content: bytes | None
    frames: int
    embeddings: dict[int, Floats]
    errors: tuple[tuple[int | None, Reason, str], ...] = ()


def judged(found: SearchResult, notes: Collection[ContentFlag]) -> dict[str, Any]:
    """Verdict, reason and detail. A match is one whatever the header is like; clear is only what has a sound one."""
    if found.total:
        return {"verdict": Verdict.MATCH, "reason": Reason.AT_OR_ABOVE_THRESHOLD}
    odd = ", ".join(sorted(SUSPICIOUS.intersection(notes)))
    if odd:
        detail = f"nothing like it was found, but its header is not that of a sound object ({odd}): let a person look at it"
        return {"verdict": Verdict.ERROR, "reason": Reason.SUSPICIOUS_HEADER, "detail": detail}
    return {"verdict": Verdict.CLEAR, "reason": Reason.BELOW_THRESHOLD}


def hit_json(hit: Hit) -> dict[str, Any]:
    """A gallery image as it is in lines of JSON."""
    return {
        "key": hit.key,
        "frame": hit.frame,
        "score": hit.score,
        "gallery": hit.gallery,
        "patient": hit.patient,
        "study": hit.study,
    }
