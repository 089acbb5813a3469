"""Erasure: what is removed is gone from results with the transaction, and from the disk with the compaction after it.

SQLite overwrites deleted rows with zeros (`secure_delete`), but a page that was split before may hold stale copies, and its
write-ahead log holds pages as they were. So compaction writes the whole file anew (VACUUM) and then empties the log. A flag,
set in the transaction that removes and cleared when all is done, makes the next writer finish what a crash interrupted.
"""

from __future__ import annotations

from ...errors import GalleryError, UsageError
from .records import row_digest
from .schema import COLUMNS
from .store import Store

__all__ = ["compact_database", "compaction_due", "erase", "mark_compacted"]


def erase(
    store: Store, *, key: str | None = None, patient: str | None = None, study: str | None = None, gallery: str | None = None
) -> int:
    """Remove the images for which all that is given holds, and the vectors that no other image has, in one transaction.

    Returns:
        How many images (keys) were removed.

    Raises:
        UsageError: nothing was given: that would remove everything.
        GalleryError: as for `Store`; then nothing was removed.
    """
    asked = {"key": key, "patient": patient, "study": study, "gallery": gallery}
    given = {name: value for name, value in asked.items() if value is not None}  # an empty text holds for nothing, not for all
    if not given:
        raise UsageError("nothing selected to remove: give a key, a patient, a study or a gallery")
    condition = " AND ".join(f"{name} = ?" for name in given)
    values = tuple(given.values())
    with store.explained(), store.transaction():
        rows = store.connection.execute(f"SELECT {COLUMNS} FROM pictures WHERE {condition}", values).fetchall()
        if not rows:
            return 0
        store.connection.execute(f"DELETE FROM pictures WHERE {condition}", values)
        digests = []
        for vector in {row[4] for row in rows}:
            if store.connection.execute("SELECT 1 FROM pictures WHERE vector = ? LIMIT 1", (vector,)).fetchone() is None:
                (digest,) = store.connection.execute("SELECT digest FROM vectors WHERE id = ?", (vector,)).fetchone()
                store.connection.execute("DELETE FROM vectors WHERE id = ?", (vector,))
                store.connection.execute("INSERT INTO erased (vector) VALUES (?)", (vector,))
                digests.append(row_digest(vector, digest))
        store.set_meta("pictures", store.tally("pictures").minus(row_digest(*row) for row in rows))
        store.set_meta("vectors", store.tally("vectors").minus(digests))
        store.set_meta("compaction_due", "1")
    return len({(row[5], row[0]) for row in rows})


def compaction_due(store: Store) -> bool:
    """Whether something was removed that may still be on the disk."""
    return store.meta("compaction_due") == "1"


def compact_database(store: Store) -> None:
    """Write the file anew without what was removed, and empty its log.

    Raises:
        GalleryError: the disk is full, or another process reads for longer than SQLite waits. The index is unharmed, and
            compaction stays due.
    """
    with store.explained():
        store.connection.execute("VACUUM")
        (busy, _, _) = store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise GalleryError(
            f"removed images are still in the log of {store.folder}, because another process is reading it: "
            "run 'lcmem-onnx index compact' when it has finished"
        )


def mark_compacted(store: Store) -> None:
    with store.explained(), store.transaction():
        store.set_meta("compaction_due", "0")
