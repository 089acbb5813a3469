"""Checkpoint files to LCMem modules: the one place that knows the key layouts.

Accepted are the layouts that the reference code writes (flat `*_best_network.pth` of either stage, `*_checkpoint.pth` with
the network under `state_dict`, each with or without the `module.` that distributed training puts before every key), the
same keys as `.safetensors`, and VAEs as diffusers saves them. The backbone and the VAE's shape are read off the keys.

Files are loaded with `weights_only=True`: a checkpoint is data, and must not run code.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lcmem_onnx.runtime.errors import CheckpointError
from torch import Tensor

from .autoencoder import DEFAULT_GROUPS, AutoencoderShape, modern_attention_keys
from .convnext import ConvNeXtShape
from .lcmem import LCMem
from .resnet import ResNetShape

__all__ = ["Loaded", "load_lcmem", "load_state", "load_vae", "save_lcmem"]

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every key."""
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


def load_lcmem(checkpoint: Path, vae: Path | None = None) -> Loaded:
    """Load a trained LCMem, or one of the paper's siamese baselines, in evaluation mode.

    Args:
        checkpoint: a `torch.save` or `.safetensors` file of either training stage.
        vae: a diffusers VAE (folder or `.safetensors`), needed when the checkpoint is of stage 1 and so holds none.

    Raises:
        CheckpointError: the file cannot be read, is no state dict, lacks or has keys that it should not, or the VAE does
            not fit the backbone.
    """
    content = _read(checkpoint)
    state = _network_state(content, checkpoint)
    backbone = _backbone_shape(_below(state, "model."), checkpoint)
    extras = {name: value for name, value in content.items() if isinstance(value, dict)} if "state_dict" in content else {}

    vae_state = _below(state, "vae.")
    groups = _groups(extras.get("vae_config"))
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
        raise CheckpointError(f"{checkpoint} reads RGB pictures, not latents: leave --vae away")

    shape = None
    if vae_state:
        shape, vae_state = _encoder(vae_state, groups)
        _check_vae(shape, backbone, vae or checkpoint)
    network = LCMem(backbone, shape)
    parameters = {key: value for key, value in state.items() if not key.startswith("vae.")}
    parameters |= {f"vae.{key}": value for key, value in vae_state.items()}
    _load_strictly(network, parameters, checkpoint if vae is None else f"{checkpoint} with {vae}")
    image_size = content.get("image_size") if "state_dict" in content else None
    return Loaded(
        network=network.eval(),
        description=_describe(backbone, shape),
        image_size=image_size if isinstance(image_size, int) else (VAE_IMAGE_SIZE if shape else SIAMESE_IMAGE_SIZE),
        threshold=extras.get("threshold"),
        card=extras.get("card"),
    )


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint in any of the accepted layouts, without wrappers' prefixes.

    Raises:
        CheckpointError: the file cannot be read or is no state dict.
    """
    return _network_state(_read(path), path)


def load_vae(path: Path) -> tuple[AutoencoderShape, dict[str, Tensor]]:
    """The encoder's shape and state (`encoder.*`, `quant_conv.*`) of a diffusers VAE, or of a stage-2 checkpoint that holds one.

    Raises:
        CheckpointError: it cannot be read, or is no `AutoencoderKL` encoder.
    """
    state, groups = _read_vae(path)
    return _encoder(state, groups)


def _encoder(state: Mapping[str, Tensor], groups: int) -> tuple[AutoencoderShape, dict[str, Tensor]]:
    kept = modern_attention_keys({key: value for key, value in state.items() if not key.startswith(UNUSED_VAE)})
    return AutoencoderShape.from_state(kept, groups), kept


def save_lcmem(
    network: LCMem,
    path: Path,
    *,
    image_size: int,
    with_vae: bool = True,
    threshold: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint in the reference's key layout: stage 2, or, without the VAE, stage 1.

    What the reference's files leave to the command line stands beside the weights, under `state_dict` as its
    `*_checkpoint.pth` files have it: the VAE's GroupNorm groups, the picture size, and, if given, a decision threshold with its
    source and a model card. A network for which the reference's own values hold is written flat, as its `*_best_network.pth`
    files are. Plain Python values only, so that the file loads with `weights_only=True`.
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
    usual = VAE_IMAGE_SIZE if shape else SIAMESE_IMAGE_SIZE
    plain = threshold is None and card is None and image_size == usual and (shape is None or shape.groups == DEFAULT_GROUPS)
    torch.save(state if plain else content, path)


def _read(path: Path) -> dict[str, Any]:
    """The dict that a weights file holds, whatever is in it."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; a checkpoint file was expected")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            # Training loops store best losses as numpy scalars beside the weights; those are data, not code.
            scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
            harmless = [scalar, np.dtype, *(type(np.dtype(kind)) for kind in "fdilB?")]
            with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickle protocols, which the user did not choose
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        _refuse_what_torch_never_wrote(path)
        raise CheckpointError(
            f"{path} is not a plain file of weights: loading it safely was refused, since it is no pickle of tensors or asks to "
            "run code. Save the network's state_dict() with torch.save and try again"
        ) from error
    except PermissionError as error:
        raise CheckpointError(f"{path} may not be read: {error.strerror}") from error
    except Exception as error:
        _refuse_what_torch_never_wrote(path)
        # torch and safetensors raise whatever their parsers stumble over: EOFError, RuntimeError, KeyError, their own.
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict. Save the network's state_dict()")
    return content


def _refuse_what_torch_never_wrote(path: Path) -> None:
    """torch's unpickler takes a text's letters for commands and says the number of the one it does not know.

    Raises:
        CheckpointError: the file begins neither as a zip archive nor, as before torch 1.6, as a pickle.
    """
    with path.open("rb") as stream:
        head = stream.read(2)
    if path.suffix != ".safetensors" and head and head[:1] != b"\x80" and head != b"PK":
        raise CheckpointError(f"{path} is no checkpoint: torch.save writes a zip archive or a pickle, and this is neither")


def _first_line(error: Exception) -> str:
    if isinstance(error, zipfile.BadZipFile | EOFError):
        return "the file is truncated"
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _network_state(content: dict[str, Any], path: Path | str) -> dict[str, Tensor]:
    """The network's own entries, without the wrappers' prefixes."""
    inner = content.get("state_dict", content)
    if not isinstance(inner, Mapping) or not inner:
        raise CheckpointError(f"{path} holds no state dict")
    state: dict[str, Tensor] = {}
    for key, value in inner.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path} holds no state dict: the entry {key!r} is a {type(value).__name__}, not a tensor")
        state[_unwrapped(key)] = value.float() if value.is_floating_point() else value
    return state


def _unwrapped(key: str) -> str:
    while key.startswith(WRAPPERS):
        key = key.split(".", 1)[1]
    return key


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _backbone_shape(state: Mapping[str, Tensor], path: Path) -> ConvNeXtShape | ResNetShape:
    if "conv1.weight" in state:
        return ResNetShape.from_state(state)
    if any(key.startswith("features.") for key in state):
        return ConvNeXtShape.from_state(state)
    raise CheckpointError(
        f"{path} holds neither a ConvNeXt ('model.features...') nor a ResNet ('model.conv1...'): it is no LCMem checkpoint"
    )


def _groups(config: Any) -> int:
    groups = config.get("norm_num_groups", DEFAULT_GROUPS) if isinstance(config, Mapping) else DEFAULT_GROUPS
    if not isinstance(groups, int) or groups < 1:
        raise CheckpointError(f"the VAE's norm_num_groups is {groups!r}; a positive number was expected")
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
            groups = _groups(json.loads(config.read_text(encoding="utf-8")))
        except ValueError as error:
            raise CheckpointError(f"{config} is not valid JSON: {error}") from error
        weights = [folder / name for name in VAE_WEIGHTS if (folder / name).exists()]
        if not weights:
            raise CheckpointError(f"{folder} has no weights: neither {' nor '.join(VAE_WEIGHTS)}")
        path = weights[0]
    content = _read(path)
    if "state_dict" in content and "vae_config" in content:
        groups = _groups(content["vae_config"])
    state = _network_state(content, path)
    return _below(state, "vae.") or state, groups


def _check_vae(shape: AutoencoderShape, backbone: ConvNeXtShape | ResNetShape, source: Path) -> None:
    if shape.latent_channels != backbone.in_channels:
        raise CheckpointError(
            f"the VAE of {source} gives {shape.latent_channels} latent channels, but the backbone reads "
            f"{backbone.in_channels}: they do not belong together"
        )
    if any(width % shape.groups for width in shape.block_out_channels):
        raise CheckpointError(
            f"the VAE of {source} has widths {shape.block_out_channels}, which {shape.groups} GroupNorm groups do not "
            "divide. Give it as a diffusers folder, whose config.json states norm_num_groups"
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


def _describe(backbone: ConvNeXtShape | ResNetShape, shape: AutoencoderShape | None) -> str:
    if shape is None:
        return f"{backbone.name} on RGB, {backbone.features} features"
    widths = "/".join(map(str, shape.block_out_channels))
    unshuffled = f", pixel-unshuffle {shape.unshuffle}" if shape.unshuffle > 1 else ""
    return (
        f"AutoencoderKL encoder {widths}{unshuffled}, {shape.latent_channels} latent channels; "
        f"{backbone.name}, {backbone.features} features"
    )
