"""Messages of type multipart/related (RFC 2387), as DICOMweb sends objects: STOW-RS in, WADO-RS out.

`MultipartReader` does no I/O of its own: it is fed bytes in pieces of any size and returns what they complete. So one reader serves
an answer that is in memory and a request that is still on its way.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from typing import Literal, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

__all__ = ["Event", "MultipartError", "MultipartReader", "Related", "parse_related"]


class MultipartError(ValueError):
    """The bytes are not a multipart message, or its boundary is not allowed."""


@dataclass(frozen=True)
class Related:
    """What the content type of a multipart/related message says.

    Attributes:
        boundary: the text between the parts, without the dashes before it.
        type: the media type of the first part in lower case; None if it is not given.
    """

    boundary: bytes
    type: str | None


def parse_related(content_type: str) -> Related | None:
    """Return boundary and type of a multipart/related content type; None for any other type, or without a boundary."""
    message = Message()
    message["Content-Type"] = content_type.encode("latin-1", "replace").decode("latin-1")
    boundary = message.get_boundary()
    if message.get_content_type() != "multipart/related" or not boundary:
        return None
    kind = message.get_param("type")
    return Related(boundary.encode("latin-1", "replace"), None if kind is None else str(kind).strip('"').lower())


class Event(NamedTuple):
    """One step through a message. Each part has a "begin", any number of "data" and an "end"; "close" comes last, once.

    Attributes:
        kind: which step.
        content_type: at "begin", the part's content type in lower case, without parameters; empty if the part names none.
        data: at "data", the next bytes of the part's body.
    """

    kind: Literal["begin", "data", "end", "close"]
    content_type: str = ""
    data: bytes = b""


class MultipartReader:
    """Reads one message.

    Args:
        boundary: see `Related`.

    Raises:
        MultipartError: the boundary is too long.
    """

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"--" + boundary
        self._preamble: bytearray | None = bytearray()
        self._events: list[Event] = []
        self._name, self._value = bytearray(), bytearray()
        self._content_type = ""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_part,
                    "on_part_data": lambda data, start, end: self._events.append(Event("data", data=bytes(data[start:end]))),
                    "on_part_end": lambda: self._events.append(Event("end")),
                    "on_end": lambda: self._events.append(Event("close")),
                },
            )
        except FormParserError as error:
            raise MultipartError(str(error)) from error

    def feed(self, data: bytes) -> list[Event]:
        """Return what `data`, the next bytes of the message, complete.

        Raises:
            MultipartError: the message is damaged.
        """
        if self._preamble is not None:
            # Text before the first boundary is allowed, but the parser does not take it.
            self._preamble += data
            start = self._preamble.find(self._delimiter)
            if start < 0:
                del self._preamble[: -len(self._delimiter)]
                return []
            data, self._preamble = bytes(self._preamble[start:]), None
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise MultipartError(str(error)) from error
        events, self._events = self._events, []
        return events

    def _end_header(self) -> None:
        if self._name.strip().lower() == b"content-type":
            self._content_type = self._value.decode("latin-1").partition(";")[0].strip().lower()
        self._name.clear()
        self._value.clear()

    def _begin_part(self) -> None:
        self._events.append(Event("begin", self._content_type))
        self._content_type = ""
