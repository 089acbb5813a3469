"""Weights files as they lie on disk: what `torch.save` and safetensors wrote, read as data.

The kind of file is told by its first bytes, not by its name. torch's files are loaded with `weights_only=True`: a checkpoint
must not run code. torch's and safetensors' parsers stumble over damaged files with errors of their own internals, one of which
advises to load unsafely; so what can be told of a file is told here, before they see it.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lcmem_onnx.runtime.errors import CheckpointError

__all__ = ["read_weights"]

COPY_AGAIN = "copy or download it again"
SAFETENSORS_KEY = "lcmem"
"""Metadata of a safetensors file under this key, a JSON object, is what stands beside the network's state dict in a torch file."""


def read_weights(path: Path) -> dict[str, Any]:
    """The dict that a weights file holds, whatever is in it.

    Raises:
        CheckpointError: there is no such file, it cannot be read, it is damaged, asks to run code, or holds something else.
    """
    head = _head(path)
    try:
        if _is_safetensors(head):
            content: Any = _safetensors(path)
        else:
            _refuse_what_torch_never_wrote(path, head)
            # Training loops store best losses as numpy scalars beside the weights; those are data, not code.
            scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
            harmless = [scalar, np.dtype, *(type(np.dtype(kind)) for kind in "fdilB?")]
            with torch.serialization.safe_globals(harmless), warnings.catch_warnings(), path.open("rb") as stream:
                warnings.simplefilter("ignore")  # about pickle protocols, which the user did not choose
                # The stream, since torch.load goes by the suffix of a path.
                content = torch.load(stream, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a plain file of weights: loading it safely was refused, since it is no pickle of tensors or asks to "
            "run code. Save the network's state_dict() with torch.save and try again"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        # torch and safetensors raise whatever their parsers stumble over: EOFError, RuntimeError, KeyError, their own.
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({_first_line(error)}): {COPY_AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict. Save the network's state_dict()")
    return content


def _safetensors(path: Path) -> dict[str, Any]:
    """The tensors, or, with metadata of ours, these as `state_dict` beside it."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
        text = (file.metadata() or {}).get(SAFETENSORS_KEY)
    if text is None:
        return tensors
    try:
        beside = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has metadata {SAFETENSORS_KEY!r} that is not JSON: {error}") from error
    if not isinstance(beside, dict):
        raise CheckpointError(f"{path} has metadata {SAFETENSORS_KEY!r} that is not a JSON object")
    return {**beside, "state_dict": tensors}


def _head(path: Path) -> bytes:
    """The first 16 bytes."""
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder; a checkpoint file was expected")
        if not path.exists():
            raise CheckpointError(f"{path} does not exist")
        if not path.is_file():
            raise CheckpointError(f"{path} is no ordinary file; copy the checkpoint to one")
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no file's name: {error}") from error
    if not head:
        raise CheckpointError(f"{path} is empty: {COPY_AGAIN}")
    return head


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of a length, then a JSON object."""
    return head[8:9] == b"{"


def _refuse_what_torch_never_wrote(path: Path, head: bytes) -> None:
    """torch's unpickler takes a text's letters for commands and says the number of the one it does not know.

    Raises:
        CheckpointError: the file begins neither as a zip archive nor, as before torch 1.6, as a pickle; or it is an archive that
            is cut off, or that something else wrote, or holds a program (TorchScript).
    """
    if path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80")):
        raise CheckpointError(f"{path} is truncated or no safetensors file: {COPY_AGAIN}")
    if not head.startswith((b"PK", b"\x80")):
        raise CheckpointError(f"{path} is no checkpoint: torch.save writes a zip archive or a pickle, and this is neither")
    if not head.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is truncated or damaged, a zip archive without its end: {COPY_AGAIN}") from error
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{path} is a TorchScript program, not weights alone: save the network's state_dict() with torch.save and try again"
        )
    if "data.pkl" not in names:
        raise CheckpointError(f"{path} is a zip archive, but none that torch.save wrote")


def _first_line(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "the file is truncated"
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
