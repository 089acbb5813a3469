"""Audit messages: DICOM's XML, framed for syslog over TLS, each line once and in order, past whatever is wrong with the trail."""

from __future__ import annotations

import base64
import json
import re
import socket
import sqlite3
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pynetdicom")

from lcmem_onnx.runtime.errors import GatewayError
from lcmem_onnx.runtime.gateway import syslog
from lcmem_onnx.runtime.gateway.audit_trail import AuditTrail, trail_files
from lcmem_onnx.runtime.gateway.database import Database
from lcmem_onnx.runtime.gateway.dicom_audit_messages import MOST_BYTES, Cleared, audit_message, cleared_message
from lcmem_onnx.runtime.gateway.health import STATE, ExportState
from lcmem_onnx.runtime.gateway.settings import SyslogSettings, TlsClient
from lcmem_onnx.runtime.gateway.syslog import SyslogSender, frame

from .collector import Collector, copies, eventually, make_certificate
from .dicom_audit_schema import check_message

CT = "1.2.840.10008.5.1.4.1.1.2"
BASE = {
    "schema_version": 1,
    "seq": 1,
    "time": "2026-11-25T14:00:00.000Z",
    "object": "0" * 32,
    "sop_instance": "a1",
    "previous": "0",
}
WHOSE = {"study": "b2", "patient": "c3", "sop_class": CT}


@pytest.mark.parametrize(
    ("line", "event", "kind", "outcome", "users"),
    [
        ({"event": "received", "calling_aet": 'CT"<1', "address": "10.0.0.1"}, "110107", None, "0", ['CT"<1', "gw"]),
        ({"event": "received", "source": "folder", "calling_aet": ""}, "110107", None, "0", ["folder", "gw"]),
        ({"event": "forwarded", "destination": "archive"}, "110106", None, "0", ["gw", "archive"]),
        (
            {"event": "dead", "destination": "archive", "address": "pacs", "failure": "0xA700"},
            "110106",
            None,
            "8",
            ["gw", "archive"],
        ),
        ({"event": "screened", "state": "quarantined", "reason": "damaged", "study": "b2"}, "110113", "110135", "4", ["gw"]),
        ({"event": "screened", "state": "quarantined", "verdict": "clear", "reason": "icon"}, "110113", "110135", "4", ["gw"]),
        ({"event": "screened", "state": "answered", "verdict": "match", "reason": "above"}, "110103", None, "4", ["gw"]),
        ({"event": "screened", "state": "kept", "verdict": "error", "reason": "damaged"}, "110103", None, "4", ["gw"]),
        ({"event": "quarantined", "reason": "changed-on-disk"}, "110113", "110135", "4", ["gw"]),
        ({"event": "released", "who": "anna"}, "110113", "110132", "0", ["anna"]),
        ({"event": "discarded", "who": "anna", "address": "10.0.0.9"}, "110113", "110132", "0", ["anna"]),
        (
            {"event": "viewed", "who": "anna", "address": "10.0.0.9", "what": "image", "frame": 3},
            "110103",
            None,
            "0",
            ["anna", "gw"],
        ),
        ({"event": "viewed", "who": "root", "address": "pacs-gw", **WHOSE}, "110103", None, "0", ["root", "gw"]),
        ({"event": "login", "who": "anna", "address": "::1", "object": None}, "110114", "110122", "0", ["anna", "gw"]),
        ({"event": "logout", "who": "anna", "address": "::1", "object": None}, "110114", "110123", "0", ["anna", "gw"]),
        ({"event": "login-refused", "who": "", "address": "10.0.0.9", "object": None}, "110114", "110122", "4", ["unknown", "gw"]),
        ({"event": "started", "object": None}, "110100", "110120", "0", ["gw"]),
        ({"event": "stopped", "object": None}, "110100", "110121", "0", ["gw"]),
        ({"event": "audit-resumed", "object": None, "file": "audit-1.jsonl", "completed": False}, "110113", "110134", "4", ["gw"]),
        (
            {"event": "audit-damaged", "object": None, "file": "audit-1.jsonl", "what": "9 NUL bytes"},
            "110113",
            "110134",
            "4",
            ["gw"],
        ),
    ],
)
def test_lines_become_messages(line: dict[str, Any], event: str, kind: str | None, outcome: str, users: list[str]) -> None:
    line = {name: value for name, value in (BASE | line).items() if value is not None}
    if "object" not in line:
        del line["sop_instance"]
    text = audit_message(line, "gw")
    assert text
    message = ElementTree.fromstring(text)
    assert check_message(message) == event
    identification = message.find("EventIdentification")
    assert identification is not None
    assert identification.get("EventOutcomeIndicator") == outcome
    assert [code.get("csd-code") for code in identification.iter("EventTypeCode")] == ([kind] if kind else [])
    assert [who.get("UserID") for who in message.iter("ActiveParticipant")] == users
    assert copies(message) == ([line] if "object" in line or "file" in line else [])
    ids = {str(one.get("ParticipantObjectID")) for one in message.iter("ParticipantObjectIdentification")}
    if "study" in line:
        assert line["study"] in ids
    assert ("patient" in line) == ("c3" in ids)


def test_what_is_no_event_of_dicoms_is_no_message() -> None:
    assert audit_message(BASE | {"event": "screened", "state": "screened"}, "gw") is None
    assert audit_message(BASE | {"event": "screened", "state": "screened", "verdict": "clear"}, "gw") is None  # see `Cleared`
    assert audit_message(BASE | {"event": "audit-resumed"}, "gw") is None
    assert audit_message(BASE | {"event": "audit-resumed", "completed": True}, "gw") is None


@given(
    line=st.fixed_dictionaries(
        {"event": st.sampled_from(["received", "forwarded", "dead", "viewed", "released", "screened", "login", "login-refused"])},
        optional={
            name: st.text(max_size=100)
            for name in (
                "calling_aet",
                "address",
                "who",
                "destination",
                "reason",
                "failure",
                "what",
                "study",
                "patient",
                "state",
                "more",
            )
        },
    ),
    padding=st.integers(0, 60_000),
)
def test_whatever_a_line_holds_a_message_is_whole_xml_that_collectors_take(line: dict[str, Any], padding: int) -> None:
    """AE titles come from outside: control characters, half characters, markup; and a line may be longer than a message."""
    line = BASE | {"who": "a", "destination": "b", "verdict": "error"} | line | {"padding": "x" * padding}
    text = audit_message(line, "gw")
    assert text
    data = frame(text, str(line["time"]))
    assert len(data) <= MOST_BYTES
    message = ElementTree.fromstring(text)
    if line["who"] and line["destination"]:
        assert message.tag == "AuditMessage"
    if padding < 10_000 and line["event"] not in ("login", "login-refused"):
        assert copies(message) == [line]


def test_clear_verdicts_of_a_study_are_one_message() -> None:
    cleared = Cleared("b2", "c3")
    for seq in (5, 8, 9):
        classes = "private" if seq == 9 else CT
        cleared.add(BASE | {"seq": seq, "time": f"2026-11-25T14:00:0{seq}.000Z", "sop_class": classes}, f"hash of {seq}")
    message = ElementTree.fromstring(cleared_message(cleared, "gw"))
    assert check_message(message) == "110103"
    study, patient = message.findall("ParticipantObjectIdentification")
    assert (study.get("ParticipantObjectID"), patient.get("ParticipantObjectID")) == ("b2", "c3")
    said = {one.get("type"): base64.b64decode(str(one.get("value"))).decode() for one in study.iter("ParticipantObjectDetail")}
    assert said["verdict"] == "clear"
    assert said["lcmem-onnx audit lines"] == "3 of 5 to 9"
    assert said["sha256 of the last audit line"] == "hash of 9"
    assert (said["from"], said["to"]) == ("2026-11-25T14:00:05.000Z", "2026-11-25T14:00:09.000Z")
    assert [(one.get("UID"), one.get("NumberOfInstances")) for one in study.iter("SOPClass")] == [(CT, "2"), (None, "1")]


def test_a_frame_counts_its_octets() -> None:
    data = frame("<AuditMessage>ä</AuditMessage>", "2026-11-25T14:00:00.000Z")
    length, _, rest = data.partition(b" ")
    assert int(length) == len(rest)
    assert re.match(rb"<85>1 2026-11-25T14:00:00.000Z \S+ lcmem-onnx \d+ DICOM\+RFC3881 - \xef\xbb\xbf<AuditMessage>", rest)


# -- sending ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "spool.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def trail(database: Database, tmp_path: Path) -> AuditTrail:
    return AuditTrail(database, tmp_path / "audit")


@pytest.fixture
def collector(certificate: Path) -> Iterator[Collector]:
    with Collector(certificate) as opened:
        yield opened


@pytest.fixture
def sender(collector: Collector, database: Database, trail: AuditTrail, tmp_path: Path) -> Iterator[SyslogSender]:
    opened = SyslogSender(collector.settings, database, tmp_path / "audit")
    yield opened
    opened.close()


def forward(trail: AuditTrail, *numbers: int) -> None:
    for number in numbers:
        trail.note("forwarded", object=f"{number:032x}", destination="archive", number=number)
    trail.flush()


def clear(trail: AuditTrail, study: str, count: int = 1) -> None:
    for number in range(count):
        trail.note("screened", object=f"{number:032x}", state="screened", verdict="clear", study=study, patient="p", sop_class=CT)
    trail.flush()


def numbers(collector: Collector) -> list[int]:
    return [line["number"] for line in collector.lines() if "number" in line]


def test_each_line_is_sent_once_over_files_and_connections(certificate: Path, database: Database, tmp_path: Path) -> None:
    trail = AuditTrail(database, tmp_path / "audit", rotate_bytes=600)
    sent: list[int] = []
    for turn in range(2):
        with Collector(certificate) as collector:
            sender = SyslogSender(collector.settings, database, tmp_path / "audit")
            assert sender.send_waiting() == 0
            for number in range(3):
                forward(trail, 10 * turn + number)
                trail.note("audit-resumed")  # no message
                trail.flush()
            assert sender.send_waiting() == 6
            assert sender.send_waiting() == 0
            sender.close()
            eventually(lambda: len(collector.raw) == 3)
            sent += numbers(collector)
    assert len(trail_files(tmp_path / "audit")) > 2
    assert sent == [0, 1, 2, 10, 11, 12]


def test_a_collector_that_is_away_loses_nothing(certificate: Path, database: Database, trail: AuditTrail, tmp_path: Path) -> None:
    forward(trail, 1)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    away = SyslogSender(SyslogSettings("127.0.0.1", port, TlsClient(ca=certificate / "server.pem")), database, tmp_path / "audit")
    with pytest.raises(OSError, match="refused"):
        away.send_waiting()
    with Collector(certificate) as collector:
        tls = TlsClient(ca=certificate / "server.pem", server_name="elsewhere")
        wrong = SyslogSender(SyslogSettings("127.0.0.1", collector.port, tls), database, tmp_path / "audit")
        with pytest.raises(ssl.SSLError):
            wrong.send_waiting()
        right = SyslogSender(collector.settings, database, tmp_path / "audit")
        assert right.send_waiting() == 1
        right.close()
        eventually(lambda: numbers(collector) == [1])


def test_a_collector_that_was_restarted_gets_the_next_line(collector: Collector, trail: AuditTrail, sender: SyslogSender) -> None:
    """The first write into a connection that the other side has closed succeeds, and is lost: it is looked at before."""
    for number in range(4):
        forward(trail, number)
        assert sender.send_waiting() == 1
        eventually(lambda: numbers(collector) == list(range(number + 1)))  # noqa: B023
        collector.hang_up()
        eventually(lambda: sender._connection is not None and syslog._closed_by_peer(sender._connection))
    assert collector.connections == 4


GARBAGE = {
    "NUL bytes": bytes(300),
    "NUL bytes and a newline": bytes(300) + b"\n",
    "half a line": b'{"schema_version":1,"seq":3,"ev',
    "not JSON": b"what is this\n\xff\xfe\n{}\n[1]\nnull\n",
    "nested": b"[" * 5000 + b"\n",
    "numbers for text": b'{"seq":3,"time":3,"event":3,"previous":3}\n',
    "a line out of its place": b'{"seq":2,"time":"2026-11-25T14:00:00.000Z","event":"login","who":"x","previous":""}\n',
    "a line of the future": b'{"seq":99999,"time":"2026-11-25T14:00:00.000Z","event":"login","who":"x","previous":""}\n',
    "no time": b'{"seq":3,"time":"yesterday\\r\\nX","event":"viewed","who":"x","previous":""}\n',
    "a field missing": b'{"seq":3,"time":"2026-11-25T14:00:00.000Z","event":"viewed","previous":""}\n',
    "long": b"x" * (3 << 20) + b"\n",
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_the_trail_is_skipped_and_told_once(
    garbage: str, collector: Collector, database: Database, trail: AuditTrail, sender: SyslogSender, tmp_path: Path
) -> None:
    """Written into the fsynced part, so that nothing heals it."""
    forward(trail, 1, 2)
    (path,) = trail_files(tmp_path / "audit")
    with open(path, "ab") as file:
        file.write(GARBAGE[garbage])
    forward(trail, 3, 4)
    for _ in range(4):
        sender.send_waiting()
        trail.flush()
    sender.close()
    again = SyslogSender(collector.settings, database, tmp_path / "audit")
    forward(trail, 5)
    again.send_waiting()
    again.close()
    eventually(lambda: 5 in numbers(collector))
    assert numbers(collector) == [1, 2, 3, 4, 5]
    for message in collector.messages():
        check_message(message)
    told = [line for line in collector.lines() if line["event"] == "audit-damaged"]
    # Nothing but NUL where lines were pending is cut off, and nothing is lost. A whole line takes the place of another besides.
    assert len(told) == {"NUL bytes": 0, "no time": 2, "a field missing": 2}.get(garbage, 1)
    if told:
        assert (told[0]["file"], told[0]["line"]) == (path.name, 3)
        assert told[0]["byte"] > 0
    with database.snapshot() as connection:
        assert ExportState.read(connection).damaged == sum(line["lines"] for line in told)


def test_lines_that_are_missing_are_told(collector: Collector, trail: AuditTrail, sender: SyslogSender, tmp_path: Path) -> None:
    forward(trail, 1, 2)
    assert sender.send_waiting() == 2
    forward(trail, 3, 4, 5)
    (path,) = trail_files(tmp_path / "audit")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    forward(trail, 6)
    sender.send_waiting()
    trail.flush()
    sender.send_waiting()
    eventually(lambda: any(line["event"] == "audit-damaged" for line in collector.lines()))
    assert numbers(collector) == [1, 2, 6]
    (skipped,) = (line for line in collector.lines() if line["event"] == "audit-damaged")
    assert skipped["what"] == "lines 3 to 5 are missing"


def test_what_may_still_be_torn_is_not_sent(
    collector: Collector, database: Database, trail: AuditTrail, sender: SyslogSender
) -> None:
    """Lines that are in the file and not fsynced: a power cut may take them, and others take their numbers."""
    forward(trail, 1)
    trail.note("forwarded", object="0" * 32, destination="archive", number=2)
    (line,) = (str(row["line"]) for row in database.read("SELECT line FROM audit_pending"))
    (path,) = trail_files(trail._folder)
    with open(path, "ab") as file:
        file.write(line.encode() + b"\n")
    assert sender.send_waiting() == 1
    trail.flush()
    assert sender.send_waiting() == 1
    eventually(lambda: numbers(collector) == [1, 2])


@pytest.mark.parametrize("trouble", ["busy", "full"])
def test_a_busy_or_full_database_stops_nothing(
    trouble: str, collector: Collector, database: Database, trail: AuditTrail, sender: SyslogSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syslog, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(syslog, "POLL_SECONDS", 0.05)
    forward(trail, *range(250))  # three times what is sent at a time
    if trouble == "busy":
        database._connection.execute("PRAGMA busy_timeout = 20")
        other = sqlite3.connect(database.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
    else:
        with database.write() as connection:
            connection.execute(
                "CREATE TRIGGER full BEFORE INSERT ON meta BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
            )
    with pytest.raises(GatewayError):
        sender.send_waiting()
    stop = threading.Event()
    thread = threading.Thread(target=sender.run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: len(numbers(collector)) == 250)  # lines are sent although nothing can be noted
        assert thread.is_alive()
        if trouble == "busy":
            other.close()
        else:
            with database.write() as connection:
                connection.execute("DROP TRIGGER full")
        forward(trail, 250)
        eventually(lambda: len(numbers(collector)) == 251)
    finally:
        stop.set()
        thread.join(10)
    assert numbers(collector) == list(range(251))
    with database.snapshot() as connection:
        assert ExportState.read(connection).position.seq >= 251


def test_clear_verdicts_are_collected_by_study_and_survive_a_restart(
    certificate: Path, database: Database, trail: AuditTrail, tmp_path: Path
) -> None:
    with Collector(certificate) as collector:
        first = SyslogSender(collector.settings, database, tmp_path / "audit")
        for _ in range(3):
            clear(trail, "s1", 40)
            clear(trail, "s2", 10)
        while first.send_waiting():
            pass
        forward(trail, 1)
        first.send_waiting()
        first.close()
        eventually(lambda: numbers(collector) == [1])
        assert len(collector.raw) == 1  # the verdicts wait for more

        second = SyslogSender(collector.settings, database, tmp_path / "audit")
        clear(trail, "s1", 5)
        assert second.send_waiting() == 5
        assert second.send_waiting(last=True) == 0
        second.close()
        eventually(lambda: len(collector.raw) == 3)
        counts = {}
        for message in collector.messages()[1:]:
            check_message(message)
            study = message.find("ParticipantObjectIdentification")
            assert study is not None
            counts[study.get("ParticipantObjectID")] = [one.get("NumberOfInstances") for one in study.iter("SOPClass")]
        assert counts == {"s1": ["125"], "s2": ["30"]}


def test_clear_verdicts_are_sent_when_their_time_has_come(
    collector: Collector, database: Database, trail: AuditTrail, sender: SyslogSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear(trail, "s1", 3)
    sender.send_waiting()
    assert sender.send_waiting() == 0
    assert not collector.raw
    with database.snapshot() as connection:
        (waiting,) = ExportState.read(connection).cleared
    now = waiting.since + sender._settings.summary_seconds
    monkeypatch.setattr(syslog.time, "time", lambda: now)
    sender.send_waiting()
    eventually(lambda: len(collector.raw) == 1)
    with database.snapshot() as connection:
        assert not ExportState.read(connection).cleared


def test_many_studies_and_many_lines_do_not_wait_for_ever(
    collector: Collector, trail: AuditTrail, sender: SyslogSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syslog, "CLEARED_LINES", 20)
    monkeypatch.setattr(syslog, "CLEARED_STUDIES", 3)
    for study in ("s1", "s2", "s3", "s4", "s5"):
        clear(trail, study)
    sender.send_waiting()
    eventually(lambda: len(collector.raw) == 2)
    clear(trail, "s3", 19)
    sender.send_waiting()
    eventually(lambda: len(collector.raw) == 3)
    ids = [message.find("ParticipantObjectIdentification").get("ParticipantObjectID") for message in collector.messages()]  # type: ignore[union-attr]
    assert ids == ["s1", "s2", "s3"]


def test_what_an_earlier_version_noted_is_taken_up(
    collector: Collector, database: Database, trail: AuditTrail, tmp_path: Path
) -> None:
    """It noted the last line's number alone, and nothing of how far the trail was fsynced."""
    forward(trail, *range(1, 9))
    with database.write() as connection:
        connection.execute("INSERT INTO meta VALUES ('syslog_sent', '5')")
        connection.execute("DELETE FROM meta WHERE name = 'audit_synced'")
    sender = SyslogSender(collector.settings, database, tmp_path / "audit")
    forward(trail, 9)  # the service writes `started` at once
    assert sender.send_waiting() == 4
    sender.close()
    eventually(lambda: numbers(collector) == [6, 7, 8, 9])


@pytest.mark.parametrize("change", ["replaced", "archived", "state lost"])
def test_a_position_that_is_no_more_is_found_by_the_lines_number(
    change: str, collector: Collector, database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "audit"
    trail = AuditTrail(database, folder, rotate_bytes=700)
    forward(trail, 1, 2)
    forward(trail, 3, 4)
    first = SyslogSender(collector.settings, database, folder)
    assert first.send_waiting() == 4
    first.close()
    forward(trail, 5)
    files = trail_files(folder)
    assert len(files) > 1
    if change == "replaced":
        files[-1].write_bytes(files[-1].read_bytes())
    elif change == "archived":
        files[0].unlink()
    else:
        with database.write() as connection:
            connection.execute("DELETE FROM meta WHERE name = ?", (STATE,))
    second = SyslogSender(collector.settings, database, folder)
    assert second.send_waiting() == 1
    second.close()
    eventually(lambda: numbers(collector) == [1, 2, 3, 4, 5])
    with database.snapshot() as connection:
        assert ExportState.read(connection).damaged == 0


def test_a_thread_that_sends_ends_with_what_has_come(collector: Collector, trail: AuditTrail, sender: SyslogSender) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=sender.run, args=(stop,))
    thread.start()
    forward(trail, 1)
    clear(trail, "s1")
    eventually(lambda: numbers(collector) == [1])
    trail.note("stopped")
    trail.flush()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    eventually(lambda: len(collector.raw) == 3)
    codes = [check_message(message) for message in collector.messages()]
    assert sorted(codes) == ["110100", "110103", "110106"]
    assert json.dumps(collector.lines()).count('"number"') == 1
