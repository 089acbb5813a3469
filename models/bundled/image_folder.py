"""Rebuild the folder of images that the bundled model learns from, out of clones of the public repositories that hold them.

    python -m lcmem_onnx.models.bundled.image_folder --list list.csv --repositories CLONES --out images

CLONES holds each repository as `git clone` makes it, in OWNER/NAME; `list.csv` says which file at which commit each image is, and
the sha256 that it must have. Each file is read at its commit, checked, shrunk to a shorter side of at most 288 pixels and written
as JPEG. What is missing or differs is reported and left out of the list that is written. Nothing is fetched: this opens no
connection, and git is told not to. The same command goes on where it was stopped.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import click
import numpy as np
from lcmem_onnx.console.exit_codes import FAILED, Ending
from lcmem_onnx.runtime.errors import FileListError, TrainingError
from lcmem_onnx.runtime.system.atomic_write import put_whole
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

__all__ = ["Outcome", "rebuild"]

SHORTER_SIDE = 288
QUALITY = 85
COLUMNS = ("Split", "id", "path", "source_repo", "commit", "original_path", "sha256_of_original")
NAMED_AT_ONCE = 5
VOLUME_SUFFIXES = (".nii", ".nii.gz")
VOLUME_SLICES = Path(__file__).parent / "data" / "volume-slices.csv"
"""Of images that are slices of a volume, by their path in the list: axis and plane of the volume, in the orientation that nibabel
calls closest to canonical, and the values that became black and white."""
READ_FAILURES = (OSError, ValueError, SyntaxError, EOFError, KeyError, AttributeError, Image.DecompressionBombError)
"""What Pillow, pydicom and nibabel raise on files that are damaged or of another kind."""


@dataclass(frozen=True)
class Outcome:
    """What became of one row of the list: `problem` is empty if its image is there."""

    row: Mapping[str, str]
    problem: str = ""


class _MissingError(Exception):
    """A file is not to be had, is another one, or cannot be rendered; the message says which."""


class _Clone:
    """A clone that is asked for files at commits, by one git process."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
        # Of a partial clone git would fetch what is missing.
        command = ["git", "-c", "protocol.allow=never", "-C", str(folder), "cat-file", "--batch"]
        try:
            self._git = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
            )
        except OSError as error:
            raise TrainingError(f"git cannot be run: {error}. Install git") from error

    def file(self, commit: str, path: str) -> bytes:
        """Return a file's bytes.

        Raises:
            _MissingError: the clone does not hold it.
        """
        if "\n" in path or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise _MissingError("commit or path are not usable")
        assert self._git.stdin is not None
        assert self._git.stdout is not None
        try:
            self._git.stdin.write(f"{commit}:{path}\n".encode())
            self._git.stdin.flush()
            head = self._git.stdout.readline().decode(errors="replace").split()
            if len(head) != 3 or head[1] != "blob":
                raise _MissingError("not at that commit" if head else self._failure())
            data = self._git.stdout.read(int(head[2]))
            self._git.stdout.read(1)
            return data
        except OSError as error:
            raise _MissingError(self._failure()) from error

    def _failure(self) -> str:
        """What git said before it ended."""
        _, said = self._git.communicate()
        lines = said.decode(errors="replace").strip().splitlines()
        return f"git says: {lines[0]}" if lines else "git ended"

    def close(self) -> None:
        if self._git.poll() is None:
            self._git.communicate()


def rebuild(listing: Path, repositories: Path, out: Path, progress: Callable[[], None] | None = None) -> list[Outcome]:
    """Write every image of the list that the clones hold, and `list.csv` of these, into `out`; images that are there stay.

    Args:
        listing: CSV with the columns `COLUMNS` and, optionally, `size` (of the image, WIDTHxHEIGHT) and `note`.
        repositories: folder of clones, OWNER/NAME.
        progress: is called after each row.

    Returns:
        What became of each row, in the list's order.

    Raises:
        FileListError: the list cannot be read, lacks a column, or names a path outside of `out`.
        TrainingError: `out` cannot be written, or git cannot be run.
    """
    rows = _rows(listing)
    slices = _volume_slices()
    outcomes: dict[str, Outcome] = {}
    by_repository: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_repository.setdefault(row["source_repo"], []).append(row)
    for name, wanted in by_repository.items():
        with _opened(repositories, name) as clone:
            for row in wanted:
                outcomes[row["path"]] = Outcome(row, _made(row, clone, out, slices))
                if progress is not None:
                    progress()
    made = [row for row in rows if not outcomes[row["path"]].problem]
    if made:
        _save(out / "list.csv", lambda draft: _write_rows(draft, made))
    return [outcomes[row["path"]] for row in rows]


def _rows(listing: Path) -> list[dict[str, str]]:
    try:
        with listing.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            if lacking := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
                raise FileListError(f"{listing} has no column {', '.join(lacking)}: it must say where each image is from")
            rows = [{key: value or "" for key, value in row.items() if key} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileListError(f"{listing} cannot be read as a CSV file list: {error}") from error
    seen: set[str] = set()
    for row in rows:
        for column in ("path", "source_repo"):
            path = PurePosixPath(row[column])
            if not path.parts or path.is_absolute() or ".." in path.parts:
                raise FileListError(f"{listing} names {row[column]!r} as {column}: it must be a relative path without '..'")
        if row["path"] in seen:
            raise FileListError(f"{listing} lists {row['path']!r} twice")
        seen.add(row["path"])
    return rows


def _volume_slices() -> dict[str, tuple[int, int, float, float]]:
    try:
        with VOLUME_SLICES.open(encoding="utf-8", newline="") as lines:
            return {
                row["path"]: (int(row["axis"]), int(row["plane"]), float(row["black"]), float(row["white"]))
                for row in csv.DictReader(lines)
            }
    except OSError as error:
        raise TrainingError(f"{VOLUME_SLICES} cannot be read: {error}. Run this command in a checkout of the source") from error


@contextmanager
def _opened(repositories: Path, name: str) -> Iterator[_Clone | None]:
    """A clone, or None where there is none."""
    folder = repositories / name
    clone = _Clone(folder) if folder.is_dir() else None
    try:
        yield clone
    finally:
        if clone is not None:
            clone.close()


def _made(row: Mapping[str, str], clone: _Clone | None, out: Path, slices: Mapping[str, tuple[int, int, float, float]]) -> str:
    """Make a row's image, unless it is there; return what prevents that, or nothing."""
    path = out / row["path"]
    if path.exists():
        return ""
    try:
        if clone is None:
            raise _MissingError("the repository is not cloned")
        data = clone.file(row["commit"], row["original_path"])
        if hashlib.sha256(data).hexdigest() != row["sha256_of_original"]:
            raise _MissingError(
                "its sha256 differs" + (" (a Git LFS pointer)" if data.startswith(b"version https://git-lfs") else "")
            )
        image = _rendered(row, data, slices.get(row["path"]))
    except _MissingError as missing:
        return str(missing)
    _save(path, lambda draft: image.save(draft, "JPEG", quality=QUALITY))
    return ""


def _rendered(row: Mapping[str, str], data: bytes, volume_slice: tuple[int, int, float, float] | None) -> Image.Image:
    """The image at its final size: RGB, or gray for slices and DICOM."""
    name = row["original_path"].lower()
    try:
        if name.endswith(VOLUME_SUFFIXES):
            if volume_slice is None:
                raise _MissingError(f"{VOLUME_SLICES.name} does not say which slice of the volume it is")
            image = _slice_of(data, *volume_slice)
        elif name.endswith(".dcm"):
            image = _windowed(data, row.get("note", ""))
        else:
            image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = min(1.0, SHORTER_SIDE / min(image.size))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if found := re.fullmatch(r"(\d+)x(\d+)", row.get("size", "")):
            size = (int(found[1]), int(found[2]))
        return image.resize(size, Image.Resampling.BILINEAR)
    except READ_FAILURES as error:
        raise _MissingError(f"it cannot be read as an image: {error}") from error


def _slice_of(data: bytes, axis: int, plane: int, black: float, white: float) -> Image.Image:
    """One plane of a NIfTI volume, its second axis up."""
    import nibabel

    raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    volume = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(raw))  # type: ignore[no-untyped-call]
    values = np.take(np.asarray(volume.dataobj, np.float32), plane, axis).T[::-1]
    return Image.fromarray(_levels(values, black, white))


def _windowed(data: bytes, note: str) -> Image.Image:
    """A CT slice in the window that the note gives, as "window WIDTH/CENTER" in Hounsfield units."""
    import pydicom

    found = re.search(r"window (\d+)/(-?\d+)", note)
    if not found:
        raise _MissingError("its note gives no window")
    width, center = int(found[1]), int(found[2])
    dataset = pydicom.dcmread(io.BytesIO(data))
    values = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    return Image.fromarray(_levels(values, center - width / 2, center + width / 2))


def _levels(values: NDArray[np.floating], black: float, white: float) -> NDArray[np.uint8]:
    return np.asarray(np.clip((values - black) * 255.0 / (white - black), 0, 255), np.uint8)


def _save(path: Path, write: Callable[[Path], None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put_whole(path, write)
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error}. Make room, and give the same command again") from error


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@click.command(cls=Ending)
@click.option("--list", "listing", type=click.Path(path_type=Path, dir_okay=False), required=True, help="list.csv of the images.")
@click.option(
    "--repositories", type=click.Path(path_type=Path, file_okay=False, exists=True), required=True, help="Clones, as OWNER/NAME."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for images and list.csv.")
def main(listing: Path, repositories: Path, out: Path) -> None:
    """Rebuild the folder of training images from clones of public repositories."""
    with tqdm(desc="images", unit="", disable=None) as bar:
        outcomes = rebuild(listing, repositories, out, bar.update)
    problems: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if outcome.problem:
            problems.setdefault((outcome.row["source_repo"], outcome.problem), []).append(outcome.row["original_path"])
    for (repository, problem), paths in problems.items():
        more = f" and {len(paths) - NAMED_AT_ONCE} more" if len(paths) > NAMED_AT_ONCE else ""
        click.echo(f"{repository}: {problem}: {', '.join(paths[:NAMED_AT_ONCE])}{more}", err=True)
    counts = Counter(not outcome.problem for outcome in outcomes)
    click.echo(f"{counts[True]} of {len(outcomes)} images are in {out}", err=True)
    if counts[False]:
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
