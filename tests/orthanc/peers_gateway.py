"""The whole gateway between real peers: Orthanc stores to it and gets from it what is clear; DCMTK's tools call it too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2 as httpx
import pydicom
import pytest
from lcmem_onnx.runtime.privacy import create_site_key

ORTHANC = "http://127.0.0.1:18042"
USER = ("tester", "only-for-tests")
TOKEN = "t" * 40
HTTP_PORT = 18080
EXAMPLES = Path(__file__).parent.parent.parent / "examples"
CT = EXAMPLES / "pictures" / "gallery" / "ct-slice.dcm"
MR = EXAMPLES / "pictures" / "queries" / "other-mr-slice.dcm"
MR_UID = "1.3.6.1.4.1.5962.1.1.4.1.1.20040826185059.5457"
GATEWAY = [sys.executable, "-m", "lcmem_onnx.cli", "gateway"]
CONFIG = f"""
site_key = "site.key"
[spool]
folder = "spool"
min_free_mb = 1
[receive]
aet = "LCMEM"
port = 14244
calling_aets = ["ORTHANC", "STORESCU", "ECHOSCU"]
[http]
port = {HTTP_PORT}
[[http.caller]]
name = "orthanc"
token_file = "orthanc.token"
may = ["store", "screen", "status"]
[[gallery]]
name = "patients"
index = "index"
[[destination]]
name = "archive"
host = "127.0.0.1"
port = 14242
aet = "ORTHANC"
[[destination]]
name = "web"
kind = "stow"
url = "http://127.0.0.1:14280/dicom-web"
[[rule]]
name = "over the web"
gallery = "patients"
source = ["stow"]
forward_to = ["web"]
[[rule]]
name = "all"
gallery = "patients"
forward_to = ["archive"]
[retry]
first_seconds = 0.2
longest_seconds = 1.0
"""


def until(done: Callable[[], object], seconds: float = 60.0) -> object:
    """What `done` gives when that is something."""
    deadline = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gateway's folder, its index filled from the Orthanc that held the slice first."""
    folder = tmp_path_factory.mktemp("gateway")
    create_site_key(folder / "site.key")
    (folder / "orthanc.token").write_text(TOKEN)
    (folder / "orthanc.token").chmod(0o600)
    (folder / "gateway.toml").write_text(CONFIG)
    with httpx.Client(base_url=ORTHANC, auth=USER, trust_env=False, timeout=30) as client:
        client.post("/instances", content=CT.read_bytes()).raise_for_status()
        environment = {
            **os.environ,
            "LCMEM_ONNX_SITE_KEY": str(folder / "site.key"),
            "LCMEM_ONNX_ARCHIVE_USER": USER[0],
            "LCMEM_ONNX_ARCHIVE_PASSWORD": USER[1],
        }
        command = [sys.executable, "-m", "lcmem_onnx.cli", "index", "build", "--from-orthanc", ORTHANC, "-q"]
        subprocess.run([*command, "--index", str(folder / "index")], check=True, env=environment)
        for patient in client.get("/patients").json():
            client.delete(f"/patients/{patient}").raise_for_status()
    return folder


@pytest.fixture(scope="module")
def gateway(folder: Path) -> Iterator[Path]:
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([*GATEWAY, "run", "--config", str(folder / "gateway.toml")], stderr=log)
    try:
        until(lambda: (folder / "spool" / "running.json").exists() or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield folder
    finally:
        process.terminate()
        process.wait(30)
    assert process.returncode == 0
    assert b"1.3.6.1.4.1" not in (folder / "log").read_bytes()  # no raw UID in the logs


@pytest.fixture
def orthanc() -> Iterator[httpx.Client]:
    with httpx.Client(base_url=ORTHANC, auth=USER, trust_env=False, timeout=60) as client:
        yield client


def uids(orthanc: httpx.Client) -> set[str]:
    return {item["MainDicomTags"]["SOPInstanceUID"] for item in orthanc.get("/instances?expand").json()}


def held(folder: Path) -> list[dict[str, object]]:
    command = [*GATEWAY, "quarantine", "list", "--config", str(folder / "gateway.toml"), "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return [json.loads(line) for line in finished.stdout.splitlines()]


def copy_of_ct(folder: Path) -> tuple[Path, str]:
    """The slice as an anonymiser leaves it: other UIDs, no window, brighter."""
    dataset = pydicom.dcmread(CT)
    for keyword in ("WindowCenter", "WindowWidth"):
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.PatientName, dataset.PatientID = "", "anonymous"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid = "2.25.4711"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.4712", "2.25.4713"
    path = folder / "copy.dcm"
    dataset.save_as(path)
    return path, uid


def test_echoscu_is_answered_and_strangers_are_not(gateway: Path) -> None:
    assert (
        subprocess.run(["/usr/bin/echoscu", "-aet", "ECHOSCU", "-aec", "LCMEM", "127.0.0.1", "14244"], check=False).returncode == 0
    )
    for arguments in (["-aet", "STRANGER", "-aec", "LCMEM"], ["-aet", "ECHOSCU", "-aec", "OTHER"]):
        stranger = subprocess.run(["/usr/bin/echoscu", *arguments, "127.0.0.1", "14244"], capture_output=True, check=False)
        assert stranger.returncode != 0


def test_orthanc_stores_the_clear_comes_back_and_the_copy_is_held(gateway: Path, orthanc: httpx.Client) -> None:
    copy, uid = copy_of_ct(gateway)
    ids = [orthanc.post("/instances", content=path.read_bytes()).json()["ID"] for path in (copy, MR)]
    sent = orthanc.post("/modalities/gateway/store", json={"Resources": ids})
    assert sent.status_code == 200, sent.text
    for patient in orthanc.get("/patients").json():
        orthanc.delete(f"/patients/{patient}").raise_for_status()
    until(lambda: uids(orthanc) == {MR_UID})
    (item,) = until(lambda: held(gateway))  # type: ignore[misc]
    assert item["verdict"] == "match"
    time.sleep(1.0)  # it might still come
    assert uid not in uids(orthanc)


def test_storescu_stores(gateway: Path, orthanc: httpx.Client) -> None:
    dataset = pydicom.dcmread(MR)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.815"
    dataset.save_as(gateway / "mr.dcm")
    command = ["/usr/bin/storescu", "-aet", "STORESCU", "-aec", "LCMEM", "127.0.0.1", "14244", str(gateway / "mr.dcm")]
    assert subprocess.run(command, check=False).returncode == 0
    until(lambda: "2.25.815" in uids(orthanc))


def test_orthancs_own_stow_client_gets_its_answer(gateway: Path, orthanc: httpx.Client) -> None:
    """Orthanc's plugin reads the response data set, and fails the job where an object is not in it. What it sends is held or,
    being clear, would go by STOW to a destination that is not there: it waits, and is not lost."""
    server = {"Url": f"http://127.0.0.1:{HTTP_PORT}/", "HttpHeaders": {"Authorization": f"Bearer {TOKEN}"}}
    orthanc.put("/dicom-web/servers/gateway", json=server).raise_for_status()
    dataset = pydicom.dcmread(MR)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.816"
    dataset.save_as(gateway / "mr.dcm")
    number = orthanc.post("/instances", content=(gateway / "mr.dcm").read_bytes()).json()["ID"]
    answer = orthanc.post("/dicom-web/servers/gateway/stow", json={"Resources": [number], "Synchronous": True})
    assert answer.status_code == 200, answer.text
    with httpx.Client(
        base_url=f"http://127.0.0.1:{HTTP_PORT}", headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False
    ) as client:
        until(lambda: 'deliveries_pending{destination="web"} 1.0' in client.get("/metrics").text)
    server["HttpHeaders"] = {"Authorization": "Bearer wrong"}
    orthanc.put("/dicom-web/servers/gateway", json=server).raise_for_status()
    answer = orthanc.post("/dicom-web/servers/gateway/stow", json={"Resources": [number], "Synchronous": True})
    assert answer.status_code != 200


def test_stow_out_is_taken_by_orthancs_plugin(gateway: Path, orthanc: httpx.Client) -> None:
    from lcmem_onnx.runtime.gateway.config import read_config
    from lcmem_onnx.runtime.gateway.delivery_queue import Delivery
    from lcmem_onnx.runtime.gateway.settings import Destination
    from lcmem_onnx.runtime.gateway.spool import Arrival, Source, Spool
    from lcmem_onnx.runtime.gateway.stow_client import StoreWeb

    dataset = pydicom.dcmread(MR)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.817"
    dataset.save_as(gateway / "mr.dcm")
    other = gateway / "other"
    other.mkdir()
    create_site_key(other / "site.key")
    (other / "gateway.toml").write_text(CONFIG)
    sender = StoreWeb(Destination("web", "stow", url=f"{ORTHANC}/dicom-web"))
    sender._client.auth = httpx.BasicAuth(*USER)
    with Spool(read_config(other / "gateway.toml")) as spool, open(gateway / "mr.dcm", "rb") as file:
        stored = spool.put_stream(file, Arrival(Source.FOLDER), 1 << 30)
        ((_, answer),) = sender.send([(Delivery(spool.get(stored.id), "web", 0), spool.files.path(stored.id))])
    sender.close()
    assert (answer.taken, answer.status) == (True, "http-200")
    assert "2.25.817" in uids(orthanc)


def test_a_hook_in_orthanc_asks_before_it_forwards(gateway: Path, orthanc: httpx.Client) -> None:
    """examples/gateway_scripts/ask-before-forwarding.lua, run by Orthanc itself: the clear slice goes on to the modality, the copy
    does not."""
    script = (EXAMPLES / "gateway_scripts" / "ask-before-forwarding.lua").read_text(encoding="utf-8")
    script = script.replace('"http://127.0.0.1:8080/v1/screen"', f'"http://127.0.0.1:{HTTP_PORT}/v1/screen"')
    script = script.replace('"/etc/orthanc/lcmem.token"', f'"{gateway}/orthanc.token"').replace('"research"', '"storescu"')
    assert f"{gateway}/orthanc.token" in script
    assert '"storescu"' in script
    assert str(HTTP_PORT) in script
    received = gateway / "received"
    received.mkdir()
    peer = subprocess.Popen(["/usr/bin/storescp", "-aet", "STORESCU", "-od", str(received), "14245"], stderr=subprocess.DEVNULL)
    try:
        assert orthanc.post("/tools/execute-script", content=script.encode()).status_code == 200
        copy, uid = copy_of_ct(gateway)
        dataset = pydicom.dcmread(MR)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.818"
        dataset.save_as(gateway / "mr.dcm")
        for patient in orthanc.get("/patients").json():
            orthanc.delete(f"/patients/{patient}").raise_for_status()
        numbers = {}
        for path in (copy, gateway / "mr.dcm"):
            numbers[path] = orthanc.post("/instances", content=path.read_bytes()).json()["ID"]
        said = {
            path: until(lambda number=number: orthanc.get(f"/instances/{number}/metadata/1024").text, 30)
            for path, number in numbers.items()
        }
        assert said == {copy: "match", gateway / "mr.dcm": "clear"}
        until(lambda: any("2.25.818" in path.name for path in received.iterdir()))
        time.sleep(1.0)
        assert not any(uid in path.name for path in received.iterdir())
    finally:
        orthanc.post("/tools/execute-script", content=b"function OnStoredInstance() end")
        peer.terminate()
        peer.wait()


def test_the_audit_trail_is_whole(gateway: Path) -> None:
    command = [*GATEWAY, "audit", "verify", "--config", str(gateway / "gateway.toml"), "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    text = "".join(path.read_text() for path in (gateway / "spool" / "audit").glob("*.jsonl"))
    assert "2.25.4711" not in text
    assert MR_UID not in text
