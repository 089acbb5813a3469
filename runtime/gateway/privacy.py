"""Pseudonyms as the gateway writes them: those of the site's key (see `gallery.pseudonyms`), shortened for lines and pages.

With the same key file an object, a study and a gallery's picture have the same digits here as in an index.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import GatewayError, UsageError
from ..gallery.pseudonyms import SiteKey
from ..identifiers import Identifiers

__all__ = ["Pseudonyms", "create_site_key", "read_site_key"]

DIGITS = 32
"""Hexadecimal digits of a pseudonym: 128 bits, so that no two of a hospital's meet."""


class Pseudonyms:
    """Gives pseudonyms. `kind` keeps a patient's id and a UID of the same text apart."""

    def __init__(self, key: SiteKey) -> None:
        self._key = key

    def of(self, kind: str, value: str) -> str:
        """32 hexadecimal digits for a text; "" for an empty one, which identifies nobody."""
        return self._key.pseudonym(kind, value)[:DIGITS] if value else ""

    def patient(self, identifiers: Identifiers) -> str:
        """Return the pseudonym of a patient, which an index with the same key has too; "" where the header names nobody."""
        if not identifiers.patient_id:
            return ""
        return self._key.patient(identifiers.patient_id, identifiers.issuer)[:DIGITS]


def read_site_key(path: Path) -> SiteKey:
    """The site's key.

    Raises:
        GatewayError: it is missing, unreadable, or no key.
    """
    if not path.exists():
        raise GatewayError(f"the site key {path} does not exist; 'lcmem-onnx gateway init' makes one")
    try:
        return SiteKey.open(path)
    except UsageError as error:
        raise GatewayError(str(error)) from error


def create_site_key(path: Path) -> None:
    """Write a new random key, readable by its owner alone.

    Raises:
        GatewayError: it is there already, or cannot be written.
    """
    try:
        SiteKey.create(path)
    except UsageError as error:
        raise GatewayError(str(error)) from error
