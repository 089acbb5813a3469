"""The command `lcmem-onnx evaluate`: options, calls, printing. Heavy packages are imported only when it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from lcmem_onnx.console.exit_codes import when_interrupted
from lcmem_onnx.console.terminal import printable

from .options import json_option, model_options, quiet_option

if TYPE_CHECKING:
    from lcmem_onnx.runtime.screening import Screener

__all__ = ["evaluate"]

NEEDED = ("imagehash", "matplotlib", "pdqhash", "skimage", "sklearn")
"""Packages of the extra [evaluate]."""


@click.command(short_help="Measure a bundle on a labeled file list")
@model_options
@quiet_option
@json_option
@click.option(
    "--list", "listing", required=True, type=click.Path(path_type=Path), help="CSV file list with columns Split, id, path, ds_name."
)
@click.option(
    "--base", type=click.Path(path_type=Path), help="Folder that the list's paths are relative to.  [default: the list's]"
)
@click.option(
    "--protocol",
    default="all",
    show_default=True,
    type=click.Choice(["reid", "copy", "all"]),
    help="Re-identification, copy detection, or both.",
)
@click.option(
    "--grid",
    default="paper",
    show_default=True,
    type=click.Choice(["paper", "realistic", "all"]),
    help="Alterations for copy detection: the paper's plus six more, realistic ones, or all.",
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    metavar="NAME|FILE",
    help="Baseline to compare with: mse, ssim, ncc, phash, pdq, random, an ONNX embedder or another bundle; repeatable.",
)
@click.option(
    "--baseline-values",
    default="imagenet",
    show_default=True,
    type=click.Choice(["imagenet", "unit", "symmetric", "levels"]),
    help="Input range of ONNX baselines with float input: ImageNet-normalized, [0, 1], [-1, 1] or [0, 255].",
)
@click.option(
    "--baseline-size",
    default=288,
    show_default=True,
    type=click.IntRange(min=32),
    help="Input side, in pixels, of ONNX baselines without a fixed size.",
)
@click.option(
    "--false-positives",
    "rates",
    multiple=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="False positive rate to fit a threshold to; repeatable.  [default: 0.001 and 0.00001]",
)
@click.option(
    "--fit-on",
    default="val",
    show_default=True,
    type=click.Choice(["val", "test"]),
    help="Split to fit thresholds on: VAL (TEST if VAL has too few pairs), or TEST.",
)
@click.option(
    "--negatives",
    default=20_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Negative pairs per data set for mse, ssim and ncc (embeddings use up to 2,000,000).",
)
@click.option(
    "--no-negatives",
    "no_negatives",
    multiple=True,
    metavar="DS_NAME,...",
    help="Data sets to exclude from negative pairs, because their identities are not unique; repeatable.",
)
@click.option(
    "--tail",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the strangers' score tail, measured on VAL, to this file for 'python -m export --strangers'.",
)
@click.option("--size", type=click.IntRange(min=32), help="Image side, in pixels, for alterations.  [default: the bundle's input]")
@click.option("--seed", default=42, show_default=True, type=click.IntRange(min=0), help="Seed for pairs, alterations, intervals.")
@click.option("--limit", type=click.IntRange(min=2), help="Use only the first N images of each data set (for a trial run).")
@click.option(
    "--altered",
    "most_altered",
    type=click.IntRange(min=1),
    help="Alter only N images of each data set, drawn by the seed; the others remain as negatives.  [default: all]",
)
@click.option("--plots", type=click.Path(path_type=Path), help="Folder to write plots to.")
@click.option("--plot-format", default="png", show_default=True, type=click.Choice(["png", "svg"]), help="Format of the plots.")
def evaluate(
    listing: Path,
    base: Path | None,
    protocol: str,
    grid: str,
    baselines: tuple[str, ...],
    baseline_values: str,
    baseline_size: int,
    rates: tuple[float, ...],
    fit_on: str,
    negatives: int,
    no_negatives: tuple[str, ...],
    tail: Path | None,
    size: int | None,
    seed: int,
    limit: int | None,
    most_altered: int | None,
    plots: Path | None,
    plot_format: str,
    as_json: bool,
    quiet: bool,
    model: Callable[[], Screener],
) -> int:
    """Measure a bundle, and optional baselines, on a labeled file list with the paper's two protocols.

    The protocols are re-identification, and recall of altered copies by transform and strength. TEST images are measured;
    thresholds are fitted on VAL images if there are enough. Unreadable images are excluded and reported.

    \b
    Example:
      lcmem-onnx evaluate --list test.csv --baseline phash --baseline pdq --plots curves/
    """
    _check_installed()
    from ..evaluation.evaluate import FALSE_POSITIVES
    from ..evaluation.evaluate import evaluate as measure
    from ..evaluation.networks import BundleScorer
    from ..evaluation.scorers import open_baselines
    from ..evaluation.tables import print_evaluation, progress_bar

    if plots:
        from ..evaluation.plots import prepare_folder

        prepare_folder(plots)
    screener = model()
    ours = BundleScorer(screener)
    session = screener.encoder.session
    others = open_baselines(
        baselines,
        (ours.name,),
        values=baseline_values,
        free_size=baseline_size,
        provider=session.requested,
        threads=session.threads,
    )
    left_out = [name.strip() for names in no_negatives for name in names.split(",")]
    if tail:
        _check_writable(tail)
    with when_interrupted("interrupted: nothing was reported"), progress_bar(quiet) as progress:
        evaluation = measure(
            listing,
            [ours, *others],
            base=base,
            protocol=protocol,
            seed=seed,
            size=size or screener.bundle.image_size,
            limit=limit,
            pair_negatives=negatives,
            fit_on=fit_on,
            false_positives=rates or FALSE_POSITIVES,
            workers=session.threads,
            progress=progress,
            grid=grid,
            no_negatives=left_out,
            most_altered=most_altered,
        )
        if tail:
            _write_tail(tail, listing, base, screener, left_out, seed, session.threads, progress)
    # Print before plotting, so that a failing plot does not lose the figures.
    if as_json:
        click.echo(json.dumps(evaluation.as_json(), allow_nan=False))
    else:
        print_evaluation(evaluation)
    sys.stdout.flush()
    if plots:
        from ..evaluation.plots import write_plots

        written = write_plots(evaluation, plots, plot_format)
        if not quiet:
            click.echo(f"{len(written)} plots are in {printable(str(plots))}", err=True)
    return 0


def _check_writable(path: Path) -> None:
    """Fail before hours of measuring."""
    from lcmem_onnx.runtime.errors import UsageError

    if not path.absolute().parent.is_dir():
        raise UsageError(f"cannot write --tail {path}: {path.absolute().parent} is not an existing folder")


def _write_tail(
    path: Path,
    listing: Path,
    base: Path | None,
    screener: Screener,
    no_negatives: list[str],
    seed: int,
    threads: int | None,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    from lcmem_onnx.runtime.errors import FileListError, UsageError
    from lcmem_onnx.runtime.system.atomic_write import put_whole
    from lcmem_onnx.runtime.system.cpu import cpu_limit

    from ..evaluation.filelist import read_file_list
    from ..evaluation.tail import measure_strangers

    rows = [row for row in read_file_list(listing, base) if row.split == "VAL"]
    if not rows:
        raise FileListError(f"{listing} has no VAL images, which --tail requires: set Split to VAL for some patients")
    workers = threads or cpu_limit()
    found = measure_strangers(screener, rows, no_negatives=no_negatives, seed=seed, workers=workers, progress=progress)
    text = json.dumps(found.as_json(), indent=1, allow_nan=False) + "\n"
    try:
        put_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot write --tail {path}: {error.strerror or error}") from error


def _check_installed() -> None:
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise click.UsageError(f"evaluate requires missing packages ({', '.join(missing)}): pip install 'lcmem-onnx[evaluate]'")
