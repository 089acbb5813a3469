"""The way from RGB pixels to the encoder's input as an ONNX graph, for programs that have onnxruntime and not this package.

It is Pillow's bilinear resize, as `runtime.preprocess.resize` does it, written as two matrix products: for each axis a triangle
filter that widens with the scale, its weights computed in the graph from the image's size, and a rounding to whole levels after
each. Over many sizes of noise it was never more than one level off. ONNX's own Resize (linear, antialias) is four times as fast
(8 ms instead of 38 for 2 megapixels on one thread, like Pillow's own), but weights an image's outermost pixels otherwise: it was
up to 24 levels off in 1 % of the pixels.

The graph does not decode and does not turn: it takes 8-bit RGB, upright, without alpha. What DICOM needs before that stands in
docs/bundle.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from .trace import INPUT, OPSET

__all__ = ["IMAGE", "write_preprocessing"]

IMAGE = "picture"
IR_VERSION = 10
"""What opset 21 came with; newer ones need newer runtimes for nothing."""


def write_preprocessing(path: Path, image_size: int) -> None:
    """Write the graph.

    Its input is `image`, uint8 (height, width, 3), any size from 1 x 1; its output is `images`, uint8 (1, image_size,
    image_size, 3), as the encoder takes it.
    """
    constants = {
        "zero": np.float32(0),
        "half": np.float32(0.5),
        "one": np.float32(1),
        "top": np.float32(255),
        "target": np.float32(image_size),
        "centres": np.arange(image_size, dtype=np.float32)[:, None] + np.float32(0.5),
        "first": np.array(0, np.int64),
        "second": np.array(1, np.int64),
        "step": np.array(1, np.int64),
        "leading": np.array([0], np.int64),
        "trailing": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Shape", [IMAGE], ["shape"]),
        *_filter("width", "second"),
        *_filter("height", "first"),
        helper.make_node("Transpose", [IMAGE], ["planes"], perm=[2, 0, 1]),
        helper.make_node("Cast", ["planes"], ["levels"], to=TensorProto.FLOAT),
        # Rows first, as Pillow has it.
        helper.make_node("Transpose", ["width weights"], ["width filter"], perm=[1, 0]),
        helper.make_node("MatMul", ["levels", "width filter"], ["narrowed"]),
        *_rounded("narrowed"),
        helper.make_node("MatMul", ["height weights", "narrowed rounded"], ["resized"]),
        *_rounded("resized"),
        helper.make_node("Cast", ["resized rounded"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["bytes"], ["upright"], perm=[1, 2, 0]),
        helper.make_node("Unsqueeze", ["upright", "leading"], [INPUT]),
    ]
    graph = helper.make_graph(
        nodes,
        "preprocessing",
        [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["height", "width", 3])],
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [1, image_size, image_size, 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _filter(axis: str, which: str) -> list[NodeProto]:
    """Weights (image_size, length of the axis): 1 - |distance| / width where that is positive, each row summing to 1."""

    def name(part: str) -> str:
        return f"{axis} {part}"

    make = helper.make_node
    return [
        make("Gather", ["shape", which], [name("length")]),
        make("Cast", [name("length")], [name("float length")], to=TensorProto.FLOAT),
        make("Div", [name("float length"), "target"], [name("scale")]),
        make("Max", [name("scale"), "one"], [name("support")]),
        make("Mul", ["centres", name("scale")], [name("centres")]),
        make("Range", ["first", name("length"), "step"], [name("numbers")]),
        make("Cast", [name("numbers")], [name("float numbers")], to=TensorProto.FLOAT),
        make("Add", [name("float numbers"), "half"], [name("places")]),
        make("Sub", [name("places"), name("centres")], [name("offsets")]),
        make("Abs", [name("offsets")], [name("distances")]),
        make("Div", [name("distances"), name("support")], [name("relative")]),
        make("Sub", ["one", name("relative")], [name("heights")]),
        make("Max", [name("heights"), "zero"], [name("triangle")]),
        make("ReduceSum", [name("triangle"), "trailing"], [name("sum")], keepdims=1),
        make("Div", [name("triangle"), name("sum")], [name("weights")]),
    ]


def _rounded(value: str) -> list[NodeProto]:
    """To whole levels from 0 to 255, halves upwards, as Pillow's fixed-point arithmetic rounds."""
    return [
        helper.make_node("Add", [value, "half"], [f"{value} raised"]),
        helper.make_node("Floor", [f"{value} raised"], [f"{value} floored"]),
        helper.make_node("Clip", [f"{value} floored", "zero", "top"], [f"{value} rounded"]),
    ]
