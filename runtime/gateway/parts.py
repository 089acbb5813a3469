"""The service's parts, a process each, so that one's end is not the others': what runs in them, and how a process becomes one.

    receive    C-STORE and watched folders: objects in
    screen     objects to verdicts; the one that hostile pixels may kill
    forward    what is clear out, a thread a destination
    web        HTTP: objects and questions in, health, metrics, status
    syslog     the audit trail to the collector

`service` starts `python -P -m lcmem_onnx.runtime.gateway.parts` with an `Order` on stdin. The pipe stays open: when it closes, the
service has died, and the part ends too.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from ..errors import GatewayError, LcmemError
from .logs import Log, configure_logs
from .settings import Settings
from .spool import Spool

__all__ = ["Order", "Part", "needed_parts", "read_order", "write_order"]

BATCH = 16
"""Objects that are claimed, and screened, together."""
POLL_SECONDS = 0.1
TIDY_SECONDS = 60.0
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
    """A part while it runs: `run` functions get it, say `ready` when they are, and return soon after `stop` is set."""

    name: str
    settings: Settings
    owner: str
    stop: threading.Event = field(default_factory=threading.Event)
    ready: Callable[[dict[str, object]], None] = lambda facts: None


def needed_parts(settings: Settings) -> list[str]:
    """Which parts these settings need."""
    parts = ["screen"]
    if settings.destination:
        parts.append("forward")
    if settings.receive or settings.folder:
        parts.append("receive")
    if settings.http:
        parts.append("web")
    if settings.audit.syslog:
        parts.append("syslog")
    return parts


def run_receive(part: Part) -> None:
    from .watch import FolderWatcher

    with Spool(part.settings) as spool:
        facts: dict[str, object] = {}
        threads = Threads(part.stop)
        for folder in part.settings.folder:
            threads.start(f"watch {folder.name}", FolderWatcher(folder, spool).run)
        receiver = None
        if part.settings.receive:
            from .receive import Receiver

            receiver = Receiver(part.settings.receive, spool)
            receiver.start()
            facts["receive_port"] = receiver.port
        part.ready(facts)
        tidied = time.monotonic()
        while not part.stop.wait(0.5) and threads.healthy():
            if receiver and time.monotonic() - tidied > TIDY_SECONDS:
                tidied = time.monotonic()
                receiver.tidy()
        part.stop.set()
        if receiver:
            receiver.stop()
        threads.join()


def run_screen(part: Part) -> None:
    from .screen import ObjectScreener

    log = Log("screen")
    with Spool(part.settings) as spool:
        screener = ObjectScreener(part.settings, spool)
        part.ready({})
        while not part.stop.is_set():
            items = spool.claim(part.owner, BATCH)
            if not items:
                part.stop.wait(POLL_SECONDS)
            for item, outcome in screener.screen(items):
                state = spool.settle(item, outcome)
                log.info(
                    "screened",
                    object=item.id,
                    verdict=outcome.verdict,
                    reason=outcome.reason,
                    rule=outcome.rule,
                    now=state,
                    frames=outcome.frames,
                    seconds=round(outcome.timings.get("screening", 0.0), 4),
                )
                if part.stop.is_set():
                    break
        spool.unclaim(part.owner)
        screener.close()


def run_forward(part: Part) -> None:
    from .associations import configure_pynetdicom
    from .forward import Forwarder, Sender

    with Spool(part.settings) as spool:
        configure_pynetdicom(spool.files.incoming)
        threads = Threads(part.stop)
        for destination in part.settings.destination:
            sender: Sender
            if destination.kind == "dicom":
                from .store_scu import StoreScu

                sender = StoreScu(destination)
            else:
                sender = importlib.import_module(".store_web", __package__).StoreWeb(destination)
            threads.start(f"forward {destination.name}", Forwarder(destination, spool, sender).run)
        part.ready({})
        while not part.stop.wait(0.5) and threads.healthy():
            pass
        part.stop.set()
        threads.join()


def run_web(part: Part) -> None:
    importlib.import_module(".web", __package__).run_web(part)


def run_syslog(part: Part) -> None:
    from .syslog import SyslogSender

    syslog = part.settings.audit.syslog
    if syslog is None:
        raise GatewayError("the configuration has no [audit.syslog]")
    with Spool(part.settings) as spool:
        sender = SyslogSender(syslog, spool.database, part.settings.audit_folder)
        part.ready({})
        sender.run(part.stop)


_RUN = {"receive": run_receive, "screen": run_screen, "forward": run_forward, "web": run_web, "syslog": run_syslog}


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


def main() -> None:
    """A part's process, from its first line to its last."""
    order = read_order(sys.stdin.buffer)
    configure_logs(order.settings.log.level)
    warnings.simplefilter("ignore")  # pydicom's quote values
    log = Log(order.name)

    def ready(facts: dict[str, object]) -> None:
        print(json.dumps(facts), flush=True)
        log.info("ready")

    part = Part(order.name, order.settings, order.owner, ready=ready)
    signal.signal(signal.SIGTERM, lambda number, frame: part.stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service passes it on in order

    def follow_the_service() -> None:
        sys.stdin.buffer.read()
        part.stop.set()
        time.sleep(GRACE_SECONDS)
        os._exit(1)

    threading.Thread(target=follow_the_service, daemon=True).start()
    code = 1
    try:
        _RUN[order.name](part)
        code = 0 if part.stop.is_set() else 1
    except Exception as error:  # noqa: BLE001  # the last frame: said, and the service starts the part anew
        if isinstance(error, LcmemError):
            log.error("cannot-run", error=type(error).__name__, detail=str(error))
        else:
            log.defect("died", error)
    sys.stderr.flush()
    os._exit(code)  # pynetdicom's threads are no daemons, and one that waits for a peer must not keep the process


if __name__ == "__main__":
    # By its import name: what is pickled must be the same class for both processes.
    importlib.import_module("lcmem_onnx.runtime.gateway.parts").main()
