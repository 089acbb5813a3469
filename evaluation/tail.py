"""The strangers' tail of a bundle, measured on a file list: how high images of different identities score, by kind of image.

Pairs are of different identities of one data set. A kind is what the list's column `kind` says, or else the data set; pairs of
its data sets count together. Rates that ten pairs or more reach are measured. Below, the tail is extrapolated by a law for the
smallest distances: a pair's logit falls short of an image's with itself (the head's bias) by a weighted distance d, and the share
of pairs nearer than d falls as a power of d near 0 (the Weibull case of extreme values; the power is the number of dimensions in
which images differ). Its exponent is Hill's estimate from the hundred nearest pairs. The tail ends where a threshold would come
near what an image scores with itself: copies would be missed there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from lcmem_onnx.runtime.errors import FileListError
from lcmem_onnx.runtime.model.strangers import Strangers, Tail, logit
from lcmem_onnx.runtime.screening import Screener
from numpy.typing import NDArray

from .filelist import Listed
from .protocols import different_pairs
from .reading import Unreadable, read_ahead
from .scoring import MOST_NEGATIVES, Progress

__all__ = ["LEAST_PAIRS", "RATES", "Sample", "make_strangers", "measure_strangers"]

Doubles = NDArray[np.float64]
RATES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
LEAST_PAIRS = 3000
"""Pairs of a kind below which it is left out: thirty of them reach the highest rate."""
LEAST_REACHED = 10
"""Pairs that must reach a threshold for its rate to count as measured."""
FITTED = 100
"""Nearest pairs that the extrapolation goes by; a hundredth of all where there are fewer than 10,000."""
FEWEST_FITTED = 30
COPY_SHARE = 0.2
"""Of the distance in logits from the threshold of the highest rate to an image's score with itself, the part nearest to the latter
that extrapolation keeps out of. `runtime.identification` takes scores in there for copies."""
AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class Sample:
    """Scores of pairs of different images of one kind, float64 (pairs,), sorted, and of how many images and identities they are."""

    scores: Doubles
    images: int
    identities: int

    @staticmethod
    def together(parts: Sequence[Sample]) -> Sample:
        """Join the data sets of one kind."""
        scores = np.sort(np.concatenate([part.scores for part in parts]))
        return Sample(scores, sum(part.images for part in parts), sum(part.identities for part in parts))


def make_strangers(samples: Mapping[str, Sample], fingerprint: str, bias: float, data: str) -> Strangers:
    """Make the strangers' tail.

    Args:
        samples: by kind of image. Kinds with fewer than `LEAST_PAIRS` pairs are left out.
        fingerprint: of the bundle that scored them.
        bias: of its head: the logit of an image's score with itself.
        data: which images these are, in words.

    Raises:
        FileListError: no kind has enough pairs.
    """
    large = {kind: sample for kind, sample in samples.items() if len(sample.scores) >= LEAST_PAIRS}
    counts = ", ".join(f"{kind} has {len(sample.scores):,}" for kind, sample in samples.items() if kind not in large)
    if not large:
        raise FileListError(
            f"a strangers' tail needs {LEAST_PAIRS:,} pairs of different images of one kind; {counts or 'there are no images'}"
        )
    weights = {kind: np.full(len(sample.scores), 1.0 / len(sample.scores) / len(large)) for kind, sample in large.items()}
    kinds = {kind: _tail(sample, np.full(len(sample.scores), 1.0 / len(sample.scores)), bias) for kind, sample in large.items()}
    pooled = Sample.together(list(large.values()))
    order = np.argsort(np.concatenate([sample.scores for sample in large.values()]), kind="stable")
    told = f"{data}; too few pairs: {counts}" if counts else data
    return Strangers(kinds, _tail(pooled, np.concatenate(list(weights.values()))[order], bias), told, fingerprint)


def _tail(sample: Sample, weights: Doubles, bias: float) -> Tail:
    """The tail of scores that weigh as much as given, (pairs,), together 1."""
    scores, shares = sample.scores[::-1], np.cumsum(weights[::-1])
    thresholds: list[float] = []
    measured: list[float] = []
    for rate in RATES:
        # So many may reach the threshold; it lies just above the next one, which may be tied with some of them.
        allowed = int(np.searchsorted(shares, rate * (1 + 1e-9), "right"))
        if allowed < LEAST_REACHED:
            break
        threshold = float(np.nextafter(scores[allowed], 1.0))
        if logit(min(threshold, np.nextafter(1.0, 0.0))) >= bias:
            break
        thresholds.append(threshold)
        measured.append(rate)
    if not measured:
        raise _nothing_to_say(alike=True)
    fitted = min(FITTED, max(FEWEST_FITTED, len(scores) // 100))
    highest = np.minimum(scores[: fitted + 1], np.nextafter(1.0, 0.0))
    distances = bias - (np.log(highest) - np.log1p(-highest))
    rates = list(measured)
    if distances[0] > 0.0 and distances[fitted] > distances[0]:  # else copies are among them, and nothing can be said
        dimensions = 1.0 / float(np.mean(np.log(distances[fitted] / distances[:fitted])))
        last = bias - logit(thresholds[-1])
        nearest = COPY_SHARE * (bias - logit(thresholds[0]))
        for rate in RATES[len(measured) :]:
            distance = last * (rate / measured[-1]) ** (1.0 / dimensions)
            if distance <= nearest:
                break
            rates.append(rate)
            thresholds.append(float(1.0 / (1.0 + np.exp(distance - bias))))
    if len(rates) < 2:
        raise _nothing_to_say(alike=distances[0] <= 0.0)
    return Tail(tuple(rates), tuple(thresholds), measured[-1], len(scores), sample.images, sample.identities)


def _nothing_to_say(*, alike: bool) -> FileListError:
    if alike:
        return FileListError(
            "too many pairs of different images score as an image does with itself: is one image listed under several identities?"
        )
    return FileListError(
        "the highest scores of different images are all the same: a strangers' tail needs more pairs, or another model"
    )


def measure_strangers(
    screener: Screener,
    rows: Sequence[Listed],
    *,
    no_negatives: Collection[str] = (),
    seed: int = 42,
    workers: int = 1,
    progress: Progress | None = None,
) -> Strangers:
    """Measure a bundle's strangers' tail on the images of a file list.

    Args:
        screener: the bundle.
        rows: images that its training has not seen, of VAL say. What cannot be read is left out.
        no_negatives: data sets to leave out: one thing may have two identities there.
        seed: of the draw where a data set has more pairs than are scored.
        workers: threads that read.
        progress: is told how far it has come.

    Raises:
        FileListError: too few pairs.
        EncodingError: the network's output is not finite.
    """
    chosen = [row for row in rows if row.ds_name not in no_negatives]
    size = screener.bundle.image_size
    vectors: dict[int, NDArray[np.float32]] = {}
    waiting: list[tuple[int, NDArray[np.uint8]]] = []

    def embed() -> None:
        if waiting:
            pixels = np.stack([image for _, image in waiting])
            vectors.update(zip([number for number, _ in waiting], screener.encoder.embed_resized(pixels), strict=True))
            waiting.clear()

    for number, versions in enumerate(read_ahead(chosen, size, (), seed, workers)):
        if progress:
            progress("tail", number, len(chosen))
        if not isinstance(versions, Unreadable):
            waiting.append((number, versions.original))
        if len(waiting) == AT_ONCE:
            embed()
    embed()
    if progress:
        progress("tail", len(chosen), len(chosen))
    by_set: dict[tuple[str, str], list[int]] = {}
    for number in vectors:
        row = chosen[number]
        by_set.setdefault((row.kind or row.ds_name or "images", row.ds_name), []).append(number)
    parts: dict[str, list[Sample]] = {}
    for (kind, _), members in by_set.items():
        embeddings = np.stack([vectors[number] for number in members])
        parts.setdefault(kind, []).append(_sample(screener, embeddings, [chosen[number].identity for number in members], seed))
    names = ", ".join(f"{name or 'images'} ({kind})" for kind, name in by_set)
    splits = " and ".join(dict.fromkeys(row.split for row in chosen))
    return make_strangers(
        {kind: Sample.together(each) for kind, each in parts.items()},
        screener.bundle.fingerprint,
        screener.bundle.head.bias,
        f"pairs of different identities of {splits}: {names}",
    )


def _sample(screener: Screener, embeddings: NDArray[np.float32], identities: Sequence[str], seed: int) -> Sample:
    """Score the pairs of one data set."""
    pairs = different_pairs(identities, MOST_NEGATIVES, seed)
    scores = np.empty(len(pairs))
    ends = [0, *(np.flatnonzero(np.diff(pairs.first)) + 1).tolist(), len(pairs)] if len(pairs) else [0]
    for begin, end in pairwise(ends):
        scores[begin:end] = screener.bundle.head.scores(embeddings[pairs.first[begin]], embeddings[pairs.second[begin:end]])
    return Sample(np.sort(scores), len(identities), len(set(identities)))
