"""Prepare the command line for its reference page."""

from __future__ import annotations

from typing import Any

import click
from lcmem_onnx.cli import main


def on_startup(**_: Any) -> None:
    """Import every command: mkdocs-click lists only those that a lazy group has imported already."""
    _import_all(main)


def _import_all(group: click.Group) -> None:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            _import_all(command)
