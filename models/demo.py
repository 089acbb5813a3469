"""The demonstration model, from nothing to a checkpoint in one command: `python -m lcmem_onnx.models.demo --out DIR`.

Pictures are generated, an autoencoder is trained on crops of them, then LCMem in two stages: identity consistency on the
frozen autoencoder's latents, copy detection on altered pictures (arXiv 2512.14421, section 3, made small). The held-out
figures go into the checkpoint's model card. Everything is seeded: the same command on the same machine and versions gives the
same model up to floating point; arithmetic in bfloat16 is used where the CPU has it, since it is three times as fast.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from lcmem_onnx.runtime.machine import cpu_features, cpu_limit, cpu_name
from torch import Tensor, nn
from torch.nn import functional

from .autoencoder import AutoencoderShape
from .checkpoint import save_lcmem
from .convnext import ConvNeXtShape
from .holdout import FALSE_POSITIVES, copy_detection, embed_pictures, negative_scores, quantile_threshold, re_identification
from .lcmem import LCMem
from .losses import pair_loss
from .pairs import Pool, make_pool, prefetched
from .phantoms import kind_of

__all__ = ["Recipe", "train"]

SIZE = 256
AUTOENCODER = AutoencoderShape(48, (32, 64), 1, 4, 8, middle_attention=False)
BACKBONE = ConvNeXtShape(4, (40, 80, 160, 320), (2, 2, 6, 2), 2, 512)
HEAD_WEIGHT, HEAD_BIAS = -0.3, 3.0
HEAD_RATE = 5.0
LAYER_SCALE = 0.1
"""torchvision starts at 1e-6, for hundreds of epochs; in a short training the blocks would not come to life."""
KL_WEIGHT = 1e-6
DECISION_RATE = 1e-3
VALIDATION, HELD_OUT = 1_000_000, 2_000_000
"""First seeds of the pictures that the threshold is set on, and of those that are measured on."""


@dataclass(frozen=True)
class Recipe:
    """How much of everything. The defaults made the model that comes with the package."""

    seed: int = 0
    scenes: int = 3000
    identities: int = 1500
    visits: int = 3
    held_out: int = 400
    autoencoder_steps: int = 700
    autoencoder_rate: float = 1e-3
    stage1_steps: int = 120
    stage1_rate: float = 5e-4
    stage2_steps: int = 2400
    stage2_rate: float = 5e-4
    pairs: int = 48


Say = Callable[[str], None]


def train(recipe: Recipe, out: Path, say: Say) -> Path:
    """Train, measure, and write `demo.pth` and `figures.json` into `out`.

    Training takes the pictures' seeds from 0, so that no picture is in two of training, validation and held-out set.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(cpu_limit())
    cv2.setNumThreads(1)
    started = time.monotonic()

    def pool(first: int, scenes: int, identities: int, visits: int) -> Pool:
        return make_pool(range(first, first + scenes), range(first, first + identities), visits, SIZE)

    say("generating pictures")
    pictures = pool(0, recipe.scenes, recipe.identities, recipe.visits)
    say(f"{recipe.scenes} scenes, {recipe.identities} x {recipe.visits} phantoms in {time.monotonic() - started:.0f} s")

    network = LCMem(BACKBONE, AUTOENCODER)
    _start(network)
    rng = np.random.default_rng(recipe.seed)
    _train_autoencoder(network, pictures, recipe, rng, say)
    save_lcmem(network, out / "autoencoder.pth", image_size=SIZE)
    _train_stage(network, pictures, recipe.stage1_steps, recipe.stage1_rate, recipe, rng, say, altered=False)
    save_lcmem(network, out / "stage1.pth", image_size=SIZE)
    _train_stage(network, pictures, recipe.stage2_steps, recipe.stage2_rate, recipe, rng, say, altered=True)
    save_lcmem(network, out / "stage2.pth", image_size=SIZE)
    minutes = (time.monotonic() - started) / 60
    del pictures

    say("measuring on held-out pictures")
    network.eval()
    threshold = _decision_threshold(network, pool(VALIDATION, 2 * recipe.held_out, 2 * recipe.held_out, 2))
    figures = _measure(network, pool(HELD_OUT, recipe.held_out, recipe.held_out, 2), threshold)
    card = _card(recipe, figures, minutes)
    decision = {
        "value": threshold,
        "source": f"{DECISION_RATE:.1%} of pairs of different generated pictures of one kind reach it, on a validation set; "
        "not calibrated on real pictures",
    }
    save_lcmem(network, out / "demo.pth", image_size=SIZE, threshold=decision, card=card)
    (out / "figures.json").write_text(json.dumps({"threshold": decision, **card}, indent=2) + "\n")
    return out / "demo.pth"


def _start(network: LCMem) -> None:
    with torch.no_grad():
        for name, parameter in network.model.named_parameters():
            if name.endswith("layer_scale"):
                parameter.fill_(LAYER_SCALE)
        network.fc_end.weight.fill_(HEAD_WEIGHT)
        network.fc_end.bias.fill_(HEAD_BIAS)


def _mixed() -> contextlib.AbstractContextManager[Any]:
    """bfloat16 where the processor multiplies it in hardware, else nothing."""
    if "amx_bf16" in (cpu_features() or []):
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _pixels(batch: Any) -> Tensor:
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255.0


def _train_autoencoder(network: LCMem, pictures: Pool, recipe: Recipe, rng: np.random.Generator, say: Say) -> None:
    """Reconstruct crops of 64 x 64 pixels by L1 + L2 + a little KL; keep the encoder, frozen."""
    shape = AUTOENCODER
    whole: Any = AutoencoderKL(  # type: ignore[no-untyped-call]
        in_channels=shape.in_channels,
        out_channels=shape.in_channels,
        down_block_types=("DownEncoderBlock2D",) * len(shape.block_out_channels),
        up_block_types=("UpDecoderBlock2D",) * len(shape.block_out_channels),
        block_out_channels=shape.block_out_channels,
        layers_per_block=shape.layers_per_block,
        latent_channels=shape.latent_channels,
        norm_num_groups=shape.groups,
        mid_block_add_attention=shape.middle_attention,
    )
    whole.train()
    optimizer = torch.optim.Adam(whole.parameters(), lr=recipe.autoencoder_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.autoencoder_steps)
    started, crop, recent = time.monotonic(), 64, 0.0
    for step in range(1, recipe.autoencoder_steps + 1):
        crops = []
        for _ in range(48):
            top, left = rng.integers(0, SIZE - crop, 2)
            if rng.random() < 0.5:
                picture = pictures.scenes[rng.integers(len(pictures.scenes))]
            else:
                grey = pictures.phantoms[rng.integers(len(pictures.phantoms)), rng.integers(recipe.visits)]
                picture = np.repeat(grey[..., None], 3, axis=2)
            crops.append(picture[top : top + crop, left : left + crop])
        target = functional.pixel_unshuffle(_pixels(np.stack(crops)), shape.unshuffle)
        with _mixed():
            posterior = whole.encode(target).latent_dist
            decoded = whole.decode(posterior.sample()).sample.float()
        loss = functional.l1_loss(decoded, target) + functional.mse_loss(decoded, target) + KL_WEIGHT * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        recent = 0.95 * recent + 0.05 * loss.item() if step > 1 else loss.item()
        if step % 100 == 0:
            say(f"autoencoder {step}/{recipe.autoencoder_steps}  loss {recent:.4f}  {time.monotonic() - started:.0f} s")
    if network.vae is None:
        raise RuntimeError("the demonstration network has a VAE by construction")
    network.vae.encoder.load_state_dict(whole.encoder.state_dict())
    network.vae.quant_conv.load_state_dict(whole.quant_conv.state_dict())
    network.vae.requires_grad_(False)


def _train_stage(
    network: LCMem,
    pictures: Pool,
    steps: int,
    rate: float,
    recipe: Recipe,
    rng: np.random.Generator,
    say: Say,
    *,
    altered: bool,
) -> None:
    """Adam with a cosine schedule on the pair loss; the head learns faster and is held at or below 0.

    A head without positive weights makes the score a function of a weighted L1 metric, and the search's bound tight.
    """
    network.train()
    layout = torch.channels_last
    network.to(memory_format=layout)  # type: ignore[call-overload]
    groups = [
        {"params": list(network.model.parameters()), "lr": rate},
        {"params": list(network.fc_end.parameters()), "lr": rate * HEAD_RATE},
    ]
    optimizer = torch.optim.Adam(groups)
    warm = max(1, min(100, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * 0.5 * (1 + float(np.cos(np.pi * min(1.0, step / steps))))
    )
    stage, started, recent = 2 if altered else 1, time.monotonic(), 0.0
    for step, (first, second) in enumerate(prefetched(pictures, recipe.pairs, steps, rng, altered=altered), 1):
        pixels = _pixels(np.concatenate([first, second])).contiguous(memory_format=layout)
        with _mixed():
            with torch.no_grad():
                latents = network.latents(pixels).contiguous(memory_format=layout)
            features = network.model(latents)
        embeddings = torch.sigmoid(features.float())
        loss = pair_loss(embeddings[: recipe.pairs], embeddings[recipe.pairs :], network.logit)
        if not bool(torch.isfinite(loss)):
            raise RuntimeError(f"the loss is not finite at step {step} of stage {stage}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            network.fc_end.weight.clamp_(max=0.0)
        recent = 0.97 * recent + 0.03 * loss.item() if step > 1 else loss.item()
        if step % 50 == 0:
            say(f"stage {stage} {step}/{steps}  loss {recent:.4f}  {time.monotonic() - started:.0f} s")


def _rgb(phantoms: Any) -> Any:
    return np.repeat(phantoms[..., None], 3, axis=-1)


def _decision_threshold(network: LCMem, pool: Pool) -> float:
    """The strictest kind's score that `DECISION_RATE` of the pairs of different pictures reach."""
    kinds = (pool.scenes, _rgb(pool.phantoms[:, 0]))
    return max(quantile_threshold(negative_scores(network, embed_pictures(network, kind)), DECISION_RATE) for kind in kinds)


def _measure(network: LCMem, pool: Pool, threshold: float) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    phantoms = _rgb(pool.phantoms[:, 0])
    found: dict[str, Any] = {}
    for name, kind in (("scenes", pool.scenes), ("phantoms", phantoms)):
        found[f"copy_detection_{name}"] = asdict(copy_detection(network, kind, FALSE_POSITIVES, threshold, rng))
    kinds = [kind_of(HELD_OUT + at) for at in range(len(pool.phantoms))]
    found["re_identification_phantoms"] = re_identification(network, pool, kinds, FALSE_POSITIVES)
    return found


def _card(recipe: Recipe, figures: dict[str, Any], minutes: float) -> dict[str, Any]:
    return {
        "demonstration": True,
        "summary": "A small LCMem for trying the tool, briefly trained on generated pictures. Not for decisions about data.",
        "license": "MIT",
        "data": (
            f"Generated: {recipe.scenes} scenes (dead leaves, fractal noise, drawn shapes, text) and radiograph-like phantoms of "
            f"{recipe.identities} anatomies with {recipe.visits} visits each. No real picture, no patient."
        ),
        "training": (
            f"autoencoder {recipe.autoencoder_steps} steps, stage 1 {recipe.stage1_steps}, stage 2 {recipe.stage2_steps}, "
            f"{recipe.pairs} pairs a step, seed {recipe.seed}, {minutes:.0f} minutes on {cpu_limit()} cores of {cpu_name()}, "
            f"torch {torch.__version__}"
        ),
        "limits": (
            "It has never seen a photograph or a radiograph. Its re-identification figure is of drawn phantoms and says nothing "
            "about patients. Train and calibrate on your own pictures before relying on a verdict."
        ),
        "held_out": (
            "Never-seen generated pictures. Recall of the 24 cells of the paper's grid and some beyond it, at "
            f"{FALSE_POSITIVES:.1%} false positives among these same pictures, and (at decision) at the shipped threshold."
        ),
        "figures": figures,
    }


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the checkpoints and figures.")
@click.option("--seed", default=Recipe.seed)
@click.option("--steps", default=Recipe.stage2_steps, help="Steps of stage 2.")
@click.option("--stage1-steps", default=Recipe.stage1_steps)
@click.option("--autoencoder-steps", default=Recipe.autoencoder_steps)
@click.option("--scenes", default=Recipe.scenes)
@click.option("--identities", default=Recipe.identities)
@click.option("--held-out", default=Recipe.held_out, help="Held-out pictures of each kind.")
def main(
    out: Path, seed: int, steps: int, stage1_steps: int, autoencoder_steps: int, scenes: int, identities: int, held_out: int
) -> None:
    """Train the demonstration model."""
    recipe = Recipe(
        seed=seed,
        stage2_steps=steps,
        stage1_steps=stage1_steps,
        autoencoder_steps=autoencoder_steps,
        scenes=scenes,
        identities=identities,
        held_out=held_out,
    )
    path = train(recipe, out, lambda line: click.echo(line, err=True))
    click.echo(f"next  python -m export --ckpt {path}", err=True)


if __name__ == "__main__":
    main()
