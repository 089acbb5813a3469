"""CSV file lists: what is read, and a clear message for each way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from lcmem_onnx import FileListError
from lcmem_onnx.evaluation.filelist import Listed, read_file_list, write_file_list

HEADER = "Split,id,path,ds_name\n"


def written(folder: Path, text: str, images: str = "a.png b.png c.png") -> Path:
    for name in images.split():
        (folder / name).write_bytes(b"-")
    listing = folder / "list.csv"
    listing.write_text(text, encoding="utf-8")
    return listing


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    listing = written(tmp_path, "path,other,id,Split\na.png,1,p1,TRAIN\nb.png,2,p2,test\n")
    rows = read_file_list(listing)
    assert rows == [Listed("TRAIN", "p1", "a.png", tmp_path / "a.png"), Listed("TEST", "p2", "b.png", tmp_path / "b.png")]
    write_file_list(tmp_path / "again.csv", rows)
    assert read_file_list(tmp_path / "again.csv") == rows


def test_paths_are_relative_to_the_base(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    written(tmp_path / "base", "", "a.png")
    listing = written(tmp_path, HEADER + "TRAIN,p,a.png,x\n", "")
    assert read_file_list(listing, tmp_path / "base")[0].path == tmp_path / "base" / "a.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Split,path\nTRAIN,a.png\n", "no column 'id'"),
        ("", "no column 'Split', 'id', 'path'"),
        (HEADER, "lists no image"),
        (HEADER + "TRAIN,p,gone.png,\n", "1 images that are not there: 'gone.png'.*--base"),
        (HEADER + "TRAIN,p,/nowhere/gone.png,\n", "1 images that are not there: '/nowhere/gone.png'. Paths are absolute, or"),
        (HEADER + f"TRAIN,p,{'x' * 5000}.png,\n", "not there: 'x{50}[.]{3}x{46}[.]png'"),
        (HEADER + 'TRAIN," ",a.png,\n', "line 2 has no value for 'id'"),
        (HEADER + "TRAIN,p,a.png,x\nTEST,q,./a.png,x\n", "one image in two splits, TRAIN and TEST.*'./a.png'"),
        (HEADER + "TRAIN,p,a.png,x\nTEST,p,a.png,y\n", "one image in two splits, TRAIN and TEST"),
        (HEADER + "TEST,p,a.png,x\nTEST,q,a.png,x\n", "one image under two identities, 'p' and 'q'"),
        (HEADER + "TEST,p,a.png,x\nTEST,p,a.png,y\n", "one image in two data sets, 'x' and 'y'"),
        (HEADER + "TEST,p,a.png,x\nTEST,p,b.png,x\nTEST,p,a.png,x\n", "one image twice: 'a.png'"),
        (HEADER + "TRAIN,,a.png,\n", "line 2 has no value for 'id'"),
        (HEADER + "TRAIN,p\n", "line 2 has no value for 'path'"),
        (HEADER + "DEV,p,a.png,\n", "line 2 has the split 'DEV'"),
        (HEADER + "TRAIN,p,a.png,x\nTEST,p,b.png,x\n", "1 identities in more than one split \\('p'\\)"),
    ],
)
def test_a_list_that_is_wrong_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FileListError, match=message):
        read_file_list(written(tmp_path, text))


def test_one_name_in_two_data_sets_is_two_identities(tmp_path: Path) -> None:
    assert len(read_file_list(written(tmp_path, HEADER + "TRAIN,p,a.png,x\nTEST,p,b.png,y\n"))) == 2


def test_a_list_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(FileListError, match="cannot be read"):
        read_file_list(tmp_path / "none.csv")
    with pytest.raises(FileListError, match="^x{50}[.]{3}x{50} cannot be read as a CSV file list: File name too long$"):
        read_file_list(Path("x" * 9000))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_a_list_in_another_encoding_is_told_to_be_saved_as_utf_8(tmp_path: Path, encoding: str) -> None:
    listing = tmp_path / "list.csv"
    listing.write_bytes((HEADER + "TRAIN,Müller,a.png,\n").encode(encoding))
    with pytest.raises(FileListError, match="save it as UTF-8"):
        read_file_list(listing)


def test_absolute_paths_are_taken(tmp_path: Path) -> None:
    listing = written(tmp_path, HEADER + f"TRAIN,p,{tmp_path / 'a.png'},x\n")
    assert read_file_list(listing, tmp_path / "elsewhere")[0].path == tmp_path / "a.png"
