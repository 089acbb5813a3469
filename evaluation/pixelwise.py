"""Baselines that compare pixels: mean squared error, structural similarity, normalised correlation."""

from __future__ import annotations

import cv2
import numpy as np
from skimage.metrics import mean_squared_error, structural_similarity

from .compare import Pixels

__all__ = ["Mse", "Ncc", "Ssim"]


class Mse:
    """Minus the mean squared error of RGB values in [0, 1], by scikit-image."""

    name = "mse"
    about = "minus the mean squared error of RGB in [0, 1] (scikit-image)"

    def score(self, first: Pixels, second: Pixels) -> float:
        return -float(mean_squared_error(first, second)) / 255.0**2


class Ssim:
    """Structural similarity of grey images, scikit-image's, window 7. Of RGB it takes three times as long."""

    name = "ssim"
    about = "structural similarity of grey images, window 7 (scikit-image)"

    def score(self, first: Pixels, second: Pixels) -> float:
        side = min(*first.shape[:2], 7)
        window = side - 1 + side % 2
        return float(structural_similarity(_grey(first), _grey(second), win_size=window, data_range=255))  # type: ignore[no-untyped-call]


class Ncc:
    """Normalised cross-correlation of grey images without shift (OpenCV's TM_CCOEFF_NORMED): Pearson's r of the pixels."""

    name = "ncc"
    about = "normalised cross-correlation of grey images (OpenCV, TM_CCOEFF_NORMED)"

    def score(self, first: Pixels, second: Pixels) -> float:
        found = float(cv2.matchTemplate(_grey(first), _grey(second), cv2.TM_CCOEFF_NORMED)[0, 0])
        # Where one side is of one colour (brightness can make it so) there is no correlation; OpenCV may give infinity or 1.
        flat = min(float(first.std()), float(second.std())) == 0.0
        return 0.0 if flat or not np.isfinite(found) else found


def _grey(image: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
