"""The export: what it writes, what it proves, and that a failure leaves nothing behind that looks finished."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from click.testing import CliRunner  # noqa: E402
from lcmem_onnx.export import group_norm, output_folder, parity, pipeline  # noqa: E402
from lcmem_onnx.export.command import main  # noqa: E402
from lcmem_onnx.export.parity import EMBEDDING_TOLERANCE, choose_images, embed_in_torch  # noqa: E402
from lcmem_onnx.export.pipeline import Request, export_bundle  # noqa: E402
from lcmem_onnx.export.trace import check_graph, trace  # noqa: E402
from lcmem_onnx.models.autoencoder import AutoencoderShape  # noqa: E402
from lcmem_onnx.models.checkpoint import load_lcmem, save_lcmem  # noqa: E402
from lcmem_onnx.models.convnext import ConvNeXtShape  # noqa: E402
from lcmem_onnx.models.lcmem import LCMem  # noqa: E402
from lcmem_onnx.models.resnet import ResNetShape  # noqa: E402
from lcmem_onnx.runtime.errors import ExportError, UsageError  # noqa: E402
from lcmem_onnx.runtime.images.formats import read_file  # noqa: E402
from lcmem_onnx.runtime.images.image import open_image  # noqa: E402
from lcmem_onnx.runtime.model.bundle import open_bundle  # noqa: E402
from lcmem_onnx.runtime.model.encoder import Encoder  # noqa: E402
from lcmem_onnx.runtime.model.session import open_session  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402


def png_bomb(side: int) -> bytes:
    """A PNG of side x side grey pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compressor = zlib.compressobj(9)
    body = b"".join(compressor.compress(bytes(side + 1)) for _ in range(side)) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_the_manifest_states_what_a_stranger_needs(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    manifest = json.loads((tiny_bundle / "bundle.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["input"] == {
        "name": "pictures", "dtype": "uint8", "layout": "NHWC", "shape": ["batch", 64, 64, 3], "size": 64,
        "channel_order": "RGB",
    }  # fmt: skip
    assert set(manifest["files"]) == {
        "encoder.fp32.onnx", "encoder.fp16.onnx", "encoder.fp16-on-cpu.onnx", "encoder.fp16.weights", "encoder.int8.onnx",
        "head.json", "preprocess.onnx",
    }  # fmt: skip
    assert manifest["checkpoint"]["checkpoint"]["sha256"] == pipeline._sha256(tiny_checkpoint)
    assert manifest["parity"]["fp32"]["batch_sizes"] == [1, 2, 3]
    assert manifest["parity"]["fp32"]["pictures"] >= 3
    assert 0 <= manifest["parity"]["fp32"]["embedding_max"] <= EMBEDDING_TOLERANCE
    assert manifest["license"]
    assert manifest["card"]["summary"]
    assert not list(tiny_bundle.parent.glob(".*"))


def test_files_give_the_same_scores_as_torch_with_pillow(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """The whole way from file to score, on both sides."""
    images = choose_images(None)
    network = load_lcmem(tiny_checkpoint).network
    expected = torch.from_numpy(embed_in_torch(network, images, 64))
    bundle = open_bundle(tiny_bundle)
    actual = Encoder(bundle, provider="cpu").embed([open_image(read_file(path)).frame(0) for path in images])
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5)
    with torch.no_grad():
        scores = torch.sigmoid(network.logit(expected[:1].expand(len(expected), -1), expected)).numpy()
    np.testing.assert_allclose(bundle.head.scores(actual[0], actual), scores, atol=2e-3)


def test_the_siamese_baseline_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_lcmem(LCMem(ResNetShape(3, (3, 4, 6, 3), 128), None), tmp_path / "resnet.pth", image_size=64)
    done = export_bundle(Request(tmp_path / "resnet.pth", tmp_path / "out"))
    assert done.parity.embedding_max < EMBEDDING_TOLERANCE
    assert open_bundle(tmp_path / "out").features == 128


def test_threshold_name_and_licence_are_taken_over(tiny_checkpoint: Path, tmp_path: Path) -> None:
    request = Request(tiny_checkpoint, tmp_path / "out", threshold=0.7, name="my\n\udcffmodel", licence="CC0-1.0", image_size=32)
    export_bundle(request)
    bundle = open_bundle(tmp_path / "out")
    assert (bundle.threshold.value, bundle.name, bundle.manifest["license"], bundle.image_size) == (
        0.7,
        r"my\n\udcffmodel",  # escaped: a newline would break lines, and half a surrogate is no UTF-8
        "CC0-1.0",
        32,
    )
    assert "--threshold" in bundle.threshold.source


def test_the_users_own_images_can_prove_it(tiny_checkpoint: Path, images: Path, tmp_path: Path) -> None:
    assert export_bundle(Request(tiny_checkpoint, tmp_path / "out", images=images)).parity.images == 4
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="holds 0 images"):
        export_bundle(Request(tiny_checkpoint, tmp_path / "out2", images=tmp_path / "none"))


@pytest.mark.parametrize("failure", ["disagreement", "not finite", "crash"])
def test_a_failed_proof_leaves_nothing(
    failure: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pipeline.trace

    def spoiled(network: LCMem, image_size: int, path: Path) -> None:
        real(network, image_size, path)
        model = onnx.load(str(path))
        if failure == "crash":
            path.write_bytes(path.read_bytes()[:1000])
            return
        for tensor in model.graph.initializer:
            if list(tensor.dims) == [16]:
                values = np.array(onnx.numpy_helper.to_array(tensor))
                values[0] = np.nan if failure == "not finite" else values[0] + 0.5
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, str(path))

    monkeypatch.setattr(pipeline, "trace", spoiled)
    with pytest.raises(ExportError, match="disagree|not finite|does not run|not valid ONNX"):
        export_bundle(Request(tiny_checkpoint, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_replaced_only_when_asked_and_only_a_bundle(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "out"))
    with pytest.raises(UsageError, match="exists already"):
        export_bundle(Request(tiny_checkpoint, out))
    export_bundle(Request(tiny_checkpoint, out, name="second", replace=True))
    assert open_bundle(out).name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is no bundle"):
        export_bundle(Request(tiny_checkpoint, tmp_path / "mine", replace=True))
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("fails", [1, 2])
def test_a_bundle_is_never_lost_while_it_is_replaced(
    fails: int, kind: type[BaseException], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, draft = Path(shutil.copytree(tiny_bundle, tmp_path / "out")), Path(shutil.copytree(tiny_bundle, tmp_path / "draft"))
    before = open_bundle(out).manifest
    real, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == fails:
            raise kind("no more")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(kind, match="no more"):
        output_folder.put_in_place(draft, out, replace=True)
    assert open_bundle(out).manifest == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draft", "out"]


def test_a_leftover_of_a_killed_export_is_named_and_refused(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Killed between the two renames, in a process of its own: then nobody renames back."""
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "o[u]t"))
    program = f"""
import os, signal
from pathlib import Path
from lcmem_onnx.export import output_folder
real = Path.rename
def rename(self, target):
    if self.name == "draft":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)
Path.rename = rename
Path({str(tmp_path / "draft")!r}).mkdir()
output_folder.put_in_place(Path({str(tmp_path / "draft")!r}), Path({str(out)!r}), replace=True)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    (older,) = tmp_path.glob(".*replaced*")
    for replace in (False, True):
        with pytest.raises(UsageError, match="rename it to") as caught:
            export_bundle(Request(tiny_checkpoint, out, replace=replace))
        assert str(older) in str(caught.value)
    assert open_bundle(older).name == "tiny"
    shutil.copytree(older, out)
    with pytest.raises(UsageError, match="delete it, and export again"):
        export_bundle(Request(tiny_checkpoint, out, replace=True))


def test_what_a_killed_export_left_is_removed_by_the_next_one_and_what_is_at_work_is_not(tmp_path: Path) -> None:
    """Killed in a process of its own, while another is at work: a lock tells them apart."""
    out = tmp_path / "o[u]t"
    program = f"""
import os, signal, sys
from pathlib import Path
from lcmem_onnx.export import output_folder
with output_folder.draft_beside(Path({str(out)!r})) as draft:
    (draft.work / "traced.onnx").write_bytes(b"x")
    print("drawn", flush=True)
    sys.stdin.read()
"""
    workers = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "drawn\n"
        before = set(tmp_path.iterdir())
        assert len(before) == 2
        assert output_folder.remove_abandoned(out) == []
        workers[0].kill()
        workers[0].wait()
        (removed,) = output_folder.remove_abandoned(out)
        assert set(tmp_path.iterdir()) == before - {removed}
        workers[1].communicate("")
        assert list(tmp_path.iterdir()) == []
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_what_only_looks_like_a_leftover_is_left_alone(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "thesis.txt").write_text("years of work")
    (tmp_path / ".out.unproven-link").symlink_to(real)
    (tmp_path / ".out.unproven-file").write_text("no folder")
    (tmp_path / ".out2.unproven-x").mkdir()
    assert output_folder.remove_abandoned(tmp_path / "out") == []
    assert len(list(tmp_path.iterdir())) == 4
    assert (real / "thesis.txt").exists()


def test_folders_made_for_an_output_that_does_not_come_are_gone(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), output_folder.draft_beside(tmp_path / "a" / "b" / "out"):
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """The starter is killed, so that it can tell nobody; what ends is seen by its end of a pipe."""
    child = (
        "import time; from lcmem_onnx.runtime.system.parent_process import end_with_parent; end_with_parent();"
        "print('up', flush=True); time.sleep(60)"
    )
    starter = f"""
import subprocess, sys
from lcmem_onnx.runtime.system.parent_process import lifeline
with lifeline() as stdin:
    subprocess.run([sys.executable, "-c", {child!r}], stdin=stdin)
"""
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.kill()
        assert process.stdout.read() == ""  # comes when the child, which has that pipe too, is gone


@pytest.mark.parametrize("manifest", ["sound", "damaged"])
def test_a_bundle_that_holds_anything_else_is_not_replaced(manifest: str, tiny_bundle: Path, tmp_path: Path) -> None:
    """The checkpoint itself, say: it would be deleted with the older bundle."""
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "out"))
    if manifest == "damaged":
        (out / "bundle.json").write_text("{")
    output_folder.check_free(out, replace=True)
    shutil.copy(tiny_bundle / "head.json", out / "lcmem.pt")
    with pytest.raises(UsageError, match=r"holds what is no part of a bundle \(lcmem.pt\)"):
        output_folder.check_free(out, replace=True)
    (out / "lcmem.pt").rename(out / "encoder.pth")
    with pytest.raises(UsageError, match=r"holds what is no part of a bundle \(encoder.pth\)"):
        output_folder.check_free(out, replace=True)


@pytest.mark.parametrize("content", ['{"format": "a web page\'s scripts"}', "[]"])
def test_another_program_s_bundle_is_not_replaced(content: str, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(content)
    with pytest.raises(UsageError, match="is no bundle, so --force does not replace it"):
        output_folder.check_free(tmp_path, replace=True)


def test_what_came_while_the_export_was_at_work_is_not_replaced(tiny_bundle: Path, tmp_path: Path) -> None:
    """A second export to the same place, say, ten minutes later."""
    out, draft = Path(shutil.copytree(tiny_bundle, tmp_path / "out")), Path(shutil.copytree(tiny_bundle, tmp_path / "draft"))
    with pytest.raises(UsageError, match="exists already"):
        output_folder.put_in_place(draft, out, replace=False)
    assert open_bundle(out).name == "tiny"
    assert draft.exists()


def test_a_link_that_leads_nowhere_is_refused_at_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="leads nowhere"):
        export_bundle(Request(tiny_checkpoint, tmp_path / "out", replace=True))


def test_replacing_a_link_to_a_bundle_leaves_what_it_led_to(tiny_bundle: Path, tmp_path: Path) -> None:
    real, draft = Path(shutil.copytree(tiny_bundle, tmp_path / "real")), Path(shutil.copytree(tiny_bundle, tmp_path / "draft"))
    (tmp_path / "out").symlink_to(real)
    output_folder.put_in_place(draft, tmp_path / "out", replace=True)
    assert not (tmp_path / "out").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "real"]
    assert open_bundle(real).name == "tiny"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 50}, "multiple of 8"),
        ({"image_size": 0}, "does not fit"),
        ({"variants": ("fp64",)}, "unknown variants: fp64"),
        ({"variants": ()}, "no variants were named"),
        ({"threshold": 1.0}, "must be between 0 and 1"),
        ({"variants": ("fp32",), "int8_exclude": ("auto",)}, "int8 is not among the variants"),
    ],
)
def test_wrong_requests_are_refused(arguments: dict[str, object], message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        export_bundle(Request(tiny_checkpoint, tmp_path / "out", **arguments))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# -- the structural checks --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traced(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traced") / "encoder.onnx"
    trace(load_lcmem(tiny_checkpoint).network, 64, path)
    return path


def test_group_norm_and_gelu_stay_single_operators(traced: Path) -> None:
    kept = check_graph(traced, 64, 16)["kept_whole"]
    assert kept == {"Conv": 17, "GroupNormalization": 9, "LayerNormalization": 5, "Gelu": 2}
    kinds = {node.op_type for node in onnx.load(str(traced)).graph.node}
    assert not any(kind.startswith("Random") for kind in kinds)


@pytest.mark.parametrize("quant_conv", [True, False])
def test_the_graph_computes_no_log_variances(quant_conv: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = AutoencoderShape(48, (8, 16), 1, 4, 4, middle_attention=False, quant_conv=quant_conv)
    network = LCMem(ConvNeXtShape(4, (8, 16), (1, 1), 2, 16), shape).eval()
    trace(network, 64, tmp_path / "traced.onnx")
    weights = {tensor.name: list(tensor.dims) for tensor in onnx.load(str(tmp_path / "traced.onnx")).graph.initializer}
    last = "network.vae.quant_conv.weight" if quant_conv else "network.vae.encoder.conv_out.weight"
    assert weights[last][0] == 4
    assert network.vae is not None
    assert network.vae.moments(torch.zeros(1, 3, 64, 64)).shape[1] == 8  # the network itself is as it was
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    (got,) = open_session(tmp_path / "traced.onnx", "cpu").session.run(None, {"pictures": pixels})
    with torch.no_grad():
        wanted = network.embed(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0)
    assert np.abs(got - wanted.numpy()).max() < 1e-5


def test_the_group_norm_for_large_maps_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = torch.nn.GroupNorm(4, 8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 8, 12, 10) * 3 + 50
    with torch.no_grad():
        expected = norm.double()(x.double()).float()
        norm.float()
        monkeypatch.setattr(group_norm, "LARGE_GROUP", 0)
        exact = group_norm.with_exact_group_norms(torch.nn.Sequential(norm))
        assert isinstance(exact[0], group_norm.CentredGroupNorm)
        torch.testing.assert_close(exact(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change", ["random", "fixed batch", "name", "opset", "foreign", "size", "float input"])
def test_a_graph_that_breaks_the_contract_is_refused(change: str, traced: Path, tmp_path: Path) -> None:
    model = onnx.load(str(traced))
    graph = model.graph
    if change == "random":
        graph.node.append(helper.make_node("RandomNormal", [], ["noise"], shape=[1]))
    elif change == "fixed batch":
        graph.input[0].type.tensor_type.shape.dim[0].Clear()
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    elif change == "name":
        for node in graph.node:
            node.output[:] = ["other" if name == "embeddings" else name for name in node.output]
        graph.output[0].name = "other"
    elif change == "opset":
        model.opset_import[0].version = 20
    elif change == "foreign":
        graph.node.append(helper.make_node("Magic", ["embeddings"], ["magic"], domain="com.example"))
        model.opset_import.append(helper.make_opsetid("com.example", 1))
    elif change == "float input":
        graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(model, str(tmp_path / "bad.onnx"))
    with pytest.raises(ExportError, match="the exported graph"):
        check_graph(tmp_path / "bad.onnx", 128 if change == "size" else 64, 16)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_bundle_and_names_the_next_step(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--ckpt", str(tiny_checkpoint), "--out", str(tmp_path / "out"), "--variants", "fp32, fp16"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "proven" in result.stderr
    assert "next      lcmem-onnx bundle info" in result.stderr
    assert open_bundle(tmp_path / "out").image_size == 64


def test_the_commands_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"not a checkpoint")
    result = CliRunner().invoke(main, ["--ckpt", str(tmp_path / "bad.pt"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("text.png", b"no image", "not an image"),
        ("cut.png", None, "damaged"),
        ("bomb.png", png_bomb(20000), "too-large"),
        ("empty.png", b"", "empty file"),
    ],
)
def test_an_image_that_cannot_prove_it_is_named_before_anything_is_loaded(
    name: str, content: bytes | None, says: str, images: Path, tmp_path: Path
) -> None:
    for path in sorted(images.iterdir())[2:]:
        path.unlink()
    (images / name).write_bytes((images / "0.png").read_bytes()[:300] if content is None else content)
    result = CliRunner().invoke(main, ["--ckpt", str(tmp_path / "none.pt"), "--images", str(images)])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"error: {images / name} cannot prove an export: ")
    assert says in result.stderr


def test_what_only_pillow_refuses_is_an_error_of_one_line_too(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UsageError, match="Pillow says Image size .* exceeds limit"):
        parity._upright(images / "0.png")


def test_a_name_with_a_newline_stays_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines.pt"
    path.write_text("no checkpoint")
    result = CliRunner().invoke(main, ["--ckpt", str(path), "--out", str(tmp_path / "out")])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "two\\nlines.pt is no checkpoint" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (ZeroDivisionError("x"), 2, "error: this is a defect in lcmem-onnx; please report the lines above"),
        (KeyboardInterrupt(), 130, "interrupted: nothing was written"),
        (MemoryError(), 2, "error: out of memory"),
        (BrokenPipeError(32, "Broken pipe"), 2, "error: output closed early; results are incomplete"),
    ],
)
def test_whatever_happens_the_command_ends_as_all_do(
    error: BaseException, code: int, last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "export_bundle", fails)
    result = CliRunner().invoke(main, ["--ckpt", str(tmp_path / "x.pt")])
    assert result.exit_code == code
    assert result.stderr.splitlines()[-1] == last
