"""The pretrained trunk: public weights folded into its own layers, and a network with two branches from checkpoint to bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lcmem_onnx.models.autoencoder import AutoencoderShape
from lcmem_onnx.models.checkpoint import load_lcmem, save_lcmem
from lcmem_onnx.models.convnext import ConvNeXtShape
from lcmem_onnx.models.efficientnet_lite import HEAD, STAGES, STEM, EfficientNetLite, TrunkShape, pretrained_state
from lcmem_onnx.models.lcmem import LCMem
from lcmem_onnx.runtime.errors import CheckpointError
from torch import Tensor, nn
from torch.nn import functional


def public_state() -> dict[str, Tensor]:
    """Random weights in the public file's layout: convolutions without a bias, batch norms with statistics, a classifier."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = {"_fc.weight": torch.zeros(1000, HEAD), "_fc.bias": torch.zeros(1000)}

    def convolution(name: str, norm: str, outputs: int, inputs: int, kernel: int) -> None:
        state[f"{name}.weight"] = nn.init.kaiming_normal_(torch.empty(outputs, inputs, kernel, kernel))
        for key, value in {
            "weight": torch.rand(outputs) + 0.5,
            "bias": torch.randn(outputs) * 0.1,
            "running_mean": torch.randn(outputs) * 0.1,
            "running_var": torch.rand(outputs) + 0.5,
            "num_batches_tracked": torch.tensor(7),
        }.items():
            state[f"{norm}.{key}"] = value

    convolution("_conv_stem", "_bn0", STEM, 3, 3)
    number, inputs = 0, STEM
    for kernel, _, expansion, outputs, repeats in STAGES:
        for _ in range(repeats):
            middle, block = inputs * expansion, f"_blocks.{number}"
            if expansion > 1:
                convolution(f"{block}._expand_conv", f"{block}._bn0", middle, inputs, 1)
            convolution(f"{block}._depthwise_conv", f"{block}._bn1", middle, 1, kernel)
            convolution(f"{block}._project_conv", f"{block}._bn2", outputs, middle, 1)
            number, inputs = number + 1, outputs
    convolution("_conv_head", "_bn1", HEAD, inputs, 1)
    return state


def pooled_by_layers(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The public network's pooled features, written out with convolutions and batch norms, as TensorFlow pads them."""

    def layer(x: Tensor, name: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        side = x.shape[-1]
        lacking = max(0, (-(-side // stride) - 1) * stride + weight.shape[-1] - side)
        x = functional.pad(x, (lacking // 2, lacking - lacking // 2) * 2)
        statistics = [state[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(functional.conv2d(x, weight, None, stride, groups=groups), *statistics, eps=1e-3)

    x = functional.relu6(layer((pixels * 255 - 127) / 128, "_conv_stem", "_bn0", 2))
    number, inputs = 0, STEM
    for _, first_stride, expansion, outputs, repeats in STAGES:
        for repeat in range(repeats):
            block, stride, before = f"_blocks.{number}", first_stride if repeat == 0 else 1, x
            if expansion > 1:
                x = functional.relu6(layer(x, f"{block}._expand_conv", f"{block}._bn0"))
            x = functional.relu6(layer(x, f"{block}._depthwise_conv", f"{block}._bn1", stride, x.shape[1]))
            x = layer(x, f"{block}._project_conv", f"{block}._bn2")
            x = x + before if stride == 1 and inputs == outputs else x
            number, inputs = number + 1, outputs
    return functional.relu6(layer(x, "_conv_head", "_bn1")).mean((2, 3))


def two_branches() -> LCMem:
    torch.manual_seed(1)
    backbone = ConvNeXtShape(4, (8, 16), (1, 1), 2, 24)
    return LCMem(backbone, AutoencoderShape(48, (8, 16), 1, 4, 8, middle_attention=False), TrunkShape(40)).eval()


def test_public_weights_give_the_features_of_the_public_layers(tmp_path: Path) -> None:
    state = public_state()
    torch.save(state, tmp_path / "lite0.pth")
    trunk = EfficientNetLite(TrunkShape(16)).eval()
    missing, surplus = trunk.load_state_dict(pretrained_state(tmp_path / "lite0.pth"), strict=False)
    assert (missing, surplus) == (["projection.weight", "projection.bias"], [])
    pixels = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        expected = trunk.projection(pooled_by_layers(state, pixels))
        assert torch.allclose(trunk(pixels), expected, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("_bn1.bias"),
        lambda state: state.pop("_blocks.3._project_conv.weight"),
        lambda state: state.update({"_conv_head.weight": torch.zeros(640, 320, 1, 1)}),
        lambda state: state.clear(),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    state = public_state()
    change(state)
    torch.save({**state, "other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not an EfficientNet-Lite0"):
        pretrained_state(tmp_path / "other.pth")


def test_a_network_with_two_branches_survives_its_checkpoint(tmp_path: Path) -> None:
    network = two_branches()
    save_lcmem(network, tmp_path / "two.pth", image_size=64)
    loaded = load_lcmem(tmp_path / "two.pth")
    assert loaded.network.features == 64
    assert "EfficientNet-Lite0, 40 features" in loaded.description
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.network.embed(pixels), network.embed(pixels))
        assert network.embed(pixels).shape == (2, 64)


def test_a_trunk_without_its_projection_or_pixels_is_refused(tmp_path: Path) -> None:
    save_lcmem(two_branches(), tmp_path / "whole.pth", image_size=64)
    content = torch.load(tmp_path / "whole.pth", weights_only=True)
    del content["state_dict"]["trunk.projection.weight"]
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no 'projection\.weight'"):
        load_lcmem(tmp_path / "a.pth")
    with pytest.raises(ValueError, match="reads pixels"):
        two_branches().embed_latents(torch.zeros(1, 4, 8, 8))
