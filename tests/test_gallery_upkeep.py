"""What may happen to an index from outside: its folder replaced, its process killed, its disk full or without hard links."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lcmem_onnx.runtime.errors import GalleryError, GalleryMismatchError
from lcmem_onnx.runtime.gallery import Entry, Gallery
from lcmem_onnx.runtime.gallery.search import hits, searcher
from lcmem_onnx.runtime.gallery.search.hnsw import MANIFEST, graph_there
from lcmem_onnx.runtime.gallery.storage import database
from lcmem_onnx.runtime.gallery.storage.leftovers import PREFIX, remove_leftovers
from lcmem_onnx.runtime.gallery.storage.locking import WriterLock
from lcmem_onnx.runtime.gallery.storage.records import EMPTY, row_digest, row_digests
from lcmem_onnx.runtime.model.bundle import Bundle, Threshold
from lcmem_onnx.runtime.model.head import Floats, Head

FEATURES = 32


@pytest.fixture
def bundle() -> Bundle:
    head = Head(-np.random.default_rng(3).exponential(5.0, FEATURES).astype(np.float32), 6.0)
    return Bundle(Path(), "test", 64, FEATURES, head, Threshold(0.5, "test"), {}, "f" * 64, demonstration=True, manifest={})


def vectors(seed: int, count: int) -> Floats:
    return np.random.default_rng(seed).random((count, FEATURES), dtype=np.float32)


def made(folder: Path, bundle: Bundle, embeddings: Floats, prefix: str = "", **whose: str) -> Path:
    with Gallery.create(folder, bundle) as gallery:
        gallery.add_all(
            Entry(f"/{prefix}{number}.png", number.to_bytes(32, "big"), 1, {0: one}, **whose)
            for number, one in enumerate(embeddings)
        )
    return folder


@pytest.mark.parametrize("how", ["exact", "hnsw"])
def test_a_reader_goes_on_with_the_index_that_took_its_folder_s_place(how: str, bundle: Bundle, tmp_path: Path) -> None:
    """As many vectors under the same ids, so that nothing but the file itself tells one from the other."""
    folder = made(tmp_path / "idx", bundle, vectors(0, 50), "old")
    other = made(tmp_path / "other", bundle, vectors(1, 50), "new")
    told: list[str] = []
    with Gallery.open(folder, bundle, warn=told.append) as gallery:
        assert gallery.search(vectors(0, 1), 0.9, how=how)[0].matches[0].key == "/old0.png"
        folder.rename(tmp_path / "away")
        with pytest.raises(GalleryError, match="was moved or removed while it was open"):
            gallery.search(vectors(0, 1), 0.9, how=how)
        other.rename(folder)
        assert gallery.search(vectors(0, 1), 0.9, how=how)[0].total == 0
        assert gallery.search(vectors(1, 1), 0.9, how=how)[0].matches[0].key == "/new0.png"
    assert sum("was replaced by another index" in line for line in told) == 1


def test_a_reader_refuses_the_index_of_another_bundle_that_took_its_folder_s_place(bundle: Bundle, tmp_path: Path) -> None:
    """Each time that it is asked; and goes on as soon as a fitting one is there."""
    folder = made(tmp_path / "idx", bundle, vectors(0, 5))
    other = made(tmp_path / "other", replace(bundle, fingerprint="0" * 64), vectors(0, 5))
    with Gallery.open(folder, bundle) as gallery:
        gallery.search(vectors(0, 1), 0.9)
        folder.rename(tmp_path / "away")
        other.rename(folder)
        for _ in range(3):
            with pytest.raises(GalleryMismatchError, match="was made with another model"):
                gallery.search(vectors(0, 1), 0.9)
        folder.rename(other)
        (tmp_path / "away").rename(folder)
        assert gallery.search(vectors(0, 1), 0.9)[0].total == 1


def test_a_file_that_is_copied_because_it_is_opened_for_writing_is_no_other_index(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As layered file systems of containers do it: the copy may have another inode."""
    folder = made(tmp_path / "idx", bundle, vectors(0, 3))
    connect = database._connect

    def copying(path: Path, **how: bool) -> sqlite3.Connection:
        monkeypatch.setattr(database, "_connect", connect)
        connection = connect(path, **how)
        shutil.copy(path, copy := tmp_path / "copy")
        copy.rename(path)
        return connection

    monkeypatch.setattr(database, "_connect", copying)
    with Gallery.open(folder, bundle, read_only=False) as gallery:
        gallery.remove(key="/0.png")
    with Gallery.open(folder, bundle) as gallery:
        assert len(gallery) == 2


@pytest.mark.skipif(os.name != "posix", reason="flock")
def test_a_file_system_without_locks_is_named_as_such(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    folder = made(tmp_path / "idx", bundle, vectors(0, 3))
    monkeypatch.setattr("lcmem_onnx.runtime.system.file_lock.fcntl.flock", no_locks)
    with pytest.raises(GalleryError, match="cannot be locked"):
        Gallery.open(folder, bundle, read_only=False)
    with Gallery.open(folder, bundle) as gallery:
        assert len(gallery) == 3


def test_the_nearest_of_a_group_is_found_beyond_others_and_beyond_what_is_newer_than_the_graph(
    bundle: Bundle, tmp_path: Path
) -> None:
    """All that the graph finds first is of another group, and the group has a far vector that is newer than the graph."""
    crowd = np.clip(0.5 + 1e-3 * vectors(0, 300), 0, 1)
    near, far, query = (np.full((1, FEATURES), value, np.float32) for value in (0.6, 0.9, 0.5))
    folder = made(tmp_path / "idx", bundle, crowd, gallery="crowd")
    with Gallery.open(folder, bundle, read_only=False) as gallery:
        gallery.add(Entry("/near.png", b"n" * 32, 1, {0: near[0]}, gallery="group"))
        gallery.update_caches(graph=True)
        gallery.add(Entry("/far.png", b"f" * 32, 1, {0: far[0]}, gallery="group"))
        for how in ("exact", "hnsw"):
            nearest = gallery.search(query, 0.999, how=how, galleries=["group"])[0].nearest
            assert nearest is not None
            assert nearest.key == "/near.png"


def test_a_match_beyond_the_unit_range_is_found_through_the_graph(bundle: Bundle, tmp_path: Path) -> None:
    """d1 of 3 and a squared distance of 9, where 6 is the radius at which the graph's search ends."""
    flat_head = replace(bundle, head=Head(np.full(FEATURES, -1, np.float32), 6.0))
    crowd = 0.5 + 1e-3 * vectors(0, 200)
    match = np.eye(1, FEATURES, dtype=np.float32) * 3
    folder = made(tmp_path / "idx", flat_head, np.concatenate([crowd, match]))
    with Gallery.open(folder, flat_head, read_only=False) as gallery:
        gallery.update_caches(graph=True)
        for how in ("exact", "hnsw"):
            result = gallery.search(np.zeros((1, FEATURES), np.float32), 0.5, how=how)[0]
            assert [hit.key for hit in result.matches] == ["/200.png"]
            assert result.complete


@pytest.mark.parametrize("crowd", [100, 2000])
def test_a_graph_that_lacks_a_match_proves_nothing(crowd: int, bundle: Bundle, tmp_path: Path) -> None:
    """The search reaches the radius beyond which nothing can match, or all of the graph, and the graph lacks the match all the
    same, as hnswlib's graphs lack some: links to a vector are lost where others are nearer."""
    embeddings = vectors(0, crowd)
    folder = made(tmp_path / "idx", bundle, embeddings)
    query = embeddings[7:8]
    with Gallery.open(folder, bundle, read_only=False) as gallery:
        gallery.update_caches(graph=True)
        graph = gallery._searcher._graph
        assert graph is not None
        graph.erase(np.array([8]))  # ids begin with 1
        _, distances = graph.nearest(bundle.head.weighted(query[0]), searcher.FIRST_CANDIDATES)
        radius = bundle.head.radius(0.5, query[0], embeddings.min(axis=0), embeddings.max(axis=0))
        assert len(distances) == len(graph) or distances[-1] > radius
        lacking = gallery.search(query, 0.5, how="hnsw")[0]
        assert (lacking.matches, lacking.complete) == ((), False)
        exact = gallery.search(query, 0.5, how="exact")[0]
        assert ([hit.key for hit in exact.matches], exact.complete) == (["/7.png"], True)
        whole = gallery.search(embeddings[9:10], 0.5, how="hnsw")[0]
        assert ([hit.key for hit in whole.matches], whole.complete) == (["/9.png"], False)
        recall = gallery.verify(0.5, sample=crowd).recall
        assert recall is not None
        assert (recall.queries - recall.found, recall.proven) == (1, 0)


def test_an_export_does_not_mix_two_indexes(bundle: Bundle, tmp_path: Path) -> None:
    folder, other = made(tmp_path / "idx", bundle, vectors(0, 600)), made(tmp_path / "other", bundle, vectors(1, 600))
    with Gallery.open(folder, bundle) as gallery:
        entries = gallery.entries()
        next(entries)
        folder.rename(tmp_path / "away")
        other.rename(folder)
        with pytest.raises(GalleryError, match="was replaced by another index while it was being read"):
            list(entries)


def test_a_writer_does_not_go_on_in_another_index(bundle: Bundle, tmp_path: Path) -> None:
    folder = made(tmp_path / "idx", bundle, vectors(0, 3))
    other = made(tmp_path / "other", bundle, vectors(1, 3))
    with Gallery.open(folder, bundle, read_only=False) as gallery:
        folder.rename(tmp_path / "away")
        other.rename(folder)
        with pytest.raises(GalleryError, match="was replaced by another index while it was open for writing"):
            gallery.remove(key="/0.png")
    with Gallery.open(folder, bundle) as gallery:
        assert len(gallery) == 3


def test_a_wanted_graph_is_still_wanted_after_a_kill_while_it_is_made_again(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "idx", bundle, vectors(0, 60))

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    gallery = Gallery.open(folder, bundle, read_only=False)
    gallery.update_caches(graph=True)
    with monkeypatch.context() as patch:
        patch.setattr(searcher, "save_graph", killed)
        for number in range(30):
            gallery.remove(key=f"/{number}.png", compact=False)
        with pytest.raises(Killed):
            gallery.compact()
    gallery.close()
    assert not list(folder.glob("graph-*.hnsw"))
    assert (folder / MANIFEST).exists()
    with Gallery.open(folder, bundle, read_only=False) as gallery:  # which finishes what was interrupted
        assert list(folder.glob("graph-*.hnsw"))
        assert len(gallery) == 30
        assert gallery.search(vectors(0, 60)[59:], 0.9, how="hnsw")[0].matches[0].key == "/59.png"
    assert graph_there(folder)


def test_a_removal_that_fails_says_that_nothing_was_removed(bundle: Bundle, tmp_path: Path) -> None:
    folder = made(tmp_path / "idx", bundle, vectors(0, 3))
    with Gallery.open(folder, bundle, read_only=False) as gallery:
        pages = gallery._store.connection.execute("PRAGMA page_count").fetchone()[0]
        # SQLite says SQLITE_FULL at its own limit as it does on a full disk.
        gallery._store.connection.execute(f"PRAGMA max_page_count = {pages}")
        gallery._store.connection.execute(
            "CREATE TEMP TRIGGER fill AFTER DELETE ON main.pictures BEGIN INSERT INTO meta VALUES ('x', zeroblob(1000000)); END"
        )
        with pytest.raises(GalleryError, match=r"^nothing was removed: the disk of .* is full"):
            gallery.remove(key="/0.png")
        assert len(gallery) == 3


def test_a_removal_of_which_the_disk_keeps_traces_says_so(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(store: object) -> None:
        raise GalleryError("the disk is full")

    folder = made(tmp_path / "idx", bundle, vectors(0, 3))
    with Gallery.open(folder, bundle, read_only=False) as gallery:
        monkeypatch.setattr("lcmem_onnx.runtime.gallery.gallery.compact_database", full)
        with pytest.raises(GalleryError, match="1 images were removed from all results, but not yet erased from the disk"):
            gallery.remove(key="/0.png")
        assert len(gallery) == 2


def test_what_a_killed_scan_left_is_removed_by_the_next(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else: not the gallery of a living process, not one that is being made, nobody else's folder, no link, no index
    that a user keeps in the temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = (
        "import sys, tempfile; from pathlib import Path; from lcmem_onnx.runtime.gallery.storage.locking import WriterLock\n"
        "lock = WriterLock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    left, alive, young, open_to_all, link = (
        tmp_path / f"{PREFIX}{name}" for name in ("left", "alive", "young", "open_to_all", "link")
    )
    outside, kept = tmp_path / "outside", tmp_path / "lcmem-gallery-hospital"
    for folder in (left, alive, young, open_to_all, outside, kept):
        folder.mkdir(mode=0o755 if folder == open_to_all else 0o700)
        (folder / "gallery.sqlite").write_bytes(b"an embedding")
    link.symlink_to(outside)
    processes = []
    for folder in (left, alive):
        process = subprocess.Popen([sys.executable, "-c", program, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        processes.append(process)
    processes[0].kill()
    processes[0].communicate()
    hour_ago = time.time() - 3600
    for folder in (left, alive, open_to_all, outside, kept):
        os.utime(folder, (hour_ago, hour_ago))
    try:
        with Gallery.temporary(bundle) as gallery:
            assert not left.exists()
            assert gallery.folder.exists()
            assert all((folder / "gallery.sqlite").exists() for folder in (alive, young, open_to_all, outside, kept))
            os.utime(gallery.folder, (hour_ago, hour_ago))
            remove_leftovers()
            assert gallery.folder.exists()
    finally:
        processes[1].communicate(b"")


def test_an_index_can_be_made_where_there_are_no_hard_links(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(database.os, "link", no_links)
    folder = made(tmp_path / "idx", bundle, vectors(0, 3))
    with Gallery.open(folder, bundle) as gallery:
        assert len(gallery) == 3
    draft = tmp_path / "draft"
    draft.write_bytes(b"another process's")
    with pytest.raises(FileExistsError):
        database._move_into_place(draft, folder / database.DATABASE)
    with Gallery.open(folder, bundle) as gallery:
        assert len(gallery) == 3
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    lock = WriterLock(fresh)
    with pytest.raises(GalleryError, match="is being written by"):
        Gallery.create(fresh, bundle)
    lock.release()
    assert not [*folder.glob(".gallery*"), *fresh.glob(".gallery*")]


@pytest.mark.parametrize("many", [2, 5000])
def test_hits_people_and_totals_are_the_same_in_however_many_look_ups(
    many: int, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three names for each vector, of two patients; `many` at 2 takes the way of vectors that thousands of images have."""
    monkeypatch.setattr("lcmem_onnx.runtime.gallery.storage.store.MANY_ROWS", many)
    monkeypatch.setattr(hits, "FIRST", 4)
    embeddings = np.clip(vectors(0, 1) + np.linspace(0, 1e-3, 40, dtype=np.float32)[:, None], 0, 1)
    folder = tmp_path / "idx"
    with Gallery.create(folder, bundle) as gallery:
        for number, one in enumerate(embeddings):
            for name, patient in (("a", "p1"), ("b", None), ("c", f"q{number}")):
                gallery.add(Entry(f"/{name}{number:02}.png", bytes([number]) * 32, 1, {0: one}, patient=patient))
        for top in (1, 3, 7, 200):
            result = gallery.search(embeddings[:1], 0.5, top=top)[0]
            assert result.total == 120
            assert [hit.key for hit in result.matches] == [f"/{n}{at:02}.png" for at in range(40) for n in "abc"][:top]
            who = [one.patient or one.best.key for one in result.identities]
            wanted = ["p1", "/b00.png", "q0"] + [name for at in range(1, 40) for name in (f"/b{at:02}.png", f"q{at}")]
            assert who == wanted[:top]


def test_digests_of_many_rows_are_those_of_each() -> None:
    rows = [(f"key-{number}", number, b"x" * number, None) for number in range(300)]
    digests = row_digests(rows)
    assert digests == [row_digest(*row) for row in rows]
    total = sum(int.from_bytes(one, "big") for one in digests) % (1 << 128)
    assert (EMPTY.plus(digests).rows, EMPTY.plus(digests).total) == (300, total)
    assert EMPTY.plus(digests).minus(digests) == EMPTY
    assert EMPTY.plus([b"\xff" * 16] * 3).total == 3 * ((1 << 128) - 1) % (1 << 128)
    assert EMPTY.plus([]) == EMPTY
