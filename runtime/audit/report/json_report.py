"""An audit as JSON: all that the page says, for programs. No path, but the released images' names below their folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ...calibration.intervals import Interval
from ...privacy import ReportPseudonyms
from ..findings import FOUND, Finding, Grade, Tally, by_group, copied_often, like_many, tally, worst_first
from ..result import Audit
from ..sets import ImageSet
from ..statistics import Excess
from ..suspects import Other, Suspect, Suspicion
from ..thresholds import ByChance, Limit
from ..verdict import answer

__all__ = ["SCHEMA_VERSION", "document", "holdout_name", "resembled_name"]

SCHEMA_VERSION = 1
PACKAGES = ("lcmem-onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "scipy", "opencv-python-headless", "pillow", "pydicom")


def document(audit: Audit, command: str, made: datetime) -> dict[str, Any]:
    """What `report.json` holds. Fields are added in later versions, never removed or redefined."""
    counts = Counter(finding.grade for finding in audit.findings)
    judged = len(audit.findings) - counts[Grade.UNREADABLE]
    said = answer(audit)
    return {
        "schema_version": SCHEMA_VERSION,
        "made": made.isoformat(timespec="seconds"),
        "seconds": round(audit.seconds, 1),
        "answer": {
            "verdict": said.verdict.value,
            "title": said.title,
            "sentences": list(said.sentences),
            "caveats": list(said.caveats),
        },
        "counts": {
            "released": len(audit.findings),
            "judged": judged,
            "found": _tally(tally(sum(counts[grade] for grade in FOUND), judged)),
            **{grade.value: _tally(tally(counts[grade], judged)) for grade in Grade if grade is not Grade.UNREADABLE},
            Grade.UNREADABLE.value: _tally(tally(counts[Grade.UNREADABLE], len(audit.findings))),
        },
        "threshold": _limit(audit.limit),
        "by_chance": _chance(audit.chance),
        "by_chance_of_pixels_alone": _excess(audit.promoted),
        "holdout_tests": _tests(audit),
        "tta": _looking(audit),
        "found": [_finding(finding, audit.pseudonyms) for finding in worst_first(audit.findings)],
        "near": [
            _finding(finding, audit.pseudonyms)
            for finding in sorted(audit.findings, key=lambda finding: -(finding.score or 0.0))
            if finding.grade is Grade.NEAR
        ],
        "clusters": {
            "references_shown_by_several": [
                {
                    "reference": audit.pseudonyms.name(cluster.name),
                    "released_total": cluster.total,
                    "released": [{"path": name, "score": score} for name, score in cluster.partners],
                }
                for cluster in copied_often(audit.findings)
            ],
            "released_that_show_several": [
                {
                    "path": cluster.name,
                    "references_total": cluster.total,
                    "references": [{"reference": audit.pseudonyms.name(key), "score": score} for key, score in cluster.partners],
                }
                for cluster in like_many(audit.findings)
            ],
        },
        "groups": {
            label: [
                {
                    "name": group.name,
                    "pictures": group.images,
                    "found": _tally(group.found),
                    **{grade.value: group.counts[grade] for grade in Grade},
                }
                for group in by_group(audit.findings, label)
            ]
            for label in ("folder", "class", "ds_name")
            if any(label in finding.labels for finding in audit.findings)
        },
        "not_checked": {
            "released": [
                {"path": finding.name, "frame": frame, "reason": reason.value}
                for finding in audit.findings
                for frame, reason in finding.reasons
            ],
            "released_notes": dict(sorted(Counter(note.value for item in audit.released.items for note in item.notes).items())),
            "reference": _reasons(audit.reference),
            "holdout": _reasons(audit.holdout),
            "released_other_files": audit.released.skipped,
            "reference_other_files": audit.reference.skipped if audit.reference else None,
            "holdout_other_files": audit.holdout.skipped if audit.holdout else None,
            "pairs_not_compared_by_pixels": audit.not_compared,
        },
        "sets": {
            "released": _set(audit.released),
            "reference": _set(audit.reference) if audit.reference else {"index": audit.index},
            "holdout": _set(audit.holdout) if audit.holdout else None,
        },
        "repeat": {
            "command": command,
            "model": audit.bundle.name,
            "bundle_fingerprint": audit.bundle.fingerprint,
            "weights_sha256": _weights(audit.bundle.manifest),
            "variant": audit.variant,
            "provider": audit.provider,
            "search_is_exact": audit.exact,
            "compared_by_pixels": audit.compared,
            "versions": _versions(),
            "machine": f"{platform.system()} {platform.machine()}",
        },
    }


def _weights(manifest: Mapping[str, Any]) -> str | None:
    checkpoint = manifest.get("checkpoint")
    return str(checkpoint.get("weights_sha256")) if isinstance(checkpoint, Mapping) else None


def _versions() -> dict[str, str]:
    """Of what the figures depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _interval(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _tally(counted: Tally) -> dict[str, Any]:
    return {"count": counted.count, "of": counted.of, "rate": counted.rate, "interval": _interval(counted.interval)}


def _excess(count: Excess | None) -> dict[str, Any] | None:
    return None if count is None else {"expected": count.expected, "interval": [count.low, count.high]}


def _limit(limit: Limit) -> dict[str, Any]:
    return {
        "value": limit.value,
        "near_from": limit.near,
        "pixels_compared_from": limit.compare,
        "basis": limit.basis.value,
        "source": limit.source,
        "holdout_rank": limit.rank,
        "warning": limit.warning,
    }


def _chance(chance: ByChance) -> dict[str, Any]:
    return {
        "basis": chance.basis.value,
        "matches": _excess(chance.count),
        "rate": chance.rate,
        "rate_interval": _interval(chance.rate_interval),
        "assumption": chance.assumption,
        "p_of_as_many": chance.p,
    }


def _tests(audit: Audit) -> dict[str, Any] | None:
    tests = audit.tests
    if tests is None:
        return None
    both = tests.memorization
    return {
        "pictures": tests.images,
        "left_out_since_in_reference": sum(
            suspect.other is Other.REFERENCE and suspect.suspicion is Suspicion.SAME_FILE for suspect in tests.suspects
        ),
        "agree_with_reference_by_pixels": [
            holdout_name(audit, suspect.index)
            for suspect in tests.suspects
            if suspect.other is Other.REFERENCE and suspect.suspicion in (Suspicion.SAME_PIXELS, Suspicion.ALTERED_COPY)
        ],
        "left_out": len(tests.left_out) + len(tests.repeated),
        "suspects": [_suspect(audit, suspect, suspect in tests.left_out) for suspect in tests.suspects],
        "repeated": [_suspect(audit, suspect, True) for suspect in tests.repeated],
        "candidates_not_looked_at": tests.not_aligned,
        "nearest_scores": None
        if both is None
        else {
            "test": "Mann-Whitney U, one-sided",
            "released_above_holdout": both.shift.above,
            "interval": _interval(both.shift.interval),
            "p": both.shift.p,
        },
        "nearer_to_reference": None
        if both is None
        else {
            "test": "permutation of the labels reference and hold-out, one-sided",
            "share": both.nearer.share,
            "by_chance": both.nearer.by_chance,
            "p": both.nearer.p,
        },
    }


def holdout_name(audit: Audit, index: int) -> str:
    """The pseudonym of a hold-out image: its name may be a patient's, as a reference image's may."""
    return audit.pseudonyms.name(f"hold-out {audit.holdout.items[index].name}") if audit.holdout else ""


def resembled_name(audit: Audit, suspect: Suspect) -> str | None:
    """How the image is named that a suspect resembles: a released one by its name, another by its pseudonym."""
    if suspect.key is None or suspect.other is Other.RELEASED:
        return suspect.key
    return audit.pseudonyms.name(f"hold-out {suspect.key}" if suspect.other is Other.HOLDOUT else suspect.key)


def _suspect(audit: Audit, suspect: Suspect, left_out: bool) -> dict[str, Any]:
    return {
        "holdout": holdout_name(audit, suspect.index),
        "suspicion": suspect.suspicion.value,
        "set": suspect.other.value,
        "resembles": resembled_name(audit, suspect),
        "score": suspect.score,
        "agreement": suspect.agreement,
        "left_out": left_out,
    }


def _looking(audit: Audit) -> dict[str, Any] | None:
    looking = audit.looking
    if looking is None:
        return None
    return {
        "ways": looking.ways,
        "without": {"threshold": _limit(looking.plain), "by_chance": _chance(looking.plain_chance), "matches": looking.plain_found},
        "gained": looking.gained,
        "lost": looking.lost,
    }


def _finding(finding: Finding, pseudonyms: ReportPseudonyms) -> dict[str, Any]:
    nearest = finding.nearest
    return {
        "path": finding.name,
        "frame": finding.frame,
        "grade": finding.grade.value,
        "score": finding.score,
        "plain_score": finding.plain_score,
        "look": finding.look,
        "reference": pseudonyms.name(nearest.key) if nearest else None,
        "reference_frame": nearest.frame if nearest else None,
        "agreement": finding.agreement,
        "matches": [
            {"reference": pseudonyms.name(match.key), "frame": match.frame, "score": match.score} for match in finding.matches
        ],
        "matches_total": finding.total,
        "sha256": finding.sha256,
        "labels": dict(finding.labels),
    }


def _reasons(images: ImageSet | None) -> dict[str, int] | None:
    """How many, by reason: whose they are is nobody's business but the private part's."""
    if images is None:
        return None
    return dict(sorted(Counter(reason.value for item in images.items for _, reason in item.errors).items()))


def _set(images: ImageSet) -> dict[str, Any]:
    return {
        "files": len(images.items),
        "readable": len(images.readable),
        "frames": sum(item.frames for item in images.items),
        "sha256_of_all": images.digest,
    }
