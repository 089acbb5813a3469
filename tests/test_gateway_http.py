"""STOW-RS, /v1/screen, who may what, and peers that are slow or hostile."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx2")
pytest.importorskip("uvicorn")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from lcmem_onnx.runtime.errors import ConfigError, GatewayError  # noqa: E402
from lcmem_onnx.runtime.gallery.storage.store import DATABASE  # noqa: E402
from lcmem_onnx.runtime.gateway.config import read_config  # noqa: E402
from lcmem_onnx.runtime.gateway.http import bodies  # noqa: E402
from lcmem_onnx.runtime.gateway.http.callers import Callers  # noqa: E402
from lcmem_onnx.runtime.gateway.http.stow import _Parts  # noqa: E402
from lcmem_onnx.runtime.gateway.settings import HttpCaller, HttpSettings, TlsServer  # noqa: E402
from lcmem_onnx.runtime.gateway.spool import Source, Spool, State  # noqa: E402
from lcmem_onnx.runtime.gateway.worker_process import Worker  # noqa: E402
from lcmem_onnx.runtime.gateway.workers import run_web  # noqa: E402

from .gateway_http import (  # noqa: E402
    CT,
    CT_CLASS,
    CT_UID,
    DUTY,
    LOOKER,
    MODALITY,
    MR,
    MR_CLASS,
    MR_UID,
    bearer,
    gateway_settings,
    message,
    screening,
    serving,
)  # fmt: skip


def reference(sop_class: str, uid: str) -> dict[str, object]:
    return {"00081150": {"vr": "UI", "Value": [sop_class]}, "00081155": {"vr": "UI", "Value": [uid]}}


# -- STOW-RS ----------------------------------------------------------------------------------------------------------


def test_what_is_stored_is_in_the_spool_and_named_in_the_answer(tmp_path: Path) -> None:
    with serving(gateway_settings(tmp_path)) as (spool, client):
        content, headers = message(CT.read_bytes(), MR.read_bytes())
        for _ in range(2):  # the second time it is there already
            answer = client.post("/studies", content=content, headers=headers)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "application/dicom+json"
            assert answer.json() == {
                "00081190": {"vr": "UR"},
                "00081199": {"vr": "SQ", "Value": [reference(CT_CLASS, CT_UID), reference(MR_CLASS, MR_UID)]},
            }
        items = spool.list([State.RECEIVED])
        assert sorted(item.sop_instance for item in items) == sorted([CT_UID, MR_UID])
        for item in items:
            original = CT if item.sop_instance == CT_UID else MR
            assert spool.files.path(item.id).read_bytes()[128:] == original.read_bytes()[128:]
            assert (item.source, item.calling_aet, item.address) == (Source.STOW, "modality", "127.0.0.1")
        assert list(spool.files.incoming.iterdir()) == []


def test_some_and_none_stored_are_202_and_409_with_reasons(tmp_path: Path) -> None:
    with serving(gateway_settings(tmp_path)) as (spool, client):
        content, headers = message(b"no DICOM at all", MR.read_bytes())
        answer = client.post("/studies", content=content, headers=headers)
        assert answer.status_code == 202
        assert answer.json()["00081199"]["Value"] == [reference(MR_CLASS, MR_UID)]
        assert answer.json()["0008119A"]["Value"] == [{"00081197": {"vr": "US", "Value": [0xC000]}}]
        content, headers = message(CT.read_bytes(), kind="image/jpeg")
        answer = client.post("/studies", content=content, headers=headers)
        assert answer.status_code == 409
        failed = {**reference(CT_CLASS, CT_UID), "00081197": {"vr": "US", "Value": [0xC000]}}
        assert answer.json()["00081198"]["Value"] == [failed]
        assert "00081199" not in answer.json()
        assert [item.sop_instance for item in spool.list([State.RECEIVED])] == [MR_UID]


def test_nothing_is_answered_before_it_is_fsynced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, put = os.fsync, Spool.put_file
    prepared = gateway_settings(tmp_path)

    def noted(descriptor: int) -> None:
        done.append(f"fsync {os.readlink(f'/proc/self/fd/{descriptor}').rpartition('.')[2]}")
        fsync(descriptor)

    def putting(self: Spool, path: Path, arrival: object) -> object:
        done.append("put")
        return put(self, path, arrival)  # type: ignore[arg-type]

    monkeypatch.setattr(bodies.os, "fsync", noted)
    monkeypatch.setattr(Spool, "put_file", putting)
    with serving(prepared) as (_, client):
        content, headers = message(CT.read_bytes())
        assert client.post("/studies", content=content, headers=headers).status_code == 200
    assert done[:2] == ["fsync part", "put"]


@pytest.mark.parametrize("what", ["put", "disk"])
def test_a_full_disk_is_507_and_says_what_was_stored(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = Spool.put_file

    def failing(self: Spool, path: Path, arrival: object) -> object:
        if MR_UID.encode() in path.read_bytes():
            raise GatewayError("the spool cannot be written: No space left on device")
        return put(self, path, arrival)  # type: ignore[arg-type]

    with serving(gateway_settings(tmp_path)) as (spool, client):
        if what == "disk":
            monkeypatch.setattr(spool, "has_room", lambda: False)
        else:
            monkeypatch.setattr(Spool, "put_file", failing)
        content, headers = message(CT.read_bytes(), MR.read_bytes())
        answer = client.post("/studies", content=content, headers=headers)
        assert answer.status_code == 507
        if what == "put":
            assert answer.json()["00081199"]["Value"] == [reference(CT_CLASS, CT_UID)]
            assert answer.json()["00081198"]["Value"][0]["00081155"]["Value"] == [MR_UID]
        else:
            assert answer.json()["error"] == "disk-above-watermark"
            assert client.post("/v1/screen", content=b"x", headers=bearer(MODALITY)).status_code == 507
            assert client.get("/readyz").status_code == 503


def test_requests_that_are_none_are_refused(tmp_path: Path) -> None:
    with serving(gateway_settings(tmp_path, max_object_mb=1)) as (spool, client):
        content, headers = message(CT.read_bytes())
        for changed, body, status, error in (
            ({"Content-Type": "application/dicom"}, content, 415, "unsupported"),
            ({"Content-Type": 'multipart/related; type="application/dicom+json"; boundary=frontier'}, content, 415, "unsupported"),
            ({"Content-Type": 'multipart/related; type="application/dicom"'}, content, 415, "unsupported"),
            ({"Accept": "application/dicom+xml"}, content, 406, "not-acceptable"),
            ({}, content[:-200], 400, "damaged"),
            ({}, b"", 400, "damaged"),
            ({}, b"--frontier--\r\n", 400, None),
            ({}, message(bytes(3 << 20))[0], 413, "too-large"),
        ):
            answer = client.post("/studies", content=body, headers={**headers, **changed})
            assert answer.status_code == status, answer.text
            assert error is None or answer.json()["error"] == error
        assert client.get("/studies", headers=headers).status_code == 405
        assert client.post("/studies/1.2.3", content=content, headers=headers).status_code == 404
        assert spool.counts()[State.RECEIVED] == 0
        assert list(spool.files.incoming.iterdir()) == []


def test_a_truncated_message_keeps_its_whole_objects(tmp_path: Path) -> None:
    with serving(gateway_settings(tmp_path)) as (spool, client):
        content, headers = message(CT.read_bytes(), MR.read_bytes())
        answer = client.post("/studies", content=content[:-500], headers=headers)
        assert answer.status_code == 400
        assert answer.json()["00081199"]["Value"] == [reference(CT_CLASS, CT_UID)]
        assert [item.sop_instance for item in spool.list([State.RECEIVED])] == [CT_UID]


@given(st.lists(st.binary(max_size=80), max_size=4), st.lists(st.integers(1, 40), min_size=1, max_size=30), st.booleans())
@settings(max_examples=80, deadline=None)
def test_parts_come_out_as_they_went_in_however_they_are_cut(parts: list[bytes], cuts: list[int], preamble: bool) -> None:
    content, _ = message(*parts, boundary="b")
    content = (b"text before\r\n" if preamble else b"") + content

    async def source() -> AsyncIterator[bytes]:
        at, turn = 0, 0
        while at < len(content):
            yield content[at : at + cuts[turn % len(cuts)]]
            at += cuts[turn % len(cuts)]
            turn += 1

    async def read() -> list[bytes]:
        reader, found = _Parts(source(), b"b"), []
        while await reader.begin() is not None:
            found.append(b"".join([data async for data in reader.body()]))
        return found

    if not any(b"\r\n--b" in part for part in parts):
        assert asyncio.run(read()) == parts


# -- /v1/screen -------------------------------------------------------------------------------------------------------


def test_an_object_that_is_asked_about_gets_its_verdict_and_is_gone(tmp_path: Path) -> None:
    with serving(gateway_settings(tmp_path)) as (spool, client), screening(spool):
        answer = client.post("/v1/screen", content=CT.read_bytes(), headers=bearer(MODALITY))
        assert answer.status_code == 200
        said = answer.json()
        assert {name: said[name] for name in ("schema_version", "verdict", "reason", "frame", "threshold", "matches_total")} == {
            "schema_version": 1, "verdict": "match", "reason": "at-or-above-threshold", "frame": 0, "threshold": 0.7451,
            "matches_total": 1,
        }  # fmt: skip
        assert said["threshold_source"] == "bundle"
        assert said["matches"] == [said["nearest"]]
        assert said["nearest"]["key"] == spool.site_key.short("gallery", str(CT))
        assert str(CT) not in answer.text
        assert client.post("/v1/screen", content=MR.read_bytes(), headers=bearer(MODALITY)).json()["verdict"] == "clear"
        assert spool.files.ids() == set()
        assert spool.counts()[State.ANSWERED] == 2


def test_no_verdict_in_time_is_no_clear_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lcmem_onnx.runtime.gateway.http import screening as module
    from lcmem_onnx.runtime.gateway.settings import ScreenSettings

    monkeypatch.setattr(module, "PATIENCE", 0.1)
    with serving(replace(gateway_settings(tmp_path), screen=ScreenSettings(timeout_seconds=0.1))) as (_, client):
        answer = client.post("/v1/screen", content=CT.read_bytes(), headers=bearer(MODALITY))
        assert (answer.status_code, answer.json()["error"]) == (504, "timed-out")
        assert client.post("/v1/screen", content=b"", headers=bearer(MODALITY)).status_code == 400


# -- who may ----------------------------------------------------------------------------------------------------------


def test_everybody_may_what_they_may(tmp_path: Path) -> None:
    content, headers = message(MR.read_bytes())
    with serving(gateway_settings(tmp_path)) as (spool, client), screening(spool):
        for token, store, screen, metrics in (
            (None, 401, 401, 401), ("wrong" * 10, 401, 401, 401), (MODALITY, 200, 200, 403), (LOOKER, 403, 403, 200),
            (DUTY, 403, 403, 200), (DUTY + "x", 401, 401, 401), (f"{DUTY}\u00e9", 401, 401, 401),
        ):  # fmt: skip
            auth = {"Authorization": f"Bearer {token}".encode()} if token else {}
            kind = {"Content-Type": headers["Content-Type"]}
            assert client.post("/studies", content=content, headers={**kind, **auth}).status_code == store
            assert client.post("/v1/screen", content=MR.read_bytes(), headers=auth).status_code == screen
            answer = client.get("/metrics", headers=auth)
            assert answer.status_code == metrics
            if metrics == 401:
                assert answer.headers["www-authenticate"].startswith("Bearer")
        assert client.get("/healthz").text == "ok\n"
        assert client.get("/readyz").status_code == 200
        for address in ("/docs", "/static/../app.py", "/static/base.html", "/quarantine", "/v1"):
            assert client.get(address).status_code == 404


def test_it_is_not_ready_without_its_index(tmp_path: Path) -> None:
    configured = gateway_settings(tmp_path)
    stop, ports = threading.Event(), queue.Queue[int]()
    worker = Worker("web", configured, "test", lambda facts: ports.put(int(str(facts["http_port"]))), stop)
    thread = threading.Thread(target=run_web, args=(worker,))
    with Spool(configured):
        thread.start()
        try:
            url = f"http://127.0.0.1:{ports.get(timeout=30)}/readyz"
            missing = httpx.get(url, trust_env=False)
            assert (missing.status_code, "not ok index patients" in missing.text) == (503, True)
            configured.gallery[0].index.mkdir()
            (configured.gallery[0].index / DATABASE).touch()
            assert httpx.get(url, trust_env=False).status_code == 200
        finally:
            stop.set()
            thread.join()


def test_metrics_count_and_name_nobody(tmp_path: Path) -> None:
    with serving(gateway_settings(tmp_path)) as (spool, client), screening(spool):
        content, headers = message(CT.read_bytes(), MR.read_bytes())
        client.post("/studies", content=content, headers=headers)
        deadline = time.monotonic() + 20
        while spool.counts()[State.RECEIVED] and time.monotonic() < deadline:
            time.sleep(0.02)
        text = client.get("/metrics", headers=bearer(LOOKER)).text
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert lines['lcmem_gateway_objects{state="quarantined"}'] == "1.0"
        assert lines['lcmem_gateway_events_total{event="received.stow"}'] == "2.0"
        assert lines['lcmem_gateway_deliveries_pending{destination="archive"}'] == "1.0"
        assert lines['lcmem_gateway_http_requests_total{route="POST /studies",status="200"}'] == "1.0"
        object_id = spool.list([State.QUARANTINED])[0].id
        client.get(f"/quarantine/{object_id}")
        text = client.get("/metrics", headers=bearer(LOOKER)).text
        for secret in (CT_UID, MR_UID, "1CT1", "CompressedSamples", object_id, spool.site_key.short("uid", CT_UID)):
            assert secret not in text


def test_tokens_are_long_and_one_line(tmp_path: Path) -> None:
    file = tmp_path / "t"
    for text in ("", "short", "x" * 31, f"{'x' * 40}\n{'y' * 40}"):
        file.write_text(text)
        with pytest.raises(GatewayError, match="must be one line of 32 characters"):
            Callers(HttpSettings(caller=(HttpCaller("a", ("store",), token_file=file),)))
    with pytest.raises(GatewayError, match="cannot be read"):
        Callers(HttpSettings(caller=(HttpCaller("a", ("store",), token_file=tmp_path / "none"),)))
    digest = subprocess.run(["sha256sum"], input=b"secret" * 8, capture_output=True, check=True).stdout.split()[0].decode()
    callers = Callers(HttpSettings(caller=(HttpCaller("a", ("store",), token_sha256=digest),)))
    assert callers.of_token("secret" * 8)
    assert callers.of_token("secret") is None


CONFIG = """
site_key = "site.key"
[spool]
folder = "spool"
[[gallery]]
name = "patients"
index = "index"
[[rule]]
name = "all"
gallery = "patients"
on_clear = "keep"
[http]
{http}
"""
CALLER = '[[http.caller]]\nname = "a"\nmay = ["store"]\ntoken_file = "t"\n'


@pytest.mark.parametrize(
    ("http", "says"),
    [
        ("port = 8080", "nobody may call"),
        ('host = "0.0.0.0"\n' + CALLER, "can be reached from other machines, which needs"),
        ('host = "::"\n' + CALLER, "can be reached from other machines"),
        ('host = "gateway.example"\n' + CALLER, "can be reached from other machines"),
        (CALLER + 'token_sha256 = "' + "0" * 64 + '"', "one of token_file, token_sha256 and certificate"),
        (CALLER.replace('token_file = "t"', 'token_sha256 = "12"'), "64 hexadecimal digits"),
        (CALLER.replace('token_file = "t"', 'certificate = "scanner"'), "client_ca only"),
        (CALLER.replace('["store"]', "[]"), "it may nothing"),
        (CALLER.replace('["store"]', '["all"]'), "is 'all'; expected 'store' or"),
        (CALLER + CALLER, "given 2 times"),
    ],
)
def test_configurations_that_are_refused(http: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(CONFIG.format(http=http))
    with pytest.raises(ConfigError, match=says):
        read_config(tmp_path / "gateway.toml")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_loopback_needs_no_tls(host: str, tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(CONFIG.format(http=f'host = "{host}"\n{CALLER}'))
    assert read_config(tmp_path / "gateway.toml").http


# -- TLS --------------------------------------------------------------------------------------------------------------


def openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def test_callers_by_certificate(tmp_path: Path) -> None:
    try:
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=test authority",
                "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", folder=tmp_path)  # fmt: skip
    except FileNotFoundError:
        pytest.skip("there is no openssl")
    (tmp_path / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "scanner", "stranger"):
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                "-keyout", f"{name}.key", "-out", f"{name}.csr", folder=tmp_path)  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                "-extfile", "san", "-out", f"{name}.pem", folder=tmp_path)  # fmt: skip
    tls = TlsServer(tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "ca.pem")
    callers = (HttpCaller("scanner", ("store", "status"), certificate="scanner"),)
    with serving(gateway_settings(tmp_path, tls=tls, caller=callers)) as (_, plain):
        import ssl

        content, headers = message(CT.read_bytes())
        del headers["Authorization"]
        for name, status in (("scanner", 200), ("stranger", 401)):
            context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            context.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
            with httpx.Client(base_url=plain.base_url, verify=context, trust_env=False) as client:
                assert client.post("/studies", content=content, headers=headers).status_code == status
        silent = [socket.create_connection(("127.0.0.1", plain.base_url.port)) for _ in range(50)]  # handshakes never begun
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        context.load_cert_chain(tmp_path / "scanner.pem", tmp_path / "scanner.key")
        began = time.monotonic()
        with httpx.Client(base_url=plain.base_url, verify=context, trust_env=False) as client:
            assert client.get("/healthz").status_code == 200
        assert time.monotonic() - began < 2
        for peer in silent:
            peer.close()
        without = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        with httpx.Client(base_url=plain.base_url, verify=without, trust_env=False) as client, pytest.raises(httpx.TransportError):
            client.get("/healthz")
        with socket.create_connection(("127.0.0.1", plain.base_url.port)) as peer:  # no TLS at all
            peer.settimeout(10)
            peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert not peer.recv(100).startswith(b"HTTP")


# -- slow and hostile peers -------------------------------------------------------------------------------------------


def closed(peer: socket.socket, within: float) -> bool:
    peer.settimeout(within)
    try:
        while peer.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


def test_silent_peers_are_closed_and_hold_nobody_up(tmp_path: Path) -> None:
    with serving(gateway_settings(tmp_path, opening_seconds=1.0)) as (_, client):
        address = ("127.0.0.1", client.base_url.port)
        peers = [socket.create_connection(address) for _ in range(50)]
        for peer in peers[:25]:
            peer.sendall(b"POST /studies HTTP/1.1\r\nHo")
        began = time.monotonic()
        assert client.get("/healthz").status_code == 200
        assert time.monotonic() - began < 2
        assert all(closed(peer, 15) for peer in peers)
        for peer in peers:
            peer.close()


def test_a_head_that_drips_after_a_first_request_is_closed_too(tmp_path: Path) -> None:
    with (
        serving(gateway_settings(tmp_path, opening_seconds=0.5)) as (_, client),
        socket.create_connection(("127.0.0.1", client.base_url.port)) as peer,
    ):
        peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        peer.settimeout(10)
        assert peer.recv(4096).startswith(b"HTTP/1.1 200")
        peer.sendall(b"GET /he")
        assert closed(peer, 10)


def test_a_body_that_stalls_is_408_and_leaves_nothing(tmp_path: Path) -> None:
    with serving(gateway_settings(tmp_path, idle_seconds=0.3)) as (spool, client):
        content, headers = message(CT.read_bytes())
        head = f"POST /studies HTTP/1.1\r\nHost: x\r\nAuthorization: {headers['Authorization']}\r\n"
        head += f"Content-Type: {headers['Content-Type']}\r\nContent-Length: {len(content)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", client.base_url.port)) as peer:
            peer.sendall(head.encode() + content[:5000])
            peer.settimeout(10)
            answer = peer.recv(4096)
            assert answer.startswith(b"HTTP/1.1 408")
            assert closed(peer, 10)
        assert list(spool.files.incoming.iterdir()) == []
        assert spool.counts()[State.RECEIVED] == 0


def test_a_body_that_is_too_slow_as_a_whole_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "GRACE", 0.2)

    def dripping() -> object:
        for _ in range(200):
            time.sleep(0.02)
            yield b"x"

    with serving(gateway_settings(tmp_path)) as (_, client):
        answer = client.post("/v1/screen", content=dripping(), headers=bearer(MODALITY))
        assert (answer.status_code, answer.json()["error"]) == (408, "too-slow")


def test_more_requests_than_allowed_are_503(tmp_path: Path) -> None:
    with serving(gateway_settings(tmp_path, max_requests=1, idle_seconds=5)) as (_, client):
        _, headers = message(CT.read_bytes())
        head = f"POST /v1/screen HTTP/1.1\r\nHost: x\r\nAuthorization: {headers['Authorization']}\r\nContent-Length: 1000\r\n\r\nx"
        with socket.create_connection(("127.0.0.1", client.base_url.port)) as peer:
            peer.sendall(head.encode())
            deadline = time.monotonic() + 10
            status = 0
            while status != 503 and time.monotonic() < deadline:
                status = client.post("/v1/screen", content=b"", headers=bearer(MODALITY)).status_code
            assert status == 503


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET / HTTP/x\r\n\r\n",
        b"POST /studies HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_harms_nobody(raw: bytes, tmp_path: Path) -> None:
    with serving(gateway_settings(tmp_path, opening_seconds=0.5)) as (_, client):
        with socket.create_connection(("127.0.0.1", client.base_url.port)) as peer:
            peer.sendall(raw)
            assert closed(peer, 10)
        assert client.get("/healthz").status_code == 200


def test_logs_hold_no_raw_uid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with serving(gateway_settings(tmp_path)) as (_, client):
        content, headers = message(CT.read_bytes(), b"1.2.3 is nothing")
        client.post("/studies", content=content, headers=headers)
        client.post("/studies", content=content, headers={**headers, "Authorization": "Bearer nothing"})
    said = json.dumps(
        [[record.getMessage(), str(record.__dict__.get("fields"))] for record in caplog.records if "lcmem" in record.name]
    )
    assert "received" in said
    for secret in (CT_UID, "1CT1", MODALITY, "nothing"):
        assert secret not in said


def test_images_of_other_formats_may_be_asked_about_and_are_never_taken_in(tmp_path: Path) -> None:
    """The gateway's own screening, on a PNG of the slice: asked about it is a match, stored or from a folder it is no object."""
    from lcmem_onnx.runtime.gallery import Gallery
    from lcmem_onnx.runtime.gateway.object_screener import ObjectScreener
    from lcmem_onnx.runtime.gateway.spool import Arrival
    from lcmem_onnx.runtime.screening import Screener

    screener = Screener(threads=1)
    with Gallery.create(tmp_path / "index", screener.bundle) as gallery:
        assert next(iter(screener.index([CT], gallery))).added
    prepared = gateway_settings(tmp_path)
    image = CT.parent.parent / "queries" / "copy-of-ct-slice-exported.png"
    with Spool(prepared) as spool:
        screening = ObjectScreener(prepared, spool, screener)
        for rules, source, verdict, reason in (
            (prepared.rule, Source.SCREEN, "match", "at-or-above-threshold"),
            (prepared.rule, Source.FOLDER, "error", "not-dicom"),
            ((replace(prepared.rule[0], modality=("CT",)),), Source.SCREEN, "error", "no-rule"),
        ):
            screening._settings = replace(prepared, rule=rules)
            with open(image, "rb") as file:
                spool.put_stream(file, Arrival(source, "x"), 1 << 30)
            ((item, outcome),) = screening.screen(spool.claim("test", 1))
            assert (outcome.verdict, outcome.reason) == (verdict, reason)
            assert spool.settle(item, outcome) is (State.ANSWERED if source is Source.SCREEN else State.QUARANTINED)
        screening.close()
