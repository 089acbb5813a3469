"""The commands as people and scripts use them: output, exit codes, and bad input."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
GALLERY, QUERIES = EXAMPLES / "gallery", EXAMPLES / "queries"


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, object]]:
        """The lines of JSON on stdout, without the summary that `scan` and `index` end with."""
        return [line for line in map(json.loads, self.out.splitlines()) if "summary" not in line]

    @property
    def summary(self) -> dict[str, object]:
        """The summary in the last line of JSON."""
        return json.loads(self.out.splitlines()[-1])["summary"]  # type: ignore[no-any-return]


def lcmem(
    *arguments: str | Path,
    stdin: bytes = b"",
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    unprivileged: bool = False,
) -> Run:
    """Run the command line in a process of its own, as a shell does; unprivileged: even root then obeys permissions."""
    prefix = []
    if unprivileged and os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may read everything, and setpriv is not here to change that")
        prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    finished = subprocess.run(
        [*prefix, sys.executable, "-c", "from lcmem_onnx.cli import main; main()", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )
    run = Run(finished.returncode, finished.stdout.decode(), finished.stderr.decode())
    assert "Traceback" not in run.err, run.err
    return run


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "idx"
    assert lcmem("index", "build", GALLERY, "--index", folder, "-q").code == 0
    return folder


# -- the main job -----------------------------------------------------------------------------------------------------


def test_copies_are_found_and_other_images_are_not(index: Path) -> None:
    """The bundled model on real images: altered copies of gallery images among unrelated ones."""
    run = lcmem("scan", QUERIES, "--index", index, "--json")
    assert run.code == 1
    verdicts = {Path(str(line["path"])).name: line["verdict"] for line in run.lines}
    assert len(verdicts) == 9
    assert {name for name, verdict in verdicts.items() if verdict == "match"} == {n for n in verdicts if n.startswith("copy-of-")}
    assert set(verdicts.values()) == {"match", "clear"}
    for line in run.lines:
        if line["verdict"] == "match":
            best = line["matches"][0]  # type: ignore[index]
            original = Path(best["key"]).stem
            assert Path(str(line["path"])).stem.startswith(f"copy-of-{original}")
            assert best["score"] >= line["threshold"]
        else:
            assert line["matches"] == []


def test_scan_against_a_folder_needs_no_index(tmp_path: Path) -> None:
    copies = lcmem("scan", QUERIES / "copy-of-chelsea-turned.jpg", "--against", GALLERY, cwd=tmp_path)
    assert copies.code == 1
    assert "match" in copies.out
    assert "chelsea.jpg" in copies.out
    others = lcmem("scan", QUERIES / "other-coffee.jpg", "--against", GALLERY, cwd=tmp_path)
    assert others.code == 0
    assert "clear" in others.out
    assert "threshold" in others.out
    assert list(tmp_path.iterdir()) == []


def test_compare_scores_two_images() -> None:
    same = lcmem("compare", GALLERY / "astronaut.jpg", QUERIES / "copy-of-astronaut-brighter.jpg", "--json")
    assert same.code == 1
    assert {"score", "logit", "threshold", "verdict"} <= set(same.lines[0])
    assert same.lines[0]["verdict"] == "match"
    other = lcmem("compare", GALLERY / "astronaut.jpg", QUERIES / "other-coffee.jpg")
    assert other.code == 0
    assert "not the same" in other.out


def test_an_index_is_built_extended_and_described(tmp_path: Path) -> None:
    folder = tmp_path / "idx"
    built = lcmem("index", "build", GALLERY, "--index", folder)
    assert built.code == 0
    assert "6 added" in built.out
    assert f"next  lcmem-onnx scan PATH --index {folder}" in built.out
    again = lcmem("index", "add", GALLERY, QUERIES, "--index", folder, "--json")
    assert again.code == 0
    assert [line["added"] for line in again.lines].count("known") == 6
    info = lcmem("index", "info", "--index", folder, "--json")
    assert info.lines[0]["pictures"] == 15
    assert "images  " in lcmem("index", "info", "--index", folder).out


def test_names_on_stdin_by_line_and_by_nul(index: Path, tmp_path: Path) -> None:
    odd = tmp_path / "new\nline.jpg"
    shutil.copy(QUERIES / "other-coffee.jpg", odd)
    by_line = lcmem("scan", "-", "--index", index, "--json", stdin=f"{QUERIES / 'other-coffee.jpg'}\r\n\n".encode())
    assert [line["verdict"] for line in by_line.lines] == ["clear"]
    by_nul = lcmem("scan", "-0", "-", "--index", index, "--json", stdin=os.fsencode(odd) + b"\0")
    assert [line["path"] for line in by_nul.lines] == [str(odd)]
    assert lcmem("scan", "-", "--index", index).code == 2


def test_names_of_blanks_and_an_empty_line_are_told_apart(index: Path, tmp_path: Path) -> None:
    shutil.copy(QUERIES / "other-coffee.jpg", tmp_path / "  ")
    for arguments, stdin in ((["-0", "-"], b"  \0\0 \0"), (["-"], b"  \r\n\r\n \n")):
        run = lcmem("scan", *arguments, "--index", index, "--json", stdin=stdin, cwd=tmp_path)
        assert [(line["path"], line["reason"]) for line in run.lines] == [("  ", "below-threshold"), (" ", "not-found")]
        assert run.code == 2


def test_the_bundle_can_come_from_the_environment(tiny_bundle: Path, tmp_path: Path) -> None:
    environment = {"LCMEM_ONNX_BUNDLE": str(tiny_bundle)}
    assert lcmem("bundle", "info", env=environment, cwd=tmp_path).out.startswith("name")
    assert lcmem("bundle", "info", "--json", env=environment).lines[0]["name"] == "tiny"
    assert lcmem("bundle", "verify", env=environment).code == 0


def test_doctor_says_what_is_in_use() -> None:
    run = lcmem("doctor", "--json")
    assert run.code == 0
    facts = run.lines[0]
    assert facts["provider_in_use"] in ("cpu", "cuda")
    assert facts["a_picture_with_itself_scores"] > 0.9  # type: ignore[operator]
    assert "onnxruntime" in lcmem("doctor").out


def test_help_and_version_come_without_the_heavy_packages() -> None:
    assert "scan" in lcmem("--help").out
    assert lcmem("--version").out.startswith("lcmem-onnx, version")


# -- bad input --------------------------------------------------------------------------------------------------------


def png_bomb(side: int) -> bytes:
    """A PNG of side x side grey pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    compressor = zlib.compressobj(9)
    body = b"".join(compressor.compress(bytes(side + 1)) for _ in range(side)) + compressor.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_every_kind_of_bad_file_is_a_line_with_a_reason(index: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "text.png").write_text("hello")
    (folder / "truncated.jpg").write_bytes((GALLERY / "astronaut.jpg").read_bytes()[:9000])
    (folder / "empty.dcm").touch()
    (folder / "bomb.png").write_bytes(png_bomb(30000))
    (folder / "cut\nshort.dcm").write_bytes((GALLERY / "ct-slice.dcm").read_bytes()[:20000])
    shutil.copy(QUERIES / "other-coffee.jpg", folder / "good.jpg")
    (folder / "notes.txt").write_text("no image, and not named like one")
    run = lcmem("scan", folder, "--index", index, "--json")
    assert run.code == 2
    reasons = {Path(str(line["path"])).name: (line["verdict"], line["reason"]) for line in run.lines}
    assert reasons == {
        "text.png": ("error", "not-a-picture"),
        "truncated.jpg": ("error", "damaged"),
        "empty.dcm": ("error", "empty-file"),
        "bomb.png": ("error", "too-large"),
        "cut\nshort.dcm": ("error", "damaged"),
        "good.jpg": ("clear", "below-threshold"),
    }
    table = lcmem("scan", "bad", "--index", index, cwd=tmp_path)
    assert table.code == 2
    assert "cut\\nshort.dcm" in table.out
    assert "skipped: 1 text" in table.out
    assert run.summary == {"clear": 1, "match": 0, "error": 5, "skipped": {"text": 1}}


def test_what_a_walk_does_not_look_at_is_never_silent(index: Path, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copytree(QUERIES, elsewhere)
    shutil.copy(QUERIES / "other-coffee.jpg", folder / "good.jpg")
    (folder / "link").symlink_to(elsewhere)
    (folder / "notes.txt").write_text("no image")
    run = lcmem("scan", folder, "--index", index, "--json")
    assert run.code == 2
    assert [(Path(str(line["path"])).name, line["verdict"], line["reason"]) for line in run.lines] == [
        ("good.jpg", "clear", "below-threshold"),
        ("link", "error", "link-to-folder"),
    ]
    assert "note: skipped: 1 text" in run.err
    quiet = lcmem("scan", folder, "--index", index, "--json", "-q")
    assert (quiet.err, quiet.summary) == ("", {"clear": 1, "match": 0, "error": 1, "skipped": {"text": 1}})
    added = lcmem("index", "add", folder, "--index", index, "--json")
    assert added.code == 2
    assert added.lines[1]["errors"][0]["reason"] == "link-to-folder"  # type: ignore[index]
    assert "note: skipped: 1 text" in added.err
    against = lcmem("scan", QUERIES / "other-rocket.jpg", "--against", folder, "--json")
    assert against.code == 2
    assert "link: links to folders are not followed" in against.err
    assert "note: skipped: 1 text in the gallery's folder" in against.err


def test_an_empty_or_missing_folder_is_an_error(index: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "missing"):
        run = lcmem("scan", path, "--index", index, "--json")
        assert run.code == 2
        assert [line["verdict"] for line in run.lines] == ["error"]


def test_a_folder_and_a_file_without_permission_are_errors(index: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    shutil.copy(QUERIES / "other-coffee.jpg", tmp_path / "closed.jpg")
    (tmp_path / "closed").chmod(0)
    (tmp_path / "closed.jpg").chmod(0)
    run = lcmem("scan", tmp_path / "closed", tmp_path / "closed.jpg", "--index", index, "--json", unprivileged=True)
    (tmp_path / "closed").chmod(0o700)
    assert run.code == 2
    assert [line["reason"] for line in run.lines] == ["no-permission", "no-permission"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["scan"], "no images to screen, for example: lcmem-onnx scan released/ --against training-set/"),
        (["scan", "x.png"], "no gallery to screen against: give --index DIR or --against DIR"),
        (["scan", "x.png", "--index", "a", "--against", "b"], "give either --index DIR or --against DIR, not both"),
        (["scan", "x.png", "--index", "nothing-here"], "nothing-here is not an index"),
        (["scan", "x.png", "--against", "nothing-here"], "nothing-here contains no readable image"),
        (["scan", "x.png", "--index", "a", "--threshold", "7"], "threshold must be between 0 and 1 (exclusive), got"),
        (["scan", "x.png", "--against", str(GALLERY), "--threshold", "nan"], "threshold must be between 0 and 1 (exclusive), got"),
        (["compare", "x.png", "y.png", "--threshold", "0"], "threshold must be between 0 and 1 (exclusive), got"),
        (["scan", "x.png", "--against", str(GALLERY), "--threshold", "7"], "threshold must be between 0 and 1 (exclusive), got"),
        (["compare", "a.png", "b.png"], "a.png: "),
        (["index", "info", "--index", "nothing-here"], "is not an index"),
        (["index", "add", str(GALLERY), "--index", "nothing-here"], "is not an index"),
        (["index", "build", str(GALLERY), "--index", "a-file"], "a file is in its path"),
        (["index", "build", str(GALLERY), "--index", "a-file/below"], "a file is in its path"),
        (["index", "add", str(GALLERY), "--index", "a-file"], "a-file is not an index"),
        (["scan", str(GALLERY), "--index", "a-file"], "a-file is not an index"),
        (["bundle", "info", "--bundle", "nothing-here"], "nothing-here is not a folder"),
        (["bundle", "verify", "--provider", "quantum"], "unknown provider"),
        (["doctor", "--bundle", "nothing-here"], ""),
        (["frobnicate"], "No such command"),
    ],
)
def test_a_wrong_call_is_one_clear_line_and_exit_code_2(arguments: Sequence[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("years of work")
    run = lcmem(*arguments, cwd=tmp_path)
    assert run.code == 2, run
    assert (tmp_path / "a-file").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]
    if says:
        last = run.err.strip().splitlines()[-1]
        assert says in last


def test_a_temporary_index_that_has_no_place_is_said(tmp_path: Path) -> None:
    closed = "import tempfile; tempfile.tempdir = '/nothing-here'; from lcmem_onnx.cli import main; main()"
    finished = subprocess.run(
        [sys.executable, "-c", closed, "scan", QUERIES, "--against", GALLERY, "-q"], capture_output=True, check=False
    )
    assert finished.returncode == 2
    assert b"error: cannot create a temporary index: No such file" in finished.stderr
    assert len(finished.stderr.splitlines()) == 1


def test_an_index_of_another_bundle_is_refused_and_unharmed(index: Path, tiny_bundle: Path) -> None:
    before = (index / "gallery.sqlite").read_bytes()
    for command in (["scan", QUERIES], ["index", "add", QUERIES], ["index", "info"]):
        run = lcmem(*command, "--index", index, "--bundle", tiny_bundle, "-q" if command[1] != "info" else "--json")
        assert (run.code, len(run.err.splitlines())) == (2, 1)
        assert "another model" in run.err
    assert (index / "gallery.sqlite").read_bytes() == before
    assert lcmem("index", "info", "--index", index, "--json").lines[0]["pictures"] == 6


def test_a_changed_bundle_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "changed"))
    data = bytearray((bundle / "encoder.fp32.onnx").read_bytes())
    data[1000] ^= 1
    (bundle / "encoder.fp32.onnx").write_bytes(data)
    run = lcmem("scan", QUERIES, "--against", GALLERY, "--bundle", bundle)
    assert run.code == 2
    assert "encoder.fp32.onnx is damaged" in run.err


def test_building_where_an_index_is_harms_nothing(index: Path) -> None:
    run = lcmem("index", "build", QUERIES, "--index", index)
    assert run.code == 2
    assert "already contains an index" in run.err
    assert lcmem("index", "info", "--index", index, "--json").lines[0]["pictures"] == 6


def test_an_unreadable_gallery_image_makes_the_scan_an_error(tmp_path: Path) -> None:
    gallery = Path(shutil.copytree(GALLERY, tmp_path / "gallery"))
    (gallery / "camera.jpg").write_bytes((gallery / "camera.jpg").read_bytes()[:3000])
    run = lcmem("scan", QUERIES / "other-coffee.jpg", "--against", gallery, "--json")
    assert run.code == 2
    assert "camera.jpg" in run.err
    assert [line["verdict"] for line in run.lines] == ["clear"]


def test_a_reader_that_goes_away_is_no_traceback(index: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from lcmem_onnx.cli import main; main()",
            "scan",
            *[str(QUERIES)] * 5,
            "--index",
            str(index),
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    process.wait()
    assert "Traceback" not in errors
