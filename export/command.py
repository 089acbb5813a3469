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
"""Exit code when the bundle was written, but not every variant that was asked for."""


class Export(Ending):
    """Ends as every command of lcmem-onnx does; but a bundle is there whole or not at all."""

    interrupted = "interrupted: nothing was written"


@click.command(cls=Export, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--ckpt", "checkpoint", type=FILE, required=True, help="Trained LCMem: .pth, .pt or .safetensors.")
@click.option("--vae", type=FILE, help="The VAE of a stage-1 checkpoint: a diffusers folder or a .safetensors file.")
@click.option("--out", type=FILE, help="Folder to write.  [default: the checkpoint's name, with '-bundle']")
@click.option("--image-size", type=int, help="Side of the encoder's input in pixels.  [default: the checkpoint's, or 512]")
@click.option("--variants", default="fp32,fp16,int8", help="Precisions to export, separated by commas.")
@click.option("--calibration", type=FILE, help="Folder of images that int8 is calibrated with.  [default: drawn ones]")
@click.option(
    "--int8-exclude",
    default="",
    show_default=False,
    help="More layers that int8 keeps in float: beginnings of their names, separated by commas, or 'auto' to find out by a sweep.",
)
@click.option("--allow-drift", is_flag=True, help="Write variants that do not pass their gates, too; the manifest says so.")
@click.option("--threshold", type=float, help="Decision threshold on scores.  [default: the checkpoint's, or 0.5]")
@click.option("--strangers", type=FILE, help="Strangers' tail, as 'evaluate --tail' writes it.  [default: the checkpoint's]")
@click.option("--images", type=FILE, help="Folder of images for the proof.  [default: those of the package, and drawn ones]")
@click.option("--name", help="What the model is called.  [default: the checkpoint's file name]")
@click.option("--license", "licence", help="Licence of the weights, for the manifest.")
@click.option("--force", is_flag=True, help="Replace an older bundle in --out, once the new one is proven.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and which variants were left out.")
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

    The exported graph is checked and compared with torch on real images, in a fresh process. A bundle that fails is not
    written; a variant that drifts from torch past its gate is left out, and the exit code is 1.

    \b
    Example:
      python -m export --ckpt lcmem.pt --out lcmem-bundle --calibration pictures/
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
        raise UsageError(f"exporting needs {error.name}, which is not installed: pip install 'lcmem-onnx[export]'") from error
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
            "Calibrate with images like your own, keep more layers in float (--int8-exclude auto), or take"
            if name == "int8"
            else "Take"
        )
        click.echo(f"warning: {name} was left out: {'; '.join(reasons)}. {how} it as it is (--allow-drift)", err=True)
    pasted = shlex.quote(str(out)) if shown == str(out) else shown
    say(f"next      lcmem-onnx bundle info --bundle {pasted}")
    return LEFT_OUT if done.left_out else 0


def _separated(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


if __name__ == "__main__":
    main()
