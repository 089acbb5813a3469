"""Runs scorers over a file list: every image is read and altered once, and every scorer sees the same arrays."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from lcmem_onnx.runtime.errors import EncodingError, FileListError
from numpy.typing import NDArray

from .compare import Embedder, Pixels, Scorer
from .filelist import Listed
from .measures import PairOwners
from .protocols import Cell, Pairs, different_pairs, reidentification_pairs
from .reading import Store, Unreadable, Versions, read_ahead

__all__ = ["MOST_NEGATIVES", "Plan", "Scored", "Scoring", "Seen", "score_all"]

Doubles = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
"""Is told what is being done, how many steps are done, and of how many."""
MOST_NEGATIVES = 2_000_000
"""Pairs of different images of one data set that embeddings are compared in: all pairs of up to 2,000 images, a sample of
more. Sixteen megabytes of scores; a false-positive rate of 0.00001 leaves twenty of them."""
AT_ONCE = 8


@dataclass(frozen=True)
class Plan:
    """What is to be scored.

    Attributes:
        cells: alterations for copy detection; empty when it is not wanted. VAL's images are altered in the paper's alone.
            Those of the realistic grid come last.
        reidentification: whether its pairs are wanted.
        seed: of pairs and alterations.
        size: working size.
        pair_negatives: pairs of different images for scorers without embeddings, a data set.
        workers: threads that read.
        no_negatives: data sets whose pairs of different images do not count: one thing may stand under two identities there.
        most_altered: images of each split of each data set that are altered, all if None. The others still are negatives.
    """

    cells: tuple[Cell, ...]
    reidentification: bool
    seed: int
    size: int
    pair_negatives: int
    workers: int
    no_negatives: frozenset[str] = frozenset()
    most_altered: int | None = None


@dataclass(frozen=True, eq=False)
class Scored:
    """One scorer's scores on one data set, or on several together.

    Attributes:
        copies: float64 (altered images, cells).
        identities: (altered images,), which identity each shows, from 0.
        same, different: of re-identification's pairs, float64 (pairs,).
        clusters: (pairs,), which identity the pairs' first image shows, from 0.
        negatives: of pairs of different images of TEST, float64, sorted; empty where they do not count (`Plan.no_negatives`).
        owners: whose those images are.
        val_copies: as `copies`, of VAL, in the paper's cells alone; None when VAL has no pairs of different images.
        val_negatives: as `negatives`, of VAL, or None.
    """

    copies: Doubles
    identities: NDArray[np.int64]
    same: Doubles
    different: Doubles
    clusters: NDArray[np.int64]
    negatives: Doubles
    owners: PairOwners
    val_copies: Doubles | None
    val_negatives: Doubles | None

    @staticmethod
    def together(parts: Sequence[Scored]) -> Scored:
        """Several data sets as one: pairs stay within each."""
        # A threshold for all of TEST cannot come from a VAL that lacks some of its data sets.
        counting = [part for part in parts if len(part.negatives)]
        copies = [part.val_copies for part in counting if part.val_copies is not None]
        vals = [part.val_negatives for part in counting if part.val_negatives is not None]
        negatives = np.concatenate([part.negatives for part in parts])
        order = np.argsort(negatives, kind="stable")
        return Scored(
            np.concatenate([part.copies for part in parts]),
            _renumbered([part.identities for part in parts]),
            np.concatenate([part.same for part in parts]),
            np.concatenate([part.different for part in parts]),
            _renumbered([part.clusters for part in parts]),
            negatives[order],
            PairOwners.together([part.owners for part in parts]).ordered(order),
            np.concatenate(copies) if len(copies) == len(counting) else None,
            np.sort(np.concatenate(vals)) if len(vals) == len(counting) else None,
        )


def _renumbered(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Numbers of several data sets' identities, each from 0, as one: those of one data set are none of another's."""
    numbers, offset = [], 0
    for part in parts:
        numbers.append(part + offset)
        offset += int(part.max(initial=-1)) + 1
    return np.concatenate(numbers)


@dataclass(frozen=True)
class Seen:
    """How much of a data set was read: images and identities of TEST, images of VAL."""

    ds_name: str
    images: int
    identities: int
    val_images: int


@dataclass(frozen=True, eq=False)
class Scoring:
    """All scores: `scores[scorer's name][ds_name]`, and what they are of; `milliseconds` an image embedded or a pair scored."""

    scores: dict[str, dict[str, Scored]]
    seen: tuple[Seen, ...]
    unreadable: tuple[Unreadable, ...]
    milliseconds: dict[str, float]


class _Stopwatch:
    """Adds up what a scorer takes, an image or pair."""

    def __init__(self) -> None:
        self.seconds, self.things = 0.0, 0

    def __call__(self, started: float, things: int) -> None:
        self.seconds += time.perf_counter() - started
        self.things += things

    @property
    def milliseconds(self) -> float:
        return 1000.0 * self.seconds / max(1, self.things)


class _Bench:
    """One scorer at work: takes images as they are read, and scores pairs of them afterwards."""

    def __init__(self, scorer: Scorer, store: Store) -> None:
        self.scorer = scorer
        self.watch = _Stopwatch()
        self.copies: dict[int, Doubles] = {}
        self._store = store
        self._vectors: dict[int, NDArray[np.float32]] = {}

    def take(self, number: int, versions: Versions) -> None:
        """Embed an image and its copies, and score them against it."""
        started = time.perf_counter()
        if isinstance(self.scorer, Embedder):
            every = np.concatenate([versions.original[None], versions.copies])
            vectors = np.concatenate([self.scorer.embed(every[start : start + AT_ONCE]) for start in range(0, len(every), AT_ONCE)])
            self.watch(started, len(every))
            self._vectors[number] = vectors[0].copy()
            scores = self.scorer.compare(vectors[0], vectors[1:]) if len(every) > 1 else np.empty(0)
        else:
            scores = np.asarray([self.scorer.score(versions.original, copy) for copy in versions.copies], np.float64)
            self.watch(started, len(scores))
        self.copies[number] = self._checked(scores)

    def pairs(self, numbers: Sequence[int], pairs: Pairs) -> Doubles:
        """Scores of pairs, float64 (pairs,); pairs count within `numbers`."""
        scores = np.empty(len(pairs))
        begins = [0, *(np.flatnonzero(np.diff(pairs.first)) + 1).tolist()] if len(pairs) else []
        vectors = np.stack([self._vectors[number] for number in numbers]) if self._vectors and len(pairs) else None
        for begin, end in zip(begins, [*begins[1:], len(pairs)], strict=False):
            first, second = int(pairs.first[begin]), pairs.second[begin:end]
            if isinstance(self.scorer, Embedder) and vectors is not None:
                scores[begin:end] = self.scorer.compare(vectors[first], vectors[second])
            elif not isinstance(self.scorer, Embedder):
                image = self._store.get(numbers[first])
                scores[begin:end] = [self._pair(image, self._store.get(numbers[int(other)])) for other in second]
        return self._checked(scores)

    def _pair(self, first: Pixels, second: Pixels) -> float:
        started = time.perf_counter()
        score = self.scorer.score(first, second) if not isinstance(self.scorer, Embedder) else 0.0
        self.watch(started, 1)
        return score

    def _checked(self, scores: Doubles) -> Doubles:
        if not np.isfinite(scores).all():
            raise EncodingError(f"{self.scorer.name} gave a score that is not finite")
        return scores


def score_all(rows: Sequence[Listed], scorers: Sequence[Scorer], plan: Plan, progress: Progress | None = None) -> Scoring:
    """Score a list's TEST images, and its VAL images against each other.

    Args:
        rows: TEST and VAL, in the order of the file list; others must not be among them.

    Raises:
        FileListError: a data set with fewer than two identities that can be read, or nothing to re-identify.
        EncodingError: a scorer gave something that is no score.
        UsageError: no room for the images.
    """
    pixels = not all(isinstance(scorer, Embedder) for scorer in scorers)
    store = Store(plan.size)
    try:
        benches = [_Bench(scorer, store) for scorer in scorers]
        unreadable: list[Unreadable] = []
        read: dict[tuple[str, str], list[int]] = {}
        for number, versions in enumerate(read_ahead(rows, plan.size, plan.cells, plan.seed, plan.workers, plan.most_altered)):
            if progress:
                progress("pictures", number, len(rows))
            if isinstance(versions, Unreadable):
                unreadable.append(versions)
                continue
            read.setdefault((rows[number].ds_name, rows[number].split), []).append(number)
            if pixels:
                store.put(number, versions.original)
            for bench in benches:
                bench.take(number, versions)
        seen = _checked(rows, read, plan, len(unreadable))
        rng = random.Random(plan.seed)
        drawn = {
            data_set.ds_name: reidentification_pairs(
                [rows[number].identity for number in read[data_set.ds_name, "TEST"]] if plan.reidentification else [],
                rng,
                [rows[number].group for number in read[data_set.ds_name, "TEST"]] if plan.reidentification else [],
            )
            for data_set in seen
        }
        scores: dict[str, dict[str, Scored]] = {scorer.name: {} for scorer in scorers}
        steps = [(data_set, bench) for data_set in seen for bench in benches]
        for step, (data_set, bench) in enumerate(steps):
            if progress:
                progress("pairs", step, len(steps))
            scores[bench.scorer.name][data_set.ds_name] = _scored(
                rows, read, data_set.ds_name, drawn[data_set.ds_name], bench, plan
            )
        if progress:
            progress("pairs", len(steps), len(steps))
    finally:
        store.close()
    return Scoring(scores, seen, tuple(unreadable), {bench.scorer.name: bench.watch.milliseconds for bench in benches})


def _checked(rows: Sequence[Listed], read: dict[tuple[str, str], list[int]], plan: Plan, unreadable: int) -> tuple[Seen, ...]:
    """What was read of each data set of TEST; that there is enough of it."""
    names = list(dict.fromkeys(row.ds_name for row in rows if row.split == "TEST"))
    lost = f" ({unreadable} listed images could not be read)" if unreadable else ""
    seen, paired = [], 0
    for name in names:
        numbers = read.get((name, "TEST"), [])
        identities = [rows[number].identity for number in numbers]
        of = f"TEST of {name!r}" if name else "TEST"
        if len(set(identities)) < 2:
            raise FileListError(
                f"{of} has {len(set(identities))} identities that can be read{lost}; it takes two or more to have pairs of "
                "different images"
            )
        paired += len(identities) > len(set(identities))
        seen.append(Seen(name, len(numbers), len(set(identities)), len(read.get((name, "VAL"), []))))
    if plan.reidentification and not plan.cells and not paired:
        raise FileListError(f"no identity of TEST has two images{lost}: there is nothing to re-identify")
    return tuple(seen)


def _scored(
    rows: Sequence[Listed],
    read: dict[tuple[str, str], list[int]],
    ds_name: str,
    drawn: tuple[Pairs, Pairs],
    bench: _Bench,
    plan: Plan,
) -> Scored:
    most = MOST_NEGATIVES if isinstance(bench.scorer, Embedder) else plan.pair_negatives
    counted = ds_name not in plan.no_negatives

    def negatives(split: str) -> tuple[Doubles, PairOwners]:
        chosen = read.get((ds_name, split), []) if counted else []
        whose = [rows[number].identity for number in chosen]
        pairs = different_pairs(whose, most, plan.seed)
        scores = bench.pairs(chosen, pairs)
        order = np.argsort(scores, kind="stable")
        codes = _numbered(whose)
        return scores[order], PairOwners.of(codes, codes[pairs.first], codes[pairs.second]).ordered(order)

    numbers = read[ds_name, "TEST"]
    identities = [rows[number].identity for number in numbers]
    same, different = drawn
    firsts = [identities[number] for number in same.first.tolist()]
    (scores, owners), (val, _) = negatives("TEST"), negatives("VAL")
    altered, val_altered = (_altered(chosen, bench, plan) for chosen in (numbers, read.get((ds_name, "VAL"), [])))
    if plan.cells and not altered:
        raise FileListError(
            f"none of the {plan.most_altered} images of TEST of {ds_name!r} that were to be altered can be read: raise --altered"
        )
    return Scored(
        copies=np.stack([bench.copies[number] for number in altered]),
        identities=_numbered([rows[number].identity for number in altered]),
        same=bench.pairs(numbers, same),
        different=bench.pairs(numbers, different),
        clusters=_numbered(firsts),
        negatives=scores,
        owners=owners,
        val_copies=np.stack([bench.copies[number] for number in val_altered]) if len(val) and val_altered else None,
        val_negatives=val if len(val) else None,
    )


def _altered(numbers: Sequence[int], bench: _Bench, plan: Plan) -> list[int]:
    """Which of the images have copies, where copies were wanted."""
    if plan.most_altered is None or not plan.cells:
        return list(numbers)
    return [number for number in numbers if len(bench.copies[number])]


def _numbered(names: Sequence[str]) -> NDArray[np.int64]:
    return np.unique(np.asarray(names, dtype=str), return_inverse=True)[1].astype(np.int64)
