"""Images decoded in processes of their own: the same images, and what becomes of decoders that crash, loop or lie."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from lcmem_onnx.runtime.errors import ImageError, Reason
from lcmem_onnx.runtime.images import sandbox
from lcmem_onnx.runtime.images.content_flags import ContentFlag
from lcmem_onnx.runtime.images.formats import Limits
from lcmem_onnx.runtime.images.image import open_image
from lcmem_onnx.runtime.images.sandbox import DecoderPool, SandboxedImageFile
from PIL import Image

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="isolation needs Linux"),
    pytest.mark.filterwarnings("ignore"),
]

SHIPPED = Path(pydicom.__file__).parent / "data"
PICTURES = Path(__file__).parent.parent / "examples" / "pictures" / "queries"

HOSTILE = """
import ctypes, os, time
from lcmem_onnx.runtime.images import sandbox_worker as process
from lcmem_onnx.runtime.images.dicom.identifiers import Identifiers
process.Identifiers = Identifiers
sound = process.open_image
class Picture:
    kind, frames, notes, identifiers = "png", 3, (), process.Identifiers()
    def __init__(self, what): self.what = what
    def views(self, number, size):
        if number == 1:
            act(self.what)
        return (process.np.full((size, size, 3), number, "uint8"),)
    def renderings(self, number):
        raise ZeroDivisionError("line one\\nline two")
class Liar(bytes): pass
def act(what):
    if what == "crash": ctypes.string_at(0)
    if what == "abort": os.abort()
    if what == "exit": os._exit(7)
    if what == "loop":
        while True: pass
    if what == "sleep": time.sleep(600)
    if what == "memory": held = bytearray(1 << 40)
    if what == "little by little":
        held = []
        while True: held.append(bytearray(b'x') * (1 << 22))
    if what == "recursion": act2()
    if what == "write": os.write(os.memfd_create("x"), b"x" * 10)
    if what == "environment": assert "SECRET_OF_THE_TESTS" not in os.environ, "seen"
    if what == "raise": raise process.struct.error("odd")
def act2(): act2()
def open_image(data, limits, hint):
    what = bytes(data).decode("ascii", "replace")
    if what.startswith("frame "): return Picture(what[6:])
    if what == "lie":
        process.send = lambda channel, words, *parts, **more: channel.sendall(b"nonsense" * 100)
        return Picture("")
    if what == "lie about frames":
        Picture.frames = -4
        return Picture("")
    if what == "small views":
        Picture.views = lambda self, number, size: (process.np.zeros((size, size - 1, 3), "uint8"),)
        return Picture("")
    if what.startswith("open "): act(what[5:])
    return sound(data, limits, hint)
process.open_image = open_image
"""


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecoderPool]:
    with DecoderPool() as made:
        yield made


@pytest.fixture(scope="module")
def hostile() -> Iterator[DecoderPool]:
    """One whose decoders do what an image's content says."""
    usual = sandbox._PROGRAM
    loaded, call, arguments = usual.rpartition("fork_server_main(")
    sandbox._PROGRAM = loaded + HOSTILE + call + arguments
    os.environ["SECRET_OF_THE_TESTS"] = "x"
    with DecoderPool(Limits(max_seconds=1, max_memory_bytes=1 << 28)) as made:
        made.open((PICTURES / "other-coffee.jpg").read_bytes()).close()
        yield made
    sandbox._PROGRAM = usual
    del os.environ["SECRET_OF_THE_TESTS"]


def some_files() -> list[Path]:
    names = [
        "CT_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "JPGExtended.dcm",
        "examples_palette.dcm",
        "SC_rgb_rle_2frame.dcm",
    ]
    return [next(SHIPPED.rglob(name)) for name in names] + sorted(PICTURES.iterdir())[:3]


@pytest.mark.parametrize("path", some_files(), ids=lambda path: path.name)
def test_the_same_images_as_in_this_process(path: Path, decoders: DecoderPool) -> None:
    data = path.read_bytes()
    here, there = open_image(data, name_hint=path.name), decoders.open(data, path.name)
    for attribute in ("kind", "frames", "notes", "identifiers"):
        assert getattr(there, attribute) == getattr(here, attribute)
    for number in range(min(here.frames, 3)):
        for ours, theirs in (
            (here.views(number, 64), there.views(number, 64)),
            (here.renderings(number), there.renderings(number)),
        ):
            assert len(ours) == len(theirs)
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(one, other)
    there.close()


def test_errors_are_those_of_this_process(decoders: DecoderPool) -> None:
    truncated = next(SHIPPED.rglob("MR_truncated.dcm")).read_bytes()
    for data in (b"", b"no image at all", truncated):
        messages = []
        for opener in (open_image, decoders.open):
            with pytest.raises(ImageError) as caught:
                opener(data).frame(0)  # type: ignore[operator]
            messages.append((caught.value.reason, str(caught.value)))
        assert messages[0] == messages[1]


def test_flags_of_a_refused_frame_are_those_of_this_process(decoders: DecoderPool) -> None:
    """A wholly transparent image is blank, and the colors under its transparency are flagged all the same."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    image = decoders.open(file.getvalue(), "cutout.png")
    with pytest.raises(ImageError) as caught:
        image.views(0, 32)
    image.close()
    assert caught.value.reason is Reason.BLANK
    assert image.notes == (ContentFlag.HIDDEN_PIXELS,)


def test_a_closed_image_can_be_asked_again(decoders: DecoderPool) -> None:
    image = decoders.open(next(SHIPPED.rglob("CT_small.dcm")).read_bytes())
    first = image.views(0, 32)
    image.close()
    np.testing.assert_array_equal(image.views(0, 32)[0], first[0])
    image.close()
    with pytest.raises(IndexError):
        image.frame(1)


def test_threads_share_a_decoder_pool(decoders: DecoderPool) -> None:
    data = next(SHIPPED.rglob("MR_small.dcm")).read_bytes()
    expected = open_image(data).views(0, 32)[0]

    def one(_: int) -> bool:
        image = decoders.open(data)
        view = image.views(0, 32)[0]
        image.close()
        return bool((view == expected).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(24)))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("crash", Reason.DECODER_FAILED),
        ("abort", Reason.DECODER_FAILED),
        ("exit", Reason.DECODER_FAILED),
        ("memory", Reason.OUT_OF_MEMORY),
        ("little by little", Reason.OUT_OF_MEMORY),
        ("recursion", Reason.DAMAGED),
        ("raise", Reason.DAMAGED),
        ("write", Reason.DAMAGED),
        ("loop", Reason.TIMED_OUT),
    ],
)
def test_a_decoder_that_goes_wrong_takes_its_frame_along_and_no_other(what: str, reason: Reason, hostile: DecoderPool) -> None:
    image = hostile.open(f"frame {what}".encode())
    assert image.views(0, 8)[0].max() == 0
    with pytest.raises(ImageError) as caught:
        image.views(1, 8)
    assert caught.value.reason is reason
    assert "\n" not in str(caught.value)
    if reason is Reason.TIMED_OUT:  # else each of 4,096 frames could take as long
        with pytest.raises(ImageError, match="1 s"):
            image.views(2, 8)
    else:
        assert image.views(2, 8)[0].max() == 2
    image.close()
    sound = hostile.open((PICTURES / "other-coffee.jpg").read_bytes())
    assert sound.views(0, 8)[0].shape == (8, 8, 3)
    sound.close()


def test_a_decoder_that_goes_wrong_on_opening(hostile: DecoderPool) -> None:
    with pytest.raises(ImageError) as caught:
        hostile.open(b"open crash")
    assert caught.value.reason is Reason.DECODER_FAILED


def test_a_decoder_that_waits_for_ever_is_ended_by_the_clock(hostile: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WALL_FACTOR", 0.5)
    image = hostile.open(b"frame sleep")
    began = time.monotonic()
    with pytest.raises(ImageError) as caught:
        image.views(1, 8)
    assert caught.value.reason is Reason.TIMED_OUT
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("what", ["lie", "lie about frames", "small views"])
def test_what_a_decoder_says_is_checked(what: str, hostile: DecoderPool) -> None:
    with pytest.raises(ImageError) as caught:
        hostile.open(what.encode()).views(0, 8)
    assert caught.value.reason is Reason.DECODER_FAILED


def test_after_three_crashes_the_rest_is_not_tried(hostile: DecoderPool) -> None:
    image = hostile.open(b"frame crash")
    for _ in range(3):
        with pytest.raises(ImageError, match="SIGSEGV"):
            image.views(1, 8)
    with pytest.raises(ImageError, match="SIGSEGV"):
        image.views(0, 8)


def test_decoders_do_not_get_the_environment(hostile: DecoderPool) -> None:
    image = hostile.open(b"frame environment")
    assert image.views(1, 8)
    image.close()


def children(process: int) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == process:
                found.append(fields[0])
    return found


def eventually(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    return what()


def test_no_process_is_left_behind() -> None:
    data = next(SHIPPED.rglob("CT_small.dcm")).read_bytes()
    with DecoderPool() as decoders:
        image = decoders.open(data)
        process = decoders._process
        assert process is not None
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "Threads:\t1\n" in status  # or a fork could hang
        image.close()
        assert not children(process.pid)
        forgotten: SandboxedImageFile | None = decoders.open(data)
        assert forgotten is not None
        forgotten = None
        gc.collect()
        decoders.open(data).close()  # reaps it
        assert not children(process.pid)
        kept = decoders.open(data)
        assert kept._child is not None
        child = kept._child.process
    assert eventually(lambda: not Path(f"/proc/{child}").exists())
    assert process.returncode is not None


def test_a_decoder_pool_that_was_killed_is_started_again() -> None:
    data = next(SHIPPED.rglob("CT_small.dcm")).read_bytes()
    with DecoderPool() as decoders:
        image = decoders.open(data)
        assert decoders._process is not None
        os.kill(decoders._process.pid, signal.SIGKILL)
        decoders._process.wait()
        with pytest.raises(ImageError) as caught:
            image.views(0, 8)
        assert caught.value.reason is Reason.DECODER_FAILED
        assert image.views(0, 8)
        image.close()
