"""LCMem's stages as trainees: identity consistency on cached latents, copy detection on altered images, its last layers alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lcmem_onnx.runtime.errors import CheckpointError, TrainingError
from torch import Tensor, nn

from ..autoencoder import Autoencoder
from ..checkpoint import load_state, load_vae, save_lcmem
from ..convnext import CONVNEXT_NAMES, Block, ConvNeXtShape
from ..efficientnet_lite import TrunkShape, pretrained_state
from ..lcmem import LCMem
from .config import Config, Network, Training
from .kind_loss import KindLoss, latents_in_parts
from .loop import EpochSet, Trainee
from .losses import pair_loss

__all__ = ["PairLoss", "network_for", "stage_trainee"]

EMBEDDING_LAYERS = ("model.classifier.2.", "trunk.projection.")
"""The last linear layer of each branch."""
NEW_EMBEDDING = (*EMBEDDING_LAYERS, "fc_end.")
"""What `network.new_embedding` does not take from a start."""


class PairLoss(nn.Module):
    """Two aligned batches, images uint8 (B, 3, size, size), latents or maps float (B, C, h, w), to LCMem's loss.

    The embeddings and the loss are computed in fp32 whatever the precision of the networks.
    """

    def __init__(self, network: LCMem, config: Config) -> None:
        super().__init__()
        self.network, self.settings = network, config.training
        self.on_images = config.stage == "2"
        self.layers = config.network.frozen if config.stage == "last-layers" else 0

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        both = torch.cat([first, second])
        if self.on_images:
            both = latents_in_parts(self.network, both.to(memory_format=torch.channels_last).float() / 255.0)
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
    trunk = TrunkShape(wanted.trunk_features) if wanted.trunk_features else None
    network = LCMem(_backbone(wanted, shape.latent_channels), shape, trunk)
    vae: Autoencoder | None = network.vae
    if vae is None:
        raise TrainingError("this network has no VAE to freeze")
    vae.load_state_dict(vae_state)
    vae.requires_grad_(False)
    for name, side in (("network.image_size", wanted.image_size), ("training.small_size", config.training.small_size)):
        _check_side(name, side, shape.downscale, network.convnext.shape)
    _initialize(network, wanted)
    if config.stage == "last-layers":
        network.convnext.features[: wanted.frozen].requires_grad_(False)
    pretrained = {f"trunk.{key}": value for key, value in pretrained_state(wanted.trunk).items()} if wanted.trunk else {}
    network.load_state_dict(pretrained, strict=False)
    if wanted.start:
        began = {key: value for key, value in state.items() if not key.startswith("vae.")}
        if wanted.new_embedding:
            began = {key: value for key, value in began.items() if not key.startswith(NEW_EMBEDDING)}
        if wanted.grown:
            began = {**_idle_blocks(network, began), **began}
        optional = (*(NEW_EMBEDDING if wanted.new_embedding else ()), *pretrained)
        _start(network, began, wanted.start, optional)
    return network


def _check_side(name: str, side: int, downscale: int, shape: ConvNeXtShape) -> None:
    """Raise a TrainingError if the backbone's last map would be empty."""
    factor = downscale * shape.stem * 2 ** (len(shape.dims) - 1)
    if 0 < side < factor:
        raise TrainingError(f"{name} is {side}, and this network needs images of {factor} x {factor} at least")


def _initialize(network: LCMem, wanted: Network) -> None:
    """Set what the configuration says of the initial weights."""
    with torch.no_grad():
        for name, parameter in network.model.named_parameters():
            if name.endswith("layer_scale"):
                parameter.fill_(wanted.layer_scale)
        if wanted.embedding_deviation:
            for name, parameter in network.named_parameters():
                if name.startswith(EMBEDDING_LAYERS):
                    parameter.normal_(0.0, wanted.embedding_deviation) if name.endswith("weight") else parameter.zero_()
        if wanted.head_weight is not None:
            network.fc_end.weight.fill_(wanted.head_weight)
        if wanted.head_bias is not None:
            network.fc_end.bias.fill_(wanted.head_bias)


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


def _start(network: LCMem, state: Mapping[str, Tensor], source: Path, optional: tuple[str, ...]) -> None:
    """Take a checkpoint's weights; of torchvision's ConvNeXt (keys without `model.`) all but stem and last layer, which differ.

    Keys that begin as one of `optional` may be missing.
    """
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
    missing = [key for key in missing if not key.startswith(("vae.", *optional))]
    if missing or surplus:
        hint = ": set network.trunk to the public weights" if missing and all(key.startswith("trunk.") for key in missing) else ""
        raise CheckpointError(f"{source} does not fit the network: missing {missing[:3]}, surplus {surplus[:3]}{hint}")


def _optimizers(training: Training, network: LCMem) -> list[torch.optim.Optimizer]:
    """Muon (torch's own; Jordan et al. 2024) gets further in a short training. After 300 steps of stage 1, re-identification of
    validation phantoms had an AUC of .69 with Adam alone (.72 at three times the rate), .77 with Muon, .83 with a layer scale of 1
    besides.
    """
    matrices: list[nn.Parameter] = []
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, each in _learning(network):
        if training.muon_rate and name.startswith("model.features.") and each.ndim == 2:
            matrices.append(each)
            continue
        if name.startswith(EMBEDDING_LAYERS):
            multiple, decay = training.embedding_rate, 0.0
        else:
            multiple = training.trunk_rate if name.startswith("trunk.") else training.backbone_rate
            decay = training.weight_decay
        groups.setdefault((training.rate * multiple, decay), []).append(each)
    # Groups of equal settings are one, so that checkpoints of version 0.1.0 load.
    settings: list[dict[str, Any]] = [{"params": its, "lr": rate, "weight_decay": decay} for (rate, decay), its in groups.items()]
    settings.append({"params": list(network.fc_end.parameters()), "lr": training.rate * training.head_rate, "weight_decay": 0.0})
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    adam = kind(settings, betas=(0.9, training.beta2))
    if not matrices:
        return [adam]
    return [adam, torch.optim.Muon(matrices, lr=training.muon_rate, weight_decay=0.0)]


def _learning(network: LCMem) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that learn, but for the head's."""
    for name, each in network.named_parameters():
        if each.requires_grad and not name.startswith("fc_end."):
            yield name, each


def _average(average: LCMem, network: LCMem, decay: float, steps: int) -> None:
    """Move an exponential moving average; in the first steps it follows faster, or it would keep the weights of the start."""
    weight = 1.0 - min(decay, steps / (steps + 9.0))
    with torch.no_grad():
        for kept, newest in zip(average.parameters(), network.parameters(), strict=True):
            kept.lerp_(newest, weight)


def stage_trainee(config: Config, network: LCMem, train: EpochSet, validation: EpochSet) -> Trainee:
    """Adam on backbone, trunk and head, or Muon on the blocks' matrices; the head may be held at or below 0."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = config.training
    module: PairLoss | KindLoss = KindLoss(network, config) if config.data.kinds else PairLoss(network, config)
    average = copy.deepcopy(network).requires_grad_(False) if training.average else None
    averaged = None if average is None else (KindLoss(average, config) if config.data.kinds else PairLoss(average, config))
    optimizers = _optimizers(training, network)

    def after_step() -> None:
        if config.network.monotone_head:
            with torch.no_grad():
                network.fc_end.weight.clamp_(max=0.0)
        if average is not None:
            _average(average, network, training.average, _steps_taken(optimizers[0]))
        if isinstance(module, KindLoss):
            module.memory.end_step(training.pairs)

    return Trainee(
        module=module,
        optimizers=optimizers,
        train=train,
        validation=validation,
        after_step=after_step,
        write=lambda path: save_lcmem(
            network if average is None else average,
            path,
            image_size=config.network.image_size,
            with_vae=config.stage != "1",
        ),
        averaged=averaged,
    )


def _steps_taken(optimizer: torch.optim.Optimizer) -> int:
    return int(next(iter(optimizer.state.values()))["step"])
