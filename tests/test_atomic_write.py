"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from lcmem_onnx.runtime.system.atomic_write import put_whole


def test_a_file_is_put_whole_and_what_its_writer_gives_is_given(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    assert put_whole(file, lambda draft: draft.write_text("first")) == len("first")
    drafts: list[Path] = []

    def write(draft: Path) -> None:
        drafts.append(draft)
        draft.write_text("second")
        assert file.read_text() == "first", "the old content stays until the new one is whole"

    put_whole(file, write)
    assert file.read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]
    assert (drafts[0].parent, drafts[0].suffix) == (tmp_path, ".json")


def test_what_killed_processes_left_is_removed_by_who_writes_alone(tmp_path: Path) -> None:
    file, other = tmp_path / "kept.pth", tmp_path / ".kept2.pth.0123.pth"
    (tmp_path / ".kept.pth.4567.pth").write_text("half")
    other.write_text("another's")
    put_whole(file, lambda draft: draft.write_text("whole"))
    assert len(list(tmp_path.iterdir())) == 3
    put_whole(file, lambda draft: draft.write_text("whole"), alone=True)
    assert sorted(tmp_path.iterdir()) == sorted((file, other))


def test_what_fails_leaves_the_old_content_and_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    file.write_text("first")

    def write(draft: Path) -> None:
        draft.write_text("sec")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        put_whole(file, write)
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(FileNotFoundError):
        put_whole(tmp_path / "nowhere" / "kept.json", lambda draft: draft.write_text(""))


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_what_is_private_is_so_from_its_first_byte_on(tmp_path: Path) -> None:
    modes: list[int] = []

    def write(draft: Path) -> None:
        draft.write_text("names")
        modes.append(stat.S_IMODE(draft.stat().st_mode))

    put_whole(tmp_path / "names.csv", write, private=True)
    assert [*modes, stat.S_IMODE((tmp_path / "names.csv").stat().st_mode)] == [0o600, 0o600]
