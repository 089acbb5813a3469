"""The model that comes with the package, from nothing in one command: `python -m lcmem_onnx.models.bundled --out DIR`.

Real pictures are fetched (`photographs`), others drawn (`generate`) or deformed (`bodies`), an autoencoder and LCMem's two stages
trained (`train`, by the recipes `bundled-*.toml`), a threshold is set on validation pictures, the test split is measured through
the exported bundle, and the figures go into its card. Each step is left out when what it makes is there already, and training goes
on after its last whole epoch: after a kill, the same command goes on.

The same command gives the same model up to floating point, as long as all packages can still be fetched; arithmetic in
bfloat16, where a processor has it, differs from one processor to the next.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
import numpy as np
import torch
from lcmem_onnx.evaluation.evaluate import CopyAt, CopyDetection, Evaluation, Reidentification, evaluate
from lcmem_onnx.evaluation.filelist import Listed, read_file_list, write_file_list
from lcmem_onnx.evaluation.measures import share_at
from lcmem_onnx.evaluation.networks import BundleScorer
from lcmem_onnx.evaluation.protocols import CELLS
from lcmem_onnx.evaluation.scoring import Plan, score_all
from lcmem_onnx.export.package import Request, export_bundle
from lcmem_onnx.runtime.bundle import Threshold, open_bundle
from lcmem_onnx.runtime.errors import TrainingError
from lcmem_onnx.runtime.machine import cpu_limit, cpu_name
from lcmem_onnx.runtime.screening import Screener
from lcmem_onnx.runtime.syncing import put_whole

from .bodies import bodies
from .checkpoint import Loaded, load_lcmem, save_lcmem
from .generate import MOST, Amounts, generate
from .phantoms import KINDS
from .photographs import collect
from .train.__main__ import Training, train
from .train.config import Config, read_config
from .train.loop import best_file, finished, log_file

__all__ = ["make"]

STAGES = ("autoencoder", "stage1", "stage2", "stage2-hard", "fresh", "further", "deeper", "longer")
STARTS = MappingProxyType({stage: before for before, stage in pairwise(STAGES[1:])})
"""Whose network a stage starts with: of the one before, but for the autoencoder and the first, which begin with none."""
LISTS = MappingProxyType(
    {
        "real": "real/list.csv",
        "later": "real/later.csv",
        "generated": "generated/list.csv",
        "fresh": "fresh/list.csv",
        "further": "further/list.csv",
        "bodies": "bodies/list.csv",
        "joints": "joints/list.csv",
        "more-bodies": "more-bodies/list.csv",
    }
)
LEARNT_FROM = MappingProxyType(
    {
        "fresh": ("real", "later", "fresh"),
        "further": ("real", "later", "fresh", "further", "bodies"),
        **dict.fromkeys(("deeper", "longer"), ("real", "later", "fresh", "further", "bodies", "joints", "more-bodies")),
    }
)
"""The lists of a stage, if not `real` and `generated`."""
NAME = "lcmem-small"
FRESH_BEYOND, FURTHER_BEYOND, JOINTS_BEYOND = 100_000, 116_000, 132_000
"""See `generate`'s `beyond`: where the seeds of what the stages `fresh`, `further` and `deeper` add begin. No stage draws as
many as would reach the next one's."""
JOINTS = ("hand", "knee")
"""What `deeper` and `longer` learn from more of: the kinds whose visits a network knew by heart and did not find elsewhere."""
FRESH_SCENES = 3000
BODIES, MORE_BODIES = 14, 12
"""See `bodies`: how many of each slice, for the stage `further`, and more of them for `deeper`."""
KEPT = MappingProxyType({"fresh": 0.8, "further": 0.8, "deeper": 0.8, "longer": 0.7})
"""See `_averaged`: the share of a stage's own weights, if not all of them are. The last one's was chosen with its last epoch's."""
DECISION_RATE = 1e-3
SCENES_MEASURED, PHANTOMS_MEASURED = 200, 60
"""Pictures of the test split that are altered in every cell: scenes, and phantoms of a kind, one an identity."""
SIZE = 256
SHIPPED = "fp16"
"""The variant in the package, for its size: it is fp32 but for 2e-4 of a score, where int8 is a fifth faster and .03 off."""

Say = Callable[[str], None]


def make(out: Path, amounts: Mapping[str, Amounts], fresh: Amounts, settings: Sequence[str], say: Say) -> Path:
    """Do all steps that are not done yet, and give the folder of the finished bundle.

    Args:
        amounts: generated pictures, by split.
        fresh: others for the stage `fresh`, and phantoms, as many again, for `further`, and of `JOINTS` alone for `deeper`. The
            stages before know theirs by heart: they found .93 of the visits of phantoms that they were trained on, and .74 of
            those of others.
        settings: `table.key=value`, for every stage's configuration; for a try.
    """
    out.mkdir(parents=True, exist_ok=True)
    lists = {name: out / path for name, path in LISTS.items()}
    if not (lists["real"].exists() and lists["later"].exists()):
        collect(out / "real", say)
    if not lists["generated"].exists():
        generate(out / "generated", amounts, SIZE)
    if not lists["fresh"].exists():
        generate(out / "fresh", {"TRAIN": fresh, "VAL": amounts["VAL"]}, SIZE, beyond=FRESH_BEYOND)
    if not lists["further"].exists():
        generate(out / "further", {"TRAIN": replace(fresh, scenes=0)}, SIZE, beyond=FURTHER_BEYOND)
    if not lists["joints"].exists():
        generate(out / "joints", {"TRAIN": replace(fresh, scenes=0, kinds=JOINTS)}, SIZE, beyond=JOINTS_BEYOND)
    slices = [row for row in read_file_list(lists["later"]) if row.ds_name == "slices"]
    for name, count, first in (("bodies", BODIES, 0), ("more-bodies", MORE_BODIES, BODIES)):
        if not lists[name].exists():
            bodies(slices, out / name, count, first)
    for stage in STAGES:
        config = _config(out, stage, settings)
        if not finished(config):
            train(config)
        if stage in KEPT:
            _save(_averaged(out, stage), _ended_with(out, stage))
    rows = {name: read_file_list(path) for name, path in lists.items()}
    copies, people = out / "copies.csv", out / "identities.csv"
    write_file_list(copies, _below(out, _one_a_phantom(rows["generated"]), rows["real"]))
    write_file_list(people, _below(out, [row for row in rows["generated"] if row.ds_name != "scenes" and row.split != "TRAIN"]))

    trained = _ended_with(out, STAGES[-1])
    best = load_lcmem(trained)
    with tempfile.TemporaryDirectory() as scratch:
        unmeasured = Path(scratch) / "bundle"
        export_bundle(Request(trained, unmeasured, name=NAME, variants=(SHIPPED,)))
        # All visits of phantoms, so that each kind has pairs enough.
        pictures = [*(row for row in read_file_list(copies) if row.ds_name not in KINDS), *read_file_list(people)]
        threshold = _threshold(Screener(unmeasured), pictures)
        say(f"threshold {threshold.value:.4f}: {threshold.source}")
        screener = Screener(replace(open_bundle(unmeasured), threshold=threshold))
        say("measuring copy detection")
        copied = evaluate(copies, [BundleScorer(screener)], protocol="copy", fit_on="test")
        say("measuring re-identification")
        identified = evaluate(people, [BundleScorer(screener)], protocol="reid", fit_on="test")
    for name, evaluation in (("copies", copied), ("identities", identified)):
        (out / f"{name}.json").write_text(json.dumps(evaluation.as_json(), indent=1) + "\n", encoding="utf-8")
    card = _card(out, settings, rows, copied, identified)
    checkpoint = out / f"{NAME}.pth"
    _save(best, checkpoint, threshold=asdict(threshold), card=card)
    export_bundle(Request(checkpoint, out / "bundle", name=NAME, licence="MIT", replace=True, variants=(SHIPPED,)), say)
    return out / "bundle"


def _save(loaded: Loaded, path: Path, **about: Any) -> None:
    try:
        put_whole(path, lambda draft: save_lcmem(loaded.network, draft, image_size=loaded.image_size, **about), alone=True)
    except (OSError, RuntimeError) as error:  # torch raises the second where a disk is full
        raise TrainingError(f"{path} cannot be written: {error}. Make room, and give the same command again") from error


def _ended_with(out: Path, stage: str) -> Path:
    """The checkpoint that the next stage starts with, or that ships."""
    return out / stage / "averaged.pth" if stage in KEPT else best_file(_config(out, stage, ()))


def _averaged(out: Path, stage: str) -> Loaded:
    """A stage's best network, part of the way back to the one that it began with.

    On validation pictures the mean of their weights re-identified better than either, and lost less of photographs than the later
    one (docs/bundled-model.md; the idea is Wortsman et al.'s, arXiv 2109.01903).
    """
    began, ended = load_lcmem(_ended_with(out, STARTS[stage])), load_lcmem(best_file(_config(out, stage, ())))
    before = began.network.state_dict()
    after = ended.network.state_dict()
    # A block that the stage has added stays as it ended: the network that began had none.
    mean = {key: torch.lerp(before[key], value, KEPT[stage]) if key in before else value for key, value in after.items()}
    ended.network.load_state_dict(mean)
    return ended


def _places(out: Path, stage: str) -> list[str]:
    """Settings that put a recipe's paths below `out`."""
    listed = ", ".join(json.dumps(str(out / LISTS[name])) for name in LEARNT_FROM.get(stage, ("real", "generated")))
    places = [f"out={json.dumps(str(out / stage))}", f"data.lists=[{listed}]"]
    if stage != "autoencoder":
        places.append(f"network.vae={json.dumps(str(out / 'autoencoder' / 'vae'))}")
    if stage in STARTS:
        places.append(f"network.start={json.dumps(str(_ended_with(out, STARTS[stage])))}")
    return places


def _one_a_phantom(rows: Iterable[Listed]) -> list[Listed]:
    """Of TEST the first scenes, and the first picture of the first identities of each kind; of VAL the first of each identity."""
    kept, seen, counts = [], set(), dict[tuple[str, str], int]()
    for row in rows:
        if row.split == "TRAIN" or row.identity in seen:
            continue
        seen.add(row.identity)
        many = SCENES_MEASURED if row.ds_name == "scenes" else PHANTOMS_MEASURED
        counts[row.split, row.ds_name] = counts.get((row.split, row.ds_name), 0) + 1
        if row.split == "VAL" or counts[row.split, row.ds_name] <= many:
            kept.append(row)
    return kept


def _below(out: Path, *groups: Iterable[Listed]) -> list[Listed]:
    """Rows with names relative to `out`, TRAIN left out."""
    return [replace(row, name=row.path.relative_to(out).as_posix()) for rows in groups for row in rows if row.split != "TRAIN"]


def _threshold(screener: Screener, pictures: Iterable[Listed]) -> Threshold:
    """The score that `DECISION_RATE` of the pairs of different VAL pictures of one data set reach, on average over the data sets.

    On average, so that thousands of easy pairs of one data set do not hide the hard ones of another; not in the strictest, since
    the hands' threshold would miss copies of everything else. What each data set lets through is said with it.
    """
    rows = [replace(row, split="TEST") for row in pictures if row.split == "VAL"]
    plan = Plan((), reidentification=False, seed=42, size=SIZE, pair_negatives=0, workers=cpu_limit())
    scorer = BundleScorer(screener)
    scored = score_all(rows, [scorer], plan).scores[scorer.name]
    every = np.concatenate([part.negatives for part in scored.values()])
    share = np.concatenate([np.full(len(part.negatives), 1.0 / len(part.negatives) / len(scored)) for part in scored.values()])
    falling = np.argsort(-every)
    allowed = int(np.searchsorted(np.cumsum(share[falling]), DECISION_RATE, "right"))
    value = float(np.nextafter(every[falling[allowed]], np.inf))
    rates = {name: share_at(part.negatives, value) for name, part in scored.items()}
    worst = sorted(rates, key=lambda name: -rates[name])[:2]
    return Threshold(
        value,
        f"{DECISION_RATE:.1%} of the pairs of different validation pictures of one kind reach it, on average over {len(scored)} "
        f"kinds ({', '.join(f'{name} {rates[name]:.2%}' for name in worst)}, others less); not calibrated on patients",
    )


def _card(
    out: Path, settings: Sequence[str], rows: dict[str, list[Listed]], copied: Evaluation, identified: Evaluation
) -> dict[str, Any]:
    trained = [row for its in rows.values() for row in its if row.split == "TRAIN"]
    counts = {name: sum(row.ds_name == name for row in trained) for name in dict.fromkeys(row.ds_name for row in trained)}
    return {
        "demonstration": True,
        "summary": "A small LCMem: copies of photographs and of radiograph-like pictures. Re-identification was measured on drawn "
        "phantoms alone. Not for decisions about patients' data before it is trained and calibrated on your own.",
        "license": "MIT",
        "data": "Training pictures: "
        + ", ".join(f"{count} {name}" for name, count in counts.items())
        + ". Photographs and textures "
        "come out of public packages under free licences (models/photographs.py lists them), as do the volumes of the slices; "
        "bodies are such slices, deformed; the rest is drawn. No patient but those of the volumes.",
        "training": "; ".join(_done(out, stage, settings) for stage in STAGES)
        + f"; of {', '.join(KEPT)} {', '.join(map(str, KEPT.values()))} of the weights count, the rest of those before; "
        f"{cpu_limit()} cores of {cpu_name()}, torch {torch.__version__}, no accelerator",
        "limits": "There is no real set of patients with several pictures each behind the re-identification figures: they are of "
        "drawn phantoms, and a hospital must train and calibrate on its own data before it relies on them.",
        "measured": "On the fixed test split, by lcmem-onnx evaluate: pictures never trained on. Recall at thresholds that the "
        "wanted share of pairs of different test pictures reaches, and at the shipped one. Negatives are of the same kind.",
        "figures": _figures(copied, identified),
    }


def _done(out: Path, stage: str, settings: Sequence[str]) -> str:
    """What a stage's training was, in words."""
    config = _config(out, stage, settings)
    with log_file(config).open(encoding="utf-8", newline="") as lines:
        log = list(csv.DictReader(lines))
    training = config.training
    minutes = sum(float(row["seconds"]) for row in log) / 60
    batch = f"{training.pairs} {'crops' if stage == 'autoencoder' else 'pairs'}"
    return f"{stage}: {len(log)} epochs of {training.steps} steps of {batch}, seed {config.seed}, {minutes:.0f} minutes"


def _config(out: Path, stage: str, settings: Sequence[str]) -> Config:
    return read_config(Path(__file__).parent / "recipes" / f"bundled-{stage}.toml", (*_places(out, stage), *settings))


def _figures(copied: Evaluation, identified: Evaluation) -> dict[str, Any]:
    """Tables, each a mapping of rows to columns: copy detection at each limit, in sum and by cell, and re-identification."""
    figures: dict[str, Any] = {}
    for name in dict.fromkeys(at.limit.name for part in copied.copy_detection for at in part.at):
        parts = {
            part.ds_name or "all": (part, at)
            for part in copied.copy_detection
            for at in part.at
            if at.limit.name == name and at.cells is not None
        }
        if parts:
            figures[f"copies, at {name}"] = {ds_name: _copy_row(part, at) for ds_name, (part, at) in parts.items()}
            figures[f"copies by cell, at {name}"] = {
                cell.name: {ds_name: round((at.cells or {})[cell.name], 3) for ds_name, (_, at) in parts.items()} for cell in CELLS
            }
    figures["re-identification of phantoms"] = {part.ds_name or "all": _identity_row(part) for part in identified.reidentification}
    return figures


def _copy_row(part: CopyDetection, at: CopyAt) -> dict[str, Any]:
    row: dict[str, Any] = {"pictures": part.pictures, "different pairs": part.negatives}
    if at.limit.given:
        row["false positives"] = round(at.limit.false_positive_rate or 0.0, 6)
    if at.paper is not None:
        row |= {"mean recall": round(at.paper.mean, 4), "worst": round(at.paper.worst, 4), "worst cell": at.paper.worst_cell}
    if at.beyond is not None:
        row |= {"worst beyond the paper": round(at.beyond.worst, 4), "which": at.beyond.worst_cell}
    return row


def _identity_row(part: Reidentification) -> dict[str, Any]:
    low, high = part.pairs.auc_interval.low, part.pairs.auc_interval.high
    row: dict[str, Any] = {
        "identities": part.identities,
        "pairs": part.pairs.same,
        "AUC": round(part.pairs.auc, 4),
        "95 % interval": f"{low:.4f} to {high:.4f}",
    }
    for at in part.at:
        if at.limit.given or at.limit.wanted == DECISION_RATE:
            row[f"recall at {at.limit.name}"] = None if at.recall is None else round(at.recall, 3)
    return row


@click.command(cls=Training, context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for everything that is made.")
@click.option("--scenes", type=click.IntRange(0, FRESH_BEYOND), default=4000, help="Scenes to train on.")
@click.option("--identities", type=click.IntRange(1, FRESH_BEYOND), default=8000, help="Phantom identities to train on.")
@click.option(
    "--fresh",
    type=click.IntRange(1, FURTHER_BEYOND - FRESH_BEYOND),
    default=16000,
    help="Other identities for each of the stages fresh, further and deeper.",
)
@click.option(
    "--held-out",
    type=click.IntRange(7, MOST),
    default=700,
    help="Scenes, and identities, of the test split; of validation three sevenths of it.",
)
@click.option("--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="For every stage's configuration. Repeatable.")
def main(out: Path, scenes: int, identities: int, fresh: int, held_out: int, settings: tuple[str, ...]) -> None:
    """Make the bundled model: pictures, trainings, threshold, figures, bundle."""
    amounts = {
        "TRAIN": Amounts(scenes, identities, 4),
        "VAL": Amounts(3 * held_out // 7, 3 * held_out // 7, 4),
        "TEST": Amounts(held_out, held_out, 4),
    }
    bundle = make(
        out, amounts, Amounts(min(scenes, fresh, FRESH_SCENES), fresh, 2), settings, lambda line: click.echo(line, err=True)
    )
    click.echo(f"next  lcmem-onnx bundle info --bundle {bundle}", err=True)


if __name__ == "__main__":
    main()
