"""What a search answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..storage.records import DEFAULT_GALLERY

__all__ = ["Hit", "Identity", "Search", "SearchResult"]


class Search(StrEnum):
    """How to search: `exact` misses nothing; `hnsw` asks the graph; `auto` takes exact up to a size measured on the machine."""

    AUTO = "auto"
    EXACT = "exact"
    HNSW = "hnsw"


@dataclass(frozen=True)
class Hit:
    """A gallery image's frame and the head's score for it, in (0, 1).

    Attributes:
        key: the image's name.
        frame: its frame, from 0.
        score: probability of "same".
        gallery: the group that it is in.
        patient, study: pseudonyms; None where they are not known.
    """

    key: str
    frame: int
    score: float
    gallery: str = DEFAULT_GALLERY
    patient: str | None = None
    study: str | None = None


@dataclass(frozen=True)
class Identity:
    """A patient among the matches, by the best of the patient's images. An image whose patient is not known stands for itself.

    Attributes:
        patient: the pseudonym, or None.
        best: the image.
    """

    patient: str | None
    best: Hit

    @property
    def score(self) -> float:
        """The best image's score: the identity's."""
        return self.best.score


@dataclass(frozen=True)
class SearchResult:
    """What a query found.

    Attributes:
        matches: images at or above the threshold, best first, at most as many as asked for.
        total: how many there are at or above the threshold; with the graph, how many it found.
        nearest: the best image, whether or not it is a match; None in an empty gallery.
        identities: the patients of the matches, best first, at most as many as asked for.
        complete: True where the search was exact, so that no match is missing. A search through the graph never proves that.
    """

    matches: tuple[Hit, ...]
    total: int
    nearest: Hit | None
    identities: tuple[Identity, ...] = ()
    complete: bool = True
