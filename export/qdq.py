"""Layers of a graph in int8: QuantizeLinear and DequantizeLinear around convolutions and linear layers, as onnxruntime fuses them.

Activations are unsigned bytes with one scale a tensor, weights signed bytes with a scale for each output channel. On processors
without VNNI, onnxruntime sums the products of two neighbors in 16 bits, where two large ones of one sign saturate. So a channel's
scale is chosen such that no two neighboring weights of one sign come to more than 128 steps: the file is then right everywhere, and
most weights have nearly 8 bits where halving all of them would leave 7.

A clip from 0 (ReLU, ReLU6) after a quantised convolution costs nothing: the bytes of its output end where the clip does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .gptq import Rounding

__all__ = ["quantise", "tensors_to_observe"]

LEVELS, LEVELS_OF_TWO = 127, 128
"""Most steps from zero of a weight, and of two neighbors of one sign together: 255 times 128 fits into 16 bits."""
SMALLEST_SCALE = 1e-12
LARGEST_SUM = 30
"""Bits of the largest bias."""
WIDER = 1.01
"""By how much more than needed a row's steps widen whose rounding took two neighbors too far."""
WITH_OUTPUT = ("Conv",)
"""Layers whose output is bytes too; the others' integer sums become floats at once, which is more exact."""


def tensors_to_observe(model: ModelProto, nodes: Collection[str]) -> set[str]:
    """Return the names of the activations whose ranges `quantise` needs for these nodes."""
    return {name for _, given, made in _layers(model, nodes) for name in (given, made) if name}


def quantise(
    model: ModelProto,
    nodes: Collection[str],
    ranges: Mapping[str, tuple[float, float]],
    moments: Mapping[str, NDArray[np.float64]] = MappingProxyType({}),
) -> None:
    """Quantise the named Conv, MatMul and Gemm nodes, in place.

    Args:
        model: the fp32 encoder; the second input of each named node is a constant.
        nodes: names of the nodes.
        ranges: smallest and largest value of each of `tensors_to_observe`.
        moments: of nodes whose weights are rounded by them (`rounding.Moments`); the others' go to the nearest step.
    """
    _Quantising(model, ranges, moments).run(nodes)


def _layers(model: ModelProto, nodes: Collection[str]) -> Iterator[tuple[NodeProto, str, str | None]]:
    """Each node with its input and, if that becomes bytes, its output after the activation that follows at once."""
    users = _users(model)
    for node in model.graph.node:
        if node.name in nodes:
            made = None
            if node.op_type in WITH_OUTPUT:
                clip = _clip_after(model, node, users)
                made = clip.output[0] if clip is not None else node.output[0]
            yield node, node.input[0], made


def _users(model: ModelProto) -> dict[str, list[NodeProto]]:
    users: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return users


def _clip_after(model: ModelProto, node: NodeProto, users: Mapping[str, list[NodeProto]]) -> NodeProto | None:
    """The ReLU or the clip from 0 that alone reads the node's output."""
    following = users.get(node.output[0], [])
    if len(following) != 1:
        return None
    only = following[0]
    if only.op_type == "Relu":
        return only
    if only.op_type != "Clip" or len(only.input) < 2:
        return None
    lowest = next((tensor for tensor in model.graph.initializer if tensor.name == only.input[1]), None)
    return only if lowest is not None and float(numpy_helper.to_array(lowest)) == 0.0 else None


class _Quantising:
    """One graph on its way: its constants, what is made before which node, and which tensors are bytes already."""

    def __init__(
        self, model: ModelProto, ranges: Mapping[str, tuple[float, float]], moments: Mapping[str, NDArray[np.float64]]
    ) -> None:
        self.model, self.ranges, self.moments = model, ranges, moments
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.scales: dict[str, tuple[float, int]] = {}
        self.expanded: dict[str, str] = {}
        self.before: dict[str, list[NodeProto]] = {}
        self.after: dict[str, list[NodeProto]] = {}
        self.added: list[TensorProto] = []

    def run(self, nodes: Collection[str]) -> None:
        layers = list(_layers(self.model, nodes))
        users = _users(self.model)
        dropped: set[str] = set()
        for node, given, made in layers:
            if made is not None:
                clip = _clip_after(self.model, node, users)
                raw = f"{made} in float"
                if clip is not None:
                    dropped.add(clip.name)
                node.output[0] = raw
                self.after[node.name] = self._pair(raw, made, made)
                self.expanded[made] = made
            self._weights(node, given)
        for node, given, _ in layers:
            if given not in self.expanded:
                self.expanded[given] = f"{given} from bytes"
                self.before[node.name] = [*self.before.get(node.name, []), *self._pair(given, self.expanded[given], given)]
            node.input[0] = self.expanded[given]
        ordered: list[NodeProto] = []
        for node in self.model.graph.node:
            if node.name not in dropped:
                ordered += [*self.before.get(node.name, []), node, *self.after.get(node.name, [])]
        used = {name for node in ordered for name in node.input}
        weights = [tensor for tensor in [*self.model.graph.initializer, *self.added] if tensor.name in used]
        _replace(self.model.graph.node, ordered)
        _replace(self.model.graph.initializer, weights)

    def _scale(self, name: str) -> tuple[float, int]:
        """Scale and zero point of an activation: zero is a byte."""
        if name not in self.scales:
            low, high = self.ranges[name]
            low, high = min(low, 0.0), max(high, 0.0)
            scale = float(np.float32(max((high - low) / 255, SMALLEST_SCALE)))
            self.scales[name] = scale, int(np.clip(round(-low / scale), 0, 255))
        return self.scales[name]

    def _pair(self, given: str, made: str, called: str) -> list[NodeProto]:
        scale, zero = self._scale(called)
        names = self._constant(f"{called} scale", np.float32(scale)), self._constant(f"{called} zero", np.uint8(zero))
        return [
            helper.make_node("QuantizeLinear", [given, *names], [f"{called} bytes"], name=f"quantise {called}"),
            helper.make_node("DequantizeLinear", [f"{called} bytes", *names], [made], name=f"expand {called}"),
        ]

    def _weights(self, node: NodeProto, given: str) -> None:
        weight = numpy_helper.to_array(self.constants[node.input[1]])
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        axis = 0 if node.op_type == "Conv" or transposed else weight.ndim - 1
        rows = np.moveaxis(weight, axis, 0)
        flat, scale = _steps(rows, self.moments.get(node.name), self._least_scale(node, given))
        levels = np.moveaxis(flat.reshape(rows.shape), 0, axis)
        name = node.input[1]
        inputs = [
            self._constant(f"{name} bytes", levels),
            self._constant(f"{name} scale", scale),
            self._constant(f"{name} zero", np.zeros(len(scale), np.int8)),
        ]
        made = f"{name} from bytes"
        self.before.setdefault(node.name, []).append(
            helper.make_node("DequantizeLinear", inputs, [made], axis=axis, name=f"expand {name}")
        )
        node.input[1] = made
        if len(node.input) > 2:
            self._bias(node, np.float32(self._scale(given)[0]) * scale)

    def _least_scale(self, node: NodeProto, given: str) -> NDArray[np.float32] | float:
        """The scale at which the bias still fits into 32 bits: a channel without weights may have one all the same."""
        if len(node.input) < 3:
            return 0.0
        bias = numpy_helper.to_array(self.constants[node.input[2]])
        least: NDArray[np.float32] = np.abs(bias) / np.float32(2**LARGEST_SUM * self._scale(given)[0])
        return least

    def _bias(self, node: NodeProto, scale: NDArray[np.float32]) -> None:
        """In the integers that the products are summed in."""
        name = node.input[2]
        bias = numpy_helper.to_array(self.constants[name]).astype(np.float64)
        sums = np.rint(bias / scale).astype(np.int32)
        inputs = [
            self._constant(f"{name} sums", sums),
            self._constant(f"{name} scale", scale.astype(np.float32)),
            self._constant(f"{name} zero", np.zeros(len(sums), np.int32)),
        ]
        made = f"{name} from sums"
        self.before[node.name].append(helper.make_node("DequantizeLinear", inputs, [made], axis=0, name=f"expand {name}"))
        node.input[2] = made

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
            self.added.append(self.constants[name])
        return name


def _steps(
    rows: NDArray[np.float32], moments: NDArray[np.float64] | None, least: NDArray[np.float32] | float
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Steps (outputs, n) and a scale of at least `least` for each row: an output channel's weights, by inputs and place."""
    flat = rows.reshape(len(rows), -1)
    largest = np.maximum(np.abs(flat).max(1) / LEVELS, _largest_two(rows) / (LEVELS_OF_TWO - 1))
    scale = np.maximum(np.maximum(largest, SMALLEST_SCALE), least).astype(np.float32)
    steps = np.empty(flat.shape, np.int8)
    rounding = None if moments is None else Rounding(moments)
    todo = np.arange(len(rows))
    while len(todo):
        if rounding is None:
            steps[todo] = np.rint(flat[todo] / scale[todo, None]).clip(-LEVELS, LEVELS)
        else:
            steps[todo] = rounding.steps(flat[todo], scale[todo], todo, LEVELS)
        over = _largest_two(steps[todo].reshape(-1, *rows.shape[1:]).astype(np.float32)) / LEVELS_OF_TWO
        scale[todo] *= np.maximum(1.0, WIDER * over)
        todo = todo[over > 1]
    return steps, scale


def _largest_two(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest sum of two neighbors of one sign in each row; 0 where nothing is summed in 16 bits.

    Neighbors are those along the inputs, or where a kernel keeps channels first, along the filter. onnxruntime's kernel for
    depthwise filters takes each product in 32 bits.
    """
    largest = np.zeros(len(rows), np.float32)
    if rows.ndim > 1 and rows.shape[1] == 1:
        return largest
    for order in (rows.reshape(len(rows), -1), np.moveaxis(rows, 1, -1).reshape(len(rows), -1)):
        for sign in (1, -1):
            part = np.maximum(sign * order, 0.0)
            if part.shape[1] > 1:
                largest = np.maximum(largest, (part[:, 1:] + part[:, :-1]).max(1))
    return largest


def _replace(field: object, values: Sequence[object]) -> None:
    copies = [type(value)() for value in values]
    for copy, value in zip(copies, values, strict=True):
        copy.CopyFrom(value)  # type: ignore[attr-defined]
    del field[:]  # type: ignore[attr-defined]
    field.extend(copies)  # type: ignore[attr-defined]
