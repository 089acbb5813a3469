"""pynetdicom, made fit for a hospital's network: its module-wide switches, and the holes in it closed, in this one place.

Found in pynetdicom 3.0.4, with what closes it here:

* a PDU of a claimed 4 GiB is buffered without end: `_BoundedReader` refuses lengths above the limit before it reads;
* three bytes and then silence, or a byte now and then, hold a connection for ever: a PDU has a deadline, an object another;
* the TLS handshake runs in the accept loop, where one silent caller stops all others: `_Server.get_request` leaves it to the
  connection's own thread, under the same deadline;
* silent connections count as associations, until nobody can call: `_Entity` counts established ones alone, and
  `ConnectionTracker` closes the oldest of too many others;
* a command set, or the data set of anything but a C-STORE, is gathered in memory without end, and requests that do not wait for
  answers are queued without end: `_BoundedReader` looks at both;
* an association that ends in the middle of an object leaves its temporary file: `ConnectionTracker` removes it;
* an exception while an association is negotiated (a presentation context without a transfer syntax, say) leaves a thread and a
  connection for good: `ConnectionTracker.sweep` ends what its association has left.

The switches are pynetdicom's own module globals, so they hold for a whole process: each worker of the gateway is one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import BaseServer
from typing import Any

from pynetdicom import _config, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when the module is imported
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from ..errors import GatewayError
from .json_logging import Log
from .settings import ReceiveSettings
from .tls import server_context

__all__ = ["ConnectionTracker", "configure_pynetdicom", "open_server"]

OPENING_PDU = 1 << 17
"""Bytes of an association request; with 128 contexts of many syntaxes it has some 30,000."""
PDU_SLACK = 64
"""Some senders count a PDU's own header in its length."""
IN_MEMORY = 1 << 20
"""Bytes of a command set, or of a data set that is not stored."""
QUEUED = 16
"""Requests that wait for their answer; nobody may send a second one before it has the first one's (PS3.7, without negotiation)."""
PATIENT_LOOP, QUICK_LOOP = 0.02, 0.001
"""Seconds between two looks of a connection's thread at its socket, before and after it is an association."""
BACKLOG = 128
HEADER = 6

log = Log("associations")


def configure_pynetdicom(incoming: Path) -> None:
    """Set pynetdicom's switches for this process: data sets go to files in `incoming` and never through memory, both ways; every
    storage SOP class is taken, private ones too, in every transfer syntax; nothing is logged."""
    _config.LOG_HANDLER_LEVEL = "none"
    _config.STORE_RECV_CHUNKED_DATASET = True
    _config.STORE_SEND_CHUNKED_DATASET = True
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    tempfile.tempdir = str(incoming)


@dataclass(eq=False)
class _Connection:
    association: Association
    socket: socket.socket
    address: str
    since: float = field(default_factory=time.monotonic)
    established: bool = False

    def shut(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class ConnectionTracker:
    """Decides which addresses may connect, keeps all connections, and ends those that pynetdicom leaves behind."""

    def __init__(self, settings: ReceiveSettings) -> None:
        self._settings = settings
        self._networks = [ipaddress.ip_network(network, strict=False) for network in settings.addresses]
        self._lock = threading.Lock()
        self._connections: dict[Association, _Connection] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def admits(self, host: str) -> bool:
        """Whether this address may connect."""
        if not self._networks:
            return True
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks if network.version == address.version)

    def add(self, association: Association, connection: socket.socket, host: str) -> None:
        """Add a new connection. If too many have not become associations, close the oldest of them: a good caller asks for its
        association at once."""
        with self._lock:
            waiting = [known for known in self._connections.values() if not known.established]
            if len(waiting) >= self._settings.max_connections:
                oldest = min(waiting, key=lambda known: known.since)
                log.warning("connection-closed", reason="too-many-connections", address=oldest.address)
                oldest.shut()
                oldest.established = True  # counted out; the sweep sees it end
            self._connections[association] = _Connection(association, connection, host)

    def established(self, association: Association) -> None:
        with self._lock:
            if known := self._connections.get(association):
                known.established = True

    def sweep(self) -> None:
        """Forget connections that have ended, and end those that pynetdicom has left behind. To be called once a second."""
        with self._lock:
            for association, known in list(self._connections.items()):
                dul = association.dul
                if association.is_alive() or (association.ident is None and time.monotonic() - known.since < 5):
                    pass  # it runs, or is about to
                elif dul.is_alive():
                    dul.kill_dul()
                    known.shut()
                    continue
                else:
                    del self._connections[association]
                    remove_unfinished(association)
                    with contextlib.suppress(OSError):
                        known.socket.close()
                    continue
                if not known.established and time.monotonic() - known.since > 2 * self._settings.opening_seconds + 2:
                    known.shut()

    def abort_all(self, grace: float) -> None:
        """End all associations. Those in the middle of an object have `grace` seconds to finish it."""
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and any(busy(association) for association in list(self._connections)):
            time.sleep(0.05)
        for known in list(self._connections.values()):
            known.association.dul.kill_dul()
            known.shut()


def busy(association: Association) -> bool:
    """Whether an object is on its way, or waits for its answer."""
    return association.is_established and (association.dimse.message is not None or not association.dimse.msg_queue.empty())


def address_of(association: Association) -> str:
    """The address of who called."""
    info = association.requestor.address_info
    return info.address if info else ""


def remove_unfinished(association: Association) -> None:
    """Remove the file of an object whose association has ended in the middle of it."""
    message = association.dimse.message
    file = getattr(message, "_data_set_file", None)
    if file is not None:
        with contextlib.suppress(OSError):
            file.close()
        with contextlib.suppress(OSError):
            Path(file.name).unlink(missing_ok=True)


class _BoundedReader:
    """Takes the place of `AssociationSocket.recv`: bounded in length and time, and in larger pieces than 4096 bytes.

    pynetdicom asks for a PDU's header of 6 bytes and then for the rest. An OSError ends the association.
    """

    def __init__(self, association: Association, settings: ReceiveSettings) -> None:
        self._association = association
        self._settings = settings
        self._deadline = 0.0
        self._body_follows = False
        self._message: object = None
        self._message_since = 0.0

    def recv(self, count: int) -> bytearray:
        if self._body_follows:
            self._body_follows = False
            limit = self._settings.max_pdu + PDU_SLACK if self._association.is_established else OPENING_PDU
            if count > limit:
                raise self._refusal("pdu-too-long", f"{count} bytes")
            return self._read(count)
        self._check_message()
        seconds = self._settings.pdu_seconds if self._association.is_established else self._settings.opening_seconds
        self._deadline = time.monotonic() + seconds
        header = self._read(count)
        self._body_follows = len(header) == HEADER and 1 <= struct.unpack(">BBL", header)[0] <= 7
        return header

    def _read(self, count: int) -> bytearray:
        dul_socket = self._association.dul.socket
        connection = dul_socket.socket if dul_socket else None
        if connection is None:
            raise OSError("closed")
        buffer = bytearray(count)
        view, got = memoryview(buffer), 0
        while got < count:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise self._refusal("pdu-too-slow", f"{got} of {count} bytes")
            connection.settimeout(left)
            read = connection.recv_into(view[got:])
            if not read:
                break
            got += read
        view.release()
        del buffer[got:]
        return buffer

    def _check_message(self) -> None:
        """The message that is being gathered must not grow or last without end."""
        dimse = self._association.dimse
        if dimse.msg_queue.qsize() > QUEUED:
            raise self._refusal("too-many-requests", f"more than {QUEUED} without waiting for an answer")
        message = dimse.message
        if message is not self._message:
            self._message, self._message_since = message, time.monotonic()
        if message is None:
            return
        if time.monotonic() - self._message_since > self._settings.object_seconds:
            raise self._refusal("object-too-slow", f"more than {self._settings.object_seconds} s")
        file: Any = message._data_set_file
        if file is not None and file.tell() > self._settings.max_object_mb << 20:
            raise self._refusal("object-too-large", f"more than {self._settings.max_object_mb} MB")
        held = message.encoded_command_set.tell() + (message.data_set.tell() if message.data_set else 0)
        if held > IN_MEMORY:
            raise self._refusal("message-too-large", f"{held} bytes")

    def _refusal(self, reason: str, detail: str) -> OSError:
        requestor = self._association.requestor
        log.warning(
            "association-ended", reason=reason, detail=detail, aet=requestor.ae_title, address=address_of(self._association)
        )
        return OSError(reason)


class _Handler(RequestHandler):
    server: _Server

    def _create_association(self) -> Association:
        association = super()._create_association()
        settings = self.server.settings
        reader = _BoundedReader(association, settings)
        setattr(association.dul.socket, "recv", reader.recv)  # noqa: B010  # one instance's, not the class's
        association.dul._run_loop_delay = PATIENT_LOOP
        self.server.connections.add(association, self.request, str(self.client_address[0]))
        return association


class _Server(ThreadedAssociationServer):
    """The accept loop, which nobody can stop."""

    request_queue_size = BACKLOG
    daemon_threads = True

    def __init__(self, *args: Any, settings: ReceiveSettings, connections: ConnectionTracker, **kwargs: Any) -> None:
        self.settings = settings
        self.connections = connections
        kwargs["request_handler"] = _Handler
        super().__init__(*args, **kwargs)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        listening = self.socket
        if listening is None:
            raise OSError("closed")
        connection, address = listening.accept()
        try:
            connection.settimeout(self.settings.opening_seconds)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self.ssl_context:
                connection = self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        except OSError:
            connection.close()
            raise
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        host = str(client_address[0])
        if self.connections.admits(host):
            return True
        log.warning("connection-refused", reason="address", address=host)
        return False

    def service_actions(self) -> None:
        super().service_actions()
        self.connections.sweep()

    def stop(self, *, serving: bool) -> None:
        """Close the port. pynetdicom's own `shutdown` fits servers that `AE.start_server` made."""
        if serving:
            BaseServer.shutdown(self)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.warning("connection-failed", address=str(client_address[0]))


class _Entity(ApplicationEntity):
    @property
    def active_associations(self) -> list[Association]:
        """Established ones: pynetdicom counts these against its maximum, and would count silent connections too."""
        return [association for association in super().active_associations if association.is_established]

    @property
    def maximum_associations(self) -> int:
        return self._most - 1  # pynetdicom refuses one when there are more than that, not counting it

    @maximum_associations.setter
    def maximum_associations(self, value: int) -> None:
        self._most = value


def open_server(settings: ReceiveSettings, on_echo: Callable[[evt.Event], int], on_store: Callable[[evt.Event], int]) -> _Server:
    """Bind the port; callers are answered when `serve_forever` runs.

    Raises:
        GatewayError: the port is taken, or TLS's files cannot be used.
    """
    entity = _Entity(ae_title=settings.aet)
    entity.maximum_associations = settings.max_associations
    entity.maximum_pdu_size = settings.max_pdu
    entity.require_calling_aet = list(settings.calling_aets)
    entity.require_called_aet = settings.check_called_aet
    entity.acse_timeout = settings.opening_seconds
    entity.dimse_timeout = settings.pdu_seconds
    entity.network_timeout = settings.idle_seconds
    entity.add_supported_context(Verification)
    connections = ConnectionTracker(settings)
    context = server_context(settings.tls) if settings.tls else None

    def requested(event: evt.Event) -> None:
        event.assoc.dul._run_loop_delay = QUICK_LOOP

    def established(event: evt.Event) -> None:
        connections.established(event.assoc)

    def rejected(event: evt.Event) -> None:
        requestor = event.assoc.requestor
        log.warning("association-rejected", aet=requestor.ae_title, address=address_of(event.assoc))

    def closed(event: evt.Event) -> None:
        remove_unfinished(event.assoc)

    handlers: list[Any] = [
        (evt.EVT_C_ECHO, on_echo),
        (evt.EVT_C_STORE, on_store),
        (evt.EVT_REQUESTED, requested),
        (evt.EVT_ESTABLISHED, established),
        (evt.EVT_REJECTED, rejected),
        (evt.EVT_CONN_CLOSE, closed),
    ]
    try:
        return _Server(
            entity,
            (settings.host, settings.port),
            settings.aet,
            entity.supported_contexts,
            context,
            evt_handlers=handlers,
            settings=settings,
            connections=connections,
        )
    except OSError as error:
        raise GatewayError(f"receive: {settings.host}:{settings.port} cannot be listened on: {error.strerror or error}") from error
