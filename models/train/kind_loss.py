"""The loss of a batch of one kind: hardest negatives of the batch and of a memory, NT-Xent of the embedding and its branches."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor, nn

from ..lcmem import LCMem
from .config import Config
from .losses import nt_xent, pooled_bce

__all__ = ["KindLoss", "Memory", "latents_in_parts"]

VAE_AT_ONCE = 12
"""Images that the frozen VAE sees at once: its latents are image by image, and small batches stay in a processor's cache.
Measured with the bundled model's autoencoder on two cores: 96 images in .12 s, against .18 s all at once."""
NOBODY = -1


def latents_in_parts(network: LCMem, pixels: Tensor) -> Tensor:
    """Return the frozen VAE's latents of (B, 3, S, S) in [0, 1], without a gradient."""
    at_once = VAE_AT_ONCE if pixels.device.type == "cpu" else len(pixels)
    with torch.no_grad():
        return torch.cat([network.latents(part) for part in torch.split(pixels, at_once)])


class Memory(nn.Module):
    """The newest embeddings of each kind and whose they are: cross-batch memory (Wang et al., arXiv 1912.06798).

    What a step adds counts from the next step on. Where several processes train, each remembers the batches of all. The content is
    part of the state dict, so that a training that goes on has the same negatives.
    """

    embeddings: Tensor
    identities: Tensor

    def __init__(self, kinds: int, size: int, features: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(kinds, size, features))
        self.register_buffer("identities", torch.full((kinds, size), NOBODY))
        self._added: list[tuple[Tensor, Tensor, Tensor]] = []

    def of(self, kind: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (M, features) and identities (M,) of a kind; M grows from 0 to the memory's size."""
        filled = int((self.identities[kind] != NOBODY).sum())
        return self.embeddings[kind][:filled], self.identities[kind][:filled]

    def add(self, kind: Tensor, embeddings: Tensor, identities: Tensor) -> None:
        """Remember a batch once `end_step` is called."""
        if self.identities.shape[1]:
            self._added.append((kind, embeddings.detach(), identities))

    def end_step(self, pairs: int) -> None:
        """Put the batches of the step, each of at most `pairs`, before what is remembered, and forget the oldest."""
        for kind, embeddings, identities in self._added:
            for each in self._of_all_processes(kind, embeddings, identities, pairs):
                self._put(*each)
        self._added.clear()

    def _put(self, kind: Tensor, embeddings: Tensor, identities: Tensor) -> None:
        size = self.identities.shape[1]
        self.embeddings[kind] = torch.cat([embeddings, self.embeddings[kind]])[:size]
        self.identities[kind] = torch.cat([identities, self.identities[kind]])[:size]

    @staticmethod
    def _of_all_processes(kind: Tensor, embeddings: Tensor, identities: Tensor, pairs: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        if PartialState().num_processes == 1:
            return [(kind, embeddings, identities)]
        padded = embeddings.new_zeros(1, pairs, embeddings.shape[1])
        padded[0, : len(embeddings)] = embeddings
        owners = identities.new_full((1, pairs), NOBODY)
        owners[0, : len(identities)] = identities
        every = zip(gather(kind.reshape(1)), gather(padded), gather(owners), strict=True)
        return [(which, its[whose != NOBODY], whose[whose != NOBODY]) for which, its, whose in every]


class KindLoss(nn.Module):
    """A batch of `KindBatches` to LCMem's loss, alpha * BCE + (1 - alpha) * NT-Xent.

    Without a memory in evaluation mode, so that a validation loss depends on the weights alone. Embeddings and loss are computed in
    fp32 whatever the precision of the networks.
    """

    def __init__(self, network: LCMem, config: Config) -> None:
        super().__init__()
        self.network, self.settings = network, config.training
        self.skipped = [kind.skipped for kind in config.data.kinds.values()]
        self.memory = Memory(len(self.skipped), config.training.memory, network.features)

    def forward(self, first: Tensor, second: Tensor, identities: Tensor, kind: Tensor) -> Tensor:
        pixels = torch.cat([first, second]).to(memory_format=torch.channels_last).float() / 255.0
        features = self.network.project(latents_in_parts(self.network, pixels), pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            one, other = torch.sigmoid(features.float()).chunk(2)
            settings = self.settings
            nobody = (one.new_zeros(0, one.shape[1]), identities.new_zeros(0))
            bce = pooled_bce(
                one,
                other,
                identities,
                self.memory.of(kind) if self.training else nobody,
                self.network.logit,
                self.network.logits,
                tail=settings.tail,
                skipped=self.skipped[int(kind)],
            )
            if self.training:
                self.memory.add(kind, one, identities)
            return settings.alpha * bce + (1 - settings.alpha) * self._nt_xent(one, other, identities)

    def _nt_xent(self, one: Tensor, other: Tensor, identities: Tensor) -> Tensor:
        """Of the whole embedding, and of each branch alone: a branch whose part of the loss is small would stop learning."""
        settings = self.settings

        def of(part: slice) -> Tensor:
            return nt_xent(one[:, part], other[:, part], settings.temperature, centred=settings.centred, identities=identities)

        share, length = settings.branch_share, self.network.model.shape.features
        loss = (1.0 - share) * of(slice(None))
        if share:
            loss = loss + 0.5 * share * (of(slice(None, length)) + of(slice(length, None)))
        return loss
