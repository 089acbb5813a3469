"""`python -m lcmem_onnx.models.train CONFIG.toml`: one stage of a training, as its TOML file describes it."""

from __future__ import annotations

from pathlib import Path

import click
from lcmem_onnx.console.exit_codes import Ending

from .allocator import keep_freed_memory
from .config import Config, read_config

__all__ = ["train"]


def train(config: Config) -> Path:
    """Train one stage and give the path of its best network (for an autoencoder: a diffusers VAE's folder)."""
    import cv2
    from accelerate.utils import set_seed

    from .autoencoder import autoencoder_trainee
    from .images import ImageSet, identities, listed
    from .kinds import training_batches, validation_batches
    from .latents import PairedLatents, cached_latents
    from .loop import EpochSet, Trainee, accelerator_for, denormals_flushed, run, vae_folder
    from .maps import PairedMaps, Views, cached_maps
    from .pairs import PairedImages
    from .stages import network_for, stage_trainee

    # One thread, and before OpenCV starts its pool: a forked loader that inherits a pool whose threads it lacks waits for ever.
    cv2.setNumThreads(1)
    training = config.training
    rows = {split: listed(config.data, split) for split in ("TRAIN", "VAL")}
    groups = {split: identities(its) for split, its in rows.items()}
    accelerator = accelerator_for(config)
    set_seed(config.seed)  # of the networks' first weights; each epoch sets its own

    def tell(line: str) -> None:
        if accelerator.is_main_process:
            click.echo(line, err=True)

    size = config.network.image_size
    per_step = training.pairs * training.accumulate
    pairs = {"TRAIN": (training.steps * per_step) or len(rows["TRAIN"]), "VAL": training.validation_pairs}
    # What is validated on may be few; what is trained on must fill its batches.
    batches = {"TRAIN": training.pairs, "VAL": min(training.pairs, len(groups["VAL"]))}
    seeds = {"TRAIN": config.seed, "VAL": config.seed + 1}
    trainee: Trainee
    if config.stage == "autoencoder":
        images = (ImageSet(rows["TRAIN"], size), ImageSet(rows["VAL"], size))
        trainee = autoencoder_trainee(config, images, (groups["TRAIN"], groups["VAL"]))
    else:
        network = network_for(config)
        sets: dict[str, EpochSet] = {}
        if config.data.kinds:
            sets = {"TRAIN": training_batches(config, rows["TRAIN"]), "VAL": validation_batches(config, rows["VAL"])}
            rows = {}
        for split, its in rows.items():
            if config.stage == "1":
                with accelerator.main_process_first():
                    cache = config.out / f"latents-{split.lower()}"
                    latents = cached_latents(network, its, size, cache, accelerator.device)
                sets[split] = PairedLatents(config, latents, groups[split], pairs[split], batch=batches[split], seed=seeds[split])
            elif config.stage == "last-layers":
                views = Views(config, its)
                with accelerator.main_process_first():
                    cache = config.out / f"maps-{split.lower()}"
                    maps = cached_maps(network, config, its, views, cache, accelerator.device, seeds[split])
                sets[split] = PairedMaps(config, maps, views, groups[split], pairs[split], batch=batches[split], seed=seeds[split])
            else:
                sets[split] = PairedImages(
                    config, ImageSet(its, size), groups[split], pairs[split], batch=batches[split], seed=seeds[split]
                )
        trainee = stage_trainee(config, network, sets["TRAIN"], sets["VAL"])
    with denormals_flushed():
        best = run(config, trainee, accelerator, tell)
    return vae_folder(config) if config.stage == "autoencoder" else best


class Training(Ending):
    """Ctrl-C loses no more than what came after the last checkpoint, and says so."""

    interrupted = "interrupted: the same command goes on from the last checkpoint"


@click.command(cls=Training, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="Outranks the file; the value is TOML. Repeatable."
)
@click.option("--monotone-head/--free-head", default=None, help="Hold the head's weights at or below 0, or do not.")
def main(config: Path, settings: tuple[str, ...], monotone_head: bool | None) -> None:
    """Train one stage, or go on with it where it was stopped.

    \b
    Examples:
      python -m lcmem_onnx.models.train paper-stage1.toml --set 'network.vae="stable-diffusion-2"'
      accelerate launch -m lcmem_onnx.models.train paper-stage2.toml
    """
    if monotone_head is not None:
        settings = (*settings, f"network.monotone_head={str(monotone_head).lower()}")
    keep_freed_memory()
    click.echo(f"trained: {train(read_config(config, settings))}", err=True)


if __name__ == "__main__":
    main()
