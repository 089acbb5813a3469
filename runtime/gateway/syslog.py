"""Audit messages to a collector: syslog (RFC 5424) over TLS (RFC 5425), as PS3.15 A.6 asks, framed by octet counting (RFC 6587).

What has been sent is noted in the spool's database, so that a collector that was away gets what it missed. Syslog has no answer:
what was on its way when a connection broke may be missing at the collector, or be there twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .associations import client_context
from .audit_messages import audit_message
from .audit_trail import trail_files
from .database import Database
from .logs import Log
from .settings import SyslogSettings, TlsClient

__all__ = ["SyslogSender", "frame"]

PRIORITY = 10 * 8 + 5
"""Facility 10 (security), severity 5 (notice)."""
MESSAGE_ID = "DICOM+RFC3881"
SENT = "syslog_sent"
"""The name under which the database keeps the number of the last line that was sent."""
AT_ONCE = 100
POLL_SECONDS, WAIT_SECONDS = 1.0, 10.0
TIMEOUT, GOODBYE = 10.0, 2.0

log = Log("syslog")


class SyslogSender:
    """Sends the trail's lines, in order.

    Raises:
        GatewayError: TLS's files cannot be used.
    """

    def __init__(self, settings: SyslogSettings, database: Database, folder: Path) -> None:
        self._settings = settings
        self._database = database
        self._folder = folder
        self._tls = client_context(settings.tls or TlsClient())
        self._connection: ssl.SSLSocket | None = None

    def run(self, stop: threading.Event) -> None:
        """Send what comes, until `stop`; a collector that is away is tried again."""
        while not stop.is_set():
            try:
                wait = 0.0 if self.send_waiting() else POLL_SECONDS
            except OSError as error:
                log.warning("collector-away", host=self._settings.host, error=type(error).__name__)
                self.close()
                wait = WAIT_SECONDS
            stop.wait(wait)
        self.close()

    def send_waiting(self) -> int:
        """Send lines that were not sent yet, up to 100, and return how many were dealt with.

        Raises:
            OSError: the collector cannot be reached.
        """
        rows = self._database.read("SELECT value FROM meta WHERE name = ?", (SENT,))
        sent = int(rows[0][0]) if rows else 0
        done = 0
        for line in _lines_after(self._folder, sent):
            message = audit_message(line, self._settings.source_id)
            if message:
                self._connected().sendall(frame(message, line["time"]))
            sent, done = int(line["seq"]), done + 1
            if done >= AT_ONCE:
                break
        if done:
            with self._database.write() as connection:
                connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (SENT, str(sent)))
        return done

    def close(self) -> None:
        """Say goodbye first: closed with the collector's TLS tickets unread, a connection is reset, and what is on its way lost."""
        if self._connection:
            with contextlib.suppress(OSError, ValueError):
                self._connection.settimeout(GOODBYE)
                self._connection.unwrap().close()
            self._connection.close()
            self._connection = None

    def _connected(self) -> ssl.SSLSocket:
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


def frame(message: str, moment: str) -> bytes:
    """One message as it goes over the wire: its length in octets, a space, the message (UTF-8 with a mark, RFC 5424 6.4)."""
    host = "".join(char for char in socket.gethostname() if 33 <= ord(char) <= 126)[:255] or "-"
    header = f"<{PRIORITY}>1 {moment} {host} lcmem-onnx {os.getpid()} {MESSAGE_ID} - "
    data = header.encode("ascii") + b"\xef\xbb\xbf" + message.encode("utf-8")
    return f"{len(data)} ".encode("ascii") + data


def _lines_after(folder: Path, sent: int) -> Iterator[dict[str, Any]]:
    """Whole lines with higher numbers. A file's name is its first line's number, so that older files are not read again."""
    files = trail_files(folder)
    firsts = [int(path.stem.rpartition("-")[2]) for path in files]
    start = max((at for at, first in enumerate(firsts) if first <= sent + 1), default=0)
    for path in files[start:]:
        with open(path, encoding="utf-8") as file:
            for text in file:
                if not text.endswith("\n"):
                    return
                line: dict[str, Any] = json.loads(text)
                if int(line["seq"]) > sent:
                    yield line
