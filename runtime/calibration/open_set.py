"""One against many, measured on images: strangers' best scores in a gallery, mates' scores, and what is no stranger at all.

A negative is an image whose patient is not in the gallery. One that is there after all would push the threshold up to where
matches are missed, so negatives are looked through first: the same file, the same patient where patients are known, and a score
so high that the image is probably a copy. What they are is for a person to decide; here they are only named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from ..errors import FileListError, UsageError
from ..gallery import Gallery
from ..images.discovery import image_name
from ..model.head import Floats, Head, sigmoid
from ..privacy import SiteKey
from ..results import Embedded
from ..system.cpu import cpu_limit
from ..system.csv_list import read_csv_list, some_of
from .threshold import Doubles

__all__ = [
    "KEPT",
    "Negatives",
    "Pair",
    "Suspect",
    "Suspicion",
    "Tops",
    "best_scores",
    "chunk_count",
    "copy_score",
    "judge_negatives",
    "mate_scores",
    "read_pairs",
]

KEPT = 64
"""Best scores kept of each negative. They say how many gallery vectors it matches, which is needed to foresee other sizes."""
CHUNK = 4096
SCORED_AT_ONCE = 512
"""1 MB of differences at 512 features, for which the memory is at hand: for 8 MB the system is asked for new pages each time,
which made it 4 times as slow (0.30 µs a pair and not 1.3)."""
COPY_SHARE = 0.2
"""Of the distance in logits from the threshold for pairs to an image's score with itself, the part nearest to the latter in
which a score is taken for a copy's."""
FAR_OUT = 3.0
ENOUGH = 20
"""Negatives from which on they can tell what is far out among them."""

Watch = Callable[[Iterable[tuple[list[str], Floats]]], Iterable[tuple[list[str], Floats]]]
"""Passes chunks of the gallery on, and may show progress while it does."""


class Suspicion(StrEnum):
    """Why a negative may be none: the same file is in the gallery, or the same patient, or it scores like a copy."""

    SAME_FILE = "same-file"
    SAME_PATIENT = "same-patient"
    LIKE_A_COPY = "like-a-copy"


@dataclass(frozen=True)
class Suspect:
    """A negative that is probably none. `key` and `score` are of the gallery image that it resembles, where they are known."""

    path: str
    suspicion: Suspicion
    key: str | None = None
    score: float | None = None


@dataclass(frozen=True, eq=False)
class Tops:
    """Of each image the best scores in a gallery.

    Attributes:
        scores: float64 (images, kept), best first; 0 where the gallery has fewer vectors.
        keys: of the best gallery image of each.
        size: distinct vectors in the gallery.
    """

    scores: Doubles
    keys: tuple[str, ...]
    size: int


@dataclass(frozen=True, eq=False)
class Negatives:
    """Negatives, looked through.

    Attributes:
        tops: of those that raise no suspicion, or are to be kept all the same.
        suspects: the others; nothing of them is in `tops`.
        repeated: files that were there twice, by content; counted once.
        patients: how many are behind `tops` where all of them are known, else None.
    """

    tops: Tops
    suspects: tuple[Suspect, ...]
    repeated: int
    patients: int | None


@dataclass(frozen=True)
class Pair:
    """An image to search for, and the key of the gallery image of the same patient that must be found."""

    query: Path
    mate: str


def best_scores(gallery: Gallery, images: Sequence[Floats], kept: int = KEPT, watch: Watch | None = None) -> Tops:
    """The best scores of images in a gallery, by scoring all of it, without a graph.

    Args:
        images: embeddings, (views, features) each: frames and their renderings. The one that scores best counts.
        kept: how many scores to keep of each.
        watch: see `Watch`.
    """
    head = gallery.bundle.head
    tops = np.full((len(images), kept), -np.inf)
    keys = [""] * len(images)
    size = 0

    def score(index: int, names: list[str], vectors: Floats) -> None:
        logits = _logits(head, images[index], vectors)
        best = int(logits.argmax())
        if logits[best] > tops[index, 0]:
            keys[index] = names[best]
        together = np.concatenate([tops[index], logits if len(logits) <= kept else np.partition(logits, -kept)[-kept:]])
        tops[index] = np.sort(together)[::-1][:kept]

    with ThreadPoolExecutor(cpu_limit(), thread_name_prefix="lcmem-score") as pool:
        chunks = _distinct(gallery)
        for names, vectors in watch(chunks) if watch else chunks:
            size += len(vectors)
            list(pool.map(lambda index, n=names, v=vectors: score(index, n, v), range(len(images))))
    return Tops(sigmoid(tops), tuple(keys), size)


def chunk_count(gallery: Gallery) -> int:
    """How many chunks `best_scores` passes to its `watch`."""
    return -(-gallery.vectors() // CHUNK)


def _logits(head: Head, frames: Floats, vectors: Floats) -> Doubles:
    """The best of the frames' logits with each vector, (vectors,)."""
    parts = [
        np.max([head.logits(frame, vectors[start : start + SCORED_AT_ONCE]) for frame in frames], axis=0)
        for start in range(0, len(vectors), SCORED_AT_ONCE)
    ]
    logits: Doubles = np.concatenate(parts)
    return logits


def _distinct(gallery: Gallery) -> Iterator[tuple[list[str], Floats]]:
    """The gallery's distinct vectors in chunks, each with the key of an image that has it."""
    seen: set[int] = set()
    names: list[str] = []
    vectors: list[Floats] = []
    for record in gallery.entries():
        mark = hash(record.embedding.tobytes())
        if mark in seen:
            continue
        seen.add(mark)
        names.append(record.key)
        vectors.append(record.embedding)
        if len(vectors) == CHUNK:
            yield names, np.stack(vectors)
            names, vectors = [], []
    if vectors:
        yield names, np.stack(vectors)


def copy_score(gallery: Gallery, best: Doubles) -> float:
    """The score from which a negative is taken for a copy, or for an image of somebody in the gallery.

    Either it is nearly what an image scores with itself (see `COPY_SHARE`), or it stands far out from the other negatives: by
    `FAR_OUT` times the distance from their median to their 90th percentile above the latter. Best scores of strangers have
    an exponential tail, so that takes in four of 10,000 strangers, and up to a tenth of the negatives may be copies before it
    sees none.

    Args:
        best: the negatives' best scores, (negatives,).
    """
    itself = float(gallery.bundle.head.bias)
    pairs = float(_logit(np.asarray(gallery.bundle.threshold.value)))
    limit = itself - COPY_SHARE * max(0.0, itself - pairs)
    if len(best) >= ENOUGH:
        median, high = np.sort(_logit(best))[[len(best) // 2, 9 * len(best) // 10]]
        if np.isfinite(high):
            limit = min(limit, max(pairs, float(high + FAR_OUT * (high - median))))
    return float(sigmoid(np.asarray(limit)))


def _logit(scores: Doubles) -> Doubles:
    with np.errstate(divide="ignore"):
        logits: Doubles = np.log(scores) - np.log1p(-scores)
    return logits


def judge_negatives(
    gallery: Gallery,
    images: Iterable[Embedded],
    *,
    keep_alike: bool = False,
    ignore_patients: bool = False,
    watch: Watch | None = None,
) -> Negatives:
    """Look negatives through and score those that are some.

    Args:
        images: those that could be read; what has no embedding is passed over.
        keep_alike: count negatives that score like a copy. The same file and the same patient never count: a match is right there.
        ignore_patients: take no notice of the patients in headers: where those are anonymous, all have one number.
        watch: see `Watch`.

    Raises:
        UsageError: the gallery's patients cannot be compared with the negatives', for want of the site key.
    """
    readable = [image for image in images if image.content is not None and len(image.embeddings)]
    distinct = {image.content: image for image in readable}
    files, patients_there = _known(gallery, distinct)
    remaining: list[Embedded] = []
    suspects: list[Suspect] = []
    site_key: SiteKey | None = None
    for content, image in distinct.items():
        whose = image.identifiers
        known = patients_there and whose.patient_id and not ignore_patients
        if known and site_key is None:
            site_key = _site_key(gallery)
        patient = site_key.patient(whose.patient_id, whose.issuer) if known and site_key and whose.patient_id else None
        if content in files:
            suspects.append(Suspect(image.path, Suspicion.SAME_FILE, files[content]))
        elif patient in patients_there:
            suspects.append(Suspect(image.path, Suspicion.SAME_PATIENT, patients_there[patient]))
        else:
            remaining.append(image)
    tops = best_scores(gallery, [image.embeddings for image in remaining], watch=watch)
    alike = np.zeros(len(remaining), bool) if keep_alike else tops.scores[:, 0] >= copy_score(gallery, tops.scores[:, 0])
    suspects += [
        Suspect(remaining[index].path, Suspicion.LIKE_A_COPY, tops.keys[index], float(tops.scores[index, 0]))
        for index in np.flatnonzero(alike)
    ]
    kept = [int(index) for index in np.flatnonzero(~alike)]
    patients = {(remaining[index].identifiers.patient_id, remaining[index].identifiers.issuer) for index in kept}
    anonymous = ignore_patients or any(number is None for number, _ in patients)
    return Negatives(
        Tops(tops.scores[kept], tuple(tops.keys[index] for index in kept), tops.size),
        tuple(suspects),
        len(readable) - len(distinct),
        None if anonymous else len(patients),
    )


def _site_key(gallery: Gallery) -> SiteKey:
    try:
        return gallery.site_key()
    except UsageError as error:
        raise UsageError(f"{error}; or give --ignore-patients to skip the comparison of patient IDs") from error


def _known(gallery: Gallery, contents: Container[bytes | None]) -> tuple[dict[bytes | None, str], dict[str | None, str]]:
    """Which of some files (by sha256) are in the gallery, and which patients are, each with a key."""
    files: dict[bytes | None, str] = {}
    patients: dict[str | None, str] = {}
    for record in gallery.entries():
        if record.content in contents:
            files.setdefault(record.content, record.key)
        if record.patient:
            patients.setdefault(record.patient, record.key)
    return files, patients


# -- mates ---------------------------------------------------------------------------------------------------------


def read_pairs(listing: Path, gallery: Gallery) -> list[Pair]:
    """Read a list of mates: a CSV file with the columns `query` and `mate`.

    `query` is an image's path, relative to the list's folder or absolute. `mate` is a gallery image of the same patient: its
    key as the index has it, or a path as for `query`. A query with several mates stands on several lines.

    Raises:
        FileListError: unreadable, a column or a value is missing, a query that is not there, a mate that is not in the gallery.
    """
    base = Path(os.path.abspath(listing)).parent
    rows = [(row.require("query"), row.require("mate")) for row in read_csv_list(listing, ("query", "mate"), what="list of mates")]
    if not rows:
        raise FileListError(f"{listing} is empty: expected at least one pair of query and mate")
    keys = {record.key for record in gallery.entries()}
    pairs = []
    no_query: list[str] = []
    no_mate: list[str] = []
    for query, mate in rows:
        found = next((key for key in (mate, os.path.normpath(base / mate)) if key in keys), None)
        if not os.path.isfile(base / query):
            no_query.append(query)
        elif found is None:
            no_mate.append(mate)
        else:
            pairs.append(Pair(base / query, found))
    if no_query:
        raise FileListError(
            f"{listing} lists {len(no_query)} missing query files: {some_of(no_query)}. Correct the paths in column query"
        )
    if no_mate:
        raise FileListError(
            f"{listing} lists {len(no_mate)} mates missing from {gallery.folder}: {some_of(no_mate)}. Expected absolute paths"
        )
    return pairs


def mate_scores(gallery: Gallery, pairs: Sequence[Pair], queries: Iterable[Embedded]) -> Doubles:
    """Each query's score with its best mate, float64 (searches,), in the order of the list.

    Args:
        queries: the pairs', embedded. Those that could not be read are left out.

    Raises:
        FileListError: a query is in the gallery itself: that it finds itself says nothing.
    """
    embedded = {query.path: query for query in queries if len(query.embeddings)}
    files, _ = _known(gallery, {query.content for query in embedded.values()})
    if files:
        named = [path for path, query in embedded.items() if query.content in files]
        raise FileListError(
            f"{len(named)} queries are in the gallery and would match themselves: {some_of(named)}. Remove them from the list"
        )
    wanted = {pair.mate for pair in pairs}
    mates: dict[str, list[Floats]] = {}
    for record in gallery.entries():
        if record.key in wanted:
            mates.setdefault(record.key, []).append(record.embedding)
    best: dict[str, float] = {}
    for pair in pairs:
        path = image_name(pair.query)
        if path in embedded:
            logits = _logits(gallery.bundle.head, embedded[path].embeddings, np.stack(mates[pair.mate]))
            best[path] = max(best.get(path, -np.inf), float(logits.max()))
    return sigmoid(np.asarray(list(best.values()), np.float64))
