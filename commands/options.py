"""Options that several commands share, each said once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from ..console.terminal import printable

if TYPE_CHECKING:
    from ..runtime.screening import Screener

__all__ = [
    "bundle_option",
    "filling_options",
    "fpir_option",
    "index_option",
    "index_threshold_option",
    "json_option",
    "model_options",
    "named_bundle",
    "null_option",
    "pair_threshold_option",
    "paths_argument",
    "quiet_option",
    "threshold_option",
]

P = ParamSpec("P")
R = TypeVar("R")


def model_options(command: Callable[P, R]) -> Callable[P, R]:
    """--bundle, --variant, --provider, --threads, --isolate; the command gets them as `model`, which opens the screener."""

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
    @click.option(
        "--isolate",
        envvar="LCMEM_ONNX_ISOLATE",
        show_envvar=True,
        is_flag=True,
        help="Decode each image in a process of its own, under limits: for files from outside. Linux only.",
    )
    @wraps(command)
    def with_model(
        *args: Any, bundle: Path | None, variant: str, provider: str, threads: int | None, isolate: bool, **kwargs: Any
    ) -> R:
        def model() -> Screener:
            from ..runtime.screening import Screener

            screener = Screener(bundle, variant=variant, provider=provider, threads=threads, isolate=isolate)
            click.get_current_context().call_on_close(screener.close)
            if screener.bundle.demonstration and not kwargs.get("quiet"):
                click.echo(
                    "note: this is a demonstration model ('lcmem-onnx bundle info' shows what it misses); do not release data on "
                    "its word alone",
                    err=True,
                )
            return screener

        return command(*args, model=model, **kwargs)  # type: ignore[arg-type]

    return with_model  # type: ignore[return-value]  # the options are bound here, the rest passes through


def named_bundle() -> str:
    """Return ` --bundle B` where the command line names a bundle, for the command that is proposed next; else nothing."""
    context = click.get_current_context()
    named = context.get_parameter_source("bundle") is ParameterSource.COMMANDLINE
    return f" --bundle {printable(str(context.params['bundle']))}" if named else ""


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
    from ..runtime.model.head import check_threshold

    return check_threshold(value)


def _checked_rate(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Refuse a wrong one here, as `_checked_threshold` does."""
    if value is None:
        return None
    from ..runtime.model.strangers import check_rate

    return check_rate(value)


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
pair_threshold_option = click.option(
    "--threshold",
    type=float,
    callback=_checked_threshold,
    help="Score for a match.  [default: --fpir's in a gallery of one image, else the bundle's]",
)
fpir_option = click.option(
    "--fpir",
    type=float,
    callback=_checked_rate,
    help="Share of strangers' images that may be flagged, where the bundle's strangers set the threshold.  [default: 0.05]",
)
index_threshold_option = click.option(
    "--threshold",
    type=float,
    callback=_checked_threshold,
    help="Score for a match.  [default: what 'lcmem-onnx calibrate' set for the index, else --fpir's, else the bundle's]",
)


def filling_options(command: Callable[P, R]) -> Callable[P, R]:
    """What `index build` and `index add` take."""
    paths = click.argument("paths", nargs=-1, metavar="[PATH]...")  # or an archive in place of them
    for option in (model_options, quiet_option, json_option, null_option, index_option, paths):
        command = option(command)
    return command
