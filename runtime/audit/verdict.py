"""What an audit comes to, in plain words: a verdict, and the sentences that say how sure it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .findings import FOUND, Grade
from .result import Audit, Tests
from .statistics import rate_interval
from .suspects import Other, Suspect, Suspicion
from .thresholds import FIGURES, Basis

__all__ = ["Answer", "Verdict", "about", "answer", "counted", "percent", "share", "suspected"]

TOO_MANY = 0.05
"""Share of images that match by chance from which a pair threshold is said to be of no use."""


class Verdict(StrEnum):
    """`found`: more than chance explains, or copies that are certain. `doubtful`: no more than chance would give. `none`: nothing.
    `incomplete`: nothing was found, but not everything could be read, or the search may have missed a match. `suspect`: nothing was
    found, but the hold-out holds copies of what it is compared with."""

    FOUND = "found"
    DOUBTFUL = "doubtful"
    NONE = "none"
    INCOMPLETE = "incomplete"
    SUSPECT = "suspect"


@dataclass(frozen=True)
class Answer:
    """A verdict, a line that says it, the sentences of the paragraph under it, and what must be kept in mind with it."""

    verdict: Verdict
    title: str
    sentences: tuple[str, ...]
    caveats: tuple[str, ...] = ()


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


def about(value: float) -> str:
    """An expected count as people say it: 0.08, 2.4, 1,200."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def answer(audit: Audit) -> Answer:
    """The first paragraph of a report."""
    counts = Counter(finding.grade for finding in audit.findings)
    found = sum(counts[grade] for grade in FOUND)
    judged = len(audit.findings) - counts[Grade.UNREADABLE]
    unread = sum(bool(finding.reasons) for finding in audit.findings)
    unread_reference = len(audit.reference.unreadable) if audit.reference else 0
    suspects = _suspects_in_title(audit)
    if not judged:
        title = "Nothing could be judged: no released image could be read" + suspects
        return Answer(Verdict.INCOMPLETE, title, (), _caveats(audit, unread, unread_reference))
    of = f"{counted(found, 'released image')} of {judged:,} match{'es' if found == 1 else ''} the reference"
    if found and (counts[Grade.IDENTICAL] or counts[Grade.MEMORIZED] or not _explained(audit)):
        verdict, title = Verdict.FOUND, of + suspects
    elif found:
        verdict, title = Verdict.DOUBTFUL, f"{of}, no more than chance may give{suspects}"
    elif unread or unread_reference:
        verdict, title = Verdict.INCOMPLETE, f"No match was found, but not everything could be read{suspects}"
    elif not audit.exact:
        verdict, title = Verdict.INCOMPLETE, f"No match was found, but the search graph may have missed one{suspects}"
    else:
        verdict = Verdict.SUSPECT if suspects else Verdict.NONE
        title = f"No match was found among {counted(judged, 'released image')}{suspects}"
    body = (_counts(audit, counts, found, judged), _chance(audit, found), _sensitivity(audit, found, judged))
    return Answer(verdict, title, tuple(text for text in body if text), _caveats(audit, unread, unread_reference))


def _suspects_in_title(audit: Audit) -> str:
    """What the title says of suspects in the hold-out, if there are any."""
    if audit.tests is None or not audit.tests.suspects:
        return ""
    kept, left_out = len(audit.tests.kept), len(audit.tests.left_out)
    if not left_out:
        return f"; {counted(kept, 'suspect')} kept in the hold-out"
    return f"; {counted(left_out, 'suspect')} left out of the hold-out" + (f", {kept:,} kept" if kept else "")


IS_SUSPECT = {
    Suspicion.SAME_FILE: ("the same file as", "the same files as"),
    Suspicion.SAME_PIXELS: ("pixel by pixel equal to", "pixel by pixel equal to"),
    Suspicion.ALTERED_COPY: ("an altered copy of", "altered copies of"),
    Suspicion.LIKE_A_COPY: ("as similar as a copy to", "as similar as copies to"),
    Suspicion.SAME_PATIENT: ("of the same patient as", "of the same patients as"),
}
"""What is said of one suspect, and of several, before what they resemble."""
RESEMBLED = {Other.REFERENCE: "reference image", Other.RELEASED: "released image", Other.HOLDOUT: "hold-out image"}


def suspected(suspects: Sequence[Suspect]) -> str:
    """Suspects by what they are: 4 are altered copies of reference images, 1 is the same file as a released image."""
    kinds = Counter((suspect.other, suspect.suspicion) for suspect in suspects)
    parts = []
    for other in Other:
        for suspicion, (one, several) in IS_SUSPECT.items():
            if count := kinds[other, suspicion]:
                a = f"a {RESEMBLED[other]}" if other is not Other.HOLDOUT else "another hold-out image"
                many = f"{RESEMBLED[other]}s" if other is not Other.HOLDOUT else "other hold-out images"
                parts.append(f"1 is {one} {a}" if count == 1 else f"{count:,} are {several} {many}")
    return ", ".join(parts)


def _suspects(tests: Tests) -> list[str]:
    said = []
    for other, why in (
        (Other.REFERENCE, "such images raise the threshold to where matches are missed"),
        (Other.RELEASED, "an image on both sides proves nothing"),
    ):
        if these := [suspect for suspect in tests.left_out if suspect.other is other]:
            said.append(f"Of the hold-out, {suspected(these)}: {why}, so {'it was' if len(these) == 1 else 'they were'} left out.")
    if said:
        said.append("Remove them from the hold-out, look for others that were not noticed, and make the report again.")
        said = [" ".join(said)]
    if tests.kept:
        said.append(
            f"Of the hold-out, {suspected(tests.kept)}. They were counted all the same (--suspects keep): if they are copies, "
            "matches are missed."
        )
    return said


def _caveats(audit: Audit, unread: int, unread_reference: int) -> tuple[str, ...]:
    said = _suspects(audit.tests) if audit.tests else []
    said += audit.caveats
    parts = [counted(unread, "released image")] if unread else []
    parts += [counted(unread_reference, "reference image")] if unread_reference else []
    if parts:
        said.append(f"{' and '.join(parts)} could not be read, or not in full: nothing is said of what could not be seen.")
    if not audit.exact:
        said.append("The index was searched through its graph, which may miss a match: --search exact misses none.")
    if audit.bundle.demonstration:
        said.append(
            "The model that was used says of itself that it is a demonstration ('lcmem-onnx bundle info' shows what it misses): do "
            "not release data on its word alone."
        )
    return tuple(said)


SAID = {
    Grade.IDENTICAL: ("is byte by byte a file of the reference", "are byte by byte files of the reference"),
    Grade.MEMORIZED: (
        "agrees with a reference image pixel by pixel as well, and is a copy as good as certainly",
        "agree with a reference image pixel by pixel as well, and are copies as good as certainly",
    ),
    Grade.REIDENTIFIED: (
        "matches by the model alone: the same patient in another image, a strongly altered copy, or a false positive",
        "match by the model alone: the same patient in another image, a strongly altered copy, or a false positive",
    ),
    Grade.MATCH: (
        "matches by the model, and the reference image was not at hand to be compared",
        "match by the model, and the reference images were not at hand to be compared",
    ),
}
"""What is said of one image of a grade, and of several."""


def _counts(audit: Audit, counts: Mapping[Grade, int], found: int, judged: int) -> str:
    against = counted(audit.gallery, "reference image or frame", "reference images or frames")
    if not found:
        return f"{counted(judged, 'released image was', 'released images were')} compared with {against}, and none matches."
    of = f"Of {counted(judged, 'released image')} that could be judged"
    rate = share(found, judged)
    if found == 1:
        (grade,) = (grade for grade in SAID if counts[grade])
        return f"{of}, one matches one of {against}: {rate}. It {SAID[grade][0]}."
    parts = []
    for grade, (one, several) in SAID.items():
        if count := counts[grade]:
            parts.append(f"all {several}" if count == found else f"{count:,} {one if count == 1 else several}")
    return f"{of}, {found:,} match one of {against}: {rate}. Of these, {'; '.join(parts)}."


def _matched(audit: Audit) -> int:
    """Images at or above the threshold, which is what chance gives numbers for."""
    return sum((finding.score or 0.0) >= audit.limit.value for finding in audit.findings)


def _explained(audit: Audit) -> bool:
    """Whether chance alone may give as many matches by the model as there are."""
    return audit.chance.count is not None and _matched(audit) <= audit.chance.count.high


def _chance(audit: Audit, found: int) -> str:
    count = audit.chance.count
    if count is None:
        return (
            "How many matches chance alone would give is not known here, since there is no hold-out and the model says nothing of "
            "it: look at each pair."
        )
    by = {
        Basis.HOLDOUT: "measured on the hold-out",
        Basis.INDEX: "by the index's calibration",
        Basis.STRANGERS: "estimated from the bundle's pairs of different images, which is an assumption about your images",
        Basis.BUNDLE: "reckoned from the model's own test pairs, which is an assumption about your images",
    }.get(audit.chance.basis, "")
    said = (
        f"A set of this size without any copy would show about {about(count.expected)} matches by chance ({count.low:,} to "
        f"{count.high:,} in 95 of 100 cases, {by})."
    )
    if audit.chance.basis is Basis.BUNDLE and audit.chance.rate is not None and audit.chance.rate > TOO_MANY:
        return (
            f"{said} So this threshold, which is for pairs, cannot tell copies from chance in a gallery of this size: give a "
            "hold-out (--holdout) or a --threshold, and make the report again."
        )
    if not found:
        return said
    matched = _matched(audit)
    if matched > count.high:
        sure = f"at least {matched - count.high:,} of the {matched:,} that score above the threshold"
        return f"{said} So {sure} cannot be put down to chance."
    if any(finding.grade in (Grade.IDENTICAL, Grade.MEMORIZED) for finding in audit.findings):
        return f"{said} The number alone would prove nothing; that the pixels agree does."
    return f"{said} So the number of matches by itself proves nothing; the pairs below must be looked at."


def _card_recalls(card: object) -> dict[str, float]:
    """What a model card says is found at the bundle's threshold, over all data sets."""

    def row(title: str) -> Mapping[str, object]:
        found: object = card
        for name in ("figures", title, "all"):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    copies = row(FIGURES)
    values = {
        "altered copies": copies.get("mean recall"),
        "copies altered as users do": _mean(copies.get("realistic, trained")),
        "those altered in ways that it never learned": _mean(copies.get("realistic, held out")),
        "further images of a patient": row("re-identification").get("recall at the bundle's threshold"),
    }
    return {what: float(value) for what, value in values.items() if isinstance(value, int | float)}


def _mean(cell: object) -> float | None:
    """The first number of a card's "0.9345, worst 0.7500 (crop 0.7)"."""
    number = cell.partition(",")[0] if isinstance(cell, str) else ""
    return float(number) if number.replace(".", "", 1).isdigit() else None


def _sensitivity(audit: Audit, found: int, judged: int) -> str:
    parts = []
    if not found:
        highest = percent(rate_interval(0, judged).high)
        parts.append(f"at most {highest} of such images would be copies that this model sees (95 % interval)")
    recalls = _card_recalls(audit.bundle.manifest.get("card"))
    if recalls:
        higher = ", and this threshold is higher, so fewer are found" if audit.limit.value > audit.bundle.threshold.value else ""
        found_there = ", ".join(f"{percent(recall)} of {what}" for what, recall in recalls.items())
        parts.append(f"the model's own tests say that it finds {found_there} at its own threshold{higher}")
    if not parts:
        return ""
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}. What it does not see is not in these numbers."
