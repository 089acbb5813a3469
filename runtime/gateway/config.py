"""gateway.toml to `Settings`: every key known, every value of its type, every name that is referred to there.

What the file names is looked at by `check`, not here: reading a configuration touches no index and no port.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import re
import tomllib
import types
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError
from .settings import Destination, HttpSettings, Rule, Settings

__all__ = ["is_loopback", "read_config"]

_AET = re.compile(r"[ -\[\]-~]{1,16}")
"""What an AE title may hold (PS3.5): printable ASCII without the backslash."""
_POSITIVE = ("seconds", "_mb", "attempts", "max_", "remember_days", "nearest", "per_second")
"""Parts of the names of numbers that must be above 0."""


def read_config(path: Path) -> Settings:
    """Read and check a configuration.

    Raises:
        ConfigError: unreadable, not TOML, an unknown key, a value of another type, or parts that do not go together. The message
            names the file, the place in it, and its line where it can be found.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; 'lcmem-onnx gateway init' writes an example") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    reader = _Reader(path.absolute(), text)
    settings: Settings = reader.filled(Settings, content, "")
    _check_consistent(settings, reader)
    return settings


class _Reader:
    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._lines = text.splitlines()

    def error(self, place: str, message: str) -> ConfigError:
        line = self._line(place)
        return ConfigError(f"{self.path}{f', line {line}' if line else ''}: {place}: {message}")

    def filled(self, kind: type, content: Mapping[str, Any], place: str) -> Any:
        """A dataclass from a table."""
        hints = get_type_hints(kind)
        fields = {field.name: field for field in dataclasses.fields(kind)}
        for key in content:
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
                known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(fields)}"
                raise self.error(_join(place, key), f"there is no such key; {known}")
        values: dict[str, Any] = {}
        for name, field in fields.items():
            if name in content:
                values[name] = self._value(hints[name], content[name], _join(place, name))
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise self.error(_join(place, name), "this must be given")
        return kind(**values)

    def _value(self, hint: Any, value: Any, place: str) -> Any:
        origin = get_origin(hint)
        if origin in (types.UnionType, Union):
            (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
            return self._value(hint, value, place)
        if origin is Literal:
            if value not in get_args(hint):
                raise self.error(place, f"it is {value!r}, and may be {', '.join(map(repr, get_args(hint)))}")
            return value
        if origin is tuple:
            if not isinstance(value, list):
                raise self.error(place, f"a list is wanted, not {value!r}")
            return tuple(self._value(get_args(hint)[0], item, f"{place}[{at}]") for at, item in enumerate(value))
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise self.error(place, f"a table is wanted, not {value!r}")
            return self.filled(hint, value, place)  # type: ignore[arg-type]
        if hint is Path:
            if not isinstance(value, str) or not value or "\0" in value:
                raise self.error(place, f"a path is wanted, not {value!r}")
            return self.path.parent / Path(value).expanduser()
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
            words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
            raise self.error(place, f"{words[hint]} is wanted, not {value!r}")
        self._check_number(value, place)
        return value

    def _check_number(self, value: object, place: str) -> None:
        name = place.rpartition(".")[2]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        if name == "port" and not 0 <= value <= 65535:
            raise self.error(place, f"a port is between 0 and 65535, not {value}")
        if name in ("threshold", "fpir") and not 0 < value < 1:
            what = "a score" if name == "threshold" else "a share of strangers' images"
            raise self.error(place, f"{what} is between 0 and 1, not {value}")
        if any(part in name for part in _POSITIVE) and not 0 < value < 1e9:
            raise self.error(place, f"it must be above 0, and is {value}")

    def _line(self, place: str) -> int | None:
        """The line of a key, by reading the file as people do; None where it is written in some other way."""
        *tables, key = re.sub(r"\[\d+\]$", "", place).split(".")
        wanted = [(re.sub(r"\[\d+\]", "", table), int(index or 0)) for table in tables for _, index in [_numbered(table)]]
        current: list[str] = []
        seen: Counter[str] = Counter()
        for number, line in enumerate(self._lines, 1):
            if header := re.match(r"\s*(\[\[?)\s*([\w.\-]+)\s*\]", line):
                current = header[2].split(".")
                seen[header[2]] += header[1] == "[["
                if current == [*(name for name, _ in wanted), key]:
                    return number
            elif (
                re.match(rf"\s*{re.escape(key)}\s*=", line)
                and current == [name for name, _ in wanted]
                and (not wanted or seen[".".join(current)] in (0, wanted[-1][1] + 1))
            ):
                return number
        return None


def _numbered(table: str) -> tuple[str, str]:
    name, _, index = table.partition("[")
    return name, index.rstrip("]")


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _check_consistent(settings: Settings, reader: _Reader) -> None:
    """What no single value shows.

    Raises:
        ConfigError: see the messages.
    """
    for kind, named in (
        ("gallery", settings.gallery),
        ("destination", settings.destination),
        ("rule", settings.rule),
        ("folder", settings.folder),
    ):
        for name, count in Counter(item.name for item in named).items():
            if count > 1:
                raise reader.error(kind, f"the name {name!r} is given {count} times")
    if not settings.rule:
        raise reader.error("rule", "there is no rule: everything would go to quarantine")
    if not (settings.receive or settings.http or settings.folder):
        raise reader.error("receive", "there is no way in: give [receive], [http] or [[folder]]")
    for at, rule in enumerate(settings.rule):
        _check_rule(rule, f"rule[{at}]", settings, reader)
    for at, destination in enumerate(settings.destination):
        _check_destination(destination, f"destination[{at}]", reader)
    if receive := settings.receive:
        _check_aets([receive.aet], "receive.aet", reader)
        _check_aets(receive.calling_aets, "receive.calling_aets", reader)
        if not receive.calling_aets:
            raise reader.error("receive.calling_aets", "nobody may call: list the AE titles of those who send")
        if receive.max_pdu < 4096 or receive.max_pdu > 1 << 26:
            raise reader.error("receive.max_pdu", f"it must be between 4096 and {1 << 26} bytes, and is {receive.max_pdu}")
        for network in receive.addresses:
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError as error:
                raise reader.error("receive.addresses", f"{network!r} is no network such as 10.1.0.0/16") from error
    if settings.http:
        _check_http(settings.http, reader)


def _check_http(http: HttpSettings, reader: _Reader) -> None:
    if not http.caller:
        raise reader.error("http.caller", "nobody may call: give [[http.caller]] with a name, a token and what it may")
    if not http.tls and not is_loopback(http.host):
        raise reader.error("http.host", f"{http.host} can be reached from other machines, which needs [http.tls]")
    for name, count in Counter(caller.name for caller in http.caller).items():
        if count > 1:
            raise reader.error("http.caller", f"the name {name!r} is given {count} times")
    for at, caller in enumerate(http.caller):
        place = f"http.caller[{at}]"
        if [bool(caller.token_file), bool(caller.token_sha256), bool(caller.certificate)].count(True) != 1:
            raise reader.error(place, "one of token_file, token_sha256 and certificate tells who it is")
        if not caller.may:
            raise reader.error(f"{place}.may", "it may nothing: list store, screen, status or quarantine")
        if caller.token_sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", caller.token_sha256):
            raise reader.error(f"{place}.token_sha256", "a sha256 has 64 hexadecimal digits")
        if caller.certificate and not (http.tls and http.tls.client_ca):
            raise reader.error(f"{place}.certificate", "certificates are asked for with [http.tls] client_ca only")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, which no other machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_rule(rule: Rule, place: str, settings: Settings, reader: _Reader) -> None:
    galleries = [gallery.name for gallery in settings.gallery]
    destinations = [destination.name for destination in settings.destination]
    if rule.gallery not in galleries:
        raise reader.error(f"{place}.gallery", f"there is no [[gallery]] named {rule.gallery!r}{_near(rule.gallery, galleries)}")
    for key, names in (("forward_to", rule.forward_to), ("forward_matches_to", rule.forward_matches_to)):
        for name in names:
            if name not in destinations:
                raise reader.error(f"{place}.{key}", f"there is no [[destination]] named {name!r}{_near(name, destinations)}")
    if "forward" in (rule.on_clear, rule.on_no_pixels) and not rule.forward_to:
        raise reader.error(f"{place}.forward_to", "the rule forwards, and names no destination")
    if (rule.on_match == "forward") != bool(rule.forward_matches_to):
        raise reader.error(f"{place}.forward_matches_to", 'this goes together with on_match = "forward"')
    from ..images.content_flags import ContentFlag

    notes = [note.value for note in ContentFlag]
    for note in rule.hold_notes:
        if note not in notes:
            raise reader.error(f"{place}.hold_notes", f"there is no note {note!r}{_near(note, notes)}")
    if both := set(rule.forward_to) & set(rule.forward_matches_to):
        raise reader.error(f"{place}.forward_matches_to", f"{min(both)!r} gets what is clear: matches must go elsewhere")


def _check_destination(destination: Destination, place: str, reader: _Reader) -> None:
    if destination.kind == "dicom":
        if not (destination.host and destination.port and destination.aet):
            raise reader.error(place, "a DICOM destination needs host, port and aet")
        _check_aets([destination.aet, destination.calling_aet], f"{place}.aet", reader)
    elif not destination.url.startswith(("http://", "https://")):
        raise reader.error(f"{place}.url", "a STOW destination needs a url that begins with http:// or https://")
    if destination.tls and bool(destination.tls.certificate) != bool(destination.tls.key):
        raise reader.error(f"{place}.tls", "certificate and key go together")


def _check_aets(titles: Iterable[str], place: str, reader: _Reader) -> None:
    for title in titles:
        if not _AET.fullmatch(title) or title != title.strip():
            raise reader.error(place, f"{title!r} is no AE title: 1 to 16 printable ASCII characters, no backslash")


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known) or 'none'}"
