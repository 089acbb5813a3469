"""The one-sided augmentation of stage 2 (arXiv 2512.14421, section 3): the paper's, and four that go further.

All take and give RGB, uint8 (height, width, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from lcmem_onnx.evaluation.alterations import alter, warped
from numpy.typing import NDArray

__all__ = ["AUGMENTATIONS", "hard", "hardest", "paper", "strong", "wide"]

Pixels = NDArray[np.uint8]
Draw = Callable[[Pixels, np.random.Generator], Pixels]
ALTERATIONS_AT_ONCE = (1, 1, 1, 2, 2, 3)
WEIGHTS = MappingProxyType(
    {
        "rotation": 3.0,
        "brightness": 2.0,
        "crop": 2.0,
        "blur": 1.5,
        "noise": 1.5,
        "contrast": 1.2,
        "jpeg": 1.2,
        "mirror": 1.0,
        "invert": 0.8,
        "half size": 0.6,
        "caption": 0.6,
        "border": 0.8,
    }
)
"""How often `wide` and `strong` draw what. Rotation, brightness and crops were the weakest cells of the first models."""
HARD_AT_ONCE = (1, 1, 1, 2, 2)
HARD_WEIGHTS = MappingProxyType(
    {
        "rotation": 3.5,
        "brightness": 3.0,
        "crop": 2.0,
        "invert": 1.6,
        "border": 1.2,
        "contrast": 1.2,
        "mirror": 1.0,
        "noise": 1.0,
        "caption": 0.8,
        "blur": 0.8,
        "jpeg": 0.8,
        "half size": 0.3,
    }
)
"""The same of `hard`: by what a network missed that `strong` had taught."""
HARDEST_AT_ONCE = (1, 1, 1, 1, 2)
HARDEST_WEIGHTS = MappingProxyType(
    {
        "rotation": 5.0,
        "brightness": 5.0,
        "crop": 2.0,
        "contrast": 2.0,
        "invert": 1.6,
        "border": 1.0,
        "mirror": 1.0,
        "noise": 0.7,
        "caption": 0.6,
        "blur": 0.5,
        "jpeg": 0.5,
        "half size": 0.2,
    }
)
"""The same of `hardest`: by what one missed that `hard` had taught, half of it turned by 30 degrees or brightened past white."""


def paper(image: Pixels, rng: np.random.Generator) -> Pixels:
    """What the paper trains with: rotation to 20 degrees and brightness and contrast at p = .5, flip, blur .2, noise .05, JPEG."""
    if rng.random() < 0.5:
        image = warped(image, rng.uniform(-20.0, 20.0), 1.0, (0.0, 0.0))
    if rng.random() < 0.5:
        image = alter(image, "mirror", 1.0, rng)
    image = alter(image, "blur", 0.2, rng)
    image = alter(image, "noise", 0.05, rng)
    if rng.random() < 0.5:
        image = alter(image, "brightness", rng.uniform(0.8, 1.2), rng)
        image = alter(image, "contrast", rng.uniform(0.8, 1.2), rng)
    return alter(image, "jpeg", float(rng.integers(10, 96)), rng)


def wide(image: Pixels, rng: np.random.Generator) -> Pixels:
    """One to three alterations, each anywhere between nothing and a little beyond the strongest cell of the paper's evaluation.

    The paper's evaluation reaches further than its augmentation (rotation to 30 degrees, sigma 6 and .3, brightness 2), and
    copies in the wild are mirrored, cropped, framed and captioned as well.
    """
    return _several(image, rng, _DRAWS, WEIGHTS, ALTERATIONS_AT_ONCE)


def strong(image: Pixels, rng: np.random.Generator) -> Pixels:
    """As `wide`, but turned further and made brighter more often: what a network still misses that knows the rest."""
    return _several(image, rng, _STRONG_DRAWS, WEIGHTS, ALTERATIONS_AT_ONCE)


def hard(image: Pixels, rng: np.random.Generator) -> Pixels:
    """As `strong`, but more often one alteration alone, as the evaluation has it, and more often one of those that are missed."""
    return _several(image, rng, _HARD_DRAWS, HARD_WEIGHTS, HARD_AT_ONCE)


def hardest(image: Pixels, rng: np.random.Generator) -> Pixels:
    """As `hard`, but half of it turned or made brighter, and mostly one alteration alone."""
    return _several(image, rng, _HARD_DRAWS, HARDEST_WEIGHTS, HARDEST_AT_ONCE)


def _several(
    image: Pixels, rng: np.random.Generator, draws: Mapping[str, Draw], weights: Mapping[str, float], at_once: Sequence[int]
) -> Pixels:
    count = int(rng.choice(at_once))
    shares = np.array(list(weights.values()))
    for name in rng.choice(list(weights), count, replace=False, p=shares / shares.sum()):
        image = draws[str(name)](image, rng)
    return image


def _rotation(image: Pixels, rng: np.random.Generator, degrees: float | None = None) -> Pixels:
    scale, shift = 1.0, (0.0, 0.0)
    if rng.random() < 0.4:
        scale, shift = rng.uniform(0.85, 1.15), (rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06))
    return warped(image, rng.uniform(-34.0, 34.0) if degrees is None else degrees, scale, shift)


def _far_rotation(image: Pixels, rng: np.random.Generator) -> Pixels:
    return _rotation(image, rng, float(rng.choice([-1.0, 1.0]) * 36.0 * np.sqrt(rng.random())))


def _far_factor(below: float, highest: float) -> Callable[[np.random.Generator], float]:
    """More often above 1.3 than below, which `below` says: what is brightened away is lost, darkening loses little."""
    return lambda rng: float(rng.uniform(0.5, 1.3) if rng.random() < below else rng.uniform(1.3, highest))


def _factor(rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(0.5), np.log(2.2))))


def _simply(name: str, strength: Callable[[np.random.Generator], float]) -> Draw:
    return lambda image, rng: alter(image, name, strength(rng), rng)


_DRAWS: Mapping[str, Draw] = MappingProxyType(
    {
        "rotation": _rotation,
        "brightness": _simply("brightness", _factor),
        "contrast": _simply("contrast", _factor),
        "crop": _simply("crop", lambda rng: rng.uniform(0.5, 1.0)),
        "blur": _simply("blur", lambda rng: rng.uniform(0.2, 6.5)),
        "noise": _simply("noise", lambda rng: rng.uniform(0.01, 0.33)),
        "jpeg": _simply("jpeg", lambda rng: float(rng.integers(7, 96))),
        "mirror": _simply("mirror", lambda rng: 1.0),
        "invert": _simply("invert", lambda rng: 1.0),
        "half size": _simply("half size", lambda rng: rng.uniform(0.3, 0.8)),
        "caption": _simply("caption", lambda rng: 1.0),
        "border": _simply("border", lambda rng: rng.uniform(0.03, 0.13)),
    }
)

_STRONG_DRAWS: Mapping[str, Draw] = MappingProxyType(
    {
        **_DRAWS,
        "rotation": _far_rotation,
        "brightness": _simply("brightness", _far_factor(0.4, 2.3)),
        "contrast": _simply("contrast", _far_factor(0.4, 2.3)),
    }
)

_HARD_DRAWS: Mapping[str, Draw] = MappingProxyType({**_STRONG_DRAWS, "brightness": _simply("brightness", _far_factor(0.25, 2.5))})

AUGMENTATIONS: Mapping[str, Draw] = MappingProxyType(
    {"paper": paper, "wide": wide, "strong": strong, "hard": hard, "hardest": hardest}
)
"""By the names that a training's configuration uses."""
