"""`python -m export`: the command line of the export."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
from lcmem_onnx.console.exit_codes import Ending
from lcmem_onnx.console.terminal import printable, stepping
from lcmem_onnx.console.terminal import say as tell
from lcmem_onnx.runtime.errors import UsageError

__all__ = ["main"]

FILE = click.Path(path_type=Path)
LEFT_OUT = 1
"""Exit code when the bundle was written without some of the requested variants."""


class Export(Ending):
    """Ends like every command of lcmem-onnx; a bundle is written completely or not at all."""

    interrupted = "interrupted: nothing was written"


@click.command(
    cls=Export,
    short_help="Export a checkpoint to an ONNX bundle",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.option("--ckpt", "checkpoint", type=FILE, required=True, help="LCMem checkpoint (.pth, .pt or .safetensors).")
@click.option("--vae", type=FILE, help="VAE of a stage-1 checkpoint (diffusers folder or .safetensors file).")
@click.option("--out", type=FILE, help="Output folder.  [default: the checkpoint's name plus '-bundle']")
@click.option("--image-size", type=int, help="Side of the encoder's input in pixels.  [default: the checkpoint's, or 512]")
@click.option("--variants", default="fp32,fp16,int8", help="Precisions to export, comma-separated.")
@click.option("--calibration", type=FILE, help="Folder of images to calibrate int8 with.  [default: generated images]")
@click.option(
    "--int8-exclude",
    default="",
    show_default=False,
    help="More layers to keep in float for int8: comma-separated name prefixes, or 'auto' to find them with a sweep.",
)
@click.option("--allow-drift", is_flag=True, help="Also write variants that fail their gates (recorded in the manifest).")
@click.option("--threshold", type=float, help="Decision threshold on scores.  [default: the checkpoint's, or 0.5]")
@click.option("--strangers", type=FILE, help="Strangers' score tail from 'evaluate --tail'.  [default: the checkpoint's]")
@click.option("--images", type=FILE, help="Folder of images for the comparison with torch.  [default: the package's and generated]")
@click.option("--name", help="Name of the model.  [default: the checkpoint's file name]")
@click.option("--license", "licence", help="License of the weights, for the manifest.")
@click.option("--force", is_flag=True, help="Replace an existing bundle in --out after the new one has passed its checks.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors and omitted variants.")
def main(
    checkpoint: Path,
    vae: Path | None,
    out: Path | None,
    image_size: int | None,
    variants: str,
    calibration: Path | None,
    int8_exclude: str,
    allow_drift: bool,
    threshold: float | None,
    strangers: Path | None,
    images: Path | None,
    name: str | None,
    licence: str | None,
    force: bool,
    quiet: bool,
) -> int:
    """Export a trained LCMem checkpoint to a bundle that runs without PyTorch.

    The exported graph is checked and compared with PyTorch on real images in a separate process. A bundle that fails is not
    written. A variant whose drift from PyTorch exceeds its gate is omitted, and the exit code is 1.

    \b
    Example:
      python -m export --ckpt lcmem.pt --out lcmem-bundle --calibration images/
      python -m export --ckpt stage1_best_network.pth --vae stable-diffusion-2/
    """
    out = out or Path(f"{checkpoint.stem}-bundle")

    def say(line: str) -> None:
        if not quiet:
            tell(printable(line))

    try:
        from .pipeline import Request, export_bundle
    except ModuleNotFoundError as error:
        if str(error.name).startswith("lcmem_onnx"):
            raise
        raise UsageError(f"export requires the package {error.name}: pip install 'lcmem-onnx[export]'") from error
    with stepping(quiet) as step:
        done = export_bundle(
            Request(
                checkpoint=checkpoint,
                out=out,
                vae=vae,
                image_size=image_size,
                variants=_separated(variants),
                calibration=calibration,
                int8_exclude=_separated(int8_exclude),
                allow_drift=allow_drift,
                threshold=threshold,
                images=images,
                name=name,
                licence=licence,
                replace=force,
                strangers=strangers,
            ),
            say,
            step,
        )
    shown = printable(str(out))
    say(f"written   {shown} ({', '.join(done.variants)})")
    for name, reasons in done.left_out.items():
        how = (
            "Calibrate with images like your own (--calibration), keep more layers in float (--int8-exclude auto), or accept"
            if name == "int8"
            else "Accept"
        )
        click.echo(f"warning: {name} was left out: {'; '.join(reasons)}. {how} the drift (--allow-drift)", err=True)
    pasted = shlex.quote(str(out)) if shown == str(out) else shown
    say(f"next      lcmem-onnx bundle info --bundle {pasted}")
    return LEFT_OUT if done.left_out else 0


def _separated(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


if __name__ == "__main__":
    main()
