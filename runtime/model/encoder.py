"""Images to embeddings: the exported encoder, run by onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..errors import BundleError, EncodingError, UsageError
from ..images.preprocess import check_rgb, resize
from ..system.cpu import cpu_features
from .benchmark_cache import measured
from .bundle import Bundle
from .head import Floats
from .session import AUTO, Session, available_providers, open_session, provider_in_use
from .variant import AUTO_VARIANT, GPUS, Choice, choose

__all__ = ["OWN_SESSION", "Encoder", "run_bound"]

OWN_SESSION = "own session"
"""`Encoder.variant` where the caller brought the session."""
BATCH_PIXELS, BATCH_PIXELS_ON_GPU = 1 << 18, 1 << 22
"""A batch holds as many images as fit in here. On a CPU that is 4 of 256 x 256, or 1 of 512 x 512: larger ones were no faster,
and the full-size network takes .9 GB for each image more. A GPU wants many: 64, or 16. (Not measured on a GPU yet.)"""
DEVICES: Mapping[str, str] = MappingProxyType({"cuda": "cuda", "tensorrt": "cuda"})
"""Providers whose device holds inputs that are put there before the run, by onnxruntime's name of the device."""


class Encoder:
    """One session on one bundle's encoder. Safe to call from several threads; not to be used across a fork.

    Args:
        bundle: the opened bundle.
        variant: "auto", "fp32", "fp16" or "int8" (see `variants.choose`).
        provider: "auto", "cpu", "cuda", ... (see `providers.open_session`).
        threads: intra-operator threads; None takes what the container allows.
        session: a session of the caller's own on one of this bundle's encoders; then `variant`, `provider` and
            `threads` are not used.

    Raises:
        ProviderError: the provider asked for is not in use.
        BundleError: the bundle does not have the variant, or the model does not open, or its inputs and outputs are not what
            the manifest says.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        variant: str = AUTO_VARIANT,
        provider: str = AUTO,
        threads: int | None = None,
        session: ort.InferenceSession | None = None,
    ) -> None:
        self.bundle = bundle
        if session is not None:
            self.session = Session(session, provider_in_use(session), provider_in_use(session), 0)
            self.variant, self.why = OWN_SESSION, "the session is the caller's"
        else:
            self.session, choice = _opened(bundle, variant, provider, threads)
            self.variant, self.why = choice.variant.name, choice.why
        self._input, self._output = self._checked_names()
        self._process = os.getpid()

    @property
    def provider(self) -> str:
        """Short name of the execution provider that is really in use."""
        return self.session.in_use

    @property
    def batch(self) -> int:
        """How many images are best embedded at once: a caller with many gives so many at a time. 1 or more."""
        return max(1, (BATCH_PIXELS_ON_GPU if self.provider in GPUS else BATCH_PIXELS) // self.bundle.image_size**2)

    def _checked_names(self) -> tuple[str, str]:
        inputs, outputs = self.session.session.get_inputs(), self.session.session.get_outputs()
        size = self.bundle.image_size
        if len(inputs) != 1 or len(outputs) != 1:
            raise BundleError(
                f"the encoder has {len(inputs)} inputs and {len(outputs)} outputs, expected one each: export the model again"
            )
        if inputs[0].type != "tensor(uint8)" or list(inputs[0].shape[1:]) != [size, size, 3]:
            raise BundleError(f"the encoder's input is {inputs[0].type} {inputs[0].shape}, expected uint8 (n, {size}, {size}, 3)")
        if outputs[0].shape[1:] != [self.bundle.features]:
            raise BundleError(f"the encoder's output is {outputs[0].shape}, expected (n, {self.bundle.features})")
        return inputs[0].name, outputs[0].name

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> Floats:
        """Embed images in one batch.

        Args:
            images: RGB, uint8, (height, width, 3) each, of any size.

        Returns:
            float32 (n, features), in [0, 1].

        Raises:
            UsageError: an array of another shape or dtype, or this process is a fork of the one that made the session.
            EncodingError: the network's output is not finite.
        """
        size = self.bundle.image_size
        for image in images:
            check_rgb(image)
        if not images:
            return np.empty((0, self.bundle.features), np.float32)
        return self.embed_resized(np.stack([resize(image, size) for image in images]))

    def embed_resized(self, batch: NDArray[np.uint8]) -> Floats:
        """Embed images that already have the encoder's size: uint8 (n, size, size, 3) to float32 (n, features).

        Raises:
            UsageError, EncodingError: as for `embed`.
        """
        if os.getpid() != self._process:
            # No EncodingError: that is one image's, and the next would be tried, in vain and with a misleading reason.
            raise UsageError(
                "the Screener was created before a fork, and onnxruntime sessions do not survive forks: create one in each process"
            )
        try:
            embeddings = self._run(batch)
        except Exception as error:
            # onnxruntime's exceptions have no common base below Exception; out of memory is the likely one.
            raise EncodingError(f"onnxruntime failed on a batch of {len(batch)}: {error}") from error
        if embeddings.shape != (len(batch), self.bundle.features) or embeddings.dtype != np.float32:
            raise EncodingError(
                f"the encoder returned {embeddings.dtype} {embeddings.shape}, expected float32 "
                f"({len(batch)}, {self.bundle.features})"
            )
        if not np.isfinite(embeddings).all():
            raise EncodingError("the encoder's output is not finite (NaN or infinity)")
        return embeddings

    def _run(self, batch: NDArray[np.uint8]) -> Floats:
        session, device = self.session.session, DEVICES.get(self.provider)
        if device is None:
            embeddings: Floats = session.run([self._output], {self._input: batch})[0]
            return embeddings
        return run_bound(session, self._input, self._output, batch, device)


def run_bound(session: ort.InferenceSession, given: str, wanted: str, batch: NDArray[np.uint8], device: str) -> Floats:
    """Run by I/O binding: one copy to the device, as bytes, and one of the embeddings back.

    A binding of its own for each call, so that several threads can run at once.

    Args:
        session: the encoder's.
        given, wanted: names of its input and output.
        batch: uint8 (n, size, size, 3).
        device: onnxruntime's name of it: "cuda", or "cpu".
    """
    binding = session.io_binding()
    binding.bind_ortvalue_input(given, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(batch), device, 0))
    binding.bind_output(wanted, "cpu")
    session.run_with_iobinding(binding)
    embeddings: Floats = binding.copy_outputs_to_cpu()[0]
    return embeddings


def _opened(bundle: Bundle, variant: str, provider: str, threads: int | None) -> tuple[Session, Choice]:
    """A session on the variant that suits the provider; where a GPU was hoped for and did not come up, the CPU's."""
    gpu = provider in GPUS or (provider == AUTO and "cuda" in available_providers())
    features, timings = cpu_features() or (), measured(bundle, threads)
    choice = choose(bundle, variant, on_gpu=gpu, features=features, timings=timings)
    session = open_session(choice.graph, provider, threads)
    if gpu and session.in_use not in GPUS:
        choice = choose(bundle, variant, on_gpu=False, features=features, timings=timings)
        session = open_session(choice.graph, session.in_use, threads)
    return session, choice
