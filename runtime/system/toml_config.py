"""Read TOML configuration files into frozen dataclasses, which pydantic validates strictly: no key is unknown, no value is coerced.

An error is one line: the file, the line, the key, its value and what was expected. pydantic is imported when a file is read: the
modules that declare the dataclasses stay quick to import.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import tomllib
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, get_args, get_type_hints

from ..errors import LcmemError

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, ValidationInfo
    from pydantic_core import CoreSchema, ErrorDetails

__all__ = ["ConfigPath", "Place", "Range", "TomlConfig", "did_you_mean"]

T = TypeVar("T")
Place: TypeAlias = tuple[str | int, ...]
"""A setting: the keys and list indices that lead to it, as in ("gallery", 0, "index")."""
EXTENDS = "extends"
"""The key of a file that names another one, whose settings it takes over where it has none of its own."""


@dataclass(frozen=True)
class Range:
    """The values that a number may have: metadata for `Annotated`. NaN and infinity are refused.

    `rule` replaces the sentence of the error, which otherwise gives the bounds.
    """

    lowest: float
    highest: float = math.inf
    open_below: bool = False
    open_above: bool = False
    rule: str = ""

    def __str__(self) -> str:
        if self.rule:
            return self.rule
        if math.isinf(self.lowest):
            return "it must be a finite number"
        if math.isinf(self.highest):
            return f"it must be above {self.lowest:g}" if self.open_below else f"it must be {self.lowest:g} or more"
        return f"it must be in {'(' if self.open_below else '['}{self.lowest:g}, {self.highest:g}{')' if self.open_above else ']'}"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core.core_schema import no_info_after_validator_function

        return no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: float) -> float:
        above = self.lowest < value if self.open_below else self.lowest <= value
        below = value < self.highest if self.open_above else value <= self.highest
        if not (above and below and -math.inf < value < math.inf):
            raise ValueError(value, str(self))
        return value


class _PathText:
    """A path that is not empty, relative to the folder that `TomlConfig.read` is given."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core.core_schema import with_info_plain_validator_function

        return with_info_plain_validator_function(self._checked)

    def _checked(self, value: Any, info: ValidationInfo) -> Path:
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(value, "expected path")
        return (info.context or Path()) / os.path.expanduser(value)


ConfigPath = Annotated[Path, _PathText()]
"""The type of a field that holds a path."""


@dataclass(frozen=True)
class _Source:
    """Where settings come from: a file, or an option of the command line, which has no `text`."""

    name: str
    content: dict[str, Any]
    text: str = ""

    def locate(self, place: Place) -> str:
        return f"{self.name}, line {_line(self.text, place)}" if self.text else self.name


class TomlConfig:
    """A TOML file, with what it extends and the settings of the command line that outrank it.

    Args:
        path: The file.
        error: The class of every error raised here.
        overrides: `table.key=value` settings that outrank the file, values in TOML's notation.
        extends: Let `extends = "OTHER.toml"`, relative to the file's own folder, take over the settings of another file.

    Raises:
        LcmemError: of class `error`; a file cannot be read, is not TOML, or extends itself, or an override is malformed.
    """

    def __init__(self, path: Path, error: type[LcmemError], overrides: Iterable[str] = (), *, extends: bool = False) -> None:
        self._path, self._error, self._extends = path, error, extends
        self._sources: list[_Source] = []  # the one that outranks all others comes last
        self._content = self._load(path)
        for override in overrides:
            self._override(override)

    def read(self, kind: type[T], folder: Path | None = None) -> T:
        """Return the settings as an instance of a dataclass.

        Args:
            kind: A dataclass; its fields may be dataclasses, tuples and mappings of them, `ConfigPath`, and numbers with a `Range`.
            folder: The folder that paths are relative to; they stay relative where it is None.

        Raises:
            LcmemError: of class `error`; a key is unknown or missing, or a value is of another type or out of its range.
        """
        try:
            from pydantic import ConfigDict, TypeAdapter, ValidationError
        except ModuleNotFoundError as error:
            raise self._error(f"the package {error.name} is not installed: 'pip install pydantic' brings it") from error
        # A dataclass alone takes no config here; as part of a union it does, and so do the dataclasses in it.
        optional: Any = kind | None
        adapter: TypeAdapter[Any] = TypeAdapter(optional, config=ConfigDict(strict=True, extra="forbid"))
        # As JSON: pydantic's strict mode takes tables for dataclasses, lists for tuples and 1 for 1.0 from JSON only. TOML's dates
        # and times become a table, which no setting accepts.
        text = json.dumps(self._content, default=lambda moment: {"date or time": str(moment)})
        try:
            settings: T = adapter.validate_json(text, context=folder)
        except ValidationError as error:
            problems = error.errors(include_url=False)
            unknown = [problem for problem in problems if problem["type"] == "unexpected_keyword_argument"]
            raise self._described((unknown or problems)[0], kind) from error
        return settings

    def error(self, place: Place, message: str) -> LcmemError:
        """Return an error about the setting at `place`, naming its file and line."""
        return self._error(f"{self._locate(place)}: {_name(place)}: {message}")

    def _described(self, problem: ErrorDetails, kind: type) -> LcmemError:
        place, value, name = problem["loc"], problem["input"], _name(problem["loc"])
        where, context = self._locate(place), problem.get("ctx", {})
        match problem["type"]:
            case "unexpected_keyword_argument":
                near = did_you_mean(str(place[-1]), [field.name for field in fields(_table(kind, place[:-1]))])
                return self._error(f"{where} has the key {name!r}, which does not exist; {near}")
            case "missing":
                return self._error(f"{where} lacks a key: {name!r} must be set")
            case "dataclass_type" | "dict_type":
                return self._error(f"{where}: {name!r} is a table of settings, not {value!r}")
            case "value_error":  # of Range and ConfigPath
                value, rule = context["error"].args
            case "literal_error":
                rule = f"expected {context['expected'].replace(', ', ' or ')}"
            case _:
                rule = f"expected {problem['msg'].removeprefix('Input should be a valid ')}"
        return self._error(f"{where}: {name} is {value!r}; {rule}")

    def _locate(self, place: Place) -> str:
        """The file and line of a setting or, if it is not set, of the innermost table that should hold it."""
        for length in range(len(place), 0, -1):
            for source in reversed(self._sources):
                if _has(source.content, place[:length]):
                    return source.locate(place[:length])
        return str(self._path)

    def _load(self, path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
        """The settings of a file, over those of the file that it extends."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise self._error(f"{path} cannot be read: {error}") from error
        try:
            content = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # not TOMLDecodeError alone: a number may have too many digits
            raise self._error(f"{path} cannot be read as a TOML file: {error}") from error
        source, below = _Source(str(path), content, text), {}
        if self._extends and EXTENDS in content:
            base = content[EXTENDS]
            if not isinstance(base, str) or not base:
                where = source.locate((EXTENDS,))
                raise self._error(f"{where}: {EXTENDS} is {base!r}; expected the path of a recipe, relative to this one's folder")
            extended_by = (*extended_by, path.resolve())
            if (path.parent / base).resolve() in extended_by:
                raise self._error(f"{path.parent / base} extends itself, by way of {path}: remove one '{EXTENDS}'")
            below = self._load(path.parent / base, extended_by)
            content = {key: value for key, value in content.items() if key != EXTENDS}
        self._sources.append(source)
        return _merged(below, content)

    def _override(self, setting: str) -> None:
        name, equals, value = setting.partition("=")
        try:
            if not equals:
                raise ValueError("there is no '='")
            parsed = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError) as error:
            raise self._error(f"--set {setting!r} is not of the form table.key=value, value in TOML's notation: {error}") from error
        *tables, key = name.strip().split(".")
        alone: dict[str, Any] = {}
        for content in (alone, self._content):
            for table in tables:
                content = content.setdefault(table, {})
                if not isinstance(content, dict):
                    raise self._error(f"--set {setting!r}: {table!r} is one setting and no table of them")
            content[key] = parsed
        self._sources.append(_Source(f"--set {setting!r}", alone))


def did_you_mean(name: str, known: list[str]) -> str:
    """Return the end of an error about an unknown name: the known name nearest to it, else all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known) or 'none'}"


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables key by key, everything else from `above`."""
    merged = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merged(below[key], above[key])
    return merged


def _name(place: Place) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")


def _has(content: Any, place: Place) -> bool:
    for step in place:
        try:
            content = content[step]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _table(kind: Any, place: Place) -> Any:
    """The dataclass of the table at `place`."""
    for step in place:
        if is_dataclass(kind):
            kind = get_type_hints(kind)[str(step)]
            if NoneType in get_args(kind):
                kind = next(part for part in get_args(kind) if part is not NoneType)
        else:  # `step` is an index of a tuple or a key of a mapping
            kind = next(part for part in get_args(kind) if is_dataclass(part))
    return kind


def _line(text: str, place: Place) -> int:
    """The line, from 1, on which the key or table at `place` begins. It is known to be in `text`.

    Whole statements are a TOML document too: the first such beginning of the file that has the key ends with its statement.
    """
    lines = text.split("\n")

    def whole(count: int) -> tuple[int, Any]:
        """The statements in the first `count` lines: how many lines they take, and what they say."""
        while True:
            try:
                return count, tomllib.loads("\n".join(lines[:count]))
            except tomllib.TOMLDecodeError:
                count -= 1

    last = bisect_left(range(len(lines) + 1), True, key=lambda count: _has(whole(count)[1], place))
    return whole(last - 1)[0] + 1
