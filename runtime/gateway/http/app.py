"""The routes, put together: who may call what, what is counted, and how errors are answered."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from prometheus_client import exposition
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import GatewayError
from ..health import Check, export_check, trail_check
from ..json_logging import Log
from ..settings import HttpSettings, Settings
from ..spool import Spool
from .bodies import Refused, drain
from .callers import Caller, Callers
from .metrics import Metrics
from .pages import FOLDER, Pages, certificate_of
from .screening import screen
from .stow import store

__all__ = ["make_app"]

Endpoint = Callable[[Request], Awaitable[Response]]
SCHEMA_VERSION = 1
STATIC = {"style.css": "text/css", "icon.svg": "image/svg+xml"}
HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
TITLES = {401: "Log in first", 403: "Not allowed", 404: "Not found", 409: "Not done", 503: "Not now"}

log = Log("http")


def make_app(settings: Settings, http: HttpSettings, spool: Spool, ready: Callable[[], Mapping[str, bool]]) -> Starlette:
    """The ASGI application.

    Args:
        settings: the gateway's; `http` is its part for this.
        spool: opened by this process.
        ready: what must hold for the gateway to do its work, by name: `/readyz` answers 200 when all does.

    Raises:
        GatewayError: a token file cannot be read.
    """
    return _Api(settings, http, spool, ready).app()


class _Api:
    def __init__(self, settings: Settings, http: HttpSettings, spool: Spool, ready: Callable[[], Mapping[str, bool]]) -> None:
        self._settings = settings
        self._http = http
        self._spool = spool
        self._ready = ready
        self._callers = Callers(http)
        self._metrics = Metrics(spool)
        self._pages = Pages(settings, http, spool, self._callers, self._checks)
        self._uploads = 0

    def app(self) -> Starlette:
        pages = self._pages
        routes = [
            self._route("/studies", self._store, "POST"),
            self._route("/v1/screen", self._screen, "POST"),
            self._route("/healthz", self._healthz),
            self._route("/readyz", self._readyz),
            self._route("/metrics", self._expose),
            self._route("/", pages.overview),
            self._route("/login", pages.login_form),
            self._route("/login", pages.login, "POST"),
            self._route("/logout", pages.logout, "POST"),
            self._route("/quarantine/{object}", pages.held),
            self._route("/quarantine/{object}/picture.png", pages.image),
            self._route("/quarantine/{object}/nearest.png", pages.nearest),
            self._route("/quarantine/{object}/release", pages.release, "POST"),
            self._route("/quarantine/{object}/discard", pages.discard, "POST"),
            self._route("/static/{name}", self._static),
        ]
        return Starlette(
            routes=routes,
            middleware=[Middleware(_Headers)],
            exception_handlers={Refused: self._refused, GatewayError: self._in_trouble, Exception: self._defect},
        )

    def _route(self, path: str, endpoint: Endpoint, method: str = "GET") -> Route:
        """A route that is counted by its pattern, so that no address of an object becomes a label."""

        async def counted(request: Request) -> Response:
            began = time.monotonic()
            status = 500
            try:
                response = await endpoint(request)
                status = response.status_code
            except Refused as refused:
                status = refused.status
                raise
            finally:
                self._metrics.requests.labels(f"{method} {path}", str(status)).inc()
                self._metrics.seconds.labels(f"{method} {path}").observe(time.monotonic() - began)
            return response

        return Route(path, counted, methods=[method])

    # -- who may ---------------------------------------------------------------------------------------------------

    def _allowed(self, request: Request, permission: str) -> Caller:
        """The caller, by token or certificate.

        Raises:
            Refused: 401, nobody we know; 403, somebody who may not.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            caller = self._callers.of_token(token.strip())
        else:
            caller = self._callers.of_certificate(certificate_of(request))
        if caller is None:
            log.warning("refused", reason="unauthorized", address=request.client.host if request.client else "")
            raise Refused(401, "unauthorized", "a bearer token or a client certificate that is known is wanted")
        if permission not in caller.may:
            log.warning("refused", reason="forbidden", caller=caller.name, wanted=permission)
            raise Refused(403, "forbidden", f"{caller.name} may not {permission}")
        return caller

    async def _upload(self, work: Callable[[], Awaitable[Response]]) -> Response:
        if self._uploads >= self._http.max_requests:
            raise Refused(503, "busy", f"{self._uploads} requests are being answered: try again")
        self._uploads += 1
        try:
            return await work()
        finally:
            self._uploads -= 1

    # -- for programs ----------------------------------------------------------------------------------------------

    async def _store(self, request: Request) -> Response:
        caller = self._allowed(request, "store")
        return await self._upload(lambda: store(request, self._http, self._spool, caller.name))

    async def _screen(self, request: Request) -> Response:
        caller = self._allowed(request, "screen")
        return await self._upload(lambda: screen(request, self._http, self._settings, self._spool, caller.name))

    async def _healthz(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _readyz(self, request: Request) -> Response:
        checks = await run_in_threadpool(self._checks)
        text = "".join(f"{check.level} {name}{f': {check.detail}' if check.detail else ''}\n" for name, check in checks.items())
        return PlainTextResponse(text, 200 if all(check.ready for check in checks.values()) else 503)

    def _checks(self) -> dict[str, Check]:
        try:
            self._spool.oldest_waiting()
            checks = {"spool": Check(True), "disk": Check(self._spool.has_room())}
            checks |= {name: Check(well) for name, well in self._ready().items()}
            checks["audit trail"] = trail_check(self._spool.database)
            if syslog := self._settings.audit.syslog:
                checks["audit collector"] = export_check(self._spool.database, syslog)
            return checks
        except (GatewayError, OSError):
            return {"spool": Check(False)}

    async def _expose(self, request: Request) -> Response:
        session = self._pages.session(request)
        if session is None or "status" not in session.caller.may:
            self._allowed(request, "status")
        content = await run_in_threadpool(exposition.generate_latest, self._metrics.registry)
        return Response(content, media_type=exposition.CONTENT_TYPE_LATEST)

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise Refused(404, "not-found", "there is no such file")
        content = await run_in_threadpool((FOLDER / name).read_bytes)
        return Response(content, media_type=STATIC[name], headers={"Cache-Control": "max-age=300"})

    # -- errors ----------------------------------------------------------------------------------------------------

    async def _refused(self, request: Request, error: Exception) -> Response:
        if not isinstance(error, Refused):
            raise error
        if error.status in (400, 401, 403, 413, 415, 503, 507) and request.method == "POST":
            await drain(request)
        if request.url.path.startswith(("/quarantine/", "/login", "/logout")):
            if error.status == 401:
                return RedirectResponse("/login", 303)
            return self._pages.message(request, error.status, TITLES.get(error.status, "That did not work"), error.detail)
        headers = {"Connection": "close"}
        if error.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="lcmem-onnx"'
        if error.status in (503, 507):
            headers["Retry-After"] = "30"
        answer = {"schema_version": SCHEMA_VERSION, "error": error.reason, "detail": error.detail}
        return JSONResponse(answer, error.status, headers)

    async def _in_trouble(self, request: Request, error: Exception) -> Response:
        log.error("spool-trouble", error=type(error).__name__, detail=str(error))
        answer = {"schema_version": SCHEMA_VERSION, "error": "spool-trouble", "detail": "the spool cannot be used: see the log"}
        return JSONResponse(answer, 503, {"Connection": "close", "Retry-After": "30"})

    async def _defect(self, request: Request, error: Exception) -> Response:
        log.defect("defect", error)
        answer = {"schema_version": SCHEMA_VERSION, "error": "internal-error", "detail": "a defect: see the log"}
        return JSONResponse(answer, 500, {"Connection": "close"})


class _Headers:
    """Every answer forbids what none of them needs: scripts, frames, other sites, caches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers: list[Any] = list(message.get("headers", []))
                there = {name.lower() for name, _ in headers}
                message = {**message, "headers": headers + [header for header in HEADERS if header[0] not in there]}
            await send(message)

        await self._app(scope, receive, sending)
