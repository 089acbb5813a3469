"""The audit's search against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.audit import neighbours
from lcmem_onnx.runtime.audit.neighbours import InMemory
from lcmem_onnx.runtime.errors import UsageError
from lcmem_onnx.runtime.model.head import Floats, Head

FEATURES = 24


def head(seed: int, positive: float) -> Head:
    rng = np.random.default_rng(seed)
    weight = -rng.gamma(0.5, 1.0, FEATURES)
    weight[rng.random(FEATURES) < positive] *= -0.3
    return Head(weight.astype(np.float32), 5.0)


def embeddings(seed: int, count: int, clusters: int) -> Floats:
    """Clustered, as those of many images of one kind: many lie close to the threshold."""
    rng = np.random.default_rng(seed)
    middles = rng.random((clusters, FEATURES))
    near = middles[rng.integers(clusters, size=count)] + rng.normal(0, 0.08, (count, FEATURES))
    return np.clip(near, 0, 1).astype(np.float32)


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 300),
    clusters=st.integers(1, 40),
    positive=st.sampled_from([0.0, 0.3]),
    threshold=st.floats(0.05, 0.98),
    top=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_it_finds_what_scoring_everything_finds(
    seed: int, count: int, clusters: int, positive: float, threshold: float, top: int
) -> None:
    model = head(seed, positive)
    reference, queries = embeddings(seed, count, clusters), embeddings(seed, 20, clusters)
    keys = [f"image {number // 2}" for number in range(count)]  # two frames each
    frames = [number % 2 for number in range(count)]
    for query, found in zip(queries, InMemory(model, keys, frames, reference).search(queries, threshold, top), strict=True):
        scores = model.scores(query, reference)
        best: dict[str, float] = {}
        for key, score in zip(keys, scores, strict=True):
            best[key] = max(best.get(key, 0.0), float(score))
        matching = sorted((score for score in best.values() if score >= threshold), reverse=True)
        assert found.total == len(matching)
        np.testing.assert_allclose([match.score for match in found.matches], matching[:top], rtol=1e-5)
        assert found.nearest.score == pytest.approx(scores.max(), rel=1e-5)
        for match in found.matches:
            assert match.score == pytest.approx(scores[2 * int(match.key.split()[1]) + match.frame], rel=1e-5)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 300), clusters=st.integers(1, 300), positive=st.sampled_from([0.0, 0.3]))
@settings(max_examples=60, deadline=None)
def test_few_candidates_miss_neither_the_nearest_nor_a_match(seed: int, count: int, clusters: int, positive: float) -> None:
    model = head(seed, positive)
    reference, queries = embeddings(seed, count, clusters), embeddings(seed + 1, 20, clusters)
    keys = [str(number) for number in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "CANDIDATES", 4)
        memory = InMemory(model, keys, [0] * count, reference)
        alone, matching = memory.search(queries, None, 2), memory.search(queries, 0.7, 2)
    for query, one, more in zip(queries, alone, matching, strict=True):
        scores = model.scores(query, reference)
        assert one.nearest.score == pytest.approx(scores.max(), rel=1e-5)
        assert one.matches == () or one.nearest.score > 1 - 1e-9
        assert more.nearest.score == pytest.approx(scores.max(), rel=1e-5)
        assert more.total == (scores >= 0.7).sum()


@given(seed=st.integers(0, 10_000), count=st.integers(1, 64), top=st.integers(1, 6), positive=st.sampled_from([0.0, 0.3]))
@settings(max_examples=40, deadline=None)
def test_the_closest_of_few_are_the_best_of_all_by_image(seed: int, count: int, top: int, positive: float) -> None:
    model = head(seed, positive)
    reference, queries = embeddings(seed, count, 10), embeddings(seed + 1, 8, 10)
    keys = [f"image {number // 2}" for number in range(count)]
    for query, matches in zip(queries, InMemory(model, keys, [0] * count, reference).closest(queries, top), strict=True):
        best: dict[str, float] = {}
        for key, score in zip(keys, model.scores(query, reference), strict=True):
            best[key] = max(best.get(key, 0.0), float(score))
        assert len({match.key for match in matches}) == len(matches) == min(top, len(best))
        np.testing.assert_allclose([match.score for match in matches], sorted(best.values(), reverse=True)[:top], rtol=1e-5)


def test_many_equal_vectors_are_all_counted() -> None:
    model, one = head(1, 0.0), embeddings(1, 1, 1)
    found = InMemory(model, [str(number) for number in range(500)], [0] * 500, np.repeat(one, 500, axis=0)).search(one, 0.5, 3)[0]
    assert (found.total, len(found.matches)) == (500, 3)


def test_nothing_to_search_in_is_said() -> None:
    with pytest.raises(UsageError, match="nothing to search in"):
        InMemory(head(0, 0.0), [], [], np.empty((0, FEATURES), np.float32))
