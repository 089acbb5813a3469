"""A process that ends with the one that started it, also where that one is killed: it would compute on for minutes.

The starter holds the writing end of a pipe, whose reading end is the other process's stdin. The kernel closes it, whatever
happened, and the other reads the end of the file.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["end_with_starter", "held"]


@contextmanager
def held() -> Iterator[int]:
    """A descriptor to give a process as stdin. The process may live as long as this."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def end_with_starter() -> None:
    """Watch stdin from now on, and leave at its end."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)
