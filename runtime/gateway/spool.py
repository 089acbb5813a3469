"""The spool: objects on disk and their states in SQLite. An object that `put` has returned for survives whatever comes.

    received ──► screened ──► forwarded        a verdict let it go · every destination has it
        │            └──────► dead             a destination would not have it: until `gateway requeue`
        ├──────────► kept                      a rule keeps it
        ├──────────► quarantined ──► screened (released) or discarded
        └──────────► answered                  of POST /v1/screen: asked about, and gone

Each change of state is a transaction that also holds its line of the audit trail. Bytes are removed after the transaction that
ends their use, so that a crash leaves too much on disk, never too little; `recover` cleans up.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import GatewayError
from ..privacy import read_site_key
from .audit_trail import AuditTrail
from .database import Connection, Database, Row
from .object_files import Measured, ObjectFiles, TooLargeError, measure
from .outcome import Cause, Outcome
from .settings import Settings

__all__ = ["Arrival", "Item", "Source", "Spool", "SpoolFullError", "State", "Stored", "TooLargeError"]

INTERRUPTIONS = 5
"""Service deaths during an object's screening after which it is screened alone: it may be their cause."""
ANSWERS_KEPT = 3600.0
"""Seconds that an answer waits for the one who asked."""
DAY = 86400.0
_OF_THE_STANDARD = re.compile(r"1\.2\.840\.10008(\.(0|[1-9][0-9]*))+")


class SpoolFullError(GatewayError):
    """The disk is above its watermark; nothing is taken in."""


class State(StrEnum):
    RECEIVED = "received"
    SCREENED = "screened"
    FORWARDED = "forwarded"
    KEPT = "kept"
    QUARANTINED = "quarantined"
    DISCARDED = "discarded"
    DEAD = "dead"
    ANSWERED = "answered"


WITHOUT_BYTES = (State.FORWARDED, State.DISCARDED, State.ANSWERED)


class Source(StrEnum):
    """The ways in. Objects of `screen` are asked about, and go nowhere."""

    C_STORE = "c-store"
    FOLDER = "folder"
    STOW = "stow"
    SCREEN = "screen"


@dataclass(frozen=True)
class Arrival:
    """How an object came.

    Attributes:
        calling_aet: who sent it: an AE title, a watched folder's name, an HTTP caller's name.
        address: of the sender.
        sop_class, sop_instance, transfer_syntax: as the sender declared them (C-STORE); "" takes the file's own.
    """

    source: Source
    calling_aet: str = ""
    called_aet: str = ""
    address: str = ""
    sop_class: str = ""
    sop_instance: str = ""
    transfer_syntax: str = ""


@dataclass(frozen=True)
class Stored:
    """What `put` did: an object that was there already is `known`, and has the state it has come to."""

    id: str
    state: State
    known: bool


@dataclass(frozen=True)
class Item:
    """An object in the spool, as its row says. UIDs are raw: not for logs."""

    id: str
    state: State
    source: Source
    calling_aet: str
    called_aet: str
    address: str
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    data_sha256: str
    file_sha256: str
    bytes: int
    arrived: float
    changed: float
    rule: str | None
    verdict: str | None
    reason: str | None
    result: dict[str, Any]
    suspect: int

    @classmethod
    def of(cls, row: Row) -> Item:
        values: dict[str, Any] = {name: row[name] for name in cls.__dataclass_fields__}
        values |= {
            "state": State(row["state"]),
            "source": Source(row["source"]),
            "result": json.loads(row["result"]) if row["result"] else {},
        }
        return cls(**values)


class Spool:
    """The spool of one gateway. Safe for threads; several processes may have it open.

    Args:
        settings: the gateway's.
        create: make it, if it is not there.

    Raises:
        GatewayError: it cannot be opened, or the site key cannot be read.
    """

    def __init__(self, settings: Settings, *, create: bool = True) -> None:
        self.settings = settings
        self.site_key = read_site_key(settings.site_key)
        if create:
            settings.spool.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.database = Database(settings.spool.folder / "spool.sqlite", create=create)
        self.files = ObjectFiles(settings.spool.folder)
        self.audit = AuditTrail(self.database, settings.audit_folder, settings.audit.rotate_mb << 20)

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- in --------------------------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether the disk is below its watermark."""
        return self.files.free_bytes() >= self.settings.spool.min_free_mb << 20

    def put_stream(self, stream: BinaryIO, arrival: Arrival, max_bytes: int) -> Stored:
        """Take in a DICOM file (PS3.10). See `put_file`.

        Raises:
            SpoolFullError, GatewayError: as `put_file`. TooLargeError: it has more than `max_bytes`.
            OSError: the stream cannot be read.
        """
        if not self.has_room():
            raise SpoolFullError(f"less than {self.settings.spool.min_free_mb} MB are free in {self.settings.spool.folder}")
        path = self.files.copy(stream, max_bytes)
        try:
            return self.put_file(path, arrival)
        finally:
            path.unlink(missing_ok=True)

    def put_file(self, received: Path, arrival: Arrival) -> Stored:
        """Take in a whole file that lies in `files.incoming` and that nobody else writes to. It, its name and its row are on disk
        when this returns. The caller removes `received`.

        Raises:
            SpoolFullError: the disk is above its watermark. GatewayError: it cannot be written. Either way nothing was taken in.
        """
        if not self.has_room():
            raise SpoolFullError(f"less than {self.settings.spool.min_free_mb} MB are free in {self.settings.spool.folder}")
        object_id = self.files.new_id()
        try:
            measured = measure(received)
            if arrival.source is not Source.SCREEN and (known := self._known(arrival, measured)):
                return known
            self.files.adopt(received, object_id)
        except OSError as error:
            raise GatewayError(f"the spool cannot be written: {error.strerror or error}") from error
        try:
            with self.database.write() as connection:
                if self._insert(connection, object_id, arrival, measured):
                    return Stored(object_id, State.RECEIVED, known=False)
        except BaseException:
            self.files.remove([object_id])
            raise
        self.files.remove([object_id])  # another association was quicker with the same object
        known = self._known(arrival, measured)
        if known is None:
            raise GatewayError("the object was there, and is gone: send it again")
        return known

    def _insert(self, connection: Connection, object_id: str, arrival: Arrival, measured: Measured) -> bool:
        now = time.time()
        sop_instance, sop_class, transfer_syntax = _identity(arrival, measured)
        values = {
            "id": object_id,
            "sop_instance": sop_instance,
            "sop_class": sop_class,
            "transfer_syntax": transfer_syntax,
            "data_sha256": measured.data_sha256,
            "file_sha256": measured.file_sha256,
            "bytes": measured.bytes,
            "source": arrival.source.value,
            "calling_aet": arrival.calling_aet,
            "called_aet": arrival.called_aet,
            "address": arrival.address,
            "arrived": now,
            "changed": now,
            "state": State.RECEIVED.value,
            "ask": object_id if arrival.source == Source.SCREEN else "",
        }
        names = ", ".join(values)
        done = connection.execute(
            f"INSERT INTO objects ({names}) VALUES ({', '.join('?' * len(values))}) ON CONFLICT DO NOTHING", tuple(values.values())
        )
        if done.rowcount != 1:
            return False
        count_event(connection, f"received.{arrival.source}")
        self.audit.record(
            connection,
            "received",
            object=object_id,
            source=arrival.source.value,
            calling_aet=arrival.calling_aet,
            address=arrival.address,
            sop_instance=self.site_key.short("uid", sop_instance),
            sop_class=_public_class(sop_class),
            input_sha256=measured.file_sha256,
            data_sha256=measured.data_sha256,
            bytes=measured.bytes,
        )
        return True

    def _known(self, arrival: Arrival, measured: Measured) -> Stored | None:
        sop_instance, _, transfer_syntax = _identity(arrival, measured)
        rows = self.database.read(
            "SELECT id, state FROM objects WHERE sop_instance = ? AND data_sha256 = ? AND transfer_syntax = ? AND ask = ''",
            (sop_instance, measured.data_sha256, transfer_syntax),
        )
        return Stored(rows[0]["id"], State(rows[0]["state"]), known=True) if rows else None

    # -- screening -------------------------------------------------------------------------------------------------

    def claim(self, claimed_by: str, limit: int) -> list[Item]:
        """Objects to screen, oldest first: up to `limit`, or one that is under suspicion, by itself."""
        waiting = "SELECT * FROM objects WHERE state = ? AND claimed_by IS NULL AND suspect"
        rows = self.database.read(f"{waiting} = 0 ORDER BY number LIMIT ?", (State.RECEIVED, limit))
        rows = rows or self.database.read(f"{waiting} > 0 ORDER BY number LIMIT 1", (State.RECEIVED,))
        if not rows:
            return []
        with self.database.write() as connection:
            now = time.time()
            won = [
                row
                for row in rows
                if connection.execute(
                    "UPDATE objects SET claimed_by = ?, claimed = ? WHERE id = ? AND state = ? AND claimed_by IS NULL",
                    (claimed_by, now, row["id"], State.RECEIVED),
                ).rowcount
            ]
        return [Item.of(row) for row in won]

    def settle(self, item: Item, outcome: Outcome) -> State:
        """Write down what became of a received object. Does nothing if it has been settled already, and returns its state."""
        with self.database.write() as connection:
            state = self._settle(connection, item, outcome)
        if state in WITHOUT_BYTES:
            self.files.remove([item.id])
        return state

    def _settle(self, connection: Connection, item: Item, outcome: Outcome) -> State:
        row = connection.execute("SELECT state, claimed_by FROM objects WHERE id = ?", (item.id,)).fetchone()
        if row is None or row["state"] != State.RECEIVED:
            return State(row["state"]) if row else State.DISCARDED
        state = State.ANSWERED if item.source == Source.SCREEN else _STATE_OF[outcome.action]
        now = time.time()
        connection.execute(
            "UPDATE objects SET state = ?, changed = ?, rule = ?, verdict = ?, reason = ?, result = ?, claimed_by = NULL,"
            " claimed = NULL WHERE id = ?",
            (state, now, outcome.rule, outcome.verdict, outcome.reason, json.dumps(outcome.for_spool(self.site_key)), item.id),
        )
        if row["claimed_by"]:
            # The others of this batch have their whole time before them: it counts from here.
            connection.execute("UPDATE objects SET claimed = ? WHERE claimed_by = ?", (now, row["claimed_by"]))
        if state is State.SCREENED:
            plan_deliveries(connection, item.id, outcome.destinations)
        count_event(connection, f"verdict.{outcome.verdict}")
        self.audit.record(
            connection,
            "screened",
            object=item.id,
            state=state.value,
            sop_instance=self.site_key.short("uid", item.sop_instance),
            sop_class=_public_class(item.sop_class),
            calling_aet=item.calling_aet,
            input_sha256=item.file_sha256,
            **outcome.for_audit(self.site_key),
        )
        return state

    def mark_crashed(self, claimed_by: str, cause: Cause) -> None:
        """Mark the objects that a screening process had claimed when it died or was ended.

        Each is screened again, alone. One that was alone already is quarantined with `cause`.
        """
        for row in self.database.read("SELECT * FROM objects WHERE claimed_by = ? AND state = ?", (claimed_by, State.RECEIVED)):
            if row["suspect"]:
                self.settle(Item.of(row), Outcome("error", cause, "quarantine"))
            else:
                with self.database.write() as connection:
                    connection.execute(
                        "UPDATE objects SET suspect = 1, claimed_by = NULL, claimed = NULL WHERE id = ?", (row["id"],)
                    )

    def unclaim(self, claimed_by: str) -> None:
        """Give back what an orderly stop left unscreened."""
        with self.database.write() as connection:
            connection.execute("UPDATE objects SET claimed_by = NULL, claimed = NULL WHERE claimed_by = ?", (claimed_by,))

    def overdue(self, seconds: float) -> set[str]:
        """Return the names under which objects have been claimed for longer than that."""
        limit = time.time() - seconds
        rows = self.database.read("SELECT claimed_by FROM objects WHERE claimed_by IS NOT NULL AND claimed < ?", (limit,))
        return {row[0] for row in rows}

    def subject(self, item: Item) -> dict[str, str]:
        """Return the fields of an audit line that say which object it is about: ids of the gateway's own, and pseudonyms."""
        fields = {
            "object": item.id,
            "sop_instance": self.site_key.short("uid", item.sop_instance),
            "sop_class": _public_class(item.sop_class),
            "study": str(item.result.get("study") or ""),
            "patient": str(item.result.get("patient") or ""),
        }
        return {name: value for name, value in fields.items() if value}

    # -- looking ---------------------------------------------------------------------------------------------------

    def get(self, object_id: str) -> Item:
        """An object's row.

        Raises:
            GatewayError: there is none with this id. The beginning of an id will do, if it is the only one.
        """
        if not object_id or set(object_id) - set("0123456789abcdef"):
            raise GatewayError(f"{object_id[:40]!r} is no object's id: hexadecimal digits")
        rows = self.database.read("SELECT * FROM objects WHERE id >= ? AND id < ? LIMIT 2", (object_id, object_id + "g"))
        if len(rows) != 1:
            raise GatewayError(f"{'no object has' if not rows else 'several objects have'} an id that begins with {object_id}")
        return Item.of(rows[0])

    def list(self, states: Iterable[State], limit: int = 100, reason: str | None = None) -> list[Item]:
        """Objects in any of these states, the last changed first."""
        wanted = [state.value for state in states]
        rows = self.database.read(
            f"SELECT * FROM objects WHERE state IN ({', '.join('?' * len(wanted))}) AND (? IS NULL OR reason = ?)"
            " ORDER BY changed DESC LIMIT ?",
            (*wanted, reason, reason, limit),
        )
        return [Item.of(row) for row in rows]

    def counts(self) -> dict[State, int]:
        """How many objects are in each state."""
        found = {row[0]: row[1] for row in self.database.read("SELECT state, count(*) FROM objects GROUP BY state")}
        return {state: found.get(state.value, 0) for state in State}

    def counters(self) -> dict[str, int]:
        """What happened since the spool was made: `received.c-store`, `verdict.match`, `forwarded`, ..."""
        return {row[0]: row[1] for row in self.database.read("SELECT name, value FROM counters")}

    def oldest_waiting(self) -> float | None:
        """When the object arrived that waits longest for its screening; None if none does."""
        rows = self.database.read("SELECT arrived FROM objects WHERE state = ? ORDER BY number LIMIT 1", (State.RECEIVED,))
        return float(rows[0][0]) if rows else None

    # -- housekeeping ----------------------------------------------------------------------------------------------

    def recover(self) -> dict[str, int]:
        """At a start, while no worker runs: take up what the last run left. Returns what was found, for the log."""
        removed = self.files.clear_incoming()
        with self.database.write() as connection:
            interrupted = connection.execute(
                "UPDATE objects SET interrupted = interrupted + 1, claimed_by = NULL, claimed = NULL,"
                " suspect = max(suspect, interrupted + 1 > ?) WHERE claimed_by IS NOT NULL",
                (INTERRUPTIONS,),
            ).rowcount
        rows = self.database.read("SELECT id, state FROM objects")
        there = self.files.ids()
        ended = {row["id"] for row in rows if row["state"] in WITHOUT_BYTES}
        orphans = (there - {row["id"] for row in rows}) | (there & ended)
        if orphans:
            self.files.remove(orphans)
        missing = [row["id"] for row in rows if row["id"] not in ended and row["id"] not in there]
        for object_id in missing:
            self._lost(object_id)
        found = {"unfinished": removed, "interrupted": interrupted, "orphans": len(orphans), "missing": len(missing)}
        return found | {"without_destination": self._hold_what_nobody_sends()}

    def _hold_what_nobody_sends(self) -> int:
        """What waits for a destination that the configuration lacks would wait for ever, and nobody could decide about it."""
        known = [destination.name for destination in self.settings.destination]
        rows = self.database.read(
            "SELECT * FROM objects WHERE id IN (SELECT object FROM deliveries WHERE state != 'done' AND destination NOT IN"
            f" ({', '.join('?' * len(known))}))",
            tuple(known),
        )
        for row in rows:
            with self.database.write() as connection:
                self.quarantine_now(connection, Item.of(row), Cause.NO_DESTINATION)
        return len(rows)

    def _lost(self, object_id: str) -> None:
        item = self.get(object_id)
        if item.source is Source.SCREEN:
            self.settle(item, Outcome("error", Cause.BYTES_MISSING, "quarantine"))
            return
        with self.database.write() as connection:
            self.quarantine_now(connection, item, Cause.BYTES_MISSING)

    def quarantine_now(self, connection: Connection, item: Item, cause: Cause) -> None:
        """Put an object into quarantine whatever its state, and call off its deliveries."""
        connection.execute("DELETE FROM deliveries WHERE object = ?", (item.id,))
        connection.execute(
            "UPDATE objects SET state = ?, reason = ?, changed = ?, claimed_by = NULL, claimed = NULL WHERE id = ?",
            (State.QUARANTINED, cause, time.time(), item.id),
        )
        self.audit.record(connection, "quarantined", **self.subject(item), reason=cause.value, was=item.state.value)

    def forget(self) -> int:
        """Drop the rows of objects that have long been forwarded, discarded or answered. Returns how many."""
        now = time.time()
        long_ago = now - self.settings.spool.remember_days * DAY
        with self.database.write() as connection:
            return connection.execute(
                "DELETE FROM objects WHERE (state IN (?, ?) AND changed < ?) OR (state = ? AND changed < ?)",
                (State.FORWARDED, State.DISCARDED, long_ago, State.ANSWERED, now - ANSWERS_KEPT),
            ).rowcount

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        with self.database.write() as connection:
            count_event(connection, name, by)


_STATE_OF = {"forward": State.SCREENED, "keep": State.KEPT, "quarantine": State.QUARANTINED}


def plan_deliveries(connection: Connection, object_id: str, destinations: Iterable[str]) -> None:
    """Have an object forwarded, from now on."""
    connection.executemany(
        "INSERT INTO deliveries (object, destination, state, due) VALUES (?, ?, 'pending', ?)"
        " ON CONFLICT (object, destination) DO UPDATE SET state = 'pending', attempts = 0, due = excluded.due",
        [(object_id, destination, time.time()) for destination in destinations],
    )


def _public_class(sop_class: str) -> str:
    """A SOP class of the standard's; a private one may name a product, a site or a person."""
    return sop_class if _OF_THE_STANDARD.fullmatch(sop_class) else "private"


def _identity(arrival: Arrival, measured: Measured) -> tuple[str, str, str]:
    return (
        arrival.sop_instance or measured.sop_instance,
        arrival.sop_class or measured.sop_class,
        arrival.transfer_syntax or measured.transfer_syntax,
    )


def count_event(connection: Connection, name: str, by: int = 1) -> None:
    connection.execute(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value", (name, by)
    )
