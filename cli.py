"""The command line: options, calls, printing. Nothing is decided here, and nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from .display import print_card, print_comparison, print_facts, print_results, printable, progress, say, warn
from .ending import FAILED, FOUND, NOTHING_FOUND, EndingGroup
from .evaluation.command import evaluate

if TYPE_CHECKING:
    from .runtime.files import Found, Unfound
    from .runtime.gallery import Gallery
    from .runtime.screening import Result, Screener

__all__ = ["main"]

SHOW_ALL_UP_TO = 40
"""Up to so many pictures a scan's table shows every one; above, matches and errors only (`-v` shows all)."""

P = ParamSpec("P")
R = TypeVar("R")


# -- options that several commands share ------------------------------------------------------------------------------


def model_options(command: Callable[P, R]) -> Callable[P, R]:
    """--bundle, --variant, --provider, --threads; the command gets them as `model`, a function that opens the screener."""

    @click.option(
        "--bundle",
        envvar="LCMEM_ONNX_BUNDLE",
        show_envvar=True,
        type=click.Path(path_type=Path),
        help="Model to use.  [default: the model of the package]",
    )
    @click.option(
        "--variant",
        envvar="LCMEM_ONNX_VARIANT",
        show_envvar=True,
        default="auto",
        show_default=True,
        help="auto, fp32, fp16, int8: the encoder's precision.",
    )
    @click.option(
        "--provider",
        envvar="LCMEM_ONNX_PROVIDER",
        show_envvar=True,
        default="auto",
        show_default=True,
        help="auto, cpu, cuda, ...: what is asked for by name and cannot be had is an error.",
    )
    @click.option(
        "--threads",
        envvar="LCMEM_ONNX_THREADS",
        show_envvar=True,
        type=click.IntRange(min=1),
        help="For inference and decoding.  [default: what this machine or container allows]",
    )
    @wraps(command)
    def with_model(*args: Any, bundle: Path | None, variant: str, provider: str, threads: int | None, **kwargs: Any) -> R:
        def model() -> Screener:
            from .runtime.screening import Screener

            screener = Screener(bundle, variant=variant, provider=provider, threads=threads)
            if screener.bundle.demonstration and not kwargs.get("quiet"):
                click.echo(
                    "note: no patient was in the training or the figures of this model; do not release data on its word alone",
                    err=True,
                )
            return screener

        return command(*args, model=model, **kwargs)  # type: ignore[arg-type]

    return with_model  # type: ignore[return-value]  # the options are bound here, the rest passes through


def bundle_option(command: Callable[P, R]) -> Callable[P, R]:
    return click.option(
        "--bundle",
        envvar="LCMEM_ONNX_BUNDLE",
        show_envvar=True,
        type=click.Path(path_type=Path),
        help="Model to use.  [default: the model of the package]",
    )(command)


def _checked_threshold(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Refuse a wrong one here, before a gallery has been indexed for it."""
    if value is None:
        return None
    from .runtime.head import check_threshold

    return check_threshold(value)


json_option = click.option("--json", "as_json", is_flag=True, help="JSON on stdout, and nothing else there.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress and no notes on stderr, errors only.")
null_option = click.option("-0", "--null", is_flag=True, help="With '-': names on stdin end in NUL, not newline.")
paths_argument = click.argument("paths", nargs=-1, required=True, metavar="PATH...")
index_option = click.option(
    "--index",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    envvar="LCMEM_ONNX_INDEX",
    help="The index's folder.",
)
threshold_option = click.option(
    "--threshold", type=float, callback=_checked_threshold, help="Score for a match.  [default: the bundle's]"
)


def filling_options(command: Callable[P, R]) -> Callable[P, R]:
    """What `index build` and `index add` take."""
    for option in (model_options, quiet_option, json_option, null_option, index_option, paths_argument):
        command = option(command)
    return command


@click.group(cls=EndingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lcmem-onnx", prog_name="lcmem-onnx")
def main() -> None:
    """Tell whether pictures show a patient, or are a copy of a picture, that is in a gallery.

    \b
    Exit codes: 0 nothing found, 1 at least one match, 2 an error
    (also when some pictures matched: what could not be screened may match as well).
    """


# -- scan and compare -------------------------------------------------------------------------------------------------


@main.command()
@paths_argument
@click.option("--index", "folder", type=click.Path(path_type=Path), envvar="LCMEM_ONNX_INDEX", help="Index to screen against.")
@click.option("--against", type=click.Path(path_type=Path), help="Folder or picture to screen against, indexed for this once.")
@threshold_option
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=1), help="Matches to list for each picture.")
@click.option("--search", default="auto", show_default=True, type=click.Choice(["auto", "exact", "hnsw"]), help="How to search.")
@click.option("-v", "--verbose", is_flag=True, help="Show clear pictures too, however many there are.")
@null_option
@json_option
@quiet_option
@model_options
def scan(
    paths: tuple[str, ...],
    folder: Path | None,
    against: Path | None,
    threshold: float | None,
    top: int,
    search: str,
    verbose: bool,
    null: bool,
    as_json: bool,
    quiet: bool,
    model: Callable[[], Screener],
) -> int:
    """Screen pictures against a gallery.

    PATH is a picture, a folder (searched recursively), or '-' for a list of them on stdin: PNG, JPEG, TIFF, WebP, BMP, GIF and
    DICOM, each frame of it.

    \b
    Examples:
      lcmem-onnx scan released/ --index hospital.index
      lcmem-onnx scan a.png b.dcm --against training-set/ --json
    """
    if (folder is None) == (against is None):
        raise click.UsageError("give either --index DIR or --against DIR: what to screen against")
    from .runtime.errors import LcmemError

    items, skipped = _walk(_inputs(paths, null))
    screener = model()
    with _gallery(screener, folder, against, quiet) as (gallery, unreadable):
        if as_json:
            _say_skipped(skipped, quiet)
        results = screener.screen(items, gallery, threshold=threshold, top=top, search=search)
        no_bar = quiet or (as_json and sys.stdout.isatty())  # the lines themselves show how far it is
        counts = {"clear": 0, "match": 0, "error": 0}
        kept: list[Result] = []

        def report(stopped: str | None = None) -> None:
            if not as_json:
                print_results(kept, screener.bundle, gallery, counts, skipped, threshold, stopped)

        try:
            with closing(progress(results, len(items), "screening", no_bar, lambda result: result.path)) as shown:
                for result in shown:
                    counts[result.verdict.value] += 1
                    if as_json:
                        click.echo(json.dumps(result.as_json()))
                    elif verbose or len(items) <= SHOW_ALL_UP_TO or result.verdict.value != "clear":
                        kept.append(result)
        except (KeyboardInterrupt, LcmemError) as error:
            how = "stopped" if isinstance(error, LcmemError) else "interrupted"
            report(f"{how}: these are the results until then, of {len(items)} pictures in all")
            raise
        report()
    if counts["error"] or unreadable:
        return FAILED
    return FOUND if counts["match"] else NOTHING_FOUND


@main.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@threshold_option
@json_option
@quiet_option
@model_options
def compare(first: Path, second: Path, threshold: float | None, as_json: bool, quiet: bool, model: Callable[[], Screener]) -> int:
    """Score two pictures: do they show the same?

    \b
    Example:
      lcmem-onnx compare original.dcm copy.png
    """
    from .runtime.errors import PictureError

    screener = model()
    embeddings = []
    for path in (first, second):
        try:
            embeddings.append(screener.embed(path))
        except PictureError as error:
            click.echo(f"error: {printable(str(path))}: {printable(str(error))} [{error.reason}]", err=True)
            return FAILED
    comparison = screener.compare_embeddings(embeddings[0], embeddings[1], threshold)
    if as_json:
        click.echo(json.dumps(comparison.as_json()))
    else:
        print_comparison(comparison, first, second, screener.bundle, given=threshold is not None)
    return FOUND if comparison.verdict.value == "match" else NOTHING_FOUND


# -- index ------------------------------------------------------------------------------------------------------------


@main.group()
def index() -> None:
    """Build, extend and inspect an index: a gallery of embeddings on disk."""


@index.command("build")
@filling_options
def index_build(paths: tuple[str, ...], folder: Path, null: bool, as_json: bool, quiet: bool, model: Callable[[], Screener]) -> int:
    """Make a new index of the pictures in PATH.

    \b
    Example:
      lcmem-onnx index build training-set/ --index hospital.index
    """
    from .runtime.gallery import Gallery

    screener = model()
    items, skipped = _walk(_inputs(paths, null))
    with Gallery.create(folder, screener.bundle, warn=warn) as gallery:
        return _fill(screener, gallery, items, skipped, as_json, quiet)


@index.command("add")
@filling_options
def index_add(paths: tuple[str, ...], folder: Path, null: bool, as_json: bool, quiet: bool, model: Callable[[], Screener]) -> int:
    """Add the pictures in PATH to an index; those that are in it already are not embedded again.

    \b
    Example:
      lcmem-onnx index add new-studies/ --index hospital.index
    """
    from .runtime.gallery import Gallery

    screener = model()
    items, skipped = _walk(_inputs(paths, null))
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
    from .runtime.bundle import open_bundle
    from .runtime.gallery import Gallery

    with Gallery.open(folder, open_bundle(bundle), warn=warn) as gallery:
        print_facts(gallery.describe(), as_json)
    return NOTHING_FOUND


# -- bundle and doctor ------------------------------------------------------------------------------------------------


@main.group()
def bundle() -> None:
    """Inspect and check a model bundle."""


@bundle.command("info")
@bundle_option
@json_option
def bundle_info(bundle: Path | None, as_json: bool) -> int:
    """Show a bundle's manifest: what the model is, its threshold, its proof against torch, its card.

    \b
    Example:
      lcmem-onnx bundle info --bundle lcmem-bundle
    """
    from .runtime.bundle import open_bundle

    opened = open_bundle(bundle)
    if as_json:
        click.echo(json.dumps(dict(opened.manifest)))
        return NOTHING_FOUND
    manifest = opened.manifest
    facts: dict[str, object] = {
        "name": opened.name,
        "path": str(opened.path),
        "created": manifest["created"],
        "network": manifest["checkpoint"]["description"],
        "input": f"{opened.image_size} x {opened.image_size} RGB, 8 bit",
        "embedding": f"{opened.features} numbers",
        "threshold": f"{opened.threshold.value:.4g}",
        "threshold from": opened.threshold.source,
        "variants": ", ".join(f"{name} ({its.bytes / 1e6:.1f} MB)" for name, its in opened.variants.items()),
        "license": manifest["license"],
        "fingerprint": opened.fingerprint,
    }
    for variant, parity in manifest["parity"].items():
        facts[f"proof of {variant}"] = (
            f"{parity['pictures']} pictures, batches of {', '.join(map(str, parity['batch_sizes']))}: embeddings within "
            f"{parity['embedding_max']:.1e} of torch, scores within {parity['score_max']:.1e}"
        )
    for variant, entry in manifest["variants"].items():
        if drift := entry.get("drift"):
            facts[f"drift of {variant}"] = (
                f"{drift['flips']} of {drift['pairs']} pairs decided otherwise than by torch, 99 % of scores within "
                f"{drift['score_p99']:.1e}{', past its gate' if entry['past_gate'] else ''}"
            )
    print_facts(facts, as_json=False)
    print_card(manifest["card"])
    return NOTHING_FOUND


@bundle.command("verify")
@quiet_option
@json_option
@model_options
def bundle_verify(quiet: bool, as_json: bool, model: Callable[[], Screener]) -> int:
    """Check every file of a bundle, open it, and embed a picture with it.

    \b
    Example:
      lcmem-onnx bundle verify --bundle lcmem-bundle
    """
    screener = model()
    facts: dict[str, object] = {
        "path": str(screener.bundle.path),
        "verified": True,
        "files": len(screener.bundle.manifest["files"]),
        "variant": screener.encoder.variant,
        "provider": screener.encoder.provider,
        "self_score": screener.self_test(),
    }
    if as_json:
        click.echo(json.dumps({"schema_version": 1, **facts}))
    elif not quiet:
        click.echo(
            f"ok: {facts['files']} files are as they were exported; the model ({facts['variant']}) runs on {facts['provider']} "
            f"and gives a picture a score of {facts['self_score']:.4f} with itself"
        )
    return NOTHING_FOUND


@main.command()
@json_option
@bundle_option
@click.option("--bench", is_flag=True, help="Time the bundle's variants on the CPU, and let '--variant auto' go by it from now on.")
@click.option("--threads", type=click.IntRange(min=1), help="For --bench.  [default: what this machine or container allows]")
def doctor(as_json: bool, bundle: Path | None, bench: bool, threads: int | None) -> int:
    """Show versions, CPU features, execution providers and the bundle, for finding out why something does not work.

    \b
    Examples:
      lcmem-onnx doctor
      lcmem-onnx doctor --bench --bundle lcmem-bundle
    """
    from .runtime.bundle import open_bundle
    from .runtime.errors import LcmemError
    from .runtime.machine import cpu_features, cpu_limit, cpu_name, versions
    from .runtime.providers import available_providers
    from .runtime.screening import Screener
    from .runtime.timings import measure_variants, remember

    features = cpu_features()
    facts: dict[str, object] = {
        **versions(),
        "cpu": cpu_name(),
        "cpu features": "not known on this system" if features is None else ", ".join(features) or "none of note",
        "threads": cpu_limit(),
        "providers in this onnxruntime": ", ".join(available_providers()),
    }
    code = NOTHING_FOUND
    try:
        if bench:
            opened = open_bundle(bundle)
            timings = measure_variants(opened, threads)
            facts |= {f"{name}, a picture": f"{milliseconds:.1f} ms" for name, milliseconds in timings.items()}
            facts["remembered in"] = str(remember(opened, timings, threads))
        screener = Screener(bundle, threads=threads)
        facts["bundle"] = f"{screener.bundle.name} ({screener.bundle.path})"
        facts["provider in use"] = screener.encoder.provider
        facts["variant in use"] = f"{screener.encoder.variant}: {screener.encoder.why}"
        facts["a picture with itself scores"] = round(screener.self_test(), 4)
        facts["verdict"] = "everything needed for a scan works"
    except LcmemError as error:
        facts["verdict"] = f"error: {printable(str(error))}"
        code = FAILED
    print_facts(facts, as_json)
    return code


main.command()(model_options(quiet_option(json_option(evaluate))))


# -- what the commands share ------------------------------------------------------------------------------------------


def _inputs(paths: Iterable[str], null: bool) -> list[Path]:
    """The arguments as paths; '-' stands for the names on stdin."""
    inputs: list[Path] = []
    for path in paths:
        if path == "-":
            if sys.stdin is None:
                raise click.UsageError("stdin is closed, and '-' asks for the names on it")
            names = sys.stdin.buffer.read().split(b"\0" if null else b"\n")
            inputs += [
                Path(os.fsdecode(name)) for name in (names if null else (name.removesuffix(b"\r") for name in names)) if name
            ]
        else:
            inputs.append(Path(path))
    if not inputs:
        raise click.UsageError("stdin named no pictures")
    return inputs


def _walk(paths: Iterable[Path]) -> tuple[list[Found | Unfound], int]:
    """All pictures to be read, and how many other files lay among them. Walked once: the progress bar needs the count."""
    from .runtime.files import Skipped, walk

    found: list[Found | Unfound] = []
    skipped = 0
    for item in walk(paths):
        if isinstance(item, Skipped):
            skipped += 1
        else:
            found.append(item)
    return found, skipped


def _say_skipped(skipped: int, quiet: bool, whose: str = "") -> None:
    """Also where stdout is for programs: among what was skipped may be a picture that no one can tell from its first bytes."""
    if skipped and not quiet:
        click.echo(f"note: {skipped}{whose} files are no pictures and were skipped", err=True)


@contextmanager
def _gallery(screener: Screener, folder: Path | None, against: Path | None, quiet: bool) -> Iterator[tuple[Gallery, int]]:
    """The gallery to screen against, and how many pictures of it could not be read."""
    from .runtime.errors import GalleryError
    from .runtime.gallery import Gallery

    if folder is not None:
        with Gallery.open(folder, screener.bundle, warn=warn) as gallery:
            yield gallery, 0
        return
    with Gallery.temporary(screener.bundle) as gallery:
        unreadable = 0
        items, skipped = _walk([against] if against else [])
        _say_skipped(skipped, quiet, " of the gallery's")
        for outcome in progress(screener.index(items, gallery), len(items), "indexing", quiet, lambda done: done.path):
            for frame, reason, detail in outcome.errors:
                unreadable += 1
                place = outcome.path if frame is None else f"{outcome.path} frame {frame}"
                say(f"error: gallery picture {printable(place)}: {printable(detail)} [{reason}]")
        if not len(gallery):
            raise GalleryError(f"{against} holds no picture that can be read: there is nothing to screen against")
        yield gallery, unreadable


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
        _say_skipped(skipped, quiet)
    if not as_json and not quiet:
        others = f", {skipped} other files skipped" if skipped else ""
        click.echo(
            f"{counts['new']} added, {counts['known']} known already, {counts['copy']} copies of known ones, "
            f"{counts['error']} errors{others}; the index holds {len(gallery)} frames\n"
            f"next  lcmem-onnx scan PATH --index {printable(str(gallery.folder))}"
        )
    return FAILED if counts["error"] else NOTHING_FOUND


if __name__ == "__main__":
    main()
