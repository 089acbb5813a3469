"""The flat cache: all embeddings and their codes in plain files, which open at once where reading SQLite would take seconds.

`flat.json` describes the files: how many rows count, digests by chunk, up to which vector and erasure they follow the database.
Rows are only appended; bytes beyond the rows that count are what a crash left, and are written over. What is read from the files
is checked: ids, sums and slacks when they are opened, codes before the first scan, and each embedding, against its own sha256,
when it is first read. A cache that is off is made again; the truth is in SQLite.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryError
from ...model.head import Floats
from ..storage.leftovers import remove_drafts
from ..storage.records import EMPTY, Tally
from .l1_codes import BLOCK, Coder, Codes, distances
from .manifest import read_manifest, write_manifest

__all__ = ["MANIFEST", "Cache", "CacheError", "CacheManifest", "Writer", "open_cache", "remove_caches", "row_sums"]

MANIFEST = "flat.json"
FORMAT_VERSION = 1
NAME = re.compile(r"flat-[0-9a-f]{16}")
SUM_BYTES = 8
"""Of an embedding's sha256, kept beside it: enough against damage, which is not malice."""
PARTS = ("ids", "sums", "slack", "codes", "embeddings")
CHECKED_PARTS = PARTS[:4]
MAPPED = 1 << 24
"""Bytes of codes that single rows are taken from through the map; of more, they are read from the file."""


@dataclass(frozen=True)
class CacheManifest:
    """What `flat.json` says of the files.

    Attributes:
        name: the files' common name; what follows it is one of `PARTS`.
        rows: how many count.
        features, width: of an embedding and of a code.
        fingerprint: the bundle's.
        newest, erasure: the vector and the erasure up to which they follow the database.
        tally: of the vectors that are in them.
        low, high: the least and the greatest value of each feature; empty without rows.
        digests: for each of the first four parts, sha256 of each `BLOCK` of rows, hex.
    """

    format_version: int
    name: str
    rows: int
    features: int
    width: int
    fingerprint: str
    newest: int
    erasure: int
    tally: str
    low: list[float]
    high: list[float]
    digests: dict[str, list[str]]


def row_sums(embeddings: Floats) -> NDArray[np.uint64]:
    """The first 8 bytes of each embedding's sha256, uint64 (n,)."""
    data = np.ascontiguousarray(embeddings, dtype="<f4")
    joined = b"".join(hashlib.sha256(row.data).digest()[:SUM_BYTES] for row in data)
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64, copy=False)


class CacheError(GalleryError):
    """The cache is damaged, of another bundle, or gone. SQLite holds all that is in it."""


class Cache:
    """An open cache: arrays over memory-mapped files, embeddings read row by row.

    Attributes:
        ids: int64 (rows,), ascending. sums: uint64 (rows,). slack: float32 (rows,).
        codes: uint8 (rows, width); call `check_codes` first.
    """

    def __init__(self, folder: Path, manifest: CacheManifest) -> None:
        self.manifest = manifest
        self._files: list[BinaryIO] = []
        self._maps: list[mmap.mmap] = []
        self._codes_checked = False
        self._checked: NDArray[np.bool_] = np.zeros(manifest.rows, np.bool_)
        try:
            self._open(folder)
        except BaseException:
            self.close()
            raise

    def _open(self, folder: Path) -> None:
        arrays = [self._map(folder, part) for part in PARTS]
        manifest, rows = self.manifest, self.manifest.rows
        self.ids: NDArray[np.int64] = arrays[0].view("<i8")
        self.sums: NDArray[np.uint64] = arrays[1].view("<u8")
        self.slack: Floats = arrays[2].view("<f4")
        self.codes: Codes = arrays[3].reshape(rows, manifest.width)
        self._embeddings: Floats = arrays[4].view("<f4").reshape(rows, manifest.features)
        for part in PARTS[:3]:
            self._check(part)

    def _map(self, folder: Path, part: str) -> NDArray[np.uint8]:
        size = self.manifest.rows * _row_bytes(part, self.manifest.features, self.manifest.width)
        try:
            file = (folder / f"{self.manifest.name}.{part}").open("rb")
            self._files.append(file)
            if os.fstat(file.fileno()).st_size < size:
                raise CacheError(f"the cached vectors are damaged: {part} has fewer than {self.manifest.rows} rows")
            if not size:
                return np.empty(0, np.uint8)
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CacheError(f"the cached vectors cannot be read: {error.strerror}") from error
        self._maps.append(mapped)
        return np.frombuffer(mapped, np.uint8)

    def _check(self, part: str) -> None:
        arrays: dict[str, NDArray[Any]] = {"ids": self.ids, "sums": self.sums, "slack": self.slack, "codes": self.codes}
        data = arrays[part]
        with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1))) as pool:  # sha256 lets other threads run
            actual = list(pool.map(_digest, (data[start : start + BLOCK] for start in range(0, len(data), BLOCK))))
        if actual != self.manifest.digests[part]:
            raise CacheError(f"the cached vectors are damaged: the sha256 of {part} differs from the manifest's")

    def check_codes(self) -> None:
        """Raises CacheError when the codes are not as they were written; the first call reads them all."""
        if not self._codes_checked:
            self._check("codes")
            self._codes_checked = True

    def code_distances(self, code: Codes, places: NDArray[np.int64]) -> tuple[NDArray[np.int32], Floats]:
        """L1 distances of one code (width,) to those of some rows, int32 (n,), and the rows' slacks, float32 (n,).

        Raises:
            CacheError: the codes are not as they were written; the first call reads them all.
        """
        if not self._codes_checked:
            self._check_codes_in_file()
        if self.codes.nbytes <= MAPPED or not hasattr(os, "pread"):
            codes = self.codes[places]
        else:
            codes = self._read("codes", places, self.manifest.width).reshape(len(places), -1)
        return distances(code, codes), self.slack[places]

    def _check_codes_in_file(self) -> None:
        """As `check_codes`, a block at a time: through the map all of them would count as this process's memory."""
        if not hasattr(os, "pread"):
            self.check_codes()
            return
        file, size = self._files[PARTS.index("codes")].fileno(), BLOCK * self.manifest.width
        for number, digest in enumerate(self.manifest.digests["codes"]):
            left = self.codes.nbytes - number * size
            if hashlib.sha256(os.pread(file, min(size, left), number * size)).hexdigest() != digest:
                raise CacheError("the cached vectors are damaged: the sha256 of codes differs from the manifest's")
        self._codes_checked = True

    def _read(self, part: str, places: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """Rows of a file, of `size` bytes each. What is read through the map counts as this process's memory: in time, all."""
        file = self._files[PARTS.index(part)].fileno()
        read = b"".join([os.pread(file, size, position) for position in (places * size).tolist()])
        if len(read) != size * len(places):
            raise CacheError("the cached vectors are damaged: the file is truncated")
        return np.frombuffer(read, np.uint8)

    def check_all(self) -> None:
        """Raises CacheError when anything in the files is not as it was written; reads all of them."""
        self.check_codes()
        for start in range(0, self.manifest.rows, BLOCK):
            self.embeddings(np.arange(start, min(start + BLOCK, self.manifest.rows)))

    def embeddings(self, places: NDArray[np.int64]) -> Floats:
        """Embeddings of some rows, float32 (n, features), each checked when it is first read.

        Raises:
            GalleryError: one is not as it was written.
        """
        features = self.manifest.features
        if len(places) <= BLOCK and hasattr(os, "pread"):
            found = self._read("embeddings", places, 4 * features).view("<f4").reshape(len(places), features)
        else:
            found = self._embeddings[places]
        new = ~self._checked[places]
        if new.any():
            if not np.array_equal(row_sums(found[new]), self.sums[places[new]]):
                raise CacheError("the cached vectors are damaged: an embedding differs from its sha256")
            self._checked[places] = True
        return found.astype(np.float32, copy=False)

    def close(self) -> None:
        for file in self._files:
            file.close()  # the maps go when the last array over them does


class Writer:
    """Makes a cache, or appends to one. Nothing counts before `finish`; a failure leaves what counted before."""

    def __init__(self, folder: Path, coder: Coder, features: int, fingerprint: str, after: CacheManifest | None) -> None:
        self._folder = folder
        self._coder = coder
        name = after.name if after else f"flat-{secrets.token_hex(8)}"
        self._manifest = after or CacheManifest(
            FORMAT_VERSION,
            name,
            0,
            features,
            coder.width,
            fingerprint,
            0,
            0,
            str(EMPTY),
            [],
            [],
            {part: [] for part in CHECKED_PARTS},
        )
        self._rows = self._manifest.rows
        self._digests = {part: list(digests[: self._rows // BLOCK]) for part, digests in self._manifest.digests.items()}
        self._low = np.asarray(self._manifest.low or [np.inf], np.float32)
        self._high = np.asarray(self._manifest.high or [-np.inf], np.float32)
        self._started: dict[str, Any] = {}
        self._files: dict[str, BinaryIO] = {}
        try:
            for part in PARTS:
                self._files[part] = self._open(part)
        except OSError as error:
            self.close()
            raise GalleryError(f"the cache in {folder} cannot be written: {error.strerror}") from error
        except CacheError:
            self.close()
            raise

    def _open(self, part: str) -> BinaryIO:
        size = _row_bytes(part, self._manifest.features, self._manifest.width)
        path = self._folder / f"{self._manifest.name}.{part}"
        file = path.open("r+b" if self._rows else "w+b")
        whole = self._rows // BLOCK * BLOCK
        file.seek(whole * size)
        if part in CHECKED_PARTS:
            self._started[part] = hashlib.sha256(file.read((self._rows - whole) * size))
            if self._rows > whole and self._started[part].hexdigest() != self._manifest.digests[part][-1]:
                file.close()
                raise CacheError(f"the cached vectors are damaged: the sha256 of {part} differs from the manifest's")
        file.seek(self._rows * size)
        file.truncate()
        return file

    def append(self, ids: NDArray[np.int64], embeddings: Floats) -> None:
        """Append rows: ids (n,), above all that are there; embeddings float32 (n, features).

        Raises:
            GalleryError: the disk is full.
        """
        position = 0
        try:
            while position < len(ids):
                count = min(BLOCK - self._rows % BLOCK, len(ids) - position)
                values = np.ascontiguousarray(embeddings[position : position + count], dtype="<f4")
                codes, slack = self._coder.encode(values)
                self._low = np.minimum(self._low, values.min(axis=0))
                self._high = np.maximum(self._high, values.max(axis=0))
                parts = {
                    "ids": ids[position : position + count].astype("<i8"),
                    "sums": row_sums(values).astype("<u8"),
                    "slack": slack.astype("<f4"),
                    "codes": codes,
                    "embeddings": values,
                }
                position, self._rows = position + count, self._rows + count
                for part, array in parts.items():
                    data = array.tobytes()
                    self._files[part].write(data)
                    if part in CHECKED_PARTS:
                        self._started[part].update(data)
                        if self._rows % BLOCK == 0:
                            self._digests[part].append(self._started[part].hexdigest())
                            self._started[part] = hashlib.sha256()
        except OSError as error:
            raise GalleryError(f"the cache in {self._folder} cannot be written: {error.strerror}") from error

    def finish(self, newest: int, erasure: int, tally: Tally) -> None:
        """Make all that was appended count, and remove other caches.

        Raises:
            GalleryError: the disk is full.
        """
        digests = {
            part: [*self._digests[part], *([self._started[part].hexdigest()] if self._rows % BLOCK else [])]
            for part in CHECKED_PARTS
        }
        content = asdict(self._manifest) | {
            "rows": self._rows, "newest": newest, "erasure": erasure, "tally": str(tally), "digests": digests,
            "low": self._low.tolist() if self._rows else [], "high": self._high.tolist() if self._rows else [],
        }  # fmt: skip
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            write_manifest(self._folder / MANIFEST, content)
        except OSError as error:
            raise GalleryError(f"the cache in {self._folder} cannot be written: {error.strerror}") from error
        for path in self._folder.glob("flat-*.*"):
            if not path.name.startswith(self._manifest.name):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # what could not be flushed does not count
                file.close()


def open_cache(folder: Path, fingerprint: str, features: int, width: int) -> Cache | None:
    """The cache of a folder, or None where there is none.

    Raises:
        GalleryError: it is damaged or of another bundle; it can be made again.
    """
    for _ in range(3):
        manifest = _read_manifest(folder / MANIFEST)
        if manifest is None:
            return None
        if (manifest.fingerprint, manifest.features, manifest.width) != (fingerprint, features, width):
            raise CacheError("the cached vectors belong to another bundle")
        try:
            return Cache(folder, manifest)
        except CacheError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            # Another process has just written the cache anew, under another name.
    raise CacheError("the cached vectors are missing")


def remove_caches(folder: Path) -> None:
    """Remove the cached vectors and what a killed process left of some. Raises GalleryError where they cannot be removed."""
    remove_drafts(folder, MANIFEST, "flat-*.*", f".{MANIFEST}.*")


def _read_manifest(path: Path) -> CacheManifest | None:
    manifest = read_manifest(path, CacheManifest, FORMAT_VERSION, "the cache of the vectors", CacheError)
    if manifest is None:
        return None
    blocks = -(-manifest.rows // BLOCK)
    listed = [manifest.digests.get(part) for part in CHECKED_PARTS]
    if (
        not NAME.fullmatch(manifest.name)
        or manifest.rows < 0
        or not all(isinstance(it, list) and len(it) == blocks for it in listed)
        or not _are_ranges(manifest)
    ):
        raise CacheError(f"{path} is damaged: its file entries are invalid")
    return manifest


def _are_ranges(manifest: CacheManifest) -> bool:
    """Whether `low` and `high` are numbers, one a feature, or nothing where there are no rows."""
    wanted = manifest.features if manifest.rows else 0
    return all(len(its) == wanted and all(isinstance(one, float) for one in its) for its in (manifest.low, manifest.high))


def _row_bytes(part: str, features: int, width: int) -> int:
    return {"ids": 8, "sums": SUM_BYTES, "slack": 4, "codes": width, "embeddings": 4 * features}[part]


def _digest(part: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(part).data).hexdigest()
