"""The encoder half of a Stable Diffusion style `AutoencoderKL`: image to posterior mode.

LCMem (arXiv 2512.14421) reads images through Stable Diffusion 2's VAE. Being tied to that one is a limitation the paper
names, so the shape is read off the checkpoint's keys and any encoder built of `DownEncoderBlock2D` works: 4 or 16 latent
channels, with or without `quant_conv`, with or without attention in the middle.

Encoders whose first convolution takes 3·r² channels get their input through a pixel-unshuffle by r: the small network that
comes with this project does so (r = 4), since convolutions with few channels at full resolution are slow on a CPU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.vae import Encoder
from lcmem_onnx.runtime.errors import CheckpointError
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Autoencoder", "AutoencoderShape", "modern_attention_keys"]

DEFAULT_GROUPS = 32
"""GroupNorm groups of every published Stable Diffusion VAE. No parameter's shape shows it: a file whose VAE differs says so."""


@dataclass(frozen=True)
class AutoencoderShape:
    """What it takes to build the encoder; `from_state` reads all but `groups` off the parameters' shapes."""

    in_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    groups: int = DEFAULT_GROUPS
    middle_attention: bool = True
    quant_conv: bool = True

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], groups: int = DEFAULT_GROUPS) -> AutoencoderShape:
        """Read the shape off `encoder.*` and `quant_conv.*` keys (no prefix).

        Raises:
            CheckpointError: the keys are not those of a diffusers `AutoencoderKL` encoder built of `DownEncoderBlock2D`.
        """
        if "encoder.conv_in.weight" not in state:
            raise CheckpointError(
                "the VAE has no 'encoder.conv_in.weight': it is not in diffusers' AutoencoderKL layout "
                "(convert an original Stable Diffusion file with diffusers' conversion script first)"
            )
        if any(re.match(r"encoder\.down_blocks\.\d+\.attentions\.", key) for key in state):
            raise CheckpointError("the VAE has attention in its down blocks; only plain DownEncoderBlock2D is supported")
        resnets: dict[int, set[int]] = {}
        for key in state:
            if found := re.match(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", key):
                resnets.setdefault(int(found[1]), set()).add(int(found[2]))
        layers = {len(numbers) for numbers in resnets.values()}
        if len(layers) != 1 or set(resnets) != set(range(len(resnets))):
            raise CheckpointError(f"the VAE's down blocks are incomplete: residual layers by block {resnets!r}")
        try:
            channels = tuple(state[f"encoder.down_blocks.{block}.resnets.0.conv1.weight"].shape[0] for block in range(len(resnets)))
            moments = state["encoder.conv_out.weight"].shape[0]
        except KeyError as missing:
            raise CheckpointError(f"the VAE has no {missing.args[0]!r}") from missing
        return cls(
            in_channels=state["encoder.conv_in.weight"].shape[1],
            block_out_channels=channels,
            layers_per_block=layers.pop(),
            latent_channels=moments // 2,
            groups=groups,
            middle_attention=any(key.startswith("encoder.mid_block.attentions.") for key in state),
            quant_conv="quant_conv.weight" in state,
        )

    @property
    def unshuffle(self) -> int:
        """The pixel-unshuffle factor r in front of the encoder: 1 for an ordinary VAE, which takes 3 channels.

        Raises:
            CheckpointError: the first convolution's channels are not 3·r².
        """
        factor = math.isqrt(self.in_channels // 3)
        if factor < 1 or 3 * factor * factor != self.in_channels:
            raise CheckpointError(f"the VAE takes {self.in_channels} channels; an RGB image gives 3, or 3·r² unshuffled by r")
        return factor

    @property
    def downscale(self) -> int:
        """How many image pixels, along one side, make one latent pixel (8 for Stable Diffusion's)."""
        return int(self.unshuffle * 2 ** (len(self.block_out_channels) - 1))


def modern_attention_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename old diffusers attention keys and flatten 1x1-convolution attention weights.

    `query/key/value/proj_attn` became `to_q/to_k/to_v/to_out.0`; weights saved by other tools have the shape (C, C, 1, 1)
    where `Linear` wants (C, C). Both occur in published VAE files. Other entries pass unchanged.
    """
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if ".attentions." in key:
            stem, _, leaf = key.rpartition(".")
            parent, _, name = stem.rpartition(".")
            if name in names:
                key = f"{parent}.{names[name]}.{leaf}"
            if value.ndim == 4 and value.shape[2:] == (1, 1):
                value = value[:, :, 0, 0]
        renamed[key] = value
    return renamed


class Autoencoder(nn.Module):
    """Encoder and `quant_conv`, with the reference's parameter names; gives the posterior's mode.

    The reference samples the posterior. The mode (its mean, the first half of the channels) is taken here, so that one
    image has one embedding. No scaling factor is applied: the reference has none, and the normalisation that follows
    would undo it.
    """

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.unshuffle = shape.unshuffle
        self.encoder = Encoder(
            in_channels=shape.in_channels,
            out_channels=shape.latent_channels,
            down_block_types=("DownEncoderBlock2D",) * len(shape.block_out_channels),
            block_out_channels=shape.block_out_channels,
            layers_per_block=shape.layers_per_block,
            norm_num_groups=shape.groups,
            act_fn="silu",
            double_z=True,
            mid_block_add_attention=shape.middle_attention,
        )
        moments = 2 * shape.latent_channels
        self.quant_conv = nn.Conv2d(moments, moments, 1) if shape.quant_conv else nn.Identity()

    def moments(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to (B, 2·latent_channels, S/downscale, S/downscale): means, then log-variances."""
        if self.unshuffle > 1:
            pixels = functional.pixel_unshuffle(pixels, self.unshuffle)
        return self.quant_conv(self.encoder(pixels))  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float in [0, 1] to the posterior's mode, (B, latent_channels, S/downscale, S/downscale).

        Fed [0, 1] and not [-1, 1], as the reference does: official weights give other scores otherwise.
        """
        return torch.chunk(self.moments(pixels), 2, dim=1)[0]
