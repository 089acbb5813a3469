"""C-STORE in: an object is answered 0x0000 when it, its name and its row are on disk, and not before."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from ..errors import GatewayError
from .dicom_server import ConnectionTracker, address_of, configure_pynetdicom, open_server
from .json_logging import Log
from .settings import ReceiveSettings
from .spool import Arrival, Source, Spool, SpoolFullError

if TYPE_CHECKING:
    from pynetdicom.events import Event

__all__ = ["Receiver"]

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
"""C-STORE statuses (PS3.4 B.2.3). Out of resources is what senders try again after."""

log = Log("receive")


class Receiver:
    """The C-STORE SCP of a spool. It listens when it is made and answers from `start` on.

    Raises:
        GatewayError: the port is taken, or TLS's files cannot be used.
    """

    def __init__(self, settings: ReceiveSettings, spool: Spool) -> None:
        configure_pynetdicom(spool.files.incoming)
        self._settings = settings
        self._spool = spool
        self._server = open_server(settings, self._on_echo, self._on_store)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="accept", daemon=True
        )

    @property
    def port(self) -> int:
        """The one in use, also where port 0 was asked for."""
        return int(self._server.server_address[1])

    @property
    def connections(self) -> ConnectionTracker:
        return self._server.connections

    def start(self) -> None:
        self._thread.start()
        log.info("listening", host=self._settings.host, port=self.port, aet=self._settings.aet, tls=self._settings.tls is not None)

    def stop(self, grace: float = 5.0) -> None:
        """Take no new callers, and let those finish who are in the middle of an object."""
        self._server.stop(serving=self._thread.is_alive())
        self._server.connections.abort_all(grace)

    def tidy(self) -> None:
        """Now and then: remove what associations that ended badly have left in `incoming`."""
        longest = self._settings.object_seconds + self._settings.pdu_seconds + 60
        if removed := self._spool.files.clear_incoming(older_than=time.time() - longest):
            log.warning("unfinished-removed", files=removed)

    def _on_echo(self, event: Event) -> int:
        return SUCCESS

    def _on_store(self, event: Event) -> int:
        """Never raises: what pynetdicom would make of an exception says nothing to the sender, and less to us."""
        try:
            return self._store(event)
        except SpoolFullError:
            log.error("refused", reason="disk-above-watermark", aet=event.assoc.requestor.ae_title)
            return OUT_OF_RESOURCES
        except (GatewayError, OSError) as error:
            log.error("refused", reason="spool-not-writable", error=type(error).__name__, aet=event.assoc.requestor.ae_title)
            return OUT_OF_RESOURCES
        except Exception as error:  # noqa: BLE001  # whatever it is, the sender must hear that the object was not taken
            log.defect("store-failed", error)
            return CANNOT_UNDERSTAND

    def _store(self, event: Event) -> int:
        began = time.monotonic()
        request: Any = event.request
        file = getattr(request, "_dataset_file", None)
        if file is None:
            log.warning("refused", reason="no-data-set", aet=event.assoc.requestor.ae_title)
            return CANNOT_UNDERSTAND
        if not self._spool.has_room():  # before the work; put_file asks again
            raise SpoolFullError("the disk is above its watermark")
        file.flush()
        os.fsync(file.fileno())
        requestor = event.assoc.requestor
        arrival = Arrival(
            Source.C_STORE,
            calling_aet=str(requestor.ae_title),
            called_aet=str(event.assoc.acceptor.ae_title),
            address=address_of(event.assoc),
            sop_class=str(request.AffectedSOPClassUID),
            sop_instance=str(request.AffectedSOPInstanceUID),
            transfer_syntax=str(event.context.transfer_syntax),
        )
        stored = self._spool.put_file(event.dataset_path, arrival)
        log.info(
            "received",
            object=stored.id,
            known=stored.known,
            aet=arrival.calling_aet,
            address=arrival.address,
            seconds=round(time.monotonic() - began, 4),
        )
        return SUCCESS
