"""An LCMem module to an ONNX file, and the structural checks that the file must pass."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from pathlib import Path

import onnx
import torch
from lcmem_onnx.models.lcmem import LCMem, normalise_samples
from lcmem_onnx.runtime.errors import ExportError
from torch import Tensor, nn

from .folding import folded
from .group_norm import with_exact_group_norms

__all__ = ["INPUT", "OPSET", "OUTPUT", "ImageEncoder", "check_graph", "save_stripped", "trace"]

OPSET = 21
"""Keeps GroupNormalization and Gelu as single operators. On the full-size network opset 21 took 8.1 s an image on two cores
where opset 18 took 9.3 s."""
INPUT, OUTPUT = "pictures", "embeddings"
TRACED_BATCH = 2
"""Neither 0 nor 1, which the exporter would take for constants."""


class ImageEncoder(nn.Module):
    """uint8 (n, size, size, 3) RGB to embeddings float32 (n, features) in (0, 1).

    The graph takes bytes, as decoders and Pillow's resize give them: nothing is rounded on the way, a batch is a quarter of
    the size, and the division by 255 cannot be forgotten by a gateway in another language.

    The network is computed in the cheaper form that `folding.folded` gives it.
    """

    def __init__(self, network: LCMem) -> None:
        super().__init__()
        self.network = folded(network)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        if self.network.vae is None:
            return self.network.embed(pixels)
        return self.network.embed_latents(normalise_samples(self.network.vae.moments(pixels)), pixels)


def trace(network: LCMem, image_size: int, path: Path) -> None:
    """Write the encoder as one ONNX file with a dynamic batch.

    Raises:
        ExportError: the exporter refuses the network.
    """
    example = torch.zeros((TRACED_BATCH, image_size, image_size, 3), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                with_exact_group_norms(ImageEncoder(network)).eval(),
                (example,),
                str(path),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=({0: batch},),
                external_data=False,
                verbose=False,
            )
    except OSError:
        raise  # a full disk and the like: the caller knows how to say it
    except Exception as error:
        # The exporter's errors have no common base, and wrap whatever the network raised.
        raise ExportError(f"torch.onnx.export failed: {str(error).strip().splitlines()[0]}") from error


def save_stripped(model: onnx.ModelProto, path: Path) -> None:
    """Write a model without what the exporter notes beside the nodes: Python stacks, with paths of its machine, and shapes."""
    for graph in (model.graph, *model.functions):
        del graph.metadata_props[:]
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
    del model.graph.value_info[:]
    onnx.save(model, str(path))


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """The exporter prints its progress on stdout and warns about its own internals; neither is for our user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def check_graph(path: Path, image_size: int, features: int) -> dict[str, object]:
    """Check a traced encoder's structure and describe it.

    Returns:
        opset, number of operators, and how often the kinds occur that must not be decomposed.

    Raises:
        ExportError: invalid ONNX, another opset, other names, types or shapes than the bundle promises, a fixed batch, an
            operator that draws random numbers (a VAE that samples), or one from outside the ONNX standard.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        # onnx raises its own ValidationError, and whatever protobuf and shape inference raise.
        raise ExportError(f"the exported graph is not valid ONNX: {str(error).strip().splitlines()[0]}") from error
    model = onnx.load(str(path))
    opsets = {item.domain: item.version for item in model.opset_import}
    if opsets.get("") != OPSET:
        raise ExportError(f"the exported graph has opset {opsets.get('')} instead of {OPSET}")
    _check_value(model.graph.input, INPUT, onnx.TensorProto.UINT8, [image_size, image_size, 3])
    _check_value(model.graph.output, OUTPUT, onnx.TensorProto.FLOAT, [features])

    nodes = list(model.graph.node) + [node for function in model.functions for node in function.node]
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in ("", "ai.onnx")})
    local = {f"{function.domain}.{function.name}" for function in model.functions}
    if set(foreign) - local:
        raise ExportError(f"the exported graph has operators outside the ONNX standard: {', '.join(foreign)}")
    kinds = Counter(node.op_type for node in nodes)
    random = sorted(kind for kind in kinds if kind.startswith("Random") or kind in ("Bernoulli", "Multinomial"))
    if random:
        raise ExportError(f"the exported graph draws random numbers ({', '.join(random)}): one image would have many embeddings")
    kept = {kind: kinds[kind] for kind in ("Conv", "GroupNormalization", "LayerNormalization", "Gelu") if kinds[kind]}
    return {"opset": OPSET, "operators": len(nodes), "kept_whole": kept}


def _check_value(values: object, name: str, kind: int, tail: list[int]) -> None:
    """One input or output: its name, element type, dynamic first axis and fixed other axes."""
    (value, *others) = list(values)  # type: ignore[call-overload]
    tensor = value.type.tensor_type
    shape = list(tensor.shape.dim)
    fixed = [axis.dim_value for axis in shape[1:]]
    if others or value.name != name or tensor.elem_type != kind or fixed != tail:
        raise ExportError(
            f"the exported graph has {value.name} of type {tensor.elem_type} and shape (n, {fixed}), not {name} (n, {tail})"
        )
    if not shape[0].dim_param:
        raise ExportError(f"the exported graph fixes the batch of {name} to {shape[0].dim_value}")
