"""Generated pictures as a pool in memory, and batches of pairs drawn from it.

A pair is two pictures of one identity. A scene is its own only picture; a phantom's identity has several visits. One side of
each pair is altered (stage 2), the other is left as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from queue import Queue
from threading import Event, Thread

import cv2
import numpy as np
from numpy.typing import NDArray

from .augment import augment
from .phantoms import phantom
from .scenes import scene

__all__ = ["Pool", "draw_batch", "make_pool", "prefetched"]

Pixels = NDArray[np.uint8]
OTHER_VISIT = 0.6
"""Share of phantom pairs that show two visits; the others show one picture twice, one side altered."""
UNALTERED_VISIT = 0.35
"""Share of the pairs of two visits that are not altered besides: the visit itself is the difference."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Generated pictures: `scenes` uint8 (n, size, size, 3), `phantoms` uint8 (identities, visits, size, size), grey."""

    scenes: Pixels
    phantoms: Pixels


def _scene(seed: int, size: int) -> Pixels:
    cv2.setNumThreads(1)
    return scene(seed, size)


def _visits(identity: int, visits: int, size: int) -> Pixels:
    cv2.setNumThreads(1)
    return np.stack([phantom(identity, visit, size)[..., 0] for visit in range(visits)])


def make_pool(scenes: range, identities: range, visits: int, size: int) -> Pool:
    """Generate a pool, one process a CPU. The seeds are the ranges' numbers, so disjoint ranges share no picture."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
        drawn = processes.map(_scene, scenes, [size] * len(scenes), chunksize=16)
        imaged = processes.map(_visits, identities, [visits] * len(identities), [size] * len(identities), chunksize=8)
        return Pool(np.stack(list(drawn)), np.stack(list(imaged)))


def draw_batch(pool: Pool, pairs: int, rng: np.random.Generator, *, altered: bool) -> tuple[Pixels, Pixels]:
    """Two aligned batches of pictures, uint8 (pairs, size, size, 3): half scenes, half phantoms, all of other identities.

    With `altered` the second side goes through `augment` (stage 2); without, scenes are cropped a little, since a pair of two
    equal pictures teaches nothing, and phantoms are two visits (stage 1).
    """
    firsts, seconds = [], []
    for at in rng.choice(len(pool.scenes), pairs // 2, replace=False):
        picture = pool.scenes[at]
        firsts.append(picture)
        seconds.append(augment(picture, rng) if altered else _shifted(picture, rng))
    for at in rng.choice(len(pool.phantoms), pairs - pairs // 2, replace=False):
        one, other = rng.choice(pool.phantoms.shape[1], 2, replace=False)
        visited = not altered or rng.random() < OTHER_VISIT
        second = np.repeat(pool.phantoms[at, other if visited else one][..., None], 3, axis=2)
        if altered and not (visited and rng.random() < UNALTERED_VISIT):
            second = augment(second, rng)
        firsts.append(np.repeat(pool.phantoms[at, one][..., None], 3, axis=2))
        seconds.append(second)
    return np.stack(firsts), np.stack(seconds)


def _shifted(picture: Pixels, rng: np.random.Generator) -> Pixels:
    size = len(picture)
    margin = size // 16
    top, left = rng.integers(0, margin, 2)
    window = picture[top : top + size - margin, left : left + size - margin]
    return cv2.resize(window, (size, size), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def prefetched(pool: Pool, pairs: int, steps: int, rng: np.random.Generator, *, altered: bool) -> Iterator[tuple[Pixels, Pixels]]:
    """`steps` batches, drawn by a thread while the last one is learnt from. The same generator gives the same batches."""
    queue: Queue[tuple[Pixels, Pixels] | Exception] = Queue(maxsize=3)
    stopped = Event()

    def work() -> None:
        try:
            for _ in range(steps):
                if stopped.is_set():
                    return
                queue.put(draw_batch(pool, pairs, rng, altered=altered))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is raised where the batches are asked for
            queue.put(error)

    Thread(target=work, daemon=True).start()
    try:
        for _ in range(steps):
            batch = queue.get()
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        stopped.set()
