"""Two renderings of a frame, on their way through index and scan; headers that are not passed as clear; isolated decoding."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from lcmem_onnx.cli import main
from lcmem_onnx.runtime.errors import Reason
from lcmem_onnx.runtime.gallery import Entry, Gallery
from lcmem_onnx.runtime.model.bundle import Bundle, open_bundle
from lcmem_onnx.runtime.results import Result
from lcmem_onnx.runtime.screening import Screener, Verdict
from numpy.typing import NDArray

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="isolation needs Linux")
CT = Path(pydicom.__file__).parent / "data" / "test_files" / "CT_small.dcm"
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def screener(bundle: Bundle) -> Screener:
    return Screener(bundle, provider="cpu")


def changed(path: Path, source: Path = CT, **elements: Any) -> Path:
    dataset = pydicom.dcmread(source)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    pydicom.dcmwrite(path, dataset, enforce_file_format=False)
    return path


def frames_of(path: Path, values: NDArray[np.uint16], **elements: Any) -> Path:
    """CT_small.dcm with other pixels, (frames, rows, columns)."""
    count, rows, columns = values.shape
    elements |= {"Rows": rows, "Columns": columns, "NumberOfFrames": count, "PixelRepresentation": 0, "PixelPaddingValue": 0}
    return changed(path, PixelData=values.tobytes(), WindowCenter=-500, WindowWidth=300, **elements)


def only(results: list[Result]) -> Result:
    (result,) = results
    return result


def test_a_copy_with_another_window_is_found_by_its_second_rendering(screener: Screener, tmp_path: Path) -> None:
    original = changed(tmp_path / "original.dcm", WindowCenter=40, WindowWidth=400)
    copy = changed(tmp_path / "copy.dcm", WindowCenter=-900, WindowWidth=60)
    score = screener.compare(original, copy).score
    assert score > screener.compare_embeddings(screener.embed(original), screener.embed(copy)).score
    with Gallery.create(tmp_path / "idx", screener.bundle) as gallery:
        (done,) = screener.index([original], gallery)
        assert done.frames == 1
        described = gallery.describe()
        assert (len(gallery), described["frames"], described["distinct_vectors"]) == (1, 1, 2)
        result = only(list(screener.screen([copy], gallery, threshold=min(score, 0.999999) - 1e-6)))
    assert result.verdict is Verdict.MATCH
    assert result.total == len(result.matches) == len(result.identities) == 1  # of one image, whose renderings both score
    assert result.matches[0].score == pytest.approx(score, abs=1e-6)


def brute_force(
    screener: Screener, query: list[NDArray[np.float32]], entries: list[list[NDArray[np.float32]]]
) -> list[list[float]]:
    """For each frame of the query: the best score of each gallery frame."""
    score = screener.bundle.head.score
    return [[max(score(a, b) for a in frame for b in other) for entry in entries for other in entry] for frame in query]


@pytest.mark.parametrize("search", ["exact", "hnsw"])
def test_totals_and_matches_count_frames_and_not_renderings(search: str, screener: Screener, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [
        frames_of(tmp_path / f"{n}.dcm", rng.integers(0, 1000, (3, 40, 40)).astype("uint16"), PatientID=str(n)) for n in range(4)
    ]
    entries = [screener.embed_renderings(path) for path in paths]
    assert [len(frame) for entry in entries for frame in entry] == [2] * 12
    expected = brute_force(screener, entries[0], entries)
    with Gallery.temporary(screener.bundle) as gallery:
        list(screener.index(paths, gallery))
        assert len(gallery) == 12
        for result, scores in zip(
            screener.screen(paths[:1], gallery, threshold=1e-4, top=20, search=search), expected, strict=True
        ):
            assert result.total == sum(score >= 1e-4 for score in scores)
            assert len({(hit.key, hit.frame) for hit in result.matches}) == len(result.matches) == result.total
            np.testing.assert_allclose(
                [hit.score for hit in result.matches], sorted(scores, reverse=True)[: result.total], atol=1e-5
            )


def test_renderings_survive_copies_export_and_removal(screener: Screener, tmp_path: Path) -> None:
    path = frames_of(tmp_path / "a.dcm", np.random.default_rng(0).integers(0, 1000, (2, 40, 40)).astype("uint16"))
    twin = tmp_path / "twin.dcm"
    twin.write_bytes(path.read_bytes())
    with Gallery.create(tmp_path / "idx", screener.bundle) as gallery:
        assert [done.added.value for done in screener.index([path, twin, path], gallery) if done.added] == ["new", "copy", "known"]
        assert sorted((record.key, record.frame, record.rendering) for record in gallery.entries()) == [
            (str(where), frame, rendering) for where in (path, twin) for frame in (0, 1) for rendering in (0, 1)
        ]
        assert gallery.describe()["distinct_vectors"] == 4
        gallery.remove(key=str(path))
        assert gallery.describe()["distinct_vectors"] == 4
        gallery.remove(key=str(twin))
        assert (len(gallery), gallery.describe()["distinct_vectors"]) == (0, 0)


def test_equal_renderings_are_stored_once(screener: Screener, tmp_path: Path) -> None:
    embedding = np.random.default_rng(0).random(screener.bundle.features, np.float32)
    with Gallery.create(tmp_path / "idx", screener.bundle) as gallery:
        gallery.add(Entry("a", bytes(32), 1, {0: np.stack([embedding, embedding])}))
        assert [record.rendering for record in gallery.entries()] == [0]
        assert gallery.search(embedding[None, None], 0.5)[0].total == 1


def test_a_row_that_was_given_another_rendering_is_noticed(screener: Screener, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", screener.bundle) as gallery:
        list(screener.index([changed(tmp_path / "a.dcm")], gallery))
    with closing(sqlite3.connect(tmp_path / "idx" / "gallery.sqlite")) as connection, connection:
        connection.execute("UPDATE pictures SET rendering = 7 WHERE rendering = 1")
    with pytest.raises(Exception, match="damaged"):
        Gallery.open(tmp_path / "idx", screener.bundle)


@pytest.mark.parametrize(
    "elements",
    [
        {"PatientID": "a\nb"},
        {"SOPInstanceUID": "../../etc"},
        {"preamble": b"MZ" + bytes(126)},
    ],
    ids=lambda elements: next(iter(elements)),
)
def test_a_hostile_header_is_never_clear(elements: dict[str, Any], screener: Screener, tmp_path: Path) -> None:
    other = frames_of(tmp_path / "other.dcm", np.random.default_rng(0).integers(0, 1000, (1, 40, 40)).astype("uint16"))
    odd = changed(tmp_path / "odd.dcm", **elements)
    with Gallery.create(tmp_path / "idx", screener.bundle) as gallery:
        list(screener.index([other], gallery))
        result = only(list(screener.screen([odd], gallery, threshold=0.9999999)))
        assert (result.verdict, result.reason) == (Verdict.ERROR, Reason.SUSPICIOUS_HEADER)
        assert result.detail
        assert "\n" not in result.detail
        list(screener.index([odd], gallery))  # a gallery takes it, and finds it
        result = only(list(screener.screen([odd], gallery, threshold=0.9)))
        assert (result.verdict, result.reason) == (Verdict.MATCH, Reason.AT_OR_ABOVE_THRESHOLD)


@pytest.mark.parametrize(
    ("elements", "note"),
    [
        ({"RescaleSlope": 0}, "useless-rescale"),
        ({"WindowWidth": 0}, "useless-window"),
        ({"SpecificCharacterSet": "ISO-IR 100"}, "unknown-character-set"),
    ],
)
def test_what_devices_write_badly_is_noted_and_screened(
    elements: dict[str, Any], note: str, screener: Screener, tmp_path: Path
) -> None:
    other = frames_of(tmp_path / "other.dcm", np.random.default_rng(0).integers(0, 1000, (1, 40, 40)).astype("uint16"))
    odd = changed(tmp_path / "odd.dcm", **elements)
    with Gallery.create(tmp_path / "idx", screener.bundle) as gallery:
        list(screener.index([other], gallery))
        result = only(list(screener.screen([odd], gallery, threshold=0.9999999)))
    assert (result.verdict, result.reason) == (Verdict.CLEAR, Reason.BELOW_THRESHOLD)
    assert note in result.as_json()["notes"]


def test_notes_are_in_the_results(screener: Screener, tmp_path: Path) -> None:
    path = changed(tmp_path / "a.dcm", BurnedInAnnotation="YES", preamble=bytes(128))
    with Gallery.create(tmp_path / "idx", screener.bundle) as gallery:
        list(screener.index([path], gallery))
        line = only(list(screener.screen([path], gallery))).as_json()
    assert line["notes"] == ["burned-in-annotation"]


@linux
def test_isolated_results_are_the_same(bundle: Bundle, screener: Screener, images: Path, tmp_path: Path) -> None:
    """An image with more frames than are decoded ahead, a damaged one, and others."""
    many = frames_of(tmp_path / "many.dcm", np.random.default_rng(0).integers(0, 1000, (20, 40, 40)).astype("uint16"))
    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(CT.read_bytes()[:-5000])
    paths = [many, damaged, images]
    isolated = Screener(bundle, provider="cpu", isolate=True)
    with closing(isolated), Gallery.create(tmp_path / "idx", bundle) as gallery:
        done = [one.as_json() for one in isolated.index(paths, gallery)]
        assert [one["frames"] for one in done] == [20, 0, 1, 1, 1, 1, 1, 1]
        results = [[one.as_json() for one in each.screen(paths, gallery)] for each in (screener, isolated)]
        assert results[0] == results[1]
        assert {(hit.patient is None) for one in isolated.screen([many], gallery) for hit in one.matches} == {False}
        np.testing.assert_array_equal(isolated.embed(CT), screener.embed(CT))


@linux
def test_scan_isolated(images: Path, tiny_bundle: Path) -> None:
    queries = str(images / "0.png")
    arguments = ["scan", queries, "--against", str(images), "--bundle", str(tiny_bundle), "--provider", "cpu", "--json", "-q"]
    here, there = (CliRunner().invoke(main, [*arguments, *more], standalone_mode=False) for more in ([], ["--isolate"]))
    assert here.stdout == there.stdout != ""
