"""fp16 and int8: what the files hold, that they compute what they should, and that the gates hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

import onnxruntime as ort  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from lcmem_onnx.export import calibration_images, drift  # noqa: E402
from lcmem_onnx.export.calibration_images import choose_sets, with_copies  # noqa: E402
from lcmem_onnx.export.command import main  # noqa: E402
from lcmem_onnx.export.drift import _auc  # noqa: E402
from lcmem_onnx.export.half import HALF, HALF_ON_CPU, HALF_WEIGHTS  # noqa: E402
from lcmem_onnx.export.int8 import INT8, Layer, outliers, quantiser  # noqa: E402
from lcmem_onnx.export.pipeline import Request, export_bundle  # noqa: E402
from lcmem_onnx.export.trace import trace  # noqa: E402
from lcmem_onnx.models.checkpoint import load_lcmem  # noqa: E402
from lcmem_onnx.runtime.errors import ExportError, UsageError  # noqa: E402
from lcmem_onnx.runtime.model.bundle import open_bundle  # noqa: E402
from lcmem_onnx.runtime.screening import Screener  # noqa: E402
from onnx import TensorProto, numpy_helper  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

from tests.conftest import EXAMPLES  # noqa: E402

FP32 = "encoder.fp32.onnx"


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


def run(model: Path, batch: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, {"pictures": batch})[0]


# -- fp16 -------------------------------------------------------------------------------------------------------------


def test_fp16_on_a_cpu_computes_in_fp32_with_rounded_weights(tiny_bundle: Path, tmp_path: Path, batch: np.ndarray) -> None:
    """Rounded here by numpy, in the fp32 graph."""
    stored = {tensor.name for tensor in onnx.load(str(tiny_bundle / HALF_ON_CPU), load_external_data=False).graph.initializer}
    model = onnx.load(str(tiny_bundle / FP32))
    rounded = 0
    for tensor in model.graph.initializer:
        if f"{tensor.name}.fp16" in stored:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), tensor.name))
            rounded += values.size
    assert rounded > 0.8 * sum(numpy_helper.to_array(tensor).size for tensor in model.graph.initializer)
    onnx.save(model, str(tmp_path / "rounded.onnx"))
    np.testing.assert_allclose(run(tiny_bundle / HALF_ON_CPU, batch), run(tmp_path / "rounded.onnx", batch), atol=2e-6)


def test_fp16s_two_graphs_share_one_file_of_weights_and_no_paths_are_in_them(tiny_bundle: Path) -> None:
    for name in (HALF, HALF_ON_CPU):
        model = onnx.load(str(tiny_bundle / name), load_external_data=False)
        places = [entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"]
        assert set(places) == {HALF_WEIGHTS}
    whole = (tiny_bundle / FP32).stat().st_size
    assert (tiny_bundle / HALF_WEIGHTS).stat().st_size < 0.55 * whole
    for path in tiny_bundle.glob("*.onnx"):
        assert b"site-packages" not in path.read_bytes()
        assert b".py" not in path.read_bytes()


def test_normalisations_and_statistics_stay_in_fp32(tiny_bundle: Path) -> None:
    model = onnx.load(str(tiny_bundle / HALF))
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    norms = [node for node in model.graph.node if node.op_type in ("GroupNormalization", "LayerNormalization")]
    assert len(norms) == 14
    assert {kinds[name] for node in norms for name in node.input[1:]} == {TensorProto.FLOAT}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert {kinds[name] for node in convolutions for name in node.input[1:]} == {TensorProto.FLOAT16}
    casts = {node.output[0]: node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"}
    for node in model.graph.node:
        if node.op_type in ("ReduceMean", "Sqrt") or node in norms:
            assert casts.get(node.input[0], TensorProto.FLOAT) == TensorProto.FLOAT


# -- int8 -------------------------------------------------------------------------------------------------------------


def quantised_weights(path: Path) -> dict[str, np.ndarray]:
    model = onnx.load(str(path))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: value for name, value in values.items() if value.dtype == np.int8 and value.ndim > 1}


def test_int8_weights_cannot_saturate_and_have_a_scale_a_channel(tiny_bundle: Path) -> None:
    """Two products of a byte and a neighboring weight fit into 16 bits: the largest is 255."""
    weights = quantised_weights(tiny_bundle / INT8)
    assert len(weights) == 16
    for name, value in weights.items():
        rows = np.moveaxis(value, 0 if value.ndim == 4 else -1, 0).astype(int)
        channels_last = np.moveaxis(rows, 1, -1) if rows.ndim == 4 else rows
        for order in (rows.reshape(len(rows), -1), channels_last.reshape(len(rows), -1)):
            pairs = (
                255 * (np.maximum(order[:, 1:], 0) + np.maximum(order[:, :-1], 0)),
                255 * (np.minimum(order[:, 1:], 0) + np.minimum(order[:, :-1], 0)),
            )
            assert pairs[0].max() <= 32767, name
            assert pairs[1].min() >= -32768, name
    assert max(np.abs(value.astype(int)).max() for value in weights.values()) > 64
    model = onnx.load(str(tiny_bundle / INT8))
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            assert scales[node.input[1]].ndim == 1


def test_first_and_last_layer_and_the_latents_stay_in_float(tiny_bundle: Path) -> None:
    kept = open_bundle(tiny_bundle).manifest["variants"]["int8"]["kept_in_float"]
    blocks = [f"model.features.{stage}.{block}.block.0.weight" for stage, block in ((1, 0), (3, 0))]
    assert kept == ["vae.encoder.conv_in.weight", "vae.encoder.conv_out.weight", "vae.quant_conv.weight", *blocks,
                    "model.classifier.2.weight"]  # fmt: skip
    names = {tensor.name for tensor in onnx.load(str(tiny_bundle / INT8)).graph.initializer}
    assert all({f"network.{name}", f"network.{name}.fp16"} & names for name in kept)


def test_layers_are_excluded_by_name_and_found_by_a_sweep(tiny_checkpoint: Path, tmp_path: Path, batch: np.ndarray) -> None:
    trace(load_lcmem(tiny_checkpoint).network, 64, tmp_path / "traced.onnx")
    with quantiser(tmp_path / "traced.onnx", batch) as ready:
        also = [layer.weight for layer in ready.kept(["model.features.1."]) if layer not in ready.kept([])]
        assert "model.features.1.0.block.3.weight" in also
        assert all(weight.startswith("model.features.1.") for weight in also)
        with pytest.raises(UsageError, match="no layer's name begins with 'nothing'"):
            ready.kept(["nothing"])
        found = list(ready.sensitivities(batch[:2]))
        assert [layer for layer, _ in found] == ready.layers[1:-1]
        assert all(damage > 0 for _, damage in found)
        every = ready.layers
        with pytest.raises(ExportError, match="nothing left"):
            ready.write(tmp_path / "x.onnx", every)


def test_the_sweep_keeps_what_does_far_more_damage_than_the_rest() -> None:
    found = [(Layer(str(number), str(number)), damage) for number, damage in enumerate([0.1, 0.1, 0.5, 0.12, 0.09])]
    assert [layer.node for layer in outliers(found)] == ["2"]
    assert outliers([]) == []


# -- drift and gates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_every_variant_screens_and_says_how_far_it_is_from_torch(variant: str, tiny_bundle: Path) -> None:
    screener = Screener(tiny_bundle, variant=variant, provider="cpu")
    assert screener.encoder.variant == variant
    entry = screener.bundle.manifest["variants"][variant]
    measured = entry["drift"]
    assert (measured["pictures"], measured["pairs"], measured["same"]) == (64, 2016, 96)
    assert 0 <= measured["score_p99"] <= measured["score_max"] < 1
    assert measured["milliseconds"] > 0
    assert 20 < measured["peak_mb"] < 1000
    assert entry["past_gate"] is (variant == "int8")
    exact = Screener(tiny_bundle, variant="fp32", provider="cpu")
    images = sorted((EXAMPLES / "gallery").iterdir())[:3]
    apart = max(float(np.abs(screener.embed(path) - exact.embed(path)).max()) for path in images)
    assert apart <= max(4 * measured["embedding_max"], 1e-6)


def test_a_variant_past_its_gate_is_left_out_unless_it_is_allowed(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = {**drift.GATES, "int8": {"flip_rate": -1.0}}
    monkeypatch.setattr(drift, "GATES", MappingProxyType(strict))
    arguments = ["--ckpt", str(tiny_checkpoint), "--out", str(tmp_path / "out"), "--variants", "fp32,int8"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "warning: int8 was left out: flip_rate is " in result.stderr
    assert set(open_bundle(tmp_path / "out").variants) == {"fp32"}
    assert not (tmp_path / "out" / INT8).exists()
    result = CliRunner().invoke(main, [*arguments, "--force", "--allow-drift"])
    assert result.exit_code == 0
    bundle = open_bundle(tmp_path / "out")
    assert bundle.variants["int8"].past_gate
    assert bundle.manifest["variants"]["int8"]["drift"]["past"]
    assert Screener(bundle, provider="cpu").encoder.variant == "fp32"


def test_when_nothing_passes_nothing_is_written(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "GATES", MappingProxyType({**drift.GATES, "fp16": {"score_p99": -1.0}}))
    with pytest.raises(ExportError, match="no variant is near enough to torch: fp16: score_p99 is"):
        export_bundle(Request(tiny_checkpoint, tmp_path / "out", variants=("fp16",)))
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_can_do_without_fp32(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = export_bundle(Request(tiny_checkpoint, tmp_path / "out", variants=("fp16",)))
    assert done.variants == ("fp16",)
    assert not (tmp_path / "out" / FP32).exists()
    assert Screener(tmp_path / "out", provider="cpu").encoder.variant == "fp16"
    assert done.parity.images == 4


def test_the_auc_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    same, different = rng.integers(3, 9, 40) / 9, rng.integers(0, 7, 90) / 9
    truth = np.concatenate([np.ones(40), np.zeros(90)])
    assert _auc(same, different) == pytest.approx(roc_auc_score(truth, np.concatenate([same, different])))


# -- image sets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [calibration_images.SMALL, calibration_images.SMALL + 1])
def test_without_folders_there_are_enough_images_of_any_size(size: int) -> None:
    sets = choose_sets(None, None, size)
    few = int(size > calibration_images.SMALL)
    assert sets.measured.shape == (calibration_images.MEASURED[few], size, size, 3)
    assert sets.calibration.shape == (calibration_images.CALIBRATED[few], size, size, 3)


def test_calibration_images_are_not_measured_on(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EXAMPLES, tmp_path / "mine"))
    (folder / "broken.png").write_bytes(b"no image")
    sets = choose_sets(None, folder, 64)
    assert sets.warning is None
    assert len(sets.measured) >= 2
    assert len(sets.calibration) > 2 * len(sets.measured)
    assert not {image.tobytes() for image in sets.measured} & {image.tobytes() for image in sets.calibration}


def test_without_images_drawn_ones_calibrate_and_a_warning_says_so() -> None:
    sets = choose_sets(None, None, 64)
    assert "--calibration" in str(sets.warning)
    assert (len(sets.measured), len(sets.calibration)) == (16, 96)
    assert not {image.tobytes() for image in sets.measured} & {image.tobytes() for image in sets.calibration}
    versions, shows = with_copies(sets.measured)
    assert versions.shape == (4 * len(sets.measured), 64, 64, 3)
    assert (np.bincount(shows) == 4).all()
    again, _ = with_copies(sets.measured)
    assert (again == versions).all()


@pytest.mark.parametrize(("folder", "calibration"), [("few", None), (None, "few"), ("none", None), (None, "none")])
def test_too_few_images_are_an_error(folder: str | None, calibration: str | None, images: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    shutil.copy(images / "0.png", tmp_path / "few")
    with pytest.raises(UsageError, match="holds 1 images|is no folder"):
        choose_sets(folder and tmp_path / folder, calibration and tmp_path / calibration, 64)  # type: ignore[arg-type]


def test_the_manifest_names_where_the_images_are_from(tiny_bundle: Path) -> None:
    manifest = json.loads((tiny_bundle / "bundle.json").read_text())
    assert manifest["measured_on"] == "images of the package and drawn ones; drawn ones"
    assert manifest["preprocessing_graph"]["file"] == "preprocess.onnx"
