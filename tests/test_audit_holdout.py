"""A hold-out that holds what it should not: what is noticed, what is left out, and how it is told."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("scipy")
import cv2
import pydicom
from click.testing import CliRunner
from lcmem_onnx.cli import main
from lcmem_onnx.evaluation.alterations import alter
from lcmem_onnx.runtime.audit.patients import LISTED, Patients
from lcmem_onnx.runtime.audit.report.html_report import Shown, write_report
from lcmem_onnx.runtime.audit.run import Audit, Request, audit
from lcmem_onnx.runtime.audit.suspects import Other, Suspicion
from lcmem_onnx.runtime.errors import UsageError
from lcmem_onnx.runtime.gallery import Gallery
from lcmem_onnx.runtime.screening import Screener
from numpy.typing import NDArray

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
REFERENCE = ("astronaut", "camera", "chelsea", "hubble_deep_field", "retina")
STRANGERS = 24
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def screener() -> Screener:
    return Screener()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the reports of all tests: what one embedded, the others need not."""
    return tmp_path_factory.mktemp("out") / "report"


def smooth(seed: int) -> Pixels:
    rng = np.random.default_rng(seed)
    return np.asarray(
        cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (96, 80), interpolation=cv2.INTER_CUBIC), np.uint8
    )


@pytest.fixture
def sets(tmp_path: Path, report: Path) -> Path:
    """A reference of photographs, a release and a hold-out of others, and a link to the reports' folder."""
    report.mkdir(exist_ok=True)
    (tmp_path / "report").symlink_to(report, target_is_directory=True)
    for name in ("reference", "released", "holdout"):
        (tmp_path / name).mkdir()
    for name in REFERENCE:
        shutil.copy(EXAMPLES / "gallery" / f"{name}.jpg", tmp_path / "reference")
    for path in (EXAMPLES / "queries").glob("other-*.jpg"):
        shutil.copy(path, tmp_path / "released")
    for number in range(STRANGERS):
        cv2.imwrite(str(tmp_path / "holdout" / f"stranger {number:02d}.png"), smooth(number))
    return tmp_path


def original(name: str) -> Pixels:
    return np.asarray(cv2.imread(str(EXAMPLES / "gallery" / f"{name}.jpg")), np.uint8)


def put(sets: Path, name: str, pixels: Pixels, *parameters: int) -> None:
    assert cv2.imwrite(str(sets / name), pixels, list(parameters))


def run(screener: Screener, sets: Path, **changes: object) -> Audit:
    request = Request(sets / "released", sets / "reference", sets / "report", sets / "holdout")
    return audit(screener, replace(request, **changes))  # type: ignore[arg-type]


def found(done: Audit) -> dict[str, tuple[Suspicion, Other, str | None]]:
    assert done.tests is not None
    assert done.holdout is not None
    items = done.holdout.items
    suspects = (*done.tests.suspects, *done.tests.repeated)
    return {items[suspect.index].name: (suspect.suspicion, suspect.other, suspect.key) for suspect in suspects}


ALTERED = {
    "recompressed": lambda pixels, rng: alter(pixels, "jpeg", 30.0, rng),
    "half the size": lambda pixels, rng: cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "twice as wide": lambda pixels, rng: cv2.resize(pixels, None, fx=2, fy=1, interpolation=cv2.INTER_LINEAR),
    "cropped": lambda pixels, rng: pixels[int(0.1 * len(pixels)) :, : int(0.92 * pixels.shape[1])],
    "darker": lambda pixels, rng: alter(pixels, "brightness", 0.7, rng),
    "brighter": lambda pixels, rng: alter(pixels, "brightness", 1.3, rng),
    "mirrored": lambda pixels, rng: pixels[:, ::-1],
    "upside down": lambda pixels, rng: pixels[::-1],
    "a quarter turn": lambda pixels, rng: np.rot90(pixels),
    "mirrored and cropped": lambda pixels, rng: pixels[int(0.08 * len(pixels)) :, ::-1],
    "turned a little": lambda pixels, rng: alter(pixels, "rotation", 8.0, rng),
}


def test_a_clean_holdout_raises_no_suspicion(screener: Screener, sets: Path) -> None:
    done = run(screener, sets)
    assert found(done) == {}
    assert done.tests is not None
    assert done.tests.images == STRANGERS
    write_report(done, Shown())
    page = (sets / "report" / "report.html").read_text()
    assert '<section id="answer" class="answer none">' in page
    assert 'id="suspects"' not in page
    assert json.loads((sets / "report" / "report.json").read_text())["holdout_tests"]["suspects"] == []
    assert not (sets / "report" / "private" / "suspects.csv").exists()


@pytest.mark.parametrize("how", ALTERED)
def test_altered_copies_of_reference_images_are_left_out(screener: Screener, sets: Path, how: str) -> None:
    for name in REFERENCE:
        copy = ALTERED[how](original(name), np.random.default_rng(0))
        put(sets, f"holdout/x-{name}.jpg", np.ascontiguousarray(copy), cv2.IMWRITE_JPEG_QUALITY, 85)
    done = run(screener, sets)
    expected = {f"x-{name}.jpg": (Suspicion.ALTERED_COPY, Other.REFERENCE, f"{name}.jpg") for name in REFERENCE}
    assert found(done) == expected
    assert done.tests is not None
    assert done.tests.images == STRANGERS


def test_each_pair_of_sets_is_looked_at_and_each_image_named_once(screener: Screener, sets: Path) -> None:
    shutil.copy(EXAMPLES / "gallery" / "camera.jpg", sets / "holdout" / "file of the reference.jpg")
    put(sets, "holdout/pixels of the reference.png", original("retina"))
    shutil.copy(EXAMPLES / "queries" / "other-coffee.jpg", sets / "holdout" / "file of the release.jpg")
    rocket = np.asarray(cv2.imread(str(EXAMPLES / "queries" / "other-rocket.jpg")), np.uint8)
    put(sets, "holdout/copy of the release.jpg", rocket[:, ::-1], cv2.IMWRITE_JPEG_QUALITY, 60)
    shutil.copy(sets / "holdout" / "stranger 03.png", sets / "holdout" / "stranger 03 again.png")
    put(sets, "holdout/stranger 04 again.jpg", smooth(4)[::-1], cv2.IMWRITE_JPEG_QUALITY, 90)
    put(sets, "holdout/stranger 05 again.bmp", smooth(5))
    done = run(screener, sets)
    assert found(done) == {
        "file of the reference.jpg": (Suspicion.SAME_FILE, Other.REFERENCE, "camera.jpg"),
        "pixels of the reference.png": (Suspicion.SAME_PIXELS, Other.REFERENCE, "retina.jpg"),
        "file of the release.jpg": (Suspicion.SAME_FILE, Other.RELEASED, "other-coffee.jpg"),
        "copy of the release.jpg": (Suspicion.ALTERED_COPY, Other.RELEASED, "other-rocket.jpg"),
        "stranger 03.png": (Suspicion.SAME_FILE, Other.HOLDOUT, "stranger 03 again.png"),  # the first in order counts
        "stranger 04.png": (Suspicion.ALTERED_COPY, Other.HOLDOUT, "stranger 04 again.jpg"),
        "stranger 05.png": (Suspicion.SAME_PIXELS, Other.HOLDOUT, "stranger 05 again.bmp"),
    }
    assert done.tests is not None
    assert len(done.tests.repeated) == 3
    assert done.tests.images == STRANGERS
    assert len(done.tests.scores) == STRANGERS
    kept = run(screener, sets, suspects="keep")
    assert kept.tests is not None
    assert kept.tests.images == STRANGERS + 1  # certain ones and repetitions never count
    assert [suspect.suspicion for suspect in kept.tests.kept] == [Suspicion.ALTERED_COPY]


def test_suspects_are_named_in_the_title_the_files_and_the_exit_code(sets: Path) -> None:
    for name in REFERENCE[:3]:
        put(sets, f"holdout/Mustermann-{name}.jpg", original(name), cv2.IMWRITE_JPEG_QUALITY, 50)

    def command(*more: str) -> tuple[int, str, dict[str, object], str]:
        folders = [text for name in ("released", "reference", "holdout") for text in (f"--{name}", str(sets / name))]
        result = CliRunner().invoke(main, ["audit", *folders, "--out", str(sets / "report"), *more])
        report = json.loads((sets / "report" / "report.json").read_text())
        return result.exit_code, result.stdout, report, (sets / "report" / "report.html").read_text()

    code, out, report, page = command()
    title = "No match was found among 3 released images; 3 suspects left out of the hold-out"
    assert code == 2
    assert out.startswith(title)
    assert str((sets / "report").resolve() / "private" / "suspects.csv") in out
    assert report["answer"]["title"] == title  # type: ignore[index]
    assert report["answer"]["verdict"] == "suspect"  # type: ignore[index]
    assert f"<title>Audit of a release: {title}</title>" in page
    assert '<section id="answer" class="answer suspect">' in page
    tests: dict[str, object] = report["holdout_tests"]  # type: ignore[assignment]
    assert (tests["pictures"], tests["left_out"], tests["left_out_since_in_reference"]) == (STRANGERS, 3, 0)
    assert len(tests["agree_with_reference_by_pixels"]) == 3  # type: ignore[arg-type]
    names = {row["pseudonym"]: row for row in csv.DictReader((sets / "report" / "private" / "suspects.csv").open())}
    for suspect in tests["suspects"]:  # type: ignore[attr-defined]
        assert (suspect["suspicion"], suspect["set"], suspect["left_out"]) == ("altered-copy", "reference", True)
        assert suspect["agreement"] > 0.9
        row = names[suspect["holdout"]]
        assert row["holdout"] == f"Mustermann-{row['resembles']}"
        assert suspect["holdout"] in page
        assert suspect["resembles"] in page
    assert "Mustermann" not in page

    code, out, report, page = command("--suspects", "keep", "-q", "--json")
    assert code == 0
    line = json.loads(out)
    assert (line["verdict"], line["suspects"], line["suspects_left_out"], line["found"]) == ("suspect", 3, 0, 0)
    assert "3 suspects kept in the hold-out" in report["answer"]["title"]  # type: ignore[index]
    assert report["holdout_tests"]["pictures"] == STRANGERS + 3  # type: ignore[index]
    assert "--suspects keep" in report["repeat"]["command"]  # type: ignore[index]

    shutil.copy(EXAMPLES / "gallery" / "camera.jpg", sets / "released")
    code, out, report, page = command("-q")
    assert code == 2  # a match, but from a hold-out that is to be mended
    assert out.startswith("1 released image of 4 matches the reference; 3 suspects left out of the hold-out")
    assert '<section id="answer" class="answer found">' in page


def test_a_contaminated_holdout_hides_no_match(screener: Screener, sets: Path) -> None:
    """As reported: recompressed reference images in the hold-out raised the threshold above every copy in the release."""
    rng = np.random.default_rng(1)
    for name in REFERENCE:
        put(sets, f"holdout/x-{name}.jpg", original(name), cv2.IMWRITE_JPEG_QUALITY, 90)
        put(sets, f"released/y-{name}.png", alter(original(name), "blur", 6.0, rng))
    done = run(screener, sets)
    assert {finding.name for finding in done.findings if finding.found} == {f"y-{name}.png" for name in REFERENCE}
    assert all((finding.score or 0) >= done.limit.value for finding in done.findings if finding.found)
    kept = run(screener, sets, suspects="keep")
    assert not any((finding.score or 0) >= kept.limit.value for finding in kept.findings)


def test_a_holdout_of_nothing_else_is_refused(screener: Screener, sets: Path) -> None:
    with pytest.raises(UsageError, match="is not in the release too"):
        run(screener, sets, holdout=EXAMPLES / "queries", released=EXAMPLES / "queries")
    (sets / "copies").mkdir()
    for name in REFERENCE:
        put(sets, f"copies/{name}.jpg", original(name)[:, ::-1], cv2.IMWRITE_JPEG_QUALITY, 90)
    with pytest.raises(UsageError, match="is not in the reference too"):
        run(screener, sets, holdout=sets / "copies")


# -- an index -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", ["auto", "hnsw"])
def test_an_indexs_images_are_compared_where_they_are_at_hand(screener: Screener, sets: Path, search: str) -> None:
    with Gallery.create(sets / "idx", screener.bundle) as gallery:
        list(screener.index([sets / "reference"], gallery))
    for name in ("camera", "retina"):
        put(sets, f"holdout/x-{name}.jpg", original(name), cv2.IMWRITE_JPEG_QUALITY, 60)
    at_hand = run(screener, sets, reference=sets / "idx", search=search)
    assert found(at_hand) == {
        f"x-{name}.jpg": (Suspicion.ALTERED_COPY, Other.REFERENCE, str(sets / "reference" / f"{name}.jpg"))
        for name in ("camera", "retina")
    }
    write_report(at_hand, Shown(reference=True))  # when the index is closed
    shutil.move(sets / "reference", sets / "moved")
    moved = run(screener, sets, reference=sets / "idx", search=search)
    assert {(suspicion, other) for suspicion, other, _ in found(moved).values()} == {(Suspicion.LIKE_A_COPY, Other.REFERENCE)}
    assert found(moved).keys() == {"x-camera.jpg", "x-retina.jpg"}
    assert moved.tests is not None
    assert moved.tests.images == STRANGERS


# -- patients -----------------------------------------------------------------------------------------------------------


def dicom(source: Path, to: Path, patient: str | None, issuer: str | None = None) -> None:
    dataset = pydicom.dcmread(source)
    for keyword, value in (("PatientID", patient), ("IssuerOfPatientID", issuer)):
        if value is None:
            dataset.pop(keyword, None)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(to)


def with_headers(sets: Path, ours: str | None, theirs: str | None, issuer: str | None = None) -> None:
    dicom(EXAMPLES / "gallery" / "ct-slice.dcm", sets / "reference" / "ct.dcm", ours)
    dicom(EXAMPLES / "queries" / "other-mr-slice.dcm", sets / "holdout" / "mr.dcm", theirs, issuer)


def test_a_patient_of_the_reference_is_known_by_headers(screener: Screener, sets: Path) -> None:
    with_headers(sets, "4711", "4711 ")
    expected = {"mr.dcm": (Suspicion.SAME_PATIENT, Other.REFERENCE, "ct.dcm")}
    done = run(screener, sets)
    assert found(done) == expected
    assert found(run(screener, sets)) == expected  # from what is kept of the first run
    assert found(run(screener, sets, ignore_patients=True)) == {}
    assert found(run(screener, sets, suspects="keep")) == expected
    assert done.tests is not None
    assert done.tests.images == STRANGERS
    for path in (sets / "report" / "private").iterdir():
        assert b"4711" not in path.read_bytes(), path


@pytest.mark.parametrize(("ours", "theirs", "issuer"), [("1", "2", None), ("1", "1", "another hospital"), (None, None, None)])
def test_other_patients_are_no_suspects(
    screener: Screener, sets: Path, ours: str | None, theirs: str | None, issuer: str | None
) -> None:
    with_headers(sets, ours, theirs, issuer)
    assert found(run(screener, sets)) == {}


def test_released_headers_say_nothing_since_a_release_is_renumbered(screener: Screener, sets: Path) -> None:
    with_headers(sets, "1", "2")
    dicom(EXAMPLES / "gallery" / "ct-slice.dcm", sets / "released" / "ct.dcm", "2")
    assert found(run(screener, sets)) == {}


def test_anonymous_headers_are_told_from_patients_by_the_user(screener: Screener, sets: Path) -> None:
    with_headers(sets, "ANONYMOUS", "ANONYMOUS")
    (sets / "one").mkdir()
    shutil.move(sets / "holdout" / "mr.dcm", sets / "one")
    with pytest.raises(UsageError, match="give images of other patients, or --ignore-patients"):
        run(screener, sets, holdout=sets / "one")


def test_an_indexs_patients_are_compared_by_the_site_key(screener: Screener, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, letter in (("ours.key", "a"), ("other.key", "b")):
        (sets / name).write_text(letter * 64)
        (sets / name).chmod(0o600)
    with_headers(sets, "4711", "4711")
    monkeypatch.setenv("LCMEM_ONNX_SITE_KEY", str(sets / "ours.key"))
    with Gallery.create(sets / "idx", screener.bundle) as gallery:
        list(screener.index([sets / "reference"], gallery))
    done = run(screener, sets, reference=sets / "idx")
    assert found(done) == {"mr.dcm": (Suspicion.SAME_PATIENT, Other.REFERENCE, str(sets / "reference" / "ct.dcm"))}
    monkeypatch.setenv("LCMEM_ONNX_SITE_KEY", str(sets / "other.key"))
    warned: list[str] = []
    request = Request(sets / "released", sets / "idx", sets / "report", sets / "holdout")
    unknown = audit(screener, request, warn=warned.append)
    assert found(unknown) == {}
    assert any("not compared" in line for line in warned)
    write_report(unknown, Shown())
    assert "for want of the site key" in (sets / "report" / "report.html").read_text()


def test_a_list_of_patients_serves_all_sets(screener: Screener, sets: Path) -> None:
    (sets / "patients.csv").write_text(
        "Split,id,path\n"
        "TRAIN,p1,reference/camera.jpg\nTRAIN,p2,released/other-coffee.jpg\n"
        f"TEST,p1,holdout/stranger 01.png\nTEST,p2,{sets}/holdout/stranger 02.png\nTEST,,holdout/stranger 03.png\n"
        "TEST,p4,gone.png\n"
    )
    done = run(screener, sets, patients=sets / "patients.csv")
    expected = {
        "stranger 01.png": (Suspicion.SAME_PATIENT, Other.REFERENCE, "camera.jpg"),
        "stranger 02.png": (Suspicion.SAME_PATIENT, Other.RELEASED, "other-coffee.jpg"),
    }
    assert found(done) == expected
    with Gallery.create(sets / "idx", screener.bundle) as gallery:
        list(screener.index([sets / "reference"], gallery))
    indexed = run(screener, sets, reference=sets / "idx", patients=sets / "patients.csv")
    assert found(indexed).keys() == expected.keys()


def test_a_list_of_patients_is_read_or_refused(tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text("\ufeffpath,patient,note\na.png, p1 ,x\na.png,p1,again\n\nb.png,,\n", encoding="utf-8")
    patients = Patients(listing)
    assert patients.of(tmp_path / "a.png") == f"{LISTED}p1"
    assert patients.of(tmp_path / "b.png") is None
    for text, says in (
        ("path,name\na.png,x\n", "must have the columns path and patient"),
        ("", "must have the columns"),
        ("path,patient\na.png,p1\n./a.png,p2\n", "line 3 gives ./a.png a second patient"),
        ("path,patient\na\0.png,p1\n", "cannot be read"),
    ):
        listing.write_text(text)
        with pytest.raises(UsageError, match=says):
            Patients(listing)
    listing.write_bytes(b"path,patient\n\xff\xfe,p1\n")
    with pytest.raises(UsageError, match="cannot be read"):
        Patients(listing)
    with pytest.raises(UsageError, match="cannot be read"):
        Patients(tmp_path)
    listing.write_text("path,patient\nelsewhere.png,p1\n")
    unused = Patients(listing)
    with pytest.raises(UsageError, match="names none of the audit's images"):
        unused.check_used()
