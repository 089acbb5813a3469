"""The paper's two recipes, made tiny, give the losses that version 0.1.0 gave: what was added for other recipes changed nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from diffusers import AutoencoderKL  # noqa: E402
from lcmem_onnx.models.train.__main__ import train  # noqa: E402
from lcmem_onnx.models.train.config import read_config  # noqa: E402
from PIL import Image  # noqa: E402

RECIPES = Path(__file__).parent.parent / "models" / "recipes"
TINY = (
    "network.image_size=64",
    'network.backbone="custom"',
    "network.widths=[8, 8, 16, 16]",
    "network.depths=[1, 1, 1, 1]",
    "network.stem=1",
    "network.features=16",
    "data.workers=0",
    "training.epochs=3",
    "training.steps=1",
    "training.pairs=8",
    "training.validation_pairs=8",
    "training.rate=1e-2",
)
MEASURED = {
    "stage1": ((1.096025, 1.100463, 1.090873), (0.94876, 0.946028, 0.945282)),
    "stage2": ((1.096655, 1.092441, 1.106139), (0.940193, 0.926249, 0.927446)),
}
"""Of version 0.1.0 (commit 35388be), torch 2.13.0: training and validation losses of three steps. The images have the network's
size, so that no resizing is in them."""


def made(folder: Path) -> None:
    """A list of 24 images of 12 identities, 64 x 64, and a VAE with random weights."""
    rng = np.random.default_rng(0)
    lines = ["Split,id,path"]
    for number in range(24):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8))).save(folder / f"{number}.png")
        lines.append(f"{'TRAIN' if number < 16 else 'VAL'},{number // 2},{number}.png")
    (folder / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    ).save_pretrained(folder / "vae")


def test_the_papers_recipes_give_the_losses_that_they_gave(tmp_path: Path) -> None:
    made(tmp_path)
    start: tuple[str, ...] = ()
    for stage, expected in MEASURED.items():
        settings = (
            *TINY,
            f'out="{tmp_path / stage}"',
            f'data.lists=["{tmp_path / "list.csv"}"]',
            f'network.vae="{tmp_path / "vae"}"',
            *start,
        )
        best = train(read_config(RECIPES / f"paper-{stage}.toml", settings))
        start = (f'network.start="{best}"',)
        with (tmp_path / stage / f"{stage}_log.csv").open(newline="") as lines:
            log = list(csv.DictReader(lines))
        losses = tuple(tuple(float(row[column]) for row in log) for column in ("train_loss", "val_loss"))
        for found, before in zip(losses, expected, strict=True):
            assert found == pytest.approx(before, rel=2e-3)
