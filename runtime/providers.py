"""Execution providers and threads: what onnxruntime is asked for, and what it really uses.

`onnxruntime.get_available_providers()` names what the package was built with, not what works here, and a session asked for
CUDA falls back to the CPU with no more than a log line. So the session is asked afterwards, and an explicit request that was
not met is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from .errors import BundleError, ProviderError, UsageError
from .machine import cpu_limit

__all__ = ["AUTO", "PROVIDERS", "Session", "available_providers", "open_session", "provider_in_use"]

AUTO = "auto"
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
AUTO_ORDER = ("cuda", "cpu")
"""What `auto` tries. The others compile for minutes or round differently: they are used when asked for by name."""

ERRORS_ONLY = 3


@dataclass(frozen=True)
class Session:
    """An onnxruntime session with what was asked for and what it runs on.

    Attributes:
        session: the session itself.
        requested: the provider's short name as asked for, or "auto".
        in_use: short name of the first provider that the session reports.
        threads: intra-operator threads; 0 where a caller brought the session and set its own.
    """

    session: ort.InferenceSession
    requested: str
    in_use: str
    threads: int


def available_providers() -> list[str]:
    """Short names of the providers that this onnxruntime was built with. Available is not yet working."""
    names = {full: short for short, full in PROVIDERS.items()}
    return [names.get(full, full) for full in ort.get_available_providers()]


def open_session(model: Path, provider: str = AUTO, threads: int | None = None) -> Session:
    """Open an ONNX model.

    The memory arena is off: it keeps the largest size ever needed, for good, which in a long-lived service looks like a
    leak. Both thread counts are set, since onnxruntime's default counts the host's CPUs and not a container's.

    Args:
        model: path of the ONNX file.
        provider: a key of `PROVIDERS`, or "auto": CUDA where it works, else the CPU.
        threads: intra-operator threads; None takes `machine.cpu_limit()`.

    Raises:
        UsageError: an unknown provider's name, or fewer than one thread.
        ProviderError: the provider asked for is not in this onnxruntime, or the session does not run on it.
        BundleError: onnxruntime refuses the model.
    """
    if provider != AUTO and provider not in PROVIDERS:
        raise UsageError(f"unknown provider {provider!r}; known are {AUTO}, {', '.join(PROVIDERS)}")
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot run anything; give 1 or more")
    available = available_providers()
    if provider != AUTO and provider not in available:
        raise ProviderError(
            f"the provider {provider!r} is not in this onnxruntime, which has {', '.join(available)}. "
            "For CUDA, replace onnxruntime by lcmem-onnx[gpu] in a fresh environment"
        )
    wanted = [provider] if provider != AUTO else [name for name in AUTO_ORDER if name in available]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cpu_limit()
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = ERRORS_ONLY
    try:
        session = ort.InferenceSession(str(model), options, providers=[PROVIDERS[name] for name in wanted])
    except Exception as error:
        # onnxruntime's exceptions have no common base below Exception.
        raise BundleError(f"{model} cannot be opened by onnxruntime {ort.__version__}: {error}") from error
    session.disable_fallback()
    in_use = provider_in_use(session)
    if provider not in (AUTO, in_use):
        raise ProviderError(
            f"{provider} was asked for, but onnxruntime runs on {in_use}: its {provider} libraries could not be loaded. "
            f"Mend the installation, or ask for {in_use}"
        )
    return Session(session, provider, in_use, options.intra_op_num_threads)


def provider_in_use(session: ort.InferenceSession) -> str:
    """Short name of the provider that a session prefers, as the session itself reports it."""
    full: str = session.get_providers()[0]
    return {name: short for short, name in PROVIDERS.items()}.get(full, full)
