"""A trail torn at any byte: what a power cut left is healed, what was lost for good is named, and new lines are always whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.gateway import audit_trail
from lcmem_onnx.runtime.gateway.audit_trail import AuditTrail, line_hash, trail_files, verify_trail
from lcmem_onnx.runtime.gateway.database import Database

FILE = "audit-000000000001.jsonl"


def made_lines(count: int) -> list[bytes]:
    """Whole lines of a trail, made here and not by the code under test."""
    lines: list[bytes] = []
    previous = "0" * 64
    for seq in range(1, count + 1):
        fields = {
            "schema_version": 1,
            "seq": seq,
            "time": "2026-01-01T00:00:00.000Z",
            "event": "x" * (seq % 3 + 1),
            "previous": previous,
        }
        line = json.dumps(fields, separators=(",", ":")).encode()
        previous = line_hash(line)
        lines.append(line + b"\n")
    return lines


class Torn:
    """A spool's trail that is put into any state, again and again."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(folder / "spool.sqlite")
        self.database._connection.execute("PRAGMA synchronous = OFF")
        self.folder = folder / "audit"
        self.trail = AuditTrail(self.database, self.folder)
        self.path = self.folder / FILE

    def put(self, lines: list[bytes], synced: int, content: bytes, *, known: bool = True) -> None:
        """Lines of which the first `synced` were fsynced, the others pending; and what the file holds after the power cut."""
        for path in trail_files(self.folder):
            path.unlink()
        if content or synced:
            self.path.write_bytes(content)
        with self.database.write() as connection:
            connection.execute("DELETE FROM audit_pending")
            connection.execute("DELETE FROM meta WHERE name = 'audit_synced'")
            for seq, line in enumerate(lines[synced:], synced + 1):
                connection.execute("INSERT INTO audit_pending VALUES (?, ?)", (seq, line[:-1].decode()))
            connection.execute("UPDATE audit_head SET seq = ?, hash = ?", (len(lines), line_hash(lines[-1][:-1])))
            if known and synced:
                end = json.dumps([FILE, sum(map(len, lines[:synced]))])
                connection.execute("INSERT INTO meta VALUES ('audit_synced', ?)", (end,))

    def problems(self) -> list[tuple[int, int, str]]:
        return [(problem.line, problem.byte, problem.what) for problem in verify_trail(self.database, self.folder).problems]


@pytest.fixture
def torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Torn]:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    made = Torn(tmp_path)
    yield made
    made.database.close()


LEFT: dict[str, Callable[[bytes, int], bytes]] = {
    "cut": lambda data, at: data[:at],
    "padded": lambda data, at: data[:at] + bytes(len(data) - at),
    "padded beyond": lambda data, at: data[:at] + bytes(len(data) - at + 64),
    "hole before": lambda data, at: bytes(at) + data[at:],
    "block lost": lambda data, at: data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :],
}
"""What a file system may make of a write that was not fsynced."""


@pytest.mark.parametrize("known", [True, False], ids=["noted", "earlier version"])
@pytest.mark.parametrize("left", LEFT)
def test_a_power_cut_at_any_byte_of_a_write_is_healed(torn: Torn, left: str, known: bool) -> None:
    """Two lines were fsynced, two were being written. Whatever of these is on disk, the trail is whole at once and stays so."""
    lines = made_lines(4)
    before, data = b"".join(lines[:2]), b"".join(lines[2:])
    for at in range(len(data) + 1):
        torn.put(lines, 2, before + LEFT[left](data, at), known=known)
        assert torn.problems() == [], at
        torn.trail.flush()
        assert torn.problems() == [], at
        written = torn.path.read_bytes()
        assert written.startswith(before + data), at
        resumed = written[len(before + data) :].splitlines()
        assert len(resumed) <= 1
        if resumed:
            assert json.loads(resumed[0])["event"] == "audit-resumed"
            assert json.loads(resumed[0])["completed"] is True
        torn.trail.note("stopped")
        torn.trail.flush()
        assert torn.problems() == [], at


@pytest.mark.parametrize("left", LEFT)
def test_a_power_cut_in_the_first_write_is_healed(torn: Torn, left: str) -> None:
    lines = made_lines(2)
    data = b"".join(lines)
    for at in range(0, len(data) + 1, 3):
        torn.put(lines, 0, LEFT[left](data, at))
        torn.trail.flush()
        assert torn.problems() == [], at
        assert torn.path.read_bytes().startswith(data)


@pytest.mark.parametrize("padded", [False, True], ids=["cut", "padded"])
def test_what_was_fsynced_and_is_gone_is_named_to_the_byte_and_the_chain_goes_on(torn: Torn, padded: bool) -> None:
    """A disk that lied, or somebody who cut the file: nothing can bring the lines back, and nothing that comes after is harmed."""
    lines = made_lines(3)
    starts = [sum(map(len, lines[:number])) for number in range(4)]
    data = b"".join(lines)
    for at in range(len(data)):
        torn.put(lines, 3, data[:at] + (bytes(len(data) - at) if padded else b""))
        whole = sum(start <= at for start in starts[1:])
        fragment = at - starts[whole]
        assert torn.problems(), at
        for event in ("started", "stopped"):
            torn.trail.note(event)
            torn.trail.flush()
        problems = torn.problems()
        # The line that was hit, unless only its newline is gone, or nothing of it is left in the file.
        hit = whole + 1
        only_newline = fragment == len(lines[whole]) - 1 and not padded
        expected = []
        if (fragment or padded) and not only_newline:
            expected.append((hit, starts[whole], "this is not a line"))
        last = whole + only_newline
        if last < 3:
            following = hit + (1 if fragment or padded else 0)
            expected.append((following, None, f"lines {last + 1} to 3 are missing"))
        assert len(problems) == len(expected), (at, problems)
        for (line, byte, what), (wanted_line, wanted_byte, wanted) in zip(problems, expected, strict=True):
            assert line == wanted_line, at
            assert wanted_byte in (None, byte), at
            assert wanted in what, at
        if padded:
            assert "NUL" in problems[0][2]
        read = [audit_trail.parse_line(raw) for raw in torn.path.read_bytes().splitlines()]
        assert sorted(line["event"] for line in read if line and line["seq"] > 3) == ["audit-resumed", "started", "stopped"], at
        torn.trail.note("again")
        torn.trail.flush()
        assert torn.problems() == problems, at


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_end_of_the_file_leaves_later_lines_whole(torn: Torn, data: st.DataObject) -> None:
    """Any bytes where the torn write should be: they are no reason to lose or to damage a line, and never pass unseen."""
    lines = made_lines(5)
    synced = data.draw(st.integers(0, 5))
    before, rest = b"".join(lines[:synced]), b"".join(lines[synced:])
    at = data.draw(st.integers(0, len(rest)))
    foreign = data.draw(st.binary(max_size=40))
    torn.put(lines, synced, before + rest[:at] + foreign)
    torn.trail.note("stopped")
    torn.trail.flush()
    last = torn.path.read_bytes().splitlines(keepends=True)
    stopped = next(raw for raw in reversed(last) if raw.endswith(b"\n") and b'"event":"stopped"' in raw)
    assert json.loads(stopped)["seq"] == 6
    assert all(line in last for line in lines)
    harmless = (rest + stopped).startswith(rest[:at] + foreign) or not foreign.strip(b"\0")
    if not harmless and not all(byte in (0, right) for byte, right in zip(foreign, (rest + stopped)[at:], strict=False)):
        assert torn.problems()


def test_where_the_file_may_only_be_appended_to_nothing_is_cut(torn: Torn, monkeypatch: pytest.MonkeyPatch) -> None:
    """chattr +a: the NUL bytes stay, `verify` names them, and the lines behind them are whole."""

    def refused(path: Path, size: int) -> None:
        raise PermissionError

    monkeypatch.setattr(audit_trail.os, "truncate", refused)
    lines = made_lines(3)
    torn.put(lines, 2, b"".join(lines[:2]) + bytes(100))
    torn.trail.flush()
    ((line, byte, what),) = torn.problems()
    assert (line, byte) == (3, len(lines[0]) + len(lines[1]))
    assert "100 NUL bytes" in what
    assert torn.path.read_bytes().splitlines()[3] + b"\n" == lines[2]


def test_a_file_that_is_gone_is_named_and_the_next_line_begins_another(torn: Torn) -> None:
    lines = made_lines(3)
    torn.put(lines, 3, b"".join(lines))
    torn.path.unlink()
    torn.trail.note("started")
    torn.trail.flush()
    assert [path.name for path in trail_files(torn.folder)] == ["audit-000000000004.jsonl"]
    ((line, _, what),) = torn.problems()
    assert line == 1
    assert "lines 1 to 3 are missing" in what
    said = [json.loads(raw) for raw in trail_files(torn.folder)[0].read_text().splitlines()]
    assert said[-1]["lost_bytes"] == sum(map(len, lines))


def test_a_file_that_was_begun_and_not_noted_is_taken_up(torn: Torn) -> None:
    lines = made_lines(4)
    torn.put(lines, 2, b"".join(lines[:2]))
    (torn.folder / "audit-000000000003.jsonl").write_bytes(lines[2][:20] + bytes(30))
    assert torn.problems() == []
    torn.trail.flush()
    assert torn.problems() == []
    assert (torn.folder / "audit-000000000003.jsonl").read_bytes().startswith(lines[2] + lines[3])


def test_lines_that_an_earlier_version_wrote_in_between_are_no_damage(torn: Torn) -> None:
    """It fsyncs, and notes no end."""
    lines = made_lines(5)
    torn.put(lines, 4, b"".join(lines[:4]) + lines[4][:30] + bytes(10))
    with torn.database.write() as connection:
        connection.execute("UPDATE meta SET value = ? WHERE name = 'audit_synced'", (json.dumps([FILE, len(lines[0])]),))
    assert torn.problems() == []
    torn.trail.flush()
    assert torn.problems() == []
    resumed = json.loads(torn.path.read_bytes().splitlines()[-1])
    assert (resumed["torn_bytes"], resumed["completed"]) == (40, True)
