"""A first configuration: the commented example, and a site key."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import GatewayError
from ..privacy import create_site_key

__all__ = ["EXAMPLE", "write_example"]

EXAMPLE = Path(__file__).parent / "example.toml"


def write_example(folder: Path) -> Path:
    """Write gateway.toml and site.key into a folder, which is made if need be. Returns the configuration's path.

    A site key that is there already stays: all pseudonyms depend on it.

    Raises:
        GatewayError: there is a gateway.toml already, or the folder cannot be written.
    """
    path = folder / "gateway.toml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
            file.write(EXAMPLE.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise GatewayError(f"{path} exists already, and stays as it is") from error
    except OSError as error:
        raise GatewayError(f"{path} cannot be written: {error.strerror}") from error
    if not (folder / "site.key").exists():
        create_site_key(folder / "site.key")
    return path
