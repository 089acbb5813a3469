"""Names for reference pictures that give nothing away: a keyed hash of the key under which each is known.

The key is made once for a report's folder and stays in its private part, so that a later run gives the same names, and nobody
who has the report alone can test a guess. Without a key a hash of a path would be no secret: paths can be guessed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from pathlib import Path

from ..errors import UsageError
from ..syncing import put_whole

__all__ = ["Pseudonyms"]

KEY_BYTES = 32
LETTERS = 10
"""50 bits: among a million pictures, two share a name with a chance of one in two thousand."""


class Pseudonyms:
    """Names by a key that is kept in a file, readable by its owner alone.

    Raises:
        UsageError: the file is damaged, or cannot be read or made.
    """

    def __init__(self, path: Path) -> None:
        try:
            if not path.exists():
                put_whole(path, lambda draft: draft.write_bytes(secrets.token_bytes(KEY_BYTES)), private=True)
                path.chmod(0o600)  # the mask may have taken bits from it
            self._key = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path} cannot be read or made: {error.strerror}") from error
        if len(self._key) != KEY_BYTES:
            raise UsageError(f"{path} is damaged: it has {len(self._key)} bytes, not {KEY_BYTES}. Remove it for new pseudonyms")
        self._known: dict[str, str] = {}

    @property
    def secret(self) -> bytes:
        """The key, 32 bytes. It is for what stays in the private part."""
        return self._key

    def name(self, key: str) -> str:
        """The pseudonym of a reference picture, such as R-7KQ2MXA4PB; the same for the same key."""
        if key not in self._known:
            digest = hmac.new(self._key, key.encode("utf-8", "backslashreplace"), hashlib.sha256).digest()
            self._known[key] = f"R-{base64.b32encode(digest).decode()[:LETTERS]}"
        return self._known[key]

    @property
    def given(self) -> dict[str, str]:
        """Key to pseudonym, of all that were asked for."""
        return dict(self._known)
