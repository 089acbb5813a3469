"""What a frozen part of a network makes of the images of a list, computed once and kept on disk.

A cache is a folder: `values.npy`, float16, in slots of which each image has one or several; `done.npy`, a flag an image;
`cache.json`, which says what it was made of. It is filled in order, resumed after a kill at the first image that is missing, and
thrown away when the network, the list, a listed file or a setting that it depends on is another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lcmem_onnx.evaluation.filelist import Listed
from lcmem_onnx.runtime.errors import FileListError, TrainingError
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

__all__ = ["Halves", "Recipe", "cached", "files_digest", "weights_digest"]

SPARE_BYTES = 64 << 20

Halves = NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a cache is filled.

    Attributes:
        name: of what is kept, for progress and errors.
        made_of: what it depends on; JSON values.
        shape: of one slot.
        slots: of each image.
        make: numbers of images to their slots, (slots of these, *shape), in order.
        at_once: images that `make` is asked for at once.
    """

    name: str
    made_of: Mapping[str, Any]
    shape: tuple[int, ...]
    slots: Sequence[int]
    make: Callable[[Sequence[int]], NDArray[np.float32]]
    at_once: int


def cached(folder: Path, recipe: Recipe) -> Halves:
    """All slots as a memory map (slots, *shape), computed where they are not on disk yet.

    Raises:
        TrainingError: the disk has no room for them, which is seen before the first is computed.
        FileListError: an image cannot be read.
    """
    shape = (sum(recipe.slots), *recipe.shape)
    made_of = json.loads(
        json.dumps({**recipe.made_of, "shape": shape, "slots": hashlib.sha256(repr(list(recipe.slots)).encode()).hexdigest()})
    )
    values_file, done_file, about = folder / "values.npy", folder / "done.npy", folder / "cache.json"
    try:
        if not _is_of(about, made_of):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            needed = int(np.prod(shape)) * 2
            free = shutil.disk_usage(folder).free
            if needed + SPARE_BYTES > free:
                raise TrainingError(
                    f"the cache of {recipe.name} {folder} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB left: "
                    "free some, or set another 'out'"
                )
            np.lib.format.open_memmap(values_file, "w+", np.float16, shape).flush()
            _reserve(values_file)
            np.save(done_file, np.zeros(len(recipe.slots), np.bool_))
            about.write_text(json.dumps(made_of) + "\n", encoding="utf-8")
        values = np.lib.format.open_memmap(values_file, "r+")
        done = np.lib.format.open_memmap(done_file, "r+")
        _fill(recipe, values, done)
    except (OSError, ValueError) as error:
        raise TrainingError(f"the cache of {recipe.name} {folder} cannot be written or read: {error}") from error
    return values


def _reserve(file: Path) -> None:
    """Have the disk keep the room for it: writing into a memory map that finds none left ends the process without a word."""
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)


def _fill(recipe: Recipe, values: Any, done: Any) -> None:
    todo = np.flatnonzero(~np.asarray(done))
    begins = np.concatenate([[0], np.cumsum(recipe.slots)])
    with tqdm(total=len(done), initial=len(done) - len(todo), desc=recipe.name, disable=None, leave=False) as bar:
        for start in range(0, len(todo), recipe.at_once):
            numbers = todo[start : start + recipe.at_once]
            places = np.concatenate([np.arange(begins[number], begins[number + 1]) for number in numbers])
            values[places] = recipe.make(numbers.tolist())
            values.flush()
            done[numbers] = True
            bar.update(len(numbers))


def _is_of(about: Path, made_of: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(about.read_text(encoding="utf-8")) == made_of)
    except (OSError, ValueError):
        return False


def files_digest(rows: Sequence[Listed]) -> str:
    """Of the files' names, sizes and times of change: reading all that is in them would read a hospital's archive twice.

    Raises:
        FileListError: one cannot be read.
    """
    digest = hashlib.sha256()
    for row in rows:
        try:
            about = row.path.stat()
        except OSError as error:
            raise FileListError(f"{row.path} cannot be read: {error}") from error
        digest.update(f"{row.name}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def weights_digest(network: nn.Module, prefixes: tuple[str, ...]) -> str:
    """Of the parameters whose names begin like this."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if name.startswith(prefixes):
            digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()
