"""Every pseudonym that this package writes: HMAC-SHA256 under a key that stays on site.

`SiteKey` names patients, studies, objects and images, in an index, at the gateway and from an archive: with one key file an object
has the same digits everywhere. `ReportPseudonyms` names the reference images of one audit.

An index holds pseudonyms only. Whoever has an index but not the key cannot tell whose a pseudonym is, nor try numbers out
(patients' numbers are few and short, so a hash without a key would be no secret). With the key the same patient has the same
pseudonym in each index of a site, so erasure by patient works without a list of names.

Lost, the key takes nothing from an index but this: images can no longer be erased by their patient's number.
"""

from __future__ import annotations

import base64
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

from .errors import GatewayError, UsageError
from .system.atomic_write import put_whole

__all__ = ["ENVIRONMENT", "PSEUDONYM", "PSEUDONYMOUS_KEY", "ReportPseudonyms", "SiteKey", "create_site_key", "read_site_key"]

ENVIRONMENT = "LCMEM_ONNX_SITE_KEY"
FILE = "site.key"
BYTES = 32
PSEUDONYM = re.compile(r"[0-9a-f]{64}")
PSEUDONYMOUS_KEY = re.compile(r"(?:key|sop):[0-9a-f]{32}")
"""An image's key that tells nothing without the site key: `SiteKey.key` made it, or an archive's objects have it."""
DIGITS = 32
"""Hexadecimal digits of a shortened pseudonym: 128 bits, so that no two files or objects of a hospital share one."""
REPORT_LETTERS = 10
"""50 bits: among a million images, two share a name with a probability of 1 in 2,000."""


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
        """The pseudonym of an image's key, which may be a file name: `key:` and 32 hexadecimal digits. One that is a pseudonym
        already stays as it is."""
        return key if PSEUDONYMOUS_KEY.fullmatch(key) else f"key:{self.pseudonym('key', key)[:DIGITS]}"

    def short(self, kind: str, value: str) -> str:
        """Return 32 hexadecimal digits for a value of a kind; "" for an empty value, which identifies nothing."""
        return self.pseudonym(kind, value)[:DIGITS] if value else ""

    def short_patient(self, patient_id: str | None, issuer: str | None = None) -> str:
        """Return the first 32 digits of `patient`; "" without a patient ID."""
        return self.patient(patient_id, issuer)[:DIGITS] if patient_id else ""

    def object_name(self, uid: str) -> str:
        """Return the key in a gallery of an archive's object, by its SOP Instance UID: `sop:` and 32 hexadecimal digits.

        A bare hash of a UID could be looked up by anyone who has a list of UIDs. The hospital finds an object again by hashing its
        own UIDs.
        """
        return f"sop:{self.pseudonym('uid', uid)[:DIGITS]}"

    def digest(self, kind: str, *values: str) -> bytes:
        """Return 16 bytes that stand for some texts."""
        return bytes.fromhex(self.pseudonym(kind, "\0".join(values))[:DIGITS])

    def study(self, uid: str) -> str:
        """The pseudonym of a study by its StudyInstanceUID (0020,000D)."""
        return self.pseudonym("study", uid.strip())


class ReportPseudonyms:
    """Names of an audit's reference images, by a key that is made once for the report's folder and stays in its private part.

    A later run gives the same names, and a reader of the report cannot test a guess. Without a key a hash of a path would be no
    secret: paths can be guessed.

    Raises:
        UsageError: the key's file is damaged, or cannot be read or made.
    """

    def __init__(self, path: Path) -> None:
        try:
            if not path.exists():
                put_whole(path, lambda draft: draft.write_bytes(secrets.token_bytes(BYTES)), private=True)
                path.chmod(0o600)  # the mask may have taken bits from it
            self._key = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path} cannot be read or made: {error.strerror}") from error
        if len(self._key) != BYTES:
            raise UsageError(f"{path} is damaged: it has {len(self._key)} bytes, not {BYTES}. Remove it for new pseudonyms")
        self._known: dict[str, str] = {}

    @property
    def secret(self) -> bytes:
        """The key, 32 bytes. It is for what stays in the private part."""
        return self._key

    def name(self, key: str) -> str:
        """Return the pseudonym of a reference image, such as R-7KQ2MXA4PB; the same for the same key."""
        if key not in self._known:
            digest = hmac.new(self._key, key.encode("utf-8", "backslashreplace"), hashlib.sha256).digest()
            self._known[key] = f"R-{base64.b32encode(digest).decode()[:REPORT_LETTERS]}"
        return self._known[key]

    @property
    def given(self) -> dict[str, str]:
        """Key to pseudonym, of all names that were asked for."""
        return dict(self._known)


def read_site_key(path: Path) -> SiteKey:
    """Return the gateway's site key.

    Raises:
        GatewayError: it is missing, unreadable, or not a key.
    """
    if not path.exists():
        raise GatewayError(f"the site key {path} does not exist; 'lcmem-onnx gateway init' makes one")
    try:
        return SiteKey.open(path)
    except UsageError as error:
        raise GatewayError(str(error)) from error


def create_site_key(path: Path) -> None:
    """Write the gateway's new random key, readable by its owner alone.

    Raises:
        GatewayError: it exists already, or cannot be written.
    """
    try:
        SiteKey.create(path)
    except UsageError as error:
        raise GatewayError(str(error)) from error


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
