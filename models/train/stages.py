"""LCMem's stages as trainees: identity consistency on cached latents, copy detection on altered pictures, its last layers alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from lcmem_onnx.runtime.errors import CheckpointError, TrainingError
from torch import Tensor, nn

from ..autoencoder import Autoencoder
from ..checkpoint import load_state, load_vae, save_lcmem
from ..convnext import CONVNEXT_NAMES, Block, ConvNeXtShape
from ..lcmem import LCMem
from ..losses import pair_loss
from .config import Config, Network, Training
from .loop import EpochSet, Trainee

__all__ = ["PairLoss", "network_for", "stage_trainee"]

VAE_AT_ONCE = 12
"""Pictures that the frozen VAE sees at once: its latents are picture by picture, and small batches stay in a processor's cache.
Measured with the bundled model's autoencoder on two cores: 96 pictures in .12 s, against .18 s all at once."""


class PairLoss(nn.Module):
    """Two aligned batches, pictures uint8 (B, 3, size, size), latents or maps float (B, C, h, w), to LCMem's loss.

    The embeddings and the loss are computed in fp32 whatever the precision of the networks.
    """

    def __init__(self, network: LCMem, config: Config) -> None:
        super().__init__()
        self.network, self.settings = network, config.training
        self.on_pictures = config.stage == "2"
        self.layers = config.network.frozen if config.stage == "last-layers" else 0

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        both = torch.cat([first, second])
        if self.on_pictures:
            with torch.no_grad():
                at_once = VAE_AT_ONCE if both.device.type == "cpu" else len(both)
                both = torch.cat([self.network.latents(_pixels(part)) for part in torch.split(both, at_once)])
        features = self.network.convnext.late(both.contiguous(memory_format=torch.channels_last), self.layers)
        with torch.autocast(both.device.type, enabled=False):
            embeddings = torch.sigmoid(features.float())
            one, other = embeddings.chunk(2)
            settings = self.settings
            return pair_loss(
                one,
                other,
                self.network.logit,
                every=self.network.logits,
                alpha=settings.alpha,
                temperature=settings.temperature,
                centred=settings.centred,
                negatives=settings.negatives,
                tail=settings.tail,
            )


def _pixels(pictures: Tensor) -> Tensor:
    return pictures.to(memory_format=torch.channels_last).float() / 255.0


def network_for(config: Config) -> LCMem:
    """The network that a stage trains, with its VAE, started as the configuration says.

    Raises:
        CheckpointError, TrainingError: the VAE or the start cannot be loaded, or does not fit.
    """
    wanted = config.network
    state = load_state(wanted.start) if wanted.start else {}
    own_vae = {key.removeprefix("vae."): value for key, value in state.items() if key.startswith("vae.")}
    if wanted.vae is not None:
        shape, vae_state = load_vae(wanted.vae)
    elif own_vae and wanted.start is not None:
        shape, vae_state = load_vae(wanted.start)
    else:
        raise TrainingError(f"{wanted.start} holds no VAE: set network.vae")
    network = LCMem(_backbone(wanted, shape.latent_channels), shape)
    vae: Autoencoder | None = network.vae
    if vae is None:
        raise TrainingError("this network has no VAE to freeze")
    vae.load_state_dict(vae_state)
    vae.requires_grad_(False)
    with torch.no_grad():
        for name, parameter in network.model.named_parameters():
            if name.endswith("layer_scale"):
                parameter.fill_(wanted.layer_scale)
        if wanted.head_weight is not None:
            network.fc_end.weight.fill_(wanted.head_weight)
        if wanted.head_bias is not None:
            network.fc_end.bias.fill_(wanted.head_bias)
    if config.stage == "last-layers":
        network.convnext.features[: wanted.frozen].requires_grad_(False)
    if wanted.start:
        began = {key: value for key, value in state.items() if not key.startswith("vae.")}
        _start(network, {**_idle_blocks(network, began), **began} if wanted.grown else began, wanted.start)
    return network


def _idle_blocks(network: LCMem, began: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the blocks that a checkpoint lacks, which are its stages' last ones, weights that let their input through as it is.

    The last linear layer is 0 and the rest random, so that it learns from the first step, and the others from the second.
    """
    idle: dict[str, Tensor] = {}
    prefix = "" if any(key.startswith("features.") for key in began) else "model"  # torchvision's layout, or the reference's
    for name, block in network.convnext.named_modules(prefix=prefix):
        if isinstance(block, Block) and not name.endswith(".0") and not any(key.startswith(f"{name}.") for key in began):
            if not all(parameter.requires_grad for parameter in block.parameters()):
                raise TrainingError(f"network.grown adds {name}, which network.frozen keeps from learning: freeze fewer layers")
            for key, value in block.state_dict().items():
                idle[f"{name}.{key}"] = torch.zeros_like(value) if key.startswith("block.5.") else value
    return idle


def _backbone(wanted: Network, latent_channels: int) -> ConvNeXtShape:
    if wanted.backbone == "custom":
        return ConvNeXtShape(latent_channels, wanted.widths, wanted.depths, wanted.stem, wanted.features)
    widths, depths = next(shape for shape, name in CONVNEXT_NAMES.items() if name == wanted.backbone)
    return ConvNeXtShape(latent_channels, widths, depths, wanted.stem, wanted.features)


def _start(network: LCMem, state: Mapping[str, Tensor], source: Path) -> None:
    """Take a checkpoint's weights; of torchvision's ConvNeXt (keys without `model.`) all but stem and last layer, which differ."""
    if any(key.startswith("features.") for key in state):
        own = network.model.state_dict()
        fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
        if len(fitting) < len(own) // 2:
            raise CheckpointError(f"{source} is a ConvNeXt of another shape than {network.model.shape.name}")
        network.model.load_state_dict(fitting, strict=False)
        return
    own = network.state_dict()
    other = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    if other:
        raise CheckpointError(f"{source} is a network of another shape than network.* says: {', '.join(other[:3])}")
    missing, surplus = network.load_state_dict(dict(state), strict=False)
    missing = [key for key in missing if not key.startswith("vae.")]
    if missing or surplus:
        raise CheckpointError(f"{source} does not fit the network: missing {missing[:3]}, surplus {surplus[:3]}")


def _optimizers(training: Training, network: LCMem) -> list[torch.optim.Optimizer]:
    """Muon (torch's own; Jordan et al. 2024) gets further in a short training. After 300 steps of stage 1, re-identification of
    validation phantoms had an AUC of .69 with Adam alone (.72 at three times the rate), .77 with Muon, .83 with a layer scale of 1
    besides.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, each in network.model.named_parameters():
        if not each.requires_grad:
            continue
        of_a_block = name.startswith("features.") and each.ndim == 2
        (matrices if training.muon_rate and of_a_block else rest).append(each)
    head = {"params": list(network.fc_end.parameters()), "lr": training.rate * training.head_rate}
    adam = torch.optim.Adam([{"params": rest, "lr": training.rate}, head])
    if not matrices:
        return [adam]
    return [adam, torch.optim.Muon(matrices, lr=training.muon_rate, weight_decay=0.0)]


def stage_trainee(config: Config, network: LCMem, train: EpochSet, validation: EpochSet) -> Trainee:
    """Adam on backbone and head, or Muon on the blocks' matrices; the head may learn faster and be held at or below 0."""
    head = network.fc_end
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def after_step() -> None:
        if config.network.monotone_head:
            with torch.no_grad():
                head.weight.clamp_(max=0.0)

    return Trainee(
        module=PairLoss(network, config),
        optimizers=_optimizers(config.training, network),
        train=train,
        validation=validation,
        after_step=after_step,
        write=lambda path: save_lcmem(network, path, image_size=config.network.image_size, with_vae=config.stage != "1"),
    )
