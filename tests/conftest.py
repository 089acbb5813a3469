"""What several tests share: a tiny network, its checkpoint and its bundle, made once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"


@pytest.fixture(scope="session", autouse=True)
def site_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A site key of the tests' own: indexing a DICOM object would make one in the user's folder."""
    path = tmp_path_factory.mktemp("site") / "site.key"
    path.write_text("5a" * 32 + "\n")
    path.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LCMEM_ONNX_SITE_KEY", str(path))
        yield path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LCMem of 64 x 64 images and 16 features, whose head tells different images apart."""
    torch = pytest.importorskip("torch")
    from lcmem_onnx.models.autoencoder import AutoencoderShape
    from lcmem_onnx.models.checkpoint import save_lcmem
    from lcmem_onnx.models.convnext import ConvNeXtShape
    from lcmem_onnx.models.lcmem import LCMem

    torch.manual_seed(0)
    network = LCMem(ConvNeXtShape(4, (8, 16), (1, 1), 2, 16), AutoencoderShape(48, (8, 16), 1, 4, 4, middle_attention=False))
    with torch.no_grad():
        for name, parameter in network.model.named_parameters():
            if "layer_scale" in name:
                parameter.fill_(1.0)
            elif parameter.ndim > 1:
                parameter.mul_(8.0)
        network.fc_end.weight.copy_(-torch.linspace(50.0, 350.0, 16)[None])
        network.fc_end.bias.fill_(4.0)
    path = tmp_path_factory.mktemp("tiny") / "tiny.pth"
    save_lcmem(network, path, image_size=64, card={"summary": "random weights, for tests", "demonstration": True})
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network's bundle, exported as a user does it. Not to be changed: copy it first."""
    from lcmem_onnx.export import drift
    from lcmem_onnx.export.pipeline import Request, export_bundle

    out = tmp_path_factory.mktemp("bundle") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        # Its int8 is past the gate by decree: else the variant that runs would depend on which was faster when it was exported.
        patch.setattr(drift, "GATES", {**drift.GATES, "int8": {"flip_rate": -1.0}})
        export_bundle(Request(tiny_checkpoint, out, allow_drift=True))
    return out


@pytest.fixture(scope="session")
def lite0_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random EfficientNet-Lite0 weights in the public one's layout."""
    torch = pytest.importorskip("torch")
    from lcmem_onnx.models.efficientnet_lite import BATCH_NORM_EPS, EfficientNetLite, TrunkShape

    torch.manual_seed(0)
    state = {}
    for own, value in EfficientNetLite(TrunkShape(1)).state_dict().items():
        layer, _, key = own.rpartition(".")
        if layer == "projection":
            continue
        part = layer.rpartition(".")[2]
        first_norm = 0 if part in ("stem", "expand") else 1
        if part == "depthwise":
            convolution, norm = "_depthwise_conv", f"_bn{first_norm}"
        else:
            convolution, norm = {
                "stem": ("_conv_stem", "_bn0"),
                "head": ("_conv_head", "_bn1"),
                "expand": ("_expand_conv", "_bn0"),
                "project": ("_project_conv", "_bn2"),
            }[part]
        block = "".join(f"_blocks.{number}." for number in layer.split(".") if number.isdigit())
        if key == "weight":
            state[f"{block}{convolution}.weight"] = value
            state[f"{block}{norm}.running_mean"] = torch.zeros(len(value))
            state[f"{block}{norm}.running_var"] = torch.full((len(value),), 1.0 - BATCH_NORM_EPS)
        else:
            state[f"{block}{norm}.{'weight' if key == 'scale' else 'bias'}"] = value
    path = tmp_path_factory.mktemp("trunk") / "efficientnet-lite0.pth"
    torch.save(state, path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of six small images, all different."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(6):
        smooth = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(smooth).resize((80, 70), Image.Resampling.BICUBIC).save(folder / f"{seed}.png")
    return folder
