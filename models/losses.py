"""LCMem's loss on a batch of pairs: alpha * BCE + (1 - alpha) * NT-Xent (arXiv 2512.14421, section 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ALPHA", "TEMPERATURE", "hardest_bce", "nt_xent", "pair_loss", "rolled_bce", "tail_bce"]

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


def tail_bce(first: Tensor, second: Tensor, logit: Logit, every: Logit, tail: float) -> Tensor:
    """Binary cross-entropy with each pair as a positive, and as negatives the highest `tail` of all pairs of different pictures.

    What a threshold lets through by mistake are the few highest negatives, and it is one threshold for all kinds of pictures. So
    the highest of the whole batch count, and not each query's: a query that is like nobody teaches nothing. Half of the
    negatives' weight is on pairs of two firsts, as unaltered pictures are compared, half on firsts against seconds. Positives and
    negatives weigh the same.

    Args:
        first, second: embeddings (B, features); of unaltered pictures, and of copies or other pictures of theirs.
        logit: the head, of two aligned batches.
        every: the head, of (A, features) and (B, features) to (A, B).
        tail: share of the pairs, in (0, 1]; one pair at least.
    """
    count = len(first)
    itself = torch.eye(count, dtype=torch.bool, device=first.device)
    once = torch.ones_like(itself).tril()  # the pairs of two firsts have no order
    loss = functional.softplus(-logit(first, second)).mean()
    for other, left_out in ((first, once), (second, itself)):
        with torch.no_grad():
            pairs = int((~left_out).sum())
            highest = every(first, other).masked_fill(left_out, float("-inf")).flatten().topk(max(1, round(tail * pairs))).indices
        loss = loss + 0.5 * functional.softplus(logit(first[highest // count], other[highest % count])).mean()
    return 0.5 * loss


def pair_loss(
    first: Tensor,
    second: Tensor,
    logit: Logit,
    *,
    every: Logit,
    alpha: float = ALPHA,
    temperature: float = TEMPERATURE,
    centred: bool = False,
    negatives: str = "rolled",
    tail: float = 0.001,
) -> Tensor:
    """alpha * BCE + (1 - alpha) * NT-Xent of embeddings (B, features), a scalar; `negatives` are "rolled", "hardest" or "tail"."""
    if negatives == "tail":
        bce = tail_bce(first, second, logit, every, tail)
    else:
        bce = (hardest_bce if negatives == "hardest" else rolled_bce)(first, second, logit)
    return alpha * bce + (1 - alpha) * nt_xent(first, second, temperature, centred=centred)
