"""The gateway's service as a process, for tests: started, asked, killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from lcmem_onnx.cli import main
from lcmem_onnx.runtime.gateway.config import read_config
from lcmem_onnx.runtime.gateway.example_config import write_example
from lcmem_onnx.runtime.gateway.lock import running_facts
from lcmem_onnx.runtime.gateway.spool import Spool, State

__all__ = ["Gateway", "eventually", "example_for_tests"]


def eventually(met: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def example_for_tests(folder: Path, index: Path, archive_port: int, more: str = "") -> Path:
    """Write the example configuration with ports of the tests' own. Returns its path."""
    config = write_example(folder)
    text = config.read_text(encoding="utf-8")
    for old, new in (
        ("port = 11112", "port = 0"),
        ("port = 4242", f"port = {archive_port}"),
        ('aet = "ORTHANC"', 'aet = "ARCHIVE"'),
        ("min_free_mb = 2048", "min_free_mb = 1"),
        ("first_seconds = 5.0", "first_seconds = 0.1"),
        ('index = "hospital.index"', f"index = '{index}'"),
    ):
        assert old in text
        text = text.replace(old, new)
    config.write_text(text + more, encoding="utf-8")
    return config


class Gateway:
    """The service in a process group of its own."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.command: Sequence[str] = [sys.executable, "-m", "lcmem_onnx.cli"]
        self.folder: Path | None = None
        """Where it is started; here, if nothing is said."""
        self.settings = read_config(config)
        self.log = config.parent / "log.jsonl"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = self.http_port = 0

    def start(self) -> None:
        with open(self.log, "ab") as log:
            command = [*self.command, "gateway", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stderr=log, start_new_session=True, cwd=self.folder)
        (self.settings.spool.folder / "running.json").unlink(missing_ok=True)
        eventually(lambda: "receive_port" in (running_facts(self.settings.spool.folder) or {}))
        self.port = int((running_facts(self.settings.spool.folder) or {})["receive_port"])
        self.http_port = int((running_facts(self.settings.spool.folder) or {}).get("http_port", 0))

    def kill(self) -> None:
        """kill -9 of the service and all its parts at once, as a power cut does it."""
        assert self.process
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def process_of_service(self) -> subprocess.Popen[bytes]:
        assert self.process
        return self.process

    def stop(self) -> int:
        assert self.process
        self.process.terminate()
        return self.process.wait(30)

    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(main, ["gateway", *arguments, "--config", str(self.config)])

    def said(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """Lines of its log."""
        lines = map(json.loads, self.log.read_text().splitlines())
        return [line for line in lines if line["event"] == event and fields.items() <= line.items()]

    def part(self, name: str) -> int:
        """A part's process id, of the first one of this name."""
        return int(self.said("part-started", name=name)[0]["pid"])

    def counts(self) -> dict[State, int]:
        with Spool(self.settings, create=False) as spool:
            return spool.counts()
