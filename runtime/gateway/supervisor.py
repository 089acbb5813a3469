"""The service: starts the workers, starts them again when they end, writes the audit trail, and stops in order.

Nothing that matters is in memory only: kill -9 of everything at any moment loses no object that was acknowledged.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import GatewayError
from ..system.atomic_write import put_whole
from ..system.file_lock import try_lock
from ..system.python_process import module_command
from .json_logging import Log, configure_logs
from .lock import LOCK, RUNNING, running_facts
from .outcome import Cause
from .preflight import check_settings
from .settings import Settings
from .spool import Spool
from .worker_process import GRACE_SECONDS, WorkerSpec, write_spec
from .workers import needed_workers

__all__ = ["Service"]

LOCK_SECONDS = 15.0
"""How long a start waits for the workers of a service that has just died to notice and end."""
TURN_SECONDS = 0.2
FORGET_SECONDS = 3600.0
FLUSH_SECONDS = 0.5
TROUBLE_SECONDS = 1.0
EXPORTER = "syslog"
"""The worker that is ended last."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before a worker that has ended is started again, doubled each time until it has run for a minute."""

log = Log("service")


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    claimed_by: str
    started: float
    facts: dict[str, Any] = field(default_factory=dict)
    ready: bool = False


class Service:
    """One gateway on one spool."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._children: dict[str, _Child] = {}
        self._waits: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._flusher: threading.Thread | None = None

    def stop(self) -> None:
        """Have `run` end in order."""
        self._stop.set()

    def run(self) -> None:
        """Run until SIGTERM, SIGINT or `stop`.

        Raises:
            GatewayError: another service has the spool, or it cannot be opened.
        """
        configure_logs(self._settings.log.level)
        folder = self._settings.spool.folder
        with _only_one(folder) as lock, Spool(self._settings) as spool, self._signals():
            self._check()
            found = spool.recover()
            spool.audit.note("started", version=version("lcmem-onnx"), **found)
            log.info("started", **found)
            try:
                self._supervise(spool, lock)
            finally:
                self._stop.set()
                try:
                    self._end_children(spool, [child for child in self._children.values() if child.name != EXPORTER])
                    (folder / RUNNING).unlink(missing_ok=True)
                    spool.audit.note("stopped")
                    if self._flusher:
                        self._flusher.join(GRACE_SECONDS)
                    spool.audit.flush()
                finally:  # it sends what has come until now, and the collector hears of the end
                    self._end_children(spool, [child for child in self._children.values() if child.name == EXPORTER])
                log.info("stopped")

    def _check(self) -> None:
        """Not to begin with what cannot work. An index that is missing is no reason: objects are held until it is back.

        Raises:
            GatewayError: what `gateway check` finds wrong beside the indexes.
        """
        for finding in check_settings(self._settings):
            if finding.problem is None:
                continue
            log.error("check", what=finding.what, problem=finding.problem)
            if not finding.what.startswith("gallery "):
                raise GatewayError(f"{finding.what}: {finding.problem}")

    def _supervise(self, spool: Spool, lock: int) -> None:
        """Keep workers and flusher running until the service is to stop. A database that is full or busy is waited for."""
        forgotten = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            if self._flusher is None or not self._flusher.is_alive():
                self._flusher = threading.Thread(target=self._write_audit_trail, name="audit", daemon=True)
                self._flusher.start()
            try:
                for name in needed_workers(self._settings):
                    self._keep_running(name, spool, lock)
                self._end_overdue(spool)
                if now - forgotten > FORGET_SECONDS:
                    forgotten = now
                    log.info("forgotten", rows=spool.forget())
            except (GatewayError, OSError) as error:  # of the spool, or no process can be started now
                log.error("supervision-interrupted", error=type(error).__name__, detail=str(error))
                self._stop.wait(TROUBLE_SECONDS)
            self._stop.wait(TURN_SECONDS)

    def _keep_running(self, name: str, spool: Spool, lock: int) -> None:
        child = self._children.get(name)
        if child is None:
            if time.monotonic() >= self._due.get(name, 0.0):
                self._children[name] = self._start(name, lock)
        elif child.process.poll() is not None:
            self._has_ended(child, spool)

    def _start(self, name: str, lock: int) -> _Child:
        claimed_by = f"{name}-{secrets.token_hex(8)}"
        process = subprocess.Popen(
            module_command("lcmem_onnx.runtime.gateway.workers"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[lock],  # held by every worker, so that a new service waits until the last of an old one's is gone
        )
        child = _Child(name, process, claimed_by, time.monotonic())
        if process.stdin is None or process.stdout is None:
            raise GatewayError("a worker's process has no pipes")
        with contextlib.suppress(BrokenPipeError):  # it is gone already, which the next turn sees
            write_spec(WorkerSpec(name, self._settings, claimed_by), process.stdin)
        threading.Thread(target=self._listen, args=(child,), daemon=True).start()
        log.info("part-started", name=name, pid=process.pid)
        return child

    def _listen(self, child: _Child) -> None:
        """Read a worker's stdout: one line when it is ready. What a library prints is read too, so that the worker never blocks."""
        if child.process.stdout is None:
            return
        with child.process.stdout as stdout:
            for line in stdout:
                try:
                    facts = json.loads(line)
                except ValueError:
                    facts = None
                if isinstance(facts, dict) and not child.ready:
                    child.facts = facts
                    child.ready = True
                    self._say_ready()
                else:
                    log.warning("part-printed", name=child.name, bytes=len(line))

    def _say_ready(self) -> None:
        """Once all workers are ready, have their ports where `gateway status` and tests look for them."""
        if not all((known := self._children.get(name)) and known.ready for name in needed_workers(self._settings)):
            return
        facts: dict[str, Any] = {"pid": os.getpid()}
        for known in list(self._children.values()):
            facts |= known.facts
        try:
            put_whole(self._settings.spool.folder / RUNNING, lambda draft: draft.write_text(json.dumps(facts), encoding="ascii"))
        except OSError as error:
            log.error("running-not-noted", error=type(error).__name__)
        log.info("ready", **facts)

    def _has_ended(self, child: _Child, spool: Spool, cause: Cause = Cause.CRASHED) -> None:
        code = child.process.wait()
        log.error("part-ended", name=child.name, pid=child.process.pid, code=code)
        if child.name == "screen":
            spool.mark_crashed(child.claimed_by, cause)
        with contextlib.suppress(OSError):
            if child.process.stdin:
                child.process.stdin.close()
        ran = time.monotonic() - child.started
        wait = FIRST_WAIT if ran > 60 else min(LONGEST_WAIT, 2 * self._waits.get(child.name, FIRST_WAIT / 2))
        self._waits[child.name] = wait
        self._due[child.name] = time.monotonic() + wait
        del self._children[child.name]

    def _end_overdue(self, spool: Spool) -> None:
        """End a screening that takes too long, and mark its objects as timed out."""
        child = self._children.get("screen")
        if child and child.claimed_by in spool.overdue(self._settings.screen.timeout_seconds):
            log.error("screening-overdue", seconds=self._settings.screen.timeout_seconds)
            child.process.kill()
            self._has_ended(child, spool, Cause.TIMED_OUT)
            self._due[child.name] = 0.0

    def _write_audit_trail(self) -> None:
        """In a thread of its own: nobody waits for the trail's file, since its lines are in the database already.

        The thread ends when anything goes wrong but the writing itself, and is then started again.
        """
        try:
            with Spool(self._settings) as spool:
                while not self._stop.wait(FLUSH_SECONDS):
                    try:
                        spool.audit.flush()
                    except GatewayError as error:
                        log.error("audit-trail-not-written", detail=str(error))
        except Exception as error:  # noqa: BLE001  # the thread's last frame: said, and the supervisor starts another
            log.defect("audit-flusher-died", error)
            self._stop.wait(TROUBLE_SECONDS)

    def _end_children(self, spool: Spool, children: Sequence[_Child]) -> None:
        for child in children:
            child.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS + 2
        for child in children:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("part-killed", name=child.name)
                child.process.kill()
                child.process.wait()
            with contextlib.suppress(OSError):
                if child.process.stdin:
                    child.process.stdin.close()
            spool.unclaim(child.claimed_by)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop the service in order; a second one too, since order is what keeps the peers' objects whole."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._stop.set()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _only_one(folder: Path) -> Iterator[int]:
    """Hold the spool's lock: one service, and none of an older one's workers."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise GatewayError(f"the spool's folder {folder} cannot be made: {error.strerror}") from error
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not try_lock(lock):
            if time.monotonic() > deadline:
                pid = (running_facts(folder) or {}).get("pid", "unknown")
                raise GatewayError(f"another gateway (process {pid}) uses {folder}")
            time.sleep(0.2)
        yield lock
    finally:
        os.close(lock)
