"""Find the images in files and folders, and name what is skipped."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ImageError, Reason
from .file_signatures import MAY_HOLD_IMAGES, SkipReason
from .formats import DICOM_SUFFIXES, Kind, cannot_read, identify, open_regular, refusal

__all__ = [
    "MAY_HOLD_IMAGES",
    "Found",
    "SkipReason",
    "Skipped",
    "Supplied",
    "Unfound",
    "counted",
    "image_name",
    "in_words",
    "walk",
    "walk_or_supplied",
]

_SUFFIXES = DICOM_SUFFIXES | {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".bmp", ".dib", ".gif", ".avif", ".heic"),
    *(".heif", ".jxl", ".jp2", ".j2k", ".jls", ".pnm", ".pbm", ".pgm", ".ppm", ".tga"),
}


@dataclass(frozen=True)
class Found:
    """A file to be read as an image."""

    path: Path


@dataclass(frozen=True)
class Skipped:
    """A file in a folder that is plainly not an image, and what it is instead."""

    path: Path
    reason: SkipReason


@dataclass(frozen=True)
class Supplied:
    """An image that comes from elsewhere than a file, under a name of its own.

    Attributes:
        key: its name, in results and in the gallery.
        read: gives its content, when and in the thread in which that is wanted. Raises ImageError.
    """

    key: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Unfound:
    """A path that leads to no image, and why."""

    path: Path
    error: ImageError


def counted(reasons: Iterable[SkipReason]) -> dict[str, int]:
    """Count files that were skipped, by reason; the most frequent first."""
    return {reason.value: count for reason, count in Counter(reasons).most_common()}


def walk(paths: Iterable[str | os.PathLike[str] | Found | Skipped | Unfound]) -> Iterator[Found | Skipped | Unfound]:
    """Find images: a file is always tried, a folder is searched with all below it, sorted by name.

    In a folder a file counts as an image if its suffix or its content says so. Only a file that is plainly not an image is
    skipped, for a reason that is counted (see `formats`); one in an image format that is not read, or in a format that is not
    known, is an Unfound. Links to folders are not followed, so a link cannot lead in circles or out of the folder; links to
    files are. What is not looked at is an Unfound, never left out: it may have been an image, or hold some.

    Args:
        paths: files and folders; items of an earlier walk pass through.

    Yields:
        In order, lazily: a Found or Skipped a file; an Unfound for a path that does not exist (not-found), a folder or
        file that may not be read (no-permission, read-failed), a file in a folder whose format is not read (unsupported), a
        link to a folder met on the way (link-to-folder), and a given folder that holds no image (empty-folder).
    """
    for path in paths:
        if isinstance(path, (Found, Skipped, Unfound)):
            yield path
            continue
        start = Path(path)
        try:
            is_folder = stat.S_ISDIR(os.stat(start).st_mode)
        except (OSError, ValueError) as error:
            yield Unfound(start, cannot_read(error))
            continue
        if is_folder:
            yield from _walk_given_folder(start)
        else:
            yield Found(start)


def walk_or_supplied(
    given: Iterable[str | os.PathLike[str] | Found | Skipped | Supplied | Unfound],
) -> Iterator[Found | Skipped | Supplied | Unfound]:
    """As `walk`; what is supplied stands for itself."""
    for item in given:
        if isinstance(item, Supplied):
            yield item
        else:
            yield from walk([item])


def _walk_given_folder(folder: Path) -> Iterator[Found | Skipped | Unfound]:
    images = 0
    skipped: list[SkipReason] = []
    for item in _walk_folder(folder):
        if isinstance(item, Skipped):
            skipped.append(item.reason)
        else:
            images += 1
        yield item
    if not images:
        others = f"; skipped: {in_words(counted(skipped))}" if skipped else ""
        yield Unfound(folder, ImageError(Reason.EMPTY_FOLDER, f"the folder contains no images{others}"))


def _walk_folder(folder: Path) -> Iterator[Found | Skipped | Unfound]:
    """All files below a folder. A stack of its own, since folders may be nested deeper than Python's."""
    waiting: list[tuple[Path, bool]] = [(folder, True)]
    while waiting:
        path, is_folder = waiting.pop()
        if not is_folder:
            yield _judge(path)
            continue
        try:
            with os.scandir(path) as entries:
                inside = sorted(((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries), reverse=True)
        except OSError as error:
            yield Unfound(path, cannot_read(error))
            continue
        waiting += [(path / name, is_dir) for name, is_dir in inside]


def in_words(skipped: Mapping[str, int]) -> str:
    """Return the counts of skipped files by reason, as "3 text, 1 archive"."""
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items())


def _judge(path: Path) -> Found | Skipped | Unfound:
    """Whether a file in a folder is an image. A pipe without an image's suffix is none."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return Unfound(path, ImageError(Reason.LINK_TO_FOLDER, "links to folders are not followed: give the folder itself"))
        if path.suffix.lower() in _SUFFIXES:
            return Found(path)
        if not stat.S_ISREG(mode):
            return Skipped(path, SkipReason.SPECIAL_FILE)
        with open_regular(path) as file:
            found = identify(file)
        if isinstance(found, Kind):
            return Found(path)
        return Unfound(path, refusal(found)) if found.skip is None else Skipped(path, found.skip)
    except ImageError as error:
        return Unfound(path, error)
    except (OSError, ValueError) as error:
        return Unfound(path, cannot_read(error))


def image_name(path: str | os.PathLike[str]) -> str:
    """A path as valid UTF-8 text, for JSON and SQLite: bytes that are not become `\\xNN`. Not for opening."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")
