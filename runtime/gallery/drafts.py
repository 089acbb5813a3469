"""Small files that are replaced whole, and what a crash left of them and of other drafts."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import GalleryError

__all__ = ["remove_drafts", "write_atomically"]


def write_atomically(path: Path, text: str) -> None:
    """Write a file beside and rename it: under its name there is the old content or the new one. Raises OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def remove_drafts(folder: Path, *patterns: str) -> None:
    """Remove what processes that were killed left half written; for the folder's only writer.

    Drafts hold embeddings, so what is erased from the index must not stay in them.

    Raises:
        GalleryError: one cannot be removed.
    """
    try:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise GalleryError(f"what a killed process left in {folder} cannot be removed: {error.strerror}") from error
