"""The preprocessing graph against Pillow, and with the encoder behind it against the ordinary way from file to score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import onnxruntime as ort
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.export.preprocessing import write_preprocessing
from lcmem_onnx.runtime.model.bundle import open_bundle
from lcmem_onnx.runtime.screening import Screener
from PIL import Image

from tests.conftest import EXAMPLES

SIZE = 64


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> ort.InferenceSession:
    path = tmp_path_factory.mktemp("graph") / "preprocess.onnx"
    write_preprocessing(path, SIZE)
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def off_by(graph: ort.InferenceSession, image: np.ndarray) -> np.ndarray:
    """Levels between the graph's result and Pillow's."""
    (actual,) = graph.run(None, {"picture": image})
    assert actual.shape == (1, SIZE, SIZE, 3)
    assert actual.dtype == np.uint8
    expected = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return np.abs(actual[0].astype(int) - expected)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 400), width=st.integers(1, 400), seed=st.integers(0, 1000))
def test_noise_of_any_size_is_at_most_one_level_off(graph: ort.InferenceSession, height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert off_by(graph, image).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(SIZE, SIZE), (32, 32), (128, 128), (1, 1)])
def test_what_needs_no_rounding_is_equal(graph: ort.InferenceSession, height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert off_by(graph, image).max() == 0


@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_stay_so(graph: ort.InferenceSession, level: int) -> None:
    assert off_by(graph, np.full((301, 77, 3), level, np.uint8)).max() == 0


def test_images_score_as_by_the_ordinary_way(tiny_bundle: Path) -> None:
    """With nothing but onnxruntime and numpy on one side, as a gateway in another language has it."""
    bundle = open_bundle(tiny_bundle)
    screener = Screener(bundle, variant="fp32", provider="cpu")
    sessions = [
        ort.InferenceSession(str(tiny_bundle / name), providers=["CPUExecutionProvider"])
        for name in (bundle.manifest["preprocessing_graph"]["file"], "encoder.fp32.onnx")
    ]
    paths = sorted((EXAMPLES / "gallery").glob("*.jpg"))[:4]
    assert len(paths) == 4
    rows = []
    for path in paths:
        (resized,) = sessions[0].run(None, {"picture": np.asarray(Image.open(path).convert("RGB"))})
        rows.append(sessions[1].run(None, {"pictures": resized})[0][0])
    weight, bias = bundle.head.weight, bundle.head.bias
    for one in range(4):
        for other in range(one):
            score = 1 / (1 + np.exp(-(bias + float((weight * np.abs(rows[one] - rows[other])).sum()))))
            assert score == pytest.approx(screener.compare(paths[one], paths[other]).score, abs=2e-3)
