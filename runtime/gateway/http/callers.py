"""Who calls, and what they may: bearer tokens and client certificates, and sessions of people who logged in."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import GatewayError
from ..settings import HttpCaller, HttpSettings

__all__ = ["COOKIE", "SECURE_COOKIE", "SHORTEST_TOKEN", "Caller", "Callers", "Session", "Sessions"]

SHORTEST_TOKEN = 32
COOKIE, SECURE_COOKIE = "lcmem", "__Host-lcmem"
"""The second over TLS: browsers take it from nobody else then, and for the whole host alone."""
SESSION_SECONDS = 8 * 3600.0
MOST_SESSIONS = 200


@dataclass(frozen=True)
class Caller:
    """A caller who is known."""

    name: str
    may: frozenset[str]


class Callers:
    """The callers of a configuration.

    Raises:
        GatewayError: a token file cannot be read, or holds too short a token.
    """

    def __init__(self, settings: HttpSettings) -> None:
        self._by_token: list[tuple[bytes, Caller]] = []
        self._by_certificate: dict[str, Caller] = {}
        for given in settings.caller:
            caller = Caller(given.name, frozenset(given.may))
            if given.certificate:
                self._by_certificate[given.certificate] = caller
            else:
                self._by_token.append((_digest(given), caller))

    def of_token(self, token: str) -> Caller | None:
        """Whose token it is. Every caller's is compared, in a time that does not tell how near it came."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found = None
        for known, caller in self._by_token:
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def of_certificate(self, certificate: Mapping[str, Any] | None) -> Caller | None:
        """Whose certificate it is, as `ssl.SSLSocket.getpeercert` gives one that was verified."""
        names = [value for part in (certificate or {}).get("subject", ()) for name, value in part if name == "commonName"]
        return self._by_certificate.get(names[0]) if len(names) == 1 else None


@dataclass(frozen=True)
class Session:
    """A person who logged in.

    Attributes:
        caller: whose token or certificate it was.
        person: the name that was typed, for the audit trail.
        csrf: a form of this session's pages holds it, and nobody else's does.
        ends: by `time.monotonic`.
    """

    caller: Caller
    person: str
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    ends: float = field(default_factory=lambda: time.monotonic() + SESSION_SECONDS)

    @property
    def who(self) -> str:
        return f"{self.person} ({self.caller.name})"


class Sessions:
    """The sessions of one process; they end with it."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, Session] = {}
        self._lock = threading.Lock()

    def open(self, session: Session) -> str:
        """Keep a session, and give the cookie that stands for it."""
        cookie = secrets.token_urlsafe(32)
        with self._lock:
            now = time.monotonic()
            self._sessions = {key: kept for key, kept in self._sessions.items() if kept.ends > now}
            while len(self._sessions) >= MOST_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[_key(cookie)] = session
        return cookie

    def get(self, cookie: str | None) -> Session | None:
        with self._lock:
            session = self._sessions.get(_key(cookie)) if cookie else None
        return session if session and session.ends > time.monotonic() else None

    def close(self, cookie: str | None) -> None:
        with self._lock:
            if cookie:
                self._sessions.pop(_key(cookie), None)


def _key(cookie: str) -> bytes:
    """Sessions are looked up by a hash, so that the time of a look-up tells nothing of the cookies."""
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).digest()


def _digest(caller: HttpCaller) -> bytes:
    if caller.token_sha256:
        return bytes.fromhex(caller.token_sha256)
    if caller.token_file is None:
        raise GatewayError(f"the caller {caller.name} has neither a token nor a certificate")
    try:
        token = caller.token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise GatewayError(f"the token of {caller.name} in {caller.token_file} cannot be read: {cause}") from error
    if len(token) < SHORTEST_TOKEN or "\n" in token:
        raise GatewayError(
            f"the token of {caller.name} in {caller.token_file} must be one line of {SHORTEST_TOKEN} characters or more: "
            "'openssl rand -hex 32' makes one"
        )
    return hashlib.sha256(token.encode()).digest()
