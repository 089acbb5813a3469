"""A process that ends with its parent, even when the parent is killed.

The parent holds the writing end of a pipe whose reading end is the child's stdin. The kernel closes the pipe when the parent ends,
whatever ended it, and the child reads the end of the file. This leaves the child time to finish in order, and it works on every
system, for programs of several threads.

A sandboxed decoder (`images.sandbox_worker`) does not use this: hostile input may keep its one thread in C code, where no watching
thread gets a turn. The kernel kills it by PR_SET_PDEATHSIG, which Linux alone has, and which suits it because the process that
forks it has a single thread: the signal comes when the parent's *thread* ends.

A process that draws one image for the gateway's pages (`gateway.http.rendering`) needs neither: its stdin is the image, and limits
on its CPU time end it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["end_with_parent", "lifeline"]


@contextmanager
def lifeline() -> Iterator[int]:
    """Yield a descriptor to start a child with as its stdin. When the context ends, a child that watches it ends too."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def end_with_parent(stop: Callable[[], object] | None = None, grace_seconds: float = 0.0) -> None:
    """Watch stdin in a thread from now on, and end this process with status 1 when the parent closes it or dies.

    Args:
        stop: is called first, to have the process end by itself.
        grace_seconds: how long the process may take for that before it is ended.
    """

    def watch() -> None:
        # Not sys.stdin.buffer.read(): its lock, held by a daemon thread, would break the interpreter's own end.
        while os.read(descriptor, 1 << 16):
            pass
        if stop is not None:
            stop()
        time.sleep(grace_seconds)
        os._exit(1)

    descriptor = sys.stdin.fileno()
    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
