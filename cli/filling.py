"""What filling an index prints, wherever the pictures come from: a line or an error a picture, and the sum of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING

import click

from ..display import printable, progress, say
from ..ending import FAILED, NOTHING_FOUND

if TYPE_CHECKING:
    from ..runtime.gallery import Gallery
    from ..runtime.outcomes import Indexed

__all__ = ["Filling"]


class Filling:
    """Counts and prints what became of the pictures that were to be added.

    Args:
        as_json: a line of JSON a picture, on stdout.
        quiet: no progress, no summary.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._as_json, self._quiet = as_json, quiet
        self._counts = {"new": 0, "known": 0, "copy": 0, "error": 0}

    def follow(self, outcomes: Iterable[Indexed], total: int | None, doing: str) -> None:
        """Go through the outcomes, which adds the pictures."""
        no_bar = self._quiet or (self._as_json and sys.stdout.isatty())
        with closing(progress(iter(outcomes), total, doing, no_bar, lambda done: done.path)) as shown:
            for outcome in shown:
                if outcome.added:
                    self._counts[outcome.added.value] += 1
                for frame, reason, detail in outcome.errors:
                    self._counts["error"] += 1
                    if not self._as_json:
                        place = outcome.path if frame is None else f"{outcome.path} frame {frame}"
                        say(f"error: {printable(place)}: {printable(detail)} [{reason}]")
                if self._as_json:
                    click.echo(json.dumps(outcome.as_json()))

    def summed_up(self, gallery: Gallery, *, known: int = 0, others: str = "") -> int:
        """Print the sum and the next command, and give the exit code.

        Args:
            gallery: that was filled.
            known: pictures that were known before they were looked at.
            others: what else there was, in words, with a comma before it.
        """
        counts = self._counts
        if not self._as_json and not self._quiet:
            click.echo(
                f"{counts['new']} added, {counts['known'] + known} known already, {counts['copy']} copies of known ones, "
                f"{counts['error']} errors{others}; the index holds {len(gallery)} frames\n"
                f"next  lcmem-onnx scan PATH --index {printable(str(gallery.folder))}"
            )
        return FAILED if counts["error"] else NOTHING_FOUND
