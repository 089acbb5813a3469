"""`index`: galleries on disk, made, extended, inspected."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..display import print_facts, printable, progress, say, warn
from ..ending import FAILED, NOTHING_FOUND
from .archive import Archive, archive_options, fill_from
from .inputs import inputs, say_skipped, walk
from .options import bundle_option, filling_options, index_option, json_option

if TYPE_CHECKING:
    from ..runtime.files import Found, Unfound
    from ..runtime.gallery import Gallery
    from ..runtime.screening import Screener

__all__ = ["index"]


@click.group()
def index() -> None:
    """Build, extend and inspect an index: a gallery of embeddings on disk."""


@index.command("build")
@filling_options
@archive_options
def index_build(
    paths: tuple[str, ...],
    folder: Path,
    null: bool,
    as_json: bool,
    quiet: bool,
    model: Callable[[], Screener],
    archive: Archive | None,
) -> int:
    """Make a new index of the pictures in PATH, or in an archive.

    \b
    Examples:
      lcmem-onnx index build training-set/ --index hospital.index
      lcmem-onnx index build --from-orthanc http://localhost:8042 --index hospital.index
    """
    from ..runtime.gallery import Gallery

    screener = model()
    if archive:
        return fill_from(archive, screener, lambda: Gallery.create(folder, screener.bundle, warn=warn), as_json, quiet)
    items, skipped = walk(inputs(paths, null))
    with Gallery.create(folder, screener.bundle, warn=warn) as gallery:
        return _fill(screener, gallery, items, skipped, as_json, quiet)


@index.command("add")
@filling_options
@archive_options
def index_add(
    paths: tuple[str, ...],
    folder: Path,
    null: bool,
    as_json: bool,
    quiet: bool,
    model: Callable[[], Screener],
    archive: Archive | None,
) -> int:
    """Add the pictures in PATH, or in an archive, to an index; those that are in it already are not embedded again.

    \b
    Examples:
      lcmem-onnx index add new-studies/ --index hospital.index
      lcmem-onnx index add --from-dicomweb https://pacs.example/dicom-web --query StudyDate=20260101- --index hospital.index
    """
    from ..runtime.gallery import Gallery

    screener = model()
    if archive:

        def opened() -> Gallery:
            return Gallery.open(folder, screener.bundle, read_only=False, warn=warn)

        return fill_from(archive, screener, opened, as_json, quiet)
    items, skipped = walk(inputs(paths, null))
    with Gallery.open(folder, screener.bundle, read_only=False, warn=warn) as gallery:
        return _fill(screener, gallery, items, skipped, as_json, quiet)


@index.command("info")
@index_option
@json_option
@bundle_option
def index_info(folder: Path, as_json: bool, bundle: Path | None) -> int:
    """Show what an index holds, and that it belongs to this bundle.

    \b
    Example:
      lcmem-onnx index info --index hospital.index
    """
    from ..runtime.bundle import open_bundle
    from ..runtime.gallery import Gallery

    with Gallery.open(folder, open_bundle(bundle), warn=warn) as gallery:
        print_facts(gallery.describe(), as_json)
    return NOTHING_FOUND


def _fill(screener: Screener, gallery: Gallery, items: list[Found | Unfound], skipped: int, as_json: bool, quiet: bool) -> int:
    counts = {"new": 0, "known": 0, "copy": 0, "error": 0}
    no_bar = quiet or (as_json and sys.stdout.isatty())
    for outcome in progress(screener.index(items, gallery), len(items), "indexing", no_bar, lambda done: done.path):
        if outcome.added:
            counts[outcome.added.value] += 1
        for frame, reason, detail in outcome.errors:
            counts["error"] += 1
            if not as_json:
                place = outcome.path if frame is None else f"{outcome.path} frame {frame}"
                say(f"error: {printable(place)}: {printable(detail)} [{reason}]")
        if as_json:
            click.echo(json.dumps(outcome.as_json()))
    gallery.update_graph()
    if as_json:
        say_skipped(skipped, quiet)
    if not as_json and not quiet:
        others = f", {skipped} other files skipped" if skipped else ""
        click.echo(
            f"{counts['new']} added, {counts['known']} known already, {counts['copy']} copies of known ones, "
            f"{counts['error']} errors{others}; the index holds {len(gallery)} frames\n"
            f"next  lcmem-onnx scan PATH --index {printable(str(gallery.folder))}"
        )
    return FAILED if counts["error"] else NOTHING_FOUND
