"""Generated images: functions of their seeds, and files with a list whose splits share nobody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tqdm")

from click.testing import CliRunner
from lcmem_onnx import TrainingError
from lcmem_onnx.evaluation.filelist import read_file_list
from lcmem_onnx.models.synthetic.generate import Amounts, generate, main
from lcmem_onnx.models.synthetic.phantoms import KINDS, kind_of, phantom
from lcmem_onnx.models.synthetic.scenes import scene
from PIL import Image


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


def test_a_seed_is_an_image() -> None:
    assert (scene(3, 64) == scene(3, 64)).all()
    assert difference(scene(3, 64), scene(4, 64)) > 10
    assert (phantom(3, 0, 64) == phantom(3, 0, 64)).all()
    assert scene(3, 64).shape == phantom(3, 0, 64).shape == (64, 64, 3)
    assert scene(3, 64).dtype == phantom(3, 0, 64).dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_drawn_in_grey_and_visits_differ_less_than_people(kind: str) -> None:
    """Of many: one visit may well differ more than one other person, or there would be nothing to learn."""
    people = [seed for seed in range(400) if kind_of(seed) == kind][:6]
    films = [[phantom(person, visit, 64)[..., 0] for visit in range(2)] for person in people]
    assert all(grey.std() > 5 for visits in films for grey in visits)
    one = phantom(people[0], 0, 64)
    assert (one[..., 0] == one[..., 2]).all()
    assert all(difference(*visits) > 1 for visits in films)


def test_the_identity_does_not_depend_on_the_visit() -> None:
    """The volume's shapes are drawn whatever the level of the slice is: the visit may not move the identity's random numbers."""
    person = next(seed for seed in range(400) if kind_of(seed) == "volume")
    alike = np.mean([difference(phantom(person, visit, 64), phantom(person, visit + 1, 64)) for visit in range(6)])
    stranger = next(seed for seed in range(person + 1, 400) if kind_of(seed) == "volume")
    unlike = np.mean([difference(phantom(person, visit, 64), phantom(stranger, visit, 64)) for visit in range(6)])
    assert alike < unlike


def test_files_are_what_the_seeds_say_and_the_list_is_sound(tmp_path: Path) -> None:
    amounts = {"TRAIN": Amounts(2, 3, 2), "VAL": Amounts(1, 2, 2)}
    rows = generate(tmp_path, amounts, 48)
    assert read_file_list(tmp_path / "list.csv") == rows
    assert len(rows) == 2 + 3 * 2 + 1 + 2 * 2
    assert not {row.identity for row in rows if row.split == "TRAIN"} & {row.identity for row in rows if row.split == "VAL"}
    by_name = {row.name: row for row in rows}
    assert (np.asarray(Image.open(by_name["train/scenes/0000001.png"].path)) == scene(1, 48)).all()
    film = next(row for row in rows if row.identity == "phantom-1000000" and row.name.endswith("-1.png"))
    assert film.ds_name == kind_of(1_000_000)
    assert (np.asarray(Image.open(film.path)) == phantom(1_000_000, 1, 48)[..., 0]).all()
    stamp = film.path.stat().st_mtime_ns
    generate(tmp_path, amounts, 48)
    assert film.path.stat().st_mtime_ns == stamp  # what is there is not drawn again


def test_those_beyond_are_others(tmp_path: Path) -> None:
    amounts = {"TRAIN": Amounts(1, 2, 1), "VAL": Amounts(1, 1, 1)}
    plain = generate(tmp_path / "plain", amounts, 32)
    beyond = generate(tmp_path / "beyond", amounts, 32, beyond=2)
    assert [row.identity for row in beyond if row.split == "TRAIN"] == ["scene-2", "phantom-2", "phantom-3"]
    assert [row.identity for row in beyond if row.split == "VAL"] == [row.identity for row in plain if row.split == "VAL"]
    with pytest.raises(TrainingError, match="999998 each"):
        generate(tmp_path / "most", {"TRAIN": Amounts(999_999, 1, 1)}, 32, beyond=2)


def test_of_some_kinds_alone_the_identities_are_those_that_all_kinds_would_have(tmp_path: Path) -> None:
    rows = generate(tmp_path, {"TRAIN": Amounts(0, 5, 2, ("hand", "knee"))}, 32, beyond=10)
    people = [seed for seed in range(10, 200) if kind_of(seed) in ("hand", "knee")][:5]
    assert [row.identity for row in rows] == [f"phantom-{seed}" for seed in people for _ in range(2)]
    assert {row.ds_name for row in rows} == {"hand", "knee"}
    with pytest.raises(TrainingError, match="no phantom is a hands; there are chest, hand"):
        generate(tmp_path / "other", {"TRAIN": Amounts(0, 5, 1, ("hands",))}, 32)
    with pytest.raises(TrainingError, match="40 identities of hand: there are"):
        generate(tmp_path / "most", {"TRAIN": Amounts(0, 40, 1, ("hand",))}, 32, beyond=999_950)


def test_images_of_another_size_are_not_mixed_in(tmp_path: Path) -> None:
    generate(tmp_path, {"TRAIN": Amounts(1, 1, 1)}, 48)
    with pytest.raises(TrainingError, match=r"48 pixels wide, where 64 are wanted: choose another folder"):
        generate(tmp_path, {"TRAIN": Amounts(2, 1, 1)}, 64)
    (tmp_path / "train" / "scenes" / "0000000.png").write_bytes(b"cut off")
    with pytest.raises(TrainingError, match="not a whole image"):
        generate(tmp_path, {"TRAIN": Amounts(1, 1, 1)}, 48)


@pytest.mark.parametrize(
    ("amounts", "size", "message"),
    [
        (Amounts(-1, 1, 1), 48, "scenes and identities are 0 to"),
        (Amounts(1_000_001, 1, 1), 48, "seeds would meet"),
        (Amounts(1, 1, 0), 48, "visits 1 or more"),
        (Amounts(1, 1, 1), 8, "too small to draw in"),
    ],
)
def test_amounts_out_of_range_are_refused(tmp_path: Path, amounts: Amounts, size: int, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        generate(tmp_path, {"TRAIN": amounts}, size)


def test_the_command_refuses_what_cannot_be(tmp_path: Path) -> None:
    for option in ("--scenes=-1", "--visits=0", "--size=8"):
        done = CliRunner().invoke(main, ["--out", str(tmp_path), option])
        assert done.exit_code == 2
        assert "is not in the range" in done.stderr


def test_an_image_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("a file where a folder must be", encoding="utf-8")
    with pytest.raises(TrainingError, match="cannot be written"):
        generate(tmp_path, {"TRAIN": Amounts(1, 1, 1)}, 48)
