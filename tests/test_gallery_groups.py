"""Groups, patients, erasure and older formats: who is found, who is gone, and what an index from before becomes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lcmem_onnx.runtime.errors import GalleryError, KeyConflictError, UsageError
from lcmem_onnx.runtime.gallery import Added, Entry, Gallery
from lcmem_onnx.runtime.gallery.storage.records import EMPTY, row_digest
from lcmem_onnx.runtime.gallery.storage.schema import DATABASE, VECTORS
from lcmem_onnx.runtime.model.bundle import Bundle, Threshold
from lcmem_onnx.runtime.model.head import Floats, Head
from lcmem_onnx.runtime.privacy import SiteKey

FEATURES = 32


@pytest.fixture
def bundle() -> Bundle:
    head = Head(np.full(FEATURES, -6.0, np.float32), 6.0)
    return Bundle(Path(), "test", 64, FEATURES, head, Threshold(0.5, "test"), {}, "f" * 64, demonstration=True, manifest={})


def vectors(seed: int, count: int) -> Floats:
    return np.random.default_rng(seed).random((count, FEATURES), dtype=np.float32)


def content(number: int) -> bytes:
    return number.to_bytes(32, "big")


def entry(number: int, embedding: Floats, **whose: str) -> Entry:
    return Entry(f"/pictures/{number}.png", content(number), 1, {0: embedding}, **whose)  # type: ignore[arg-type]


def format_2(folder: Path, embeddings: Floats) -> None:
    """An index as version 2 wrote it."""
    folder.mkdir()
    connection = sqlite3.connect(folder / DATABASE)
    import hashlib

    with connection:
        connection.executescript(
            f"""CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID; {VECTORS}
            CREATE TABLE pictures (id INTEGER PRIMARY KEY, key TEXT NOT NULL, frame INTEGER NOT NULL, frames INTEGER NOT NULL,
                content BLOB NOT NULL, vector INTEGER NOT NULL REFERENCES vectors(id), UNIQUE (key, frame));
            CREATE INDEX pictures_by_content ON pictures (content);
            CREATE INDEX pictures_by_vector ON pictures (vector);"""
        )
        rows, numbers = [], []
        for number, embedding in enumerate(embeddings, 1):
            digest = hashlib.sha256(embedding.tobytes()).digest()
            connection.execute("INSERT INTO vectors VALUES (?, ?, ?)", (number, digest, embedding.tobytes()))
            row = (f"/pictures/{number - 1}.png", 0, 1, content(number - 1), number)
            connection.execute("INSERT INTO pictures (key, frame, frames, content, vector) VALUES (?, ?, ?, ?, ?)", row)
            rows.append(row_digest(*row))
            numbers.append(row_digest(number, digest))
        facts = {"format_version": "2", "fingerprint": "f" * 64, "features": str(FEATURES), "created": "2026-01-01T00:00:00+00:00"}
        facts |= {"pictures": str(EMPTY.plus(rows)), "vectors": str(EMPTY.plus(numbers))}
        connection.executemany("INSERT INTO meta VALUES (?, ?)", facts.items())
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()


def version_of(folder: Path) -> str:
    connection = sqlite3.connect(folder / DATABASE)
    (version,) = connection.execute("SELECT value FROM meta WHERE name = 'format_version'").fetchone()
    connection.close()
    return str(version)


def test_an_index_of_format_2_is_read_as_it_is_and_migrated_by_its_writer(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "idx"
    format_2(folder, vectors(0, 5))
    with Gallery.open(folder, bundle) as gallery:
        (result,) = gallery.search(vectors(0, 1), 0.5, galleries=["default"])
        assert (result.matches[0].key, result.matches[0].gallery, result.matches[0].patient) == ("/pictures/0.png", "default", None)
        assert gallery.setting("x") is None
        assert gallery.describe()["format_version"] == 2
    assert version_of(folder) == "2"
    with Gallery.open(folder, bundle, read_only=False) as gallery:
        gallery.add(entry(9, vectors(9, 1)[0], patient="p", gallery="b"))
        gallery.set_setting("x", "1")
    assert version_of(folder) == "4"
    with Gallery.open(folder, bundle) as gallery:
        assert gallery.galleries() == ["b", "default"]
        assert [gallery.search(vectors(seed, 1), 0.5)[0].total for seed in (0, 9)] == [1, 1]
        assert gallery.setting("x") == "1"


def test_a_damaged_index_of_format_2_is_not_migrated(bundle: Bundle, tmp_path: Path) -> None:
    format_2(tmp_path / "idx", vectors(0, 5))
    connection = sqlite3.connect(tmp_path / "idx" / DATABASE)
    with connection:
        connection.execute("DELETE FROM pictures WHERE id = 3")
    connection.close()
    with pytest.raises(GalleryError, match="is damaged"):
        Gallery.open(tmp_path / "idx", bundle, read_only=False)
    assert version_of(tmp_path / "idx") == "2"


@pytest.mark.parametrize("read_only", [True, False])
def test_an_index_of_a_newer_version_is_refused(read_only: bool, bundle: Bundle, tmp_path: Path) -> None:
    Gallery.create(tmp_path / "idx", bundle).close()
    connection = sqlite3.connect(tmp_path / "idx" / DATABASE)
    with connection:
        connection.execute("UPDATE meta SET value = '5' WHERE name = 'format_version'")
    connection.close()
    with pytest.raises(GalleryError, match="format 5.*newer version made it"):
        Gallery.open(tmp_path / "idx", bundle, read_only=read_only)


@pytest.mark.parametrize("how", ["exact", "hnsw"])
def test_galleries_of_one_index_are_searched_apart(how: str, bundle: Bundle, tmp_path: Path) -> None:
    shared, one, other = vectors(0, 3)
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        for name, own in (("one", one), ("other", other)):
            gallery.add(Entry(f"/{name}/shared.png", content(0), 1, {0: shared}, gallery=name))
            gallery.add(Entry("/own.png", own.tobytes()[:32], 1, {0: own}, gallery=name))  # the same key in both: two images

        def found(query: Floats, *galleries: str) -> list[str]:
            (result,) = gallery.search(query[None], 0.5, how=how, galleries=galleries or None)
            assert result.total == len(result.matches)
            assert result.nearest is not None
            assert not galleries or result.nearest.gallery in galleries
            return [hit.gallery for hit in result.matches]

        assert found(shared) == ["one", "other"]
        assert found(shared, "other") == ["other"]
        assert found(own, "one") == []
        assert found(own, "one", "other") == ["other"]
        with pytest.raises(UsageError, match="no gallery 'onee': use one of one, other"):
            gallery.search(shared[None], 0.5, galleries=["onee"])
        with pytest.raises(UsageError, match="empty list"):
            gallery.search(shared[None], 0.5, galleries=[])
        assert gallery.status("/own.png", content(0), "one") is Added.COPY
        with pytest.raises(KeyConflictError):
            gallery.add(Entry("/own.png", content(0), 1, {0: shared}, gallery="one"))


def test_results_by_identity_hold_each_patient_once_by_the_best_image(bundle: Bundle, tmp_path: Path) -> None:
    query = vectors(0, 1)[0]
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        for number, patient in enumerate(["a", "a", "b", "a", None, None, "c"]):
            near = np.clip(query + number * 1e-3, 0, 1).astype(np.float32)
            gallery.add(entry(number, near if patient != "c" else 1 - query, **({"patient": patient} if patient else {})))
        gallery.add_copy("/again.png", content(2))
        (result,) = gallery.search(query[None], 0.5, top=10)
        assert [(one.patient, one.best.key) for one in result.identities] == [
            ("a", "/pictures/0.png"), ("b", "/pictures/2.png"), (None, "/pictures/4.png"), (None, "/pictures/5.png"),
        ]  # fmt: skip
        assert result.total == 7
        (result,) = gallery.search(query[None], 0.5, top=2)
        assert [one.patient for one in result.identities] == ["a", "b"]
        assert [one.score for one in result.identities] == [
            result.matches[0].score,
            pytest.approx(result.matches[0].score, abs=0.05),
        ]


@pytest.mark.parametrize("how", ["exact", "hnsw"])
def test_what_is_removed_is_in_no_result_and_not_on_the_disk(how: str, bundle: Bundle, tmp_path: Path) -> None:
    embeddings = vectors(0, 300)
    folder = tmp_path / "idx"
    with Gallery.create(folder, bundle) as gallery, Gallery.open(folder, bundle) as reader:
        gallery.add_all(entry(number, one, patient=f"patient-{number // 3}", study="s1") for number, one in enumerate(embeddings))
        gallery.add(Entry("/kept-copy.png", content(3), 1, {0: embeddings[3]}, patient="other"))
        gallery.search(embeddings[:1], 0.5, how=how)
        reader.search(embeddings[:1], 0.5, how=how)
        assert gallery.remove(patient="patient-1") == 3
        for searched in (gallery, reader):
            assert [result.total for result in searched.search(embeddings[3:6], 0.5, how=how)] == [1, 0, 0]
            assert len(searched) == 298
        assert gallery.remove(key="/pictures/0.png") == 1
        assert gallery.remove(key="/pictures/0.png") == 0
        assert gallery.remove(patient="patient-9", study="s2") == 0
        with pytest.raises(UsageError, match="nothing selected to remove"):
            gallery.remove()
        reader.search(embeddings[:1], 0.5, how=how)
        data = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        for place in (4, 5, 0):
            for trace in (embeddings[place].tobytes(), bundle.head.weighted(embeddings[place]).tobytes(), f"/{place}.png".encode()):
                assert trace not in data, place
        assert b"patient-1\0" not in data
        assert embeddings[3].tobytes() in data
        assert gallery.remove(study="s1") == 296
        assert gallery.search(embeddings[3:4], 0.5, how=how)[0].matches[0].key == "/kept-copy.png"
        assert gallery.remove(gallery="default") == 1
        assert gallery.search(embeddings[3:4], 0.5, how=how)[0].nearest is None
        gallery.add(entry(0, embeddings[0]))
        assert reader.search(embeddings[:1], 0.5, how=how)[0].total == 1


def test_a_compaction_that_was_interrupted_is_finished_by_the_next_writer(bundle: Bundle, tmp_path: Path) -> None:
    embeddings = vectors(0, 3)
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        gallery.add_all(entry(number, one) for number, one in enumerate(embeddings))
        assert gallery.remove(key="/pictures/1.png", compact=False) == 1
        assert gallery.search(embeddings[1:2], 0.5)[0].total == 0
    with Gallery.open(tmp_path / "idx", bundle, read_only=False) as gallery:
        assert embeddings[1].tobytes() not in b"".join(path.read_bytes() for path in (tmp_path / "idx").iterdir())
        assert gallery._store.meta("compaction_due") == "0"


def test_settings_are_kept_and_a_changed_one_is_noticed(bundle: Bundle, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        gallery.set_setting("threshold", "0.75")
        gallery.set_setting("other", "x")
        gallery.set_setting("other", None)
    with Gallery.open(tmp_path / "idx", bundle) as gallery:
        assert (gallery.setting("threshold"), gallery.setting("other")) == ("0.75", None)
        with pytest.raises(GalleryError, match="is not writable"):
            gallery.set_setting("threshold", "0.1")
    for statement in ("UPDATE settings SET value = '0.95'", "DELETE FROM settings"):
        connection = sqlite3.connect(tmp_path / "idx" / DATABASE)
        with connection:
            connection.execute(statement)
        connection.close()
        with Gallery.open(tmp_path / "idx", bundle) as gallery, pytest.raises(GalleryError, match="settings do not match"):
            gallery.setting("threshold")


def test_entries_give_back_what_was_added(bundle: Bundle, tmp_path: Path) -> None:
    embeddings = vectors(0, 700)
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        gallery.add_all(
            entry(number, one, gallery=f"g{number % 2}", patient="p", study="s") for number, one in enumerate(embeddings)
        )
        records = list(gallery.entries())
        assert [record.key for record in records] == [f"/pictures/{number}.png" for number in range(700)]
        np.testing.assert_array_equal([record.embedding for record in records], embeddings)
        assert {(record.frame, record.frames, record.patient, record.study) for record in records} == {(0, 1, "p", "s")}
        assert [record.content for record in gallery.entries(["g1"])] == [content(number) for number in range(1, 700, 2)]


def test_a_second_writer_is_refused_with_the_first_one_s_number_and_readers_are_not(bundle: Bundle, tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_gallery_groups as t
gallery = t.Gallery.create({str(tmp_path / "idx")!r}, t.bundle.__wrapped__())
gallery.add(t.entry(0, t.vectors(0, 1)[0]))
print("ready", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(GalleryError, match=f"written by process {process.pid}"):
            Gallery.open(tmp_path / "idx", bundle, read_only=False)
        with Gallery.open(tmp_path / "idx", bundle) as reader:
            assert reader.search(vectors(0, 1), 0.5)[0].total == 1
        process.kill()  # the lock goes with its holder
        process.wait()
        with Gallery.open(tmp_path / "idx", bundle, read_only=False) as gallery:
            assert len(gallery) == 1
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


# -- site keys ------------------------------------------------------------------------------------------------------


def test_pseudonyms_are_hmacs_that_the_key_decides(tmp_path: Path) -> None:
    import hashlib
    import hmac

    key = SiteKey.create(tmp_path / "deep" / "site.key")
    assert (tmp_path / "deep" / "site.key").stat().st_mode & 0o777 == 0o600
    assert SiteKey.open(tmp_path / "deep" / "site.key") == key
    assert key.pseudonym("study", "1.2") == hmac.new(key.secret, b"study\x001.2", hashlib.sha256).hexdigest()
    assert key.patient("7 ") == key.patient("7", "") != key.patient("7", "St. Mary") != key.study("7")
    assert key.patient("7") != SiteKey.passing().patient("7")
    assert key.secret.hex() not in repr(key)
    with pytest.raises(UsageError, match="never overwritten"):
        SiteKey.create(tmp_path / "deep" / "site.key")


def test_a_user_s_own_site_key_is_made_once_and_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LCMEM_ONNX_SITE_KEY")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert SiteKey.open() == SiteKey.open()
    assert (tmp_path / "data" / "lcmem-onnx" / "site.key").exists()
    monkeypatch.setenv("LCMEM_ONNX_SITE_KEY", str(tmp_path / "mistyped"))
    with pytest.raises(UsageError, match="cannot be read"):
        SiteKey.open()
    (tmp_path / "mistyped").write_text("short")
    (tmp_path / "mistyped").chmod(0o600)
    with pytest.raises(UsageError, match="is no site key"):
        SiteKey.open()
    os.chmod(tmp_path / "mistyped", 0o604)
    with pytest.raises(UsageError, match="read by anybody"):
        SiteKey.open()


def test_an_index_refuses_another_site_key(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        name = gallery.site_key().name
    SiteKey.create(tmp_path / "other.key")
    monkeypatch.setenv("LCMEM_ONNX_SITE_KEY", str(tmp_path / "other.key"))
    with Gallery.open(tmp_path / "idx", bundle) as gallery, pytest.raises(UsageError, match=f"another site key \\({name}"):
        gallery.site_key()


def test_an_empty_condition_removes_nothing_rather_than_all(bundle: Bundle, tmp_path: Path) -> None:
    """As a script's unset variable gives it: `--patient-pseudonym "$WHO" --gallery ward-3` must not remove all of the ward."""
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        gallery.add_all(entry(number, one, patient="p") for number, one in enumerate(vectors(0, 3)))
        for condition in ({"key": ""}, {"patient": ""}, {"study": ""}):
            assert gallery.remove(gallery="default", **condition) == 0
            assert gallery.remove(**condition) == 0
        assert len(gallery) == 3


def test_texts_of_any_kind_are_kept_as_plain_ones(bundle: Bundle, tmp_path: Path) -> None:
    """The digest of a row is of how it is written: of a `numpy.str_` or an enumeration's member that would be another."""
    one = vectors(0, 1)[0]
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        gallery.add(Entry(np.str_("/a.png"), content(0), 1, {0: one}, gallery=np.str_("ward"), patient=np.str_("p")))
        gallery.add_copy(np.str_("/b.png"), content(0), np.str_("ward"))
    with Gallery.open(tmp_path / "idx", bundle, read_only=False) as gallery:
        assert [record.key for record in gallery.entries(["ward"])] == ["/a.png", "/b.png"]
        assert gallery.remove(patient="p") == 2
