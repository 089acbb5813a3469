"""The int8 variant: static quantisation with onnxruntime's tools, QDQ, weights per channel.

Convolutions and linear layers with constant weights are quantised, nothing else: normalisations, statistics and activations between
them stay in float. So do the first convolution, which sees the pixels, the VAE's last two, which give the latents (a sweep over the
layers of the bundled model found them to do twice the damage of any other), and the last linear layer, which gives the embedding's
logits; further layers by name, or those that a sweep finds out (`sensitivities`).

Weights take 7 bits, not 8. On processors without VNNI, products of unsigned and signed bytes are summed in pairs in 16 bits, and
two large ones saturate; with 7-bit weights they cannot. One file is then right everywhere. Measured on the bundled model, mean
difference of embeddings from fp32: 7 bits .0128 on a processor with VNNI and .0125 on an emulated one with AVX2 alone; 8 bits .0154
and .0231.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from lcmem_onnx.runtime.errors import ExportError, UsageError
from lcmem_onnx.runtime.providers import open_session
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from .trace import INPUT, OUTPUT, save_stripped

__all__ = ["INT8", "Layer", "Quantiser", "outliers", "quantiser"]

INT8 = "encoder.int8.onnx"
LATENTS = ("vae.encoder.conv_out.", "vae.quant_conv.")
QUANTISED = ("Conv", "MatMul", "Gemm")
OUTLIER = 4.0
"""A layer that alone does so many times the median layer's damage is kept in float by "auto"."""

Pictures = NDArray[np.uint8]
Embeddings = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """A layer that can be quantised: its node's name in the graph, and its weight's in the checkpoint."""

    node: str
    weight: str


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, pictures: Pictures) -> None:
        self._rest = iter(pictures)

    def get_next(self) -> dict[str, Pictures] | None:
        picture = next(self._rest, None)
        return None if picture is None else {INPUT: picture[None]}


class Quantiser:
    """An encoder ready to be quantised: calibrated once, written as often as wanted. Made by `quantiser`.

    Attributes:
        prepared: the fp32 graph, types of its tensors noted; it lasts as long as the `quantiser`.
        layers: those that can be quantised, in order.
    """

    def __init__(self, fp32: Path, pictures: Pictures, work: Path) -> None:
        self._work, self._pictures = work, pictures
        self.prepared, self._ranges = work / "prepared.onnx", work / "ranges.json"
        try:
            # Shapes only: its optimisation would take GroupNormalization apart.
            quant_pre_process(str(fp32), str(self.prepared), skip_symbolic_shape=True, skip_optimization=True)
        except Exception as error:  # onnxruntime's and onnx's exceptions have no common base below it
            raise ExportError(f"onnxruntime cannot prepare {fp32.name} for int8: {error}") from error
        self.layers = _layers(onnx.load(str(self.prepared)))

    def pictures(self) -> CalibrationDataReader:
        """The calibration pictures, from the first, as onnxruntime's tools read them."""
        return _Calibration(self._pictures)

    def kept(self, exclude: Collection[str]) -> list[Layer]:
        """The layers that stay in float: the first, the latents', the last, and those whose weights' names begin as in `exclude`.

        Raises:
            UsageError: a name fits no layer.
        """
        for name in exclude:
            if not any(layer.weight.startswith(name) for layer in self.layers):
                known = ", ".join(layer.weight for layer in self.layers[:3])
                raise UsageError(f"no layer's name begins with {name!r}; the first layers are {known}")
        ends = (self.layers[0], self.layers[-1])
        named = (*LATENTS, *exclude)
        return [layer for layer in self.layers if layer in ends or layer.weight.startswith(named)]

    def write(self, out: Path, kept: Collection[Layer]) -> None:
        """Quantise all layers but `kept`.

        Raises:
            ExportError: onnxruntime cannot.
        """
        nodes = [layer.node for layer in self.layers if layer not in kept]
        if not nodes:
            raise ExportError("every layer is kept in float: there is nothing left for int8")
        logger = logging.getLogger()
        level = logger.level
        logger.setLevel(logging.ERROR)  # onnxruntime's tools advise on the root logger to do what was done just before
        try:
            quantize_static(
                str(self.prepared),
                str(out),
                self.pictures(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                nodes_to_quantize=nodes,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                calibration_cache_path=self._ranges,
            )
        except Exception as error:
            raise ExportError(f"onnxruntime cannot quantise the encoder: {error}") from error
        finally:
            logger.setLevel(level)
        save_stripped(onnx.load(str(out)), out)

    def sensitivities(self, pictures: Pictures) -> Iterator[tuple[Layer, float]]:
        """Quantise each layer alone, in order, and give the mean absolute change of the embeddings of `pictures`.

        One network for each layer, so this takes as long as there are layers.
        """
        reference = _embedded(self.prepared, pictures)
        alone = self._work / "alone.onnx"
        for layer in self.layers[1:-1]:
            self.write(alone, [other for other in self.layers if other != layer])
            yield layer, float(np.abs(_embedded(alone, pictures) - reference).mean())


@contextmanager
def quantiser(fp32: Path, pictures: Pictures, work: Path | None = None) -> Iterator[Quantiser]:
    """A `Quantiser` of the fp32 encoder as it was traced, with the types of its tensors noted; its files are gone afterwards.

    `pictures`, uint8 (n, size, size, 3), calibrate it. Its files lie in `work` meanwhile, or where the system has temporary ones.
    """
    with tempfile.TemporaryDirectory(prefix="lcmem-int8-", dir=work) as folder:
        yield Quantiser(fp32, pictures, Path(folder))


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


def _embedded(model: Path, pictures: Pictures) -> Embeddings:
    session = open_session(model, "cpu").session
    return np.concatenate([session.run([OUTPUT], {INPUT: picture[None]})[0] for picture in pictures])
