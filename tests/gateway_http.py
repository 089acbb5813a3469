"""What the tests of the gateway's HTTP share: a spool, a server on a port of its own, and a stand-in for the screening."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx2 as httpx
from lcmem_onnx.runtime.gateway.http.server import HttpServer
from lcmem_onnx.runtime.gateway.outcome import Near, Outcome
from lcmem_onnx.runtime.gateway.settings import (
    Destination,
    GallerySettings,
    HttpCaller,
    HttpSettings,
    Rule,
    Settings,
    SpoolSettings,
)
from lcmem_onnx.runtime.gateway.spool import Item, Spool
from lcmem_onnx.runtime.privacy import create_site_key
from lcmem_onnx.runtime.results import ThresholdSource

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
CT = EXAMPLES / "gallery" / "ct-slice.dcm"
MR = EXAMPLES / "queries" / "other-mr-slice.dcm"
CT_CLASS, MR_CLASS = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
CT_UID = "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322"
MR_UID = "1.3.6.1.4.1.5962.1.1.4.1.1.20040826185059.5457"
MODALITY, DUTY, LOOKER = "m" * 40, "d" * 40, "l" * 40
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def gateway_settings(folder: Path, **http: object) -> Settings:
    create_site_key(folder / "site.key")
    callers = []
    for name, token, may in (
        ("modality", MODALITY, ("store", "screen")),
        ("duty", DUTY, ("status", "quarantine")),
        ("looker", LOOKER, ("status",)),
    ):
        (folder / f"{name}.token").write_text(token)
        callers.append(HttpCaller(name, may, token_file=folder / f"{name}.token"))
    return Settings(
        spool=SpoolSettings(folder / "spool", min_free_mb=1),
        site_key=folder / "site.key",
        gallery=(GallerySettings("patients", folder / "index"),),
        destination=(Destination("archive", host="localhost", port=1, aet="ARCHIVE"),),
        rule=(Rule("all", "patients", forward_to=("archive",)),),
        http=replace(HttpSettings(port=0, caller=tuple(callers)), **http),  # type: ignore[arg-type]
    )


def judged(item: Item) -> Outcome:
    """The slice matches itself; all else is clear."""
    match = item.sop_instance == CT_UID
    near = (Near(str(CT), 0, 0.98 if match else 0.12),)
    verdict, reason, action = ("match", "at-or-above-threshold", "quarantine") if match else ("clear", "below-threshold", "forward")
    to = () if match else ("archive",)
    found = Outcome(verdict, reason, action, to, "all", "patients", 1, 0, 0.7451, near)  # type: ignore[arg-type]
    return replace(found, threshold_source=ThresholdSource.BUNDLE)


@contextmanager
def screening(spool: Spool) -> Iterator[None]:
    """Verdicts for what arrives, from a thread."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.01):
            for item in spool.claim("test", 8):
                spool.settle(item, judged(item))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def serving(settings: Settings) -> Iterator[tuple[Spool, httpx.Client]]:
    """A gateway's HTTP side, and a client of it without credentials."""
    with Spool(settings) as spool:
        server = HttpServer(settings, spool)
        server.start()
        scheme = "https" if settings.http and settings.http.tls else "http"
        try:
            with httpx.Client(base_url=f"{scheme}://127.0.0.1:{server.port}", trust_env=False, timeout=30) as client:
                yield spool, client
        finally:
            server.stop()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def message(*bodies: bytes, boundary: str = "frontier", kind: str = "application/dicom") -> tuple[bytes, dict[str, str]]:
    """A STOW-RS request: its body and headers."""
    parts = [f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode() + body + b"\r\n" for body in bodies]
    headers = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}', **bearer(MODALITY)}
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), headers
