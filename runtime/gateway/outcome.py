"""What the screening of an object came to: the verdict, why, and what a rule makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from ..images.dicom.identifiers import NOBODY, Identifiers
from ..privacy import SiteKey
from ..results import ThresholdSource
from .settings import Action

__all__ = ["Cause", "Near", "Outcome"]


class Cause(StrEnum):
    """Reasons of the gateway's own, beside those of `runtime.errors.Reason`: codes that programs may rely on."""

    NO_RULE = "no-rule"
    NOT_DICOM = "not-dicom"
    HEADER_UNREADABLE = "header-unreadable"
    IDENTITY_MISMATCH = "identity-mismatch"
    UNSCREENED_CONTENT = "unscreened-content"
    SEARCH_INCOMPLETE = "search-incomplete"
    INDEX_UNAVAILABLE = "index-unavailable"
    MODEL_UNAVAILABLE = "model-unavailable"
    TIMED_OUT = "timed-out"
    CRASHED = "screening-crashed"
    INTERRUPTED = "interrupted-too-often"
    BYTES_MISSING = "bytes-missing"
    CHANGED_ON_DISK = "changed-on-disk"
    NO_DESTINATION = "no-destination"
    INTERNAL_ERROR = "internal-error"


@dataclass(frozen=True)
class Near:
    """A gallery image near the object's worst frame.

    Attributes:
        key: its key in the gallery, which may be a path that names a patient: for the quarantine's page, not for logs.
        frame: of the gallery image.
        score: in (0, 1).
        patient: the index's pseudonym of its patient, where it has one.
    """

    key: str
    frame: int
    score: float
    patient: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The verdict on an object, and what is done with it.

    Attributes:
        verdict: over all frames: match if one matches, else error if one could not be judged, else clear.
        reason: `Cause` or `runtime.errors.Reason`, of the worst frame.
        action: see `settings.Action`.
        destinations: where it is forwarded to, for `forward`.
        rule, gallery: their names; None where no rule fitted.
        frames: how many were looked at; 0 where none could be.
        worst_frame: the number, from 0, of the frame that decided; None where the object as a whole did.
        threshold: the score that was needed for a match.
        nearest: gallery images nearest to the worst frame, best first.
        model, index: sha256 (hex) of what screened it.
        study: its UID, raw.
        identifiers: whose it is, raw.
        notes: what the object holds that was not screened: see `runtime.images.content_flags.ContentFlag`.
        timings: seconds, by what was done.
        threshold_source: where `threshold` comes from; None where nothing was compared.
    """

    verdict: Literal["clear", "match", "error"]
    reason: str
    action: Action
    destinations: tuple[str, ...] = ()
    rule: str | None = None
    gallery: str | None = None
    frames: int = 0
    worst_frame: int | None = None
    threshold: float | None = None
    nearest: tuple[Near, ...] = ()
    model: str | None = None
    index: str | None = None
    study: str = ""
    identifiers: Identifiers = NOBODY
    notes: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    threshold_source: ThresholdSource | None = None

    def for_audit(self, site_key: SiteKey) -> dict[str, Any]:
        """Fields for the audit trail: gallery images and the study by pseudonym."""
        return {
            "verdict": self.verdict,
            "reason": str(self.reason),
            "action": self.action,
            "destinations": list(self.destinations),
            "rule": self.rule,
            "gallery": self.gallery,
            "frames": self.frames,
            "worst_frame": self.worst_frame,
            "threshold": self.threshold,
            "threshold_source": self.threshold_source and self.threshold_source.value,
            "nearest": [
                {
                    "pseudonym": site_key.short("gallery", near.key),
                    "patient": near.patient,
                    "frame": near.frame,
                    "score": round(near.score, 6),
                }
                for near in self.nearest
            ],
            "model_sha256": self.model,
            "index_sha256": self.index,
            "notes": list(self.notes),
            **self._whose(site_key),
            "timings": {name: round(seconds, 4) for name, seconds in self.timings.items()},
        }

    def _whose(self, site_key: SiteKey) -> dict[str, str]:
        return {
            "study": site_key.short("study", self.study),
            "patient": site_key.short_patient(self.identifiers.patient_id, self.identifiers.issuer),
        }

    def for_spool(self, site_key: SiteKey) -> dict[str, Any]:
        """What the spool keeps beside the object, raw keys included: as well guarded as the object itself."""
        return {
            "gallery": self.gallery,
            "frames": self.frames,
            "worst_frame": self.worst_frame,
            "threshold": self.threshold,
            "threshold_source": self.threshold_source and self.threshold_source.value,
            "nearest": [{"key": near.key, "frame": near.frame, "score": near.score} for near in self.nearest],
            "model_sha256": self.model,
            "index_sha256": self.index,
            "notes": list(self.notes),
            **self._whose(site_key),
        }
