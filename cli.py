"""The command `lcmem-onnx`: a group whose commands are in `commands/` and are imported on first use."""

from __future__ import annotations

import click

from .console.exit_codes import EndingGroup
from .console.lazy_group import LazyGroup

__all__ = ["main"]

COMMANDS = {
    name: f"lcmem_onnx.commands.{name}:{name}"
    for name in ("audit", "bundle", "calibrate", "doctor", "evaluate", "gateway", "index", "scan")
} | {"compare": "lcmem_onnx.commands.scan:compare"}


class _Commands(EndingGroup, LazyGroup):
    """A lazy group with this package's exit codes."""


@click.group(cls=_Commands, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lcmem-onnx", prog_name="lcmem-onnx")
def main() -> None:
    """Tell whether images show a patient of a gallery, or are copies of its images.

    \b
    Exit codes: 0 nothing found, 1 at least one match, 2 an error
    (even if other images matched: images that were not screened may match as well).
    """


if __name__ == "__main__":
    main()
