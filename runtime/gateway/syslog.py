"""Audit messages to a collector: syslog (RFC 5424) over TLS (RFC 5425), as PS3.15 A.6 asks, framed by octet counting (RFC 6587).

How far the trail was sent is noted in the spool's database, so that a collector that was away gets what it missed. Syslog has no
answer: what was on its way when a connection broke may be missing at the collector, or be there twice.

Nothing in the trail stops the sending: what cannot be read, or made a message of, is skipped, and what is out of its place is sent
all the same. Both are a line `audit-damaged` of the trail itself, which reaches the collector. A database that is full or busy is
waited for.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import threading
import time
from dataclasses import replace
from pathlib import Path

from ..errors import GatewayError
from .audit_trail import AuditTrail
from .database import Database
from .dicom_audit_messages import Cleared, audit_message, cleared_message, is_cleared
from .health import ExportState, moment_of
from .json_logging import Log
from .settings import SyslogSettings
from .spool import count_event
from .tls import client_context
from .trail_reader import Damage, Line, TrailReader

__all__ = ["SyslogSender", "frame"]

PRIORITY = 10 * 8 + 5
"""Facility 10 (security), severity 5 (notice)."""
MESSAGE_ID = "DICOM+RFC3881"
DAMAGED = "audit-damaged"
AT_ONCE = 100
CLEARED_LINES = 1000
"""Clear verdicts that one message tells of at most."""
CLEARED_STUDIES = 500
"""Studies whose clear verdicts are collected at a time; of more, the oldest is sent."""
POLL_SECONDS, WAIT_SECONDS, ALIVE_SECONDS = 1.0, 10.0, 10.0
TIMEOUT, GOODBYE, LAST_SECONDS = 10.0, 2.0, 5.0

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)
"""A line's time, as both syslog and XML take it."""

log = Log("syslog")


class SyslogSender:
    """Sends the trail's lines, in order.

    Args:
        settings: the collector's.
        database: the spool's.
        folder: the trail's.

    Raises:
        GatewayError: TLS's files cannot be used, or the database cannot be read.
    """

    def __init__(self, settings: SyslogSettings, database: Database, folder: Path) -> None:
        self._settings = settings
        self._database = database
        self._reader = TrailReader(database, folder)
        self._trail = AuditTrail(database, folder)
        self._tls = client_context(settings.tls)
        self._connection: ssl.SSLSocket | None = None
        self._damages: list[Damage] = []
        with database.snapshot() as connection:
            self._state = ExportState.read(connection)

    def run(self, stop: threading.Event) -> None:
        """Send what comes, until `stop`; then what has come, for a moment. A collector that is away is tried again."""
        wait = 0.0
        while not stop.wait(wait):
            wait = self._turn()
        ends = time.monotonic() + LAST_SECONDS
        while time.monotonic() < ends and self._turn(last=True) == 0.0:
            pass
        self.close()

    def _turn(self, *, last: bool = False) -> float:
        """Send what waits, and return how many seconds to wait before the next time."""
        try:
            return 0.0 if self.send_waiting(last=last) else POLL_SECONDS
        except OSError as error:
            log.warning("collector-away", host=self._settings.host, error=type(error).__name__)
            self.close()
        except GatewayError as error:
            log.error("export-interrupted", detail=str(error))
        return WAIT_SECONDS

    def send_waiting(self, *, last: bool = False) -> int:
        """Send lines that were not sent yet, up to 100, and return how many were dealt with.

        Args:
            last: also send the clear verdicts that would be collected for longer.

        Raises:
            OSError: the collector cannot be reached. What was sent before that is noted.
            GatewayError: the database or the trail cannot be read or written. What was sent is not sent again by this object.
        """
        done, waits_since, problem = 0, None, ""
        try:
            for found in self._reader.read(self._state.position, AT_ONCE):
                if isinstance(found, Line):
                    waits_since = _moment(found)
                    self._deal_with(found)
                else:
                    self._damages.append(found)
                self._state.position = found.after
                done += 1
            if done < AT_ONCE:
                waits_since = None
            self._send_cleared(time.time(), last=last)
        except OSError as error:
            problem = f"the collector cannot be reached: {type(error).__name__}"
            waits_since = waits_since or self._state.behind_since or time.time()
            raise
        finally:
            self._note(done, waits_since, problem)
        return done

    def _deal_with(self, line: Line) -> None:
        moment = str(line.fields["time"])
        try:
            if not MOMENT.fullmatch(moment):
                raise ValueError(moment)
            if is_cleared(line.fields):
                self._collect(line)
                return
            message = audit_message(line.fields, self._settings.source_id)
        except (KeyError, TypeError, ValueError) as error:
            what = f"no message can be made of line {line.fields['seq']} ({type(error).__name__})"
            self._damages.append(Damage(self._state.position, 1, what, line.after))
            return
        if message:
            self._send(message, moment)

    def _collect(self, line: Line) -> None:
        study, patient = str(line.fields.get("study") or ""), str(line.fields.get("patient") or "")
        cleared = next((one for one in self._state.cleared if (one.study, one.patient) == (study, patient)), None)
        if cleared is None:
            cleared = Cleared(study, patient, since=time.time())
            self._state.cleared.append(cleared)
        cleared.add(line.fields, line.hash)

    def _send_cleared(self, now: float, *, last: bool) -> None:
        """Send collected verdicts that are due. They are in the order in which they were begun."""
        for cleared in list(self._state.cleared):
            too_many = len(self._state.cleared) > CLEARED_STUDIES or cleared.lines >= CLEARED_LINES
            # A clock that was set back must not hold them for ever.
            if last or too_many or not 0 <= now - cleared.since < self._settings.summary_seconds:
                self._send(cleared_message(cleared, self._settings.source_id), cleared.end)
                self._state.cleared.remove(cleared)

    def _note(self, done: int, waits_since: float | None, problem: str) -> None:
        """Note how far it has come, and what was skipped; and that it lives, when nothing else is new."""
        now = time.time()
        changed = done or self._damages or waits_since != self._state.behind_since or problem != self._state.problem
        if not changed and 0 <= now - self._state.alive < ALIVE_SECONDS:
            return
        damaged = self._state.damaged + sum(max(1, damage.lines) for damage in self._damages)
        state = replace(self._state, alive=now, behind_since=waits_since, problem=problem, damaged=damaged)
        with self._database.write() as connection:
            for damage in self._damages:
                at, lines = damage.at, max(1, damage.lines)
                self._trail.record(connection, DAMAGED, file=at.file, line=at.line, byte=at.byte, lines=lines, what=damage.what)
                count_event(connection, DAMAGED, lines)
            state.write(connection)
        self._state = state
        for damage in self._damages:
            log.error(DAMAGED, file=damage.at.file, line=damage.at.line, byte=damage.at.byte, what=damage.what)
        self._damages.clear()

    def close(self) -> None:
        """Say goodbye first: closed with the collector's TLS tickets unread, a connection is reset, and what is on its way lost."""
        if self._connection:
            with contextlib.suppress(OSError, ValueError):
                self._connection.settimeout(GOODBYE)
                self._connection.unwrap().close()
            self._connection.close()
            self._connection = None

    def _send(self, message: str, moment: str) -> None:
        self._connected().sendall(frame(message, moment))

    def _connected(self) -> ssl.SSLSocket:
        if self._connection is not None and _closed_by_peer(self._connection):
            self.close()
        if self._connection is None:
            plain = socket.create_connection((self._settings.host, self._settings.port), timeout=TIMEOUT)
            name = (self._settings.tls.server_name if self._settings.tls else None) or self._settings.host
            try:
                self._connection = self._tls.wrap_socket(plain, server_hostname=name)
            except OSError:
                plain.close()
                raise
            log.info("connected", host=self._settings.host, port=self._settings.port)
        return self._connection


def _closed_by_peer(connection: ssl.SSLSocket) -> bool:
    """Whether the collector has hung up: what is sent into such a connection is lost without an error."""
    connection.settimeout(0.0)
    try:
        return connection.recv(1024) == b""  # a collector says nothing else; TLS's own tickets are read on the way
    except ssl.SSLWantReadError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(TIMEOUT)


def _moment(line: Line) -> float | None:
    try:
        return moment_of(line.fields["time"])
    except ValueError:
        return None


def frame(message: str, moment: str) -> bytes:
    """One message as it goes over the wire: its length in octets, a space, the message (UTF-8 with a mark, RFC 5424 6.4)."""
    host = "".join(char for char in socket.gethostname() if 33 <= ord(char) <= 126)[:255] or "-"
    header = f"<{PRIORITY}>1 {moment} {host} lcmem-onnx {os.getpid()} {MESSAGE_ID} - "
    data = header.encode("ascii") + b"\xef\xbb\xbf" + message.encode("utf-8")
    return f"{len(data)} ".encode("ascii") + data
