"""Store, graph and search: nothing lost, nothing missed, nothing damaged used."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from lcmem_onnx.runtime.errors import GalleryError, GalleryMismatchError, KeyConflictError, UsageError
from lcmem_onnx.runtime.gallery import Added, Gallery
from lcmem_onnx.runtime.gallery.search import searcher
from lcmem_onnx.runtime.gallery.search.hnsw import MANIFEST, Graph, GraphExhaustedError, load_graph, save_graph
from lcmem_onnx.runtime.gallery.storage import database
from lcmem_onnx.runtime.gallery.storage.store import DATABASE, Entry
from lcmem_onnx.runtime.model.bundle import Bundle, Threshold, seal
from lcmem_onnx.runtime.model.head import Floats, Head

FEATURES = 32
SOURCES = 400


def make_bundle(fingerprint: str = "f" * 64, positive: bool = True) -> Bundle:
    """A bundle's head without a network: weights of both signs unless told otherwise."""
    random = np.random.default_rng(3)
    weight = random.normal(-6.0, 4.0 if positive else 1.0, FEATURES)
    head = Head(np.where(positive, weight, -np.abs(weight)).astype(np.float32), 6.0)
    return Bundle(Path(), "test", 64, FEATURES, head, Threshold(0.5, "test"), {}, fingerprint, demonstration=True, manifest={})


def vectors(seed: int, count: int) -> Floats:
    return np.random.default_rng(seed).random((count, FEATURES), dtype=np.float32)


def content(number: int) -> bytes:
    return number.to_bytes(32, "big")


def fill(gallery: Gallery, embeddings: Floats, first: int = 0) -> None:
    for number, embedding in enumerate(embeddings, first):
        gallery.add(Entry(f"/pictures/{number}.png", content(number), 1, {0: embedding}))


@pytest.fixture
def bundle() -> Bundle:
    return make_bundle()


def brute_force(bundle: Bundle, query: Floats, gallery: Floats, threshold: float) -> list[tuple[str, float]]:
    """Matches by float64 arithmetic, best first."""
    differences = np.abs(gallery.astype(np.float64) - query.astype(np.float64))
    scores = 1 / (1 + np.exp(-(differences @ bundle.head.weight.astype(np.float64) + bundle.head.bias)))
    order = np.argsort(-scores, kind="stable")
    return [(f"/pictures/{at}.png", float(scores[at])) for at in order if scores[at] >= threshold]


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("how", ["exact", "hnsw"])
def test_search_finds_what_brute_force_finds(how: str, positive: bool, tmp_path: Path) -> None:
    bundle = make_bundle(positive=positive)
    embeddings = vectors(0, SOURCES)
    # Queries near gallery vectors, at distances that make some match and some not.
    steps = np.linspace(0.0, 0.12, 40, dtype=np.float32)[:, None]
    queries = np.clip(embeddings[:40] + steps * np.random.default_rng(1).normal(0, 1, (40, FEATURES)), 0, 1).astype(np.float32)
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, embeddings)
        results = gallery.search(queries, 0.5, top=SOURCES, how=how)
        matched = 0
        for query, result in zip(queries, results, strict=True):
            expected = brute_force(bundle, query, embeddings, 0.5)
            assert [hit.key for hit in result.matches] == [key for key, _ in expected]
            np.testing.assert_allclose([hit.score for hit in result.matches], [score for _, score in expected], atol=1e-5)
            assert result.total == len(expected)
            matched += bool(expected)
        assert 0 < matched < 40


def test_the_nearest_is_reported_without_a_match_and_top_limits_matches(bundle: Bundle, tmp_path: Path) -> None:
    embeddings = vectors(0, 50)
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, embeddings)
        (result,) = gallery.search(vectors(9, 1), 0.999999)
        assert result.matches == ()
        assert result.nearest is not None
        assert result.nearest.key == brute_force(bundle, vectors(9, 1)[0], embeddings, 0.0)[0][0]
        (result,) = gallery.search(embeddings[:1], 1e-30, top=3)
        expected = brute_force(bundle, embeddings[0], embeddings, 1e-30)
        assert [hit.key for hit in result.matches] == [key for key, _ in expected[:3]]
        assert result.total == len(expected) > 3


def test_an_empty_gallery_finds_nothing(bundle: Bundle, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        for how in ("exact", "hnsw"):
            (result,) = gallery.search(vectors(0, 1), 0.5, how=how)
            assert (result.matches, result.total, result.nearest) == ((), 0, None)


def test_equal_images_share_a_vector_and_are_all_found(bundle: Bundle, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, np.repeat(vectors(0, 1), 300, axis=0))
        assert gallery.describe()["distinct_vectors"] == 1
        for how in ("exact", "hnsw"):
            (result,) = gallery.search(vectors(0, 1), 0.5, top=500, how=how)
            assert len(result.matches) == result.total == 300


def test_additions_are_found_at_once_with_a_graph_from_before(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher, "exact_enough", lambda count, width: count <= 10)
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, vectors(0, 30))
        gallery.update_caches()
    manifest = json.loads((tmp_path / "idx" / MANIFEST).read_text())
    assert (manifest["count"], manifest["dimension"], manifest["fingerprint"]) == (30, FEATURES, bundle.fingerprint)
    told: list[str] = []
    with Gallery.open(tmp_path / "idx", bundle, read_only=False, warn=told.append) as gallery:
        fill(gallery, vectors(5, 3), first=30)
        (result,) = gallery.search(vectors(5, 1), 0.5)
        assert result.matches[0].key == "/pictures/30.png"
        assert told == []
        gallery.update_caches()
    assert json.loads((tmp_path / "idx" / MANIFEST).read_text())["count"] == 33
    assert len(list((tmp_path / "idx").glob("graph-*.hnsw"))) == 1


def test_an_open_gallery_sees_what_another_adds(bundle: Bundle, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as writer:
        fill(writer, vectors(0, 3))
        with Gallery.open(tmp_path / "idx", bundle) as reader:
            assert reader.search(vectors(7, 1), 0.5)[0].total == 0
            fill(writer, vectors(7, 1), first=3)
            assert reader.search(vectors(7, 1), 0.5)[0].matches[0].key == "/pictures/3.png"


def test_known_content_is_recognised(bundle: Bundle, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, vectors(0, 2))
        assert gallery.status("/pictures/0.png", content(0)) is Added.KNOWN
        assert gallery.status("/elsewhere/0.png", content(0)) is Added.COPY
        assert gallery.status("/pictures/9.png", content(9)) is Added.NEW
        gallery.add_copy("/elsewhere/0.png", content(0))
        assert gallery.status("/elsewhere/0.png", content(0)) is Added.KNOWN
        (result,) = gallery.search(vectors(0, 1), 0.9)
        assert [hit.key for hit in result.matches] == ["/elsewhere/0.png", "/pictures/0.png"]
        with pytest.raises(GalleryError, match="no image with sha256"):
            gallery.add_copy("/x", content(99))


def test_an_image_whose_frames_were_not_all_readable_is_tried_again(bundle: Bundle, tmp_path: Path) -> None:
    frames = vectors(0, 3)
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        gallery.add(Entry("/a.dcm", content(1), 3, {0: frames[0], 2: frames[2]}))
        assert gallery.status("/a.dcm", content(1)) is Added.NEW
        gallery.add(Entry("/a.dcm", content(1), 3, dict(enumerate(frames))))
        assert gallery.status("/a.dcm", content(1)) is Added.KNOWN
        assert len(gallery) == 3


def test_adding_the_same_twice_is_harmless_and_another_image_under_its_key_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, vectors(0, 2))
        fill(gallery, vectors(0, 2))
        assert len(gallery) == 2
        with pytest.raises(KeyConflictError, match="different image"):
            gallery.add(Entry("/pictures/0.png", content(77), 1, {0: vectors(1, 1)[0]}))
        with pytest.raises(KeyConflictError):
            gallery.add_copy("/pictures/0.png", content(1))
        assert len(gallery) == 2


@pytest.mark.parametrize("bad", [np.full(FEATURES, np.nan, np.float32), np.zeros(FEATURES - 1, np.float32)])
def test_an_embedding_that_is_none_is_refused_whole(bad: Floats, bundle: Bundle, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        with pytest.raises(GalleryError, match="finite numbers"):
            gallery.add(Entry("/a.dcm", content(1), 2, {0: vectors(0, 1)[0], 1: bad}))
        assert len(gallery) == 0


def test_an_index_of_another_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    Gallery.create(tmp_path / "idx", bundle).close()
    with pytest.raises(GalleryMismatchError, match="another model"):
        Gallery.open(tmp_path / "idx", make_bundle("0" * 64))


def test_creating_twice_is_refused_and_harms_nothing(bundle: Bundle, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, vectors(0, 2))
    with pytest.raises(GalleryError, match="already contains an index"):
        Gallery.create(tmp_path / "idx", bundle)
    with Gallery.open(tmp_path / "idx", bundle) as gallery:
        assert len(gallery) == 2


def test_a_folder_without_an_index_is_named(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="is not an index"):
        Gallery.open(tmp_path, bundle)


@pytest.mark.parametrize("name", ["new\nline", "per%20cent?#", "späße", "quote'\"", " blank "])
def test_folders_of_any_name_work(name: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searcher, "exact_enough", lambda count, width: count <= 1)
    with Gallery.create(tmp_path / name, bundle) as gallery:
        fill(gallery, vectors(0, 5))
        gallery.update_caches()
    with Gallery.open(tmp_path / name, bundle) as gallery:
        assert gallery.search(vectors(0, 1), 0.5)[0].matches[0].key == "/pictures/0.png"


def test_a_writer_waits_for_another_and_then_says_who_is_in_the_way(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lcmem_onnx.runtime.gallery.storage.database.BUSY_SECONDS", 0.1)
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        other = sqlite3.connect(tmp_path / "idx" / DATABASE, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(GalleryError, match="being written by another process"):
            fill(gallery, vectors(0, 1))
        other.execute("ROLLBACK")
        other.close()
        fill(gallery, vectors(0, 1))


@pytest.mark.parametrize("damage", ["flipped vector", "truncated", "emptied", "not sqlite", "other version"])
def test_a_damaged_store_is_never_answered_from(damage: str, bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "idx"
    with Gallery.create(folder, bundle) as gallery:
        fill(gallery, vectors(0, 200))
    path = folder / DATABASE
    data = bytearray(path.read_bytes())
    if damage == "flipped vector":
        place = data.find(vectors(0, 200)[100].tobytes())
        assert place > 0
        data[place + 5] ^= 0xFF
    elif damage == "truncated":
        del data[len(data) // 2 :]
    elif damage == "emptied":
        data.clear()
    elif damage == "not sqlite":
        data[:] = b"hello" * 100
    path.write_bytes(data)
    if damage == "other version":
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("UPDATE meta SET value = '1' WHERE name = 'format_version'")
        connection.close()
    with pytest.raises(GalleryError, match="damaged|format 1"), Gallery.open(folder, bundle) as gallery:
        gallery.search(vectors(0, 1), 0.5)


def test_a_read_only_folder_can_be_searched(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "idx"
    with Gallery.create(folder, bundle) as gallery:
        fill(gallery, vectors(0, 3))
    folder.chmod(0o555)
    (folder / DATABASE).chmod(0o444)
    try:
        with Gallery.open(folder, bundle) as gallery:
            assert gallery.search(vectors(0, 1), 0.5)[0].total == 1
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("statement", ["DELETE FROM pictures WHERE vector = 4", "DELETE FROM pictures"])
def test_image_rows_that_get_lost_while_it_is_open_are_an_error_where_they_matter(
    statement: str, bundle: Bundle, tmp_path: Path
) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, vectors(0, 10))
        damaged(tmp_path / "idx", statement)
        for how in ("exact", "hnsw"):
            with pytest.raises(GalleryError, match="embeddings without images"):
                gallery.search(vectors(0, 10)[3:4], 0.9, how=how)


def test_no_row_is_read_twice(bundle: Bundle, tmp_path: Path) -> None:
    """Another process adds between the look at the newest id and the reading: what was read counts, not what was seen."""
    with Gallery.create(tmp_path / "idx", bundle) as writer, Gallery.open(tmp_path / "idx", bundle) as reader:
        fill(writer, vectors(0, 3))
        real = reader._store.newest

        def newest() -> tuple[int, int]:
            seen = real()
            if seen[0] == 3:
                fill(writer, vectors(1, 2), first=3)
            return seen

        reader._store.newest = newest  # type: ignore[method-assign]
        for _ in range(3):
            assert reader.search(vectors(1, 1), 0.9)[0].total == 1
            assert reader._searcher.flat.ids.tolist() == [1, 2, 3, 4, 5]
        read: list[int] = []
        whole = reader._store.changes
        reader._store.changes = lambda after, erased: read.append(after) or whole(after, erased)  # type: ignore[assignment,func-returns-value,method-assign]
        fill(writer, vectors(2, 1), first=5)
        reader.search(vectors(2, 1), 0.9)
        reader.search(vectors(2, 1), 0.9)
        assert read == [5]
        assert reader._searcher.flat.ids.tolist() == [1, 2, 3, 4, 5, 6]


def test_of_two_that_create_one_index_at_once_one_wins_and_loses_nothing(bundle: Bundle, tmp_path: Path) -> None:
    """Threads stand for processes: both have looked, and found nothing, before either makes its file."""
    together = threading.Barrier(2)
    real = sqlite3.connect
    outcomes: list[str] = []

    def connect(path: object, *args: object, **kwargs: object) -> sqlite3.Connection:
        if Path(str(path)).name.startswith("."):
            together.wait(10)
        return real(path, *args, **kwargs)  # type: ignore[arg-type,call-overload,no-any-return]

    def build(number: int) -> None:
        try:
            with Gallery.create(tmp_path / "idx", bundle) as gallery:
                gallery.add(Entry(f"/by/{number}.png", content(number), 1, {0: vectors(number, 1)[0]}))
                outcomes.append(f"/by/{number}.png")
        except GalleryError as error:
            outcomes.append(str(error))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect)
        threads = [threading.Thread(target=build, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    (winner,) = [said for said in outcomes if said.startswith("/by/")]
    (loser,) = [said for said in outcomes if said != winner]
    assert "cannot create an index" in loser or "already contains an index" in loser
    assert not list((tmp_path / "idx").glob(".gallery*"))
    with Gallery.open(tmp_path / "idx", bundle) as gallery:
        assert [gallery.search(vectors(number, 1), 0.9)[0].total for number in range(2)].count(1) == 1
        assert gallery._store.content_of(winner, "default")


def test_a_graph_that_runs_dry_falls_back_to_the_exact_search(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hnswlib says "Cannot return the results in a contiguous 2D array" when it reaches fewer vectors than were asked for."""
    near = np.clip(vectors(0, 1) + np.random.default_rng(1).normal(0, 1e-6, (300, FEATURES)), 0, 1).astype(np.float32)

    class Dry:
        def __init__(self, index: object) -> None:
            self.index = index
            self.asked = 0

        def __getattr__(self, name: str) -> object:
            return getattr(self.index, name)

        def knn_query(self, *args: object, **kwargs: object) -> None:
            self.asked += 1
            raise RuntimeError("Cannot return the results in a contiguous 2D array. Probably ef or M is too small")

    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, near)
        graph = gallery._searcher._current_graph()
        graph._index = dry = Dry(graph._index)
        (result,) = gallery.search(near[:1], 0.9, top=300, how="hnsw")
        assert dry.asked == 1
        assert result == gallery.search(near[:1], 0.9, top=300, how="exact")[0]
        assert result.total == len(near)
        with pytest.raises(GraphExhaustedError, match="does not reach"):
            graph.nearest(near[0], 5)


def damaged(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / DATABASE)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE pictures SET vector = 2 WHERE vector = 3",
        "UPDATE pictures SET vector = 99 WHERE vector = 3",
        "UPDATE pictures SET key = '/pictures/3x.png' WHERE vector = 4",
        "UPDATE pictures SET frame = 1 WHERE vector = 3",
        "UPDATE pictures SET frames = 3 WHERE vector = 3",
        "UPDATE pictures SET content = x'00' WHERE vector = 3",
        "UPDATE pictures SET content = '0' WHERE vector = 3",
        "DELETE FROM pictures WHERE vector = 3",
        "DELETE FROM pictures WHERE key = '/copy/2.png'",
        "DELETE FROM pictures",
        "INSERT INTO pictures SELECT 99, 'x', 0, 1, x'00', 1, 'default', NULL, NULL, 0, 2",
        "DELETE FROM vectors WHERE id = 3",
        "DELETE FROM vectors WHERE id = 50",
        "DELETE FROM meta WHERE name = 'pictures'",
        "UPDATE meta SET value = 'x' WHERE name = 'pictures'",
    ],
)
def test_a_row_that_changed_or_fell_out_is_noticed_on_opening(statement: str, bundle: Bundle, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, vectors(0, 50))
        gallery.add_copy("/copy/2.png", content(2))
    damaged(tmp_path / "idx", statement)
    for read_only in (True, False):
        with pytest.raises(GalleryError, match="is damaged"):
            Gallery.open(tmp_path / "idx", bundle, read_only=read_only)


@pytest.mark.parametrize(
    "statements",
    [
        [f"UPDATE vectors SET id = {new} WHERE id = {old}" for new, old in ((99, 50), (50, 49), (49, 99))],
        ["UPDATE meta SET value = '50 0' WHERE name = 'vectors'"],
        ["UPDATE meta SET value = (SELECT value FROM meta WHERE name = 'pictures') WHERE name = 'vectors'"],
        ["UPDATE meta SET value = '' WHERE name = 'vectors'"],
    ],
)
def test_vectors_that_changed_places_or_fell_out_are_noticed_when_they_are_read(
    statements: list[str], bundle: Bundle, tmp_path: Path
) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, vectors(0, 50))
    damaged(tmp_path / "idx", "PRAGMA foreign_keys = OFF", *statements)
    with Gallery.open(tmp_path / "idx", bundle) as gallery, pytest.raises(GalleryError, match="is damaged"):
        gallery.search(vectors(0, 1), 0.5)


def test_any_flipped_bit_of_a_row_is_noticed_or_harmless(bundle: Bundle, tmp_path: Path) -> None:
    """The file itself, bit by bit where names and numbers lie: an error, or the answer that it gave before."""
    original = tmp_path / "idx"
    with Gallery.create(original, bundle) as gallery:
        fill(gallery, vectors(0, 6))
        before = gallery.search(vectors(0, 6), 0.9)
    data = (original / DATABASE).read_bytes()
    random = np.random.default_rng(0)
    noticed = 0
    written = [place for place, byte in enumerate(data) if byte]
    for place in random.choice(written, 400, replace=False).tolist():
        changed = bytearray(data)
        changed[place] ^= 1 << int(random.integers(8))
        (original / DATABASE).write_bytes(changed)
        try:
            with Gallery.open(original, bundle) as gallery:
                assert gallery.search(vectors(0, 6), 0.9) == before, place
        except GalleryError:
            noticed += 1
    assert noticed > 20


def test_an_embedding_that_differs_in_its_last_bit_when_tried_again_leaves_no_vector_behind(bundle: Bundle, tmp_path: Path) -> None:
    frames = vectors(0, 3)
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        gallery.add(Entry("/a.dcm", content(1), 3, {0: frames[0], 2: frames[2]}))
        again = np.nextafter(frames, 1, dtype=np.float32)
        gallery.add(Entry("/a.dcm", content(1), 3, dict(enumerate(again))))
        assert gallery.describe()["distinct_vectors"] == 3
        assert all(result.total == 1 for result in gallery.search(again, 0.9))
    with Gallery.open(tmp_path / "idx", bundle) as gallery:
        assert gallery.status("/a.dcm", content(1)) is Added.KNOWN


# -- the graph's file -----------------------------------------------------------------------------------------------


@pytest.fixture
def graph_folder(bundle: Bundle, tmp_path: Path) -> Path:
    graph = Graph(FEATURES, 1)
    graph.extend(np.arange(1, 101), bundle.head.weighted(vectors(0, 100)))
    save_graph(graph, tmp_path, bundle.fingerprint)
    return tmp_path


def change_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(seal(manifest | changes)))


def test_a_saved_graph_loads_and_answers(graph_folder: Path, bundle: Bundle) -> None:
    graph = load_graph(graph_folder, bundle.fingerprint, FEATURES, 1)
    ids, distances = graph.nearest(bundle.head.weighted(vectors(0, 100)[41]), 500)
    assert (len(graph), len(ids), ids[0]) == (100, 100, 42)
    assert distances[0] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("flipped", "sha256 differs"),
        ("truncated", "sha256 differs"),
        ("another dimension", "dimension"),
        ("another bundle", "another bundle"),
        ("another metric", "metric"),
        ("newer", "format"),
        ("file gone", "cannot be read"),
        ("manifest gone", "no search graph yet"),
        ("manifest garbled", "is damaged"),
        ("manifest of another kind", "another format"),
        ("path outside", "not a search graph of this index"),
        ("NUL in the name", "not a search graph of this index"),
        ("folder for a name", "not a search graph of this index"),
        ("count", "cannot be loaded|does not find"),
        ("count far too high", "count differs"),
        ("count below nothing", "count differs"),
        ("not sealed again", "its own digest differs"),
        ("no seal", "lacks fields"),
        ("list", "not a JSON object"),
        ("null", "not a JSON object"),
    ],
)
def test_a_wrong_graph_is_never_loaded(damage: str, message: str, graph_folder: Path, bundle: Bundle) -> None:
    (path,) = graph_folder.glob("graph-*.hnsw")
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    elif damage == "truncated":
        path.write_bytes(data[:-100])
    elif damage == "file gone":
        path.unlink()
    elif damage == "manifest gone":
        (graph_folder / MANIFEST).unlink()
    elif damage == "manifest garbled":
        (graph_folder / MANIFEST).write_text("{")
    elif damage == "manifest of another kind":
        (graph_folder / MANIFEST).write_text('{"a": 1}')
    elif damage == "path outside":
        change_manifest(graph_folder, file="../graph-0123456789abcdef.hnsw")
    elif damage == "not sealed again":
        text = (graph_folder / MANIFEST).read_text()
        (graph_folder / MANIFEST).write_text(text.replace('"newest": 100', '"newest": 101'))
    elif damage == "no seal":
        manifest = json.loads((graph_folder / MANIFEST).read_text())
        del manifest["manifest_sha256"]
        (graph_folder / MANIFEST).write_text(json.dumps(manifest))
    elif damage in ("list", "null"):
        (graph_folder / MANIFEST).write_text({"list": "[]", "null": "null"}[damage])
    else:
        changes: dict[str, object] = {
            "another dimension": {"dimension": 16},
            "another bundle": {"fingerprint": "0" * 64},
            "another metric": {"metric": "cosine"},
            "newer": {"format_version": 4},
            "count": {"count": 101, "newest": 101},
            "count far too high": {"count": 1 << 60},
            "count below nothing": {"count": -1},
            "NUL in the name": {"file": "graph-\0.hnsw"},
            "folder for a name": {"file": "."},
        }[damage]
        change_manifest(graph_folder, **changes)
    with pytest.raises(GalleryError, match=message):
        load_graph(graph_folder, bundle.fingerprint, FEATURES, 1)


@pytest.mark.parametrize("value", [5, -1, 1.5, True, None, "x", "\0", [], {}])
@pytest.mark.parametrize("field", ["file", "sha256", "bytes", "dimension", "count", "erased", "newest", "fingerprint", "content"])
def test_a_manifest_with_fields_of_any_type_is_refused(field: str, value: object, graph_folder: Path, bundle: Bundle) -> None:
    """Even sealed; only what `content` and `erased` say is for the gallery to check, which knows its vectors."""
    change_manifest(graph_folder, **{field: value})
    if (field, type(value)) == ("content", str) or (field, value) == ("erased", 5):
        load_graph(graph_folder, bundle.fingerprint, FEATURES, 1)
        return
    with pytest.raises(GalleryError):
        load_graph(graph_folder, bundle.fingerprint, FEATURES, 1)


@pytest.mark.parametrize("damage", ["flipped", "gone", "manifest", "types"])
def test_a_damaged_graph_is_made_again_with_a_word(
    damage: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher, "exact_enough", lambda count, width: count <= 10)
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, vectors(0, 50))
        gallery.update_caches()
    (path,) = (tmp_path / "idx").glob("graph-*.hnsw")
    if damage == "flipped":
        data = bytearray(path.read_bytes())
        data[-50] ^= 0xFF
        path.write_bytes(data)
    elif damage == "gone":
        path.unlink()
    elif damage == "types":
        change_manifest(tmp_path / "idx", file=None, count="x")
    else:
        (tmp_path / "idx" / MANIFEST).write_text("")
    told: list[str] = []
    with Gallery.open(tmp_path / "idx", bundle, warn=told.append) as gallery:
        for how in ("auto", "auto", "hnsw"):
            assert gallery.search(vectors(0, 50)[30:31], 0.5, how=how)[0].matches[0].key == "/pictures/30.png"
    assert ["searching exactly" in line for line in told] == [True, False]
    assert "making the search graph of 50 vectors" in told[1]
    told.clear()
    with Gallery.open(tmp_path / "idx", bundle, read_only=False, warn=told.append) as gallery:
        gallery.update_caches()
    assert ["making the search graph of 50 vectors" in line for line in told] == [True]
    with Gallery.open(tmp_path / "idx", bundle, warn=told.append) as gallery:
        assert gallery.search(vectors(0, 50)[30:31], 0.5)[0].matches[0].key == "/pictures/30.png"
    assert len(told) == 1


def test_a_graph_of_another_database_is_refused_and_made_again(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database was restored from an older copy and went on from there: as many vectors, other ones, under the same ids."""
    monkeypatch.setattr(searcher, "exact_enough", lambda count, width: count <= 10)
    for name, seed in (("one", 0), ("other", 1)):
        with Gallery.create(tmp_path / name, bundle) as gallery:
            fill(gallery, vectors(seed, 50))
            gallery.update_caches()
    for path in [tmp_path / "one" / MANIFEST, *(tmp_path / "one").glob("graph-*")]:
        shutil.copy(path, tmp_path / "other")
    told: list[str] = []
    with Gallery.open(tmp_path / "other", bundle, read_only=False, warn=told.append) as gallery:
        for number in range(50):
            result = gallery.search(vectors(1, 50)[number : number + 1], 0.5, how="hnsw")[0]
            assert result.matches[0].key == f"/pictures/{number}.png"
    assert len(told) == 1
    assert "the search graph does not match the images of the index; making the search graph of 50 vectors" in told[0]
    with Gallery.open(tmp_path / "other", bundle, warn=told.append) as gallery:
        gallery.search(vectors(1, 1), 0.5)
    assert len(told) == 1


def test_a_killed_writer_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """A process adds and reports each addition; it is killed at a moment that it does not choose."""
    folder = tmp_path / "idx"
    Gallery.create(folder, make_bundle()).close()
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_gallery as t
with t.Gallery.open({str(folder)!r}, t.make_bundle(), read_only=False) as gallery:
    for number, embedding in enumerate(t.vectors(0, 10000)):
        gallery.add(t.Entry(f"/pictures/{{number}}.png", t.content(number), 1, {{0: embedding}}))
        print(number, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = -1
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged == 25:
            process.kill()
    process.wait()
    process.stdout.close()
    with Gallery.open(folder, make_bundle()) as gallery:
        assert len(gallery) >= acknowledged + 1
        for number in (0, acknowledged):
            assert gallery.search(vectors(0, 10000)[number : number + 1], 0.9)[0].matches[0].key == f"/pictures/{number}.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0.0}, "threshold must be between 0 and 1"),
        ({"threshold": 0.5, "top": 0}, "top must be 1 or more, got 0"),
        ({"threshold": 0.5, "how": "magic"}, "magic"),
    ],
)
def test_wrong_requests_are_refused(arguments: dict[str, object], message: str, bundle: Bundle, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        fill(gallery, vectors(0, 2))
        with pytest.raises(UsageError, match=message):
            gallery.search(vectors(0, 1), **arguments)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="shape"):
            gallery.search(np.zeros((1, FEATURES + 1), np.float32), 0.5)
        for value in (np.nan, np.inf):  # which would be like nothing, and so clear
            with pytest.raises(UsageError, match="NaN or infinity"):
                gallery.search(np.full((1, FEATURES), value, np.float32), 0.5)
        with pytest.raises(UsageError, match="not valid Unicode"):
            gallery.add(Entry("lone \ud800 surrogate", content(9), 1, {0: vectors(1, 1)[0]}))
        assert len(gallery) == 2


def test_a_full_disk_is_said_and_harms_nothing(bundle: Bundle, tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system here")
    try:
        with Gallery.create(small / "idx", bundle) as gallery:
            fill(gallery, vectors(0, 5))
            with pytest.raises(GalleryError, match="is full"):
                fill(gallery, vectors(1, 20000), first=5)
            count = len(gallery)
            assert count >= 5
        with Gallery.open(small / "idx", bundle) as gallery:
            assert len(gallery) == count
            assert gallery.search(vectors(0, 1), 0.9)[0].total == 1
    finally:
        subprocess.run(["umount", small], check=False)


def test_a_reader_that_may_not_write_sees_what_others_do(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens the file as one that never changes, which SQLite takes at its word."""
    folder, embeddings = tmp_path / "idx", vectors(0, 8)
    with Gallery.create(folder, bundle) as gallery:
        fill(gallery, embeddings[:3])
    monkeypatch.setattr(database, "_writable", lambda path: False)
    with Gallery.open(folder, bundle) as reader:
        assert [result.total for result in reader.search(embeddings, 0.9)] == [1] * 3 + [0] * 5
        with Gallery.open(folder, bundle, read_only=False) as gallery:
            fill(gallery, embeddings[3:5], 3)
        assert [result.total for result in reader.search(embeddings, 0.9)] == [1] * 5 + [0] * 3
        with Gallery.open(folder, bundle, read_only=False) as gallery:
            fill(gallery, embeddings[5:7], 5)
            assert [result.total for result in reader.search(embeddings, 0.9)] == [1] * 7 + [0]
            gallery.remove(key="/pictures/0.png")
            fill(gallery, embeddings[7:], 7)
        assert [result.total for result in reader.search(embeddings, 0.9)] == [0] + [1] * 7
        assert len(reader) == 7


def test_a_reader_that_may_not_write_tries_again_when_the_file_was_in_the_way(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, embeddings = tmp_path / "idx", vectors(0, 3)
    with Gallery.create(folder, bundle) as gallery:
        fill(gallery, embeddings)
    monkeypatch.setattr(database, "_writable", lambda path: False)
    data = (folder / DATABASE).read_bytes()
    with Gallery.open(folder, bundle) as reader:
        for between in (None, data[:5000]):
            (folder / DATABASE).unlink() if between is None else (folder / DATABASE).write_bytes(between)
            with pytest.raises(GalleryError):
                reader.search(embeddings, 0.9)
            (folder / DATABASE).write_bytes(data)
            assert [result.total for result in reader.search(embeddings, 0.9)] == [1] * 3
