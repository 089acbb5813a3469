"""Which variant runs, and what is remembered of their speed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from click.testing import CliRunner
from lcmem_onnx.cli import main
from lcmem_onnx.runtime.errors import BundleError, UsageError
from lcmem_onnx.runtime.model import benchmark_cache, encoder
from lcmem_onnx.runtime.model.bundle import Bundle, Variant, open_bundle
from lcmem_onnx.runtime.model.variant import choose
from lcmem_onnx.runtime.screening import Screener

VNNI = ("avx2", "avx512_vnni")
Bundles = Callable[..., Bundle]


@pytest.fixture
def bundle_of() -> Bundles:
    """The bundled model's manifest with variants that have a time each; files that nobody opens."""
    opened = open_bundle()

    def made(past: tuple[str, ...] = (), **milliseconds: float) -> Bundle:
        variants = {
            name: Variant(name, Path(f"{name}.onnx"), Path(f"{name}-on-cpu.onnx"), 1, name in past, value)
            for name, value in milliseconds.items()
        }
        return replace(opened, variants=MappingProxyType(variants))

    return made


@pytest.mark.parametrize(
    ("features", "times", "expected", "why"),
    [
        (VNNI, {"fp32": 30.0, "fp16": 30.0, "int8": 15.0}, "int8", "instructions for int8"),
        (("avx2",), {"fp32": 30.0, "fp16": 30.0, "int8": 15.0}, "fp32", "no instructions for int8"),
        (VNNI, {"fp32": 30.0, "fp16": 20.0, "int8": 29.5}, "fp32", "most exact"),
        (VNNI, {"fp16": 30.0, "int8": 29.5}, "fp16", "most exact"),
        (VNNI, {"int8": 30.0}, "int8", "no other"),
    ],
)
def test_auto_goes_by_the_processor_and_the_exports_times(
    features: tuple[str, ...], times: dict[str, float], expected: str, why: str, bundle_of: Bundles
) -> None:
    choice = choose(bundle_of(**times), on_gpu=False, features=features)
    assert choice.variant.name == expected
    assert why in choice.why
    assert choice.graph == Path(f"{expected}-on-cpu.onnx")


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({"fp32": 10.0, "int8": 20.0}, "fp32"),
        ({"fp32": 20.0, "int8": 10.0}, "int8"),
        ({"fp32": 10.4, "int8": 10.0}, "fp32"),  # close: the more exact one
        ({"fp32": 20.0}, "int8"),  # not all measured: what the export says
    ],
)
def test_what_was_measured_here_outranks_the_rest(measured: dict[str, float], expected: str, bundle_of: Bundles) -> None:
    bundle = bundle_of(fp32=30.0, int8=15.0)
    assert choose(bundle, on_gpu=False, features=VNNI, timings=measured).variant.name == expected


def test_a_gpu_gets_fp16_in_the_graph_that_computes_in_it(bundle_of: Bundles) -> None:
    choice = choose(bundle_of(fp32=1.0, fp16=1.0, int8=0.1), on_gpu=True, features=VNNI)
    assert (choice.variant.name, choice.graph) == ("fp16", Path("fp16.onnx"))
    assert choose(bundle_of(fp32=1.0, int8=0.1), on_gpu=True, features=VNNI).variant.name == "fp32"


def test_what_drifts_past_its_gate_is_used_only_when_it_is_asked_for(bundle_of: Bundles) -> None:
    bundle = bundle_of(fp32=30.0, int8=1.0, past=("int8",))
    assert choose(bundle, on_gpu=False, features=VNNI).variant.name == "fp32"
    assert choose(bundle, "int8", on_gpu=False, features=VNNI).variant.name == "int8"
    with pytest.raises(BundleError, match="drift from the trained model"):
        choose(bundle_of(int8=1.0, past=("int8",)), on_gpu=False, features=VNNI)


def test_what_is_not_there_is_an_error(bundle_of: Bundles) -> None:
    with pytest.raises(BundleError, match="variant 'int8' is not in .*: use one of fp32"):
        choose(bundle_of(fp32=1.0), "int8", on_gpu=False, features=())
    with pytest.raises(UsageError, match="unknown variant 'fp8'"):
        choose(bundle_of(fp32=1.0), "fp8", on_gpu=False, features=())


def test_a_gpu_that_does_not_come_up_leaves_the_cpus_graph(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with onnxruntime-gpu on a machine without CUDA."""
    monkeypatch.setattr(encoder, "available_providers", lambda: ["cuda", "cpu"])
    screener = Screener(tiny_bundle)
    assert screener.encoder.provider == "cpu"
    assert screener.encoder.variant == "fp32"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(benchmark_cache, "user_cache_path", lambda *args, **kwargs: tmp_path / "cache")
    return tmp_path / "cache"


def test_times_are_remembered_for_this_bundle_and_number_of_threads(tiny_bundle: Path, cache: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert benchmark_cache.measured(bundle) is None
    times = benchmark_cache.measure_variants(bundle, threads=1)
    assert set(times) == set(bundle.variants)
    assert all(value > 0 for value in times.values())
    benchmark_cache.remember(bundle, times, threads=1)
    benchmark_cache.remember(bundle, {"fp32": 7.0}, threads=9)
    assert benchmark_cache.measured(bundle, threads=1) == times
    assert benchmark_cache.measured(bundle, threads=9) == {"fp32": 7.0}
    assert benchmark_cache.measured(open_bundle(), threads=1) is None
    assert [path.name for path in cache.iterdir()] == [benchmark_cache.FILE]


@pytest.mark.parametrize("content", ["{", "[]", '{"x": 1}', "\x00"])
def test_a_damaged_memory_is_no_memory(content: str, tiny_bundle: Path, cache: Path) -> None:
    cache.mkdir()
    (cache / benchmark_cache.FILE).write_text(content)
    bundle = open_bundle(tiny_bundle)
    assert benchmark_cache.measured(bundle) is None
    benchmark_cache.remember(bundle, {"fp32": 1.0})
    assert benchmark_cache.measured(bundle) == {"fp32": 1.0}


def test_a_cache_that_cannot_be_written_is_an_error(tiny_bundle: Path, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(UsageError, match="cannot write"):
        benchmark_cache.remember(open_bundle(tiny_bundle), {"fp32": 1.0})


def test_doctor_times_them_and_says_what_runs(tiny_bundle: Path, cache: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", "--bench", "--json", "--bundle", str(tiny_bundle)])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["fp32,_a_picture"].endswith(" ms")
    assert "it was measured on this machine" in facts["variant_in_use"]
    assert (cache / benchmark_cache.FILE).exists()


def test_a_variant_is_chosen_on_the_command_line(tiny_bundle: Path, images: Path) -> None:
    scan = ["scan", str(images / "0.png"), "--against", str(images), "--bundle", str(tiny_bundle), "--json"]
    for variant in ("fp16", "int8"):
        result = CliRunner().invoke(main, [*scan, "--variant", variant])
        assert result.exit_code == 1, result.output
        assert json.loads(result.stdout.splitlines()[0])["matches"][0]["key"].endswith("0.png")
    result = CliRunner().invoke(main, [*scan, "--variant", "fp8"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == ["error: unknown variant 'fp8': use one of auto, fp32, fp16, int8"]
