"""What an audit embedded is there for the next run, and damage to it shows."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import numpy as np
import pytest
from lcmem_onnx.runtime.audit.embedding_cache import Cache, Cached
from lcmem_onnx.runtime.errors import GalleryError

ONE, OTHER = b"1" * 32, b"2" * 32


def frames(seed: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {frame: rng.random((3, 8), dtype=np.float32) for frame in (0, 4)}


def file(seed: int, notes: str = "", patient: str | None = None) -> Cached:
    rng = np.random.default_rng(seed)
    small = {frame: rng.integers(0, 256, (32, 32), dtype=np.uint8) for frame in (0, 4)}
    return Cached(frames(seed), small, notes, patient)


def test_what_was_put_comes_back_in_a_later_run_and_only_for_its_model(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.sqlite"
    with Cache(path, "model", 8) as cache:
        cache.put(ONE, file(1, "overlay"))
        assert cache.known(ONE)
        assert not cache.known(OTHER)
    with Cache(path, "model", 8) as cache:
        assert len(cache) == 1
        kept, put = cache.get(ONE), file(1)
        assert (kept.notes, kept.patient) == ("overlay", None)
        assert kept.embeddings.keys() == kept.thumbnails.keys() == {0, 4}
        for frame, embedding in put.embeddings.items():
            np.testing.assert_array_equal(kept.embeddings[frame], embedding)
            np.testing.assert_array_equal(kept.thumbnails[frame], put.thumbnails[frame])
    with Cache(path, "another model", 8) as cache:
        assert not cache.known(ONE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_patient_is_known_under_the_key_of_its_pseudonym_alone(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.sqlite"
    with Cache(path, "model", 8, "one key") as cache:
        cache.put(ONE, file(1, patient="p"))
        cache.put(OTHER, file(2))
    with Cache(path, "model", 8, "one key") as cache:
        assert cache.get(ONE).patient == "p"
        assert cache.get(OTHER).patient is None
    with Cache(path, "model", 8, "another key") as cache:
        assert not cache.known(ONE)
        assert cache.known(OTHER)
        cache.put(ONE, file(1, patient="q"))
        assert cache.get(ONE).patient == "q"


def test_a_cache_without_thumbnails_is_filled_again(tmp_path: Path) -> None:
    """As version 0.1.0 wrote it."""
    path = tmp_path / "embeddings.sqlite"
    with Cache(path, "model", 8) as cache:
        cache.put(ONE, file(1))
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DROP TABLE frames")
    connection.close()
    with Cache(path, "model", 8) as cache:
        assert not cache.known(ONE)
        cache.put(ONE, file(1))
        assert cache.get(ONE).thumbnails.keys() == {0, 4}


def test_what_was_put_before_an_exception_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Cache(tmp_path / "e.sqlite", "model", 8) as cache:  # noqa: PT012
        cache.put(ONE, file(1))
        raise KeyboardInterrupt
    with Cache(tmp_path / "e.sqlite", "model", 8) as cache:
        assert cache.known(ONE)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE embeddings SET embedding = zeroblob(96) WHERE frame = 4",
        "DELETE FROM embeddings WHERE frame = 4",
        "UPDATE frames SET thumbnail = zeroblob(1024) WHERE frame = 4",
        "UPDATE frames SET patient = ':p' WHERE frame = 4",
        "DELETE FROM frames WHERE frame = 0",
    ],
)
def test_a_changed_or_lost_row_is_damage(tmp_path: Path, change: str) -> None:
    path = tmp_path / "e.sqlite"
    with Cache(path, "model", 8) as cache:
        cache.put(ONE, file(1))
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(change)
    connection.close()
    with Cache(path, "model", 8) as cache, pytest.raises(GalleryError, match="damaged"):
        cache.get(ONE)


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "e.sqlite").write_text("years of work, but no database, and long enough to be looked at" * 20)
    with pytest.raises(GalleryError, match="cannot be used"):
        Cache(tmp_path / "e.sqlite", "model", 8)
