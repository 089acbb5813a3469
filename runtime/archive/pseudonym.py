"""A picture's name in a gallery that was filled from an archive: a keyed hash of its SOP Instance UID.

A bare hash of a UID can be looked up by anyone who has a list of UIDs. With a key, only who has both the key and the archive can
tell which picture a name stands for; the hospital can, by hashing its own UIDs again (`Pseudonyms.of`).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from ..errors import UsageError

__all__ = ["KEY_FILE", "Pseudonyms"]

KEY_FILE = "pseudonym.key"
KEY_BYTES = 32


class Pseudonyms:
    """Names made with one key.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise UsageError(f"a pseudonym key has {KEY_BYTES} bytes, not {len(key)}")
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> Pseudonyms:
        """The key in a file of 64 hexadecimal digits; where there is no file, one is made, that its owner alone may read.

        Raises:
            UsageError: it cannot be read or made, or holds something else.
        """
        try:
            _make(path)
            text = path.read_text(encoding="ascii").strip()
            return cls(bytes.fromhex(text))
        except OSError as error:
            raise UsageError(f"the pseudonym key {path} can be neither read nor made: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{path} is no pseudonym key: it must hold {2 * KEY_BYTES} hexadecimal digits") from error

    def of(self, uid: str) -> str:
        """The pseudonym of a UID: 'sop:' and 32 hexadecimal digits, those that a gateway with the same key gives it."""
        return f"sop:{self.digest('uid', uid).hex()}"

    def digest(self, what: str, *values: str) -> bytes:
        """16 bytes that stand for some texts, which do not tell them to who lacks the key."""
        message = "\0".join((what, *values)).encode("utf-8", "backslashreplace")
        return hmac.new(self._key, message, hashlib.sha256).digest()[:16]


def _make(path: Path) -> None:
    """Make a key file if there is none; whole or not at all, and on disk, since names made with a lost key are lost too."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return  # another process was quicker: its key is the one
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
