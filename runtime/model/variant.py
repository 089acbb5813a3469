"""Which of a bundle's variants runs: by provider, by what the processor computes fast, by time where it was measured.

int8 is faster than fp32 on processors with VNNI or AMX, and only where the network is large enough: so it is taken where the export
or `lcmem-onnx doctor --bench` measured it. fp16 computes on GPUs; on a CPU it is fp32 in half the space on disk.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError, UsageError
from .bundle import Bundle, Variant

__all__ = ["AUTO_VARIANT", "GPUS", "VARIANTS", "Choice", "choose"]

AUTO_VARIANT = "auto"
VARIANTS = ("fp32", "fp16", "int8")
"""From the most exact to the least."""
ON_GPU = ("fp16", "fp32", "int8")
GPUS = ("cuda", "tensorrt", "rocm", "migraphx", "directml")
"""Providers that compute in fp16."""
FAST_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")
CLOSE = 1.05
"""A variant must be so many times as fast as a more exact one to be taken in its place."""


@dataclass(frozen=True)
class Choice:
    """A variant, the graph of it to open, and in words why it was taken."""

    variant: Variant
    graph: Path
    why: str


def choose(
    bundle: Bundle,
    wanted: str = AUTO_VARIANT,
    *,
    on_gpu: bool,
    features: Collection[str],
    timings: Mapping[str, float] | None = None,
) -> Choice:
    """Choose a variant.

    Args:
        bundle: whose.
        wanted: "auto", or a variant's name.
        on_gpu: whether the provider is one of `GPUS`.
        features: what the processor has, as `machine.cpu_features` names it.
        timings: milliseconds an image by variant's name, as measured on this machine; None where nobody did.

    Raises:
        UsageError: a variant of that name is not known.
        BundleError: the bundle does not have it, or has none but such as drift past their gates.
    """
    if wanted != AUTO_VARIANT:
        if wanted not in VARIANTS:
            raise UsageError(f"unknown variant {wanted!r}: use one of {AUTO_VARIANT}, {', '.join(VARIANTS)}")
        if wanted not in bundle.variants:
            raise BundleError(f"variant {wanted!r} is not in {bundle.path}: use one of {', '.join(bundle.variants)}")
        return _choice(bundle.variants[wanted], on_gpu, "it was asked for")
    sound = {name: its for name, its in bundle.variants.items() if not its.past_gate}
    if not sound:
        raise BundleError(
            f"all variants of {bundle.path} drift from the trained model by more than the export allows: export it again, "
            f"or use one anyway with --variant ({', '.join(bundle.variants)})"
        )
    if len(sound) == 1:
        return _choice(next(iter(sound.values())), on_gpu, "the bundle has no other")
    if on_gpu:
        return _choice(_first(sound, ON_GPU), on_gpu, "the provider is a GPU")
    if timings and set(sound) <= set(timings):
        fastest = min(timings[name] for name in sound)
        near = [name for name in sound if timings[name] <= CLOSE * fastest]
        return _choice(_first(sound, [name for name in VARIANTS if name in near]), on_gpu, "it was measured on this machine")
    exact = _first(sound, VARIANTS)
    small = sound.get("int8")
    if small and small.milliseconds and exact.milliseconds and exact.milliseconds > CLOSE * small.milliseconds:
        if any(feature in FAST_INT8 for feature in features):
            return _choice(small, on_gpu, "the processor has instructions for int8, and the export measured it to be faster")
        return _choice(exact, on_gpu, "the processor has no instructions for int8")
    return _choice(exact, on_gpu, "it is the most exact, and no other was measured to be faster")


def _choice(variant: Variant, on_gpu: bool, why: str) -> Choice:
    return Choice(variant, variant.graph if on_gpu else variant.on_cpu, why)


def _first(variants: Mapping[str, Variant], order: Collection[str]) -> Variant:
    """The first in order; one of a name that is not known here last."""
    return next((variants[name] for name in order if name in variants), next(iter(variants.values())))
