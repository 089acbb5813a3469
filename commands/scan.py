"""`scan` and `compare`: screen images and print the verdicts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console.exit_codes import FAILED, FOUND, NOTHING_FOUND
from ..console.terminal import print_comparison, print_results, printable, progress, say, warn
from .inputs import inputs, say_skipped, skipped_in_words, walk
from .options import (
    fpir_option,
    index_threshold_option,
    json_option,
    model_options,
    null_option,
    pair_threshold_option,
    quiet_option,
)

if TYPE_CHECKING:
    from ..runtime.gallery import Gallery
    from ..runtime.results import Result
    from ..runtime.screening import Screener

__all__ = ["compare", "scan"]

SHOW_ALL_UP_TO = 40
"""Largest scan, in images, whose table shows every image; larger ones show matches and errors only (`-v` shows all)."""
EXAMPLE = "lcmem-onnx scan released/ --against training-set/"


@click.command(short_help="Screen images against a gallery")
@click.argument("paths", nargs=-1, metavar="PATH...")  # not required: `scan` reports a missing one with an example
@click.option("--index", "folder", type=click.Path(path_type=Path), envvar="LCMEM_ONNX_INDEX", help="Index to screen against.")
@click.option("--against", type=click.Path(path_type=Path), help="Folder or image to screen against (temporary index).")
@click.option("--gallery", "names", multiple=True, help="Group of the index to screen against; repeatable.  [default: all]")
@index_threshold_option
@fpir_option
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=1), help="Matches to list per image.")
@click.option("--search", default="auto", show_default=True, type=click.Choice(["auto", "exact", "hnsw"]), help="Search method.")
@click.option("-v", "--verbose", is_flag=True, help="List clear images even in large scans.")
@null_option
@json_option
@quiet_option
@model_options
def scan(
    paths: tuple[str, ...],
    folder: Path | None,
    against: Path | None,
    names: tuple[str, ...],
    threshold: float | None,
    fpir: float | None,
    top: int,
    search: str,
    verbose: bool,
    null: bool,
    as_json: bool,
    quiet: bool,
    model: Callable[[], Screener],
) -> int:
    """Screen images against a gallery.

    PATH is an image, a folder (searched recursively), or '-' for a list of paths on stdin. Every frame is screened. Formats: DICOM,
    PNG, JPEG, JPEG-LS, JPEG 2000, JPEG XL, TIFF, WebP, AVIF, HEIC, GIF, BMP, Targa, PBM to PFM. In a folder, files that are clearly
    not images are skipped and counted by reason. The last line of --json is a summary.

    \b
    Examples:
      lcmem-onnx scan released/ --index hospital.index
      lcmem-onnx scan a.png b.dcm --against training-set/ --json
    """
    if not paths:
        raise click.UsageError(f"no images to screen, for example: {EXAMPLE}")
    if folder is None and against is None:
        raise click.UsageError(f"no gallery to screen against: give --index DIR or --against DIR, for example: {EXAMPLE}")
    if folder is not None and against is not None:
        raise click.UsageError("give either --index DIR or --against DIR, not both")
    if names and folder is None:
        raise click.UsageError("--gallery selects groups of an index: it requires --index DIR")
    from ..runtime.calibration.flood import MANY, FloodWatch
    from ..runtime.calibration.threshold import decide_threshold
    from ..runtime.errors import LcmemError

    items, skipped = walk(inputs(paths, null))
    screener = model()
    with _gallery(screener, folder, against, quiet) as (gallery, unreadable):
        if as_json:
            say_skipped(skipped, quiet)
        size = gallery.frames(names or None)  # fail on a mistyped group before the first image
        decision = decide_threshold(gallery, threshold, fpir, names or None)
        for line in () if quiet else decision.warnings:
            warn(line)
        watch = FloodWatch(decision, screener.bundle.head)
        listed = max(top, MANY)
        results = screener.screen(items, gallery, threshold=decision, top=listed, search=search, galleries=names or None)
        no_bar = quiet or (as_json and sys.stdout.isatty())  # the JSON lines show the progress
        counts = {"clear": 0, "match": 0, "error": 0}
        kept: list[Result] = []
        unproven = 0

        def report(stopped: str | None = None) -> None:
            if not as_json:
                print_results(kept, size, counts, skipped_in_words(skipped), decision, stopped)

        try:
            with closing(progress(results, len(items), "screening", no_bar, lambda result: result.path)) as shown:
                for found in shown:
                    watch.see(found)
                    result = replace(found, matches=found.matches[:top], identities=found.identities[:top])
                    counts[result.verdict.value] += 1
                    if as_json:
                        click.echo(json.dumps(result.as_json()))
                    elif verbose or len(items) <= SHOW_ALL_UP_TO or result.verdict.value != "clear":
                        kept.append(result)
                    unproven += not result.complete
        except (KeyboardInterrupt, LcmemError) as error:
            how = "stopped" if isinstance(error, LcmemError) else "interrupted"
            report(f"{how}: results are incomplete, not all of {len(items)} images were screened")
            raise
        report()
        flood = watch.flood()
        if as_json:
            summary = {**counts, "skipped": skipped, **({"flood": flood.as_json()} if flood else {})}
            click.echo(json.dumps({"schema_version": 1, "summary": summary}))
        if flood and not quiet:
            where = f"--index {folder}" if folder else f"--index DIR (after 'lcmem-onnx index build {against} --index DIR')"
            warn(f"{flood.in_words()}. Calibrate it with 'lcmem-onnx calibrate {where} --negatives STRANGERS'")
        if unproven and not quiet:
            say(f"note: {unproven} results come from the search graph, which may miss a match; use '--search exact' to be sure")
    if counts["error"] or unreadable:
        return FAILED
    return FOUND if counts["match"] else NOTHING_FOUND


@click.command(short_help="Score two images against each other")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@pair_threshold_option
@fpir_option
@json_option
@quiet_option
@model_options
def compare(
    first: Path,
    second: Path,
    threshold: float | None,
    fpir: float | None,
    as_json: bool,
    quiet: bool,
    model: Callable[[], Screener],
) -> int:
    """Score two images and tell whether they show the same patient or are copies.

    \b
    Example:
      lcmem-onnx compare original.dcm copy.png
    """
    from ..runtime.calibration.threshold import decide_pair_threshold
    from ..runtime.errors import ImageError

    screener = model()
    decision = decide_pair_threshold(screener.bundle, threshold, fpir)
    embeddings = []
    for path in (first, second):
        try:
            embeddings.append(screener.embed_renderings(path))
        except ImageError as error:
            click.echo(f"error: {printable(str(path))}: {printable(str(error))} [{error.reason}]", err=True)
            return FAILED
    comparison = screener.compare_embeddings(embeddings[0], embeddings[1], decision)
    if as_json:
        click.echo(json.dumps(comparison.as_json()))
    else:
        print_comparison(comparison, first, second, decision)
    return FOUND if comparison.verdict.value == "match" else NOTHING_FOUND


@contextmanager
def _gallery(screener: Screener, folder: Path | None, against: Path | None, quiet: bool) -> Iterator[tuple[Gallery, int]]:
    """Open the gallery to screen against, and count its unreadable images."""
    from ..runtime.errors import GalleryError
    from ..runtime.gallery import Gallery

    if folder is not None:
        with Gallery.open(folder, screener.bundle, warn=warn) as gallery:
            yield gallery, 0
        return
    with Gallery.temporary(screener.bundle) as gallery:
        unreadable = 0
        items, skipped = walk([against] if against else [])
        say_skipped(skipped, quiet, " in the gallery's folder")
        for outcome in progress(screener.index(items, gallery), len(items), "indexing", quiet, lambda done: done.path):
            for frame, reason, detail in outcome.errors:
                unreadable += 1
                place = outcome.path if frame is None else f"{outcome.path} frame {frame}"
                say(f"error: gallery image {printable(place)}: {printable(detail)} [{reason}]")
        if not len(gallery):
            raise GalleryError(f"{against} contains no readable image to screen against: give a folder or an image with --against")
        yield gallery, unreadable
