"""`lcmem-onnx evaluate`: its options, and the call."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import click

__all__ = ["evaluate_command"]

NEEDED = ("sklearn", "skimage", "matplotlib", "imagehash", "pdqhash")


@click.command("evaluate")
@click.option("--list", "listing", type=click.Path(path_type=Path), required=True, help="CSV file list: Split, id, path, ds_name.")
@click.option("--base", type=click.Path(path_type=Path), help="What paths are relative to.  [default: the list's folder]")
@click.option("--bundle", envvar="LCMEM_ONNX_BUNDLE", show_envvar=True, type=click.Path(path_type=Path),
              help="Model to measure.  [default: the bundled one]")  # fmt: skip
@click.option("--baseline", "baselines", multiple=True, metavar="NAME|FILE",
              help="Beside it: mse, ssim, ncc, phash, pdq, random, or an ONNX embedder (cosine). Repeatable.")  # fmt: skip
@click.option("--protocol", type=click.Choice(["all", "copy", "reid"]), default="all", show_default=True, help="What to measure.")
@click.option("--false-positives", "rates", multiple=True, type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Rates at which recalls are taken. Repeatable.  [default: 0.001 and 0.00001]")  # fmt: skip
@click.option(
    "--fit", type=click.Choice(["test", "val"]), default="test", show_default=True, help="Split that sets the thresholds."
)
@click.option("--size", type=click.IntRange(min=32), default=256, show_default=True, help="Side at which pictures are altered.")
@click.option("--seed", type=int, default=42, show_default=True, help="Of pairs and alterations.")
@click.option("--limit", type=click.IntRange(min=2), help="At most so many pictures of each data set.")
@click.option("--plots", type=click.Path(path_type=Path), metavar="DIR", help="Write curves there.")
@click.option("--plot-format", type=click.Choice(["png", "svg"]), default="png", show_default=True, help="Of the curves.")
@click.option("--threads", envvar="LCMEM_ONNX_THREADS", show_envvar=True, type=click.IntRange(min=1),
              help="For inference.  [default: what this machine or container allows]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, and nothing else there.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr, errors only.")
def evaluate_command(
    listing: Path, base: Path | None, bundle: Path | None, baselines: tuple[str, ...], protocol: str, rates: tuple[float, ...],
    fit: str, size: int, seed: int, limit: int | None, plots: Path | None, plot_format: str, threads: int | None,
    as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Measure a bundle, and baselines, on the TEST split of a file list: re-identification and copy detection.

    \b
    Example:
      lcmem-onnx evaluate --list mimic.csv --baseline phash --baseline pdq --plots curves/
    """
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        raise click.UsageError(f"{', '.join(lacking)} is missing: pip install 'lcmem-onnx[evaluate]'")
    from lcmem_onnx.runtime.bundle import open_bundle

    from .evaluate import evaluate
    from .scorers import BundleScorer, scorer_for
    from .tables import print_evaluation

    opened = open_bundle(bundle)
    scorers = [BundleScorer(opened, threads=threads), *(scorer_for(name, threads) for name in baselines)]
    evaluation = evaluate(
        listing,
        scorers,
        base=base,
        protocols=("copy", "reid") if protocol == "all" else (protocol,),
        rates=rates or (1e-3, 1e-5),
        thresholds={opened.name: opened.threshold.value},
        fit=fit.upper(),
        size=size,
        seed=seed,
        limit=limit,
        progress=_Progress(quiet),
    )
    if plots is not None:
        from .plots import save_plots

        for path in save_plots(evaluation, plots, plot_format):
            if not quiet:
                click.echo(f"plot  {path}", err=True)
    if as_json:
        about = {"list": str(listing), "bundle": opened.name, "fingerprint": opened.fingerprint}
        click.echo(json.dumps({**evaluation.as_json(), **about}))
    else:
        from rich.console import Console

        print_evaluation(evaluation, Console(width=None if sys.stdout.isatty() else 160, highlight=False))
    return 0


class _Progress:
    """One line on a terminal's stderr, rewritten as things get done."""

    def __init__(self, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._shown:
            click.echo(f"\r\033[K{what} {done}/{total}" if done < total else "\r\033[K", nl=False, err=True)
