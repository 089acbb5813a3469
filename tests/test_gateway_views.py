"""Looking at patients' data leaves a line in the audit trail before anything is shown, on the page and on the command line."""

from __future__ import annotations

import io
import json
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx2")
pytest.importorskip("uvicorn")
pytest.importorskip("jinja2")

from click.testing import CliRunner  # noqa: E402
from lcmem_onnx.cli import main  # noqa: E402
from lcmem_onnx.runtime.gateway.audit_trail import trail_files, verify_trail  # noqa: E402
from lcmem_onnx.runtime.gateway.config import read_config  # noqa: E402
from lcmem_onnx.runtime.gateway.example_config import write_example  # noqa: E402
from lcmem_onnx.runtime.gateway.http.images import Drawer  # noqa: E402
from lcmem_onnx.runtime.gateway.quarantine import current_user  # noqa: E402
from lcmem_onnx.runtime.gateway.spool import Arrival, Source, Spool, State  # noqa: E402
from pydicom import dcmread  # noqa: E402

from .gateway_http import CT, CT_UID, DUTY, FORM, gateway_settings, judged, serving  # noqa: E402

Served = tuple[Spool, "httpx.Client"]
PNG = b"\x89PNG of a patient"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A gateway with one object in quarantine, and somebody who has logged in. Images are not drawn, which takes a second each."""

    async def drawn(drawer: Drawer, file: int, frame: int) -> bytes:
        return PNG

    monkeypatch.setattr(Drawer, "_drawn", drawn)
    with serving(gateway_settings(tmp_path)) as (spool, client):
        hold(spool)
        client.post("/login", content=f"person=Ada&token={DUTY}", headers=FORM)
        yield spool, client


def hold(spool: Spool) -> str:
    """Have the CT slice matched and held."""
    stored = spool.put_stream(io.BytesIO(CT.read_bytes()), Arrival(Source.C_STORE, "CT1", address="10.0.0.7"), 1 << 30)
    for item in spool.claim("test", 8):
        spool.settle(item, judged(item))
    return stored.id


def audit(spool: Spool) -> list[dict[str, Any]]:
    spool.audit.flush()
    return [json.loads(line) for path in trail_files(spool.settings.audit_folder) for line in path.read_text().splitlines()]


WAYS_TO_LOOK = ("", "/picture.png", "/nearest.png", "/picture.png?frame=0")


def test_there_is_no_other_way_to_look(served: Served) -> None:
    """Every route below an object is in the lists of these tests: a new one must be traced too."""
    from lcmem_onnx.runtime.gateway.http.app import make_app

    spool, _ = served
    assert spool.settings.http
    app = make_app(spool.settings, spool.settings.http, spool, dict)
    below = {(route.path, *sorted(route.methods)) for route in app.routes if "{object}" in route.path}  # type: ignore[attr-defined]
    assert below == {
        ("/quarantine/{object}", "GET", "HEAD"),
        ("/quarantine/{object}/picture.png", "GET", "HEAD"),
        ("/quarantine/{object}/nearest.png", "GET", "HEAD"),
        ("/quarantine/{object}/release", "POST"),
        ("/quarantine/{object}/discard", "POST"),
    }


@pytest.mark.parametrize("address", WAYS_TO_LOOK)
def test_the_line_is_on_disk_before_the_first_byte_is_sent(address: str, served: Served) -> None:
    """The file itself, not what is pending in the database: nothing else flushes it here."""
    spool, client = served
    held = spool.list([State.QUARANTINED])[0].id
    spool.audit.flush()
    (path,) = trail_files(spool.settings.audit_folder)
    before = path.stat().st_size
    with client.stream("GET", f"/quarantine/{held}{address}") as answer:
        assert answer.status_code == 200
        line = json.loads(path.read_bytes()[before:])
    assert (line["event"], line["object"]) == ("viewed", held)


@pytest.mark.parametrize("address", WAYS_TO_LOOK)
@pytest.mark.parametrize("broken", ["file", "database", "folder"])
def test_what_cannot_be_traced_is_not_shown(address: str, broken: str, served: Served) -> None:
    spool, client = served
    held = spool.list([State.QUARANTINED])[0].id
    assert client.get(f"/quarantine/{held}/picture.png").status_code == 200  # so the image is in the drawer's memory
    folder = spool.settings.audit_folder
    if broken == "file":
        (path,) = trail_files(folder)
        path.rename(folder / "away")
        path.mkdir()
    elif broken == "folder":
        folder.rename(folder.with_name("away"))
    else:
        spool.database._connection.execute("PRAGMA busy_timeout = 50")
        other = sqlite3.connect(spool.database.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
    answer = client.get(f"/quarantine/{held}{address}")
    assert answer.status_code == 503
    assert PNG not in answer.content
    for secret in (str(CT), "below-threshold", "at-or-above-threshold", "10.0.0.7"):
        assert secret not in answer.text
    assert "nothing is shown" in answer.text
    if broken == "database":
        other.close()
        assert client.get(f"/quarantine/{held}{address}").status_code == 200


def test_looking_at_an_object_of_a_sound_header_names_study_and_patient_by_pseudonym(served: Served) -> None:
    """The same digits as in an index that was built with this site key."""
    from lcmem_onnx.runtime.gateway.dicom_header import read_header
    from lcmem_onnx.runtime.gateway.outcome import Outcome
    from lcmem_onnx.runtime.privacy import SiteKey

    spool, client = served
    stored = spool.put_stream(io.BytesIO(CT.read_bytes() + b" "), Arrival(Source.FOLDER, "x"), 1 << 30)
    header = read_header(spool.files.path(stored.id))
    (item,) = spool.claim("test", 8)
    outcome = Outcome("error", "damaged", "quarantine", study=header.study, identifiers=header.identifiers)
    spool.settle(item, outcome)
    assert client.get(f"/quarantine/{stored.id}").status_code == 200
    said = {line["event"]: line for line in audit(spool) if line.get("object") == stored.id}
    dataset = dcmread(CT)
    key = SiteKey.open(spool.settings.site_key)
    for event in ("screened", "viewed"):
        assert said[event]["study"] == key.study(dataset.StudyInstanceUID)[:32]
        assert said[event]["patient"] == key.patient(dataset.PatientID)[:32]
    for secret in (dataset.StudyInstanceUID, dataset.PatientID):
        assert secret not in json.dumps(said)


# -- the command line ------------------------------------------------------------------------------------------------------


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[tuple[Spool, str, list[str]]]:
    """A spool with an object in quarantine, its id, and the option that names its configuration."""
    config = write_example(tmp_path / "gateway")
    text = config.read_text(encoding="utf-8").replace("min_free_mb = 2048", "min_free_mb = 1")
    config.write_text(text, encoding="utf-8")
    with Spool(read_config(config)) as spool:
        held = hold(spool)
        spool.audit.flush()
        yield spool, held, ["--config", str(config)]


SHOWING = (["show", "ID"], ["show", "ID", "--json"], ["list", "--json"])


def run(arguments: list[str], held: str, option: list[str]) -> Any:
    return CliRunner().invoke(main, ["gateway", "quarantine", *(held if part == "ID" else part for part in arguments), *option])


@pytest.mark.parametrize("arguments", SHOWING)
def test_a_command_that_shows_details_leaves_a_line(arguments: list[str], configured: tuple[Spool, str, list[str]]) -> None:
    spool, held, option = configured
    shown = run(arguments, held, option)
    assert shown.exit_code == 0
    assert str(CT) in shown.output.replace("\n", "")
    (line,) = [line for line in audit(spool) if line["event"] == "viewed"]
    assert (line["object"], line["sop_instance"]) == (held, spool.site_key.short("uid", CT_UID))
    assert (line["who"], line["address"], line["what"]) == (current_user(), socket.gethostname(), "details")
    assert verify_trail(spool.database, spool.settings.audit_folder).whole


def test_a_list_without_details_leaves_none(configured: tuple[Spool, str, list[str]]) -> None:
    spool, held, option = configured
    shown = run(["list"], held, option)
    assert shown.output.startswith(held)
    assert str(CT) not in shown.output
    assert not [line for line in audit(spool) if line["event"] == "viewed"]


@pytest.mark.parametrize("arguments", SHOWING)
def test_a_command_shows_nothing_that_cannot_be_traced(arguments: list[str], configured: tuple[Spool, str, list[str]]) -> None:
    spool, held, option = configured
    (path,) = trail_files(spool.settings.audit_folder)
    path.rename(path.with_name("away"))
    path.mkdir()
    refused = run(arguments, held, option)
    assert refused.exit_code == 2
    assert "audit trail" in refused.output
    for secret in (str(CT), "at-or-above-threshold", "10.0.0.7"):
        assert secret not in refused.output.replace("\n", "")


@pytest.mark.parametrize("decision", ["release", "discard"])
def test_a_decision_says_where_it_was_made(decision: str, configured: tuple[Spool, str, list[str]]) -> None:
    spool, held, option = configured
    assert run([decision, "ID", *(["--to", "archive"] if decision == "release" else [])], held, option).exit_code == 0
    line = audit(spool)[-1]
    assert line["event"] == {"release": "released", "discard": "discarded"}[decision]
    assert (line["who"], line["address"]) == (current_user(), socket.gethostname())
