"""The evaluation: a file list and scorers in, the paper's figures out, as data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from lcmem_onnx.runtime.calibration.intervals import Interval
from lcmem_onnx.runtime.errors import FileListError, UsageError
from lcmem_onnx.runtime.system.cpu import cpu_limit
from numpy.typing import NDArray

from .compare import Scorer
from .filelist import Listed, read_file_list
from .measures import (
    Limit,
    Separation,
    auc,
    best_f1_limit,
    given_limit,
    limit_for,
    mean_interval,
    mean_intervals,
    pairs_needed,
    placements,
    separation,
)
from .networks import BundleScorer
from .protocols import GRIDS, Cell
from .reading import Unreadable
from .scoring import Plan, Progress, Scored, Scoring, Seen, score_all

__all__ = [
    "PROTOCOLS",
    "SCHEMA_VERSION",
    "CopyAt",
    "CopyDetection",
    "Evaluation",
    "Grid",
    "RecallAt",
    "Reidentification",
    "ScorerFacts",
    "evaluate",
]

SCHEMA_VERSION = 1
JSON_NAMES = {"images": "pictures", "val_images": "val_pictures"}
"""Keys of the document that programs read, where they are not the fields' names."""
PROTOCOLS = ("reid", "copy", "all")
FIT_ON = ("val", "test")
FALSE_POSITIVES = (1e-3, 1e-5)
FEW_IDENTITIES = 20
"""Fewer than these, drawn again and again, do not tell how others would do: their intervals are noted to mean little."""


@dataclass(frozen=True)
class ScorerFacts:
    """Who was measured. `milliseconds` is an image's embedding, or one pair's score where there are no embeddings."""

    name: str
    about: str
    threshold: float | None
    fingerprint: str | None
    milliseconds: float


@dataclass(frozen=True)
class RecallAt:
    """Recall of the pairs of one identity at one limit, with its interval; None where there is no threshold."""

    limit: Limit
    recall: float | None
    recall_interval: Interval | None


@dataclass(frozen=True)
class Reidentification:
    """One scorer's re-identification on one data set; `ds_name` None means all of them together.

    `identities` have two or more images; `at` is recall at thresholds fitted on pairs of different images, all of them, as in
    copy detection: the protocol's own are too few for low rates.
    """

    scorer: str
    ds_name: str | None
    pairs: Separation
    identities: int
    at: tuple[RecallAt, ...]


@dataclass(frozen=True)
class Grid:
    """Mean recall over some cells, with a bootstrap interval over identities, and the worst of them."""

    mean: float
    mean_interval: Interval
    worst: float
    worst_cell: str


@dataclass(frozen=True)
class CopyAt:
    """Recall of altered copies at one limit: each cell, and some of them together. None where there is no threshold.

    Attributes:
        limit: the threshold.
        cells, cell_intervals: recall of each cell, and its bootstrap interval over identities.
        paper: the paper's 24 cells; None also where they were not measured. So are the others.
        beyond: those beyond the paper.
        realistic: the realistic ones that the training of the bundled model may draw.
        held_out: the realistic ones that it never draws.
    """

    limit: Limit
    cells: Mapping[str, float] | None
    paper: Grid | None
    beyond: Grid | None
    realistic: Grid | None = None
    held_out: Grid | None = None
    cell_intervals: Mapping[str, Interval] | None = None


@dataclass(frozen=True)
class CopyDetection:
    """One scorer's copy detection on one data set; `ds_name` None means all together.

    Attributes:
        images: how many; each is one pair in each cell.
        negatives: pairs of different images.
        auc: of the paper's cells against the negatives; of the realistic ones where the paper's were not measured. Its interval is
            over identities, the negatives held.
        at: recall at each limit.
        identities: of those images.
        auc_of: which cells `auc` is of, "paper" or "realistic".
    """

    scorer: str
    ds_name: str | None
    images: int
    negatives: int
    auc: float
    auc_interval: Interval
    at: tuple[CopyAt, ...]
    identities: int
    auc_of: str


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All figures, and with `scoring` the scores that they are of, for plots."""

    listing: str
    protocol: str
    seed: int
    size: int
    data_sets: tuple[Seen, ...]
    unreadable: tuple[Unreadable, ...]
    scorers: tuple[ScorerFacts, ...]
    reidentification: tuple[Reidentification, ...]
    copy_detection: tuple[CopyDetection, ...]
    notes: tuple[str, ...]
    scoring: Scoring = field(repr=False)
    grid: str = "paper"
    no_negatives: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[Cell, ...]:
        """What copies were made, in the order of their columns in `scoring`."""
        return GRIDS[self.grid]

    def as_json(self) -> dict[str, Any]:
        """The document that `evaluate --json` prints. Fields are added in later versions, never removed or redefined."""
        return {
            "schema_version": SCHEMA_VERSION,
            "list": self.listing,
            "protocol": self.protocol,
            "seed": self.seed,
            "size": self.size,
            "data_sets": [_as_json(seen) for seen in self.data_sets],
            "unreadable": [asdict(image) for image in self.unreadable],
            "grid": self.grid,
            "no_negatives": list(self.no_negatives),
            "cells": [asdict(cell) | {"paper": cell.paper, "name": cell.name} for cell in self.cells],
            "scorers": [asdict(facts) for facts in self.scorers],
            "reidentification": [_as_json(part) for part in self.reidentification],
            "copy_detection": [_as_json(part) for part in self.copy_detection],
            "notes": list(self.notes),
        }


def _as_json(part: Seen | Reidentification | CopyDetection) -> dict[str, Any]:
    return {JSON_NAMES.get(name, name): value for name, value in asdict(part).items()}


def evaluate(
    listing: Path,
    scorers: Sequence[Scorer],
    *,
    base: Path | None = None,
    protocol: str = "all",
    seed: int = 42,
    size: int = 256,
    limit: int | None = None,
    pair_negatives: int = 20_000,
    false_positives: Sequence[float] = FALSE_POSITIVES,
    fit_on: str = "val",
    workers: int | None = None,
    progress: Progress | None = None,
    grid: str = "paper",
    no_negatives: Collection[str] = (),
    most_altered: int | None = None,
) -> Evaluation:
    """Measure scorers on a file list.

    Args:
        listing: CSV file list; see `filelist`. TEST is measured; thresholds come from VAL where it has enough pairs.
        scorers: whom to measure, the first being ours. Names must differ.
        base: what the list's paths are relative to; its own folder if not given.
        protocol: "reid", "copy" or "all".
        seed: of pairs, alterations and resampling.
        size: working size: every image is resized to it first, and altered at it; realistic alterations come before it.
        limit: only the first so many images of each split of each data set, for a try.
        pair_negatives: pairs of different images a data set, for scorers without embeddings.
        false_positives: rates to fit thresholds to.
        fit_on: "val" fits them on VAL where the list has enough of it, and else on TEST; "test" always on TEST.
        workers: threads that read and alter; None takes what the container allows.
        progress: is told how far it has come.
        grid: which copies to make: "paper" (its 24 cells and six beyond), "realistic" or "all".
        no_negatives: data sets whose pairs of different images do not count, because one thing may have two identities there.
            They take the thresholds, and the false positives, of all others together.
        most_altered: images of each split of each data set that are altered, chosen by seed and name; all if None. The others
            still count as negatives, so that thresholds stay as firm as they are.

    Raises:
        UsageError: a setting out of range, or two scorers of one name.
        FileListError: the list is wrong, or holds too little.
        EncodingError: a scorer gave something that is no score.
    """
    _check_settings(scorers, protocol, size, limit, pair_negatives, false_positives, fit_on, grid)
    if most_altered is not None and most_altered < 1:
        raise UsageError(f"{most_altered} images of a data set cannot be altered: give 1 or more")
    listed = read_file_list(listing, base)
    rows = [row for row in _chosen(listed, limit) if row.split == "TEST" or fit_on == "val"]
    if not any(row.split == "TEST" for row in rows):
        raise FileListError(f"{listing} has no TEST images: there is nothing to measure")
    left_out = _no_negatives(rows, no_negatives)
    cells = GRIDS[grid] if protocol != "reid" else ()
    plan = Plan(cells, protocol != "copy", seed, size, pair_negatives, workers or cpu_limit(), left_out, most_altered)
    try:
        scoring = score_all(rows, scorers, plan, progress)
    except FileListError as error:
        tests = [sum(row.split == "TEST" for row in some) for some in (rows, listed)]
        if limit is None or tests[0] == tests[1]:
            raise
        raise FileListError(f"{error}. --limit {limit} took {tests[0]} of {tests[1]} TEST images: raise it") from error
    reidentification: list[Reidentification] = []
    copy_detection: list[CopyDetection] = []
    val_pairs = _val_pairs(scoring, left_out)
    for scorer in scorers:
        shipped = scorer.bundle.threshold.value if isinstance(scorer, BundleScorer) else None
        parts = scoring.scores[scorer.name]
        whole = Scored.together(list(parts.values()))
        groups: list[tuple[str | None, Scored]] = [(None, whole), *parts.items()]
        for ds_name, own in groups:
            scored = _with_negatives_of(whole, own) if ds_name in left_out else own
            limits = _limits(scored, shipped, false_positives, val_pairs[ds_name], seed)
            optimal = _optimal(scored, seed)
            if len(scored.same):
                reidentification.append(_reidentification(scorer.name, ds_name, scored, limits, seed))
            if plan.cells:
                copy_detection.append(_copy_detection(scorer.name, ds_name, scored, (*limits, *optimal), plan))
    return Evaluation(
        listing=str(listing),
        protocol=protocol,
        seed=seed,
        size=size,
        data_sets=scoring.seen,
        unreadable=scoring.unreadable,
        scorers=tuple(_facts(scorer, scoring.milliseconds[scorer.name]) for scorer in scorers),
        reidentification=tuple(reidentification),
        copy_detection=tuple(copy_detection),
        notes=tuple(_notes(scoring, plan, reidentification, copy_detection)),
        scoring=scoring,
        grid=grid,
        no_negatives=tuple(sorted(left_out)),
    )


def _no_negatives(rows: Sequence[Listed], named: Collection[str]) -> frozenset[str]:
    """Check which data sets' pairs do not count."""
    known = {row.ds_name for row in rows if row.split == "TEST"}
    unknown = sorted(set(named) - known)
    if unknown:
        raise UsageError(
            f"no data set of TEST is called {', '.join(map(repr, unknown))}; the list has {', '.join(map(repr, sorted(known)))}"
        )
    if known and known <= set(named):
        raise UsageError("the pairs of no data set are left to count as negatives: leave one of the list's data sets in")
    return frozenset(named)


def _with_negatives_of(whole: Scored, scored: Scored) -> Scored:
    """A data set whose own pairs of different images do not count, with those of all that do."""
    return replace(
        scored,
        negatives=whole.negatives,
        owners=whole.owners,
        val_copies=whole.val_copies,
        val_negatives=whole.val_negatives,
    )


def _check_settings(
    scorers: Sequence[Scorer],
    protocol: str,
    size: int,
    limit: int | None,
    pair_negatives: int,
    rates: Sequence[float],
    fit_on: str,
    grid: str,
) -> None:
    names = [scorer.name for scorer in scorers]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"scorers need names that differ, and there must be one; these are {', '.join(names) or 'none'}")
    for value, known in ((protocol, PROTOCOLS), (fit_on, FIT_ON), (grid, tuple(GRIDS))):
        if value not in known:
            raise UsageError(f"{value!r} is unknown here; known are {', '.join(known)}")
    if size < 32 or pair_negatives < 1 or (limit is not None and limit < 2):
        raise UsageError("the working size must be 32 or more, pairs of different images 1 or more, and a limit 2 or more")
    if not all(0 < rate < 1 for rate in rates):
        raise UsageError(f"false-positive rates lie between 0 and 1, both excluded; these are {', '.join(map(str, rates))}")


def _chosen(rows: Sequence[Listed], limit: int | None) -> list[Listed]:
    """TEST and VAL, the first of each data set."""
    counts: dict[tuple[str, str], int] = {}
    chosen = []
    for row in rows:
        counts[row.split, row.ds_name] = counts.get((row.split, row.ds_name), 0) + 1
        if row.split in ("TEST", "VAL") and (limit is None or counts[row.split, row.ds_name] <= limit):
            chosen.append(row)
    # VAL of a data set that TEST does not have serves nothing.
    tested = {row.ds_name for row in chosen if row.split == "TEST"}
    return [row for row in chosen if row.ds_name in tested]


def _val_pairs(scoring: Scoring, left_out: Collection[str]) -> dict[str | None, int]:
    """How many of VAL's pairs of different images a data set has for who sees most of them.

    Whether a threshold is fitted on VAL or on TEST goes by this, so that it goes the same way for every scorer: those that see
    a sample only would else get theirs from other images.
    """
    counts: dict[str | None, int] = {seen.ds_name: 0 for seen in scoring.seen}
    for parts in scoring.scores.values():
        for ds_name, scored in parts.items():
            counts[ds_name] = max(counts[ds_name], 0 if scored.val_negatives is None else len(scored.val_negatives))
    counting = [count for ds_name, count in counts.items() if ds_name not in left_out]
    together = sum(counting) if all(counting) else 0
    return {**counts, **dict.fromkeys(left_out, together), None: together}


def _limits(scored: Scored, shipped: float | None, rates: Sequence[float], val_pairs: int, seed: int) -> tuple[Limit, ...]:
    fitted = [
        limit_for(rate, scored.negatives, scored.val_negatives if val_pairs >= pairs_needed(rate) else None)
        for rate in dict.fromkeys(rates)
    ]
    given = [] if shipped is None else [given_limit(shipped, scored.negatives)]
    return tuple(_with_interval(limit, scored, seed) for limit in (*fitted, *given))


def _with_interval(limit: Limit, scored: Scored, seed: int) -> Limit:
    """Give the measured false-positive rate its interval."""
    if limit.threshold is None:
        return limit
    reached = len(scored.negatives) - int(np.searchsorted(scored.negatives, limit.threshold, "left"))
    return replace(limit, false_positive_interval=scored.owners.share_interval(reached, seed))


def _optimal(scored: Scored, seed: int) -> tuple[Limit, ...]:
    """The paper's other threshold for copy detection, where VAL has what it takes. Never TEST's own: that would flatter."""
    if scored.val_copies is None or scored.val_negatives is None or not scored.val_copies.size:
        return ()
    return (_with_interval(best_f1_limit(scored.negatives, scored.val_copies, scored.val_negatives), scored, seed),)


def _reidentification(scorer: str, ds_name: str | None, scored: Scored, limits: tuple[Limit, ...], seed: int) -> Reidentification:
    return Reidentification(
        scorer=scorer,
        ds_name=ds_name,
        pairs=separation(scored.same, scored.different, scored.clusters, seed=seed),
        identities=int(scored.clusters.max()) + 1,
        at=tuple(_recall_at(scored, limit, seed) for limit in limits),
    )


def _recall_at(scored: Scored, limit: Limit, seed: int) -> RecallAt:
    if limit.threshold is None:
        return RecallAt(limit, None, None)
    found = (scored.same >= limit.threshold).astype(np.float64)
    return RecallAt(limit, float(found.mean()), mean_interval(found, scored.clusters, seed))


def _copy_detection(scorer: str, ds_name: str | None, scored: Scored, limits: tuple[Limit, ...], plan: Plan) -> CopyDetection:
    auc_of = "paper" if any(cell.paper for cell in plan.cells) else "realistic"
    copies = scored.copies[:, np.asarray([cell.grid == auc_of for cell in plan.cells])]
    return CopyDetection(
        scorer=scorer,
        ds_name=ds_name,
        images=len(scored.copies),
        negatives=len(scored.negatives),
        auc=auc(copies.reshape(-1), scored.negatives),
        auc_interval=mean_interval(placements(copies, scored.negatives).mean(axis=1), scored.identities, plan.seed),
        at=tuple(_copy_at(scored, limit, plan) for limit in limits),
        identities=int(scored.identities.max()) + 1,
        auc_of=auc_of,
    )


def _copy_at(scored: Scored, limit: Limit, plan: Plan) -> CopyAt:
    if limit.threshold is None:
        return CopyAt(limit, None, None, None)
    found = scored.copies >= limit.threshold
    spread = mean_intervals(found, scored.identities, plan.seed)
    return CopyAt(
        limit,
        cells={cell.name: float(found[:, column].mean()) for column, cell in enumerate(plan.cells)},
        paper=_grid(found, [cell.paper for cell in plan.cells], scored, plan),
        beyond=_grid(found, [cell.grid == "beyond" for cell in plan.cells], scored, plan),
        realistic=_grid(found, [cell.realistic and not cell.held_out for cell in plan.cells], scored, plan),
        held_out=_grid(found, [cell.held_out for cell in plan.cells], scored, plan),
        cell_intervals={cell.name: interval for cell, interval in zip(plan.cells, spread, strict=True)},
    )


def _grid(found: NDArray[np.bool_], taken: Sequence[bool], scored: Scored, plan: Plan) -> Grid | None:
    """Mean and worst of some cells; None where none of them was measured."""
    if not any(taken):
        return None
    chosen = found[:, np.asarray(taken)]
    recalls = chosen.mean(axis=0)
    worst = int(recalls.argmin())
    names = [cell.name for cell, chosen_one in zip(plan.cells, taken, strict=True) if chosen_one]
    spread = mean_interval(chosen.mean(axis=1), scored.identities, plan.seed)
    return Grid(float(recalls.mean()), spread, float(recalls[worst]), names[worst])


def _facts(scorer: Scorer, milliseconds: float) -> ScorerFacts:
    if isinstance(scorer, BundleScorer):
        bundle = scorer.bundle
        return ScorerFacts(scorer.name, scorer.about, bundle.threshold.value, bundle.fingerprint, milliseconds)
    return ScorerFacts(scorer.name, scorer.about, None, None, milliseconds)


def _notes(
    scoring: Scoring, plan: Plan, reidentification: Sequence[Reidentification], copy_detection: Sequence[CopyDetection]
) -> list[str]:
    """What a reader of the figures would otherwise have to guess; of limits, those over all data sets."""
    overall = [(part.scorer, result.limit) for part in copy_detection if part.ds_name is None for result in part.at]
    overall += [(part.scorer, result.limit) for part in reidentification if part.ds_name is None for result in part.at]
    notes = []
    for source, whose in (("VAL", "VAL's pairs"), ("TEST", "TEST's own pairs: VAL is not listed, has too few, or was not wanted")):
        rates = {limit.wanted for _, limit in overall if limit.source == source and limit.threshold is not None} - {None}
        if rates:
            named = ", ".join(f"{rate:g}" for rate in sorted(filter(None, rates)))
            notes.append(f"thresholds for false-positive rates of {named} over all data sets were fitted on {whose}")
    problems: dict[str, list[str]] = {}
    for scorer, limit in dict.fromkeys(overall):
        if limit.problem:
            problems.setdefault(limit.problem, []).append(scorer)
    notes += [f"{problem} ({', '.join(dict.fromkeys(names))})" for problem, names in problems.items()]
    if copy_detection:
        notes.append("95 % intervals of copy detection draw identities; pairs of different images and thresholds are held")
        if any(cell.held_out for cell in plan.cells):
            notes.append("held out: cells that the training of the bundled model never draws, nor anything that looks the same")
    if plan.no_negatives:
        named = ", ".join(map(repr, sorted(plan.no_negatives)))
        notes.append(f"pairs of different images of {named} do not count; thresholds and false positives there are the others'")
    few: dict[str | None, int] = {}
    drawn = [(part.ds_name, part.identities) for part in reidentification]
    drawn += [(part.ds_name, part.identities) for part in copy_detection]
    for name, count in drawn:
        if count < FEW_IDENTITIES and (name is None or len(scoring.seen) > 1):
            few[name] = min(count, few.get(name, count))
    if few:
        those = ", ".join(f"{'all together' if name is None else repr(name)} has {count}" for name, count in few.items())
        notes.append(f"95 % intervals of fewer than {FEW_IDENTITIES} identities mean little: {those}")
    measured = {part.ds_name for part in reidentification}
    left_out = [repr(seen.ds_name) for seen in scoring.seen if seen.ds_name not in measured]
    if plan.reidentification and left_out:
        notes.append(f"no identity of TEST has two images in {', '.join(left_out)}: nothing to re-identify there")
    if scoring.unreadable:
        notes.append(f"{len(scoring.unreadable)} listed images could not be read and were left out")
    return notes
