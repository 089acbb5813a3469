"""The fp16 variant: the encoder that computes in fp16, and the one that only stores it, with one file of weights between them.

On a GPU the whole network computes in fp16, but for the normalisations and what stands outside the two networks (the pixels'
scale, the latents' statistics): sums of squares leave fp16's range there, and digits are lost. A CPU without fp16 arithmetic
would convert every tensor to and fro, so it gets a graph that expands the weights once, when the session opens, and computes in
fp32. Both graphs are small; the weights, in fp16, lie beside them as ONNX external data.
"""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from .trace import save_stripped

__all__ = ["HALF", "HALF_ON_CPU", "HALF_WEIGHTS", "write_half"]

HALF, HALF_ON_CPU, HALF_WEIGHTS = "encoder.fp16.onnx", "encoder.fp16-on-cpu.onnx", "encoder.fp16.weights"
IN_FP32 = ("GroupNormalization", "LayerNormalization", "ReduceMean", "Sqrt", "Reciprocal", "Clip", "Cast")
SMALL = 1024
"""Tensors below so many bytes stay inside the graphs: shapes and axes are wanted there, and there is nothing to gain."""
SCOPES = "pkg.torch.onnx.name_scopes"


def write_half(fp32: Path, folder: Path) -> None:
    """Write `HALF`, `HALF_ON_CPU` and `HALF_WEIGHTS` into `folder`, from the fp32 encoder."""
    plain = onnx.load(str(fp32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of each weight below fp16's smallest number, which becomes that number
        half = convert_float_to_float16(
            onnx.load(str(fp32)),
            keep_io_types=True,
            op_block_list=list(IN_FP32),
            node_block_list=[node.name for node in plain.graph.node if _outside(node)],
        )
    _restore(half, plain)
    _expand(plain, half)
    pool = _Pool()
    for model, name in ((half, HALF), (plain, HALF_ON_CPU)):
        pool.take(model)
        save_stripped(model, folder / name)
    (folder / HALF_WEIGHTS).write_bytes(pool.content)


def _restore(half: ModelProto, plain: ModelProto) -> None:
    """Give nodes that stayed in fp32 their weights back: the converter stores those too in fp16, and casts them."""
    exact = {tensor.name: tensor for tensor in plain.graph.initializer}
    kept = []
    for node in half.graph.node:
        if node.op_type == "Cast" and node.input[0] in exact and node.attribute[0].i == TensorProto.FLOAT:
            tensor = half.graph.initializer.add()
            tensor.CopyFrom(exact[node.input[0]])
            tensor.name = node.output[0]
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input}
    weights = [tensor for tensor in half.graph.initializer if tensor.name in used]
    for field, values in ((half.graph.node, kept), (half.graph.initializer, weights)):
        copies = [type(value)() for value in values]
        for copy, value in zip(copies, values, strict=True):
            copy.CopyFrom(value)
        del field[:]
        field.extend(copies)


def _outside(node: NodeProto) -> bool:
    """Whether a node belongs to a normalisation, or to neither the VAE nor the backbone."""
    scopes = next((ast.literal_eval(entry.value) for entry in node.metadata_props if entry.key == SCOPES), None)
    if scopes is None:
        return False
    modules = [scope for scope in scopes[:-1] if scope]
    return not modules or any("norm" in part for part in modules[-1].split("."))


def _expand(model: ModelProto, half: ModelProto) -> None:
    """Give the fp32 encoder `half`'s weights, cast when the session is opened: onnxruntime folds constants then."""
    stored = {tensor.name: tensor for tensor in half.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name not in stored or tensor.data_type != TensorProto.FLOAT or numpy_helper.to_array(tensor).nbytes < SMALL:
            continue
        name = tensor.name
        tensor.CopyFrom(stored[name])
        tensor.name = f"{name}.fp16"
        casts.append(helper.make_node("Cast", [tensor.name], [name], name=f"expand {name}", to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])


class _Pool:
    """The weights of several graphs, equal ones once."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._places: dict[bytes, int] = {}

    def take(self, model: ModelProto) -> None:
        """Move a graph's larger tensors here."""
        for tensor in model.graph.initializer:
            raw = numpy_helper.to_array(tensor).tobytes()
            if len(raw) < SMALL // 2:
                continue
            if raw not in self._places:
                self._places[raw] = len(self.content)
                self.content += raw + b"\0" * (-len(raw) % 64)
            for field in ("float_data", "int32_data", "raw_data"):
                tensor.ClearField(field)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", HALF_WEIGHTS), ("offset", self._places[raw]), ("length", len(raw))):
                tensor.external_data.add(key=key, value=str(value))
