"""Pseudonyms of patients and studies: HMAC-SHA256 under a key that stays on site.

An index holds pseudonyms only. Whoever has an index but not the key cannot tell whose a pseudonym is, nor try numbers out
(patients' numbers are few and short, so a hash without a key would be no secret). With the key the same patient has the same
pseudonym in each index of a site, so erasure by patient works without a list of names.

Lost, the key takes nothing from an index but this: pictures can no longer be erased by their patient's number.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from platformdirs import user_data_path

from ..errors import UsageError

__all__ = ["ENVIRONMENT", "PSEUDONYM", "PSEUDONYMOUS_KEY", "SiteKey"]

ENVIRONMENT = "LCMEM_ONNX_SITE_KEY"
FILE = "site.key"
BYTES = 32
PSEUDONYM = re.compile(r"[0-9a-f]{64}")
PSEUDONYMOUS_KEY = re.compile(r"(?:key|sop):[0-9a-f]{32}")
"""A picture's key that tells nothing without the site key: `SiteKey.key` made it, or an archive's objects have it."""
KEY_DIGITS = 32
"""128 bits, so that no two of a hospital's files meet."""


@dataclass(frozen=True)
class SiteKey:
    """A site's secret, 32 bytes. It is in no repr, so in no log."""

    secret: bytes = field(repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> SiteKey:
        """The key in a file: the one given, else the one that LCMEM_ONNX_SITE_KEY names, else this user's, made when missing.

        Only the user's own is made: a path that was given and holds nothing is more likely a mistake, and pseudonyms of
        two keys do not compare.

        Args:
            path: a file of 64 hexadecimal digits that others may not read.

        Raises:
            UsageError: it is missing, cannot be read or made, can be read by anybody, or is no key.
        """
        given = path or os.environ.get(ENVIRONMENT)
        file = Path(given) if given else user_data_path("lcmem-onnx", appauthor=False) / FILE
        if not given and not file.exists():
            _make(file)
        return cls(_read(file))

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> SiteKey:
        """Make a new key in a file that does not exist yet, readable by its owner alone (mode 0600).

        Raises:
            UsageError: the file exists or cannot be written.
        """
        file = Path(path)
        if file.exists():
            raise UsageError(f"{file} exists already: a site key is never overwritten")
        _make(file)
        return cls(_read(file))

    @classmethod
    def passing(cls) -> SiteKey:
        """A key that is kept nowhere: for a gallery that is gone when it is closed."""
        return cls(secrets.token_bytes(BYTES))

    @property
    def name(self) -> str:
        """16 hexadecimal digits that tell this key from others and nothing else; an index remembers them."""
        return self.pseudonym("site key", "")[:16]

    def pseudonym(self, kind: str, value: str) -> str:
        """HMAC-SHA256, 64 hexadecimal digits, of a value of a kind ("patient", "study", ...): equal ones of two kinds differ."""
        message = kind.encode() + b"\0" + value.encode("utf-8", "surrogatepass")
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()

    def patient(self, patient_id: str, issuer: str | None = None) -> str:
        """The pseudonym of a patient: (0010,0020) and, where there is one, (0010,0021). Spaces around them mean nothing in DICOM.

        A number is a patient's only within the house that gave it, so the issuer is part of who it is.
        """
        return self.pseudonym("patient", f"{patient_id.strip()}\0{(issuer or '').strip()}")

    def key(self, key: str) -> str:
        """The pseudonym of a picture's key, which may be a file name: `key:` and 32 hexadecimal digits. One that is a pseudonym
        already stays as it is."""
        return key if PSEUDONYMOUS_KEY.fullmatch(key) else f"key:{self.pseudonym('key', key)[:KEY_DIGITS]}"

    def study(self, uid: str) -> str:
        """The pseudonym of a study by its StudyInstanceUID (0020,000D)."""
        return self.pseudonym("study", uid.strip())


def _make(file: Path) -> None:
    """Write a new key, whole or not at all; where another process is quicker, its key stays."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as stream:
                stream.write(secrets.token_hex(BYTES) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, file)
        finally:
            draft.unlink()
    except OSError as error:
        raise UsageError(
            f"a site key cannot be made in {file}: {error.strerror}. Set {ENVIRONMENT} to a file that holds one"
        ) from error


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            text = stream.read(4 * BYTES).strip()
    except OSError as error:
        raise UsageError(f"the site key {file} cannot be read: {error.strerror}. {ENVIRONMENT} names another") from error
    if os.name == "posix" and stat.S_IMODE(mode) & 0o007:
        raise UsageError(
            f"the site key {file} can be read by anybody: 'chmod 600' it, and think of it as known if others used this machine"
        )
    if not re.fullmatch(rb"[0-9a-fA-F]{64}", text):
        raise UsageError(f"{file} is no site key: it must hold 64 hexadecimal digits ('openssl rand -hex 32' gives some)")
    return bytes.fromhex(text.decode())
