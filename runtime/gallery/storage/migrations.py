"""Older formats of the gallery's file: brought up to date when it is opened for writing, read as they are when it is not.

Each migration runs in one transaction with the change of the version number, so a kill leaves the old format or the new one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator

from ...images.reader_version import FIRST_READER
from .records import DEFAULT_GALLERY, EMPTY, row_digest
from .schema import ERASED, PICTURE_COLUMNS, PICTURES, SETTINGS

__all__ = ["MIGRATIONS", "READABLE", "read_as_new"]

READABLE = (2, 3, 4)
"""Format versions that this program opens."""

_IMAGES_3 = """
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    frame INTEGER NOT NULL,
    frames INTEGER NOT NULL,
    content BLOB NOT NULL,
    vector INTEGER NOT NULL REFERENCES vectors(id),
    gallery TEXT NOT NULL,
    patient TEXT,
    study TEXT,
    rendering INTEGER NOT NULL,
    UNIQUE (gallery, key, frame, rendering)
)"""


def m003_groups_and_pseudonyms(connection: sqlite3.Connection) -> None:
    """Format 2 to 3: images get a gallery, a patient and a study; `settings` and `erased` are new.

    Nothing says whose the images from before are, so their patients stay unknown. The caller has checked the old tally.
    """
    _replace_images(connection, 2, 3, _IMAGES_3, f"{PICTURE_COLUMNS[2]}, '{DEFAULT_GALLERY}', NULL, NULL, 0")
    for statement in _statements(SETTINGS + ERASED):
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES ('settings', ?), ('compaction_due', '0')", (str(EMPTY),))


def m004_reader_versions(connection: sqlite3.Connection) -> None:
    """Format 3 to 4: each row says which version of the reader made it. The caller has checked the old tally."""
    _replace_images(connection, 3, 4, PICTURES, f"{PICTURE_COLUMNS[3]}, {FIRST_READER}")


def _replace_images(connection: sqlite3.Connection, old: int, new: int, schema: str, values: str) -> None:
    """Write the rows of `pictures` into a new table, with a new tally, and set the format version.

    Args:
        old, new: format versions.
        schema: of the new table and its indexes.
        values: for the new columns, in terms of the old ones.
    """
    indexes = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'pictures' AND sql IS NOT NULL"
    )
    for (index,) in indexes.fetchall():
        connection.execute(f"DROP INDEX {index}")
    connection.execute("ALTER TABLE pictures RENAME TO pictures_before")
    for statement in _statements(schema):
        connection.execute(statement)
    connection.execute(f"INSERT INTO pictures (id, {PICTURE_COLUMNS[new]}) SELECT id, {values} FROM pictures_before")
    connection.execute("DROP TABLE pictures_before")
    rows = connection.execute(f"SELECT {PICTURE_COLUMNS[new]} FROM pictures")
    tally = EMPTY.plus(row_digest(*row) for row in rows)
    connection.execute("UPDATE meta SET value = ? WHERE name = 'pictures'", (str(tally),))
    connection.execute("UPDATE meta SET value = ? WHERE name = 'format_version'", (str(new),))


MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {2: m003_groups_and_pseudonyms, 3: m004_reader_versions}
"""By the version that they start from."""


def read_as_new(connection: sqlite3.Connection, version: int) -> None:
    """Let an older file, opened read-only, answer today's queries: temporary views and tables stand before its own."""
    before = f", '{DEFAULT_GALLERY}' AS gallery, NULL AS patient, NULL AS study, 0 AS rendering" if version == 2 else ""
    connection.execute(
        f"CREATE TEMP VIEW pictures AS SELECT id, {PICTURE_COLUMNS[version]}{before}, {FIRST_READER} AS reader FROM main.pictures"
    )
    if version == 2:
        for statement in _statements(SETTINGS + ERASED):
            connection.execute(statement.replace("CREATE TABLE", "CREATE TEMP TABLE"))


def _statements(script: str) -> Iterator[str]:
    """One by one: `executescript` would commit the transaction that it is called in."""
    return (statement for part in script.split(";") if (statement := part.strip()))
