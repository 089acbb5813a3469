"""Structured logs: one line of JSON an event, on stderr, without patients' data.

What is logged is the name of an event and named fields that the gateway's code chose: states, codes, counts, object ids, AE titles,
addresses, pseudonyms. Never a value from a data set. JSON escapes what a caller may have put into an AE title: a line stays a line.

The logs of pynetdicom and pydicom are switched off: they hold raw UIDs and values (and `associations` says what of them matters).
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import Any

__all__ = ["Log", "configure_logs"]

ROOT = "lcmem_onnx.gateway"
LONGEST = 300
"""Characters of a field; what is longer is cut."""


class Log:
    """Writes events of one part of the gateway."""

    def __init__(self, part: str) -> None:
        self._logger = logging.getLogger(f"{ROOT}.{part}")
        self._part = part

    def debug(self, event: str, **fields: object) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._write(logging.ERROR, event, fields)

    def defect(self, event: str, error: BaseException) -> None:
        """An exception that nobody foresaw: its type and where it was raised, not its text, which may quote a data set."""
        where = []
        trace = error.__traceback__
        while trace:
            where.append(f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}")
            trace = trace.tb_next
        self._write(logging.ERROR, event, {"exception": type(error).__name__, "where": " > ".join(where[-6:])})

    def _write(self, level: int, event: str, fields: dict[str, object]) -> None:
        self._logger.log(level, event, extra={"fields": fields, "part": self._part})


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "part": getattr(record, "part", record.name),
            "event": record.getMessage(),
        }
        for name, value in getattr(record, "fields", {}).items():
            line[name] = value if isinstance(value, bool | int | float | None) else str(value)[:LONGEST]
        return json.dumps(line)


def configure_logs(level: str) -> None:
    """Send the gateway's events to stderr, and the libraries' nowhere. For a process that is the gateway's own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    root = logging.getLogger(ROOT)
    root.handlers = [handler]
    root.setLevel(level.upper())
    root.propagate = False
    for library in ("pynetdicom", "pydicom"):
        silent = logging.getLogger(library)
        silent.handlers = [logging.NullHandler()]
        silent.setLevel(logging.CRITICAL + 1)
        silent.propagate = False

    def unforeseen(arguments: threading.ExceptHookArgs) -> None:
        """A library's thread that dies of an exception: Python would print it, values and all."""
        if arguments.exc_value is not None:
            Log("thread").defect("thread-died", arguments.exc_value)

    threading.excepthook = unforeseen
