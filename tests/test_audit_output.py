"""Where a report may be written, what becomes of an earlier one, and who may read what."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("scipy")
import cv2
import numpy as np
from click.testing import CliRunner
from lcmem_onnx.cli import main
from lcmem_onnx.runtime.audit.output_folder import PRIVATE, prepare_output
from lcmem_onnx.runtime.audit.report import outputs
from lcmem_onnx.runtime.audit.report.html_report import FILES, Shown, write_report
from lcmem_onnx.runtime.audit.report.outputs import replace_together
from lcmem_onnx.runtime.audit.run import Audit, Request, audit
from lcmem_onnx.runtime.errors import UsageError
from lcmem_onnx.runtime.gallery import Gallery
from lcmem_onnx.runtime.screening import Screener

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
NAMES = ("page.html", "data.json", "page.pdf", f"{PRIVATE}/names.csv")


@pytest.fixture(scope="module")
def screener() -> Screener:
    return Screener()


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    for name in ("released/a/b", "reference/c", "holdout", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def kept(sets: Path) -> dict[str, Path]:
    return {"the reference": sets / "reference", "the hold-out": sets / "holdout"}


@pytest.mark.parametrize("empty", ["released", "reference", "holdout"])
@pytest.mark.parametrize("text", [False, True])
def test_a_set_without_an_image_ends_an_audit_before_anything_is_written(
    empty: str, text: bool, sets: Path, screener: Screener
) -> None:
    for name in {"released", "reference", "holdout"} - {empty}:
        shutil.copy(next((EXAMPLES / "queries").glob("*.jpg")), sets / name)
    if text:
        (sets / empty / "notes.md").write_text("a note")
    request = Request(sets / "released", sets / "reference", sets / "report", sets / "holdout")
    with pytest.raises(UsageError, match=f"{empty} cannot be searched for .*: the folder contains no images"):
        audit(screener, request)
    assert not (sets / "report").exists()


# -- the folder ---------------------------------------------------------------------------------------------------------


def linked(sets: Path, name: str, to: str) -> Path:
    (sets / name).symlink_to(sets / to, target_is_directory=True)
    return sets / name


BAD: dict[str, Callable[[Path], Path]] = {
    "the released folder": lambda sets: sets / "released",
    "in it": lambda sets: sets / "released" / "report",
    "deep in it, not there yet": lambda sets: sets / "released" / "a" / "b" / "new" / "report",
    "with dots": lambda sets: sets / "elsewhere" / ".." / "released" / "report",
    "with dots through what is not there": lambda sets: sets / "nothing" / ".." / "released" / "a" / ".." / "report",
    "through a link": lambda sets: linked(sets, "link", "released") / "report",
    "through a link into it": lambda sets: linked(sets, "link", "released/a/b") / "report",
    "the link": lambda sets: linked(sets, "link", "released"),
    "where a link in it leads to": lambda sets: (
        linked(sets, "released/a/link", "elsewhere").parent.parent.parent / "elsewhere" / "x"
    ),
    "through the process's folder": lambda sets: Path("/proc/self/cwd/released/report"),
    "the reference": lambda sets: sets / "reference",
    "in the reference": lambda sets: sets / "reference" / "c" / "report",
    "in the hold-out": lambda sets: sets / "holdout" / "report",
    "above the reference": lambda sets: sets,
}


@pytest.mark.parametrize("where", BAD)
def test_a_report_is_not_written_into_what_is_given_away_or_around_what_is_not(
    sets: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "through the process's folder" and not Path("/proc/self/cwd").exists():
        pytest.skip("this system has no /proc")
    monkeypatch.chdir(sets)
    out = BAD[where](sets)
    before = sorted(sets.rglob("*"))
    with pytest.raises(UsageError, match=r"lies in the|holds the") as said:
        prepare_output(out, sets / "released", kept(sets))
    assert "\n" not in str(said.value)
    assert sorted(sets.rglob("*")) == before


def test_the_same_folder_is_told_by_what_it_is_and_not_by_its_name(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a bind mount, or where names differ by case alone: the path is another, device and inode are the same."""
    real = os.stat
    alias = sets / "RELEASED"
    alias.mkdir()

    def stat_of(path: object, *args: object, **kwargs: object) -> os.stat_result:
        at = os.fspath(path)  # type: ignore[call-overload]
        return real(str(sets / "released") if at == str(alias) else at, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", stat_of)
    with pytest.raises(UsageError, match="lies in the released set"):
        prepare_output(alias / "report", sets / "released", kept(sets))


def test_a_private_part_that_is_a_link_is_refused(sets: Path) -> None:
    out = sets / "report"
    out.mkdir()
    (out / PRIVATE).symlink_to(sets / "released", target_is_directory=True)
    with pytest.raises(UsageError, match="must be a folder of its own"):
        prepare_output(out, sets / "released", kept(sets))


@pytest.mark.parametrize("out", ["report", "a/new/report", "elsewhere", "released-too", "elsewhere/../report"])
def test_any_other_folder_will_do(sets: Path, out: str) -> None:
    made = prepare_output(sets / out, sets / "released", kept(sets))
    assert made == Path(os.path.realpath(sets / out))
    assert (made / PRIVATE).is_dir()


def test_the_released_set_may_lie_in_the_reports_folder_or_be_one_file(sets: Path) -> None:
    prepare_output(sets / "released" / "..", sets / "released", {})
    image = sets / "elsewhere" / "one.png"
    image.write_bytes(b"")
    prepare_output(sets / "elsewhere" / "report", image, {})


@pytest.mark.parametrize("which", ["--released", "--reference", "--holdout"])
def test_the_command_refuses_in_one_line(tmp_path: Path, which: str) -> None:
    folders = {name: tmp_path / name for name in ("--released", "--reference", "--holdout")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "a.png").write_bytes(b"")
    arguments = [text for name, folder in folders.items() for text in (name, str(folder))]
    result = CliRunner().invoke(main, ["audit", *arguments, "--out", str(folders[which] / "report")])
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("note:")]  # which the model says of itself
    assert line.startswith("error: --out ")
    assert not (folders[which] / "report").exists()


def test_an_index_is_a_reference_too(tmp_path: Path, screener: Screener) -> None:
    with Gallery.create(tmp_path / "idx", screener.bundle) as gallery:
        list(screener.index([EXAMPLES / "gallery" / "camera.jpg"], gallery))
    with pytest.raises(UsageError, match="lies in the reference"):
        audit(screener, Request(EXAMPLES / "queries", tmp_path / "idx", tmp_path / "idx" / "report"))


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o277])
def test_what_is_private_is_its_owners_alone_from_the_start_whatever_the_mask(
    tmp_path: Path, screener: Screener, mask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    seen: set[tuple[str, int]] = set()
    real_open, real_replace = os.open, os.replace

    def look() -> None:
        for path in (out / PRIVATE).rglob("*") if (out / PRIVATE).exists() else []:
            if not (path.parent.name == outputs.NEW and "+" not in path.name):  # staged, but to be passed on
                seen.add((f"{path.name}{'/' if path.is_dir() else ''}", stat.S_IMODE(path.lstat().st_mode)))

    def opened(*args: object, **kwargs: object) -> int:
        handle = real_open(*args, **kwargs)  # type: ignore[arg-type]
        look()
        return handle

    def replaced(*args: object, **kwargs: object) -> None:
        look()
        real_replace(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "replace", replaced)
    before = os.umask(mask)
    try:
        write_report(audit(screener, Request(EXAMPLES / "queries", EXAMPLES / "gallery", out)), Shown())
    finally:
        os.umask(before)
    look()
    assert stat.S_IMODE((out / PRIVATE).stat().st_mode) == 0o700
    assert {name for name, _ in seen} >= {"embeddings.sqlite", "embeddings.sqlite-wal", "pseudonyms.key", "pseudonyms.csv"}
    for name, mode in seen:
        assert mode & 0o077 == 0, (name, oct(mode))
    for path in (out / PRIVATE).iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((out / "report.html").stat().st_mode) == 0o666 & ~mask


def test_an_earlier_private_part_is_closed(tmp_path: Path) -> None:
    private = tmp_path / "report" / PRIVATE
    private.mkdir(parents=True, mode=0o755)
    (private / "pseudonyms.csv").write_text("names")
    (private / "pseudonyms.csv").chmod(0o644)
    prepare_output(tmp_path / "report", tmp_path / "released", {})
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE((private / "pseudonyms.csv").stat().st_mode) == 0o600


# -- the files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return prepare_output(tmp_path / "report", tmp_path / "released", {})


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in NAMES if (out / name).exists()}


OLD = {"page.html": b"old page", "data.json": b"old data", "page.pdf": b"old print", f"{PRIVATE}/names.csv": b"old names"}
NEW = {"page.html": b"new page", "data.json": b"new data", f"{PRIVATE}/names.csv": b"new names"}


def test_all_files_are_replaced_and_those_that_a_run_does_not_make_are_removed(out: Path) -> None:
    replace_together(out, OLD, NAMES)
    mine = {"decisions.csv": "mine", "page.htm": "mine", f"{PRIVATE}/notes.txt": "mine"}
    for name, text in mine.items():
        (out / name).write_text(text)
    (out / ".page.pdf.0123456789abcdef.pdf").write_text("what version 0.1.0 left when it was killed")
    replace_together(out, NEW, NAMES)
    assert contents(out) == NEW
    for name, text in mine.items():
        assert (out / name).read_text() == text
    assert {path.name for path in out.iterdir()} == {"page.html", "data.json", "decisions.csv", "page.htm", PRIVATE}
    assert {path.name for path in (out / PRIVATE).iterdir()} == {"names.csv", "notes.txt", "DO-NOT-PASS-ON.txt"}


def test_a_link_is_replaced_and_what_it_leads_to_is_not_touched(out: Path, tmp_path: Path) -> None:
    (tmp_path / "other.html").write_text("of somebody else")
    (out / "page.html").symlink_to(tmp_path / "other.html")
    (out / "page.pdf").symlink_to(tmp_path / "nothing.pdf")
    replace_together(out, NEW, NAMES)
    assert contents(out) == NEW
    assert not (out / "page.html").is_symlink()
    assert not (out / "page.pdf").is_symlink()
    assert (tmp_path / "other.html").read_text() == "of somebody else"


def test_a_folder_of_a_files_name_is_not_replaced(out: Path) -> None:
    replace_together(out, {name: content for name, content in OLD.items() if name != "page.pdf"}, NAMES)
    before = contents(out)
    (out / "page.pdf" / "mine").mkdir(parents=True)
    replace_together(out, NEW, NAMES)  # which has none
    assert (out / "page.pdf" / "mine").is_dir()
    with pytest.raises(IsADirectoryError):
        replace_together(out, OLD, NAMES)
    (out / "page.pdf" / "mine").rmdir()
    (out / "page.pdf").rmdir()
    assert contents(out) == {**before, **NEW}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["replace", "fsync", "open"])
def test_a_failure_at_any_step_leaves_the_earlier_files(
    out: Path, error: BaseException, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_together(out, OLD, NAMES)
    real = getattr(os, call)
    step, steps = 0, 0

    def failing(*args: object, **kwargs: object) -> object:
        nonlocal steps
        steps += 1
        if steps == step:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, failing)
    while True:
        step, steps = step + 1, 0
        try:
            replace_together(out, NEW, NAMES)
        except (OSError, KeyboardInterrupt):
            if contents(out) == NEW:  # the failure came when all was done
                break
            assert contents(out) == OLD
            assert {path.name for path in out.iterdir()} == {"page.html", "data.json", "page.pdf", PRIVATE}
            assert {path.name for path in (out / PRIVATE).iterdir()} == {"names.csv", "DO-NOT-PASS-ON.txt"}
        else:
            break
    assert step > 3
    assert contents(out) == NEW


KILLED = """
import os, sys
from pathlib import Path
from lcmem_onnx.runtime.audit.report.outputs import replace_together
sys.path.insert(0, sys.argv[1])
from test_audit_output import NAMES, NEW, OLD, contents
out = Path(sys.argv[2])
seen = []
for call in ("replace", "fsync", "rmdir", "unlink"):
    real = getattr(os, call)
    for step in range(1, 100):
        replace_together(out, OLD, NAMES)
        child = os.fork()
        if not child:
            steps = 0
            def killed(*args, **kwargs):
                global steps
                steps += 1
                if steps == step:
                    os._exit(9)
                return real(*args, **kwargs)
            setattr(os, call, killed)
            replace_together(out, NEW, NAMES)
            os._exit(0)
        done = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        partial = contents(out)
        # Nothing but files by their names lies in what is passed on, none of two runs, and no page without the rest.
        assert {path.name for path in out.iterdir()} <= {"page.html", "data.json", "page.pdf", "private"}, list(out.iterdir())
        assert partial.items() <= OLD.items() or partial.items() <= NEW.items(), partial
        assert "page.html" not in partial or partial in (OLD, NEW), partial
        try:
            replace_together(out, {"page.html": None}, NAMES)  # a run that fails, but tidies up first
        except TypeError:
            pass
        assert contents(out) in (OLD, NEW), (call, step, contents(out))
        assert [path.name for path in (out / "private").iterdir() if path.name.startswith(".")] == []
        seen.append(contents(out) == NEW)
        if done:
            break
print(len(seen), sum(seen))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_the_run_after_a_crash_finds_the_earlier_files_or_the_new_ones(out: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(out)], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    crashes, new = map(int, finished.stdout.split())
    assert crashes > 15
    assert 4 < new < crashes


# -- the report ---------------------------------------------------------------------------------------------------------


SECRET = "Mustermann-Erika"


@pytest.fixture(scope="module")
def done(screener: Screener, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """An audit whose reference and hold-out, with a copy in it, name a patient in folders, files and patients."""
    root = tmp_path_factory.mktemp("sets") / SECRET
    for name in ("reference", "holdout"):
        (root / name).mkdir(parents=True)
    lines = ["path,patient"]
    for path in sorted((EXAMPLES / "gallery").iterdir()):
        (root / "reference" / f"{SECRET} {path.name}").write_bytes(path.read_bytes())
        lines.append(f"reference/{SECRET} {path.name},{SECRET} {path.stem}")
    shutil.copy(EXAMPLES / "queries" / "other-coffee.jpg", root / "holdout" / f"{SECRET} of the release.jpg")
    astronaut = cv2.imread(str(EXAMPLES / "gallery" / "astronaut.jpg"))
    cv2.imwrite(str(root / "holdout" / f"{SECRET} of the reference.jpg"), astronaut, [cv2.IMWRITE_JPEG_QUALITY, 40])
    rng = np.random.default_rng(5)
    for number in range(8):
        smooth = cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (96, 80), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(root / "holdout" / f"{SECRET} {number}.png"), smooth)
    lines.append(f"holdout/{SECRET} 3.png,{SECRET} retina")
    (root / "patients.csv").write_text("\n".join(lines))
    request = Request(
        EXAMPLES / "queries", root / "reference", root / "report", root / "holdout", patients=root / "patients.csv", tta=True
    )
    return audit(screener, request)


def text_of(path: Path) -> bytes:
    """A file's bytes and, of a PDF, those of its compressed streams too."""
    data = path.read_bytes()
    parts = [data]
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", data, re.DOTALL) if path.suffix == ".pdf" else []:
        try:
            parts.append(zlib.decompressobj().decompress(stream))
        except zlib.error:
            continue
    return b"\n".join(parts)


def test_nothing_private_is_in_what_is_passed_on(done: Audit) -> None:
    try:
        write_report(done, Shown(reference=True, pdf=True, command="lcmem-onnx audit --released RELEASED"))
    except UsageError:  # no Pango here
        write_report(done, Shown(reference=True, command="lcmem-onnx audit --released RELEASED"))
    out = done.request.out
    assert done.tests is not None
    assert sorted((suspect.other.value, suspect.suspicion.value) for suspect in done.tests.suspects) == [
        ("reference", "altered-copy"),
        ("reference", "same-patient"),
        ("released", "same-file"),
    ]
    passed_on = [path for path in out.rglob("*") if path.is_file() and PRIVATE not in path.relative_to(out).parts]
    assert {"report.html", "report.json", "pictures.csv"} <= {path.name for path in passed_on}
    secrets = [SECRET.encode(), str(out.parent).encode(), bytes(done.pseudonyms.secret), done.pseudonyms.secret.hex().encode()]
    secrets += [path.name.encode() for path in (EXAMPLES / "gallery").iterdir()]
    for path in passed_on:
        text = text_of(path)
        for secret in secrets:
            for written in (secret, secret.decode("latin-1").encode("utf-16-be")):
                assert written not in text, (path.name, secret)
    for name, secret in (("pseudonyms.csv", secrets[0]), ("suspects.csv", secrets[0]), ("pseudonyms.key", secrets[2])):
        assert secret in (out / PRIVATE / name).read_bytes(), name


def test_a_report_without_reference_images_leaves_no_earlier_file_with_them(done: Audit) -> None:
    out = done.request.out
    write_report(done, Shown(reference=True))
    (out / "report.pdf").write_bytes(b"%PDF-1.7 with reference images")
    (out / "decisions.csv").write_text("mine")
    assert (out / PRIVATE / "suspects.csv").exists()
    write_report(replace(done, tests=None, holdout=None), Shown())
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files & set(FILES) == {"report.html", "report.json", "pictures.csv", f"{PRIVATE}/pseudonyms.csv"}
    assert "decisions.csv" in files
    assert 'alt="reference image' not in (out / "report.html").read_text()
