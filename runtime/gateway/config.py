"""gateway.toml to `Settings`: every key known, every value of its type, every name that is referred to there.

What the file names is looked at by `check`, not here: reading a configuration touches no index and no port.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError
from ..system.toml_config import Place, TomlConfig, did_you_mean
from .settings import Destination, HttpSettings, Rule, Settings

__all__ = ["is_loopback", "read_config"]

_AET = re.compile(r"[ -\[\]-~]{1,16}")
"""What an AE title may hold (PS3.5): printable ASCII without the backslash."""


def read_config(path: Path) -> Settings:
    """Read and check a configuration.

    Raises:
        ConfigError: unreadable, not TOML, an unknown key, a value of another type or out of its range, or parts that do not go
            together. The message names the file, the line and the key.
    """
    try:
        config = TomlConfig(path.absolute(), ConfigError)
    except ConfigError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ConfigError(f"{path} does not exist; 'lcmem-onnx gateway init' writes an example") from error
        raise
    settings = config.read(Settings, path.absolute().parent)
    _check_consistent(settings, config)
    return settings


def _check_consistent(settings: Settings, config: TomlConfig) -> None:
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
                raise config.error((kind,), f"the name {name!r} is given {count} times")
    if not settings.rule:
        raise config.error(("rule",), "there is no rule: everything would go to quarantine")
    if not (settings.receive or settings.http or settings.folder):
        raise config.error(("receive",), "there is no way in: give [receive], [http] or [[folder]]")
    for at, rule in enumerate(settings.rule):
        _check_rule(rule, ("rule", at), settings, config)
    for at, destination in enumerate(settings.destination):
        _check_destination(destination, ("destination", at), config)
    if receive := settings.receive:
        _check_aets([receive.aet], ("receive", "aet"), config)
        _check_aets(receive.calling_aets, ("receive", "calling_aets"), config)
        if not receive.calling_aets:
            raise config.error(("receive", "calling_aets"), "nobody may call: list the AE titles of those who send")
        if receive.max_pdu < 4096 or receive.max_pdu > 1 << 26:
            raise config.error(("receive", "max_pdu"), f"it must be between 4096 and {1 << 26} bytes, and is {receive.max_pdu}")
        for network in receive.addresses:
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError as error:
                raise config.error(("receive", "addresses"), f"{network!r} is no network such as 10.1.0.0/16") from error
    if settings.http:
        _check_http(settings.http, config)


def _check_http(http: HttpSettings, config: TomlConfig) -> None:
    if not http.caller:
        raise config.error(("http", "caller"), "nobody may call: give [[http.caller]] with a name, a token and what it may")
    if not http.tls and not is_loopback(http.host):
        raise config.error(("http", "host"), f"{http.host} can be reached from other machines, which needs [http.tls]")
    for name, count in Counter(caller.name for caller in http.caller).items():
        if count > 1:
            raise config.error(("http", "caller"), f"the name {name!r} is given {count} times")
    for at, caller in enumerate(http.caller):
        place = ("http", "caller", at)
        if [bool(caller.token_file), bool(caller.token_sha256), bool(caller.certificate)].count(True) != 1:
            raise config.error(place, "one of token_file, token_sha256 and certificate tells who it is")
        if not caller.may:
            raise config.error((*place, "may"), "it may nothing: list store, screen, status or quarantine")
        if caller.token_sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", caller.token_sha256):
            raise config.error((*place, "token_sha256"), "a sha256 has 64 hexadecimal digits")
        if caller.certificate and not (http.tls and http.tls.client_ca):
            raise config.error((*place, "certificate"), "certificates are asked for with [http.tls] client_ca only")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, which no other machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_rule(rule: Rule, place: Place, settings: Settings, config: TomlConfig) -> None:
    galleries = [gallery.name for gallery in settings.gallery]
    destinations = [destination.name for destination in settings.destination]
    if rule.gallery not in galleries:
        raise config.error(
            (*place, "gallery"), f"there is no [[gallery]] named {rule.gallery!r}; {did_you_mean(rule.gallery, galleries)}"
        )
    for key, names in (("forward_to", rule.forward_to), ("forward_matches_to", rule.forward_matches_to)):
        for name in names:
            if name not in destinations:
                raise config.error((*place, key), f"there is no [[destination]] named {name!r}; {did_you_mean(name, destinations)}")
    if "forward" in (rule.on_clear, rule.on_no_pixels) and not rule.forward_to:
        raise config.error((*place, "forward_to"), "the rule forwards, and names no destination")
    if (rule.on_match == "forward") != bool(rule.forward_matches_to):
        raise config.error((*place, "forward_matches_to"), 'this goes together with on_match = "forward"')
    from ..images.content_flags import ContentFlag

    notes = [note.value for note in ContentFlag]
    for note in rule.hold_notes:
        if note not in notes:
            raise config.error((*place, "hold_notes"), f"there is no note {note!r}; {did_you_mean(note, notes)}")
    if both := set(rule.forward_to) & set(rule.forward_matches_to):
        raise config.error((*place, "forward_matches_to"), f"{min(both)!r} gets what is clear: matches must go elsewhere")


def _check_destination(destination: Destination, place: Place, config: TomlConfig) -> None:
    if destination.kind == "dicom":
        if not (destination.host and destination.port and destination.aet):
            raise config.error(place, "a DICOM destination needs host, port and aet")
        _check_aets([destination.aet, destination.calling_aet], (*place, "aet"), config)
    elif not destination.url.startswith(("http://", "https://")):
        raise config.error((*place, "url"), "a STOW destination needs a url that begins with http:// or https://")
    if destination.tls and bool(destination.tls.certificate) != bool(destination.tls.key):
        raise config.error((*place, "tls"), "certificate and key go together")


def _check_aets(titles: Iterable[str], place: Place, config: TomlConfig) -> None:
    for title in titles:
        if not _AET.fullmatch(title) or title != title.strip():
            raise config.error(place, f"{title!r} is no AE title: 1 to 16 printable ASCII characters, no backslash")
