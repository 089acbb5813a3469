"""`calibrate`: set the threshold of an index on images of patients who are not in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console.exit_codes import FAILED, NOTHING_FOUND
from ..console.terminal import print_calibration, print_copies, print_suspects, printable, progress, say, warn
from .inputs import say_skipped, walk
from .options import index_option, json_option, model_options, named_bundle, quiet_option

if TYPE_CHECKING:
    from ..evaluation.copies import CopyScores, Sampled
    from ..runtime.calibration.open_set import Negatives
    from ..runtime.calibration.threshold import Calibration
    from ..runtime.gallery import Gallery
    from ..runtime.model.head import Floats
    from ..runtime.screening import Embedded, Screener

__all__ = ["calibrate"]

COPIES = 100
"""Images altered by default. If no copy is missed, the miss rate is below 3.6 % with 95 % confidence."""


@click.command(short_help="Set an index's threshold")
@index_option
@click.option("--negatives", type=click.Path(path_type=Path), help="Folder of images of patients who are not in the index.")
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    help="CSV file with columns query (image path) and mate (its key in the index), to measure the miss rate.",
)
@click.option(
    "--fpir",
    type=float,
    default=0.01,
    show_default=True,
    help="Target false positive identification rate: the share of strangers' images that may be flagged.",
)
@click.option(
    "--suspects",
    type=click.Choice(["refuse", "leave-out", "keep"]),
    default="refuse",
    show_default=True,
    help="Handling of negatives that are in the index or look like copies: 'keep' counts look-alikes, but never images that are "
    "in the index.",
)
@click.option("--ignore-patients", is_flag=True, help="Ignore patient IDs in DICOM headers (for example, when anonymized).")
@click.option(
    "--copies",
    type=click.IntRange(min=0),
    help="Number of indexed images to alter and search for, to measure the miss rate.  [default: 100, or 0 with --pairs]",
)
@click.option("--dry-run", is_flag=True, help="Measure and print without saving the threshold.")
@click.option("--forget", is_flag=True, help="Remove the index's calibration; scans use the bundle's threshold again.")
@json_option
@quiet_option
@model_options
def calibrate(
    folder: Path,
    negatives: Path | None,
    pairs: Path | None,
    fpir: float,
    suspects: str,
    ignore_patients: bool,
    copies: int | None,
    dry_run: bool,
    forget: bool,
    as_json: bool,
    quiet: bool,
    model: Callable[[], Screener],
) -> int:
    """Set an index's threshold for a target false positive rate.

    The negatives are images like those you will screen, of patients who are not in the index. The threshold is stored with the
    index, and 'scan' uses it. The miss rate is measured on altered images of the index (cropped, blurred, annotated ...), or with
    --pairs. Without --negatives, show the current calibration, or with --copies the miss rate of a scan today.

    \b
    Examples:
      lcmem-onnx calibrate --index hospital.index --negatives strangers/ --fpir 0.01
      lcmem-onnx calibrate --index hospital.index --negatives strangers/ --pairs mates.csv
      lcmem-onnx calibrate --index hospital.index --copies 100
    """
    if negatives is None and (pairs or dry_run):
        raise click.UsageError("--pairs and --dry-run require --negatives DIR (images of patients who are not in the index)")
    if forget and (negatives is not None or copies):
        raise click.UsageError("--forget cannot be combined with --negatives or --copies: forget first, then calibrate")
    from ..runtime.calibration.threshold import check_rate, forget_calibration, store_calibration, stored_calibration
    from ..runtime.gallery import Gallery

    check_rate(fpir)
    screener = model()
    if negatives is None:
        with Gallery.open(folder, screener.bundle, read_only=not forget, warn=warn) as gallery:
            if forget:
                forget_calibration(gallery)
            if copies:
                return _missed(screener, gallery, copies, as_json, quiet)
            return _show(None if forget else stored_calibration(gallery), folder, as_json)
    copies = copies if copies is not None else 0 if pairs else COPIES
    request = _Request(negatives, pairs, fpir, suspects, ignore_patients, copies, dry_run, as_json, quiet)
    if not dry_run:
        # Fail before the work if the result could not be stored.
        Gallery.open(folder, screener.bundle, read_only=False, warn=warn).close()
    with Gallery.open(folder, screener.bundle, warn=warn) as gallery:
        found = _measure(screener, gallery, request)
    if found is None:
        return FAILED
    if not dry_run:
        with Gallery.open(folder, screener.bundle, read_only=False, warn=warn) as gallery:
            store_calibration(gallery, found)
        if not as_json and not quiet:
            click.echo(f"next  lcmem-onnx scan PATH --index {printable(str(folder))}{named_bundle()}")
    return NOTHING_FOUND


@dataclass(frozen=True)
class _Request:
    """The options of a measurement."""

    folder: Path
    listing: Path | None
    rate: float
    suspects: str
    ignore_patients: bool
    copies: int
    dry_run: bool
    as_json: bool
    quiet: bool


def _measure(screener: Screener, gallery: Gallery, request: _Request) -> Calibration | None:
    """Measure, print, and return the calibration to store; None if suspects were refused."""
    from ..runtime.calibration.alarms import alarm_load
    from ..runtime.calibration.open_set import chunk_count, judge_negatives, mate_scores, read_pairs
    from ..runtime.calibration.threshold import calibrate, decide_uncalibrated, forecasts, misses
    from ..runtime.errors import GalleryError, UsageError

    if not len(gallery):
        raise GalleryError(f"{gallery.folder} is empty: add images with 'lcmem-onnx index add' before calibrating")
    pairs = read_pairs(request.listing, gallery) if request.listing else []
    images, unreadable = _embedded(screener, [request.folder], "negatives", request.quiet)

    def watch(chunks: Iterable[tuple[list[str], Floats]]) -> Iterator[tuple[list[str], Floats]]:
        return progress(chunks, chunk_count(gallery), "scoring", request.quiet, lambda chunk: chunk[0][0])

    judged = judge_negatives(
        gallery, images, keep_alike=request.suspects == "keep", ignore_patients=request.ignore_patients, watch=watch
    )
    if judged.suspects and request.suspects == "refuse":
        _refuse(judged, request.as_json)
        return None
    if not len(judged.tops.scores):
        raise UsageError(f"{request.folder} contains no usable negatives{_why(judged, unreadable)}")
    found = calibrate(judged.tops.scores, judged.tops.size, request.rate, screener.bundle.fingerprint, witnesses=judged.patients)
    mated = None
    if pairs:
        queries, _ = _embedded(screener, list(dict.fromkeys(pair.query for pair in pairs)), "queries", request.quiet)
        mated = mate_scores(gallery, pairs, queries)
        if not len(mated):
            raise UsageError(f"{request.listing}: none of the query images could be read: check the paths in column query")
        found = replace(found, misses=misses(mated, found.threshold))
    ahead = forecasts(found, judged.tops.scores, mated)
    copies = _copies(screener, gallery, request.copies, request.quiet) if request.copies else None
    if copies:
        found = replace(found, copies=copies.misses(found.threshold))
    otherwise = decide_uncalibrated(gallery)
    alarms = alarm_load(found, judged.tops.scores, otherwise, copies.misses if copies else lambda threshold: ())
    counts = {"left_out": len(judged.suspects), "repeated": judged.repeated, "unreadable": unreadable}
    if request.as_json:
        line = {
            **found.as_json(),
            **counts,
            "kept": not request.dry_run,
            "forecasts": [asdict(each) for each in ahead],
            "alarms": [each.as_json() for each in alarms],
            "copies_unavailable": copies.unavailable if copies else 0,
        }
        click.echo(json.dumps({"schema_version": 1, **line}))
    else:
        print_calibration(found, ahead, alarms, **counts, dry_run=request.dry_run)
    return found


def _copies(screener: Screener, gallery: Gallery, count: int, quiet: bool) -> CopyScores | None:
    """Search for altered copies of the gallery's images; warn and return None if no original can be read."""
    from ..evaluation.copies import sample, score_copies

    def watch(images: Iterable[Sampled]) -> Iterator[Sampled]:
        return progress(images, min(count, len(sampled)), "altering", quiet, lambda image: image.key)

    sampled = sample(gallery, count)
    found = score_copies(screener, gallery, sampled, count, watch)
    if found is None:
        warn(
            f"the miss rate was not measured: none of {len(sampled):,} images of {gallery.folder} is at its indexed path. "
            "Mount the images there, or give --pairs"
        )
    elif found.unavailable and not quiet:
        say(f"note: {found.unavailable:,} images of the index have moved or cannot be read; others were altered instead")
    return found


def _missed(screener: Screener, gallery: Gallery, count: int, as_json: bool, quiet: bool) -> int:
    """Print which altered copies a scan misses with the current threshold."""
    from ..runtime.calibration.threshold import decide_threshold
    from ..runtime.errors import GalleryError

    if not len(gallery):
        raise GalleryError(f"{gallery.folder} is empty: add images with 'lcmem-onnx index add' before measuring copies")
    decision = decide_threshold(gallery)
    found = _copies(screener, gallery, count, quiet)
    if found is None:
        return FAILED
    missed = found.misses(decision.threshold)
    if as_json:
        line = {
            "threshold": decision.threshold,
            "threshold_source": decision.source.value,
            "copies": [asdict(each) for each in missed],
            "copies_unavailable": found.unavailable,
        }
        click.echo(json.dumps({"schema_version": 1, **line}))
    else:
        print_copies(missed, decision.threshold, decision.words)
    return NOTHING_FOUND


def _refuse(judged: Negatives, as_json: bool) -> None:
    """Print the suspects and what the user can do about them."""
    print_suspects(judged.suspects, as_json)
    alike = any(suspect.score is not None for suspect in judged.suspects)
    say(
        f"error: {len(judged.suspects)} of the negatives are in the index or look like copies of its images; no threshold was set. "
        f"Remove them from the folder, or give --suspects leave-out{' (or keep, if look-alikes are strangers)' if alike else ''}"
    )


def _embedded(screener: Screener, paths: list[Path], what: str, quiet: bool) -> tuple[list[Embedded], int]:
    """Embed images, report unreadable ones, and return the embeddings with the number of unreadable images."""
    items, skipped = walk(paths)
    say_skipped(skipped, quiet, f" among the {what}")
    images: list[Embedded] = []
    unreadable = 0
    for image in progress(screener.embeddings(items), len(items), what, quiet, lambda done: done.path):
        unreadable += not len(image.embeddings)
        for frame, reason, detail in image.errors:
            place = image.path if frame is None else f"{image.path} frame {frame}"
            say(f"error: {printable(place)}: {printable(detail)} [{reason}]")
        images.append(image)
    return images, unreadable


def _why(judged: Negatives, unreadable: int) -> str:
    reasons = {"are in the index or look like copies": len(judged.suspects), "could not be read": unreadable}
    said = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    return f": {said}" if said else ""


def _show(found: Calibration | None, folder: Path, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "calibration": found.as_json() if found else None}))
    elif found is None:
        click.echo("no calibration: scans use the bundle's threshold, which is meant for single pairs")
        click.echo(f"next  lcmem-onnx calibrate --index {printable(str(folder))} --negatives DIR{named_bundle()}")
    else:
        print_calibration(found, [], [])
    return NOTHING_FOUND
