"""LCMem's loss on a batch of pairs: alpha * BCE + (1 - alpha) * NT-Xent (arXiv 2512.14421, section 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ALPHA", "TEMPERATURE", "hardest_bce", "nt_xent", "pair_loss", "pooled_bce", "rolled_bce", "tail_bce"]

ALPHA = 0.8
TEMPERATURE = 0.07
Logit = Callable[[Tensor, Tensor], Tensor]
"""The head: two (..., features) to (...,) after flattening."""


def nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float = TEMPERATURE,
    *,
    centred: bool = False,
    identities: Tensor | None = None,
) -> Tensor:
    """NT-Xent of Chen et al. (arXiv 2002.05709) over all 2B embeddings, (B, features) each in (0, 1).

    Args:
        centred: subtract 0.5 first. After a sigmoid all embeddings point the same way, and cosines hardly tell them apart.
        identities: of each pair, int64 (B,); two pairs of one identity are not each other's negatives.
    """
    count = len(first)
    both = torch.cat([first, second])
    unit = functional.normalize(both - 0.5 if centred else both, dim=1)
    cosines = unit @ unit.T / temperature
    partner = torch.arange(2 * count, device=cosines.device).roll(count)
    left_out = torch.eye(2 * count, dtype=torch.bool, device=cosines.device)
    if identities is not None:
        owner = identities.repeat(2)
        left_out = owner[:, None] == owner[None, :]
        left_out[torch.arange(2 * count, device=cosines.device), partner] = False
    return functional.cross_entropy(cosines.masked_fill(left_out, float("-inf")), partner)


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
    """Binary cross-entropy with each pair as a positive, and as negatives the highest `tail` of all pairs of different images.

    What a threshold lets through by mistake are the few highest negatives, and it is one threshold for all kinds of images. So
    the highest of the whole batch count, and not each query's: a query that is like nobody teaches nothing. Half of the
    negatives' weight is on pairs of two firsts, as unaltered images are compared, half on firsts against seconds. Positives and
    negatives weigh the same.

    Args:
        first, second: embeddings (B, features); of unaltered images, and of copies or other images of theirs.
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


def pooled_bce(
    first: Tensor,
    second: Tensor,
    identities: Tensor,
    remembered: tuple[Tensor, Tensor],
    logit: Logit,
    every: Logit,
    *,
    tail: float,
    skipped: float = 0.0,
) -> Tensor:
    """Binary cross-entropy with each pair as a positive, and as negatives the highest of all pairs of different identities.

    Candidates are the pairs of two firsts, of a first and another pair's second, and of a first and an embedding remembered from
    an earlier batch (cross-batch memory, Wang et al., arXiv 1912.06798): all of one kind, so that a batch of a few pairs still
    meets the hardest of thousands. Positives and negatives weigh the same.

    Args:
        first, second: embeddings (B, features).
        identities: of each pair, int64 (B,). Two pairs of one identity are not each other's negatives.
        remembered: embeddings (M, features) without a gradient and their identities (M,); M may be 0.
        logit: the head, of two aligned batches.
        every: the head, of (A, features) and (C, features) to (A, C).
        tail: share of the candidates that count, in (0, 1]; half as many as there are pairs at least.
        skipped: share of the candidates, the highest, that are left out first: where identities are not certain, these may show
            one thing under two names.
    """
    positives = functional.softplus(-logit(first, second)).mean()
    apart = identities[:, None] != identities[None, :]
    sides = [(first, apart.tril(-1)), (second, apart), (remembered[0], identities[:, None] != remembered[1][None, :])]
    others = torch.cat([side for side, _ in sides])
    allowed = torch.cat([mask for _, mask in sides], dim=1)
    count = int(allowed.sum())
    if not count:
        return 0.5 * positives
    with torch.no_grad():
        scores = every(first, others).masked_fill(~allowed, float("-inf")).flatten()
        skip = min(round(skipped * count), count - 1)
        wanted = min(max(len(first) // 2, round(tail * count), 1), count - skip)
        highest = scores.topk(skip + wanted).indices[skip:]
    negatives = functional.softplus(logit(first[highest // len(others)], others[highest % len(others)])).mean()
    return 0.5 * (positives + negatives)


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
