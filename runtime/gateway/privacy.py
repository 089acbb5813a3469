"""Pseudonyms in place of names, ids and UIDs: a keyed hash (HMAC-SHA256) with the site's key.

Equal values give equal pseudonyms at one site, and nobody without the key can try out which patient one stands for.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from ..errors import GatewayError

__all__ = ["Pseudonyms", "create_site_key", "read_site_key"]

KEY_BYTES = 32
DIGITS = 32
"""Hexadecimal digits of a pseudonym: 128 bits, so that no two of a hospital's meet."""


class Pseudonyms:
    """Gives pseudonyms. `kind` keeps a patient's id and a UID of the same text apart."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, kind: str, value: str) -> str:
        """32 hexadecimal digits for a text; "" for an empty one, which identifies nobody."""
        if not value:
            return ""
        message = f"{kind}\0{value}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:DIGITS]


def read_site_key(path: Path) -> bytes:
    """The site's key.

    Raises:
        GatewayError: it is missing, unreadable, or no key.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
        key = bytes.fromhex(text)
    except FileNotFoundError as error:
        raise GatewayError(f"the site key {path} does not exist; 'lcmem-onnx gateway init' makes one") from error
    except (OSError, ValueError) as error:
        raise GatewayError(f"the site key {path} cannot be read: {type(error).__name__}") from error
    if len(key) < KEY_BYTES:
        raise GatewayError(f"the site key {path} has {len(key)} bytes, and needs {KEY_BYTES}, in hexadecimal")
    return key


def create_site_key(path: Path) -> None:
    """Write a new random key, readable by its owner alone.

    Raises:
        GatewayError: it is there already, or cannot be written.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise GatewayError(f"{path} exists already: with another key all pseudonyms would change") from error
    except OSError as error:
        raise GatewayError(f"{path} cannot be written: {error.strerror}") from error
