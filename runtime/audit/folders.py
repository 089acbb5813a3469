"""The folders of an audit: those that are walked, and the private part of the report's."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from ..files import Found as FoundFile
from ..files import Skipped, Unfound, walk

__all__ = ["PRIVATE", "private_part", "walked"]

PRIVATE = "private"
"""The part of a report's folder that is not to be passed on: embeddings, the key of the pseudonyms, what they stand for."""


def walked(folder: Path) -> tuple[list[FoundFile | Unfound], int]:
    found: list[FoundFile | Unfound] = []
    skipped = 0
    for item in walk([folder]):
        if isinstance(item, Skipped):
            skipped += 1
        else:
            found.append(item)
    return found, skipped


def private_part(out: Path) -> Path:
    """The private part of the report's folder, made if need be, for its owner alone.

    Raises:
        UsageError: it cannot be made.
    """
    private = out / PRIVATE
    try:
        private.mkdir(parents=True, exist_ok=True, mode=0o700)
        private.chmod(0o700)
        (private / "DO-NOT-PASS-ON.txt").write_text(
            "Embeddings of pictures, the key of the pseudonyms, and the reference pictures' names. The report needs none of it.\n"
            "It lets an interrupted audit go on; remove it when the audit is done.\n",
            encoding="utf-8",
        )
    except OSError as error:
        raise UsageError(f"a report cannot be written to {out}: {error.strerror}. Give --out a folder of yours") from error
    return private
