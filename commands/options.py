"""Options shared by several commands."""

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
    "quiet_option",
    "threshold_option",
]

P = ParamSpec("P")
R = TypeVar("R")


def model_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add --bundle, --variant, --provider, --threads and --isolate; the command receives `model`, which opens the screener."""

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
        help="Encoder precision: auto, fp32, fp16 or int8.",
    )
    @click.option(
        "--provider",
        envvar="LCMEM_ONNX_PROVIDER",
        show_envvar=True,
        default="auto",
        show_default=True,
        help="Execution provider: auto, cpu, cuda, ... Fail if the named provider is unavailable.",
    )
    @click.option(
        "--threads",
        envvar="LCMEM_ONNX_THREADS",
        show_envvar=True,
        type=click.IntRange(min=1),
        help="Threads for inference and decoding.  [default: CPUs available to this process]",
    )
    @click.option(
        "--isolate",
        envvar="LCMEM_ONNX_ISOLATE",
        show_envvar=True,
        is_flag=True,
        help="Decode untrusted files in a sandboxed subprocess with resource limits. Linux only.",
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
                    "note: this is a demonstration model ('lcmem-onnx bundle info' shows its accuracy); do not release data based "
                    "on its verdict alone",
                    err=True,
                )
            return screener

        return command(*args, model=model, **kwargs)  # type: ignore[arg-type]

    return with_model  # type: ignore[return-value]  # the options are bound here, the rest passes through


def named_bundle() -> str:
    """Return ` --bundle B` for a suggested command if the command line names a bundle, else an empty string."""
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
    """Reject an invalid threshold before a gallery is indexed."""
    if value is None:
        return None
    from ..runtime.model.head import check_threshold

    return check_threshold(value)


def _checked_rate(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Reject an invalid rate before a gallery is indexed."""
    if value is None:
        return None
    from ..runtime.model.strangers import check_rate

    return check_rate(value)


json_option = click.option("--json", "as_json", is_flag=True, help="Print only JSON on stdout.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print only errors on stderr, no progress or notes.")
null_option = click.option("-0", "--null", is_flag=True, help="With '-': paths on stdin end in NUL instead of newline.")
index_option = click.option(
    "--index",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    envvar="LCMEM_ONNX_INDEX",
    help="Folder of the index.",
)
threshold_option = click.option(
    "--threshold", type=float, callback=_checked_threshold, help="Minimum score of a match.  [default: the bundle's]"
)
pair_threshold_option = click.option(
    "--threshold",
    type=float,
    callback=_checked_threshold,
    help="Minimum score of a match.  [default: set by --fpir for a gallery of one image, else the bundle's]",
)
fpir_option = click.option(
    "--fpir",
    type=float,
    callback=_checked_rate,
    help="Share of strangers' images that may be flagged, if the bundle's stranger scores set the threshold.  [default: 0.05]",
)
index_threshold_option = click.option(
    "--threshold",
    type=float,
    callback=_checked_threshold,
    help="Minimum score of a match.  [default: set by 'lcmem-onnx calibrate', else by --fpir, else the bundle's]",
)


def filling_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the arguments and options shared by `index build` and `index add`."""
    paths = click.argument("paths", nargs=-1, metavar="[PATH]...")  # optional: an archive can replace them
    for option in (model_options, quiet_option, json_option, null_option, index_option, paths):
        command = option(command)
    return command
