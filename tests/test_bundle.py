from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lcmem_onnx.runtime.errors import BundleError
from lcmem_onnx.runtime.model.bundle import BUNDLED, MANIFEST, fingerprint, open_bundle, seal


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any], *, sealed: bool = True) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(seal(manifest) if sealed else manifest))


def test_an_exported_bundle_opens(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert (bundle.image_size, bundle.features, bundle.head.features) == (64, 16, 16)
    assert bundle.threshold.value == 0.5
    assert "not calibrated" in bundle.threshold.source
    assert bundle.demonstration
    assert set(bundle.variants) == {"fp32", "fp16", "int8"}
    assert len(bundle.fingerprint) == 64


def test_the_bundled_model_opens_and_says_what_it_is() -> None:
    bundle = open_bundle()
    assert bundle.path == BUNDLED
    assert bundle.demonstration
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 40e6


@pytest.mark.parametrize("name", ["encoder.fp32.onnx", "head.json"])
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_one_changed_byte_anywhere_is_noticed(name: str, place: float, copy: Path) -> None:
    data = bytearray((copy / name).read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        open_bundle(copy)


def test_a_changed_manifest_is_noticed(copy: Path) -> None:
    rewrite(copy, lambda manifest: manifest["threshold"].update(value=0.01), sealed=False)
    with pytest.raises(BundleError, match="was modified after the export"):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=3), "format version 3"),
        (lambda m: m.update(format="something"), "is not the manifest of"),
        (lambda m: m.update(parity={}), "unfinished export"),
        (lambda m: m.pop("head"), "missing or invalid entry"),
        (lambda m: m.update(threshold={"value": "high", "source": ""}), "missing or invalid entry"),
        (lambda m: m["threshold"].update(value=1.5), "is inconsistent"),
        (lambda m: m["embedding"].update(size=17), "is inconsistent"),
        (lambda m: m.update(variants={}), "is inconsistent"),
        (lambda m: m["input"].update(size=10**6), "image size"),
        (lambda m: m["files"].update({"../x": {"sha256": "", "bytes": 0}}), "outside the bundle"),
        (lambda m: m["variants"]["fp32"].update(file="../x.onnx"), "missing or invalid entry"),
        (lambda m: m.update(format_version=True), "format version True"),
        (lambda m: m["input"].update(size=64.7), "invalid image size, 64.7"),
        (lambda m: m["preprocessing"].update(resize="nearest"), "unsupported preprocessing"),
        (lambda m: m.pop("preprocessing"), "missing or invalid entry"),
        (lambda m: m["input"].update(channel_order="BGR"), "unsupported input"),
        (lambda m: m["head"].update(formula="cosine"), "unsupported head"),
        (lambda m: m.pop("created"), "missing or invalid entry.*created"),
        (lambda m: m.update(license=5), "missing or invalid entry"),
        (lambda m: m.pop("checkpoint"), "missing or invalid entry.*checkpoint"),
        (lambda m: m.update(parity=True), "missing or invalid entry"),
        (lambda m: m["parity"].update(fp32={}), "missing or invalid entry.*pictures"),
        (lambda m: m["files"].update({"gone.onnx": {"sha256": "", "bytes": 0}}), "is missing"),
    ],
)
def test_a_manifest_that_promises_nonsense_is_refused(change: Callable[[Any], Any], message: str, copy: Path) -> None:
    rewrite(copy, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_json_is_refused(content: bytes, copy: Path) -> None:
    (copy / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match="damaged|is not the manifest of"):
        open_bundle(copy)


def test_a_truncated_file_a_missing_bundle_and_a_file_are_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "head.json").write_text("{}")
    with pytest.raises(BundleError, match="bytes instead of"):
        open_bundle(copy)
    with pytest.raises(BundleError, match="is not a folder"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match="is not a folder"):
        open_bundle(copy / MANIFEST)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="bundle.json is missing"):
        open_bundle(tmp_path / "empty")


def test_the_fingerprint_depends_on_what_embeddings_depend_on() -> None:
    base = fingerprint("a", "b", 256, {"resize": "bilinear"})
    assert base == fingerprint("a", "b", 256, {"resize": "bilinear"})
    others = [
        fingerprint("x", "b", 256, {"resize": "bilinear"}),
        fingerprint("a", "x", 256, {"resize": "bilinear"}),
        fingerprint("a", "b", 512, {"resize": "bilinear"}),
        fingerprint("a", "b", 256, {"resize": "nearest"}),
    ]
    assert len({base, *others}) == 5
