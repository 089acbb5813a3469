"""A gallery of embeddings on disk or in memory: added to, searched, removed from.

What is held here is what callers see; `store` keeps the rows, `searcher` finds, `erasure` removes, `locking` keeps writers apart.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import GalleryError, UsageError
from ..images.reader_version import READER_VERSION
from ..model.bundle import Bundle
from ..model.head import Floats, check_threshold
from ..privacy import SiteKey
from .search.hnsw import graph_there
from .search.results import Search, SearchResult
from .search.searcher import Searcher
from .storage.database import check_there, create_database
from .storage.erasure import compact_database, compaction_due, erase, mark_compacted
from .storage.leftovers import PREFIX, remove_leftovers
from .storage.locking import WriterLock
from .storage.records import DEFAULT_GALLERY, Entry, Record
from .storage.staging import remove_staging
from .storage.store import Store
from .verification import Verification, verify

__all__ = ["Added", "Gallery"]

log = logging.getLogger(__name__)

SITE_KEY = "site-key"
"""The setting that says under which site key the index's pseudonyms were made."""


class Added(StrEnum):
    """What `Gallery.add` will do with an image: `new` is embedded, `known` is there, `copy` is there under another key."""

    NEW = "new"
    KNOWN = "known"
    COPY = "copy"


class Gallery:
    """An index: open or create one, add to it, search it, remove from it. Close it, or use it in a `with`.

    Threads may share it: additions and searches take turns where they must. Several processes may have the same folder open;
    one of them may write (see `locking`), and the others see what it has committed at their next search.
    """

    def __init__(
        self, store: Store, bundle: Bundle, *, persistent: bool, warn: Callable[[str], None], lock: WriterLock | None = None
    ) -> None:
        self.bundle = bundle
        self.folder = store.folder
        self._store = store
        self._writer_lock = lock
        self._searching = threading.RLock()
        self._searcher = Searcher(store, bundle, warn, persistent=persistent)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._site_key: SiteKey | None = None

    @classmethod
    def create(cls, folder: str | os.PathLike[str], bundle: Bundle, warn: Callable[[str], None] = log.warning) -> Gallery:
        """Make an empty gallery in a folder, opened for writing.

        Raises:
            GalleryError: the folder holds a gallery already, or cannot be written.
        """
        create_database(Path(folder), bundle.fingerprint, bundle.features)
        return cls.open(folder, bundle, read_only=False, warn=warn)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        bundle: Bundle,
        *,
        read_only: bool = True,
        warn: Callable[[str], None] = log.warning,
    ) -> Gallery:
        """Open a gallery that exists.

        Args:
            folder: where it lies.
            bundle: the bundle it was made with.
            read_only: refuse changes; a search graph is then not written either. False takes the writer's lock until
                `close`, brings an index of an older format up to date, and finishes a compaction that was interrupted.
            warn: is told what the gallery mends by itself, a line each; by default it is logged.

        Raises:
            GalleryError: it is missing or damaged, of another format, or another process has it open for writing.
            GalleryMismatchError: it was made with another bundle.
        """
        path = Path(folder)
        if read_only:
            store = Store(path, bundle.fingerprint, bundle.features, read_only=True)
            return cls(store, bundle, persistent=False, warn=warn)
        check_there(path)
        return cls.open_locked(path, bundle, WriterLock(path), warn)

    @classmethod
    def open_locked(cls, folder: Path, bundle: Bundle, lock: WriterLock, warn: Callable[[str], None]) -> Gallery:
        """Open a gallery for writing, as `open`, under a lock that is held already; `close`, or a failure, releases it."""
        try:
            store = Store(folder, bundle.fingerprint, bundle.features)
            gallery = cls(store, bundle, persistent=True, warn=warn, lock=lock)
        except BaseException:
            lock.release()
            raise
        try:
            if compaction_due(store):
                try:
                    gallery.compact()
                except GalleryError as error:  # it stays due; no reason to refuse additions
                    warn(f"removed images may still be on the disk: {error}")
        except BaseException:
            gallery.close()
            raise
        return gallery

    @classmethod
    def temporary(cls, bundle: Bundle) -> Gallery:
        """A gallery that is gone when it is closed; its embeddings touch the disk only in a private temporary folder.

        Raises:
            GalleryError: the temporary folder cannot be made or written.
        """
        remove_leftovers()
        try:
            folder = tempfile.TemporaryDirectory(prefix=PREFIX)
        except OSError as error:
            raise GalleryError(f"cannot create a temporary index: {error.strerror}. Set TMPDIR to a writable folder") from error
        try:
            gallery = cls.create(folder.name, bundle, warn=log.debug)  # a new index that lacks a search graph needs no warning
        except BaseException:
            folder.cleanup()
            raise
        gallery._temporary = folder
        gallery._site_key = SiteKey.passing()
        return gallery

    def close(self) -> None:
        with self._searching:
            self._searcher.close()
        self._store.close()
        if self._writer_lock:
            self._writer_lock.release()
        if self._temporary:
            self._temporary.cleanup()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def replaced(self) -> int:
        """How often another index has taken the folder's place since it was opened, as a reader notices."""
        return self._store.generation

    def __len__(self) -> int:
        """How many images' frames it holds."""
        return self._store.frames()

    def frames(self, galleries: Collection[str] | None = None) -> int:
        """How many images' frames some of its galleries hold; None counts all.

        Raises:
            UsageError: a gallery of that name holds nothing.
        """
        return self._store.frames(self._chosen(galleries))

    def vectors(self) -> int:
        """How many distinct embeddings it holds: the size that counts in a search, since copies are compared once."""
        with self._store.explained():
            return self._store.tally("vectors").rows  # kept, where counting would read an index of all

    def describe(self) -> dict[str, object]:
        """Counts and identity, for people: images, frames, distinct vectors, groups, age, the version of the reader and how
        many frames an older one read, the bundle's fingerprint, the name of the site key that pseudonyms were made with (None
        where there are none)."""
        frames, vectors = self._store.frames(), self._store.counts()[1]
        return {
            "path": str(self.folder),
            "pictures": self._store.files(),
            "frames": frames,
            "distinct_vectors": vectors,
            "galleries": {
                name: {"pictures": images, "frames": its_frames, "patients": patients}
                for name, (images, its_frames, patients) in self._store.galleries().items()
            },
            "created": self._store.meta("created"),
            "format_version": int(self._store.meta("format_version")),
            "reader_version": READER_VERSION,
            "frames_of_older_readers": self._store.frames_of_older_readers(),
            "fingerprint": self.bundle.fingerprint,
            "graph": graph_there(self.folder),
            "site_key": self._store.setting(SITE_KEY),
        }

    def holds_pseudonyms(self) -> bool:
        """Whether the patient or the study of any image is known."""
        return self._store.holds_pseudonyms()

    def galleries(self) -> list[str]:
        """The names of the groups that hold images, sorted."""
        return list(self._store.galleries())

    # -- settings ----------------------------------------------------------------------------------------------------

    def setting(self, name: str) -> str | None:
        """A value that was kept with the index under `name`, or None.

        Raises:
            GalleryError: the settings are not as they were written.
        """
        return self._store.setting(name)

    def set_setting(self, name: str, value: str | None) -> None:
        """Keep a value with the index, on disk when this returns; None removes it."""
        self._store.set_setting(name, value)

    def site_key(self) -> SiteKey:
        """The site key that this index's pseudonyms are made with; opened when it is first needed.

        Raises:
            UsageError: there is no key, or it is another than the one that the index was filled with: the same patient would
                get a second pseudonym, and an erasure would miss the first.
        """
        if self._site_key is None:
            key = SiteKey.open()
            known = self._store.setting(SITE_KEY)
            if known is None and not self._store.read_only:
                self._store.set_setting(SITE_KEY, key.name)
            elif known is not None and known != key.name:
                raise UsageError(
                    f"the pseudonyms in {self.folder} were made with another site key ({known}, not {key.name}): "
                    "set LCMEM_ONNX_SITE_KEY to the file of that key"
                )
            self._site_key = key
        return self._site_key

    # -- adding ----------------------------------------------------------------------------------------------------

    def status(self, key: str, content: bytes, gallery: str = DEFAULT_GALLERY) -> Added:
        """What adding the file with sha256 `content` under `key` to a gallery would be.

        A key that stands for another image counts as new: `add` then refuses it.
        """
        known = self._store.content_of(key, gallery)
        if known and known[0] == content and known[1]:
            return Added.KNOWN
        return Added.COPY if self._store.complete_copy(content) else Added.NEW

    def content_of(self, key: str, gallery: str = DEFAULT_GALLERY) -> bytes | None:
        """The sha256 of the image that a key stands for in a gallery, or None."""
        known = self._store.content_of(key, gallery)
        return known[0] if known else None

    def holds(self, key: str, gallery: str = DEFAULT_GALLERY) -> bool:
        """Whether an image is there under this key, with all its frames."""
        known = self._store.content_of(key, gallery)
        return bool(known and known[1])

    def add(self, entry: Entry) -> None:
        """Add one image with its embeddings; it is on disk when this returns.

        Raises:
            KeyConflictError: the key stands for an image of other content.
            GalleryError: it cannot be written, or an embedding is not finite. Nothing that was there is harmed.
        """
        self._store.add([entry])

    def add_all(self, entries: Iterable[Entry]) -> None:
        """Add several images in one transaction: all are on disk when this returns, or none. Raises as `add` does."""
        self._store.add(entries)

    def add_copy(self, key: str, content: bytes, gallery: str = DEFAULT_GALLERY) -> None:
        """Name an image that is in the index already under another key or in another gallery; its embeddings are shared.

        Raises:
            GalleryError: no image of this content is there, or it cannot be written.
            KeyConflictError: the key stands for an image of other content.
        """
        original = self._store.complete_copy(content)
        if original is None:
            raise GalleryError(f"{self.folder} has no image with sha256 {content.hex()}")
        self._store.add([], [((gallery, key), original)])

    def entries(self, galleries: Collection[str] | None = None) -> Iterator[Record]:
        """All that is kept, frame by frame, for export; each embedding is checked against its digest.

        Raises:
            GalleryError: an embedding is damaged.
            UsageError: a gallery of that name holds nothing.
        """
        return self._store.records(self._chosen(galleries))

    def update_caches(self, *, graph: bool = False) -> None:
        """Bring what is cached on disk up to date, so that the next opening is quick: for the end of many additions.

        Args:
            graph: also keep a search graph, which is made otherwise only where the exact search would take too long.

        Raises:
            GalleryError: the disk is full. What was added is safe, and older caches still count.
        """
        with self._searching:
            self._searcher.update(graph=graph)

    def verify(self, threshold: float | None = None, sample: int = 200) -> Verification:
        """Read the whole index and compare it with its digests; where there is a graph, measure its recall of matches.

        Args:
            threshold: score in (0, 1) for a match; None takes the bundle's.
            sample: how many of the gallery's own images to search for, both ways; 0 leaves the graph's recall out.

        Returns:
            What was checked and what was found wrong; a damaged index is a finding here, not an error.
        """
        limit = self.bundle.threshold.value if threshold is None else check_threshold(threshold)
        with self._searching:
            return verify(self._store, self._searcher, self.bundle.fingerprint, limit, sample)

    # -- erasing -----------------------------------------------------------------------------------------------------

    def remove(
        self,
        *,
        key: str | None = None,
        patient: str | None = None,
        study: str | None = None,
        gallery: str | None = None,
        compact: bool = True,
    ) -> int:
        """Remove the images for which all that is given holds. They are in no result from then on, in no process.

        Args:
            key: an image's name.
            patient, study: pseudonyms, as `site_key()` makes them.
            gallery: a group; alone, all of it.
            compact: also remove them from the disk before this returns. False leaves that to a later `compact`, or to the
                next opening for writing: for many removals in a row.

        Returns:
            How many images were removed.

        Raises:
            UsageError: nothing was given.
            GalleryError: it cannot be written. Then nothing was removed, or, after a full disk in compaction, all from results.
        """
        with self._searching:
            self._searcher.flat.refresh(self._store)  # what is known now can be taken out of the graph then
            try:
                removed = erase(self._store, key=key, patient=patient, study=study, gallery=gallery)
            except GalleryError as error:
                raise GalleryError(f"nothing was removed: {error}") from error
            if removed and compact:
                try:
                    self.compact()
                except GalleryError as error:
                    raise GalleryError(
                        f"{removed} images were removed from all results, but not yet erased from the disk: {error}. Run "
                        "'lcmem-onnx index compact' to erase them"
                    ) from error
        return removed

    def compact(self) -> None:
        """Remove from the disk what was removed from the gallery: the database and its caches are written anew without it.

        Raises:
            GalleryError: the disk is full, or another process reads for too long. The gallery is unharmed, and what could not
                be done is done at the next opening for writing.
        """
        with self._searching:
            compact_database(self._store)
            self._searcher.rewrite()
            remove_staging(self.folder)  # what an upgrade that was not finished embedded: of erased images too
            mark_compacted(self._store)

    # -- searching -------------------------------------------------------------------------------------------------

    def search(
        self,
        queries: Floats,
        threshold: float,
        *,
        top: int = 5,
        how: Search | str = Search.AUTO,
        galleries: Collection[str] | None = None,
    ) -> list[SearchResult]:
        """Find gallery images that show the same as each query.

        Args:
            queries: embeddings, float32 (n, features); or (n, renderings, features), of which the one that scores best counts.
            threshold: score in (0, 1) at or above which an image is a match.
            top: how many matches, and how many identities, to return for each query.
            how: see `Search`.
            galleries: names of the groups to search in; None searches all.

        Returns:
            A result for each query, in order.

        Raises:
            UsageError: a query of another shape or with values that are not finite, a threshold outside (0, 1), `top` below 1,
                an unknown `how`, or a gallery that holds nothing.
            GalleryError: the gallery is damaged.
        """
        check_threshold(threshold)
        if queries.ndim not in (2, 3) or queries.shape[-1] != self.bundle.features or 0 in queries.shape[1:]:
            raise UsageError(f"queries must have shape (n, {self.bundle.features}), got {queries.shape}")
        if not np.isfinite(queries).all():  # it would be compared with nothing, and be clear
            raise UsageError("queries must be finite, got NaN or infinity")
        if top < 1:
            raise UsageError(f"top must be 1 or more, got {top}")
        try:
            how = Search(how)
        except ValueError as error:
            raise UsageError(f"unknown search method {how!r}: use one of {', '.join(Search)}") from error
        chosen = self._chosen(galleries)
        with self._searching:
            return self._searcher.search(queries, threshold, top, how, chosen)

    def _chosen(self, galleries: Collection[str] | None) -> list[str] | None:
        """Names of galleries that exist: a mistyped one would find nothing, and everything would be clear."""
        if galleries is None:
            return None
        chosen = [galleries] if isinstance(galleries, str) else sorted(set(galleries))
        missing = [name for name in chosen if not self._store.holds(name)]
        if missing or not chosen:
            what = f"no gallery {missing[0]!r}" if missing else "nothing to choose from an empty list of galleries"
            raise UsageError(f"{self.folder} has {what}: use one of {', '.join(self.galleries()) or '(none)'}")
        return chosen
