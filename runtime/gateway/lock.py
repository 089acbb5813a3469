"""One service a spool: its lock, and what the service that holds it says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..system.file_lock import try_lock

__all__ = ["LOCK", "RUNNING", "running_facts"]

LOCK = "lock"
RUNNING = "running.json"
"""In the spool's folder: the running service's process id and ports, for `gateway status` and for tests."""


def running_facts(folder: Path) -> dict[str, Any] | None:
    """The running service's process id and ports; None if none runs on this spool."""
    try:
        with open(folder / LOCK, "rb") as lock:
            if try_lock(lock.fileno(), shared=True):
                return None
    except OSError:  # no service has run here, or this user may not ask
        return None
    try:
        facts: dict[str, Any] = json.loads((folder / RUNNING).read_text(encoding="ascii"))
    except (OSError, ValueError):  # it has only just started
        return {}
    return facts
