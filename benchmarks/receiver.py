"""The gateway's receiving process by itself, as the service starts it, for the benchmarks that send to one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from lcmem_onnx.runtime.gateway.settings import ReceiveSettings, Settings, SpoolSettings
from lcmem_onnx.runtime.gateway.worker_process import WorkerSpec, write_spec
from lcmem_onnx.runtime.privacy import create_site_key
from lcmem_onnx.runtime.system.python_process import module_command

__all__ = ["start_receiver"]


def start_receiver(folder: Path, receive: ReceiveSettings) -> tuple[subprocess.Popen[bytes], int, Settings]:
    """Make `folder` with a spool and a key in it; the process, the port that it listens on, and its settings."""
    folder.mkdir()
    create_site_key(folder / "site.key")
    settings = Settings(spool=SpoolSettings(folder / "spool", min_free_mb=64), site_key=folder / "site.key", receive=receive)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            module_command("lcmem_onnx.runtime.gateway.workers"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdin
    assert process.stdout
    write_spec(WorkerSpec("receive", settings, "benchmark"), process.stdin)
    return process, int(json.loads(process.stdout.readline())["receive_port"]), settings
