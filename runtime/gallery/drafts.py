"""What a crash left of files in the making."""

from __future__ import annotations

from pathlib import Path

from ..errors import GalleryError

__all__ = ["remove_drafts"]


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
