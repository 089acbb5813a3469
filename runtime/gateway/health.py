"""Whether the audit trail gets to where it belongs: into its files, and to the collector. For `/readyz`, the page and `status`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from .database import Connection, Database, read_meta, write_meta
from .dicom_audit_messages import Cleared
from .settings import SyslogSettings
from .trail_reader import Position

__all__ = ["Check", "ExportState", "export_check", "moment_of", "trail_check"]

SENT = "syslog_sent"
"""The name under which the database keeps the number of the last line that was dealt with; all that earlier versions kept."""
STATE = "syslog_state"
SILENT_SECONDS = 120.0
"""After so long without a sign of life the exporter is taken to be dead; it gives one every few seconds."""
UNWRITTEN_SECONDS = 60.0
"""A line that has waited longer for the trail's file than this means that the file cannot be written."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold for the gateway to do its work.

    Attributes:
        ready: it holds.
        degraded: it holds, and will not for long if nobody looks after it.
        detail: what is wrong; "" where all is well. No patient's data.
    """

    ready: bool
    detail: str = ""
    degraded: bool = False

    @property
    def level(self) -> str:
        return "degraded" if self.ready and self.degraded else "ok" if self.ready else "not ok"

    @property
    def text(self) -> str:
        """The level, and what is wrong."""
        return f"{self.level}: {self.detail}" if self.detail else self.level


@dataclass
class ExportState:
    """How far the exporter has come; kept in the database, so that nothing is left out or told twice after a restart.

    Attributes:
        position: in the trail.
        cleared: verdicts that are still being summed up.
        alive: when the exporter wrote this (`time.time`).
        behind_since: when the oldest line that waits was written (`time.time`); None while all goes well.
        problem: why it waits.
        damaged: lines that could not be read, were missing or out of their place, since the spool was made.
    """

    position: Position = field(default_factory=Position)
    cleared: list[Cleared] = field(default_factory=list)
    alive: float = 0.0
    behind_since: float | None = None
    problem: str = ""
    damaged: int = 0

    @classmethod
    def read(cls, connection: Connection) -> ExportState:
        """Return what was written last; of a spool of an earlier version its line number alone."""
        seq = int(read_meta(connection, SENT) or 0)
        text = read_meta(connection, STATE)
        if text is None:
            return cls(Position(seq))
        values: dict[str, Any] = json.loads(text)
        position = Position(**values.pop("position"))
        cleared = [Cleared(**one) for one in values.pop("cleared")]
        # An earlier version may have gone on from here, and noted its line's number alone.
        return cls(position if position.seq == seq else Position(seq), cleared, **values)

    def write(self, connection: Connection) -> None:
        write_meta(connection, SENT, str(self.position.seq))
        write_meta(connection, STATE, json.dumps(asdict(self)))


def export_check(database: Database, settings: SyslogSettings) -> Check:
    """Whether the collector gets the trail's lines in time.

    Raises:
        GatewayError: the database cannot be read.
    """
    with database.snapshot() as connection:
        state = ExportState.read(connection)
        (head,) = connection.execute("SELECT seq FROM audit_head").fetchone()
    now = time.time()
    waiting = max(0, head - state.position.seq)
    if not state.alive:
        return Check(False, f"the exporter has not run yet; {waiting} lines wait")
    if now - state.alive > SILENT_SECONDS:
        return Check(False, f"the exporter gave its last sign of life {now - state.alive:.0f} s ago; {waiting} lines wait")
    if state.behind_since is None:
        return Check(True)
    late = now - state.behind_since
    detail = f"{waiting} lines wait for the collector, the oldest for {max(0.0, late):.0f} s"
    detail += f" ({state.problem})" if state.problem else ""
    return Check(late <= settings.max_lag_seconds, detail, degraded=True)


def trail_check(database: Database) -> Check:
    """Whether the trail's lines get into its files.

    Raises:
        GatewayError: the database cannot be read.
    """
    rows = database.read("SELECT line, (SELECT count(*) FROM audit_pending) FROM audit_pending ORDER BY seq LIMIT 1")
    if not rows:
        return Check(True)
    late = time.time() - moment_of(json.loads(rows[0][0])["time"])
    if late <= UNWRITTEN_SECONDS:
        return Check(True)
    return Check(False, f"{rows[0][1]} lines wait to be written to the trail's file, the oldest for {late:.0f} s: see the log")


def moment_of(time_of_line: str) -> float:
    """Return a line's time as `time.time` has it.

    Raises:
        ValueError: it is not an ISO 8601 time.
    """
    moment = datetime.fromisoformat(time_of_line)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
