"""The strangers' tail: from scores of different images to the threshold for a gallery, in checkpoint, bundle and every command."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lcmem_onnx.cli import main
from lcmem_onnx.evaluation.filelist import Listed, write_file_list
from lcmem_onnx.evaluation.tail import RATES, Sample, make_strangers, measure_strangers
from lcmem_onnx.runtime.calibration.threshold import decide_pair_threshold, decide_threshold
from lcmem_onnx.runtime.errors import BundleError, FileListError, UsageError
from lcmem_onnx.runtime.gallery import Gallery
from lcmem_onnx.runtime.model.bundle import FORMAT_VERSION, MANIFEST, Bundle, open_bundle, seal
from lcmem_onnx.runtime.model.head import sigmoid
from lcmem_onnx.runtime.model.strangers import Strangers, Tail, flagged, pair_rate, read_strangers
from lcmem_onnx.runtime.results import ThresholdSource
from lcmem_onnx.runtime.screening import Screener
from PIL import Image


def score_of(logit: float) -> float:
    return float(sigmoid(np.asarray(logit)))


def straight(at_first: float, slope: float, rates: tuple[float, ...] = RATES, measured_to: float = 1e-4) -> Tail:
    """A tail whose logit rises in a straight line over the logarithm of the rate, from `at_first` at the highest rate."""
    thresholds = tuple(score_of(at_first + slope * math.log(rates[0] / rate)) for rate in rates)
    return Tail(rates, thresholds, measured_to, 500_000, 1000, 900)


def strangers(fingerprint: str = "f" * 64, first: float = -3.0, slope: float = 0.4) -> Strangers:
    kinds = {"photograph": straight(first - 1.0, slope), "radiograph": straight(first, slope)}
    return Strangers(kinds, straight(first - 0.4, slope), "pairs of the test", fingerprint)


# -- the tail ---------------------------------------------------------------------------------------------------------

TAILS = st.builds(
    lambda rates, steps, first: Tail(
        tuple(sorted({round(rate, 9) for rate in rates}, reverse=True)),
        tuple(score_of(first + value) for value in np.cumsum(steps[: len({round(rate, 9) for rate in rates})])),
        max(rates),
        10_000,
        100,
        50,
    ),
    st.lists(st.floats(1e-6, 0.3), min_size=2, max_size=9, unique_by=lambda rate: round(rate, 9)),
    st.lists(st.floats(0.01, 2.0), min_size=9, max_size=9),
    st.floats(-8.0, 0.0),
)


@given(TAILS, st.floats(1e-7, 0.5), st.floats(1e-7, 0.5))
def test_a_lower_rate_has_a_higher_threshold_within_the_tail(tail: Tail, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert tail.thresholds[0] <= tail.threshold(high) <= tail.threshold(low) <= tail.thresholds[-1]
    for rate, threshold in zip(tail.rates, tail.thresholds, strict=True):
        assert tail.threshold(rate) == pytest.approx(threshold, rel=1e-9)
        assert tail.rate(threshold) == pytest.approx(rate, rel=1e-6)


@given(TAILS, st.floats(0.0, 1.0))
def test_rate_and_threshold_are_each_others_inverse(tail: Tail, part: float) -> None:
    rate = tail.rates[0] * (tail.rates[-1] / tail.rates[0]) ** part
    assert tail.rate(tail.threshold(rate)) == pytest.approx(rate, rel=1e-6)


def test_interpolation_is_linear_in_the_logit_over_the_logarithm_of_the_rate() -> None:
    tail = Tail((1e-2, 1e-4), (score_of(-2.0), score_of(4.0)), 1e-4, 10_000, 100, 50)
    assert tail.threshold(1e-3) == pytest.approx(score_of(1.0))
    assert tail.threshold(10 ** (-2.5)) == pytest.approx(score_of(-0.5))
    assert (tail.threshold(0.5), tail.threshold(1e-9)) == (tail.thresholds[0], tail.thresholds[1])
    assert (tail.rate(0.01), tail.rate(0.9999)) == (1.0, 1e-4)


@given(st.floats(1e-4, 0.9), st.integers(1, 10**7))
def test_the_pair_rate_of_a_share_and_a_size_gives_the_share_again(fpir: float, size: int) -> None:
    rate = pair_rate(fpir, size)
    assert flagged(rate, size) == pytest.approx(fpir, rel=1e-9)
    assert 1 - (1 - rate) ** size == pytest.approx(fpir, rel=1e-6, abs=1e-9 * size)


@given(TAILS, TAILS, st.floats(0.001, 0.9), st.integers(1, 1_000_000))
def test_the_threshold_is_the_lowest_at_which_the_worst_kind_keeps_the_share(
    one: Tail, other: Tail, fpir: float, size: int
) -> None:
    """Against a search for it by halving, from the share of flagged strangers alone."""
    both = Strangers({"a": one, "b": other}, one, "", "f")
    rate = pair_rate(fpir, size)
    assume(max(one.rates[-1], other.rates[-1]) < rate < min(one.rates[0], other.rates[0]))
    found = both.threshold_for(fpir, size)

    def share(threshold: float) -> float:
        return max(1 - math.exp(size * math.log1p(-min(tail.rate(threshold), 1 - 1e-16))) for tail in (one, other))

    low, high = 1e-9, 1 - 1e-9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if share(middle) <= fpir * (1 + 1e-9) else (middle, high)
    assert found.threshold == pytest.approx(high, rel=1e-5)
    assert found.fpir == pytest.approx(fpir, rel=1e-5)
    assert not found.beyond


def test_beyond_its_ends_a_tail_is_not_extended_and_what_is_to_be_expected_is_said() -> None:
    tail = strangers()
    small = tail.threshold_for(0.05, 1)
    assert small.threshold == tail.kinds["radiograph"].thresholds[0]
    assert small.fpir == pytest.approx(0.01)
    assert not small.beyond
    large = tail.threshold_for(0.05, 1_000_000)
    assert large.threshold == tail.kinds["radiograph"].thresholds[-1]
    assert large.fpir == pytest.approx(1 - math.exp(-1), rel=1e-3)
    assert large.beyond
    assert large.extrapolated
    assert not tail.threshold_for(0.05, 100).extrapolated


@pytest.mark.parametrize("fpir", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_a_share_that_is_none_is_refused(fpir: float) -> None:
    with pytest.raises(UsageError, match="must be between 0 and 1"):
        strangers().threshold_for(fpir, 100)
    with pytest.raises(UsageError, match="must be 1 or more"):
        strangers().threshold_for(0.05, 0)


# -- made of scores ---------------------------------------------------------------------------------------------------


BIAS, DIMENSIONS = 8.0, 12.0


def logits_drawn(shape: int | tuple[int, int], seed: int, farthest: float = 18.0) -> np.ndarray:
    """Logits of different images whose distances are uniform in a ball of 12 dimensions: P(distance < d) = (d / farthest)^12."""
    return BIAS - farthest * np.random.default_rng(seed).random(shape) ** (1 / DIMENSIONS)


def drawn(count: int, seed: int, farthest: float = 18.0) -> Sample:
    return Sample(np.sort(sigmoid(logits_drawn(count, seed, farthest))), int(math.sqrt(2 * count)), int(math.sqrt(count)))


def test_measured_rates_are_counted_and_lower_ones_follow_the_law_of_smallest_distances() -> None:
    sample = drawn(200_000, 1)
    tail = make_strangers({"a": sample}, "f", BIAS, "test").kinds["a"]
    assert tail.rates == RATES
    assert tail.measured_to == 1e-4  # twenty pairs; of 3e-5 there are six
    for rate, threshold in zip(tail.rates, tail.thresholds, strict=True):
        if rate >= tail.measured_to:
            assert (sample.scores >= threshold).sum() == math.floor(rate * 200_000 + 1e-6)
        assert BIAS - math.log(threshold / (1 - threshold)) == pytest.approx(18.0 * rate ** (1 / DIMENSIONS), rel=0.1)


def test_a_threshold_of_the_tail_flags_the_wanted_share_of_a_gallerys_strangers() -> None:
    """Scores of fresh pairs, two kinds, a gallery of 2,000: extrapolated from 31,000 pairs, as much as VAL has."""
    made = make_strangers({"a": drawn(31_000, 2), "b": drawn(31_000, 3, 20.0)}, "f", BIAS, "test")
    found = made.threshold_for(0.05, 2000)
    assert (found.kind, found.extrapolated, found.beyond) == ("a", True, False)
    fresh = logits_drawn((4000, 2000), 4).max(axis=1)
    assert (sigmoid(fresh) >= found.threshold).mean() == pytest.approx(0.05, abs=0.03)


def test_kinds_weigh_the_same_in_the_pool_and_small_ones_are_left_out_and_named() -> None:
    samples = {"many": drawn(90_000, 5), "few": drawn(9_000, 6, 15.0), "none": drawn(200, 7)}
    made = make_strangers(samples, "f", BIAS, "test")
    assert set(made.kinds) == {"many", "few"}
    assert made.data == "test; too few pairs: none has 200"
    for rate, threshold in zip(made.pooled.rates, made.pooled.thresholds, strict=True):
        if rate >= made.pooled.measured_to:
            shares = [(samples[kind].scores >= threshold).mean() for kind in made.kinds]
            assert np.mean(shares) == pytest.approx(rate, rel=0.02, abs=1 / 9_000)
    with pytest.raises(FileListError, match="needs 3,000 pairs .*none has 200"):
        make_strangers({"none": samples["none"]}, "f", BIAS, "test")


def test_a_tail_ends_before_copies_would_be_missed() -> None:
    few_dimensions = Sample(np.sort(sigmoid(BIAS - 18.0 * np.random.default_rng(8).random(100_000) ** (1 / 3))), 450, 300)
    made = make_strangers({"a": few_dimensions}, "f", BIAS, "test").kinds["a"]
    assert made.rates[-1] > 1e-6
    highest, first = (math.log(score / (1 - score)) for score in (made.thresholds[-1], made.thresholds[0]))
    assert highest < BIAS - 0.2 * (BIAS - first)


def test_copies_among_the_strangers_end_a_tail_or_are_refused() -> None:
    scores = drawn(100_000, 9).scores
    some = np.sort(np.concatenate([scores[:-40], np.full(40, score_of(BIAS))]))
    tail = make_strangers({"a": Sample(some, 450, 300)}, "f", BIAS, "test").kinds["a"]
    assert tail.rates[-1] == tail.measured_to == 1e-3  # a hundred pairs: of 3e-4 all thirty are copies
    with pytest.raises(FileListError, match="several identities"):
        make_strangers({"a": Sample(np.full(10_000, score_of(BIAS)), 142, 100)}, "f", BIAS, "test")


@given(st.integers(3_000, 20_000), st.integers(0, 5), st.floats(9.0, 40.0), st.booleans())
@settings(max_examples=30, deadline=None)
def test_what_is_made_can_be_read(count: int, seed: int, farthest: float, tied: bool) -> None:
    sample = drawn(count, seed, farthest)
    if tied:
        sample = Sample(np.round(sample.scores, 3).clip(0.001, 0.999), sample.images, sample.identities)
    try:
        made = make_strangers({"a": sample}, "f", BIAS, "test")
    except FileListError as error:
        if "are all the same" in str(error) and sample.scores[-1] == sample.scores[-30]:
            return
        raise
    assert read_strangers(json.loads(json.dumps(made.as_json())), "f", score_of(BIAS)) == made


# -- read -------------------------------------------------------------------------------------------------------------


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(strangers().as_json()))
    change(content)
    return content


DAMAGE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda c: c.update(fingerprint="0" * 64), "another model"),
    (lambda c: c.update(format_version=2), "format version 2"),
    (lambda c: c.update(format_version=True), "format version True"),
    (lambda c: c.pop("pooled"), "damaged"),
    (lambda c: c.update(kinds={}), "damaged"),
    (lambda c: c.update(kinds=[1]), "damaged"),
    (lambda c: c.update(data=5), "damaged"),
    (lambda c: c["kinds"].update(radiograph=None), "damaged"),
    (lambda c: c["kinds"]["radiograph"].pop("rates"), "damaged"),
    (lambda c: c["kinds"]["radiograph"]["rates"].pop(), "damaged"),
    (lambda c: c["kinds"]["radiograph"].update(rates=[0.01], thresholds=[0.5]), "at least two rates"),
    (lambda c: c["kinds"]["radiograph"]["thresholds"].reverse(), "not monotone"),
    (lambda c: c["kinds"]["radiograph"]["rates"].reverse(), "not monotone"),
    (lambda c: c["pooled"]["thresholds"].reverse(), "not monotone: in .*pooled"),
    (lambda c: c["kinds"]["radiograph"]["thresholds"].__setitem__(0, "0.1"), "damaged"),
    (lambda c: c["kinds"]["radiograph"]["thresholds"].__setitem__(0, -0.1), "damaged"),
    (lambda c: c["kinds"]["radiograph"]["thresholds"].__setitem__(0, math.nan), "damaged"),
    (lambda c: c["kinds"]["radiograph"]["thresholds"].__setitem__(-1, 1.0), "damaged"),
    (lambda c: c["kinds"]["radiograph"]["thresholds"].__setitem__(-1, 0.9999), "above the score of identical images"),
    (lambda c: c["kinds"]["radiograph"].update(pairs=999), "too small"),
    (lambda c: c["kinds"]["radiograph"].update(pairs=5000), "too small"),
    (lambda c: c["kinds"]["radiograph"].update(pairs=5e5), "damaged"),
    (lambda c: c["kinds"]["radiograph"].update(identities=1), "too small"),
    (lambda c: c["kinds"]["radiograph"].update(measured_to=0.5), "too small"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_a_tail_that_cannot_be_used_is_one_line(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        read_strangers(changed(change), "f" * 64, 0.999)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="damaged"):
        read_strangers([changed(change)], "f" * 64, 0.999)


# -- in a bundle ------------------------------------------------------------------------------------------------------


def give(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None, version: int = FORMAT_VERSION) -> Path:
    """Put a tail into a bundle's manifest."""
    manifest = json.loads((folder / MANIFEST).read_text())
    content = strangers(manifest["fingerprint"]).as_json()
    change(content)
    manifest.update(strangers=content, format_version=version)
    (folder / MANIFEST).write_text(json.dumps(seal(manifest)))
    return folder


@pytest.fixture(scope="module")
def tailed(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with a tail. Not to be changed: copy it first."""
    return give(Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("tailed") / "tiny")))


@pytest.fixture(scope="module")
def bundle(tailed: Path) -> Bundle:
    return open_bundle(tailed)


def test_a_bundle_with_a_tail_opens_and_one_without_is_as_it_was(bundle: Bundle, tiny_bundle: Path) -> None:
    assert bundle.strangers == strangers(bundle.fingerprint)
    plain = open_bundle(tiny_bundle)
    assert plain.strangers is None
    assert plain.manifest["format_version"] == 1
    assert decide_pair_threshold(plain).source is ThresholdSource.BUNDLE
    assert decide_pair_threshold(plain).threshold == plain.threshold.value


@pytest.mark.parametrize(("change", "message"), [DAMAGE[0], DAMAGE[3], DAMAGE[11], DAMAGE[19]])
def test_a_bundle_whose_tail_cannot_be_used_does_not_open(
    change: Callable[[dict[str, Any]], Any], message: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = give(Path(shutil.copytree(tiny_bundle, tmp_path / "copy")), change)
    with pytest.raises(BundleError, match=f"invalid strangers' tail: .*{message}.*Export the model again"):
        open_bundle(folder)
    done = CliRunner().invoke(main, ["compare", "a.png", "b.png", "--bundle", str(folder)])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1


def test_a_version_that_is_newer_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = give(Path(shutil.copytree(tiny_bundle, tmp_path / "copy")), version=FORMAT_VERSION + 1)
    with pytest.raises(BundleError, match="reads versions 1 to 2"):
        open_bundle(folder)


def test_an_export_takes_the_checkpoints_tail_or_the_options(tiny_checkpoint: Path, bundle: Bundle, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from lcmem_onnx.export.pipeline import Request, export_bundle
    from lcmem_onnx.models.checkpoint import load_lcmem, save_lcmem

    content = strangers(bundle.fingerprint).as_json()
    network = load_lcmem(tiny_checkpoint).network
    carrying = tmp_path / "carrying.pth"
    save_lcmem(network, carrying, image_size=64, strangers=content)
    assert torch.load(carrying, weights_only=True)["strangers"] == content
    export_bundle(Request(carrying, tmp_path / "out", variants=("fp32",)))
    exported = open_bundle(tmp_path / "out")
    assert exported.strangers == bundle.strangers
    assert exported.manifest["format_version"] == 2

    other = tmp_path / "other.json"
    other.write_text(json.dumps({**content, "data": "given"}))
    export_bundle(Request(carrying, tmp_path / "given", variants=("fp32",), strangers=other))
    assert open_bundle(tmp_path / "given").manifest["strangers"]["data"] == "given"

    for text, message in (
        (json.dumps({**content, "fingerprint": "0" * 64}), "another model"),
        ("{", "is not JSON"),
        (json.dumps({**content, "kinds": {}}), "damaged"),
    ):
        other.write_text(text)
        with pytest.raises(UsageError, match=message):
            export_bundle(Request(carrying, tmp_path / "bad", variants=("fp32",), strangers=other))
        assert not (tmp_path / "bad").exists()
    with pytest.raises(UsageError, match="cannot be read"):
        export_bundle(Request(carrying, tmp_path / "bad", variants=("fp32",), strangers=tmp_path / "none.json"))


# -- decisions --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gallery(tailed: Path, images: Path, tmp_path: Path) -> Path:
    """An index of six images in two groups."""
    screener = Screener(tailed)
    with Gallery.create(tmp_path / "idx", screener.bundle) as opened:
        names = sorted(images.iterdir())
        assert len(list(screener.index(names[:4], opened, name="ward-a"))) == 4
        assert len(list(screener.index(names[4:], opened, name="ward-b"))) == 2
    return tmp_path / "idx"


def test_the_threshold_is_for_the_size_and_the_wanted_share(gallery: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gallery.open(gallery, bundle) as opened:
        assert decide_threshold(opened, 0.9, 0.5).source is ThresholdSource.GIVEN
        monkeypatch.setattr(Gallery, "vectors", lambda self: 2000)
        decision = decide_threshold(opened)
        assert decision.source is ThresholdSource.STRANGERS
        rate = 1 - 0.95 ** (1 / 2000)
        assert decision.threshold == pytest.approx(score_of(-3.0 + 0.4 * math.log(1e-2 / rate)))
        assert "at most about 5 % of strangers' images flagged in a gallery of 2,000" in decision.words
        assert "worst kind: radiograph, extrapolated from 500,000 pairs" in decision.words
        assert decision.warnings == ()
        assert decide_threshold(opened, None, 0.2).threshold < decision.threshold
        # A third of the frames is in ward-b, and only they are searched.
        part = decide_threshold(opened, None, None, ["ward-b"])
        assert "a gallery of 667," in part.words
        assert part.threshold < decision.threshold
        monkeypatch.setattr(Gallery, "vectors", lambda self: 1_000_000)
        (warning,) = decide_threshold(opened).warnings
        assert "63.2 % of strangers' images are flagged in a gallery of 1,000,000 instead of 5 %" in warning
        with pytest.raises(UsageError, match="must be between 0 and 1"):
            decide_threshold(opened, None, 1.0)


def test_a_calibrated_index_keeps_its_own_threshold(gallery: Path, bundle: Bundle) -> None:
    from lcmem_onnx.runtime.calibration.threshold import calibrate, store_calibration

    found = calibrate(np.linspace(0.1, 0.6, 100)[:, None], 6, 0.1, bundle.fingerprint)
    with Gallery.open(gallery, bundle, read_only=False) as opened:
        store_calibration(opened, found)
        decision = decide_threshold(opened)
        assert (decision.threshold, decision.source, decision.warnings) == (found.threshold, ThresholdSource.INDEX, ())
        (warning,) = decide_threshold(opened, None, 0.05).warnings
        assert "5 % is ignored: the index is calibrated for 10 %" in warning


def test_a_bundle_without_a_tail_cannot_be_asked_for_a_share(tiny_bundle: Path, gallery: Path) -> None:
    plain = open_bundle(tiny_bundle)
    with Gallery.open(gallery, plain) as opened:
        decision = decide_threshold(opened)
        assert (decision.threshold, decision.source, decision.words) == (0.5, ThresholdSource.BUNDLE, plain.threshold.source)
        with pytest.raises(UsageError, match="has no strangers' tail"):
            decide_threshold(opened, None, 0.05)


# -- commands ---------------------------------------------------------------------------------------------------------


def lcmem(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done


def test_a_scan_uses_it_and_says_what_it_means(gallery: Path, tailed: Path, images: Path) -> None:
    common = ("scan", images / "0.png", "--index", gallery, "--bundle", tailed, "-q")
    rate = 1 - 0.95 ** (1 / 6)
    (line,) = (json.loads(text) for text in lcmem(*common, "--json").stdout.splitlines() if '"path"' in text)
    assert line["threshold_source"] == "strangers"
    assert line["threshold"] == pytest.approx(score_of(-3.0 + 0.4 * math.log(1e-2 / rate)))
    assert line["verdict"] == "match"
    table = " ".join(lcmem(*common).stdout.split())
    assert f"threshold {line['threshold']:.4g}: at most about 5 % of strangers' images flagged in a gallery of 6" in table
    (stricter,) = (json.loads(text) for text in lcmem(*common, "--json", "--fpir", "0.001").stdout.splitlines() if '"path"' in text)
    assert stricter["threshold"] > line["threshold"]
    (given_one,) = (
        json.loads(text)
        for text in lcmem(*common, "--json", "--fpir", "0.001", "--threshold", "0.7").stdout.splitlines()
        if '"path"' in text
    )
    assert (given_one["threshold"], given_one["threshold_source"]) == (0.7, "given")


@pytest.mark.parametrize("fpir", ["0", "1", "-1", "nan", "5"])
def test_a_share_out_of_range_is_one_line(fpir: str, gallery: Path, tailed: Path, images: Path) -> None:
    done = lcmem("scan", images, "--index", gallery, "--bundle", tailed, "--fpir", fpir, "-q")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "must be between 0 and 1" in done.stderr


def test_a_share_without_a_tail_is_one_line(gallery: Path, tiny_bundle: Path, images: Path) -> None:
    done = lcmem("scan", images, "--index", gallery, "--bundle", tiny_bundle, "--fpir", "0.05", "-q")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "has no strangers' tail" in done.stderr


def test_comparing_two_images_is_a_gallery_of_one(tailed: Path, tiny_bundle: Path, images: Path) -> None:
    common = ("compare", images / "0.png", images / "1.png")
    document = json.loads(lcmem(*common, "--bundle", tailed, "--json", "-q").stdout)
    assert (document["threshold"], document["threshold_source"]) == (pytest.approx(score_of(-3.0)), "strangers")
    said = " ".join(lcmem(*common, "--bundle", tailed, "-q").stdout.split())
    assert "at most about 1 % of strangers' images flagged in a gallery of 1" in said
    document = json.loads(lcmem(*common, "--bundle", tailed, "--threshold", "0.7", "--json", "-q").stdout)
    assert (document["threshold"], document["threshold_source"]) == (0.7, "given")
    document = json.loads(lcmem(*common, "--bundle", tiny_bundle, "--json", "-q").stdout)
    assert (document["threshold"], document["threshold_source"]) == (0.5, "bundle")


def test_comparing_two_images_takes_a_share(tailed: Path, tiny_bundle: Path, images: Path) -> None:
    """Of a gallery of one, the share of flagged strangers is the rate of the pairs."""
    common = ("compare", images / "0.png", images / "1.png", "--fpir", "0.001")
    expected = score_of(-3.0 + 0.4 * math.log(10))
    document = json.loads(lcmem(*common, "--bundle", tailed, "--json", "-q").stdout)
    assert (document["threshold"], document["threshold_source"]) == (pytest.approx(expected), "strangers")
    said = " ".join(lcmem(*common, "--bundle", tailed, "-q").stdout.split())
    assert f"threshold {expected:.4g}: at most about 0.1 % of strangers' images flagged in a gallery of 1" in said
    document = json.loads(lcmem(*common, "--bundle", tailed, "--threshold", "0.7", "--json", "-q").stdout)
    assert (document["threshold"], document["threshold_source"]) == (0.7, "given")
    one, other = (images / f"{number}.png" for number in range(2))
    assert Screener(tailed).compare(one, other, fpir=0.001).threshold == pytest.approx(expected)
    refused = lcmem(*common, "--bundle", tiny_bundle)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "has no strangers' tail" in refused.stderr


@pytest.mark.parametrize("fpir", ["0", "1", "-0.1", "nan", "5"])
def test_comparing_refuses_a_share_out_of_range(fpir: str, tailed: Path, images: Path) -> None:
    done = lcmem("compare", images / "0.png", images / "1.png", "--bundle", tailed, "--fpir", fpir)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "must be between 0 and 1" in done.stderr


def test_bundle_info_shows_the_tail(tailed: Path) -> None:
    said = " ".join(lcmem("bundle", "info", "--bundle", tailed).stdout.split())
    assert "pairs of the test" in said
    assert "strangers' images are flagged, by gallery size" in said
    rates = [1 - 0.95 ** (1 / size) for size in (1, 1_000, 100_000)]
    logits = [-3.0 + 0.4 * math.log(1e-2 / min(1e-2, max(rate, RATES[-1]))) for rate in rates]
    marks = ["*" if rate < 1e-4 else "" for rate in rates]
    for kind, less in (("photograph", 1.0), ("radiograph", 0.0), ("the one used", 0.0)):
        row = " ".join(f"{score_of(each - less):.4g}{mark}" for each, mark in zip(logits, marks, strict=True))
        assert f"{kind} {row}" in said
    assert "flagged, at most 1 % 5 % 9.52 %" in said  # the tail ends at 1 in 1,000,000


def test_the_gateway_takes_a_share_from_its_configuration(
    gallery: Path, tailed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lcmem_onnx.runtime.errors import ConfigError
    from lcmem_onnx.runtime.gateway.config import read_config
    from lcmem_onnx.runtime.gateway.example_config import write_example
    from lcmem_onnx.runtime.gateway.preflight import check_settings

    path = write_example(tmp_path / "etc")
    text = path.read_text(encoding="utf-8")

    def written(setting: str) -> Path:
        path.write_text(text.replace('index = "hospital.index"', f'index = "{gallery}"\n{setting}', 1), encoding="utf-8")
        path.write_text(path.read_text(encoding="utf-8") + f'\n[model]\nbundle = "{tailed}"\n', encoding="utf-8")
        return path

    settings = read_config(written("fpir = 0.2"))
    assert settings.gallery[0].fpir == 0.2
    (found,) = (each for each in check_settings(settings) if each.what.startswith("gallery"))
    assert found.problem is None
    rate = 1 - 0.8 ** (1 / 6)
    assert f"threshold {score_of(-3.0 + 0.4 * max(0.0, math.log(1e-2 / rate))):.4g}: at most about" in found.detail
    for setting in ("fpir = 0", "fpir = 1.0", "fpir = 5"):
        with pytest.raises(ConfigError, match=r"gallery\[0\]\.fpir is .*; a share of strangers' images is between 0 and 1"):
            read_config(written(setting))


def test_the_gateway_screens_with_it(gallery: Path, tailed: Path, tmp_path: Path) -> None:
    import io

    from lcmem_onnx.runtime.gateway.object_screener import ObjectScreener
    from lcmem_onnx.runtime.gateway.settings import Destination, GallerySettings, Rule, Settings, SpoolSettings
    from lcmem_onnx.runtime.gateway.spool import Arrival, Source, Spool
    from lcmem_onnx.runtime.privacy import create_site_key

    create_site_key(tmp_path / "site.key")
    settings = Settings(
        spool=SpoolSettings(tmp_path / "spool", min_free_mb=1),
        site_key=tmp_path / "site.key",
        gallery=(GallerySettings("patients", gallery, fpir=0.01),),
        destination=(Destination("archive", host="localhost", port=1, aet="ARCHIVE"),),
        rule=(Rule("all", "patients", forward_to=("archive",)),),
    )
    ct = Path(__file__).parent.parent / "examples" / "pictures" / "gallery" / "ct-slice.dcm"
    with Spool(settings) as spool:
        spool.put_stream(io.BytesIO(ct.read_bytes()), Arrival(Source.FOLDER, "CT1"), 1 << 30)
        screening = ObjectScreener(settings, spool, Screener(tailed))
        ((_, outcome),) = list(screening.screen(spool.claim("test", 10)))
        screening.close()
    assert outcome.threshold == pytest.approx(score_of(-3.0 + 0.4 * math.log(1e-2 / (1 - 0.99 ** (1 / 6)))))
    assert outcome.threshold_source is ThresholdSource.STRANGERS


def test_an_audit_without_a_hold_out_uses_it(tailed: Path, images: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("scipy")
    released = tmp_path / "released"
    released.mkdir()
    shutil.copy(images / "0.png", released)
    common = ("audit", "--released", released, "--reference", images, "--bundle", tailed, "-q")
    assert lcmem(*common, "--out", tmp_path / "report", "--fpir", "0.2").exit_code == 1
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["threshold"]["basis"] == report["by_chance"]["basis"] == "strangers"
    rate = 1 - 0.8 ** (1 / 6)
    assert report["threshold"]["value"] == pytest.approx(score_of(-3.0 + 0.4 * max(0.0, math.log(1e-2 / rate))))
    done = lcmem(*common, "--out", tmp_path / "other", "--fpir", "0.2", "--holdout", images)
    assert done.exit_code == 2
    assert "leave --fpir away" in done.stderr


# -- measured on a list -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred VAL images of fifty identities, of two data sets of one kind, and a few of TEST."""
    folder = tmp_path_factory.mktemp("strangers")
    rows = []
    for number in range(230):
        rng = np.random.default_rng(number)
        name = f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC).save(
            folder / name
        )
        split, ds_name, kind = ("VAL", "ab"[number % 2], "blurs") if number < 200 else ("TEST", "a", "blurs")
        rows.append(Listed(split, str(number // 2), name, folder / name, ds_name, kind=kind))
    (folder / "broken.png").write_bytes(b"")
    rows.append(Listed("VAL", "broken", "broken.png", folder / "broken.png", "a", kind="blurs"))
    write_file_list(folder / "list.csv", rows)
    return folder / "list.csv"


def test_a_tail_is_measured_on_a_lists_val(listing: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    from lcmem_onnx.evaluation.filelist import read_file_list

    out = tmp_path / "tail.json"
    done = lcmem("evaluate", "--list", listing, "--bundle", tiny_bundle, "--protocol", "copy", "--limit", "4", "--tail", out, "-q")
    assert done.exit_code == 0, done.output
    plain = open_bundle(tiny_bundle)
    self_score = score_of(plain.head.bias)
    found = read_strangers(json.loads(out.read_text(encoding="utf-8")), plain.fingerprint, self_score)
    # By hand: each data set's pairs of different identities. Even numbers are in a, odd ones in b, one image an identity in each.
    screener = Screener(tiny_bundle)
    vectors = {number: screener.embed(listing.parent / f"{number}.png")[0] for number in range(200)}
    scores = np.sort([plain.head.score(vectors[one], vectors[other]) for one in range(200) for other in range(one + 2, 200, 2)])[
        ::-1
    ]
    tail = found.kinds["blurs"]
    assert (tail.pairs, tail.images, tail.identities) == (len(scores), 200, 200)
    assert tail.pairs == 2 * 100 * 99 // 2
    for rate, threshold in zip(tail.rates, tail.thresholds, strict=True):
        if rate >= tail.measured_to:
            assert (scores >= threshold).mean() <= rate
            assert scores[math.floor(rate * len(scores))] == pytest.approx(threshold, rel=1e-4)
    assert found.data == "pairs of different identities of VAL: a (blurs), b (blurs)"
    rows = [row for row in read_file_list(listing) if row.split == "VAL"]
    alone = measure_strangers(screener, rows, no_negatives=["b"])
    assert alone.kinds["blurs"].pairs == 100 * 99 // 2
    with pytest.raises(FileListError, match="needs 3,000 pairs"):
        measure_strangers(screener, rows[:40])


def test_a_tail_that_cannot_be_measured_or_written_is_one_line(listing: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    rows = [Listed("TEST", str(number), f"{number}.png", listing.parent / f"{number}.png", "a") for number in range(4)]
    write_file_list(listing.parent / "test-only.csv", rows)
    common = ("--bundle", tiny_bundle, "--protocol", "copy", "-q", "--tail")
    done = lcmem("evaluate", "--list", listing.parent / "test-only.csv", *common, tmp_path / "tail.json")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "no VAL" in done.stderr
    done = lcmem("evaluate", "--list", listing, *common, tmp_path / "nowhere" / "tail.json")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "is not an existing folder" in done.stderr


# -- documentation ----------------------------------------------------------------------------------------------------

DOCS = (Path(__file__).parent.parent / "docs" / "bundle.md").read_text(encoding="utf-8")
ASKED = [(0.05, 1), (0.05, 30), (0.01, 2000), (0.3, 700), (0.05, 50_000), (0.05, 10_000_000)]


def documented(language: str) -> str:
    (program,) = [block for block in re.findall(rf"```{language}\n(.*?)```", DOCS, re.S) if "hresholdFor(" in block]
    return program


@pytest.fixture(scope="module")
def wanted() -> list[float]:
    return [strangers().threshold_for(fpir, size).threshold for fpir, size in ASKED]


def test_the_documented_javascript_gives_the_same_thresholds(wanted: list[float], tmp_path: Path) -> None:
    node = shutil.which("node") or pytest.skip("Node.js is not installed")
    program = f"{documented('js')}\nconst tail = {json.dumps(strangers().as_json())};\n"
    program += f"console.log(JSON.stringify({json.dumps(ASKED)}.map(([fpir, size]) => thresholdFor(tail, fpir, size))));\n"
    (tmp_path / "tail.js").write_text(program, encoding="utf-8")
    done = subprocess.run([node, tmp_path / "tail.js"], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == pytest.approx(wanted, rel=1e-9)


def test_the_documented_java_gives_the_same_thresholds(wanted: list[float], tmp_path: Path) -> None:
    java = (shutil.which("javac") and shutil.which("java")) or pytest.skip("a JDK is not installed")
    tails = strangers().kinds.values()

    def rows(name: str) -> str:
        return "{" + ", ".join("{" + ", ".join(map(repr, getattr(tail, name))) + "}" for tail in tails) + "}"

    calls = "".join(f"System.out.println(thresholdFor(rates, thresholds, {fpir}, {size}));" for fpir, size in ASKED)
    (tmp_path / "Tail.java").write_text(
        f"public class Tail {{ {documented('java')} public static void main(String[] args) {{"
        f" double[][] rates = {rows('rates')}, thresholds = {rows('thresholds')}; {calls} }} }}",
        encoding="utf-8",
    )
    done = subprocess.run([java, tmp_path / "Tail.java"], capture_output=True, text=True, check=True, timeout=60)
    assert [float(line) for line in done.stdout.splitlines()] == pytest.approx(wanted, rel=1e-9)
