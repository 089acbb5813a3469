"""Our rendering against ImageMagick's and against the pixels that were written: a slice here, all of it where time is no matter."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "raster_sweep.py"
pytestmark = pytest.mark.skipif(not shutil.which("convert"), reason="ImageMagick's convert is not installed")


@pytest.fixture(scope="module")
def sweep() -> ModuleType:
    pytest.importorskip("tifffile", reason="tifffile is not installed")
    spec = importlib.util.spec_from_file_location("raster_sweep", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def check(sweep: ModuleType, start: int, every: int) -> tuple[int, list[str]]:
    """How many were compared, and those that differ in silence."""
    wrong, compared = [], 0
    for combination in itertools.islice(sweep.combinations(), start, None, every):
        try:
            outcome = sweep.compared(combination)
        except subprocess.CalledProcessError:
            continue  # a format that this ImageMagick does not write
        compared += 1
        if outcome.kind == "different":
            wrong.append(f"{combination.name}: {outcome.mean:.2f} {outcome.most:.0f} {outcome.detail}")
    return compared, wrong


def test_a_slice_of_the_sweep(sweep: ModuleType) -> None:
    compared, wrong = check(sweep, 3, 17)
    assert not wrong
    assert compared >= 20


@pytest.mark.slow
def test_the_whole_sweep(sweep: ModuleType) -> None:
    compared, wrong = check(sweep, 0, 1)
    assert not wrong
    assert compared >= 400


def test_the_sweep_would_notice(sweep: ModuleType) -> None:
    """A rendering that is another's: so that 'same' means something."""
    upside_down = sweep.Combination("x", "png", sweep.saved("PNG", sweep.base()[::-1].copy()), sweep.base)
    assert sweep.compared(upside_down).kind == "different"
    darker = sweep.Combination("x", "png", sweep.saved("PNG", sweep.base() // 2), sweep.base)
    assert sweep.compared(darker).kind == "different"
    refused = sweep.Combination("x", "png", lambda: b"no image", sweep.base)
    assert sweep.compared(refused).kind == "refused"
