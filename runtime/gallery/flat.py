"""The vectors of a gallery as one matrix, kept in step with the store."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from ..errors import GalleryError
from ..head import Floats
from .records import EMPTY, row_digest
from .store import Store

__all__ = ["Flat"]


class Flat:
    """All vectors in memory: ids int64 (n,), ascending; embeddings float32 (n, features)."""

    def __init__(self, features: int) -> None:
        self.ids: NDArray[np.int64] = np.empty(0, np.int64)
        self.embeddings: Floats = np.empty((0, features), np.float32)
        self.low: Floats = np.full(features, np.inf, np.float32)
        self.high: Floats = np.full(features, -np.inf, np.float32)
        self.tally = EMPTY
        self.newest = 0
        self.erasure = 0

    def __len__(self) -> int:
        return len(self.ids)

    def refresh(self, store: Store) -> bool:
        """Read what was added or erased since the last time, by this process or another. Says whether anything was erased.

        Raises:
            GalleryError: the vectors are not those that were written.
        """
        if store.newest() == (self.newest, self.erasure):
            return False
        changes = store.changes(self.newest, self.erasure)
        gone = np.isin(self.ids, changes.erased)
        digests = [
            row_digest(int(self.ids[at]), hashlib.sha256(self.embeddings[at].astype("<f4").tobytes()).digest())
            for at in np.flatnonzero(gone)
        ]
        tally = self.tally.minus(digests)
        tally = type(tally)(tally.rows + changes.added.rows, (tally.total + changes.added.total) % (1 << 128))
        if tally != changes.tally:
            raise GalleryError(
                f"{store.path} is damaged (its vectors are not those that were written): "
                "restore it from a copy, or build the index again"
            )
        self.ids = np.concatenate([self.ids[~gone], changes.ids])
        self.embeddings = np.concatenate([self.embeddings[~gone], changes.embeddings])
        if len(changes.ids):
            self.low = np.minimum(self.low, changes.embeddings.min(axis=0))
            self.high = np.maximum(self.high, changes.embeddings.max(axis=0))
        self.tally = tally
        # What was read, and not what `newest` said before: another process may have added in between.
        self.newest = max(self.newest, int(changes.ids[-1]) if len(changes.ids) else 0, int(changes.erased.max(initial=0)))
        self.erasure = changes.erasure
        return bool(gone.any())
