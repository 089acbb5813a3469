"""`bundle`: inspect and verify a model on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console.exit_codes import NOTHING_FOUND
from ..console.terminal import print_card, print_facts
from .options import bundle_option, json_option, model_options, quiet_option

if TYPE_CHECKING:
    from ..runtime.screening import Screener

__all__ = ["bundle"]


@click.group(short_help="Inspect and verify a model bundle")
def bundle() -> None:
    """Inspect and verify a model bundle."""


@bundle.command("info", short_help="Show threshold, accuracy and model card")
@bundle_option
@click.option("--cells", is_flag=True, help="Also show figures for each single alteration.")
@json_option
def bundle_info(bundle: Path | None, cells: bool, as_json: bool) -> int:
    """Show a bundle's threshold and accuracy, its agreement with PyTorch, and its model card. --json prints the manifest.

    \b
    Example:
      lcmem-onnx bundle info --bundle lcmem-bundle
    """
    from ..runtime.model.bundle import open_bundle
    from .bundle_figures import print_figures, print_strangers, tables_of

    opened = open_bundle(bundle)
    if as_json:
        click.echo(json.dumps(dict(opened.manifest)))
        return NOTHING_FOUND
    manifest = opened.manifest
    card = dict(manifest["card"])
    tables = tables_of(card.get("figures"))
    if tables:
        others = {title: rows for title, rows in card.pop("figures").items() if title not in tables}
        card |= {"figures": others} if others else {}
    print_facts(
        {
            "name": opened.name,
            "threshold": f"{opened.threshold.value:.4g}",
            "threshold from": opened.threshold.source,
            "summary": card.pop("summary", "-"),
            "measured": card.pop("measured", "-"),
        },
        as_json=False,
    )
    if opened.strangers is not None:
        print_strangers(opened.strangers)
    print_figures(tables, cells=cells)
    facts: dict[str, object] = {
        "path": str(opened.path),
        "created": manifest["created"],
        "network": manifest["checkpoint"]["description"],
        "input": f"{opened.image_size} x {opened.image_size} RGB, 8 bit",
        "embedding": f"{opened.features} numbers",
        "variants": ", ".join(f"{name} ({its.bytes / 1e6:.1f} MB)" for name, its in opened.variants.items()),
        "license": manifest["license"],
        "fingerprint": opened.fingerprint,
    }
    for variant, parity in manifest["parity"].items():
        facts[f"proof of {variant}"] = (
            f"{parity['pictures']} images, batches of {', '.join(map(str, parity['batch_sizes']))}: embeddings within "
            f"{parity['embedding_max']:.1e} of torch, scores within {parity['score_max']:.1e}"
        )
    for variant, entry in manifest["variants"].items():
        if drift := entry.get("drift"):
            facts[f"drift of {variant}"] = (
                f"{drift['flips']} of {drift['pairs']} pairs decided differently than by torch, 99 % of scores within "
                f"{drift['score_p99']:.1e}{', past its gate' if entry['past_gate'] else ''}"
            )
    click.echo()
    print_facts(facts, as_json=False)
    print_card(card)
    return NOTHING_FOUND


@bundle.command("verify", short_help="Verify a bundle and run a self-test")
@quiet_option
@json_option
@model_options
def bundle_verify(quiet: bool, as_json: bool, model: Callable[[], Screener]) -> int:
    """Verify the checksum of every file of a bundle, load the model, and embed a test image.

    \b
    Example:
      lcmem-onnx bundle verify --bundle lcmem-bundle
    """
    screener = model()
    facts: dict[str, object] = {
        "path": str(screener.bundle.path),
        "verified": True,
        "files": len(screener.bundle.manifest["files"]),
        "variant": screener.encoder.variant,
        "provider": screener.encoder.provider,
        "self_score": screener.self_test(),
    }
    if as_json:
        click.echo(json.dumps({"schema_version": 1, **facts}))
    elif not quiet:
        click.echo(
            f"ok: {facts['files']} files are unchanged since the export; the model ({facts['variant']}) runs on "
            f"{facts['provider']} and scores an image {facts['self_score']:.4f} against itself"
        )
    return NOTHING_FOUND
