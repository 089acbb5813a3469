"""`audit`: report whether a set of images can be released."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console.exit_codes import FAILED, FOUND, NOTHING_FOUND, Ending, when_interrupted
from ..console.terminal import printable, progress, warn
from .options import fpir_option, json_option, model_options, quiet_option, threshold_option

if TYPE_CHECKING:
    from ..runtime.audit.run import Audit, Request
    from ..runtime.screening import Screener

__all__ = ["audit"]

GOES_ON = "interrupted: finished embeddings are kept; run the same command again to resume"


@click.command(cls=Ending, short_help="Check a release for copies of a reference")
@click.option("--released", required=True, type=click.Path(path_type=Path), help="Folder of images to release.")
@click.option(
    "--reference",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of images to protect (such as the training set), or an index of them.",
)
@click.option("--holdout", type=click.Path(path_type=Path), help="Folder of images similar to the reference, but not part of it.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the report (created if missing).")
@threshold_option
@fpir_option
@click.option(
    "--wanted-rate",
    default=0.01,
    show_default=True,
    help="With --holdout: target false positive rate, which sets the threshold.",
)
@click.option("--tta", is_flag=True, help="Also compare mirrored and rotated released images; the best score counts.")
@click.option(
    "--labels", type=click.Path(path_type=Path), help="CSV file with columns path and class (or ds_name) of the released images."
)
@click.option(
    "--patients",
    type=click.Path(path_type=Path),
    help="CSV file with columns path and patient (or id) of reference, hold-out and released images.",
)
@click.option("--ignore-patients", is_flag=True, help="Ignore patient IDs in DICOM headers (for example, when anonymized).")
@click.option(
    "--suspects",
    type=click.Choice(["leave-out", "keep"]),
    default="leave-out",
    show_default=True,
    help="Handling of hold-out images that look like copies: 'keep' counts them, but never certain copies.",
)
@click.option("--show-reference", is_flag=True, help="Show reference images, which makes the report personal data.")
@click.option(
    "--images", default=200, show_default=True, type=click.IntRange(min=0), help="Number of pairs shown with images, worst first."
)
@click.option(
    "--top", default=10, show_default=True, type=click.IntRange(min=1), help="Number of reference images listed per released image."
)
@click.option(
    "--search", default="auto", show_default=True, type=click.Choice(["auto", "exact", "hnsw"]), help="Search method for an index."
)
@click.option("--pdf", is_flag=True, help="Also write report.pdf.")
@json_option
@quiet_option
@model_options
def audit(
    released: Path,
    reference: Path,
    holdout: Path | None,
    out: Path,
    threshold: float | None,
    fpir: float | None,
    wanted_rate: float,
    tta: bool,
    labels: Path | None,
    patients: Path | None,
    ignore_patients: bool,
    suspects: str,
    show_reference: bool,
    images: int,
    top: int,
    search: str,
    pdf: bool,
    as_json: bool,
    quiet: bool,
    model: Callable[[], Screener],
) -> int:
    """Report whether images to release contain copies of reference images.

    Writes report.html (self-contained, works offline), report.json and pictures.csv to --out. Embeddings are kept in its private/
    folder, so the same command resumes after an interruption. A hold-out calibrates the threshold and enables the memorization
    test.

    \b
    Example:
      lcmem-onnx audit --released synthetic/ --reference training-set/ --holdout never-seen/ --out report/
    """
    try:
        from ..runtime.audit.report.html_report import Shown, write_report
        from ..runtime.audit.run import Request
        from ..runtime.audit.run import audit as run
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in ("jinja2", "markupsafe", "matplotlib", "scipy"):
            raise
        from ..runtime.errors import UsageError

        raise UsageError(f"audit requires the package {error.name}: pip install 'lcmem-onnx[audit]'") from error

    request = Request(
        released,
        reference,
        out,
        holdout,
        threshold,
        wanted_rate,
        tta,
        search,
        top,
        labels,
        fpir=fpir,
        patients=patients,
        ignore_patients=ignore_patients,
        suspects=suspects,
    )
    no_bar = quiet or (as_json and sys.stdout.isatty())

    def shown(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
        numbers = count()  # each item is a step, and a place of its own
        with closing(progress(items, total, what, no_bar, lambda item: str(next(numbers)))) as steps:
            yield from steps

    with when_interrupted(GOES_ON):
        what = Shown(show_reference, images, pdf, _command(request, show_reference, images, pdf))
        done = run(model(), request, shown, warn)
        written = write_report(done, what, shown)
    return _report(done, written, as_json, quiet)


def _command(request: Request, show_reference: bool, images: int, pdf: bool) -> str:
    """Return the command line without folder names, which may contain names of people and projects."""
    parts = ["lcmem-onnx audit --released RELEASED --reference", "INDEX" if _is_index(request.reference) else "REFERENCE"]
    parts += ["--holdout HOLDOUT"] if request.holdout else []
    parts += ["--out REPORT"]
    parts += [f"--threshold {request.threshold}"] if request.threshold is not None else []
    parts += [f"--fpir {request.fpir:g}"] if request.fpir is not None else []
    parts += [f"--wanted-rate {request.wanted:g}", f"--top {request.top}", f"--images {images}"]
    parts += ["--tta"] if request.tta else []
    parts += ["--labels LABELS"] if request.labels else []
    parts += ["--patients PATIENTS"] if request.patients else []
    parts += ["--ignore-patients"] if request.ignore_patients else []
    parts += [f"--suspects {request.suspects}"] if request.suspects != "leave-out" else []
    parts += [f"--search {request.search}"] if _is_index(request.reference) else []
    parts += ["--show-reference"] if show_reference else []
    parts += ["--pdf"] if pdf else []
    return " ".join(parts)


def _is_index(path: Path) -> bool:
    from ..runtime.audit.run import is_index

    return is_index(path)


def _report(done: Audit, written: list[Path], as_json: bool, quiet: bool) -> int:
    from ..runtime.audit.report.html_report import SUSPECTS
    from ..runtime.audit.run import PRIVATE
    from ..runtime.audit.verdict import Verdict, answer

    found = sum(finding.found for finding in done.findings)
    left_out = len(done.tests.left_out) if done.tests else 0
    unread = sum(bool(finding.reasons) for finding in done.findings) + (len(done.reference.unreadable) if done.reference else 0)
    said = answer(done)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "schema_version": 1,
                    "verdict": said.verdict.value,
                    "released": len(done.findings),
                    "found": found,
                    "not_read": unread,
                    "suspects": len(done.tests.suspects) if done.tests else 0,
                    "suspects_left_out": left_out,
                    "threshold": done.limit.value,
                    "files": [str(path) for path in written],
                }
            )
        )
    else:
        click.echo(f"{said.title}\n\n{printable(' '.join((*said.sentences, *said.caveats)))}\n")
        if not quiet:
            for path in written:
                click.echo(f"wrote {printable(str(path))}")
            page, private = printable(str(written[-1])), printable(str(done.request.out / PRIVATE))
            if left_out:
                click.echo(f"see   {printable(str(done.request.out / SUSPECTS))} lists the suspects in the hold-out")
            click.echo(f"next  open {page} in a browser; keep {private} to yourself")
    if unread or left_out or said.verdict is Verdict.INCOMPLETE:
        return FAILED
    return FOUND if found else NOTHING_FOUND
