"""A request's body, bounded: in size, in its silences, and in how slow it may be as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from ..object_files import ObjectFiles
from ..settings import HttpSettings

__all__ = ["Refused", "Spooling", "chunks", "drain", "small_body"]

GRACE = 60.0
"""Seconds before a body's average rate is looked at."""
AT_ONCE = 1 << 20
"""Bytes gathered before a thread writes them."""
DRAINED = 32 << 20


@dataclass
class Refused(Exception):  # noqa: N818  # it is an answer
    """A request that is answered with a status in place of what it wanted.

    Attributes:
        status: of HTTP.
        reason: a stable code for programs.
        detail: for people.
    """

    status: int
    reason: str
    detail: str

    def __str__(self) -> str:
        return self.detail


async def chunks(request: Request, settings: HttpSettings, max_bytes: int) -> AsyncIterator[bytes]:
    """A body's bytes as they come.

    Raises:
        Refused: 413 when there are more than `max_bytes`, said or sent; 408 when they come too slowly; 400 when they end early.
    """
    too_large = Refused(413, "too-large", f"a request may have {max_bytes} bytes")
    said = request.headers.get("content-length", "")
    if said.isascii() and said.isdigit() and int(said) > max_bytes:
        raise too_large
    began, size = time.monotonic(), 0
    stream = request.stream()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream), settings.idle_seconds)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise Refused(408, "too-slow", f"nothing came for {settings.idle_seconds:g} seconds") from error
        except ClientDisconnect as error:
            raise Refused(400, "ended-early", "the connection was closed before the end of the body") from error
        size += len(chunk)
        if size > max_bytes:
            raise too_large
        seconds = time.monotonic() - began
        if seconds > GRACE and size < (seconds - GRACE) * settings.slowest_kb_per_second * 1024:
            raise Refused(408, "too-slow", f"{size} bytes in {seconds:.0f} seconds are too few")
        if chunk:
            yield chunk


async def small_body(request: Request, settings: HttpSettings, max_bytes: int) -> bytes:
    """A body that is held in memory."""
    return b"".join([chunk async for chunk in chunks(request, settings, max_bytes)])


async def drain(request: Request) -> None:
    """Read on for a moment what is not wanted, so that a sender that reads the answer only after all was sent can read it."""
    read = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(2):
            async for chunk in request.stream():
                read += len(chunk)
                if read > DRAINED:
                    return


class Spooling:
    """A file in the spool's `incoming` that a body's bytes are written to, by threads; never more than 2 MB of it are in memory.

    Use it in an `async with`; the file's name is gone afterwards, whatever the spool made of it.
    """

    def __init__(self, files: ObjectFiles, max_bytes: int) -> None:
        self.path: Path = files.incoming / f"{files.new_id()}.part"
        self.head = b""
        self.bytes = 0
        self._max_bytes = max_bytes
        self._gathered = bytearray()
        self._file: BinaryIO | None = None

    async def __aenter__(self) -> Spooling:
        descriptor = await run_in_threadpool(os.open, self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._file:
            self._file.close()
        self.path.unlink(missing_ok=True)

    async def write(self, data: bytes) -> None:
        """Add bytes.

        Raises:
            Refused: 413, the object is larger than one may be. 507, the disk is full.
        """
        self.bytes += len(data)
        if self.bytes > self._max_bytes:
            raise Refused(413, "too-large", f"an object may have {self._max_bytes} bytes")
        if len(self.head) < 1 << 16:
            self.head += data[: (1 << 16) - len(self.head)]
        self._gathered += data
        if len(self._gathered) >= AT_ONCE:
            await run_in_threadpool(self._flush)

    async def finish(self) -> None:
        """Have all of it on disk, fsynced and closed."""
        await run_in_threadpool(self._finish)

    def _finish(self) -> None:
        self._flush()
        if self._file:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _flush(self) -> None:
        view = memoryview(bytes(self._gathered))
        self._gathered.clear()
        try:
            while self._file and view:
                view = view[self._file.write(view) or 0 :]
        except OSError as error:
            raise Refused(507, "disk-full", f"the spool cannot be written: {error.strerror}") from error
