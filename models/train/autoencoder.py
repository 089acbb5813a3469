"""An autoencoder of AutoencoderKL's family from scratch, for those without Stable Diffusion's: crops, L1 + L2 + a little KL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from ..checkpoint import write_state
from .config import Autoencoder, Config
from .images import Identity, ImageSet
from .loop import Trainee, vae_folder
from .pairs import channels_first, shares

__all__ = ["autoencoder_trainee"]


class Crops(Dataset[tuple[Tensor]]):
    """Square crops at full resolution, uint8 (3, crop, crop)."""

    whole_batches = False

    def __init__(self, config: Config, images: ImageSet, identities: Sequence[Identity], count: int, *, seed: int) -> None:
        self._images, self._count, self._seed = images, count, seed
        self._crop = config.autoencoder.crop
        groups: dict[str, list[int]] = {}
        for identity in identities:
            groups.setdefault(identity.ds_name, []).extend(identity.images)
        self._groups = list(groups.values())
        self._shares = shares(groups, config.data.weights)
        self._epoch = 0
        self.batch = config.training.pairs

    def start_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> tuple[Tensor]:
        rng = np.random.default_rng([self._seed, self._epoch, number])
        group = self._groups[int(rng.choice(len(self._groups), p=self._shares))]
        whole = self._images.whole(int(rng.choice(group)))
        top, left = (int(position) for position in rng.integers(0, len(whole) - self._crop + 1, 2))
        return (channels_first(whole[top : top + self._crop, left : left + self._crop]),)


class Reconstruction(nn.Module):
    """uint8 crops (B, 3, side, side) to the loss of their reconstruction. Fed [0, 1], as LCMem feeds its VAE."""

    def __init__(self, shape: Autoencoder) -> None:
        super().__init__()
        channels = 3 * shape.unshuffle**2
        self.unshuffle, self.kl = shape.unshuffle, shape.kl
        self.vae: Any = AutoencoderKL(  # type: ignore[no-untyped-call]
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * len(shape.widths),
            up_block_types=("UpDecoderBlock2D",) * len(shape.widths),
            block_out_channels=shape.widths,
            layers_per_block=shape.layers,
            latent_channels=shape.latent_channels,
            norm_num_groups=shape.groups,
            mid_block_add_attention=shape.middle_attention,
        )

    def forward(self, crops: Tensor) -> Tensor:
        target = functional.pixel_unshuffle(crops.float() / 255.0, self.unshuffle)
        posterior = self.vae.encode(target).latent_dist
        decoded = self.vae.decode(posterior.sample()).sample.float()
        kl: Tensor = posterior.kl().float().mean()
        return functional.l1_loss(decoded, target) + functional.mse_loss(decoded, target) + self.kl * kl


def _save_vae(vae: Any, folder: Path) -> None:
    """As diffusers saves it, each file whole or as it was before.

    Raises:
        OSError: it cannot be written. safetensors' own error says that of a full disk, and is none.
    """
    unfinished = folder.with_name(f".unfinished-{folder.name}")
    try:
        vae.save_pretrained(unfinished)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    folder.mkdir(exist_ok=True)
    for file in unfinished.iterdir():
        file.replace(folder / file.name)
    unfinished.rmdir()


def autoencoder_trainee(
    config: Config, images: tuple[ImageSet, ImageSet], groups: tuple[list[Identity], list[Identity]]
) -> Trainee:
    """`images` and `groups` of the TRAIN and of the VAL split. The best network is a diffusers folder beside its state dict."""
    module = Reconstruction(config.autoencoder)

    def write(path: Path) -> None:
        _save_vae(module.vae, vae_folder(config))
        write_state(module.vae.state_dict(), path)

    training = config.training
    return Trainee(
        module=module,
        optimizers=[torch.optim.Adam(module.parameters(), lr=training.rate)],
        train=Crops(
            config,
            images[0],
            groups[0],
            (training.steps * training.pairs * training.accumulate) or len(images[0]),
            seed=config.seed,
        ),
        validation=Crops(config, images[1], groups[1], training.validation_pairs, seed=config.seed + 1),
        write=write,
    )
