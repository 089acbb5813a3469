"""A bundle: the folder in which an exported model lives, described by `bundle.json` and checked against it.

Version 2 of the format holds

* `bundle.json`, the manifest: what the model takes and gives, its threshold and where that comes from, sha256 and size of
  every other file, sha256 of the checkpoint, the figures of the export's proof, licence and model card;
* `encoder.fp32.onnx`, `encoder.int8.onnx`, `encoder.fp16.onnx` and its two other files: images to embeddings, in the
  precisions that were exported;
* `preprocess.onnx`, an image of any size to what the encoder takes, for programs that cannot use this package;
* `head.json`, the head's weight and bias as decimal numbers that give back the same float32.

Version 1 has no strangers' tail in its manifest (see `strangers`), and is the same otherwise. A bundle without a tail is written as
version 1, so that older programs can read it.

The sums protect against damage and mix-ups, not against somebody who can rewrite the folder: whoever can do that can
replace the model, manifest and all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..errors import BundleError
from ..images.preprocess import PREPROCESSING
from .head import Head, sigmoid
from .strangers import Strangers, read_strangers

__all__ = [
    "BUNDLED",
    "FORMAT",
    "FORMAT_VERSION",
    "FORMULA",
    "MANIFEST",
    "SEAL",
    "WITHOUT_STRANGERS",
    "Bundle",
    "Threshold",
    "Variant",
    "fingerprint",
    "open_bundle",
    "seal",
]

FORMAT = "lcmem-onnx-bundle"
FORMAT_VERSION = 2
WITHOUT_STRANGERS = 1
"""The format version of a bundle without a strangers' tail."""
FORMULA = "score = sigmoid(bias + sum(weight * abs(e1 - e2)))"
"""The head, as manifests state it."""
MANIFEST = "bundle.json"
BUNDLED = Path(__file__).parent.parent / "bundled"
"""The model that comes with the package."""

SEAL = "manifest_sha256"
"""The key under which `seal` puts its digest."""
CHUNK = 1 << 20
TAKEN: Mapping[str, str] = MappingProxyType({"dtype": "uint8", "layout": "NHWC", "channel_order": "RGB"})
"""What this runtime gives an encoder, by the manifest's names."""
MAX_MANIFEST_BYTES = 4 << 20
MAX_IMAGE_SIZE = 4096


@dataclass(frozen=True)
class Threshold:
    """A score at or above `value` is a match; `source` says in words where the value comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class Variant:
    """One precision of the encoder.

    Attributes:
        name: "fp32", "fp16" or "int8".
        graph: its ONNX file.
        on_cpu: the ONNX file for CPUs; the same, but for fp16.
        bytes: all its files together.
        past_gate: whether it was written although it drifts from torch by more than the export allows.
        milliseconds: an image on a CPU, as the export measured it; None where it did not.
    """

    name: str
    graph: Path
    on_cpu: Path
    bytes: int
    past_gate: bool
    milliseconds: float | None


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened bundle, its files checked.

    Attributes:
        path: the folder.
        name: what the model calls itself.
        image_size: side of the square image that the encoder takes, in pixels.
        features: length of an embedding.
        head: the head, with which embeddings are compared.
        threshold: the decision threshold on scores, with its source.
        variants: the encoder's precisions, by name.
        fingerprint: sha256 (hex) of what embeddings depend on. Embeddings of bundles with equal fingerprints compare.
        demonstration: true when the model's own card says that it must not be relied on.
        manifest: all of `bundle.json`.
        strangers: how high images of different things score; None in a bundle that does not say.
    """

    path: Path
    name: str
    image_size: int
    features: int
    head: Head
    threshold: Threshold
    variants: Mapping[str, Variant]
    fingerprint: str
    demonstration: bool
    manifest: Mapping[str, Any]
    strangers: Strangers | None = None


def fingerprint(checkpoint_sha256: str, head_sha256: str, image_size: int, preprocessing: Mapping[str, Any]) -> str:
    """sha256 (hex) of what decides an embedding: the weights, the image size and the way to it.

    Variants of one checkpoint (fp16, int8) share it, since their embeddings are proven to be interchangeable at export;
    the threshold and the card are no part of it, so changing those does not orphan an index.
    """
    decisive = [checkpoint_sha256, head_sha256, image_size, dict(preprocessing)]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with a sha256 of its own content added, so that a changed threshold shows as well as a changed weight."""
    content = {key: value for key, value in manifest.items() if key != SEAL}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return {**content, SEAL: hashlib.sha256(text.encode()).hexdigest()}


def open_bundle(path: str | os.PathLike[str] | None = None, *, unproven: bool = False) -> Bundle:
    """Open a bundle and check every file in it against the manifest.

    Args:
        path: the bundle's folder; None opens the model that comes with the package.
        unproven: open a bundle whose manifest holds no proof against torch yet. Only the export does so.

    Raises:
        BundleError: it is missing, not a bundle, of a newer format, or a file differs from what was exported.
    """
    folder = Path(path) if path is not None else BUNDLED
    manifest = _read_manifest(folder)
    if not manifest.get("parity") and not unproven:
        raise BundleError(f"{folder} is an unfinished export, not verified against torch: export the model again")
    try:
        files: dict[str, dict[str, Any]] = dict(manifest["files"])
        for name, expected in files.items():
            _check_file(folder, name, int(expected["bytes"]), str(expected["sha256"]))
        variants = {str(name): _variant(folder, files, str(name), entry) for name, entry in manifest["variants"].items()}
        head = _read_head(folder / _listed_file(files, str(manifest["head"]["file"])))
        _check_meaning(folder, manifest)
        _check_shown(manifest)
        bundle = Bundle(
            path=folder,
            name=str(manifest["name"]),
            image_size=int(manifest["input"]["size"]),
            features=int(manifest["embedding"]["size"]),
            head=head,
            threshold=Threshold(float(manifest["threshold"]["value"]), str(manifest["threshold"]["source"])),
            variants=MappingProxyType(variants),
            fingerprint=str(manifest["fingerprint"]),
            demonstration=bool(manifest["card"].get("demonstration", False)),
            manifest=MappingProxyType(manifest),
            strangers=_strangers(folder, manifest, head),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{folder / MANIFEST} has a missing or invalid entry ({error!r}): export the model again") from error
    if manifest["input"]["size"] != bundle.image_size:
        raise BundleError(f"{folder / MANIFEST} has an invalid image size, {manifest['input']['size']!r}: export the model again")
    if bundle.features != head.features or not 0 < bundle.threshold.value < 1 or not variants:
        raise BundleError(f"{folder / MANIFEST} is inconsistent: export the model again")
    if not 1 <= bundle.image_size <= MAX_IMAGE_SIZE:
        raise BundleError(f"{folder / MANIFEST} has an invalid image size, {bundle.image_size}: export the model again")
    return bundle


def _strangers(folder: Path, manifest: Mapping[str, Any], head: Head) -> Strangers | None:
    """The strangers' tail, where there is one."""
    content = manifest.get("strangers")
    if content is None:
        return None
    try:
        return read_strangers(content, str(manifest["fingerprint"]), float(sigmoid(np.asarray(head.bias))))
    except ValueError as error:
        raise BundleError(f"{folder / MANIFEST} has an invalid strangers' tail: {error}. Export the model again") from error


def _check_meaning(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a model that wants other images than this runtime would give it, or another head: its scores would be wrong."""
    given = {name: manifest["input"][name] for name in TAKEN}
    for what, stated, known in (
        ("preprocessing", dict(manifest["preprocessing"]), PREPROCESSING),
        ("input", given, dict(TAKEN)),
        ("head", str(manifest["head"]["formula"]), FORMULA),
    ):
        if stated != known:
            raise BundleError(
                f"{folder / MANIFEST} has an unsupported {what} ({stated}; this lcmem-onnx supports {known}): update "
                "lcmem-onnx, or export the model again with this version"
            )


def _check_shown(manifest: Mapping[str, Any]) -> None:
    """Fail, as a missing entry does, on what `bundle info` shows and nothing else needs."""
    for shown in (manifest["created"], manifest["license"], manifest["checkpoint"]["description"]):
        if not isinstance(shown, str):
            raise TypeError(f"{shown!r} is not text")
    for parity in dict(manifest.get("parity") or {}).values():
        for name in ("pictures", "batch_sizes", "embedding_max", "score_max"):
            if name not in parity:
                raise KeyError(name)


def _variant(folder: Path, files: Mapping[str, Any], name: str, entry: Mapping[str, Any]) -> Variant:
    graph = folder / _listed_file(files, str(entry["file"]))
    drift = entry.get("drift_on_cpu", entry.get("drift"))
    return Variant(
        name=name,
        graph=graph,
        on_cpu=folder / _listed_file(files, str(entry["on_cpu"])) if "on_cpu" in entry else graph,
        bytes=int(entry["bytes"]) if "bytes" in entry else graph.stat().st_size,
        past_gate=bool(entry.get("past_gate", False)),
        milliseconds=float(drift["milliseconds"]) if drift else None,
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder: give a bundle, as written by 'python -m export --ckpt FILE'")
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} is too large for a manifest: copy the bundle again")
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder} is not a bundle: {MANIFEST} is missing. Give a bundle, as written by 'python -m export --ckpt FILE'"
        ) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged (not valid JSON): copy the bundle again or export the model again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{path} is not the manifest of an {FORMAT}: give a bundle, as written by 'python -m export --ckpt FILE'")
    version = manifest.get("format_version")
    if type(version) is not int or not WITHOUT_STRANGERS <= version <= FORMAT_VERSION:
        raise BundleError(
            f"{path} has format version {version!r}; this lcmem-onnx reads versions {WITHOUT_STRANGERS} to {FORMAT_VERSION}. "
            "Update lcmem-onnx, or export the model again with this version"
        )
    if seal(manifest)[SEAL] != manifest.get(SEAL):
        raise BundleError(f"{path} was modified after the export: copy the bundle again or export the model again")
    return manifest


def _listed_file(files: Mapping[str, Any], name: str) -> str:
    if name not in files:
        raise KeyError(f"{name} is not listed under files")
    return name


def _check_file(folder: Path, name: str, size: int, expected: str) -> None:
    """Compare one file with its entry. Names are plain: an entry cannot point outside the bundle."""
    if not name or Path(name).name != name or name in (".", ".."):
        raise BundleError(f"{folder / MANIFEST} lists a file outside the bundle, {name!r}: copy the bundle again")
    path = folder / name
    try:
        actual_size = path.stat().st_size
        if actual_size != size:
            raise BundleError(f"{path} has {actual_size} bytes instead of {size}: copy the bundle again")
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing: copy the bundle again") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    if digest.hexdigest() != expected:
        raise BundleError(f"{path} is damaged: its sha256 differs from the manifest's. Copy the bundle again")


def _read_head(path: Path) -> Head:
    content = json.loads(path.read_text(encoding="utf-8"))
    weight = np.asarray(content["weight"], dtype=np.float32)
    bias = float(content["bias"])
    if weight.ndim != 1 or not np.isfinite(weight).all() or not np.isfinite(bias):
        raise ValueError(f"{path.name} is not a head")
    return Head(weight, bias)
