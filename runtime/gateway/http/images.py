"""Images for the page: asked of the child that draws them, a few at a time, the last ones kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import OrderedDict
from pathlib import Path

from ...system.python_process import module_command
from .rendering import FAILED

__all__ = ["Drawer", "NotDrawnError"]

SIDE = 900
SECONDS = 30.0
KEPT = 32
AT_ONCE = 2


class NotDrawnError(Exception):
    """There is no image to be shown; the text is a code: `not-found`, `damaged`, `too-slow`, ..."""


class Drawer:
    """Draws images from files, as PNG."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def draw(self, path: Path, frame: int) -> bytes:
        """A frame of a file.

        Raises:
            NotDrawnError: it cannot be drawn.
        """
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise NotDrawnError("not-found") from error
        try:
            key = (str(path), os.fstat(file).st_mtime_ns, frame)
            if key not in self._kept:
                async with self._turns:
                    self._kept[key] = await self._drawn(file, frame)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]
        finally:
            os.close(file)

    async def _drawn(self, file: int, frame: int) -> bytes:
        program = module_command("lcmem_onnx.runtime.gateway.http.rendering", str(frame), str(SIDE))
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        child = await asyncio.create_subprocess_exec(
            *program, stdin=file, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=environment
        )
        try:
            out, _ = await asyncio.wait_for(child.communicate(), SECONDS)
        except TimeoutError as error:
            raise NotDrawnError("too-slow") from error
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        if child.returncode == FAILED:
            raise NotDrawnError(out.decode("ascii", "replace")[:40])
        if child.returncode or not out.startswith(b"\x89PNG"):
            raise NotDrawnError("damaged")
        return out
