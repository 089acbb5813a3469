"""STOW-RS out: what is sent, and what the answers mean."""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx2")
pytest.importorskip("pynetdicom")

from lcmem_onnx.runtime.errors import GatewayError  # noqa: E402
from lcmem_onnx.runtime.gateway.delivery_queue import Delivery  # noqa: E402
from lcmem_onnx.runtime.gateway.forwarder import Answer  # noqa: E402
from lcmem_onnx.runtime.gateway.settings import Destination  # noqa: E402
from lcmem_onnx.runtime.gateway.spool import Arrival, Source, Spool  # noqa: E402
from lcmem_onnx.runtime.gateway.stow_client import StoreWeb  # noqa: E402

from .gateway_http import CT, CT_CLASS, CT_UID, MR, gateway_settings, serving  # noqa: E402

STORED = {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [CT_UID]}}]}}


def failed(reason: int) -> dict[str, object]:
    return {"00081198": {"vr": "SQ", "Value": [{"00081155": {"Value": [CT_UID]}, "00081197": {"vr": "US", "Value": [reason]}}]}}


def delivery(spool: Spool, path: Path = CT) -> tuple[Delivery, Path]:
    stored = spool.put_stream(io.BytesIO(path.read_bytes()), Arrival(Source.FOLDER, "x"), 1 << 30)
    return Delivery(spool.get(stored.id), "web", 0), spool.files.path(stored.id)


def send(handler: object, tmp_path: Path, **options: object) -> list[Answer]:
    destination = Destination("web", "stow", url="http://localhost:1/dicom-web/", **options)  # type: ignore[arg-type]
    with Spool(gateway_settings(tmp_path)) as spool:
        sender = StoreWeb(destination, httpx.MockTransport(handler))  # type: ignore[arg-type]
        answers = [answer for _, answer in sender.send([delivery(spool), delivery(spool, MR)])]
        sender.close()
    return answers


@pytest.mark.parametrize(
    ("status", "said", "answer"),
    [
        (200, STORED, Answer(True, "http-200")),
        (200, None, Answer(True, "http-200-unconfirmed")),
        (202, STORED, Answer(True, "http-202")),
        (200, failed(0x0122), Answer(False, "http-200-0x0122", final=True)),
        (202, failed(0xA700), Answer(False, "http-202-0xA700")),
        (409, failed(0xA900), Answer(False, "http-409-0xA900", final=True)),
        (200, [failed(0xC000)], Answer(False, "http-200-0xC000")),
        (200, b'<NativeDicomModel><DicomAttribute tag="00081198"/></NativeDicomModel>', Answer(False, "http-200-0x0000")),
        (409, None, Answer(False, "http-409")),
        (401, None, Answer(False, "http-401")),
        (404, None, Answer(False, "http-404")),
        (413, None, Answer(False, "http-413", final=True)),
        (507, None, Answer(False, "http-507")),
        (302, None, Answer(False, "http-302")),
        (200, {"00081198": 5}, Answer(False, "http-200-0x0000")),
    ],
)
def test_what_an_answer_means(status: int, said: object, answer: Answer, tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if isinstance(said, bytes):
            return httpx.Response(status, content=said)
        return httpx.Response(status, json=said) if said else httpx.Response(status)

    assert send(handler, tmp_path)[0] == answer


def test_nobody_there_ends_the_turn(tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused")

    assert send(handler, tmp_path) == [Answer(False, "no-connection")]


def test_one_gateways_stow_is_taken_by_another(tmp_path: Path) -> None:
    """The sender against the receiver: the object arrives byte for byte, with its token."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    settings = gateway_settings(tmp_path / "two")
    with serving(settings) as (receiving, client), Spool(gateway_settings(tmp_path / "one")) as sending:
        token = tmp_path / "two" / "modality.token"
        destination = Destination("web", "stow", url=str(client.base_url), token_file=token)
        with closing(StoreWeb(destination)) as sender:
            ((_, answer),) = sender.send([delivery(sending)])
        assert answer == Answer(True, "http-200")
        (item,) = receiving.claim("test", 2)
        assert (item.sop_instance, item.sop_class) == (CT_UID, CT_CLASS)
        assert receiving.files.path(item.id).read_bytes() == CT.read_bytes()  # the forwarder, not the sender, zeroes preambles
        with closing(StoreWeb(replace(destination, token_file=None))) as sender:
            ((_, refused),) = sender.send([delivery(sending, MR)])
        assert refused == Answer(False, "http-401")


def test_a_token_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match="cannot be read"):
        StoreWeb(Destination("web", "stow", url="http://localhost:1", token_file=tmp_path / "none"))
