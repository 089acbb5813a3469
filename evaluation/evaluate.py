"""One evaluation: a file list, a bundle and baselines, to figures. Pictures are read once and altered the same for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lcmem_onnx.runtime.errors import FileListError, PictureError
from lcmem_onnx.runtime.pictures import open_picture
from lcmem_onnx.runtime.preprocess import resize
from numpy.typing import NDArray

from .alterations import alter
from .filelist import Listed, read_file_list
from .measures import Separation, Threshold, best_f1, separation, threshold_at
from .protocols import CELLS, PAPER_CELLS, SEED, Cell, Pair, alteration_rng, data_sets, re_identification_pairs, spread
from .scorers import Scorer

__all__ = ["ALL", "CopyDetection", "Evaluation", "ReIdentification", "Recalls", "evaluate"]

Pixels = NDArray[np.uint8]
Rows = NDArray[Any]
Scores = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""
ALL = "all"
"""The name under which the figures of all data sets together stand; negatives are never taken across data sets."""
AT_ONCE = 32
NEGATIVES = 20_000
MEMORY_PAIRS = 4_000_000


@dataclass(frozen=True)
class Recalls:
    """Recall of each cell at one threshold; mean and worst are over the paper's 24. `false_positives` is of the TEST negatives."""

    threshold: Threshold
    rate: float | None
    false_positives: float
    mean: float
    worst: float
    worst_cell: str
    cells: dict[str, float]


@dataclass(frozen=True)
class CopyDetection:
    """One scorer on one data set: `pictures` altered in every cell, and pairs of pictures of different identities as negatives."""

    pictures: int
    negatives: int
    separation: Separation
    recalls: tuple[Recalls, ...]


@dataclass(frozen=True)
class ReIdentification:
    """One scorer on one data set: the protocol's pairs, and the recall of its positives against all pairs of different identities.

    `recalls` holds the rate wanted, its threshold and the recall; `negatives` counts the pairs that set the threshold.
    """

    separation: Separation
    negatives: int
    recalls: tuple[tuple[float, Threshold, float], ...]


@dataclass(frozen=True)
class Evaluation:
    """All figures; by scorer, then by data set (`ALL` for all together)."""

    pictures: int
    unreadable: tuple[tuple[str, str], ...]
    size: int
    seed: int
    rates: tuple[float, ...]
    fitted_on: str
    notes: tuple[str, ...] = ()
    copy_detection: dict[str, dict[str, CopyDetection]] = field(default_factory=dict)
    re_identification: dict[str, dict[str, ReIdentification]] = field(default_factory=dict)
    curves: dict[str, dict[str, tuple[Scores, Scores]]] = field(default_factory=dict)
    """Scores of positives and negatives behind the figures, by protocol and scorer, for plots; not part of the JSON."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, `schema_version` first."""
        values = {
            key: value for key, value in self.__dict__.items() if key not in ("copy_detection", "re_identification", "curves")
        }
        return {
            "schema_version": 1,
            **values,
            "copy_detection": _plain(self.copy_detection),
            "re_identification": _plain(self.re_identification),
        }


def _plain(figures: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {scorer: {ds_name: asdict(its) for ds_name, its in sets.items()} for scorer, sets in figures.items()}


@dataclass(frozen=True, eq=False)
class _Measured:
    """Scores of one scorer on one split: by data set, positives by cell, and negatives."""

    positives: dict[str, dict[str, Scores]]
    negatives: dict[str, Scores]


def evaluate(
    listing: Path,
    scorers: Sequence[Scorer],
    *,
    base: Path | None = None,
    protocols: Sequence[str] = ("copy", "reid"),
    rates: Sequence[float] = (1e-3, 1e-5),
    thresholds: dict[str, float] | None = None,
    fit: str = "TEST",
    size: int = 256,
    seed: int = SEED,
    limit: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Measure scorers on the TEST split of a file list.

    Args:
        listing, base: the file list, and what its paths are relative to.
        scorers: what is measured, each on the same pictures and pairs.
        protocols: "copy", "reid", or both.
        rates: false-positive rates at which recalls are taken.
        thresholds: thresholds to take recalls at as well, by the scorer's name (a bundle's own).
        fit: the split whose negatives (and, for the best F1, positives) set the thresholds: "TEST" or "VAL".
        size: side of the square that pictures are resized to before they are altered.
        seed: of pairs and alterations.
        limit: at most so many pictures of each data set, one of each identity first.

    Raises:
        FileListError: the list is wrong, or holds nothing for a protocol.
    """
    listed = read_file_list(listing, base)
    split = {name: spread([row for row in listed if row.split == name], limit) for name in {"TEST", fit}}
    pictures: dict[str, list[Pixels]] = {}
    unreadable: list[tuple[str, str]] = []
    for name, rows in split.items():
        split[name], pictures[name], bad = _read(rows, size, progress)
        unreadable += bad
        if len({(row.ds_name, row.identity) for row in split[name]}) < 2:
            raise FileListError(f"{listing} has fewer than two identities with readable pictures in its {name} split")
    notes: list[str] = []
    pairs: dict[str, list[Pair]] = {}
    if "reid" in protocols:
        try:
            pairs = re_identification_pairs(split["TEST"], seed)
        except FileListError as error:
            if len(protocols) == 1:
                raise
            notes.append(f"re-identification was left out: {error}")
    evaluation = Evaluation(
        pictures=len(split["TEST"]),
        unreadable=tuple(unreadable),
        size=size,
        seed=seed,
        rates=tuple(rates),
        fitted_on=fit,
        notes=tuple(notes),
    )
    for scorer in scorers:
        clean = {name: _rows(scorer, its, f"{scorer.name}: pictures", progress) for name, its in pictures.items()}
        if pairs:
            _re_identification(evaluation, scorer, split["TEST"], clean["TEST"], pairs)
        if "copy" in protocols:
            measured = {name: _grid(scorer, split[name], pictures[name], clean[name], seed, progress) for name in split}
            own = (thresholds or {}).get(scorer.name)
            _copy_detection(evaluation, scorer.name, measured["TEST"], measured[fit], own)
    return evaluation


def _read(rows: Sequence[Listed], size: int, progress: Progress) -> tuple[list[Listed], list[Pixels], list[tuple[str, str]]]:
    """Pictures by the runtime's own reader, first frame, at the working size; and those that cannot be read, with the reason."""
    kept, pictures, bad = [], [], []
    for number, row in enumerate(rows):
        try:
            pictures.append(resize(open_picture(row.path.read_bytes(), name_hint=row.path.name).frame(0), size))
            kept.append(row)
        except (OSError, PictureError) as error:
            bad.append((row.name, str(error)))
        progress("reading", number + 1, len(rows))
    return kept, pictures, bad


def _rows(scorer: Scorer, pictures: Sequence[Pixels], what: str, progress: Progress) -> Rows:
    parts = []
    for at in range(0, len(pictures), AT_ONCE):
        parts.append(scorer.rows(pictures[at : at + AT_ONCE]))
        progress(what, min(at + AT_ONCE, len(pictures)), len(pictures))
    return np.concatenate(parts)


def _negatives(scorer: Scorer, rows: Sequence[Listed], clean: Rows, numbers: Sequence[int], seed: int) -> Scores:
    """Scores of pairs of different identities of one data set: all of them, or a sample for a scorer that is slow."""
    people = np.array([rows[number].identity for number in numbers])
    first, second = np.triu_indices(len(numbers), 1)
    different = people[first] != people[second]
    first, second = first[different], second[different]
    chosen = clean[np.asarray(numbers)]
    if scorer.all_pairs:
        found = np.empty(len(first), np.float64)
        step = max(1, MEMORY_PAIRS // max(1, len(numbers)))
        for at in range(0, len(numbers), step):
            block = scorer.every(chosen[at : at + step], chosen)
            here = (first >= at) & (first < at + step)
            found[here] = block[first[here] - at, second[here]]
        return found
    if len(first) > NEGATIVES:
        sample = np.random.default_rng(seed).choice(len(first), NEGATIVES, replace=False)
        first, second = first[sample], second[sample]
    return scorer.scores(chosen[first], chosen[second])


def _grid(
    scorer: Scorer, rows: Sequence[Listed], pictures: Sequence[Pixels], clean: Rows, seed: int, progress: Progress
) -> _Measured:
    positives: dict[str, dict[str, Scores]] = {name: {} for name in data_sets(rows)}
    cv2.setNumThreads(1)
    for number, cell in enumerate(CELLS):
        scores = np.concatenate(
            [
                scorer.scores(clean[at : at + AT_ONCE], scorer.rows(_altered(rows, pictures, cell, seed, at)))
                for at in range(0, len(pictures), AT_ONCE)
            ]
        )
        for name, its in data_sets(rows).items():
            positives[name][cell.name] = scores[its]
        progress(f"{scorer.name}: altered copies", number + 1, len(CELLS))
    negatives = {name: _negatives(scorer, rows, clean, its, seed) for name, its in data_sets(rows).items()}
    return _Measured(positives, {name: scores for name, scores in negatives.items() if len(scores)})


def _altered(rows: Sequence[Listed], pictures: Sequence[Pixels], cell: Cell, seed: int, at: int) -> list[Pixels]:
    return [
        alter(picture, cell.transform, cell.strength, alteration_rng(seed, row.name, cell))
        for picture, row in zip(pictures[at : at + AT_ONCE], rows[at : at + AT_ONCE], strict=True)
    ]


def _copy_detection(evaluation: Evaluation, name: str, test: _Measured, fit: _Measured, own: float | None) -> None:
    sets = {ds_name: [ds_name] for ds_name in test.negatives}
    if len(sets) > 1:
        sets = {ALL: list(sets), **sets}
    found = {}
    for label, members in sets.items():
        positives, negatives = _pooled(test, members)
        fitted, against = _pooled(fit, [member for member in members if member in fit.negatives])
        if not len(against):
            fitted, against = positives, negatives
        paper = np.concatenate([positives[cell.name] for cell in PAPER_CELLS])
        wanted: list[tuple[float | None, Threshold]] = [
            (rate, threshold_at(against, rate, f"{rate:.3%} of the {evaluation.fitted_on} negatives")) for rate in evaluation.rates
        ]
        f1 = best_f1(np.concatenate([fitted[cell.name] for cell in PAPER_CELLS]), against)
        wanted.append((None, Threshold(f1[1], f"best F1 on {evaluation.fitted_on}", True)))
        if own is not None:
            wanted.append((None, Threshold(own, "the bundle's own", True)))
        found[label] = CopyDetection(
            pictures=len(next(iter(positives.values()))),
            negatives=len(negatives),
            separation=separation(paper, negatives),
            recalls=tuple(_recalls(positives, negatives, threshold, rate) for rate, threshold in wanted),
        )
        if label == next(iter(sets)):
            evaluation.curves.setdefault("copy detection", {})[name] = (paper, negatives)
    evaluation.copy_detection[name] = found


def _pooled(measured: _Measured, members: Sequence[str]) -> tuple[dict[str, Scores], Scores]:
    if not members:
        return {}, np.empty(0)
    positives = {cell.name: np.concatenate([measured.positives[member][cell.name] for member in members]) for cell in CELLS}
    return positives, np.concatenate([measured.negatives[member] for member in members])


def _recalls(positives: dict[str, Scores], negatives: Scores, threshold: Threshold, rate: float | None) -> Recalls:
    cells = {name: float((scores >= threshold.value).mean()) for name, scores in positives.items()}
    paper = {cell.name: cells[cell.name] for cell in PAPER_CELLS}
    worst = min(paper, key=lambda name: paper[name])
    return Recalls(
        threshold=threshold,
        rate=rate,
        false_positives=float((negatives >= threshold.value).mean()),
        mean=float(np.mean(list(paper.values()))),
        worst=paper[worst],
        worst_cell=worst,
        cells=cells,
    )


def _re_identification(
    evaluation: Evaluation, scorer: Scorer, rows: Sequence[Listed], clean: Rows, pairs: dict[str, list[Pair]]
) -> None:
    measured: dict[str, tuple[Scores, Scores, Scores]] = {}
    for ds_name, its in pairs.items():
        first, second = np.array([pair.first for pair in its]), np.array([pair.second for pair in its])
        same = np.array([pair.same for pair in its])
        scores = scorer.scores(clean[first], clean[second])
        every = _negatives(scorer, rows, clean, data_sets(rows)[ds_name], evaluation.seed)
        measured[ds_name] = scores[same], scores[~same], every
    if len(measured) > 1:
        pooled = tuple(np.concatenate([each[part] for each in measured.values()]) for part in range(3))
        measured = {ALL: (pooled[0], pooled[1], pooled[2]), **measured}
    found = {}
    for label, (positives, negatives, every) in measured.items():
        thresholds = [
            (rate, threshold_at(every, rate, f"{rate:.3%} of all pairs of different identities")) for rate in evaluation.rates
        ]
        found[label] = ReIdentification(
            separation=separation(positives, negatives),
            negatives=len(every),
            recalls=tuple((rate, limit, float((positives >= limit.value).mean())) for rate, limit in thresholds),
        )
    evaluation.re_identification[scorer.name] = found
    evaluation.curves.setdefault("re-identification", {})[scorer.name] = measured[next(iter(measured))][:2]
