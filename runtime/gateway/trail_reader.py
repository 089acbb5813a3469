"""The audit trail, followed: line after line as they come, over rotations and past damage, from where reading stopped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import GatewayError
from .audit_trail import End, describe, line_hash, parse_line, synced_end, trail_files
from .database import Database

__all__ = ["Damage", "Line", "Position", "TrailReader"]

LONGEST_LINE = 1 << 20
"""Bytes of a line that are read. No line of ours is nearly so long; what is longer is damage."""


@dataclass(frozen=True)
class Position:
    """Where reading goes on.

    Attributes:
        seq: number of the last line that was read.
        file, byte, line: where the next line begins: the file's name, the offset in it, its number there (from 1). `file` is ""
            where this is not known; then the line after `seq` is looked for.
    """

    seq: int = 0
    file: str = ""
    byte: int = 0
    line: int = 1


@dataclass(frozen=True)
class Line:
    """A whole line.

    Attributes:
        fields: as written.
        hash: sha256 (hex) of its text.
        after: where reading goes on behind it.
    """

    fields: dict[str, Any]
    hash: str
    after: Position


@dataclass(frozen=True)
class Damage:
    """What is not a line, or a line that is missing or not in its place. Of the last the `Line` follows all the same.

    Attributes:
        at: where it begins.
        lines: how many lines of the file it takes; 0 where it stands before a `Line`.
        what: one sentence, without a quote.
        after: where reading goes on behind it.
    """

    at: Position
    lines: int
    what: str
    after: Position


class TrailReader:
    """Reads the trail's lines in order, as far as they were fsynced: what a power cut may still take is not read.

    Args:
        database: the spool's.
        folder: the trail's.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder

    def read(self, position: Position, limit: int) -> Iterator[Line | Damage]:
        """Yield what follows a position, at most `limit` lines of files. Damaged lines that follow each other are one `Damage`.

        Raises:
            GatewayError: the trail or the database cannot be read.
        """
        with self._database.snapshot() as connection:
            end = synced_end(connection)
            (head,) = connection.execute("SELECT seq FROM audit_head").fetchone()
        if end is None:
            return
        try:
            position = self._found(position)
            damage: Damage | None = None
            for found in self._entries(position, end, head, limit):
                if isinstance(found, Damage) and found.lines:
                    joins = damage is not None and damage.after.file == found.at.file
                    damage = _joined(damage, found) if damage is not None and joins else found
                    continue
                if damage is not None:
                    yield damage
                    damage = None
                yield found
            if damage is not None:
                yield damage
        except OSError as error:
            raise GatewayError(f"the audit trail in {self._folder} cannot be read: {error.strerror or error}") from error

    def _entries(self, position: Position, last: End, head: int, limit: int) -> Iterator[Line | Damage]:
        taken = 0
        for path in [path for path in trail_files(self._folder) if position.file <= path.name <= last.file]:
            if path.name != position.file:
                position = Position(position.seq, path.name)
            end = last.size if path.name == last.file else path.stat().st_size
            with open(path, "rb") as file:
                file.seek(position.byte)
                while position.byte < end and taken < limit:
                    raw = file.readline(min(LONGEST_LINE, end - position.byte))
                    if not raw:
                        break
                    taken += 1
                    for found in _read(raw, position, head):
                        position = found.after
                        yield found
            if taken >= limit:
                return

    def _found(self, position: Position) -> Position:
        """The position itself, if there is such a place; else the one behind the line that was read last."""
        files = trail_files(self._folder)
        known = next((path for path in files if path.name == position.file), None)
        if known is not None and known.stat().st_size >= position.byte:
            return position
        begun = [path for path in files if int(path.stem.rpartition("-")[2]) <= position.seq + 1]
        if not begun:
            return Position(position.seq, files[0].name) if files else position
        found = Position(position.seq, begun[-1].name)
        at, number = 0, 1
        with open(begun[-1], "rb") as file:
            for raw in file:
                at, number = at + len(raw), number + 1
                line = parse_line(raw)
                if line is not None and line["seq"] <= position.seq:
                    found = Position(position.seq, begun[-1].name, at, number)
        return found


def _read(raw: bytes, position: Position, head: int) -> Iterator[Line | Damage]:
    """What a line's bytes are: a line, damage, or a line out of its place. `head` is the last line's number."""
    after = replace(position, byte=position.byte + len(raw), line=position.line + raw.endswith(b"\n"))
    fields = parse_line(raw) if raw.endswith(b"\n") else None
    if fields is None:
        yield Damage(position, 1, f"not a line of the trail: {describe(raw)}", after)
        return
    seq, due = fields["seq"], position.seq + 1
    if not 0 < seq <= head:
        yield Damage(position, 1, f"a line with number {seq}, where {due} is due and {head} is the last that was written", after)
        return
    if seq < due:
        yield Damage(position, 0, f"line {seq}, where line {due} is due", position)
    elif seq > due and position.seq:
        yield Damage(position, 0, f"lines {due} to {seq - 1} are missing", replace(position, seq=seq - 1))
    yield Line(fields, line_hash(raw[:-1]), replace(after, seq=max(seq, position.seq)))


def _joined(first: Damage, second: Damage) -> Damage:
    lines = first.lines + second.lines
    return Damage(
        first.at, lines, f"{lines} lines that are not the trail's, {second.after.byte - first.at.byte} bytes", second.after
    )
