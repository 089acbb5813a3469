"""Rows in an npz file: for each block an array a column, `embedding_00000` and so on, and `manifest`, a JSON text as bytes.

`numpy.load` reads it. Here it is read more warily: an array's size is known, and is that of its block, before anything is
allocated, and nothing is ever unpickled.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryError
from ...images.reader_version import FIRST_READER
from ..storage.records import Record

__all__ = ["NpzReader", "NpzWriter"]

MOST_ROWS = 4096
MOST_BYTES = 1 << 28
"""Of one array: a block's embeddings have 8 MB at 512 features, its keys, padded to the longest, seldom more."""
TEXTS = ("gallery", "key", "patient", "study")
NUMBERS = ("frame", "frames", "rendering", "reader")


class NpzWriter:
    """Writes blocks, then the manifest."""

    def __init__(self, path: Path, features: int) -> None:
        self._archive = zipfile.ZipFile(path, "w", allowZip64=True)
        self._blocks = 0

    def __enter__(self) -> NpzWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._archive.close()

    def write(self, rows: Sequence[Record]) -> None:
        """Write a block.

        Raises:
            GalleryError: a key that NumPy's texts cannot hold: they end at the first of trailing zeros.
        """
        if not rows:
            return
        if wrong := next((row.key for row in rows if row.key.endswith("\0")), None):
            raise GalleryError(f"key {wrong!r} cannot be stored in .npz: export to .parquet instead")
        columns: dict[str, NDArray[Any]] = {name: np.array([getattr(row, name) or "" for row in rows], np.str_) for name in TEXTS}
        columns |= {name: np.array([getattr(row, name) for row in rows], np.int64) for name in NUMBERS}
        columns["content"] = np.frombuffer(b"".join(row.content for row in rows), np.uint8).reshape(len(rows), 32)
        columns["embedding"] = np.stack([row.embedding for row in rows])
        for name, values in columns.items():
            self._put(f"{name}_{self._blocks:05d}", values)
        self._blocks += 1

    def finish(self, manifest: str) -> None:
        self._put("manifest", np.frombuffer(manifest.encode(), np.uint8))

    def _put(self, name: str, values: NDArray[Any]) -> None:
        member = zipfile.ZipInfo(f"{name}.npy")
        # Embeddings do not compress; texts that are padded to the longest do.
        member.compress_type = zipfile.ZIP_STORED if name.startswith("embedding") else zipfile.ZIP_DEFLATED
        with self._archive.open(member, "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, values, version=(1, 0), allow_pickle=False)


class NpzReader:
    """Reads a file that `NpzWriter` wrote.

    Raises (on opening, and from every method):
        GalleryError: it is missing, damaged, or no such file.
    """

    def __init__(self, path: Path, features: int) -> None:
        self.path = path
        self._features = features
        with self._explained():
            self._archive = zipfile.ZipFile(path)
        self._members = {member.filename: member for member in self._archive.infolist()}

    def __enter__(self) -> NpzReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._archive.close()

    @property
    def manifest(self) -> str:
        with self._explained():
            return self._get("manifest").tobytes().decode()

    def rows(self, version: int) -> Iterator[Record]:
        """All rows, block by block, of a file of this format version."""
        numbers = NUMBERS if version > 1 else NUMBERS[:-1]
        block = 0
        while f"embedding_{block:05d}.npy" in self._members:
            with self._explained():
                rows = self._block(block, numbers)
            yield from rows
            block += 1

    def _block(self, block: int, numbers: Sequence[str]) -> list[Record]:
        columns = {name: self._get(f"{name}_{block:05d}") for name in (*TEXTS, *numbers, "content", "embedding")}
        embeddings = columns["embedding"]
        count = len(embeddings) if embeddings.ndim == 2 else 0
        shapes = {"content": (count, 32), "embedding": (count, self._features)}
        kinds = {**dict.fromkeys(TEXTS, "U"), **dict.fromkeys(numbers, "i"), "content": "u", "embedding": "f"}
        if not 0 < count <= MOST_ROWS or any(
            values.shape != shapes.get(name, (count,)) or values.dtype.kind != kinds[name] for name, values in columns.items()
        ):
            raise ValueError(f"block {block} has columns of unexpected types or lengths")
        columns.setdefault("reader", np.full(count, FIRST_READER))
        return [self._record(columns, index) for index in range(count)]

    def _record(self, columns: Mapping[str, NDArray[Any]], at: int) -> Record:
        gallery, key, patient, study = (str(columns[name][at]) for name in TEXTS)
        frame, frames, rendering, reader = (int(columns[name][at]) for name in NUMBERS)
        embedding = columns["embedding"][at].astype(np.float32)
        content = columns["content"][at].tobytes()
        return Record(key, content, frame, frames, gallery, patient or None, study or None, embedding, rendering, reader)

    def _get(self, name: str) -> NDArray[Any]:
        """An array of the file.

        Raises:
            ValueError, KeyError: it is missing, too large, of objects, or another size than its header says.
        """
        member = self._members[f"{name}.npy"]
        if member.file_size > MOST_BYTES:
            raise ValueError(f"{name} is too large")
        with self._archive.open(member) as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError(f"{name} has an unsupported version")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            size = math.prod(shape) * dtype.itemsize
            if dtype.hasobject or fortran or size > member.file_size:
                raise ValueError(f"{name} contains objects or does not match its header")
            data = stream.read()  # all of it: only at the end its CRC is compared
        if len(data) != size:
            raise ValueError(f"{name} is truncated")
        return np.frombuffer(data, dtype).reshape(shape)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise GalleryError(f"{self.path} does not exist") from error
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise GalleryError(f"{self.path} is damaged or not an exported index ({why})") from error
