"""The pipeline: order, errors that stay their own, nothing embedded twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lcmem_onnx.runtime import screening
from lcmem_onnx.runtime.calibration.threshold import Decision
from lcmem_onnx.runtime.errors import EncodingError, GalleryError, ImageError, Reason, UsageError
from lcmem_onnx.runtime.gallery import Added, Gallery
from lcmem_onnx.runtime.images import preprocess
from lcmem_onnx.runtime.model.bundle import Bundle, open_bundle
from lcmem_onnx.runtime.model.encoder import Encoder
from lcmem_onnx.runtime.results import ThresholdSource
from lcmem_onnx.runtime.screening import Screener, Verdict
from PIL import Image


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def screener(bundle: Bundle) -> Screener:
    return Screener(bundle, provider="cpu")


@pytest.fixture
def gallery(screener: Screener, images: Path, tmp_path: Path) -> Gallery:
    gallery = Gallery.create(tmp_path / "idx", screener.bundle)
    assert [done.added for done in screener.index([images], gallery)] == [Added.NEW] * 6
    return gallery


def test_a_path_bytes_and_an_array_give_one_embedding(screener: Screener, images: Path) -> None:
    path = images / "0.png"
    array = np.asarray(Image.open(path).convert("RGB"))
    by_path = screener.embed(path)
    assert by_path.shape == (1, 16)
    assert by_path.dtype == np.float32
    assert 0.0 <= by_path.min() <= by_path.max() <= 1.0
    np.testing.assert_array_equal(by_path, screener.embed(path.read_bytes()))
    np.testing.assert_array_equal(by_path, screener.embed(array))


def test_an_image_matches_itself_and_differs_from_others(screener: Screener, images: Path) -> None:
    same = screener.compare(images / "0.png", images / "0.png")
    assert same.verdict is Verdict.MATCH
    assert same.score == pytest.approx(1 / (1 + np.exp(-same.logit)), abs=1e-6)
    other = screener.compare(images / "0.png", images / "1.png")
    assert other.score < same.score
    assert screener.compare(images / "0.png", images / "1.png", threshold=min(0.9999, other.score + 1e-4)).verdict is Verdict.CLEAR


def test_results_come_in_order_a_line_an_image(screener: Screener, gallery: Gallery, images: Path) -> None:
    results = list(screener.screen([images], gallery, threshold=0.9))
    assert [Path(result.path).name for result in results] == [f"{number}.png" for number in range(6)]
    for result in results:
        assert (result.verdict, result.reason, result.frame) == (Verdict.MATCH, Reason.AT_OR_ABOVE_THRESHOLD, 0)
        assert result.matches[0].key == os.path.abspath(result.path)
        line = result.as_json()
        assert {"schema_version", "path", "frame", "verdict", "reason", "threshold", "matches"} <= set(line)
        assert line["matches"][0]["key"] == os.path.abspath(result.path)


def test_a_scan_goes_by_the_threshold_of_the_index_that_took_the_folder_s_place(
    screener: Screener, gallery: Gallery, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.close()
    folder = tmp_path / "idx"
    thresholds = iter([0.9999, 0.0001])
    monkeypatch.setattr(
        screening, "decide_threshold", lambda *_: Decision(next(thresholds), ThresholdSource.INDEX, "of the test", ())
    )
    with Gallery.open(folder, screener.bundle) as reader:
        results = screener.screen([images], reader)
        assert next(results).threshold == 0.9999
        folder.rename(tmp_path / "away")
        shutil.copytree(tmp_path / "away", folder)
        again = list(results)
        assert [result.threshold for result in again] == [0.0001] * 5
        assert all(result.nearest and (result.total > 0) == (result.nearest.score >= 0.0001) for result in again)


def test_what_is_emptied_during_a_scan_makes_nothing_clear(
    screener: Screener, gallery: Gallery, images: Path, tmp_path: Path
) -> None:
    """As where an index is built anew in the folder's place: it is empty at first."""
    gallery.close()
    with Gallery.open(tmp_path / "idx", screener.bundle) as reader:
        results = screener.screen([images], reader)
        next(results)
        (tmp_path / "idx").rename(tmp_path / "away")
        Gallery.create(tmp_path / "idx", screener.bundle).close()
        with pytest.raises(GalleryError, match="holds no images"):
            next(results)


def test_batches_do_not_change_embeddings_or_order(screener: Screener, images: Path) -> None:
    frames = [np.asarray(Image.open(path)) for path in sorted(images.iterdir())]
    together = screener.encoder.embed(frames)
    for frame, embedding in zip(frames, together, strict=True):
        np.testing.assert_allclose(screener.encoder.embed([frame])[0], embedding, atol=1e-6)


def test_one_bad_file_never_stops_a_scan(screener: Screener, gallery: Gallery, images: Path) -> None:
    (images / "1.png").write_text("this is no image")
    (images / "2.png").write_bytes(b"")
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:200])
    Image.new("RGB", (50, 50), "white").save(images / "4.png")
    results = list(screener.screen([images], gallery, threshold=0.9))
    assert [result.reason for result in results] == [
        Reason.AT_OR_ABOVE_THRESHOLD, Reason.NOT_AN_IMAGE, Reason.EMPTY_FILE, Reason.DAMAGED, Reason.BLANK,
        Reason.AT_OR_ABOVE_THRESHOLD,
    ]  # fmt: skip
    assert [result.verdict for result in results[1:5]] == [Verdict.ERROR] * 4
    assert all(result.detail for result in results[1:5])


def test_every_frame_is_judged_and_a_long_image_too(screener: Screener, gallery: Gallery, images: Path, tmp_path: Path) -> None:
    frames = [Image.open(path).convert("RGB") for path in sorted(images.iterdir())] * 4
    blank = Image.new("RGB", frames[0].size, "black")
    frames[20] = blank
    frames[0].save(tmp_path / "many.tiff", save_all=True, append_images=frames[1:])
    results = list(screener.screen([tmp_path / "many.tiff"], gallery, threshold=0.9))
    assert [result.frame for result in results] == list(range(24))
    assert [result.verdict for result in results if result.frame != 20] == [Verdict.MATCH] * 23
    assert results[20].reason is Reason.BLANK
    assert [Path(result.matches[0].key).name for result in results[:6]] == [f"{number}.png" for number in range(6)]


def test_a_known_file_is_not_embedded_again(
    screener: Screener, gallery: Gallery, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(images, tmp_path / "elsewhere")

    def never(self: Encoder, batch: object) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr(Encoder, "embed_resized", never)
    assert [done.added for done in screener.index([images], gallery)] == [Added.KNOWN] * 6
    assert [done.added for done in screener.index([tmp_path / "elsewhere"], gallery)] == [Added.COPY] * 6
    assert len(gallery) == 12


def test_equal_files_in_one_run_are_copies_of_the_first(screener: Screener, images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "0.png", images / "0-again.png")
    with Gallery.create(tmp_path / "other", screener.bundle) as gallery:
        added = {Path(done.path).name: done.added for done in screener.index([images], gallery)}
        assert sorted([added["0.png"], added["0-again.png"]]) == [Added.COPY, Added.NEW]
        assert gallery.describe()["distinct_vectors"] == 6


def test_a_changed_image_under_a_known_name_is_refused_alone(screener: Screener, gallery: Gallery, images: Path) -> None:
    shutil.copy(images / "1.png", images / "0.png")
    (changed, *others) = screener.index([images], gallery)
    assert changed.added is None
    assert changed.errors[0][1] is Reason.KEY_CONFLICT
    assert {done.added for done in others} == {Added.KNOWN}


def test_one_image_that_breaks_its_batch_fails_alone(
    screener: Screener, gallery: Gallery, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Encoder.embed_resized
    cursed = preprocess.resize(np.asarray(Image.open(images / "2.png")), 64)

    def breaks(self: Encoder, batch: np.ndarray) -> np.ndarray:
        if any((image == cursed).all() for image in batch):
            raise EncodingError("the encoder gave values that are not finite")
        return real(self, batch)

    monkeypatch.setattr(Encoder, "embed_resized", breaks)
    results = list(screener.screen([images], gallery, threshold=0.9))
    assert [result.verdict for result in results].count(Verdict.MATCH) == 5
    assert results[2].reason is Reason.NOT_FINITE


def test_non_finite_outputs_are_refused(bundle: Bundle) -> None:
    class Broken:
        """A caller's session whose network overflows."""

        def __init__(self) -> None:
            self.real = Encoder(bundle, provider="cpu").session.session

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

        def run(self, outputs: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.full_like(self.real.run(outputs, feed)[0], np.nan)]

    with pytest.raises(EncodingError, match="not finite"):
        Screener(bundle, session=Broken()).self_test()  # type: ignore[arg-type]


def test_a_caller_may_bring_a_session(bundle: Bundle, images: Path, screener: Screener) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(bundle.variants["fp32"].graph), providers=["CPUExecutionProvider"])
    mine = Screener(bundle, session=session)
    assert mine.encoder.provider == "cpu"
    np.testing.assert_allclose(mine.embed(images / "0.png"), screener.embed(images / "0.png"), atol=1e-6)


def test_an_encoder_does_not_survive_a_fork(screener: Screener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(UsageError, match="fork"):
        screener.self_test()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_gets_one_clear_error_and_not_one_for_each_image(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    program = f"""
import os, sys
from lcmem_onnx.runtime.errors import UsageError
from lcmem_onnx.runtime.gallery import Gallery
from lcmem_onnx.runtime.screening import Screener
screener = Screener({str(tiny_bundle)!r}, provider="cpu", threads=1)
folder, images = {str(tmp_path / "idx")!r}, {str(images)!r}
with Gallery.create(folder, screener.bundle) as gallery:
    list(screener.index([images], gallery))
    if os.fork() == 0:
        for use in (
            lambda: list(screener.screen([images], gallery)),
            lambda: list(screener.screen([images], Gallery.open(folder, screener.bundle))),
            lambda: list(screener.index([images], gallery)),
        ):
            try:
                print("results:", use())
            except UsageError as error:
                print(error, flush=True)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
    assert len(list(screener.screen([images], gallery))) == 6
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert len(lines) == 3
    assert all("before a fork" in line for line in lines)
    assert "create one in each process" in lines[1]
    assert "open the index in each process" in lines[0]


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)])
def test_an_array_that_is_no_image_is_refused(bad: np.ndarray, screener: Screener) -> None:
    with pytest.raises(UsageError, match="RGB, uint8"):
        screener.embed(bad)
    with pytest.raises(UsageError, match="RGB, uint8"):
        screener.encoder.embed([bad])


def test_a_blank_array_is_refused(screener: Screener) -> None:
    with pytest.raises(ImageError) as caught:
        screener.embed(np.full((9, 9, 3), 7, np.uint8))
    assert caught.value.reason is Reason.BLANK


def test_stopping_early_leaves_what_was_reported_on_disk(screener: Screener, images: Path, tmp_path: Path) -> None:
    gallery = Gallery.create(tmp_path / "early", screener.bundle)
    for count, _ in enumerate(screener.index([images], gallery), 1):
        if count == 3:
            break
    gallery.close()
    with Gallery.open(tmp_path / "early", screener.bundle) as again:
        assert len(again) == 3


def test_errors_outside_images_are_said_at_once(screener: Screener, gallery: Gallery, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="threshold must be between 0 and 1"):
        next(screener.screen([images], gallery, threshold=7))
    with pytest.raises(UsageError, match="0 matches"):
        next(screener.screen([images], gallery, top=0))
    results = list(screener.screen([tmp_path / "nothing", tmp_path], gallery))
    assert results[0].reason is Reason.NOT_FOUND
