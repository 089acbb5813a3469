"""A connection to an archive over HTTP: who we are, how often we ask, when to try again and when to give up.

What passes by itself (a connection refused or cut, a timeout, 429, 5xx) is tried again with growing pauses; what a person must
change (401, a wrong address, a certificate) is an ArchiveError at once. Proxies of the environment are not used and redirects not
followed: either could take images and credentials elsewhere than to the server that was named.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx

from ..errors import ArchiveError, ImageError, Reason, UsageError
from ..system.tls import client_context

__all__ = ["Connection", "Credentials", "Pace", "Server", "read_credentials"]

log = logging.getLogger(__name__)
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds before the second to the seventh attempt, half of each drawn at random so that many clients do not come back at once."""
LAST_FOR_OBJECT = 1.0
"""After this pause an object that the archive fails to give (500) is left out: it may well be the object, and others wait."""
LONGEST_PAUSE = 60.0
"""At most so long is waited when the server names a time itself (Retry-After)."""
TIMEOUT = httpx.Timeout(120.0, connect=10.0)
"""Seconds of silence. A busy archive is slow to begin: an Orthanc on a loaded machine took 28 s for an object of 72 MB."""
MAX_LIST_BYTES = 64 << 20
"""A page of a listing; one of 500 instances has about 1 MB."""
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Credentials:
    """A user with a password, or a bearer token; neither shows in a repr."""

    user: str | None = None
    secret: str | None = None

    def __repr__(self) -> str:
        return f"Credentials({'none' if self.secret is None else 'basic' if self.user is not None else 'bearer'})"


@dataclass(frozen=True)
class Server:
    """Where the archive is and how to reach it.

    Attributes:
        url: http or https, without user and password.
        credentials: who we are.
        ca: a PEM file to check the server by, in place of the system's.
        certificate, key: PEM files, to show to a server that asks for them.
        plain_http: allow http to another machine, where images can be read on the way.
    """

    url: str
    credentials: Credentials = Credentials()
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    plain_http: bool = False


class Pace:
    """At most so many requests a second, from all threads together; None is as fast as the archive answers."""

    def __init__(self, per_second: float | None) -> None:
        if per_second is not None and not per_second > 0:
            raise UsageError(f"a rate of {per_second} a second is none; give a number above 0")
        self._interval = 1 / per_second if per_second else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, sleep: Callable[[float], object]) -> None:
        if not self._interval:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(self._next, now)
            self._next = turn + self._interval
        if turn > now:
            sleep(turn - now)


def read_credentials(
    path: Path | None, environment: Mapping[str, str] = os.environ, warn: Callable[[str], None] = log.warning
) -> Credentials:
    """Credentials from a file (`user:password`, or `Bearer TOKEN`), or else from the environment.

    Args:
        path: the file; None looks at LCMEM_ONNX_ARCHIVE_TOKEN, then LCMEM_ONNX_ARCHIVE_USER and _PASSWORD.
        environment: the variables.
        warn: is told when others may read the file; by default it is logged.

    Raises:
        UsageError: the file cannot be read or holds neither form, or a user has no password.
    """
    if path is None:
        if token := environment.get("LCMEM_ONNX_ARCHIVE_TOKEN"):
            return Credentials(None, token)
        user, password = environment.get("LCMEM_ONNX_ARCHIVE_USER"), environment.get("LCMEM_ONNX_ARCHIVE_PASSWORD")
        if (user is None) != (password is None):
            raise UsageError("LCMEM_ONNX_ARCHIVE_USER and LCMEM_ONNX_ARCHIVE_PASSWORD go together; one of them is not set")
        return Credentials(user, password)
    try:
        if path.stat().st_mode & 0o007:
            warn(f"every user of this machine may read {path}: chmod 600 it")
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"the credentials in {path} cannot be read: {cause}") from error
    kind, _, token = text.partition(" ")
    if kind.lower() == "bearer" and token.strip() and "\n" not in text:
        return Credentials(None, token.strip())
    user, colon, password = text.partition(":")
    if not colon or not user or "\n" in text:
        raise UsageError(f"{path} must hold one line: user:password, or Bearer TOKEN")
    return Credentials(user, password)


class Connection:
    """An archive that is asked over HTTP; its methods may be called from several threads.

    Args:
        server: see `Server`.
        pace: how often to ask at most.
        transport: in place of the network, for tests.

    Raises:
        UsageError: an address that is none, holds a password, or would carry images in the clear.
    """

    def __init__(self, server: Server, pace: Pace | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.url = _checked_url(server)
        self._pace = pace or Pace(None)
        self._stopped = threading.Event()
        headers = {"User-Agent": "lcmem-onnx"}
        auth = None
        if server.credentials.secret is not None:
            if server.credentials.user is None:
                headers["Authorization"] = f"Bearer {server.credentials.secret}"
            else:
                auth = httpx.BasicAuth(server.credentials.user, server.credentials.secret)
        self._client = httpx.Client(
            auth=auth,
            headers=headers,
            verify=client_context(server.ca, server.certificate, server.key, error=UsageError),
            trust_env=False,
            timeout=TIMEOUT,
            transport=transport,
            follow_redirects=False,
        )

    def stop(self) -> None:
        """Let every thread that waits for the archive give up soon: the program ends."""
        self._stopped.set()

    def close(self) -> None:
        self.stop()
        self._client.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def json(
        self, path: str, params: Mapping[str, str | int] | None = None, body: object = None, *, absent: tuple[int, ...] = (204,)
    ) -> Any:
        """Ask for JSON: GET, or POST where there is a body. None where the answer has no content, or a status of `absent`.

        Raises:
            ArchiveError: it cannot be had.
        """
        with self._explained(path):
            request = self._request(path, params, {"Accept": "application/dicom+json, application/json"}, body)
            status, content, _ = self._patiently(lambda: self._attempt(request, MAX_LIST_BYTES, absent=absent), path)
            if status in absent or not content:
                return None
            try:
                return json.loads(content)
            except ValueError as error:
                raise ArchiveError(
                    f"{self.url}{path} answered something that is not JSON ({_beginning(content)}): is that the archive's address, "
                    "with its path?"
                ) from error

    def content(self, path: str, accept: str, max_bytes: int) -> tuple[bytes, str]:
        """Ask for an object: its bytes and their content type.

        Raises:
            ImageError: this object cannot be had (gone, too large, refused); others may.
            ArchiveError: nothing can be had.
        """
        request = self._request(path, None, {"Accept": accept}, None)
        with self._explained("an object"):
            _, content, kind = self._patiently(
                lambda: self._attempt(request, max_bytes, of_object=True), "an object", of_object=True
            )
        return content, kind

    # -- one attempt and many --------------------------------------------------------------------------------------

    def _request(
        self, path: str, params: Mapping[str, str | int] | None, headers: Mapping[str, str], body: object
    ) -> httpx.Request:
        method = "GET" if body is None else "POST"
        return self._client.build_request(method, self.url + path, params=params, headers=headers, json=body)

    def _attempt(
        self, request: httpx.Request, max_bytes: int, *, of_object: bool = False, absent: tuple[int, ...] = ()
    ) -> tuple[int, bytes, str]:
        """Send a request once and read the answer, not more of it than allowed."""
        self._pace.wait(self._sleep)
        response = self._client.send(request, stream=True)
        try:
            if response.status_code not in absent:
                self._judge(response, of_object)
            parts, size = [], 0
            for part in response.iter_bytes():
                size += len(part)
                if size > max_bytes:
                    if of_object:
                        raise ImageError(Reason.TOO_LARGE, f"it has more than {max_bytes} bytes")
                    raise ArchiveError(f"{self.url} answered a listing of more than {max_bytes} bytes: is that an archive?")
                parts.append(part)
                if self._stopped.is_set():
                    raise ArchiveError("stopped")
            return response.status_code, b"".join(parts), response.headers.get("Content-Type", "")
        finally:
            response.close()

    def _judge(self, response: httpx.Response, of_object: bool) -> None:
        """What a status means: nothing, an error that passes, one of this object, or one that a person must see to."""
        status = response.status_code
        if status in (200, 204):
            return
        if status in PASSING:
            raise _PassingError(f"it answered {_named(status)}", status, response.headers.get("Retry-After"))
        if status in (401, 403):
            hint = (
                "give --credentials FILE, or set LCMEM_ONNX_ARCHIVE_USER and LCMEM_ONNX_ARCHIVE_PASSWORD"
                if status == 401
                else "this user may not read there"
            )
            raise ArchiveError(f"{self.url} refused us ({_named(status)}): {hint}")
        if of_object:
            gone = status in (404, 410)
            raise ImageError(Reason.NOT_FOUND if gone else Reason.READ_FAILED, f"the archive answered {_named(status)}")
        if 300 <= status < 400:
            where = response.headers.get("Location", "somewhere else").partition("?")[0]
            raise ArchiveError(f"{self.url} sends us on to {where}: redirects are not followed, give that address if it is right")
        if status == 206:
            raise ArchiveError(f"{self.url} gave a part of a listing only ({_named(status)})")
        hint = (
            "is that the archive's address, with its path?"
            if status in (404, 405, 410)
            else "it may not take such a query, or is that not the archive's address, with its path?"
        )
        raise ArchiveError(f"{self.url} answered {_named(status)}: {hint}")

    def _patiently(
        self, attempt: Callable[[], tuple[int, bytes, str]], what: str, *, of_object: bool = False
    ) -> tuple[int, bytes, str]:
        """Try until it works, a person is needed, or the pauses are used up.

        The error is this object's when the server did answer, with 500: that may well come of the object itself.
        """
        for pause in (*PAUSES, None):
            try:
                return attempt()
            except (_PassingError, httpx.TransportError) as error:
                if self._stopped.is_set():
                    raise ArchiveError("stopped") from error
                if isinstance(error, httpx.ConnectError) and _is_certificate(error):
                    raise ArchiveError(
                        f"{self.url} cannot be trusted: {_cause(error)}. If its certificate is right, give --ca FILE"
                    ) from error
                if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
                    raise ArchiveError(f"{self.url} cannot be asked: {_cause(error)}") from error
                if (
                    of_object
                    and isinstance(error, _PassingError)
                    and error.status == 500
                    and (pause is None or pause > LAST_FOR_OBJECT)
                ):
                    raise ImageError(Reason.READ_FAILED, "the archive answered 500 Internal Server Error, several times") from error
                if pause is None:
                    raise ArchiveError(
                        f"{self.url} does not answer, after {len(PAUSES) + 1} attempts for {what}: {_cause(error)}. "
                        "What was added is in the index; the same command goes on from there"
                    ) from error
                self._sleep(_wanted(error) or pause * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise ArchiveError("stopped")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise ArchiveError(f"{self.url} could not be asked for {what}: {_cause(error)}") from error


class _PassingError(Exception):
    def __init__(self, message: str, status: int, retry_after: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


def _wanted(error: Exception) -> float | None:
    """Seconds that the server asked to wait, where it did, in seconds; a date in place of them is not worth the trouble."""
    text = error.retry_after if isinstance(error, _PassingError) else None
    return min(float(text), LONGEST_PAUSE) if text and text.isascii() and text.isdigit() else None


def _checked_url(server: Server) -> str:
    try:
        url = httpx.URL(server.url)
    except (httpx.InvalidURL, ValueError) as error:
        raise UsageError(f"the archive's address is none: {error}") from error
    if url.userinfo:
        raise UsageError("the archive's address holds a user or password, which every process list shows: use --credentials FILE")
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(f"{server.url} is no address of an archive: give one that begins with https:// or http://")
    if url.query or url.fragment:
        raise UsageError(f"{server.url} must end with its path: what to search for goes into --query")
    if url.scheme == "http" and not server.plain_http and not _is_this_machine(url.host):
        raise UsageError(
            f"over http everyone on the way to {url.host} can read the images and the password: give its https address, "
            "or --plain-http if the way is safe"
        )
    return str(url).rstrip("/")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _cause(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _named(status: int) -> str:
    return f"{status} {httpx.codes.get_reason_phrase(status)}".strip()


def _beginning(content: bytes) -> str:
    return repr(content[:40].decode("utf-8", "replace"))
