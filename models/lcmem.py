"""LCMem as one torch module: VAE encoder, sample-wise normalisation, siamese backbone, head (arXiv 2512.14421, section 3).

A network may have a second branch, `trunk`: a pretrained convolutional network that reads the image itself. Its numbers follow the
backbone's in the embedding, and one head weighs them all: search and bundle see one embedding. On real images the two branches miss
different alterations (docs/bundled-model.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .autoencoder import Autoencoder, AutoencoderShape
from .convnext import ConvNeXt, ConvNeXtShape
from .efficientnet_lite import EfficientNetLite, TrunkShape
from .resnet import ResNet, ResNetShape

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "LCMem", "normalise_samples"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LATENT_STD = 0.5
MIN_STD = 1e-8


def normalise_samples(latents: Tensor) -> Tensor:
    """Give each channel of each sample mean 0 and standard deviation 0.5 over space.

    (B, C, H, W) to the same. The deviation is that with n-1; it is held above 1e-8, so a constant channel becomes 0. The
    reference applies this twice in places; it is idempotent.
    """
    mean = latents.mean(dim=(2, 3), keepdim=True)
    std = latents.std(dim=(2, 3), keepdim=True)
    return (latents - mean) / std.clamp(min=MIN_STD) * LATENT_STD


class LCMem(nn.Module):
    """Images to embeddings, two embeddings to a logit. Parameters carry the reference's names.

    With a VAE, the backbone reads normalised latents. Without, it is the siamese baseline: a 3-channel ResNet on
    ImageNet-normalised images, or a stage-1 network that is given latents (`embed_latents`).
    """

    def __init__(
        self, backbone: ConvNeXtShape | ResNetShape, autoencoder: AutoencoderShape | None, trunk: TrunkShape | None = None
    ) -> None:
        super().__init__()
        self.vae = Autoencoder(autoencoder) if autoencoder else None
        self.model: ConvNeXt | ResNet = ConvNeXt(backbone) if isinstance(backbone, ConvNeXtShape) else ResNet(backbone)
        self.trunk = EfficientNetLite(trunk) if trunk else None
        self.fc_end = nn.Linear(self.features, 1)
        self.register_buffer("imagenet_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("imagenet_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    @property
    def convnext(self) -> ConvNeXt:
        """The backbone, which is no ResNet.

        Raises:
            TypeError: it is one.
        """
        if not isinstance(self.model, ConvNeXt):
            raise TypeError("the siamese baseline's ResNet has no layers to stop at")
        return self.model

    @property
    def features(self) -> int:
        """Length of an embedding: the backbone's numbers and, where there is one, the trunk's."""
        return self.model.shape.features + (self.trunk.shape.features if self.trunk is not None else 0)

    def latents(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] to what the backbone reads: normalised latents, or the ImageNet-normalised image."""
        pixels = pixels.clamp(0.0, 1.0)
        if self.vae is None:
            return (pixels - self.imagenet_mean) / self.imagenet_std  # type: ignore[operator]
        return normalise_samples(self.vae(pixels))

    def project(self, latents: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Both branches' features side by side, before the sigmoid, (B, features). Arguments and errors are `embed_latents`'s."""
        features = self.model(latents)
        if self.trunk is None:
            return features  # type: ignore[no-any-return]
        if pixels is None:
            raise ValueError("this network has a trunk, which reads pixels: latents alone give no embedding")
        return torch.cat([features, self.trunk(pixels)], dim=1)

    def embed_latents(self, latents: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Embed what `latents` gives.

        Args:
            latents: (B, C, H, W), normalised.
            pixels: (B, 3, S, S) float in [0, 1], which a trunk reads besides.

        Returns:
            Embeddings (B, features) in (0, 1).

        Raises:
            ValueError: the network has a trunk and there are no pixels.
        """
        return torch.sigmoid(self.project(latents, pixels))

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float in [0, 1] to embeddings (B, features) in (0, 1)."""
        pixels = pixels.clamp(0.0, 1.0)
        return self.embed_latents(self.latents(pixels), pixels)

    def logit(self, first: Tensor, second: Tensor) -> Tensor:
        """Two batches of embeddings (B, features) to logits (B,); their sigmoid is the probability of "same"."""
        return self.fc_end((first - second).abs())[:, 0]  # type: ignore[no-any-return]

    def logits(self, first: Tensor, second: Tensor) -> Tensor:
        """Every pair of (A, features) and (B, features), to (A, B): `logit`'s values, without a difference a pair in memory."""
        weight = self.fc_end.weight[0]
        apart, alike = (-weight).clamp(min=0.0), weight.clamp(min=0.0)
        every = self.fc_end.bias - torch.cdist(first * apart, second * apart, p=1.0)
        if bool((alike > 0).any()):
            every = every + torch.cdist(first * alike, second * alike, p=1.0)
        return every

    def forward(self, pixels: Tensor) -> Tensor:
        return self.embed(pixels)
