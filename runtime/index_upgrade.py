"""An index brought to this version's reader, and to another bundle where one is given: its files read and embedded again.

The old index stays whole, and readers search it, until all is embedded; then one transaction replaces the rows (see
`gallery.upgrade`). What was embedded until a kill is kept, and the next attempt goes on there.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from .errors import Reason, UsageError
from .gallery import Gallery
from .gallery.outdated import Outdated, find_outdated, keys_of, replace_rows
from .gallery.search.hnsw import graph_there, remove_graph
from .gallery.search.vector_cache import remove_caches
from .gallery.storage.database import check_there
from .gallery.storage.locking import WriterLock
from .gallery.storage.staging import Staging, remove_staging
from .gallery.storage.store import Store
from .images.discovery import Found
from .model.bundle import Bundle
from .results import SCHEMA_VERSION, EmbeddedFile
from .screening import Screener

__all__ = ["Missing", "Unavailable", "Upgraded", "upgrade_index"]

log = logging.getLogger(__name__)
NOT_A_FILE_NAME, FILE_CHANGED = "not-a-file-name", "file-changed"
"""Why an image cannot be read again, beside the codes of `Reason`."""
Watch = Callable[[Iterable[EmbeddedFile], int], Iterable[EmbeddedFile]]
"""Passes on what was embedded, and may show how far of how many files it is."""


class Missing(StrEnum):
    """What to do where images cannot be read again, or not all frames of them: `refuse` changes nothing, `drop` removes what cannot
    be read, `keep` leaves their rows as an older reader made them, which is possible within one bundle only."""

    REFUSE = "refuse"
    DROP = "drop"
    KEEP = "keep"


@dataclass(frozen=True)
class Unavailable:
    """An image that cannot be read again, or not all frames of it.

    Attributes:
        gallery, key: its name in the index.
        reason: a code of `Reason`; `file-changed` where the file is another now; `not-a-file-name` where the key tells no file, as
            of what came from an archive or was imported under pseudonyms.
        detail: for people.
    """

    gallery: str
    key: str
    reason: str
    detail: str

    def as_json(self) -> dict[str, object]:
        """The line of JSON that `index upgrade --json` prints."""
        return {
            "schema_version": SCHEMA_VERSION,
            "key": self.key,
            "gallery": self.gallery,
            "reason": self.reason,
            "detail": self.detail,
        }


@dataclass(frozen=True)
class Upgraded:
    """What became of an index.

    Attributes:
        upgraded: images whose rows were made again.
        current: images that were of this reader and bundle already, and were not read.
        unavailable: images that cannot be read again.
        missing: what was to be done with them.
        refused: whether nothing was changed because of them.
        bundle_changed: whether the index was of another bundle.
        calibration_removed: whether it had a calibration, for that other bundle.
        resumed: files that an earlier attempt had embedded.
    """

    upgraded: int
    current: int
    unavailable: tuple[Unavailable, ...] = field(repr=False)
    missing: Missing
    refused: bool
    bundle_changed: bool
    calibration_removed: bool
    resumed: int

    @property
    def changed(self) -> bool:
        """Whether any row was replaced or removed."""
        dropped = self.missing is Missing.DROP and bool(self.unavailable)
        return not self.refused and (self.bundle_changed or bool(self.upgraded) or dropped)

    def as_json(self) -> dict[str, object]:
        """The last line of JSON that `index upgrade --json` prints."""
        done = {Missing.DROP: "dropped", Missing.KEEP: "kept"}
        counts = {"upgraded": self.upgraded, "current": self.current, "dropped": 0, "kept": 0}
        if self.missing in done:
            counts[done[self.missing]] = len(self.unavailable)
        return {
            "schema_version": SCHEMA_VERSION,
            "summary": {**counts, "unavailable": dict(Counter(each.reason for each in self.unavailable).most_common())},
            "resumed": self.resumed,
            "refused": self.refused,
            "bundle_changed": self.bundle_changed,
            "calibration_removed": self.calibration_removed,
        }


def upgrade_index(
    folder: Path,
    screener: Screener,
    *,
    missing: Missing = Missing.REFUSE,
    warn: Callable[[str], None] = log.warning,
    watch: Watch | None = None,
) -> Upgraded:
    """Embed again what an older reader read, or all of an index of another bundle.

    Groups, patients' and studies' pseudonyms stay. A calibration stays within a bundle; one for another bundle is removed.

    Args:
        folder: the index's.
        screener: of the bundle that the index is to be of.
        missing: what to do where images cannot be read again.
        warn: is told what could not be tidied up, a line each; by default it is logged.
        watch: see `Watch`.

    Raises:
        GalleryError: the index is missing, damaged, cannot be written, or another process writes it; nothing was changed then.
        UsageError: rows are to be kept that are of another bundle.
    """
    check_there(folder)
    lock = WriterLock(folder)
    try:
        store = Store.of_any_bundle(folder)
        try:
            done = _upgrade(store, screener, missing, watch)
        finally:
            store.close()
        graph = graph_there(folder)
        if done.changed:  # made again below
            remove_graph(folder, to_be_made_again=False)
            remove_caches(folder)
    except BaseException:
        lock.release()
        raise
    if done.refused:
        lock.release()
        return done
    with Gallery.open_locked(folder, screener.bundle, lock, warn) as gallery:  # which compacts it, and migrates its format
        gallery.update_caches(graph=graph)
    return done


def _upgrade(store: Store, screener: Screener, missing: Missing, watch: Watch | None) -> Upgraded:
    folder, bundle = store.folder, screener.bundle
    changes_bundle = store.fingerprint != bundle.fingerprint
    if changes_bundle and missing is Missing.KEEP:
        raise UsageError(
            f"{folder} is of another bundle, whose embeddings do not compare: images that cannot be read again can be dropped, "
            "but not kept"
        )
    outdated = find_outdated(store, bundle.fingerprint)
    current = store.files() - len(outdated)
    unavailable: list[Unavailable] = []
    resumed, removed = 0, False
    if outdated or changes_bundle:
        with Staging(folder, bundle.fingerprint, bundle.features) as staging:
            resumed = len(staging.contents(whole=True))
            failures = _embed(store, staging, outdated, screener, watch)
            unavailable = [Unavailable(one.gallery, one.key, *failures[one.content]) for one in outdated if one.content in failures]
            if unavailable and missing is Missing.REFUSE:
                return Upgraded(0, current, tuple(unavailable), missing, True, changes_bundle, False, resumed)
            replaced = [one for one in outdated if missing is Missing.DROP or one.content not in failures]
            removed = _replace(folder, staging, replaced, bundle)
    remove_staging(folder)
    upgraded = len(outdated) - len(unavailable)
    return Upgraded(upgraded, current, tuple(unavailable), missing, False, changes_bundle, removed, resumed)


def _replace(folder: Path, staging: Staging, replaced: Sequence[Outdated], bundle: Bundle) -> bool:
    store = Store.of_any_bundle(folder, read_only=False)
    try:
        return replace_rows(store, staging, replaced, bundle)
    finally:
        store.close()


def _embed(
    store: Store, staging: Staging, outdated: Sequence[Outdated], screener: Screener, watch: Watch | None
) -> dict[bytes, tuple[str, str]]:
    """Embed each file that is not staged yet, from the first of its names that still leads to it.

    Returns:
        Of the files of which not all frames could be embedded, by sha256: the reason as a code, and in words.
    """
    frames: dict[bytes, frozenset[int]] = {}
    for one in outdated:
        frames[one.content] = frames.get(one.content, frozenset()) | one.frames
    wanted = set(frames.keys() - staging.contents(whole=True))
    failures = dict.fromkeys(wanted, (NOT_A_FILE_NAME, "its key is not the name of a file, so it cannot be read again"))
    names = {content: deque(path for key in keys for path in _paths(key)) for content, keys in keys_of(store, wanted).items()}
    while turn := sorted((names[content].popleft(), content) for content in wanted if names[content]):
        found = screener.embed_files([Found(path) for path, _ in turn], lambda content, _: content not in wanted)
        for (_, content), embedded in zip(turn, watch(found, len(turn)) if watch else found, strict=True):
            its = embedded.content
            if its is not None and its in wanted:  # the file that was looked for, or another one that the index knows
                lost = frames[its] - embedded.embeddings.keys()
                if embedded.embeddings:
                    staging.put(its, embedded.frames, embedded.embeddings, whole=not lost)
                if lost:
                    failures[its] = _why(embedded, lost)
                else:
                    wanted.discard(its)
                    del failures[its]
            if content in wanted and its is None:
                failures[content] = _why(embedded, frames[content])
            elif content in wanted and its != content:
                failures[content] = (FILE_CHANGED, "the file is another one than was indexed (its sha256 differs)")
    return failures


def _why(embedded: EmbeddedFile, lost: Collection[int]) -> tuple[str, str]:
    """Why frames that the index has could not be embedded, as a code and in words."""
    for frame, reason, detail in embedded.errors:
        if frame is None or frame in lost:
            return reason.value, detail if frame is None else f"frame {frame}: {detail}"
    return Reason.DAMAGED.value, f"it has {embedded.frames} frames, and the index has frame {min(lost)} of it"


def _paths(key: str) -> list[Path]:
    """The files that a key may name: none where it is not an absolute path. Bytes that are no UTF-8 stand in it as `\\xNN`."""
    if not os.path.isabs(key) or "\0" in key:
        return []
    paths = [Path(key)]
    if re.search(r"\\x[89a-f][0-9a-f]", key):
        data = re.sub(rb"\\x([89a-f][0-9a-f])", lambda found: bytes([int(found[1], 16)]), os.fsencode(key))
        paths.append(Path(os.fsdecode(data)))
    return paths
