"""An index's rows of an older reader, or of another bundle: which they are, and their replacement in one transaction.

The replacement is a transaction of the index's own file, so a kill leaves the old rows or the new ones, readers see the old ones
until it is committed, and no file or folder changes its name. What embeds the images is above (see `upgrading`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ..images.reader_version import READER_VERSION
from ..model.bundle import Bundle
from .storage.records import EMPTY, Tally, row_digest
from .storage.schema import CALIBRATION_SETTING, COLUMNS
from .storage.staging import Staging
from .storage.store import Store

__all__ = ["Outdated", "find_outdated", "keys_of", "replace_rows"]


@dataclass(frozen=True)
class Outdated:
    """An image whose embeddings are to be made again.

    Attributes:
        gallery, key: its name.
        content: sha256 of the file.
        frames: numbers of the frames that the index has.
    """

    gallery: str
    key: str
    content: bytes
    frames: frozenset[int]


def find_outdated(store: Store, fingerprint: str) -> list[Outdated]:
    """Return the images of which some row is of an older reader; all of them where the index is of another bundle.

    Args:
        store: the index, opened for any bundle.
        fingerprint: of the bundle that the index is to be of.
    """
    condition = "" if store.fingerprint != fingerprint else "HAVING min(reader) < ?"
    query = f"""SELECT gallery, key, content, json_group_array(frame) FROM pictures
                GROUP BY gallery, key {condition} ORDER BY min(id)"""
    with store.explained():
        rows = store.connection.execute(query, (READER_VERSION,) if condition else ()).fetchall()
    return [Outdated(gallery, key, bytes(content), frozenset(json.loads(frames))) for gallery, key, content, frames in rows]


def keys_of(store: Store, contents: Collection[bytes]) -> dict[bytes, list[str]]:
    """Return all keys under which the index has these files, by sha256, in the order of their addition."""
    found: dict[bytes, list[str]] = defaultdict(list)
    with store.explained():
        for content, key in store.connection.execute("SELECT content, key FROM pictures GROUP BY content, key ORDER BY min(id)"):
            if content in contents:
                found[bytes(content)].append(str(key))
    return found


def replace_rows(store: Store, staging: Staging, replaced: Iterable[Outdated], bundle: Bundle) -> bool:
    """Replace images' rows by what was staged, in one transaction. Patients, studies and groups stay.

    Args:
        store: the index, opened for writing, for any bundle.
        staging: has the embeddings. An image of which it has none is removed.
        replaced: the images.
        bundle: what the embeddings are of.

    Returns:
        Whether a calibration was removed, which was one for another bundle's scores.

    Raises:
        GalleryError: as for `Store`; then nothing was changed.
    """
    connection = store.connection
    store.setting("")  # which checks what is there
    staged = staging.contents(whole=False)
    with store.explained(), store.transaction():
        images, vectors = store.tally("pictures"), store.tally("vectors")
        old_vectors: set[int] = set()
        for one in replaced:
            name = (one.gallery, one.key)
            rows = connection.execute(f"SELECT {COLUMNS} FROM pictures WHERE gallery = ? AND key = ?", name).fetchall()
            connection.execute("DELETE FROM pictures WHERE gallery = ? AND key = ?", name)
            images = images.minus(row_digest(*row) for row in rows)
            old_vectors.update(row[4] for row in rows)
            if one.content in staged:
                added, vectors = _insert(store, staging, one, rows[0][6:8], vectors)
                images = images.plus(added)
        store.set_meta("pictures", images)
        store.set_meta("vectors", _without_unused(store, old_vectors, vectors))
        store.set_meta("compaction_due", "1")
        if store.fingerprint == bundle.fingerprint:
            return False
        store.set_meta("fingerprint", bundle.fingerprint)
        store.set_meta("features", bundle.features)
        return _forget_calibration(store)


def _insert(
    store: Store, staging: Staging, one: Outdated, whose: Sequence[str | None], vectors: Tally
) -> tuple[list[bytes], Tally]:
    """Insert the staged rows of an image; return their digests, and the tally of all vectors."""
    frames, embeddings = staging.get(one.content)
    added: list[bytes] = []
    new: list[bytes] = []
    for frame, views in embeddings.items():
        for rendering, (digest, data) in enumerate(dict(views).items()):
            query = "INSERT OR IGNORE INTO vectors (digest, embedding) VALUES (?, ?)"
            inserted = store.connection.execute(query, (digest, data)).rowcount == 1
            (number,) = store.connection.execute("SELECT id FROM vectors WHERE digest = ?", (digest,)).fetchone()
            if inserted:
                new.append(row_digest(number, digest))
            row = (one.key, frame, frames, one.content, number, one.gallery, *whose, rendering, READER_VERSION)
            store.connection.execute(f"INSERT INTO pictures ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            added.append(row_digest(*row))
    return added, vectors.plus(new)


def _without_unused(store: Store, candidates: Collection[int], vectors: Tally) -> Tally:
    """Remove those vectors that no image has now; return the tally of the rest."""
    gone: list[bytes] = []
    for number in sorted(candidates):
        if store.connection.execute("SELECT 1 FROM pictures WHERE vector = ? LIMIT 1", (number,)).fetchone() is None:
            (digest,) = store.connection.execute("SELECT digest FROM vectors WHERE id = ?", (number,)).fetchone()
            store.connection.execute("DELETE FROM vectors WHERE id = ?", (number,))
            store.connection.execute("INSERT INTO erased (vector) VALUES (?)", (number,))
            gone.append(row_digest(number, digest))
    return vectors.minus(gone)


def _forget_calibration(store: Store) -> bool:
    removed = store.connection.execute("DELETE FROM settings WHERE name = ?", (CALIBRATION_SETTING,)).rowcount == 1
    rows = store.connection.execute("SELECT name, value FROM settings")
    store.set_meta("settings", EMPTY.plus(row_digest(*row) for row in rows))
    return removed
