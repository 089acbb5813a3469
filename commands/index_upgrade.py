"""`index upgrade`: read and embed the files of an index again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console.exit_codes import FAILED, NOTHING_FOUND, when_interrupted
from ..console.terminal import printable, progress, say, warn
from .options import json_option, model_options, named_bundle, quiet_option

if TYPE_CHECKING:
    from ..runtime.index_upgrade import Upgraded
    from ..runtime.results import EmbeddedFile
    from ..runtime.screening import Screener

__all__ = ["index_upgrade"]


@click.command("upgrade", short_help="Re-embed the files of an index")
@click.argument("folder", metavar="INDEX", type=click.Path(path_type=Path))
@click.option("--drop-missing", is_flag=True, help="Remove images whose files are missing or unreadable.")
@click.option("--keep-missing", is_flag=True, help="Keep such images as the older reader rendered them (same bundle only).")
@json_option
@quiet_option
@model_options
def index_upgrade(
    folder: Path, drop_missing: bool, keep_missing: bool, as_json: bool, quiet: bool, model: Callable[[], Screener]
) -> int:
    """Read and embed the files of an index again: those read by an older version, or all of them for another bundle.

    The old index stays in use until everything is embedded, and is then replaced atomically. Run the same command again to resume
    an interrupted upgrade. Groups, patients and studies are preserved. If images cannot be read again, they are listed, the index
    is unchanged and the exit code is 2, unless --drop-missing or --keep-missing is given.

    \b
    Examples:
      lcmem-onnx index upgrade hospital.index
      lcmem-onnx index upgrade hospital.index --bundle new-bundle
    """
    from ..runtime.index_upgrade import Missing, upgrade_index

    if drop_missing and keep_missing:
        raise click.UsageError("give --drop-missing or --keep-missing, not both")
    missing = Missing.DROP if drop_missing else Missing.KEEP if keep_missing else Missing.REFUSE
    no_bar = quiet or (as_json and sys.stdout.isatty())

    def watch(files: Iterable[EmbeddedFile], total: int) -> Iterable[EmbeddedFile]:
        return progress(files, total, "embedding", no_bar, lambda done: done.path)

    with when_interrupted("interrupted: finished embeddings are kept; run the same command again to resume"):
        done = upgrade_index(folder, model(), missing=missing, warn=warn, watch=watch)
    _report(done, folder, as_json, quiet)
    return FAILED if done.refused else NOTHING_FOUND


def _report(done: Upgraded, folder: Path, as_json: bool, quiet: bool) -> None:
    level = "error" if done.refused else "note"
    for each in done.unavailable:
        if as_json:
            click.echo(json.dumps(each.as_json()))
        elif done.refused or not quiet:
            say(f"{level}: {printable(each.key)} in {each.gallery}: {printable(each.detail)} [{each.reason}]")
    many = len(done.unavailable)
    where = printable(str(folder))
    if as_json:
        click.echo(json.dumps(done.as_json()))
    elif not done.refused and not quiet:
        lost = f", {many} {'dropped' if done.missing.value == 'drop' else 'kept unchanged'}" if many else ""
        resumed = f" ({done.resumed} files before the interruption)" if done.resumed else ""
        click.echo(f"{done.upgraded} images embedded again{resumed}, {done.current} were current{lost}")
        click.echo(f"next  lcmem-onnx index verify --index {where}{named_bundle()}")
    if done.refused:
        keep = "" if done.bundle_changed else ", or --keep-missing to keep them as the older version rendered them"
        say(
            f"error: {where} is unchanged: {many} of its images cannot be read again. Restore their files and run the same command "
            f"again, or give --drop-missing to remove them from the index{keep}"
        )
    elif done.calibration_removed and not quiet:
        say(
            "note: the index's threshold was removed, since it applied to the other bundle: "
            f"set a new one with 'lcmem-onnx calibrate --index {where} --negatives DIR'"
        )
