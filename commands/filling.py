"""Output of commands that fill an index: one line or error per image, and a summary."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

import click

from ..console.exit_codes import FAILED, NOTHING_FOUND
from ..console.terminal import printable, progress, say
from .inputs import skipped_in_words
from .options import named_bundle

if TYPE_CHECKING:
    from ..runtime.gallery import Gallery
    from ..runtime.results import Indexed

__all__ = ["Filling"]


class Filling:
    """Counts and prints the outcome of each image to add.

    Args:
        as_json: print one line of JSON per image and a summary as the last line.
        quiet: print neither progress nor a summary.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._as_json, self._quiet = as_json, quiet
        self._counts = {"new": 0, "known": 0, "copy": 0, "error": 0}
        self._errors: Counter[str] = Counter()

    def follow(self, outcomes: Iterable[Indexed], total: int | None, doing: str) -> None:
        """Consume the outcomes, which adds the images, and print each."""
        no_bar = self._quiet or (self._as_json and sys.stdout.isatty())
        with closing(progress(iter(outcomes), total, doing, no_bar, lambda done: done.path)) as shown:
            for outcome in shown:
                if outcome.added:
                    self._counts[outcome.added.value] += 1
                for frame, reason, detail in outcome.errors:
                    self._counts["error"] += 1
                    self._errors[reason.value] += 1
                    if not self._as_json:
                        place = outcome.path if frame is None else f"{outcome.path} frame {frame}"
                        say(f"error: {printable(place)}: {printable(detail)} [{reason}]")
                if self._as_json:
                    click.echo(json.dumps(outcome.as_json()))

    def summed_up(self, gallery: Gallery, skipped: Mapping[str, int], *, known: int = 0, made: bool = True) -> int:
        """Print the summary and the next command, and return the exit code: 2 if an image failed or the index is empty.

        Args:
            gallery: the gallery to report on.
            skipped: number of files or objects skipped as not being images, by reason.
            known: images recognized as known without reading them.
            made: whether an empty index is kept.
        """
        counts = {**self._counts, "known": self._counts["known"] + known}
        errors = dict(self._errors.most_common())
        if self._as_json:
            click.echo(json.dumps({"schema_version": 1, "summary": {**counts, "errors": errors, "skipped": dict(skipped)}}))
        elif not self._quiet:
            reasons = f" ({', '.join(f'{count} {reason}' for reason, count in errors.items())})" if errors else ""
            others = f"\n{skipped_in_words(skipped)}" if skipped else ""
            click.echo(
                f"{counts['new']} added, {counts['known']} already known, {counts['copy']} copies of known images, "
                f"{counts['error']} errors{reasons}; the index contains {len(gallery)} frames{others}"
            )
        folder = printable(str(gallery.folder))
        if not len(gallery):
            say(f"error: no image could be added: {f'{folder} is empty' if made else f'no index was created in {folder}'}")
            return FAILED
        if not self._as_json and not self._quiet:
            click.echo(f"next  lcmem-onnx scan PATH --index {folder}{named_bundle()}")
        return FAILED if counts["error"] else NOTHING_FOUND
