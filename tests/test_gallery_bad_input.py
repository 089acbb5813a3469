"""What a gallery says to bad circumstances, and that the data stay."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from lcmem_onnx.runtime.errors import GalleryError
from lcmem_onnx.runtime.gallery import Entry, Gallery
from lcmem_onnx.runtime.model.bundle import Bundle, Threshold
from lcmem_onnx.runtime.model.head import Floats, Head

FEATURES = 32


def make_bundle() -> Bundle:
    head = Head(np.full(FEATURES, -6.0, np.float32), 6.0)
    return Bundle(Path(), "test", 64, FEATURES, head, Threshold(0.5, "test"), {}, "f" * 64, demonstration=True, manifest={})


def vectors(seed: int, count: int) -> Floats:
    return np.random.default_rng(seed).random((count, FEATURES), dtype=np.float32)


def entry(number: int, embedding: Floats) -> Entry:
    return Entry(f"/pictures/{number}.png", number.to_bytes(32, "big"), 1, {0: embedding})


def test_a_limit_on_the_size_of_files_is_met_with_a_message_and_the_data_stay(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for a disk that fills up, where no small file system can be mounted."""
    with Gallery.create(tmp_path / "idx", make_bundle()) as gallery:
        gallery.add_all(entry(number, one) for number, one in enumerate(vectors(0, 20)))
    program = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_gallery_bad_input as t
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with t.Gallery.open({str(tmp_path / "idx")!r}, t.make_bundle(), read_only=False) as gallery:
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    try:
        gallery.add_all(t.entry(number, one) for number, one in enumerate(t.vectors(1, 20_000), 20))
    except t.GalleryError as error:
        print(error)
    print(len(gallery))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 2, said
    assert "full" in said[0] or "cannot be used" in said[0]
    assert said[1] == "20"
    with Gallery.open(tmp_path / "idx", make_bundle()) as gallery:
        assert [result.total for result in gallery.search(vectors(0, 20), 0.9)] == [1] * 20


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    Gallery.create(tmp_path / "idx", make_bundle()).close()
    (tmp_path / "idx" / "writer.lock").unlink()
    (tmp_path / "idx").chmod(0o555)
    try:
        with pytest.raises(GalleryError, match="is not writable"):
            Gallery.open(tmp_path / "idx", make_bundle(), read_only=False)
    finally:
        (tmp_path / "idx").chmod(0o755)


def test_a_writer_s_lock_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    Gallery.create(tmp_path / "idx", make_bundle()).close()
    (tmp_path / "idx" / "writer.lock").unlink()
    (tmp_path / "idx" / "writer.lock").mkdir()
    with pytest.raises(GalleryError, match="is not writable"):
        Gallery.open(tmp_path / "idx", make_bundle(), read_only=False)


def test_many_images_of_one_embedding_are_one_vector_and_all_are_found(tmp_path: Path) -> None:
    """Ten million would make hnswlib's graph lose them; here they are rows of one vector, in results and in the file's size."""
    count, one = 30_000, vectors(0, 1)[0]
    with Gallery.create(tmp_path / "idx", make_bundle()) as gallery:
        gallery.add(entry(count, vectors(1, 1)[0]))
        gallery.add_all(entry(number, one) for number in range(count))
        gallery.update_caches(graph=True)
        for how in ("exact", "hnsw"):
            (result,) = gallery.search(one[None], 0.9, how=how, top=7)
            assert (result.total, len(result.matches), len(result.identities)) == (count, 7, 7)
        assert gallery.describe()["distinct_vectors"] == 2
        assert gallery.remove(key="/pictures/123.png") == 1
        assert gallery.search(one[None], 0.9)[0].total == count - 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_embedding_among_many_refuses_all_of_them(value: float, tmp_path: Path) -> None:
    embeddings = vectors(0, 5)
    embeddings[3, 7] = value
    with Gallery.create(tmp_path / "idx", make_bundle()) as gallery:
        with pytest.raises(GalleryError, match="finite numbers"):
            gallery.add_all(entry(number, one) for number, one in enumerate(embeddings))
        assert len(gallery) == 0
        gallery.add_all(entry(number, one) for number, one in enumerate(embeddings[:3]))
        assert gallery.search(embeddings[:1], 0.9)[0].total == 1


def test_threads_add_search_and_erase_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread's own acknowledged images are found by it at once, and each erased one never again."""
    monkeypatch.setattr("lcmem_onnx.runtime.gallery.search.searcher.UNGRAPHED", 5)
    wrong: list[str] = []
    with Gallery.create(tmp_path / "idx", make_bundle()) as gallery:
        gallery.add_all(entry(number, one) for number, one in enumerate(vectors(99, 50), 10_000))

        def work(thread: int) -> None:
            try:
                for number, one in enumerate(vectors(thread, 12), 100 * thread):
                    gallery.add(entry(number, one))
                    how = "hnsw" if number % 2 else "exact"
                    if gallery.search(one[None], 0.9, how=how)[0].total != 1:
                        wrong.append(f"{number} is not found")
                    if number % 3 == 0:
                        gallery.remove(key=f"/pictures/{number}.png", compact=number % 2 == 0)
                        if gallery.search(one[None], 0.9, how=how)[0].total:
                            wrong.append(f"{number} is still found")
            except Exception as error:  # noqa: BLE001  # a thread's error would be lost
                wrong.append(repr(error))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(gallery) == 50 + 4 * 8
