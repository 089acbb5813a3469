"""Forwarding: what is clear goes to its destinations, as it came. A destination's trouble delays nobody else's objects."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import GatewayError
from .delivery_queue import Deliveries, Delivery
from .json_logging import Log
from .object_files import Measured, measure
from .settings import Destination
from .spool import Item, Spool

__all__ = ["Answer", "Forwarder", "Sender"]

AT_ONCE = 64
"""Objects that are sent over one association."""
POLL_SECONDS = 0.2

log = Log("forward")


@dataclass(frozen=True)
class Answer:
    """What a destination said to an object.

    Attributes:
        taken: it has it.
        status: its code, for the audit trail: "0x0000", "http-200", "no-connection".
        final: trying again is of no use.
    """

    taken: bool
    status: str
    final: bool = False


class Sender(Protocol):
    """Sends objects to one destination."""

    def send(self, objects: Sequence[tuple[Delivery, Path]]) -> Iterator[tuple[Delivery, Answer]]:
        """Send in order, and answer for each. May stop early: what has no answer is tried again."""
        ...


class Forwarder:
    """Sends what is due at one destination, in a thread of its own."""

    def __init__(self, destination: Destination, spool: Spool, sender: Sender) -> None:
        self._destination = destination
        self._spool = spool
        self._deliveries = Deliveries(spool)
        self._sender = sender

    def run(self, stop: threading.Event) -> None:
        """Send until `stop`."""
        log.info("forwarding", destination=self._destination.name, kind=self._destination.kind)
        while not stop.is_set():
            try:
                busy = self.send_due(stop)
            except (GatewayError, OSError) as error:
                log.error("spool-trouble", destination=self._destination.name, error=type(error).__name__)
                busy = 0
                stop.wait(1.0)
            if not busy:
                stop.wait(POLL_SECONDS)

    def send_due(self, stop: threading.Event | None = None) -> int:
        """Send what is due now. Returns how many objects were answered for."""
        due = self._deliveries.due(self._destination.name, AT_ONCE)
        sound = [(delivery, path) for delivery in due if (path := self._sound(delivery))]
        if not sound:
            return len(due)
        answered = 0
        retry = self._spool.settings.retry
        waiting = {delivery.item.id for delivery, _ in sound}
        for delivery, answer in self._sender.send(sound):
            waiting.discard(delivery.item.id)
            answered += 1
            if answer.taken:
                self._deliveries.delivered(delivery, answer.status)
                log.info("forwarded", object=delivery.item.id, destination=self._destination.name, status=answer.status)
            else:
                state = self._deliveries.failed(delivery, answer.status, retry, final=answer.final)
                level = log.error if state == "dead" else log.warning
                level("not-forwarded", object=delivery.item.id, destination=self._destination.name, status=answer.status, now=state)
            if stop is not None and stop.is_set():
                break
        return answered

    def _sound(self, delivery: Delivery) -> Path | None:
        """Where an object's bytes are, if they are still those that were screened; without a preamble that may be a program."""
        path = self._spool.files.path(delivery.item.id)
        try:
            if _is_still(measure(path), delivery.item):
                self._spool.files.clear_preamble(path)
                return path
        except OSError as error:
            log.error("bytes-not-readable", object=delivery.item.id, error=type(error).__name__)
        self._deliveries.changed_on_disk(delivery.item)
        log.error("changed-on-disk", object=delivery.item.id)
        return None


def _is_still(found: Measured, item: Item) -> bool:
    """Whether a file is the object that was screened: its data set, and what its file meta information says that this is."""
    names = [
        (found.sop_class, item.sop_class),
        (found.sop_instance, item.sop_instance),
        (found.transfer_syntax, item.transfer_syntax),
    ]
    return found.data_sha256 == item.data_sha256 and all(now == before.strip("\0 ")[:64] for now, before in names)
