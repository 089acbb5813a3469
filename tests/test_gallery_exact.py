"""The exact search misses nothing, whatever the head, and the flat cache is right or not used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.errors import GalleryError
from lcmem_onnx.runtime.gallery import Entry, Gallery, verification
from lcmem_onnx.runtime.gallery.search import exact, l1_codes
from lcmem_onnx.runtime.gallery.search.l1_codes import Coder, near
from lcmem_onnx.runtime.gallery.storage.store import Changes
from lcmem_onnx.runtime.model.bundle import Bundle, Threshold
from lcmem_onnx.runtime.model.head import Floats, Head

FEATURES = 24


def make_bundle(head: Head) -> Bundle:
    return Bundle(Path(), "test", 64, head.features, head, Threshold(0.5, "test"), {}, "f" * 64, demonstration=True, manifest={})


@pytest.fixture
def bundle() -> Bundle:
    return make_bundle(Head(np.random.default_rng(5).normal(-4, 1.5, FEATURES).astype(np.float32), 6.0))


def vectors(seed: int, count: int, features: int = FEATURES) -> Floats:
    return np.random.default_rng(seed).random((count, features), dtype=np.float32)


def entries(embeddings: Floats, first: int = 0) -> list[Entry]:
    return [Entry(f"/{at}.png", at.to_bytes(32, "big"), 1, {0: one}) for at, one in enumerate(embeddings, first)]


def true_scores(head: Head, query: Floats, gallery: Floats) -> np.ndarray:
    """In float64, by the head's definition and nothing else."""
    logits = np.abs(gallery.astype(np.float64) - query.astype(np.float64)) @ head.weight.astype(np.float64) + head.bias
    return 1 / (1 + np.exp(-logits))


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache also for small galleries, in blocks small enough for several, filled in several steps."""
    monkeypatch.setattr(exact, "CACHE_FROM", 50)
    monkeypatch.setattr("lcmem_onnx.runtime.gallery.search.searcher.CACHE_FROM", 50)
    monkeypatch.setattr(exact, "READ_AT_ONCE", 70)
    for module in ("l1_codes", "vector_cache", "exact"):
        monkeypatch.setattr(f"lcmem_onnx.runtime.gallery.search.{module}.BLOCK", 64)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    features=st.integers(1, 40),
    positive=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    spread=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    beyond=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
def test_no_match_and_no_nearest_lies_outside_the_candidates(
    seed: int, features: int, positive: float, spread: float, beyond: bool, threads: int
) -> None:
    """Heads of any sign, vectors crowded together or spread, equal ones among them, and values outside [0, 1]."""
    random = np.random.default_rng(seed)
    weight = random.exponential(4.0, features) * np.where(random.random(features) < positive, 1, -1)
    head = Head(weight.astype(np.float32), float(random.normal(3, 2)))
    centres = random.random((5, features))
    gallery = (centres[random.integers(0, 5, 300)] + spread * random.normal(0, 1, (300, features))).astype(np.float32)
    gallery = gallery if beyond else np.clip(gallery, 0, 1)
    queries = (gallery[:6] + 0.3 * spread * random.normal(0, 1, (6, features))).astype(np.float32)
    coder = Coder(head)
    encoded, slack = coder.encode(gallery)
    blocks = [(at, encoded[at : at + 64]) for at in range(0, 300, 64)]
    low, high = gallery.min(axis=0), gallery.max(axis=0)
    for threshold in (0.01, 0.5, 0.99):
        radii = np.array([head.radius(threshold, query, low, high) for query in queries])
        reach = np.array([head.reach(query, low, high) for query in queries])
        slacks = [float(slack[at : at + 64].max()) for at in range(0, 300, 64)]
        found = near(blocks, slacks, *coder.encode(queries), coder.step, radii, reach, threads)
        for query, places in zip(queries, found, strict=True):
            scores = true_scores(head, query, gallery)
            assert set(np.flatnonzero(scores >= threshold)) <= set(places.tolist())
            assert scores[places].max() >= scores.max() * (1 - 1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_codes_tell_the_distance_up_to_the_slacks(seed: int) -> None:
    random = np.random.default_rng(seed)
    head = Head((-random.exponential(1.0, FEATURES)).astype(np.float32), 0.0)
    pairs = random.normal(0.5, 0.6, (2, 50, FEATURES)).astype(np.float32)
    coder = Coder(head)
    (one, its), (other, others) = coder.encode(pairs[0]), coder.encode(pairs[1])
    by_bytes = coder.step * np.abs(one.astype(int) - other.astype(int)).sum(axis=1)
    true = np.abs(pairs[0].astype(np.float64) - pairs[1]) @ -head.weight.astype(np.float64)
    assert (np.abs(true - by_bytes) <= its.astype(np.float64) + others).all()


def test_codes_pass_over_most_of_a_gallery_that_is_far_away() -> None:
    """Else the search would be exact but no quicker: of 5,000 vectors, some dozens are left."""
    head = Head(np.full(256, -0.12, np.float32), 10.0)
    gallery = vectors(0, 5000, 256)
    coder = Coder(head)
    encoded, slack = coder.encode(gallery)
    query = coder.encode(gallery[:1] * 0.97)
    radius = np.array([head.radius(0.75, gallery[0], gallery.min(axis=0), gallery.max(axis=0))])
    (found,) = near([(0, encoded)], [float(slack.max())], *query, coder.step, radius, np.zeros(1), 1)
    scores = true_scores(head, gallery[0] * np.float32(0.97), gallery)
    assert set(np.flatnonzero(scores >= 0.75)) <= set(found.tolist())
    assert len(found) <= 20 + 2 * (scores >= 0.75).sum()


@pytest.mark.usefixtures("cached")
def test_through_the_cache_the_same_is_found_as_by_brute_force(bundle: Bundle, tmp_path: Path) -> None:
    embeddings = vectors(0, 400)
    folder = tmp_path / "idx"
    with Gallery.create(folder, bundle) as gallery:
        gallery.add_all(entries(embeddings[:200]))
        gallery.update_caches()
        gallery.add_all(entries(embeddings[200:390], 200))
        gallery.update_caches()
        gallery.add_all(entries(embeddings[390:], 390))  # these ten are not in the cache
        assert gallery.remove(key="/7.png", compact=False) == 1
        assert gallery.remove(key="/395.png", compact=False) == 1
    alive = np.setdiff1d(np.arange(400), [7, 395])
    queries = np.clip(embeddings[:40] + np.random.default_rng(1).normal(0, 0.03, (40, FEATURES)), 0, 1).astype(np.float32)
    with Gallery.open(folder, bundle) as gallery:
        one_by_one = [gallery.search(one[None], 0.5, top=400)[0] for one in queries]
        for results in (gallery.search(queries, 0.5, top=400, how="exact"), one_by_one):
            for query, result in zip(queries, results, strict=True):
                scores = true_scores(bundle.head, query, embeddings)
                expected = [at for at in alive if scores[at] >= 0.5]
                assert sorted(int(hit.key[1:-4]) for hit in result.matches) == expected
                assert result.complete
                assert result.nearest is not None
                assert result.nearest.key == f"/{alive[scores[alive].argmax()]}.png"
        assert gallery._searcher.flat.cached == 390
    with Gallery.open(folder, bundle, read_only=False) as gallery:  # which compacts
        gallery.search(queries[:1], 0.5)
        assert gallery._searcher.flat.cached == 398
        assert gallery._searcher.flat.alive.all()


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("part", ["ids", "sums", "slack", "codes", "embeddings", "flat.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone"])
def test_a_damaged_cache_is_said_and_not_used(part: str, damage: str, bundle: Bundle, tmp_path: Path) -> None:
    embeddings = vectors(0, 300)
    folder = tmp_path / "idx"
    with Gallery.create(folder, bundle) as gallery:
        gallery.add_all(entries(embeddings))
        gallery.update_caches()
    (path,) = [folder / part] if part == "flat.json" else folder.glob(f"flat-*.{part}")
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    told: list[str] = []
    with Gallery.open(folder, bundle, warn=told.append) as gallery:
        results = gallery.search(embeddings, 0.9, how="exact")
        assert [result.matches[0].key for result in results] == [f"/{at}.png" for at in range(300)]
    if not (part == "flat.json" and damage == "gone"):  # no cache is no damage
        assert len(told) == 1
        assert "reading the vectors from the database" in told[0]
    with Gallery.open(folder, bundle, read_only=False, warn=told.append) as gallery:
        gallery.add_all(entries(vectors(1, 60), 300))
        gallery.update_caches()
    told.clear()
    with Gallery.open(folder, bundle, warn=told.append) as gallery:
        assert [result.total for result in gallery.search(embeddings, 0.9)] == [1] * 300
        assert told == []


@pytest.mark.usefixtures("cached")
def test_a_cache_of_another_state_of_the_database_is_not_used(bundle: Bundle, tmp_path: Path) -> None:
    """The database was restored from a copy, and the caches lay beside it."""
    for name, seed in (("one", 0), ("other", 1)):
        with Gallery.create(tmp_path / name, bundle) as gallery:
            gallery.add_all(entries(vectors(seed, 100)))
            gallery.update_caches()
    for path in (tmp_path / "other").glob("flat*"):
        path.unlink()
    for path in (tmp_path / "one").glob("flat*"):
        (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    told: list[str] = []
    with Gallery.open(tmp_path / "other", bundle, warn=told.append) as gallery:
        assert [result.total for result in gallery.search(vectors(1, 100), 0.9)] == [1] * 100
    assert ["of another state of the index" in line for line in told] == [True]


@pytest.mark.usefixtures("cached")
def test_an_open_reader_goes_on_through_the_writer_s_compactions(bundle: Bundle, tmp_path: Path) -> None:
    embeddings = vectors(0, 300)
    told: list[str] = []
    with Gallery.create(tmp_path / "idx", bundle) as gallery, Gallery.open(tmp_path / "idx", bundle, warn=told.append) as reader:
        gallery.add_all(entries(embeddings))
        gallery.update_caches(graph=True)
        for how in ("exact", "hnsw"):
            assert reader.search(embeddings[:1], 0.9, how=how)[0].total == 1
        for gone in range(0, 60, 20):
            for number in range(gone, gone + 20):
                assert gallery.remove(key=f"/{number}.png", compact=False) == 1
            gallery.compact()
            for how in ("exact", "hnsw"):
                totals = [result.total for result in reader.search(embeddings, 0.9, how=how)]
                assert totals == [0] * (gone + 20) + [1] * (280 - gone)
        gallery.remove(gallery="default")
        assert reader.search(embeddings[:1], 0.9)[0].nearest is None
        gallery.add_all(entries(embeddings[:5]))
        assert reader.search(embeddings[:1], 0.9)[0].total == 1
    assert told == []


@pytest.mark.usefixtures("cached")
def test_erasure_leaves_no_bytes_in_database_cache_or_graph(bundle: Bundle, tmp_path: Path) -> None:
    embeddings = vectors(0, 300)
    folder = tmp_path / "idx"
    with Gallery.create(folder, bundle) as gallery:
        gallery.add_all(entries(embeddings))
        gallery.update_caches(graph=True)
        coder = Coder(bundle.head)

        def traces(number: int) -> list[bytes]:
            one = embeddings[number]
            arrays = one, bundle.head.weighted(one), coder.encode(one[None])[0]
            return [*(array.tobytes() for array in arrays), f"/{number}.png".encode()]

        def folder_bytes() -> bytes:
            return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())

        before = folder_bytes()
        assert all(trace in before for trace in traces(123))
        gallery.remove(key="/123.png")
        after = folder_bytes()
        assert not any(trace in after for trace in traces(123))
        assert all(trace in after for trace in traces(124))
        assert gallery.describe()["graph"]
        assert [result.total for result in gallery.search(embeddings[122:125], 0.9, how="hnsw")] == [1, 0, 1]
    with Gallery.open(folder, bundle) as gallery:
        assert [result.total for result in gallery.search(embeddings, 0.9, how="hnsw")] == [1] * 123 + [0] + [1] * 176


def test_a_head_without_negative_weights_is_searched_too(tmp_path: Path, cached: None) -> None:
    bundle = make_bundle(Head(np.full(FEATURES, 0.5, np.float32), -2.0))
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        gallery.add_all(entries(vectors(0, 200)))
        gallery.update_caches()
        (result,) = gallery.search(vectors(1, 1), 0.9, top=300, how="exact")
        assert result.total == (true_scores(bundle.head, vectors(1, 1)[0], vectors(0, 200)) >= 0.9).sum() > 0


def test_a_full_disk_while_the_cache_is_written_leaves_the_older_one(
    bundle: Bundle, tmp_path: Path, cached: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        gallery.add_all(entries(vectors(0, 100)))
        gallery.update_caches()
        gallery.add_all(entries(vectors(1, 100), 100))

        def full(file: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(GalleryError, match="cannot be written: No space left"):
                gallery.update_caches()
        assert [result.total for result in gallery.search(vectors(1, 100), 0.9)] == [1] * 100
    told: list[str] = []
    with Gallery.open(tmp_path / "idx", bundle, warn=told.append) as gallery:
        assert gallery.search(vectors(0, 1), 0.9)[0].total == 1
        assert gallery._searcher.flat.cached == 100
    assert told == []
    assert l1_codes.KEPT >= 2


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("left", [280, 20])
def test_what_a_killed_process_left_does_not_outlive_an_erasure(left: int, bundle: Bundle, tmp_path: Path) -> None:
    """Drafts of the graph, a graph and a cache whose manifest is gone or damaged: all hold embeddings."""
    embeddings, folder = vectors(0, 300), tmp_path / "idx"
    with Gallery.create(folder, bundle) as gallery:
        gallery.add_all(entries(embeddings))
        gallery.update_caches(graph=True)
        (graph,) = folder.glob("graph-*.hnsw")
        (folder / ".graph-abcdefgh").write_bytes(graph.read_bytes())
        (folder / ".flat.json.4711").write_text("{}")
        (folder / "flat.json").write_text("{")
        (folder / "graph.json").unlink()
    with Gallery.open(folder, bundle, read_only=False) as gallery:
        for number in range(left, 300):
            gallery.remove(key=f"/{number}.png", compact=False)
        gallery.compact()
        gone = embeddings[299]
        traces = gone.tobytes(), bundle.head.weighted(gone).tobytes(), Coder(bundle.head).encode(gone[None])[0].tobytes()
        for path in folder.iterdir():
            assert not any(trace in path.read_bytes() for trace in traces), path.name
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("cached")
def test_verify_counts_images_and_not_the_last_bit_of_their_scores(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BLAS rounds a product by its shape, and the graph scores other numbers of vectors at once than the exact search."""
    true, calls = Head.scores, iter(range(1 << 30))
    monkeypatch.setattr(Head, "scores", lambda *given: true(*given) - 1e-9 * next(calls))
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        gallery.add_all(entries(vectors(0, 300)))
        gallery.update_caches(graph=True)
        found = gallery.verify(0.5, 50)
    assert not found.problems
    assert found.recall is not None
    assert found.recall.matches >= 50
    assert found.recall.share == 1.0


def test_verify_goes_on_while_a_writer_erases(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "READ_AT_ONCE", 50)
    with Gallery.create(tmp_path / "idx", bundle) as gallery, Gallery.open(tmp_path / "idx", bundle) as reader:
        gallery.add_all(entries(vectors(0, 300)))
        changes, calls = reader._store.changes, iter(range(1 << 30))

        def erased_meanwhile(*given: int, limit: int) -> Changes:
            if next(calls) == 3:
                gallery.remove(key="/7.png")
            return changes(*given, limit=limit)

        monkeypatch.setattr(reader._store, "changes", erased_meanwhile)
        found = reader.verify(0.5, 0)
    assert (found.problems, found.checked["vectors"]) == ((), 299)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    features=st.integers(1, 40),
    positive=st.sampled_from([0.0, 0.3, 1.0]),
    spread=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    beyond=st.booleans(),
)
def test_what_the_graph_found_is_not_passed_over_by_its_codes(
    seed: int, features: int, positive: float, spread: float, beyond: bool
) -> None:
    """Every match, and the nearest of the wanted ones, among any few vectors."""
    random = np.random.default_rng(seed)
    weight = random.exponential(4.0, features) * np.where(random.random(features) < positive, 1, -1)
    head = Head(weight.astype(np.float32), float(random.normal(3, 2)))
    gallery = (random.random((3, features))[random.integers(0, 3, 64)] + spread * random.normal(0, 1, (64, features))).astype("f4")
    gallery = gallery if beyond else np.clip(gallery, 0, 1)
    query = (gallery[0] + 0.3 * spread * random.normal(0, 1, features)).astype(np.float32)
    wanted = random.random(64) < 0.7
    coder = Coder(head)
    encoded, slack = coder.encode(gallery)
    (code,), (its,) = coder.encode(query[None])
    sums = l1_codes.distances(code, encoded)
    assert (sums == np.abs(encoded.astype(int) - code).sum(axis=1)).all()
    low, high = gallery.min(axis=0), gallery.max(axis=0)
    scores = true_scores(head, query, gallery)
    for threshold in (0.01, 0.5, 0.99):
        radius, reach = head.radius(threshold, query, low, high), head.reach(query, low, high)
        for among in (None, wanted):
            kept = l1_codes.near_enough(sums, slack + its, coder.step, among, radius, reach)
            assert kept[scores >= threshold].all()
            some = scores if among is None else scores[among]
            if len(some):
                assert scores[kept & (True if among is None else among)].max() >= some.max() * (1 - 1e-5)


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("from_file", [False, True])
def test_through_the_graph_of_a_cached_gallery_what_brute_force_finds(
    from_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups, an erasure and additions beyond the cache and the graph; with codes from the map and from the file."""
    if from_file:
        monkeypatch.setattr("lcmem_onnx.runtime.gallery.search.vector_cache.MAPPED", 0)
    bundle = make_bundle(Head(-np.random.default_rng(5).exponential(3.0, FEATURES).astype(np.float32), 6.0))
    centres = vectors(1, 20)
    spread = 0.1 * np.random.default_rng(2).normal(0, 1, (260, FEATURES))
    embeddings = np.clip(centres[np.arange(260) % 20] + spread, 0, 1).astype(np.float32)
    folder = tmp_path / "idx"
    with Gallery.create(folder, bundle) as gallery:
        gallery.add_all(
            Entry(f"/{at}.png", at.to_bytes(32, "big"), 1, {0: one}, gallery="even" if at % 2 == 0 else "odd")
            for at, one in enumerate(embeddings[:250])
        )
        gallery.update_caches(graph=True)
    with Gallery.open(folder, bundle) as reader:
        reader.search(embeddings[:1], 0.5, how="hnsw")
        with Gallery.open(folder, bundle, read_only=False) as gallery:
            gallery.remove(key="/0.png")
            gallery.add_all(
                Entry(f"/{at}.png", at.to_bytes(32, "big"), 1, {0: embeddings[at]}, gallery="even" if at % 2 == 0 else "odd")
                for at in range(250, 260)
            )
        for query in embeddings[:30]:
            for names in (None, ["even"]):
                result = reader.search(query[None], 0.5, how="hnsw", top=300, galleries=names)[0]
                scores = true_scores(bundle.head, query, embeddings)
                there = [at for at in range(1, 260) if names is None or at % 2 == 0]
                assert {hit.key for hit in result.matches} == {f"/{at}.png" for at in there if scores[at] >= 0.5}
                assert result.nearest is not None
                assert abs(result.nearest.score - max(scores[at] for at in there)) < 1e-5


@pytest.mark.usefixtures("cached")
def test_damaged_codes_hide_nothing_from_the_graph_s_search(tmp_path: Path) -> None:
    bundle = make_bundle(Head(-np.random.default_rng(5).exponential(3.0, FEATURES).astype(np.float32), 6.0))
    folder = tmp_path / "idx"
    with Gallery.create(folder, bundle) as gallery:
        gallery.add_all(entries(vectors(0, 200)))
        gallery.update_caches(graph=True)
    (path,) = folder.glob("flat-*.codes")
    data = bytearray(path.read_bytes())
    data[7 * FEATURES : 8 * FEATURES] = bytes(255 - one for one in data[7 * FEATURES : 8 * FEATURES])
    path.write_bytes(data)
    told: list[str] = []
    with Gallery.open(folder, bundle, warn=told.append) as gallery:
        assert gallery.search(vectors(0, 8)[7:], 0.9, how="hnsw")[0].matches[0].key == "/7.png"
    assert any("the sha256 of codes differs" in line for line in told)
