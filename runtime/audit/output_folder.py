"""Make the folder of a report, with its private part, apart from the folders of images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import UsageError

__all__ = ["PRIVATE", "PRIVATE_FILE", "prepare_output"]

PRIVATE = "private"
"""The part of a report's folder that is not to be passed on: embeddings, the key of the pseudonyms, what they stand for."""
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
NOTICE = "DO-NOT-PASS-ON.txt"
NOTICE_TEXT = (
    "Embeddings of images, the key of the pseudonyms, and the reference images' names. The report needs none of it.\n"
    "It lets an interrupted audit go on; remove it when the audit is done.\n"
)

Place = tuple[int, int]
"""A folder on disk, by its device and inode: the same by whatever path, link, mount or spelling it is reached."""


def prepare_output(out: Path, released: Path, kept: Mapping[str, Path]) -> Path:
    """Make the report's folder and its private part, which only its owner may read, and return the folder without links.

    Args:
        released: the set that is given away.
        kept: the sets that are not, by what they are to the audit ("the reference").

    Raises:
        UsageError: the folder lies in one of the sets, or holds one that is not given away; or it cannot be made.
    """
    real = Path(os.path.realpath(out))
    try:
        _refuse_overlap(out, real, released, kept)
        real.mkdir(parents=True, exist_ok=True)
        _make_private(real / PRIVATE)
    except OSError as error:
        raise UsageError(f"a report cannot be written to {out}: {error.strerror}. Give --out a folder of yours") from error
    return real


def _make_private(private: Path) -> None:
    private.mkdir(exist_ok=True, mode=PRIVATE_FOLDER)
    private.chmod(PRIVATE_FOLDER)  # the mask may have taken bits from it, and an older one may have more
    for path in private.iterdir():
        if path.is_file() and not path.is_symlink():
            path.chmod(PRIVATE_FILE)
    notice = os.open(private / NOTICE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE)
    with os.fdopen(notice, "w", encoding="utf-8") as file:
        file.write(NOTICE_TEXT)
    (private / NOTICE).chmod(PRIVATE_FILE)


def _refuse_overlap(out: Path, real: Path, released: Path, kept: Mapping[str, Path]) -> None:
    private = Path(os.path.realpath(real / PRIVATE))
    if private != real / PRIVATE:
        raise UsageError(f"{out / PRIVATE} is a link to {private}: the private part must be a folder of its own. Remove the link")
    above = _above(real)
    # A copy of the released set may follow the links in it.
    if not above.isdisjoint(_folders(released, follow=True)):
        raise UsageError(
            f"--out {out} lies in the released set {released}: the private part would be given away with it. Give --out a "
            "folder outside"
        )
    own = _place(real)
    for what, folder in kept.items():
        if not above.isdisjoint(_folders(folder, follow=False)):
            raise UsageError(f"--out {out} lies in {what} {folder}, which would mix the two. Give --out a folder outside")
        if own is not None and own in _above(Path(os.path.realpath(folder))):
            raise UsageError(
                f"--out {out} holds {what} {folder}, which would be passed on with the report. Give --out another folder"
            )


def _place(path: Path) -> Place | None:
    """Return where a folder is on disk; None if it is not there, or is not a folder."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return None
    return (facts.st_dev, facts.st_ino) if path.is_dir() else None


def _above(path: Path) -> set[Place]:
    """Return a folder's place and those of all folders above it, as far as they exist."""
    return {place for each in (path, *path.parents) if (place := _place(each)) is not None}


def _folders(top: Path, *, follow: bool) -> Iterator[Place]:
    """Yield the places of a folder and of all below it; with `follow`, also of the folders that links in it lead to."""
    first = _place(top)
    if first is None:
        return
    yield first
    waiting = [top]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                below = [entry for entry in entries if entry.is_dir(follow_symlinks=follow)]
        except OSError:  # reading the set says what is wrong with it
            continue
        for entry in below:
            place = _place(Path(entry.path))
            if place is not None:
                yield place
            if not entry.is_symlink():
                waiting.append(Path(entry.path))
