"""What an audit found: a finding an image, and what they come to by reference image, by folder, by class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ..calibration.intervals import Interval
from ..errors import Reason
from .neighbours import Match
from .statistics import rate_interval

__all__ = [
    "FOUND",
    "Cluster",
    "Finding",
    "Grade",
    "Group",
    "Tally",
    "by_group",
    "copied_often",
    "like_many",
    "tally",
    "worst_first",
]


class Grade(StrEnum):
    """What became of a released image; each has one.

    `identical`: a reference image's file, byte by byte. `memorized`: it agrees with a reference image pixel by pixel, laid over
    it, and scores at or above the threshold or not too far below. `re-identified`: at or above the threshold, but the pixels do
    not agree: another image of the same patient, a copy altered further than that comparison sees, or a false positive. `match`:
    at or above the threshold, and the reference image was not at hand to be compared. `near`: below the threshold, but near.
    `clear`: none of these. `unreadable`: nothing can be said of it.
    """

    IDENTICAL = "identical"
    MEMORIZED = "memorized"
    REIDENTIFIED = "re-identified"
    MATCH = "match"
    NEAR = "near"
    CLEAR = "clear"
    UNREADABLE = "unreadable"


FOUND = frozenset({Grade.IDENTICAL, Grade.MEMORIZED, Grade.REIDENTIFIED, Grade.MATCH})
"""The grades that are a find."""
_ORDER = {grade: rank for rank, grade in enumerate(Grade)}


@dataclass(frozen=True)
class Finding:
    """One released image.

    Attributes:
        index: which item of the released set.
        name: where it lies below the released folder.
        sha256: of the file, hex; None when it could not be read.
        grade: see `Grade`.
        score: of its best pair; None when it is unreadable.
        plain_score: the best when it is looked at as it is; differs from `score` only with --tta.
        frame, look: which of its frames, and in which way looked at, gave it.
        nearest: the reference image of the best pair.
        agreement: correlation of detail with it, -1 to 1; None where it was not compared.
        matches: reference images at or above the threshold, best first, as many as were asked for.
        total: how many there are.
        reasons: what could not be read of it, a (frame or None, reason) each.
        labels: its folder, and what a list of labels says of it.
    """

    index: int
    name: str
    sha256: str | None
    grade: Grade
    score: float | None = None
    plain_score: float | None = None
    frame: int | None = None
    look: str | None = None
    nearest: Match | None = None
    agreement: float | None = None
    matches: tuple[Match, ...] = ()
    total: int = 0
    reasons: tuple[tuple[int | None, Reason], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def found(self) -> bool:
        return self.grade in FOUND


@dataclass(frozen=True)
class Cluster:
    """One image with all that it matches: a reference image with released ones, or a released one with reference ones.

    Attributes:
        name: the released image's name, or the reference image's key.
        partners: the other side, best first: (name or key, score).
        total: how many there are; `partners` may be fewer.
    """

    name: str
    partners: tuple[tuple[str, float], ...]
    total: int


@dataclass(frozen=True)
class Tally:
    """A count of images, its share, and the share's 95 % interval (Clopper-Pearson)."""

    count: int
    of: int
    interval: Interval

    @property
    def rate(self) -> float | None:
        return self.count / self.of if self.of else None


@dataclass(frozen=True)
class Group:
    """Released images that share a label."""

    name: str
    images: int
    counts: Mapping[Grade, int]
    found: Tally


def tally(count: int, of: int) -> Tally:
    return Tally(count, of, rate_interval(count, of))


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """What was found: by grade, then by score."""
    found = [finding for finding in findings if finding.found]
    return sorted(found, key=lambda finding: (_ORDER[finding.grade], -(finding.score or 0.0), finding.name))


def copied_often(findings: Sequence[Finding]) -> list[Cluster]:
    """Reference images that two or more released ones show, the most often copied first."""
    by_key: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for finding in findings:
        if finding.found:
            pairs = {match.key: match.score for match in reversed(finding.matches)}
            if finding.nearest and finding.score is not None:
                pairs[finding.nearest.key] = finding.score
            for key, score in pairs.items():
                by_key[key].append((finding.name, score))
    clusters = [
        Cluster(key, tuple(sorted(partners, key=lambda partner: (-partner[1], partner[0]))), len(partners))
        for key, partners in by_key.items()
        if len(partners) > 1
    ]
    return sorted(clusters, key=lambda cluster: (-cluster.total, -cluster.partners[0][1], cluster.name))


def like_many(findings: Sequence[Finding]) -> list[Cluster]:
    """Released images that show two or more reference ones, those with the most first."""
    clusters = [
        Cluster(finding.name, tuple((match.key, match.score) for match in finding.matches), finding.total)
        for finding in findings
        if finding.total > 1
    ]
    return sorted(clusters, key=lambda cluster: (-cluster.total, -cluster.partners[0][1], cluster.name))


def by_group(findings: Sequence[Finding], label: str) -> list[Group]:
    """A group for each value of a label, sorted by its name; images without it are one called "(none)"."""
    parts: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        parts[finding.labels.get(label, "(none)")].append(finding)
    groups = []
    for name, part in sorted(parts.items()):
        counts = {grade: sum(finding.grade is grade for finding in part) for grade in Grade}
        judged = len(part) - counts[Grade.UNREADABLE]
        groups.append(Group(name, len(part), counts, tally(sum(counts[grade] for grade in FOUND), judged)))
    return groups
