"""A proven bundle on disk, or nothing: the steps of an export in order, and the manifest they end in."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from lcmem_onnx.models.checkpoint import Loaded, load_lcmem
from lcmem_onnx.models.lcmem import LCMem
from lcmem_onnx.runtime.bundle import FORMAT, FORMAT_VERSION, MANIFEST, fingerprint, open_bundle, seal
from lcmem_onnx.runtime.errors import ExportError, UsageError
from lcmem_onnx.runtime.head import check_threshold
from lcmem_onnx.runtime.preprocess import PREPROCESSING

from .parity import Parity, choose_pictures, prove
from .trace import INPUT, OUTPUT, check_graph, trace

__all__ = ["VARIANTS", "Request", "export_bundle"]

VARIANTS = ("fp32",)
HEAD = "head.json"
UNPROVEN, REPLACED = "unproven", "replaced"
"""What hidden folders beside the output are called while an export is at work."""
REFERENCE_THRESHOLD: dict[str, Any] = {
    "value": 0.5,
    "source": "the reference's default of 0.5; it was not calibrated on any pictures of yours",
}
UNKNOWN_LICENCE = "not stated: the weights are under the terms of whoever trained them"


@dataclass(frozen=True)
class Request:
    """What to export. `None` takes the checkpoint's own value, or the reference's."""

    checkpoint: Path
    out: Path
    vae: Path | None = None
    image_size: int | None = None
    variants: tuple[str, ...] = VARIANTS
    threshold: float | None = None
    pictures: Path | None = None
    name: str | None = None
    licence: str | None = None
    replace: bool = False


def export_bundle(request: Request, say: Callable[[str], None] = lambda line: None) -> Parity:
    """Export a checkpoint to a bundle folder, atomically: it is proven in a temporary folder and then renamed.

    Args:
        request: what to export.
        say: is told each step, a line each.

    Raises:
        UsageError: the output exists, or an option's value is out of range.
        CheckpointError: the checkpoint or VAE cannot be loaded.
        ExportError: a check failed, torch and onnxruntime disagree, or the disk is full.
    """
    if request.out.exists() and not request.replace:
        raise UsageError(f"{request.out} exists already: choose another --out, or replace it with --force")
    if request.out.exists() and not (request.out / MANIFEST).exists():
        raise UsageError(f"{request.out} exists and is no bundle, so --force does not replace it: choose another --out")
    _refuse_leftovers(request.out)
    unknown = sorted(set(request.variants) - set(VARIANTS))
    if unknown or not request.variants:
        raise UsageError(f"unknown variants: {', '.join(unknown)}. This version exports {', '.join(VARIANTS)}")
    if request.threshold is not None:
        check_threshold(request.threshold)
    pictures = choose_pictures(request.pictures)

    loaded = load_lcmem(request.checkpoint, request.vae)
    image_size = _image_size(request, loaded)
    say(f"loaded    {loaded.description}; pictures of {image_size}x{image_size}")
    try:
        with _draft(request.out) as draft:
            encoder = draft / "encoder.fp32.onnx"
            trace(loaded.network, image_size, encoder)
            graph = check_graph(encoder, image_size, loaded.network.features)
            say(f"traced    {graph['operators']} operators at opset {graph['opset']}, {encoder.stat().st_size / 1e6:.1f} MB")
            (draft / HEAD).write_text(json.dumps(_head(loaded.network)) + "\n", encoding="utf-8")
            manifest = _manifest(request, loaded, image_size, graph, draft)
            _write(draft / MANIFEST, manifest)
            with tempfile.TemporaryDirectory(prefix="lcmem-proof-") as work:
                parity = prove(loaded.network, draft, pictures, image_size, Path(work))
            say(
                f"proven    {parity.pictures} pictures in batches of {', '.join(map(str, parity.batch_sizes))}: embeddings "
                f"differ from torch by {parity.embedding_max:.1e} at most, scores by {parity.score_max:.1e}"
            )
            _write(draft / MANIFEST, {**manifest, "parity": {"fp32": parity.as_json()}})
            open_bundle(draft)
            _put_in_place(draft, request.out)
    except OSError as error:
        raise ExportError(f"{request.out} cannot be written: {error.strerror or error}. Nothing was left behind") from error
    return parity


def _image_size(request: Request, loaded: Loaded) -> int:
    size = loaded.image_size if request.image_size is None else request.image_size
    step = loaded.network.vae.shape.downscale if loaded.network.vae else 32
    if size < 2 * step or size > 4096 or size % step:
        raise UsageError(f"an image size of {size} does not fit this network: a multiple of {step}, {2 * step} to 4096")
    return size


@contextmanager
def _draft(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, gone afterwards whatever happens; beside it, so that renaming stays on one file system."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=_hidden(out, UNPROVEN), dir=out.parent))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _refuse_leftovers(out: Path) -> None:
    """Name what an export that was killed while it replaced a bundle left behind: it may be the only copy of the older one.

    Raises:
        UsageError: there is something.
    """
    for older in sorted(out.parent.glob(f"{glob.escape(_hidden(out, REPLACED))}*")):
        what = "delete it" if out.exists() else f"rename it to {out} to have it back, or delete it"
        raise UsageError(f"{older} is the older bundle that an export was replacing when it was stopped: {what}, and export again")


def _put_in_place(draft: Path, out: Path) -> None:
    """Rename the finished draft to `out`. An older bundle there is moved aside, and deleted only when the new one is in place.

    Raises:
        OSError: it could not be renamed. What was at `out` is there again.
    """
    draft.chmod(0o755)  # mkdtemp makes folders that only their owner may enter; a bundle is read by the gateway's user
    for path in draft.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    if not out.exists():
        draft.rename(out)
        return
    older = out.with_name(f"{_hidden(out, REPLACED)}{secrets.token_hex(4)}")
    try:
        out.rename(older)
        draft.rename(out)
    except BaseException:
        if older.is_dir() and not out.exists():
            older.rename(out)
        raise
    if older.is_symlink():  # the name was a link to a bundle elsewhere, which is left alone
        older.unlink()
    else:
        shutil.rmtree(older, ignore_errors=True)


def _hidden(out: Path, state: str) -> str:
    return f".{out.name}.{state}-"


def _head(network: LCMem) -> dict[str, Any]:
    """Decimal numbers that read back as the same float32: Python prints the shortest text that does."""
    return {
        "formula": "score = sigmoid(bias + sum(weight * abs(e1 - e2)))",
        "bias": float(network.fc_end.bias.detach()[0]),
        "weight": [float(value) for value in network.fc_end.weight.detach()[0]],
    }


def _manifest(request: Request, loaded: Loaded, image_size: int, graph: dict[str, object], draft: Path) -> dict[str, Any]:
    weights = _weights_sha256(loaded.network)
    files: dict[str, dict[str, Any]] = {
        path.name: {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in sorted(draft.iterdir())
    }
    threshold: dict[str, Any] = (
        {"value": request.threshold, "source": "given at export with --threshold"}
        if request.threshold is not None
        else loaded.threshold or REFERENCE_THRESHOLD
    )
    sources: dict[str, Path] = {"checkpoint": request.checkpoint} | ({"vae": request.vae} if request.vae else {})
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": request.name or request.checkpoint.stem,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "producer": {
            "lcmem-onnx": _version("lcmem-onnx"),
            "torch": torch.__version__,
            "onnx": _version("onnx"),
            "onnxruntime": onnxruntime.__version__,
        },
        "fingerprint": fingerprint(weights, files[HEAD]["sha256"], image_size, PREPROCESSING),
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "layout": "NHWC",
            "shape": ["batch", image_size, image_size, 3],
            "size": image_size,
            "channel_order": "RGB",
        },
        "preprocessing": PREPROCESSING,
        "embedding": {"name": OUTPUT, "dtype": "float32", "size": loaded.network.features, "range": [0.0, 1.0]},
        "head": {"file": HEAD, "formula": "score = sigmoid(bias + sum(weight * abs(e1 - e2)))"},
        "threshold": {"value": float(threshold["value"]), "source": str(threshold["source"])},
        "variants": {"fp32": {"file": "encoder.fp32.onnx", "graph": graph}},
        "files": files,
        "checkpoint": {
            "description": loaded.description,
            "weights_sha256": weights,
            **{role: {"name": path.name, "sha256": _sha256(path) if path.is_file() else None} for role, path in sources.items()},
        },
        "license": request.licence or (loaded.card or {}).get("license") or UNKNOWN_LICENCE,
        "card": loaded.card or {"summary": "Exported from a checkpoint that carries no model card."},
    }


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
