"""`doctor`: diagnose the machine, the installation and the bundle."""

from __future__ import annotations

from pathlib import Path

import click

from ..console.exit_codes import FAILED, NOTHING_FOUND
from ..console.terminal import print_facts, printable
from .options import bundle_option, json_option

__all__ = ["doctor"]


@click.command(short_help="Diagnose the installation")
@json_option
@bundle_option
@click.option("--bench", is_flag=True, help="Time the bundle's variants on the CPU; '--variant auto' then uses the fastest.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads for --bench.  [default: CPUs available to this process]")
def doctor(as_json: bool, bundle: Path | None, bench: bool, threads: int | None) -> int:
    """Show versions, CPU features, execution providers and the bundle, to diagnose an installation.

    \b
    Examples:
      lcmem-onnx doctor
      lcmem-onnx doctor --bench --bundle lcmem-bundle
    """
    from ..runtime.errors import LcmemError
    from ..runtime.model.benchmark_cache import measure_variants, remember
    from ..runtime.model.bundle import open_bundle
    from ..runtime.model.session import available_providers
    from ..runtime.screening import Screener
    from ..runtime.system.cpu import cpu_features, cpu_limit, cpu_name, versions

    features = cpu_features()
    facts: dict[str, object] = {
        **versions(),
        "cpu": cpu_name(),
        "cpu features": "unknown on this system" if features is None else ", ".join(features) or "none of note",
        "threads": cpu_limit(),
        "providers in this onnxruntime": ", ".join(available_providers()),
    }
    code = NOTHING_FOUND
    try:
        if bench:
            opened = open_bundle(bundle)
            timings = measure_variants(opened, threads)
            facts |= {f"{name}, a picture": f"{milliseconds:.1f} ms" for name, milliseconds in timings.items()}
            facts["remembered in"] = str(remember(opened, timings, threads))
        screener = Screener(bundle, threads=threads)
        facts["bundle"] = f"{screener.bundle.name} ({screener.bundle.path})"
        facts["provider in use"] = screener.encoder.provider
        facts["variant in use"] = f"{screener.encoder.variant}: {screener.encoder.why}"
        facts["a picture with itself scores"] = round(screener.self_test(), 4)
        facts["verdict"] = "everything needed for a scan works"
    except LcmemError as error:
        facts["verdict"] = f"error: {printable(str(error))}"
        code = FAILED
    print_facts(facts, as_json)
    return code
