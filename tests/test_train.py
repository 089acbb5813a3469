"""Training end to end, made tiny: three stages to a bundle, going on after a kill, and each way in which one ends early."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from lcmem_onnx import CheckpointError, FileListError, TrainingError  # noqa: E402
from lcmem_onnx.evaluation.filelist import Listed, read_file_list  # noqa: E402
from lcmem_onnx.models.checkpoint import load_lcmem, save_lcmem  # noqa: E402
from lcmem_onnx.models.synthetic.generate import Amounts, generate  # noqa: E402
from lcmem_onnx.models.train import cache as cache_module  # noqa: E402
from lcmem_onnx.models.train import latents as latents_module  # noqa: E402
from lcmem_onnx.models.train import loop  # noqa: E402
from lcmem_onnx.models.train.__main__ import train  # noqa: E402
from lcmem_onnx.models.train.augment import AUGMENTATIONS  # noqa: E402
from lcmem_onnx.models.train.config import Config, read_config  # noqa: E402
from lcmem_onnx.models.train.images import Identity, ImageSet, identities, listed  # noqa: E402
from lcmem_onnx.models.train.latents import cached_latents  # noqa: E402
from lcmem_onnx.models.train.loop import finished  # noqa: E402
from lcmem_onnx.models.train.maps import PairedMaps, Views, _turned, cached_maps  # noqa: E402
from lcmem_onnx.models.train.pairs import PairedImages, chosen_identities  # noqa: E402
from lcmem_onnx.models.train.stages import PairLoss, network_for  # noqa: E402
from lcmem_onnx.runtime.images.preprocess import resize  # noqa: E402
from PIL import Image  # noqa: E402

RECIPES = sorted((Path(__file__).parent.parent / "models" / "recipes").glob("*.toml"))
SETTINGS = """
[data]
lists = ["{folder}/pictures/list.csv"]
chunk = 4
window = 0.5
same_image = 0.3
unaltered = 0.5
[network]
image_size = 64
vae = "{folder}/autoencoder/vae"
backbone = "custom"
widths = [8, 8, 16, 16]
depths = [1, 1, 1, 1]
stem = 1
features = 16
layer_scale = 0.1
monotone_head = true
[autoencoder]
unshuffle = 4
widths = [8, 16]
layers = 1
groups = 4
middle_attention = false
crop = 32
[training]
epochs = 2
steps = 2
pairs = 8
rate = 1e-3
negatives = "hardest"
augmentation = "wide"
centred = true
validation_pairs = 16
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and an autoencoder trained for a few steps."""
    folder = tmp_path_factory.mktemp("training")
    generate(folder / "pictures", {"TRAIN": Amounts(8, 24, 2), "VAL": Amounts(4, 8, 2)}, 64)
    train(config_of(folder, "autoencoder"))
    return folder


def config_of(folder: Path, stage: str, out: str = "", *settings: str) -> Config:
    file = folder / "settings.toml"
    names = {"autoencoder": "autoencoder", "1": "stage1", "2": "stage2", "last-layers": "last-layers"}
    head = f'stage = "{stage}"\nout = "{folder / (out or names[stage])}"\n'
    file.write_text(head + SETTINGS.format(folder=folder), encoding="utf-8")
    return read_config(file, settings)


def logged(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("recipe", RECIPES, ids=[path.stem for path in RECIPES])
def test_the_recipes_are_configurations(recipe: Path) -> None:
    config = read_config(recipe)
    if recipe.stem.startswith("paper"):  # the table of the paper, as shared by its authors' code
        expected = {"1": (5e-4, 512, 500, 25), "2": (8e-5, 64, 20, 5)}[config.stage]
        training = config.training
        assert (training.rate, training.pairs, training.epochs, training.patience) == expected
        assert (training.alpha, training.temperature, training.negatives, training.augmentation) == (0.8, 0.07, "rolled", "paper")
        assert not config.network.monotone_head


def test_a_recipe_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        'stage = "1"\nout = "o"\n[network]\nstart = "s.pt"\n[training]\nepochs = 7\nrate = 1e-3\n'
        '[data]\nlists = ["a.csv"]\n[data.kinds.a]\nsets = ["x"]'
    )
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'extends = "base.toml"\nstage = "2"\n[training]\nepochs = 9\naugmentation = "realistic"\nnegatives = "pooled"'
    )
    config = read_config(recipe, ("training.rate=2e-3",))
    assert (config.stage, config.training.epochs, config.training.rate) == ("2", 9, 2e-3)
    assert config.data.kinds["a"].sets == ("x",)
    for content, message in (
        ('extends = "recipe.toml"', "extends itself"),
        ('extends = "gone.toml"', "gone.toml cannot be read"),
        ("extends = 3", "extends is 3; expected the path of a recipe"),
    ):
        recipe.write_text(content)
        with pytest.raises(TrainingError, match=message):
            read_config(recipe)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epoch = 3", "the key 'epoch', which does not exist"),
        ("[training]\nepoch = 3", "'training.epoch', which does not exist; did you mean 'epochs'"),
        ("[training]\nepochs = 'three'", "training.epochs is 'three'; expected int"),
        ("[training]\nepochs = true", "training.epochs is True; expected int"),
        ("[training]\nnegatives = 'all'", "training.negatives is 'all'; expected 'rolled' or 'hardest' or 'tail'"),
        ("[training]\npairs = 1", "training.pairs is 1; it must be 2 or more"),
        ("[training]\naugmentation = 'none'", "training.augmentation is 'none'; there are paper, wide, strong, hard"),
        ("[data]\nlists = []", "data.lists is empty"),
        ("[data]\nlists = ['a']\nchunk = 7", "data.chunk must be 0 or divide"),
        ("[network]\nbackbone = 'ConvNeXt-Tini'", "network.backbone is 'ConvNeXt-Tini'; there are"),
        ("[network]\nlayer_scale = 0", r"network.layer_scale is 0.0; it must be above 0"),
        ("[network]\nhead_bias = nan", r"network.head_bias is nan; it must be a finite number"),
        ("[network]\nimage_size = -64", r"network.image_size is -64; it must be 16 or more"),
        ("[network]\nwidths = [8, 0, 8, 8]", r"network.widths\[1\] is 0; it must be 1 or more"),
        ("[network]\ngrown = true", r"network.grown needs network.start"),
        ("[network]\ndepths = [1, 1]", r"network.widths and network.depths must be as many"),
        ("[training]\ntemperature = 0", r"training.temperature is 0.0; it must be above 0"),
        ("[training]\nrate = inf", r"training.rate is inf; it must be above 0"),
        ("[training]\nclip = -1", r"training.clip is -1.0; it must be 0 or more"),
        ("[training]\nsteps = -1", r"training.steps is -1; it must be 0 or more"),
        ("[training]\npatience = 0", r"training.patience is 0; it must be 1 or more"),
        ("[training]\nvalidation_pairs = 0", r"training.validation_pairs is 0; it must be 2 or more"),
        ("[data]\nlists = ['a']\nsame_image = 1.5", r"data.same_image is 1.5; it must be in \[0, 1\]"),
        ("[data]\nlists = ['a']\nwindow = 0", r"data.window is 0.0; it must be in \(0, 1\]"),
        ("[data]\nlists = ['a']\nworkers = -1", r"data.workers is -1; it must be 0 or more"),
        ("[data]\nlists = ['a']\nweights = {a = 0}", r"data.weights.a is 0.0; it must be above 0"),
        ("[autoencoder]\ncrop = 600", r"autoencoder.crop must not exceed network.image_size"),
        ("[autoencoder]\ncrop = 20", r"autoencoder.crop must be a multiple"),
        ("seed = -1", r"seed is -1; it must be 0 or more"),
        ("[training]\ntail = 0", r"training.tail is 0.0; it must be in \(0, 1\]"),
        ("data = 3", "'data' is a table of settings"),
        ("[[[", "cannot be read as a TOML"),
    ],
)
def test_a_configuration_that_is_wrong_is_refused(tmp_path: Path, line: str, message: str) -> None:
    lists = "" if "[data]" in line or "data =" in line else "[data]\nlists = ['a.csv']\n"
    file = tmp_path / "c.toml"
    top, table = ("", line) if line.startswith("[") else (line, "")
    file.write_text(f'stage = "autoencoder"\nout = "x"\n{top}\n{lists}{table}\n', encoding="utf-8")
    with pytest.raises(TrainingError, match=message):
        read_config(file)


def test_settings_of_the_command_line_outrank_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('stage = "autoencoder"\nout = "x"\n[data]\nlists = ["a"]\n', encoding="utf-8")
    assert read_config(file, ("training.epochs=3", 'out="y"')).training.epochs == 3
    with pytest.raises(TrainingError, match="not of the form"):
        read_config(file, ("training.epochs",))
    with pytest.raises(TrainingError, match=r"'out' is one setting and no table"):
        read_config(file, ("out.x=1",))
    file.write_text('stage = "2"\n', encoding="utf-8")
    with pytest.raises(TrainingError, match="lacks a key.*'out'"):
        read_config(file)


def people(**counts: int) -> list[Identity]:
    names = [(name, str(number)) for name, count in counts.items() for number in range(count)]
    return [Identity(*each, (at,)) for at, each in enumerate(names)]


def test_chunks_are_of_one_data_set_and_no_batch_holds_anybody_twice() -> None:
    known = people(many=40, few=5)
    chosen = chosen_identities(known, 72, 24, 8, {"many": 3.0, "few": 2.0}, np.random.default_rng(0))
    assert len(chosen) == 72
    for at in range(0, 72, 24):
        assert len(set(chosen[at : at + 24])) == 24, "two chunks of one data set in a batch share nobody"
    of = [known[number].ds_name for number in chosen]
    assert all(len(set(of[at : at + 8])) == 1 for at in range(0, 72, 8) if "few" not in of[at : at + 8])
    assert "few" in of


@pytest.mark.parametrize("chunk", [0, 4])
def test_weights_say_how_often_a_data_set_is_drawn(chunk: int) -> None:
    known = people(many=400, few=40)
    chosen = chosen_identities(known, 4000, 8, chunk, {"many": 1.0, "few": 3.0}, np.random.default_rng(0))
    assert np.mean([known[number].ds_name == "few" for number in chosen]) == pytest.approx(0.75, abs=0.05)
    assert all(len(set(chosen[at : at + 8])) == 8 for at in range(0, 4000, 8))


def test_everybody_comes_before_anybody_comes_again() -> None:
    chosen = chosen_identities(people(all=30), 30, 10, 0, {}, np.random.default_rng(0))
    assert sorted(chosen) == list(range(30))


@pytest.mark.parametrize("chunk", [0, 8])
def test_a_batch_larger_than_all_identities_is_refused(chunk: int) -> None:
    """It could never be filled."""
    with pytest.raises(TrainingError, match=r"training\.pairs is 8, but a split has only 5 identities"):
        chosen_identities(people(a=5), 40, 8, chunk, {}, np.random.default_rng(0))


def test_a_validation_split_of_few_is_validated_on_in_smaller_batches(folder: Path) -> None:
    best = train(config_of(folder, "1", "few", "data.chunk=0", "training.pairs=16", "training.epochs=1"))  # VAL: 12 identities
    assert best.exists()


def test_three_stages_end_in_a_bundle_that_screens(folder: Path) -> None:
    from lcmem_onnx import open_bundle
    from lcmem_onnx.export.pipeline import Request, export_bundle

    stage1 = train(config_of(folder, "1"))
    assert {key.split(".")[0] for key in torch.load(stage1)["state_dict"]} == {"model", "fc_end"}
    stage2 = train(config_of(folder, "2", "", f'network.start="{stage1}"', "data.workers=1"))
    loaded = load_lcmem(stage2)
    assert loaded.image_size == 64
    assert (loaded.network.fc_end.weight <= 0).all()
    frozen, vae = loaded.network.vae.state_dict(), torch.load(folder / "autoencoder" / "autoencoder_best_network.pth")
    assert all(torch.equal(frozen[key], vae[key]) for key in frozen)
    export_bundle(Request(stage2, folder / "bundle"))
    assert open_bundle(folder / "bundle").image_size == 64
    log = logged(folder / "stage2" / "stage2_log.csv")
    assert [row["epoch"] for row in log] == ["1", "2"]
    assert all(float(row["val_loss"]) > 0 for row in log)


LAST = (
    "data.copies={scenes = 2}",
    "data.windows={scenes = 2}",
    "network.frozen=6",
    'training.negatives="tail"',
    "training.tail=0.1",
    "training.rate=1e-2",
)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A network of stage 2, hardly trained."""
    return train(config_of(folder, "2", "whole", "training.epochs=1"))


def last_layers(folder: Path, whole: Path, out: str, *settings: str) -> Config:
    return config_of(folder, "last-layers", out, f'network.start="{whole}"', *LAST, *settings)


def test_the_last_layers_alone_are_trained_on_what_the_early_ones_give(folder: Path, whole: Path) -> None:
    best = train(last_layers(folder, whole, "last", "training.steps=60"))
    assert best.name == "last-layers_best_network.pth"
    before, after = load_lcmem(whole).network.state_dict(), load_lcmem(best).network.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert all(key.startswith(("model.features.6", "model.features.7", "model.classifier", "fc_end")) for key in changed)
    assert {"model.features.7.0.block.5.weight", "model.classifier.2.weight", "fc_end.weight"} <= changed
    log = logged(folder / "last" / "last-layers_log.csv")
    assert float(log[-1]["train_loss"]) < float(log[0]["train_loss"])


def test_maps_are_the_networks_own_whole_windowed_and_altered(folder: Path, whole: Path) -> None:
    config = last_layers(folder, whole, "last")
    rows, network = listed(config.data, "VAL"), network_for(config)
    views = Views(config, rows)
    maps = cached_maps(network, config, rows, views, folder / "maps", torch.device("cpu"), 1)
    assert len(maps) == sum(9 if row.ds_name == "scenes" else 2 for row in rows), "three images of a scene, each with two copies"
    images = ImageSet(rows, 64)
    number = next(at for at, row in enumerate(rows) if row.ds_name == "scenes") + 1
    window = images.window(number, config.data.window, np.random.default_rng([1, number, 2]))
    copy = AUGMENTATIONS["wide"](window, np.random.default_rng([1, number, 2, 1]))
    for part, which, pixels in ((0, 0, images.whole(number)), (2, 0, window), (2, 1, copy)):
        with torch.no_grad():
            x = network.latents(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
            assert np.abs(network.model.early(x, 6)[0].numpy() - maps[views.slot(number, part, which)]).max() < 5e-3  # float16
            assert torch.allclose(network.model.late(network.model.early(x, 6), 6), network.model(x), atol=1e-6)
    again = cached_maps(network, config, rows, views, folder / "maps", torch.device("cpu"), 1)
    assert (again == maps).all()
    assert (cached_maps(network, config, rows, views, folder / "maps", torch.device("cpu"), 2) != maps).any()


def test_as_many_windows_and_copies_in_another_order_are_another_cache(folder: Path, whole: Path) -> None:
    configs = [
        last_layers(folder, whole, "last", f"data.windows={{scenes = {windows}}}", f"data.copies={{scenes = {copies}}}")
        for windows, copies in ((1, 5), (3, 2))
    ]
    rows, network = listed(configs[0].data, "VAL"), network_for(configs[0])
    at = next(at for at, row in enumerate(rows) if row.ds_name == "scenes")
    windows = []
    for config in configs:
        views = Views(config, rows)
        assert views.slots[at] == 12
        maps = cached_maps(network, config, rows, views, folder / "maps-order", torch.device("cpu"), 1)
        windows.append(np.array(maps[views.slot(at, 1, 0)]))
    assert (windows[0] == windows[1]).all()


def test_the_room_of_a_cache_is_reserved(folder: Path, whole: Path) -> None:
    config = last_layers(folder, whole, "last")
    rows = listed(config.data, "VAL")

    def killed(numbers: Sequence[int]) -> np.ndarray:
        raise KeyboardInterrupt

    recipe = cache_module.Recipe("maps", {}, (4, 64, 64), [1] * len(rows), killed, 1)
    with pytest.raises(KeyboardInterrupt):
        cache_module.cached(folder / "reserved", recipe)
    assert (folder / "reserved" / "values.npy").stat().st_blocks * 512 >= len(rows) * 4 * 64 * 64 * 2


def test_turned_windows_are_in_the_squares_eight_positions(folder: Path, whole: Path) -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    positions = {_turned(image, np.random.default_rng(seed)).tobytes() for seed in range(100)}
    assert len(positions) == 8
    config = last_layers(folder, whole, "last", "data.turned=true")
    rows, network = listed(config.data, "VAL"), network_for(config)
    views = Views(config, rows)
    plain, turned = (
        cached_maps(network, each, rows, views, folder / f"maps-{name}", torch.device("cpu"), 1)
        for name, each in (("plain", last_layers(folder, whole, "last")), ("turned", config))
    )
    at = next(at for at, row in enumerate(rows) if row.ds_name == "scenes")
    assert (plain[views.slot(at, 0, 0)] == turned[views.slot(at, 0, 0)]).all(), "whole images are not turned"
    assert (plain != turned).any()


def test_pairs_of_maps_are_of_one_identity_and_begin_unaltered(folder: Path, whole: Path) -> None:
    config = last_layers(folder, whole, "last")
    rows = listed(config.data, "VAL")
    views, groups = Views(config, rows), identities(rows)
    owner = np.repeat([row.identity for row in rows], views.slots)
    copy = np.concatenate([np.arange(slots) % (1 + copies) for slots, copies in zip(views.slots, views.copies, strict=True)])
    numbers = np.arange(len(owner), dtype=np.float16)[:, None]
    pairs = PairedMaps(config, numbers, views, groups, 200, batch=8, seed=0)
    drawn = np.array([[int(side) for side in pairs[at]] for at in range(200)])
    assert (owner[drawn[:, 0]] == owner[drawn[:, 1]]).all()
    assert (copy[drawn[:, 0]] == 0).all()
    assert set(copy[drawn[:, 1]]) == {0, 1, 2}, "other visits, and both copies"
    assert (drawn[:, 0] != drawn[:, 1]).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.copies={scenes = 1.5}", r"data.copies.scenes is 1.5; expected int"),
        ("data.copies={scenes = 0}", r"data.copies.scenes is 0; it must be 1 or more"),
        ("network.frozen=9", "network.frozen is 9, and network.widths have 8 layers"),
    ],
)
def test_last_layers_that_cannot_be_trained_are_refused(folder: Path, whole: Path, setting: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        last_layers(folder, whole, "refused", setting)
    with pytest.raises(TrainingError, match=r"network\.start is needed by stage last-layers"):
        config_of(folder, "last-layers", "", *LAST)


def test_every_logit_is_that_of_its_pair(folder: Path, whole: Path) -> None:
    """Of a free head as well, whose weights have both signs."""
    network = load_lcmem(whole).network
    first, second = torch.rand(5, 16), torch.rand(3, 16)
    for signs in (-1.0, torch.where(torch.arange(16) % 3 == 0, 1.0, -1.0)):
        with torch.no_grad():
            network.fc_end.weight.copy_(torch.rand(1, 16) * signs)
            expected = torch.stack([network.logit(first, other.expand(5, -1)) for other in second], 1)
            assert torch.allclose(network.logits(first, second), expected, atol=1e-5)


def test_the_first_identities_of_a_data_set_alone_are_used(folder: Path) -> None:
    config = config_of(folder, "1", "", "data.most={scenes = 3}")
    rows = listed(config.data, "TRAIN")
    assert [row.identity for row in rows if row.ds_name == "scenes"] == ["scene-0", "scene-1", "scene-2"]
    assert len({row.identity for row in rows if row.ds_name != "scenes"}) == 24


@pytest.mark.parametrize(("minutes", "goes_on_after"), [(0.0, "epoch 1 of 2 and 2 steps of the next"), (15.0, "epoch 1 of 2")])
@pytest.mark.parametrize("stage", ["autoencoder", "1"])
def test_training_goes_on_after_a_kill_as_if_there_had_been_none(
    folder: Path,
    stage: str,
    minutes: float,
    goes_on_after: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The autoencoder's loss has random numbers of its own, which go on as well."""
    out = f"{stage}-{minutes}"
    settings = (f"training.checkpoint_minutes={minutes}", "training.steps=4", "training.accumulate=2")
    train(config_of(folder, stage, f"{out}-uninterrupted", *settings))
    with monkeypatch.context() as patched:
        killed_after(7, patched)
        with pytest.raises(KeyboardInterrupt):
            train(config_of(folder, stage, f"{out}-killed", *settings))
    capsys.readouterr()
    train(config_of(folder, stage, f"{out}-killed", *settings, "data.workers=1"))
    assert f"going on after {goes_on_after}\n" in capsys.readouterr().err
    name = config_of(folder, stage).name
    checkpoints = [torch.load(folder / f"{out}-{which}" / f"{name}_checkpoint.pth") for which in ("uninterrupted", "killed")]
    assert all(torch.equal(value, checkpoints[1]["module"][key]) for key, value in checkpoints[0]["module"].items())
    logs = [logged(folder / f"{out}-{which}" / f"{name}_log.csv") for which in ("uninterrupted", "killed")]
    for column in ("epoch", "train_loss", "val_loss", "rate", "best"):
        assert [row[column] for row in logs[0]] == [row[column] for row in logs[1]]


def killed_after(steps: int, patched: pytest.MonkeyPatch) -> None:
    """Have a training end as by a kill: in the middle of this step, its weights changed already."""
    taken, original = [], loop.run

    def run(config: Config, trainee: loop.Trainee, *rest: object) -> Path:
        def after_step() -> None:
            if trainee.after_step is not None:
                trainee.after_step()
            taken.append(None)
            if len(taken) == steps:
                raise KeyboardInterrupt

        return original(config, replace(trainee, after_step=after_step), *rest)

    patched.setattr(loop, "run", run)


def test_an_unreadable_image_ends_the_training_in_one_line_and_nothing_is_lost(folder: Path, tmp_path: Path) -> None:
    rows = read_file_list(folder / "pictures" / "list.csv")
    for row in rows:
        copied = tmp_path / row.name
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(row.path.read_bytes())
    (tmp_path / "list.csv").write_bytes((folder / "pictures" / "list.csv").read_bytes())
    settings = (f'data.lists=["{tmp_path / "list.csv"}"]', "training.steps=4", f'network.vae="{folder}/autoencoder/vae"')
    config = config_of(folder, "2", "readable", *settings)
    whole = train(config)
    trained_on = listed(config.data, "TRAIN")
    owners = identities(trained_on)
    order = PairedImages(config, ImageSet(trained_on, 64), owners, 32, batch=8, seed=0)._order
    late = next(number for number in order[8:] if number not in order[:8])
    broken = trained_on[owners[late].images[0]]
    (tmp_path / broken.name).write_bytes(b"no image")
    for workers in (1, 0):  # in a loading process too, whose errors arrive as tracebacks
        with pytest.raises(FileListError, match=rf"{Path(broken.name).name} cannot be read: .*take it off the list$") as caught:
            train(config_of(folder, "2", "unreadable", *settings, f"data.workers={workers}"))
        assert "\n" not in str(caught.value)
        state = torch.load(folder / "unreadable" / "stage2_checkpoint.pth")["state"]
        assert 0 < state["epoch"] * 4 + state["step"] < 8, "the steps before it are kept"
    (tmp_path / broken.name).write_bytes((folder / "pictures" / broken.name).read_bytes())
    again = load_lcmem(train(config_of(folder, "2", "unreadable", *settings))).network.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in load_lcmem(whole).network.state_dict().items())


def test_a_folder_with_another_training_in_it_is_not_overwritten(folder: Path) -> None:
    train(config_of(folder, "1", "other"))
    before = (folder / "other" / "stage1_checkpoint.pth").read_bytes()
    with pytest.raises(TrainingError, match=r"other settings: training\.rate was 0\.001 and is 0\.0001\. Choose"):
        train(config_of(folder, "1", "other", "training.rate=1e-4"))
    assert (folder / "other" / "stage1_checkpoint.pth").read_bytes() == before


def test_a_training_of_a_version_that_lacked_a_setting_goes_on_with_its_default(folder: Path) -> None:
    best = train(config_of(folder, "1", "older"))
    path = folder / "older" / "stage1_checkpoint.pth"
    content = torch.load(path)
    del content["config"]["network.grown"]
    torch.save(content, path)
    assert train(config_of(folder, "1", "older")) == best
    del content["config"]["training.rate"]
    torch.save(content, path)
    with pytest.raises(TrainingError, match=r"training\.rate was 8e-05 and is 0\.001"):
        train(config_of(folder, "1", "older"))


def test_equal_weights_are_equal_files(folder: Path, whole: Path) -> None:
    network = load_lcmem(whole).network
    for name in ("one.pth", "another.pth"):
        save_lcmem(network, folder / name, image_size=64)
    assert (folder / "one.pth").read_bytes() == (folder / "another.pth").read_bytes()


def test_a_best_network_that_is_gone_is_noticed(folder: Path) -> None:
    config = config_of(folder, "1", "gone")
    train(config).unlink()
    with pytest.raises(TrainingError, match=r"stage1_best_network\.pth is gone"):
        finished(config)
    with pytest.raises(TrainingError, match="is gone"):
        train(config)


def test_a_full_disk_ends_an_autoencoders_training_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors says it with an error of its own."""
    from diffusers import AutoencoderKL
    from safetensors import SafetensorError

    def full(self: object, where: Path) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(AutoencoderKL, "save_pretrained", full)
    with pytest.raises(TrainingError, match=r"cannot be written: .*No space left.*The checkpoint before stands"):
        train(config_of(folder, "autoencoder", "full"))


def test_a_start_of_another_shape_is_refused(folder: Path) -> None:
    start = train(config_of(folder, "1", "narrow"))
    with pytest.raises(CheckpointError, match=r"of another shape.*model\.classifier\.2\.weight \(16, 16\) instead of \(24, 16\)"):
        network_for(config_of(folder, "2", "", f'network.start="{start}"', "network.features=24"))


def test_blocks_that_a_start_lacks_begin_as_doing_nothing_and_learn(folder: Path, whole: Path) -> None:
    deeper = ("network.depths=[1, 1, 2, 3]", "network.layer_scale=1.0", "network.frozen=5")
    with pytest.raises(CheckpointError, match=r"does not fit the network: missing \['model\.features\.5\.1\."):
        network_for(last_layers(folder, whole, "", *deeper))
    grown = network_for(last_layers(folder, whole, "", *deeper, "network.grown=true")).eval()
    before = load_lcmem(whole).network.eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(grown.embed(images), before.embed(images))
    with pytest.raises(TrainingError, match=r"grown adds model\.features\.5\.1, which network\.frozen keeps from learning"):
        network_for(last_layers(folder, whole, "", *deeper, "network.grown=true", "network.frozen=6"))
    torchvisions = {key.removeprefix("model."): value for key, value in before.state_dict().items() if key.startswith("model.")}
    torch.save(torchvisions, folder / "torchvisions.pth")
    start = f'network.start="{folder / "torchvisions.pth"}"'
    first = network_for(config_of(folder, "1", "", start, *deeper, "network.grown=true")).convnext
    latents = torch.rand(2, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(first.features(latents), before.convnext.features(latents))
    best = load_lcmem(train(last_layers(folder, whole, "grown", *deeper, "network.grown=true"))).network
    assert best.convnext.shape.depths == (1, 1, 2, 3)
    assert best.convnext.features[7][2].block[5].weight.any()


def test_a_loss_that_is_not_finite_ends_it_and_keeps_the_last_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config_of(folder, "1", "nan", "training.epochs=1"))
    monkeypatch.setattr(PairLoss, "forward", lambda self, first, second: torch.tensor(float("nan"), requires_grad=True))
    kept = (folder / "nan" / "stage1_best_network.pth").read_bytes()
    (folder / "nan" / "stage1_checkpoint.pth").unlink()
    with pytest.raises(TrainingError, match=r"not finite in epoch 1, step 1.*stay as they are"):
        train(config_of(folder, "1", "nan"))
    assert (folder / "nan" / "stage1_best_network.pth").read_bytes() == kept


def test_training_ends_early_without_a_better_validation_loss(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lcmem_onnx.models.train.loop._validated", lambda *rest: 1.0)
    train(config_of(folder, "1", "patient", "training.epochs=9", "training.patience=2"))
    log = logged(folder / "patient" / "stage1_log.csv")
    assert [row["best"] for row in log] == ["True", "False", "False"]


def test_latents_are_the_networks_own_and_computed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(folder, "1")
    rows, network = listed(config.data, "VAL"), network_for(config)
    latents = cached_latents(network, rows, 64, folder / "cache", torch.device("cpu"))
    images = ImageSet(rows, 64)
    pixels = torch.from_numpy(images.whole(3)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        assert np.abs(network.latents(pixels)[0].numpy() - latents[3]).max() < 2e-3  # float16
    monkeypatch.setattr(latents_module, "ImageSet", None)  # nothing may be read again
    assert (cached_latents(network, rows, 64, folder / "cache", torch.device("cpu")) == latents).all()


def test_a_half_filled_cache_is_filled_and_one_of_another_vae_thrown_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(folder, "1")
    rows, network = listed(config.data, "VAL"), network_for(config)
    monkeypatch.setattr(latents_module, "AT_ONCE", 4)
    original, calls, kill = latents_module.ImageSet, [], [True]

    def counting(chosen: list, size: int) -> ImageSet:
        calls.append(len(chosen))
        if kill and len(calls) == 2:
            raise KeyboardInterrupt
        return original(chosen, size)

    monkeypatch.setattr(latents_module, "ImageSet", counting)
    with pytest.raises(KeyboardInterrupt):
        cached_latents(network, rows, 64, folder / "half", torch.device("cpu"))
    kill.clear()
    cached_latents(network, rows, 64, folder / "half", torch.device("cpu"))
    assert sum(calls) - calls[1] == len(rows)
    calls.clear()
    with torch.no_grad():
        network.vae.quant_conv.bias.add_(1.0)
    cached_latents(network, rows, 64, folder / "half", torch.device("cpu"))
    assert sum(calls) == len(rows)


def test_a_cache_is_thrown_away_when_an_image_is_another(folder: Path, tmp_path: Path) -> None:
    rows = [replace(row, path=tmp_path / row.path.name) for row in listed(config_of(folder, "1").data, "VAL")]
    for row in rows:
        row.path.write_bytes((folder / "pictures" / row.name).read_bytes())
    network = network_for(config_of(folder, "1"))
    before = cached_latents(network, rows, 64, tmp_path / "cache", torch.device("cpu"))[0].copy()
    rows[0].path.write_bytes(rows[1].path.read_bytes())  # under the same name
    after = cached_latents(network, rows, 64, tmp_path / "cache", torch.device("cpu"))
    assert (after[0] == after[1]).all()
    assert (after[0] != before).any()


def test_no_room_for_the_latents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    config = config_of(folder, "1")
    with pytest.raises(TrainingError, match=r"needs 0.00 GB and its disk has 0.00 GB left: free some"):
        cached_latents(network_for(config), listed(config.data, "VAL"), 64, folder / "full", torch.device("cpu"))


def test_lists_that_cannot_be_trained_on(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, "1")
    rows = read_file_list(config.data.lists[0])
    lines = ["Split,id,path", *(f"{row.split},same,{row.path}" for row in rows if row.split == "TRAIN")]
    (tmp_path / "one.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(FileListError, match="fewer than two identities"):
        listed(replace(config.data, lists=(tmp_path / "one.csv",)), "TRAIN")
    lines = ["Split,id,path,ds_name", *(f"VAL,{row.identity},{row.path},{row.ds_name}" for row in rows if row.split == "TRAIN")]
    (tmp_path / "leak.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(FileListError, match="in more than one split of the lists"):
        listed(replace(config.data, lists=(config.data.lists[0], tmp_path / "leak.csv")), "TRAIN")
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(FileListError, match=r"bad.png cannot be read"):
        ImageSet([replace(rows[0], path=tmp_path / "bad.png")], 64).whole(0)
    with pytest.raises(FileListError, match=r"gone.png cannot be read: .*take it off the list"):
        ImageSet([replace(rows[0], path=tmp_path / "gone.png")], 64).original(0)


def test_images_are_resized_as_inference_does_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large, small = (rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in ((300, 417), (20, 31)))
    rows = []
    for name, pixels in (("large", large), ("small", small)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        rows.append(Listed("TRAIN", name, f"{name}.png", tmp_path / f"{name}.png"))
    images = ImageSet(rows, 64)
    for number, pixels in enumerate((large, small)):
        assert (images.original(number) == pixels).all()
        assert (images.whole(number) == resize(pixels, 64)).all()
    assert images.working(0).shape == (96, 133, 3), "no larger than one and a half times the network's input"
    assert (images.working(1) == small).all()


def test_windows_lie_in_the_image_and_images_keep_their_numbers(folder: Path) -> None:
    rows = listed(config_of(folder, "1").data, "TRAIN")
    images, rng = ImageSet(rows, 32), np.random.default_rng(0)
    groups = identities(rows)
    assert sorted(number for group in groups for number in group.images) == list(range(len(rows)))
    for number in range(8):
        assert images.window(number, 0.2, rng).shape == images.whole(number).shape == (32, 32, 3)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lcmem_onnx.models.train", str(tmp_path / "none.toml")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ")
    assert len(finished.stderr.splitlines()) == 1


def test_the_best_network_of_the_papers_shape_is_flat_as_the_reference_writes_it(tmp_path: Path) -> None:
    from lcmem_onnx.models.autoencoder import AutoencoderShape
    from lcmem_onnx.models.checkpoint import save_lcmem
    from lcmem_onnx.models.convnext import ConvNeXtShape
    from lcmem_onnx.models.lcmem import LCMem

    network = LCMem(ConvNeXtShape(4, (8, 8, 8, 8), (1, 1, 1, 1)), AutoencoderShape(3, (32, 32), 1, 4))
    save_lcmem(network, tmp_path / "flat.pth", image_size=512)
    assert set(torch.load(tmp_path / "flat.pth")) == set(network.state_dict())
    assert json.dumps(load_lcmem(tmp_path / "flat.pth").image_size) == "512"
