"""`index upgrade`: rows of an older reader or another bundle made again, in one step, whatever happens on the way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lcmem_onnx.cli import main
from lcmem_onnx.runtime.calibration.threshold import calibrate, store_calibration, stored_calibration
from lcmem_onnx.runtime.errors import GalleryError, GalleryMismatchError, UsageError
from lcmem_onnx.runtime.gallery import Entry, Gallery
from lcmem_onnx.runtime.gallery.search.hnsw import graph_there
from lcmem_onnx.runtime.gallery.storage.locking import WriterLock
from lcmem_onnx.runtime.gallery.storage.records import EMPTY, row_digest
from lcmem_onnx.runtime.gallery.storage.schema import DATABASE, PICTURE_COLUMNS
from lcmem_onnx.runtime.images.reader_version import READER_VERSION
from lcmem_onnx.runtime.index_upgrade import Missing, Upgraded, upgrade_index
from lcmem_onnx.runtime.model.bundle import BUNDLED, Bundle, open_bundle
from lcmem_onnx.runtime.privacy import SiteKey
from lcmem_onnx.runtime.results import EmbeddedFile
from lcmem_onnx.runtime.screening import Screener
from PIL import Image
from pydicom.data import get_testdata_file

GOLDEN = Path(__file__).parent / "golden" / "0.1.0"
PATIENT, STUDY = "ab" * 32, "cd" * 32
PROGRAM = """
import os, signal, sqlite3, sys
from pathlib import Path
from lcmem_onnx.runtime import index_upgrade
from lcmem_onnx.runtime.gallery import gallery, outdated
from lcmem_onnx.runtime.gallery.storage import erasure, staging
folder, bundle, at = sys.argv[1:]

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def after(count, function):
    calls = 0
    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        return die() if calls > count else function(*args, **kwargs)
    return counted

if at.startswith("staging"):
    staging.Staging.put = after(int(at.split()[1]), staging.Staging.put)
elif at == "in the transaction":
    outdated._insert = after(4, outdated._insert)
elif at == "at its end":
    outdated._without_unused = die
elif at == "after the transaction":
    index_upgrade.remove_staging = die
elif at == "compacting":
    gallery.compact_database = die
elif at == "after compacting":
    gallery.mark_compacted = die
screener = index_upgrade.Screener(bundle, variant="fp32", threads=1)
print(index_upgrade.upgrade_index(Path(folder), screener).resumed)
"""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(GOLDEN / "bundle")


@pytest.fixture(scope="module")
def screener(bundle: Bundle) -> Iterator[Screener]:
    with contextlib.closing(Screener(bundle, variant="fp32", threads=1)) as screener:
        yield screener


@pytest.fixture(scope="module")
def other(bundle: Bundle) -> Iterator[Screener]:
    """The same network under another name: embeddings that count as another model's."""
    with contextlib.closing(Screener(replace(bundle, fingerprint="0" * 64), variant="fp32", threads=1)) as screener:
        yield screener


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six different images and a DICOM object."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(6):
        image(seed).save(folder / f"{seed}.png")
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    dataset.PatientID = "4711"
    dataset.save_as(folder / "ct.dcm")
    return folder


def image(seed: int) -> Image.Image:
    smooth = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(smooth).resize((80, 70), Image.Resampling.BICUBIC)


def sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def entry(path: Path, features: int, seed: int = 0, frames: int = 1, **more: object) -> Entry:
    """An image as an older reader left it: with embeddings that nothing gives now."""
    views = {frame: np.random.default_rng([seed, frame]).random((2, features), dtype=np.float32) for frame in range(frames)}
    return Entry(str(path), sha256(path), frames, views, reader=1, **more)  # type: ignore[arg-type]


def aged(folder: Path, bundle: Bundle, paths: Iterable[Path], **more: object) -> Path:
    """An index of these images that an older reader filled."""
    with Gallery.create(folder, bundle) as gallery:
        gallery.add_all(entry(path, bundle.features, seed, **more) for seed, path in enumerate(sorted(paths)))
    return folder


def rows(folder: Path, bundle: Bundle) -> list[tuple[object, ...]]:
    columns = operator.attrgetter("gallery", "key", "frame", "rendering", "frames", "content", "reader")
    with Gallery.open(folder, bundle) as gallery:
        return sorted((*columns(row), row.patient or "", row.study or "", row.embedding.tobytes()) for row in gallery.entries())


def fresh(folder: Path, screener: Screener, paths: Iterable[Path], name: str = "default") -> list[tuple[object, ...]]:
    """The rows of an index that this version makes of the same images."""
    with Gallery.create(folder, screener.bundle) as gallery:
        assert all(done.added for done in screener.index(sorted(paths), gallery, name=name))
    return rows(folder, screener.bundle)


def without_owner(found: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return [(*row[:7], row[9]) for row in found]


# -- what becomes of the rows ----------------------------------------------------------------------------------------


def test_rows_of_an_older_reader_become_those_that_this_one_makes(images: Path, screener: Screener, tmp_path: Path) -> None:
    bundle = screener.bundle
    folder = aged(tmp_path / "idx", bundle, images.iterdir(), patient=PATIENT, study=STUDY)
    with Gallery.open(folder, bundle) as gallery:
        assert gallery.describe()["frames_of_older_readers"] == 7
    done = upgrade_index(folder, screener)
    assert (done.upgraded, done.current, done.unavailable, done.refused, done.bundle_changed) == (7, 0, (), False, False)
    found = rows(folder, bundle)
    assert without_owner(found) == without_owner(fresh(tmp_path / "fresh", screener, images.iterdir()))
    assert {(row[6], row[7], row[8]) for row in found} == {(READER_VERSION, PATIENT, STUDY)}
    with Gallery.open(folder, bundle) as gallery:
        assert gallery.verify().problems == ()
        assert gallery.describe()["frames_of_older_readers"] == 0
    assert not [path.name for path in folder.iterdir() if not path.name.startswith((DATABASE, "writer.lock"))]
    again = upgrade_index(folder, screener)
    assert (again.upgraded, again.current) == (0, 7)


def test_rows_that_are_current_are_neither_read_nor_changed(images: Path, screener: Screener, tmp_path: Path) -> None:
    bundle, folder = screener.bundle, tmp_path / "idx"
    kept = [images / "0.png", images / "ct.dcm"]
    fresh(folder, screener, kept)
    before = rows(folder, bundle)
    with Gallery.open(folder, bundle, read_only=False) as gallery:
        gallery.add(entry(images / "1.png", bundle.features))
    for path in kept:
        path.unlink()
    done = upgrade_index(folder, screener)
    assert (done.upgraded, done.current, done.unavailable) == (1, 2, ())
    assert set(before) <= set(rows(folder, bundle))
    assert b"4711" not in (folder / DATABASE).read_bytes()


def test_groups_copies_and_several_frames_stay(images: Path, screener: Screener, tmp_path: Path) -> None:
    bundle, folder = screener.bundle, tmp_path / "idx"
    pages = images / "pages.tif"
    image(20).save(pages, save_all=True, append_images=[image(21), image(22)])
    shutil.copy(images / "0.png", images / "copy.png")
    with Gallery.create(folder, bundle) as gallery:
        gallery.add(entry(pages, bundle.features, frames=3, gallery="north"))
        gallery.add(entry(images / "0.png", bundle.features, gallery="north", patient=PATIENT))
        gallery.add(entry(images / "copy.png", bundle.features, gallery="south", study=STUDY))
    (images / "0.png").unlink()  # its copy serves
    assert upgrade_index(folder, screener).upgraded == 3
    found = rows(folder, bundle)
    wanted = fresh(tmp_path / "fresh", screener, [images / "copy.png", pages])
    embeddings = {(Path(str(row[1])).name, row[2], row[3]): row[-1] for row in wanted}
    assert {(row[0], Path(str(row[1])).name, row[2], row[7], row[8]) for row in found} == {
        ("north", "pages.tif", 0, "", ""),
        ("north", "pages.tif", 1, "", ""),
        ("north", "pages.tif", 2, "", ""),
        ("north", "0.png", 0, PATIENT, ""),
        ("south", "copy.png", 0, "", STUDY),
    }
    for row in found:
        name = Path(str(row[1])).name.replace("0.png", "copy.png")
        assert row[-1] == embeddings[name, row[2], row[3]]


def test_files_that_changed_their_names_among_each_other_are_still_read(images: Path, screener: Screener, tmp_path: Path) -> None:
    folder = aged(tmp_path / "idx", screener.bundle, [images / "0.png", images / "1.png"])
    (images / "0.png").rename(images / "x")
    (images / "1.png").rename(images / "0.png")
    (images / "x").rename(images / "1.png")
    assert upgrade_index(folder, screener).upgraded == 2
    names = {sha256(path): path.name for path in images.glob("*.png")}
    assert {(Path(str(row[1])).name, names[row[5]]) for row in rows(folder, screener.bundle)} == {  # type: ignore[index]
        ("0.png", "1.png"),
        ("1.png", "0.png"),
    }


def test_a_name_that_is_no_text_leads_to_its_file(images: Path, screener: Screener, tmp_path: Path) -> None:
    odd = os.fsencode(images) + b"/\xff\xfe \\x41.png"
    shutil.copy(images / "0.png", odd)
    shutil.copy(images / "1.png", images / "\\x41.png")  # a name that only looks escaped
    folder = tmp_path / "idx"
    with Gallery.create(folder, screener.bundle) as gallery:
        keys = [done.path for done in screener.index([os.fsdecode(odd), images / "\\x41.png"], gallery)]
    assert "\\xff\\xfe" in keys[0]
    make_older(folder)
    assert upgrade_index(folder, screener).upgraded == 2


def make_older(folder: Path, **keys: str) -> None:
    """Say that an older reader made all rows, and replace the beginnings of keys."""
    connection = sqlite3.connect(folder / DATABASE, isolation_level=None)
    version = int(connection.execute("SELECT value FROM meta WHERE name = 'format_version'").fetchone()[0])
    connection.execute("BEGIN")
    if version > 3:
        connection.execute("UPDATE pictures SET reader = 1")
    for old, new in keys.items():
        connection.execute("UPDATE pictures SET key = replace(key, ?, ?)", (old, new))
    tally = EMPTY.plus(row_digest(*row) for row in connection.execute(f"SELECT {PICTURE_COLUMNS[version]} FROM pictures"))
    connection.execute("UPDATE meta SET value = ? WHERE name = 'pictures'", (str(tally),))
    connection.execute("COMMIT")
    connection.close()


# -- another bundle --------------------------------------------------------------------------------------------------


def calibrated(folder: Path, bundle: Bundle) -> None:
    with Gallery.open(folder, bundle, read_only=False) as gallery:
        tops = np.linspace(0.01, 0.3, 40)[:, None]
        store_calibration(gallery, calibrate(tops, gallery.vectors(), 0.05, bundle.fingerprint))


def test_a_calibration_stays_within_a_bundle(images: Path, screener: Screener, tmp_path: Path) -> None:
    folder = aged(tmp_path / "idx", screener.bundle, images.glob("*.png"))
    calibrated(folder, screener.bundle)
    assert not upgrade_index(folder, screener).calibration_removed
    with Gallery.open(folder, screener.bundle) as gallery:
        assert stored_calibration(gallery) is not None


def test_another_bundle_takes_the_whole_index_over(images: Path, screener: Screener, other: Screener, tmp_path: Path) -> None:
    folder = tmp_path / "idx"
    fresh(folder, screener, images.iterdir())
    before = rows(folder, screener.bundle)
    calibrated(folder, screener.bundle)
    with Gallery.open(folder, screener.bundle, read_only=False) as gallery:
        gallery.update_caches(graph=True)
        site_key = gallery.describe()["site_key"]
    with pytest.raises(GalleryMismatchError, match=f"'lcmem-onnx index upgrade {folder}'"):
        Gallery.open(folder, other.bundle)
    done = upgrade_index(folder, other)
    assert (done.upgraded, done.current, done.bundle_changed, done.calibration_removed) == (7, 0, True, True)
    assert rows(folder, other.bundle) == before  # the same network here, so the same embeddings, patients and studies
    with Gallery.open(folder, other.bundle) as gallery:
        assert stored_calibration(gallery) is None
        assert gallery.describe()["site_key"] == site_key == SiteKey.open().name
        assert (gallery.verify().problems, graph_there(folder)) == ((), True)
    with pytest.raises(GalleryMismatchError, match="was made with another model"):
        Gallery.open(folder, screener.bundle)


def test_an_empty_index_becomes_one_of_the_other_bundle(screener: Screener, other: Screener, tmp_path: Path) -> None:
    Gallery.create(tmp_path / "idx", screener.bundle).close()
    assert upgrade_index(tmp_path / "idx", other).bundle_changed
    Gallery.open(tmp_path / "idx", other.bundle).close()


def test_embeddings_may_become_longer(images: Path, screener: Screener, tmp_path: Path) -> None:
    """To the model of the package, and its 512 features."""
    folder = aged(tmp_path / "idx", screener.bundle, [images / "0.png", images / "1.png"])
    with contextlib.closing(Screener(threads=1)) as longer:
        assert upgrade_index(folder, longer).upgraded == 2
        with Gallery.open(folder, longer.bundle) as gallery:
            (result,) = longer.screen([images / "1.png"], gallery)
        assert (result.verdict.value, result.matches[0].key) == ("match", str(images / "1.png"))


# -- what cannot be read again ---------------------------------------------------------------------------------------


@pytest.fixture
def lacking(images: Path, screener: Screener, tmp_path: Path) -> Path:
    """An index of an older reader, of six images of which four cannot be read again."""
    bundle = screener.bundle
    folder = aged(tmp_path / "idx", bundle, [images / f"{number}.png" for number in range(4)])
    broken = images / "broken.png"
    broken.write_bytes((images / "4.png").read_bytes()[:600])
    with Gallery.open(folder, bundle, read_only=False) as gallery:
        gallery.add(entry(broken, bundle.features, 4))
        gallery.add(replace(entry(images / "5.png", bundle.features, 5), key="sop:" + "0" * 32))
    (images / "0.png").unlink()
    image(30).save(images / "1.png")
    return folder


REASONS = {"0.png": "not-found", "1.png": "file-changed", "broken.png": "damaged", "sop:" + "0" * 32: "not-a-file-name"}


def test_by_default_nothing_changes_and_all_that_is_lost_is_listed(lacking: Path, screener: Screener) -> None:
    before = rows(lacking, screener.bundle)
    done = upgrade_index(lacking, screener)
    assert {Path(each.key).name: each.reason for each in done.unavailable} == REASONS
    assert (done.refused, done.upgraded, rows(lacking, screener.bundle)) == (True, 0, before)
    again = upgrade_index(lacking, screener)
    assert (again.resumed, again.unavailable) == (2, done.unavailable)


def test_what_is_lost_may_be_dropped(lacking: Path, screener: Screener) -> None:
    upgrade_index(lacking, screener)
    done = upgrade_index(lacking, screener, missing=Missing.DROP)
    assert (done.refused, done.upgraded, done.resumed, len(done.unavailable)) == (False, 2, 2, 4)
    found = rows(lacking, screener.bundle)
    assert {Path(str(row[1])).name for row in found} == {"2.png", "3.png"}
    assert {row[6] for row in found} == {READER_VERSION}
    with Gallery.open(lacking, screener.bundle) as gallery:
        assert gallery.verify().problems == ()


def test_what_is_lost_may_be_kept_as_it_was_within_a_bundle(lacking: Path, screener: Screener, other: Screener) -> None:
    before = rows(lacking, screener.bundle)
    done = upgrade_index(lacking, screener, missing=Missing.KEEP)
    assert (done.upgraded, len(done.unavailable)) == (2, 4)
    found = rows(lacking, screener.bundle)
    assert {Path(str(row[1])).name for row in found if row[6] == READER_VERSION} == {"2.png", "3.png"}
    assert [row for row in found if row[6] == 1] == [row for row in before if Path(str(row[1])).name in REASONS]
    with pytest.raises(UsageError, match="not kept"):
        upgrade_index(lacking, other, missing=Missing.KEEP)
    assert rows(lacking, screener.bundle) == found


def test_a_frame_that_is_lost_is_listed_and_the_others_are_kept(images: Path, screener: Screener, tmp_path: Path) -> None:
    bundle, folder, pages = screener.bundle, tmp_path / "idx", images / "pages.tif"
    flat = Image.new("RGB", (80, 70), (9, 9, 9))
    image(20).save(pages, save_all=True, append_images=[flat, image(22)])
    aged(folder, bundle, [pages], frames=3)
    (lost,) = upgrade_index(folder, screener).unavailable
    assert (lost.reason, lost.detail.startswith("frame 1: ")) == ("blank", True)
    assert upgrade_index(folder, screener, missing=Missing.DROP).upgraded == 0
    assert [(row[2], row[4]) for row in rows(folder, bundle)] == [(0, 3), (2, 3)]


def test_a_frame_that_the_file_no_longer_has_is_lost(images: Path, screener: Screener, tmp_path: Path) -> None:
    folder = aged(tmp_path / "idx", screener.bundle, [images / "0.png"], frames=2)
    (lost,) = upgrade_index(folder, screener).unavailable
    assert (lost.reason, "1 frames" in lost.detail) == ("damaged", True)


def test_the_next_attempt_finds_what_was_restored(lacking: Path, images: Path, screener: Screener) -> None:
    assert len(upgrade_index(lacking, screener).unavailable) == 4
    image(0).save(images / "0.png")
    image(1).save(images / "1.png")
    assert {each.reason for each in upgrade_index(lacking, screener).unavailable} == {"damaged", "not-a-file-name"}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(["there", "gone", "changed", "no name"]), st.booleans()), max_size=5),
    st.sampled_from(list(Missing)),
    st.booleans(),
)
def test_every_image_is_counted_once(
    screener: Screener, tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[str, bool]], missing: Missing, twice: bool
) -> None:
    base = tmp_path_factory.mktemp("law")
    folder = base / "idx"
    with Gallery.create(folder, screener.bundle) as gallery:
        for number, (kind, current) in enumerate(kinds):
            path = base / f"{number}.png"
            image(number).save(path)
            one = replace(entry(path, screener.bundle.features, number), reader=READER_VERSION if current else 1)
            gallery.add(replace(one, key=f"name {number}") if kind == "no name" else one)
            if kind == "gone":
                path.unlink()
            elif kind == "changed":
                image(number + 50).save(path)
    for _ in range(1 + twice):
        before = rows(folder, screener.bundle)
        done = upgrade_index(folder, screener, missing=missing)
        after = rows(folder, screener.bundle)
        images = len({(row[0], row[1]) for row in before})
        older = {row[1] for row in before if row[6] == 1}
        assert len(done.unavailable) <= len(older)
        if done.refused:
            assert (done.upgraded, done.current, after) == (0, images - len(older), before)
        else:
            assert done.upgraded + done.current + len(done.unavailable) == images
            dropped = {each.key for each in done.unavailable} if missing is Missing.DROP else set()
            assert {row[1] for row in after} == {row[1] for row in before} - dropped
        assert [row for row in before if row[6] == READER_VERSION] == [
            row for row in after if row[1] not in older and row[6] == READER_VERSION
        ]


# -- kills, full disks, locks, readers -------------------------------------------------------------------------------


STAGES = [
    "staging 0",
    "staging 3",
    "staging 6",
    "in the transaction",
    "at its end",
    "after the transaction",
    "compacting",
    "after compacting",
]
COMMITTED = STAGES.index("after the transaction")


@pytest.mark.parametrize("at", STAGES)
def test_a_killed_upgrade_leaves_the_old_index_or_the_new_one_and_goes_on(
    at: str, images: Path, screener: Screener, tmp_path: Path
) -> None:
    bundle = screener.bundle
    folder = aged(tmp_path / "idx", bundle, images.iterdir())
    old = rows(folder, bundle)
    done = subprocess.run([sys.executable, "-c", PROGRAM, folder, GOLDEN / "bundle", at], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    wanted = fresh(tmp_path / "fresh", screener, images.iterdir())
    left = rows(folder, bundle)
    if STAGES.index(at) < COMMITTED:
        assert left == old
    else:
        assert without_owner(left) == without_owner(wanted)
    again = upgrade_index(folder, screener)
    staged = int(at.split()[1]) if at.startswith("staging") else 7
    assert again.resumed == (staged if STAGES.index(at) < COMMITTED else 0)
    assert without_owner(rows(folder, bundle)) == without_owner(wanted)
    with Gallery.open(folder, bundle) as gallery:
        assert gallery.verify().problems == ()
    assert not list(folder.glob("upgrade.sqlite*"))


@pytest.mark.slow
def test_killed_again_and_again_at_any_moment_it_comes_to_its_end(screener: Screener, tmp_path: Path) -> None:
    bundle, many = screener.bundle, tmp_path / "many"
    many.mkdir()
    for seed in range(60):
        image(seed).save(many / f"{seed}.png")
    folder = aged(tmp_path / "idx", bundle, many.iterdir())
    old, wanted = rows(folder, bundle), fresh(tmp_path / "fresh", screener, many.iterdir())
    command = [sys.executable, "-c", PROGRAM, folder, GOLDEN / "bundle", "never"]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.monotonic() - start
    shutil.rmtree(folder)
    aged(folder, bundle, many.iterdir())
    chance = np.random.default_rng(0)
    for _ in range(25):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(chance.uniform(0.5, 1.0) * whole)
        process.kill()
        process.communicate()
        left = rows(folder, bundle)
        assert left == old or without_owner(left) == without_owner(wanted)
    subprocess.run(command, check=True, capture_output=True)
    assert without_owner(rows(folder, bundle)) == without_owner(wanted)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()

    def mounted(kilobytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a file system here")
        return folder

    yield mounted
    subprocess.run(["umount", folder], check=False)


@pytest.mark.parametrize("room", [0, 40, 90, 150])
def test_a_full_disk_leaves_the_old_index_and_the_same_command_goes_on(
    room: int, images: Path, screener: Screener, small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    """The room is too little for what is embedded, for the transaction, or for the compaction."""
    bundle, folder = screener.bundle, small_disk(1000) / "idx"
    aged(folder, bundle, images.iterdir())
    old = rows(folder, bundle)
    wanted = fresh(tmp_path / "fresh", screener, images.iterdir())
    free = shutil.disk_usage(folder).free // 1024 - room
    filler = folder.parent / "filler"
    filler.write_bytes(bytes(free * 1024))
    warnings: list[str] = []
    try:
        upgrade_index(folder, screener, warn=warnings.append)
    except GalleryError as error:
        warnings.append(str(error))
    assert not warnings or any("full" in line for line in warnings), warnings
    left = rows(folder, bundle)
    assert left == old or without_owner(left) == without_owner(wanted)
    filler.unlink()
    upgrade_index(folder, screener)
    assert without_owner(rows(folder, bundle)) == without_owner(wanted)
    with Gallery.open(folder, bundle) as gallery:
        assert gallery.verify().problems == ()


def test_a_folder_that_may_not_be_written_is_one_line(images: Path, bundle: Bundle, tmp_path: Path) -> None:
    folder = aged(tmp_path / "idx", bundle, [images / "0.png"])
    shutil.rmtree(folder / "writer.lock", ignore_errors=True)
    (folder / "writer.lock").unlink()
    folder.chmod(0o555)
    prefix = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere, and setpriv is not here to change that")
        prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    command = [*prefix, sys.executable, "-m", "lcmem_onnx.cli", "index", "upgrade", folder, "--bundle", GOLDEN / "bundle", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    folder.chmod(0o755)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {folder} is not writable")
    assert len(done.stderr.splitlines()) == 1


def test_readers_search_the_old_index_until_the_new_one_is_there(
    images: Path, screener: Screener, bundle: Bundle, tmp_path: Path
) -> None:
    """Each answer of a reader is all of the old index or all of the new one."""
    folder = aged(tmp_path / "idx", bundle, images.iterdir())
    query = screener.embed_renderings(images / "3.png")[0][None]
    with Gallery.open(folder, bundle) as reader:
        old = reader.search(query, 0.5, top=20)[0]

        def looking(files: Iterable[EmbeddedFile], total: int) -> Iterator[EmbeddedFile]:
            for file in files:
                assert reader.search(query, 0.5, top=20)[0] == old
                with Gallery.open(folder, bundle) as newcomer:
                    assert newcomer.search(query, 0.5, top=20)[0] == old
                with pytest.raises(GalleryError, match=f"is being written by process {os.getpid()}"):
                    Gallery.open(folder, bundle, read_only=False)
                with pytest.raises(GalleryError, match="is being written"):
                    upgrade_index(folder, screener)
                yield file

        upgrade_index(folder, screener, watch=looking)
        new = reader.search(query, 0.5, top=20)[0]
        assert (new.matches[0].key, new != old) == (str(images / "3.png"), True)
        assert new.matches[0].score > 0.9


def test_readers_of_the_old_bundle_refuse_the_index_of_the_new_one(
    images: Path, screener: Screener, other: Screener, tmp_path: Path
) -> None:
    """Their queries would be compared with embeddings of another model, and everything be clear."""
    folder = tmp_path / "idx"
    fresh(folder, screener, images.glob("*.png"))
    query = screener.embed_renderings(images / "3.png")[0][None]
    with Gallery.open(folder, screener.bundle) as reader:
        assert reader.search(query, 0.5)[0].total
        upgrade_index(folder, other)
        for how in ("auto", "exact", "hnsw"):
            with pytest.raises(GalleryMismatchError, match="was made with another model"):
                reader.search(query, 0.5, how=how)
        with pytest.raises(GalleryMismatchError):
            list(screener.screen([images / "3.png"], reader))


def test_an_index_that_is_written_is_not_upgraded(images: Path, screener: Screener, tmp_path: Path) -> None:
    folder = aged(tmp_path / "idx", screener.bundle, [images / "0.png"])
    lock = WriterLock(folder)
    with pytest.raises(GalleryError, match="is being written by process"):
        upgrade_index(folder, screener)
    lock.release()
    assert upgrade_index(folder, screener).upgraded == 1


def test_erasure_reaches_what_an_unfinished_upgrade_keeps(lacking: Path, screener: Screener) -> None:
    assert upgrade_index(lacking, screener).refused
    (staged,) = lacking.glob("upgrade.sqlite")
    assert staged.stat().st_mode & 0o077 == 0
    with Gallery.open(lacking, screener.bundle, read_only=False) as gallery:
        (key,) = {row[1] for row in rows(lacking, screener.bundle) if str(row[1]).endswith("2.png")}
        gallery.remove(key=str(key))
    assert not list(lacking.glob("upgrade.sqlite*"))
    done = upgrade_index(lacking, screener)
    assert (done.resumed, len(done.unavailable)) == (0, 4)


@pytest.mark.parametrize("damage", ["another bundle's", "no database", "cut", "flipped"])
def test_what_was_kept_is_used_only_if_it_is_sound_and_for_this_target(
    damage: str, lacking: Path, screener: Screener, other: Screener
) -> None:
    upgrade_index(lacking, screener)
    staged = lacking / "upgrade.sqlite"
    if damage == "another bundle's":
        assert upgrade_index(lacking, other).resumed == 0
    elif damage == "no database":
        staged.write_bytes(b"nothing of the kind")
        assert upgrade_index(lacking, screener, missing=Missing.DROP).resumed == 0
    elif damage == "cut":
        staged.write_bytes(staged.read_bytes()[:4096])
        with contextlib.suppress(GalleryError):  # it says so, or begins again
            upgrade_index(lacking, screener)
    else:
        with contextlib.closing(sqlite3.connect(staged)) as connection, connection:
            connection.execute("UPDATE views SET embedding = zeroblob(length(embedding))")
        before = rows(lacking, screener.bundle)
        with pytest.raises(GalleryError, match="is damaged: delete it"):
            upgrade_index(lacking, screener, missing=Missing.DROP)
        assert rows(lacking, screener.bundle) == before
        staged.unlink()
        assert upgrade_index(lacking, screener, missing=Missing.DROP).upgraded == 2


# -- older formats, the command --------------------------------------------------------------------------------------


def lcmem(*arguments: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What version 0.1.0 wrote; its keys lead into /golden, which is not there."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "golden"))
    (folder / "site.key").chmod(0o600)
    monkeypatch.setenv("LCMEM_ONNX_SITE_KEY", str(folder / "site.key"))
    monkeypatch.setenv("LCMEM_ONNX_BUNDLE", str(folder / "bundle"))
    monkeypatch.setenv("LCMEM_ONNX_VARIANT", "fp32")
    return folder


def test_the_index_of_the_first_version_is_upgraded(golden: Path, screener: Screener, tmp_path: Path) -> None:
    index = golden / "index"
    with Gallery.open(index, screener.bundle) as gallery:
        assert gallery.describe()["frames_of_older_readers"] == len(gallery) == 9
    code, out, said = lcmem("index", "upgrade", index, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, lines[-1]["refused"], lines[-1]["summary"]["unavailable"]) == (2, True, {"not-found": 9})
    assert {line["key"] for line in lines[:-1]} >= {"/golden/images/ward-a/0.dcm"}
    assert "is unchanged: 9 of its images cannot be read again" in said
    assert (index / DATABASE).read_bytes() == (GOLDEN / "index" / DATABASE).read_bytes()

    before = {(row[0], row[1]): (row[7], row[8]) for row in rows(index, screener.bundle)}
    make_older(index, **{"/golden/": f"{golden}/"})
    code, out, _ = lcmem("index", "upgrade", index)
    assert f"next  lcmem-onnx index verify --index {index}\n" in out
    assert (code, "9 images embedded again, 0 were current" in out) == (0, True)
    after = rows(index, screener.bundle)
    assert {(row[0], str(row[1]).replace(str(golden), "/golden")): (row[7], row[8]) for row in after} == before
    assert {row[6] for row in after} == {READER_VERSION}
    code, out, _ = lcmem("index", "info", "--index", index, "--json")
    facts = json.loads(out)
    assert (facts["format_version"], facts["frames_of_older_readers"], facts["graph"]) == (4, 0, True)
    assert facts["calibration"]["wanted_fpir"] == 0.05
    assert lcmem("index", "verify", "--index", index)[0] == 0
    assert lcmem("scan", golden / "images" / "queries", "--index", index, "-q")[0] == 1


def test_the_export_of_the_first_version_comes_in_and_is_upgraded(golden: Path, screener: Screener, tmp_path: Path) -> None:
    assert lcmem("index", "import", golden / "export.npz", "--index", tmp_path / "idx", "-q")[0] == 0
    make_older(tmp_path / "idx", **{"/golden/": f"{golden}/"})
    assert lcmem("index", "upgrade", tmp_path / "idx", "-q") == (0, "", "")
    assert {row[6] for row in rows(tmp_path / "idx", screener.bundle)} == {READER_VERSION}


def test_the_command_says_what_it_did(golden: Path, lacking: Path, images: Path, tmp_path: Path) -> None:
    out = lcmem("index", "info", "--index", lacking, "--bundle", golden / "bundle")[1]
    assert f"next  lcmem-onnx index upgrade {lacking} --bundle {golden / 'bundle'}" in out
    code, out, said = lcmem("index", "upgrade", lacking)
    assert (code, out) == (2, "")
    for name, reason in REASONS.items():
        assert any(name in line and line.endswith(f"[{reason}]") for line in said.splitlines()), said
    code, out, said = lcmem("index", "upgrade", lacking, "--drop-missing", "--keep-missing")
    assert (code, "not both" in said) == (2, True)
    code, out, said = lcmem("index", "upgrade", lacking, "--keep-missing")
    assert (code, "2 images embedded again (2 files before the interruption), 0 were current, 4 kept" in out) == (0, True)
    code, out, _ = lcmem("index", "upgrade", lacking, "--drop-missing", "--json", "-q")
    *lines, last = map(json.loads, out.splitlines())
    assert (code, len(lines), last["summary"]["dropped"], last["summary"]["current"]) == (0, 4, 4, 2)
    assert lcmem("index", "upgrade", tmp_path / "none")[0] == 2
    code, _, said = lcmem("scan", images / "2.png", "--index", lacking, "-q")
    assert code == 1


@pytest.mark.usefixtures("golden")
def test_an_index_of_another_bundle_names_the_command_that_mends_it(
    lacking: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LCMEM_ONNX_VARIANT")
    for command in (["scan", images / "2.png"], ["index", "info"], ["index", "add", images / "2.png"]):
        code, _, said = lcmem(*command, "--index", lacking, "--bundle", BUNDLED)
        assert code == 2
        assert f"lcmem-onnx index upgrade {lacking}" in said
    code, _, said = lcmem("index", "upgrade", lacking, "--bundle", BUNDLED, "--drop-missing")
    assert code == 0, said
    assert lcmem("scan", images / "2.png", "--index", lacking, "--bundle", BUNDLED, "-q")[0] == 1


def test_done_adds_up() -> None:
    done = Upgraded(2, 3, (), Missing.KEEP, refused=False, bundle_changed=False, calibration_removed=False, resumed=1)
    assert done.as_json() == {
        "schema_version": 1,
        "summary": {"upgraded": 2, "current": 3, "dropped": 0, "kept": 0, "unavailable": {}},
        "resumed": 1,
        "refused": False,
        "bundle_changed": False,
        "calibration_removed": False,
    }
