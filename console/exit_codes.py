"""How a command ends: an exit code that says what happened, and one line on stderr wherever something went wrong.

Exit code 1 means "a match was found", and that is what Python and click give for most that goes wrong. So everything that
can end a command passes through here: errors, a closed or full output, Ctrl-C, SIGTERM, and defects of our own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, MappingProxyType
from typing import Any

import click

from .terminal import printable

__all__ = ["FAILED", "FOUND", "INTERRUPTED", "NOTHING_FOUND", "Ending", "EndingGroup", "when_interrupted"]

NOTHING_FOUND, FOUND, FAILED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes, as ClamAV's clamscan has them; an error outranks a match, since what was not screened may match as well."""

OUTPUT_CLOSED = "error: output closed early; results are incomplete"
OF_EXTRAS = MappingProxyType(
    {
        "archive": ("httpx2", "python_multipart"),
        "train": ("torch", "diffusers", "accelerate", "imagehash", "nibabel", "nrrd", "sklearn", "tqdm"),
    }
)
"""Packages that come with an extra: what to install where one is missing. A command that needs one optionally says so itself."""


class Terminated(KeyboardInterrupt):
    """A signal that asks the process to end. What cleans up after Ctrl-C then cleans up after it too."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


class _Ended(Exception):  # noqa: N818  # not always an error
    """The end of a command on its way past click, which has ends of its own for some of these."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.code = code


class Ending(click.Command):
    """A command that reports every expected error in one line on stderr with exit code 2."""

    interrupted = "interrupted: results and index entries up to now are kept"
    """Message after Ctrl-C."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _past_click(self.interrupted):  # --help and --version print from here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _past_click(self.interrupted):
            code = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a failure has an ending, and not when Python exits
            return code

    def main(self, *args: Any, **kwargs: Any) -> Any:
        from ..runtime.errors import LcmemError

        if not sys.warnoptions:
            # Pillow and pydicom warn of odd files; what matters of them becomes an image's error.
            warnings.simplefilter("ignore")
        code: object = FAILED
        try:
            _check_streams()
            with _signals():
                code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except _Ended as end:
            _say(str(end))
            code = end.code
        except (click.Abort, KeyboardInterrupt):
            _say(self.interrupted)
            code = INTERRUPTED
        except click.ClickException as error:
            with contextlib.suppress(OSError):
                error.show()
        except LcmemError as error:
            _say(f"error: {printable(str(error))}")
        except MemoryError:
            _say("error: out of memory")
        except Exception as error:  # noqa: BLE001
            # A missing package, or a defect of ours. Python would exit with 1, which here means "a match was found".
            if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("lcmem_onnx"):
                _say(_missing(error))
            else:
                with contextlib.suppress(OSError):
                    traceback.print_exc()
                _say("error: this is a defect in lcmem-onnx; please report the lines above")
        _let_go()
        sys.exit(code if isinstance(code, int) else 0)


class EndingGroup(Ending, click.Group):
    """The same for a group of commands."""


@contextmanager
def when_interrupted(line: str) -> Iterator[None]:
    """Print `line` after Ctrl-C or SIGTERM within this context, instead of `Ending.interrupted`."""
    try:
        yield
    except Terminated as error:
        raise _Ended(error.code, line.replace("interrupted", "terminated", 1)) from error
    except KeyboardInterrupt as error:
        raise _Ended(INTERRUPTED, line) from error


@contextmanager
def _past_click(interrupted: str) -> Iterator[None]:
    """click ends a program whose output breaks with exit code 1, which here is a match, and knows one kind of interrupt."""
    try:
        yield
    except Terminated as error:
        raise _Ended(error.code, interrupted.replace("interrupted", "terminated", 1)) from error
    except BrokenPipeError as error:
        raise _Ended(FAILED, OUTPUT_CLOSED) from error
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich ends the program by itself, and with 1 as well
            raise _Ended(FAILED, OUTPUT_CLOSED) from stop
        raise
    except OSError as error:
        # The runtime turns what images, bundles and indexes raise into errors of its own. This is the output, or what a
        # machine lacks: its temporary folder, say.
        what = "the output cannot be written" if error.filename is None else printable(str(error.filename))
        raise _Ended(FAILED, f"error: {what}: {printable(error.strerror or str(error))}") from error


def _check_streams() -> None:
    """Refuse to work with stdout closed: nothing could be reported, and a file that is opened would get its number."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # to the end of the process
    if sys.stdout is None:
        raise _Ended(FAILED, "error: stdout is closed: results cannot be printed")
    if hasattr(sys.stdout, "reconfigure"):
        # A name that stdout's encoding lacks is escaped, as JSON does it; an error would lose the results after it.
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does, so that temporary folders go. `nohup` stays as it is."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not stop the cleaning up
    raise Terminated(number)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


def _missing(error: ModuleNotFoundError) -> str:
    if error.name == "onnxruntime":
        return "error: onnxruntime is not installed: pip install 'lcmem-onnx[cpu]', or 'lcmem-onnx[gpu]' for CUDA"
    extra = next((extra for extra, names in OF_EXTRAS.items() if error.name in names), "cpu")
    return f"error: the package {error.name} is not installed: pip install 'lcmem-onnx[{extra}]'"


def _let_go() -> None:
    """Python flushes at exit, and where that fails it complains and exits with 120: what cannot be written is dropped."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
