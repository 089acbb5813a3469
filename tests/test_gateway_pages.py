"""The page for the person on duty: logging in, what is shown to whom, deciding, and how a real browser takes it."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx2")
pytest.importorskip("uvicorn")
pytest.importorskip("jinja2")

import numpy as np  # noqa: E402
from lcmem_onnx.runtime.gateway.audit_trail import trail_files  # noqa: E402
from lcmem_onnx.runtime.gateway.http.callers import Caller, Session, Sessions  # noqa: E402
from lcmem_onnx.runtime.gateway.spool import Arrival, Source, Spool, State  # noqa: E402
from PIL import Image  # noqa: E402

from .browser import CHROMIUM, Browser  # noqa: E402
from .gateway_http import CT, CT_UID, DUTY, FORM, LOOKER, MODALITY, MR, gateway_settings, judged, serving  # noqa: E402

Served = tuple[Spool, "httpx.Client"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A gateway with one object in quarantine and one that waits to be forwarded."""
    with serving(gateway_settings(tmp_path)) as (spool, client):
        for path, aet in ((CT, "<b>CT1</b>"), (MR, "MR1")):
            spool.put_stream(io.BytesIO(path.read_bytes()), Arrival(Source.C_STORE, aet, address="10.0.0.7"), 1 << 30)
        for item in spool.claim("test", 8):
            spool.settle(item, judged(item))
        yield spool, client


def log_in(client: httpx.Client, token: str = DUTY, person: str = "Ada Example") -> httpx.Response:
    return client.post("/login", content=f"person={person}&token={token}", headers=FORM)


def csrf(page: str) -> str:
    (found,) = set(re.findall(r'name="csrf" value="([^"]+)"', page))
    return found


def audit(spool: Spool) -> list[dict[str, object]]:
    spool.audit.flush()
    return [json.loads(line) for path in trail_files(spool.settings.audit_folder) for line in path.read_text().splitlines()]


def test_without_a_session_there_is_a_log_in_and_nothing_else(served: Served) -> None:
    spool, client = served
    held = spool.list([State.QUARANTINED])[0].id
    for address in ("/", f"/quarantine/{held}", f"/quarantine/{held}/picture.png", f"/quarantine/{held}/nearest.png"):
        answer = client.get(address)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert client.post(f"/quarantine/{held}/release", content="sure=yes", headers=FORM).status_code == 303
    assert spool.get(held).state is State.QUARANTINED
    assert client.get("/login").status_code == 200


def test_logging_in_gives_a_cookie_that_scripts_and_other_sites_do_not_get(served: Served) -> None:
    spool, client = served
    answer = log_in(client)
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert DUTY not in cookie
    page = client.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-store"
    assert "<script" not in page.text
    assert [line["who"] for line in audit(spool) if line["event"] == "login"] == ["Ada Example (duty)"]


@pytest.mark.parametrize(
    ("token", "person", "status"),
    [("wrong", "Ada", 401), (MODALITY, "Ada", 401), ("", "Ada", 401), (DUTY, "", 400), (DUTY, "%00%0A", 400)],
)
def test_who_may_not_in_stays_out(token: str, person: str, status: int, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from lcmem_onnx.runtime.gateway.http import pages

    monkeypatch.setattr(pages, "WRONG_TOKEN_SECONDS", 0.0)
    spool, client = served
    answer = log_in(client, token, person)
    assert answer.status_code == status
    assert "set-cookie" not in answer.headers
    assert client.get("/").status_code == 303
    if status == 401:
        said = audit(spool)[-1]
        assert (said["event"], said["who"], said["address"]) == ("login-refused", "Ada", "127.0.0.1")


@pytest.mark.parametrize(("token", "status"), [("Ada", 401), (DUTY, 400)])
def test_a_token_in_the_field_for_the_name_is_not_kept(
    token: str, status: int, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lcmem_onnx.runtime.gateway.http import pages

    monkeypatch.setattr(pages, "WRONG_TOKEN_SECONDS", 0.0)
    spool, client = served
    assert log_in(client, token, DUTY).status_code == status
    assert DUTY[:32] not in json.dumps(audit(spool))


def test_another_sites_form_logs_nobody_in(served: Served) -> None:
    _, client = served
    headers = {**FORM, "Sec-Fetch-Site": "cross-site"}
    assert client.post("/login", content=f"person=A&token={DUTY}", headers=headers).status_code == 403


def test_the_overview_shows_counts_and_pseudonyms_and_escapes(served: Served) -> None:
    spool, client = served
    log_in(client)
    page = client.get("/").text
    held = spool.list([State.QUARANTINED])[0]
    assert spool.site_key.short("uid", CT_UID)[:12] in page
    assert f'href="/quarantine/{held.id}"' in page
    assert "&lt;b&gt;CT1&lt;/b&gt;" in page
    assert "<b>CT1</b>" not in page
    for secret in (CT_UID, "CompressedSamples", "1CT1", str(CT)):
        assert secret not in page


def test_trouble_is_said_on_top(served: Served) -> None:
    spool, client = served
    log_in(client)
    assert "All is well" in client.get("/").text
    with spool.database.write() as connection:
        connection.execute("UPDATE deliveries SET attempts = 1, failure = 'no-connection'")
    page = client.get("/").text
    assert "This needs attention" in page
    assert "archive does not take objects (no-connection)" in page


def test_who_may_only_look_sees_no_image(served: Served) -> None:
    spool, client = served
    log_in(client, LOOKER)
    held = spool.list([State.QUARANTINED])[0].id
    page = client.get("/").text
    assert held[:8] in page
    assert f"/quarantine/{held}" not in page
    for address in ("", "/picture.png", "/nearest.png"):
        assert client.get(f"/quarantine/{held}{address}").status_code == 403
    body = f"csrf={csrf(page)}&sure=yes"
    assert client.post(f"/quarantine/{held}/discard", content=body, headers=FORM).status_code == 403
    assert spool.get(held).state is State.QUARANTINED


def test_both_images_are_drawn_and_that_they_were_seen_is_noted(served: Served) -> None:
    spool, client = served
    log_in(client)
    held = spool.list([State.QUARANTINED])[0].id
    page = client.get(f"/quarantine/{held}").text
    assert "score 0.9800" in page
    drawn = [
        np.asarray(Image.open(io.BytesIO(client.get(f"/quarantine/{held}/{name}").content)))
        for name in ("picture.png", "nearest.png")
    ]
    assert drawn[0].shape == (128, 128, 3)
    assert (drawn[0] == drawn[1]).all()  # the same slice, by two ways
    assert client.get(f"/quarantine/{held}/picture.png?frame=1").status_code == 404
    assert client.get(f"/quarantine/{held}/picture.png").status_code == 200  # drawn before, and shown once more
    seen = [line for line in audit(spool) if line["event"] == "viewed"]
    assert {(line["who"], line["object"], line["address"]) for line in seen} == {("Ada Example (duty)", held, "127.0.0.1")}
    assert {line["sop_instance"] for line in seen} == {spool.site_key.short("uid", CT_UID)}
    assert [(line["what"], line["frame"]) for line in seen] == [("details", 0), ("image", 0), ("nearest", 0), ("image", 0)]
    assert seen[2]["gallery_image"] == spool.site_key.short("gallery", str(CT))


@pytest.mark.parametrize("content", [b"not DICOM", bytes(128) + b"DICM" + b"\x02\x00", CT.read_bytes()[:9000]])
def test_what_cannot_be_drawn_is_said(content: bytes, served: Served) -> None:
    from lcmem_onnx.runtime.gateway.outcome import Outcome

    spool, client = served
    stored = spool.put_stream(io.BytesIO(content), Arrival(Source.FOLDER, "x"), 1 << 30)
    (item,) = spool.claim("test", 8)
    spool.settle(item, Outcome("error", "damaged", "quarantine"))
    log_in(client)
    page = client.get(f"/quarantine/{stored.id}")
    assert page.status_code == 200
    assert "It cannot be shown" in page.text
    assert "What cannot be judged is never passed on" in page.text
    assert client.get(f"/quarantine/{stored.id}/picture.png").status_code == 404


def test_a_gallery_image_that_is_elsewhere_is_named(served: Served) -> None:
    from lcmem_onnx.runtime.gateway.outcome import Near, Outcome

    spool, client = served
    stored = spool.put_stream(io.BytesIO(CT.read_bytes() + b" "), Arrival(Source.FOLDER, "x"), 1 << 30)
    (item,) = spool.claim("test", 8)
    spool.settle(item, Outcome("match", "at-or-above-threshold", "quarantine", nearest=(Near(key := "sop:" + "a" * 32, 0, 0.9),)))
    log_in(client)
    page = client.get(f"/quarantine/{stored.id}").text
    assert "does not have the image itself" in page
    assert key in page
    assert client.get(f"/quarantine/{stored.id}/nearest.png").status_code == 404


def test_deciding_takes_this_sessions_form(served: Served) -> None:
    spool, client = served
    log_in(client)
    held = spool.list([State.QUARANTINED])[0].id
    address = f"/quarantine/{held}/release"
    token = csrf(client.get(f"/quarantine/{held}").text)
    for body, status in (
        ("sure=yes&destination=archive", 403),
        ("csrf=wrong&sure=yes&destination=archive", 403),
        ("csrf=%FF&sure=yes", 403),
        (f"csrf={token}&destination=archive", 400),
        (f"csrf={token}&sure=yes&destination=nowhere", 409),
    ):
        assert client.post(address, content=body, headers=FORM).status_code == status, body
    assert client.post(address, content="x" * 5000, headers=FORM).status_code == 413
    assert client.post(address, json={"csrf": token}).status_code == 415
    assert client.get(address).status_code == 405
    assert spool.get(held).state is State.QUARANTINED
    answer = client.post(address, content=f"csrf={token}&sure=yes&destination=archive", headers=FORM)
    assert (answer.status_code, answer.headers["location"]) == (303, "/?done=released")
    assert spool.get(held).state is State.SCREENED
    (line,) = [line for line in audit(spool) if line["event"] == "released"]
    assert (line["who"], line["destinations"]) == ("Ada Example (duty)", ["archive"])
    assert client.post(address, content=f"csrf={token}&sure=yes&destination=archive", headers=FORM).status_code == 409
    assert "This object is to be forwarded now" in client.get(f"/quarantine/{held}").text


def test_discarding_removes_the_bytes(served: Served) -> None:
    spool, client = served
    log_in(client)
    held = spool.list([State.QUARANTINED])[0].id
    token = csrf(client.get(f"/quarantine/{held}").text)
    assert client.post(f"/quarantine/{held}/discard", content=f"csrf={token}&sure=yes", headers=FORM).status_code == 303
    assert spool.get(held).state is State.DISCARDED
    assert not spool.files.path(held).exists()
    assert audit(spool)[-1]["event"] == "discarded"


def test_logging_out_ends_the_session(served: Served) -> None:
    spool, client = served
    log_in(client)
    kept = dict(client.cookies)
    assert client.post("/logout", content="csrf=wrong", headers=FORM).status_code == 403
    assert client.get("/").status_code == 200
    assert client.post("/logout", content=f"csrf={csrf(client.get('/').text)}", headers=FORM).status_code == 303
    assert client.get("/", headers={"Cookie": "; ".join(f"{name}={value}" for name, value in kept.items())}).status_code == 303
    assert [line["who"] for line in audit(spool) if line["event"] == "logout"] == ["Ada Example (duty)"]


def test_sessions_end() -> None:
    sessions, caller = Sessions(), Caller("duty", frozenset({"status"}))
    cookie = sessions.open(Session(caller, "Ada"))
    assert sessions.get(cookie)
    assert sessions.get(sessions.open(Session(caller, "Ada", ends=time.monotonic() - 1))) is None
    assert sessions.get("x") is None
    for _ in range(300):
        sessions.open(Session(caller, "Ada"))
    assert sessions.get(cookie) is None  # the oldest makes room


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_browser_logs_in_looks_and_releases(served: Served) -> None:
    spool, client = served
    held = spool.list([State.QUARANTINED])[0].id
    with Browser() as browser:
        browser.open(f"{client.base_url}/")
        browser.fill("#person", "Ada Example")
        browser.fill("#token", DUTY)
        browser.click("button.main")
        assert "In quarantine" in browser.text()
        for width in (1280, 360):
            browser.look(width, 800)
            assert browser.run("document.documentElement.scrollWidth") <= width  # nothing is cut off
        browser.look(1280, 800)
        ground = browser.run("getComputedStyle(document.body).backgroundColor")
        browser.look(1280, 800, dark=True)
        assert browser.run("getComputedStyle(document.body).backgroundColor") != ground
        browser.click(".cards a")
        assert held[:8] in browser.text()
        assert browser.run("[...document.images].map(image => image.naturalWidth)") == [128, 128]
        assert browser.run("[...document.images].every(image => image.alt)")
        assert browser.run("[...document.querySelectorAll('input:not([type=hidden]), select')].every(field => field.labels.length)")
        browser.run("document.querySelector('form.decision button.main').click()")  # not ticked: the browser keeps the form
        assert spool.get(held).state is State.QUARANTINED
        browser.run("document.querySelector('input[name=sure]').checked = true")
        browser.click("form.decision button.main")
        assert "Released: it is on its way." in browser.text()
        assert browser.problems == []
    assert spool.get(held).state is State.SCREENED
