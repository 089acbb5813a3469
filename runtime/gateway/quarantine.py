"""What waits for somebody's decision: listed, looked at, released or discarded, with who did it in the audit trail."""

from __future__ import annotations

import os
import pwd
import socket
import time
from collections.abc import Sequence
from enum import StrEnum

from ..errors import GatewayError
from .spool import Item, Spool, State, plan_deliveries

__all__ = ["Quarantine", "View", "current_user", "this_machine"]

DECIDABLE = (State.QUARANTINED, State.KEPT)


class View(StrEnum):
    """What somebody looks at of an object."""

    DETAILS = "details"
    """Why it is held, where it came from, and the names of gallery images near it."""
    IMAGE = "image"
    """A frame of the object."""
    NEAREST = "nearest"
    """The gallery image nearest to it."""


class Quarantine:
    """The spool's quarantined and kept objects."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def list(self, limit: int = 100, reason: str | None = None, *, kept: bool = False) -> list[Item]:
        """What is in quarantine, the newest first; with `kept`, also what rules keep."""
        return self._spool.list(DECIDABLE if kept else (State.QUARANTINED,), limit, reason)

    def show(self, object_id: str) -> Item:
        """One object. The beginning of its id will do. To be called before `view`, which is to be called before it is shown.

        Raises:
            GatewayError: there is none.
        """
        return self._spool.get(object_id)

    def view(self, items: Sequence[Item], who: str, what: View, *, address: str = "", frame: int | None = None) -> None:
        """Write to the audit trail that somebody looks at objects. To be called before anything of them is shown.

        The lines are in the trail's file, and fsynced, when this returns.

        Args:
            who: the person.
            what: which of the object's data.
            address: where from: an IP address, or a machine's name.
            frame: of the image, from 0.

        Raises:
            GatewayError: the trail cannot be written. Nothing may be shown then.
        """
        if not items:
            return
        with self._spool.database.write() as connection:
            for item in items:
                fields: dict[str, object] = {"what": what.value, "frame": frame}
                near = (item.result.get("nearest") or [None])[0]
                if what is View.NEAREST and near:
                    fields |= {"gallery_image": self._spool.site_key.short("gallery", near["key"]), "frame": near["frame"]}
                self._spool.audit.record(connection, "viewed", **self._spool.subject(item), who=who, address=address, **fields)
        self._spool.audit.flush()

    def release(self, object_id: str, who: str, destinations: Sequence[str] = (), *, address: str = "") -> Item:
        """Have an object forwarded although it was held.

        Args:
            who: the person, for the audit trail.
            destinations: by name; those of the rule that held it, if none are given.
            address: where from, for the audit trail.

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
                **self._spool.subject(item),
                who=who,
                address=address,
                reason=item.reason,
                destinations=list(wanted),
            )
        return self._spool.get(item.id)

    def discard(self, object_id: str, who: str, *, address: str = "") -> Item:
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
                **self._spool.subject(item),
                who=who,
                address=address,
                reason=item.reason,
            )
        self._spool.files.remove([item.id], for_good=True)
        return self._spool.get(item.id)

    def _check_held(self, item: Item) -> None:
        if item.state not in DECIDABLE:
            raise GatewayError(f"{item.id} is {item.state}, not in quarantine")
        if not self._spool.files.path(item.id).exists():
            raise GatewayError(f"the bytes of {item.id} are gone: it can only be discarded")

    def screen_again(self, object_id: str, who: str, *, address: str = "") -> None:
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
            self._spool.audit.record(
                connection, "screen-again", **self._spool.subject(item), who=who, address=address, reason=item.reason
            )


def current_user() -> str:
    """Who runs this process, for the audit trail; with sudo, who is behind it."""
    name = pwd.getpwuid(os.getuid()).pw_name
    behind = os.environ.get("SUDO_USER")
    return f"{name} (sudo: {behind})" if behind and behind != name else name


def this_machine() -> str:
    """This machine's name, for the audit trail: where a command was run."""
    return socket.gethostname()
