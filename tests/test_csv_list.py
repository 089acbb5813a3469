"""CSV lists that users write: what is read, and one clear line for each way in which one can be wrong."""

from __future__ import annotations

import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lcmem_onnx.runtime.errors import FileListError, UsageError
from lcmem_onnx.runtime.system.csv_list import read_csv_list, shortened, some_of

CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "list.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@given(rows=st.lists(st.tuples(CELL, CELL), max_size=5), mark=st.booleans())
def test_what_a_csv_writer_wrote_is_read(rows: list[tuple[str, str]], mark: bool) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "list.csv"
        with path.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("b", "further", "a"), *((b, "-", a) for a, b in rows)])
        assert [(row.values["a"], row.values["b"]) for row in read_csv_list(path, ("a", "b"))] == rows
        assert [row.get("a") for row in read_csv_list(path, ("a",))] == [a.strip() for a, _ in rows]


def test_rows_are_counted_by_lines_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'path,note\na.png,"two\nlines"\n\nb.png\nc.png,x,surplus\n')
    rows = list(read_csv_list(path, ("path",)))
    assert [row.where for row in rows] == [f"{path} line {line}" for line in (3, 5, 6)]
    assert [row.get("note") for row in rows] == ["two\nlines", "", "x"]
    assert rows[0].get("no such column") == ""


def test_a_column_may_have_several_names(tmp_path: Path) -> None:
    (row,) = read_csv_list(written(tmp_path, "path,id\na.png,7\n"), ("path", ("patient", "id")))
    assert row.require("id") == "7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path\na.png\n",
            "no column 'patient' or 'id': a list of patients must have the columns path and patient or id; .* has 'path'$",
        ),
        ("", "no column 'path', 'patient' or 'id': .* this one has none$"),
        ("path,id\na\0.png,1\n", "cannot be read as a CSV list of patients: line 2 holds a null character$"),
        (b"path,id\n\xff,1\n", "is not UTF-8 text, .*: save it as UTF-8"),
        ("path,id\na.png,1\n".encode("utf-16"), "is not UTF-8 text"),
        ("path,id\na.png,1\n".encode("utf-16-le"), "is not UTF-8 text"),
        ("path,id\n" + "x" * 200_000, "cannot be read as a CSV list of patients: field larger than field limit"),
    ],
)
def test_a_list_that_is_wrong_is_refused_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        list(read_csv_list(written(tmp_path, text), ("path", ("patient", "id")), what="list of patients", error=UsageError))
    assert "\n" not in str(caught.value)


def test_a_missing_file_folder_or_value_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileListError, match="none.csv cannot be read as a CSV file list: No such file"):
        list(read_csv_list(tmp_path / "none.csv", ("path",)))
    with pytest.raises(FileListError, match="cannot be read as a CSV file list: Is a directory"):
        list(read_csv_list(tmp_path, ("path",)))
    (row,) = read_csv_list(written(tmp_path, 'path,id\n" ",7\n'), ("path",))
    with pytest.raises(FileListError, match="line 2 has no value for 'path'$"):
        row.require("path")


def test_long_names_are_shortened_and_many_are_counted() -> None:
    assert shortened("a" * 60 + "b" * 60) == "a" * 50 + "..." + "b" * 50
    assert some_of(["a", "b", "c"]) == "'a', 'b', 'c'"
    assert some_of(["a", "b", "c", "d", "e"]) == "'a', 'b', 'c' and 2 more"
