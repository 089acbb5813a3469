"""Orthanc's own REST interface: all instances once, and from then on what its log of changes names as new.

With a query, Orthanc's `/tools/find` is asked instead, each time for all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ..errors import ArchiveError
from ..privacy import SiteKey
from .connection import Connection
from .journal import Journal
from .listing import Instance, Mark, Query, check_uid
from .pages import PAGE, read_pages

__all__ = ["Orthanc"]


class Orthanc:
    """An Orthanc server.

    Args:
        connection: to its root, as `https://orthanc.example:8042`.
        query: what to search for; nothing is everything.
        max_bytes: of an object.
    """

    def __init__(self, connection: Connection, query: Query, max_bytes: int) -> None:
        self._connection = connection
        self._query = dict(query)
        self._max_bytes = max_bytes

    def listed(self, journal: Journal, site_key: SiteKey) -> Iterator[Instance | Mark]:
        """All instances, or all since the last time, with marks that carry the change's number."""
        system = self._ask("/system", dict)
        if "Version" not in system:
            raise ArchiveError(f"{self._connection.url} is no Orthanc: its /system does not say a version")
        if self._query:
            yield from self._found()
            return
        source = site_key.digest("orthanc", self._connection.url, str(system.get("DatabaseServerIdentifier", "")))
        newest = int(self._ask("/changes?last", dict).get("Last", 0))
        cursor = journal.cursor(source)
        # A lower number than we have seen: another database, or a log that was cleared.
        if cursor is None or int(cursor) > newest:
            yield from self._all()
            yield Mark(partial(_follow, source=source, value=str(newest)), alone=False)
            cursor = str(newest)
        yield from self._changes(source, int(cursor))

    def _all(self) -> Iterator[Instance]:
        def page(since: int, limit: int) -> list[dict[str, Any]]:
            return _resources(self._ask(f"/instances?expand&since={since}&limit={limit}", list))

        for item in read_pages(page, lambda item: str(item["ID"])):
            yield self._instance(item)

    def _found(self) -> Iterator[Instance]:
        def page(since: int, limit: int) -> list[dict[str, Any]]:
            body = {"Level": "Instance", "Query": self._query, "Expand": True, "Since": since, "Limit": limit}
            return _resources(self._ask("/tools/find", list, body))

        for item in read_pages(page, lambda item: str(item["ID"])):
            yield self._instance(item)

    def _changes(self, source: bytes, cursor: int) -> Iterator[Instance | Mark]:
        while True:
            answer = self._ask(f"/changes?since={cursor}&limit={PAGE}", dict)
            changes = answer.get("Changes", [])
            for change in changes:
                if change.get("ChangeType") == "NewInstance":
                    item = self._connection.json(f"/instances/{_checked_id(change['ID'])}", absent=(404,))
                    if item is not None:  # else it was deleted since
                        yield self._instance(_resources([item])[0])
            last = int(answer.get("Last", cursor))
            if changes and last > cursor:
                cursor = last
                yield Mark(partial(_follow, source=source, value=str(cursor)), alone=False)
            if answer.get("Done", True) or not changes:
                return

    def _instance(self, item: dict[str, Any]) -> Instance:
        uid = str(item["MainDicomTags"]["SOPInstanceUID"])
        return Instance(uid, partial(self._fetch, str(item["ID"]), uid))

    def _fetch(self, number: str, uid: str) -> bytes:
        content, _ = self._connection.content(f"/instances/{number}/file", "application/dicom", self._max_bytes)
        return check_uid(content, uid)

    def _ask(self, path: str, kind: type, body: object = None) -> Any:
        answer = self._connection.json(path, body=body)
        if not isinstance(answer, kind):
            raise ArchiveError(f"{self._connection.url} does not answer as Orthanc does: is that its address?")
        return answer


def _follow(journal: Journal, source: bytes, value: str) -> None:
    journal.set_cursor(source, value)


def _resources(items: list[Any]) -> list[dict[str, Any]]:
    """Instances as Orthanc lists them, each with its ID and its SOP Instance UID.

    Raises:
        ArchiveError: one lacks them.
    """
    for item in items:
        try:
            _checked_id(item["ID"])
            item["MainDicomTags"]["SOPInstanceUID"]
        except (KeyError, TypeError) as error:
            raise ArchiveError("Orthanc listed an instance without its ID or SOP Instance UID") from error
    return items


def _checked_id(number: Any) -> str:
    """Orthanc's name of a resource, which goes into an address: five groups of hexadecimal digits."""
    if not isinstance(number, str) or len(number) != 44 or not set(number) <= set("0123456789abcdef-"):
        raise ArchiveError("Orthanc named a resource by something that is no ID of its own")
    return number
