"""Objects on disk, in the spool's folder: written once, fsynced before anybody is told of them, named by random numbers.

incoming/   what is being received; whatever lies here at a start was never acknowledged, and is removed
objects/    whole objects, as they came; a preamble is zeroed before they are sent on
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import GatewayError
from ..system.atomic_write import sync

__all__ = ["Measured", "ObjectFiles", "TooLargeError", "measure", "measure_meta"]

CHUNK = 1 << 20
PREAMBLE = 128
MAX_META = 1 << 16
"""Bytes of file meta information that are looked at; real ones have some hundred."""
_ID = re.compile(r"[0-9a-f]{32}")
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")


class TooLargeError(GatewayError):
    """An object is over the limit for the way it came in."""


@dataclass(frozen=True)
class Measured:
    """What an object's file is, by its bytes.

    Attributes:
        bytes: of the file.
        file_sha256: of the file as it came, hex.
        data_sha256: of the data set, without preamble and file meta information: the same object sent by two programs has two
            file metas, and one data set.
        transfer_syntax, sop_class, sop_instance: of the file meta information; "" where it has none.
        data_at: where the data set begins; 0 in a file without preamble and file meta information.
    """

    bytes: int
    file_sha256: str
    data_sha256: str
    transfer_syntax: str
    sop_class: str
    sop_instance: str
    data_at: int


class ObjectFiles:
    """The two folders.

    Raises:
        GatewayError: they cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.incoming = folder / "incoming"
        self._objects = folder / "objects"
        try:
            for inside in (folder, self.incoming, self._objects):
                inside.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise GatewayError(f"the spool's folder {folder} cannot be made: {error.strerror}") from error

    @staticmethod
    def new_id() -> str:
        return secrets.token_hex(16)

    def path(self, object_id: str) -> Path:
        """Where an object's bytes are.

        Raises:
            GatewayError: it is no object's id.
        """
        if not _ID.fullmatch(object_id):
            raise GatewayError(f"{object_id[:40]!r} is no object's id: 32 hexadecimal digits")
        return self._objects / f"{object_id}.dcm"

    def adopt(self, received: Path, object_id: str) -> None:
        """Give a file in `incoming`, whole and fsynced, its place. A link: the receiving library removes its own name."""
        os.link(received, self.path(object_id))
        sync(self._objects)

    def copy(self, stream: BinaryIO, max_bytes: int) -> Path:
        """Copy a stream to a file in `incoming`, fsynced. A copy, so that nobody else holds it open for writing.

        Raises:
            TooLargeError: it has more than `max_bytes`.
            OSError: it cannot be read or written.
        """
        path = self.incoming / f"{self.new_id()}.part"
        written = 0
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                while chunk := stream.read(CHUNK):
                    written += len(chunk)
                    if written > max_bytes:
                        raise TooLargeError(f"it has more than {max_bytes} bytes")
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def clear_preamble(self, path: Path) -> None:
        """Zero the 128 bytes before DICM, which may hold a program (CVE-2019-11687). Does nothing to what is no DICOM file."""
        with open(path, "r+b") as file:
            head = file.read(PREAMBLE + 4)
            if head[PREAMBLE:] == b"DICM" and any(head[:PREAMBLE]):
                file.seek(0)
                file.write(bytes(PREAMBLE))
                file.flush()
                os.fsync(file.fileno())

    def remove(self, object_ids: Iterable[str], *, for_good: bool = False) -> None:
        """Remove objects' bytes; those that are gone already are no error. With `for_good` they stay gone after a power cut; else
        that may bring some back, and the next start removes them again."""
        for object_id in object_ids:
            self.path(object_id).unlink(missing_ok=True)
        if for_good:
            sync(self._objects)

    def ids(self) -> set[str]:
        """The objects whose bytes are here."""
        return {path.stem for path in self._objects.iterdir() if _ID.fullmatch(path.stem)}

    def clear_incoming(self, older_than: float | None = None) -> int:
        """Remove what was never received to its end, and return how many; with a time, only what has not changed since."""
        removed = 0
        for path in self.incoming.iterdir():
            try:
                if older_than is None or path.stat().st_mtime < older_than:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:
                continue  # its association has just ended
        return removed

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._objects).free


def measure(path: Path) -> Measured:
    """Hash a file, and read its file meta information.

    Raises:
        OSError: it cannot be read.
    """
    whole, data = hashlib.sha256(), hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        head = file.read(MAX_META)
        meta, data_at = measure_meta(head)
        whole.update(head)
        data.update(memoryview(head)[data_at:])
        size = len(head)
        buffer = bytearray(CHUNK)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            size += count
            whole.update(view[:count])
            data.update(view[:count])
    transfer_syntax, sop_class, sop_instance = (meta.get(element, "") for element in (0x10, 0x02, 0x03))
    return Measured(size, whole.hexdigest(), data.hexdigest(), transfer_syntax, sop_class, sop_instance, data_at)


def measure_meta(head: bytes) -> tuple[dict[int, str], int]:
    """Group 0002's UIDs, by element number, and where the data set begins; nothing and 0 without a DICM mark."""
    if head[PREAMBLE : PREAMBLE + 4] != b"DICM":
        return {}, 0
    at, found = PREAMBLE + 4, dict[int, str]()
    while head[at : at + 2] == b"\x02\x00" and at + 12 <= len(head):
        long = head[at + 4 : at + 6] in _LONG
        start = at + (12 if long else 8)
        length = int.from_bytes(head[start - 4 : start] if long else head[start - 2 : start], "little")
        if head[at + 4 : at + 6] == b"UI":
            value = head[start : start + length][:64].decode("ascii", "replace").strip("\0 ")
            found[int.from_bytes(head[at + 2 : at + 4], "little")] = value
        at = start + length
    return found, min(at, len(head))
