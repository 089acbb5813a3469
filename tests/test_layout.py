"""What importing this package costs, and that nothing reaches for the network. Who may import whom: `[tool.importlinter]`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import lcmem_onnx
import pytest

ROOT = Path(lcmem_onnx.__file__).parent
EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
HEAVY = ("torch", "diffusers", "onnx", "onnxruntime", "cv2", "numpy", "hnswlib", "pydicom", "PIL", "rich")


def run(program: str) -> str:
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_public_names_are_sorted_and_true() -> None:
    assert lcmem_onnx.__all__ == sorted(lcmem_onnx.__all__)
    for name in lcmem_onnx.__all__:
        assert getattr(lcmem_onnx, name).__name__ == name
        assert getattr(lcmem_onnx, name).__doc__
    assert dir(lcmem_onnx) == lcmem_onnx.__all__
    with pytest.raises(AttributeError, match="nonsense"):
        lcmem_onnx.nonsense  # noqa: B018


def test_the_checkouts_own_runtime_is_refused() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", "import runtime.errors"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 1
    assert finished.stderr.strip().splitlines()[-1].startswith("ImportError: import lcmem_onnx.runtime instead of runtime: ")


def test_an_export_without_an_installation_says_what_to_install() -> None:
    finished = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); runpy.run_module('export', "
         "run_name='__main__', alter_sys=True)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 2
    assert finished.stderr.splitlines() == [
        "error: lcmem-onnx is not installed here: run pip install -e '.[cpu,export]' in the checkout"
    ]


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    loaded = run(f"import sys, lcmem_onnx.cli; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_importing_the_runtime_imports_no_torch() -> None:
    run(
        "import sys, lcmem_onnx.runtime.screening\n"
        "assert not {'torch', 'diffusers', 'onnx'} & set(sys.modules), sorted(sys.modules)"
    )


def test_the_whole_line_works_where_no_socket_can_be_opened(tmp_path: Path) -> None:
    """Building, adding, scanning and comparing in a process in which making a socket raises."""
    program = f"""
import socket, sys
def refused(*args, **kwargs):
    raise AssertionError("a socket was asked for")
class NoSocket:
    def __init__(self, *args, **kwargs):
        refused()
socket.socket = NoSocket
for name in ("create_connection", "getaddrinfo", "gethostbyname", "create_server", "socketpair", "fromfd"):
    setattr(socket, name, refused)
import _socket
_socket.socket = NoSocket
from lcmem_onnx.cli import main
def run(*arguments):
    try:
        main(list(arguments))
    except SystemExit as stop:
        return stop.code
gallery, queries, index = {str(EXAMPLES / "gallery")!r}, {str(EXAMPLES / "queries")!r}, {str(tmp_path / "idx")!r}
codes = [
    run("index", "build", gallery, "--index", index, "-q"),
    run("index", "add", gallery, "--index", index, "-q"),
    run("scan", queries, "--index", index, "--json", "-q"),
    run("compare", gallery + "/camera.jpg", queries + "/other-coffee.jpg", "--json"),
    run("bundle", "verify", "-q"),
    run("doctor", "--json"),
]
print(codes, file=sys.stderr)
assert codes == [0, 0, 1, 0, 0, 0], codes
"""
    lines = run(program).splitlines()
    assert all(json.loads(line)["schema_version"] == 1 for line in lines)


@pytest.mark.parametrize(
    "first", ["lcmem_onnx", "lcmem_onnx.runtime.model.encoder", "lcmem_onnx.export.pipeline", "lcmem_onnx.cli"]
)
def test_onnxruntime_is_imported_with_its_telemetry_off(first: str, tmp_path: Path) -> None:
    """The test above sees Python's sockets only; onnxruntime's own client opens them in C, and leaves a file when it is on."""
    program = f"""
import os, sys, tempfile
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
os.environ["TMPDIR"] = {str(tmp_path)!r}
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            assert os.environ.get("ORT_DISABLE_TELEMETRY") == "1"
            print("seen")
sys.meta_path.insert(0, Watch())
import {first}
import onnxruntime
"""
    if first == "lcmem_onnx.export.pipeline":
        pytest.importorskip("torch")
    assert run(program) == "seen\n"
    assert not (tmp_path / ".ses").exists()
