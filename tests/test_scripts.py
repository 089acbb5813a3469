"""The scripts of examples/gateway_scripts do what they say, also where something is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = EXAMPLES / "gateway_scripts"
QUERIES = EXAMPLES / "pictures" / "queries"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shell scripts")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lcmem_onnx import Gallery, Screener

    folder = tmp_path_factory.mktemp("scripts") / "idx"
    screener = Screener()
    with Gallery.create(folder, screener.bundle) as gallery:
        assert len(list(screener.index([EXAMPLES / "pictures" / "gallery"], gallery))) == 6
    return folder


def release(folder: Path, index: Path, report: Path, path: str | None = None) -> tuple[int, str]:
    environment = {**os.environ, "PATH": path or f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [str(SCRIPTS / "screen-before-release.sh"), str(folder), str(index), str(report)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return finished.returncode, finished.stderr


def test_the_release_script_reports_and_ends_with_the_verdict(index: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    code, said = release(QUERIES, index, report)
    assert (code, said) == (1, f"4 clear, 5 match, 0 error: {report}\n")
    *lines, summary = map(json.loads, report.read_text().splitlines())
    assert len(lines) == 9
    assert summary["summary"] == {"clear": 4, "match": 5, "error": 0, "skipped": {}}
    code, said = release(QUERIES, index, report)
    assert code == 2
    assert "exists already" in said
    clear = tmp_path / "clear"
    clear.mkdir()
    shutil.copy(QUERIES / "other-coffee.jpg", clear)
    assert release(clear, index, tmp_path / "second")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clear", "report.jsonl", "second"]


def test_the_release_script_never_says_0_of_an_index_that_was_not_searched_to_the_end(index: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "lcmem-onnx"
    program.parent.mkdir()
    program.write_text("""#!/bin/sh\necho '{"verdict": "clear", "complete": false}'\n""")
    program.chmod(0o755)
    code, said = release(QUERIES, index, tmp_path / "report", f"{program.parent}:{os.environ['PATH']}")
    assert (code, "not all of the index was searched" in said) == (2, True)
    assert (tmp_path / "report").exists()


@pytest.mark.parametrize("what", ["no index", "no folder", "empty", "killed", "silent"])
def test_the_release_script_never_says_0_of_what_was_not_screened(what: str, index: Path, tmp_path: Path) -> None:
    folder, path = QUERIES, None
    if what == "no index":
        index = tmp_path / "nowhere"
    if what == "no folder":
        folder = tmp_path / "nowhere"
    if what == "empty":
        folder = tmp_path / "empty"
        folder.mkdir()
    if what in ("killed", "silent"):
        program = tmp_path / "bin" / "lcmem-onnx"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\nkill -9 $$\n" if what == "killed" else "#!/bin/sh\nexit 0\n")
        program.chmod(0o755)
        path = f"{program.parent}:{os.environ['PATH']}"
    assert release(folder, index, tmp_path / "report", path)[0] == 2
    assert what in ("no folder", "empty") or not (tmp_path / "report").exists()


def test_the_inbox_is_sorted_and_what_is_held_has_its_reason(index: Path, tmp_path: Path) -> None:
    inbox, clear, held = (tmp_path / name for name in ("inbox", "clear", "held"))
    inbox.mkdir()
    for name in ("other-coffee.jpg", "copy-of-camera-noisy.jpg", "other-mr-slice.dcm"):
        shutil.copy(QUERIES / name, inbox)
    (inbox / "broken.png").write_bytes(b"x")
    command = [sys.executable, str(SCRIPTS / "sort_inbox.py"), *map(str, (inbox, index, clear, held))]
    assert subprocess.run(command, check=False).returncode == 2
    assert sorted(path.name for path in clear.iterdir()) == ["other-coffee.jpg", "other-mr-slice.dcm"]
    assert sorted(path.name for path in held.iterdir() if path.suffix != ".json") == ["broken.png", "copy-of-camera-noisy.jpg"]
    assert json.loads((held / "broken.png.json").read_text())["verdict"] == "error"
    assert json.loads((held / "copy-of-camera-noisy.jpg.json").read_text())["verdict"] == "match"
    assert list(inbox.iterdir()) == []
    shutil.copy(QUERIES / "other-coffee.jpg", inbox)  # a name that is taken: nothing is written over
    assert subprocess.run(command, check=False, capture_output=True).returncode == 2
    assert (inbox / "other-coffee.jpg").exists()


def test_shell_scripts_pass_shellcheck() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("there is no shellcheck")
    scripts = [str(SCRIPTS / "screen-before-release.sh"), str(EXAMPLES.parent / "tests" / "orthanc" / "beside-orthanc")]
    assert subprocess.run(["shellcheck", *scripts], check=False).returncode == 0


def test_the_unit_is_one(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze")
    unit = tmp_path / "lcmem-gateway.service"
    text = (SCRIPTS / "lcmem-gateway.service").read_text()
    unit.write_text(re.sub(r"/opt/lcmem-onnx/bin/lcmem-onnx", "/usr/bin/true", text))
    finished = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (finished.returncode, "lcmem-gateway" in finished.stderr) == (0, False), finished.stderr


def test_the_dockerfile_installs_what_the_unit_runs() -> None:
    text = (SCRIPTS / "Dockerfile").read_text()
    assert "HNSWLIB_NO_NATIVE=1" in text
    assert re.search(r"^USER 10001$", text, re.M)
    kept = {line[1:] for line in (SCRIPTS / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((EXAMPLES.parent / name).exists() for name in kept)
    packaged = re.search(r"\npackages = \[(.*?)\]", (EXAMPLES.parent / "pyproject.toml").read_text(), re.S)
    assert packaged
    folders = {name.split(".")[1] for name in re.findall(r'"lcmem_onnx\.([\w.]+)"', packaged[1]) for name in [f"x.{name}"]}
    assert folders <= kept
