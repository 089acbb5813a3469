"""`index export`, `index import`, `index merge`: write galleries to files, read them back, and combine them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console.exit_codes import NOTHING_FOUND
from ..console.terminal import printable, progress, say, warn
from .options import bundle_option, index_option, json_option, named_bundle, quiet_option

if TYPE_CHECKING:
    from ..runtime.gallery import Gallery, Record
    from ..runtime.gallery.interchange.transfer import Imported
    from ..runtime.model.bundle import Bundle

__all__ = ["index_export", "index_import", "index_merge"]

without_patients_option = click.option(
    "--without-patients",
    is_flag=True,
    help="Omit patient and study pseudonyms that were made with another site key.",
)


@click.command("export", short_help="Write an index to a file")
@index_option
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Output file (.parquet or .npz).")
@click.option("--gallery", "names", multiple=True, help="Group of the index to write; repeatable.  [default: all]")
@click.option("--with-paths", is_flag=True, help="Write keys (file names) in plain text even if the index contains patients.")
@bundle_option
@json_option
@quiet_option
def index_export(
    folder: Path, out: Path, names: tuple[str, ...], with_paths: bool, bundle: Path | None, as_json: bool, quiet: bool
) -> int:
    """Write an index to a file, as a backup or to move it: embeddings, keys, checksums, pseudonyms.

    If any group of the index contains patients, keys are replaced by pseudonyms under the site key, since file names may identify
    patients. 'index upgrade' cannot read such images again. --with-paths writes the keys in plain text. The index's calibrated
    threshold is not exported.

    \b
    Example:
      lcmem-onnx index export --index hospital.index --out hospital.parquet
    """
    from ..runtime.gallery import Gallery
    from ..runtime.gallery.interchange.transfer import export_gallery
    from ..runtime.model.bundle import open_bundle

    with Gallery.open(folder, open_bundle(bundle), warn=warn) as gallery:
        watch = _watch(len(gallery), "exporting", quiet)
        made = export_gallery(gallery, out, names or None, watch, with_paths=with_paths)
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "path": str(out), **asdict(made)}))
    elif not quiet:
        click.echo(f"{made.rows:,} embeddings in {printable(str(out))}")
        click.echo(f"next  lcmem-onnx index import {printable(str(out))} --index DIR{named_bundle()}")
    if not quiet and made.rows:
        if made.keys == "hashed":
            say("note: keys are pseudonyms under the site key; --with-paths writes the file names")
        else:
            say("note: the file contains the full paths of the indexed images")
    return NOTHING_FOUND


@click.command("import", short_help="Add an exported index to an index")
@click.argument("file", type=click.Path(path_type=Path))
@index_option
@without_patients_option
@bundle_option
@json_option
@quiet_option
def index_import(file: Path, folder: Path, without_patients: bool, bundle: Path | None, as_json: bool, quiet: bool) -> int:
    """Add an exported file to an index, which is created if missing. An import is atomic: everything or nothing is added.

    Existing entries are unchanged, so an import can be repeated.

    \b
    Example:
      lcmem-onnx index import hospital.parquet --index restored.index
    """
    from ..runtime.gallery.interchange.transfer import import_gallery, read_manifest
    from ..runtime.model.bundle import open_bundle

    model = open_bundle(bundle)
    manifest = read_manifest(file, model.features)  # before an index is created for an invalid file
    with _opened(folder, model, new=False) as gallery:
        watch = _watch(manifest.rows, "importing", quiet)
        done = import_gallery(file, gallery, without_patients=without_patients, watch=watch)
        _report(done, gallery, folder, as_json, quiet)
    return NOTHING_FOUND


@click.command("merge", short_help="Combine indexes into a new one")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR...")
@index_option
@without_patients_option
@bundle_option
@json_option
@quiet_option
def index_merge(
    sources: tuple[Path, ...], folder: Path, without_patients: bool, bundle: Path | None, as_json: bool, quiet: bool
) -> int:
    """Create a new index from the contents of the indexes DIR, which are unchanged.

    An image with the same key in two indexes is kept once. If a key refers to different images, nothing is merged.

    \b
    Example:
      lcmem-onnx index merge north.index south.index --index both.index
    """
    from ..runtime.gallery import Gallery
    from ..runtime.gallery.interchange.transfer import merge_galleries
    from ..runtime.model.bundle import open_bundle

    model = open_bundle(bundle)
    with ExitStack() as stack:
        opened = [stack.enter_context(Gallery.open(source, model, warn=warn)) for source in sources]
        gallery = stack.enter_context(_opened(folder, model, new=True))
        watch = _watch(sum(len(source) for source in opened), "merging", quiet)
        done = merge_galleries(opened, gallery, without_patients=without_patients, watch=watch)
        _report(done, gallery, folder, as_json, quiet)
    return NOTHING_FOUND


@contextmanager
def _opened(folder: Path, model: Bundle, *, new: bool) -> Iterator[Gallery]:
    """Open or create the index to fill; remove an index created here if filling it fails."""
    from ..runtime.gallery import Gallery
    from ..runtime.gallery.storage.schema import DATABASE

    if not new and (folder / DATABASE).exists():
        with Gallery.open(folder, model, read_only=False, warn=warn) as gallery:
            yield gallery
        return
    there = folder.exists()
    try:
        with Gallery.create(folder, model, warn=warn) as gallery:
            yield gallery
    except BaseException:
        if not there:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _watch(total: int, what: str, quiet: bool) -> Callable[[Iterable[Record]], Iterable[Record]]:
    return lambda rows: progress(rows, total, what, quiet, lambda row: f"{row.key}\0{row.frame}")


def _report(done: Imported, gallery: Gallery, folder: Path, as_json: bool, quiet: bool) -> None:
    gallery.update_caches()
    if as_json:
        counts = {"added": done.added, "known": done.known, "frames": len(gallery)}
        click.echo(json.dumps({"schema_version": 1, **counts, "calibration_left_behind": done.calibrated}))
    elif not quiet:
        click.echo(f"{done.added:,} frames added, {done.known:,} already known; the index contains {len(gallery):,}")
    if quiet:
        return
    if done.calibrated:
        say("note: the source's calibrated threshold was not carried over, since it applies to that gallery only")
    if not as_json:
        click.echo(f"next  lcmem-onnx calibrate --index {printable(str(folder))} --negatives DIR{named_bundle()}")
