"""Filling a gallery from a real Orthanc. Run by tests/test_orthanc.py; pytest does not collect it by itself."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pydicom
import pytest
from lcmem_onnx import Gallery, Screener
from lcmem_onnx.runtime.archive.connection import Connection, Credentials, Pace, Server
from lcmem_onnx.runtime.archive.listing import parse_query
from lcmem_onnx.runtime.archive.pull import Pull, open_source

ORTHANC = "http://127.0.0.1:18042"
ROOTS = {"orthanc": ORTHANC, "dicomweb": f"{ORTHANC}/dicom-web"}
USER = ("tester", "only-for-tests")
EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "pictures"
SLICES = [EXAMPLES / "gallery" / "ct-slice.dcm", EXAMPLES / "queries" / "other-mr-slice.dcm"]


@pytest.fixture(scope="module")
def screener() -> Screener:
    return Screener(threads=2)


@pytest.fixture
def orthanc() -> Iterator[httpx.Client]:
    """An empty Orthanc."""
    with httpx.Client(base_url=ORTHANC, auth=USER, trust_env=False, timeout=30) as client:
        for patient in client.get("/patients").json():
            client.delete(f"/patients/{patient}").raise_for_status()
        yield client


def store(orthanc: httpx.Client, data: bytes) -> None:
    orthanc.post("/instances", content=data).raise_for_status()


def variant(number: int, pixels: int = 0) -> bytes:
    """The example slice under another UID, each in a study of its own for every three, a little brighter by `pixels`."""
    dataset = pydicom.dcmread(SLICES[0])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.{1000 + number}"
    dataset.StudyInstanceUID = f"2.25.{2000 + number // 3}"
    dataset.SeriesInstanceUID = f"2.25.{3000 + number // 3}"
    data = dataset.pixel_array + pixels
    dataset.PixelData = data.astype(dataset.pixel_array.dtype).tobytes()
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def pull(kind: str, screener: Screener, folder: Path, *query: str) -> list[str]:
    """What became of each object that was fetched."""
    server = Server(ROOTS[kind], Credentials(*USER))
    with Connection(server, Pace(None)) as connection, Gallery.open(folder, screener.bundle, read_only=False) as gallery:
        outcomes = list(Pull(open_source(kind, connection, parse_query(query), 1 << 30), connection, screener, gallery))
    return [outcome.added.value if outcome.added else str(outcome.errors) for outcome in outcomes]


@pytest.fixture
def folder(screener: Screener, tmp_path: Path) -> Path:
    Gallery.create(tmp_path / "idx", screener.bundle).close()
    return tmp_path / "idx"


@pytest.mark.parametrize("kind", ["orthanc", "dicomweb"])
def test_all_of_it_and_then_what_is_new(kind: str, orthanc: httpx.Client, screener: Screener, folder: Path) -> None:
    for path in SLICES:
        store(orthanc, path.read_bytes())
    assert pull(kind, screener, folder) == ["new", "new"]
    assert pull(kind, screener, folder) == []
    store(orthanc, variant(1))
    assert pull(kind, screener, folder) == ["new"]
    with Gallery.open(folder, screener.bundle) as gallery:
        key = gallery.site_key()
        assert all(gallery.holds(key.object_name(pydicom.dcmread(path).SOPInstanceUID)) for path in SLICES)
        (result,) = screener.screen([EXAMPLES / "queries" / "copy-of-ct-slice-exported.png"], gallery)
        assert result.verdict.value == "match"
        assert result.matches[0].key in {
            key.object_name(pydicom.dcmread(SLICES[0]).SOPInstanceUID),
            key.object_name("2.25.1001"),
        }


@pytest.mark.parametrize("kind", ["orthanc", "dicomweb"])
@pytest.mark.parametrize(("query", "count"), [("Modality=CT", 4), ("StudyInstanceUID=2.25.2000", 3), ("Modality=US", 0)])
def test_a_query_finds_what_it_asks_for(
    kind: str, query: str, count: int, orthanc: httpx.Client, screener: Screener, folder: Path
) -> None:
    for path in SLICES:
        store(orthanc, path.read_bytes())
    for number in range(3):
        store(orthanc, variant(number, number))
    assert len(pull(kind, screener, folder, query)) == count


@pytest.mark.parametrize("kind", ["orthanc", "dicomweb"])
def test_what_is_in_a_compressed_transfer_syntax_comes_as_it_is(
    kind: str, orthanc: httpx.Client, screener: Screener, folder: Path
) -> None:
    from pydicom.data import get_testdata_file

    for name in ("JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm", "MR_small_RLE.dcm"):
        store(orthanc, Path(str(get_testdata_file(name, download=False))).read_bytes())
    assert pull(kind, screener, folder) == ["new"] * 3


@pytest.mark.parametrize("kind", ["orthanc", "dicomweb"])
def test_killed_at_any_moment_it_goes_on_where_it_was(kind: str, orthanc: httpx.Client, screener: Screener, folder: Path) -> None:
    for number in range(30):
        store(orthanc, variant(number, number))
    environment = {**os.environ, "LCMEM_ONNX_ARCHIVE_USER": USER[0], "LCMEM_ONNX_ARCHIVE_PASSWORD": USER[1]}
    command = [sys.executable, "-m", "lcmem_onnx.cli", "index", "add", f"--from-{kind}", ROOTS[kind]]
    arguments = ["--index", str(folder), "--rate", "25", "--json", "-q"]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, env=environment)
    assert process.stdout
    seen = [process.stdout.readline() for _ in range(9)]
    process.send_signal(signal.SIGKILL)
    seen += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    reported = sum(line.startswith(b"{") and line.endswith(b"}\n") for line in seen)
    with Gallery.open(folder, screener.bundle) as gallery:
        there = len(gallery)
    assert reported <= there < 30
    rest = pull(kind, screener, folder)
    assert rest == ["new"] * (30 - there)
    with Gallery.open(folder, screener.bundle) as gallery:
        assert len(gallery) == 30


@pytest.mark.parametrize(
    ("kind", "path", "user", "says"),
    [
        ("orthanc", "", "someone", "refused us (401"),
        ("dicomweb", "/dicom-web", "someone", "refused us (401"),
        ("dicomweb", "/wrong", "tester", "404 Not Found: is that the archive's address"),
        ("dicomweb", "", "tester", "400 Bad Request: it may not take such a query, or is that not the archive's address"),
        ("orthanc", "/dicom-web", "tester", "is that"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    kind: str,
    path: str,
    user: str,
    says: str,
    folder: Path,
    orthanc: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from lcmem_onnx.cli import main

    store(orthanc, SLICES[0].read_bytes())
    monkeypatch.setenv("LCMEM_ONNX_ARCHIVE_USER", user)
    monkeypatch.setenv("LCMEM_ONNX_ARCHIVE_PASSWORD", USER[1])
    with pytest.raises(SystemExit) as ended:
        main(["index", "add", f"--from-{kind}", ORTHANC + path, "--index", str(folder), "-q"])
    said = capfd.readouterr().err
    assert ended.value.code == 2
    assert says in said
    assert len(said.splitlines()) == 1
    assert USER[1] not in said


def test_the_rate_is_kept(orthanc: httpx.Client, screener: Screener, folder: Path) -> None:
    for number in range(4):
        store(orthanc, variant(number, number))
    begun = time.monotonic()
    with (
        Connection(Server(ORTHANC, Credentials(*USER)), Pace(5)) as connection,
        Gallery.open(folder, screener.bundle, read_only=False) as gallery,
    ):
        assert len(list(Pull(open_source("orthanc", connection, (), 1 << 30), connection, screener, gallery))) == 4
    assert time.monotonic() - begun >= 7 / 5  # eight requests: system, two of changes, two pages, four objects; the first at once
