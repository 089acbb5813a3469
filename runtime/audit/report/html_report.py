"""An audit as files: report.html, report.json, pictures.csv, and report.pdf on request. They are replaced together."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ...errors import UsageError
from ..findings import Cluster, Finding, Grade, Group, by_group, copied_often, like_many, worst_first
from ..output_folder import PRIVATE
from ..pixel_match import AGREES
from ..request import Progress, without_progress
from ..result import Audit
from ..statistics import rate_interval
from ..suspects import Other
from ..verdict import IS_SUSPECT, RESEMBLED, about, answer, counted, percent, share, suspected
from .json_report import document, holdout_name, resembled_name
from .outputs import replace_together
from .plots import distribution, exceedance

__all__ = ["CSV", "HTML", "JSON", "PDF", "SUSPECTS", "Shown", "write_report"]

HTML, JSON, CSV, PDF = "report.html", "report.json", "pictures.csv", "report.pdf"
PSEUDONYMS, SUSPECTS = f"{PRIVATE}/pseudonyms.csv", f"{PRIVATE}/suspects.csv"
FILES = (HTML, JSON, CSV, PDF, PSEUDONYMS, SUSPECTS)
"""All that a report may consist of. What a run does not make of it, it removes: it is an earlier report's."""
TEMPLATE = "report.html.j2"
PAGE = 25
"""Pairs in one fold of the list."""
LISTED_AT_MOST = 2_000
"""Pairs in the HTML file; all are in the CSV file."""
IN_PDF_AT_MOST = 100
NEAR_AT_MOST = 100
CLUSTERS_AT_MOST = 50
GROUPS_AT_MOST = 200
UNREAD_AT_MOST = 200
SUSPECTS_AT_MOST = 100
THUMBNAIL, QUALITY = 208, 78
"""Longest side in pixels, and JPEG's quality: some 8 KB each."""
COLUMNS = (
    "path", "grade", "score", "plain_score", "frame", "look", "reference", "reference_frame", "agreement", "matches",
    "matches_total",
    "unreadable", "sha256", "folder", "class", "ds_name",
)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Shown:
    """What of an audit is shown, and to whom.

    Attributes:
        reference: show reference images beside the released ones, and not their pseudonyms alone.
        images: pairs that are shown with images, worst first; further ones are lines of a table.
        pdf: write the PDF file too.
        command: the command line, without names of folders, that gives this report again.
    """

    reference: bool = False
    images: int = 200
    pdf: bool = False
    command: str = ""


@dataclass(frozen=True)
class _Pair:
    """A find as the page shows it."""

    number: int
    finding: Finding
    reference: str
    also_like: tuple[str, ...]
    released_image: str | None
    reference_image: str | None


def write_report(audit: Audit, shown: Shown, progress: Progress = without_progress) -> list[Path]:
    """Write the files into the request's folder, in place of all files of an earlier report there, and say which.

    Returns:
        The files that may be passed on, the page last.

    Raises:
        UsageError: the folder cannot be written, or the PDF's library is not there; an earlier report is still there, whole.
    """
    if shown.pdf:
        _weasyprint()  # before the work, so that its absence is said at once
    out = audit.request.out
    made = datetime.now(UTC)
    content = document(audit, shown.command, made)
    pairs = list(_pairs(audit, shown, progress))
    page = _page(audit, shown, content, pairs, for_print=False)
    new = {JSON: json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n", CSV: _csv(audit)}
    if shown.pdf:
        new[PDF] = _pdf(_page(audit, shown, content, pairs[:IN_PDF_AT_MOST], for_print=True))
    new[HTML] = page.encode()
    kept = {PSEUDONYMS: _pseudonyms(audit)}
    if audit.tests and (audit.tests.suspects or audit.tests.repeated):
        kept[SUSPECTS] = _suspects(audit)
    try:
        replace_together(out, {**new, **kept}, FILES)
    except OSError as error:
        raise UsageError(f"the report cannot be written to {out}: {error.strerror}") from error
    return [out / name for name in new]


# -- the tables -------------------------------------------------------------------------------------------------------


def _csv(audit: Audit) -> bytes:
    """A line a released image, in order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for finding in audit.findings:
        named = finding.nearest is not None and finding.grade is not Grade.CLEAR
        nearest = finding.nearest if named else None
        writer.writerow(
            [
                _cell(finding.name),
                finding.grade.value,
                _number(finding.score),
                _number(finding.plain_score),
                "" if finding.frame is None else finding.frame,
                finding.look or "",
                audit.pseudonyms.name(nearest.key) if nearest else "",
                nearest.frame if nearest else "",
                _number(finding.agreement),
                " ".join(f"{audit.pseudonyms.name(match.key)}:{match.score:.6f}" for match in finding.matches),
                finding.total,
                " ".join(str(reason) if frame is None else f"{frame}:{reason}" for frame, reason in finding.reasons),
                finding.sha256 or "",
                *(_cell(finding.labels.get(label, "")) for label in ("folder", "class", "ds_name")),
            ]
        )
    return text.getvalue().encode("utf-8")


def _cell(text: str) -> str:
    """A name as a spreadsheet may have it: one that it would take for a formula gets an apostrophe, and no line is broken."""
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return f"'{text}" if text.startswith(FORMULA) else text


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _pseudonyms(audit: Audit) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("pseudonym", "reference"))
    writer.writerows(sorted((name, _cell(key)) for key, name in audit.pseudonyms.given.items()))
    return text.getvalue().encode("utf-8")


def _suspects(audit: Audit) -> bytes:
    """Which files of the hold-out are suspects, and why, by their names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("holdout", "pseudonym", "suspicion", "set", "resembles", "score", "agreement", "left_out"))
    tests, holdout = audit.tests, audit.holdout
    for suspect in (*tests.suspects, *tests.repeated) if tests and holdout else ():
        writer.writerow(
            [
                _cell(holdout.items[suspect.index].name) if holdout else "",
                holdout_name(audit, suspect.index),
                suspect.suspicion.value,
                suspect.other.value,
                _cell(suspect.key or ""),
                _number(suspect.score),
                _number(suspect.agreement),
                "no" if tests and suspect in tests.kept else "yes",
            ]
        )
    return text.getvalue().encode("utf-8")


# -- the page ---------------------------------------------------------------------------------------------------------


def _pairs(audit: Audit, shown: Shown, progress: Progress) -> Iterator[_Pair]:
    worst = worst_first(audit.findings)
    with_images = min(shown.images, len(worst))
    for number, finding in enumerate(progress(worst[:LISTED_AT_MOST], min(LISTED_AT_MOST, len(worst)), "writing the report"), 1):
        nearest = finding.nearest
        also_like = tuple(
            audit.pseudonyms.name(match.key) for match in finding.matches if nearest is None or match.key != nearest.key
        )
        released = reference = None
        if number <= with_images:
            released = _thumbnail(partial(audit.released_pixels, finding.index, finding.frame or 0))
            if shown.reference and nearest is not None:
                reference = _thumbnail(partial(audit.pixels, nearest))
        yield _Pair(number, finding, audit.pseudonyms.name(nearest.key) if nearest else "", also_like, released, reference)


def _thumbnail(pixels: Callable[[], NDArray[np.uint8] | None]) -> str | None:
    """A small JPEG as a data URI, of pixels alone: no metadata of the file comes along. None where the file has gone."""
    image = pixels()
    if image is None:
        return None
    scale = THUMBNAIL / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _page(audit: Audit, shown: Shown, content: Mapping[str, Any], pairs: Sequence[_Pair], *, for_print: bool) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(about=about, percent=percent, share=lambda pair: share(*pair), plain=_printable, score=_score)
    released = np.array([finding.score for finding in audit.findings if finding.score is not None], np.float64)
    holdout = audit.tests.scores if audit.tests else None
    plots = (
        []
        if not len(released)
        else [
            Markup(distribution(released, holdout, audit.limit.value)),  # matplotlib's, of numbers alone
            Markup(exceedance(released, holdout, audit.limit.value)),
        ]
    )
    near = sorted((f for f in audit.findings if f.grade is Grade.NEAR), key=lambda finding: -(finding.score or 0.0))
    unread = [finding for finding in audit.findings if finding.reasons]
    found = [finding for finding in audit.findings if finding.found]
    with_images = [pair for pair in pairs if pair.number <= shown.images]
    return environment.get_template(TEMPLATE).render(
        content=content,
        answer=answer(audit),
        audit=audit,
        shown=shown,
        for_print=for_print,
        plots=plots,
        Grade=Grade,
        agrees=AGREES,
        pages=[with_images[at : at + PAGE] for at in range(0, len(with_images), PAGE)],
        lines=[pairs[at : at + 4 * PAGE] for at in range(len(with_images), len(pairs), 4 * PAGE)],
        found=len(found),
        listed=len(pairs),
        near=near[:NEAR_AT_MOST],
        near_total=len(near),
        unread=unread[:UNREAD_AT_MOST],
        unread_total=len(unread),
        copied=_named(copied_often(audit.findings), audit, reference_first=True),
        like=_named(like_many(audit.findings), audit, reference_first=False),
        clusters_at_most=CLUSTERS_AT_MOST,
        groups=_groups(audit),
        suspects=_suspect_rows(audit),
        suspects_at_most=SUSPECTS_AT_MOST,
        suspected=suspected,
        groups_at_most=GROUPS_AT_MOST,
        counted=counted,
        rate_interval=rate_interval,
        name=audit.pseudonyms.name,
        other_files={"HTML": HTML, "JSON": JSON, "CSV": CSV},
    )


def _suspect_rows(audit: Audit) -> list[tuple[str, str, str, float | None, float | None, str]]:
    """Suspects as the page shows them: pseudonym, what it is, of which one, score, agreement, and whether it counts."""
    tests = audit.tests
    rows = []
    for suspect in (*tests.suspects, *tests.repeated) if tests else ():
        counts = "counted once" if suspect.other is Other.HOLDOUT else "kept" if tests and suspect in tests.kept else "left out"
        what = f"{IS_SUSPECT[suspect.suspicion][0]} a {RESEMBLED[suspect.other]}"
        name = resembled_name(audit, suspect) or ""
        rows.append((holdout_name(audit, suspect.index), what, name, suspect.score, suspect.agreement, counts))
    return rows


def _named(clusters: Sequence[Cluster], audit: Audit, *, reference_first: bool) -> list[Cluster]:
    """The reference's side by pseudonyms."""
    if reference_first:
        return [Cluster(audit.pseudonyms.name(cluster.name), cluster.partners, cluster.total) for cluster in clusters]
    return [
        Cluster(cluster.name, tuple((audit.pseudonyms.name(key), score) for key, score in cluster.partners), cluster.total)
        for cluster in clusters
    ]


def _groups(audit: Audit) -> dict[str, list[Group]]:
    """By label, of which there is more than one value."""
    groups = {}
    for label in ("folder", "class", "ds_name"):
        if any(label in finding.labels for finding in audit.findings):
            parts = by_group(audit.findings, label)
            if len(parts) > 1:
                groups[label] = parts
    return groups


def _printable(text: str) -> str:
    """A name on one line, whatever it holds, with places where a long one may be broken left to the page."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _score(value: float | None) -> str:
    """A score so that those close to 1 can be told apart."""
    if value is None:
        return "–"
    return f"{value:.4f}" if value < 0.9999 else f"{value:.6f}"


# -- the PDF ----------------------------------------------------------------------------------------------------------


def _weasyprint() -> Any:
    """WeasyPrint, imported without what it changes: it has Pillow accept damaged images, in the whole process."""
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        import weasyprint
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--pdf needs the package {error.name}: pip install 'lcmem-onnx[audit]' (or print {HTML} in a browser)"
        ) from error
    except OSError as error:
        raise UsageError(
            "--pdf needs the system's Pango library (Debian: apt-get install libpango-1.0-0 libpangoft2-1.0-0 "
            f"libharfbuzz-subset0), or print {HTML} in a browser"
        ) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
    return weasyprint


def _pdf(page: str) -> bytes:
    """The page on A4. Nothing but data of its own is fetched, whatever it might refer to."""
    weasyprint = _weasyprint()
    from weasyprint.urls import URLFetcher

    fetcher = URLFetcher(allowed_protocols=("data",), allow_redirects=False, fail_on_errors=True)
    pdf: bytes = weasyprint.HTML(string=page, url_fetcher=fetcher).write_pdf()
    return pdf
