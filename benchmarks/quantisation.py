"""Ways to quantise an encoder, side by side: what each costs in embeddings, scores and decisions, and what it saves.

    python benchmarks/quantisation.py [--bundle BUNDLE] [--calibration DIR] [--full-size SIDE] [--ways fp32,int8,...]

The reference is the bundle's fp32 encoder, or its fp16 one expanded. Images and pairs are those of an export (docs/bundle.md).
Whether 8-bit weights saturate depends on the processor: its int8 instructions are printed. Times are processor time, all threads
together, of one image, which other work on the machine changes little. `--full-size 256` takes the full-size network with random
weights instead, on images of that size, and differences of embeddings alone mean something then.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from full_size import make_checkpoint
from lcmem_onnx import open_bundle
from lcmem_onnx.export.calibration_images import choose_sets, with_copies
from lcmem_onnx.export.int8 import Quantiser, quantiser
from lcmem_onnx.export.trace import trace
from lcmem_onnx.models.checkpoint import load_lcmem
from lcmem_onnx.runtime.model.bundle import Bundle
from lcmem_onnx.runtime.model.session import open_session
from lcmem_onnx.runtime.system.cpu import cpu_features, cpu_limit, cpu_name, versions
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

LAYERS = ("Conv", "MatMul", "Gemm")
BLOCK = 32
"""Weights that share a scale in 4 bits."""


@dataclass(frozen=True)
class Source:
    """What is quantised: an fp32 graph file, the images it takes, and the head and threshold that pairs are scored with."""

    fp32: Path
    size: int
    score: Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float64]]
    threshold: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="default: the package's own")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--full-size", type=int, metavar="SIDE")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--images", type=int, default=16, help="at most so many, embedded in four versions each")
    options = parser.parse_args()
    print(f"{cpu_name()} ({', '.join(cpu_features() or [])}), {cpu_limit()} threads, onnxruntime {versions()['onnxruntime']}, "
          f"{time.strftime('%Y-%m-%d')}\n")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = _full_size(work, options.full_size) if options.full_size else _of_bundle(open_bundle(options.bundle), work)
        sets = choose_sets(None, options.calibration, source.size)
        images, shows = with_copies(sets.measured[: options.images])
        _table(source, images, shows, sets.calibration, options.ways.split(","), work)


def _table(
    source: Source,
    images: NDArray[np.uint8],
    shows: NDArray[np.int64],
    calibration: NDArray[np.uint8],
    ways: list[str],
    work: Path,
) -> None:
    first, second = np.triu_indices(len(shows), 1)
    same = shows[first] == shows[second]
    reference, _ = _embed(source.fp32, images)
    wanted = source.score(reference[first], reference[second])
    print(f"{len(images)} images, {len(same)} pairs; embeddings' standard deviation {reference.std():.3f}\n")
    print("| | MB | processor ms | embeddings, mean | 99 % of scores within | decided otherwise | AUC fell by |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with quantiser(source.fp32, calibration) as ready:
        for name in ways:
            graph = work / f"{name.replace(' ', '-')}.onnx"
            WAYS[name](ready, source.fp32, graph)
            embeddings, milliseconds = _embed(graph, images)
            got = source.score(embeddings[first], embeddings[second])
            flips = int(((got >= source.threshold) != (wanted >= source.threshold)).sum())
            away = np.abs(embeddings - reference).mean()
            print(f"| {name} | {graph.stat().st_size / 1e6:.1f} | {milliseconds:.1f} | {away:.4f} | "
                  f"{np.percentile(np.abs(got - wanted), 99):.3f} | {flips} | {_auc(wanted, same) - _auc(got, same):.4f} |",
                  flush=True)  # fmt: skip


def _of_bundle(bundle: Bundle, work: Path) -> Source:
    """The fp32 encoder; where there is none, the one that a CPU makes of fp16."""
    variant = bundle.variants.get("fp32") or bundle.variants["fp16"]
    expanded = work / "fp32.onnx"
    model = onnx.load(str(variant.on_cpu))
    _fold_casts(model)
    onnx.save(model, str(expanded))
    weight, bias = np.asarray(bundle.head.weight, np.float64), float(bundle.head.bias)
    return Source(
        expanded,
        bundle.image_size,
        lambda a, b: 1 / (1 + np.exp(-(bias + np.abs(a - b).astype(np.float64) @ weight))),
        bundle.threshold.value,
    )


def _full_size(work: Path, size: int) -> Source:
    make_checkpoint(work / "full.pth")
    network = load_lcmem(work / "full.pth").network
    trace(network, size, work / "fp32.onnx")
    weight, bias = network.fc_end.weight.detach().numpy()[0].astype(np.float64), float(network.fc_end.bias.detach()[0])
    return Source(work / "fp32.onnx", size, lambda a, b: 1 / (1 + np.exp(-(bias + np.abs(a - b).astype(np.float64) @ weight))), 0.5)


def _fold_casts(model: ModelProto) -> None:
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in stored]:
        exact = numpy_helper.to_array(stored[node.input[0]]).astype(np.float32)
        stored[node.input[0]].CopyFrom(numpy_helper.from_array(exact, node.output[0]))
        model.graph.node.remove(node)
    # A bundle's graphs carry no types, and onnx does not infer those behind this operator; onnxruntime's tools want them.
    for node in model.graph.node:
        if node.op_type == "GroupNormalization":
            model.graph.value_info.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))


def _embed(graph: Path, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    session = open_session(graph, "cpu").session
    rows, taken = [], []
    for image in images:
        before = time.process_time()
        rows.append(session.run(None, {"pictures": image[None]})[0])
        taken.append(1000 * (time.process_time() - before))
    return np.concatenate(rows), statistics.median(taken)


def _auc(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    order = np.sort(scores[~same])
    below = np.searchsorted(order, scores[same], "left") + np.searchsorted(order, scores[same], "right")
    return float(below.mean() / (2 * len(order)))


def _plain(ready: Quantiser, fp32: Path, out: Path) -> None:
    onnx.save(onnx.load(str(fp32)), str(out))


def _as_exported(ready: Quantiser, fp32: Path, out: Path) -> None:
    ready.write(out, ready.kept([]))


def _all_layers(ready: Quantiser, fp32: Path, out: Path) -> None:
    ready.write(out, [])


class _ImageSet(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The calibration images, as onnxruntime's tools read them."""

    def __init__(self, ready: Quantiser) -> None:
        self._rest = iter(ready.images)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image = next(self._rest, None)
        return None if image is None else {"pictures": image[None]}


def _prepared(fp32: Path) -> str:
    """The graph with the types of its tensors, which onnxruntime's tools want."""
    prepared = fp32.with_name("prepared.onnx")
    if not prepared.exists():
        quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True, skip_optimization=True)
    return str(prepared)


def _static(weights: QuantType) -> Callable[[Quantiser, Path, Path], None]:
    """By onnxruntime's tools: activations' extremes, 8 bits, weights to the nearest step; the same layers in float."""

    def write(ready: Quantiser, fp32: Path, out: Path) -> None:
        kept = {layer.node for layer in ready.kept([])}
        quantize_static(
            _prepared(fp32), str(out), _ImageSet(ready), quant_format=QuantFormat.QDQ, op_types_to_quantize=list(LAYERS),
            nodes_to_quantize=[layer.node for layer in ready.layers if layer.node not in kept], per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=weights, calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip

    return write


def _dynamic(ready: Quantiser, fp32: Path, out: Path) -> None:
    """Activations' ranges found in each run; the same layers kept in float."""
    kept = [layer.node for layer in ready.kept([])]
    quantize_dynamic(
        _prepared(fp32), str(out), op_types_to_quantize=list(LAYERS), per_channel=True, reduce_range=True,
        weight_type=QuantType.QInt8, nodes_to_exclude=kept,
    )  # fmt: skip


def _nibbles(levels: NDArray[np.int8]) -> bytes:
    """Two to a byte, the first in the lower half."""
    flat = np.append(levels.flatten(), np.zeros(levels.size % 2, np.int8)).view(np.uint8) & 0xF
    return bytes((flat[::2] | (flat[1::2] << 4)).tobytes())


def _weights_alone(bits: int) -> Callable[[Quantiser, Path, Path], None]:
    """Convolutions' and linear layers' weights stored in few bits, expanded when the session opens: computing stays in fp32."""

    def write(ready: Quantiser, fp32: Path, out: Path) -> None:
        model = onnx.load(str(fp32))
        used = {node.input[1]: node.op_type for node in model.graph.node if node.op_type in LAYERS}
        nodes, tensors = [], []
        for tensor in model.graph.initializer:
            if tensor.name not in used or tensor.data_type != TensorProto.FLOAT:
                tensors.append(tensor)
                continue
            weights = numpy_helper.to_array(tensor)
            rows = weights.reshape(len(weights), -1) if used[tensor.name] == "Conv" else weights.reshape(-1, weights.shape[-1]).T
            tall = rows.shape[1] % BLOCK == 0 and bits == 4
            blocks = rows.reshape(-1, BLOCK) if tall else rows.reshape(len(rows), -1)
            scale = np.maximum(np.abs(blocks).max(1, keepdims=True), 1e-12) / (2 ** (bits - 1) - 1)
            levels = np.rint(blocks / scale).astype(np.int8)
            name = tensor.name
            kind, raw = (TensorProto.INT4, _nibbles(levels)) if bits == 4 else (TensorProto.INT8, levels.tobytes())
            tensors.append(helper.make_tensor(f"{name} levels", kind, levels.shape, raw, raw=True))
            tensors.append(numpy_helper.from_array(scale.astype(np.float16), f"{name} scale"))
            shape = rows.shape if used[tensor.name] != "Conv" else weights.shape
            tensors.append(numpy_helper.from_array(np.array(shape, np.int64), f"{name} shape"))
            whole = used[tensor.name] == "Conv"
            nodes += [
                helper.make_node("Cast", [f"{name} levels"], [f"{name} float"], to=TensorProto.FLOAT),
                helper.make_node("Cast", [f"{name} scale"], [f"{name} scales"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name} float", f"{name} scales"], [f"{name} blocks"]),
                helper.make_node("Reshape", [f"{name} blocks", f"{name} shape"], [name if whole else f"{name} rows"]),
                *([] if whole else [helper.make_node("Transpose", [f"{name} rows"], [name], perm=[1, 0])]),
            ]
        everything = [*nodes, *model.graph.node]
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(everything)
        model.graph.initializer.extend(tensors)
        onnx.save(model, str(out))

    return write


WAYS: Mapping[str, Callable[[Quantiser, Path, Path], None]] = MappingProxyType(
    {
        "fp32": _plain,
        "int8 as exported": _as_exported,
        "all layers": _all_layers,
        "8-bit signed weights": _static(QuantType.QInt8),
        "8-bit unsigned weights": _static(QuantType.QUInt8),
        "dynamic": _dynamic,
        "8-bit weights alone": _weights_alone(8),
        "4-bit weights alone": _weights_alone(4),
    }
)


if __name__ == "__main__":
    main()
