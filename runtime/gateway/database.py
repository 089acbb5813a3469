"""The spool's SQLite file: its schema, and transactions that are on disk when they end.

WAL with synchronous=FULL: a commit that has returned survives a power cut. Several processes may have it open (the service's parts,
`gateway quarantine`, `gateway status`); each keeps one connection, whose lock makes it fit for threads.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import GatewayError

__all__ = ["Connection", "Database", "Row", "read_meta", "write_meta"]

FORMAT_VERSION = 1
BUSY_SECONDS = 30.0

Connection = sqlite3.Connection
Row = sqlite3.Row

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE objects (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    sop_instance TEXT NOT NULL,
    sop_class TEXT NOT NULL,
    transfer_syntax TEXT NOT NULL,
    data_sha256 TEXT NOT NULL,
    file_sha256 TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    source TEXT NOT NULL,
    calling_aet TEXT NOT NULL,
    called_aet TEXT NOT NULL,
    address TEXT NOT NULL,
    arrived REAL NOT NULL,
    changed REAL NOT NULL,
    state TEXT NOT NULL,
    rule TEXT,
    verdict TEXT,
    reason TEXT,
    result TEXT,
    claimed_by TEXT,
    claimed REAL,
    suspect INTEGER NOT NULL DEFAULT 0,
    interrupted INTEGER NOT NULL DEFAULT 0,
    ask TEXT NOT NULL,
    UNIQUE (sop_instance, data_sha256, transfer_syntax, ask)
);
CREATE INDEX objects_by_state ON objects (state, number);
CREATE INDEX objects_claimed ON objects (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE TABLE deliveries (
    object TEXT NOT NULL REFERENCES objects(id) ON DELETE CASCADE,
    destination TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL,
    failure TEXT,
    PRIMARY KEY (object, destination)
) WITHOUT ROWID;
CREATE INDEX deliveries_due ON deliveries (state, destination, due);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE audit_head (only INTEGER PRIMARY KEY CHECK (only = 1), seq INTEGER NOT NULL, hash TEXT NOT NULL);
CREATE TABLE audit_pending (seq INTEGER PRIMARY KEY, line TEXT NOT NULL);
"""


def read_meta(connection: Connection, name: str) -> str | None:
    """Return a named value of the spool's; None if it was never written."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return str(row[0]) if row else None


def write_meta(connection: Connection, name: str, value: str) -> None:
    """Write a named value of the spool's, as part of the transaction on `connection`."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


class Database:
    """One process's connection to the spool's database.

    Raises:
        GatewayError: it cannot be opened or made, or is of another format.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self._lock = threading.RLock()
        if not create and not path.exists():
            raise GatewayError(f"there is no spool at {path.parent}: 'lcmem-onnx gateway run' makes it")
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise GatewayError(f"the spool's database {path} cannot be opened: {error}") from error

    def _prepare(self) -> None:
        with self.write() as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                for statement in SCHEMA.split(";\n"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute("INSERT INTO meta VALUES ('format_version', ?)", (str(FORMAT_VERSION),))
                connection.execute("INSERT INTO audit_head VALUES (1, 0, ?)", ("0" * 64,))
            (version,) = connection.execute("SELECT value FROM meta WHERE name = 'format_version'").fetchone()
        if version != str(FORMAT_VERSION):
            raise GatewayError(f"{self.path} has spool format {version}; this lcmem-onnx reads {FORMAT_VERSION}")

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: on disk when the block ends, undone when it raises.

        Raises:
            GatewayError: SQLite could not do it: the disk is full, the file damaged, or another process held it too long.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise GatewayError(f"the spool's database {self.path} cannot be written: {error}") from error

    def read(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        """Rows of a query."""
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise GatewayError(f"the spool's database {self.path} cannot be read: {error}") from error

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Several reads of one moment."""
        with self._lock:
            try:
                self._connection.execute("BEGIN")
                try:
                    yield self._connection
                finally:
                    self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise GatewayError(f"the spool's database {self.path} cannot be read: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()
