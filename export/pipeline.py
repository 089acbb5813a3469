"""A proven bundle on disk, or nothing: the steps of an export in order, and the manifest they end in."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from lcmem_onnx.console.terminal import printable
from lcmem_onnx.models.checkpoint import Loaded, load_lcmem
from lcmem_onnx.models.lcmem import LCMem
from lcmem_onnx.runtime.errors import ExportError, UsageError
from lcmem_onnx.runtime.images.preprocess import PREPROCESSING
from lcmem_onnx.runtime.model.bundle import (
    FORMAT,
    FORMAT_VERSION,
    FORMULA,
    MANIFEST,
    WITHOUT_STRANGERS,
    fingerprint,
    open_bundle,
    seal,
)
from lcmem_onnx.runtime.model.head import check_threshold, sigmoid
from lcmem_onnx.runtime.model.strangers import read_strangers

from .calibration_images import choose_sets, with_copies
from .drift import measured_in_torch
from .output_folder import check_free, draft_beside, put_in_place, refuse_leftovers, remove_abandoned
from .parity import Parity, choose_images, prove
from .preprocessing import IMAGE, write_preprocessing
from .trace import INPUT, OUTPUT, check_graph, save_stripped, trace
from .variants import ENCODER, VARIANTS, Making, weigh

__all__ = ["Exported", "Request", "export_bundle"]

log = logging.getLogger(__name__)
HEAD, PREPROCESS = "head.json", "preprocess.onnx"
REFERENCE_THRESHOLD: dict[str, Any] = {
    "value": 0.5,
    "source": "the reference's default of 0.5; it was not calibrated on any images of yours",
}
UNKNOWN_LICENCE = "not stated: the weights are under the terms of whoever trained them"


@dataclass(frozen=True)
class Request:
    """What to export. `None` takes the checkpoint's own value, or the reference's.

    `calibration_name` says in the manifest what the folder `calibration` holds, if the folder's path would not.
    """

    checkpoint: Path
    out: Path
    vae: Path | None = None
    image_size: int | None = None
    variants: tuple[str, ...] = VARIANTS
    threshold: float | None = None
    images: Path | None = None
    calibration: Path | None = None
    calibration_name: str | None = None
    int8_exclude: tuple[str, ...] = ()
    allow_drift: bool = False
    name: str | None = None
    licence: str | None = None
    replace: bool = False
    strangers: Path | None = None


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        parity: the proof of the graph that all variants are made from.
        variants: those in the bundle.
        left_out: those that did not pass their gates, with what they did not pass.
    """

    parity: Parity
    variants: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]


class _Steps:
    """The steps of an export, told as they begin."""

    def __init__(self, variants: Sequence[str], tell: Callable[[int, int, str], None] | None) -> None:
        self._tell, self._total, self._number = tell, 4 + 2 * len(variants), 0

    def begin(self, what: str) -> None:
        self._number += 1
        if self._tell is not None:
            self._tell(self._number, self._total, what)


def export_bundle(
    request: Request,
    say: Callable[[str], None] = log.info,
    step: Callable[[int, int, str], None] | None = None,
) -> Exported:
    """Export a checkpoint to a bundle folder, atomically: it is proven in a temporary folder and then renamed.

    Args:
        request: what to export.
        say: is told what was done, a line each; by default it is logged.
        step: is told each step that begins: its number from 1, how many there are, and what it does.

    Raises:
        UsageError: the output exists, an option's value is out of range, or the strangers' tail cannot be used.
        CheckpointError: the checkpoint or VAE cannot be loaded.
        ExportError: a check failed, torch and onnxruntime disagree, no variant passed its gates, or the disk is full.
    """
    out = request.out if request.out.name not in ("", "..") else request.out.resolve()
    check_free(out, replace=request.replace)
    refuse_leftovers(out)
    unknown = sorted(set(request.variants) - set(VARIANTS))
    if unknown or not request.variants:
        what = f"unknown variants: {', '.join(unknown)}" if unknown else "no variants were named, so nothing would be written"
        raise UsageError(f"{what}. This version exports {', '.join(VARIANTS)}")
    if request.int8_exclude and "int8" not in request.variants:
        raise UsageError("layers to exclude from int8 were given, but int8 is not among the variants")
    if request.threshold is not None:
        check_threshold(request.threshold)
    images = choose_images(request.images)

    steps = _Steps(request.variants, step)
    steps.begin("loading the checkpoint")
    loaded = load_lcmem(request.checkpoint, request.vae)
    image_size = _image_size(request, loaded)
    say(f"loaded    {loaded.description}; images of {image_size}x{image_size}")
    sets = choose_sets(request.images, request.calibration, image_size, request.calibration_name)
    if sets.warning and "int8" in request.variants:
        say(f"warning: {sets.warning}")
    try:
        for abandoned in remove_abandoned(out):
            say(f"removed   {abandoned}, left by an export that was killed")
        with draft_beside(out) as (draft, work):
            steps.begin("tracing the network")
            traced = work / "traced.onnx"
            trace(loaded.network, image_size, traced)
            graph = check_graph(traced, image_size, loaded.network.features)
            save_stripped(onnx.load(str(traced)), draft / ENCODER)
            say(f"traced    {graph['operators']} operators at opset {graph['opset']}")
            (draft / HEAD).write_text(json.dumps(_head(loaded.network)) + "\n", encoding="utf-8")
            write_preprocessing(draft / PREPROCESS, image_size)
            manifest = _manifest(request, loaded, image_size, draft)
            _write(draft / MANIFEST, {**manifest, "variants": {"fp32": {"file": ENCODER}}, "files": _files(draft)})
            steps.begin("proving fp32 against torch")
            parity = prove(loaded.network, draft, images, image_size, work)
            say(
                f"proven    {parity.images} images in batches of {', '.join(map(str, parity.batch_sizes))}: embeddings "
                f"differ from torch by {parity.embedding_max:.1e} at most, scores by {parity.score_max:.1e}"
            )
            making = Making(traced, draft, sets.calibration, request.int8_exclude, say)
            made, weighed = {}, {}
            for name in (name for name in VARIANTS if name in request.variants):
                steps.begin(f"writing {name}")
                made[name] = making.make(name)
            steps.begin("embedding the measured images in torch")
            threshold = float(manifest["threshold"]["value"])
            measured = measured_in_torch(loaded.network, threshold, *with_copies(sets.measured))
            for name, its in made.items():
                steps.begin(f"measuring {name}")
                weighed[name] = weigh(name, its, draft, measured, work, say)
            left_out = {name: its.past for name, its in weighed.items() if its.past and not request.allow_drift}
            kept = {name: its for name, its in weighed.items() if name not in left_out}
            if not kept:
                raise ExportError(
                    f"no variant is near enough to torch: {_past(left_out)}. Nothing was written; "
                    "--allow-drift writes them all the same"
                )
            _remove_all_but(draft, {MANIFEST, HEAD, PREPROCESS, *(name for its in kept.values() for name in its.files)})
            entries = {name: its.entry for name, its in kept.items()}
            if "fp32" in entries:
                entries["fp32"]["graph"] = graph
            proof = {"parity": {"fp32": parity.as_json()}, "measured_on": printable(sets.about)}
            _write(draft / MANIFEST, {**manifest, "variants": entries, "files": _files(draft), **proof})
            open_bundle(draft)
            put_in_place(draft, out, replace=request.replace)
    except OSError as error:
        raise ExportError(f"{request.out} cannot be written: {error.strerror or error}. Nothing was left behind") from error
    return Exported(parity, tuple(kept), left_out)


def _past(left_out: Mapping[str, tuple[str, ...]]) -> str:
    return "; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in left_out.items())


def _remove_all_but(folder: Path, names: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """sha256 and size of every file but the manifest."""
    return {
        path.name: {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }


def _image_size(request: Request, loaded: Loaded) -> int:
    size = loaded.image_size if request.image_size is None else request.image_size
    step = loaded.network.vae.shape.downscale if loaded.network.vae else 32
    if size < 2 * step or size > 4096 or size % step:
        raise UsageError(f"an image size of {size} does not fit this network: a multiple of {step}, {2 * step} to 4096")
    return size


def _head(network: LCMem) -> dict[str, Any]:
    """Decimal numbers that read back as the same float32: Python prints the shortest text that does."""
    return {
        "formula": FORMULA,
        "bias": float(network.fc_end.bias.detach()[0]),
        "weight": [float(value) for value in network.fc_end.weight.detach()[0]],
    }


def _manifest(request: Request, loaded: Loaded, image_size: int, draft: Path) -> dict[str, Any]:
    """All but variants, files and the proof."""
    weights = _weights_sha256(loaded.network)
    threshold: dict[str, Any] = (
        {"value": request.threshold, "source": "given at export with --threshold"}
        if request.threshold is not None
        else loaded.threshold or REFERENCE_THRESHOLD
    )
    own = fingerprint(weights, _sha256(draft / HEAD), image_size, PREPROCESSING)
    strangers = _strangers(request, loaded, own)
    sources: dict[str, Path] = {"checkpoint": request.checkpoint} | ({"vae": request.vae} if request.vae else {})
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION if strangers else WITHOUT_STRANGERS,
        "name": printable(request.name or request.checkpoint.stem),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "producer": {
            "lcmem-onnx": _version("lcmem-onnx"),
            "torch": torch.__version__,
            "onnx": _version("onnx"),
            "onnxruntime": onnxruntime.__version__,
        },
        "fingerprint": own,
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "layout": "NHWC",
            "shape": ["batch", image_size, image_size, 3],
            "size": image_size,
            "channel_order": "RGB",
        },
        "preprocessing": PREPROCESSING,
        "preprocessing_graph": {"file": PREPROCESS, "input": IMAGE, "output": INPUT},
        "embedding": {"name": OUTPUT, "dtype": "float32", "size": loaded.network.features, "range": [0.0, 1.0]},
        "head": {"file": HEAD, "formula": FORMULA},
        "threshold": {"value": float(threshold["value"]), "source": str(threshold["source"])},
        **({"strangers": strangers} if strangers else {}),
        "checkpoint": {
            "description": loaded.description,
            "weights_sha256": weights,
            **{
                role: {"name": printable(path.name), "sha256": _sha256(path) if path.is_file() else None}
                for role, path in sources.items()
            },
        },
        "license": printable(request.licence or "") or (loaded.card or {}).get("license") or UNKNOWN_LICENCE,
        "card": loaded.card or {"summary": "Exported from a checkpoint that carries no model card."},
    }


def _strangers(request: Request, loaded: Loaded, own: str) -> dict[str, Any] | None:
    """The strangers' tail of the option, or else of the checkpoint, checked against the fingerprint that the bundle will have."""
    where, content = request.checkpoint, loaded.strangers
    if request.strangers is not None:
        where = request.strangers
        try:
            content = json.loads(where.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"the strangers' tail {where} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the strangers' tail {where} is not JSON, as 'evaluate --tail' writes it: {error}") from error
    if content is None:
        return None
    bias = float(loaded.network.fc_end.bias.detach()[0])
    try:
        return read_strangers(content, own, float(sigmoid(np.asarray(bias)))).as_json()
    except ValueError as error:
        raise UsageError(f"the strangers' tail of {where} cannot be used: {error}") from error


def _weights_sha256(network: LCMem) -> str:
    """sha256 over the exported parameters, however the file wrapped them; names the VAE's part too."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(path: Path, manifest: dict[str, Any]) -> None:
    path.write_text(json.dumps(seal(manifest), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"
