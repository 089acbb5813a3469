"""`gateway`: the DICOM gateway service, its configuration and its state."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..console.exit_codes import FAILED, NOTHING_FOUND
from ..console.lazy_group import LazyGroup
from ..console.terminal import print_facts, printable
from .options import json_option

if TYPE_CHECKING:
    from ..runtime.gateway.settings import Settings
    from ..runtime.gateway.spool import Spool

__all__ = ["config_option", "gateway", "opened_spool", "read_settings"]

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_CONFIG = Path("gateway.toml")
FURTHER = {name: f"lcmem_onnx.commands.gateway_quarantine:{name}" for name in ("quarantine", "audit")}


def config_option(command: F) -> F:
    return click.option(
        "--config",
        "-c",
        type=click.Path(path_type=Path),
        envvar="LCMEM_ONNX_GATEWAY",
        show_envvar=True,
        help="Configuration file.  [default: gateway.toml]",
    )(command)


def read_settings(context: click.Context, path: Path | None) -> Settings:
    """Return the settings of --config, which may be given to the command or to the group."""
    from ..runtime.gateway.config import read_config

    given = path or context.find_root().obj
    return read_config(given if isinstance(given, Path) else DEFAULT_CONFIG)


@contextmanager
def opened_spool(context: click.Context, path: Path | None) -> Iterator[Spool]:
    """Open the existing spool of a gateway."""
    from ..runtime.gateway.spool import Spool

    with Spool(read_settings(context, path), create=False) as spool:
        yield spool


@click.group(cls=LazyGroup, lazy=FURTHER, invoke_without_command=True, short_help="Screen DICOM objects on their way to a PACS")
@config_option
@click.pass_context
def gateway(context: click.Context, config: Path | None) -> int:
    """Run a DICOM gateway that screens objects, forwards clear ones and quarantines the others.

    \b
    Example:
      lcmem-onnx gateway --config gateway.toml
    """
    context.find_root().obj = config
    if context.invoked_subcommand is None:
        return _run(read_settings(context, config))
    return NOTHING_FOUND


@gateway.command("run", short_help="Run the gateway in the foreground")
@config_option
@click.pass_context
def gateway_run(context: click.Context, config: Path | None) -> int:
    """Run the gateway in the foreground until SIGTERM or Ctrl-C. Logs are JSON lines on stderr.

    \b
    Example:
      lcmem-onnx gateway run --config gateway.toml
    """
    return _run(read_settings(context, config))


@gateway.command("check", short_help="Check a configuration before starting")
@config_option
@json_option
@click.pass_context
def gateway_check(context: click.Context, config: Path | None, as_json: bool) -> int:
    """Check a configuration and everything it refers to: model, indexes, certificates, ports, folders.

    \b
    Example:
      lcmem-onnx gateway check --config gateway.toml
    """
    from ..runtime.gateway.preflight import check_settings

    findings = list(check_settings(read_settings(context, config)))
    if as_json:
        for finding in findings:
            click.echo(
                json.dumps({"schema_version": 1, "what": finding.what, "detail": finding.detail, "problem": finding.problem})
            )
    else:
        print_facts(
            {finding.what: (finding.problem and f"error: {finding.problem}") or finding.detail for finding in findings}, False
        )
    problems = sum(finding.problem is not None for finding in findings)
    if not as_json:
        click.echo(f"{problems} problem{'s' if problems > 1 else ''}" if problems else "next  lcmem-onnx gateway run")
    return FAILED if problems else NOTHING_FOUND


@gateway.command("init", short_help="Write an example configuration")
@click.argument("folder", type=click.Path(path_type=Path), default=".")
def gateway_init(folder: Path) -> int:
    """Write a commented gateway.toml and a new site key to FOLDER (default: the current folder).

    \b
    Example:
      lcmem-onnx gateway init /etc/lcmem
    """
    from ..runtime.gateway.example_config import write_example

    path = write_example(folder)
    click.echo(f"wrote {printable(str(path))} and {printable(str(folder / 'site.key'))}")
    click.echo(f"next  lcmem-onnx gateway check --config {printable(str(path))}")
    return NOTHING_FOUND


@gateway.command("status", short_help="Show whether it runs, and its queues")
@config_option
@json_option
@click.pass_context
def gateway_status(context: click.Context, config: Path | None, as_json: bool) -> int:
    """Show whether the gateway runs, the number of objects in each state, and the queue of each destination.

    \b
    Example:
      lcmem-onnx gateway status --config gateway.toml
    """
    import time

    from ..runtime.gateway.delivery_queue import Deliveries
    from ..runtime.gateway.health import export_check, trail_check
    from ..runtime.gateway.lock import running_facts

    with opened_spool(context, config) as spool:
        running = running_facts(spool.settings.spool.folder)
        oldest = spool.oldest_waiting()
        facts: dict[str, object] = {
            "running": "no" if running is None else f"process {running.get('pid', 'that is starting')}",
            **{state.value: count for state, count in spool.counts().items()},
            **{f"waiting for {name}": count for name, count in Deliveries(spool).pending().items()},
            "oldest unscreened, seconds": round(time.time() - oldest, 1) if oldest else 0,
            "free MB": spool.files.free_bytes() >> 20,
            "audit trail": trail_check(spool.database).text,
        }
        if syslog := spool.settings.audit.syslog:
            facts["audit collector"] = export_check(spool.database, syslog).text
    print_facts(facts, as_json)
    return NOTHING_FOUND


@gateway.command("requeue", short_help="Retry objects that could not be delivered")
@click.argument("objects", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="Retry all dead objects.")
@config_option
@click.pass_context
def gateway_requeue(context: click.Context, objects: tuple[str, ...], everything: bool, config: Path | None) -> int:
    """Retry dead objects, which a destination refused or could not accept in time. A unique prefix of an ID is enough.

    \b
    Example:
      lcmem-onnx gateway requeue --all
    """
    from ..runtime.gateway.delivery_queue import Deliveries
    from ..runtime.gateway.quarantine import current_user, this_machine
    from ..runtime.gateway.spool import State

    if everything == bool(objects):
        raise click.UsageError("give either object IDs or --all")
    with opened_spool(context, config) as spool:
        ids = [item.id for item in spool.list([State.DEAD], 1_000_000)] if everything else list(objects)
        for object_id in ids:
            Deliveries(spool).requeue(object_id, current_user(), address=this_machine())
        spool.audit.flush()
    click.echo(f"{len(ids)} objects will be retried")
    return NOTHING_FOUND


def _run(settings: Settings) -> int:
    from ..runtime.errors import GatewayError
    from ..runtime.gateway.supervisor import Service

    try:
        import pynetdicom  # noqa: F401
    except ModuleNotFoundError as error:
        raise GatewayError(f"the gateway requires the package {error.name}: pip install 'lcmem-onnx[gateway]'") from error
    Service(settings).run()
    return NOTHING_FOUND
