"""`gateway quarantine` and `gateway audit`: decide on held objects, and verify the audit trail."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console.exit_codes import FAILED, NOTHING_FOUND
from ..console.terminal import print_facts, printable
from .gateway import config_option, opened_spool, read_settings
from .options import json_option

if TYPE_CHECKING:
    from ..runtime.gateway.spool import Item

__all__ = ["audit", "quarantine"]

objects_argument = click.argument("objects", nargs=-1, required=True, metavar="ID...")


@click.group("quarantine", short_help="Review, release or discard held objects")
def quarantine() -> None:
    """Review quarantined objects and release, discard or rescreen them."""


@quarantine.command("list", short_help="List quarantined objects, newest first")
@click.option("--reason", help="Show only this reason: at-or-above-threshold, damaged, no-rule, ...")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="Maximum number of objects to show.")
@click.option("--kept", is_flag=True, help="Also show objects that a rule keeps.")
@config_option
@json_option
@click.pass_context
def quarantine_list(context: click.Context, reason: str | None, limit: int, kept: bool, config: Path | None, as_json: bool) -> int:
    """List quarantined objects, newest first. With --json, the audit trail records that you viewed the details.

    \b
    Example:
      lcmem-onnx gateway quarantine list --reason at-or-above-threshold
    """
    from ..runtime.gateway.quarantine import Quarantine, View, current_user, this_machine

    with opened_spool(context, config) as spool:
        items = Quarantine(spool).list(limit, reason, kept=kept)
        if as_json:  # the details contain gallery keys, which may contain patient names
            Quarantine(spool).view(items, current_user(), View.DETAILS, address=this_machine())
    for item in items:
        if as_json:
            click.echo(json.dumps(_facts(item)))
        else:
            click.echo(f"{item.id}  {_moment(item.changed)}  {item.reason}  from {printable(item.calling_aet or item.source)}")
    if not as_json and sys.stdout.isatty():
        click.echo(f"{len(items)} held\nnext  lcmem-onnx gateway quarantine show ID")
    return NOTHING_FOUND


@quarantine.command("show", short_help="Show why an object is held")
@click.argument("object_id", metavar="ID")
@config_option
@json_option
@click.pass_context
def quarantine_show(context: click.Context, object_id: str, config: Path | None, as_json: bool) -> int:
    """Show why an object is held, its nearest gallery images, and its file. A unique prefix of the ID is enough.

    The audit trail records that you viewed it. If the trail cannot be written, nothing is shown.

    \b
    Example:
      lcmem-onnx gateway quarantine show 3f2a
    """
    from ..runtime.gateway.quarantine import Quarantine, View, current_user, this_machine

    with opened_spool(context, config) as spool:
        item = Quarantine(spool).show(object_id)
        Quarantine(spool).view([item], current_user(), View.DETAILS, address=this_machine())
        facts = _facts(item) | {"file": str(spool.files.path(item.id))}
    if as_json:
        click.echo(json.dumps(facts))
    else:
        near = [f"{hit['key']} frame {hit['frame']}: {hit['score']:.4f}" for hit in item.result.get("nearest", [])]
        del facts["schema_version"]
        facts |= {"arrived": _moment(item.arrived), "changed": _moment(item.changed)}
        notes = ", ".join(item.result.get("notes", [])) or "none"
        print_facts(facts | {"nearest": "; ".join(near) or "none", "notes": notes}, False)
    return NOTHING_FOUND


@quarantine.command("release", short_help="Forward held objects")
@objects_argument
@click.option(
    "--to", "destinations", multiple=True, metavar="DESTINATION", help="Destination; repeatable.  [default: those of the rule]"
)
@config_option
@click.pass_context
def quarantine_release(context: click.Context, objects: tuple[str, ...], destinations: tuple[str, ...], config: Path | None) -> int:
    """Forward held objects. The audit trail records who released them.

    \b
    Example:
      lcmem-onnx gateway quarantine release 3f2a --to archive
    """
    from ..runtime.gateway.quarantine import Quarantine, current_user, this_machine

    with opened_spool(context, config) as spool:
        for object_id in objects:
            item = Quarantine(spool).release(object_id, current_user(), destinations, address=this_machine())
            click.echo(f"{item.id} will be forwarded")
        spool.audit.flush()
    return NOTHING_FOUND


@quarantine.command("discard", short_help="Delete held or dead objects permanently")
@objects_argument
@config_option
@click.pass_context
def quarantine_discard(context: click.Context, objects: tuple[str, ...], config: Path | None) -> int:
    """Delete held or dead objects permanently. The audit trail records the objects and who discarded them.

    \b
    Example:
      lcmem-onnx gateway quarantine discard 3f2a
    """
    from ..runtime.gateway.quarantine import Quarantine, current_user, this_machine

    with opened_spool(context, config) as spool:
        for object_id in objects:
            item = Quarantine(spool).discard(object_id, current_user(), address=this_machine())
            click.echo(f"{item.id} is discarded")
        spool.audit.flush()
    return NOTHING_FOUND


@quarantine.command("rescreen", short_help="Screen held objects again")
@click.argument("objects", nargs=-1, metavar="[ID]...")
@click.option("--reason", help="Rescreen all objects held for this reason, such as index-unavailable.")
@config_option
@click.pass_context
def quarantine_rescreen(context: click.Context, objects: tuple[str, ...], reason: str | None, config: Path | None) -> int:
    """Screen held objects again with the current rules.

    \b
    Example:
      lcmem-onnx gateway quarantine rescreen --reason index-unavailable
    """
    from ..runtime.gateway.quarantine import Quarantine, current_user, this_machine

    if bool(objects) == bool(reason):
        raise click.UsageError("give either object IDs or --reason")
    with opened_spool(context, config) as spool:
        held = Quarantine(spool)
        ids = list(objects) or [item.id for item in held.list(1_000_000, reason)]
        for object_id in ids:
            held.screen_again(object_id, current_user(), address=this_machine())
        spool.audit.flush()
    click.echo(f"{len(ids)} objects will be screened again")
    return NOTHING_FOUND


@click.group("audit", short_help="Verify the audit trail")
def audit() -> None:
    """Verify the audit trail."""


@audit.command("verify", short_help="Verify that no entry was altered")
@config_option
@json_option
@click.pass_context
def audit_verify(context: click.Context, config: Path | None, as_json: bool) -> int:
    """Verify that no line of the audit trail was changed, removed, moved or truncated. Safe while the gateway runs.

    \b
    Example:
      lcmem-onnx gateway audit verify --config gateway.toml
    """
    from ..runtime.gateway.audit_trail import verify_trail
    from ..runtime.gateway.database import Database

    settings = read_settings(context, config)
    database = Database(settings.spool.folder / "spool.sqlite", create=False)
    try:
        checked = verify_trail(database, settings.audit_folder)
    finally:
        database.close()
    for problem in checked.problems:
        if not as_json:
            click.echo(f"error: {problem.file} line {problem.line}, byte {problem.byte}: {problem.what}", err=True)
    if as_json:
        problems = [
            {"file": problem.file, "line": problem.line, "byte": problem.byte, "what": problem.what} for problem in checked.problems
        ]
        facts = {
            "schema_version": 1,
            "whole": checked.whole,
            "lines": checked.lines,
            "head": checked.head,
            "resumed": checked.resumed,
        }
        click.echo(json.dumps(facts | {"problems": problems}))
    elif checked.whole:
        click.echo(f"intact: {checked.lines} lines, resumed {checked.resumed} times after a crash; head {checked.head}")
    return NOTHING_FOUND if checked.whole else FAILED


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _facts(item: Item) -> dict[str, object]:
    return {
        "schema_version": 1,
        "id": item.id,
        "state": item.state.value,
        "verdict": item.verdict,
        "reason": item.reason,
        "rule": item.rule,
        "source": item.source.value,
        "calling_aet": item.calling_aet,
        "address": item.address,
        "arrived": item.arrived,
        "changed": item.changed,
        "bytes": item.bytes,
        **item.result,
    }
