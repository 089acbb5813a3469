"""lcmem-onnx: do two pictures show the same patient, or the same picture altered? LCMem on onnxruntime, without PyTorch.

The names below are the public API. They are imported when they are first used, so that `import lcmem_onnx` (and with it
`lcmem-onnx --help`) costs nothing.

    from lcmem_onnx import Gallery, Screener

    screener = Screener()                                   # the model of the package
    with Gallery.create("idx", screener.bundle) as gallery:
        for added in screener.index(["training-set/"], gallery):
            print(added.path, added.added)
        for result in screener.screen(["released/"], gallery):
            print(result.path, result.verdict, result.matches)
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# onnxruntime's wheels (1.32 for one) hold a telemetry client that looks for Microsoft's server some seconds after the import
# and leaves a file in the temporary folder. Its disable_telemetry_events() does not stop that; this variable does, if it is set
# before onnxruntime is imported. That makes it the one thing done at import here. Who sets it to anything keeps it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from .runtime.bundle import Bundle, open_bundle
    from .runtime.errors import (
        ArchiveError,
        BundleError,
        CheckpointError,
        ConfigError,
        EncodingError,
        ExportError,
        FileListError,
        GalleryError,
        GalleryMismatchError,
        GatewayError,
        KeyConflictError,
        LcmemError,
        PictureError,
        ProviderError,
        Reason,
        TrainingError,
        UsageError,
    )
    from .runtime.files import Limits
    from .runtime.gallery import Entry, Gallery, Hit, Identity, SearchResult, SiteKey
    from .runtime.head import Head
    from .runtime.screening import Comparison, Indexed, Result, Screener, Verdict

__all__ = [
    "ArchiveError",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "Comparison",
    "ConfigError",
    "EncodingError",
    "Entry",
    "ExportError",
    "FileListError",
    "Gallery",
    "GalleryError",
    "GalleryMismatchError",
    "GatewayError",
    "Head",
    "Hit",
    "Identity",
    "Indexed",
    "KeyConflictError",
    "LcmemError",
    "Limits",
    "PictureError",
    "ProviderError",
    "Reason",
    "Result",
    "Screener",
    "SearchResult",
    "SiteKey",
    "TrainingError",
    "UsageError",
    "Verdict",
    "open_bundle",
]

_HOMES = {
    "bundle": ("Bundle", "open_bundle"),
    "gallery": ("Entry", "Gallery", "Hit", "Identity", "SearchResult", "SiteKey"),
    "head": ("Head",),
    "files": ("Limits",),
    "screening": ("Comparison", "Indexed", "Result", "Screener", "Verdict"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".runtime.{_HOME_OF.get(name, 'errors')}", __name__), name)


def __dir__() -> list[str]:
    return __all__
