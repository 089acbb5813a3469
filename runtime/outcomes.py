"""What comes of a picture that is compared, indexed or embedded, and the verdict on one. `screening.Result` is the fourth."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .errors import Reason
from .gallery import Added, Hit, SearchResult
from .head import Floats
from .identifiers import NOBODY, Identifiers
from .notes import SUSPICIOUS, Note

__all__ = ["SCHEMA_VERSION", "Comparison", "Embedded", "EmbeddedFile", "Indexed", "Verdict", "hit_json", "judged"]

SCHEMA_VERSION = 1


class Verdict(StrEnum):
    """`clear`: nothing scored at or above the threshold. `match`: something did. `error`: it could not be judged."""

    CLEAR = "clear"
    MATCH = "match"
    ERROR = "error"


@dataclass(frozen=True)
class Indexed:
    """What became of one picture that was to be added to a gallery.

    Attributes:
        path: the picture, as valid text; also its key, made absolute.
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
    """Two pictures compared; of multi-frame pictures, their two most alike frames. `threshold_source`: see `ThresholdSource`."""

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
    """A picture's embeddings, for who compares them by themselves.

    Attributes:
        path: the picture, as valid text.
        content: sha256 (32 bytes) of the file; None when it could not be read.
        embeddings: of all views (see `Picture.views`) of the frames that could be, float32 (views, features).
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


def judged(found: SearchResult, notes: Collection[Note]) -> dict[str, Any]:
    """Verdict, reason and detail. A match is one whatever the header is like; clear is only what has a sound one."""
    if found.total:
        return {"verdict": Verdict.MATCH, "reason": Reason.AT_OR_ABOVE_THRESHOLD}
    odd = ", ".join(sorted(SUSPICIOUS.intersection(notes)))
    if odd:
        detail = f"nothing like it was found, but its header is not that of a sound object ({odd}): let a person look at it"
        return {"verdict": Verdict.ERROR, "reason": Reason.SUSPICIOUS_HEADER, "detail": detail}
    return {"verdict": Verdict.CLEAR, "reason": Reason.BELOW_THRESHOLD}


def hit_json(hit: Hit) -> dict[str, Any]:
    """A gallery picture as it is in lines of JSON."""
    return {
        "key": hit.key,
        "frame": hit.frame,
        "score": hit.score,
        "gallery": hit.gallery,
        "patient": hit.patient,
        "study": hit.study,
    }
