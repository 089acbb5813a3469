"""LCMem's loss on a batch of pairs: alpha * BCE + (1 - alpha) * NT-Xent (arXiv 2512.14421, section 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ALPHA", "TEMPERATURE", "hardest_bce", "nt_xent", "pair_loss", "rolled_bce"]

ALPHA = 0.8
TEMPERATURE = 0.07
Logit = Callable[[Tensor, Tensor], Tensor]
"""The head: two (..., features) to (...,) after flattening."""


def nt_xent(first: Tensor, second: Tensor, temperature: float = TEMPERATURE, *, centred: bool = False) -> Tensor:
    """NT-Xent of Chen et al. (arXiv 2002.05709) over all 2B embeddings, (B, features) each in (0, 1).

    `centred` subtracts 0.5 first: after a sigmoid all embeddings point the same way, and cosines hardly tell them apart.
    """
    count = len(first)
    both = torch.cat([first, second])
    unit = functional.normalize(both - 0.5 if centred else both, dim=1)
    cosines = unit @ unit.T / temperature
    cosines = cosines.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=cosines.device), float("-inf"))
    partner = torch.arange(2 * count, device=cosines.device).roll(count)
    return functional.cross_entropy(cosines, partner)


def rolled_bce(first: Tensor, second: Tensor, logit: Logit) -> Tensor:
    """The paper's binary cross-entropy: the batch's first half as positives; in its second half, rolled by one, negatives."""
    half = len(first) // 2
    positives = logit(first[:half], second[:half])
    negatives = logit(first[half:].roll(1, 0), second[half:])
    return torch.cat([functional.softplus(-positives), functional.softplus(negatives)]).mean()


def hardest_bce(first: Tensor, second: Tensor, logit: Logit, hardest: int = 4) -> Tensor:
    """Binary cross-entropy with each pair as a positive, and its hardest others in the batch as negatives.

    With small batches the rolled neighbours are almost always easy; the `hardest` highest-scoring others of the batch teach
    more. Positives and negatives weigh the same.

    Args:
        first, second: embeddings (B, features).
        logit: the head.
        hardest: negatives a query, fewer in a smaller batch.
    """
    count = len(first)
    every = logit(first.repeat_interleave(count, 0), second.repeat(count, 1)).view(count, count)
    itself = torch.eye(count, dtype=torch.bool, device=every.device)
    positives = every.diagonal()
    negatives = every.masked_fill(itself, float("-inf")).topk(min(hardest, count - 1), dim=1).values
    return 0.5 * (functional.softplus(-positives).mean() + functional.softplus(negatives).mean())


def pair_loss(
    first: Tensor,
    second: Tensor,
    logit: Logit,
    *,
    alpha: float = ALPHA,
    temperature: float = TEMPERATURE,
    centred: bool = False,
    negatives: str = "rolled",
) -> Tensor:
    """alpha * BCE + (1 - alpha) * NT-Xent of embeddings (B, features), a scalar; `negatives` are "rolled" or "hardest"."""
    bce = (hardest_bce if negatives == "hardest" else rolled_bce)(first, second, logit)
    return alpha * bce + (1 - alpha) * nt_xent(first, second, temperature, centred=centred)
