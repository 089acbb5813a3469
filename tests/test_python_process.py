"""Processes that the product starts: they never run what lies in the working directory."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lcmem_onnx
import pytest
from lcmem_onnx.runtime.system import python_process
from lcmem_onnx.runtime.system.python_process import child_search_path, module_command

ROOT = Path(lcmem_onnx.__file__).parent
EXAMPLES = ROOT / "examples" / "pictures"
CT = EXAMPLES / "gallery" / "ct-slice.dcm"
PLANTED = (
    "json",
    "logging",
    "pickle",
    "numpy",
    "pydicom",
    "PIL",
    "sqlite3",
    "lcmem_onnx",
    "sitecustomize",
    "imagecodecs",
    "encodings",
)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder of modules that leave a mark when they are imported, each in place of one that the product imports."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(folder / name)!r} + '.ran', 'w').close()\nraise SystemExit('planted')\n")
    return folder


def ran(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.ran"))


def commands_of(path: Path) -> Iterator[list[str]]:
    """Lists in a file's source that begin with the interpreter: its options, as far as they are constants."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
            yield [item.value for item in node.elts[1:] if isinstance(item, ast.Constant) and isinstance(item.value, str)]


def test_every_interpreter_is_started_off_the_working_directory() -> None:
    found = 0
    for folder in ("runtime", "cli", "export", "models", "evaluation", "offline"):
        for path in (ROOT / folder).rglob("*.py"):
            for options in commands_of(path):
                found += 1
                assert options[0] in ("-P", "-I"), path
    assert found >= 4  # child_python, two of pip's in models, one of pip's in offline


def test_planted_modules_do_run_without_the_option(planted: Path) -> None:
    """The planted files are able to do harm: without `-P` one of them runs."""
    command = [part for part in module_command("lcmem_onnx.runtime.gateway.workers") if part != "-P"]
    finished = subprocess.run(command, cwd=planted, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert finished.returncode
    assert ran(planted)


def test_a_part_of_the_gateway_runs_nothing_planted(planted: Path, tmp_path: Path) -> None:
    from lcmem_onnx.runtime.gateway.settings import FolderSettings, Settings, SpoolSettings
    from lcmem_onnx.runtime.gateway.worker_process import WorkerSpec, write_spec
    from lcmem_onnx.runtime.privacy import create_site_key

    create_site_key(tmp_path / "site.key")
    (tmp_path / "in").mkdir()
    settings = Settings(
        spool=SpoolSettings(tmp_path / "spool", min_free_mb=1),
        site_key=tmp_path / "site.key",
        folder=(FolderSettings(tmp_path / "in"),),
    )
    command = module_command("lcmem_onnx.runtime.gateway.workers")
    with subprocess.Popen(command, cwd=planted, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as part:
        assert part.stdin
        assert part.stdout
        write_spec(WorkerSpec("receive", settings, "test"), part.stdin)
        assert json.loads(part.stdout.readline()) == {}  # it is ready
        part.terminate()
        assert part.wait(15) == 0
    assert ran(planted) == []


def test_drawing_a_held_image_runs_nothing_planted(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from lcmem_onnx.runtime.gateway.http.images import Drawer
    from PIL import Image

    monkeypatch.chdir(planted)
    drawn = asyncio.run(Drawer().draw(CT, 0))
    assert Image.open(io.BytesIO(drawn)).size == (128, 128)
    assert ran(planted) == []


@pytest.mark.parametrize("entry", ["", ".", None])
def test_the_decoders_run_nothing_planted(entry: str | None, planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -c` puts "" on the search path, `python -m` the folder's name; the decoding process gets neither."""
    from lcmem_onnx.runtime.images.sandbox import DecoderPool

    monkeypatch.chdir(planted)
    monkeypatch.setattr(sys, "path", [str(planted) if entry is None else entry, *sys.path])
    with DecoderPool() as decoders:
        image = decoders.open(CT.read_bytes(), "ct.dcm")
        assert image.frame(0).shape == (128, 128, 3)
        image.close()
    assert ran(planted) == []


def test_the_search_path_keeps_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "lib", str(tmp_path), "/usr/lib/python"])
    assert child_search_path() == [str(tmp_path / "lib"), "/usr/lib/python"]
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert child_search_path() == [str(tmp_path), "/usr/lib/python"]


def test_the_working_directory_stays_where_the_package_itself_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that ships this package in its own folder, and runs in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(python_process, "__file__", str(tmp_path / "lcmem_onnx" / "runtime" / "system" / "python_process.py"))
    monkeypatch.setattr(sys, "path", ["", "/usr/lib/python"])
    assert child_search_path() == [str(tmp_path), "/usr/lib/python"]


@pytest.mark.parametrize("option", ["-I", "-E", "-s", "-P"])
def test_a_process_is_no_more_open_than_the_one_that_starts_it(option: str, tmp_path: Path) -> None:
    """PYTHONPATH counts in the new process if and only if it does in this one."""
    program = (
        "import subprocess, sys\n"
        "from lcmem_onnx.runtime.system.python_process import python_command\n"
        "show = 'import sys; print(sys.flags.safe_path, sys.flags.ignore_environment, sys.flags.no_user_site)'\n"
        "print(sys.flags.safe_path, sys.flags.ignore_environment, sys.flags.no_user_site, flush=True)\n"
        "subprocess.run([*python_command(), '-c', show], check=True)\n"
    )
    finished = subprocess.run([sys.executable, option, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    parent, child = (line.split() for line in finished.stdout.splitlines())
    assert child[0] == "True"
    assert child[1:] == parent[1:]


@pytest.mark.slow
def test_an_installed_wheel_starts_its_processes(planted: Path, tmp_path: Path) -> None:
    """A wheel in a folder on PYTHONPATH, in place of the editable installation that the other tests run on."""
    wheels, installed = tmp_path / "wheels", tmp_path / "installed"
    pip = [sys.executable, "-P", "-m", "pip", "-q", "--disable-pip-version-check"]
    source = tmp_path / "source"
    kept = shutil.ignore_patterns(".*", "*.egg-info", "tests", "benchmarks", "build", "__pycache__")
    shutil.copytree(ROOT, source, ignore=kept)
    built = subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)], check=False)
    if built.returncode:
        pytest.skip("no wheel can be built here: setuptools is missing")
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(installed), str(wheel)], check=True)
    program = (
        "import asyncio, pathlib, lcmem_onnx\n"
        "from lcmem_onnx.runtime.gateway.http.images import Drawer\n"
        "from lcmem_onnx.runtime.images.sandbox import DecoderPool\n"
        f"path = pathlib.Path({str(CT)!r})\n"
        "print(lcmem_onnx.__file__, len(asyncio.run(Drawer().draw(path, 0))) > 1000)\n"
        "with DecoderPool() as decoders:\n"
        "    print(decoders.open(path.read_bytes()).frame(0).shape)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-c", program]
    finished = subprocess.run(command, cwd=planted, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == [str(installed / "lcmem_onnx" / "__init__.py"), "True", "(128,", "128,", "3)"]
    assert ran(planted) == []
