"""`index`: create, extend, inspect and erase from galleries on disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console.exit_codes import FAILED, NOTHING_FOUND
from ..console.lazy_group import LazyGroup
from ..console.terminal import LABELS, print_facts, printable, say, warn
from .archive import Archive, archive_options, fill_from
from .filling import Filling
from .inputs import inputs, say_skipped, walk
from .options import P, R, bundle_option, filling_options, index_option, json_option, named_bundle, threshold_option

if TYPE_CHECKING:
    from ..runtime.gallery import Gallery
    from ..runtime.images.discovery import Found, Unfound
    from ..runtime.screening import Screener

__all__ = ["index"]


FURTHER = {name: f"lcmem_onnx.commands.interchange:index_{name}" for name in ("export", "import", "merge")} | {
    "upgrade": "lcmem_onnx.commands.index_upgrade:index_upgrade"
}


@click.group(cls=LazyGroup, lazy=FURTHER, short_help="Create and maintain an index of images")
def index() -> None:
    """Create, extend, inspect and erase from an index: galleries of embeddings on disk."""


def _gallery_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add --gallery and --graph to a command that fills an index."""
    name = click.option(
        "--gallery",
        "name",
        default="default",
        show_default=True,
        help="Group of the index to add the images to: a site, a cohort, a training set.",
    )
    graph = click.option("--graph", is_flag=True, help="Also build a search graph, for '--search hnsw'.")
    return name(graph(command))


@index.command("build", short_help="Create an index from images or an archive")
@filling_options
@_gallery_options
@archive_options
def index_build(
    paths: tuple[str, ...],
    folder: Path,
    name: str,
    graph: bool,
    null: bool,
    as_json: bool,
    quiet: bool,
    model: Callable[[], Screener],
    archive: Archive | None,
) -> int:
    """Create a new index from the images in PATH or in an archive.

    \b
    Examples:
      lcmem-onnx index build training-set/ --index hospital.index
      lcmem-onnx index build --from-orthanc http://localhost:8042 --index hospital.index
    """
    from ..runtime.gallery import Gallery, check_gallery_name

    check_gallery_name(name)
    screener = model()
    if archive:
        return fill_from(archive, screener, lambda: Gallery.create(folder, screener.bundle, warn=warn), name, graph, as_json, quiet)
    items, skipped = walk(inputs(paths, null))
    before = set(os.listdir(folder)) if folder.is_dir() else None
    with Gallery.create(folder, screener.bundle, warn=warn) as gallery:
        code = _fill(screener, gallery, items, skipped, name, graph, as_json, quiet, new=True)
        empty = not len(gallery)
    if empty:
        _remove_new(folder, before)
    return code


@index.command("add", short_help="Add images to an index")
@filling_options
@_gallery_options
@archive_options
def index_add(
    paths: tuple[str, ...],
    folder: Path,
    name: str,
    graph: bool,
    null: bool,
    as_json: bool,
    quiet: bool,
    model: Callable[[], Screener],
    archive: Archive | None,
) -> int:
    """Add the images in PATH or in an archive to an index. Images already in the index are not embedded again.

    \b
    Examples:
      lcmem-onnx index add new-studies/ --index hospital.index --gallery ward-3
      lcmem-onnx index add --from-dicomweb https://pacs.example/dicom-web --query StudyDate=20260101- --index hospital.index
    """
    from ..runtime.gallery import Gallery, check_gallery_name

    check_gallery_name(name)
    screener = model()
    if archive:

        def opened() -> Gallery:
            return Gallery.open(folder, screener.bundle, read_only=False, warn=warn)

        return fill_from(archive, screener, opened, name, graph, as_json, quiet)
    items, skipped = walk(inputs(paths, null))
    with Gallery.open(folder, screener.bundle, read_only=False, warn=warn) as gallery:
        return _fill(screener, gallery, items, skipped, name, graph, as_json, quiet)


@index.command("info", short_help="Show what an index contains")
@index_option
@json_option
@bundle_option
def index_info(folder: Path, as_json: bool, bundle: Path | None) -> int:
    """Show the contents of an index by group, and check that it belongs to this bundle.

    \b
    Example:
      lcmem-onnx index info --index hospital.index
    """
    from ..runtime.gallery import Gallery
    from ..runtime.model.bundle import open_bundle

    with Gallery.open(folder, open_bundle(bundle), warn=warn) as gallery:
        facts = gallery.describe() | {"calibration": _calibration(gallery, as_json)}
        older = facts["frames_of_older_readers"]
        if not as_json:
            facts |= {"site_key": facts["site_key"] or "none yet"}
            groups = facts.pop("galleries")
            facts |= {f"gallery {name}": _counted(counts) for name, counts in groups.items()}  # type: ignore[attr-defined]
        print_facts(facts, as_json)
        if older and not as_json:
            # Without --bundle, the upgrade would be to the package's bundle.
            click.echo(f"next  lcmem-onnx index upgrade {printable(str(folder))}{named_bundle()}")
    return NOTHING_FOUND


@index.command("remove", short_help="Erase images from an index")
@index_option
@click.option("--key", help="Image with this key: its absolute path, or the key it was added with.")
@click.option("--patient", "patient_id", help="All images of the patient with this PatientID (requires the site key).")
@click.option("--issuer", help="With --patient: the IssuerOfPatientID of the objects.")
@click.option("--patient-pseudonym", help="All images of the patient with this pseudonym, as shown by scan --json.")
@click.option("--study", "study_uid", help="All images of the study with this StudyInstanceUID (requires the site key).")
@click.option("--gallery", "name", help="Only images in this group; without other criteria, the whole group.")
@json_option
@bundle_option
def index_remove(
    folder: Path,
    key: str | None,
    patient_id: str | None,
    issuer: str | None,
    patient_pseudonym: str | None,
    study_uid: str | None,
    name: str | None,
    as_json: bool,
    bundle: Path | None,
) -> int:
    """Erase images from an index: from its results immediately, and from the disk before the command ends.

    Multiple criteria remove only the images that match all of them. The exit code is 2 if no image matches.

    \b
    Examples:
      lcmem-onnx index remove --index hospital.index --patient 4711 --issuer "St. Mary"
      lcmem-onnx index remove --index hospital.index --key /archive/a.dcm
    """
    from ..runtime.gallery import Gallery
    from ..runtime.gallery.gallery import SITE_KEY
    from ..runtime.model.bundle import open_bundle

    if issuer is not None and patient_id is None:
        raise click.UsageError("--issuer requires --patient")
    if patient_id is not None and patient_pseudonym is not None:
        raise click.UsageError("give --patient or --patient-pseudonym, not both")
    if not any(value is not None for value in (key, patient_id, patient_pseudonym, study_uid, name)):
        raise click.UsageError("no images selected: give --key, --patient, --patient-pseudonym, --study or --gallery")
    with Gallery.open(folder, open_bundle(bundle), read_only=False, warn=warn) as gallery:
        patient = gallery.site_key().patient(patient_id, issuer) if patient_id is not None else patient_pseudonym
        study = gallery.site_key().study(study_uid) if study_uid is not None else None
        removed = gallery.remove(key=key, patient=patient, study=study, gallery=name)
        if not removed and key is not None and gallery.setting(SITE_KEY):  # imported under a pseudonym of this key
            removed = gallery.remove(key=gallery.site_key().key(key), patient=patient, study=study, gallery=name)
        left = len(gallery)
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "removed": removed, "frames_left": left}))
    elif removed:
        images = "image" if removed == 1 else "images"
        click.echo(f"{removed} {images} removed from results and disk; the index contains {left} frames")
    if not removed:
        hint = ": for objects with an IssuerOfPatientID, give --issuer" if patient_id is not None and issuer is None else ""
        say(f"error: no images in {printable(str(folder))} match these criteria{hint}")
        return FAILED
    return NOTHING_FOUND


@index.command("compact", short_help="Rewrite an index without erased data")
@index_option
@click.option("--graph", is_flag=True, help="Also build a search graph, for '--search hnsw'.")
@bundle_option
def index_compact(folder: Path, graph: bool, bundle: Path | None) -> int:
    """Rewrite an index without erased data, update its caches, and migrate an older format.

    'index remove' already compacts. Run this command if another process kept it from doing so, or to finish a format migration.

    \b
    Example:
      lcmem-onnx index compact --index hospital.index
    """
    from ..runtime.gallery import Gallery
    from ..runtime.model.bundle import open_bundle

    with Gallery.open(folder, open_bundle(bundle), read_only=False, warn=warn) as gallery:
        gallery.compact()
        gallery.update_caches(graph=graph)
    click.echo(f"compacted\nnext  lcmem-onnx index verify --index {printable(str(folder))}{named_bundle()}")
    return NOTHING_FOUND


@index.command("verify", short_help="Verify an index against its checksums")
@index_option
@threshold_option
@click.option(
    "--sample",
    default=200,
    show_default=True,
    type=click.IntRange(min=0),
    help="Number of images to search with both the graph and the exact search.",
)
@click.option(
    "--least-recall",
    default=0.999,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Minimum recall of the search graph; exit code 2 below it.",
)
@json_option
@bundle_option
def index_verify(
    folder: Path, threshold: float | None, sample: int, least_recall: float, as_json: bool, bundle: Path | None
) -> int:
    """Verify a whole index against its checksums, and measure the recall of its search graph, if any.

    The exit code is 0 if no problem is found, and 2 if anything is damaged or the graph's recall is too low.

    \b
    Example:
      lcmem-onnx index verify --index hospital.index
    """
    from ..runtime.gallery import Gallery
    from ..runtime.model.bundle import open_bundle

    with Gallery.open(folder, open_bundle(bundle), warn=warn) as gallery:
        found = gallery.verify(threshold, sample)
    problems = list(found.problems)
    recall = found.recall
    if recall and recall.share < least_recall:
        problems.append(
            f"the search graph's recall is {recall.share:.4f}, below {least_recall:g}: scan with '--search exact', or with 'auto', "
            "which searches small galleries exactly"
        )
    if as_json:
        measured = None if recall is None else {**asdict(recall), "recall": recall.share}
        click.echo(json.dumps({"schema_version": 1, "problems": problems, "checked": found.checked, "graph": measured}))
    else:
        for what, count in found.checked.items():
            click.echo(f"{count} {what} intact")
        if recall:
            click.echo(
                f"graph: {recall.found} of {recall.matches} matches of {recall.queries} images found, "
                f"{recall.proven} searches answered by the exact search"
            )
        for problem in problems:
            say(f"error: {printable(problem)}")
    return FAILED if problems else NOTHING_FOUND


def _calibration(gallery: Gallery, as_json: bool) -> object:
    """Return the calibration of an index as JSON fields (None without one) or as text ('none: ...')."""
    from ..runtime.calibration.threshold import stored_calibration

    found = stored_calibration(gallery)
    if found is None:
        return None if as_json else "none: scans use the bundle's threshold for pairs"
    low, high = found.threshold_interval.low, found.threshold_interval.high
    if as_json:
        return {
            "threshold": found.threshold,
            "threshold_interval": [low, high],
            "wanted_fpir": found.wanted,
            "fpir": found.fpir,
            "fpir_interval": [found.fpir_interval.low, found.fpir_interval.high],
            "negatives": found.negatives,
            "vectors": found.growth.size,
            "date": found.date,
        }
    return f"threshold {found.threshold:.4f} ({low:.4f} to {high:.4f}), {found.in_words()}"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {LABELS.get(what, what)}" for what, count in counts.items())


def _fill(
    screener: Screener,
    gallery: Gallery,
    items: list[Found | Unfound],
    skipped: Mapping[str, int],
    name: str,
    graph: bool,
    as_json: bool,
    quiet: bool,
    new: bool = False,
) -> int:
    filling = Filling(as_json=as_json, quiet=quiet)
    filling.follow(screener.index(items, gallery, name=name), len(items), "indexing")
    gallery.update_caches(graph=graph)
    if as_json:
        say_skipped(skipped, quiet)
    return filling.summed_up(gallery, skipped, made=not new)


def _remove_new(folder: Path, before: set[str] | None) -> None:
    """Remove new files from a folder: all except those in `before`; the whole folder if it did not exist (None)."""
    if before is None:
        shutil.rmtree(folder)
        return
    for path in folder.iterdir():
        if path.name not in before:
            path.unlink()
