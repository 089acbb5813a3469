"""ConvNeXt with torchvision's parameter names, its shape read off a state dict.

torchvision's own class is not used: it does not import beside every build of torch, and what must hold is only that
torchvision-layout checkpoints load (`features.N...`, `classifier.N...`) and compute the same. Liu et al., arXiv 2201.03545.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from lcmem_onnx.runtime.errors import CheckpointError
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CONVNEXT_NAMES", "ConvNeXt", "ConvNeXtShape"]

CONVNEXT_NAMES: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {
    ((96, 192, 384, 768), (3, 3, 9, 3)): "ConvNeXt-Tiny",
    ((96, 192, 384, 768), (3, 3, 27, 3)): "ConvNeXt-Small",
    ((128, 256, 512, 1024), (3, 3, 27, 3)): "ConvNeXt-Base",
    ((192, 384, 768, 1536), (3, 3, 27, 3)): "ConvNeXt-Large",
}
NORM_EPS = 1e-6


@dataclass(frozen=True)
class ConvNeXtShape:
    """Widths and depths a stage, the stem's patch, input channels and embedding size."""

    in_channels: int = 4
    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    stem: int = 4
    features: int = 512

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ConvNeXtShape:
        """Read the shape off `features.*` and `classifier.*` keys (no prefix).

        Raises:
            CheckpointError: the stem, a stage or the classifier is missing.
        """
        blocks: dict[int, set[int]] = {}
        for key in state:
            if found := re.match(r"features\.(\d+)\.(\d+)\.block\.", key):
                blocks.setdefault(int(found[1]), set()).add(int(found[2]))
        stages = sorted(blocks)
        if not stages or stages != list(range(1, 2 * len(stages), 2)):
            raise CheckpointError(f"the ConvNeXt's stages are incomplete: blocks found in features {stages}")
        try:
            stem = state["features.0.0.weight"]
            dims = tuple(state[f"features.{stage}.0.layer_scale"].shape[0] for stage in stages)
            features = state["classifier.2.weight"].shape[0]
        except KeyError as missing:
            raise CheckpointError(f"the ConvNeXt has no {missing.args[0]!r}") from missing
        return cls(stem.shape[1], dims, tuple(len(blocks[stage]) for stage in stages), stem.shape[2], features)

    @property
    def name(self) -> str:
        return CONVNEXT_NAMES.get((self.dims, self.depths)) or (
            f"ConvNeXt {'/'.join(map(str, self.dims))}, depths {'/'.join(map(str, self.depths))}"
        )


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of an NCHW tensor."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Permute(nn.Module):
    """A permutation as a module, so that the blocks' numbering matches torchvision's."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


class Depthwise(nn.Conv2d):
    """A depthwise convolution that stays in fp32 under autocast on a CPU.

    oneDNN takes three times as long for the gradient of its weights in bfloat16 (23 ms against 7 ms at 48 channels of
    16 x 16, batch 96), more than the rest of the backbone together.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, two linear layers with GELU, layer scale, residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Depthwise(dim, dim, 7, padding=3, groups=dim),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(dim, eps=NORM_EPS),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Linear(4 * dim, dim),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((dim, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.layer_scale * self.block(x)
        return x + scaled


class ConvNeXt(nn.Module):
    """(B, in_channels, H, W) to (B, features), before the sigmoid."""

    def __init__(self, shape: ConvNeXtShape) -> None:
        super().__init__()
        self.shape = shape
        widths = shape.dims
        layers: list[nn.Module] = [
            nn.Sequential(
                nn.Conv2d(shape.in_channels, widths[0], shape.stem, stride=shape.stem),
                ChannelNorm(widths[0], eps=NORM_EPS),
            )
        ]
        for stage, (width, depth) in enumerate(zip(widths, shape.depths, strict=True)):
            if stage:
                layers.append(
                    nn.Sequential(ChannelNorm(widths[stage - 1], eps=NORM_EPS), nn.Conv2d(widths[stage - 1], width, 2, stride=2))
                )
            layers.append(nn.Sequential(*(Block(width) for _ in range(depth))))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(ChannelNorm(widths[-1], eps=NORM_EPS), nn.Flatten(1), nn.Linear(widths[-1], shape.features))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def early(self, x: Tensor, layers: int) -> Tensor:
        """(B, in_channels, H, W) through the first `layers` of `features`: the map that the next one reads."""
        return self.features[:layers](x)  # type: ignore[no-any-return]

    def late(self, x: Tensor, layers: int) -> Tensor:
        """What `early` gave for as many layers, through the rest, to (B, features)."""
        return self.classifier(self.features[layers:](x).mean((2, 3), keepdim=True))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3), keepdim=True))  # type: ignore[no-any-return]
