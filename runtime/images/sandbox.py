"""Decoding in a process of its own, under limits on memory and processor time.

The decoders are C libraries. A hostile file may make one of them loop, take all memory, or crash; in this process that would be
the end of the service. So `DecoderPool` starts one process that has the decoders loaded and a single thread, and forks a child
from it for each image: that costs some milliseconds, no image's decoder ever sees another's memory, and limits on processor time
are each child's own. A child that is killed or crashes takes its image along, as a `ImageError`, and nothing else.

What a child sends is not trusted either: a line of JSON with checked fields, and pixels of a size that is known beforehand. No
object is unpickled.

Linux only: it relies on fork, on RLIMIT_AS and RLIMIT_CPU, and on PR_SET_PDEATHSIG. Elsewhere `DecoderPool` raises a UsageError.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from dataclasses import asdict
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, Reason, UsageError
from ..system.python_process import child_search_path, python_command
from .content_flags import ContentFlag
from .dicom.identifiers import Identifiers
from .formats import DEFAULT_LIMITS, Kind, Limits
from .sandbox_worker import OUT_OF_MEMORY_STATUS, Closed, fork_server_main, receive, send

__all__ = ["DecoderPool", "SandboxedImageFile"]

START_SECONDS = 60.0
WALL_FACTOR = 4
"""A decoder may wait for a processor, not use one: it is given this many times its processor time by the clock."""
FRAMES_PER_SHARE = 20
"""An image as a whole gets its seconds once, and once more for each so many frames; else 4,096 slow frames would take a day."""
FAILURES = 3
"""Frames of an image whose decoder crashed. After these the rest is not tried."""
_PROGRAM = f"""
import json, socket, sys
sys.path[:] = json.loads(sys.argv[1])
from {fork_server_main.__module__} import {fork_server_main.__name__}
{fork_server_main.__name__}(socket.socket(fileno=int(sys.argv[2])))
"""
_SINGLE = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
_KEPT = ("LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
"""Of the environment, which may hold passwords, the decoders get these alone."""


class DecoderPool:
    """Opens images in processes of their own. To be closed, or used in a `with`; may be shared between threads.

    Args:
        limits: bounds on each image.

    Raises:
        UsageError: this is not Linux.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        if not sys.platform.startswith("linux"):
            raise UsageError("decoding in a process of its own works on Linux only; leave it out")
        self.limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._owner = os.getpid()
        self.unreaped: deque[int] = deque()

    def open(self, data: bytes, name_hint: str = "") -> SandboxedImageFile:
        """As `open_image`, in a process of its own.

        Raises:
            ImageError: as `open_image`; timed-out, decoder-failed.
        """
        return SandboxedImageFile(self, data, name_hint)

    def close(self) -> None:
        """End the process, and with it all its children."""
        with self._lock:
            self._stop()

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def fork(self) -> tuple[int, socket.socket]:
        """A new child: its process number, and the channel to it.

        Raises:
            ImageError: decoder-failed, where no process can be had.
        """
        while self.unreaped:
            self.reap(self.unreaped.popleft())
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                answer = self._ask({"fork": 1}, theirs)
            return int(answer["process"]), ours
        except BaseException:
            ours.close()
            raise

    def reap(self, process: int) -> int | None:
        """End a child and take its exit status, as os.waitpid gives it; None where the process that forked it has gone too."""
        with self._lock:
            if self._control is None or self._owner != os.getpid():
                return None
            try:
                return int(self._exchange(self._control, {"reap": process}, None)["status"])
            except (OSError, ValueError, KeyError):
                self._stop()
                return None

    def _ask(self, words: dict[str, int], handle: socket.socket) -> dict[str, Any]:
        with self._lock:
            for attempt in (1, 2):
                try:
                    return self._exchange(self._started(), words, handle)
                except (OSError, ValueError) as error:
                    self._stop()
                    if attempt == 2:
                        raise ImageError(Reason.DECODER_FAILED, f"no process could be started to decode it ({error})") from error
        raise AssertionError("not reached")

    def _exchange(self, control: socket.socket, words: dict[str, int], handle: socket.socket | None) -> dict[str, Any]:
        text = json.dumps(words).encode()
        if handle is None:
            control.send(text)
        else:
            socket.send_fds(control, [text], [handle.fileno()])
        return _packet(control)

    def _started(self) -> socket.socket:
        if self._owner != os.getpid():  # this process is a fork, and the connection is its parent's
            self._process = self._control = None
            self._owner = os.getpid()
        if self._control is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.settimeout(START_SECONDS)
            with theirs:
                self._process = subprocess.Popen(
                    [*python_command(), "-c", _PROGRAM, json.dumps(child_search_path()), str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # libraries print there, of a file's content too
                    env=dict.fromkeys(_SINGLE, "1") | {name: os.environ[name] for name in _KEPT if name in os.environ},
                    start_new_session=True,  # a Ctrl-C is for this process, which then ends that one
                )
            self._control = ours
            _packet(ours)
        return self._control

    def _stop(self) -> None:
        if self._owner != os.getpid():
            return
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._control = None


def _packet(control: socket.socket) -> dict[str, Any]:
    text = control.recv(1024)
    if not text:
        raise ConnectionError("it ended")
    words = json.loads(text)
    if not isinstance(words, dict):
        raise ValueError("it answered with something else")
    return words


def _text(value: object) -> str | None:
    return None if value is None else str(value)


class _Child:
    """A process with one open image."""

    def __init__(self, pool: DecoderPool) -> None:
        self.pool = pool
        self.process, self.channel = pool.fork()
        self._finalizer = weakref.finalize(self, _abandon, pool, self.process, self.channel)

    def end(self) -> int | None:
        """Kill and reap it; its exit status, None when that is not known."""
        if not self._finalizer.detach():
            return None
        self.channel.close()
        return self.pool.reap(self.process)


def _abandon(pool: DecoderPool, process: int, channel: socket.socket) -> None:
    """Of an image that no one closed. This may run in the middle of anything, so it takes no lock and waits for nothing."""
    channel.close()
    pool.unreaped.append(process)


class SandboxedImageFile:
    """As `ImageFile`, decoded in another process. To be closed. Frames may be asked for from several threads, which take turns.

    Attributes:
        kind: the format, by content.
        frames: how many there are, 1 or more.
        notes, identifiers: as `ImageFile`'s.
    """

    def __init__(self, pool: DecoderPool, data: bytes, name_hint: str) -> None:
        self._pool = pool
        self._limits = pool.limits
        self._data = data
        self._hint = name_hint[-100:]
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._failures = 0
        self._refused: ImageError | None = None
        self._spent = 0.0
        self._budget = WALL_FACTOR * self._limits.max_seconds
        self.frames = 1
        opened = self._open()
        try:
            self.kind = Kind(opened["kind"])
            self.frames = int(opened["frames"])
            self.notes = tuple(ContentFlag(note) for note in opened["notes"])
            self.identifiers = Identifiers(**{str(name): _text(value) for name, value in opened["identifiers"].items()})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self.close()
            raise ImageError(Reason.DECODER_FAILED, "its decoder answered with something that is no answer") from error
        if not 1 <= self.frames <= self._limits.max_frames:
            self.close()
            raise ImageError(Reason.DECODER_FAILED, "its decoder answered with something that is no answer")
        self._budget *= 1 + self.frames / FRAMES_PER_SHARE

    def views(self, number: int, size: int) -> tuple[NDArray[np.uint8], ...]:
        """As `ImageFile.views`.

        Raises:
            ImageError: as `ImageFile.views`; timed-out, decoder-failed.
            IndexError: there is no such frame.
        """
        return self._frame(number, size)

    def renderings(self, number: int) -> tuple[NDArray[np.uint8], ...]:
        """As `ImageFile.renderings`.

        Raises:
            As for `views`.
        """
        return self._frame(number, 0)

    def frame(self, number: int) -> NDArray[np.uint8]:
        """As `ImageFile.frame`.

        Raises:
            As for `views`.
        """
        return self._frame(number, 0)[0]

    def close(self) -> None:
        """End its process. The image may still be asked for frames: it is then opened again."""
        with self._lock:
            if self._child is not None:
                self._child.end()
                self._child = None

    def _frame(self, number: int, size: int) -> tuple[NDArray[np.uint8], ...]:
        if not 0 <= number < self.frames:
            raise IndexError(f"frame {number} of an image with {self.frames}")
        with self._lock:
            if self._refused is not None:
                raise ImageError(self._refused.reason, str(self._refused))
            if self._child is None:
                self._open()
            most = 4 * 3 * (size * size if size else self._limits.max_pixels)
            words, pixels = self._exchange({"frame": number, "size": size}, most)
            return self._arrays(words, pixels, size)

    def _notes_after(self, words: dict[str, Any]) -> tuple[ContentFlag, ...]:
        """The flags, of which decoding a frame shows some: hidden pixels, or that a thumbnail is no other image."""
        if "notes" not in words:
            return self.notes
        try:
            now = {ContentFlag(note) for note in words["notes"]}
        except (TypeError, ValueError) as error:
            raise ImageError(Reason.DECODER_FAILED, "its decoder answered with something that is no answer") from error
        return tuple(sorted(now | (set(self.notes) - {ContentFlag.EMBEDDED_IMAGE})))

    def _arrays(self, words: dict[str, Any], pixels: bytearray, size: int) -> tuple[NDArray[np.uint8], ...]:
        arrays, offset = [], 0
        for shape in words.get("shapes") or ():
            height, width, channels = (int(side) for side in shape)
            if min(height, width) < 1 or channels != 3 or (size and (height, width) != (size, size)):
                break
            part = pixels[offset : offset + height * width * 3]
            if len(part) < height * width * 3:
                break
            arrays.append(np.frombuffer(part, np.uint8).reshape(height, width, 3))
            offset += len(part)
        if not arrays or offset != len(pixels):
            raise ImageError(Reason.DECODER_FAILED, "its decoder answered with something that is no image")
        return tuple(arrays)

    def _open(self) -> dict[str, Any]:
        self._child = _Child(self._pool)
        try:
            words, _ = self._exchange(None, 0)
        except ImageError:
            if self._child is not None:
                self._child.end()
                self._child = None
            raise
        return words

    def _exchange(self, request: dict[str, Any] | None, max_bytes: int) -> tuple[dict[str, Any], bytearray]:
        """Ask the child, which is given the image where there is no request; its answer, unless that is an error.

        Raises:
            ImageError: what the child found, or what became of it.
        """
        child = self._child
        if child is None:
            raise ImageError(Reason.DECODER_FAILED, "its decoder has gone")
        began = time.monotonic()
        allowed = min(WALL_FACTOR * self._limits.max_seconds, self._budget - self._spent)
        deadline = began + allowed
        try:
            if request is None:
                send(child.channel, {"limits": asdict(self._limits), "name_hint": self._hint}, deadline=deadline)
                send(child.channel, {}, self._data, deadline=deadline)
            else:
                send(child.channel, request, deadline=deadline)
            words, rest = receive(child.channel, max_bytes, deadline)
        except (Closed, TimeoutError) as error:
            raise self._died(child.end(), isinstance(error, TimeoutError)) from error
        finally:
            self._spent += time.monotonic() - began
        if request is not None:
            self.notes = self._notes_after(words)  # of a frame that is refused too
        if "reason" in words:
            try:
                raise ImageError(Reason(words["reason"]), str(words.get("message"))[:1000])
            except ValueError as error:
                raise ImageError(Reason.DECODER_FAILED, "its decoder answered with something that is no answer") from error
        return words, rest

    def _died(self, status: int | None, late: bool) -> ImageError:
        """What to say of a child that is no more, and whether the image's other frames are still to be tried."""
        self._child = None
        self._failures += 1
        number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0
        if late or number == signal.SIGXCPU:
            error = ImageError(Reason.TIMED_OUT, f"its decoder took more than {self._limits.max_seconds:g} s and was ended")
            self._refused = error
        elif status is not None and os.WIFEXITED(status) and os.WEXITSTATUS(status) == OUT_OF_MEMORY_STATUS:
            error = ImageError(Reason.OUT_OF_MEMORY, "there was not enough memory to decode it")
        elif number == signal.SIGKILL:
            error = ImageError(
                Reason.DECODER_FAILED, "its decoder was killed from outside, as the system does when memory runs out"
            )
        elif number:
            error = ImageError(Reason.DECODER_FAILED, f"its decoder crashed ({signal.Signals(number).name})")
        else:
            error = ImageError(Reason.DECODER_FAILED, "its decoder ended without an answer")
        if self._failures >= FAILURES:
            self._refused = error
        return error
