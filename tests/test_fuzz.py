"""`benchmarks/fuzz.py` in short: mutated files of every format end in frames or in an error of one line; and its judge can fail."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from lcmem_onnx.runtime.errors import ImageError, Reason
from PIL import Image

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="decoding in a process of its own works on Linux only")


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fuzz

    return fuzz


def png(fuzz: Any) -> Any:
    import io

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(file, "PNG")
    return fuzz.Fixture("png", "x.png", file.getvalue())


def judged(fuzz: Any, mutations: int, every: int) -> None:
    fixtures = list({one.name: one for one in fuzz.generated(every)}.values())
    assert len(fixtures) >= 10
    tallies = fuzz.run(fixtures, mutations, seed=1, here=True)
    assert {name: tally.faults for name, tally in tallies.items() if tally.faults} == {}
    assert all(tally.outcomes.total() == mutations for tally in tallies.values())
    everything = sum((tally.outcomes for tally in tallies.values()), start=next(iter(tallies.values())).outcomes.__class__())
    assert min(everything["decoded"], everything["damaged"]) > 0, "the mutations are too weak, or too strong"


@pytest.mark.filterwarnings("ignore")
def test_mutated_files_end_in_frames_or_in_one_line(fuzz: ModuleType) -> None:
    judged(fuzz, mutations=5, every=29)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_mutated_files_end_in_frames_or_in_one_line(fuzz: ModuleType) -> None:
    judged(fuzz, mutations=20, every=7)


def test_the_same_seed_gives_the_same_mutations(fuzz: Any) -> None:
    data = png(fuzz).data
    one, again, other = ([fuzz.mutated(data, data, rng) for _ in range(200)] for rng in map(np.random.default_rng, (0, 0, 1)))
    assert one == again
    assert one != other
    assert sum(changed != data for changed in one) > 150


def test_a_mutated_png_has_checksums_that_fit(fuzz: Any) -> None:
    changed = bytearray(png(fuzz).data)
    changed[24] = 3
    fixed = fuzz._with_checksums(changed)
    assert int.from_bytes(fixed[29:33], "big") == zlib.crc32(fixed[12:29])


class _ImageFile:
    def __init__(self, frames: int, view: Callable[[], Any]) -> None:
        self.frames, self._view, self._child = frames, view, None

    def views(self, number: int, size: int) -> tuple[Any, ...]:
        return (self._view(),)

    def close(self) -> None: ...


def _raised(error: BaseException) -> Any:
    raise error


def _printed() -> Any:
    os.write(2, b"libtiff: an error\n")
    return np.zeros((64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("view", "told"),
    [
        (lambda: _raised(ValueError("odd")), "ValueError: odd"),
        (lambda: _raised(ImageError(Reason.DAMAGED, "two\nlines")), "not one line"),
        (
            lambda: _raised(ImageError(Reason.DECODER_FAILED, "its decoder answered with something that is no answer")),
            "no answer",
        ),
        (lambda: np.zeros((64, 63, 3), np.uint8), "another shape"),
        (_printed, "on stderr: b'libtiff: an error"),
    ],
)
def test_a_fault_is_told_and_kept(fuzz: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: Any, told: str) -> None:
    monkeypatch.setattr(fuzz.DecoderPool, "open", lambda self, data, name: _ImageFile(1, view))
    monkeypatch.setattr(fuzz, "_baseline", lambda decoders, fixtures: 0.0)
    tallies = fuzz.run([png(fuzz)], 3, seed=0, keep=tmp_path / "kept")
    assert len(tallies["png"].faults) == 3
    assert told in tallies["png"].faults[0]
    assert 1 <= len(list((tmp_path / "kept").iterdir())) <= 3


def test_what_comes_out_otherwise_here_is_a_fault(fuzz: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz.DecoderPool, "open", lambda self, data, name: _ImageFile(1, lambda: np.zeros((64, 64, 3), np.uint8)))
    monkeypatch.setattr(fuzz, "_baseline", lambda decoders, fixtures: 0.0)
    monkeypatch.setattr(fuzz, "open_image", lambda data, limits, name: _raised(ImageError(Reason.DAMAGED, "damaged")))
    (fault,) = fuzz.run([png(fuzz)], 1, seed=0, here=True)["png"].faults
    assert fault == "decoded in a process of its own, damaged here"


def test_memory_and_time_beyond_the_limits_are_faults(fuzz: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz.DecoderPool, "open", lambda self, data, name: _ImageFile(1, lambda: np.zeros((64, 64, 3), np.uint8)))
    monkeypatch.setattr(fuzz, "_baseline", lambda decoders, fixtures: 100.0)
    monkeypatch.setattr(fuzz, "_memory_of", lambda image: 100.0 + 1200)
    (fault,) = fuzz.run([png(fuzz)], 1, seed=0)["png"].faults
    assert fault == "it took 1200 MB"
    monkeypatch.setattr(fuzz, "_memory_of", lambda image: 0.0)
    monkeypatch.setattr(fuzz, "GRACE_SECONDS", -1e9)
    (fault,) = fuzz.run([png(fuzz)], 1, seed=0)["png"].faults
    assert fault == "it took 0 s"
