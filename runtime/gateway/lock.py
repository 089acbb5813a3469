"""One service a spool: its lock, and what the service that holds it says of itself."""

from __future__ import annotations

import contextlib
import fcntl
import json
from pathlib import Path
from typing import Any

__all__ = ["LOCK", "RUNNING", "running_facts"]

LOCK = "lock"
RUNNING = "running.json"
"""In the spool's folder: the running service's process id and ports, for `gateway status` and for tests."""


def running_facts(folder: Path) -> dict[str, Any] | None:
    """The running service's process id and ports; None if none runs on this spool."""
    try:
        with open(folder / LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None  # nobody holds it
    except BlockingIOError:
        with contextlib.suppress(OSError, ValueError):
            facts: dict[str, Any] = json.loads((folder / RUNNING).read_text(encoding="ascii"))
            return facts
        return {}
    except OSError:
        return None
