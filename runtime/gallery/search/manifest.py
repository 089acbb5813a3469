"""The small sealed files that describe a cache: written whole; read, and everything about their form checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ...errors import GalleryError
from ...model.bundle import SEAL, seal
from ...system.atomic_write import put_whole

__all__ = ["read_manifest", "write_manifest"]

M = TypeVar("M")
KINDS: dict[str, type] = {"int": int, "str": str, "list[float]": list, "dict[str, list[str]]": dict}


def write_manifest(path: Path, content: Mapping[str, Any], indent: int | None = None) -> None:
    """Write JSON values under their seal, for the folder's only writer: drafts that killed ones left are removed.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(seal(content), indent=indent) + "\n"
    put_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"), alone=True)


def read_manifest(path: Path, kind: type[M], version: int, what: str, error: type[GalleryError]) -> M | None:
    """Read a dataclass of numbers, texts, lists and dicts from JSON, or None where there is no such file.

    Args:
        path: the file.
        kind: the dataclass; its `format_version` has to be `version`.
        what: what the file describes, for messages.
        error: raised when anything is off; what the file describes can be made again.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror}") from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{path} is damaged: invalid JSON") from cause
    if not isinstance(content, dict):
        raise error(f"{path} is damaged: not a JSON object")
    if content.get("format_version") != version:
        raise error(f"{what} has another format")
    types = {field.name: KINDS[str(field.type)] for field in fields(kind)}  # type: ignore[arg-type]
    if content.keys() != {*types, SEAL} or any(type(content[name]) is not its for name, its in types.items()):
        raise error(f"{path} is damaged: it lacks fields, or they are of another type")
    if seal(content) != content:
        raise error(f"{path} is damaged: its own digest differs")
    return kind(**{name: content[name] for name in types})
