"""What an audit comes to, in plain words: a verdict, and the sentences that say how sure it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from .findings import FOUND, Grade
from .limits import FIGURES, Basis
from .run import Audit
from .statistics import rate_interval

__all__ = ["Answer", "Verdict", "answer", "counted", "percent", "share"]


class Verdict(StrEnum):
    """`found`: more than chance explains, or copies that are certain. `doubtful`: no more than chance would give. `none`: nothing.
    `incomplete`: nothing among what could be read, but not all could be."""

    FOUND = "found"
    DOUBTFUL = "doubtful"
    NONE = "none"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True)
class Answer:
    """A verdict, a line that says it, and the paragraph under it."""

    verdict: Verdict
    title: str
    sentences: tuple[str, ...]


def percent(value: float) -> str:
    """A share as people read it: 0.4 %, 12 %, below 0.01 %."""
    hundred = 100 * value
    if hundred == 0 or hundred >= 99.995:
        return f"{hundred:.0f} %"
    if hundred < 0.01:
        return "below 0.01 %"
    return f"{hundred:.2g} %" if hundred < 10 else f"{hundred:.1f} %" if hundred > 99 else f"{hundred:.0f} %"


def share(count: int, of: int) -> str:
    """A count's share with its interval."""
    if not of:
        return "none to count"
    ends = rate_interval(count, of)
    return f"{percent(count / of)} (95 % interval {percent(ends.low)} to {percent(ends.high)})"


def counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def answer(audit: Audit) -> Answer:
    """The first paragraph of a report."""
    counts = Counter(finding.grade for finding in audit.findings)
    found = sum(counts[grade] for grade in FOUND)
    judged = len(audit.findings) - counts[Grade.UNREADABLE]
    unread = counts[Grade.UNREADABLE] + sum(bool(finding.reasons) for finding in audit.findings if finding.grade is not Grade.UNREADABLE)
    against = audit.reference.unreadable if audit.reference else []
    certain = counts[Grade.IDENTICAL] + counts[Grade.MEMORIZED]
    explained = _explained(audit)
    sentences = [_counts(audit, counts, found, judged)]
    if not judged:
        verdict, title = Verdict.INCOMPLETE, "Nothing could be judged: none of the released pictures could be read"
        sentences = []
    elif found and (certain or not explained):
        verdict, title = Verdict.FOUND, f"{counted(found, 'released picture')} of {judged:,} match{'es' if found == 1 else ''} the reference"
    elif found:
        verdict = Verdict.DOUBTFUL
        title = f"{counted(found, 'released picture')} of {judged:,} match{'es' if found == 1 else ''} the reference, no more than chance may give"
    elif unread or against:
        verdict, title = Verdict.INCOMPLETE, "No match was found, but not everything could be read"
    else:
        verdict, title = Verdict.NONE, f"No match was found among {counted(judged, 'released picture')}"
    if judged:
        sentences += [_chance(audit, found), _sensitivity(audit, found, judged)]
    if unread or against:
        parts = [counted(unread, "released picture")] if unread else []
        parts += [counted(len(against), "reference picture")] if against else []
        sentences.append(f"{' and '.join(parts)} could not be read, or not in full: nothing is said of what could not be seen.")
    if audit.bundle.demonstration:
        sentences.append("The model that was used says of itself that no patient was in its training or its figures: do not release data on its word alone.")
    return Answer(verdict, title, tuple(sentence for sentence in sentences if sentence))


def _counts(audit: Audit, counts: Mapping[Grade, int], found: int, judged: int) -> str:
    reference = counted(audit.gallery, "reference picture or frame", "reference pictures or frames")
    if not found:
        return f"{counted(judged, 'released picture was', 'released pictures were')} compared with {reference}, and none matches."
    parts = []
    if counts[Grade.IDENTICAL]:
        parts.append(f"{counts[Grade.IDENTICAL]:,} are the very files of the reference")
    if counts[Grade.MEMORIZED]:
        parts.append(f"{counts[Grade.MEMORIZED]:,} also agree{'s' if counts[Grade.MEMORIZED] == 1 else ''} with a reference picture pixel by pixel, so that they are copies as good as certainly")
    if counts[Grade.REIDENTIFIED]:
        parts.append(f"{counts[Grade.REIDENTIFIED]:,} match{'es' if counts[Grade.REIDENTIFIED] == 1 else ''} by the model alone: the same patient in another picture, a strongly altered copy, or a false positive")
    if counts[Grade.MATCH]:
        parts.append(f"{counts[Grade.MATCH]:,} match{'es' if counts[Grade.MATCH] == 1 else ''} by the model, and the reference picture was not at hand to be compared")
    return (
        f"Of {counted(judged, 'released picture')} that could be judged, {found:,} match{'es' if found == 1 else ''} one of {reference}: {share(found, judged)}. Of these, "
        + "; ".join(parts)
        + "."
    )


def _explained(audit: Audit) -> bool:
    """Whether chance alone may give as many matches by the model as there are."""
    matched = sum((finding.score or 0.0) >= audit.limit.value for finding in audit.findings)
    return audit.chance.count is not None and matched <= audit.chance.count.high


def _chance(audit: Audit, found: int) -> str:
    count = audit.chance.count
    if count is None:
        return "How many matches chance alone would give is not known here, since there is no hold-out and the model says nothing of it: look at each pair."
    by = {
        Basis.HOLDOUT: "measured on the hold-out",
        Basis.INDEX: "by the index's calibration",
        Basis.BUNDLE: "reckoned from the model's own test pairs, which is an assumption about your pictures",
    }.get(audit.chance.basis, "")
    said = f"A set of this size without any copy would show about {count.expected:,.3g} matches by chance ({count.low:,} to {count.high:,} in 95 of 100 cases, {by})."
    if not found:
        return said
    matched = sum((finding.score or 0.0) >= audit.limit.value for finding in audit.findings)
    if matched > count.high:
        return f"{said} So at least {matched - count.high:,} of the {matched:,} that score above the threshold cannot be put down to chance."
    return f"{said} So the number of matches by itself proves nothing; the pairs below must be looked at."


def _sensitivity(audit: Audit, found: int, judged: int) -> str:
    parts = []
    if not found:
        parts.append(f"If copies that this model sees were spread evenly, at most {percent(rate_interval(0, judged).high)} of such pictures would be copies (95 % interval)")
    card = audit.bundle.manifest.get("card")
    figures = card.get("figures") if isinstance(card, Mapping) else None
    table = figures.get(FIGURES) if isinstance(figures, Mapping) else None
    row = table.get("all") if isinstance(table, Mapping) else None
    recall = row.get("mean recall") if isinstance(row, Mapping) else None
    if isinstance(recall, float):
        higher = " and this threshold is higher, so fewer are found" if audit.limit.value > audit.bundle.threshold.value else ""
        parts.append(f"the model's own tests say that it finds {percent(recall)} of altered copies at its own threshold{higher}")
    if not parts:
        return ""
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}. What it does not see is not in these numbers."
