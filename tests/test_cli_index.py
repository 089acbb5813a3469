"""`index` and `scan` with groups, erasure and verification, as a user calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner, Result
from lcmem_onnx.cli import main
from lcmem_onnx.runtime.calibration.threshold import calibrate, store_calibration
from lcmem_onnx.runtime.gallery import Gallery
from lcmem_onnx.runtime.model.bundle import open_bundle
from lcmem_onnx.runtime.privacy import SiteKey
from pydicom.data import get_testdata_file


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


@pytest.fixture
def bundle(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LCMEM_ONNX_BUNDLE", str(tiny_bundle))


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """Three objects of two patients, one of them of a house that says so."""
    folder = tmp_path / "objects"
    folder.mkdir()
    for name, patient, issuer in (("a", "4711", ""), ("b", "4711", ""), ("c", "4711", "St. Mary")):
        dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        dataset.PatientID, dataset.IssuerOfPatientID = patient, issuer
        dataset.StudyInstanceUID = f"1.2.{ord(name)}"
        pixels = dataset.pixel_array.copy()
        pixels[: 40 + 20 * (ord(name) - 97)] //= 2
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(folder / f"{name}.dcm")
    return folder


@pytest.mark.usefixtures("bundle")
def test_patients_and_groups_from_building_to_erasing(objects: Path, images: Path, tmp_path: Path) -> None:
    index = str(tmp_path / "idx")
    assert run("index", "build", str(objects), "--index", index, "--gallery", "ct", "-q").exit_code == 0
    assert run("index", "add", str(images), "--index", index, "--gallery", "drawn", "-q").exit_code == 0
    info = json.loads(run("index", "info", "--index", index, "--json").stdout)
    assert info["galleries"] == {
        "ct": {"pictures": 3, "frames": 3, "patients": 2},
        "drawn": {"pictures": 6, "frames": 6, "patients": 0},
    }
    assert "6 images, 6 frames, 0 patients" in run("index", "info", "--index", index).stdout

    line = json.loads(
        run("scan", str(objects / "a.dcm"), "--index", index, "--gallery", "ct", "--json", "-q").stdout.splitlines()[0]
    )
    key = SiteKey.open()
    assert line["matches"][0]["patient"] == line["identities"][0]["patient"] == key.patient("4711")
    assert line["matches"][0]["study"] == key.study("1.2.97")
    assert line["identities"][0]["score"] == line["matches"][0]["score"]
    assert line["complete"] is True
    line = json.loads(
        run("scan", str(objects / "a.dcm"), "--index", index, "--gallery", "drawn", "--json", "-q").stdout.splitlines()[0]
    )
    assert {hit["gallery"] for hit in [line["nearest"], *line["matches"]]} == {"drawn"}
    wrong = run("scan", str(objects / "a.dcm"), "--index", index, "--gallery", "nobody", "-q")
    assert wrong.exit_code == 2

    removed = run("index", "remove", "--index", index, "--patient", "4711", "--json")
    assert (removed.exit_code, json.loads(removed.stdout)) == (0, {"schema_version": 1, "removed": 2, "frames_left": 7})
    again = run("index", "remove", "--index", index, "--patient", "4711")
    assert again.exit_code == 2
    assert "give --issuer" in again.stderr
    assert run("index", "remove", "--index", index, "--patient", "4711", "--issuer", "St. Mary").exit_code == 0
    assert run("index", "remove", "--index", index, "--key", str(images / "0.png")).exit_code == 0
    assert run("index", "remove", "--index", index, "--gallery", "drawn").exit_code == 0
    assert b"4711" not in b"".join(path.read_bytes() for path in (tmp_path / "idx").iterdir())


@pytest.mark.usefixtures("bundle")
def test_an_index_is_compacted_and_verified(images: Path, tmp_path: Path) -> None:
    index = str(tmp_path / "idx")
    assert run("index", "build", str(images), "--index", index, "--graph", "-q").exit_code == 0
    assert run("index", "compact", "--index", index).exit_code == 0
    sound = run("index", "verify", "--index", index, "--threshold", "0.9", "--json")
    report = json.loads(sound.stdout)
    assert (sound.exit_code, report["problems"], report["checked"]["vectors"]) == (0, [], 6)
    assert report["checked"]["vectors in the graph"] == 6
    assert report["graph"]["recall"] == 1.0
    assert "6 vectors intact" in run("index", "verify", "--index", index).stdout
    (graph,) = (tmp_path / "idx").glob("graph-*.hnsw")
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    damaged = run("index", "verify", "--index", index)
    assert damaged.exit_code == 2
    assert "sha256 differs" in damaged.stderr
    assert "Traceback" not in damaged.output


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "remove"], "no images selected"),
        (["index", "remove", "--issuer", "x", "--key", "y"], "--issuer requires --patient"),
        (["index", "remove", "--patient", "1", "--patient-pseudonym", "y"], "not both"),
        (["index", "remove", "--key", "/nowhere.png"], "no images in"),
        (["index", "add", "PICTURES", "--gallery", "two\nlines"], "invalid gallery name"),
    ],
)
def test_wrong_requests_end_with_2_and_harm_nothing(arguments: list[str], message: str, images: Path, tmp_path: Path) -> None:
    index = str(tmp_path / "idx")
    assert run("index", "build", str(images), "--index", index, "-q").exit_code == 0
    wrong = run(*[str(images) if one == "PICTURES" else one for one in arguments], "--index", index)
    assert wrong.exit_code == 2
    assert message in wrong.output
    assert len(json.loads(run("index", "info", "--index", index, "--json").stdout)["galleries"]) == 1


@pytest.mark.usefixtures("bundle")
def test_a_truncated_database_is_one_line_and_exit_code_2(images: Path, tmp_path: Path) -> None:
    assert run("index", "build", str(images), "--index", str(tmp_path / "idx"), "-q").exit_code == 0
    path = tmp_path / "idx" / "gallery.sqlite"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for command in (["index", "verify"], ["index", "info"], ["scan", str(images)], ["index", "add", str(images)]):
        result = run(*command, "--index", str(tmp_path / "idx"))
        assert result.exit_code == 2, command
        assert "is damaged" in result.stderr
        assert "Traceback" not in result.output
    shutil.rmtree(tmp_path / "idx")


@pytest.mark.usefixtures("bundle")
def test_a_scan_of_some_groups_says_how_many_images_they_hold_and_refuses_others_at_once(images: Path, tmp_path: Path) -> None:
    index, none = str(tmp_path / "idx"), tmp_path / "none"
    none.mkdir()
    one = str(images / "0.png")
    assert run("index", "build", str(images), "--index", index).exit_code == 0
    assert run("index", "add", one, "--index", index, "--gallery", "ward").exit_code == 0
    assert "against 1 in the gallery" in run("scan", one, "--index", index, "--gallery", "ward").stdout
    for path in (one, str(none)):  # nothing to screen is no excuse: a script would take it for clear
        mistyped = run("scan", path, "--index", index, "--gallery", "wrad")
        assert (mistyped.exit_code, mistyped.stdout) == (2, "")
        assert "no gallery 'wrad'" in mistyped.stderr


@pytest.mark.usefixtures("bundle")
def test_erasing_one_image_takes_it_out_of_the_graph_without_alarm(images: Path, tmp_path: Path) -> None:
    index = str(tmp_path / "idx")
    assert run("index", "build", str(images), "--index", index, "--graph").exit_code == 0
    done = run("index", "remove", "--index", index, "--key", str(images / "0.png"))
    assert (done.exit_code, "warning" in done.stderr) == (0, False), done.stderr
    assert done.stdout.startswith("1 image removed")
    assert run("index", "verify", "--index", index).exit_code == 0


def test_info_shows_the_site_key_s_name_and_the_calibrated_threshold(
    bundle: None, objects: Path, tmp_path: Path, tiny_bundle: Path
) -> None:
    folder = str(tmp_path / "idx")
    run("index", "build", str(objects), "--index", folder, "-q")
    plain = json.loads(run("index", "info", "--index", folder, "--json").stdout)
    assert plain["site_key"] == SiteKey.open().name
    assert plain["calibration"] is None
    assert "none: scans use the bundle's threshold for pairs" in " ".join(run("index", "info", "--index", folder).stdout.split())
    with Gallery.open(folder, open_bundle(tiny_bundle), read_only=False) as gallery:
        tops = np.linspace(0.05, 0.9, 200)[:, None]
        calibration = calibrate(tops, gallery.vectors(), 0.05, gallery.bundle.fingerprint)
        store_calibration(gallery, calibration)
    shown = json.loads(run("index", "info", "--index", folder, "--json").stdout)["calibration"]
    assert shown["threshold"] == calibration.threshold
    assert shown["wanted_fpir"] == 0.05
    assert shown["threshold_interval"] == [calibration.threshold_interval.low, calibration.threshold_interval.high]
    assert shown["date"] == calibration.date
    text = " ".join(run("index", "info", "--index", folder).stdout.split())
    assert f"threshold {calibration.threshold:.4f}" in text
    assert f"set for this index on {calibration.date[:10]}" in text
    assert "target 5 %" in text


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize("what", ["texts", "nothing", "a damaged image", "an image that is not read"])
@pytest.mark.parametrize("options", [[], ["-q"], ["--json"], ["--graph"]])
def test_a_folder_without_an_image_leaves_no_index(what: str, options: list[str], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if what == "texts":
        (source / "notes.md").write_text("a note\n")
    elif what == "a damaged image":
        (source / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    elif what == "an image that is not read":
        (source / "a.psd").write_bytes(b"8BPS\0\1" + bytes(100))
    index = tmp_path / "idx"
    done = run("index", "build", str(source), "--index", str(index), *options)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == f"error: no image could be added: no index was created in {index}"
    assert "next" not in done.output
    assert not index.exists()
    if options == ["--json"]:
        summary = json.loads(done.stdout.splitlines()[-1])["summary"]
        assert (summary["new"], summary["error"]) == (0, 1)


@pytest.mark.usefixtures("bundle")
def test_a_folder_without_an_image_leaves_what_else_the_index_folder_holds(images: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    index = tmp_path / "idx"
    index.mkdir()
    (index / "mine.txt").write_text("mine")
    assert run("index", "build", str(tmp_path / "texts"), "--index", str(index), "-q").exit_code == 2
    assert [path.name for path in index.iterdir()] == ["mine.txt"]
    assert run("index", "build", str(images), "--index", str(index), "-q").exit_code == 0
    # An index that is there stays, and what is wrong is said.
    added = run("index", "add", str(tmp_path / "texts"), "--index", str(index))
    assert (added.exit_code, "the index contains 6 frames" in added.stdout) == (2, True)
    assert run("index", "remove", "--index", str(index), "--gallery", "default").exit_code == 0
    added = run("index", "add", str(tmp_path / "texts"), "--index", str(index))
    assert added.stderr.splitlines()[-1] == f"error: no image could be added: {index} is empty"
    assert (index / "gallery.sqlite").exists()


@pytest.mark.parametrize("named", [True, False])
def test_the_command_that_is_proposed_next_names_the_bundle_where_this_one_did(
    named: bool, tiny_bundle: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not named:
        monkeypatch.setenv("LCMEM_ONNX_BUNDLE", str(tiny_bundle))  # which the next command finds too
    given = ["--bundle", str(tiny_bundle)] if named else []
    index, file = str(tmp_path / "idx"), str(tmp_path / "out.npz")
    for command, proposed in (
        (["index", "build", str(images), "--index", index], f"scan PATH --index {index}"),
        (["index", "add", str(images), "--index", index], f"scan PATH --index {index}"),
        (["index", "compact", "--index", index], f"index verify --index {index}"),
        (["index", "upgrade", index], f"index verify --index {index}"),
        (["index", "export", "--index", index, "--out", file], f"index import {file} --index DIR"),
        (["index", "import", file, "--index", index], f"calibrate --index {index} --negatives DIR"),
    ):
        done = run(*command, *given)
        assert done.exit_code == 0
        expected = f"next  lcmem-onnx {proposed}" + (f" --bundle {tiny_bundle}" if named else "")
        assert expected in done.stdout.splitlines()
