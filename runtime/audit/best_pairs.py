"""The best reference image of each image of a set, over all of the image's frames and looks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..model.head import Floats
from .neighbours import Found, Match, Searchable
from .request import Progress
from .sets import ImageSet

__all__ = ["BestPair", "best_pairs", "search_in_batches"]

BATCH = 256


@dataclass(frozen=True)
class BestPair:
    """The best pair of an image.

    Attributes:
        best: the reference image that scores highest with it.
        plain: the same over its frames as they are, without other looks.
        frame, look: which of its frames, and which look at it, gave `best`.
        matches: reference images at or above the threshold, best first, as many as were asked for; none without a threshold.
        total: how many there are.
    """

    best: Match
    plain: Match
    frame: int
    look: int
    matches: tuple[Match, ...]
    total: int


def best_pairs(
    searchable: Searchable, images: ImageSet, threshold: float | None, top: int, progress: Progress, what: str
) -> dict[int, BestPair]:
    """Search for each image of a set that has an embedding.

    Args:
        searchable: the reference.
        images: the set.
        threshold: from which a score is a match; None finds no matches, only the best pair.
        top: matches to keep of each image.
        progress, what: see `Progress`.

    Returns:
        The best pair by the image's number in the set.
    """
    queries = images.embeddings.reshape(-1, images.features)
    pairs: dict[int, BestPair] = {}
    for query, found in enumerate(progress(search_in_batches(searchable, queries, threshold, top), len(queries), what)):
        row, look = divmod(query, images.looks)
        item, frame = int(images.of[row]), int(images.frames[row])
        earlier = pairs.get(item)
        pairs[item] = _of_query(found, frame, look) if earlier is None else _merge(earlier, _of_query(found, frame, look), top)
    return pairs


def search_in_batches(searchable: Searchable, queries: Floats, threshold: float | None, top: int) -> Iterator[Found]:
    """Yield what each query, float32 (n, features), finds, in order."""
    for start in range(0, len(queries), BATCH):
        yield from searchable.search(queries[start : start + BATCH], threshold, top)


def _of_query(found: Found, frame: int, look: int) -> BestPair:
    return BestPair(found.nearest, found.nearest, frame, look, found.matches, found.total)


def _merge(earlier: BestPair, later: BestPair, top: int) -> BestPair:
    """Join what two queries of one image found. The first query of an image is of a frame as it is."""
    plain = later.plain if later.look == 0 and later.plain.score > earlier.plain.score else earlier.plain
    by_key: dict[str, Match] = {}
    for match in (*earlier.matches, *later.matches):
        if match.key not in by_key or match.score > by_key[match.key].score:
            by_key[match.key] = match
    matches = sorted(by_key.values(), key=lambda match: -match.score)
    total = max(earlier.total, later.total, len(matches))
    winner = later if later.best.score > earlier.best.score else earlier
    return BestPair(winner.best, plain, winner.frame, winner.look, tuple(matches[:top]), total)
