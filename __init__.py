"""lcmem-onnx: do two images show the same patient, or the same image altered? LCMem on onnxruntime, without PyTorch.

The public API is what `__init__.pyi` lists. A name is imported when it is first used, so that `import lcmem_onnx` (and with it
`lcmem-onnx --help`) costs nothing.

    from lcmem_onnx import Gallery, Screener

    screener = Screener()                                   # the model of the package
    with Gallery.create("idx", screener.bundle) as gallery:
        for added in screener.index(["training-set/"], gallery):
            print(added.path, added.added)
        for result in screener.screen(["released/"], gallery):
            print(result.path, result.verdict, result.matches)
"""

import os

import lazy_loader

# onnxruntime's wheels (1.32 for one) hold a telemetry client that looks for Microsoft's server some seconds after the import
# and leaves a file in the temporary folder. Its disable_telemetry_events() does not stop that; this variable does, if it is set
# before onnxruntime is imported. That makes it the one thing done at import here. Who sets it to anything keeps it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
