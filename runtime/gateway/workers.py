"""The gateway's workers, a process each, so that one that crashes leaves the others running.

    receive    C-STORE and watched folders: objects in
    screen     objects to verdicts; the one that hostile pixels may kill
    forward    what is clear out, a thread a destination
    web        HTTP: objects and questions in, health, metrics, status
    syslog     the audit trail to the collector

`supervisor` starts `python -P -m lcmem_onnx.runtime.gateway.workers` with a `WorkerSpec` on stdin. The pipe stays open: when it
closes, the service has died, and the worker ends too.
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
from .worker_process import GRACE_SECONDS, Threads, Worker, read_spec

__all__ = ["needed_workers", "run_web"]

BATCH = 16
"""Objects that are claimed, and screened, together."""
POLL_SECONDS = 0.1
TIDY_SECONDS = 60.0
STUCK_SECONDS = 600.0


def needed_workers(settings: Settings) -> list[str]:
    """Return the names of the workers that these settings need."""
    workers = ["screen"]
    if settings.destination:
        workers.append("forward")
    if settings.receive or settings.folder:
        workers.append("receive")
    if settings.http:
        workers.append("web")
    if settings.audit.syslog:
        workers.append("syslog")
    return workers


def run_receive(worker: Worker) -> None:
    from .folder_watcher import FolderWatcher

    with Spool(worker.settings) as spool:
        facts: dict[str, object] = {}
        threads = Threads(worker.stop)
        for folder in worker.settings.folder:
            threads.start(f"watch {folder.name}", FolderWatcher(folder, spool).run)
        receiver = None
        if worker.settings.receive:
            from .c_store_scp import Receiver

            receiver = Receiver(worker.settings.receive, spool)
            receiver.start()
            facts["receive_port"] = receiver.port
        worker.ready(facts)
        tidied = time.monotonic()
        while not worker.stop.wait(0.5) and threads.healthy():
            if receiver and time.monotonic() - tidied > TIDY_SECONDS:
                tidied = time.monotonic()
                receiver.tidy()
        worker.stop.set()
        if receiver:
            receiver.stop()
        threads.join()


def run_screen(worker: Worker) -> None:
    from .object_screener import ObjectScreener

    log = Log("screen")
    with Spool(worker.settings) as spool:
        screener = ObjectScreener(worker.settings, spool)
        worker.ready({})
        while not worker.stop.is_set():
            items = spool.claim(worker.claimed_by, BATCH)
            if not items:
                worker.stop.wait(POLL_SECONDS)
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
                if worker.stop.is_set():
                    break
        spool.unclaim(worker.claimed_by)
        screener.close()


def run_forward(worker: Worker) -> None:
    from .dicom_server import configure_pynetdicom
    from .forwarder import Forwarder, Sender

    with Spool(worker.settings) as spool:
        configure_pynetdicom(spool.files.incoming)
        threads = Threads(worker.stop)
        for destination in worker.settings.destination:
            sender: Sender
            if destination.kind == "dicom":
                from .c_store_scu import StoreScu

                sender = StoreScu(destination)
            else:
                from .stow_client import StoreWeb

                sender = StoreWeb(destination)
            threads.start(f"forward {destination.name}", Forwarder(destination, spool, sender).run)
        worker.ready({})
        while not worker.stop.wait(0.5) and threads.healthy():
            pass
        worker.stop.set()
        threads.join()


def run_web(worker: Worker) -> None:
    """Answer HTTP until the worker is to stop. Return early when the server ends; the service then starts the worker again."""
    from .http.server import HttpServer

    with Spool(worker.settings) as spool:

        def ready() -> dict[str, bool]:
            """An object that waits for long means that the screening does not run, whatever its process says; and while an index
            is not there, all that is for it is held."""
            oldest = spool.oldest_waiting()
            indexes = {f"index {gallery.name}": (gallery.index / DATABASE).is_file() for gallery in worker.settings.gallery}
            return {"screening": oldest is None or time.time() - oldest < STUCK_SECONDS, **indexes}

        server = HttpServer(worker.settings, spool, ready)
        server.start()
        worker.ready({"http_port": server.port})
        while not worker.stop.wait(0.2) and not server.failed.is_set():
            pass
        server.stop()


def run_syslog(worker: Worker) -> None:
    from .syslog import SyslogSender

    syslog = worker.settings.audit.syslog
    if syslog is None:
        raise GatewayError("the configuration has no [audit.syslog]")
    with Spool(worker.settings) as spool:
        sender = SyslogSender(syslog, spool.database, worker.settings.audit_folder)
        worker.ready({})
        sender.run(worker.stop)


_RUN = {"receive": run_receive, "screen": run_screen, "forward": run_forward, "web": run_web, "syslog": run_syslog}


def main() -> None:
    """Run as the worker that stdin specifies."""
    spec = read_spec(sys.stdin.buffer)
    configure_logs(spec.settings.log.level)
    warnings.simplefilter("ignore")  # pydicom's quote values
    log = Log(spec.name)

    def ready(facts: dict[str, object]) -> None:
        print(json.dumps(facts), flush=True)
        log.info("ready")

    worker = Worker(spec.name, spec.settings, spec.claimed_by, ready=ready)
    signal.signal(signal.SIGTERM, lambda number, frame: worker.stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service passes it on in order

    end_with_parent(worker.stop.set, GRACE_SECONDS)
    code = 1
    try:
        _RUN[spec.name](worker)
        code = 0 if worker.stop.is_set() else 1
    except Exception as error:  # noqa: BLE001  # the last frame: logged, and the service starts the worker again
        if isinstance(error, LcmemError):
            log.error("cannot-run", error=type(error).__name__, detail=str(error))
        else:
            log.defect("died", error)
    sys.stderr.flush()
    os._exit(code)  # pynetdicom's threads are no daemons, and one that waits for a peer must not keep the process


if __name__ == "__main__":
    main()
