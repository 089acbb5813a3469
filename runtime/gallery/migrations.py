"""Older formats of the gallery's file: brought up to date when it is opened for writing, read as they are when it is not.

Each migration runs in one transaction with the change of the version number, so a kill leaves the old format or the new one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator

from .records import DEFAULT_GALLERY, EMPTY, row_digest
from .schema import ERASED, PICTURE_COLUMNS, PICTURES, SETTINGS

__all__ = ["MIGRATIONS", "READABLE", "read_as_new"]

READABLE = (2, 3)
"""Format versions that this program opens."""


def m003_groups_and_pseudonyms(connection: sqlite3.Connection) -> None:
    """Format 2 to 3: pictures get a gallery, a patient and a study; `settings` and `erased` are new.

    Nothing says whose the pictures from before are, so their patients stay unknown. The caller has checked the old tally.
    """
    connection.execute("ALTER TABLE pictures RENAME TO pictures_2")
    for index in ("pictures_by_content", "pictures_by_vector"):
        connection.execute(f"DROP INDEX {index}")
    for statement in _statements(PICTURES + SETTINGS + ERASED):
        connection.execute(statement)
    connection.execute(
        f"INSERT INTO pictures (id, {PICTURE_COLUMNS[3]}) SELECT id, {PICTURE_COLUMNS[2]}, ?, NULL, NULL, 0 FROM pictures_2",
        (DEFAULT_GALLERY,),
    )
    connection.execute("DROP TABLE pictures_2")
    rows = connection.execute(f"SELECT {PICTURE_COLUMNS[3]} FROM pictures")
    tally = EMPTY.plus(row_digest(*row) for row in rows)
    connection.execute("UPDATE meta SET value = ? WHERE name = 'pictures'", (str(tally),))
    connection.execute("INSERT INTO meta VALUES ('settings', ?), ('compaction_due', '0')", (str(EMPTY),))
    connection.execute("UPDATE meta SET value = '3' WHERE name = 'format_version'")


MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {2: m003_groups_and_pseudonyms}
"""By the version that they start from."""


def read_as_new(connection: sqlite3.Connection, version: int) -> None:
    """Let an older file, opened read-only, answer today's queries: temporary views and tables stand before its own."""
    if version == 2:
        connection.execute(
            f"CREATE TEMP VIEW pictures AS SELECT id, {PICTURE_COLUMNS[2]}, '{DEFAULT_GALLERY}' AS gallery, "
            "NULL AS patient, NULL AS study, 0 AS rendering FROM main.pictures"
        )
        for statement in _statements(SETTINGS + ERASED):
            connection.execute(statement.replace("CREATE TABLE", "CREATE TEMP TABLE"))


def _statements(script: str) -> Iterator[str]:
    """One by one: `executescript` would commit the transaction that it is called in."""
    return (statement for part in script.split(";") if (statement := part.strip()))
