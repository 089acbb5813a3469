"""The audit as somebody runs it: what is found, what is written, what is never shown, and how it ends."""

from __future__ import annotations

import csv
import getpass
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("scipy")
import cv2
from click.testing import CliRunner
from lcmem_onnx.cli import main
from lcmem_onnx.evaluation.alterations import alter
from lcmem_onnx.runtime.audit.findings import Grade
from lcmem_onnx.runtime.audit.report.html_report import Shown, write_report
from lcmem_onnx.runtime.audit.run import PRIVATE, Audit, Request, audit
from lcmem_onnx.runtime.audit.thresholds import Basis
from lcmem_onnx.runtime.calibration.threshold import calibrate, store_calibration
from lcmem_onnx.runtime.errors import UsageError
from lcmem_onnx.runtime.gallery import Gallery
from lcmem_onnx.runtime.model.encoder import Encoder
from lcmem_onnx.runtime.screening import Screener

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
SECRET = "Mustermann-Erika"
FORMULA = "=cmd calc.png"
MARKUP = "<script>alert(1)</script>.png"


@pytest.fixture(scope="module")
def screener() -> Screener:
    return Screener()


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference, released set and hold-out below a folder that names a patient, as do the reference's and the hold-out's files."""
    root = tmp_path_factory.mktemp("sets") / SECRET
    reference, released, holdout = root / f"reference of {SECRET}", root / "released", root / "holdout"
    for folder in (reference, released / "copies", released / "others", holdout):
        folder.mkdir(parents=True)
    for path in (EXAMPLES / "gallery").iterdir():
        shutil.copy(path, reference / f"{SECRET} {path.name}")
    for path in (EXAMPLES / "queries").iterdir():
        shutil.copy(path, released / ("copies" if path.stem.startswith("copy") else "others") / path.name)
    shutil.copy(EXAMPLES / "gallery" / "hubble_deep_field.jpg", released / "copies" / "identical.jpg")
    retina = cv2.imread(str(EXAMPLES / "gallery" / "retina.jpg"))
    for name, turns in ((FORMULA, 1), (MARKUP.replace("/", "_"), 1)):
        cv2.imwrite(
            str(released / "copies" / name), alter(retina[..., ::-1], "jpeg", 40.0 + turns, np.random.default_rng(0))[..., ::-1]
        )
    (released / "others" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    (released / "notes.txt").write_text("no image")
    rng = np.random.default_rng(5)
    for number in range(12):
        smooth = cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (96, 80), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(holdout / f"{SECRET} {number}.png"), smooth)
    (root / "labels.csv").write_text("path,class,ds_name\ncopies/identical.jpg,sky,A\nothers/other-coffee.jpg,cup,B\n")
    return root


def request_of(sets: Path, out: Path, **changes: object) -> Request:
    asked = Request(sets / "released", sets / f"reference of {SECRET}", out, sets / "holdout", labels=sets / "labels.csv")
    return replace(asked, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done(screener: Screener, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    done = audit(screener, request_of(sets, tmp_path_factory.mktemp("out") / "report"))
    write_report(done, Shown(command="lcmem-onnx audit --released RELEASED"))
    return done


def read(done: Audit) -> tuple[dict[str, object], list[dict[str, str]], str]:
    out = done.request.out
    table = list(csv.DictReader(io.StringIO((out / "pictures.csv").read_text(encoding="utf-8"))))
    return json.loads((out / "report.json").read_text()), table, (out / "report.html").read_text(encoding="utf-8")


def test_copies_are_found_and_graded_and_others_are_not(done: Audit) -> None:
    grades = {finding.name: finding.grade for finding in done.findings}
    assert grades["copies/identical.jpg"] is Grade.IDENTICAL
    assert grades["others/broken.png"] is Grade.UNREADABLE
    for name, grade in grades.items():
        if name.startswith("copies/") and name != "copies/identical.jpg":
            assert grade is Grade.MEMORIZED, name
        elif name.startswith("others/") and name != "others/broken.png":
            assert grade in (Grade.CLEAR, Grade.NEAR), name
    for finding in done.findings:
        if finding.name.startswith("copies/copy-of-"):
            assert finding.nearest is not None
            assert Path(finding.nearest.key).stem.split(" ")[1] in finding.name


def test_the_files_agree_with_each_other_and_with_the_findings(done: Audit) -> None:
    content, table, page = read(done)
    assert [row["grade"] for row in table] == [finding.grade.value for finding in done.findings]
    found = sum(finding.found for finding in done.findings)
    assert content["schema_version"] == 1
    assert content["counts"]["found"]["count"] == found == 8  # type: ignore[index]
    assert content["counts"]["unreadable"]["count"] == 1  # type: ignore[index]
    assert len(content["found"]) == found  # type: ignore[arg-type]
    assert [pair["score"] for pair in content["found"][1:]] == sorted((p["score"] for p in content["found"][1:]), reverse=True)  # type: ignore[index]
    assert all(f'id="finding-{number}"' in page for number in range(1, found + 1))
    assert page.count('src="data:image/jpeg;base64,') == found  # released images alone
    (cluster,) = content["clusters"]["references_shown_by_several"]  # type: ignore[index]
    assert cluster["released_total"] == 3
    groups = content["groups"]
    assert {group["name"]: group["found"]["count"] for group in groups["folder"]} == {"copies": 8, "others": 0}  # type: ignore[index]
    assert {group["name"] for group in groups["class"]} == {"(none)", "sky", "cup"}  # type: ignore[index]
    assert content["not_checked"]["released_other_files"] == 1  # type: ignore[index]
    assert content["threshold"]["basis"] in ("holdout", "bundle")  # type: ignore[index]
    assert content["holdout_tests"]["pictures"] == 12  # type: ignore[index]


def test_the_page_is_whole_without_a_network_or_scripts(done: Audit) -> None:
    _, _, page = read(done)
    assert "default-src 'none'" in page
    for outside in ("http://", "https://", "<script", "<link", "@import", "url("):
        without_svg_names = page.replace("http://www.w3.org/", "").replace("url(#", "")
        assert outside not in without_svg_names, outside
    assert MARKUP.replace("/", "_").replace("<", "&lt;").replace(">", "&gt;") in page


def test_nothing_that_is_passed_on_names_a_patient_a_user_or_a_folder(done: Audit, sets: Path) -> None:
    out = done.request.out
    passed_on = [path for path in out.rglob("*") if path.is_file() and PRIVATE not in path.relative_to(out).parts]
    assert {path.name for path in passed_on} == {"report.html", "report.json", "pictures.csv"}
    secrets = [SECRET, str(sets), str(out), str(EXAMPLES.parent), os.path.expanduser("~"), platform.node()]
    secrets += [name for name in (getpass.getuser(),) if name != "root"]
    secrets += [path.name for path in (EXAMPLES / "gallery").iterdir()]
    for path in passed_on:
        text = re.sub(r'"data:[^"]*"', "", path.read_text(encoding="utf-8"))
        for secret in secrets:
            assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text), (path.name, secret)
    assert SECRET in (out / PRIVATE / "pseudonyms.csv").read_text()
    assert (out / PRIVATE).stat().st_mode & 0o077 == 0
    assert (out / PRIVATE / "pseudonyms.csv").stat().st_mode & 0o077 == 0


def test_a_name_is_no_formula_in_a_spreadsheet(done: Audit) -> None:
    _, table, _ = read(done)
    assert not [row["path"] for row in table if row["path"].startswith(("=", "+", "-", "@"))]
    top = replace(done.findings[0], name=FORMULA)
    from lcmem_onnx.runtime.audit.report.html_report import _csv

    assert f"'{FORMULA}".encode() in _csv(replace(done, findings=[top]))


def test_reference_images_are_shown_on_request_alone_and_without_their_names(done: Audit, tmp_path: Path) -> None:
    out = tmp_path / "shown"
    (out / PRIVATE).mkdir(parents=True)
    shown = replace(done, request=replace(done.request, out=out))
    write_report(shown, Shown(reference=True, images=3))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg;base64,') == 6
    assert "without images" in page  # the further five
    assert SECRET not in page
    assert "this report is personal data" in page


def test_a_second_run_embeds_nothing_and_says_the_same(done: Audit, screener: Screener, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Encoder, batch: object) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr(Encoder, "embed_resized", never)
    again = audit(screener, done.request)
    assert [(f.name, f.grade, f.score) for f in again.findings] == [(f.name, f.grade, f.score) for f in done.findings]
    assert {again.pseudonyms.name(key): key for key in done.pseudonyms.given} == {
        name: key for key, name in done.pseudonyms.given.items()
    }


def test_an_interrupted_run_goes_on_where_it_was(
    sets: Path, screener: Screener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[int] = []
    real = Encoder.embed_resized

    def counting(self: Encoder, batch: np.ndarray) -> np.ndarray:
        embedded.append(len(batch))
        if sum(embedded) > 10 and not resumed:
            raise KeyboardInterrupt
        return real(self, batch)

    resumed = False
    monkeypatch.setattr(Encoder, "embed_resized", counting)
    with pytest.raises(KeyboardInterrupt):
        audit(screener, request_of(sets, tmp_path / "out", labels=None))
    before = sum(embedded)
    resumed = True
    done = audit(screener, request_of(sets, tmp_path / "out", labels=None))
    total = len(done.reference.items) + len(done.released.readable) + len(done.holdout.items)  # type: ignore[union-attr]
    assert sum(embedded) - before < total - 5


def test_more_looks_find_more_and_say_what_they_change(sets: Path, screener: Screener, tmp_path: Path) -> None:
    out = tmp_path / "tta"
    done = audit(screener, request_of(sets, out, tta=True, labels=None))
    assert done.looking is not None
    assert done.looking.ways == done.released.looks == 6
    assert all(f.score is None or (f.plain_score or 0) <= f.score for f in done.findings)
    write_report(done, Shown())
    assert "With <code>--tta</code> each image was looked at in 6 ways" in (out / "report.html").read_text()
    alone = audit(screener, request_of(sets, out, tta=True, labels=None, holdout=None))
    plain = audit(screener, request_of(sets, out, labels=None, holdout=None))
    assert alone.chance.count is not None
    assert plain.chance.count is not None
    assert alone.chance.count.high > plain.chance.count.high  # more looks, more by chance


def test_an_index_serves_as_reference_without_its_images(sets: Path, screener: Screener, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(sets / f"reference of {SECRET}", moved)
    with Gallery.create(tmp_path / "idx", screener.bundle) as gallery:
        list(screener.index([moved], gallery))
    here = audit(screener, request_of(sets, tmp_path / "out", reference=tmp_path / "idx", labels=None))
    assert {f.grade for f in here.findings if f.name.startswith("copies/copy")} == {Grade.MEMORIZED}
    shutil.rmtree(moved)
    gone = audit(screener, request_of(sets, tmp_path / "out", reference=tmp_path / "idx", labels=None))
    assert {f.grade for f in gone.findings if f.name.startswith("copies/copy")} == {Grade.MATCH}
    assert {f.grade for f in gone.findings if f.name == "copies/identical.jpg"} == {Grade.IDENTICAL}
    write_report(gone, Shown(reference=True))
    for path in (tmp_path / "out").glob("*.*"):
        assert SECRET not in path.read_text(), path
        assert str(tmp_path) not in path.read_text(), path
    by_graph = audit(screener, request_of(sets, tmp_path / "out", reference=tmp_path / "idx", labels=None, search="hnsw"))
    assert not by_graph.exact
    assert [f.grade for f in by_graph.findings] == [f.grade for f in gone.findings]


def test_no_match_through_the_graph_is_not_no_match(screener: Screener, tmp_path: Path) -> None:
    """The graph may have missed one: neither the title nor the exit code says that nothing was found."""
    for folder, names in (("reference", ("camera.jpg", "retina.jpg")), ("released", ("other-rocket.jpg",))):
        (tmp_path / folder).mkdir()
        for name in names:
            shutil.copy(next(EXAMPLES.rglob(name)), tmp_path / folder / name)
    with Gallery.create(tmp_path / "idx", screener.bundle) as gallery:
        list(screener.index([tmp_path / "reference"], gallery))
    arguments = ["--released", str(tmp_path / "released"), "--reference", str(tmp_path / "idx"), "--out", str(tmp_path / "out")]
    for search, verdict, code in (("exact", "none", 0), ("hnsw", "incomplete", 2)):
        done = CliRunner().invoke(main, ["audit", *arguments, "--search", search, "--json", "-q"])
        assert (done.exit_code, json.loads(done.stdout)["verdict"]) == (code, verdict), done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["answer"]["title"] == "No match was found, but the search graph may have missed one"
    assert report["repeat"]["search_is_exact"] is False


def test_a_calibrated_indexs_threshold_and_promise_are_used(sets: Path, screener: Screener, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", screener.bundle) as gallery:
        list(screener.index([sets / f"reference of {SECRET}"], gallery))
        tops = np.linspace(0.62, 0.001, 60)[:, None] * np.array([1.0, 0.5])
        calibration = calibrate(tops, gallery.vectors(), 0.05, screener.bundle.fingerprint)
        store_calibration(gallery, calibration)
    asked = request_of(sets, tmp_path / "out", reference=tmp_path / "idx", labels=None, holdout=None)
    done = audit(screener, asked)
    assert done.limit.basis is done.chance.basis is Basis.INDEX
    assert done.limit.value == pytest.approx(calibration.threshold)
    assert done.chance.count is not None
    assert done.chance.count.low <= 0.05 * sum(f.score is not None for f in done.findings) <= done.chance.count.high
    write_report(done, Shown())
    assert "by the index" in (tmp_path / "out" / "report.html").read_text()
    given = audit(screener, replace(asked, threshold=0.9))
    assert (given.limit.basis, given.limit.value) == (Basis.GIVEN, 0.9)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"reference": Path("nothing-here")}, UsageError, "nothing-here cannot be searched"),
        ({"released": Path("nothing-here")}, UsageError, "nothing-here cannot be searched"),
        ({"holdout": Path("nothing-here")}, UsageError, "nothing-here cannot be searched"),
        ({"holdout": EXAMPLES / "gallery", "reference": EXAMPLES / "gallery"}, UsageError, "is not in the reference too"),
        ({"threshold": 1.5}, UsageError, "must be between 0 and 1"),
        ({"wanted": 0.0}, UsageError, "makes no sense"),
        ({"labels": Path("nothing.csv")}, UsageError, "cannot be read"),
    ],
)
def test_what_cannot_be_audited_is_said(
    sets: Path, screener: Screener, tmp_path: Path, change: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        audit(screener, request_of(sets, tmp_path / "out", **change))
    assert not (tmp_path / "out" / "report.html").exists()


def test_an_empty_folder_is_no_set(sets: Path, screener: Screener, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for part in ("released", "reference", "holdout"):
        with pytest.raises(UsageError, match="empty"):
            audit(screener, request_of(sets, tmp_path / "out", **{part: tmp_path / "empty"}))


def test_an_older_report_stays_whole_when_a_new_one_fails(done: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (done.request.out / "report.html").read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UsageError, match="No space left"):
        write_report(done, Shown())
    assert (done.request.out / "report.html").read_bytes() == before
    assert not [path for path in done.request.out.iterdir() if path.name.startswith(".report")]


# -- the command --------------------------------------------------------------------------------------------------------


def test_exit_codes_are_clamscans_and_output_is_for_people_or_programs(sets: Path, tmp_path: Path) -> None:
    reference = str(sets / f"reference of {SECRET}")

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["audit", "--reference", reference, "--out", str(tmp_path / "out"), "-q", *arguments])
        return result.exit_code, result.stdout

    code, out = run("--released", str(sets / "released" / "copies"))
    assert code == 1
    assert "8 released images of 8 match the reference" in out
    code, out = run("--released", str(EXAMPLES / "queries" / "other-coffee.jpg"), "--json")
    assert code == 0
    line = json.loads(out)
    assert (line["verdict"], line["found"], line["released"]) == ("none", 0, 1)
    assert {Path(path).name for path in line["files"]} == {"report.html", "report.json", "pictures.csv"}
    code, _ = run("--released", str(sets / "released" / "others"))
    assert code == 2  # one could not be read
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["answer"]["verdict"] == "incomplete"
    assert report["repeat"]["command"].startswith("lcmem-onnx audit --released RELEASED --reference REFERENCE")


def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'jinja2': raise ModuleNotFoundError('no', name='jinja2')\n"
        "sys.meta_path.insert(0, No())\n"
        "from lcmem_onnx.cli import main; main()"
    )
    arguments = ["audit", "--released", str(tmp_path), "--reference", str(tmp_path), "--out", str(tmp_path / "out")]
    finished = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert finished.stderr.splitlines() == ["error: audit requires the package jinja2: pip install 'lcmem-onnx[audit]'"]


def test_a_pdf_is_written_and_images_can_be_read_after_it(done: Audit, tmp_path: Path) -> None:
    out = tmp_path / "pdf"
    (out / PRIVATE).mkdir(parents=True)
    printed = replace(done, request=replace(done.request, out=out))
    try:
        written = write_report(printed, Shown(reference=True, images=2, pdf=True))
    except UsageError as error:
        pytest.skip(str(error))
    assert out / "report.pdf" in written
    data = (out / "report.pdf").read_bytes()
    assert data.startswith(b"%PDF-")
    assert SECRET.encode() not in data
    assert "can no longer be read" not in (out / "report.html").read_text()
