"""Checkpoint files to LCMem modules: the one place that knows the key layouts.

Accepted are the layouts that the reference code writes (flat `*_best_network.pth` of either stage, `*_checkpoint.pth` with
the network under `state_dict`; `model_state_dict` and `model` do as well), each with or without the `module.` that distributed
training puts before every key, the same keys as safetensors, and VAEs as diffusers saves them. The backbone and the VAE's
shape are read off the keys.

Files are read by `weights_file`: a checkpoint is data, and must not run code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lcmem_onnx.runtime.errors import CheckpointError
from torch import Tensor

from .autoencoder import DEFAULT_GROUPS, AutoencoderShape, modern_attention_keys
from .convnext import ConvNeXtShape
from .efficientnet_lite import TrunkShape
from .lcmem import LCMem
from .resnet import ResNetShape
from .weights_file import read_weights

__all__ = ["Loaded", "load_lcmem", "load_state", "load_vae", "save_lcmem", "write_state"]

NETWORK = ("state_dict", "model_state_dict", "model")
"""What training loops call the network's entry in a file that holds more. The reference's call it by the first."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every key."""
COUNTERS = ("num_batches_tracked",)
UNUSED_VAE = ("decoder.", "post_quant_conv.")
LISTED_KEYS = 8
VAE_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
VAE_IMAGE_SIZE = 512
SIAMESE_IMAGE_SIZE = 256
"""The reference resizes to 512 in front of the VAE and to 256 in front of the siamese ResNet."""


@dataclass(frozen=True)
class Loaded:
    """A network from a file, and what the file says beside the weights."""

    network: LCMem
    description: str
    image_size: int
    threshold: dict[str, Any] | None
    card: dict[str, Any] | None
    strangers: dict[str, Any] | None = None


def load_lcmem(checkpoint: Path, vae: Path | None = None) -> Loaded:
    """Load a trained LCMem, or one of the paper's siamese baselines, in evaluation mode.

    Args:
        checkpoint: a `torch.save` or `.safetensors` file of either training stage.
        vae: a diffusers VAE (folder or `.safetensors`), needed when the checkpoint is of stage 1 and so holds none.

    Raises:
        CheckpointError: the file cannot be read, is no state dict, lacks or has keys that it should not, or the VAE does
            not fit the backbone.
    """
    content = read_weights(checkpoint)
    state = _network_state(content, checkpoint)
    backbone = _backbone_shape(_below(state, "model."), checkpoint)
    beside = {} if _entry(content) is None else content
    image_size, threshold = _image_size(beside, checkpoint), _threshold(beside, checkpoint)
    card = _plain_dict(beside, "card", "model card", checkpoint)
    strangers = _plain_dict(beside, "strangers", "strangers' tail", checkpoint)

    vae_state = _below(state, "vae.")
    groups = _groups(beside.get("vae_config"), checkpoint)
    if vae_state and vae is not None:
        raise CheckpointError(f"{checkpoint} holds a VAE of its own (stage 2): leave --vae away")
    if vae is not None:
        vae_state, groups = _read_vae(vae)
    if not vae_state and backbone.in_channels != 3:
        raise CheckpointError(
            f"{checkpoint} is a stage-1 network: it reads {backbone.in_channels}-channel latents and holds no VAE. "
            "Give the VAE that made them with --vae (a diffusers folder or .safetensors file)"
        )
    if vae is not None and backbone.in_channels == 3:
        raise CheckpointError(f"{checkpoint} reads RGB images, not latents: leave --vae away")

    shape = None
    if vae_state:
        shape, vae_state = _encoder(vae_state, groups, vae or checkpoint)
        _check_vae(shape, backbone, checkpoint, vae)
    trunk_state = _below(state, "trunk.")
    with _shapes_of(checkpoint):
        trunk = TrunkShape.from_state(trunk_state) if trunk_state else None
    if trunk is not None and shape is None:
        raise CheckpointError(f"{checkpoint} has a trunk but no VAE: a network with two branches needs both in one file")
    network = LCMem(backbone, shape, trunk)
    parameters = {key: value for key, value in state.items() if not key.startswith("vae.")}
    parameters |= {f"vae.{key}": value for key, value in vae_state.items()}
    _load_strictly(network, parameters, checkpoint if vae is None else f"{checkpoint} with {vae}")
    return Loaded(
        network=network.eval(),
        description=_describe(backbone, shape, trunk),
        image_size=(VAE_IMAGE_SIZE if shape else SIAMESE_IMAGE_SIZE) if image_size is None else image_size,
        threshold=threshold,
        card=card,
        strangers=strangers,
    )


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint in any of the accepted layouts, without wrappers' prefixes.

    Raises:
        CheckpointError: the file cannot be read or is no state dict.
    """
    return _network_state(read_weights(path), path)


def load_vae(path: Path) -> tuple[AutoencoderShape, dict[str, Tensor]]:
    """The encoder's shape and state (`encoder.*`, `quant_conv.*`) of a diffusers VAE, or of a stage-2 checkpoint that holds one.

    Raises:
        CheckpointError: it cannot be read, or is no `AutoencoderKL` encoder.
    """
    state, groups = _read_vae(path)
    return _encoder(state, groups, path)


def _encoder(state: Mapping[str, Tensor], groups: int, path: Path) -> tuple[AutoencoderShape, dict[str, Tensor]]:
    with _shapes_of(path):
        kept = modern_attention_keys({key: value for key, value in state.items() if not key.startswith(UNUSED_VAE)})
        shape = AutoencoderShape.from_state(kept, groups)
        shape.unshuffle  # noqa: B018  # it refuses channels that no RGB image gives
    return shape, kept


def save_lcmem(
    network: LCMem,
    path: Path,
    *,
    image_size: int,
    with_vae: bool = True,
    threshold: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
    strangers: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint in the reference's key layout: stage 2, or, without the VAE, stage 1.

    What the reference's files leave to the command line stands beside the weights, under `state_dict` as its
    `*_checkpoint.pth` files have it: the VAE's GroupNorm groups, the image size, and, if given, a decision threshold with its
    source, a model card and the strangers' tail (`runtime.strangers.Strangers.as_json`). A network for which the reference's own
    values hold is written flat, as its `*_best_network.pth` files are. Plain Python values only, so that the file loads with
    `weights_only=True`.
    """
    state = {key: value for key, value in network.state_dict().items() if with_vae or not key.startswith("vae.")}
    content: dict[str, Any] = {"state_dict": state, "image_size": image_size}
    shape = network.vae.shape if network.vae is not None else None
    if shape is not None and with_vae:
        content["vae_config"] = {
            "_class_name": "AutoencoderKL",
            "in_channels": shape.in_channels,
            "block_out_channels": list(shape.block_out_channels),
            "layers_per_block": shape.layers_per_block,
            "latent_channels": shape.latent_channels,
            "norm_num_groups": shape.groups,
            "mid_block_add_attention": shape.middle_attention,
            "use_quant_conv": shape.quant_conv,
        }
    if threshold is not None:
        content["threshold"] = dict(threshold)
    if card is not None:
        content["card"] = dict(card)
    if strangers is not None:
        content["strangers"] = dict(strangers)
    usual = VAE_IMAGE_SIZE if shape else SIAMESE_IMAGE_SIZE
    bare = threshold is None and card is None and strangers is None
    plain = bare and image_size == usual and (shape is None or shape.groups == DEFAULT_GROUPS)
    write_state(state if plain else content, path)


def write_state(content: Mapping[str, Any], path: Path) -> None:
    """`torch.save` into a stream: given a path, it writes the file's name into the file, and equal weights would be other bytes.

    Raises:
        OSError, RuntimeError: it cannot be written.
    """
    with path.open("wb") as file:
        torch.save(content, file)


def _entry(content: Mapping[str, Any]) -> str | None:
    """The name under which a file holds the network beside other things; None where the file is the network."""
    return next((name for name in NETWORK if isinstance(content.get(name), Mapping)), None)


def _network_state(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The network's own entries in fp32, without the wrappers' prefixes."""
    entry = _entry(content)
    inner = content if entry is None else content[entry]
    if not inner:
        raise CheckpointError(f"{path} holds no state dict: it is empty")
    state: dict[str, Tensor] = {}
    for key, value in inner.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{path} holds no state dict: the key {key!r} is no text")
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds no state dict: the entry {key!r} is a {type(value).__name__}, not a tensor. A network beside other "
                f"things is looked for under {', '.join(NETWORK)}"
            )
        name = _unwrapped(key)
        if name in state:
            raise CheckpointError(f"{path} holds {name!r} twice, with and without a wrapper's prefix: save one of the two")
        state[name] = _plain(value, key, path)
    return state


def _plain(value: Tensor, key: str, path: Path) -> Tensor:
    """A tensor in fp32; counters, which are whole numbers, as they are."""
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise CheckpointError(f"{path} holds {key!r} sparse, quantised or without its values: save dense weights in fp32 or fp16")
    if value.is_floating_point():
        return value.float()
    if not key.endswith(COUNTERS):
        raise CheckpointError(f"{path} holds {key!r} as {value.dtype}: weights are expected as fp32, fp16, bf16 or fp64")
    return value


def _image_size(beside: Mapping[str, Any], path: Path) -> int | None:
    """What a checkpoint says of the image size; a fallback in silence would give other embeddings."""
    size = beside.get("image_size")
    if size is not None and (type(size) is not int or size < 1):
        raise CheckpointError(f"{path} gives its image_size as {size!r}; a whole number of pixels was expected")
    return size


def _threshold(beside: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    threshold = beside.get("threshold")
    if threshold is None:
        return None
    value = threshold.get("value") if isinstance(threshold, Mapping) else None
    source = threshold.get("source") if isinstance(threshold, Mapping) else None
    if not isinstance(value, int | float) or not 0 < value < 1 or not isinstance(source, str):
        raise CheckpointError(
            f"{path} gives its threshold as {threshold!r}; expected is {{'value': a number between 0 and 1, "
            "'source': where that is from}"
        )
    return {"value": float(value), "source": source}


def _plain_dict(beside: Mapping[str, Any], name: str, called: str, path: Path) -> dict[str, Any] | None:
    """The model card, or the strangers' tail, as the manifest can hold it."""
    content = beside.get(name)
    if content is None:
        return None
    try:
        plain = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a {called} that is not plain JSON ({error})") from error
    if not isinstance(plain, dict):
        raise CheckpointError(f"{path} has a {type(content).__name__} for a {called}; a dict of names and values was expected")
    return plain


@contextmanager
def _shapes_of(path: Path) -> Iterator[None]:
    """Name the file in what is said of its shapes; a tensor with fewer axes than it should have breaks their reading."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path} does not fit: {error}") from error
    except IndexError as error:
        raise CheckpointError(f"{path} does not fit: a tensor that tells the network's shape has too few axes") from error


def _unwrapped(key: str) -> str:
    while key.startswith(WRAPPERS):
        key = key.split(".", 1)[1]
    return key


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _backbone_shape(state: Mapping[str, Tensor], path: Path) -> ConvNeXtShape | ResNetShape:
    with _shapes_of(path):
        if "conv1.weight" in state:
            return ResNetShape.from_state(state)
        if any(key.startswith("features.") for key in state):
            return ConvNeXtShape.from_state(state)
    raise CheckpointError(
        f"{path} holds neither a ConvNeXt ('model.features...') nor a ResNet ('model.conv1...'): it is no LCMem checkpoint"
    )


def _groups(config: Any, path: Path) -> int:
    """The VAE's GroupNorm groups, which no weight's shape tells."""
    if config is None:
        return DEFAULT_GROUPS
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{path} gives the VAE's configuration as a {type(config).__name__}; a dict was expected")
    groups = config.get("norm_num_groups", DEFAULT_GROUPS)
    if type(groups) is not int or groups < 1:
        raise CheckpointError(f"{path} gives the VAE's norm_num_groups as {groups!r}; a positive number was expected")
    return groups


def _read_vae(path: Path) -> tuple[dict[str, Tensor], int]:
    """A diffusers VAE: a folder (with or without `vae/` in it) or one weights file."""
    groups = DEFAULT_GROUPS
    if path.is_dir():
        folder = path / "vae" if (path / "vae" / "config.json").exists() else path
        config = folder / "config.json"
        if not config.exists():
            raise CheckpointError(f"{path} is no diffusers VAE: there is no config.json in it or in its vae/ folder")
        try:
            groups = _groups(json.loads(config.read_text(encoding="utf-8")), config)
        except OSError as error:
            raise CheckpointError(f"{config} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{config} is not valid JSON: {error}") from error
        weights = [folder / name for name in VAE_WEIGHTS if (folder / name).exists()]
        if not weights:
            raise CheckpointError(f"{folder} has no weights: neither {' nor '.join(VAE_WEIGHTS)}")
        path = weights[0]
    content = read_weights(path)
    if _entry(content) is not None and "vae_config" in content:
        groups = _groups(content["vae_config"], path)
    state = _network_state(content, path)
    return _below(state, "vae.") or state, groups


def _check_vae(shape: AutoencoderShape, backbone: ConvNeXtShape | ResNetShape, checkpoint: Path, vae: Path | None) -> None:
    source = vae or checkpoint
    if shape.latent_channels != backbone.in_channels:
        raise CheckpointError(
            f"the VAE of {source} gives {shape.latent_channels} latent channels, but the backbone reads "
            f"{backbone.in_channels}: they do not belong together"
        )
    if any(width % shape.groups for width in shape.block_out_channels):
        how = (
            "Give it as a diffusers folder, whose config.json states norm_num_groups"
            if vae
            else "Save it as {'state_dict': ..., 'vae_config': {'norm_num_groups': the right number}}"
        )
        raise CheckpointError(
            f"the VAE of {source} has widths {shape.block_out_channels}, which {shape.groups} GroupNorm groups do not divide. {how}"
        )


def _load_strictly(network: LCMem, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Load, or say which keys are missing, surplus or of another shape."""
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    surplus = [key for key in state if key not in wanted]
    other = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = [
        f"{what}: {_listed(keys)}" for what, keys in (("missing", missing), ("surplus", surplus), ("other shape", other)) if keys
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit {type(network.model).__name__}: {'; '.join(problems)}")
    broken = [key for key, value in state.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if broken:
        raise CheckpointError(f"{source} holds values that are not finite: {_listed(broken)}")
    network.load_state_dict(dict(state), strict=False)


def _listed(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
    return ", ".join(keys[:LISTED_KEYS]) + more


def _describe(backbone: ConvNeXtShape | ResNetShape, shape: AutoencoderShape | None, trunk: TrunkShape | None) -> str:
    if shape is None:
        return f"{backbone.name} on RGB, {backbone.features} features"
    widths = "/".join(map(str, shape.block_out_channels))
    unshuffled = f", pixel-unshuffle {shape.unshuffle}" if shape.unshuffle > 1 else ""
    second = f"; EfficientNet-Lite0, {trunk.features} features" if trunk else ""
    return (
        f"AutoencoderKL encoder {widths}{unshuffled}, {shape.latent_channels} latent channels; "
        f"{backbone.name}, {backbone.features} features{second}"
    )
