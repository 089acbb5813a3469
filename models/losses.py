"""LCMem's loss on a batch of pairs: alpha * BCE + (1 - alpha) * NT-Xent (arXiv 2512.14421, section 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ALPHA", "TEMPERATURE", "nt_xent", "pair_bce", "pair_loss"]

ALPHA = 0.8
TEMPERATURE = 0.07


def nt_xent(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """NT-Xent of Chen et al. (arXiv 2002.05709) over all 2B embeddings, (B, features) each in (0, 1).

    Embeddings are centred at 0.5 first: after a sigmoid all of them point the same way, and cosines would not tell them apart.
    """
    count = len(first)
    unit = functional.normalize(torch.cat([first, second]) - 0.5, dim=1)
    cosines = unit @ unit.T / temperature
    cosines = cosines.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=cosines.device), float("-inf"))
    partner = torch.arange(2 * count, device=cosines.device).roll(count)
    return functional.cross_entropy(cosines, partner)


def pair_bce(first: Tensor, second: Tensor, logit: Callable[[Tensor, Tensor], Tensor], hardest: int = 4) -> Tensor:
    """Binary cross-entropy of the head: each pair as a positive, its hardest others in the batch as negatives.

    The reference takes as negatives the neighbours that rolling the batch by one gives. With small batches those are almost
    always easy; the `hardest` highest-scoring others of the batch teach more. Both kinds weigh the same.

    Args:
        first, second: embeddings (B, features).
        logit: the head, two (..., features) to (...,) after flattening.
        hardest: negatives a query, fewer in a smaller batch.
    """
    count = len(first)
    every = logit(first.repeat_interleave(count, 0), second.repeat(count, 1)).view(count, count)
    itself = torch.eye(count, dtype=torch.bool, device=every.device)
    positives = every.diagonal()
    negatives = every.masked_fill(itself, float("-inf")).topk(min(hardest, count - 1), dim=1).values
    return 0.5 * (functional.softplus(-positives).mean() + functional.softplus(negatives).mean())


def pair_loss(
    first: Tensor, second: Tensor, logit: Callable[[Tensor, Tensor], Tensor], alpha: float = ALPHA, hardest: int = 4
) -> Tensor:
    """alpha * BCE + (1 - alpha) * NT-Xent of embeddings (B, features), a scalar."""
    return alpha * pair_bce(first, second, logit, hardest) + (1 - alpha) * nt_xent(first, second)
