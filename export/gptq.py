"""Weights rounded so that a layer's output changes little on given images: GPTQ (Frantar et al., arXiv 2210.17323), layer by layer.

Rounding each weight to its nearest step loses more than needed: what one weight of a row lost can be made up for by those that are
rounded after it, as far as their inputs go together. In the bundled trunk it cut the weights' part of the error to a third.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

__all__ = ["Moments", "Rounding"]

LARGEST, LARGEST_WINDOW = 1536, 640
"""Layers that sum more products, and those with a window over all channels that sum more than the second, are rounded to the
nearest step: their moments would take minutes, and their inputs much memory."""
POSITIONS = 512
"""Of one image, positions that the moments are taken at."""
DAMPING, SMALLEST = 0.01, 1e-12

Floats = NDArray[np.float64]


class Moments:
    """The mean products of every two inputs that a layer sums, over images.

    Args:
        layers: by name, the Conv, MatMul or Gemm node and the shape of its weight.
    """

    def __init__(self, layers: Mapping[str, tuple[NodeProto, tuple[int, ...]]]) -> None:
        self._layers = {name: (node, shape) for name, (node, shape) in layers.items() if _fits(node, shape)}
        self._sums: dict[str, NDArray[np.float32]] = {}
        self._images = 0
        self._rng = np.random.default_rng(0)

    @property
    def inputs(self) -> list[str]:
        """Names of the tensors that `add` needs, sorted."""
        return sorted({node.input[0] for node, _ in self._layers.values()})

    def add(self, values: Mapping[str, NDArray[np.float32]]) -> None:
        """Take one image's values of `inputs`."""
        for name, (node, shape) in self._layers.items():
            rows = _rows(values[node.input[0]], node, shape, self._rng)
            products = np.matmul(rows.transpose(0, 2, 1), rows / np.float32(rows.shape[1]))
            if name in self._sums:
                self._sums[name] += products
            else:
                self._sums[name] = products
        self._images += 1

    def means(self) -> dict[str, Floats]:
        """Return (groups, n, n) for each layer; groups is 1, or the channels of a depthwise convolution."""
        return {name: total.astype(np.float64) / self._images for name, total in self._sums.items()}


def _fits(node: NodeProto, shape: tuple[int, ...]) -> bool:
    if node.op_type != "Conv":
        return shape[0] <= LARGEST
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    if groups > 1:
        return shape[1] == 1
    return int(np.prod(shape[1:])) <= (LARGEST if shape[2:] == (1, 1) else LARGEST_WINDOW)


def _rows(values: NDArray[np.float32], node: NodeProto, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """What is summed for one output: (groups, positions, inputs), at up to `POSITIONS` positions."""
    if node.op_type != "Conv":
        rows = values.reshape(-1, values.shape[-1])
        return rows[_some(len(rows), rng)][None]
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    (top, left, bottom, right), (down, across) = attributes.get("pads", [0] * 4), attributes.get("strides", [1, 1])
    padded = np.pad(values[0], ((0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, shape[2:], (1, 2))[:, ::down, ::across]
    height, width = windows.shape[1:3]
    position = _some(height * width, rng)
    chosen = windows[:, position // width, position % width].reshape(len(padded), len(position), -1)
    return chosen if shape[1] == 1 and len(padded) > 1 else chosen.transpose(1, 0, 2).reshape(1, len(position), -1)


def _some(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.arange(count) if count <= POSITIONS else rng.choice(count, POSITIONS, replace=False)


class Rounding:
    """How to round rows of weights whose inputs have these mean products, (groups, n, n): of all rows, or a group for each row."""

    def __init__(self, moments: Floats) -> None:
        size = moments.shape[-1]
        diagonal = np.diagonal(moments, axis1=1, axis2=2)
        damped = moments + (DAMPING * diagonal.mean(1) + SMALLEST)[:, None, None] * np.eye(size)
        self._order = np.argsort(-diagonal, axis=1, kind="stable")
        ordered = np.take_along_axis(np.take_along_axis(damped, self._order[:, :, None], 1), self._order[:, None, :], 2)
        self._shares = np.linalg.cholesky(np.linalg.inv(ordered)).transpose(0, 2, 1)

    def steps(
        self, rows: NDArray[np.float32], scale: NDArray[np.float32], which: NDArray[np.int64], levels: int
    ) -> NDArray[np.int8]:
        """Return the steps of the rows, int8 (outputs, n), each at most `levels` from zero.

        Args:
            rows: float32 (outputs, n).
            scale: float32 (outputs,): a step of each row.
            which: int64 (outputs,): the rows' numbers, by which each finds its group.
            levels: below 128.
        """
        group = which if len(self._order) > 1 else np.zeros(1, np.int64)
        order, shares = self._order[group], self._shares[group]
        left = np.take_along_axis(rows.astype(np.float64), np.broadcast_to(order, rows.shape), 1)
        chosen = np.empty(rows.shape)
        for index in range(rows.shape[1]):
            chosen[:, index] = np.rint(left[:, index] / scale).clip(-levels, levels)
            lost = (left[:, index] - chosen[:, index] * scale)[:, None] / shares[:, index, index, None]
            left[:, index:] -= lost * shares[:, index, index:]
        steps = np.empty(rows.shape, np.int8)
        np.put_along_axis(steps, np.broadcast_to(order, rows.shape), chosen.astype(np.int8), 1)
        return steps
