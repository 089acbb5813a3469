"""ResNet-50 and ResNet-101 with torchvision's parameter names: the paper's siamese baselines.

Bottlenecks carry their stride in the 3x3 convolution, as torchvision's do (the "v1.5" variant). He et al., arXiv 1512.03385.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from lcmem_onnx.runtime.errors import CheckpointError
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ResNet", "ResNetShape"]

RESNET_NAMES: dict[tuple[int, ...], str] = {(3, 4, 6, 3): "ResNet-50", (3, 4, 23, 3): "ResNet-101"}
EXPANSION = 4


@dataclass(frozen=True)
class ResNetShape:
    """Blocks a stage, input channels and embedding size; the widths are always 64/128/256/512 times 4."""

    in_channels: int = 3
    depths: tuple[int, ...] = (3, 4, 6, 3)
    features: int = 128

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ResNetShape:
        """Read the shape off `conv1`, `layerN` and `fc` keys (no prefix).

        Raises:
            CheckpointError: the blocks are not those of ResNet-50 or ResNet-101.
        """
        blocks: dict[int, set[int]] = {}
        for key in state:
            if found := re.match(r"layer(\d)\.(\d+)\.", key):
                blocks.setdefault(int(found[1]), set()).add(int(found[2]))
        depths = tuple(len(blocks[stage]) for stage in sorted(blocks))
        if depths not in RESNET_NAMES or "layer1.0.conv3.weight" not in state:
            raise CheckpointError(f"the ResNet has {depths} blocks a stage; ResNet-50 and ResNet-101 are supported")
        if "fc.weight" not in state:
            raise CheckpointError("the ResNet has no 'fc.weight'")
        return cls(state["conv1.weight"].shape[1], depths, state["fc.weight"].shape[0])

    @property
    def name(self) -> str:
        return RESNET_NAMES[self.depths]


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 convolutions with batch norms and a residual."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = (
            nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels))
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return functional.relu(self.bn3(self.conv3(x)) + residual)


class ResNet(nn.Module):
    """(B, in_channels, H, W) to (B, features), before the sigmoid."""

    def __init__(self, shape: ResNetShape) -> None:
        super().__init__()
        self.shape = shape
        self.conv1 = nn.Conv2d(shape.in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, depth in enumerate(shape.depths):
            width = 64 * 2**stage
            blocks = []
            for block in range(depth):
                blocks.append(Bottleneck(channels, width, 2 if stage and not block else 1))
                channels = width * EXPANSION
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, shape.features)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for stage in range(len(self.shape.depths)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]
