"""Every row of the checkpoint table loads and computes the same; everything else is refused with what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lcmem_onnx.models.autoencoder import AutoencoderShape  # noqa: E402
from lcmem_onnx.models.checkpoint import load_lcmem, save_lcmem  # noqa: E402
from lcmem_onnx.models.convnext import ConvNeXtShape  # noqa: E402
from lcmem_onnx.models.lcmem import IMAGENET_MEAN, IMAGENET_STD, LCMem  # noqa: E402
from lcmem_onnx.models.resnet import ResNetShape  # noqa: E402
from lcmem_onnx.runtime.errors import CheckpointError  # noqa: E402

VAE_SHAPE = AutoencoderShape(3, (32, 64), 1, 4)
BACKBONE = ConvNeXtShape(4, (8, 16), (1, 1), 2, 16)


@pytest.fixture(scope="module")
def network() -> LCMem:
    torch.manual_seed(0)
    return LCMem(BACKBONE, VAE_SHAPE).eval()


@pytest.fixture(scope="module")
def pixels() -> Any:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def embedded(network: LCMem, pixels: Any) -> Any:
    with torch.no_grad():
        return network.embed(pixels)


def without_vae(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not key.startswith("vae.")}


def reference_layouts(state: dict[str, Any]) -> dict[str, Any]:
    decoder = {"vae.decoder.conv_in.weight": torch.zeros(1), "vae.post_quant_conv.weight": torch.zeros(1)}
    return {
        "flat": state,
        "flat with decoder": state | decoder,
        "training checkpoint": {"state_dict": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 7},
        "distributed": {f"module.{key}": value for key, value in state.items()},
        "distributed training checkpoint": {
            "state_dict": {f"module.{key}": value for key, value in state.items()},
            "epoch": 1,
        },
        "compiled": {f"_orig_mod.{key}": value for key, value in state.items()},
    }


@pytest.mark.parametrize(
    "layout",
    ["flat", "flat with decoder", "training checkpoint", "distributed", "distributed training checkpoint", "compiled"],
)
def test_stage_two_layouts_load(layout: str, network: LCMem, pixels: Any, tmp_path: Path) -> None:
    torch.save(reference_layouts(network.state_dict())[layout], tmp_path / "c.pth")
    loaded = load_lcmem(tmp_path / "c.pth")
    assert loaded.image_size == 512
    torch.testing.assert_close(embedded(loaded.network, pixels), embedded(network, pixels))


def test_safetensors_load(network: LCMem, pixels: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(network.state_dict(), tmp_path / "c.safetensors")
    torch.testing.assert_close(embedded(load_lcmem(tmp_path / "c.safetensors").network, pixels), embedded(network, pixels))


def diffusers_vae(network: LCMem, folder: Path, *, form: str, names: str) -> Path:
    """The network's VAE the way it lies about in the wild."""
    from safetensors.torch import save_file

    state = {key.removeprefix("vae."): value for key, value in network.state_dict().items() if key.startswith("vae.")}
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    if names != "new":
        for new_name, old_name in old.items():
            state = {key.replace(f".{new_name}.", f".{old_name}."): value for key, value in state.items()}
    if names == "convolutional":
        flat = [key for key in state if key.rpartition(".")[0].endswith(tuple(old.values())) and key.endswith("weight")]
        state |= {key: state[key][:, :, None, None].clone() for key in flat}
    if form == "file":
        save_file(state, folder / "vae.safetensors")
        return folder / "vae.safetensors"
    home = folder / "vae" if form.startswith("subfolder") else folder
    home.mkdir(exist_ok=True)
    (home / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "norm_num_groups": 32}))
    if form.endswith("bin"):
        torch.save(state, home / "diffusion_pytorch_model.bin")
    else:
        save_file(state, home / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("form", ["file", "folder", "folder bin", "subfolder", "subfolder bin"])
@pytest.mark.parametrize("names", ["new", "old", "convolutional"])
def test_stage_one_with_a_vae_loads(form: str, names: str, network: LCMem, pixels: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": without_vae(network.state_dict())}, tmp_path / "stage1.pth")
    vae = diffusers_vae(network, tmp_path, form=form, names=names)
    loaded = load_lcmem(tmp_path / "stage1.pth", vae)
    torch.testing.assert_close(embedded(loaded.network, pixels), embedded(network, pixels))


def test_group_norm_groups_come_from_the_vae_config(tmp_path: Path) -> None:
    network = LCMem(BACKBONE, AutoencoderShape(3, (32, 64), 1, 4, 8)).eval()
    torch.save(without_vae(network.state_dict()), tmp_path / "stage1.pth")
    vae = diffusers_vae(network, tmp_path, form="folder", names="new")
    (vae / "config.json").write_text('{"norm_num_groups": 8}')
    loaded = load_lcmem(tmp_path / "stage1.pth", vae)
    assert loaded.network.vae is not None
    assert loaded.network.vae.shape.groups == 8


@pytest.mark.parametrize("features", [128, 512, 1024])
def test_the_siamese_baseline_loads_and_reads_imagenet_normalised_rgb(features: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = LCMem(ResNetShape(3, (3, 4, 6, 3), features), None).eval()
    torch.save(network.state_dict(), tmp_path / "resnet.pth")
    loaded = load_lcmem(tmp_path / "resnet.pth")
    assert (loaded.image_size, loaded.network.features) == (256, features)
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = torch.sigmoid(network.model((pixels - mean) / std))
    torch.testing.assert_close(embedded(loaded.network, pixels), expected)


def test_a_resnet_on_latents_takes_a_vae(network: LCMem, tmp_path: Path) -> None:
    resnet = LCMem(ResNetShape(4, (3, 4, 6, 3), 16), VAE_SHAPE)
    torch.save(without_vae(resnet.state_dict()), tmp_path / "resnet.pth")
    loaded = load_lcmem(tmp_path / "resnet.pth", diffusers_vae(network, tmp_path, form="folder", names="new"))
    assert loaded.image_size == 512
    assert "ResNet-50" in loaded.description


def test_what_is_saved_here_loads_here(network: LCMem, pixels: Any, tmp_path: Path) -> None:
    save_lcmem(network, tmp_path / "c.pth", image_size=64, threshold={"value": 0.7, "source": "x"}, card={"summary": "y"})
    loaded = load_lcmem(tmp_path / "c.pth")
    assert (loaded.image_size, loaded.threshold, loaded.card) == (64, {"value": 0.7, "source": "x"}, {"summary": "y"})
    torch.testing.assert_close(embedded(loaded.network, pixels), embedded(network, pixels))


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/nonexistent/this-must-not-run",)


def broken_checkpoints(state: dict[str, Any], tmp_path: Path) -> dict[str, Callable[[], tuple[Path, str]]]:
    """Name to what writes the file and gives (file, what the error must say)."""
    path = tmp_path / "c.pth"

    def saved(content: Any) -> Path:
        torch.save(content, path)
        return path

    def written(content: bytes) -> Path:
        path.write_bytes(content)
        return path

    def zipped() -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("folder/a.txt", "no weights")
        return path

    def scripted() -> Path:
        with zipfile.ZipFile(path, "w") as archive:  # as torch.jit.save, which is deprecated, lays it out
            archive.writestr("c/constants.pkl", b"")
            archive.writestr("c/data.pkl", b"")
        return path

    def saved_as_before(content: Any) -> Path:
        torch.save(content, path, _use_new_zipfile_serialization=False)
        return path

    def piped() -> Path:
        os.mkfifo(path)
        return path

    some = dict(list(state.items())[:3])
    return {
        "missing file": lambda: (tmp_path / "none.pth", "does not exist"),
        "folder": lambda: (tmp_path, "is a folder"),
        "empty file": lambda: (written(b""), "is empty: copy"),
        "text": lambda: (written(b"hello"), "neither$"),
        "another text": lambda: (written(b"ids: a text that begins with a pickle's command"), "neither$"),
        "truncated zip": lambda: (written(saved(state).read_bytes()[:5000]), "is truncated or damaged"),
        "two bytes of a zip": lambda: (written(b"PK"), "is truncated or damaged"),
        "another zip": lambda: (zipped(), "none that torch.save wrote"),
        "torchscript": lambda: (scripted(), "TorchScript program.*state_dict"),
        "truncated pickle": lambda: (written(saved_as_before(state).read_bytes()[:5000]), "copy or download it again"),
        "truncated safetensors": lambda: (written(b"\xff\xff\0\0\0\0\0\0{}"), "copy or download it again"),
        "a device": lambda: (Path("/dev/null"), "no ordinary file"),
        "a pipe": lambda: (piped(), "no ordinary file"),
        "code": lambda: (written(pickle.dumps(Malicious())), "safely was refused"),
        "code in torch.save": lambda: (saved({"state_dict": Malicious()}), "safely was refused"),
        "a list": lambda: (saved([1, 2]), "holds a list, not a state dict"),
        "a dict of numbers": lambda: (saved({"epoch": 3}), "'epoch' is a int, not a tensor"),
        "empty dict": lambda: (saved({}), "no state dict"),
        "another network": lambda: (saved(some | {"x.weight": torch.zeros(1)}), "no LCMem checkpoint"),
        "missing key": lambda: (saved({k: v for k, v in state.items() if k != "fc_end.bias"}), "missing: fc_end.bias"),
        "surplus key": lambda: (saved(state | {"model.extra.weight": torch.zeros(2)}), "surplus: model.extra.weight"),
        "missing vae key": lambda: (
            saved({k: v for k, v in state.items() if k != "vae.encoder.conv_norm_out.bias"}),
            "missing: vae.encoder.conv_norm_out.bias",
        ),
        "other shape": lambda: (
            saved(state | {"fc_end.weight": torch.zeros(1, 9)}),
            r"fc_end.weight \(1, 9\) instead of \(1, 16\)",
        ),
        "not finite": lambda: (saved(state | {"fc_end.bias": torch.tensor([float("nan")])}), "not finite: fc_end.bias"),
        "stage 1 without a VAE": lambda: (saved(without_vae(state)), "--vae"),
        "a number for a key": lambda: (saved({1: torch.zeros(1)}), "the key 1 is no text"),
        "under a name of its own": lambda: (
            saved({"net": state}),
            r"'net' is a \w+, .* under state_dict, model_state_dict, model$",
        ),
        "optimizer alone": lambda: (saved({"state": {}, "param_groups": [{}]}), "'state' is a dict, not a tensor"),
        "flat stem": lambda: (
            saved(state | {"model.features.0.0.weight": torch.zeros(8, 4)}),
            "c.pth does not fit: .*too few axes",
        ),
        "no axes": lambda: (saved(state | {"model.classifier.2.weight": torch.zeros(())}), "c.pth does not fit: .*too few axes"),
        "no stem": lambda: (
            saved({k: v for k, v in state.items() if k != "model.features.0.0.weight"}),
            "c.pth does not fit: the ConvNeXt has no 'features.0.0.weight'",
        ),
        "sparse": lambda: (saved(state | {"fc_end.weight": torch.zeros(1, 16).to_sparse()}), "'fc_end.weight' sparse"),
        "without values": lambda: (saved(state | {"fc_end.weight": torch.zeros(1, 16, device="meta")}), "without its values"),
        "whole numbers": lambda: (saved(state | {"fc_end.weight": torch.zeros(1, 16).int()}), "'fc_end.weight' as torch.int32"),
        "twice": lambda: (saved(state | {"module.fc_end.bias": torch.zeros(1)}), "'fc_end.bias' twice"),
        "groups that do not divide": lambda: (
            saved({"state_dict": state, "vae_config": {"norm_num_groups": 3}}),
            "3 GroupNorm groups do not divide. Save it as .*vae_config",
        ),
    }


CASES = [
    "missing file", "folder", "empty file", "text", "another text", "truncated zip", "code", "code in torch.save", "a list",
    "a dict of numbers", "empty dict", "another network", "missing key", "surplus key", "missing vae key", "other shape",
    "not finite", "stage 1 without a VAE", "two bytes of a zip", "another zip", "torchscript", "truncated pickle",
    "truncated safetensors", "a device", "a pipe", "a number for a key", "under a name of its own", "optimizer alone", "flat stem",
    "no axes", "no stem", "sparse", "without values", "whole numbers", "twice", "groups that do not divide",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_checkpoint_is_refused_in_one_line(case: str, network: LCMem, tmp_path: Path) -> None:
    path, message = broken_checkpoints(network.state_dict(), tmp_path)[case]()
    with pytest.raises(CheckpointError, match=message) as caught:
        load_lcmem(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"image_size": "big"}, "image_size as 'big'"),
        ({"image_size": 64.0}, "image_size as 64.0"),
        ({"image_size": True}, "image_size as True"),
        ({"image_size": 0}, "image_size as 0"),
        ({"threshold": 0.4}, "threshold as 0.4; expected"),
        ({"threshold": {"value": 7, "source": "x"}}, "threshold as .*7"),
        ({"threshold": {"value": float("nan"), "source": "x"}}, "threshold as .*nan"),
        ({"threshold": {"value": 0.5}}, "threshold as .*expected"),
        ({"card": "text"}, "a str for a model card"),
        ({"card": {"a": float("nan")}}, "model card that is not plain JSON"),
        ({"card": {"a": torch.zeros(1)}}, "model card that is not plain JSON"),
        ({"vae_config": 3}, "configuration as a int"),
        ({"vae_config": {"norm_num_groups": True}}, "norm_num_groups as True"),
    ],
)
def test_what_stands_beside_the_weights_is_checked_and_not_passed_over(
    beside: dict[str, Any], message: str, network: LCMem, tmp_path: Path
) -> None:
    torch.save({"state_dict": network.state_dict(), **beside}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=rf"c.pth (gives|has) .*{message}"):
        load_lcmem(tmp_path / "c.pth")


@pytest.mark.parametrize("entry", ["state_dict", "model_state_dict", "model"])
def test_a_network_beside_other_things_is_found(entry: str, network: LCMem, pixels: Any, tmp_path: Path) -> None:
    torch.save({entry: network.state_dict(), "epoch": 3, "image_size": 96}, tmp_path / "c.pth")
    loaded = load_lcmem(tmp_path / "c.pth")
    assert loaded.image_size == 96
    torch.testing.assert_close(embedded(loaded.network, pixels), embedded(network, pixels))


def test_the_kind_of_file_is_told_by_its_content(network: LCMem, pixels: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(network.state_dict(), tmp_path / "c.pth")
    torch.save(network.state_dict(), tmp_path / "c.safetensors")
    for name in ("c.pth", "c.safetensors"):
        torch.testing.assert_close(embedded(load_lcmem(tmp_path / name).network, pixels), embedded(network, pixels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_taken_as_fp32(dtype: torch.dtype, network: LCMem, tmp_path: Path) -> None:
    state = {name: value.to(dtype) for name, value in network.state_dict().items()}
    torch.save(state, tmp_path / "c.pth")
    for name, value in load_lcmem(tmp_path / "c.pth").network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float())


def test_many_missing_keys_are_counted_not_all_listed(network: LCMem, tmp_path: Path) -> None:
    torch.save({k: v for k, v in network.state_dict().items() if "norm" not in k}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"missing: (\S+, ){7}\S+ and \d+ more$"):
        load_lcmem(tmp_path / "c.pth")


def test_a_vae_of_another_shape_is_refused(network: LCMem, tmp_path: Path) -> None:
    torch.save(without_vae(network.state_dict()), tmp_path / "stage1.pth")
    other = LCMem(ConvNeXtShape(16, (8, 16), (1, 1), 2, 16), AutoencoderShape(3, (32, 64), 1, 16))
    vae = diffusers_vae(other, tmp_path, form="file", names="new")
    with pytest.raises(CheckpointError, match="16 latent channels, but the backbone reads 4"):
        load_lcmem(tmp_path / "stage1.pth", vae)


def test_a_vae_beside_a_checkpoint_that_has_one_is_refused(network: LCMem, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "stage2.pth")
    with pytest.raises(CheckpointError, match="leave --vae away"):
        load_lcmem(tmp_path / "stage2.pth", tmp_path)


def test_a_folder_that_is_no_vae_is_refused(network: LCMem, tmp_path: Path) -> None:
    torch.save(without_vae(network.state_dict()), tmp_path / "stage1.pth")
    with pytest.raises(CheckpointError, match="no diffusers VAE"):
        load_lcmem(tmp_path / "stage1.pth", tmp_path)


def test_an_original_stable_diffusion_vae_is_named_as_such(network: LCMem, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.save(without_vae(network.state_dict()), tmp_path / "stage1.pth")
    save_file({"encoder.down.0.block.0.conv1.weight": torch.zeros(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="not in diffusers' AutoencoderKL layout"):
        load_lcmem(tmp_path / "stage1.pth", tmp_path / "vae.safetensors")
