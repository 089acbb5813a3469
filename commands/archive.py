"""Options of `index build` and `index add` that name an archive to fill an index from, and what they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from ..console.terminal import warn
from .filling import Filling

if TYPE_CHECKING:
    from ..runtime.gallery import Gallery
    from ..runtime.screening import Screener

__all__ = ["Archive", "archive_options", "fill_from"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Archive:
    """The archive options of the command line: the archive's address, the search, and the connection."""

    kind: str
    url: str
    query: tuple[str, ...]
    credentials: Path | None
    ca: Path | None
    certificate: Path | None
    certificate_key: Path | None
    plain_http: bool
    rate: float | None
    again: bool


_FILE = click.Path(path_type=Path)
_OPTIONS = (
    click.option("--from-dicomweb", metavar="URL", help="Fill from a DICOMweb archive at this root URL."),
    click.option("--from-orthanc", metavar="URL", help="Fill from an Orthanc server; later runs fetch only new objects."),
    click.option("--query", multiple=True, metavar="KEY=VALUE", help="DICOM search key, such as StudyDate=20260101-; repeatable."),
    click.option(
        "--credentials",
        type=_FILE,
        envvar="LCMEM_ONNX_ARCHIVE_CREDENTIALS",
        show_envvar=True,
        help="File with the archive's credentials: user:password or Bearer TOKEN.",
    ),
    click.option("--ca", type=_FILE, help="CA certificate (PEM) used to verify the archive.  [default: the system's]"),
    click.option("--certificate", type=_FILE, help="Client certificate (PEM) for mutual TLS."),
    click.option("--certificate-key", type=_FILE, help="Private key (PEM) of --certificate.  [default: in the same file]"),
    click.option("--plain-http", is_flag=True, help="Allow unencrypted HTTP to another machine (trusted networks only)."),
    click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Maximum requests per second.  [default: unlimited]"),
    click.option("--again", is_flag=True, help="Re-fetch everything, including objects that failed before."),
)


def archive_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the archive options to a command, which receives them as `archive`: an Archive or None."""

    @wraps(command)
    def with_archive(*args: Any, from_dicomweb: str | None, from_orthanc: str | None, **kwargs: Any) -> R:
        options = {name: kwargs.pop(name) for name in Archive.__dataclass_fields__ if name not in ("kind", "url")}
        paths = kwargs["paths"]
        given = [("dicomweb", from_dicomweb), ("orthanc", from_orthanc)]
        sources = [(kind, url) for kind, url in given if url is not None]
        if len(sources) + bool(paths) > 1:
            raise click.UsageError("more than one source given: use only one of PATH, --from-dicomweb and --from-orthanc")
        if sources:
            (kind, url) = sources[0]
            return command(*args, archive=Archive(kind, url, **options), **kwargs)  # type: ignore[arg-type]
        if not paths:
            raise click.UsageError("no images given: use PATH, --from-dicomweb URL or --from-orthanc URL")
        if useless := [name for name, value in options.items() if value and name != "credentials"]:
            raise click.UsageError(f"--{useless[0].replace('_', '-')} requires --from-dicomweb or --from-orthanc")
        return command(*args, archive=None, **kwargs)  # type: ignore[arg-type]

    for option in reversed(_OPTIONS):
        with_archive = option(with_archive)
    return with_archive  # type: ignore[return-value]  # the options are bound here, the rest passes through


def fill_from(
    archive: Archive, screener: Screener, opened: Callable[[], Gallery], name: str, graph: bool, as_json: bool, quiet: bool
) -> int:
    """Fill a gallery from an archive, print the outcome, and return the exit code.

    Args:
        archive: the archive options of the command line.
        screener: embeds the images.
        opened: opens or creates the gallery; called once the options are known to be valid.
        name: the group of the index to fill.
        graph: also build a search graph.
        as_json: print one line of JSON per object and a summary as the last line.
        quiet: print neither progress nor a summary.
    """
    from ..runtime.archive.connection import Connection, Pace, Server, read_credentials
    from ..runtime.archive.listing import parse_query
    from ..runtime.archive.pull import Pull, open_source
    from ..runtime.errors import Reason

    credentials = read_credentials(archive.credentials, warn=warn)
    server = Server(archive.url, credentials, archive.ca, archive.certificate, archive.certificate_key, archive.plain_http)
    query = parse_query(archive.query)
    filling = Filling(as_json=as_json, quiet=quiet)
    with Connection(server, Pace(archive.rate)) as connection, opened() as gallery:
        source = open_source(archive.kind, connection, query, screener.limits.max_file_bytes)
        pull = Pull(source, connection, screener, gallery, name=name, again=archive.again)
        filling.follow(pull, None, "fetching")
        gallery.update_caches(graph=graph)
        without = pull.counts.without_image
        return filling.summed_up(gallery, {Reason.NO_PIXELS.value: without} if without else {}, known=pull.counts.known)
