"""The bundled model's one command, made tiny: it ends in a bundle whose card has the figures, and goes on where it was."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

import torch
from click.testing import CliRunner
from lcmem_onnx import Gallery, Screener, open_bundle
from lcmem_onnx.evaluation.filelist import read_file_list, write_file_list
from lcmem_onnx.models import bundled
from lcmem_onnx.models.checkpoint import load_lcmem, save_lcmem
from lcmem_onnx.models.generate import Amounts, generate
from lcmem_onnx.models.train.loop import best_file
from lcmem_onnx.models.train.stages import network_for

TINY = (
    "network.image_size=64",
    "network.widths=[8, 8, 16, 16]",
    "network.depths=[1, 1, 1, 1]",
    "network.stem=1",
    "autoencoder.crop=32",
    "autoencoder.widths=[8, 16]",
    "data.chunk=4",
    "training.epochs=1",
    "training.steps=2",
    "training.pairs=8",
    "training.validation_pairs=16",
)
AMOUNTS = {"TRAIN": Amounts(8, 24, 2), "VAL": Amounts(4, 50, 2), "TEST": Amounts(4, 50, 2)}
FRESH = Amounts(8, 24, 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundled")
    generate(out / "real", {split: Amounts(6, 0, 1) for split in AMOUNTS}, 64)  # instead of what would be fetched
    later = generate(out / "real" / "found", {"TRAIN": Amounts(4, 0, 1)}, 64, beyond=50)
    slices = [replace(row, ds_name="slices") if at < 3 else row for at, row in enumerate(later)]
    write_file_list(out / "real" / "later.csv", [replace(row, name=f"found/{row.name}") for row in slices])
    bundled.make(out, AMOUNTS, FRESH, TINY, lambda line: None)
    return out


def test_it_ends_in_a_bundle_that_screens_and_says_what_it_is(made: Path) -> None:
    bundle = open_bundle(made / "bundle")
    assert bundle.demonstration
    assert bundle.threshold.source
    card = json.loads((made / "bundle" / "bundle.json").read_text(encoding="utf-8"))["card"]
    assert "no real set of patients" in card["limits"]
    figures = card["figures"]
    assert figures["copies, at the bundle's threshold"]["all"]["pictures"] > 50
    assert len(figures["copies by cell, at the bundle's threshold"]) == 30
    assert 0 <= figures["re-identification of phantoms"]["all"]["AUC"] <= 1
    assert "1 epochs of 2 steps of 8 pairs" in card["training"]
    screener = Screener(bundle)
    with Gallery.temporary(screener.bundle) as gallery:
        pictures = made / "real" / "val"
        assert not [done for done in screener.index([pictures], gallery) if done.errors]
        assert all(result.matches for result in screener.screen([next(pictures.iterdir())], gallery))


def test_the_last_stages_weights_are_averaged_with_those_before(made: Path) -> None:
    files = (
        made / "stage2-hard" / "stage2_best_network.pth",
        made / "fresh" / "last-layers_best_network.pth",
        made / "fresh" / "averaged.pth",
        made / "further" / "last-layers_best_network.pth",
        made / "further" / "averaged.pth",
        made / "deeper" / "last-layers_best_network.pth",
        made / "deeper" / "averaged.pth",
        made / "longer" / "last-layers_best_network.pth",
        made / "lcmem-small.pth",
    )
    states = [load_lcmem(path).network.state_dict() for path in files]
    for began, ended, kept, stage in zip(states[::2], states[1::2], states[2::2], bundled.KEPT, strict=False):
        share = bundled.KEPT[stage]
        assert any(not torch.equal(began[key], ended[key]) for key in ended)
        assert all(torch.allclose(kept[key], (1 - share) * began[key] + share * ended[key], atol=1e-6) for key in kept)


def test_a_block_that_a_stage_has_added_stays_as_it_ended(made: Path, tmp_path: Path) -> None:
    (tmp_path / "further").mkdir()
    (tmp_path / "deeper").mkdir()
    shutil.copy(made / "further" / "averaged.pth", tmp_path / "further" / "averaged.pth")
    config = bundled._config(tmp_path, "deeper", (*TINY, "network.depths=[1, 2, 1, 1]", f'network.vae="{made}/autoencoder/vae"'))
    ended = network_for(config)
    with torch.no_grad():
        for parameter in ended.model.parameters():
            parameter += 0.01
    save_lcmem(ended, best_file(config), image_size=64)
    began = load_lcmem(tmp_path / "further" / "averaged.pth").network.state_dict()
    after, mean = ended.state_dict(), bundled._averaged(tmp_path, "deeper").network.state_dict()
    added = {key for key in after if key.startswith("model.features.3.1.")}
    assert added == after.keys() - began.keys()
    assert all(torch.equal(mean[key], after[key]) for key in added)
    assert torch.allclose(mean["model.classifier.2.weight"], began["model.classifier.2.weight"] + 0.008, atol=1e-6)


def test_the_last_stages_learn_from_others(made: Path) -> None:
    lists = {name: read_file_list(made / name / "list.csv") for name in bundled.LISTS if name not in ("real", "later")}
    assert {row.identity for row in lists["fresh"] if row.split == "VAL"} <= {row.identity for row in lists["generated"]}
    trained_on = [{row.identity for row in rows if row.split == "TRAIN"} for rows in lists.values()]
    assert all(one.isdisjoint(other) for one, other in combinations(trained_on, 2))
    assert len(lists["further"]) == FRESH.identities * FRESH.visits
    assert len(lists["bodies"]) == 3 * bundled.BODIES
    assert len(lists["more-bodies"]) == 3 * bundled.MORE_BODIES
    assert len(lists["joints"]) == FRESH.identities * FRESH.visits
    assert {row.ds_name for row in lists["joints"]} == set(bundled.JOINTS)


def test_the_threshold_is_one_that_few_pairs_of_different_validation_pictures_reach(made: Path) -> None:
    threshold = open_bundle(made / "bundle").threshold
    assert 0 <= threshold.value <= 1
    rows = read_file_list(made / "copies.csv")
    assert {row.split for row in rows} == {"VAL", "TEST"}
    phantoms = [row.identity for row in rows if row.ds_name != "scenes"]
    assert len(phantoms) == len(set(phantoms)), "copies of a phantom are measured on one picture of it"


def test_what_is_done_is_not_done_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_lcmem(made / "lcmem-small.pth").network.state_dict()
    for name in ("generate", "collect", "bodies", "train"):
        monkeypatch.setattr(bundled, name, None)
    bundled.make(made, AMOUNTS, FRESH, TINY, lambda line: None)
    again = load_lcmem(made / "lcmem-small.pth").network.state_dict()
    assert all(torch.equal(again[key], value) for key, value in before.items())


def test_an_expected_error_is_one_line(made: Path) -> None:
    done = CliRunner().invoke(bundled.main, ["--out", str(made), "--set", "training.epoch=1"])
    assert done.exit_code == 2
    assert "did you mean 'epochs'" in done.output
    assert len(done.output.strip().splitlines()) == 1
