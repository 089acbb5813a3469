"""What is read ahead: in order, never too far, and no thread is waited for that waits for its source."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.decode_pool import FRAMES_AHEAD, DecodedFrame, DecodePool, FailedFrame, KnownFile, map_ahead
from lcmem_onnx.runtime.errors import ImageError, Reason
from lcmem_onnx.runtime.images.discovery import Supplied
from lcmem_onnx.runtime.images.image import open_image
from PIL import Image


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4), st.integers(1, 9))
def test_results_come_in_the_order_of_the_items_and_never_too_far_ahead(delays: list[int], workers: int, depth: int) -> None:
    taken = 0

    def items() -> Iterator[tuple[int, int]]:
        nonlocal taken
        for item in enumerate(delays):
            taken += 1
            yield item

    def work(item: tuple[int, int]) -> int:
        time.sleep(item[1] / 1000)
        return item[0]

    for yielded, number in enumerate(map_ahead(work, items(), workers=workers, depth=depth, name="test")):
        assert number == yielded
        assert taken <= yielded + depth


def test_an_error_comes_when_its_turn_comes() -> None:
    results = map_ahead(lambda number: 1 // number, [3, 1, 0, 2], workers=2, depth=3, name="test")
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_the_source_is_closed_before_its_threads_are_waited_for() -> None:
    stopped = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            stopped.set()

    def work(number: int) -> int:
        assert number == 0 or stopped.wait(30)
        return number

    results = map_ahead(work, items(), workers=2, depth=3, name="test")
    assert next(results) == 0
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 20


def test_a_source_of_paths_is_closed_before_its_threads_are_waited_for(images: Path) -> None:
    stopped = threading.Event()

    def read() -> bytes:
        if not stopped.wait(30):
            raise ImageError(Reason.READ_FAILED, "the source was not closed")
        return b""

    def paths() -> Iterator[Path | Supplied]:
        try:
            yield images / "0.png"
            while True:
                yield Supplied("waits", read)
        finally:
            stopped.set()

    frames = DecodePool(8, workers=2, depth=3).frames(paths())
    assert isinstance(next(frames), DecodedFrame)
    began = time.monotonic()
    frames.close()
    assert time.monotonic() - began < 20


def test_each_stage_has_its_type(images: Path, tmp_path: Path) -> None:
    pages = [Image.open(images / f"{number % 6}.png").convert("RGB") for number in range(FRAMES_AHEAD + 3)]
    pages[2] = pages[-2] = Image.new("RGB", pages[0].size, "black")
    pages[0].save(tmp_path / "long.tiff", save_all=True, append_images=pages[1:])
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    paths = [images / "0.png", tmp_path / "bad.png", tmp_path / "long.tiff", images / "1.png", tmp_path / "missing.png"]

    frames = list(DecodePool(32, workers=2, depth=2).frames(paths, known=lambda content, key: key.endswith("1.png")))

    single, bad, *many, known, missing = frames
    assert isinstance(single, DecodedFrame)
    assert (single.number, single.last, single.file.frames) == (0, True, 1)
    np.testing.assert_array_equal(single.views, np.stack(open_image(paths[0].read_bytes()).views(0, 32)))
    assert isinstance(bad, FailedFrame)
    assert (bad.number, bad.last, bad.file.frames) == (None, True, 0)
    assert [frame.number for frame in many] == list(range(FRAMES_AHEAD + 3))
    assert [frame.number for frame in many if isinstance(frame, FailedFrame)] == [2, FRAMES_AHEAD + 1]
    assert [frame.last for frame in many] == [False] * (FRAMES_AHEAD + 2) + [True]
    assert isinstance(known, KnownFile)
    assert known.last
    assert known.file.content is not None
    assert isinstance(missing, FailedFrame)
    assert isinstance(missing.error, ImageError)
    assert missing.error.reason is Reason.NOT_FOUND
    assert missing.file.content is None
