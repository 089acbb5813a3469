"""C-STORE out: objects keep their transfer syntax, and their preamble stays here (C-STORE sends the data set alone)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pynetdicom.ae import ApplicationEntity
from pynetdicom.presentation import PresentationContext, build_context

from .delivery_queue import Delivery
from .forwarder import Answer
from .json_logging import Log
from .settings import Destination
from .tls import client_context

__all__ = ["StoreScu"]

CONTEXTS = 128
"""Presentation contexts that an association may have."""
FINAL = (0x0122, 0xA900)
"""SOP class not supported, data set does not match it. Others may pass: 0xC000 is what archives say of their own trouble."""

log = Log("store-scu")


class StoreScu:
    """Sends to one DICOM destination. One thread's.

    Raises:
        GatewayError: TLS's files cannot be used.
    """

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._tls = client_context(destination.tls) if destination.tls else None
        self._server_name = (destination.tls.server_name if destination.tls else None) or destination.host

    def send(self, objects: Sequence[tuple[Delivery, Path]]) -> Iterator[tuple[Delivery, Answer]]:
        """See `forward.Sender`. One association; it is made again when it breaks, by whoever calls next."""
        entity = ApplicationEntity(ae_title=self._destination.calling_aet)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self._destination.timeout_seconds
        entity.connection_timeout = min(30.0, self._destination.timeout_seconds)
        wanted: dict[tuple[str, str], PresentationContext] = {}
        fitting: list[tuple[Delivery, Path]] = []
        for delivery, path in objects:
            kind = (delivery.item.sop_class, delivery.item.transfer_syntax)
            try:
                if kind not in wanted and len(wanted) < CONTEXTS:
                    wanted[kind] = build_context(*kind)
            except ValueError:  # no UID: nobody could be asked whether they take it
                yield delivery, Answer(False, "malformed-uid", final=True)
                continue
            if kind in wanted:
                fitting.append((delivery, path))
        if not wanted:
            return
        entity.requested_contexts = list(wanted.values())
        tls: Any = {"tls_args": (self._tls, self._server_name)} if self._tls else {}
        try:
            association = entity.associate(self._destination.host, self._destination.port, ae_title=self._destination.aet, **tls)
        except (OSError, RuntimeError, ValueError) as error:
            log.warning("no-association", destination=self._destination.name, error=type(error).__name__)
            yield from ((delivery, Answer(False, "no-connection")) for delivery, _ in fitting)
            return
        if not association.is_established:
            # With none of the contexts accepted pynetdicom ends the association itself.
            nothing = "no-presentation-context" if association.rejected_contexts else "no-connection"
            status = "association-rejected" if association.is_rejected else nothing
            yield from ((delivery, Answer(False, status)) for delivery, _ in fitting)
            return
        try:
            accepted = {
                (str(context.abstract_syntax), str(context.transfer_syntax[0])) for context in association.accepted_contexts
            }
            for delivery, path in fitting:
                if (delivery.item.sop_class, delivery.item.transfer_syntax) not in accepted:
                    yield delivery, Answer(False, "no-presentation-context")
                    continue
                if not association.is_established:
                    return  # the rest was not tried
                yield delivery, self._store(association, path)
        finally:
            if association.is_established:
                association.release()
            else:
                association.abort()

    def _store(self, association: Any, path: Path) -> Answer:
        try:
            status = association.send_c_store(path)
        except Exception as error:  # noqa: BLE001  # one object must not keep the others from going
            log.defect("not-sent", error)
            return Answer(False, "not-sent")
        if "Status" not in status:
            return Answer(False, "no-answer")
        code = int(status.Status)
        if code == 0x0000 or code & 0xF000 == 0xB000:  # a warning: it was stored, with elements coerced or dropped
            return Answer(True, f"0x{code:04X}")
        return Answer(False, f"0x{code:04X}", final=code in FINAL)
