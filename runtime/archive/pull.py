"""An archive's objects into a gallery: fetched in the screener's workers, embedded, added, and written down as done.

Each object is in the index before its outcome is yielded, and what the journal says of it is written after that. So whatever ends
the program, `kill -9` too, costs the objects in flight at most, and they are fetched again the next time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import ArchiveError, Reason
from ..gallery import DEFAULT_GALLERY, Gallery
from ..images.discovery import Supplied
from ..privacy import SiteKey
from ..screening import Indexed, Screener
from .connection import Connection
from .dicomweb import DicomWeb
from .journal import Journal
from .listing import Instance, Mark, Query, holds_images
from .orthanc import Orthanc

__all__ = ["Counts", "Pull", "Source", "open_source"]

PASSING = frozenset({Reason.NOT_FOUND, Reason.READ_FAILED, Reason.OUT_OF_MEMORY})
"""What another attempt may mend. Any other reason is the object's own and stays."""
GIVE_UP_AFTER = 20
"""So many objects in a row that the archive fails to give are the archive's failure."""


class Source(Protocol):
    """What an archive lists, in an order of its own."""

    def listed(self, journal: Journal, site_key: SiteKey) -> Iterator[Instance | Mark]: ...


@dataclass
class Counts:
    """What a pull came across.

    Attributes:
        known: objects that were in the index, or looked at, already.
        without_picture: objects that hold no image, as reports do.
    """

    known: int = 0
    without_image: int = 0


def open_source(kind: str, connection: Connection, query: Query, max_bytes: int) -> Source:
    """The archive's side: 'dicomweb' or 'orthanc'."""
    return DicomWeb(connection, query, max_bytes) if kind == "dicomweb" else Orthanc(connection, query, max_bytes)


class Pull:
    """Fills a gallery from an archive; iterate it once.

    Args:
        source: the archive.
        connection: the source's, which is told to stop when the iteration ends early.
        screener: embeds.
        gallery: opened for writing, of the same bundle.
        name: the group within the index that the objects are added to.
        again: look again at what was looked at before, and held no image or could not be read.

    Yields:
        An `Indexed` for each object that was fetched, its path the pseudonym. Objects without images have none.

    Raises:
        ArchiveError: the archive cannot be asked (any more).
        GalleryError: the gallery or the journal cannot be written.
        UsageError: there is no site key, or it is another than the index's.
    """

    def __init__(
        self,
        source: Source,
        connection: Connection,
        screener: Screener,
        gallery: Gallery,
        *,
        name: str = DEFAULT_GALLERY,
        again: bool = False,
    ) -> None:
        self.counts = Counts()
        self._source = source
        self._connection = connection
        self._screener = screener
        self._gallery = gallery
        self._name = name
        self._site_key = gallery.site_key()
        self._again = again
        self._plan: deque[str | Mark] = deque()
        self._in_flight: set[str] = set()
        self._failed = False

    def __iter__(self) -> Iterator[Indexed]:
        journal = Journal(Path(self._gallery.folder), self._name)
        failures = 0
        try:
            if self._again:
                journal.unsettle()
            for outcome in self._screener.index(self._fed(journal), self._gallery, name=self._name):
                reasons = {reason for _, reason, _ in outcome.errors}
                passing = bool(reasons & PASSING)
                failures = failures + 1 if passing else 0
                if outcome.errors and not passing:
                    journal.settle(outcome.path, ",".join(sorted(reasons)))
                self._arrived(outcome.path, passing and reasons != {Reason.NOT_FOUND}, journal)
                if failures >= GIVE_UP_AFTER:
                    raise ArchiveError(
                        f"the archive failed to give {failures} objects in a row ({outcome.errors[0][2]}): what was added before "
                        "is in the index, and the same command goes on from there"
                    )
                if reasons == {Reason.NO_PIXELS}:
                    self.counts.without_image += 1
                else:
                    yield outcome
            while self._plan:
                self._pass_marks(journal)
        finally:
            journal.close()

    def _fed(self, journal: Journal) -> Iterator[Supplied]:
        """The objects to be fetched, as the screener asks for them; the workers fetch. What goes by is noted in the plan."""
        try:
            for item in self._source.listed(journal, self._site_key):
                if isinstance(item, Mark):
                    self._plan.append(item)
                    if not self._in_flight:
                        self._pass_marks(journal)
                    continue
                key = self._site_key.object_name(item.uid)
                if key in self._in_flight:
                    continue
                if self._gallery.holds(key, self._name) or journal.is_settled(key):
                    self.counts.known += 1
                elif not holds_images(item):
                    self.counts.without_image += 1
                else:
                    self._plan.append(key)
                    self._in_flight.add(key)
                    yield Supplied(key, item.fetch)
        except GeneratorExit:
            self._connection.stop()
            raise

    def _arrived(self, key: str, failed: bool, journal: Journal) -> None:
        """Outcomes come in the order in which the objects were fed, so all before this one has passed."""
        while self._plan and self._plan[0] != key:
            self._pass_marks(journal)
        self._plan.popleft()
        self._in_flight.discard(key)
        self._failed |= failed
        self._pass_marks(journal)

    def _pass_marks(self, journal: Journal) -> None:
        """Set the marks whose objects are all done. One that failed and may yet be had leaves its mark unset."""
        while self._plan and isinstance(mark := self._plan[0], Mark):
            self._plan.popleft()
            if not self._failed:
                mark.set(journal)
            if mark.alone:
                self._failed = False
