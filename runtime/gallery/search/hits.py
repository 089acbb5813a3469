"""From vectors to names: the images and the people behind what a search found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..storage.records import Row
from ..storage.store import READ_AT_ONCE, Store
from .results import Hit, Identity

__all__ = ["Named", "name_vectors"]

FIRST = 16
"""Vectors that are looked up first: seldom are there more, or more of interest."""


class Named:
    """What is known of the vectors so far.

    Attributes:
        hits: images' frames, best first, each once.
        frames: (gallery, key, frame) of each rendering of each of the images, also of those beyond the hits.
    """

    def __init__(self) -> None:
        self.hits: list[Hit] = []
        self.frames: list[tuple[str, str, int]] = []
        self._shown: set[tuple[str, str, int]] = set()
        self._people: dict[tuple[str, ...], Identity] = {}

    def identities(self, top: int) -> tuple[Identity, ...]:
        """The best `top` people."""
        return tuple(sorted(self._people.values(), key=lambda one: -one.score))[:top]

    def has(self, top: int) -> bool:
        """Whether there are so many hits and people: those of vectors to come score no better."""
        return len(self.hits) >= top and len(self._people) >= top

    @property
    def shown(self) -> int:
        return len(self._shown)

    def add_images(self, rows: Iterable[Row], score: float, top: int) -> None:
        """Of a frame that two of its renderings lead to, the better one counts: the first."""
        for row in rows:
            frame = row.gallery, row.key, row.frame
            if frame not in self._shown and len(self.hits) < top:
                self._shown.add(frame)
                self.hits.append(_hit(row, score))

    def add_people(self, rows: Iterable[Row], score: float) -> None:
        for row in rows:
            self._people.setdefault(_who(row), Identity(row.patient, _hit(row, score)))


def name_vectors(
    store: Store, vectors: Sequence[int], scores: Sequence[float], found: int, top: int, galleries: Sequence[str] | None
) -> Named:
    """The images that have these vectors, in few look-ups however many they are.

    Args:
        vectors: ids, best first.
        scores: theirs.
        found: how many of them are matches: their people and all their frames are wanted; else the nearest's images alone.
        top: how many hits, and how many people.
        galleries: in which groups; None for all.
    """
    named = Named()
    position, size = 0, FIRST
    while position < len(vectors):
        part = vectors[position : position + size]
        if found and named.has(top):
            named.frames += store.frames_of(part, galleries)
        elif (rows := store.rows(part, galleries)) is not None:
            for vector, score in zip(part, scores[position : position + size], strict=True):
                its = rows[vector]
                named.add_images(sorted(its, key=lambda row: (row.key, row.frame, row.gallery)), score, top)
                if found:
                    named.add_people(sorted(_one_each(its), key=lambda row: (row.key, row.gallery)), score)
                    named.frames += [(row.gallery, row.key, row.frame) for row in its]
        else:
            for vector, score in zip(part, scores[position : position + size], strict=True):
                if len(named.hits) < top:
                    named.add_images(store.first_rows(vector, top + named.shown, galleries), score, top)
                if found and not named.has(top):
                    named.add_people(store.first_people(vector, top, galleries), score)
            if found:
                named.frames += store.frames_of(part, galleries)
        position, size = position + size, READ_AT_ONCE
    return named


def _one_each(rows: Iterable[Row]) -> list[Row]:
    """One image of each person: the one that was added first."""
    people: dict[tuple[str, ...], Row] = {}
    for row in rows:
        people.setdefault(_who(row), row)
    return list(people.values())


def _who(row: Row) -> tuple[str, ...]:
    """An image whose patient is not known stands for itself."""
    return (row.patient,) if row.patient is not None else (row.gallery, row.key)


def _hit(row: Row, score: float) -> Hit:
    return Hit(row.key, row.frame, score, row.gallery, row.patient, row.study)
