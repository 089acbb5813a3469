"""Does what a configuration names exist, open, and fit together? Looks, and changes nothing."""

from __future__ import annotations

import os
import shutil
import socket
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import GatewayError, LcmemError
from ..privacy import read_site_key
from .lock import running_facts
from .settings import HttpSettings, Settings, TlsClient, TlsServer
from .tls import client_context, server_context

__all__ = ["Finding", "check_settings"]


@dataclass(frozen=True)
class Finding:
    """What one look found: `problem` is None where all is well, and `detail` says what is there."""

    what: str
    detail: str
    problem: str | None = None


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Look at everything that the settings name, in the order of what depends on what."""
    yield _look("site key", lambda: _site_key(settings))
    yield _look("spool", lambda: _spool(settings))
    yield from _galleries(settings)
    running = running_facts(settings.spool.folder) is not None
    if settings.receive:
        yield _look(
            "receive", lambda: _listening(settings.receive.host, settings.receive.port, running) if settings.receive else ""
        )
        if tls := settings.receive.tls:
            yield _look("receive.tls", lambda: _server_tls(tls))
    if settings.http:
        yield _look("http", lambda: _listening(settings.http.host, settings.http.port, running) if settings.http else "")
        if http_tls := settings.http.tls:
            yield _look("http.tls", lambda: _server_tls(http_tls))
        yield _look("http.caller", lambda: _callers(settings.http) if settings.http else "")
    if syslog := settings.audit.syslog:
        yield _look("audit.syslog: tls", lambda: _client_tls(syslog.tls))
        yield _look("audit.syslog", lambda: _reachable(syslog.host, syslog.port))
    for folder in settings.folder:
        yield _look(f"folder {folder.name}", lambda path=folder.path: _folder(path))  # type: ignore[misc]
    for destination in settings.destination:
        if client := destination.tls:
            yield _look(f"destination {destination.name}: tls", lambda client=client: _client_tls(client))  # type: ignore[misc]
        if destination.kind == "stow":
            url = urllib.parse.urlsplit(destination.url)
            port = url.port or (443 if url.scheme == "https" else 80)
            yield _look(
                f"destination {destination.name}",
                lambda host=url.hostname or "", port=port: _reachable(host, port),  # type: ignore[misc]
            )
        if destination.kind == "dicom":
            yield _look(
                f"destination {destination.name}",
                lambda host=destination.host, port=destination.port: _reachable(host, port),  # type: ignore[misc]
            )


def _look(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, look())
    except ModuleNotFoundError as error:
        return Finding(what, "", f"the package {error.name} is not installed: pip install 'lcmem-onnx[gateway]'")
    except (LcmemError, OSError) as error:
        return Finding(what, "", str(error))


def _site_key(settings: Settings) -> str:
    read_site_key(settings.site_key)
    mode = os.stat(settings.site_key).st_mode
    if mode & 0o077:
        raise GatewayError(f"{settings.site_key} can be read by others: chmod 600 it")
    return str(settings.site_key)


def _spool(settings: Settings) -> str:
    folder = settings.spool.folder
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        raise GatewayError(f"{there} cannot be written")
    free = shutil.disk_usage(there).free >> 20
    if free < settings.spool.min_free_mb:
        raise GatewayError(f"{free} MB are free at {folder}, below the watermark of {settings.spool.min_free_mb} MB")
    return f"{folder}, {free} MB free{'' if folder.exists() else '; it will be made'}"


def _galleries(settings: Settings) -> Iterator[Finding]:
    """The model, and each index with it."""
    from ..calibration.threshold import decide_threshold
    from ..gallery import Gallery
    from ..model.bundle import open_bundle

    try:
        bundle = open_bundle(settings.model.bundle)
    except LcmemError as error:
        yield Finding("model", "", str(error))
        return
    yield Finding("model", f"{bundle.name} ({bundle.fingerprint[:12]})")
    for gallery in settings.gallery:

        def look(
            index: Path = gallery.index,
            groups: tuple[str, ...] = gallery.groups,
            threshold: float | None = gallery.threshold,
            fpir: float | None = gallery.fpir,
        ) -> str:
            with Gallery.open(index, bundle) as opened:
                if missing := sorted(set(groups) - set(opened.galleries())):
                    raise GatewayError(f"{index} has no group {missing[0]!r}; it has {', '.join(opened.galleries()) or 'none'}")
                if not len(opened):
                    raise GatewayError(f"{index} holds no images: everything screened against it would go to quarantine")
                decision = decide_threshold(opened, threshold, fpir, groups or None)
                return f"{index}, {len(opened)} frames; threshold {decision.threshold:.4g}: {decision.words}"

        yield _look(f"gallery {gallery.name}", look)


def _listening(host: str, port: int, running: bool) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if running:
                return f"{host}:{port}, in use by the running gateway"
            raise GatewayError(f"{host}:{port} cannot be listened on: {error.strerror}") from error
    return f"{host}:{port}"


def _server_tls(tls: TlsServer) -> str:
    server_context(tls)
    return f"{tls.certificate}{', callers show certificates' if tls.client_ca else ', any caller may connect'}"


def _client_tls(tls: TlsClient | None) -> str:
    client_context(tls)
    return str((tls and tls.ca) or "the system's certificate authorities")


def _callers(http: HttpSettings) -> str:
    from .http.callers import Callers

    Callers(http)
    for caller in http.caller:
        if caller.token_file and os.stat(caller.token_file).st_mode & 0o007:
            raise GatewayError(f"{caller.token_file} can be read by every user of this machine: chmod 600 it")
    return ", ".join(f"{caller.name} may {' and '.join(caller.may)}" for caller in http.caller)


def _folder(path: Path) -> str:
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        raise GatewayError(f"{path} is no folder that can be written")
    return str(path)


def _reachable(host: str, port: int) -> str:
    """A destination that is down is no error of the configuration: objects wait for it."""
    try:
        with socket.create_connection((host, port), timeout=3):
            return f"{host}:{port} answers"
    except OSError as error:
        return f"{host}:{port} does not answer now ({error.strerror or error}); what is for it will wait"
