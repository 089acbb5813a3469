"""POST /v1/screen: one object asked about, and the verdict as the answer. It goes nowhere and is gone afterwards."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...errors import GatewayError
from ..json_logging import Log
from ..settings import HttpSettings, Settings
from ..spool import Arrival, Item, Source, Spool, SpoolFullError, State
from .bodies import Refused, Spooling, chunks

__all__ = ["SCHEMA_VERSION", "screen"]

SCHEMA_VERSION = 1
POLL_SECONDS = 0.03
PATIENCE = 30.0
"""Seconds beyond the screening's own bound that its verdict is waited for."""

log = Log("http")


async def screen(request: Request, http: HttpSettings, settings: Settings, spool: Spool, caller: str) -> Response:
    """Answer a POST to /v1/screen: the body is the object's file."""
    limit = http.max_object_mb << 20
    began = time.monotonic()
    address = request.client.host if request.client else ""
    if not await run_in_threadpool(spool.has_room):
        raise Refused(507, "disk-above-watermark", "the spool's disk is above its watermark: try again later")
    async with Spooling(spool.files, limit) as file:
        async for data in chunks(request, http, limit):
            await file.write(data)
        if not file.bytes:
            raise Refused(400, "empty-file", "the body is empty: it must be the object's file")
        await file.finish()
        try:
            arrival = Arrival(Source.SCREEN, calling_aet=caller, address=address)
            stored = await run_in_threadpool(spool.put_file, file.path, arrival)
        except SpoolFullError as error:
            raise Refused(507, "disk-above-watermark", "the spool's disk is above its watermark: try again later") from error
        except (GatewayError, OSError) as error:
            raise Refused(507, "spool-not-writable", "the spool cannot be written: try again later") from error
    item = await _answered(spool, stored.id, settings.screen.timeout_seconds + PATIENCE)
    seconds = round(time.monotonic() - began, 3)
    if item is None:
        log.error("unanswered", object=stored.id, caller=caller, seconds=seconds)
        raise Refused(504, "timed-out", "the screening did not answer in time: treat the object as if it matched")
    log.info("answered", object=stored.id, caller=caller, verdict=item.verdict, reason=item.reason, seconds=seconds)
    return JSONResponse(_as_json(item, spool))


async def _answered(spool: Spool, object_id: str, seconds: float) -> Item | None:
    """The object's row once it has its verdict; None when that does not come."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        item = await run_in_threadpool(spool.get, object_id)
        if item.state is not State.RECEIVED:
            return item
        await asyncio.sleep(POLL_SECONDS)
    return None


def _as_json(item: Item, spool: Spool) -> dict[str, Any]:
    """The fields of a line of `scan --json`, gallery images by pseudonym: who may ask need not be who may see."""
    result = item.result
    threshold = result.get("threshold")
    nearest = [
        {"key": spool.site_key.short("gallery", near["key"]), "frame": near["frame"], "score": near["score"]}
        for near in result.get("nearest", [])
    ]
    matches = [near for near in nearest if item.verdict == "match" and threshold is not None and near["score"] >= threshold]
    return {
        "schema_version": SCHEMA_VERSION,
        "path": None,
        "frame": result.get("worst_frame"),
        "verdict": item.verdict or "error",
        "reason": item.reason,
        "detail": None,
        "threshold": threshold,
        "threshold_source": result.get("threshold_source"),
        "matches": matches,
        "matches_total": len(matches),
        "nearest": nearest[0] if nearest else None,
        "sha256": item.file_sha256,
        "object": item.id,
        "frames": result.get("frames"),
        "rule": item.rule,
        "gallery": result.get("gallery"),
        "model_sha256": result.get("model_sha256"),
        "index_sha256": result.get("index_sha256"),
    }
