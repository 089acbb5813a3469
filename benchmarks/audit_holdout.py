"""Are copies in a hold-out noticed, and is a clean hold-out left alone?

The folders' images are dealt by identity into reference, release and hold-out, many times. Each deal is audited twice: as it is,
where each suspect is a false alarm or an image that the folders have under two names; and with 1 to 10 images planted in place of
others of the hold-out: altered copies of reference images, altered copies of released ones, or, where a list names patients, other
images of patients of the reference. A deal counts as noticed when a planted image is left out.

    python benchmarks/audit_holdout.py --folder chest/ --list list.csv --work holdouts
    python benchmarks/audit_holdout.py --folder flowers/ --folder objects/ --work holdouts --plant released
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections import Counter, defaultdict
from pathlib import Path

import click
import cv2
import numpy as np
from lcmem_onnx.evaluation.alterations import alter
from lcmem_onnx.runtime.audit.run import Audit, Request, audit
from lcmem_onnx.runtime.errors import ImageError
from lcmem_onnx.runtime.images.image import open_image
from lcmem_onnx.runtime.screening import Screener
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
KINDS = ("recompressed", "resized", "cropped", "brighter or darker", "flipped", "cropped and flipped")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".dcm")


def altered(image: Pixels, kind: str, rng: np.random.Generator) -> tuple[Pixels, float]:
    """An altered copy, and how much it was altered; it is saved as JPEG afterwards."""
    height, width = image.shape[:2]
    if kind == "recompressed":
        quality = float(rng.integers(20, 91))
        return alter(image, "jpeg", quality, rng), quality
    if kind == "resized":
        scale = float(rng.uniform(0.35, 1.6))
        size = max(8, round(width * scale)), max(8, round(height * scale))
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), np.uint8), scale
    if kind == "cropped":
        part = float(rng.uniform(0.85, 0.97))
        down, across = round(height * part), round(width * part)
        top, left = int(rng.integers(0, height - down + 1)), int(rng.integers(0, width - across + 1))
        return np.ascontiguousarray(image[top : top + down, left : left + across]), part
    if kind == "brighter or darker":
        factor = float(rng.uniform(0.6, 0.85) if rng.random() < 0.5 else rng.uniform(1.15, 1.5))
        return alter(image, "brightness", factor, rng), factor
    if kind == "flipped":
        return np.ascontiguousarray(image[:, ::-1] if rng.random() < 0.7 else image[::-1]), 1.0
    cropped, part = altered(image, "cropped", rng)
    return np.ascontiguousarray(cropped[:, ::-1]), part


def identities(listing: Path | None) -> dict[str, str]:
    """Real path to identity, of a list with the columns path and id (or patient)."""
    if listing is None:
        return {}
    with listing.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    return {os.path.realpath(listing.parent / row["path"]): row.get("patient") or row["id"] for row in rows}


def deal(files: dict[str, list[Path]], images: int, rng: np.random.Generator) -> tuple[list[list[Path]], dict[Path, str]]:
    """Three sets of images, no identity in two of them, and the identity of each image that was dealt or could be."""
    names = sorted(files)
    order = [names[at] for at in rng.permutation(len(names))]
    sets: list[list[Path]] = []
    whose: dict[Path, str] = {}
    for _ in range(3):
        chosen: list[Path] = []
        while order and len(chosen) < images:
            name = order.pop()
            chosen += files[name]
            whose.update(dict.fromkeys(files[name], name))
        sets.append(chosen[:images])
    return sets, whose


def plant(sets: list[list[Path]], whose: dict[Path, str], what: str, count: int, rng: np.random.Generator) -> dict[str, str]:
    """Write planted images in place of as many of the hold-out; the name of each to what was done to it."""
    planted: dict[str, str] = {}
    source = sets[1 if what == "released" else 0]
    for number in range(count):
        if what == "patients":
            listed = {whose[path] for path in sets[0]}
            taken = {path for part in sets for path in part}
            spare = [path for path, name in whose.items() if name in listed and path not in taken]
            spare = [path for path in spare if path.name not in planted.values()]
            if not spare:
                break
            path = spare[int(rng.integers(len(spare)))]
            name = f"planted-{number}{path.suffix}"
            os.symlink(path, Path(name))
            planted[name] = path.name
            continue
        path = source[int(rng.integers(len(source)))]
        kind = KINDS[int(rng.integers(len(KINDS)))]
        pixels, strength = altered(open_image(path.read_bytes(), name_hint=path.name).frame(0), kind, rng)
        name = f"planted-{number}.jpg"
        cv2.imwrite(name, pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        planted[name] = f"{kind} {strength:.2f} of {path.name}"
    return planted


def lay_out(work: Path, sets: list[list[Path]]) -> None:
    for name, chosen in zip(("reference", "released", "holdout"), sets, strict=True):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir(parents=True)
        for number, path in enumerate(chosen):
            os.symlink(path, work / name / f"{number:05d}{path.suffix}")


@click.command()
@click.option(
    "--folder", "folders", multiple=True, required=True, type=click.Path(path_type=Path, exists=True), help="A folder of images."
)
@click.option("--list", "listing", type=click.Path(path_type=Path, exists=True), help="CSV with path and id: whose they are.")
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for all that is made.")
@click.option("--seeds", default=40, show_default=True, help="Deals.")
@click.option("--images", default=300, show_default=True, help="Images in each of the three sets.")
@click.option(
    "--plant",
    "what",
    default="reference",
    show_default=True,
    type=click.Choice(["reference", "released", "patients"]),
    help="What.",
)
@click.option("--clean/--no-clean", default=True, show_default=True, help="Audit a clean hold-out for each planted one.")
def main(folders: tuple[Path, ...], listing: Path | None, work: Path, seeds: int, images: int, what: str, clean: bool) -> None:
    screener = Screener()
    names = identities(listing)
    files: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        for path in sorted(folder.resolve().rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                files[names.get(os.path.realpath(path), str(path))].append(path)
    started = time.monotonic()
    planted_in_all = left_out = noticed = lost = clean_images = 0
    missed: list[str] = []
    suspicions: Counter[str] = Counter()
    false: list[str] = []
    clean_deals: list[int] = []
    work = work.resolve()

    def audited() -> Audit:
        request = Request(
            work / "released",
            work / "reference",
            work / "report",
            work / "holdout",
            patients=listing if what == "patients" else None,
        )
        return audit(screener, request)

    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        sets, whose = deal(files, images, rng)
        if min(map(len, sets)) < images:
            raise SystemExit(f"there are too few images for three sets of {images}: give more folders, or fewer --images")
        count = 1 + seed % 10
        if clean:
            lay_out(work, sets)
            done = audited()
            assert done.tests is not None
            assert done.holdout is not None
            clean_deals.append(len(done.tests.suspects))
            clean_images += images
            for suspect in done.tests.suspects:
                name = work / "holdout" / done.holdout.items[suspect.index].name
                other = work / suspect.other.value / (suspect.key or "")
                false.append(f"seed {seed}: {name.resolve().name} {suspect.suspicion.value} {other.resolve().name}")
        lay_out(work, [*sets[:2], sets[2][: images - count]])
        os.chdir(work / "holdout")
        planted = plant(sets, whose, what, count, rng)
        done = audited()
        assert done.tests is not None
        assert done.holdout is not None
        suspects = {done.holdout.items[suspect.index].name: suspect for suspect in done.tests.left_out}
        found = planted.keys() & suspects.keys()
        planted_in_all += len(planted)
        left_out += len(found)
        noticed += bool(found)
        lost += not found
        missed += [f"seed {seed}: {planted[name]}" for name in sorted(planted.keys() - found)]
        suspicions.update(suspects[name].suspicion.value for name in found)
    click.echo(
        json.dumps(
            {
                "folders": [folder.name for folder in folders],
                "images in each set": images,
                "planted": what,
                "contaminated hold-outs noticed": f"{noticed} of {seeds}",
                "planted images left out": f"{left_out} of {planted_in_all}",
                "as": dict(suspicions),
                "missed": missed,
                "clean hold-outs with a suspect": f"{sum(each > 0 for each in clean_deals)} of {len(clean_deals)}",
                "suspects among clean images": f"{len(false)} of {clean_images}",
                "these": false,
                "seconds": round(time.monotonic() - started),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    try:
        main()
    except ImageError as error:
        raise SystemExit(f"error: {error}") from error
