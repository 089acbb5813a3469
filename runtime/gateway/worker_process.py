"""A worker of the gateway as a process: its specification on stdin, what its run function gets, and its threads."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from .json_logging import Log
from .settings import Settings

__all__ = ["GRACE_SECONDS", "Threads", "Worker", "WorkerSpec", "read_spec", "write_spec"]

GRACE_SECONDS = 10.0
"""How long a worker may take to end by itself, when the service has died or asks it to end."""


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker's process is told.

    Attributes:
        name: which worker it is.
        settings: the gateway's.
        claimed_by: the name under which it claims objects in the spool; a new one for each process.
    """

    name: str
    settings: Settings
    claimed_by: str


@dataclass
class Worker:
    """A running worker. Its run function calls `ready` once it works, and returns soon after `stop` is set."""

    name: str
    settings: Settings
    claimed_by: str
    ready: Callable[[dict[str, object]], None]
    stop: threading.Event = field(default_factory=threading.Event)


class Threads:
    """Threads of a worker. One that ends by an exception ends the worker, which the service then starts again."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._threads: list[threading.Thread] = []
        self._failed = threading.Event()

    def start(self, name: str, run: Callable[[threading.Event], None]) -> None:
        def guarded() -> None:
            try:
                run(self._stop)
            except Exception as error:  # noqa: BLE001  # logged here; the worker ends and is started again
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


def write_spec(spec: WorkerSpec, stream: IO[bytes]) -> None:
    """Write a specification to a worker's stdin."""
    data = pickle.dumps(spec)
    stream.write(len(data).to_bytes(8, "big") + data)
    stream.flush()


def read_spec(stream: IO[bytes]) -> WorkerSpec:
    """Read what `write_spec` wrote. Pickle is safe here: the other end of the pipe is the process that started this one.

    Raises:
        TypeError: it is something else.
    """
    spec = pickle.loads(stream.read(int.from_bytes(stream.read(8), "big")))
    if not isinstance(spec, WorkerSpec):
        raise TypeError("stdin has no WorkerSpec")
    return spec
