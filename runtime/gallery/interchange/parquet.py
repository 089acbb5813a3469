"""Rows in a Parquet file, through pyarrow, which is an extra: a row group a block, and the manifest among the file's metadata."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ...errors import GalleryError, UsageError
from ...images.reader_version import FIRST_READER
from ..storage.records import Record

__all__ = ["ParquetReader", "ParquetWriter"]

KEY = b"lcmem-onnx"
AT_ONCE = 1024
TEXTS = ("gallery", "key", "patient", "study")
NUMBERS = ("frame", "frames", "rendering", "reader")


def _arrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet part.

    Raises:
        UsageError: they are not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(
            "Parquet requires pyarrow: pip install 'lcmem-onnx[parquet]', or use a file name ending in .npz"
        ) from error
    return pyarrow, parquet


def _schema(arrow: Any, features: int, numbers: Sequence[str] = NUMBERS) -> Any:
    return arrow.schema(
        [
            *((name, arrow.string()) for name in TEXTS),
            *((name, arrow.int64()) for name in numbers),
            ("content", arrow.binary(32)),
            ("embedding", arrow.list_(arrow.float32(), features)),
        ]
    )


class ParquetWriter:
    """Writes blocks, then the manifest."""

    def __init__(self, path: Path, features: int) -> None:
        self._arrow, parquet = _arrow()
        self._schema = _schema(self._arrow, features)
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()

    def write(self, rows: Sequence[Record]) -> None:
        """Write a block."""
        if not rows:
            return
        columns = [[getattr(row, name) for row in rows] for name in (*TEXTS, *NUMBERS, "content")]
        flat = self._arrow.array(np.concatenate([row.embedding for row in rows]))
        arrays = [self._arrow.array(values, self._schema.field(index).type) for index, values in enumerate(columns)]
        arrays.append(self._arrow.FixedSizeListArray.from_arrays(flat, type=self._schema.field("embedding").type))
        self._writer.write_table(self._arrow.table(arrays, schema=self._schema))

    def finish(self, manifest: str) -> None:
        self._writer.add_key_value_metadata({KEY.decode(): manifest})


class ParquetReader:
    """Reads a file that `ParquetWriter` wrote.

    Raises (on opening, and from every method):
        GalleryError: it is missing, damaged, or lacks columns.
        UsageError: pyarrow is not installed.
    """

    def __init__(self, path: Path, features: int) -> None:
        self.path = path
        self._arrow, parquet = _arrow()
        self._features = features
        if not path.is_file():
            raise GalleryError(f"{path} does not exist")
        with self._explained():
            self._file = parquet.ParquetFile(path, page_checksum_verification=True)

    def __enter__(self) -> ParquetReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    @property
    def manifest(self) -> str:
        with self._explained():
            found = (self._file.metadata.metadata or {}).get(KEY, b"")
            return bytes(found).decode()

    def rows(self, version: int) -> Iterator[Record]:
        """All rows, block by block, of a file of this format version."""
        numbers = NUMBERS if version > 1 else NUMBERS[:-1]
        schema = _schema(self._arrow, self._features, numbers)
        with self._explained():
            there = self._file.schema_arrow
            for field in schema:
                if field.name not in there.names or there.field(field.name).type != field.type:
                    raise ValueError(f"column {field.name!r} of type {field.type} is missing")
            batches = self._file.iter_batches(AT_ONCE, columns=schema.names)
        while True:
            with self._explained():
                batch = next(batches, None)
                rows = [] if batch is None else self._records(batch, numbers)
            if batch is None:
                return
            yield from rows

    def _records(self, batch: Any, numbers: Sequence[str]) -> list[Record]:
        if any(batch.column(name).null_count for name in ("gallery", "key", *numbers, "content", "embedding")):
            raise ValueError("it has missing values")
        columns = {name: batch.column(name).to_pylist() for name in (*TEXTS, *numbers, "content")}
        columns.setdefault("reader", [FIRST_READER] * batch.num_rows)
        embeddings = batch.column("embedding").flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, -1)
        rows = [{name: values[index] for name, values in columns.items()} for index in range(batch.num_rows)]
        return [Record(**row, embedding=embedding) for row, embedding in zip(rows, embeddings, strict=True)]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """pyarrow's own errors are `ValueError`, `KeyError`, `OSError` and `NotImplementedError` by descent."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, NotImplementedError, MemoryError, self._arrow.ArrowException) as error:
            line = str(error).partition("\n")[0]
            raise GalleryError(f"{self.path} is damaged or not an exported index ({line})") from error
