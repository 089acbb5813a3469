"""A scan says in one line that its threshold is too low for the gallery, and says nothing where matches are right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from lcmem_onnx.cli import main
from lcmem_onnx.runtime.calibration.flood import MANY, Flood, FloodWatch
from lcmem_onnx.runtime.calibration.threshold import Decision
from lcmem_onnx.runtime.errors import Reason
from lcmem_onnx.runtime.gallery import Hit, Identity
from lcmem_onnx.runtime.model.head import Head
from lcmem_onnx.runtime.results import Result as Screened
from lcmem_onnx.runtime.results import ThresholdSource
from lcmem_onnx.runtime.screening import Verdict
from PIL import Image
from scipy.stats import binom

HEAD = Head(np.full(4, -6.0, np.float32), 8.0)
BY_BUNDLE = Decision(0.5, ThresholdSource.BUNDLE, "for pairs")
NEAR = 0.6
COPY = 0.9996


def hits(*patients: str | None, score: float = NEAR) -> tuple[Identity, ...]:
    """The best image of each patient; None is an image of an unknown one."""
    return tuple(
        Identity(patient, Hit(f"/{number}.png", 0, score - number / 1000, patient=patient))
        for number, patient in enumerate(patients)
    )


def screened(number: int, found: tuple[Identity, ...] = (), frame: int = 0, verdict: Verdict | None = None) -> Screened:
    nearest = found[0].best if found else Hit("/far.png", 0, 0.01)
    verdict = verdict or (Verdict.MATCH if found else Verdict.CLEAR)
    return Screened(f"{number}.png", frame, verdict, Reason.BELOW_THRESHOLD, 0.5, nearest=nearest, identities=found)


def flood(*results: Screened, decision: Decision = BY_BUNDLE) -> Flood | None:
    watch = FloodWatch(decision, HEAD)
    for result in results:
        watch.see(result)
    return watch.flood()


def test_images_that_match_several_patients_each_are_a_flood() -> None:
    found = flood(*(screened(at, hits("a", "b", "c")) for at in range(5)), *(screened(at) for at in range(5, 10)))
    assert found is not None
    assert (found.flooded, found.images, found.expected, found.by_patient) == (5, 10, 0.05, True)
    assert "5 of 10 images match two or more different patients each, expected at most about 5 %" in found.in_words()


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (hits("a"), "each shows one patient"),
        (hits("a", None, None), "one patient is known, and further images may show the same"),
        (hits(*[None] * (MANY - 1)), "so many images may show one patient"),
        (hits(*"abcdef", score=COPY), "each is a copy, whatever else it resembles"),
        (hits(*[None] * MANY, score=COPY), "each is a copy, whatever else it resembles"),
        (tuple(Identity(None, Hit(f"/{at}.png", 0, NEAR)) for at in range(9)), "one image is in the gallery nine times"),
    ],
)
def test_matches_that_may_all_be_right_are_none(found: tuple[Identity, ...], why: str) -> None:
    assert flood(*(screened(at, found) for at in range(200))) is None, why


def test_many_images_of_unknown_patients_are_a_flood() -> None:
    found = flood(*(screened(at, hits(*[None] * MANY)) for at in range(5)))
    assert found is not None
    assert not found.by_patient
    assert "5 of 5 images match 5 or more different images each" in found.in_words()


def test_a_calibrated_threshold_is_not_doubted() -> None:
    calibrated = Decision(0.5, ThresholdSource.INDEX, "set for this index")
    assert flood(*(screened(at, hits("a", "b")) for at in range(50)), decision=calibrated) is None


def test_frames_of_one_image_count_once_and_errors_never() -> None:
    results = [screened(0, hits("a", "b"), frame) for frame in range(100)]
    errors = [screened(at, hits("a", "b"), verdict=Verdict.ERROR) for at in range(1, 60)]
    assert flood(*results, *errors) is None


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.001, 0.6))
def test_it_floods_where_chance_gives_so_many_in_one_of_a_thousand_scans(several: int, others: int, expected: float) -> None:
    decision = Decision(0.5, ThresholdSource.STRANGERS, "of the test", expected=expected)
    found = flood(
        *(screened(at, hits("a", "b")) for at in range(several)),
        *(screened(at, hits("a")) for at in range(several, several + others)),
        decision=decision,
    )
    chance = binom.sf(several - 1, several + others, expected)
    if abs(chance - 1e-3) > 1e-6:
        assert (found is not None) == (several >= 3 and chance < 1e-3)
    if found is not None:
        assert (found.flooded, found.images, found.expected) == (several, several + others, expected)


# -- by the command line ----------------------------------------------------------------------------------------------


def lcmem(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done


def drawn(folder: Path, seeds: range) -> Path:
    folder.mkdir()
    for seed in seeds:
        smooth = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(smooth).resize((90, 80), Image.Resampling.BICUBIC).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Images, others of the same kind, and an index of the former."""
    folder = tmp_path_factory.mktemp("flood")
    images, others = drawn(folder / "images", range(8)), drawn(folder / "others", range(100, 106))
    assert lcmem("index", "build", images, "--index", folder / "idx", "-q").exit_code == 0
    return images, others, folder / "idx"


def test_a_scan_warns_once_and_says_so_in_the_summary(folders: tuple[Path, Path, Path]) -> None:
    """Any two images reach so low a threshold."""
    _, others, index = folders
    done = lcmem("scan", others, "--index", index, "--threshold", "0.01", "--json", "--top", "1")
    *lines, last = map(json.loads, done.stdout.splitlines())
    assert last["summary"]["flood"] == {
        "images": 6,
        "several_patients": 6,
        "expected_at_most": 0.05,
        "threshold": 0.01,
        "by_patient": False,
    }
    assert {len(line["matches"]) for line in lines} == {len(line["identities"]) for line in lines} == {1}
    assert {line["matches_total"] for line in lines} == {8}
    assert done.stderr.count("is too low for this gallery: 6 of 6 images match 5 or more different images each") == 1
    assert f"lcmem-onnx calibrate --index {index} --negatives" in done.stderr
    quiet = lcmem("scan", others, "--index", index, "--threshold", "0.01", "-q")
    assert (quiet.exit_code, quiet.stderr) == (1, "")


def test_a_scan_against_a_folder_says_how_to_calibrate(folders: tuple[Path, Path, Path]) -> None:
    images, others, _ = folders
    done = lcmem("scan", others, "--against", images, "--threshold", "0.01")
    assert f"index build {images} --index DIR" in done.stderr


def test_a_scan_of_copies_and_one_of_strangers_do_not_warn(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    images, others, index = folders
    copies = Path(shutil.copytree(images, tmp_path / "copies"))
    for queries, threshold in ((copies, "1e-9"), (copies, "0.26"), (others, "0.999")):
        done = lcmem("scan", queries, "--index", index, "--threshold", threshold, "--json")
        assert "flood" not in json.loads(done.stdout.splitlines()[-1])["summary"]
        assert "too low" not in done.stderr
