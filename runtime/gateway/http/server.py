"""The socket, TLS, and uvicorn in a thread; with what uvicorn lacks: a bound on slow heads, and the caller's certificate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...errors import GatewayError
from ..json_logging import Log
from ..settings import Settings
from ..spool import Spool
from ..tls import server_context
from .app import make_app

__all__ = ["HttpServer"]

BACKLOG = 128
KEEP_ALIVE_SECONDS = 15

log = Log("http")


class HttpServer:
    """Listens when it is made, answers from `start` on.

    Args:
        settings: the gateway's, with an `http`.
        spool: opened by this process.
        ready: see `app.make_app`.

    Raises:
        GatewayError: the port is taken, TLS's files cannot be used, or a token cannot be read.
    """

    def __init__(self, settings: Settings, spool: Spool, ready: Callable[[], Mapping[str, bool]] = dict) -> None:
        if settings.http is None:
            raise GatewayError("the configuration has no [http]")
        self._http = http = settings.http
        app = make_app(settings, http, spool, ready)
        tls = server_context(http.tls) if http.tls else None
        self._socket = _listen(http.host, http.port)
        config = uvicorn.Config(
            app,
            http=_protocol(http.opening_seconds),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            proxy_headers=False,
            limit_concurrency=http.max_connections,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=10,
            h11_max_incomplete_event_size=16 << 10,
        )
        config.load()
        config.ssl = tls
        for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
            silent = logging.getLogger(name)  # they hold addresses and what was asked; `app` logs what matters
            silent.handlers = [logging.NullHandler()]
            silent.propagate = False
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self.failed = threading.Event()

    @property
    def port(self) -> int:
        """The one in use, also where port 0 was asked for."""
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        self._thread.start()
        log.info("listening", host=self._http.host, port=self.port, tls=self._http.tls is not None)

    def stop(self, grace: float = 5.0) -> None:
        """Take no new requests, and let those finish that are being answered, for so many seconds."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(grace)
            self._server.force_exit = True
            self._thread.join(1.0)
        self._socket.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except Exception as error:  # noqa: BLE001  # a thread's last frame; the worker looks at `failed`
            log.defect("http-died", error)
        if not self._server.should_exit:
            self.failed.set()


def _protocol(opening_seconds: float) -> type[asyncio.Protocol]:
    class Protocol(H11Protocol):
        """Closes connections whose request's head does not come, and tells the application who is at the other end."""

        _opening: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            tls = transport.get_extra_info("ssl_object")
            if tls is not None:
                self.app_state = {**self.app_state, "peer_certificate": tls.getpeercert()}
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                if self._opening is None:
                    self._await_head()
            else:
                self._cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._opening = self.loop.call_later(opening_seconds, self._too_slow)

        def _cancel(self) -> None:
            if self._opening is not None:
                self._opening.cancel()
                self._opening = None

        def _too_slow(self) -> None:
            self._opening = None
            log.debug("closed", reason="no-request")
            self.transport.abort() if hasattr(self.transport, "abort") else self.transport.close()

    return Protocol


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        raise GatewayError(f"HTTP cannot listen at {host} port {port}: {error.strerror}") from error
    with contextlib.suppress(OSError):
        listening.set_inheritable(False)
    return listening
