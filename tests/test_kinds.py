"""Training on batches of one kind, made tiny: what a batch holds, its loss, a network of two branches, going on after a kill."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from lcmem_onnx import CheckpointError, TrainingError  # noqa: E402
from lcmem_onnx.evaluation.filelist import Listed, write_file_list  # noqa: E402
from lcmem_onnx.models.autoencoder import AutoencoderShape  # noqa: E402
from lcmem_onnx.models.checkpoint import load_lcmem, load_state  # noqa: E402
from lcmem_onnx.models.convnext import ConvNeXtShape  # noqa: E402
from lcmem_onnx.models.lcmem import LCMem  # noqa: E402
from lcmem_onnx.models.train import loop  # noqa: E402
from lcmem_onnx.models.train.__main__ import train  # noqa: E402
from lcmem_onnx.models.train.config import Config, Kind, read_config  # noqa: E402
from lcmem_onnx.models.train.images import listed  # noqa: E402
from lcmem_onnx.models.train.kind_loss import KindLoss, Memory  # noqa: E402
from lcmem_onnx.models.train.kinds import training_batches, validation_batches  # noqa: E402
from lcmem_onnx.models.train.losses import nt_xent, pooled_bce  # noqa: E402
from lcmem_onnx.models.train.stages import _optimizers, network_for  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

SETTINGS = """
stage = "2"
out = "{folder}/out"
[data]
lists = ["{folder}/list.csv"]
unaltered = 0.5
first_altered = 0.3
[data.kinds.chest]
sets = ["chest"]
weight = 2
several = 0.5
other_image = 0.6
examination = 0.3
[data.kinds.photographs]
sets = ["shop", "garden"]
one_set = 0.5
skipped = 0.01
[network]
image_size = 64
start = "{folder}/start.safetensors"
trunk = "{lite0}"
trunk_features = 10
features = 6
new_embedding = true
embedding_deviation = 0.05
backbone = "custom"
widths = [8, 16]
depths = [1, 1]
stem = 1
monotone_head = true
head_weight = -0.3
head_bias = 3.0
[training]
epochs = 2
steps = 3
pairs = 4
accumulate = 2
optimizer = "adamw"
rate = 1e-3
backbone_rate = 1.5
embedding_rate = 4.0
head_rate = 4.0
weight_decay = 0.02
warm = 2
flat = 0.3
floor = 0.02
clip = 1.0
small_size = 32
small_epochs = 1
centred = true
branch_share = 0.5
negatives = "pooled"
tail = 0.05
memory = 12
average = 0.9
augmentation = "realistic"
validation_pairs = 16
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, lite0_weights: Path) -> Path:
    """Images (each of one gray of its own, with a little noise), their list, and both branches' starts."""
    folder = tmp_path_factory.mktemp("kinds")
    rng = np.random.default_rng(0)
    rows = []

    def image(split: str, ds_name: str, identity: str, group: str = "") -> None:
        level = 2 * (len(rows) % 110) + 15
        name = f"{len(rows)}.png"
        pixels = level + rng.integers(-3, 4, (40, 48, 1))
        Image.fromarray(np.repeat(pixels, 3, axis=2).astype(np.uint8)).save(folder / name)
        rows.append(Listed(split, identity, name, folder / name, ds_name, group))

    for split, patients in (("TRAIN", 8), ("VAL", 4)):
        for number in range(patients):
            for view in ("frontal", "lateral"):
                for _ in range(3 if number % 2 else 1):
                    image(split, "chest", f"{split}-{number}", f"{split}-{number}-{view}")
        for number in range(6):
            image(split, "shop", f"{split}-{number}")
            image(split, "garden", f"{split}-{number}")
    write_file_list(folder / "list.csv", rows)
    torch.manual_seed(1)
    start = LCMem(ConvNeXtShape(4, (8, 16), (1, 1), 1, 20), AutoencoderShape(48, (8, 16), 1, 4, 4, middle_attention=False))
    about = {"image_size": 64, "vae_config": {"norm_num_groups": 4}}
    tensors = {key: value.half().contiguous() for key, value in start.state_dict().items()}
    save_file(tensors, folder / "start.safetensors", metadata={"lcmem": json.dumps(about)})
    (folder / "settings.toml").write_text(SETTINGS.format(folder=folder, lite0=lite0_weights), encoding="utf-8")
    return folder


def config_of(folder: Path, out: str = "out", *settings: str) -> Config:
    return read_config(folder / "settings.toml", (f'out="{folder / out}"', *settings))


def test_a_batch_is_of_one_kind_and_holds_no_group_twice(folder: Path) -> None:
    config = config_of(folder, "out", "training.steps=40")
    batches = training_batches(config, listed(config.data, "TRAIN"))
    assert len(batches) == 80
    kinds = []
    for number in range(80):
        kind, chosen = batches._batches[number]
        kinds.append(kind)
        groups = [batches._drawn[kind].groups[each] for each in chosen]
        assert len(set(chosen)) == 4
        assert len({(group.ds_name, group.images) for group in groups}) == 4
        assert {group.ds_name for group in groups} <= ({"chest"} if kind == 0 else {"shop", "garden"})
        if kind == 0:
            assert sum(len(group.images) > 1 for group in groups) >= 2, "half of them have several images"
    assert np.mean(kinds) == pytest.approx(1 / 3, abs=0.15), "as often as the weights say"


def test_a_batch_is_a_function_of_seed_epoch_and_number(folder: Path) -> None:
    config = config_of(folder)
    rows = listed(config.data, "TRAIN")
    one, other = training_batches(config, rows), training_batches(config, rows)
    for item in (0, 5):
        _ = other[item]
    for first, second in zip(one[3], other[3], strict=True):
        assert torch.equal(first, second)
    one.start_epoch(1)
    assert not all(torch.equal(a, b) for a, b in zip(one[3], other[3], strict=True) if a.shape == b.shape)


def test_the_first_epochs_images_are_smaller_and_validations_never(folder: Path) -> None:
    config = config_of(folder)
    training, validation = (
        training_batches(config, listed(config.data, "TRAIN")),
        validation_batches(config, listed(config.data, "VAL")),
    )
    assert training[0][0].shape == (4, 3, 32, 32)
    training.start_epoch(1)
    assert training[0][1].shape == (4, 3, 64, 64)
    assert validation[0][0].shape[1:] == (3, 64, 64)
    assert training[0][0].dtype == torch.uint8


def levels(images: torch.Tensor) -> list[int]:
    return [round(float(image.float().mean())) for image in images]


def test_two_images_of_a_pair_are_of_one_group(folder: Path) -> None:
    """Patient 1's frontal views are never paired with lateral ones, which show something else."""
    rows = listed(config_of(folder).data, "TRAIN")
    settings = ("data.kinds.chest.other_image=1.0", "data.unaltered=1.0", "data.first_altered=0.0", "training.steps=20")
    config = config_of(folder, "out", *settings)
    batches = training_batches(config, rows)
    group_of = {round(float(np.asarray(Image.open(row.path)).mean())): row for row in rows if row.ds_name == "chest"}
    paired = 0
    for number in range(len(batches)):
        if batches._batches[number][0]:
            continue
        first, second, owners, _ = batches[number]
        for one, other, owner in zip(levels(first), levels(second), owners.tolist(), strict=True):
            row = group_of[min(group_of, key=lambda level: abs(level - one))]
            assert batches._number_of["chest", row.identity] == owner
            if int(row.identity.rpartition("-")[2]) % 2:  # three images of each view
                assert one != other
                assert group_of[min(group_of, key=lambda level: abs(level - other))].group == row.group
                paired += 1
    assert paired > 20


def test_validation_batches_are_the_same_ones_and_of_all_kinds_with_two_identities(folder: Path) -> None:
    config = config_of(folder, "out", "training.validation_pairs=24")
    rows = listed(config.data, "VAL")
    assert [kind for kind, _ in validation_batches(config, rows)._batches] == [0, 0, 0, 0, 1, 1]
    few = [row for row in rows if row.ds_name == "chest" or row.identity == "VAL-0"]
    few = [row for row in few if row.ds_name != "garden"]
    assert {kind for kind, _ in validation_batches(config, few)._batches} == {0}
    with pytest.raises(TrainingError, match="no kind of data.kinds has two identities in the VAL split"):
        validation_batches(config, [row for row in rows if row.identity == "VAL-0" and row.ds_name == "chest"])


def test_lists_that_do_not_fit_the_kinds_are_refused(folder: Path) -> None:
    config = config_of(folder)
    rows = listed(config.data, "TRAIN")
    stranger = replace(rows[0], ds_name="hand")
    with pytest.raises(TrainingError, match="has the data sets 'hand', which belong to no kind"):
        training_batches(config, [*rows, stranger])
    with pytest.raises(TrainingError, match=r"data\.kinds\.chest \(chest\) has 0 identities in the TRAIN split"):
        training_batches(config, [row for row in rows if row.ds_name != "chest"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.kinds.chest.sets=[]", r"data\.kinds\.chest\.sets is empty"),
        ('data.kinds.other={sets = ["shop"]}', r"the data set 'shop' is of two kinds, photographs and other"),
        ("data.kinds.chest.several=1.5", r"data\.kinds\.chest\.several is 1\.5; it must be in \[0, 1\]"),
        ("data.kinds.chest.weigth=2", r"the key 'data\.kinds\.chest\.weigth', which does not exist; did you mean 'weight'"),
        ("data.kinds.chest=3", r"'data\.kinds\.chest' is a table of settings, not 3"),
        ("data.chunk=2", r"data\.chunk has no meaning with data\.kinds"),
        ('training.augmentation="paper"', r"go together: set all or none"),
        ('training.negatives="tail"', r"go together: set all or none"),
        ("network.trunk_features=0", r"network\.trunk needs network\.trunk_features"),
        ("training.small_epochs=0", r"training\.small_size and training\.small_epochs go together"),
        ('training.optimizer="adam"', r"training\.weight_decay needs training\.optimizer = 'adamw'"),
        ("training.average=1.0", r"training\.average must be below 1"),
        ("training.alterations={blurr = 2}", r"training\.alterations has 'blurr'; there are rotation, shift"),
        ("training.alterations={blur = -1}", r"training\.alterations\.blur is -1\.0; it must be 0 or more"),
        ("training.memory=-1", r"training\.memory is -1; it must be 0 or more"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(folder: Path, setting: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        config_of(folder, "out", setting)


def test_the_pooled_bce_takes_the_highest_of_batch_and_memory_and_skips_what_may_be_no_negative() -> None:
    torch.manual_seed(0)
    first, second, memory = torch.rand(4, 5), torch.rand(4, 5), torch.rand(7, 5)
    owners, remembered = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 3, 3, 1, 4, 5, 2])

    def logit(a: np.ndarray, b: np.ndarray) -> float:
        return float(2.0 - 3.0 * np.abs(a - b).sum())

    negatives = []
    for a in range(4):
        negatives += [logit(first[a].numpy(), first[b].numpy()) for b in range(a) if owners[a] != owners[b]]
        negatives += [logit(first[a].numpy(), second[b].numpy()) for b in range(4) if owners[a] != owners[b]]
        negatives += [logit(first[a].numpy(), memory[m].numpy()) for m in range(7) if owners[a] != remembered[m]]
    positives = [logit(first[a].numpy(), second[a].numpy()) for a in range(4)]
    count = len(negatives)
    head = torch.nn.Linear(5, 1)
    with torch.no_grad():
        head.weight.fill_(-3.0)
        head.bias.fill_(2.0)
    for tail, skipped in ((0.2, 0.0), (0.2, 0.1), (1e-9, 0.0), (1.0, 0.0)):
        skip, wanted = round(skipped * count), max(2, round(tail * count))
        counted = sorted(negatives, reverse=True)[skip : skip + wanted]
        expected = 0.5 * (np.log1p(np.exp(-np.array(positives))).mean() + np.log1p(np.exp(counted)).mean())
        found = pooled_bce(
            first,
            second,
            owners,
            (memory, remembered),
            lambda a, b: head((a - b).abs())[:, 0],
            lambda a, b: head((a[:, None] - b[None]).abs())[..., 0],
            tail=tail,
            skipped=skipped,
        )
        assert found.item() == pytest.approx(expected, rel=1e-4)


def test_a_batch_of_one_identity_has_no_negatives() -> None:
    first, owners = torch.rand(3, 4), torch.zeros(3, dtype=torch.int64)
    nobody = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))

    def logit(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return -(a - b).abs().sum(-1)

    loss = pooled_bce(first, first, owners, nobody, logit, lambda a, b: logit(a[:, None], b[None]), tail=0.1)
    assert loss.item() == pytest.approx(0.5 * math.log(2), rel=1e-5)


def test_nt_xent_takes_no_other_image_of_an_identity_for_a_negative() -> None:
    torch.manual_seed(0)
    first, second, owners = torch.rand(4, 6), torch.rand(4, 6), [0, 1, 0, 2]
    rows = [row / np.linalg.norm(row) for row in torch.cat([first, second]).numpy()]
    owner = owners + owners
    losses = []
    for i, row in enumerate(rows):
        partner = (i + 4) % 8
        kept = [j for j in range(8) if j == partner or owner[j] != owner[i]]
        losses.append(-math.log(math.exp(row @ rows[partner] / 0.07) / sum(math.exp(row @ rows[j] / 0.07) for j in kept)))
    assert nt_xent(first, second, identities=torch.tensor(owners)).item() == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_memory_holds_the_newest_of_each_kind_from_the_next_step_on() -> None:
    memory = Memory(2, 5, 1)
    kind, other = torch.tensor(0), torch.tensor(1)

    def add(which: torch.Tensor, *values: int) -> None:
        memory.add(which, torch.tensor(values, dtype=torch.float32)[:, None].requires_grad_(), torch.tensor(values))

    add(kind, 1, 2, 3)
    assert len(memory.of(kind)[0]) == 0
    memory.end_step(3)
    add(kind, 4, 5)
    add(other, 9)
    add(kind, 6)
    memory.end_step(3)
    embeddings, owners = memory.of(kind)
    assert owners.tolist() == embeddings[:, 0].tolist() == [6, 4, 5, 1, 2]
    assert not embeddings.requires_grad
    assert memory.of(other)[1].tolist() == [9]
    again = Memory(2, 5, 1)
    again.load_state_dict(memory.state_dict())
    assert again.of(kind)[1].tolist() == [6, 4, 5, 1, 2]


def test_the_rate_rises_stays_and_falls_to_its_floor(folder: Path) -> None:
    factor = loop._schedule(config_of(folder, "out", "training.warm=10", "training.flat=0.4", "training.floor=0.1"), 100)
    assert factor(0) == pytest.approx(0.1)
    assert [factor(step) for step in (9, 20, 39)] == pytest.approx([1.0, 1.0, 1.0])
    assert factor(70) == pytest.approx(0.1 + 0.9 * 0.5)
    assert factor(100) == pytest.approx(0.1)
    assert all(factor(step) >= factor(step + 1) for step in range(10, 100))


def test_each_part_has_its_own_rate_and_decay(folder: Path) -> None:
    config = config_of(folder, "out", "training.trunk_rate=0.5", "training.embedding_rate=3.0")
    network = network_for(config)
    (optimizer,) = _optimizers(config.training, network)
    assert type(optimizer) is torch.optim.AdamW
    name_of = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found[name_of[id(parameter)]] = (round(group["lr"] * 1e3, 6), group["weight_decay"])
    learning = {name for name, parameter in network.named_parameters() if not name.startswith("vae.")}
    assert set(found) == learning
    for name, expected in {
        "model.features.1.0.layer_scale": (1.5, 0.02),
        "model.classifier.0.weight": (1.5, 0.02),
        "trunk.stem.weight": (0.5, 0.02),
        "model.classifier.2.weight": (3.0, 0.0),
        "trunk.projection.weight": (3.0, 0.0),
        "fc_end.weight": (4.0, 0.0),
    }.items():
        assert found[name] == expected


def test_a_network_of_two_branches_starts_from_both_and_with_a_new_embedding(folder: Path, lite0_weights: Path) -> None:
    network = network_for(config_of(folder))
    start = load_state(folder / "start.safetensors")
    own = network.state_dict()
    assert network.features == 16
    assert network.vae.shape.groups == 4, "from the metadata of the safetensors file"
    taken = [key for key in start if not key.startswith(("model.classifier.2.", "fc_end."))]
    assert all(torch.equal(own[key], start[key]) for key in taken)
    assert torch.allclose(own["trunk.stem.weight"], torch.load(lite0_weights)["_conv_stem.weight"])
    assert own["trunk.projection.weight"].std() == pytest.approx(0.05, rel=0.05)
    assert (own["trunk.projection.bias"] == 0).all()
    assert (own["fc_end.weight"] == -0.3).all()
    loaded = load_lcmem(folder / "start.safetensors")
    assert (loaded.image_size, loaded.network.features) == (64, 20)


def test_starts_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"of another shape.*model\.classifier\.2\.weight"):
        network_for(config_of(folder, "out", "network.new_embedding=false"))
    without = replace(config_of(folder).network, trunk=None)
    with pytest.raises(CheckpointError, match=r"missing \['trunk\.stem\..*: set network\.trunk to the public weights"):
        network_for(replace(config_of(folder), network=without))
    with pytest.raises(CheckpointError, match="not an EfficientNet-Lite0"):
        network_for(config_of(folder, "out", f'network.trunk="{folder / "start.safetensors"}"'))
    with pytest.raises(TrainingError, match=r"training\.small_size is 16, and this network needs images of 32 x 32 at least"):
        network_for(
            config_of(folder, "out", "network.stem=2", "training.small_size=16", f'network.vae="{folder}/start.safetensors"')
        )
    save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", metadata={"lcmem": "{"})
    with pytest.raises(CheckpointError, match=r"bad\.safetensors has metadata 'lcmem' that is not JSON"):
        load_state(tmp_path / "bad.safetensors")


def test_the_loss_is_the_sum_of_its_parts_and_validation_needs_no_memory(folder: Path) -> None:
    config = config_of(folder)
    network = network_for(config)
    module = KindLoss(network, config).train()
    first, second, owners, kind = training_batches(config, listed(config.data, "TRAIN"))[0]
    with torch.no_grad():
        before = module.eval()(first, second, owners, kind)
        module.train()(first, second, owners, kind)
        module.memory.end_step(4)
        assert len(module.memory.of(kind)[0]) == 4
        assert torch.equal(module.eval()(first, second, owners, kind), before)
        one, other = (network.embed(images.float() / 255) for images in (first, second))
        nobody = (one[:0], owners[:0])
        bce = pooled_bce(one, other, owners, nobody, network.logit, network.logits, tail=0.05, skipped=module.skipped[int(kind)])
        parts = [
            share * nt_xent(one[:, part], other[:, part], centred=True, identities=owners)
            for share, part in ((0.5, slice(16)), (0.25, slice(6)), (0.25, slice(6, 16)))
        ]
    assert before.item() == pytest.approx((0.8 * bce + 0.2 * sum(parts)).item(), rel=1e-4)


def test_validation_counts_from_the_first_epoch_on_large_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, 2.0, 3.0, 4.0, 3.5])
    monkeypatch.setattr(loop, "_validated", lambda *_: next(losses))
    small = ("training.small_size=32", "training.small_epochs=2")
    train(config_of(folder, "small", "training.epochs=5", "training.patience=1", *small))
    with (folder / "small" / "stage2_log.csv").open(newline="") as lines:
        assert [row["best"] for row in csv.DictReader(lines)] == ["True", "True", "True", "False"], "and then its patience ends"


def test_training_ends_in_the_averaged_network_and_goes_on_after_a_kill(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = train(config_of(folder, "whole"))
    loaded = load_lcmem(best)
    assert loaded.image_size == 64
    assert (loaded.network.fc_end.weight <= 0).all()
    checkpoint = torch.load(folder / "whole" / "stage2_checkpoint.pth")
    newest = checkpoint["module"]["network.trunk.stem.weight"]
    average = checkpoint["averaged"]["network.trunk.stem.weight"]
    assert not torch.equal(newest, average)
    with (folder / "whole" / "stage2_log.csv").open(newline="") as lines:
        assert list(csv.DictReader(lines))[-1]["best"] == "True"
    assert torch.equal(loaded.network.state_dict()["trunk.stem.weight"], average)
    assert (checkpoint["module"]["memory.identities"] >= 0).any()

    config = config_of(folder, "next", f'network.start="{best}"', "network.new_embedding=false")
    again = network_for(replace(config, network=replace(config.network, trunk=None)))
    assert all(torch.equal(value, loaded.network.state_dict()[key]) for key, value in again.state_dict().items())

    taken, original = [], loop.run

    def run(config: Config, trainee: loop.Trainee, *rest: object) -> Path:
        def after_step() -> None:
            trainee.after_step()
            taken.append(None)
            if len(taken) == 5:
                raise KeyboardInterrupt

        return original(config, replace(trainee, after_step=after_step), *rest)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "run", run)
        with pytest.raises(KeyboardInterrupt):
            train(config_of(folder, "killed", "training.checkpoint_minutes=0"))
    state = torch.load(folder / "killed" / "stage2_checkpoint.pth")["state"]
    assert (state["epoch"], state["step"]) == (1, 1)
    train(config_of(folder, "killed", "data.workers=1"))
    again = torch.load(folder / "killed" / "stage2_checkpoint.pth")
    for part in ("module", "averaged"):
        assert all(torch.equal(value, again[part][key]) for key, value in checkpoint[part].items())
    assert again["state"]["log"][1]["train_loss"] == checkpoint["state"]["log"][1]["train_loss"]


@pytest.mark.slow
def test_100000_files_are_listed_and_drawn_from_in_little_memory(folder: Path, tmp_path: Path) -> None:
    """Peak memory of a process that lists them and draws batches from them, torch and OpenCV included."""
    lines = ["Split,id,path,ds_name"]
    for number in range(100_000):
        name = f"{number // 1000}/{number}.png"
        if number % 1000 == 0:
            first = tmp_path / name
            first.parent.mkdir()
            first.write_bytes((folder / "0.png").read_bytes())
        else:
            os.link(first, tmp_path / name)
        split = "VAL" if number < 1000 else "TRAIN"
        lines.append(f"{split},{split}-{number // 2},{name},{'chest' if number % 4 < 2 else 'shop'}")
    lines.append(f"TRAIN,garden,{folder / '1.png'},garden")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    program = f"""
import resource
from pathlib import Path
from lcmem_onnx.models.train.config import read_config
from lcmem_onnx.models.train.kinds import training_batches
from lcmem_onnx.models.train.images import listed
config = read_config(Path({str(folder / "settings.toml")!r}), ('data.lists=["{tmp_path}/list.csv"]', "training.steps=0"))
batches = training_batches(config, listed(config.data, "TRAIN"))
for number in range(20):
    batches[number]
print(len(batches), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    batches, megabytes = map(int, done.stdout.split())
    assert batches > 20_000
    assert megabytes < 2000


def test_glibc_keeps_freed_memory_in_the_training_process_alone() -> None:
    program = """
import resource, sys
from lcmem_onnx.models.train.allocator import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        bytearray(64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
if not keep_freed_memory():
    print("no glibc")
    sys.exit()
bytearray(64 << 20)
print(before, faults())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if "no glibc" in done.stdout:
        pytest.skip("another C library than glibc")
    before, after = map(int, done.stdout.split())
    assert after < before / 10, "pages are not taken from the kernel again and again"


def test_a_kinds_own_settings_are_part_of_what_must_not_change(folder: Path) -> None:
    config = config_of(folder)
    changed = replace(config, data=replace(config.data, kinds={**config.data.kinds, "chest": Kind(("chest",))}))
    assert loop._settings(config)["data.kinds"] != loop._settings(changed)["data.kinds"]
    older = {name: value for name, value in loop._settings(config_of(folder)).items() if name != "training.floor"}
    assert loop._differences(older, config).startswith("training.floor was 0.0")
