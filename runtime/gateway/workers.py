"""The service's parts, a process each, so that one's end is not the others': what runs in them, and how a process becomes one.

    receive    C-STORE and watched folders: objects in
    screen     objects to verdicts; the one that hostile pixels may kill
    forward    what is clear out, a thread a destination
    web        HTTP: objects and questions in, health, metrics, status
    syslog     the audit trail to the collector

`supervisor` starts `python -P -m lcmem_onnx.runtime.gateway.workers` with an `Order` on stdin. The pipe stays open: when it closes,
the service has died, and the part ends too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings

from ..errors import GatewayError, LcmemError
from ..gallery.storage.schema import DATABASE
from ..system.parent_process import end_with_parent
from .json_logging import Log, configure_logs
from .settings import Settings
from .spool import Spool
from .worker_process import GRACE_SECONDS, Part, Threads, read_order

__all__ = ["needed_parts", "run_web"]

BATCH = 16
"""Objects that are claimed, and screened, together."""
POLL_SECONDS = 0.1
TIDY_SECONDS = 60.0
STUCK_SECONDS = 600.0


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
    from .folder_watcher import FolderWatcher

    with Spool(part.settings) as spool:
        facts: dict[str, object] = {}
        threads = Threads(part.stop)
        for folder in part.settings.folder:
            threads.start(f"watch {folder.name}", FolderWatcher(folder, spool).run)
        receiver = None
        if part.settings.receive:
            from .c_store_scp import Receiver

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
    from .object_screener import ObjectScreener

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
    from .dicom_server import configure_pynetdicom
    from .forwarder import Forwarder, Sender

    with Spool(part.settings) as spool:
        configure_pynetdicom(spool.files.incoming)
        threads = Threads(part.stop)
        for destination in part.settings.destination:
            sender: Sender
            if destination.kind == "dicom":
                from .c_store_scu import StoreScu

                sender = StoreScu(destination)
            else:
                from .stow_client import StoreWeb

                sender = StoreWeb(destination)
            threads.start(f"forward {destination.name}", Forwarder(destination, spool, sender).run)
        part.ready({})
        while not part.stop.wait(0.5) and threads.healthy():
            pass
        part.stop.set()
        threads.join()


def run_web(part: Part) -> None:
    """Answer until the part is to stop. Ends early when the server does, and is then started anew."""
    from .http.server import HttpServer

    with Spool(part.settings) as spool:

        def ready() -> dict[str, bool]:
            """An object that waits for long means that the screening does not run, whatever its process says; and while an index
            is not there, all that is for it is held."""
            oldest = spool.oldest_waiting()
            indexes = {f"index {gallery.name}": (gallery.index / DATABASE).is_file() for gallery in part.settings.gallery}
            return {"screening": oldest is None or time.time() - oldest < STUCK_SECONDS, **indexes}

        server = HttpServer(part.settings, spool, ready)
        server.start()
        part.ready({"http_port": server.port})
        while not part.stop.wait(0.2) and not server.failed.is_set():
            pass
        server.stop()


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

    end_with_parent(part.stop.set, GRACE_SECONDS)
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
    main()
