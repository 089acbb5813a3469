"""Thresholds for one against many: from scores to a threshold, kept with an index, used by a scan."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lcmem_onnx.runtime.calibration.threshold import (
    Calibration,
    calibrate,
    decide_threshold,
    forecasts,
    forget_calibration,
    misses,
    store_calibration,
    stored_calibration,
)
from lcmem_onnx.runtime.errors import GalleryError, UsageError
from lcmem_onnx.runtime.gallery import Entry, Gallery
from lcmem_onnx.runtime.gallery.storage.schema import CALIBRATION_SETTING
from lcmem_onnx.runtime.model.bundle import Bundle, Threshold, seal
from lcmem_onnx.runtime.model.head import Floats, Head
from lcmem_onnx.runtime.results import ThresholdSource
from numpy.typing import NDArray

FEATURES = 32


def vectors(seed: int, count: int) -> Floats:
    return np.random.default_rng(seed).random((count, FEATURES), dtype=np.float32)


def fill(gallery: Gallery, embeddings: Floats, first: int = 0) -> None:
    gallery.add_all(
        Entry(f"/pictures/{number}.png", number.to_bytes(32, "big"), 1, {0: each}) for number, each in enumerate(embeddings, first)
    )


def drawn(count: int, size: int, seed: int = 0, keep: int = 64) -> NDArray[np.float64]:
    """Best scores of strangers whose pair scores are independent: logits normal, as many as the gallery has vectors."""
    logits = np.random.default_rng(seed).normal(-6, 2, (count, size))
    return -np.sort(-1 / (1 + np.exp(-logits)), axis=1)[:, :keep]


@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=60), st.floats(0.001, 0.999))
def test_it_is_the_lowest_threshold_that_keeps_the_rate(scores: list[float], rate: float) -> None:
    tops = np.asarray(scores)[:, None]
    found = calibrate(tops, 10, rate, "f")
    assert (tops >= found.threshold).mean() <= rate + 1e-9
    assert found.fpir == (tops >= found.threshold).mean()
    lower = 1 / (1 + math.exp(-(math.log(found.threshold / (1 - found.threshold)) - 2e-4)))
    below = [score for score in scores if lower <= score < found.threshold]
    assert below or found.threshold < min(scores), "a lower threshold suffices"


def test_a_threshold_from_one_set_of_strangers_holds_for_another() -> None:
    """Over many sets, the interval of the rate holds the true one as often as it says."""
    size, rate, truth = 300, 0.05, drawn(20_000, 300, seed=99, keep=1)[:, 0]
    held = 0
    for seed in range(60):
        found = calibrate(drawn(400, size, seed, keep=1), size, rate, "f")
        true_rate = (truth >= found.threshold).mean()
        held += found.fpir_interval.low <= true_rate <= found.fpir_interval.high
        assert found.threshold_interval.low < found.threshold < found.threshold_interval.high
    assert held >= 54


def test_larger_galleries_are_foreseen_and_their_thresholds_keep_the_rate() -> None:
    pool = np.random.default_rng(3).normal(-6, 2, (1500, 2000))
    scores = 1 / (1 + np.exp(-pool))
    tops = -np.sort(-scores[:, :200], axis=1)[:, :64]
    found = calibrate(tops, 200, 0.1, "f")
    ahead = {each.size: each for each in forecasts(found, tops)}
    for size in (400, 1000, 2000):
        seen = (scores[:, :size].max(axis=1) >= found.threshold).mean()
        assert ahead[size].fpir == pytest.approx(seen, abs=0.05)
        assert seen <= ahead[size].at_most
        threshold = ahead[size].threshold
        assert threshold is not None
        assert (scores[:, :size].max(axis=1) >= threshold).mean() == pytest.approx(0.1, abs=0.04)


def test_few_negatives_are_said_to_be_few() -> None:
    found = calibrate(drawn(50, 100), 100, 0.001, "f")
    assert not found.enough
    assert found.fpir == 0.0
    assert found.supported == pytest.approx(3 / 50, rel=0.05)
    assert found.needed == pytest.approx(3 / 0.001, rel=0.01)
    assert found.needed_for_precision == 30_000
    assert found.threshold_interval.high == 1.0
    assert all(each.threshold is None for each in forecasts(found, drawn(50, 100))[1:])
    assert calibrate(drawn(400, 100), 100, 0.05, "f").enough


def test_images_of_few_patients_are_few_witnesses() -> None:
    many = calibrate(drawn(1000, 100), 100, 0.05, "f")
    few = calibrate(drawn(1000, 100), 100, 0.05, "f", witnesses=40)
    assert few.threshold == many.threshold
    assert few.fpir_interval.high - few.fpir_interval.low > 3 * (many.fpir_interval.high - many.fpir_interval.low)
    assert few.threshold_interval.low <= many.threshold_interval.low
    assert few.supported > many.supported


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, 17.0, math.nan, math.inf])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match="must be between 0 and 1"):
        calibrate(drawn(10, 10), 10, rate, "f")


def test_negatives_that_score_as_copies_do_give_no_threshold() -> None:
    with pytest.raises(UsageError, match="no threshold separates"):
        calibrate(np.ones((10, 1)), 10, 0.1, "f")
    with pytest.raises(UsageError, match="at least one negative"):
        calibrate(np.empty((0, 4)), 10, 0.1, "f")


def test_ties_do_not_let_more_through() -> None:
    tops = np.asarray([0.9, 0.9, 0.9, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1])[:, None]
    assert calibrate(tops, 5, 0.2, "f").fpir == 0.0
    assert calibrate(tops, 5, 0.3, "f").fpir == 0.3
    assert calibrate(tops, 5, 0.4, "f").fpir == 0.3


def test_misses_are_counted_at_the_threshold() -> None:
    found = misses(np.asarray([0.2, 0.5, 0.7, 0.9]), 0.5)
    assert (found.mates, found.missed, found.fnir) == (4, 1, 0.25)
    assert found.interval.low < 0.25 < found.interval.high


# -- with an index -------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle() -> Bundle:
    head = Head(np.full(FEATURES, -6.0, np.float32), 6.0)
    return Bundle(Path(), "test", 64, FEATURES, head, Threshold(0.5, "test"), {}, "f" * 64, demonstration=True, manifest={})


@pytest.fixture
def found(bundle: Bundle) -> Calibration:
    return calibrate(drawn(500, 200), 200, 0.05, bundle.fingerprint)


def test_a_calibration_is_kept_and_read_as_it_was(found: Calibration, bundle: Bundle, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, vectors(0, 200))
        assert stored_calibration(gallery) is None
        assert decide_threshold(gallery).source is ThresholdSource.BUNDLE
        store_calibration(gallery, found)
    with Gallery.open(tmp_path / "idx", bundle) as gallery:
        assert stored_calibration(gallery) == found
        decision = decide_threshold(gallery)
        assert (decision.threshold, decision.source, decision.warnings) == (found.threshold, ThresholdSource.INDEX, ())
        assert found.date[:10] in decision.words
        assert decide_threshold(gallery, 0.123).source is ThresholdSource.GIVEN
        with pytest.raises(UsageError):
            decide_threshold(gallery, math.nan)
    with Gallery.open(tmp_path / "idx", bundle, read_only=False) as gallery:
        forget_calibration(gallery)
        assert decide_threshold(gallery).source is ThresholdSource.BUNDLE


def test_a_gallery_that_has_grown_is_said_to_have(found: Calibration, bundle: Bundle, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, vectors(0, 250))
        store_calibration(gallery, found)
        assert not decide_threshold(gallery).warnings
        fill(gallery, vectors(1, 150), 250)
        (warning,) = decide_threshold(gallery).warnings
        assert "200 vectors and now has 400" in warning
        expected = 100 * found.growth.expected(400)
        assert f"{expected:.3g} %" in warning
        assert "Calibrate again" in warning
        for number in range(300):
            gallery.remove(key=f"/pictures/{number}.png", compact=False)
        (warning,) = decide_threshold(gallery).warnings
        assert "a lower threshold suffices" in warning


def test_a_large_gallery_without_a_calibration_gets_a_note(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, vectors(0, 5))
        assert not decide_threshold(gallery).warnings
        monkeypatch.setattr(Gallery, "vectors", lambda self: 10_000)
        assert "10,000" in decide_threshold(gallery).warnings[0]


@pytest.mark.parametrize("damage", ["threshold", "cut", "empty", "other", "list", "newer", "nan"])
def test_a_damaged_calibration_is_an_error_and_not_another_threshold(
    found: Calibration, bundle: Bundle, tmp_path: Path, damage: str
) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, vectors(0, 20))
        sealed = seal(found.as_json())
        text = {
            "threshold": json.dumps({**sealed, "threshold": 0.9999}),
            "cut": json.dumps(sealed)[:-20],
            "empty": "{}",
            "other": json.dumps(seal({**found.as_json(), "fingerprint": "0" * 64})),
            "list": "[1]",
            "newer": json.dumps(seal({**found.as_json(), "format_version": 99})),
            "nan": json.dumps(seal({**found.as_json(), "threshold": math.nan})),
        }[damage]
        gallery.set_setting(CALIBRATION_SETTING, text)
        with pytest.raises(GalleryError, match="calibrate again"):
            decide_threshold(gallery)
        assert decide_threshold(gallery, 0.5).threshold == 0.5
