"""What is to be forwarded, to whom, and when it is tried again."""

from __future__ import annotations

import random
import time
import urllib.parse
from dataclasses import dataclass

from ..errors import GatewayError
from .outcome import Cause
from .settings import Retry
from .spool import Item, Spool, State, count_event, plan_deliveries

__all__ = ["Deliveries", "Delivery", "wait_before"]


@dataclass(frozen=True)
class Delivery:
    """An object that is due at a destination; `attempts` have failed."""

    item: Item
    destination: str
    attempts: int


class Deliveries:
    """The spool's deliveries. One process sends to a destination at a time."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def due(self, destination: str, limit: int) -> list[Delivery]:
        """What is due there, oldest first."""
        rows = self._spool.database.read(
            "SELECT objects.*, deliveries.attempts FROM deliveries JOIN objects ON objects.id = deliveries.object"
            " WHERE deliveries.state = 'pending' AND destination = ? AND due <= ? ORDER BY objects.number LIMIT ?",
            (destination, time.time(), limit),
        )
        return [Delivery(Item.of(row), destination, row["attempts"]) for row in rows]

    def pending(self) -> dict[str, int]:
        """How many wait for each destination."""
        return {
            row[0]: row[1]
            for row in self._spool.database.read(
                "SELECT destination, count(*) FROM deliveries WHERE state = 'pending' GROUP BY destination"
            )
        }

    def failures(self, object_id: str) -> list[tuple[str, str, int, str | None]]:
        """An object's deliveries: destination, state, failed attempts, the last failure."""
        return [
            (row["destination"], row["state"], row["attempts"], row["failure"])
            for row in self._spool.database.read("SELECT * FROM deliveries WHERE object = ?", (object_id,))
        ]

    def delivered(self, delivery: Delivery, status: str) -> None:
        """A destination has an object. When all have it, its bytes go."""
        item = delivery.item
        with self._spool.database.write() as connection:
            done = connection.execute(
                "UPDATE deliveries SET state = 'done', failure = NULL WHERE object = ? AND destination = ? AND state = 'pending'",
                (item.id, delivery.destination),
            ).rowcount
            if not done:
                return  # it was discarded, or quarantined, while it was being sent
            open_ones = connection.execute(
                "SELECT state FROM deliveries WHERE object = ? AND state != 'done'", (item.id,)
            ).fetchall()
            ended = not open_ones
            if ended:
                connection.execute(
                    "UPDATE objects SET state = ?, changed = ?, result = NULL WHERE id = ?", (State.FORWARDED, time.time(), item.id)
                )
                count_event(connection, "forwarded")
            self._spool.audit.record(
                connection,
                "forwarded",
                **self._spool.subject(item),
                destination=delivery.destination,
                address=self._address(delivery.destination),
                status=status,
                attempts=delivery.attempts + 1,
                seconds_since_arrival=round(time.time() - item.arrived, 3),
            )
        if ended:
            self._spool.files.remove([item.id])

    def failed(self, delivery: Delivery, failure: str, retry: Retry, *, final: bool = False) -> State:
        """A destination did not take an object: it is tried again later, or dead after too many attempts.

        Args:
            failure: a code and status, nothing of the object's.
            final: trying again is of no use.
        """
        attempts = delivery.attempts + 1
        dead = final or attempts >= retry.attempts
        with self._spool.database.write() as connection:
            waited = connection.execute(
                "UPDATE deliveries SET state = ?, attempts = ?, due = ?, failure = ?"
                " WHERE object = ? AND destination = ? AND state = 'pending'",
                (
                    "dead" if dead else "pending",
                    attempts,
                    time.time() + wait_before(attempts, retry),
                    failure,
                    delivery.item.id,
                    delivery.destination,
                ),
            ).rowcount
            count_event(connection, "forward-failed")
            if not waited:  # it was discarded, or quarantined, while it was being sent: it stays that
                row = connection.execute("SELECT state FROM objects WHERE id = ?", (delivery.item.id,)).fetchone()
                return State(row["state"]) if row else State.DISCARDED
            if not dead:
                return State.SCREENED
            connection.execute(
                "UPDATE objects SET state = ?, changed = ? WHERE id = ?", (State.DEAD, time.time(), delivery.item.id)
            )
            self._spool.audit.record(
                connection,
                "dead",
                **self._spool.subject(delivery.item),
                destination=delivery.destination,
                address=self._address(delivery.destination),
                attempts=attempts,
                failure=failure,
            )
        return State.DEAD

    def changed_on_disk(self, item: Item) -> None:
        """An object is no longer what was screened: it goes nowhere."""
        with self._spool.database.write() as connection:
            self._spool.quarantine_now(connection, item, Cause.CHANGED_ON_DISK)

    def _address(self, destination: str) -> str:
        """The host that a destination's name stands for, for the audit trail."""
        known = next((one for one in self._spool.settings.destination if one.name == destination), None)
        return "" if known is None else known.host or urllib.parse.urlsplit(known.url).hostname or ""

    def requeue(self, object_id: str, who: str, *, address: str = "") -> None:
        """Try a dead object again, at the destinations that did not take it.

        Raises:
            GatewayError: it is not dead.
        """
        item = self._spool.get(object_id)
        with self._spool.database.write() as connection:
            waiting = connection.execute(
                "UPDATE objects SET state = ?, changed = ? WHERE id = ? AND state = ?",
                (State.SCREENED, time.time(), item.id, State.DEAD),
            ).rowcount
            if not waiting:
                raise GatewayError(f"{item.id} is {item.state}, not dead: there is nothing to try again")
            dead = [
                row[0]
                for row in connection.execute("SELECT destination FROM deliveries WHERE object = ? AND state = 'dead'", (item.id,))
            ]
            plan_deliveries(connection, item.id, dead)
            self._spool.audit.record(
                connection, "requeued", **self._spool.subject(item), who=who, address=address, destinations=dead
            )


def wait_before(attempt: int, retry: Retry) -> float:
    """Seconds before the next attempt after `attempt` have failed.

    Twice as long each time, up to a bound, less up to a half, so that what failed together is not tried again together.
    """
    longest = min(retry.longest_seconds, retry.first_seconds * 2.0 ** min(attempt - 1, 60))
    return longest * random.uniform(0.5, 1.0)
