"""C-STORE in, with real sockets: good peers are served, whatever others do."""

from __future__ import annotations

import gc
import re
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pynetdicom = pytest.importorskip("pynetdicom")

from lcmem_onnx.runtime.errors import GatewayError  # noqa: E402
from lcmem_onnx.runtime.gateway.c_store_scp import Receiver  # noqa: E402
from lcmem_onnx.runtime.gateway.settings import ReceiveSettings, Settings, SpoolSettings, TlsServer  # noqa: E402
from lcmem_onnx.runtime.gateway.spool import Spool, State  # noqa: E402
from lcmem_onnx.runtime.privacy import create_site_key  # noqa: E402
from pydicom import dcmread  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402
from pynetdicom import AE, _config  # noqa: E402

# pynetdicom's client, which plays the peers here, leaves the sockets of rejected associations to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
)

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
CT = EXAMPLES / "gallery" / "ct-slice.dcm"
MR = EXAMPLES / "queries" / "other-mr-slice.dcm"
BASE = ReceiveSettings(
    port=0, calling_aets=("GOOD", "STORESCU", "ECHOSCU"), opening_seconds=1.0, pdu_seconds=1.5, max_connections=20
)
VERIFICATION = "1.2.840.10008.1.1"


@pytest.fixture(autouse=True)
def library_switches() -> Iterator[None]:
    """A receiver sets pynetdicom's switches for its process, which here is everybody's."""
    names = ("LOG_HANDLER_LEVEL", "STORE_RECV_CHUNKED_DATASET", "STORE_SEND_CHUNKED_DATASET", "UNRESTRICTED_STORAGE_SERVICE")
    before = {name: getattr(_config, name) for name in names}
    folder = tempfile.tempdir
    yield
    gc.collect()  # here, where what it says of the client's sockets is ignored
    tempfile.tempdir = folder
    for name, value in before.items():
        setattr(_config, name, value)


Start = Callable[..., Receiver]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    create_site_key(tmp_path / "site.key")
    running: list[Receiver] = []

    def started(settings: ReceiveSettings = BASE, min_free_mb: int = 1) -> Receiver:
        spool = Spool(
            Settings(
                spool=SpoolSettings(tmp_path / "spool", min_free_mb=min_free_mb), site_key=tmp_path / "site.key", receive=settings
            )
        )
        receiver = Receiver(settings, spool)
        receiver.start()
        running.append(receiver)
        return receiver

    yield started
    for receiver in running:
        receiver.stop(grace=0.2)
        eventually(lambda receiver=receiver: threads_of(receiver) == 0)
        receiver._spool.close()


def threads_of(receiver: Receiver) -> int:
    receiver.connections.sweep()
    return len(receiver.connections)


def eventually(met: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def associate(receiver: Receiver, *kinds: tuple[str, str], aet: str = "GOOD", called: str = "LCMEM", tls: Any = None) -> Any:
    entity = AE(ae_title=aet)
    for sop_class, syntax in kinds or ((VERIFICATION, "1.2.840.10008.1.2"),):
        entity.add_requested_context(sop_class, syntax)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
    more = {"tls_args": (tls, "localhost")} if tls else {}
    return entity.associate("127.0.0.1", receiver.port, ae_title=called, **more)


def echo(receiver: Receiver, **kwargs: Any) -> float:
    """Seconds that a good client's C-ECHO takes, connection and all."""
    began = time.monotonic()
    association = associate(receiver, **kwargs)
    assert association.is_established
    assert association.send_c_echo().Status == 0
    association.release()
    return time.monotonic() - began


def store(receiver: Receiver, *paths: Path) -> list[int]:
    kinds = []
    for path in paths:
        meta = dcmread(path, stop_before_pixels=True).file_meta
        kinds.append((meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID))
    association = associate(receiver, *dict.fromkeys(kinds))
    assert association.is_established
    statuses = [int(association.send_c_store(path).Status) for path in paths]
    association.release()
    return statuses


def connect(receiver: Receiver) -> socket.socket:
    return socket.create_connection(("127.0.0.1", receiver.port), timeout=10)


def closed(peer: socket.socket) -> bool:
    """Whether the other side has closed; what it sent before does not count."""
    peer.settimeout(0.01)
    try:
        while peer.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def request_pdu(called: bytes = b"LCMEM", calling: bytes = b"GOOD", contexts: bytes = b"") -> bytes:
    """An A-ASSOCIATE-RQ by hand (PS3.8 9.3.2)."""

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(content)) + content

    contexts = contexts or item(0x20, b"\1\0\0\0" + item(0x30, VERIFICATION.encode()) + item(0x40, b"1.2.840.10008.1.2"))
    user = item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3.4"))
    body = b"\0\1\0\0" + called.ljust(16) + calling.ljust(16) + bytes(32) + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + user
    return struct.pack(">BxI", 1, len(body)) + body


def opened(receiver: Receiver) -> socket.socket:
    """An association made by hand."""
    peer = connect(receiver)
    peer.sendall(request_pdu())
    assert peer.recv(1) == b"\2"
    peer.recv(4096)
    return peer


def test_an_object_is_stored_as_it_was_sent(start: Start) -> None:
    receiver = start()
    assert store(receiver, CT, MR, CT) == [0, 0, 0]
    items = receiver._spool.list([State.RECEIVED])
    assert len(items) == 2
    for item in items:
        sent = dcmread(CT if item.sop_class.endswith(".2") else MR)
        found = dcmread(receiver._spool.files.path(item.id))
        assert found == sent
        assert (item.sop_instance, item.calling_aet, item.address) == (sent.SOPInstanceUID, "GOOD", "127.0.0.1")
    eventually(lambda: not list(receiver._spool.files.incoming.iterdir()))


@pytest.mark.parametrize(
    "name", ["JPEG2000.dcm", "MR_small_RLE.dcm", "JPGExtended.dcm", "image_dfl.dcm", "MR_small_bigendian.dcm", "reportsi.dcm"]
)
def test_every_syntax_and_class_is_taken(name: str, start: Start) -> None:
    receiver = start()
    path = Path(str(get_testdata_file(name)))
    assert store(receiver, path) == [0]
    (item,) = receiver._spool.list([State.RECEIVED])
    assert item.transfer_syntax == dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
    assert receiver._spool.files.path(item.id).read_bytes()[-1000:] == path.read_bytes()[-1000:]


def test_private_classes_and_syntaxes_are_taken(start: Start, tmp_path: Path) -> None:
    receiver = start()
    dataset = dcmread(MR)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.826.0.1.3680043.9.9999.1"
    dataset.save_as(tmp_path / "private.dcm")
    assert store(receiver, tmp_path / "private.dcm") == [0]


@pytest.mark.filterwarnings("ignore:Invalid value", "ignore:The value length")
def test_a_uid_is_never_a_path(start: Start, tmp_path: Path) -> None:
    uid = dcmread(MR).SOPInstanceUID.encode()
    evil = b"../../../../../../../../../../../../../../tmp/evil"[-len(uid) :].rjust(len(uid), b"/")
    (tmp_path / "evil.dcm").write_bytes(MR.read_bytes().replace(uid, evil))
    receiver = start()
    assert store(receiver, tmp_path / "evil.dcm") == [0]
    (item,) = receiver._spool.list([State.RECEIVED])
    assert item.sop_instance == evil.decode()
    assert re.fullmatch(r"[0-9a-f]{32}\.dcm", receiver._spool.files.path(item.id).name)
    assert receiver._spool.files.path(item.id).exists()


def test_who_may_call(start: Start) -> None:
    receiver = start()
    assert echo(receiver) < 2
    assert associate(receiver, aet="STRANGER").is_rejected
    assert associate(receiver, called="ELSEWHERE").is_rejected


def test_which_addresses_may_call(start: Start) -> None:
    assert echo(start(replace(BASE, addresses=("10.0.0.0/8", "127.0.0.0/8")))) < 2
    receiver = start(replace(BASE, addresses=("10.0.0.0/8", "::1")))
    assert not associate(receiver).is_established
    assert receiver.connections.admits("::ffff:10.1.2.3")
    assert not receiver.connections.admits("::ffff:11.1.2.3")


def test_a_full_disk_is_out_of_resources(start: Start) -> None:
    receiver = start(min_free_mb=10**8)
    assert store(receiver, CT) == [0xA700]
    assert not receiver._spool.list(State)
    eventually(lambda: not list(receiver._spool.files.incoming.iterdir()))


def test_a_defect_is_a_status_and_not_an_exception(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = start()

    def broken(*args: object) -> None:
        raise RuntimeError("Doe^Jane")

    monkeypatch.setattr(receiver._spool, "put_file", broken)
    assert store(receiver, CT) == [0xC000]
    monkeypatch.setattr(receiver._spool, "put_file", lambda *args: (_ for _ in ()).throw(GatewayError("disk full")))
    assert store(receiver, CT) == [0xA700]
    assert echo(receiver) < 2


def test_objects_over_the_limit_end_the_association(start: Start, tmp_path: Path) -> None:
    receiver = start(replace(BASE, max_object_mb=1))
    dataset = dcmread(MR)
    dataset.PixelData = bytes(3 << 20)
    dataset.save_as(tmp_path / "large.dcm")
    meta = dataset.file_meta
    association = associate(receiver, (meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID))
    assert "Status" not in association.send_c_store(tmp_path / "large.dcm")
    eventually(lambda: not list(receiver._spool.files.incoming.iterdir()))
    assert not receiver._spool.list(State)
    assert store(receiver, CT) == [0]


def test_the_limit_on_associations_counts_established_ones(start: Start) -> None:
    receiver = start(replace(BASE, max_associations=2))
    silent = [connect(receiver) for _ in range(5)]
    first, second = associate(receiver), associate(receiver)
    assert first.is_established
    assert second.is_established
    assert associate(receiver).is_rejected
    first.release()
    eventually(lambda: associate(receiver).is_established, 5)
    second.release()
    for peer in silent:
        peer.close()


# -- hostile peers -----------------------------------------------------------------------------------------------------


def test_a_pdu_of_4_gib_is_refused_before_it_is_read(start: Start) -> None:
    receiver = start()
    for peer in (connect(receiver), opened(receiver)):
        peer.sendall(struct.pack(">BxI", 4, 0xFFFFFFFF) + bytes(1 << 16))
        eventually(lambda peer=peer: closed(peer), 3)
    assert echo(receiver) < 2


def test_three_bytes_and_silence_keep_nobody_out(start: Start) -> None:
    receiver = start()
    silent = []
    for _ in range(50):
        peer = connect(receiver)
        peer.sendall(b"\1\0\0")
        silent.append(peer)
    assert max(echo(receiver) for _ in range(3)) < 2
    eventually(lambda: all(closed(peer) for peer in silent))


def test_a_slow_drip_is_ended(start: Start) -> None:
    """A byte now and then, before and within an association: no single read ever times out."""
    receiver = start()
    drips = [connect(receiver), opened(receiver)]
    stop = threading.Event()

    def drip(peer: socket.socket) -> None:
        try:
            peer.sendall(struct.pack(">BxI", 4, 1000))
            while not stop.wait(0.1):
                peer.sendall(b"\0")
        except OSError:
            pass

    threads = [threading.Thread(target=drip, args=(peer,)) for peer in drips]
    for thread in threads:
        thread.start()
    assert echo(receiver) < 2
    for peer in drips:
        eventually(lambda peer=peer: closed(peer), 6)
    stop.set()
    for thread in threads:
        thread.join()


def test_silent_connections_are_closed(start: Start) -> None:
    receiver = start()
    silent = [connect(receiver) for _ in range(30)]
    assert echo(receiver) < 2
    eventually(lambda: all(closed(peer) for peer in silent))
    eventually(lambda: threads_of(receiver) == 0)


def test_health_checks_of_load_balancers_leave_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = start()
    enter, entered = receiver.connections.add, []

    def counted(*args: Any) -> None:
        entered.append(args)
        enter(*args)

    monkeypatch.setattr(receiver.connections, "add", counted)
    for _ in range(60):
        connect(receiver).close()
    eventually(lambda: len(entered) == 60, 120)  # the machine may be busy
    eventually(lambda: threads_of(receiver) == 0, 120)
    echo(receiver)  # a good client is served


def test_an_object_without_end_is_ended(start: Start) -> None:
    """Fragments keep coming, each in time."""
    receiver = start(replace(BASE, object_seconds=0.5))
    peer = opened(receiver)
    pdv = struct.pack(">IBB", 2 + 4, 1, 1) + bytes(4)  # a command's fragment, never the last
    for _ in range(40):
        try:
            peer.sendall(struct.pack(">BxI", 4, len(pdv)) + pdv)
        except OSError:
            break
        time.sleep(0.05)
    eventually(lambda: closed(peer), 3)


def test_a_command_without_end_does_not_fill_the_memory(start: Start) -> None:
    receiver = start()
    peer = opened(receiver)
    pdv = struct.pack(">IBB", 2 + 60000, 1, 1) + bytes(60000)
    with pytest.raises(OSError):  # noqa: PT012, PT011  # any: reset or broken pipe, at one of these
        for _ in range(200):
            peer.sendall(struct.pack(">BxI", 4, len(pdv)) + pdv)


def test_garbage_does_no_harm(start: Start) -> None:
    receiver = start()
    bad_contexts = struct.pack(">BxH", 0x20, 4) + b"\1\0\0\0"  # a context without abstract and transfer syntax
    for content in (
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(6),
        b"\xff" * 2000,
        request_pdu(contexts=bad_contexts),
        request_pdu()[:50],
        struct.pack(">BxI", 1, 10) + bytes(10),
        request_pdu() + struct.pack(">BxI", 4, 6) + struct.pack(">IBB", 2, 99, 3),
        request_pdu() + struct.pack(">BxI", 4, 2) + bytes(2),
        request_pdu() * 3,
    ):
        peer = connect(receiver)
        peer.sendall(content)
        eventually(lambda peer=peer: closed(peer))
    assert echo(receiver) < 2
    eventually(lambda: threads_of(receiver) == 0)


def test_an_object_that_breaks_off_leaves_no_file(start: Start, tmp_path: Path) -> None:
    receiver = start()
    dataset = dcmread(MR)
    dataset.PixelData = bytes(3 << 20)
    dataset.save_as(tmp_path / "large.dcm")
    association = associate(receiver, (dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID))
    original = association.dul.socket.send
    sent = 0

    def breaking(data: bytes) -> None:
        nonlocal sent
        sent += len(data)
        original(data)
        if sent > 3 << 19:
            association.dul.socket.socket.shutdown(socket.SHUT_RDWR)

    association.dul.socket.send = breaking
    association.send_c_store(tmp_path / "large.dcm")
    eventually(lambda: threads_of(receiver) == 0)
    assert not list(receiver._spool.files.incoming.iterdir())
    assert not receiver._spool.list(State)


def test_the_port_is_taken(start: Start) -> None:
    receiver = start()
    with pytest.raises(GatewayError, match="cannot be listened on"):
        start(replace(BASE, port=receiver.port))


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed certificates for both sides, and for a stranger."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed: no certificates for a test of TLS")
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client", "stranger"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost",
             "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")],
            check=True, capture_output=True,
        )  # fmt: skip
    return folder


def client_tls(folder: Path, name: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=folder / "server.pem")
    if name:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def test_tls_with_client_certificates(start: Start, certificates: Path) -> None:
    tls = TlsServer(certificates / "server.pem", certificates / "server.key", certificates / "client.pem")
    receiver = start(replace(BASE, tls=tls))
    assert echo(receiver, tls=client_tls(certificates, "client")) < 2
    assert not associate(receiver).is_established
    assert not associate(receiver, tls=client_tls(certificates, "stranger")).is_established
    assert not associate(receiver, tls=client_tls(certificates, None)).is_established
    silent = [connect(receiver) for _ in range(50)]  # the handshake is never begun
    assert echo(receiver, tls=client_tls(certificates, "client")) < 2
    eventually(lambda: all(closed(peer) for peer in silent))


def test_tls_files_that_are_none(start: Start, certificates: Path, tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match="cannot be used"):
        start(replace(BASE, tls=TlsServer(tmp_path / "none.pem", certificates / "server.key")))


# -- DCMTK -------------------------------------------------------------------------------------------------------------


def dcmtk(program: str, receiver: Receiver, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Debian's, by its path: pip's pynetdicom brings programs of the same names."""
    path = Path("/usr/bin") / program
    if not path.exists():
        pytest.skip(f"DCMTK's {program} is not installed (Debian: apt-get install dcmtk)")
    command = [str(path), "-aec", "LCMEM", "127.0.0.1", str(receiver.port), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_dcmtk_echoes_and_stores(start: Start) -> None:
    receiver = start()
    assert dcmtk("echoscu", receiver).returncode == 0
    stored = dcmtk("storescu", receiver, str(CT), str(MR))
    assert stored.returncode == 0, stored.stderr
    assert receiver._spool.counts()[State.RECEIVED] == 2


def test_dcmtk_hears_that_the_disk_is_full(start: Start) -> None:
    receiver = start(min_free_mb=10**8)
    stored = dcmtk("storescu", receiver, "-v", str(CT))
    assert "0xa700" in (stored.stdout + stored.stderr).lower() or "OutOfResources" in stored.stdout + stored.stderr
    assert stored.returncode != 0
