"""Rebuilding the training images from clones: files at their commits, checked, shrunk, and what is missing reported."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tqdm")

from click.testing import CliRunner
from lcmem_onnx import FileListError
from lcmem_onnx.evaluation.filelist import read_file_list
from lcmem_onnx.models.bundled import image_folder
from lcmem_onnx.models.bundled.image_folder import rebuild
from PIL import Image

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def git(folder: Path, *command: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *identity, *command], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def committed(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "files")
    return git(folder, "rev-parse", "HEAD")


def image(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=2).astype(np.uint8)


@pytest.fixture
def clones(tmp_path: Path) -> Path:
    """Two repositories; the first has changed one file since the commit that is listed."""
    for name in ("lab/xrays", "lab/photos"):
        folder = tmp_path / "clones" / name
        folder.mkdir(parents=True)
        git(folder, "init", "-q")
    return tmp_path / "clones"


def write_list(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def row(name: str, repository: str, commit: str, original: str, data: bytes, **more: str) -> dict[str, str]:
    return {
        "Split": "TRAIN",
        "id": name,
        "path": f"set/{name}.jpg",
        "ds_name": "set",
        "source_repo": repository,
        "commit": commit,
        "original_path": original,
        "sha256_of_original": hashlib.sha256(data).hexdigest(),
        "note": "",
        "size": "",
        **more,
    }


def test_files_are_taken_at_their_commits_checked_and_shrunk(clones: Path, tmp_path: Path) -> None:
    large, small = encoded(image(480, 640)), encoded(image(100, 80))
    first = committed(clones / "lab/xrays", {"a folder/large.png": large, "small.png": small})
    committed(clones / "lab/xrays", {"small.png": encoded(image(90, 80))})
    rows = [
        row("large", "lab/xrays", first, "a folder/large.png", large),
        row("small", "lab/xrays", first, "small.png", small),
        row("sized", "lab/xrays", first, "a folder/large.png", large, size="383x288"),
    ]
    write_list(tmp_path / "list.csv", rows)
    outcomes = rebuild(tmp_path / "list.csv", clones, tmp_path / "out")
    assert [outcome.problem for outcome in outcomes] == ["", "", ""]
    sizes = {}
    for listed in read_file_list(tmp_path / "out" / "list.csv"):
        with Image.open(listed.path) as written:
            sizes[listed.identity] = written.size
            expected = Image.fromarray(image(100, 80) if listed.identity == "small" else image(480, 640)).resize(written.size)
            assert abs(np.asarray(written).astype(int) - np.asarray(expected)).mean() < 4
            assert written.format == "JPEG"
    assert sizes == {"large": (384, 288), "small": (80, 100), "sized": (383, 288)}
    with (tmp_path / "out" / "list.csv").open(newline="") as lines:
        assert list(csv.DictReader(lines)) == rows, "all columns are kept"


def test_what_is_missing_or_differs_is_reported_and_left_out_of_the_list(clones: Path, tmp_path: Path) -> None:
    data, other = encoded(image(30, 40)), encoded(image(31, 40))
    commit = committed(clones / "lab/xrays", {"a.png": data, "broken.png": b"no image", "volume.nii.gz": b"no volume"})
    rows = [
        row("there", "lab/xrays", commit, "a.png", data),
        row("differs", "lab/xrays", commit, "a.png", other),
        row("gone", "lab/xrays", commit, "b.png", data),
        row("commit", "lab/xrays", "0" * 40, "a.png", data),
        row("option", "lab/xrays", "--help", "a.png", data),
        row("repository", "lab/absent", commit, "a.png", data),
        row("broken", "lab/xrays", commit, "broken.png", b"no image"),
        row("slice", "lab/xrays", commit, "volume.nii.gz", b"no volume"),
        row("last", "lab/xrays", commit, "a.png", data),
    ]
    write_list(tmp_path / "list.csv", rows)
    command = ["--list", str(tmp_path / "list.csv"), "--repositories", str(clones), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(image_folder.main, command)
    assert done.exit_code == 2
    problems = {outcome.row["id"]: outcome.problem for outcome in rebuild(tmp_path / "list.csv", clones, tmp_path / "out")}
    assert problems["there"] == problems["last"] == ""
    for name, problem in {
        "differs": "its sha256 differs",
        "gone": "not at that commit",
        "commit": "not at that commit",
        "option": "commit or path are not usable",
        "repository": "the repository is not cloned",
        "broken": "it cannot be read as an image",
        "slice": "does not say which slice",
    }.items():
        assert problem in problems[name]
        assert problem in done.output
    assert "lab/absent: the repository is not cloned: a.png" in done.output
    assert "2 of 9 images are in" in done.output
    assert [listed.identity for listed in read_file_list(tmp_path / "out" / "list.csv")] == ["there", "last"]


def test_images_that_are_there_are_not_made_again(clones: Path, tmp_path: Path) -> None:
    data = encoded(image(30, 40))
    commit = committed(clones / "lab/xrays", {"a.png": data})
    write_list(tmp_path / "list.csv", [row("a", "lab/xrays", commit, "a.png", data)])
    rebuild(tmp_path / "list.csv", clones, tmp_path / "out")
    before = (tmp_path / "out" / "set" / "a.jpg").stat().st_mtime_ns
    rebuild(tmp_path / "list.csv", clones, tmp_path / "out")
    assert (tmp_path / "out" / "set" / "a.jpg").stat().st_mtime_ns == before


def test_ct_slices_are_windowed_and_volumes_cut(clones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nibabel = pytest.importorskip("nibabel")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    stored = np.tile(np.arange(0, 1200, 20, dtype=np.int16), (50, 1))  # 0 to 1180
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -600
    dataset.PixelData = stored.tobytes()
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    volume = np.zeros((20, 30, 5), np.float32)
    volume[:, 20:, 3] = 100.0  # the back, which canonical axes show at the top
    nifti = nibabel.Nifti1Image(volume, np.eye(4)).to_bytes()
    commit = committed(clones / "lab/xrays", {"a.dcm": stream.getvalue(), "v.nii": nifti})
    rows = [
        row("ct", "lab/xrays", commit, "a.dcm", stream.getvalue(), note="window 400/40, series 1"),
        row("mr", "lab/xrays", commit, "v.nii", nifti),
    ]
    write_list(tmp_path / "list.csv", rows)
    (tmp_path / "slices.csv").write_text("path,axis,plane,black,white\nset/mr.jpg,2,3,0,200\n")
    monkeypatch.setattr(image_folder, "VOLUME_SLICES", tmp_path / "slices.csv")
    assert [outcome.problem for outcome in rebuild(tmp_path / "list.csv", clones, tmp_path / "out")] == ["", ""]
    ct, mr = (np.asarray(Image.open(tmp_path / "out" / "set" / f"{name}.jpg")).astype(int) for name in ("ct", "mr"))
    hounsfield = stored - 600.0
    assert abs(ct - np.clip((hounsfield + 160) * 255 / 400, 0, 255)).mean() < 2
    assert mr.shape == (30, 20)
    assert mr[:9].mean() == pytest.approx(127, abs=3)
    assert mr[12:].mean() < 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "../outside.jpg"}, "names '../outside.jpg' as path"),
        ({"path": "/outside.jpg"}, "it must be a relative path"),
        ({"source_repo": "../../etc"}, "as source_repo"),
        ({"path": "set/b.jpg"}, "lists 'set/b.jpg' twice"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(clones: Path, tmp_path: Path, change: dict[str, str], message: str) -> None:
    rows = [{**row("a", "lab/xrays", "0" * 40, "a.png", b""), **change}, row("b", "lab/xrays", "0" * 40, "b.png", b"")]
    write_list(tmp_path / "list.csv", rows)
    with pytest.raises(FileListError, match=message):
        rebuild(tmp_path / "list.csv", clones, tmp_path / "out")


def test_a_list_that_does_not_say_where_images_are_from_is_refused(clones: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("Split,id,path\nTRAIN,a,a.jpg\n")
    with pytest.raises(FileListError, match="has no column source_repo, commit, original_path"):
        rebuild(tmp_path / "list.csv", clones, tmp_path / "out")
    with pytest.raises(FileListError, match="cannot be read as a CSV file list"):
        rebuild(tmp_path / "absent.csv", clones, tmp_path / "out")
