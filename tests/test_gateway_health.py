"""What /readyz, the page and the metrics say of the audit trail's way into its file and to the collector."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from lcmem_onnx.runtime.gateway.audit_trail import AuditTrail, trail_files
from lcmem_onnx.runtime.gateway.database import Database
from lcmem_onnx.runtime.gateway.health import SILENT_SECONDS, Check, ExportState, export_check, moment_of, trail_check
from lcmem_onnx.runtime.gateway.settings import AuditSettings, SyslogSettings
from lcmem_onnx.runtime.gateway.trail_reader import Position

SETTINGS = SyslogSettings("collector", max_lag_seconds=300)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "spool.sqlite")
    yield opened
    opened.close()


def put(database: Database, state: ExportState) -> None:
    with database.write() as connection:
        state.write(connection)


@pytest.mark.parametrize(
    ("alive", "behind", "problem", "level", "detail"),
    [
        (0.0, None, "", "ok", ""),
        (SILENT_SECONDS + 5, None, "", "not ok", "last sign of life"),
        (0.0, 10.0, "", "degraded", "the oldest for 10 s"),
        (
            0.0,
            299.0,
            "the collector cannot be reached: TimeoutError",
            "degraded",
            "(the collector cannot be reached: TimeoutError)",
        ),
        (0.0, 301.0, "the collector cannot be reached: TimeoutError", "not ok", "the oldest for 301 s"),
        (SILENT_SECONDS + 5, 301.0, "", "not ok", "last sign of life"),
        (-3600.0, None, "", "ok", ""),  # the clock was set back
        (0.0, -3600.0, "", "degraded", "the oldest for 0 s"),
    ],
)
def test_the_exporters_state_is_told(
    alive: float, behind: float | None, problem: str, level: str, detail: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    put(database, ExportState(Position(3), [], now - alive, None if behind is None else now - behind, problem))
    check = export_check(database, SETTINGS)
    assert check.level == level
    assert detail in check.detail
    assert check.ready == (level != "not ok")


def test_an_exporter_that_never_ran_is_not_ready(database: Database, tmp_path: Path) -> None:
    AuditTrail(database, tmp_path / "audit").note("started")
    assert export_check(database, SETTINGS) == Check(False, "the exporter has not run yet; 1 lines wait")


def test_lines_that_do_not_get_into_the_file_are_told(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trail = AuditTrail(database, tmp_path / "audit")
    assert trail_check(database) == Check(True)
    trail.note("started")
    trail.note("started")
    assert trail_check(database) == Check(True)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 90)
    check = trail_check(database)
    assert check.level == "not ok"
    assert "2 lines wait to be written to the trail's file, the oldest for" in check.detail
    trail.flush()
    assert trail_check(database) == Check(True)


def test_a_state_survives_and_an_earlier_versions_number_goes_before_it(database: Database) -> None:
    state = ExportState(Position(7, "audit-000000000001.jsonl", 900, 8), [], 1.0, 2.0, "why", 3)
    put(database, state)
    with database.snapshot() as connection:
        assert ExportState.read(connection) == state
    with database.write() as connection:  # as an earlier version writes it, which knows nothing of the rest
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('syslog_sent', '9')")
    with database.snapshot() as connection:
        assert ExportState.read(connection) == replace(state, position=Position(9))


def test_a_lines_time_is_read() -> None:
    assert moment_of("1970-01-01T00:01:00.000Z") == 60.0
    assert moment_of("1970-01-01T01:01:00+01:00") == 60.0
    assert moment_of(datetime.fromtimestamp(5, UTC).isoformat()) == 5.0
    with pytest.raises(ValueError, match="Invalid"):
        moment_of("yesterday")


def test_readyz_and_metrics_tell_it_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("httpx2")
    pytest.importorskip("uvicorn")
    from .gateway_http import DUTY, bearer, gateway_settings, serving

    settings = replace(gateway_settings(tmp_path), audit=AuditSettings(syslog=SETTINGS))
    with serving(settings) as (spool, client):
        spool.audit.note("started")
        spool.audit.flush()
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.text.splitlines() == [
            "ok spool",
            "ok disk",
            "ok audit trail",
            "not ok audit collector: the exporter has not run yet; 1 lines wait",
        ]
        put(spool.database, ExportState(Position(1), alive=time.time()))
        answer = client.get("/readyz")
        assert (answer.status_code, answer.text.splitlines()[-1]) == (200, "ok audit collector")
        for _ in range(3):
            spool.audit.note("login", who="Ada")
        put(spool.database, ExportState(Position(1), alive=time.time(), behind_since=time.time() - 20))
        answer = client.get("/readyz")
        assert (answer.status_code, answer.text.splitlines()[-1][:37]) == (200, "degraded audit collector: 3 lines wai")
        metrics = client.get("/metrics", headers=bearer(DUTY)).text
        values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("lcmem_gateway_audit"))
        assert values["lcmem_gateway_audit_unwritten_lines"] == "3.0"
        assert values["lcmem_gateway_audit_unsent_lines"] == "3.0"
        assert 20 <= float(values["lcmem_gateway_audit_behind_seconds"]) < 60
        assert "Ada" not in metrics

        (path,) = trail_files(settings.audit_folder)  # the file cannot be written any more
        path.rename(path.with_name("away"))
        path.mkdir()
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 90)
        assert "not ok audit trail: 3 lines wait to be written" in client.get("/readyz").text
