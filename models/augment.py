"""The one-sided augmentation of stage 2: a random mixture of alterations (arXiv 2512.14421, section 3)."""

from __future__ import annotations

import numpy as np
from lcmem_onnx.evaluation.alterations import alter, warped
from numpy.typing import NDArray

__all__ = ["augment"]

Pixels = NDArray[np.uint8]


def augment(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """One side of a stage-2 pair: a random mixture of alterations, RGB uint8 (height, width, 3) to the same.

    The reference rotates to 20 degrees, blurs with sigma .2 and adds noise of .05; the evaluation goes to 30 degrees, 6 and
    .3. The small model is trained on what it is measured on, rotation and brightness more often, since those were the
    weakest cells of a first try.
    """

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    if chance(0.25):
        picture = alter(picture, "mirror", 1.0, rng)
    if chance(0.25):
        picture = alter(picture, "crop", rng.uniform(0.65, 1.0), rng)
    if chance(0.55):
        degrees, scale = rng.uniform(-32, 32), rng.uniform(0.88, 1.12) if chance(0.5) else 1.0
        picture = warped(picture, degrees, scale, tuple(rng.uniform(-0.05, 0.05, 2)) if chance(0.3) else (0.0, 0.0))
    if chance(0.08):
        picture = alter(picture, "invert", 1.0, rng)
    if chance(0.06):
        picture = alter(picture, "caption", 1.0, rng)
    if chance(0.06):
        picture = alter(picture, "border", rng.uniform(0.03, 0.12), rng)
    if chance(0.5):
        picture = alter(picture, "brightness", float(np.exp(rng.uniform(np.log(0.55), np.log(2.1)))), rng)
    if chance(0.45):
        picture = alter(picture, "contrast", float(np.exp(rng.uniform(np.log(0.55), np.log(2.1)))), rng)
    if chance(0.3):
        picture = alter(picture, "blur", rng.uniform(0.2, 6.0), rng)
    elif chance(0.15):
        picture = alter(picture, "half size", rng.uniform(0.3, 0.8), rng)
    if chance(0.35):
        picture = alter(picture, "noise", rng.uniform(0.01, 0.32), rng)
    if chance(0.4):
        picture = alter(picture, "jpeg", float(rng.integers(8, 96)), rng)
    return picture
