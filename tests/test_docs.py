"""What the documentation promises is there: commands, options, examples, figures."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from lcmem_onnx.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = README + "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md")))


def tree(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield the full name and the command of every command and group below a group, lazy ones included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{prefix}{name}", command
        if isinstance(command, click.Group):
            yield from tree(command, f"{prefix}{name} ")


def commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """Yield the full name and the command of every command below a group."""
    return ((name, command) for name, command in tree(group) if not isinstance(command, click.Group))


def test_the_walk_finds_commands_of_every_level() -> None:
    names = {name for name, _ in tree(main)}
    assert {"scan", "index", "index build", "index upgrade", "gateway quarantine show", "gateway audit verify"} <= names


@pytest.mark.parametrize(("name", "command"), [*tree(main), ("export", importlib.import_module("lcmem_onnx.export.command").main)])
def test_short_help_is_not_cut(name: str, command: click.Command) -> None:
    """click cuts a summary derived from the docstring; an explicit one must fit beside the longest name in 80 columns."""
    assert command.short_help, f"{name} has no short_help"
    assert len(command.short_help) <= 45, f"{name}: {len(command.short_help)} characters"
    assert not command.short_help.endswith((".", " ")), name


def test_every_group_lists_its_commands_in_full_at_80_columns() -> None:
    groups = [("", main), *((name, command) for name, command in tree(main) if isinstance(command, click.Group))]
    for name, group in groups:
        listing = group.get_help(click.Context(group, info_name=f"lcmem-onnx {name}".strip(), terminal_width=80))
        lines = [line.strip() for line in listing.partition("Commands:")[2].splitlines() if line.strip()]
        summaries = [(short, group.get_command(click.Context(group), short)) for short in group.list_commands(click.Context(group))]
        assert [line.split(maxsplit=1) for line in lines] == [
            [short, command.short_help] for short, command in summaries if command
        ]


@pytest.mark.parametrize("name", [name for name, _ in commands(main)])
def test_every_command_appears_in_the_documentation(name: str) -> None:
    assert f"lcmem-onnx {name}" in DOCS


@pytest.mark.parametrize(("name", "command"), list(commands(main)))
def test_every_command_says_what_it_does_and_gives_an_example(name: str, command: click.Command) -> None:
    assert command.help
    assert f"lcmem-onnx {name}" in command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"
            assert all(re.fullmatch(r"--[a-z][a-z-]*|-\w", option) for option in parameter.opts), parameter.opts


def test_every_option_that_the_documentation_uses_exists() -> None:
    known = {option for _, command in commands(main) for parameter in command.params for option in parameter.opts}
    known |= {option for parameter in importlib.import_module("lcmem_onnx.export.command").main.params for option in parameter.opts}
    known |= {"--help", "--version"}
    used = {
        option
        for block in re.findall(r"```sh\n(.*?)```", DOCS, re.S)
        for line in block.splitlines()
        if re.search(r"lcmem-onnx |-m export", line)
        for option in re.findall(r"(?<=\s)--[a-z-]+", line.partition("lcmem-onnx")[2] or line)
    }
    assert used <= known, used - known


def test_the_readmes_python_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(ROOT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "README.md", "exec"), {})
    assert "Verdict" in printed.getvalue() or "match" in printed.getvalue()
    assert "(1, 512)" in printed.getvalue()


def test_ci_runs_the_readmes_test_command() -> None:
    blocks = re.findall(r"```sh\n(python3 -m venv .*?)\n```", README, re.S)
    assert len(blocks) == 2
    install, test = blocks[1].removeprefix("python3 -m venv .venv-dev && ").split(" && ")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert install.replace(".venv-dev/bin/pip install", "").strip() in script
    assert test.replace(".venv-dev/bin/python", "").strip() in script


def test_links_between_documents_hold() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_tests_that_the_hazards_name_exist() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "hazards.md").read_text(encoding="utf-8"))
    assert len(named) >= 50
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{name}"
