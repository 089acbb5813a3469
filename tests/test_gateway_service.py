"""The whole service as a process: objects in over the network, out over the network, and kill -9 in between."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pynetdicom = pytest.importorskip("pynetdicom")

from click.testing import CliRunner  # noqa: E402
from lcmem_onnx.cli import main  # noqa: E402
from lcmem_onnx.runtime.gateway import c_store_scu, supervisor  # noqa: E402
from lcmem_onnx.runtime.gateway.audit_trail import trail_files  # noqa: E402
from lcmem_onnx.runtime.gateway.c_store_scp import Receiver  # noqa: E402
from lcmem_onnx.runtime.gateway.c_store_scu import StoreScu  # noqa: E402
from lcmem_onnx.runtime.gateway.delivery_queue import Deliveries  # noqa: E402
from lcmem_onnx.runtime.gateway.forwarder import Forwarder  # noqa: E402
from lcmem_onnx.runtime.gateway.outcome import Outcome  # noqa: E402
from lcmem_onnx.runtime.gateway.settings import (  # noqa: E402
    Destination,
    ReceiveSettings,
    Retry,
    ScreenSettings,
    Settings,
    SpoolSettings,
)
from lcmem_onnx.runtime.gateway.spool import Arrival, Source, Spool, State  # noqa: E402
from lcmem_onnx.runtime.gateway.supervisor import Service, _Child  # noqa: E402
from lcmem_onnx.runtime.privacy import create_site_key  # noqa: E402
from pydicom import dcmread  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402
from pynetdicom import AE, _config  # noqa: E402

from .gateway_process import Gateway, eventually, example_for_tests  # noqa: E402

# pynetdicom's client leaves sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
)

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
CT = EXAMPLES / "gallery" / "ct-slice.dcm"
MR = EXAMPLES / "queries" / "other-mr-slice.dcm"


@pytest.fixture(autouse=True)
def library_switches() -> Iterator[None]:
    """A receiver sets pynetdicom's switches for its process, which here is everybody's."""
    names = ("LOG_HANDLER_LEVEL", "STORE_RECV_CHUNKED_DATASET", "STORE_SEND_CHUNKED_DATASET", "UNRESTRICTED_STORAGE_SERVICE")
    before = {name: getattr(_config, name) for name in names}
    folder = tempfile.tempdir
    yield
    gc.collect()
    tempfile.tempdir = folder
    for name, value in before.items():
        setattr(_config, name, value)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Receiver]:
    """Where things are forwarded to: another receiver, which only stores."""
    folder = tmp_path / "archive"
    folder.mkdir()
    create_site_key(folder / "site.key")
    settings = ReceiveSettings(port=0, aet="ARCHIVE", calling_aets=("LCMEM",))
    with Spool(
        Settings(spool=SpoolSettings(folder / "spool", min_free_mb=1), site_key=folder / "site.key", receive=settings)
    ) as spool:
        receiver = Receiver(settings, spool)
        receiver.start()
        yield receiver
        receiver.stop(grace=0.2)
        eventually(lambda: empty(receiver))


def empty(receiver: Receiver) -> bool:
    receiver.connections.sweep()
    return len(receiver.connections) == 0


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery") / "hospital.index"
    assert CliRunner().invoke(main, ["index", "build", str(EXAMPLES / "gallery"), "--index", str(folder), "-q"]).exit_code == 0
    return folder


@pytest.fixture
def gateway(tmp_path: Path, archive: Receiver, index: Path) -> Iterator[Gateway]:
    gateway = Gateway(example_for_tests(tmp_path / "gateway", index, archive.port))
    yield gateway
    if gateway.process and gateway.process.poll() is None:
        gateway.kill()


def numbered(folder: Path, number: int) -> Path:
    """A harmless object of its own."""
    dataset = dcmread(MR)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{number}"
    path = folder / f"{number}.dcm"
    dataset.save_as(path)
    return path


def store(port: int, *paths: Path) -> list[int | None]:
    """Statuses; None for what was not answered."""
    entity = AE(ae_title="STORESCU")
    for path in paths:
        meta = dcmread(path, stop_before_pixels=True).file_meta
        entity.add_requested_context(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
    association = entity.associate("127.0.0.1", port, ae_title="LCMEM")
    statuses: list[int | None] = []
    for path in paths:
        try:
            statuses.append(association.send_c_store(path).get("Status") if association.is_established else None)
        except (OSError, RuntimeError, ValueError):
            statuses.append(None)
    if association.is_established:
        association.release()
    return statuses


def events(settings: Settings) -> list[dict[str, Any]]:
    return [json.loads(line) for path in trail_files(settings.audit_folder) for line in path.read_text().splitlines()]


def test_the_whole_way(gateway: Gateway, archive: Receiver) -> None:
    gateway.start()
    os.kill(gateway.part("screen"), signal.SIGKILL)  # hostile pixels may do that: it is started again, and nobody notices
    assert store(gateway.port, CT, MR) == [0, 0]
    eventually(lambda: gateway.counts()[State.FORWARDED] == 1 and gateway.counts()[State.QUARANTINED] == 1)
    (arrived,) = archive._spool.list([State.RECEIVED])
    assert arrived.sop_instance == dcmread(MR).SOPInstanceUID
    assert dcmread(archive._spool.files.path(arrived.id)) == dcmread(MR)

    assert "process" in gateway.run("status").output
    (held,) = (json.loads(line) for line in gateway.run("quarantine", "list", "--json").output.splitlines())
    assert held["reason"] == "at-or-above-threshold"
    shown = gateway.run("quarantine", "show", held["id"][:10])
    assert "ct-slice.dcm frame 0" in shown.output.replace("\n", "")
    assert gateway.run("quarantine", "release", held["id"]).exit_code == 0
    eventually(lambda: gateway.counts()[State.FORWARDED] == 2)
    assert len(archive._spool.list([State.RECEIVED])) == 2
    assert gateway.stop() == 0

    assert gateway.run("audit", "verify").exit_code == 0
    said = events(gateway.settings)
    assert [line["event"] for line in said if line["event"] in ("started", "stopped")] == ["started", "stopped"]
    assert [line["who"] for line in said if line["event"] == "released"]
    everything = gateway.log.read_text() + "".join(json.dumps(line) for line in said)
    for path in (CT, MR):
        dataset = dcmread(path)
        for secret in (dataset.SOPInstanceUID, str(dataset.PatientName), str(dataset.PatientID), dataset.StudyInstanceUID):
            assert not secret or secret not in everything
    assert str(EXAMPLES) not in everything  # the gallery's keys are paths, and may name patients
    assert all(json.loads(line)["event"] for line in gateway.log.read_text().splitlines())
    assert gateway.run("status").output.splitlines()[0].split() == ["running", "no"]


def test_nothing_is_lost_or_doubled_by_kill_9(gateway: Gateway, archive: Receiver, tmp_path: Path) -> None:
    """The sender sends each object until it is acknowledged, as modalities do; the service dies twice on the way."""
    paths = [numbered(tmp_path, number) for number in range(12)]
    todo = list(paths)
    for round_ in range(3):
        gateway.start()
        # The first time everything at once; the second time the supervisor alone, whose parts then end by themselves.
        killer = threading.Timer(0.15 + 0.2 * round_, gateway.kill if round_ == 0 else gateway.process_of_service().kill)
        if round_ < 2:
            killer.start()
        for path in list(todo):
            if store(gateway.port, path) == [0]:
                todo.remove(path)
        if round_ < 2:
            killer.join()
    assert not todo
    eventually(lambda: gateway.counts()[State.FORWARDED] == len(paths))
    assert gateway.stop() == 0
    assert gateway.run("audit", "verify").exit_code == 0
    arrived = [item.sop_instance for item in archive._spool.list([State.RECEIVED], 1000)]
    assert sorted(arrived) == sorted(str(dcmread(path).SOPInstanceUID) for path in paths)
    forwarded = [line["sop_instance"] for line in events(gateway.settings) if line["event"] == "forwarded"]
    assert len(forwarded) == len(set(forwarded)) == len(paths)


# -- forwarding, in this process -----------------------------------------------------------------------------------------


@pytest.fixture
def sending(tmp_path: Path, archive: Receiver) -> Iterator[tuple[Spool, Forwarder]]:
    create_site_key(tmp_path / "site.key")
    destination = Destination("archive", host="127.0.0.1", port=archive.port, aet="ARCHIVE", timeout_seconds=5)
    settings = Settings(
        spool=SpoolSettings(tmp_path / "spool", min_free_mb=1),
        site_key=tmp_path / "site.key",
        destination=(destination,),
        retry=Retry(first_seconds=1e-6, attempts=3),
    )
    with Spool(settings) as spool:
        yield spool, Forwarder(destination, spool, StoreScu(destination))


def screened(spool: Spool, *paths: Path) -> list[str]:
    ids = []
    for path in paths:
        with open(path, "rb") as file:
            ids.append(spool.put_stream(file, Arrival(Source.FOLDER), 1 << 30).id)
    for item in spool.claim("test", 1000):
        spool.settle(item, Outcome("clear", "below-threshold", "forward", ("archive",)))
    return ids


def test_objects_keep_their_transfer_syntax(sending: tuple[Spool, Forwarder], archive: Receiver) -> None:
    spool, forwarder = sending
    names = ["JPEG2000.dcm", "MR_small_RLE.dcm", "JPGExtended.dcm", "image_dfl.dcm", "MR_small_bigendian.dcm"]
    paths = [Path(str(get_testdata_file(name))) for name in names]
    screened(spool, *paths)
    assert forwarder.send_due() == len(paths)
    assert spool.counts()[State.FORWARDED] == len(paths)
    arrived = archive._spool.list([State.RECEIVED])
    wanted = {dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for path in paths}
    assert {item.transfer_syntax for item in arrived} == wanted
    assert {item.data_sha256 for item in arrived} == {item.data_sha256 for item in spool.list([State.FORWARDED])}
    assert not spool.files.ids()


def test_more_kinds_than_an_association_holds(
    sending: tuple[Spool, Forwarder], archive: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(c_store_scu, "CONTEXTS", 2)
    spool, forwarder = sending
    for number in range(5):
        dataset = dcmread(MR)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = f"1.2.826.0.1.3680043.9.9999.{number}"
        dataset.save_as(tmp_path / f"{number}.dcm")
    screened(spool, *(tmp_path / f"{number}.dcm" for number in range(5)))
    assert [forwarder.send_due() for _ in range(4)] == [2, 2, 1, 0]
    assert len(archive._spool.list([State.RECEIVED])) == 5


def test_what_names_no_syntax_does_not_stop_the_others(sending: tuple[Spool, Forwarder], archive: Receiver, tmp_path: Path) -> None:
    """No DICOM file at all, held for that and released by a person."""
    spool, forwarder = sending
    (tmp_path / "text").write_bytes(b"no DICOM file" * 100)
    bad, good = screened(spool, tmp_path / "text", CT)
    assert forwarder.send_due() == 2
    assert Deliveries(spool).failures(bad) == [("archive", "dead", 1, "malformed-uid")]
    assert spool.get(good).state is State.FORWARDED


def test_an_archive_that_is_away_is_tried_again_and_then_dead(sending: tuple[Spool, Forwarder], archive: Receiver) -> None:
    spool, forwarder = sending
    archive.stop(grace=0)
    (object_id,) = screened(spool, MR)
    assert forwarder.send_due() == 1
    assert Deliveries(spool).failures(object_id) == [("archive", "pending", 1, "no-connection")]
    for _ in range(2):
        time.sleep(0.01)
        forwarder.send_due()
    assert spool.get(object_id).state is State.DEAD
    assert spool.files.path(object_id).exists()


def test_an_archive_that_takes_no_such_syntax_says_so(tmp_path: Path) -> None:
    from lcmem_onnx.runtime.gateway.delivery_queue import Delivery
    from pynetdicom.ae import ApplicationEntity

    create_site_key(tmp_path / "site.key")
    entity = ApplicationEntity(ae_title="ARCHIVE")
    entity.add_supported_context("1.2.840.10008.1.1")
    server = entity.start_server(("127.0.0.1", 0), block=False)
    try:
        destination = Destination("archive", host="127.0.0.1", port=server.server_address[1], aet="ARCHIVE", timeout_seconds=5)
        with Spool(Settings(spool=SpoolSettings(tmp_path / "spool", min_free_mb=1), site_key=tmp_path / "site.key")) as spool:
            (object_id,) = screened(spool, MR)
            sent = StoreScu(destination).send([(Delivery(spool.get(object_id), "archive", 0), spool.files.path(object_id))])
            assert [answer.status for _, answer in sent] == ["no-presentation-context"]
    finally:
        server.shutdown()


def test_an_archive_that_is_full_is_tried_again(
    sending: tuple[Spool, Forwarder], archive: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, forwarder = sending
    monkeypatch.setattr(archive._spool, "has_room", lambda: False)
    (object_id,) = screened(spool, MR)
    forwarder.send_due()
    assert Deliveries(spool).failures(object_id) == [("archive", "pending", 1, "0xA700")]
    monkeypatch.undo()
    time.sleep(0.01)
    forwarder.send_due()
    assert spool.get(object_id).state is State.FORWARDED


@pytest.mark.parametrize(
    ("before", "after"), [(b"\x00" * 6, b"\x00" * 5 + b"\7"), (b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0")]
)
def test_what_was_changed_after_its_screening_goes_nowhere(
    sending: tuple[Spool, Forwarder], archive: Receiver, before: bytes, after: bytes
) -> None:
    """Its data set, or the syntax by which archives would read it."""
    spool, forwarder = sending
    (object_id,) = screened(spool, MR)
    path = spool.files.path(object_id)
    head, found, tail = path.read_bytes()[132:].partition(before)
    assert found
    path.write_bytes(path.read_bytes()[:132] + head + after + tail)
    forwarder.send_due()
    assert spool.get(object_id).state is State.QUARANTINED
    assert spool.get(object_id).reason == "changed-on-disk"
    assert not archive._spool.list(State)


# -- the supervisor, in this process -------------------------------------------------------------------------------------


def test_a_screening_that_takes_too_long_is_ended_and_its_object_held(tmp_path: Path) -> None:
    create_site_key(tmp_path / "site.key")
    settings = Settings(
        spool=SpoolSettings(tmp_path / "spool", min_free_mb=1), site_key=tmp_path / "site.key", screen=ScreenSettings(1e-6)
    )
    service = Service(settings)
    with Spool(settings) as spool:
        with open(MR, "rb") as file:
            object_id = spool.put_stream(file, Arrival(Source.FOLDER), 1 << 30).id
        for expected in (State.RECEIVED, State.QUARANTINED):
            stuck = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            service._children["screen"] = _Child("screen", stuck, "stuck", time.monotonic())
            assert spool.claim("stuck", 1)
            time.sleep(0.01)
            service._end_overdue(spool)
            assert stuck.poll() == -signal.SIGKILL
            assert spool.get(object_id).state is expected
        assert spool.get(object_id).reason == "timed-out"


def test_a_second_service_is_refused(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOCK_SECONDS", 0.3)
    gateway.settings.spool.folder.mkdir()
    with open(gateway.settings.spool.folder / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = gateway.run("run")
    assert refused.exit_code == 2
    assert "another gateway" in refused.output


def test_what_cannot_work_is_not_begun(gateway: Gateway) -> None:
    gateway.settings.site_key.chmod(0o644)
    refused = gateway.run("run")
    assert refused.exit_code == 2
    assert "chmod 600" in refused.output


def test_without_the_extra_it_says_which(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    refused = gateway.run("run")
    assert refused.exit_code == 2
    assert "lcmem-onnx[gateway]" in refused.output
