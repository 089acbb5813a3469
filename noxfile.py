"""The steps of CI, one by one: `nox -s test`, `nox -s lint`, `nox -s types`, `nox -s docs`."""

from __future__ import annotations

from pathlib import Path

import nox

ROOT = Path(__file__).parent
PACKAGES = ("runtime", "evaluation", "models", "export", "commands", "console")
MODULES = ("lcmem_onnx.cli", "lcmem_onnx")

nox.options.sessions = ["lint", "types", "test"]
nox.options.reuse_existing_virtualenvs = True


def install_all(session: nox.Session) -> None:
    session.install("-r", "requirements-dev.lock", "-e", ".[cpu,export,dev]")


def package_folder() -> Path:
    """Return a folder that shows the checkout under the package's name: static tools do not follow an editable installation."""
    folder = ROOT / ".types"
    folder.mkdir(exist_ok=True)
    link = folder / "lcmem_onnx"
    if not link.is_symlink():
        link.symlink_to("..")
    return folder


@nox.session
def test(session: nox.Session) -> None:
    """Run the tests; without arguments, all but the slow ones. Everything: `nox -s test -- tests`."""
    install_all(session)
    session.run("pytest", *(session.posargs or ("-m", "not slow")))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and who imports whom."""
    install_all(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    folder = package_folder()
    with session.chdir(folder):
        session.run("lint-imports", "lcmem_onnx/pyproject.toml", env={"PYTHONPATH": str(folder)})


@nox.session
def types(session: nox.Session) -> None:
    """Check the types, and that editors resolve every import."""
    install_all(session)
    with session.chdir(package_folder()):
        packages = [argument for name in PACKAGES for argument in ("-p", f"lcmem_onnx.{name}")]
        modules = [argument for name in MODULES for argument in ("-m", name)]
        session.run("mypy", "--config-file", "lcmem_onnx/pyproject.toml", *packages, *modules)
    session.run("basedpyright", "--pythonpath", str(Path(session.bin) / "python"))


@nox.session
def docs(session: nox.Session) -> None:
    """Check what the documents promise, and build them strictly. Serve them: `nox -s docs -- serve`."""
    session.install("-e", ".[cpu,docs,test]")
    if session.posargs:
        session.run("mkdocs", *session.posargs)
        return
    session.run("pytest", "-q", "tests/test_docs.py")
    session.run("mkdocs", "build", "--strict", "--site-dir", str(Path(session.create_tmp()) / "site"))
