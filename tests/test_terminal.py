"""What a person sees: on a terminal of a given width, with a bar, and after Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from lcmem_onnx.console.terminal import next_step

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
GALLERY, QUERIES = EXAMPLES / "gallery", EXAMPLES / "queries"


def on_terminal(columns: int, *arguments: str | Path, program: str = "", cwd: Path | None = None) -> tuple[int, str]:
    """The exit code, and what a terminal that stdout and stderr share was sent."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = ["-c", program] if program else ["-m", "lcmem_onnx.cli", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, *command], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env={**environment, "TERM": "xterm"}
    )
    os.close(theirs)
    sent = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # what Linux says when the other end is closed
            part = b""
        if not part:
            break
        sent += part
    os.close(ours)
    return process.wait(), sent.decode().replace("\r\n", "\n")


def seen(sent: str) -> list[str]:
    """Lines without colours, and without what a bar wrote and wiped out again."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", lambda code: "\0" if code[0].endswith("K") else "", sent)
    return [line.rpartition("\0")[2].strip("\r") for line in plain.split("\n")]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("display") / "idx"
    subprocess.run([sys.executable, "-m", "lcmem_onnx.cli", "index", "build", GALLERY, "--index", folder, "-q"], check=True)
    return folder


def test_json_on_a_terminal_is_lines_of_json(index: Path) -> None:
    code, sent = on_terminal(80, "scan", QUERIES, "--index", index, "--json")
    assert code == 1
    note, *lines = sent.splitlines()
    assert note.startswith("note: ")
    assert [("verdict" in line, "summary" in line) for line in map(json.loads, lines)] == [(True, False)] * 9 + [(False, True)]


def test_an_error_and_the_bar_do_not_share_a_line(tmp_path: Path) -> None:
    images = Path(shutil.copytree(QUERIES, tmp_path / "p"))
    (images / "bad.png").write_text("no image")
    code, sent = on_terminal(200, "index", "build", "p", "--index", "idx", cwd=tmp_path)
    assert code == 2
    assert "indexing" in sent
    assert any(re.match(r"error: p/bad.png: .*\[not-a-picture\]\s*$", line) for line in seen(sent)), seen(sent)


@pytest.mark.parametrize("columns", [40, 60, 99])
def test_paths_stay_readable_on_a_narrow_terminal(columns: int, index: Path, tmp_path: Path) -> None:
    image = tmp_path / "a-rather-long-name" / "copy-of-chelsea.jpg"
    image.parent.mkdir()
    shutil.copy(QUERIES / "copy-of-chelsea-turned.jpg", image)
    code, sent = on_terminal(columns, "scan", image, "--index", index, "-q")
    assert code == 1
    lines = seen(sent)
    assert all(len(line) <= columns for line in lines)
    parts = [line[7:].strip() for line in lines if line[:7].strip() in ("match", "")]
    assert str(image) in "".join(parts)
    assert len(parts) <= 3 + (len(str(image)) + len(str(GALLERY / "chelsea.jpg"))) // (columns - 7)


def test_a_table_is_kept_where_it_fits(tmp_path: Path) -> None:
    shutil.copy(QUERIES / "copy-of-chelsea-turned.jpg", tmp_path / "a.jpg")
    (tmp_path / "g").mkdir()
    shutil.copy(GALLERY / "chelsea.jpg", tmp_path / "g")
    _, sent = on_terminal(70, "scan", "a.jpg", "--against", "g", cwd=tmp_path)
    assert any(re.match(r" *match +a\.jpg +0\.\d{4} +g/chelsea\.jpg", line) for line in seen(sent)), seen(sent)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            "KeyboardInterrupt",
            130,
            ["interrupted: results are incomplete, not all of 9 images", "interrupted: results and index entries"],
        ),
        ("GalleryError('it is damaged')", 2, ["stopped: results are incomplete, not all of 9 images", "error: it is damaged"]),
    ],
)
def test_results_are_kept_when_a_scan_ends_early(error: str, code: int, words: list[str], index: Path) -> None:
    program = f"""
from lcmem_onnx.runtime.errors import GalleryError
from lcmem_onnx.runtime.screening import Screener
from lcmem_onnx.cli import main
real = Screener.screen
def three(*args, **kwargs):
    results = real(*args, **kwargs)
    for _ in range(3):
        yield next(results)
    raise {error}
Screener.screen = three
main(["scan", {str(QUERIES)!r}, "--index", {str(index)!r}])
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == code
    assert "copy-of-chelsea" in finished.stdout
    assert "copy-of-retina" not in finished.stdout
    assert "0 clear, 3 match, 0 error" in finished.stdout
    assert words[0] in finished.stdout
    assert words[1] in finished.stderr
    terminal_code, sent = on_terminal(200, program=program)
    assert terminal_code == code
    assert "screening" in sent
    assert any(line.startswith(words[0]) for line in seen(sent)), seen(sent)


@pytest.mark.parametrize(
    ("clear", "match", "error", "complete", "says"),
    [
        (3, 0, 0, True, "nothing to do: no image reached the threshold"),
        (3, 1, 0, True, "hold back the matching images, and compare each with its gallery image"),
        (3, 0, 1, True, "fix the errors and scan those images again: they may match"),
        (0, 1, 1, True, "hold back the matches and compare them with the gallery; fix the errors and scan those images again"),
        (0, 0, 0, True, "check the paths: no image was screened"),
        (3, 0, 0, False, "run the scan again: images that were not screened may match"),
        (0, 1, 0, False, "run the scan again: images that were not screened may match"),
    ],
)
def test_a_scan_says_what_to_do_next(clear: int, match: int, error: int, complete: bool, says: str) -> None:
    assert next_step({"clear": clear, "match": match, "error": error}, complete=complete) == says


def test_the_last_line_of_a_scans_table_is_the_next_step(index: Path) -> None:
    code, sent = on_terminal(140, "scan", QUERIES, "--index", index, "-q")
    assert code == 1
    assert seen(sent.rstrip())[-1] == "next  hold back the matching images, and compare each with its gallery image"
