"""How high images of different things score, and the threshold for a gallery that follows from it.

A bundle may carry its strangers' tail: for each kind of image (radiographs, photographs, ...) the scores that a share of the pairs
of different images reaches, from 1 in 100 pairs down to 1 in 1,000,000. A search for a stranger in a gallery of N images makes N
such pairs. Where a pair reaches the threshold with a rate r, 1 - (1 - r)^N of the strangers are flagged if pairs are independent,
and fewer if some strangers resemble more images than others do (Jensen's inequality; see `gallery.growth`). So a wanted
false-positive identification rate (FPIR) and N give r, and the tail gives the threshold. It is taken from the worst kind, since a
gallery may hold any.

Between two rates of the tail, the logit of the score is interpolated linearly over the logarithm of the rate. The tail is not
extended beyond its ends: a small gallery gets the threshold of the highest rate, a large one that of the lowest, and `fpir` says
what to expect then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from ..errors import UsageError

__all__ = ["DEFAULT_FPIR", "LEAST_PAIRS", "GalleryThreshold", "Strangers", "Tail", "check_rate", "pair_rate", "read_strangers"]

DEFAULT_FPIR = 0.05
LEAST_PAIRS = 1000
"""Pairs of different images below which a kind says nothing of a rate of 1 %: ten of them reach that threshold."""
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Tail:
    """The highest scores of one kind's pairs of different images.

    Attributes:
        rates: shares of the pairs, falling, each in (0, 1).
        thresholds: scores that these shares reach, not falling, each in (0, 1).
        measured_to: the lowest rate that was measured; lower ones were extrapolated.
        pairs, images, identities: what it was measured with.
    """

    rates: tuple[float, ...]
    thresholds: tuple[float, ...]
    measured_to: float
    pairs: int
    images: int
    identities: int

    def threshold(self, rate: float) -> float:
        """Return the score that a share `rate` of the pairs reaches; at the ends of the tail, that of the nearest rate."""
        if rate >= self.rates[0]:
            return self.thresholds[0]
        for (high, above), (low, below) in pairwise(zip(self.rates, self.thresholds, strict=True)):
            if rate >= low:
                part = math.log(high / rate) / math.log(high / low)
                between = _sigmoid(logit(above) + part * (logit(below) - logit(above)))
                return min(max(between, above), below)  # whatever rounding does
        return self.thresholds[-1]

    def rate(self, threshold: float) -> float:
        """Return the share of the pairs that reaches `threshold`: 1 below the tail, the lowest rate beyond it."""
        if threshold < self.thresholds[0]:
            return 1.0
        if threshold >= self.thresholds[-1]:
            return self.rates[-1]
        below = next(index for index, score in enumerate(self.thresholds) if score > threshold)
        first, second = logit(self.thresholds[below - 1]), logit(self.thresholds[below])
        part = (logit(threshold) - first) / (second - first)
        return float(self.rates[below - 1] * (self.rates[below] / self.rates[below - 1]) ** part)


@dataclass(frozen=True)
class GalleryThreshold:
    """A threshold for a gallery of one size.

    Attributes:
        threshold: the score.
        size: of the gallery, in images.
        wanted: FPIR.
        fpir: the share of strangers' images flagged at most, about; another than `wanted` where the tail ends.
        kind: the kind of image that is flagged most.
        extrapolated: whether the pairs that were measured are too few for the rate it takes.
    """

    threshold: float
    size: int
    wanted: float
    fpir: float
    kind: str
    extrapolated: bool

    @property
    def beyond(self) -> bool:
        """Whether the gallery is larger than the tail can serve, so that more than the wanted share is flagged."""
        return self.fpir > self.wanted * (1 + 1e-9)


@dataclass(frozen=True)
class Strangers:
    """The strangers' tail of a bundle.

    Attributes:
        kinds: the tail of each kind of image, by name.
        pooled: that of all kinds together, each weighing the same.
        data: what it was measured with, in words.
        fingerprint: of the bundle whose scores these are.
    """

    kinds: Mapping[str, Tail]
    pooled: Tail
    data: str
    fingerprint: str

    def threshold_for(self, fpir: float, size: int) -> GalleryThreshold:
        """Return the lowest threshold at which at most a share `fpir` of the strangers is flagged, whichever kind they are of.

        Args:
            fpir: in (0, 1).
            size: images in the gallery, 1 or more.

        Raises:
            UsageError: a rate or a size out of range.
        """
        rate = pair_rate(check_rate(fpir), size)
        threshold = max(tail.threshold(rate) for tail in self.kinds.values())
        rates = {kind: tail.rate(threshold) for kind, tail in self.kinds.items()}
        # Of kinds whose rates differ by rounding alone, the first by name.
        kind = max(sorted(rates), key=lambda name: round(math.log(rates[name]), 9))
        return GalleryThreshold(
            threshold, size, fpir, flagged(rates[kind], size), kind, rates[kind] < self.kinds[kind].measured_to * (1 - 1e-9)
        )

    def rates(self, threshold: float) -> tuple[float, float, float]:
        """Return the shares of the pairs that reach `threshold`: in the best kind, over all kinds, in the worst kind."""
        each = [tail.rate(threshold) for tail in self.kinds.values()]
        return min(each), min(max(self.pooled.rate(threshold), min(each)), max(each)), max(each)

    def as_json(self) -> dict[str, Any]:
        """Return what `read_strangers` reads."""
        return {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "data": self.data,
            "kinds": {name: _tail_json(tail) for name, tail in self.kinds.items()},
            "pooled": _tail_json(self.pooled),
        }


def check_rate(rate: float) -> float:
    """Return `rate`, a wanted FPIR.

    Raises:
        UsageError: it is not strictly between 0 and 1. Nothing finite shows a rate of 0.
    """
    if not 0.0 < rate < 1.0:
        raise UsageError(
            f"false positive identification rate must be between 0 and 1 (exclusive), such as 0.01 for 1 %, got {rate}"
        )
    return rate


def pair_rate(fpir: float, size: int) -> float:
    """Return the rate r of pairs with 1 - (1 - r)^size = `fpir`.

    Raises:
        UsageError: a size below 1.
    """
    if size < 1:
        raise UsageError(f"gallery size must be 1 or more, got {size}")
    return -math.expm1(math.log1p(-fpir) / size)


def flagged(rate: float, size: int) -> float:
    """Return 1 - (1 - rate)^size: the share of strangers flagged where a pair reaches the threshold with `rate`."""
    return 1.0 if rate >= 1.0 else -math.expm1(size * math.log1p(-rate))


def read_strangers(content: object, fingerprint: str, self_score: float) -> Strangers:
    """Check and return a tail as `Strangers.as_json` writes it.

    Args:
        content: the parsed JSON.
        fingerprint: of the bundle that it is for.
        self_score: what an image scores with itself.

    Raises:
        ValueError: it is of another model or format, damaged, or measured with too little; the message says which.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"it is damaged: expected a table, got {type(content).__name__}")
    version = content.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(f"it has format version {version!r}; this lcmem-onnx reads {FORMAT_VERSION}: update lcmem-onnx")
    try:
        own, data, kinds = content["fingerprint"], content["data"], content["kinds"]
        if not isinstance(own, str) or not isinstance(data, str) or not isinstance(kinds, Mapping) or not kinds:
            raise TypeError("fingerprint and data are text, kinds is a table with one kind or more")
        if own != fingerprint:
            raise ValueError(
                f"it belongs to another model (fingerprint {own[:12]}, expected {fingerprint[:12]}): measure it with this one"
            )
        tails = {str(name): _read_tail(tail, f"kind {name!r}", self_score) for name, tail in kinds.items()}
        return Strangers(MappingProxyType(tails), _read_tail(content["pooled"], "pooled", self_score), data, own)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"it is damaged: {error!r}") from error


def _read_tail(content: Mapping[str, Any], where: str, self_score: float) -> Tail:
    rates, thresholds = (tuple(_number(value) for value in content[name]) for name in ("rates", "thresholds"))
    pairs, images, identities = (content[name] for name in ("pairs", "images", "identities"))
    measured_to = _number(content["measured_to"])
    if not all(type(count) is int for count in (pairs, images, identities)):
        raise TypeError(f"{where}: pairs, images and identities are whole numbers")
    if len(rates) != len(thresholds) or len(rates) < 2:
        raise ValueError(
            f"it is damaged: {where} must have at least two rates and as many thresholds, got {len(rates)} and {len(thresholds)}"
        )
    if not all(0.0 < value < 1.0 for value in (*rates, *thresholds)):
        raise ValueError(f"it is damaged: {where} has rates or thresholds outside 0 to 1 (exclusive)")
    if any(low >= high for high, low in pairwise(rates)) or any(below < above for above, below in pairwise(thresholds)):
        raise ValueError(f"it is not monotone: in {where}, rates must decrease and thresholds must not decrease")
    if thresholds[-1] >= self_score:
        raise ValueError(f"it is damaged: {where} has a threshold of {thresholds[-1]:.6g}, above the score of identical images")
    if pairs < LEAST_PAIRS or identities < 2 or images < identities:
        raise ValueError(
            f"it is too small: {where} was measured with {pairs} pairs of {images} images of {identities} identities; "
            f"at least {LEAST_PAIRS} pairs are required"
        )
    if not rates[-1] <= measured_to <= rates[0] or measured_to * pairs < 1.0:
        raise ValueError(f"it is too small: {where} states a rate of {measured_to:g}, which {pairs} pairs cannot measure")
    return Tail(rates, thresholds, measured_to, pairs, images, identities)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def _tail_json(tail: Tail) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(tail).items()}


def logit(score: float) -> float:
    """Return the logit of a score in (0, 1)."""
    return math.log(score) - math.log1p(-score)


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value)) if value >= 0 else math.exp(value) / (1.0 + math.exp(value))
