"""What waits for somebody's decision: listed, looked at, released or discarded, with who did it in the audit trail."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Sequence

from ..errors import GatewayError
from .spool import Item, Spool, State, plan_deliveries

__all__ = ["Quarantine", "current_user"]

DECIDABLE = (State.QUARANTINED, State.KEPT)


class Quarantine:
    """The spool's quarantined and kept objects."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def list(self, limit: int = 100, reason: str | None = None, *, kept: bool = False) -> list[Item]:
        """What is in quarantine, the newest first; with `kept`, also what rules keep."""
        return self._spool.list(DECIDABLE if kept else (State.QUARANTINED,), limit, reason)

    def show(self, object_id: str) -> Item:
        """One object. The beginning of its id will do.

        Raises:
            GatewayError: there is none.
        """
        return self._spool.get(object_id)

    def release(self, object_id: str, who: str, destinations: Sequence[str] = ()) -> Item:
        """Have an object forwarded although it was held.

        Args:
            who: the person, for the audit trail.
            destinations: by name; those of the rule that held it, if none are given.

        Raises:
            GatewayError: there is no such object, it is not in quarantine, its bytes are gone, or no rule says where to.
        """
        item = self._spool.get(object_id)
        known = {destination.name for destination in self._spool.settings.destination}
        rule = next((rule for rule in self._spool.settings.rule if rule.name == item.rule), None)
        wanted = tuple(destinations) or (rule.forward_to if rule else ())
        if not wanted:
            raise GatewayError(
                f"no rule says where {item.id} should go: give a destination ({', '.join(sorted(known)) or 'none known'})"
            )
        if unknown := set(wanted) - known:
            raise GatewayError(f"there is no destination {min(unknown)!r}; known are {', '.join(sorted(known)) or 'none'}")
        self._check_held(item)
        with self._spool.database.write() as connection:
            changed = connection.execute(
                "UPDATE objects SET state = ?, changed = ? WHERE id = ? AND state IN (?, ?)",
                (State.SCREENED, time.time(), item.id, *DECIDABLE),
            ).rowcount
            if not changed:
                raise GatewayError(f"{item.id} is {self._spool.get(item.id).state}, not in quarantine: it cannot be released")
            plan_deliveries(connection, item.id, wanted)
            self._spool.audit.record(
                connection,
                "released",
                object=item.id,
                who=who,
                reason=item.reason,
                destinations=list(wanted),
                sop_instance=self._spool.pseudonyms.of("uid", item.sop_instance),
            )
        return self._spool.get(item.id)

    def discard(self, object_id: str, who: str) -> Item:
        """Remove an object's bytes for good. That it was there, and who discarded it, stays in the audit trail.

        Raises:
            GatewayError: there is no such object, or it is neither in quarantine, kept nor dead.
        """
        item = self._spool.get(object_id)
        with self._spool.database.write() as connection:
            changed = connection.execute(
                "UPDATE objects SET state = ?, changed = ?, result = NULL WHERE id = ? AND state IN (?, ?, ?)",
                (State.DISCARDED, time.time(), item.id, *DECIDABLE, State.DEAD),
            ).rowcount
            if not changed:
                raise GatewayError(f"{item.id} is {self._spool.get(item.id).state}: only what is held can be discarded")
            connection.execute("DELETE FROM deliveries WHERE object = ?", (item.id,))
            self._spool.audit.record(
                connection,
                "discarded",
                object=item.id,
                who=who,
                reason=item.reason,
                sop_instance=self._spool.pseudonyms.of("uid", item.sop_instance),
            )
        self._spool.files.remove([item.id], for_good=True)
        return self._spool.get(item.id)

    def _check_held(self, item: Item) -> None:
        if item.state not in DECIDABLE:
            raise GatewayError(f"{item.id} is {item.state}, not in quarantine")
        if not self._spool.files.path(item.id).exists():
            raise GatewayError(f"the bytes of {item.id} are gone: it can only be discarded")

    def screen_again(self, object_id: str, who: str) -> None:
        """Put an object back before the screening: the index was missing, say, and is there now.

        Raises:
            GatewayError: there is no such object, it is not in quarantine, or its bytes are gone.
        """
        item = self._spool.get(object_id)
        self._check_held(item)
        with self._spool.database.write() as connection:
            changed = connection.execute(
                "UPDATE objects SET state = ?, changed = ?, suspect = 0, interrupted = 0, verdict = NULL, reason = NULL,"
                " result = NULL WHERE id = ? AND state IN (?, ?)",
                (State.RECEIVED, time.time(), item.id, *DECIDABLE),
            ).rowcount
            if not changed:
                raise GatewayError(f"{item.id} is {item.state}, not in quarantine: it cannot be screened again")
            self._spool.audit.record(connection, "screen-again", object=item.id, who=who, reason=item.reason)


def current_user() -> str:
    """Who runs this process, for the audit trail; with sudo, who is behind it."""
    name = pwd.getpwuid(os.getuid()).pw_name
    behind = os.environ.get("SUDO_USER")
    return f"{name} (sudo: {behind})" if behind and behind != name else name
