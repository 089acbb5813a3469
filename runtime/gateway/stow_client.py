"""STOW-RS out: objects to a DICOMweb service, one a request, as they are."""

from __future__ import annotations

import json
import secrets
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx

from ..errors import GatewayError
from .delivery_queue import Delivery
from .forwarder import Answer
from .json_logging import Log
from .settings import Destination
from .tls import client_context

__all__ = ["StoreWeb"]

CHUNK = 1 << 20
MAX_ANSWER = 1 << 20
FINAL = frozenset({400, 413, 415})
"""Statuses that the object itself brings about. Others pass, or are mended by somebody: 401, 404, 5xx, ..."""
FINAL_REASONS = frozenset({0x0122, 0xA900})
"""Failure reasons as in C-STORE: SOP class not supported, data set does not match it."""

log = Log("store-web")


class StoreWeb:
    """Sends to one DICOMweb destination. One thread's.

    Raises:
        GatewayError: the token or TLS's files cannot be used.
    """

    def __init__(self, destination: Destination, transport: httpx.BaseTransport | None = None) -> None:
        self._destination = destination
        self._url = destination.url.rstrip("/").removesuffix("/studies") + "/studies"
        headers = {"Accept": "application/dicom+json", "User-Agent": "lcmem-onnx"}
        if destination.token_file:
            try:
                headers["Authorization"] = f"Bearer {destination.token_file.read_text(encoding='utf-8').strip()}"
            except (OSError, UnicodeDecodeError) as error:
                raise GatewayError(f"the token of {destination.name} in {destination.token_file} cannot be read") from error
        self._extensions: dict[str, Any] = {}
        if destination.tls and destination.tls.server_name:
            self._extensions["sni_hostname"] = destination.tls.server_name
        self._client = httpx.Client(
            headers=headers,
            verify=client_context(destination.tls),
            trust_env=False,  # a proxy of the environment is not where patients' images go
            timeout=httpx.Timeout(destination.timeout_seconds, connect=min(30.0, destination.timeout_seconds)),
            transport=transport,
        )

    def close(self) -> None:
        self._client.close()

    def send(self, objects: Sequence[tuple[Delivery, Path]]) -> Iterator[tuple[Delivery, Answer]]:
        """See `forward.Sender`. After a request that had no answer, the rest is left for later."""
        for delivery, path in objects:
            answer = self._send(delivery.item.sop_instance, path)
            yield delivery, answer
            if answer.status == "no-connection":
                return

    def _send(self, uid: str, path: Path) -> Answer:
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"\r\n--{boundary}--\r\n".encode()

        def body() -> Iterator[bytes]:
            yield head
            with open(path, "rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
            yield tail

        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary="{boundary}"',
            "Content-Length": str(len(head) + path.stat().st_size + len(tail)),
        }
        try:
            request = self._client.build_request(
                "POST", self._url, headers=headers, content=body(), extensions=self._extensions or None
            )
            response = self._client.send(request, stream=True)
            try:
                said = b""
                for part in response.iter_bytes():
                    said += part
                    if len(said) > MAX_ANSWER:
                        break
            finally:
                response.close()
        except (httpx.HTTPError, httpx.StreamError, ssl.SSLError) as error:
            log.warning("not-sent", destination=self._destination.name, error=type(error).__name__)
            return Answer(False, "no-connection")
        return _judged(response.status_code, said, uid)


def _judged(status: int, said: bytes, uid: str) -> Answer:
    """What an answer means. A 200 or 202 that lists the object as failed is a failure, whatever the status."""
    if status not in (200, 202, 409):
        return Answer(False, f"http-{status}", final=status in FINAL)
    try:
        told = json.loads(said) if said.strip() else {}
        reasons = _reasons(told[0] if isinstance(told, list) and told else told)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError):
        # XML, or something else: failures are named by their tag in any case.
        reasons = [0] if b"00081198" in said or b"0008119A" in said else []
    if reasons:
        return Answer(False, f"http-{status}-0x{reasons[0]:04X}", final=reasons[0] in FINAL_REASONS)
    if status == 409:
        return Answer(False, "http-409")
    return Answer(True, f"http-{status}" if uid.encode() in said else f"http-{status}-unconfirmed")


def _reasons(told: Any) -> list[int]:
    """Failure reasons in a response data set; 0 for one without a reason."""
    failures = [item for tag in ("00081198", "0008119A") for item in told.get(tag, {}).get("Value", [])]
    return [int((failure.get("00081197", {}).get("Value") or [0])[0]) for failure in failures]
