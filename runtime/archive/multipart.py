"""The first part of a multipart/related message, as WADO-RS answers with."""

from __future__ import annotations

from email.message import Message

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from ..errors import ImageError, Reason

__all__ = ["boundary_of", "first_part"]


def boundary_of(content_type: str) -> bytes | None:
    """The boundary that a content type names; None where it is no multipart/related or names none."""
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_boundary()
    if message.get_content_type() != "multipart/related" or not boundary:
        return None
    return boundary.encode("latin-1", "replace")


def first_part(content: bytes, content_type: str) -> bytes:
    """The body of a message's first part; the message itself where it is not multipart.

    Raises:
        ImageError: damaged: it is no whole message, or holds no part.
    """
    boundary = boundary_of(content_type)
    if boundary is None:
        if content[128:132] == b"DICM":  # some archives answer a single object as it is
            return content
        raise ImageError(Reason.DAMAGED, f"the archive answered {content_type.partition(';')[0] or 'nothing'!r} and no object")
    spans: list[bytes] = []
    parts = 0
    ended = False

    def begin() -> None:
        nonlocal parts
        parts += 1

    def data(chunk: bytes, start: int, end: int) -> None:
        if parts == 1:
            spans.append(chunk[start:end])

    def end() -> None:
        nonlocal ended
        ended = True

    parser = MultipartParser(boundary, {"on_part_begin": begin, "on_part_data": data, "on_part_end": end})
    try:
        # A message may begin with text before its first boundary, which the parser does not take.
        start = content.find(b"--" + boundary)
        parser.write(content[max(start, 0) :])
        parser.finalize()
    except FormParserError as error:
        raise ImageError(Reason.DAMAGED, f"the archive's answer is no whole message: {error}") from error
    if not parts or not ended:
        raise ImageError(Reason.DAMAGED, "the archive's answer holds no whole object")
    return b"".join(spans)
