"""Scorers: the same image above an altered one above another, figures against independent ones, and ONNX files of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from lcmem_onnx import BundleError, EncodingError, Screener, UsageError
from lcmem_onnx.evaluation.compare import Embedder, Pixels, Scorer
from lcmem_onnx.evaluation.networks import BundleScorer, OnnxScorer, RandomNetwork
from lcmem_onnx.evaluation.pixelwise import Mse, Ncc, Ssim
from lcmem_onnx.evaluation.scorers import BASELINES, open_baselines


def smooth(seed: int, size: int = 64) -> Pixels:
    grid = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)


def score(scorer: Scorer, first: Pixels, second: Pixels) -> float:
    if isinstance(scorer, Embedder):
        vectors = scorer.embed(np.stack([first, second]))
        return float(scorer.compare(vectors[0], vectors[1:])[0])
    return scorer.score(first, second)


@pytest.mark.parametrize("name", BASELINES)
def test_the_same_scores_above_a_copy_above_another(name: str) -> None:
    (scorer,) = open_baselines((name,))
    assert scorer.name == name
    assert scorer.about
    for seed in range(5):
        image, other = smooth(seed), smooth(seed + 100)
        copy = np.clip(image * 1.05 + 2, 0, 255).astype(np.uint8)
        same, altered, different = (score(scorer, image, second) for second in (image, copy, other))
        assert same == pytest.approx(0.0 if name == "mse" else 1.0, abs=1e-6)
        assert same + 1e-6 >= altered > different
        assert score(scorer, other, image) == pytest.approx(different, abs=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_images_of_one_colour_have_a_score(name: str) -> None:
    (scorer,) = open_baselines((name,))
    flat = np.full((64, 64, 3), 255, np.uint8)
    for first, second in ((flat, flat), (flat, smooth(1)), (smooth(1), flat), (flat, flat // 2)):
        assert np.isfinite(score(scorer, first, second))


def test_pixel_scores_against_their_formulas() -> None:
    first, second = smooth(1), smooth(2)
    assert Mse().score(first, second) == pytest.approx(-np.mean((first / 255.0 - second / 255.0) ** 2))
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).reshape(-1) for image in (first, second)]
    assert Ncc().score(first, second) == pytest.approx(np.corrcoef(*grey)[0, 1], abs=1e-4)
    assert Ncc().score(first, 255 - first) == pytest.approx(-1, abs=1e-3)
    assert -1 <= Ssim().score(first, second) < 0.9


def test_hashes_give_the_share_of_equal_bits() -> None:
    import imagehash
    import pdqhash
    from PIL import Image

    first, second = smooth(3), smooth(4)
    bits = imagehash.phash(Image.fromarray(first)) - imagehash.phash(Image.fromarray(second))
    assert score(open_baselines(("phash",))[0], first, second) == pytest.approx(1 - bits / 64)
    differ = (pdqhash.compute(first)[0] != pdqhash.compute(second)[0]).sum()
    assert score(open_baselines(("pdq",))[0], first, second) == pytest.approx(1 - differ / 256)


def test_the_random_network_is_the_same_everywhere_and_of_unit_length() -> None:
    images = np.stack([smooth(1, 100), smooth(2, 100)])
    vectors = RandomNetwork().embed(images)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-6)
    assert RandomNetwork().embed(images[1:])[0] == pytest.approx(vectors[1], abs=1e-5)
    assert np.abs(RandomNetwork(seed=1).embed(images) - vectors).max() > 0.01


def test_a_bundle_scores_as_the_runtime_does(tiny_bundle: Path) -> None:
    screener = Screener(tiny_bundle)
    scorer = BundleScorer(screener)
    for size in (64, 90):
        first, second = smooth(1, size), smooth(2, size)
        assert score(scorer, first, second) == pytest.approx(screener.compare(first, second).score, rel=1e-4)
    assert "64 x 64" in scorer.about


# -- ONNX files -------------------------------------------------------------------------------------------------------


def model(path: Path, shape: list[Any], kind: str = "float", *, inputs: int = 1, scale: float = 1.0) -> Path:
    """A model whose vector is each channel's mean: of what it is fed, times `scale`."""
    onnx = pytest.importorskip("onnx")
    helper, proto = onnx.helper, onnx.TensorProto
    types = {"float": proto.FLOAT, "uint8": proto.UINT8, "float16": proto.FLOAT16, "int64": proto.INT64}
    axes = [1, 2] if shape[-1] == 3 else [2, 3]
    nodes = [
        helper.make_node("Cast", ["x0"], ["f"], to=proto.FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["s"]),
        helper.make_node("ReduceMean", ["s", "axes"], ["y"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info(f"x{number}", types[kind], shape) for number in range(inputs)],
        [helper.make_tensor_value_info("y", proto.FLOAT, [shape[0] if len(shape) == 4 else None, None])],
        [helper.make_tensor("axes", proto.INT64, [2], axes), helper.make_tensor("scale", proto.FLOAT, [], [scale])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


COLOURS = np.stack([np.full((40, 40, 3), colour, np.uint8) for colour in ((255, 0, 0), (255, 0, 255), (10, 20, 30))])


@pytest.mark.parametrize(
    ("shape", "kind", "values", "fed"),
    [
        (["n", "h", "w", 3], "uint8", "imagenet", COLOURS[:, 0, 0].astype(float)),
        (["n", 32, 48, 3], "uint8", "imagenet", COLOURS[:, 0, 0].astype(float)),
        ([1, 3, 32, 32], "float", "unit", COLOURS[:, 0, 0] / 255.0),
        (["n", 3, "h", "w"], "float", "symmetric", COLOURS[:, 0, 0] / 127.5 - 1),
        (["n", 3, 32, 32], "float", "imagenet", (COLOURS[:, 0, 0] / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        (["n", 32, 32, 3], "float16", "levels", COLOURS[:, 0, 0].astype(float)),
    ],
)
def test_an_onnx_embedder_is_fed_as_its_input_says(
    shape: list[Any], kind: str, values: str, fed: np.ndarray, tmp_path: Path
) -> None:
    scorer = OnnxScorer(model(tmp_path / "means.onnx", shape, kind), values=values)
    assert scorer.name == "means"
    expected = fed / np.linalg.norm(fed, axis=1, keepdims=True)
    vectors = scorer.embed(COLOURS)
    assert vectors.dtype == np.float32
    assert vectors == pytest.approx(expected, abs=2e-3)
    assert scorer.compare(vectors[0], vectors) == pytest.approx(expected @ expected[0], abs=4e-3)


def test_free_sizes_are_told(tmp_path: Path) -> None:
    path = model(tmp_path / "free.onnx", ["n", "h", "w", 3], "uint8")
    assert "288 x 288" in OnnxScorer(path).about
    assert "96 x 96" in OnnxScorer(path, free_size=96).about


@pytest.mark.parametrize(
    ("shape", "kind", "inputs", "message"),
    [
        (["n", 3, 32, 32], "float", 2, "2 inputs"),
        (["n", 4, 64, 64], "float", 1, "a baseline takes"),
        (["n", 32, 3], "float", 1, "a baseline takes"),
        (["n", 3, 32, 32], "int64", 1, "takes int64"),
    ],
)
def test_models_that_are_no_embedders_are_refused(shape: list[Any], kind: str, inputs: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        OnnxScorer(model(tmp_path / "odd.onnx", shape, kind, inputs=inputs))


def test_a_vector_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    scorer = OnnxScorer(model(tmp_path / "huge.onnx", ["n", 3, 32, 32], scale=3e38), values="levels")
    with pytest.raises(EncodingError, match="not finite"):
        scorer.embed(COLOURS)


def test_baselines_are_opened_once_and_named_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        model(tmp_path / folder / "net.onnx", ["n", 3, 32, 32])
    wanted = ("pdq", str(tmp_path / "a" / "net.onnx"), "pdq", str(tmp_path / "b" / "net.onnx"), str(tiny_bundle))
    names = [scorer.name for scorer in open_baselines(wanted, ("tiny",))]
    assert names == ["pdq", "net", "net (2)", "tiny (2)"]


def test_what_is_no_baseline_is_refused(tmp_path: Path) -> None:
    for item in ("dinov2", str(tmp_path), str(tmp_path / "none.onnx")):
        with pytest.raises(UsageError, match="is no baseline: give mse, ssim"):
            open_baselines((item,))
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(BundleError, match="cannot open"):
        open_baselines((str(tmp_path / "text.onnx"),))
    with pytest.raises(UsageError, match="range of values"):
        OnnxScorer(tmp_path / "text.onnx", values="0-255")
