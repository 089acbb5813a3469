from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
from lcmem_onnx.runtime.errors import BundleError, ProviderError, UsageError
from lcmem_onnx.runtime.model import session as session_module
from lcmem_onnx.runtime.model.bundle import open_bundle
from lcmem_onnx.runtime.model.session import available_providers, open_session


@pytest.fixture
def model(tiny_bundle: Path) -> Path:
    return open_bundle(tiny_bundle).variants["fp32"].graph


def test_the_session_is_set_up_for_a_long_lived_service(model: Path) -> None:
    session = open_session(model, "cpu", threads=1)
    options = session.session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (True, False)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert (session.requested, session.in_use, session.threads) == ("cpu", "cpu", 1)


def test_auto_says_what_it_chose(model: Path) -> None:
    session = open_session(model)
    assert session.requested == "auto"
    assert session.in_use in available_providers()
    assert session.threads >= 1


def test_a_provider_that_is_not_there_is_an_error(model: Path) -> None:
    if "cuda" in available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(ProviderError, match="'cuda' is not available in this onnxruntime"):
        open_session(model, "cuda")


def test_a_provider_that_is_there_but_does_not_come_up_is_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with onnxruntime-gpu on a machine without CUDA: the session runs on the CPU, with no more than a log line."""
    made = onnxruntime.InferenceSession

    def falls_back(path: str, options: object, providers: list[tuple[str, dict[str, str]]]) -> onnxruntime.InferenceSession:
        ((name, told),) = providers
        assert (name, told["use_tf32"]) == ("CUDAExecutionProvider", "0")
        return made(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(session_module, "available_providers", lambda: ["cuda", "cpu"])
    monkeypatch.setattr(session_module.ort, "InferenceSession", falls_back)
    with pytest.raises(ProviderError, match="provider cuda is unavailable: .* runs on cpu instead"):
        open_session(model, "cuda")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"provider": "quantum"}, "use one of auto, cpu"), ({"threads": 0}, "threads must be 1 or more, got 0")],
)
def test_wrong_requests_are_refused(arguments: dict[str, object], message: str, model: Path) -> None:
    with pytest.raises(UsageError, match=message):
        open_session(model, **arguments)  # type: ignore[arg-type]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"hello")
    with pytest.raises(BundleError, match="^onnxruntime .* cannot open "):
        open_session(tmp_path / "x.onnx")
