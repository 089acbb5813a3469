"""Ends of a command: whatever goes wrong, no exit code that looks like a verdict, and one line that says what it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lcmem_onnx.runtime.gallery.storage.leftovers import PREFIX

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
GALLERY, QUERIES = EXAMPLES / "gallery", EXAMPLES / "queries"
LCMEM = f"{sys.executable} -m lcmem_onnx.cli"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the shell's redirections and signals")


def shell(line: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> tuple[int, str, str]:
    """A line of bash, as a user types it: exit code, stdout, stderr."""
    finished = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, check=False, env={**os.environ, **(env or {})}, cwd=cwd
    )
    out, err = finished.stdout.decode(errors="replace"), finished.stderr.decode(errors="replace")
    assert "Traceback" not in err, err
    assert "Exception ignored" not in err, err
    return finished.returncode, out, err


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ending") / "idx"
    assert shell(f"{LCMEM} index build {GALLERY} --index {folder} -q")[0] == 0
    return folder


# -- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("command", "redirection", "says"),
    [
        ("scan --json", "| head -n 1", "output closed early"),
        ("scan", "| true", "output closed early"),
        ("scan --json", "> /dev/full", "cannot be written: No space left"),
        ("scan", "> /dev/full", "cannot be written: No space left"),
        ("scan --json", ">&-", "stdout is closed"),
        ("scan --json", "1< /dev/null", "cannot be written: Bad file descriptor"),
        ("doctor --json", "> /dev/full", "cannot be written: No space left"),
        ("--help", "> /dev/full", "cannot be written: No space left"),
        ("--version", "> /dev/full", "cannot be written: No space left"),
    ],
)
def test_an_output_that_fails_is_an_error_and_no_verdict(
    command: str, redirection: str, says: str, unbuffered: str, index: Path
) -> None:
    arguments = f"{command} {' '.join([str(QUERIES)] * 5)} --index {index} -q" if command.startswith("scan") else command
    code, _, err = shell(f"{LCMEM} {arguments} {redirection}", env={"PYTHONUNBUFFERED": unbuffered})
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_stderr_that_fails_is_an_error_too(index: Path) -> None:
    assert shell(f"{LCMEM} scan {QUERIES} --index {index} --json 2> /dev/full")[0] == 2
    assert shell(f"{LCMEM} scan {QUERIES} --index nothing-here -q 2> /dev/full")[0] == 2
    assert shell(f"{LCMEM} frobnicate 2> /dev/full")[0] == 2
    code, out, _ = shell(f"{LCMEM} scan {QUERIES} --index {index} --json 2>&-")  # a service may have none
    assert (code, len(out.splitlines())) == (1, 10)  # nine images and the summary


def test_a_closed_stdin_matters_only_where_it_is_read(index: Path) -> None:
    code, _, err = shell(f"{LCMEM} scan - --index {index} -q <&-")
    assert code == 2
    assert "stdin is closed" in err
    assert shell(f"{LCMEM} scan {QUERIES}/other-coffee.jpg --index {index} -q <&-")[0] == 0


def test_names_that_stdout_cannot_spell_are_escaped_and_no_result_is_lost(index: Path, tmp_path: Path) -> None:
    for name in ("späße.jpg", "zz.jpg"):
        (tmp_path / name).write_bytes((QUERIES / "other-coffee.jpg").read_bytes())
    for option in ("", "--json"):
        code, out, err = shell(f"{LCMEM} scan {tmp_path} --index {index} -q {option}", env={"PYTHONIOENCODING": "ascii"})
        assert (code, err) == (0, "")
        assert "sp\\xe4" in out or "sp\\u00e4" in out
        assert "zz.jpg" in out


@pytest.mark.parametrize(
    ("package", "extra"), [("onnxruntime", "cpu"), ("click_extra", "cpu"), ("httpx2", "archive"), ("nibabel", "train")]
)
def test_a_package_that_is_missing_is_named_with_what_brings_it(package: str, extra: str) -> None:
    failing = f"import click, sys; from lcmem_onnx.console.exit_codes import Ending; sys.modules['{package}'] = None\n"
    failing += f"@click.command(cls=Ending)\ndef main():\n    import {package}\nmain([])"
    done = subprocess.run([sys.executable, "-c", failing], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"pip install 'lcmem-onnx[{extra}]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# -- signals ----------------------------------------------------------------------------------------------------------


def _heed_signals() -> None:
    """A suite that a shell started in the background, or with nohup, ignores these, and would hand that down."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_cleans_up_and_says_so(number: int, code: int, says: str, tmp_path: Path) -> None:
    """The embeddings of a hospital's images must not stay in a temporary folder."""
    temporary, many = tmp_path / "tmp", tmp_path / "many"
    temporary.mkdir()
    many.mkdir()
    for at in range(400):  # one image, so that the files are many without being large
        (many / f"{at}.jpg").symlink_to(QUERIES / "other-coffee.jpg")
    process = subprocess.Popen(
        [sys.executable, "-m", "lcmem_onnx.cli", "scan", many, "--against", GALLERY, "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
        preexec_fn=_heed_signals,
    )
    deadline = time.monotonic() + 60
    while not list(temporary.glob(f"{PREFIX}*/gallery.sqlite")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.decode().strip().splitlines()[-1].startswith(says)
    assert b"Traceback" not in err
    assert not list(temporary.glob("lcmem*"))


def test_a_process_that_nohup_started_lives_on(tmp_path: Path) -> None:
    program = (
        "import os, signal; from lcmem_onnx.console.exit_codes import _signals\n"
        "with _signals(): os.kill(os.getpid(), signal.SIGHUP)"
    )
    code, _, _ = shell(f"nohup {sys.executable} -c '{program}'", cwd=tmp_path)
    assert code == 0
