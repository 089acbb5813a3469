"""The exporter of audit messages as a process of the service: what reaches the collector, kill -9, a garbled trail, an outage."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx2")
pytest.importorskip("pynetdicom")
pytest.importorskip("uvicorn")

from click.testing import CliRunner  # noqa: E402
from lcmem_onnx.cli import main  # noqa: E402
from lcmem_onnx.runtime.gateway.audit_trail import trail_files  # noqa: E402

from .collector import Collector, make_certificate  # noqa: E402
from .dicom_audit_schema import check_message  # noqa: E402
from .gateway_http import CT, DUTY, FORM, MODALITY, MR, message  # noqa: E402
from .gateway_process import Gateway, eventually, example_for_tests  # noqa: E402

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
SETTINGS = """
[http]
port = 0
[[http.caller]]
name = "modality"
token_file = "modality.token"
may = ["store"]
[[http.caller]]
name = "duty"
token_file = "duty.token"
may = ["status", "quarantine"]
[audit.syslog]
host = "127.0.0.1"
port = PORT
source_id = "gw"
summary_seconds = 0.5
max_lag_seconds = 4
[audit.syslog.tls]
ca = "CA"
server_name = "localhost"
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery") / "hospital.index"
    assert CliRunner().invoke(main, ["index", "build", str(CT), "--index", str(folder), "-q"]).exit_code == 0
    return folder


@pytest.fixture
def collector(certificate: Path) -> Iterator[Collector]:
    with Collector(certificate) as opened:
        yield opened


@pytest.fixture
def gateway(tmp_path: Path, index: Path, certificate: Path, collector: Collector) -> Iterator[Gateway]:
    """Started, with HTTP, a collector, and a destination that is away: an object is dead after one attempt."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = closed.getsockname()[1]
    more = SETTINGS.replace("PORT", str(collector.port)).replace("CA", str(certificate / "server.pem"))
    config = example_for_tests(tmp_path / "gateway", index, nowhere, more)
    config.write_text(config.read_text().replace("attempts = 100", "attempts = 1"))
    for name, token in (("modality", MODALITY), ("duty", DUTY)):
        (config.parent / f"{name}.token").write_text(token)
        (config.parent / f"{name}.token").chmod(0o600)
    gateway = Gateway(config)
    yield gateway
    if gateway.process and gateway.process.poll() is None:
        gateway.kill()


def client_of(gateway: Gateway) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{gateway.http_port}", trust_env=False, timeout=30)


def log_in(client: httpx.Client, token: str = DUTY) -> int:
    return client.post("/login", content=f"person=Ada&token={token}", headers=FORM).status_code


def codes(collector: Collector) -> list[str]:
    """Event, type and outcome of each message, all of which the standard's schema and tables allow."""
    said = []
    for sent in collector.messages():
        code = check_message(sent)
        kinds = [str(kind.get("csd-code")) for kind in sent.iter("EventTypeCode")]
        identification = sent.find("EventIdentification")
        assert identification is not None
        said.append(" ".join([code, *kinds, str(identification.get("EventOutcomeIndicator"))]))
    return said


def test_the_collector_hears_of_everything_and_of_the_end(gateway: Gateway, collector: Collector) -> None:
    gateway.start()
    with client_of(gateway) as client:
        assert log_in(client, "wrong") == 401
        assert log_in(client) == 303
        content, headers = message(CT.read_bytes(), MR.read_bytes())
        assert client.post("/studies", content=content, headers=headers).status_code == 200
        eventually(lambda: gateway.counts()["dead"] == 1 and gateway.counts()["quarantined"] == 1)
        (held,) = re.findall(r"/quarantine/([0-9a-f]{32})", client.get("/").text)
        for address in ("", "/picture.png", "/nearest.png"):
            assert client.get(f"/quarantine/{held}{address}").status_code == 200
        eventually(lambda: codes(collector).count("110103 0") >= 4)
        ready = client.get("/readyz")
        assert (ready.status_code, "ok audit collector\n" in ready.text) == (200, True)
    assert gateway.stop() == 0
    eventually(lambda: "110100 110121 0" in codes(collector))
    assert sorted(codes(collector)) == sorted(
        [
            "110100 110120 0",  # started
            "110114 110122 4",  # the wrong token
            "110114 110122 0",  # the right one
            "110107 0",  # both objects came
            "110107 0",
            "110113 110135 4",  # one was held
            "110103 0",  # one was clear, told for its study
            "110106 8",  # and could not be forwarded
            "110103 0",  # the page, and both images
            "110103 0",
            "110103 0",
            "110100 110121 0",  # stopped
        ]
    )
    assert gateway.run("audit", "verify").exit_code == 0


@pytest.mark.slow
def test_the_exporter_is_started_again_and_takes_up_where_it_was(gateway: Gateway, collector: Collector) -> None:
    gateway.start()
    with client_of(gateway) as client:
        eventually(lambda: len(collector.raw) == 1)
        for turn in range(1, 4):
            os.kill(int(gateway.said("part-started", name="syslog")[-1]["pid"]), signal.SIGKILL)
            assert log_in(client) == 303
            eventually(lambda: codes(collector).count("110114 110122 0") == turn)  # noqa: B023
            eventually(lambda: len(gateway.said("part-started", name="syslog")) == turn + 1)  # noqa: B023
            assert client.get("/readyz").status_code == 200
    assert gateway.stop() == 0


@pytest.mark.slow
def test_a_garbled_trail_stops_neither_the_service_nor_the_exporter(gateway: Gateway, collector: Collector) -> None:
    """The NUL tail of a power cut, with everything killed at once; and then garbage while the service runs."""
    gateway.start()
    eventually(lambda: len(collector.raw) == 1)
    gateway.kill()
    (path,) = trail_files(gateway.settings.audit_folder)
    with open(path, "ab") as file:
        file.write(bytes(4096))
    gateway.start()
    with client_of(gateway) as client:
        eventually(lambda: codes(collector).count("110100 110120 0") == 2)
        assert gateway.run("audit", "verify").exit_code == 0
        assert b"\0" not in path.read_bytes()
        with open(path, "ab") as file:
            file.write(b'{"seq": 9' + bytes(100) + b"\n\xff\xff\n")
        assert log_in(client) == 303
        eventually(lambda: "110114 110122 0" in codes(collector))
        eventually(lambda: "110113 110134 4" in codes(collector))  # the damage itself
        assert client.get("/readyz").status_code == 200
        assert len(gateway.said("part-started", name="syslog")) == 2  # once a start: it did not die of it
    assert gateway.stop() == 0
    problems = gateway.run("audit", "verify")
    assert problems.exit_code == 2
    assert f"{path.name} line" in problems.output


@pytest.mark.slow
def test_readyz_says_when_the_collector_is_away_and_when_it_is_back(
    gateway: Gateway, collector: Collector, certificate: Path
) -> None:
    gateway.start()
    with client_of(gateway) as client:
        eventually(lambda: len(collector.raw) == 1)
        collector.close()
        assert log_in(client) == 303
        eventually(lambda: "degraded audit collector" in client.get("/readyz").text)
        assert client.get("/readyz").status_code == 200
        eventually(lambda: client.get("/readyz").status_code == 503)
        said = client.get("/readyz").text
        assert re.search(r"^not ok audit collector: \d+ lines wait for the collector, the oldest for \d+ s \(.*\)$", said, re.M)
        assert "not ready: audit collector" in client.get("/").text
        assert "not ok" in gateway.run("status").output
        with Collector(certificate, collector.port) as back:
            eventually(lambda: client.get("/readyz").status_code == 200)
            eventually(lambda: "110114 110122 0" in codes(back))
            assert gateway.stop() == 0


def test_nothing_of_the_working_directory_is_run(gateway: Gateway, collector: Collector, tmp_path: Path) -> None:
    """The whole service, as systemd starts it, in a folder that somebody else has written to."""
    command = shutil.which("lcmem-onnx", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("the package's command is not installed beside this Python")
    planted = tmp_path / "planted"
    planted.mkdir()
    for name in ("json", "logging", "pickle", "lcmem_onnx", "pydicom", "numpy", "uvicorn", "lcmem_onnx_evil", "sitecustomize"):
        (planted / f"{name}.py").write_text(f"open({str(planted / name)!r} + '.ran', 'w').close()\nraise SystemExit(7)\n")
    gateway.command, gateway.folder = [command], planted
    gateway.start()
    with client_of(gateway) as client:
        assert log_in(client) == 303
        content, headers = message(CT.read_bytes())
        assert client.post("/studies", content=content, headers=headers).status_code == 200
        eventually(lambda: gateway.counts()["quarantined"] == 1)
        (held,) = re.findall(r"/quarantine/([0-9a-f]{32})", client.get("/").text)
        assert client.get(f"/quarantine/{held}/picture.png").status_code == 200
        eventually(lambda: "110103 0" in codes(collector))
    assert gateway.stop() == 0
    assert [path.name for path in planted.glob("*.ran")] == []
    assert not gateway.said("part-ended")


def test_a_flusher_that_died_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that writes the trail's file, in this process: an error that nobody foresaw ends it, and another goes on."""
    from lcmem_onnx.runtime.gateway import supervisor
    from lcmem_onnx.runtime.gateway.audit_trail import AuditTrail
    from lcmem_onnx.runtime.gateway.settings import Settings, SpoolSettings
    from lcmem_onnx.runtime.gateway.spool import Spool
    from lcmem_onnx.runtime.gateway.supervisor import Service

    from .gateway_http import gateway_settings

    monkeypatch.setattr(supervisor, "TROUBLE_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "needed_workers", lambda settings: [])
    configured = gateway_settings(tmp_path)
    settings = Settings(spool=SpoolSettings(configured.spool.folder, min_free_mb=1), site_key=configured.site_key)
    flush, failures = AuditTrail.flush, iter([RuntimeError("unforeseen"), MemoryError(), RecursionError()])

    def failing(trail: AuditTrail) -> int:
        if threading.current_thread().name == "audit" and (error := next(failures, None)):
            raise error
        return flush(trail)

    monkeypatch.setattr(AuditTrail, "flush", failing)
    service = Service(settings)
    with Spool(settings) as spool:
        spool.audit.note("started")
        thread = threading.Thread(target=service._supervise, args=(spool, 0))
        thread.start()
        try:
            eventually(lambda: bool(trail_files(settings.audit_folder)))
        finally:
            service.stop()
            thread.join(10)
    assert next(failures, None) is None


def test_a_database_in_trouble_ends_neither_the_supervisor_nor_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lcmem_onnx.runtime.errors import GatewayError
    from lcmem_onnx.runtime.gateway import supervisor
    from lcmem_onnx.runtime.gateway.settings import Settings, SpoolSettings
    from lcmem_onnx.runtime.gateway.spool import Spool
    from lcmem_onnx.runtime.gateway.supervisor import Service

    from .gateway_http import gateway_settings

    monkeypatch.setattr(supervisor, "TROUBLE_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "needed_workers", lambda settings: ["screen"])
    configured = gateway_settings(tmp_path)
    settings = Settings(spool=SpoolSettings(configured.spool.folder, min_free_mb=1), site_key=configured.site_key)
    troubles = iter([GatewayError("database is locked"), GatewayError("database or disk is full"), OSError("no process")])
    turns: list[str] = []

    def keep_running(service: Service, name: str, spool: Spool, lock: int) -> None:
        turns.append(name)
        if error := next(troubles, None):
            raise error

    monkeypatch.setattr(Service, "_keep_running", keep_running)
    service = Service(settings)
    with Spool(settings) as spool:
        thread = threading.Thread(target=service._supervise, args=(spool, 0))
        thread.start()
        try:
            eventually(lambda: len(turns) > 5)
            assert thread.is_alive()
        finally:
            service.stop()
            thread.join(10)


def test_what_a_library_prints_does_not_make_a_part_unready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its standard output is where it says that it is ready; a part that prints on goes on, since somebody reads it."""
    import subprocess
    import time

    from lcmem_onnx.runtime.gateway import supervisor
    from lcmem_onnx.runtime.gateway.supervisor import Service, _Child

    from .gateway_http import gateway_settings

    monkeypatch.setattr(supervisor, "needed_workers", lambda settings: ["screen"])
    settings = gateway_settings(tmp_path)
    settings.spool.folder.mkdir()
    program = "print('Warning: a banner', 7, sep='\\n'); print('{\"port\": 5}'); print('x' * 1000000)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    service, child = Service(settings), _Child("screen", process, "owner", time.monotonic())
    service._children["screen"] = child
    service._listen(child)
    assert process.wait(10) == 0
    assert (child.ready, child.facts) == (True, {"port": 5})
    assert '"port": 5' in (settings.spool.folder / supervisor.RUNNING).read_text()
