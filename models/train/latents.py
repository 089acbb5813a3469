"""Latents of all pictures of a file list, computed once and kept on disk: what stage 1 learns from.

The cache is a folder: `latents.npy`, float16 (pictures, channels, height, width), normalised sample-wise; `done.npy`, a flag a
picture; `cache.json`, which says what it was made of. It is filled in order, resumed after a kill at the first picture that is
missing, and thrown away when the VAE, the size, the list or a listed file is another.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lcmem_onnx.evaluation.filelist import Listed
from lcmem_onnx.runtime.errors import FileListError, TrainingError
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..lcmem import LCMem
from .config import Config
from .pairs import EpochPairs
from .pictures import Identity, Pictures

__all__ = ["PairedLatents", "cached_latents"]

AT_ONCE = 32
SPARE_BYTES = 64 << 20
CHANNEL_NORMALISATION = 0.01
"""Chance of the paper's stage-1 augmentation: a random channel of one side gets another mean and deviation."""

Halves = NDArray[np.float16]


def cached_latents(network: LCMem, rows: Sequence[Listed], size: int, folder: Path, device: torch.device) -> Halves:
    """The latents of all rows, as a memory map, computed where they are not on disk yet.

    Raises:
        TrainingError: the disk has no room for them; what is written already stays and is used when there is room again.
        FileListError: a picture cannot be read.
    """
    if network.vae is None:
        raise TrainingError("latents are made by a VAE, and this network has none: set network.vae")
    shape = (len(rows), network.vae.shape.latent_channels, *2 * (size // network.vae.shape.downscale,))
    identity = {"rows": _digest(rows), "vae": _weights_digest(network), "shape": list(shape)}
    latents_file, done_file, about = folder / "latents.npy", folder / "done.npy", folder / "cache.json"
    try:
        if not _is_of(about, identity):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            needed = int(np.prod(shape)) * 2
            free = shutil.disk_usage(folder).free
            if needed + SPARE_BYTES > free:
                raise TrainingError(
                    f"the latent cache {folder} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB left: free some, "
                    "or set another 'out'"
                )
            np.lib.format.open_memmap(latents_file, "w+", np.float16, shape).flush()
            np.save(done_file, np.zeros(len(rows), np.bool_))
            about.write_text(json.dumps(identity) + "\n", encoding="utf-8")
        latents = np.lib.format.open_memmap(latents_file, "r+")
        done = np.lib.format.open_memmap(done_file, "r+")
        _fill(network, rows, size, latents, done, device)
    except (OSError, ValueError) as error:
        raise TrainingError(f"the latent cache {folder} cannot be written or read: {error}") from error
    return latents


def _fill(network: LCMem, rows: Sequence[Listed], size: int, latents: Any, done: Any, device: torch.device) -> None:
    todo = np.flatnonzero(~np.asarray(done))
    network = network.to(device).eval()
    with tqdm(total=len(rows), initial=len(rows) - len(todo), desc="latents", disable=None, leave=False) as bar:
        for at in range(0, len(todo), AT_ONCE):
            numbers = todo[at : at + AT_ONCE]
            pictures = Pictures([rows[number] for number in numbers], size)
            pixels = np.stack([pictures.whole(number) for number in range(len(numbers))])
            with torch.no_grad():
                batch = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255.0
                latents[numbers] = network.latents(batch).cpu().numpy()
            latents.flush()
            done[numbers] = True
            bar.update(len(numbers))


def _is_of(about: Path, identity: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(about.read_text(encoding="utf-8")) == identity)
    except (OSError, ValueError):
        return False


def _digest(rows: Sequence[Listed]) -> str:
    """Of the files' names, sizes and times of change: reading all that is in them would read a hospital's archive twice."""
    digest = hashlib.sha256()
    for row in rows:
        try:
            about = row.path.stat()
        except OSError as error:
            raise FileListError(f"{row.path} cannot be read: {error}") from error
        digest.update(f"{row.name}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _weights_digest(network: LCMem) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if name.startswith("vae."):
            digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


class PairedLatents(EpochPairs):
    """Pairs of latents, each two tensors (channels, height, width); the same latent twice for single pictures."""

    def __init__(
        self, config: Config, latents: Halves, identities: Sequence[Identity], pairs: int, *, batch: int, seed: int
    ) -> None:
        super().__init__(config.data, identities, pairs, batch, seed)
        self._latents = latents

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rng, its = self._drawn(number)
        one, other = (its[0], its[0]) if len(its) == 1 else (int(at) for at in rng.choice(its, 2, replace=False))
        first, second = (torch.from_numpy(np.asarray(self._latents[at], np.float32)) for at in (one, other))
        if rng.random() < CHANNEL_NORMALISATION:
            channel = int(rng.integers(len(second)))
            second[channel] = second[channel] * rng.uniform(0.5, 1.5) + rng.normal(0.0, 0.25)
        return first, second
