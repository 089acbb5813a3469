from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.errors import UsageError
from lcmem_onnx.runtime.model.head import Head, check_threshold


def random_head(seed: int, features: int = 24, positive: float = 0.3) -> Head:
    random = np.random.default_rng(seed)
    weight = random.normal(-0.4, 1.0, features) if positive else -random.random(features)
    return Head(weight.astype(np.float32), float(random.normal(2.0, 1.0)))


def test_scores_equal_torch() -> None:
    torch = pytest.importorskip("torch")
    head = random_head(0)
    random = np.random.default_rng(1)
    query, gallery = random.random(24, dtype=np.float32), random.random((50, 24), dtype=np.float32)
    linear = torch.nn.Linear(24, 1)
    linear.weight.data = torch.from_numpy(head.weight)[None]
    linear.bias.data = torch.tensor([head.bias])
    with torch.no_grad():
        expected = torch.sigmoid(linear((torch.from_numpy(gallery) - torch.from_numpy(query)).abs()))[:, 0].numpy()
    np.testing.assert_allclose(head.scores(query, gallery), expected, atol=1e-6)


def test_score_is_symmetric_and_extreme_logits_do_not_overflow() -> None:
    head = Head(np.array([-5000.0, -1.0], np.float32), 1000.0)
    first, second = np.array([0.0, 0.0], np.float32), np.array([1.0, 0.0], np.float32)
    assert head.score(first, second) == head.score(second, first) == pytest.approx(0.0)
    assert head.score(first, first) == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.floats(0.001, 0.999))
def test_nothing_beyond_the_radius_reaches_the_threshold(seed: int, threshold: float) -> None:
    """REFERENCE's bound, for heads with weights of both signs."""
    head = random_head(seed)
    random = np.random.default_rng(seed + 1)
    gallery = random.random((200, 24), dtype=np.float32)
    query = np.clip(gallery[0] + random.normal(0, 0.1, 24), 0, 1).astype(np.float32)
    distances = ((head.weighted(gallery) - head.weighted(query)) ** 2).sum(axis=1)
    radius = head.radius(threshold, query, gallery.min(axis=0), gallery.max(axis=0))
    matching = head.scores(query, gallery) >= threshold
    assert (distances[matching] <= radius).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 2.0, float("nan"), float("inf")])
def test_a_threshold_that_decides_nothing_is_refused(value: float) -> None:
    with pytest.raises(UsageError, match="threshold must be between 0 and 1"):
        check_threshold(value)
