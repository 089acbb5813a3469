"""A collector of audit messages for tests: syslog over TLS, octet-counted, as many connections as are made."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from lcmem_onnx.runtime.gateway.settings import SyslogSettings, TlsClient

__all__ = ["Collector", "copies", "eventually", "make_certificate"]


def make_certificate(folder: Path) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed: no certificate for a test of TLS")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
         "/CN=c", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(folder / "server.key"),
         "-out", str(folder / "server.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


def eventually(met: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def copies(message: ElementTree.Element) -> list[dict[str, Any]]:
    """The lines of the trail that a message holds."""
    details = [detail for detail in message.iter("ParticipantObjectDetail") if detail.get("type") == "lcmem-onnx audit line"]
    return [json.loads(base64.b64decode(str(detail.get("value")))) for detail in details]


class Collector:
    """Reads messages until it is closed.

    Args:
        folder: with server.pem and server.key.
        port: 0 takes any that is free.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._folder = folder
        self._server = socket.create_server(("127.0.0.1", port))
        self.port = int(self._server.getsockname()[1])
        self.raw: list[bytes] = []
        self.connections = 0
        self._peers: list[ssl.SSLSocket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def settings(self) -> SyslogSettings:
        return SyslogSettings("127.0.0.1", self.port, TlsClient(ca=self._folder / "server.pem", server_name="localhost"), "gw")

    def messages(self) -> list[ElementTree.Element]:
        with self._lock:
            return [ElementTree.fromstring(data.partition(b"\xef\xbb\xbf")[2].decode()) for data in self.raw]

    def lines(self) -> list[dict[str, Any]]:
        return [line for message in self.messages() for line in copies(message)]

    def hang_up(self) -> None:
        """Close the connections, as a collector does that is restarted."""
        for peer in self._peers:
            with contextlib.suppress(OSError):  # it has been closed by the other side
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()
        self._peers.clear()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed before
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.hang_up()

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._server.accept()
                peer = self._context.wrap_socket(plain, server_side=True)
            except ssl.SSLError:
                plain.close()
                continue
            except OSError:
                return
            self.connections += 1
            self._peers.append(peer)
            threading.Thread(target=self._read, args=(peer,), daemon=True).start()

    def _read(self, peer: ssl.SSLSocket) -> None:
        try:
            with peer.makefile("rb") as stream:
                while digits := stream.read(1):
                    while not digits.endswith(b" "):
                        digits += stream.read(1)
                    data = stream.read(int(digits))
                    with self._lock:
                        self.raw.append(data)
        except (OSError, ValueError):
            pass
        finally:
            peer.close()
