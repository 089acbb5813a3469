"""The audit trail: JSON Lines, each with the sha256 of the line before it, so that a changed, missing or swapped line shows.

A line is made inside the database transaction that changes an object's state, numbered and chained there, and kept in the table
`audit_pending` until it is in the file and the file is fsynced. So a state and its line are one: neither is ever without the other,
however a process ends. A line torn by a crash is a beginning of a pending one, and is completed at the next start; a line
`audit-resumed` says so. The head of the chain (last number and hash) stays in the database, which shows a trail whose end was cut.

Who can rewrite both the files and the database can forge a trail; send the lines, or now and then the head that
`gateway audit verify` prints, to another machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import GatewayError
from ..syncing import sync
from .database import Connection, Database

__all__ = ["SCHEMA_VERSION", "AuditTrail", "Problem", "Verification", "verify_trail"]

SCHEMA_VERSION = 1
GENESIS = "0" * 64
AT_ONCE = 500
"""Lines written, and fsynced, together."""
TAIL = 1 << 20
"""Bytes looked at for a file's last whole line; no line is nearly so long."""
SHOWN_PROBLEMS = 50
RESUMED = "audit-resumed"


class AuditTrail:
    """Adds to the trail. `record` is for those who change states; one process flushes at a time, whoever it is.

    Args:
        database: the spool's.
        folder: where the files are, named by the number of their first line.
        rotate_bytes: a file that has reached it is followed by another.
        on_line: is given every line that was written, in order: for syslog.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        rotate_bytes: int = 64 << 20,
        on_line: Callable[[dict[str, Any]], None] = lambda line: None,
    ) -> None:
        self._database = database
        self._folder = folder
        self._rotate_bytes = rotate_bytes
        self._on_line = on_line
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise GatewayError(f"the audit trail's folder {folder} cannot be made: {error.strerror}") from error

    def record(self, connection: Connection, event: str, **fields: object) -> int:
        """Add a line, as part of the transaction on `connection`; it holds if that commits.

        Args:
            event: its name.
            fields: what JSON can hold. No patient's name or id, and no raw UID.

        Returns:
            The line's number, from 1.
        """
        (seq, previous) = connection.execute("SELECT seq, hash FROM audit_head").fetchone()
        seq += 1
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps(
            {"schema_version": SCHEMA_VERSION, "seq": seq, "time": moment, "event": event, **fields, "previous": previous},
            separators=(",", ":"),
        )
        connection.execute("INSERT INTO audit_pending VALUES (?, ?)", (seq, line))
        connection.execute("UPDATE audit_head SET seq = ?, hash = ?", (seq, _hash(line.encode())))
        return int(seq)

    def note(self, event: str, **fields: object) -> None:
        """Add a line in a transaction of its own, for what changes no object's state."""
        with self._database.write() as connection:
            self.record(connection, event, **fields)

    def flush(self) -> int:
        """Write pending lines to the file, and return how many. They are fsynced when this returns.

        Raises:
            GatewayError: the file cannot be written. The lines stay pending.
        """
        written = 0
        try:
            with self._alone():
                while pending := self._database.read("SELECT seq, line FROM audit_pending ORDER BY seq LIMIT ?", (AT_ONCE,)):
                    lines = [(int(row["seq"]), str(row["line"])) for row in pending]
                    new, torn = self._append(lines)
                    with self._database.write() as connection:
                        connection.execute("DELETE FROM audit_pending WHERE seq <= ?", (lines[-1][0],))
                        if torn is not None:
                            self.record(connection, RESUMED, **torn)
                    written += len(new)
                    for line in new:
                        self._on_line(json.loads(line))
        except OSError as error:
            raise GatewayError(f"the audit trail in {self._folder} cannot be written: {error.strerror or error}") from error
        return written

    def _append(self, lines: list[tuple[int, str]]) -> tuple[list[str], dict[str, object] | None]:
        """Write what is not in the file yet. Returns that, and what was found torn."""
        files = trail_files(self._folder)
        path = files[-1] if files else self._begin(lines[0][0])
        last, fragment = _tail(path)
        new = [line for seq, line in lines if seq > last]
        data = "".join(f"{line}\n" for line in new).encode()
        torn: dict[str, object] | None = None
        if fragment:
            completed = bool(new) and data.startswith(fragment)
            torn = {"file": path.name, "torn_bytes": len(fragment), "completed": completed}
            # What a crash of ours left is the beginning of the next line. Anything else stays as it is, for `verify` to find.
            data = data[len(fragment) :] if completed else b"\n" + data
        elif new and path.stat().st_size >= self._rotate_bytes:
            path = self._begin(last + 1)
        with open(path, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return new, torn

    def _begin(self, first: int) -> Path:
        """A new file, whose name is on disk."""
        path = self._folder / f"audit-{first:012d}.jsonl"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        sync(self._folder)
        return path

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self._folder / ".lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@dataclass(frozen=True)
class Problem:
    """What is wrong at one place of the trail."""

    file: str
    line: int
    what: str


@dataclass(frozen=True)
class Verification:
    """Whether the trail is whole.

    Attributes:
        lines: how many it has, pending ones included.
        head: the last line's hash; keep it elsewhere to prove later that the trail was not rewritten.
        problems: what is wrong, at most 50; none in a whole trail.
        resumed: how often the trail was taken up again after a torn line.
    """

    lines: int
    head: str
    problems: tuple[Problem, ...]
    resumed: int

    @property
    def whole(self) -> bool:
        return not self.problems


def verify_trail(database: Database, folder: Path) -> Verification:
    """Read the whole trail and check each line against the one before, and the last against the head in the database.

    May run while the service does.

    Raises:
        GatewayError: the files or the database cannot be read.
    """
    with database.snapshot() as connection:
        (head_seq, head_hash) = connection.execute("SELECT seq, hash FROM audit_head").fetchone()
        pending = [(row[0], row[1]) for row in connection.execute("SELECT seq, line FROM audit_pending ORDER BY seq")]
    chain = _Chain(head_seq, head_hash)
    try:
        for path in trail_files(folder):
            chain.check_file(path)
    except OSError as error:
        raise GatewayError(f"the audit trail in {folder} cannot be read: {error}") from error
    chain.torn_may_be(pending)
    for seq, line in pending:
        if seq > chain.seq:
            chain.check("pending lines", seq, line.encode())
    if chain.seq < head_seq:
        chain.problem("the end", chain.seq, f"lines {chain.seq + 1} to {head_seq} are missing: the trail's end was cut off")
    return Verification(max(chain.seq, head_seq), head_hash, tuple(chain.problems[:SHOWN_PROBLEMS]), chain.resumed)


class _Chain:
    """Where a verification stands."""

    def __init__(self, head_seq: int, head_hash: str) -> None:
        self.seq = 0
        self.problems: list[Problem] = []
        self.resumed = 0
        self._hash = GENESIS
        self._head = (head_seq, head_hash)
        self._torn: tuple[str, int, bytes] | None = None

    def problem(self, file: str, line: int, what: str) -> None:
        self.problems.append(Problem(file, line, what))

    def check_file(self, path: Path) -> None:
        self.torn_may_be([])
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.endswith(b"\n"):
                    self.check(path.name, number, raw[:-1])
                else:
                    self._torn = (path.name, number, raw)

    def torn_may_be(self, pending: list[tuple[int, str]]) -> None:
        """A last line without an end is a crash's, if it is the beginning of the line that waits to be written."""
        if self._torn:
            file, number, raw = self._torn
            following = next((line.encode() + b"\n" for seq, line in pending if seq == self.seq + 1), b"")
            if not following.startswith(raw):
                self.problem(file, number, "the line has no end, and is not the one that waits to be written")
            self._torn = None

    def check(self, file: str, number: int, raw: bytes) -> None:
        try:
            line = json.loads(raw)
            seq, previous = int(line["seq"]), str(line["previous"])
        except (ValueError, KeyError, TypeError, RecursionError):
            self.problem(file, number, "it is no line of an audit trail")
            self._hash = _hash(raw)
            return
        if seq != self.seq + 1:
            expected = self.seq + 1
            gone = f"lines {expected} to {seq - 1} are missing" if seq > expected else "it is not where it was written"
            self.problem(file, number, f"it has number {seq} where {expected} is due: {gone}")
        elif previous != self._hash:
            self.problem(file, number, f"it does not follow from the line before: line {seq - 1} or {seq} was changed")
        if seq == self._head[0] and _hash(raw) != self._head[1]:
            self.problem(file, number, "it is not the last line that was written: it was changed")
        self.resumed += line.get("event") == RESUMED
        self.seq, self._hash = seq, _hash(raw)


def trail_files(folder: Path) -> list[Path]:
    """The trail's files, oldest first."""
    return sorted(folder.glob("audit-*.jsonl"))


def _tail(path: Path) -> tuple[int, bytes]:
    """The number of a file's last whole line (0 if it has none that can be read), and what follows it."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        whole, newline, fragment = file.read().rpartition(b"\n")
    try:
        return (int(json.loads(whole.rpartition(b"\n")[2])["seq"]) if newline else 0), fragment
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0, fragment


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
