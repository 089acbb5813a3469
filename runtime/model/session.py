"""Execution providers and threads: what onnxruntime is asked for, and what it really uses.

`onnxruntime.get_available_providers()` names what the package was built with, not what works here, and a session asked for
CUDA falls back to the CPU with no more than a log line. So the session is asked afterwards, and an explicit request that was
not met is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import onnxruntime as ort

from ..errors import BundleError, ProviderError, UsageError
from ..system.cpu import cpu_limit

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
OPTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "cuda": {
            # fp32 shall be fp32: TF32, the default, multiplies with 10 bits of mantissa.
            "use_tf32": "0",
            # The default, an exhaustive search, is done anew for each size of batch, and stalls a service for seconds.
            "cudnn_conv_algo_search": "HEURISTIC",
            # The default doubles, and may take twice what it needs.
            "arena_extend_strategy": "kSameAsRequested",
        },
    }
)
"""What a provider is told beside the session's options, by onnxruntime's documentation of it."""

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

    What a service on shared cores wants (measured in docs/bundle.md):

    * The memory arena is on, its plan of a whole run ("memory pattern") off. Without the arena every large tensor is fetched from
      the system and faulted in again, page by page; with the plan the arena holds nearly two runs' memory. Memory rises to what
      the largest batch needs, and stays there.
    * Threads that wait sleep instead of spinning: decoding wants the cores, and a container's quota is spent by spinning, too.
    * Both thread counts are set, since onnxruntime's default counts the host's CPUs and not a container's.

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
        raise UsageError(f"unknown provider {provider!r}: use one of {AUTO}, {', '.join(PROVIDERS)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be 1 or more, got {threads}")
    available = available_providers()
    if provider != AUTO and provider not in available:
        raise ProviderError(
            f"provider {provider!r} is not available in this onnxruntime, only {', '.join(available)}. "
            "For CUDA, install lcmem-onnx[gpu] in a fresh environment"
        )
    wanted = [provider] if provider != AUTO else [name for name in AUTO_ORDER if name in available]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cpu_limit()
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = True
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = ERRORS_ONLY
    chosen = [(PROVIDERS[name], dict(OPTIONS.get(name, {}))) for name in wanted]
    try:
        session = ort.InferenceSession(str(model), options, providers=chosen)
    except Exception as error:
        # onnxruntime's exceptions have no common base below Exception.
        raise BundleError(f"onnxruntime {ort.__version__} cannot open {model}: {error}") from error
    session.disable_fallback()
    in_use = provider_in_use(session)
    if provider not in (AUTO, in_use):
        raise ProviderError(
            f"provider {provider} is unavailable: onnxruntime could not load its libraries and runs on {in_use} instead. "
            f"Fix the installation, or use --provider {in_use}"
        )
    return Session(session, provider, in_use, options.intra_op_num_threads)


def provider_in_use(session: ort.InferenceSession) -> str:
    """Short name of the provider that a session prefers, as the session itself reports it."""
    full: str = session.get_providers()[0]
    return {name: short for short, name in PROVIDERS.items()}.get(full, full)
