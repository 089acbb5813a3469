"""Audit messages: DICOM's XML, framed for syslog over TLS, each line once and in order."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("pynetdicom")

from lcmem_onnx.runtime.gateway.audit_messages import audit_message
from lcmem_onnx.runtime.gateway.audit_trail import AuditTrail, trail_files
from lcmem_onnx.runtime.gateway.database import Database
from lcmem_onnx.runtime.gateway.settings import SyslogSettings, TlsClient
from lcmem_onnx.runtime.gateway.syslog import SyslogSender, frame

BASE = {
    "schema_version": 1,
    "seq": 1,
    "time": "2026-11-25T14:00:00.000Z",
    "object": "0" * 32,
    "sop_instance": "a1",
    "previous": "0",
}


@pytest.mark.parametrize(
    ("line", "event", "kind", "outcome", "users"),
    [
        ({"event": "received", "calling_aet": 'CT"<1', "address": "10.0.0.1"}, "110107", None, "0", ['CT"<1', "gw"]),
        ({"event": "forwarded", "destination": "archive"}, "110106", None, "0", ["gw", "archive"]),
        ({"event": "screened", "state": "quarantined", "reason": "damaged", "study": "b2"}, "110113", "110135", "4", ["gw"]),
        ({"event": "quarantined", "reason": "changed-on-disk"}, "110113", "110135", "4", ["gw"]),
        ({"event": "released", "who": "anna"}, "110113", "110132", "0", ["anna"]),
        ({"event": "started", "object": None}, "110100", "110120", "0", ["gw"]),
    ],
)
def test_lines_become_messages(line: dict[str, str], event: str, kind: str | None, outcome: str, users: list[str]) -> None:
    text = audit_message(BASE | line, "gw")
    assert text
    message = ElementTree.fromstring(text)
    identification = message.find("EventIdentification")
    assert identification is not None
    assert identification.get("EventOutcomeIndicator") == outcome
    assert [code.get("csd-code") for code in identification.iter("EventID")] == [event]
    assert [code.get("csd-code") for code in identification.iter("EventTypeCode")] == ([kind] if kind else [])
    assert [who.get("UserID") for who in message.iter("ActiveParticipant")] == users
    # The order of PS3.15 A.5.1's schema.
    order = ["EventIdentification", "ActiveParticipant", "AuditSourceIdentification", "ParticipantObjectIdentification"]
    assert [child.tag for child in message] == sorted((child.tag for child in message), key=order.index)
    for detail in message.iter("ParticipantObjectDetail"):
        assert json.loads(base64.b64decode(str(detail.get("value")))) == BASE | line


def test_what_is_no_event_of_dicoms_is_no_message() -> None:
    assert audit_message(BASE | {"event": "screened", "state": "screened"}, "gw") is None
    assert audit_message(BASE | {"event": "audit-resumed"}, "gw") is None


def test_a_frame_counts_its_octets() -> None:
    data = frame("<AuditMessage>ä</AuditMessage>", "2026-11-25T14:00:00.000Z")
    length, _, rest = data.partition(b" ")
    assert int(length) == len(rest)
    assert re.match(rb"<85>1 2026-11-25T14:00:00.000Z \S+ lcmem-onnx \d+ DICOM\+RFC3881 - \xef\xbb\xbf<AuditMessage>", rest)


class Collector:
    """Reads octet-counted messages over TLS."""

    def __init__(self, folder: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._server = socket.create_server(("127.0.0.1", 0))
        self._context = context
        self.port = self._server.getsockname()[1]
        self.messages: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            plain, _ = self._server.accept()
            with self._context.wrap_socket(plain, server_side=True) as peer, peer.makefile("rb") as stream:
                while digits := stream.read(1):
                    while not digits.endswith(b" "):
                        digits += stream.read(1)
                    self.messages.append(stream.read(int(digits)))
        except OSError:
            pass

    def finish(self) -> list[bytes]:
        self._thread.join(5)
        self._server.close()
        return self.messages


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed: no certificate for a test of TLS")
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
         "/CN=c", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(folder / "server.key"),
         "-out", str(folder / "server.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "spool.sqlite")
    yield opened
    opened.close()


def test_each_line_is_sent_once_over_files_and_connections(certificate: Path, database: Database, tmp_path: Path) -> None:
    trail = AuditTrail(database, tmp_path / "audit", rotate_bytes=600)
    seen: list[bytes] = []
    for _ in range(2):
        collector = Collector(certificate)
        tls = TlsClient(ca=certificate / "server.pem", server_name="localhost")
        sender = SyslogSender(SyslogSettings("127.0.0.1", collector.port, tls, "gw"), database, tmp_path / "audit")
        assert sender.send_waiting() == 0
        for number in range(3):
            trail.note("forwarded", object=f"{number:032x}", destination="archive")
            trail.note("audit-resumed")  # no message
            trail.flush()
        assert sender.send_waiting() == 6
        assert sender.send_waiting() == 0
        sender.close()
        seen += collector.finish()
    assert len(trail_files(tmp_path / "audit")) > 2
    assert len(seen) == 6
    numbers = []
    for data in seen:
        message = ElementTree.fromstring(data.partition(b"\xef\xbb\xbf")[2].decode())
        numbers += [json.loads(base64.b64decode(str(one.get("value"))))["seq"] for one in message.iter("ParticipantObjectDetail")]
    assert numbers == sorted(set(numbers))


def test_a_collector_that_is_away_loses_nothing(certificate: Path, database: Database, tmp_path: Path) -> None:
    trail = AuditTrail(database, tmp_path / "audit")
    trail.note("forwarded", object="0" * 32, destination="archive")
    trail.flush()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    sender = SyslogSender(SyslogSettings("127.0.0.1", port, TlsClient(ca=certificate / "server.pem")), database, tmp_path / "audit")
    with pytest.raises(OSError, match="refused"):
        sender.send_waiting()
    collector = Collector(certificate)
    tls = TlsClient(ca=certificate / "server.pem", server_name="elsewhere")
    wrong = SyslogSender(SyslogSettings("127.0.0.1", collector.port, tls), database, tmp_path / "audit")
    with pytest.raises(ssl.SSLError):
        wrong.send_waiting()
    collector.finish()
    collector = Collector(certificate)
    tls = TlsClient(ca=certificate / "server.pem", server_name="localhost")
    right = SyslogSender(SyslogSettings("127.0.0.1", collector.port, tls), database, tmp_path / "audit")
    assert right.send_waiting() == 1
    right.close()
    assert len(collector.finish()) == 1
