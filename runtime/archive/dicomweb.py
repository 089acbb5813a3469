"""DICOMweb (PS3.18): QIDO-RS to find instances, WADO-RS to retrieve them as they are stored.

Searched from studies downward, since that is what every server answers; a search among all instances of an archive is optional.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ..errors import ArchiveError, ImageError, Reason
from ..privacy import SiteKey
from ..system.multipart import MultipartError, MultipartReader, parse_related
from .connection import Connection
from .journal import Journal
from .listing import Instance, Mark, Query, check_uid
from .pages import read_pages

__all__ = ["DicomWeb", "first_part"]

STUDY_UID, SERIES_UID, INSTANCE_UID, SOP_CLASS, INSTANCES = "0020000D", "0020000E", "00080018", "00080016", "00201208"
OF_SERIES = frozenset(
    {"BodyPartExamined", "Laterality", "Manufacturer", "Modality", "PerformedProcedureStepStartDate", "ProtocolName", "SeriesDate"}
    | {"SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "SeriesTime", "StationName"}
)
OF_INSTANCE = frozenset(("ContentDate", "ContentTime", "InstanceNumber", "NumberOfFrames", "SOPClassUID", "SOPInstanceUID"))
ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
"""As stored: an archive that converts may lose what makes a copy recognisable, and takes its time."""
PIECE = 1 << 20
"""Bytes of an answer that the reader is given at a time, so that parts after the first are not copied as a whole."""


class DicomWeb:
    """An archive that speaks DICOMweb.

    Args:
        connection: to its DICOMweb root, as `https://pacs.example/dicom-web`.
        query: what to search for.
        max_bytes: of an object.
    """

    def __init__(self, connection: Connection, query: Query, max_bytes: int) -> None:
        self._connection = connection
        self._max_bytes = max_bytes
        self._identity = repr((connection.url, query))
        self._of_series = {name: value for name, value in query if name in OF_SERIES}
        self._of_instance = {name: value for name, value in query if name in OF_INSTANCE}
        self._of_study = {name: value for name, value in query if name not in OF_SERIES | OF_INSTANCE}

    def listed(self, journal: Journal, site_key: SiteKey) -> Iterator[Instance | Mark]:
        """All instances that the query finds, a mark after each study. Studies walked before, of the same size, are passed over."""
        for study in self._search("/studies", self._of_study, STUDY_UID):
            uid = _value(study, STUDY_UID)
            count = _value(study, INSTANCES, optional=True)
            digest = site_key.digest("study", self._identity, uid, count)
            if count and journal.is_walked(digest):
                continue
            base = f"/studies/{uid}"
            if self._of_series:
                for series in self._search(f"{base}/series", self._of_series, SERIES_UID):
                    yield from self._instances(f"{base}/series/{_value(series, SERIES_UID)}", uid)
            else:
                yield from self._instances(base, uid)
            if count:
                yield Mark(partial(_walk, digest=digest), alone=True)

    def _instances(self, base: str, study: str) -> Iterator[Instance]:
        for found in self._search(f"{base}/instances", self._of_instance, INSTANCE_UID):
            series, uid = _value(found, SERIES_UID), _value(found, INSTANCE_UID)
            path = f"/studies/{study}/series/{series}/instances/{uid}"
            yield Instance(uid, partial(self._fetch, path, uid), _value(found, SOP_CLASS, optional=True) or None)

    def _search(self, path: str, query: dict[str, str], identity: str) -> Iterator[dict[str, Any]]:
        def page(offset: int, limit: int) -> list[dict[str, Any]]:
            answer = self._connection.json(path, {**query, "limit": limit, "offset": offset})
            if answer is None:
                return []
            if not isinstance(answer, list) or not all(isinstance(item, dict) for item in answer):
                raise ArchiveError(
                    f"{self._connection.url} answered a search with something else than a list: is that its DICOMweb root?"
                )
            return answer

        return read_pages(page, lambda item: _value(item, identity))

    def _fetch(self, path: str, uid: str) -> bytes:
        content, kind = self._connection.content(path, ACCEPT, self._max_bytes)
        return check_uid(first_part(content, kind), uid)


def first_part(content: bytes, content_type: str) -> bytes:
    """Return the body of the first part of a WADO-RS answer; the answer itself where it is a single DICOM file.

    Raises:
        ImageError: damaged: the answer is not a whole message, or has no part.
    """
    related = parse_related(content_type)
    if related is None:
        if content[128:132] == b"DICM":  # some archives answer a single object as it is
            return content
        raise ImageError(Reason.DAMAGED, f"the archive answered {content_type.partition(';')[0] or 'nothing'!r} and no object")
    body: list[bytes] = []
    parts, ended = 0, False
    try:
        reader = MultipartReader(related.boundary)
        for start in range(0, len(content), PIECE):
            for event in reader.feed(content[start : start + PIECE]):
                if event.kind == "begin":
                    parts += 1
                elif event.kind == "data" and parts == 1:
                    body.append(event.data)
                elif event.kind == "end":
                    ended = True
    except MultipartError as error:
        raise ImageError(Reason.DAMAGED, f"the archive's answer is not a whole message: {error}") from error
    if not ended:
        raise ImageError(Reason.DAMAGED, "the archive's answer holds no whole object")
    return b"".join(body)


def _walk(journal: Journal, digest: bytes) -> None:
    journal.walk(digest)


def _value(item: dict[str, Any], tag: str, *, optional: bool = False) -> str:
    """An attribute's first value as text; a UID, which goes into an address, is checked to be one.

    Raises:
        ArchiveError: it is not there and is not optional, or is no UID.
    """
    try:
        value = str(item[tag]["Value"][0])
    except (KeyError, IndexError, TypeError) as error:
        if optional:
            return ""
        raise ArchiveError(f"the archive answered a search without {tag}, which it must give") from error
    if not optional and not (0 < len(value) <= 64 and set(value) <= set("0123456789.") and value.strip(".")):
        raise ArchiveError(f"the archive answered a search with a {tag} that is no UID")
    return value
