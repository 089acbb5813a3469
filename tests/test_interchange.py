"""Exports and imports: nothing lost, nothing half done, nothing damaged or strange let in."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from lcmem_onnx.cli import main
from lcmem_onnx.runtime.errors import GalleryError, GalleryMismatchError, KeyConflictError, LcmemError, UsageError
from lcmem_onnx.runtime.gallery import Entry, Gallery, Record
from lcmem_onnx.runtime.gallery.interchange import transfer as interchange_module
from lcmem_onnx.runtime.gallery.interchange.transfer import export_gallery, import_gallery, merge_galleries, read_manifest
from lcmem_onnx.runtime.gallery.storage.schema import CALIBRATION_SETTING
from lcmem_onnx.runtime.model.bundle import Bundle, Threshold, seal
from lcmem_onnx.runtime.model.head import Head
from lcmem_onnx.runtime.privacy import SiteKey

FEATURES = 16
PATIENT = "ab" * 32
FORMATS = ["npz", "parquet"]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interchange_module, "BLOCK", 8)


@pytest.fixture(autouse=True)
def _pyarrow(request: pytest.FixtureRequest) -> None:
    if "parquet" in request.node.name:
        pytest.importorskip("pyarrow")


def make_bundle(fingerprint: str = "f" * 64, features: int = FEATURES) -> Bundle:
    head = Head(np.full(features, -6.0, np.float32), 6.0)
    return Bundle(Path(), "test", 64, features, head, Threshold(0.5, "test"), {}, fingerprint, demonstration=True, manifest={})


def entries(first: int, count: int) -> Iterator[Entry]:
    """Images of all sorts: several frames, several renderings, groups, patients, odd names, copies."""
    random = np.random.default_rng(first)
    for number in range(first, first + count):
        frames = 1 + number % 3
        views = {frame: random.random((1 + number % 2, FEATURES), dtype=np.float32) for frame in range(frames)}
        whose = (PATIENT, "cd" * 32) if number % 4 == 0 else (None, None)
        group = "north" if number % 5 == 0 else "default"
        reader = 1 + number % 2
        yield Entry(f"/pictures/ü {number}\n'.png", number.to_bytes(32, "big"), frames, views, group, *whose, reader=reader)


def rows(gallery: Gallery) -> list[tuple[object, ...]]:
    return sorted(
        (
            r.gallery,
            r.key,
            r.frame,
            r.rendering,
            r.frames,
            r.content,
            r.patient or "",
            r.study or "",
            r.embedding.tobytes(),
            r.reader,
        )
        for r in gallery.entries()
    )


@pytest.fixture
def bundle() -> Bundle:
    return make_bundle()


@pytest.fixture
def gallery(bundle: Bundle, tmp_path: Path) -> Iterator[Gallery]:
    with Gallery.create(tmp_path / "from", bundle) as gallery:
        gallery.add_all(entries(0, 30))
        gallery.set_setting(CALIBRATION_SETTING, "a threshold")
        gallery.site_key()
        yield gallery


@pytest.fixture
def empty(bundle: Bundle, tmp_path: Path) -> Iterator[Gallery]:
    with Gallery.create(tmp_path / "to", bundle) as gallery:
        yield gallery


@pytest.mark.parametrize("kind", FORMATS)
def test_what_goes_out_comes_in(kind: str, gallery: Gallery, empty: Gallery, tmp_path: Path) -> None:
    path = tmp_path / f"out.{kind}"
    made = export_gallery(gallery, path, with_paths=True)
    assert made.rows == len(rows(gallery)) > 5 * 8
    assert read_manifest(path, FEATURES) == made
    done = import_gallery(path, empty)
    assert rows(empty) == rows(gallery)
    assert (done.added, done.known, done.calibrated) == (len(gallery), 0, True)
    # What was set for one gallery is not for another; the name of the site key goes with the pseudonyms.
    assert empty.setting(CALIBRATION_SETTING) is None
    assert empty.site_key().name == gallery.site_key().name
    again = import_gallery(path, empty)
    assert (again.added, again.known) == (0, len(gallery))
    assert rows(empty) == rows(gallery)
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".out")] == []
    with pytest.raises(GalleryError, match="already exists"):
        export_gallery(gallery, path, with_paths=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_some_groups_alone_go_out(kind: str, gallery: Gallery, empty: Gallery, tmp_path: Path) -> None:
    export_gallery(gallery, tmp_path / f"north.{kind}", ["north"], with_paths=True)
    import_gallery(tmp_path / f"north.{kind}", empty)
    assert rows(empty) == [row for row in rows(gallery) if row[0] == "north"]
    with pytest.raises(UsageError, match="nowhere"):
        export_gallery(gallery, tmp_path / f"none.{kind}", ["nowhere"])


@pytest.mark.parametrize("kind", FORMATS)
def test_an_empty_gallery_goes_out_and_in(kind: str, bundle: Bundle, empty: Gallery, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "nothing", bundle) as nothing:
        export_gallery(nothing, tmp_path / f"out.{kind}", with_paths=True)
    assert import_gallery(tmp_path / f"out.{kind}", empty).added == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_any_flipped_byte_shows_or_matters_not(kind: str, gallery: Gallery, empty: Gallery, tmp_path: Path) -> None:
    """A damaged file is refused whole, or it is read as it was written."""
    export_gallery(gallery, tmp_path / f"whole.{kind}", with_paths=True)
    whole = (tmp_path / f"whole.{kind}").read_bytes()
    damaged = tmp_path / f"damaged.{kind}"
    wanted, refused = rows(gallery), 0
    for place in np.linspace(0, len(whole) - 1, 30).astype(int):
        data = bytearray(whole)
        data[place] ^= 0x10
        damaged.write_bytes(data)
        try:
            import_gallery(damaged, empty)
        except LcmemError:
            assert len(empty) == 0
            refused += 1
        else:
            assert rows(empty) == wanted
            empty.remove(gallery="default", compact=False)
            empty.remove(gallery="north", compact=False)
    assert refused > 12  # what Parquet keeps beside the rows, such as their least and greatest values, is not read


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_refused(kind: str, share: float, gallery: Gallery, empty: Gallery, tmp_path: Path) -> None:
    path = tmp_path / f"out.{kind}"
    export_gallery(gallery, path, with_paths=True)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(GalleryError, match="damaged"):
        import_gallery(path, empty)
    assert len(empty) == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_an_import_that_is_interrupted_leaves_nothing(kind: str, gallery: Gallery, empty: Gallery, tmp_path: Path) -> None:
    path = tmp_path / f"out.{kind}"
    export_gallery(gallery, path, with_paths=True)

    def interrupt(given: Iterable[Record]) -> Iterator[Record]:
        for number, row in enumerate(given):
            if number == 20:
                raise KeyboardInterrupt
            yield row

    with pytest.raises(KeyboardInterrupt):
        import_gallery(path, empty, watch=interrupt)
    assert rows(empty) == []
    with pytest.raises(KeyboardInterrupt):
        export_gallery(gallery, tmp_path / f"half.{kind}", watch=interrupt)
    assert not list(tmp_path.glob(f"*half.{kind}*"))
    import_gallery(path, empty)
    assert rows(empty) == rows(gallery)


@pytest.mark.parametrize("kind", FORMATS)
def test_another_models_embeddings_are_refused(kind: str, gallery: Gallery, tmp_path: Path) -> None:
    path = tmp_path / f"out.{kind}"
    export_gallery(gallery, path, with_paths=True)
    with Gallery.create(tmp_path / "other", make_bundle("0" * 64)) as other:
        with pytest.raises(GalleryMismatchError, match="another model"):
            import_gallery(path, other)
        with pytest.raises(GalleryMismatchError, match="another model"):
            merge_galleries([gallery], other)


def test_keys_of_other_images_are_named_and_nothing_is_added(gallery: Gallery, empty: Gallery, tmp_path: Path) -> None:
    export_gallery(gallery, tmp_path / "out.npz", with_paths=True)
    taken = [f"/pictures/ü {number}\n'.png" for number in (1, 2, 3, 4)]
    empty.add_all(Entry(key, b"\xff" * 32, 1, {0: np.full(FEATURES, 0.5, np.float32)}) for key in taken)
    before = rows(empty)
    with pytest.raises(KeyConflictError, match="4 keys refer to different images.*and 1 more"):
        import_gallery(tmp_path / "out.npz", empty)
    assert rows(empty) == before


def test_merging_keeps_one_of_what_is_in_both(gallery: Gallery, empty: Gallery, bundle: Bundle, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "second", bundle) as second:
        second.add_all([*entries(0, 10), *entries(100, 7)])
        done = merge_galleries([gallery, second], empty)
        assert len(empty) == len(gallery) + sum(entry.frames for entry in entries(100, 7))
        assert done.known == sum(entry.frames for entry in entries(0, 10))
        assert {row[1] for row in rows(empty)} == {row[1] for row in rows(gallery)} | {row[1] for row in rows(second)}


def test_pseudonyms_of_two_keys_do_not_mix(gallery: Gallery, empty: Gallery, tmp_path: Path) -> None:
    export_gallery(gallery, tmp_path / "out.npz", with_paths=True)
    empty.set_setting("site-key", "another key")
    with pytest.raises(UsageError, match="different site keys"):
        import_gallery(tmp_path / "out.npz", empty)
    with pytest.raises(UsageError, match="different site keys"):
        merge_galleries([gallery], empty)
    import_gallery(tmp_path / "out.npz", empty, without_patients=True)
    assert {row[6] for row in rows(empty)} == {""}
    assert len(empty) == len(gallery)


# -- files that were made to be wrong ------------------------------------------------------------------------------


def rewrite(path: Path, changes: dict[str, np.ndarray | None], allow_pickle: bool = False) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, values in changes.items():
        del members[f"{name}.npy"]
        if values is not None:
            stream = io.BytesIO()
            np.lib.format.write_array(stream, values, allow_pickle=allow_pickle)
            members[f"{name}.npy"] = stream.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was loaded",))


def test_a_pickle_is_never_loaded(gallery: Gallery, empty: Gallery, tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    export_gallery(gallery, path, with_paths=True)
    for name in ("manifest", "key_00000"):
        rewrite(path, {name: np.array([Evil()] * 8, object)}, allow_pickle=True)
        with pytest.raises(GalleryError, match="damaged"):
            import_gallery(path, empty)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("embedding_00000", np.zeros((8, FEATURES + 1), np.float32)),
        ("embedding_00000", np.zeros((7, FEATURES), np.float32)),
        ("embedding_00000", np.full((8, FEATURES), np.nan, np.float32)),
        ("embedding_00000", np.full((8, FEATURES), 2, np.float32)),
        ("embedding_00000", np.zeros(8, np.float32)),
        ("frame_00000", np.full(8, -1)),
        ("frame_00000", np.zeros(8)),
        ("content_00000", np.zeros((8, 31), np.uint8)),
        ("key_00000", np.array([""] * 8)),
        ("patient_00000", np.array(["Doe^John"] * 8)),
        ("key_00001", None),
        ("embedding_00001", None),
        ("manifest", np.frombuffer(b"{}", np.uint8)),
        ("manifest", np.frombuffer(b"no JSON", np.uint8)),
        ("manifest", None),
    ],
)
def test_strange_npz_files_are_refused(
    name: str, values: np.ndarray | None, gallery: Gallery, empty: Gallery, tmp_path: Path
) -> None:
    path = tmp_path / "out.npz"
    export_gallery(gallery, path, with_paths=True)
    rewrite(path, {name: values})
    with pytest.raises(GalleryError):
        import_gallery(path, empty)
    assert len(empty) == 0


def test_a_header_that_claims_much_allocates_nothing(gallery: Gallery, empty: Gallery, tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    export_gallery(gallery, path, with_paths=True)
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (10**12, FEATURES)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.npy", stream.getvalue())
    with pytest.raises(GalleryError, match="does not match its header"):
        import_gallery(path, empty)


def test_an_ordinary_npz_or_text_is_no_export(empty: Gallery, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", a=np.zeros(3))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "folder.npz").mkdir()
    for name in ("mine.npz", "text.npz", "folder.npz", "missing.npz"):
        with pytest.raises(GalleryError):
            import_gallery(tmp_path / name, empty)
    with pytest.raises(UsageError, match="unsupported suffix: expected"):
        import_gallery(tmp_path / "index.csv", empty)


def test_strange_parquet_files_are_refused(gallery: Gallery, empty: Gallery, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "out.parquet"
    export_gallery(gallery, path, with_paths=True)
    manifest = parquet.ParquetFile(path).metadata.metadata[b"lcmem-onnx"]
    table = parquet.read_table(path).replace_schema_metadata({b"lcmem-onnx": manifest})
    without = table.drop_columns(["content"])
    shorter = table.slice(0, 20)
    nothing = table.set_column(table.schema.get_field_index("key"), "key", arrow.nulls(len(table), arrow.string()))
    numbers = table.set_column(table.schema.get_field_index("key"), "key", arrow.array(range(len(table))))
    bare = table.replace_schema_metadata({})
    for wrong, said in (
        (without, "'content'"),
        (shorter, "do not match their checksum"),
        (nothing, "missing values"),
        (numbers, "'key'"),
        (bare, "not an exported index"),
    ):
        parquet.write_table(wrong, path)
        with pytest.raises(GalleryError, match=said):
            import_gallery(path, empty)
        assert len(empty) == 0
    parquet.write_table(table, path)
    assert import_gallery(path, empty).added == len(gallery)


def test_a_newer_format_is_named(gallery: Gallery, empty: Gallery, tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    export_gallery(gallery, path, with_paths=True)
    with np.load(path) as file:
        manifest = json.loads(file["manifest"].tobytes())
    rewrite(path, {"manifest": np.frombuffer(json.dumps(seal({**manifest, "format_version": 9})).encode(), np.uint8)})
    with pytest.raises(GalleryError, match="has format 9"):
        import_gallery(path, empty)


def test_without_pyarrow_the_extra_is_named(gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"lcmem-onnx\[parquet\]"):
        export_gallery(gallery, tmp_path / "out.parquet", with_paths=True)
    assert not (tmp_path / "out.parquet").exists()


def test_a_key_that_npz_cannot_hold_is_refused(empty: Gallery, tmp_path: Path) -> None:
    empty.add(Entry("odd\0", bytes(32), 1, {0: np.zeros(FEATURES, np.float32)}))
    with pytest.raises(GalleryError, match="parquet"):
        export_gallery(empty, tmp_path / "out.npz")


# -- keys and older files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_where_patients_are_known_no_file_name_goes_out_unless_it_is_asked_for(
    kind: str, gallery: Gallery, empty: Gallery, tmp_path: Path
) -> None:
    gallery.add(Entry("sop:" + "0a" * 16, b"\xee" * 32, 1, {0: np.full(FEATURES, 0.5, np.float32)}))
    named, hashed = tmp_path / f"named.{kind}", tmp_path / f"hashed.{kind}"
    assert export_gallery(gallery, named, with_paths=True).keys == "paths"
    assert export_gallery(gallery, hashed).keys == read_manifest(hashed, FEATURES).keys == "hashed"
    import_gallery(hashed, empty)
    key = gallery.site_key()
    wanted = [(group, key.key(name), *rest) for group, name, *rest in rows(gallery)]
    assert rows(empty) == sorted(wanted)
    assert all(re.fullmatch(r"(key|sop):[0-9a-f]{32}", name) for _, name, *_ in rows(empty))
    assert "sop:" + "0a" * 16 in {name for _, name, *_ in rows(empty)}  # no file name, and known to the archive by this
    if kind == "npz":
        with np.load(hashed) as file:
            assert not any("pictures" in str(text) for name in file.files if name.startswith("key") for text in file[name])
    # Once more: the same names, so that nothing is added twice; and a second export changes nothing.
    assert import_gallery(hashed, empty).added == 0
    export_gallery(empty, tmp_path / f"again.{kind}")
    with Gallery.create(tmp_path / "third", empty.bundle) as third:
        import_gallery(tmp_path / f"again.{kind}", third)
        assert rows(third) == rows(empty)


def test_without_patients_keys_stay_as_they_are(bundle: Bundle, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", bundle) as gallery:
        gallery.add_all(entry for entry in entries(0, 10) if entry.patient is None)
        assert export_gallery(gallery, tmp_path / "out.npz").keys == "paths"


def test_one_patient_in_any_group_hides_the_keys_of_all(gallery: Gallery, tmp_path: Path) -> None:
    """Of the group north every fourth image has a patient; here none is left. Its file names may tell of some."""
    for entry in entries(0, 30):
        if entry.patient and entry.gallery == "north":
            gallery.remove(key=entry.key, compact=False)
    assert export_gallery(gallery, tmp_path / "north.npz", ["north"]).keys == "hashed"
    assert export_gallery(gallery, tmp_path / "default.npz", ["default"]).keys == "hashed"
    assert export_gallery(gallery, tmp_path / "named.npz", ["north"], with_paths=True).keys == "paths"


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mask", [0o022, 0o000, 0o077])
def test_only_its_owner_can_read_an_export(kind: str, mask: int, gallery: Gallery, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        export_gallery(gallery, tmp_path / f"out.{kind}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / f"out.{kind}").stat().st_mode) == 0o600


def test_with_another_site_key_nothing_goes_out_under_pseudonyms(
    gallery: Gallery, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.close()
    SiteKey.create(tmp_path / "other.key")
    monkeypatch.setenv("LCMEM_ONNX_SITE_KEY", str(tmp_path / "other.key"))
    with Gallery.open(tmp_path / "from", bundle) as again:
        with pytest.raises(UsageError, match="another site key"):
            export_gallery(again, tmp_path / "out.npz")
        assert not list(tmp_path.glob("*out.npz*"))
        assert export_gallery(again, tmp_path / "out.npz", with_paths=True).keys == "paths"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_of_version_1_comes_in_as_read_by_the_first_reader(
    kind: str, gallery: Gallery, empty: Gallery, tmp_path: Path
) -> None:
    """Made from one of version 2 by taking away what version 1 did not have."""
    path = tmp_path / f"out.{kind}"
    export_gallery(gallery, path, with_paths=True)
    digest = hashlib.sha256()
    for row in gallery.entries():
        digest.update(interchange_module._digest(row, 1))
    old: dict[str, object] = {"format_version": 1, "sha256": digest.hexdigest()}
    if kind == "npz":
        with np.load(path) as file:
            manifest = json.loads(file["manifest"].tobytes())
            readers = {name: None for name in file.files if name.startswith("reader")}
        manifest.pop("keys")
        rewrite(path, {**readers, "manifest": np.frombuffer(json.dumps(seal({**manifest, **old})).encode(), np.uint8)})
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        manifest = json.loads(parquet.ParquetFile(path).metadata.metadata[b"lcmem-onnx"])
        manifest.pop("keys")
        table = parquet.read_table(path).drop_columns(["reader"])
        parquet.write_table(table.replace_schema_metadata({b"lcmem-onnx": json.dumps(seal({**manifest, **old}))}), path)
    import_gallery(path, empty)
    assert rows(empty) == [(*row[:-1], 1) for row in rows(gallery)]


def test_version_2_without_readers_or_with_none_is_refused(gallery: Gallery, empty: Gallery, tmp_path: Path) -> None:
    for wrong in (None, np.zeros(8, np.int64), np.full(8, 3)):
        path = tmp_path / "out.npz"
        path.unlink(missing_ok=True)
        export_gallery(gallery, path)
        rewrite(path, {"reader_00000": wrong})
        with pytest.raises(GalleryError):
            import_gallery(path, empty)
        assert len(empty) == 0


# -- the commands --------------------------------------------------------------------------------------------------


def test_the_commands_go_out_in_and_together(tmp_path: Path) -> None:
    from lcmem_onnx.runtime.model.bundle import open_bundle

    def lcmem(*arguments: str | Path) -> tuple[int, str, str]:
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.output
        return done.exit_code, done.stdout, done.stderr

    random = np.random.default_rng(0)
    with Gallery.create(tmp_path / "a", open_bundle()) as one:
        vectors = random.random((4, one.bundle.features), dtype=np.float32)
        one.add_all(Entry(f"/p/{n}.png", n.to_bytes(32, "big"), 1, {0: vector}) for n, vector in enumerate(vectors))
        one.set_setting(CALIBRATION_SETTING, "{}")
    out = tmp_path / "a.npz"
    assert lcmem("index", "export", "--index", tmp_path / "a", "--out", out)[0] == 0
    code, _, said = lcmem("index", "export", "--index", tmp_path / "a", "--out", out)
    assert (code, "already exists" in said) == (2, True)
    code, printed, said = lcmem("index", "import", out, "--index", tmp_path / "b", "--json")
    assert (code, json.loads(printed)["added"], "not carried over" in said) == (0, 4, True)
    code, printed, _ = lcmem("index", "merge", tmp_path / "a", tmp_path / "b", "--index", tmp_path / "c", "--json")
    assert (code, json.loads(printed)) == (
        0,
        {"schema_version": 1, "added": 4, "known": 4, "frames": 4, "calibration_left_behind": True},
    )
    assert lcmem("index", "merge", tmp_path / "a", "--index", tmp_path / "c")[0] == 2
    out.write_bytes(out.read_bytes()[:-300])
    code, _, said = lcmem("index", "import", out, "--index", tmp_path / "d")
    assert (code, "damaged" in said, (tmp_path / "d").exists()) == (2, True, False)
    with Gallery.open(tmp_path / "b", open_bundle(), read_only=False) as two:
        two.remove(key="/p/1.png")
        two.add(Entry("/p/1.png", b"\1" * 32, 1, {0: vectors[0]}))
    code, _, said = lcmem("index", "merge", tmp_path / "a", tmp_path / "b", "--index", tmp_path / "e")
    assert (code, "refer to different images" in said, (tmp_path / "e").exists()) == (2, True, False)


def test_an_export_with_patients_says_that_keys_are_pseudonyms_and_they_can_be_erased(tmp_path: Path) -> None:
    from lcmem_onnx.runtime.model.bundle import open_bundle

    def lcmem(*arguments: str | Path) -> tuple[int, str, str]:
        done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
        return done.exit_code, done.stdout, done.stderr

    vectors = np.random.default_rng(0).random((3, open_bundle().features), dtype=np.float32)
    with Gallery.create(tmp_path / "a", open_bundle()) as one:
        patient = one.site_key().patient("4711")
        one.add_all(Entry(f"/Doe^John/{n}.png", bytes([n]) * 32, 1, {0: vectors[n]}, patient=patient) for n in range(2))
    named, hashed = tmp_path / "named.npz", tmp_path / "hashed.npz"
    code, _, said = lcmem("index", "export", "--index", tmp_path / "a", "--out", hashed)
    assert (code, "note: keys are pseudonyms under the site key" in said) == (0, True)
    code, out, said = lcmem("index", "export", "--index", tmp_path / "a", "--out", named, "--with-paths", "--json")
    assert (code, json.loads(out)["keys"], "full paths of the indexed images" in said) == (0, "paths", True)
    assert lcmem("index", "export", "--index", tmp_path / "a", "--out", tmp_path / "quiet.npz", "-q") == (0, "", "")
    with np.load(hashed) as file:
        assert not any("Doe" in str(text) for name in file.files if name.startswith("key_") for text in file[name])
    with np.load(named) as file:
        assert list(file["key_00000"]) == ["/Doe^John/0.png", "/Doe^John/1.png"]
    assert lcmem("index", "import", hashed, "--index", tmp_path / "b", "-q")[0] == 0
    code, out, _ = lcmem("index", "remove", "--index", tmp_path / "b", "--key", "/Doe^John/1.png", "--json")
    assert (code, json.loads(out)["removed"]) == (0, 1)
    assert lcmem("index", "remove", "--index", tmp_path / "b", "--key", "/Doe^John/1.png")[0] == 2
    code, out, _ = lcmem("index", "remove", "--index", tmp_path / "b", "--patient", "4711", "--json")
    assert (code, json.loads(out)["removed"]) == (0, 1)
