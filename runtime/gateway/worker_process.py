"""A worker of the gateway as a process: what it is told on stdin, what its run function gets, and its threads."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from .json_logging import Log
from .settings import Settings

__all__ = ["GRACE_SECONDS", "Order", "Part", "Threads", "read_order", "write_order"]

GRACE_SECONDS = 10.0
"""For a part to end by itself when the service has died or asks it to."""


@dataclass(frozen=True)
class Order:
    """What a part's process is told: which part it is, the settings, and the name under which it claims objects."""

    name: str
    settings: Settings
    owner: str


@dataclass
class Part:
    """A part while it runs: `run` functions get it, call `ready` when they are, and return soon after `stop` is set."""

    name: str
    settings: Settings
    owner: str
    ready: Callable[[dict[str, object]], None]
    stop: threading.Event = field(default_factory=threading.Event)


class Threads:
    """Threads of a part. One that ends by an exception ends the part, which the service then starts anew."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._threads: list[threading.Thread] = []
        self._failed = threading.Event()

    def start(self, name: str, run: Callable[[threading.Event], None]) -> None:
        def guarded() -> None:
            try:
                run(self._stop)
            except Exception as error:  # noqa: BLE001  # said here; the part ends, and is started anew
                Log("thread").defect(f"{name} died", error)
                self._failed.set()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def healthy(self) -> bool:
        return not self._failed.is_set()

    def join(self) -> None:
        deadline = time.monotonic() + GRACE_SECONDS / 2
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def write_order(order: Order, stream: IO[bytes]) -> None:
    """Tell a process which part it is."""
    data = pickle.dumps(order)
    stream.write(len(data).to_bytes(8, "big") + data)
    stream.flush()


def read_order(stream: IO[bytes]) -> Order:
    """What the service has written. Pickle is safe here: the other end of the pipe is the process that started this one."""
    order = pickle.loads(stream.read(int.from_bytes(stream.read(8), "big")))
    if not isinstance(order, Order):
        raise TypeError("no order on stdin")
    return order
