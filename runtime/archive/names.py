"""Names for an archive's objects that tell nothing to who lacks the site key: keyed hashes of their UIDs.

A bare hash of a UID can be looked up by anyone who has a list of UIDs. The hospital, which has the key and the archive, finds an
object again by hashing its own UIDs (`Names.of`); the gateway, with the same key, gives an object the same digits.
"""

from __future__ import annotations

from ..gallery.pseudonyms import SiteKey

__all__ = ["Names"]

DIGITS = 32
"""128 bits, so that no two of a hospital's objects meet."""


class Names:
    """Names made with one site key."""

    def __init__(self, key: SiteKey) -> None:
        self._key = key

    def of(self, uid: str) -> str:
        """A picture's name in a gallery, by its SOP Instance UID: 'sop:' and 32 hexadecimal digits."""
        return f"sop:{self._key.pseudonym('uid', uid)[:DIGITS]}"

    def digest(self, kind: str, *values: str) -> bytes:
        """16 bytes that stand for some texts."""
        return bytes.fromhex(self._key.pseudonym(kind, "\0".join(values))[:DIGITS])
