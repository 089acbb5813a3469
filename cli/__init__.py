"""The command line: options, calls, printing. Nothing is decided here, and nothing heavy is imported before a command runs.

A module is one command or one group of them; what they share is in `options` and `inputs`.
"""

from __future__ import annotations

import click

from ..ending import EndingGroup
from ..evaluation.command import evaluate
from .audit import audit
from .bundle import bundle
from .calibrate import calibrate
from .doctor import doctor
from .gateway import gateway
from .gateway_quarantine import quarantine as _  # noqa: F401  # adds its groups to `gateway`
from .index import index
from .interchange import index_export, index_import, index_merge
from .options import json_option, model_options, quiet_option
from .scan import compare, scan
from .upgrade import index_upgrade

__all__ = ["main"]


@click.group(cls=EndingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lcmem-onnx", prog_name="lcmem-onnx")
def main() -> None:
    """Tell whether pictures show a patient, or are a copy of a picture, that is in a gallery.

    \b
    Exit codes: 0 nothing found, 1 at least one match, 2 an error
    (also when some pictures matched: what could not be screened may match as well).
    """


for command in (scan, compare, audit, index, calibrate, gateway, bundle, doctor):
    main.add_command(command)
for command in (index_export, index_import, index_merge, index_upgrade):
    index.add_command(command)
main.command()(model_options(quiet_option(json_option(evaluate))))
