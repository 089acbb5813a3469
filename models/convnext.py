"""ConvNeXt with torchvision's parameter names, its shape read off a state dict.

torchvision's own class is not used: it does not import beside every build of torch, and what must hold is only that
torchvision-layout checkpoints load (`features.N...`, `classifier.N...`) and compute the same. Liu et al., arXiv 2201.03545.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lcmem_onnx.runtime.errors import CheckpointError
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CONVNEXT_NAMES", "Block", "ConvNeXt", "ConvNeXtShape"]

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


class _SmallMaps(torch.autograd.Function):
    """A padded depthwise convolution with a bias, whose gradients are made of products that are quick on the smallest maps.

    Where no side of a map exceeds `kernel // 2 + 1`, every input pixel is seen by every output pixel, so the gradient of a
    channel's weights is one product of matrices, (pixels out, batch) by (batch, pixels in), its elements added up by their tap.
    Measured at batch 256 on two AVX2 cores, there and back: 9 ms for 192 channels of 4 x 4 and 5 ms for 256 of 2 x 2, where
    oneDNN's own gradients take 39 and 38 ms.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        (out,) = gradients
        batch, channels, height, width = x.shape
        kernel = weight.shape[-1]
        of_input = functional.conv2d(out, weight.flip(2, 3), None, padding=kernel // 2, groups=channels)
        seen, told = (each.permute(1, 2, 3, 0).reshape(channels, height * width, batch) for each in (x, out))
        rows, columns = (torch.arange(side)[None, :] - torch.arange(side)[:, None] + kernel // 2 for side in (height, width))
        taps = (rows[:, None, :, None] * kernel + columns[None, :, None, :]).flatten()
        of_weight = weight.new_zeros(channels, kernel * kernel)
        of_weight.index_add_(1, taps, torch.bmm(told, seen.transpose(1, 2)).view(channels, -1))
        return of_input, of_weight.view_as(weight), out.sum((0, 2, 3))


class Depthwise(nn.Conv2d):
    """A depthwise convolution that learns in tolerable time on a CPU, in fp32 also under autocast.

    oneDNN takes three times as long for the gradient of its weights in bfloat16 (23 ms against 7 ms at 48 channels of
    16 x 16, batch 96), more than the rest of the backbone together.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self.forward(x.float())
        if x.device.type == "cpu" and self.training and max(x.shape[-2:]) <= self.kernel_size[0] // 2 + 1:
            return _SmallMaps.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]
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
