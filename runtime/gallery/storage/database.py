"""The connection to a gallery's file: opened, checked, its errors in our words, its moments kept apart.

SQLite does not notice a flipped bit in a row, nor a row that fell out of a damaged page; either may lose a match without a
word. So `meta` holds a tally of each table, kept in the same transaction: how many rows it has, and the sum of their digests.
The tally of `pictures`, and that each of its rows has a vector and each vector an image, is checked on opening; that of
`vectors` when they are read.

A change is acknowledged when its transaction has been committed with `synchronous=FULL`, so it survives a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ...errors import GalleryError, GalleryMismatchError, UsageError
from .locking import WriterLock
from .migrations import MIGRATIONS, READABLE, read_as_new
from .records import EMPTY, Tally, row_digests
from .schema import DATABASE, FORMAT_VERSION, PICTURE_COLUMNS, SCHEMA

__all__ = ["BUSY_SECONDS", "Database", "check_there", "create_database", "file_state"]

BUSY_SECONDS = 10.0
READ_AT_ONCE = 10_000
OPENINGS = 5
"""Attempts to open a file that is not another one afterwards."""
NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EINVAL}
"""What systems answer where a file system has no hard links."""
PAGE_SIZE = 8192
"""Three embeddings of 512 features fit in; in SQLite's usual 4096 one does, and half of the file would be empty."""


class Database:
    """An open gallery file. Threads take turns; several processes may have it open, one of them writing at a time.

    Where another file has taken its place, as when a folder was moved there, a reader opens that; a writer refuses to go on.

    Attributes:
        generation: how often another file has taken its place.

    Raises (on opening, and from every method):
        GalleryError: missing, damaged, of another format, locked for too long, or the disk is full.
        GalleryMismatchError: made with another bundle.
        UsageError: this process is a fork of the one that opened it.
    """

    def __init__(self, folder: Path, fingerprint: str | None, features: int, *, read_only: bool = False) -> None:
        self.folder = folder
        self.features = features
        self.path = folder / DATABASE
        self.read_only = read_only
        check_there(folder)
        self._lock = threading.RLock()
        self._depth = 0
        self._process = os.getpid()
        self._fingerprint = fingerprint
        self._identity: object = None
        self._seen: object = None
        self._closed = False
        self.generation = 0
        with self._lock, self._errors_explained():
            self._open()

    def _open(self) -> None:
        # A file that this user may not write is read as one that does not change: SQLite then looks at it no more. But another
        # user may write it, so what it was like is kept, and it is opened again when it has changed.
        seen = _look(self.path) if self.read_only and not _writable(self.path) else None
        immutable = seen is not None and not _log(self.path).exists()
        for _ in range(OPENINGS):
            before = _identity(self.path)
            self.connection = _connect(self.path, read_only=self.read_only, immutable=immutable)
            identity = _identity(self.path)
            if identity == before:
                break
            # Replaced at this very moment; or, in a container's layered file system, copied because it was opened for writing.
            self.connection.close()
        else:
            raise GalleryError(f"{self.path} was replaced repeatedly while it was being opened: try again")
        try:
            version = self._check_meta(self._fingerprint)
            self._check_images(version)
            if version < FORMAT_VERSION:
                self._bring_up_to_date(version)
        except BaseException:
            self.connection.close()
            raise
        self._identity = identity
        self._seen = seen if immutable else None

    def _open_again_if_changed(self) -> None:
        identity = _identity(self.path)
        if identity != self._identity and not self._closed:
            if identity is None:
                raise GalleryError(f"{self.path} was moved or removed while it was open: open the index again")
            if not self.read_only:
                raise GalleryError(
                    f"{self.folder} was replaced by another index while it was open for writing: close it, and open it again"
                )
            self._identity = None  # should this fail, the next use tries again
            self.connection.close()
            self._open()
            self.generation += 1
        elif self._seen is not None and self._seen != _look(self.path):
            self._seen = ()  # should this fail, the next use tries again
            self.connection.close()
            self._open()

    def close(self) -> None:
        self._seen = None
        self._closed = True
        self.connection.close()

    def _check_meta(self, fingerprint: str | None) -> int:
        meta = dict(self.connection.execute("SELECT name, value FROM meta"))
        version = str(meta.get("format_version"))
        if version not in {str(readable) for readable in READABLE}:
            newer = version.isdigit() and int(version) > FORMAT_VERSION
            raise GalleryError(
                f"{self.folder} has index format {version}; this lcmem-onnx reads {', '.join(map(str, READABLE))}. "
                + ("A newer version made it: update lcmem-onnx" if newer else "Build the index again")
            )
        if fingerprint is None:
            if not str(meta.get("features")).isdecimal():
                raise self.damaged("the length of its embeddings is missing")
            self._fingerprint, self.features = str(meta.get("fingerprint")), int(meta["features"])
        elif meta.get("fingerprint") != fingerprint or meta.get("features") != str(self.features):
            raise self.mismatch(str(meta.get("fingerprint")))
        return int(version)

    @property
    def fingerprint(self) -> str:
        """The bundle's that the embeddings are of."""
        return str(self._fingerprint)

    def mismatch(self, found: str) -> GalleryMismatchError:
        """The error of embeddings of another bundle, whose fingerprint was `found`."""
        return GalleryMismatchError(
            f"{self.folder} was made with another model (fingerprint {found[:12]}, expected {self.fingerprint[:12]}). Give the "
            f"bundle it was made with, or re-embed its images with this one: 'lcmem-onnx index upgrade {self.folder}'"
        )

    def _check_images(self, version: int) -> None:
        """Whether every row of `pictures` is as it was written, with its vector, and every vector has one."""
        with self.snapshot():
            tally = self.tally("pictures")
            rows = self.connection.execute(f"SELECT {PICTURE_COLUMNS[version]} FROM pictures")
            used: set[int] = set()
            found = EMPTY
            while part := rows.fetchmany(READ_AT_ONCE):
                used.update([row[4] for row in part])
                found = found.plus(row_digests(part))
            known = {number for (number,) in self.connection.execute("SELECT id FROM vectors")}
        if found != tally or used != known:
            raise self.damaged("its list of images does not match its checksum")

    def _bring_up_to_date(self, version: int) -> None:
        if self.read_only:
            read_as_new(self.connection, version)
            return
        with self.transaction():
            (now,) = self.connection.execute("SELECT value FROM meta WHERE name = 'format_version'").fetchone()
            for step in range(int(now), FORMAT_VERSION):  # another process may have been quicker
                MIGRATIONS[step](self.connection)

    def tally(self, table: str) -> Tally:
        """How many rows a table should have, and the sum of their digests. Call it in a snapshot or transaction."""
        (text,) = self.connection.execute("SELECT value FROM meta WHERE name = ?", (table,)).fetchone() or ("",)
        try:
            return Tally.parse(str(text))
        except ValueError as error:
            raise self.damaged(f"its number of {table} is missing") from error

    def set_meta(self, name: str, value: object) -> None:
        """Call it in a transaction."""
        self.connection.execute("UPDATE meta SET value = ? WHERE name = ?", (str(value), name))

    def meta(self, name: str) -> str:
        """A value of `meta`; empty where there is none."""
        with self.explained():
            row = self.connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def damaged(self, what: str) -> GalleryError:
        return GalleryError(f"{self.path} is damaged ({what}): restore it from a backup, or build the index again")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read in here is of one moment, whatever another process writes meanwhile."""
        self.connection.execute("BEGIN")
        try:
            yield
        finally:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            # After a failed COMMIT or a full disk SQLite may have rolled back by itself.
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn SQLite's errors into ours, and let one thread at a time use the connection.

        Raises:
            UsageError: this process is a fork of the one that opened the gallery. A connection that two processes share can
                damage the file, as its locks are not the child's.
        """
        if os.getpid() != self._process:
            raise UsageError(f"{self.folder} was opened before a fork: open the index in each process")
        with self._lock, self._errors_explained():
            self._depth += 1
            try:
                if self._depth == 1:
                    self._open_again_if_changed()
                yield
            finally:
                self._depth -= 1

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                raise GalleryError(f"{self.folder} is being written by another process: try again when it has finished") from error
            if "readonly" in text or "read-only" in text:
                raise GalleryError(f"{self.folder} is not writable: give a folder with write permission") from error
            if "full" in text:
                raise GalleryError(f"the disk of {self.folder} is full: free some space. The index is unchanged") from error
            if "no such" in text:  # a table or a column, as in an empty file
                raise self.damaged(text) from error
            raise GalleryError(f"{self.path} cannot be used: {text}") from error
        except sqlite3.ProgrammingError as error:
            raise UsageError(f"{self.folder} was closed: open the index again") from error
        except UnicodeEncodeError as error:
            raise UsageError(f"{str(error.object)[:80]!r} is not valid Unicode (lone surrogate) and cannot be stored") from error
        except (sqlite3.DatabaseError, UnicodeError) as error:  # text that is none, even in the schema, SQLite passes on
            raise self.damaged(str(error)) from error


def check_there(folder: Path) -> None:
    """Raises GalleryError where a folder holds no index."""
    if not (folder / DATABASE).is_file():
        raise GalleryError(f"{folder} is not an index: {DATABASE} is missing. Create one with 'lcmem-onnx index build'")


def create_database(folder: Path, fingerprint: str, features: int) -> None:
    """Make an empty gallery in `folder`, which may exist but must hold no gallery.

    The file appears under its name only when it is whole, so a crash leaves no half gallery.

    Raises:
        GalleryError: the folder holds a gallery already, or cannot be written.
    """
    path = folder / DATABASE
    if path.exists():
        raise GalleryError(f"{folder} already contains an index: add to it with 'lcmem-onnx index add', or give another folder")
    draft = folder / f".{DATABASE}.{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
            connection.executescript(SCHEMA)
            connection.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [
                    ("format_version", str(FORMAT_VERSION)),
                    ("fingerprint", fingerprint),
                    ("features", str(features)),
                    ("created", datetime.now(UTC).isoformat(timespec="seconds")),
                    ("pictures", str(EMPTY)),
                    ("vectors", str(EMPTY)),
                    ("settings", str(EMPTY)),
                    ("compaction_due", "0"),
                ],
            )
            connection.execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()
        _move_into_place(draft, path)
    except GalleryError:  # another process is making an index here
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    except (OSError, sqlite3.Error) as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        if isinstance(error, FileExistsError | NotADirectoryError) and not folder.is_dir():
            raise GalleryError(f"cannot create an index in {folder}: a file is in its path. Give another folder") from error
        if isinstance(error, FileExistsError):
            raise GalleryError(
                f"{folder} already contains an index, created by another process meanwhile: open that one"
            ) from error
        cause = error.strerror if isinstance(error, OSError) else None
        raise GalleryError(f"cannot create an index in {folder}: {cause or error}") from error


def _move_into_place(draft: Path, path: Path) -> None:
    """Give the draft its name. Raises FileExistsError where another process was quicker: renaming would replace its index."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # A file system without hard links, as FAT and some network mounts: who renames holds the writer's lock.
        lock = WriterLock(path.parent)
        try:
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            draft.rename(path)
        finally:
            lock.release()
    else:
        draft.unlink()


def _writable(path: Path) -> bool:
    return os.access(path.parent, os.W_OK) and os.access(path, os.W_OK)


def _log(path: Path) -> Path:
    """SQLite's write-ahead log, which is there while somebody writes."""
    return path.with_name(path.name + "-wal")


def file_state(path: Path) -> tuple[object, ...]:
    """What tells a gallery's file from another one in its place; where this user may not write it, also from what it was before.

    Raises:
        OSError: it cannot be found.
    """
    found = path.stat()
    return found.st_dev, found.st_ino, None if _writable(path) else _look(path)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another of its name, or None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _look(path: Path) -> tuple[int, int, int, bool] | None:
    """What changes when somebody writes a file, or None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, _log(path).exists()


def _connect(path: Path, *, read_only: bool, immutable: bool) -> sqlite3.Connection:
    """Open an existing gallery; `immutable` reads it without locks and without a log, which needs no write permission."""
    uri = path.absolute().as_uri()
    mode = ("?mode=ro&immutable=1" if immutable else "?mode=ro") if read_only else "?mode=rw"
    connection = sqlite3.connect(uri + mode, uri=True, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # What is deleted is overwritten with zeros, in the pages that stay; compaction does the rest (see `erasure`).
    connection.execute("PRAGMA secure_delete = ON")
    return connection
