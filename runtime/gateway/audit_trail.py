"""The audit trail: JSON Lines, each with the sha256 of the line before it, so that a changed, missing or swapped line shows.

A line is made inside the database transaction that changes an object's state, numbered and chained there, and kept in the table
`audit_pending` until it is in the file and the file is fsynced. So a state and its line are one: neither is ever without the other,
however a process ends. The head of the chain (last number and hash) stays in the database, which shows a trail whose end was cut.

The database also keeps how far the file was fsynced. What lies behind that after a crash or a power cut is a torn write, and the
lines it should be are still pending. `flush` therefore heals the file before it appends:

    whole pending lines          they stay
    a part of the pending lines  it is completed
    NUL bytes among these        (a file system that had grown the file, not filled it) they are cut off and written again
    anything else                it stays, ended by a newline, for `verify` to report

A line `audit-resumed` says what was found. Lines that were fsynced and are gone all the same (a disk that lied, a hand) cannot be
written again: the chain goes on after them, and `verify` names them.

Anyone who can rewrite both the files and the database can forge a trail; send the lines, or now and then the head that
`gateway audit verify` prints, to another machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import GatewayError
from ..system.atomic_write import sync
from ..system.file_lock import wait_for_lock
from .database import Connection, Database, read_meta, write_meta

__all__ = [
    "SCHEMA_VERSION",
    "AuditTrail",
    "End",
    "Problem",
    "Verification",
    "parse_line",
    "synced_end",
    "trail_files",
    "verify_trail",
]

SCHEMA_VERSION = 1
GENESIS = "0" * 64
AT_ONCE = 500
"""Lines written, and fsynced, together."""
LONGEST_FRAGMENT = 1 << 20
"""Bytes before a file's end in which the beginning of a line without an end is looked for."""
SHOWN_PROBLEMS = 50
RESUMED = "audit-resumed"
SYNCED = "audit_synced"
"""The name under which the database keeps the `End` of the trail."""


@dataclass(frozen=True)
class End:
    """How far the trail was fsynced: the last file's name, and its size in bytes."""

    file: str
    size: int


class AuditTrail:
    """Adds to the trail. Several processes may `record`; one at a time flushes.

    Args:
        database: the spool's.
        folder: where the files are, named by the number of their first line.
        rotate_bytes: a file that has reached it is followed by another.
        on_line: is given every line that was written, in order.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        rotate_bytes: int = 64 << 20,
        on_line: Callable[[dict[str, Any]], None] | None = None,
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
        connection.execute("UPDATE audit_head SET seq = ?, hash = ?", (seq, line_hash(line.encode())))
        return int(seq)

    def note(self, event: str, **fields: object) -> None:
        """Add a line in a transaction of its own, for what changes no object's state.

        Raises:
            GatewayError: the database cannot be written. There is no line then.
        """
        with self._database.write() as connection:
            self.record(connection, event, **fields)

    def flush(self) -> int:
        """Write pending lines to the file, and return how many. They are fsynced when this returns.

        Raises:
            GatewayError: the file or the database cannot be written. The lines stay pending.
        """
        written = 0
        try:
            with self._alone():
                while rows := self._database.read("SELECT seq, line FROM audit_pending ORDER BY seq LIMIT ?", (AT_ONCE,)):
                    pending = [(int(row["seq"]), str(row["line"])) for row in rows]
                    new, end, found = self._append(pending)
                    with self._database.write() as connection:
                        connection.execute("DELETE FROM audit_pending WHERE seq <= ?", (pending[-1][0],))
                        write_meta(connection, SYNCED, json.dumps([end.file, end.size]))
                        if found is not None:
                            self.record(connection, RESUMED, **found)
                    written += len(new)
                    for line in new:
                        if self._on_line is not None:
                            self._on_line(json.loads(line))
        except OSError as error:
            raise GatewayError(f"the audit trail in {self._folder} cannot be written: {error.strerror or error}") from error
        return written

    def _append(self, pending: list[tuple[int, str]]) -> tuple[list[str], End, dict[str, object] | None]:
        """Heal the file's end and write what is not there yet.

        Returns:
            The lines that were written, where the trail ends now, and the fields of `audit-resumed`, if there was anything to heal.
        """
        with self._database.snapshot() as connection:
            known = synced_end(connection)
        path, synced, lost = self._last_file(known, pending[0][0])
        tail = _Tail.read(path, synced, path.stat().st_size, pending)
        new = [line for _, line in pending[tail.whole_lines :]]
        torn = bool(tail.rest or tail.open_end)
        completed = tail.healable and not lost and not tail.open_end
        if new and not torn and not lost and tail.end >= self._rotate_bytes:
            path = self._begin(pending[tail.whole_lines][0])
        if tail.missing.startswith(tail.rest) and not tail.open_end:
            data = tail.missing[len(tail.rest) :]
        elif tail.healable and _cut(path, tail.end):
            data = (b"\n" if tail.open_end else b"") + tail.missing
        else:
            data = (b"" if tail.rest.endswith(b"\n") else b"\n") + tail.missing
            completed = False
        found: dict[str, object] | None = None
        if torn or lost:
            found = {"file": path.name, "torn_bytes": len(tail.rest) or tail.open_end, "lost_bytes": lost, "completed": completed}
        with open(path, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return new, End(path.name, file.tell()), found

    def _last_file(self, known: End | None, first: int) -> tuple[Path, int, int]:
        """Return the file to append to, how many bytes of it were fsynced, and how many fsynced ones are gone."""
        files = trail_files(self._folder)
        last = files[-1] if files else None
        if last is None or (known is not None and last.name < known.file):
            return self._begin(first), 0, known.size if known else 0
        if known is None:
            return last, _end_of_lines_before(last, first), 0
        if last.name > known.file:  # it was begun, and a crash came before its first lines were noted
            return last, 0, 0
        size = last.stat().st_size
        return last, _end_of_lines_before(last, first, min(size, known.size)), max(0, known.size - size)

    def _begin(self, first: int) -> Path:
        """A new file, whose name is on disk."""
        path = self._folder / f"audit-{first:012d}.jsonl"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        sync(self._folder)
        return path

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self._folder / ".lock", "w", encoding="ascii") as lock:
            wait_for_lock(lock.fileno())
            yield


@dataclass(frozen=True)
class _Tail:
    """What lies behind the fsynced part of the last file, held against the lines that wait to be written.

    Attributes:
        end: bytes of the file up to the last whole line that is as it should be.
        whole_lines: how many of the pending lines are there, whole.
        rest: what follows them.
        missing: the pending lines that are not there, as bytes.
        open_end: bytes of a line without an end before `end`: it was damaged after it was fsynced. 0 if there is none.
    """

    end: int
    whole_lines: int
    rest: bytes
    missing: bytes
    open_end: int

    @classmethod
    def read(cls, path: Path, synced: int, size: int, pending: Sequence[tuple[int, str]]) -> _Tail:
        lines = [line.encode() + b"\n" for _, line in pending]
        with open(path, "rb") as file:
            file.seek(synced)
            tail = file.read(max(0, size - synced))
            at = 0
            for count, line in enumerate(lines):  # noqa: B007  # used after the loop
                if tail[at : at + len(line)] != line:
                    break
                at += len(line)
            else:
                count = len(lines)
            end = synced + at
            return cls(end, count, tail[at:], b"".join(lines[count:]), 0 if at else _open_end(file, end))

    @property
    def healable(self) -> bool:
        """Whether `rest` is a torn write of `missing`: each byte is the right one, or NUL."""
        within = zip(self.rest, self.missing, strict=False)
        return all(byte in (0, expected) for byte, expected in within) and not self.rest[len(self.missing) :].strip(b"\0")


def _open_end(file: BinaryIO, end: int) -> int:
    """Bytes between the last newline before `end` and `end`."""
    file.seek(max(0, end - LONGEST_FRAGMENT))
    return len(file.read(min(end, LONGEST_FRAGMENT)).rpartition(b"\n")[2])


def _cut(path: Path, size: int) -> bool:
    """Cut a file off; False where it may only be appended to."""
    try:
        os.truncate(path, size)
    except PermissionError:
        return False
    return True


def _end_of_lines_before(path: Path, first: int, start: int = 0) -> int:
    """Return the byte behind the last line with a number below `first`: these lines do not wait, so they were fsynced.

    With a `start`, which is the end that the database knows, only lines that follow it at once count: an earlier version may have
    written them, which notes no end.
    """
    end = at = start
    with open(path, "rb") as file:
        file.seek(start)
        for raw in file:
            at += len(raw)
            line = parse_line(raw)
            if line is not None and line["seq"] < first:
                end = at
            elif start:
                break
    return end


def synced_end(connection: Connection) -> End | None:
    """Return how far the trail was fsynced; None if nothing was since the spool was made, or by an earlier version."""
    text = read_meta(connection, SYNCED)
    return End(*json.loads(text)) if text else None


@dataclass(frozen=True)
class Problem:
    """What is wrong at one place of the trail.

    Attributes:
        file: its name; "pending lines" and "the end" for what is in no file.
        line: number in the file, from 1.
        what: one sentence.
        byte: where the line begins in the file.
    """

    file: str
    line: int
    what: str
    byte: int = 0


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

    May run while the service does. A torn write that the next `flush` will heal is not a problem.

    Raises:
        GatewayError: the files or the database cannot be read.
    """
    try:
        with _undisturbed(folder), database.snapshot() as connection:
            (head_seq, head_hash) = connection.execute("SELECT seq, hash FROM audit_head").fetchone()
            pending = [(int(row[0]), str(row[1])) for row in connection.execute("SELECT seq, line FROM audit_pending ORDER BY seq")]
            known = synced_end(connection)
            files = [(path, path.stat().st_size) for path in trail_files(folder)]
        chain = _Chain(head_seq, head_hash)
        for path, size in files[:-1]:
            chain.check_file(path, size)
        if files:
            path, size = files[-1]
            first = pending[0][0] if pending else head_seq + 1
            start = 0 if known is None or path.name > known.file else known.size if path.name == known.file else size
            synced = _end_of_lines_before(path, first, min(start, size))
            tail = _Tail.read(path, synced, size, pending)
            chain.check_file(path, tail.end if pending and tail.healable else size)
    except OSError as error:
        raise GatewayError(f"the audit trail in {folder} cannot be read: {error}") from error
    for seq, text in pending:
        if seq > chain.seq:
            chain.check(Place("pending lines", seq, 0), text.encode())
    if chain.seq < head_seq:
        chain.problem(
            Place("the end", chain.seq, 0), f"lines {chain.seq + 1} to {head_seq} are missing: the trail's end was cut off"
        )
    return Verification(max(chain.seq, head_seq), head_hash, tuple(chain.problems[:SHOWN_PROBLEMS]), chain.resumed)


@contextmanager
def _undisturbed(folder: Path) -> Iterator[None]:
    """Keep others from flushing, so that files and database are of one moment."""
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(open(folder / ".lock", "rb"))
        except OSError:  # nobody has flushed yet, or this user may only read the trail
            pass
        else:
            wait_for_lock(lock.fileno(), shared=True)
        yield


@dataclass(frozen=True)
class Place:
    """Where a line is: its file, its number there (from 1), and its first byte."""

    file: str
    line: int
    byte: int


class _Chain:
    """Where a verification stands."""

    def __init__(self, head_seq: int, head_hash: str) -> None:
        self.seq = 0
        self.problems: list[Problem] = []
        self.resumed = 0
        self._hash = GENESIS
        self._head = (head_seq, head_hash)

    def problem(self, place: Place, what: str) -> None:
        self.problems.append(Problem(place.file, place.line, what, place.byte))

    def check_file(self, path: Path, size: int) -> None:
        """Check a file's lines, as far as `size` bytes."""
        at = 0
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                raw = raw[: size - at]
                if not raw:
                    return
                place = Place(path.name, number, at)
                at += len(raw)
                if raw.endswith(b"\n"):
                    self.check(place, raw[:-1])
                else:
                    self.problem(place, f"the line has no end: {describe(raw)}")

    def check(self, place: Place, raw: bytes) -> None:
        line = parse_line(raw)
        if line is None:  # the lines around it may still follow from each other
            self.problem(place, f"this is not a line of an audit trail: {describe(raw)}")
            return
        seq, expected = line["seq"], self.seq + 1
        if seq != expected:
            gone = f"lines {expected} to {seq - 1} are missing" if seq > expected else "it is not where it was written"
            self.problem(place, f"it has number {seq} where {expected} is due: {gone}")
        elif line["previous"] != self._hash:
            self.problem(place, f"it does not follow from the line before: line {seq - 1} or {seq} was changed")
        if seq == self._head[0] and line_hash(raw) != self._head[1]:
            self.problem(place, "it is not the last line that was written: it was changed")
        self.resumed += line.get("event") == RESUMED
        self.seq, self._hash = seq, line_hash(raw)


def parse_line(raw: bytes) -> dict[str, Any] | None:
    """Return the fields of a line of the trail; None if it is not one."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("seq"), int):
        return None
    return line if all(isinstance(line.get(name), str) for name in ("time", "event", "previous")) else None


def describe(raw: bytes) -> str:
    """Say what the bytes of a damaged line are, without quoting them."""
    nul = raw.count(0)
    if nul == len(raw):
        return f"{nul} NUL bytes, as a power cut leaves them"
    return f"{len(raw)} bytes, {nul} of them NUL, as a power cut leaves them" if nul else f"{len(raw)} bytes that cannot be read"


def trail_files(folder: Path) -> list[Path]:
    """The trail's files, oldest first."""
    return sorted(folder.glob("audit-*.jsonl"))


def line_hash(line: bytes) -> str:
    """Return the sha256 (hex) of a line without its newline: the next one's `previous`."""
    return hashlib.sha256(line).hexdigest()
