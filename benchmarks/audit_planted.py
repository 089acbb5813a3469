"""Are planted copies found, and are the false ones within what the report announces?

Each folder of images (no two of the same, `*-1.png` being other visits and left out) is dealt into reference, released set
and hold-out. Copies of reference images, altered by the paper's transforms, are planted in place of 1 % of the released ones,
and an audit is made; then the same without copies. That is done for many seeds. A planted copy counts as listed when the report
lists it; all else that it lists is a false one.

    python -m lcmem_onnx.models.bundled.photographs --out photographs
    python benchmarks/audit_planted.py --phantoms 1800 --scenes 1800 --images photographs/photographs --work planted
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import click
import cv2
import numpy as np
from lcmem_onnx.evaluation.alterations import PAPER_GRID, alter
from lcmem_onnx.runtime.audit.run import Audit, Request, audit
from lcmem_onnx.runtime.errors import ImageError
from lcmem_onnx.runtime.images.image import open_image
from lcmem_onnx.runtime.screening import Screener

CELLS = [(transform, strength) for transform, strengths in PAPER_GRID.items() for strength in strengths]
FIRST_SEED = 2_000_000


def drawn(folder: Path, phantoms: int, scenes: int) -> list[Path]:
    """Phantoms, one visit each, and scenes, as `models/synthetic/generate.py` draws them for its test split."""
    from lcmem_onnx.models.synthetic.phantoms import kind_of, phantom
    from lcmem_onnx.models.synthetic.scenes import scene

    cv2.setNumThreads(1)
    for what, count in (("phantoms", phantoms), ("scenes", scenes)):
        (folder / what).mkdir(parents=True, exist_ok=True)
        for seed in range(FIRST_SEED, FIRST_SEED + count):
            name = f"{kind_of(seed)}-{seed}-0.png" if what == "phantoms" else f"{seed}.png"
            if not (folder / what / name).exists():
                image = phantom(seed, 0, 256) if what == "phantoms" else scene(seed, 256)
                cv2.imwrite(str(folder / what / name), image[..., ::-1])
    return [folder / what for what, count in (("phantoms", phantoms), ("scenes", scenes)) if count]


def one(screener: Screener, files: list[Path], work: Path, out: Path, seed: int, planted: float, wanted: float, tta: bool) -> Audit:
    """Deal the files, plant, audit. The released files' names say what they are."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(files))
    third = len(files) // 3
    for name in ("reference", "released", "holdout"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir(parents=True)
    for name, start in (("reference", 0), ("released", third), ("holdout", 2 * third)):
        for at in order[start : start + third]:
            os.symlink(files[at], work / name / f"{at:05d}{files[at].suffix}")
    count = round(planted * third)
    for number, at in enumerate(rng.choice(order[:third], count, replace=False)):
        transform, strength = CELLS[rng.integers(len(CELLS))]
        image = open_image(files[at].read_bytes(), name_hint=files[at].name).frame(0)
        name = f"planted-{number:03d}-{at:05d}-{transform}-{strength}.png"
        cv2.imwrite(str(work / "released" / name), alter(image, transform, strength, rng)[..., ::-1])
        (work / "released" / f"{order[third + number]:05d}{files[order[third + number]].suffix}").unlink()
    request = Request(work / "released", work / "reference", out, work / "holdout", wanted=wanted, tta=tta)
    return audit(screener, request)


@click.command()
@click.option("--images", multiple=True, type=click.Path(path_type=Path, exists=True), help="A folder of different images.")
@click.option("--phantoms", default=0, help="Phantoms to draw.")
@click.option("--scenes", default=0, help="Scenes to draw.")
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for all that is made.")
@click.option("--seeds", default=20, show_default=True, help="Deals for each folder.")
@click.option("--planted", default=0.01, show_default=True, help="Share of the released set that is copies.")
@click.option("--wanted-rate", default=0.01, show_default=True, help="As for the command.")
@click.option("--tta", is_flag=True, help="As for the command.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON a folder.")
def main(
    images: tuple[Path, ...],
    phantoms: int,
    scenes: int,
    work: Path,
    seeds: int,
    planted: float,
    wanted_rate: float,
    tta: bool,
    as_json: bool,
) -> None:
    screener = Screener()
    for folder in [*images, *drawn(work / "drawn", phantoms, scenes)]:
        files = [path.resolve() for path in sorted(folder.rglob("*")) if path.is_file() and not path.stem.endswith("-1")]
        started = time.monotonic()
        missed: Counter[str] = Counter()
        total = listed = by_pixels = within = clean_within = clean_found = 0
        false, announced, clean = [], [], []
        for seed in range(seeds):
            done = one(screener, files, work / "sets", work / "out" / folder.name, seed, planted, wanted_rate, tta)
            assert done.chance.count is not None
            for finding in done.findings:
                if finding.name.startswith("planted"):
                    total += 1
                    listed += finding.found
                    by_pixels += finding.found and (finding.score or 0) < done.limit.value
                    if not finding.found:
                        missed["-".join(finding.name.removesuffix(".png").split("-")[3:])] += 1
            false.append(sum(finding.found for finding in done.findings if not finding.name.startswith("planted")))
            announced.append(done.chance.count.high + (done.promoted.high if done.promoted else 0))
            within += false[-1] <= announced[-1]
            done = one(screener, files, work / "sets", work / "out" / folder.name, 1000 + seed, 0.0, wanted_rate, tta)
            assert done.chance.count is not None
            matches = sum((finding.score or 0) >= done.limit.value for finding in done.findings)
            clean.append(matches)
            clean_within += done.chance.count.low <= matches <= done.chance.count.high
            clean_found += sum(finding.found for finding in done.findings)
        result = {
            "folder": folder.name,
            "images a set": len(files) // 3,
            "seeds": seeds,
            "planted": total,
            "listed": listed,
            "share listed": round(listed / total, 4) if total else None,
            "of these below the threshold, by pixels": by_pixels,
            "missed": dict(missed),
            "false ones a seed": [min(false), float(np.mean(false)), max(false)],
            "announced at most": [min(announced), max(announced)],
            "false ones at most as many as announced": f"{within} of {seeds}",
            "clean sets: matches a seed": [min(clean), float(np.mean(clean)), max(clean)],
            "clean sets: within the announced interval": f"{clean_within} of {seeds}",
            "clean sets: listed in all": clean_found,
            "seconds": round(time.monotonic() - started),
        }
        click.echo(json.dumps(result) if as_json else "\n".join(f"{name}: {value}" for name, value in result.items()) + "\n")


if __name__ == "__main__":
    try:
        main()
    except ImageError as error:
        raise SystemExit(f"error: {error}") from error
