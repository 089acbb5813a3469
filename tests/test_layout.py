"""The house's laws: who may import whom, what a command line costs, and that nothing reaches for the network."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import lcmem_onnx
import pytest

ROOT = Path(lcmem_onnx.__file__).parent
EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
HEAVY = ("torch", "diffusers", "onnx", "onnxruntime", "cv2", "numpy", "hnswlib", "pydicom", "PIL", "rich")


def imported(path: Path) -> set[str]:
    """Absolute names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


def run(program: str) -> str:
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_runtime_is_self_contained() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        roots = {name.partition(".")[0] for name in imported(path)}
        assert not roots & {"torch", "diffusers", "onnx", "lcmem_onnx", "models", "export", "runtime"}, path


def test_the_runtime_has_no_circle_of_imports() -> None:
    """Importing each module alone works; a folder counts as one module."""
    graph: dict[str, set[str]] = {}
    for path in (ROOT / "runtime").glob("*.py"):
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        modules = (node.module for node in tree if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module)
        graph[path.stem] = {module.partition(".")[0] for module in modules} - {path.stem}
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle


def test_the_gateways_rooms_are_in_the_order_that_it_gives() -> None:
    """runtime/gateway/__init__.py lists them; each imports from those above it."""
    package = ROOT / "runtime" / "gateway"
    listed = re.findall(r"^    ([a-z_, ]+?)  ", (package / "__init__.py").read_text(encoding="utf-8"), re.M)
    order = [name for line in listed for name in line.split(", ")]
    for path in package.glob("*.py"):
        if path.stem == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                room = node.module.partition(".")[0]
                assert order.index(room) < order.index(path.stem), f"{path.stem} imports {room}"


def test_models_and_export_use_the_import_package_by_its_name() -> None:
    for folder in ("models", "export"):
        for path in (ROOT / folder).glob("*.py"):
            assert not {name.partition(".")[0] for name in imported(path)} & {"models", "export", "runtime", "cli"}, path


def test_the_public_names_are_sorted_and_true() -> None:
    assert lcmem_onnx.__all__ == sorted(lcmem_onnx.__all__)
    for name in lcmem_onnx.__all__:
        assert getattr(lcmem_onnx, name).__name__ == name
        assert getattr(lcmem_onnx, name).__doc__
    assert dir(lcmem_onnx) == lcmem_onnx.__all__
    with pytest.raises(AttributeError, match="nonsense"):
        lcmem_onnx.nonsense  # noqa: B018


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


def test_no_module_grows_past_600_lines() -> None:
    for path in [
        *ROOT.glob("*.py"),
        *(path for folder in ("runtime", "evaluation", "export", "models") for path in (ROOT / folder).rglob("*.py")),
    ]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 600, path
