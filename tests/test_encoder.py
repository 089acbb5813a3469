"""Images to embeddings: batches, and the way that a GPU takes, tried on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lcmem_onnx.runtime.model.bundle import Bundle, open_bundle
from lcmem_onnx.runtime.model.encoder import Encoder, run_bound
from lcmem_onnx.runtime.model.session import Session


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


def test_io_binding_gives_what_an_ordinary_run_gives(bundle: Bundle) -> None:
    encoder = Encoder(bundle, provider="cpu")
    size = bundle.image_size
    batch = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    session = encoder.session.session
    (given,), (wanted,) = session.get_inputs(), session.get_outputs()
    flipped = batch[:, ::-1]  # a view that is not contiguous
    for pixels in (batch, batch[:1], flipped):
        bound = run_bound(session, given.name, wanted.name, pixels, "cpu")
        assert np.array_equal(bound, encoder.embed_resized(pixels))
        assert bound.dtype == np.float32


def test_a_gpu_is_given_the_image_by_io_binding_and_larger_batches(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(bundle, provider="cpu")
    few = encoder.batch
    encoder.session = Session(encoder.session.session, "cuda", "cuda", 1)
    seen = []

    def bound(session: object, given: str, wanted: str, batch: np.ndarray, device: str) -> np.ndarray:
        seen.append((given, wanted, device))
        return run_bound(session, given, wanted, batch, "cpu")  # type: ignore[arg-type]

    monkeypatch.setattr("lcmem_onnx.runtime.model.encoder.run_bound", bound)
    pixels = np.zeros((2, bundle.image_size, bundle.image_size, 3), np.uint8)
    assert encoder.embed_resized(pixels).shape == (2, bundle.features)
    assert seen == [("pictures", "embeddings", "cuda")]
    assert encoder.batch > few >= 1
