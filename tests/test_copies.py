"""What a gallery misses of its own images, altered, and what a threshold costs: `lcmem-onnx calibrate` without `--pairs`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.cli import main
from lcmem_onnx.evaluation.copies import ALTERATIONS, CopyScores, sample, score_copies
from lcmem_onnx.evaluation.protocols import GRIDS
from lcmem_onnx.runtime.calibration.alarms import RATES, alarm_load
from lcmem_onnx.runtime.calibration.threshold import Decision, calibrate, decide_threshold, stored_calibration
from lcmem_onnx.runtime.gallery import Gallery
from lcmem_onnx.runtime.model.bundle import open_bundle
from lcmem_onnx.runtime.results import ThresholdSource
from lcmem_onnx.runtime.screening import Screener
from PIL import Image, ImageOps

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures" / "gallery"
IMAGES = sorted(path for path in EXAMPLES.iterdir() if path.suffix == ".jpg")


def lcmem(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images, one of them under two names, and their index."""
    folder = tmp_path_factory.mktemp("kept")
    images = folder / "images"
    images.mkdir()
    for path in IMAGES[:5]:
        shutil.copy(path, images)
    shutil.copy(IMAGES[0], images / "same.jpg")
    assert lcmem("index", "build", images, "--index", folder / "idx", "-q").exit_code == 0
    return images, folder / "idx"


@pytest.fixture
def gallery(kept: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, to be changed: the images stay where the index says."""
    images, index = kept
    return images, Path(shutil.copytree(index, tmp_path / "idx"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strangers")
    for seed in range(8):
        smooth = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(smooth).resize((90, 80), Image.Resampling.BICUBIC).save(folder / f"{seed}.png")
    return folder


def test_the_alterations_are_those_of_the_evaluation() -> None:
    names = [cell.name for cell in ALTERATIONS]
    assert len(set(names)) == len(names) >= 12
    strengths = {
        cell.transform: {each.strength for each in GRIDS["all"] if each.transform == cell.transform} for cell in ALTERATIONS
    }
    for cell in ALTERATIONS:
        assert any(cell.grid == each.grid and cell.transform == each.transform for each in GRIDS["all"]), cell
        assert min(strengths[cell.transform]) <= cell.strength <= max(strengths[cell.transform])


def test_a_mirrored_copy_is_missed_when_a_scan_of_it_is_clear(gallery: tuple[Path, Path], tmp_path: Path) -> None:
    """Pillow mirrors the images, and `scan` looks for them."""
    _, index = gallery
    (tmp_path / "mirrored").mkdir()
    for path in IMAGES[:5]:
        ImageOps.mirror(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).save(tmp_path / "mirrored" / f"{path.stem}.png")
    *lines, _ = map(json.loads, lcmem("scan", tmp_path / "mirrored", "--index", index, "--json", "-q").stdout.splitlines())
    nearest = {Path(line["path"]).stem: line["nearest"] for line in lines}
    screener = Screener()
    with Gallery.open(index, screener.bundle) as opened:
        sampled = sample(opened, 100)
        assert len(sampled) == 5
        found = score_copies(screener, opened, sampled, 100)
    assert found is not None
    assert found.scores.shape == (5, len(ALTERATIONS))
    column = next(at for at, cell in enumerate(ALTERATIONS) if cell.transform == "mirrored")
    for image, score in zip(sampled, found.scores[:, column], strict=True):
        near = nearest[Path(image.key).stem if Path(image.key).stem != "same" else IMAGES[0].stem]
        # The nearest may be another image than the original, and is then nearer.
        assert score == pytest.approx(near["score"], abs=2e-3) or score < near["score"]
    limit = float(np.median(found.scores[:, column]))
    (mirrored,) = (each for each in found.misses(limit) if each.alteration == "mirrored")
    assert mirrored.misses.missed == (found.scores[:, column] < limit).sum() == 2
    assert mirrored.misses.interval.low < mirrored.misses.fnir < mirrored.misses.interval.high


def test_the_same_images_are_drawn_each_time_and_each_once(kept: tuple[Path, Path]) -> None:
    with Gallery.open(kept[1], open_bundle()) as opened:
        once, again, few = sample(opened, 100), sample(opened, 100), sample(opened, 1)
    assert once == again
    assert len({image.content for image in once}) == len(once) == 5
    assert few == once[: len(few)]


def test_calibrate_says_what_is_missed_and_what_it_costs(gallery: tuple[Path, Path], strangers: Path) -> None:
    _, index = gallery
    done = lcmem("calibrate", "--index", index, "--negatives", strangers, "--fpir", "0.3", "--suspects", "keep", "--json", "-q")
    assert done.exit_code == 0, done.output
    (line,) = map(json.loads, done.stdout.splitlines())
    assert [each["alteration"] for each in line["copies"]] == [cell.name for cell in ALTERATIONS]
    assert {each["misses"]["mates"] for each in line["copies"]} == {5}
    for each in line["copies"]:
        if not each["misses"]["missed"]:
            # Of 0 in 5 the upper end is 1 - .025^(1/5).
            assert each["misses"]["interval"] == {"low": 0.0, "high": pytest.approx(1 - 0.025**0.2)}
    own = next(each for each in line["alarms"] if each["threshold"] == line["threshold"])
    assert own["holds_per_1000"] == 1000 * line["fpir"] == 250
    assert own["copies_fnir"] == pytest.approx(np.mean([each["misses"]["fnir"] for each in line["copies"]]))
    assert {"index", "strangers"} == {each["threshold_source"] for each in line["alarms"]}
    with Gallery.open(index, open_bundle()) as opened:
        found = stored_calibration(opened)
    assert found is not None
    assert [each.alteration for each in found.copies] == [cell.name for cell in ALTERATIONS]
    shown = " ".join(lcmem("calibrate", "--index", index).stdout.split())
    assert "5 images of the index, each altered in" in shown
    assert "measure those with --pairs" in shown
    assert "up to 52.2 %" in shown


def test_the_table_names_what_is_held_of_a_thousand(gallery: tuple[Path, Path], strangers: Path) -> None:
    done = lcmem(
        "calibrate", "--index", gallery[1], "--negatives", strangers, "--suspects", "keep", "--dry-run", "--copies", "2", "-q"
    )
    said = " ".join(done.stdout.split())
    assert "held of 1,000 strangers' images" in said
    assert "2 images of the index" in said


def test_with_pairs_or_none_asked_for_nothing_is_altered(gallery: tuple[Path, Path], strangers: Path, tmp_path: Path) -> None:
    images, index = gallery
    mate = images / IMAGES[0].name
    ImageOps.mirror(Image.open(mate)).save(tmp_path / "query.png")
    (tmp_path / "pairs.csv").write_text(f"query,mate\n{tmp_path / 'query.png'},{mate}\n", encoding="utf-8")
    common = ("calibrate", "--index", index, "--negatives", strangers, "--suspects", "keep", "--dry-run", "--json", "-q")
    for more in (("--pairs", tmp_path / "pairs.csv"), ("--copies", "0")):
        line = json.loads(lcmem(*common, *more).stdout)
        assert line["copies"] == []
        assert {each["copies_fnir"] for each in line["alarms"]} == {None}
    both = json.loads(lcmem(*common, "--pairs", tmp_path / "pairs.csv", "--copies", "1").stdout)
    assert both["copies"][0]["misses"]["mates"] == both["misses"]["mates"] == 1


def test_without_strangers_it_is_measured_at_the_threshold_of_a_scan(gallery: tuple[Path, Path]) -> None:
    line = json.loads(lcmem("calibrate", "--index", gallery[1], "--copies", "3", "--json", "-q").stdout)
    bundle = open_bundle()
    with Gallery.open(gallery[1], bundle) as opened:
        threshold = decide_threshold(opened).threshold
    assert (line["threshold"], line["threshold_source"]) == (threshold, "strangers")
    assert {each["misses"]["mates"] for each in line["copies"]} == {3}
    said = " ".join(lcmem("calibrate", "--index", gallery[1], "--copies", "3", "-q").stdout.split())
    assert f"threshold {threshold:.4g}: at most about" in said
    with Gallery.open(gallery[1], bundle) as opened:
        assert stored_calibration(opened) is None


def test_images_that_moved_or_changed_are_counted_and_others_taken(tmp_path: Path, strangers: Path) -> None:
    images, index = tmp_path / "images", tmp_path / "idx"
    images.mkdir()
    for path in IMAGES[:4]:
        shutil.copy(path, images)
    assert lcmem("index", "build", images, "--index", index, "-q").exit_code == 0
    (images / IMAGES[0].name).unlink()
    (images / IMAGES[1].name).write_bytes(IMAGES[4].read_bytes())
    done = lcmem("calibrate", "--index", index, "--copies", "4", "--json")
    line = json.loads(done.stdout)
    assert (line["copies_unavailable"], line["copies"][0]["misses"]["mates"]) == (2, 2)
    assert "2 images of the index have moved or cannot be read" in done.stderr
    shutil.rmtree(images)
    done = lcmem("calibrate", "--index", index, "--copies", "4", "--json", "-q")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "not measured: none of 4 images of" in done.stderr
    # A calibration needs none of them.
    done = lcmem("calibrate", "--index", index, "--negatives", strangers, "--suspects", "keep", "--json", "-q")
    assert (done.exit_code, json.loads(done.stdout)["copies"]) == (0, [])
    assert "give --pairs" in done.stderr


@pytest.mark.parametrize("more", [("--copies", "-1"), ("--copies", "many"), ("--copies", "5", "--forget")])
def test_requests_that_make_no_sense_are_refused(more: tuple[str, ...], gallery: tuple[Path, Path]) -> None:
    done = lcmem("calibrate", "--index", gallery[1], *more)
    assert (done.exit_code, done.stdout) == (2, "")


def test_an_empty_index_has_nothing_to_alter(tmp_path: Path) -> None:
    Gallery.create(tmp_path / "empty", open_bundle()).close()
    done = lcmem("calibrate", "--index", tmp_path / "empty", "--copies", "5", "-q")
    assert (done.exit_code, "is empty: add images" in done.stderr) == (2, True)


# -- what thresholds cost ---------------------------------------------------------------------------------------------

SCORES = st.lists(st.floats(0.001, 0.999), min_size=1, max_size=80)


@settings(max_examples=40, deadline=None)
@given(SCORES, st.floats(0.01, 0.9), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_higher_threshold_holds_fewer_strangers_and_misses_more_copies(
    strangers: list[float], wanted: float, otherwise: float, seed: int
) -> None:
    tops = np.asarray(strangers)[:, None]
    copies = CopyScores(np.random.default_rng(seed).random((7, len(ALTERATIONS))), 0)
    found = calibrate(tops, 100, wanted, "f")
    alarms = alarm_load(found, tops, Decision(otherwise, ThresholdSource.BUNDLE, "for pairs"), copies.misses)
    assert [each.threshold for each in alarms] == sorted(each.threshold for each in alarms)
    assert [each.fpir for each in alarms] == sorted((each.fpir for each in alarms), reverse=True)
    fnir = [each.fnir for each in alarms]
    assert fnir == sorted(fnir, key=lambda value: value or 0.0)
    for each in alarms:
        assert each.holds_per_1000 == pytest.approx(1000 * np.mean(tops[:, 0] >= each.threshold))
        assert each.fpir_interval.low <= each.fpir <= each.fpir_interval.high
        assert each.fnir == pytest.approx(np.mean(copies.scores < each.threshold))
        if each.source is ThresholdSource.INDEX and each.wanted is not None:
            assert each.fpir <= each.wanted + 1e-9
    assert sum(each.threshold == found.threshold for each in alarms if each.source is ThresholdSource.INDEX) == 1
    assert {each.wanted for each in alarms} <= {None, wanted, *RATES}


def test_strangers_that_score_as_an_image_does_with_itself_leave_low_rates_out() -> None:
    tops = np.asarray([1.0, 0.5, 0.4, 0.3])[:, None]
    alarms = alarm_load(calibrate(tops, 100, 0.25, "f"), tops, Decision(0.9, ThresholdSource.BUNDLE, "for pairs"))
    assert [(each.wanted, each.fpir) for each in alarms] == [(0.25, 0.25), (None, 0.25)]
    assert {each.fnir for each in alarms} == {None}
