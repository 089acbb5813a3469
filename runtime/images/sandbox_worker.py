"""The other side of `sandbox`: the process that has the decoders loaded, and the children it forks, one for each image.

The messages of both sides are here too. One is a head (lengths of the two parts that follow), a JSON object, and bytes.

The process that forks must have a single thread, or a child could wait for a lock that no one holds in it; so it is started with
one thread for each numeric library, and decodes nothing itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import resource
import signal
import socket
import struct
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from ..errors import ImageError, Reason
from .content_flags import ContentFlag
from .dicom import dicom_object  # noqa: F401  # loaded before the fork, else each child would load it
from .formats import Limits
from .image import boundary, open_image

__all__ = ["OUT_OF_MEMORY_STATUS", "Closed", "fork_server_main", "receive", "send"]

HEAD = struct.Struct("!IQ")
MAX_WORDS = 1 << 16
"""Bytes of JSON in one message."""
OUT_OF_MEMORY_STATUS = 3
"""A child's exit status when there was not even memory for saying so."""
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_FILES = 64


class Closed(Exception):  # noqa: N818  # not an error by itself
    """The other side has gone."""


def send(channel: socket.socket, words: dict[str, Any], *parts: bytes | memoryview, deadline: float | None = None) -> None:
    """Send one message.

    Raises:
        Closed: the other side has gone.
        TimeoutError: it did not take the message by `deadline` (time.monotonic).
    """
    text = json.dumps(words).encode()
    try:
        for part in (HEAD.pack(len(text), sum(len(part) for part in parts)), text, *parts):
            _wait_until(channel, deadline)
            channel.sendall(part)
    except TimeoutError:
        raise
    except OSError as error:
        raise Closed from error


def receive(channel: socket.socket, max_bytes: int, deadline: float | None = None) -> tuple[dict[str, Any], bytearray]:
    """Receive one message.

    Raises:
        Closed: the other side has gone, or what it sent is no message.
        TimeoutError: it did not come by `deadline` (time.monotonic).
    """
    text_length, length = HEAD.unpack(_exactly(channel, HEAD.size, deadline))
    if text_length > MAX_WORDS or length > max_bytes:
        raise Closed
    try:
        words = json.loads(bytes(_exactly(channel, text_length, deadline)))
    except (ValueError, RecursionError) as error:
        raise Closed from error
    if not isinstance(words, dict):
        raise Closed
    return words, _exactly(channel, length, deadline)


def _exactly(channel: socket.socket, length: int, deadline: float | None) -> bytearray:
    buffer = bytearray(length)
    view, got = memoryview(buffer), 0
    try:
        while got < length:
            _wait_until(channel, deadline)
            count = channel.recv_into(view[got:])
            if not count:
                raise Closed
            got += count
    except TimeoutError:
        raise
    except OSError as error:
        raise Closed from error
    return buffer


def _wait_until(channel: socket.socket, deadline: float | None) -> None:
    if deadline is not None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        channel.settimeout(remaining)


# -- the process that forks --------------------------------------------------------------------------------------------


def fork_server_main(control: socket.socket) -> None:
    """Fork children and reap them, as asked on `control` (SOCK_SEQPACKET: a message a packet), until its other end is closed."""
    _load_decoders()
    gc.collect()
    gc.disable()  # a collection would touch, and so copy, all pages that children share with this process
    gc.freeze()
    _say(control, {"ready": os.getpid()})
    while True:
        try:
            text, handles, _, _ = socket.recv_fds(control, 1024, 1)
            if not text:
                return
            if handles:
                process = os.fork()
                if not process:
                    control.close()
                    _child(socket.socket(fileno=handles[0]))
                os.close(handles[0])
                _say(control, {"process": process})
            else:
                process = json.loads(text)["reap"]
                os.kill(process, signal.SIGKILL)  # does nothing to a dead one, whose number is no one else's until it is reaped
                _say(control, {"status": os.waitpid(process, 0)[1]})
        except ConnectionError:
            return


def _say(control: socket.socket, words: dict[str, int]) -> None:
    control.send(json.dumps(words).encode())


def _load_decoders() -> None:
    """imagecodecs and pydicom load a codec when it is first used: here that would be in each child anew."""
    image = np.zeros((8, 8), np.uint8)
    codecs: tuple[tuple[Any, Any], ...] = (
        (imagecodecs.jpeg8_encode, imagecodecs.jpeg8_decode),
        (imagecodecs.jpegls_encode, imagecodecs.jpegls_decode),
        (imagecodecs.jpeg2k_encode, imagecodecs.jpeg2k_decode),
        (imagecodecs.tiff_encode, imagecodecs.tiff_decode),
        (imagecodecs.png_encode, imagecodecs.png_decode),
        (imagecodecs.jpegxl_encode, imagecodecs.jpegxl_decode),
        (imagecodecs.brotli_encode, imagecodecs.brotli_decode),
    )
    for encode, decode in codecs:
        decode(encode(image))
    with contextlib.suppress(ImportError):
        import pi_heif  # noqa: F401


# -- a child, for one image ------------------------------------------------------------------------------------------


def _child(channel: socket.socket) -> None:
    """Never returns."""
    status = 1
    try:
        _serve(channel)
        status = 0
    except Closed:
        status = 0
    except MemoryError:
        status = OUT_OF_MEMORY_STATUS
    finally:
        os._exit(status)


def _serve(channel: socket.socket) -> None:
    warnings.simplefilter("ignore")
    words, _ = receive(channel, 0)
    limits = Limits(**words["limits"])
    _confine(limits)
    _, data = receive(channel, limits.max_file_bytes)
    try:
        image = open_image(bytes(data), limits, words["name_hint"])
    except ImageError as error:
        _send_error(channel, error)
        return
    del data
    whose = asdict(image.identifiers)
    if len(json.dumps(whose)) > MAX_WORDS // 2:
        _send_error(channel, ImageError(Reason.DAMAGED, "its header has identifiers of thousands of characters"))
        return
    send(channel, {"kind": image.kind, "frames": image.frames, "notes": image.notes, "identifiers": whose})
    while True:
        request, _ = receive(channel, 0)
        _allow_time(limits)
        number, size = request["frame"], request["size"]
        try:
            with boundary():
                arrays = image.views(number, size) if size else image.renderings(number)
        except ImageError as error:
            _send_error(channel, error, image.notes)
            continue
        words = {"shapes": [array.shape for array in arrays], "notes": image.notes}
        send(channel, words, *(np.ascontiguousarray(array).data.cast("B") for array in arrays))


def _send_error(channel: socket.socket, error: ImageError, notes: Sequence[ContentFlag] | None = None) -> None:
    """Send an error, with the file's flags where it could be opened."""
    words = {"reason": error.reason, "message": str(error)[:1000]}
    send(channel, words if notes is None else {**words, "notes": notes})


def _confine(limits: Limits) -> None:
    """No more memory and time than allowed, no files to be written, no core dumps, and no life after the parent's."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Not `system.parent_process`: hostile input may keep this one thread in C code, where no watching thread gets a turn.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() == 1:
        raise Closed  # the parent went before that was set
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    memory = pages * resource.getpagesize() + limits.max_memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    _allow_time(limits)


def _allow_time(limits: Limits) -> None:
    """So much processor time from now on. SIGXCPU then ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime + limits.max_seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
