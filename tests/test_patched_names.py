"""Names of other packages that the runtime patches, overrides or reads although they are not their public interface.

pyproject.toml bounds these packages from above, by the next version that was not tested. Before a bound is raised, this file must
pass with the new version: a name that is missing, or a method that is called with other arguments, would silently undo a limit that
keeps strangers out.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import queue
import re
import threading
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lcmem_onnx
import pytest

ROOT = Path(lcmem_onnx.__file__).parent
BOUNDED = {"pynetdicom": "gateway", "uvicorn": "gateway", "accelerate": "train"}
"""Packages whose internals are used, and the extra that brings each."""
PRIVATE = {
    "_config",  # pynetdicom: its switches
    "_data_set_file",  # pynetdicom: DIMSEMessage, the file that an object is gathered in
    "_dataset_file",  # pynetdicom: C_STORE, that file when it is whole
    "_run_loop_delay",  # pynetdicom: DULServiceProvider
    "_create_association",  # pynetdicom: RequestHandler
    "_reset_state",  # accelerate: AcceleratorState
    "_core",  # numpy: the name under which a scalar is pickled
}
PUBLIC = {"_exit"}
"""os._exit, which is documented."""


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)]


def test_no_other_private_name_is_used() -> None:
    """What begins with an underscore and is not our own is listed above, and so is looked after below."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for room in ("runtime", "cli", "models", "export", "evaluation")
             for path in (ROOT / room).rglob("*.py")]  # fmt: skip
    nodes = [node for tree in trees for node in ast.walk(tree)]
    ours = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    ours |= {node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    ours |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    on_self = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    ours |= {node.attr for node in on_self if isinstance(node.ctx, ast.Store) and node.value.id in ("self", "cls")}  # type: ignore[attr-defined]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {
        str(node.args[1].value)
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr", "hasattr")
        and len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
    }  # fmt: skip
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    used |= {name for node in imports for name in (*str(node.module).split("."), *(alias.name for alias in node.names))}
    foreign = {name for name in used if name.startswith("_") and not name.startswith("__")} - (ours - PRIVATE)
    assert foreign - PUBLIC == PRIVATE


@pytest.mark.parametrize("package", BOUNDED)
def test_a_version_that_was_not_tested_is_not_installed(package: str) -> None:
    """The requirement has an upper bound, and the version that the tests run with lies within it."""
    pytest.importorskip(package)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (wanted,) = (one for one in project["optional-dependencies"][BOUNDED[package]] if re.match(rf"{package}\b", one))
    bounds = re.fullmatch(rf"{package}>=([\d.]+),<([\d.]+)", wanted)
    assert bounds, f"{wanted} has no upper bound"
    assert numbers(bounds[1]) <= numbers(version(package)) < numbers(bounds[2])
    assert len(numbers(bounds[2])) == 2, "the next minor version is the bound"


# -- pynetdicom ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def association() -> Any:
    """An acceptor's association, not started."""
    pytest.importorskip("pynetdicom")
    from pynetdicom import AE
    from pynetdicom.association import MODE_ACCEPTOR, Association

    return Association(AE(), MODE_ACCEPTOR)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("LOG_HANDLER_LEVEL", str),
        ("STORE_RECV_CHUNKED_DATASET", bool),
        ("STORE_SEND_CHUNKED_DATASET", bool),
        ("UNRESTRICTED_STORAGE_SERVICE", bool),
    ],
)
def test_pynetdicoms_switches_are_there(name: str, kind: type) -> None:
    _config = pytest.importorskip("pynetdicom._config")
    assert type(getattr(_config, name)) is kind


def test_pynetdicom_reads_from_its_socket_as_it_is_replaced(association: Any) -> None:
    """`_BoundedReader` takes the place of `recv` on an instance; the reader of PDUs must ask it for 6 bytes, then for the rest."""
    from pynetdicom.transport import AssociationSocket

    assert parameters(AssociationSocket.recv) == ["self", "nr_bytes"]
    asked: list[int] = []

    class Socket:
        def recv(self, count: int) -> bytearray:
            asked.append(count)
            return bytearray(b"\x01\x00\x00\x00\x00\x04" if count == 6 else b"four")

        def close(self) -> None: ...

    association.dul.socket = Socket()
    association.dul._read_pdu_data()
    assert asked == [6, 4]


def test_pynetdicoms_threads_have_what_is_set_on_them(association: Any) -> None:
    assert type(association.dul._run_loop_delay) is float
    assert isinstance(association.dul, threading.Thread)
    assert isinstance(association, threading.Thread)
    assert association.ident is None
    assert parameters(type(association.dul).kill_dul) == ["self"]
    assert "_run_loop_delay" in inspect.getsource(type(association.dul).run_reactor)


def test_pynetdicom_gathers_messages_where_they_are_looked_at(association: Any) -> None:
    from pynetdicom.dimse_messages import C_STORE_RQ
    from pynetdicom.dimse_primitives import C_STORE

    assert association.dimse.message is None
    assert isinstance(association.dimse.msg_queue, queue.Queue)
    message = C_STORE_RQ()
    assert message._data_set_file is None
    assert message.encoded_command_set.tell() == 0
    assert message.data_set.tell() == 0
    assert C_STORE()._dataset_file is None
    assert "_data_set_file" in inspect.getsource(C_STORE_RQ.decode_msg)


def test_pynetdicoms_associations_tell_who_calls(association: Any) -> None:
    assert association.is_established is False
    assert association.is_rejected is False
    assert association.requestor.address_info is None
    assert isinstance(association.requestor.ae_title, str)
    assert list(association.rejected_contexts) == list(association.accepted_contexts) == []
    assert parameters(type(association).send_c_store)[:2] == ["self", "dataset"]
    for end in ("abort", "release"):
        assert all(one.default is not inspect.Parameter.empty for one in list(
            inspect.signature(getattr(type(association), end)).parameters.values())[1:])  # fmt: skip


def test_pynetdicoms_server_calls_what_is_overridden() -> None:
    transport = pytest.importorskip("pynetdicom.transport")
    handler, server = transport.RequestHandler, transport.ThreadedAssociationServer
    assert parameters(handler._create_association) == ["self"]
    assert "self._create_association()" in inspect.getsource(handler.handle)
    assert parameters(server.__init__)[1:8] == [
        "ae", "address", "ae_title", "contexts", "ssl_context", "evt_handlers", "request_handler",
    ]  # fmt: skip
    assert parameters(server.get_request) == ["self"]
    assert parameters(server.service_actions) == ["self"]
    assert parameters(server.server_close) == ["self"]
    assert parameters(server.verify_request) == ["self", "request", "client_address"]
    assert parameters(server.handle_error) == ["self", "request", "client_address"]
    assert isinstance(server.ssl_context, property)


def test_pynetdicoms_entity_counts_associations_by_what_is_overridden() -> None:
    AE = pytest.importorskip("pynetdicom").AE  # noqa: N806
    from pynetdicom.acse import ACSE

    assert isinstance(AE.active_associations, property)
    assert isinstance(AE.maximum_associations, property)
    assert AE.maximum_associations.fset
    source = inspect.getsource(ACSE._negotiate_as_acceptor)
    assert "active_associations" in source
    assert "> self.assoc.ae.maximum_associations" in source, "_Entity takes one off, since more than the maximum are refused"
    entity = AE()
    settable = ("maximum_pdu_size", "require_calling_aet", "require_called_aet", "acse_timeout", "dimse_timeout", "network_timeout",
                "connection_timeout", "requested_contexts")  # fmt: skip
    for name in settable:
        assert isinstance(getattr(AE, name), property), name
        setattr(entity, name, getattr(entity, name))


# -- uvicorn, accelerate ------------------------------------------------------------------------------------------------------


def test_uvicorns_protocol_has_what_is_overridden_and_read() -> None:
    uvicorn = pytest.importorskip("uvicorn")
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.server import ServerState

    assert parameters(H11Protocol.connection_made) == ["self", "transport"]
    assert parameters(H11Protocol.data_received) == ["self", "data"]
    assert parameters(H11Protocol.connection_lost) == ["self", "exc"]

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    config = uvicorn.Config(app, http=H11Protocol, ws="none", lifespan="off", log_config=None, h11_max_incomplete_event_size=1)
    config.load()
    assert config.ssl is None
    assert config.http_protocol_class is H11Protocol
    loop = asyncio.new_event_loop()
    try:
        protocol = H11Protocol(config, ServerState(), {"before": 1}, loop)
        assert protocol.conn.their_state is h11.IDLE
        assert protocol.loop is loop
        assert protocol.app_state == {"before": 1}
        assert protocol.transport is None
    finally:
        loop.close()
    assert "self.app_state" in inspect.getsource(H11Protocol.handle_events), "what is put there reaches the application"


def test_uvicorns_server_can_be_stopped_as_it_is() -> None:
    uvicorn = pytest.importorskip("uvicorn")

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    assert (server.should_exit, server.force_exit) == (False, False)
    assert parameters(type(server).run) == ["self", "sockets"]


def test_accelerates_state_can_be_reset() -> None:
    AcceleratorState = pytest.importorskip("accelerate.state").AcceleratorState  # noqa: N806
    assert all(
        one.default is not inspect.Parameter.empty for one in inspect.signature(AcceleratorState._reset_state).parameters.values()
    )
