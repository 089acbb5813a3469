"""What int8 is made of: folded graphs, weights rounded by their inputs, and bytes around layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

import onnxruntime as ort  # noqa: E402
import torch  # noqa: E402
from lcmem_onnx.export.folding import folded  # noqa: E402
from lcmem_onnx.export.gptq import Moments, Rounding  # noqa: E402
from lcmem_onnx.export.int8 import _fitted, quantiser  # noqa: E402
from lcmem_onnx.export.qdq import quantise, tensors_to_observe  # noqa: E402
from lcmem_onnx.export.trace import trace  # noqa: E402
from lcmem_onnx.models.autoencoder import AutoencoderShape  # noqa: E402
from lcmem_onnx.models.convnext import ConvNeXtShape  # noqa: E402
from lcmem_onnx.models.efficientnet_lite import TrunkShape  # noqa: E402
from lcmem_onnx.models.lcmem import LCMem  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

CPU = ["CPUExecutionProvider"]


@pytest.fixture(scope="module")
def two_branches() -> LCMem:
    torch.manual_seed(0)
    vae = AutoencoderShape(48, (16, 32), layers_per_block=1, latent_channels=4, groups=8, middle_attention=False)
    network = LCMem(ConvNeXtShape(4, (8, 16), (1, 1), 2, 6), vae, TrunkShape(10))
    for name, value in network.named_parameters():
        if name.endswith("scale"):
            value.data.uniform_(0.5, 1.5)
    return network.eval()


def test_the_folded_network_gives_the_same_embeddings_in_fewer_operations(two_branches: LCMem, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pixels = images.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        wanted = two_branches.embed(pixels).numpy()
    trace(two_branches, 64, tmp_path / "traced.onnx")
    got = ort.InferenceSession(str(tmp_path / "traced.onnx"), providers=CPU).run(None, {"pictures": images.numpy()})[0]
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    graph = onnx.load(str(tmp_path / "traced.onnx")).graph
    constants = {tensor.name for tensor in graph.initializer}
    assert all(node.input[1] in constants for node in graph.node if node.op_type == "Conv")
    assert not any(node.op_type == "Transpose" and len(node.attribute[0].ints) > 4 for node in graph.node), "no unshuffle"


def test_folding_changes_a_copy(two_branches: LCMem) -> None:
    before = {name: value.clone() for name, value in two_branches.state_dict().items()}
    folded(two_branches)
    after = two_branches.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_int8_of_two_branches_is_near_fp32(two_branches: LCMem, tmp_path: Path) -> None:
    images = np.random.default_rng(2).integers(0, 256, (34, 64, 64, 3), dtype=np.uint8)
    trace(two_branches, 64, tmp_path / "traced.onnx")
    with quantiser(tmp_path / "traced.onnx", images) as ready:
        kept = ready.kept([])
        ready.write(tmp_path / "int8.onnx", kept)
        names = [layer.weight for layer in kept]
        assert {"trunk.stem.weight", "trunk.blocks.0.depthwise.weight", "trunk.projection.weight"} <= set(names)
        assert len(ready.layers) - len(kept) > 45
    runs = [
        np.concatenate([ort.InferenceSession(str(tmp_path / name), providers=CPU).run(None, {"pictures": images[:8]})[0]])
        for name in ("traced.onnx", "int8.onnx")
    ]
    assert 0 < np.abs(runs[1] - runs[0]).mean() < 0.02
    graph = onnx.load(str(tmp_path / "int8.onnx")).graph
    assert graph.node[-1].op_type == "Sigmoid"
    assert [node.name for node in graph.node if node.name.endswith("logits")] == ["scale logits", "shift logits"]


# -- rounding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 12])
def test_rounding_by_the_inputs_loses_less_than_to_the_nearest_step(groups: int) -> None:
    rng = np.random.default_rng(3)
    inputs = rng.standard_normal((groups, 500, 4)) @ rng.standard_normal((groups, 4, 9)) + 0.1 * rng.standard_normal(
        (groups, 500, 9)
    )
    rows = rng.standard_normal((12, 9)).astype(np.float32)
    scale = (np.abs(rows).max(1) / 20).astype(np.float32)
    steps = Rounding(np.matmul(inputs.transpose(0, 2, 1), inputs)).steps(rows, scale, np.arange(12), 127)
    assert steps.dtype == np.int8
    nearest = np.rint(rows / scale[:, None])

    def lost(chosen: np.ndarray) -> float:
        off = (chosen * scale[:, None] - rows).astype(np.float64)
        return float(sum(((inputs[at % groups] @ off[at]) ** 2).sum() for at in range(12)))

    assert lost(steps) < 0.5 * lost(nearest)


def test_independent_inputs_are_rounded_to_the_nearest_step() -> None:
    rows = np.random.default_rng(4).standard_normal((5, 7)).astype(np.float32)
    scale = np.full(5, 0.03, np.float32)
    steps = Rounding(np.eye(7)[None]).steps(rows, scale, np.arange(5), 127)
    np.testing.assert_array_equal(steps, np.rint(rows / scale[:, None]).clip(-127, 127))


def test_moments_are_those_of_what_a_convolution_sums() -> None:
    """Against torch's unfold."""
    values = np.random.default_rng(5).standard_normal((1, 3, 9, 8)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c", pads=[0, 1, 1, 1], strides=[2, 1], kernel_shape=[3, 3], group=1)
    moments = Moments({"c": (node, (4, 3, 3, 3))})
    moments.add({"x": values})
    padded = torch.nn.functional.pad(torch.from_numpy(values), (1, 1, 0, 1))
    columns = torch.nn.functional.unfold(padded, 3, stride=(2, 1))[0].double().numpy()
    np.testing.assert_allclose(moments.means()["c"][0], columns @ columns.T / columns.shape[1], rtol=1e-4, atol=1e-5)


# -- bytes ------------------------------------------------------------------------------------------------------------


def _convolution(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    constants = {"w": weight, "b": bias, "low": np.float32(0), "high": np.float32(6)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["raw"], name="c", kernel_shape=[1, 1]),
        helper.make_node("Clip", ["raw", "low", "high"], ["y"], name="clip"),
    ]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "one", shapes[:1], shapes[1:], [numpy_helper.from_array(v, k) for k, v in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_clip_becomes_the_end_of_the_bytes_and_a_channel_without_weights_keeps_its_bias() -> None:
    rng = np.random.default_rng(6)
    weight, bias = rng.standard_normal((4, 8, 1, 1)).astype(np.float32), np.array([0.5, -1, 3.25, 9], np.float32)
    weight[2] = 0
    values = (3 * rng.standard_normal((1, 8, 5, 5))).astype(np.float32)
    model = _convolution(weight, bias)
    wanted = ort.InferenceSession(model.SerializeToString(), providers=CPU).run(None, {"x": values})[0]
    assert tensors_to_observe(model, ["c"]) == {"x", "y"}
    quantise(model, ["c"], {"x": (float(values.min()), float(values.max())), "y": (0.0, 6.0)})
    assert "Clip" not in {node.op_type for node in model.graph.node}
    got = ort.InferenceSession(model.SerializeToString(), providers=CPU).run(None, {"x": values})[0]
    assert (got.min(), got.max()) == (0.0, pytest.approx(6.0))
    np.testing.assert_allclose(got, wanted, atol=0.4)
    np.testing.assert_allclose(got[0, 2], 3.25, atol=0.02)


def test_the_correction_finds_a_scale_and_a_shift() -> None:
    logits = np.random.default_rng(7).standard_normal((60, 5))
    factor, offset = np.array([1, 0.9, 1.1, 1, 1.05]), np.array([0, 0.2, -0.1, 0.3, 0])
    given, wanted = (1 / (1 + np.exp(-its)) for its in (logits, logits * factor + offset))
    found = _fitted(given.astype(np.float32), wanted.astype(np.float32))
    np.testing.assert_allclose(found[0], factor, atol=1e-3)
    np.testing.assert_allclose(found[1], offset, atol=1e-3)
