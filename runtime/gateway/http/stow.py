"""STOW-RS (PS3.18, 10.5): objects in. Each is on disk, fsynced, before the answer names it as stored.

The answer is 200 when all objects were stored, 202 when some were, 409 when none was, with the response data set that says which;
413, 507 and the like when the request was given up midway, again with what had been stored until then. An object that was stored
before is stored again without effect, so a sender may send the whole of it once more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...errors import GatewayError
from ...system.multipart import Event, MultipartError, MultipartReader, parse_related
from ..json_logging import Log
from ..object_files import measure_meta
from ..settings import HttpSettings
from ..spool import Arrival, Source, Spool, SpoolFullError
from .bodies import Refused, Spooling, chunks

__all__ = ["store"]

MOST_REQUEST_OBJECTS = 10_000
MOST_REQUEST_BYTES = 1 << 44
"""Objects are bounded one by one; a request only so that it ends."""
OUT_OF_RESOURCES, NOT_UNDERSTOOD, PROCESSING_FAILURE = 0xA700, 0xC000, 0x0110
"""Failure reasons (PS3.18, 10.5.3.2)."""

log = Log("http")


@dataclass
class _Stored:
    """What became of a request's objects."""

    stored: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str, int]] = field(default_factory=list)

    @property
    def status(self) -> int:
        if self.failed:
            return 202 if self.stored else 409
        return 200

    def as_json(self) -> dict[str, Any]:
        """The response data set (PS3.18, table 10.5.3-2), in DICOM JSON, without addresses to retrieve from: this is no archive."""
        answer: dict[str, Any] = {"00081190": {"vr": "UR"}}
        named = [failure for failure in self.failed if failure[1]]
        nameless = [reason for _, uid, reason in self.failed if not uid]
        if named:
            answer["00081198"] = _sequence([{**_reference(sop_class, uid), **_reason(code)} for sop_class, uid, code in named])
        if self.stored:
            answer["00081199"] = _sequence([_reference(sop_class, uid) for sop_class, uid in self.stored])
        if nameless:
            answer["0008119A"] = _sequence([_reason(code) for code in nameless])
        return answer


def _sequence(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"vr": "SQ", "Value": items}


def _reference(sop_class: str, uid: str) -> dict[str, Any]:
    return {"00081150": {"vr": "UI", "Value": [sop_class]}, "00081155": {"vr": "UI", "Value": [uid]}}


def _reason(code: int) -> dict[str, Any]:
    return {"00081197": {"vr": "US", "Value": [code]}}


async def store(request: Request, settings: HttpSettings, spool: Spool, caller: str) -> Response:
    """Answer a POST to /studies."""
    _check_accept(request.headers.get("accept", "*/*"))
    boundary = _boundary(request.headers.get("content-type", ""))
    if not await run_in_threadpool(spool.has_room):
        raise Refused(507, "disk-above-watermark", "the spool's disk is above its watermark: try again later")
    done = _Stored()
    address = request.client.host if request.client else ""
    arrival = Arrival(Source.STOW, calling_aet=caller, address=address)
    refused: Refused | None = None
    try:
        await _take_in(request, settings, spool, arrival, boundary, done)
    except Refused as error:
        refused = error
    if refused is None and not done.stored and not done.failed:
        raise Refused(400, "no-objects", "the request holds no object")
    status = done.status if refused is None else refused.status
    log.info(
        "stow", caller=caller, address=address, status=status, stored=len(done.stored), failed=len(done.failed),
        reason=refused.reason if refused else None,
    )  # fmt: skip
    if refused is not None and not done.stored:
        raise refused
    headers = {"Connection": "close", "Warning": f'299 lcmem-onnx "{refused.reason}"'} if refused else {}
    return JSONResponse(done.as_json(), status, headers, media_type="application/dicom+json")


async def _take_in(
    request: Request, settings: HttpSettings, spool: Spool, arrival: Arrival, boundary: bytes, done: _Stored
) -> None:
    """Every part of the message into the spool, one after the other."""
    parts = _Parts(chunks(request, settings, MOST_REQUEST_BYTES), boundary)
    count = 0
    while (content_type := await parts.begin()) is not None:
        count += 1
        if count > MOST_REQUEST_OBJECTS:
            raise Refused(413, "too-many", f"a request may have {MOST_REQUEST_OBJECTS} objects")
        async with Spooling(spool.files, settings.max_object_mb << 20) as file:
            async for data in parts.body():
                await file.write(data)
            await file.finish()
            meta, _ = measure_meta(file.head)
            sop_class, uid = meta.get(0x02, ""), meta.get(0x03, "")
            if content_type != "application/dicom" or not uid or not sop_class:
                done.failed.append((sop_class, uid, NOT_UNDERSTOOD))
                log.warning("refused", reason="not-dicom", caller=arrival.calling_aet)
                continue
            try:
                stored = await run_in_threadpool(spool.put_file, file.path, arrival)
            except SpoolFullError as error:
                done.failed.append((sop_class, uid, OUT_OF_RESOURCES))
                raise Refused(507, "disk-above-watermark", "the spool's disk is above its watermark: try again later") from error
            except (GatewayError, OSError) as error:
                done.failed.append((sop_class, uid, PROCESSING_FAILURE))
                log.error("refused", reason="spool-not-writable", error=type(error).__name__)
                raise Refused(507, "spool-not-writable", "the spool cannot be written: try again later") from error
            done.stored.append((sop_class, uid))
            log.info("received", object=stored.id, known=stored.known, caller=arrival.calling_aet, address=arrival.address)


def _check_accept(accept: str) -> None:
    kinds = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    if not kinds & {"*/*", "application/*", "application/dicom+json", "application/json"}:
        raise Refused(406, "not-acceptable", "the answer is application/dicom+json")


def _boundary(content_type: str) -> bytes:
    """The message's boundary.

    Raises:
        Refused: 415, it is not multipart/related of DICOM objects.
    """
    related = parse_related(content_type)
    if related is None or related.type not in (None, "application/dicom"):
        raise Refused(415, "unsupported", 'a multipart/related message with type="application/dicom" and a boundary is wanted')
    return related.boundary


class _Parts:
    """A multipart message read as it comes: `begin` a part, then read its `body` to the end."""

    def __init__(self, source: AsyncIterator[bytes], boundary: bytes) -> None:
        self._source = source
        self._events: deque[Event] = deque()
        try:
            self._reader = MultipartReader(boundary)
        except MultipartError as error:
            raise Refused(400, "damaged", "the boundary is none") from error

    async def _next(self) -> Event:
        while not self._events:
            chunk = await anext(self._source, None)
            if chunk is None:
                raise Refused(400, "damaged", "the message ends before its last boundary")
            try:
                self._events.extend(self._reader.feed(chunk))
            except MultipartError as error:
                raise Refused(400, "damaged", "the message is no multipart/related message") from error
        return self._events.popleft()

    async def begin(self) -> str | None:
        """The content type of the next part, lower case, without parameters; None at the message's end."""
        event = await self._next()
        if event.kind == "begin":
            return event.content_type
        async for _rest in self._source:  # what follows the last boundary
            pass
        return None

    async def body(self) -> AsyncIterator[bytes]:
        while (event := await self._next()).kind != "end":
            if event.kind == "data":
                yield event.data
