"""The int8 variant: convolutions and linear layers in bytes (`qdq`), calibrated on images, weights rounded by what they see.

Some layers stay in float: what costs as much in float as in bytes, or does more damage than it saves. These are the first
convolutions of both branches, where maps are large and channels few; the VAE's last two, which give the latents; ConvNeXt's
depthwise convolutions; and the last linear layers, which give the embedding's logits. On the bundled model the trunk's stem and
first block did more damage than the rest of the trunk together, and are no slower in float. Further layers stay in float by name,
or because a sweep finds them (`sensitivities`).

What error remains is partly the same for every image: with enough images, each number of the embedding is scaled and shifted,
before its sigmoid, to be as near to fp32's as can be.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from lcmem_onnx.runtime.errors import ExportError, UsageError
from lcmem_onnx.runtime.model.session import open_session
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .gptq import Moments
from .half import SMALL
from .qdq import quantise, tensors_to_observe
from .trace import INPUT, OUTPUT, save_stripped

__all__ = ["INT8", "Layer", "Quantiser", "outliers", "quantiser"]

INT8 = "encoder.int8.onnx"
IN_FLOAT = re.compile(
    r"vae\.(encoder\.conv_in|encoder\.conv_out|quant_conv)\.|model\.features\.\d+\.\d+\.block\.0\."
    r"|model\.classifier\.|trunk\.(stem|projection|blocks\.[0-4])\."
)
QUANTISED = ("Conv", "MatMul", "Gemm")
OUTLIER = 4.0
"""A layer that alone does so many times the median layer's damage is kept in float by "auto"."""
FOR_MOMENTS = 48
"""The first so many images tell how weights are rounded; more change little and take most of the time."""
ENOUGH = 32
"""With fewer images the embedding's numbers are not corrected: two values of each are estimated."""
EDGE = 1e-6

ImageSet = NDArray[np.uint8]
Embeddings = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """A layer that can be quantised: its node's name in the graph, and its weight's in the checkpoint."""

    node: str
    weight: str


@dataclass(frozen=True)
class _Observed:
    """What calibration finds: activations' ranges, products of layers' inputs, and fp32's embeddings of the images."""

    ranges: dict[str, tuple[float, float]]
    moments: dict[str, NDArray[np.float64]]
    embeddings: Embeddings


class Quantiser:
    """An encoder ready to be quantised: calibrated once, written as often as wanted. Made by `quantiser`.

    Attributes:
        fp32: the fp32 graph.
        images: those that calibrate it, uint8 (n, size, size, 3).
        layers: those that can be quantised, in order.
    """

    def __init__(self, fp32: Path, images: ImageSet, work: Path) -> None:
        self.fp32, self.images, self._work = fp32, images, work
        self.layers = _layers(onnx.load(str(fp32)))

    @cached_property
    def _observed(self) -> _Observed:
        """One run of each image; a tensor's range is taken in the graph, so that memory does not grow with the images."""
        model = onnx.load(str(self.fp32))
        named = {layer.node for layer in self.layers}
        shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        moments = Moments({node.name: (node, shapes[node.input[1]]) for node in model.graph.node if node.name in named})
        names = sorted(tensors_to_observe(model, named))
        limits = [f"{name} {operator}" for name in names for operator in ("ReduceMin", "ReduceMax")]
        for name in names:
            for operator in ("ReduceMin", "ReduceMax"):
                model.graph.node.append(helper.make_node(operator, [name], [f"{name} {operator}"], keepdims=0))
        reported = [*limits, *moments.inputs]
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in reported)
        reporting = self._work / "reporting.onnx"
        onnx.save(model, str(reporting))
        del model
        session = open_session(reporting, "cpu").session
        reporting.unlink()
        found, embeddings = [], []
        for number, image in enumerate(self.images):
            wanted = [OUTPUT, *limits, *(moments.inputs if number < FOR_MOMENTS else ())]
            values = dict(zip(wanted, session.run(wanted, {INPUT: image[None]}), strict=True))
            if number < FOR_MOMENTS:
                moments.add(values)
            found.append([float(values[name]) for name in limits])
            embeddings.append(values[OUTPUT])
        lowest, highest = np.min(found, 0)[::2], np.max(found, 0)[1::2]
        ranges = {name: (float(lowest[index]), float(highest[index])) for index, name in enumerate(names)}
        return _Observed(ranges, moments.means(), np.concatenate(embeddings))

    def kept(self, exclude: Collection[str]) -> list[Layer]:
        """The layers that stay in float: the first and the last, `IN_FLOAT`, and those whose weights' names begin as in `exclude`.

        Raises:
            UsageError: a name fits no layer.
        """
        for name in exclude:
            if not any(layer.weight.startswith(name) for layer in self.layers):
                known = ", ".join(layer.weight for layer in self.layers[:3])
                raise UsageError(f"no layer's name begins with {name!r}; the first layers are {known}")
        ends = (self.layers[0], self.layers[-1])
        return [
            layer
            for layer in self.layers
            if layer in ends or IN_FLOAT.match(layer.weight) or layer.weight.startswith(tuple(exclude))
        ]

    def write(self, out: Path, kept: Collection[Layer]) -> None:
        """Quantise all layers but `kept`.

        Raises:
            ExportError: no layer is left.
        """
        nodes = [layer.node for layer in self.layers if layer not in kept]
        if not nodes:
            raise ExportError("every layer is kept in float: there is nothing left for int8")
        observed = self._observed
        model = onnx.load(str(self.fp32))
        in_float = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
        quantise(model, nodes, observed.ranges, observed.moments)
        _store_in_half(model, in_float)
        save_stripped(model, out)
        if len(self.images) >= ENOUGH:
            _correct(model, *_fitted(_embedded(out, self.images), observed.embeddings))
            save_stripped(model, out)

    def sensitivities(self, images: ImageSet) -> Iterator[tuple[Layer, float]]:
        """Quantise each layer alone, in order, and give the mean absolute change of the embeddings of `images`.

        One network for each layer, so this takes as long as there are layers.
        """
        reference = _embedded(self.fp32, images)
        alone = self._work / "alone.onnx"
        for layer in self.layers[1:-1]:
            self.write(alone, [other for other in self.layers if other != layer])
            yield layer, float(np.abs(_embedded(alone, images) - reference).mean())


@contextmanager
def quantiser(fp32: Path, images: ImageSet, work: Path | None = None) -> Iterator[Quantiser]:
    """A `Quantiser` of the fp32 encoder as it was traced; its files are gone afterwards.

    `images`, uint8 (n, size, size, 3), calibrate it. Its files lie in `work` meanwhile, or where the system has temporary ones.
    """
    with tempfile.TemporaryDirectory(prefix="lcmem-int8-", dir=work) as folder:
        yield Quantiser(fp32, images, Path(folder))


def outliers(found: list[tuple[Layer, float]]) -> list[Layer]:
    """The layers that "auto" keeps in float."""
    usual = float(np.median([damage for _, damage in found])) if found else 0.0
    return [layer for layer, damage in found if damage > OUTLIER * usual]


def _layers(model: ModelProto) -> list[Layer]:
    constants = {tensor.name for tensor in model.graph.initializer}
    biases = {name: str(other) for node in model.graph.node if node.op_type == "Add" for name, other in _both_ways(node, constants)}
    layers = []
    for node in model.graph.node:
        if node.op_type in QUANTISED and node.input[1] in constants:
            # The exporter transposes a linear layer's weight and gives it a number for a name; its bias keeps its own.
            bias = node.input[2] if len(node.input) > 2 else biases.get(node.output[0], "")
            weight = f"{bias.removesuffix('.bias')}.weight" if bias.endswith(".bias") else node.input[1]
            layers.append(Layer(node.name, weight.removeprefix("network.")))
    return layers


def _both_ways(node: NodeProto, constants: Collection[str]) -> Iterator[tuple[str, str]]:
    """What is added to a constant, and the constant."""
    first, second = node.input
    for name, other in ((first, second), (second, first)):
        if other in constants:
            yield name, other


def _store_in_half(model: ModelProto, names: Collection[str]) -> None:
    """Store these weights in fp16, those of any size: they are expanded once, when a session opens."""
    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name in names and values.nbytes >= SMALL and np.abs(values).max() < np.finfo(np.float16).max:
            stored = f"{tensor.name}.fp16"
            casts.append(helper.make_node("Cast", [stored], [tensor.name], name=f"expand {stored}", to=TensorProto.FLOAT))
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
    for node in reversed(casts):
        model.graph.node.insert(0, node)


def _fitted(given: Embeddings, wanted: Embeddings) -> tuple[Embeddings, Embeddings]:
    """Factor and offset, float32 (features,) each, that bring each number's logits nearest to the wanted ones' (least squares)."""
    x, y = (np.log(one / (1 - one)) for one in (each.astype(np.float64).clip(EDGE, 1 - EDGE) for each in (given, wanted)))
    apart, spread = (x - x.mean(0)) * (y - y.mean(0)), (x - x.mean(0)) ** 2
    factor = np.where(spread.mean(0) > EDGE, apart.mean(0) / np.maximum(spread.mean(0), EDGE), 1.0)
    return factor.astype(np.float32), (y.mean(0) - factor * x.mean(0)).astype(np.float32)


def _correct(model: ModelProto, factor: Embeddings, offset: Embeddings) -> None:
    """Scale and shift the embedding's numbers before their sigmoid, in place."""
    position, last = next((position, node) for position, node in enumerate(model.graph.node) if OUTPUT in node.output)
    if last.op_type != "Sigmoid":
        raise ExportError(f"the encoder ends in {last.op_type} and not in Sigmoid: int8 cannot be corrected")
    given = last.input[0]
    for name, value in (("correction factor", factor), ("correction offset", offset)):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    nodes = [
        helper.make_node("Mul", [given, "correction factor"], ["scaled logits"], name="scale logits"),
        helper.make_node("Add", ["scaled logits", "correction offset"], ["corrected logits"], name="shift logits"),
    ]
    last.input[0] = "corrected logits"
    for node in reversed(nodes):
        model.graph.node.insert(position, node)


def _embedded(model: Path, images: ImageSet) -> Embeddings:
    session = open_session(model, "cpu").session
    return np.concatenate([session.run([OUTPUT], {INPUT: image[None]})[0] for image in images])
