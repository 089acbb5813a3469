"""The same network in fewer operations: what a traced network does not need to compute for each image.

* The posterior's log-variances, half of the channels of the VAE's last layer, are not computed: only its means are used.
* A pixel-unshuffle by r before a convolution of k x k is one convolution of (r k) x (r k) with stride r: the unshuffle's
  transposition took as long as the convolution.
* The trunk's scales and the scale of its pixels are part of its weights, so that every weight is a constant of the graph: the
  exporter folds only small tensors itself, and int8 needs constants.

Embeddings change by rounding alone.
"""

from __future__ import annotations

import copy
from typing import Any

from lcmem_onnx.models.efficientnet_lite import PIXEL_MEAN, PIXEL_SCALE, EfficientNetLite, ScaledConv
from lcmem_onnx.models.lcmem import LCMem
from torch import Tensor, nn

__all__ = ["folded"]


def folded(network: LCMem) -> LCMem:
    """Return a copy of the network that gives the same embeddings with fewer operations. Weights keep their names."""
    copied = copy.deepcopy(network)
    if copied.vae is not None:
        _keep_means(copied.vae)
        _unshuffle_by_stride(copied.vae)
    if copied.trunk is not None:
        copied.trunk = _FoldedTrunk(copied.trunk)
    return copied


def _keep_means(vae: Any) -> None:
    last: Any = vae.quant_conv if isinstance(vae.quant_conv, nn.Conv2d) else vae.encoder.conv_out
    last.out_channels //= 2
    last.weight = nn.Parameter(last.weight[: last.out_channels].detach())
    last.bias = nn.Parameter(last.bias[: last.out_channels].detach())


def _unshuffle_by_stride(vae: Any) -> None:
    """Channel c r^2 + r y + x of the unshuffled image is pixel (y, x) of each r x r block of channel c."""
    factor, first = vae.unshuffle, vae.encoder.conv_in
    if factor == 1:
        return
    outputs, _, height, width = first.weight.shape
    weight = first.weight.detach().reshape(outputs, 3, factor, factor, height, width)
    wide = nn.Conv2d(3, outputs, (factor * height, factor * width), factor, tuple(factor * side for side in first.padding))
    wide.weight = nn.Parameter(weight.permute(0, 1, 4, 2, 5, 3).reshape(wide.weight.shape).contiguous())
    wide.bias = first.bias
    vae.encoder.conv_in, vae.unshuffle = wide, 1


class _FoldedTrunk(EfficientNetLite):
    """A trunk whose scales, that of the pixels too, are part of its weights."""

    def __init__(self, trunk: EfficientNetLite) -> None:
        nn.Module.__init__(self)
        self.shape, self.projection, self.blocks, self.stem, self.head = (
            trunk.shape,
            trunk.projection,
            trunk.blocks,
            trunk.stem,
            trunk.head,
        )
        self.stem.scale.data *= 255.0 / PIXEL_SCALE
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, ScaledConv):
                    setattr(module, name, _FoldedConv(child))

    def scaled(self, pixels: Tensor) -> Tensor:
        return pixels - PIXEL_MEAN / 255.0


class _FoldedConv(ScaledConv):
    """A `ScaledConv` without its scale."""

    def __init__(self, scaled: ScaledConv) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter((scaled.weight * scaled.scale[:, None, None, None]).detach())
        self.bias, self.stride, self.groups = scaled.bias, scaled.stride, scaled.groups

    def scaled_weight(self) -> Tensor:
        return self.weight
