"""The audit trail: whole after any crash, and no change to it goes unseen."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.errors import GatewayError
from lcmem_onnx.runtime.gateway.audit_trail import AuditTrail, trail_files, verify_trail
from lcmem_onnx.runtime.gateway.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "spool.sqlite")


def trail_of(database: Database, folder: Path, count: int, rotate_bytes: int = 1 << 20) -> AuditTrail:
    trail = AuditTrail(database, folder, rotate_bytes)
    with database.write() as connection:
        for number in range(count):
            trail.record(connection, "received", object=f"{number:032x}", text='quotes " and\nnewlines')
    return trail


def test_lines_are_numbered_and_chained(database: Database, tmp_path: Path) -> None:
    trail = trail_of(database, tmp_path / "audit", 5)
    assert verify_trail(database, tmp_path / "audit").lines == 5  # pending ones count
    assert trail.flush() == 5
    assert trail.flush() == 0
    trail.note("started", version="1")
    trail.flush()
    (path,) = trail_files(tmp_path / "audit")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["schema_version"] == 1 and line["time"].endswith("Z") for line in lines)
    checked = verify_trail(database, tmp_path / "audit")
    assert checked.whole
    assert checked.lines == 6
    assert checked.resumed == 0


def test_a_line_holds_only_if_its_transaction_does(database: Database, tmp_path: Path) -> None:
    trail = AuditTrail(database, tmp_path / "audit")
    with pytest.raises(RuntimeError), database.write() as connection:  # noqa: PT012  # what raises is the transaction's block
        trail.record(connection, "received")
        raise RuntimeError
    trail.note("started")
    trail.flush()
    assert verify_trail(database, tmp_path / "audit").lines == 1


def test_large_trails_go_on_in_another_file(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    trail = AuditTrail(database, folder, rotate_bytes=1000)
    for _ in range(20):
        trail.note("received", object="0" * 32)
        trail.flush()
    files = trail_files(folder)
    assert len(files) > 3
    assert verify_trail(database, folder).whole
    files[1].rename(tmp_path / "away")
    problems = verify_trail(database, folder).problems
    assert "missing" in problems[0].what
    (tmp_path / "away").rename(files[1])
    files[-1].unlink()
    assert "cut off" in verify_trail(database, folder).problems[0].what


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_crash_at_any_byte_is_made_good(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The lines are in the database and a part of them in the file, torn anywhere."""
    folder = tmp_path_factory.mktemp("crash")
    database = Database(folder / "spool.sqlite")
    trail = trail_of(database, folder / "audit", 2)
    trail.flush()
    trail_of(database, folder / "audit", 3)
    pending = "".join(f"{row['line']}\n" for row in database.read("SELECT line FROM audit_pending ORDER BY seq")).encode()
    (path,) = trail_files(folder / "audit")
    torn = data.draw(st.integers(0, len(pending)))
    with open(path, "ab") as file:
        file.write(pending[:torn])
    before = verify_trail(database, folder / "audit")
    assert before.whole, before.problems
    trail.flush()
    after = verify_trail(database, folder / "audit")
    assert after.whole, after.problems
    said = 0 if torn == 0 or pending[:torn].endswith(b"\n") else 1
    assert after.resumed == said
    assert after.lines == 5 + said
    assert path.read_bytes().count(b"\n") == 5 + said
    database.close()


def test_a_torn_line_of_somebody_elses_is_a_problem_and_the_chain_goes_on(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    trail = trail_of(database, folder, 2)
    trail.flush()
    (path,) = trail_files(folder)
    with open(path, "ab") as file:
        file.write(b'{"schema_version":1,"seq":3,"event":"clear')
    assert "no end" in verify_trail(database, folder).problems[0].what
    trail.note("stopped")
    trail.flush()
    checked = verify_trail(database, folder)
    assert next(problem.line for problem in checked.problems) == 3
    assert checked.resumed == 1
    assert json.loads(path.read_text().splitlines()[-1])["completed"] is False


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_goes_unseen(data: st.DataObject, whole: tuple[Database, Path]) -> None:
    database, folder = whole
    path = trail_files(folder)[data.draw(st.integers(0, len(trail_files(folder)) - 1))]
    original = path.read_bytes()
    lines = original.splitlines(keepends=True)
    how = data.draw(st.sampled_from(["byte", "remove", "swap", "double", "cut", "edit", "insert"]))
    at = data.draw(st.integers(0, len(lines) - 1))
    if how == "byte":
        position = data.draw(st.integers(0, len(original) - 1))
        changed = bytearray(original)
        changed[position] ^= data.draw(st.integers(1, 255))
        altered = bytes(changed)
    elif how == "remove":
        altered = b"".join(lines[:at] + lines[at + 1 :])
    elif how == "swap":
        other = data.draw(st.integers(0, len(lines) - 1).filter(lambda number: number != at or len(lines) == 1))
        lines[at], lines[other] = lines[other], lines[at]
        altered = b"".join(lines)
    elif how == "double":
        altered = b"".join([*lines[: at + 1], *lines[at:]])
    elif how == "cut":
        altered = original[: data.draw(st.integers(0, len(original) - 1))]
    elif how == "edit":
        altered = b"".join([*lines[:at], lines[at].replace(b'"received"', b'"screened"'), *lines[at + 1 :]])
    else:
        altered = b"".join([*lines[:at], lines[at].replace(b'"received"', b'"forged"'), *lines[at:]])
    try:
        path.write_bytes(altered)
        assert verify_trail(database, folder).whole == (altered == original), how
    finally:
        path.write_bytes(original)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Database, Path]:
    folder = tmp_path_factory.mktemp("whole")
    database = Database(folder / "spool.sqlite")
    for _ in range(3):
        trail_of(database, folder / "audit", 4, rotate_bytes=1200).flush()
    assert len(trail_files(folder / "audit")) > 1
    return database, folder / "audit"


def test_a_forged_line_needs_the_head_in_the_database_too(database: Database, tmp_path: Path) -> None:
    """The last line changed and nothing after it to give it away."""
    folder = tmp_path / "audit"
    trail_of(database, folder, 3).flush()
    (path,) = trail_files(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1].replace(b'"received"', b'"deceived"'))
    assert "last line" in verify_trail(database, folder).problems[0].what


def test_written_lines_are_passed_on_once(database: Database, tmp_path: Path) -> None:
    seen: list[int] = []
    trail = AuditTrail(database, tmp_path / "audit", on_line=lambda line: seen.append(line["seq"]))
    for _ in range(3):
        trail.note("received")
    trail.flush()
    trail.note("stopped")
    trail.flush()
    assert seen == [1, 2, 3, 4]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_an_error(database: Database, tmp_path: Path) -> None:
    trail = trail_of(database, tmp_path / "audit", 1)
    (tmp_path / "audit").chmod(0o500)
    with pytest.raises(GatewayError, match="cannot be written"):
        trail.flush()
    (tmp_path / "audit").chmod(0o700)
    assert trail.flush() == 1
