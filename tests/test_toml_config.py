"""The reader of TOML behind gateway.toml and the training's recipes: strict values, and errors that name file, line and key."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lcmem_onnx.runtime.errors import ConfigError
from lcmem_onnx.runtime.gateway.settings import ModelSettings, Settings
from lcmem_onnx.runtime.system.toml_config import ConfigPath, Range, TomlConfig


@dataclass(frozen=True)
class Item:
    name: str
    weight: Annotated[float, Range(0, 1)] = 0.5


@dataclass(frozen=True)
class Example:
    count: Annotated[int, Range(1)] = 1
    rate: float = 1.0
    on: bool = True
    mode: Literal["fast", "slow"] = "fast"
    file: ConfigPath | None = None
    names: tuple[str, ...] = ()
    item: tuple[Item, ...] = ()
    limits: Mapping[str, Annotated[int, Range(0)]] = field(default_factory=dict)
    kinds: Mapping[str, Item] = field(default_factory=dict)


def written(folder: Path, text: str, name: str = "example.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str, *overrides: str) -> str:
    """The error about a file, without its folder."""
    with pytest.raises(ConfigError) as caught:
        TomlConfig(written(folder, text), ConfigError, overrides, extends=True).read(Example)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{folder}/", "")


def test_values_become_what_their_fields_are(tmp_path: Path) -> None:
    text = 'count = 3\nrate = 2\nfile = "a/b"\nnames = ["x", "y"]\nlimits = {a = 0}\n[[item]]\nname = "n"\n[kinds.k]\nname = "m"\n'
    config = TomlConfig(written(tmp_path, text), ConfigError)
    expected = Example(3, 2.0, file=tmp_path / "a/b", names=("x", "y"), item=(Item("n"),), limits={"a": 0}, kinds={"k": Item("m")})
    assert config.read(Example, tmp_path) == expected
    assert isinstance(config.read(Example).rate, float)
    assert config.read(Example).file == Path("a/b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count = 1.0", "example.toml, line 1: count is 1.0; expected integer"),
        ("count = 0", "example.toml, line 1: count is 0; it must be 1 or more"),
        (f"count = -{'9' * 400}", f"example.toml, line 1: count is -{'9' * 400}; it must be 1 or more"),
        ("\n\nrate = true", "example.toml, line 3: rate is True; expected number"),
        ('on = "yes"', "example.toml, line 1: on is 'yes'; expected boolean"),
        ("on = 1", "example.toml, line 1: on is 1; expected boolean"),
        ('mode = "Fast"', "example.toml, line 1: mode is 'Fast'; expected 'fast' or 'slow'"),
        ('file = ""', "example.toml, line 1: file is ''; expected path"),
        ('file = "a\\u0000b"', "example.toml, line 1: file is 'a\\x00b'; expected path"),
        ("file = 2026-11-30", "example.toml, line 1: file is {'date or time': '2026-11-30'}; expected path"),
        ("names = [\n'a',\n2,\n]", "example.toml, line 1: names[1] is 2; expected string"),
        ("kinds = 3", "example.toml, line 1: 'kinds' is a table of settings, not 3"),
        ("[limits]\na = 1\nb = 1.5", "example.toml, line 3: limits.b is 1.5; expected integer"),
        ("[limits]\na = 1\nb = -1", "example.toml, line 3: limits.b is -1; it must be 0 or more"),
        ("[kinds.a]\nname = 'a'\n[kinds.b]\n", "example.toml, line 3 lacks a key: 'kinds.b.name' must be set"),
        (
            "[[item]]\nname = 'a'\n\n[[item]]\nname = 'b'\nwieght = 1",
            "example.toml, line 6 has the key 'item[1].wieght', which does not exist; did you mean 'weight'?",
        ),
        (
            "[kinds.name]\nnam = 'a'",
            "example.toml, line 2 has the key 'kinds.name.nam', which does not exist; did you mean 'name'?",
        ),
        ("[[item]]\nname = 'a'\nweight = nan", "example.toml, line 3: item[0].weight is nan; it must be in [0, 1]"),
        # Keys as only a parser finds them: dotted, quoted, in a table of one line, beside the same words in a text or comment.
        ("limits.a = 1\nlimits.b = -1", "example.toml, line 2: limits.b is -1; it must be 0 or more"),
        ('"count" = 0', "example.toml, line 1: count is 0; it must be 1 or more"),
        ("item = [\n{name = 'a'},\n{name = 3}]", "example.toml, line 1: item[1].name is 3; expected string"),
        ('mode = """\ncount = 1\n"""\n# count = 2\ncount = 0', "example.toml, line 5: count is 0; it must be 1 or more"),
        ("count = 0\r\n", "example.toml, line 1: count is 0; it must be 1 or more"),
    ],
)
def test_an_error_names_file_line_key_value_and_what_was_expected(text: str, message: str, tmp_path: Path) -> None:
    assert refused(tmp_path, text) == message


def test_an_unknown_key_is_named_before_the_missing_one_that_it_stands_for(tmp_path: Path) -> None:
    assert "the key 'item[0].nmae', which does not exist; did you mean 'name'" in refused(tmp_path, "[[item]]\nnmae = 'a'")


def test_an_error_names_the_file_or_option_that_the_value_comes_from(tmp_path: Path) -> None:
    written(tmp_path, "rate = 1.0\ncount = 0\n[limits]\na = 1", "base.toml")
    extending = 'extends = "base.toml"\n'
    assert refused(tmp_path, extending).startswith("base.toml, line 2: count is 0")
    assert refused(tmp_path, extending + "count = 'x'").startswith("example.toml, line 2: count is 'x'")
    assert refused(tmp_path, extending, "count=1", "limits.a=-1").startswith("--set 'limits.a=-1': limits.a is -1")
    assert refused(tmp_path, "extends = ''").startswith("example.toml, line 1: extends is ''; expected the path")
    written(tmp_path, 'extends = "example.toml"', "base.toml")
    assert "example.toml extends itself, by way of" in refused(tmp_path, extending)


@pytest.mark.parametrize("text", ["count = ", "count = 1\ncount = 2", "[" * 5000, f"count = {'9' * 5000}"])
def test_what_is_not_toml_is_one_line(text: str, tmp_path: Path) -> None:
    assert refused(tmp_path, text).startswith("example.toml cannot be read as a TOML file: ")


def test_extending_needs_leave(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the key 'extends', which does not exist"):
        TomlConfig(written(tmp_path, 'extends = "x.toml"'), ConfigError).read(Example)


def test_without_pydantic_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    assert "pip install pydantic" in refused(tmp_path, "")


@given(
    st.integers(1, 2**80),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]))),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_numbers_and_texts_are_read_exactly(tmp_path: Path, count: int, rate: float, names: list[str]) -> None:
    """JSON's strings and numbers without exponents are TOML's too."""
    number = repr(rate) if "e" not in repr(rate) or "." in repr(rate) else repr(rate).replace("e", ".0e")
    text = f"count = {count}\nrate = {number}\nnames = {json.dumps(names, ensure_ascii=False)}\n"
    config = TomlConfig(written(tmp_path, text), ConfigError).read(Example)
    assert (config.count, repr(config.rate), config.names) == (count, repr(rate), tuple(names))


def numbers_without_range(kind: Any, place: str = "") -> list[str]:
    """The numeric fields of a dataclass, and of those in it, that take any number."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        return [name for each in fields(kind) for name in numbers_without_range(hints[each.name], f"{place}.{each.name}")]
    if any(isinstance(part, Range) for part in getattr(kind, "__metadata__", ())):
        return []
    return [place] if kind in (int, float) else [name for part in get_args(kind) for name in numbers_without_range(part, place)]


def test_every_number_of_the_gateway_has_a_range() -> None:
    assert numbers_without_range(Settings) == [".model.threads"]
    assert numbers_without_range(ModelSettings) == [".threads"]


def test_every_number_of_a_recipe_has_a_range() -> None:
    pytest.importorskip("torch", reason="the training's extra is not installed")
    from lcmem_onnx.models.train.config import Config

    assert numbers_without_range(Config) == []
