"""Generated images as files and a file list: `python -m lcmem_onnx.models.synthetic.generate --out DIR`.

Scenes (dead leaves, fractal noise, drawn shapes, text) are photograph-like, one image an identity; phantoms are
radiograph-like, several visits an identity. An image is a function of its seed alone, and the splits take their seeds from
disjoint ranges: the same command gives the same files, and no identity is in two splits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType

import click
import cv2
import numpy as np
from lcmem_onnx.console.exit_codes import Ending
from lcmem_onnx.evaluation.filelist import SPLITS, Listed, write_file_list
from lcmem_onnx.runtime.errors import TrainingError
from numpy.typing import NDArray
from tqdm import tqdm

from .phantoms import KINDS, kind_of, phantom
from .scenes import scene

__all__ = ["FIRST_SEEDS", "MOST", "Amounts", "generate", "write_png"]

FIRST_SEEDS: Mapping[str, int] = MappingProxyType({"TRAIN": 0, "VAL": 1_000_000, "TEST": 2_000_000})
MOST = 1_000_000
SMALLEST = 32
BUNCH = 16
COUNT = click.IntRange(0, MOST)
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Amounts:
    """How many images of each sort a split gets."""

    scenes: int
    identities: int
    visits: int
    kinds: tuple[str, ...] = ()
    """The kinds of phantom that are drawn, keys of `phantoms.KINDS`; all of them if none is named. Identities of others are
    passed over."""


@dataclass(frozen=True)
class Order:
    """One image to be made; what it shows follows from its seeds."""

    row: Listed
    seed: int
    visit: int | None
    size: int


def generate(out: Path, amounts: Mapping[str, Amounts], size: int, beyond: int = 0) -> list[Listed]:
    """Write all images and `list.csv` into `out`, one process a CPU; files that are there already are left as they are.

    Args:
        beyond: scenes and identities of TRAIN that are passed over, for new ones where a training has seen as many.

    Raises:
        TrainingError: amounts or size out of range, images of another size are there already, or `out` cannot be written.
    """
    for split, wanted in amounts.items():
        most = MOST - beyond if split == "TRAIN" else MOST
        if beyond < 0 or not (0 <= wanted.scenes <= most and 0 <= wanted.identities <= most and wanted.visits >= 1):
            raise TrainingError(
                f"{split}: scenes and identities are 0 to {most} each, visits 1 or more; beyond, the splits' seeds would meet"
            )
        if other := set(wanted.kinds) - set(KINDS):
            raise TrainingError(f"{split}: no phantom is a {', '.join(sorted(other))}; there are {', '.join(KINDS)}")
    if size < SMALLEST:
        raise TrainingError(f"an image of {size} pixels a side is too small to draw in: {SMALLEST} or more")
    try:
        return _generated(out, amounts, size, {**FIRST_SEEDS, "TRAIN": FIRST_SEEDS["TRAIN"] + beyond})
    except OSError as error:
        raise TrainingError(
            f"{out} cannot be written: {error}. What is there already is used when the command is run again"
        ) from error


def _generated(out: Path, amounts: Mapping[str, Amounts], size: int, firsts: Mapping[str, int]) -> list[Listed]:
    orders = [order for split in SPLITS if split in amounts for order in _orders(out, firsts[split], split, amounts[split], size)]
    for folder in {order.row.path.parent for order in orders}:
        folder.mkdir(parents=True, exist_ok=True)
    todo = []
    for order in orders:
        if not order.row.path.exists():
            todo.append(order)
        elif (side := _side(order.row.path)) != size:
            raise TrainingError(
                f"{order.row.path} is there already, {side or 'not a whole image, 0'} pixels wide, where {size} are wanted: "
                "choose another folder, or remove this one"
            )
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with _safe_path(), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
        for _ in tqdm(processes.map(_draw, todo, chunksize=BUNCH), total=len(todo), desc="images", disable=None):
            pass
    rows = [order.row for order in orders]
    write_file_list(out / "list.csv", rows)
    return rows


@contextmanager
def _safe_path() -> Iterator[None]:
    """Start processes off the working directory, which `-c` would search for modules first; this process's setting comes back."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _orders(out: Path, first: int, split: str, amounts: Amounts, size: int) -> Iterator[Order]:
    for seed in range(first, first + amounts.scenes):
        name = f"{split.lower()}/scenes/{seed:07d}.png"
        yield Order(Listed(split, f"scene-{seed}", name, out / name, "scenes"), seed, None, size)
    last = first - first % MOST + MOST  # where the next split's seeds begin
    wanted = ((seed, kind) for seed in range(first, last) if (kind := kind_of(seed)) in (amounts.kinds or KINDS))
    people = list(islice(wanted, amounts.identities))
    if len(people) < amounts.identities:
        raise TrainingError(f"{split}: {amounts.identities} identities of {', '.join(amounts.kinds)}: there are {len(people)}")
    for seed, kind in people:
        for visit in range(amounts.visits):
            name = f"{split.lower()}/{kind}/{seed:07d}-{visit}.png"
            yield Order(Listed(split, f"phantom-{seed}", name, out / name, kind), seed, visit, size)


def _side(path: Path) -> int:
    """A PNG's width, in pixels, by its header alone; 0 of a file that is none."""
    with path.open("rb") as file:
        head = file.read(24)
    return int.from_bytes(head[16:20], "big") if head[:8] == PNG and len(head) == 24 else 0


def _draw(order: Order) -> None:
    cv2.setNumThreads(1)
    if order.visit is None:
        pixels = np.asarray(cv2.cvtColor(scene(order.seed, order.size), cv2.COLOR_RGB2BGR), np.uint8)
    else:
        pixels = phantom(order.seed, order.visit, order.size)[..., 0]
    write_png(order.row.path, pixels)


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write grey or BGR pixels, uint8 (height, width) or (height, width, 3), whole or not at all.

    Not by `put_whole`, which syncs each file: of tens of thousands that can be drawn again, a power cut may take some.

    Raises:
        OSError: they cannot be encoded or written.
    """
    unfinished = path.with_suffix(".unfinished.png")
    encoded, data = cv2.imencode(".png", pixels)
    if not encoded:
        raise OSError(f"{path} cannot be encoded as PNG")
    unfinished.write_bytes(data.tobytes())  # and not imwrite, which does not say why it failed
    unfinished.replace(path)


@click.command(cls=Ending, context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for images and list.csv.")
@click.option("--scenes", type=COUNT, default=4000, help="Scenes to train on.")
@click.option("--identities", type=COUNT, default=8000, help="Phantom identities to train on.")
@click.option("--visits", type=click.IntRange(min=1), default=4, help="Images of each identity, in every split.")
@click.option("--val", type=COUNT, default=300, help="Scenes, and identities, of the validation split.")
@click.option("--test", type=COUNT, default=700, help="Scenes, and identities, of the test split.")
@click.option("--size", type=click.IntRange(min=SMALLEST), default=256, help="Side of an image, in pixels.")
def main(out: Path, scenes: int, identities: int, visits: int, val: int, test: int, size: int) -> None:
    """Draw scenes and phantoms to train and to measure on."""
    amounts = {
        "TRAIN": Amounts(scenes, identities, visits),
        "VAL": Amounts(val, val, visits),
        "TEST": Amounts(test, test, visits),
    }
    rows = generate(out, amounts, size)
    click.echo(f"{len(rows)} images, listed in {out / 'list.csv'}", err=True)


if __name__ == "__main__":
    main()
