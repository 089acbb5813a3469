"""The offline folder, of wheels that need no network to make: what is written beside them, and what install.sh refuses.

CI makes the real one and installs from it without network and compiler (`.ci/run`).
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
COMMAND = "import sys\ndef main():\n    print('doctor' if sys.argv[1:] == ['doctor'] else 'installed')\n"


@pytest.fixture(scope="module")
def wheelhouse() -> ModuleType:
    specification = importlib.util.spec_from_file_location("wheelhouse", ROOT / "offline" / "wheelhouse.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def write_wheel(folder: Path, name: str, files: dict[str, str], requires: str = "", scripts: str = "") -> Path:
    stem = f"{name.replace('-', '_')}-1.0"
    entries = {
        **files,
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nProvides-Extra: cpu\n{requires}",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/entry_points.txt": scripts,
    }
    sums = {path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=") for path, text in entries.items()}
    record = "".join(f"{path},sha256={digest.decode()},{len(entries[path])}\n" for path, digest in sums.items())
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**entries, f"{stem}.dist-info/RECORD": record + f"{stem}.dist-info/RECORD,,\n"}.items():
            archive.writestr(path, text)
    return wheel


@pytest.fixture
def folder(tmp_path: Path, wheelhouse: ModuleType) -> Path:
    """A wheelhouse of a stand-in for this package, one dependency, and the pip that is here."""
    made = tmp_path / "house"
    wheels = made / "wheels"
    wheels.mkdir(parents=True)
    write_wheel(wheels, "needed", {"needed.py": ""})
    scripts = "[console_scripts]\nlcmem-onnx = standin:main\n"
    write_wheel(wheels, "lcmem-onnx", {"standin.py": COMMAND}, 'Requires-Dist: needed ; extra == "cpu"\n', scripts)
    with zipfile.ZipFile(wheels / "pip-1.0-py3-none-any.whl", "w") as archive:
        package = Path(importlib.util.find_spec("pip").origin).parent  # type: ignore[union-attr, arg-type]
        for path in package.rglob("*"):
            if path.suffix != ".pyc" and path.is_file():
                archive.write(path, f"pip/{path.relative_to(package)}")
        archive.writestr("pip-1.0.dist-info/METADATA", "Name: pip\nVersion: 1.0\n")
    wheelhouse.describe(made, ["cpu"], None)
    return made


def install(folder: Path, target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PIP_INDEX_URL": "file:///nowhere", **environment}
    return subprocess.run(
        ["sh", str(folder / "install.sh"), str(target)], env=settings, capture_output=True, text=True, check=False
    )


def test_it_installs_from_the_folder_alone(folder: Path, tmp_path: Path) -> None:
    done = install(folder, tmp_path / "an environment")
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("next  ")
    run = subprocess.run([tmp_path / "an environment" / "bin" / "lcmem-onnx"], capture_output=True, text=True, check=True)
    assert run.stdout == "installed\n"
    again = install(folder, tmp_path / "an environment")
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


def test_a_changed_file_is_refused(folder: Path, tmp_path: Path) -> None:
    wheel = folder / "wheels" / "needed-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    done = install(folder, tmp_path / "env")
    assert done.returncode == 2
    assert "not as they were made" in done.stderr
    assert not (tmp_path / "env").exists()


def test_a_wheel_of_another_hash_is_refused_by_pip_too(folder: Path, tmp_path: Path, wheelhouse: ModuleType) -> None:
    """Where somebody has made the sums anew: the requirements' hashes are pip's to check. Nothing is left behind."""
    wheel = write_wheel(folder / "wheels", "needed", {"needed.py": "changed = 1"})
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    mended = [line if not line.endswith(wheel.name) else f"{wheelhouse.sha256(wheel)}  wheels/{wheel.name}" for line in sums]
    (folder / "SHA256SUMS").write_text("\n".join(mended) + "\n")
    done = install(folder, tmp_path / "env")
    assert done.returncode == 2
    assert "hash" in done.stderr.lower()
    assert not (tmp_path / "env").exists()


def test_another_python_or_machine_is_refused(folder: Path, tmp_path: Path) -> None:
    target = json.loads((folder / "target.json").read_text())
    assert target["packages"] == {"lcmem-onnx": "1.0", "needed": "1.0", "pip": "1.0"}
    text = json.dumps({**target, "python": "3.99", "machine": "riscv64"})
    (folder / "target.json").write_text(text)
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / "SHA256SUMS").write_text("\n".join(f"{digest}  target.json" if "target" in line else line for line in sums) + "\n")
    done = install(folder, tmp_path / "env")
    assert done.returncode == 2
    assert "instead of 3.99" in done.stderr
    assert "riscv64" in done.stderr


def test_requirements_pin_everything_but_pip(folder: Path) -> None:
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert [line.split(" ")[0] for line in lines] == ["lcmem-onnx[cpu]==1.0", "needed==1.0"]
    assert all(" --hash=sha256:" in line for line in lines)


def test_an_existing_folder_is_never_touched(tmp_path: Path, wheelhouse: ModuleType) -> None:
    with pytest.raises(wheelhouse.WheelhouseError, match="exists already"):
        wheelhouse.make(tmp_path, ["cpu"], None)
