"""Networks that take labels (batch,), from 0 to ``n_classes`` - 1, and critics that also say which class they see."""

import math
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from wganlab.networks import dcgan, mlp
from wganlab.networks.layers import FeatureCritic
from wganlab.schema import InvalidValueError, extends


class WithEmbedding(nn.Module):
    """A network of vectors, each beside an embedding of its label (Mirza and Osindero 2014, arXiv 1411.1784)."""

    def __init__(self, network: nn.Module, n_classes: int, embedding_dim: int) -> None:
        super().__init__()
        self.embedding, self.network = nn.Embedding(n_classes, embedding_dim), network

    def forward(self, values: Tensor, labels: Tensor) -> Tensor:
        return self.network(torch.cat([values.flatten(1), self.embedding(labels)], dim=1))


@extends(mlp.Generator)
class MLPGenerator(mlp.Generator):
    """The generator of :mod:`wganlab.networks.mlp`, with an embedding of the label beside its latents."""

    def __init__(
        self, *, latent_dim: PositiveInt, n_classes: PositiveInt, embedding_dim: PositiveInt = 10, **options: Any
    ) -> None:
        super().__init__(latent_dim=latent_dim + embedding_dim, **options)
        self.layers = WithEmbedding(self.layers, n_classes, embedding_dim)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return self.layers(latents, labels).unflatten(1, self.shape)


@extends(mlp.Critic)
class MLPCritic(mlp.Critic):
    """The critic of :mod:`wganlab.networks.mlp`, with an embedding of the label beside the pixels."""

    def __init__(
        self, *, shape: tuple[int, ...], n_classes: PositiveInt, embedding_dim: PositiveInt = 10, **options: Any
    ) -> None:
        super().__init__(shape=(math.prod(shape) + embedding_dim,), **options)
        self.features = WithEmbedding(self.features, n_classes, embedding_dim)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(self.features(images, labels)).squeeze(1)


class ConditionalBatchNorm(nn.Module):
    """Batch norm with a scale and a shift for each class (Dumoulin et al. 2017, arXiv 1610.07629, equation 5).

    In generators: Miyato and Koyama 2018, arXiv 1802.05637, section 5. Stands in for ``norm``, a batch norm.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, n_classes: int) -> None:
        super().__init__()
        self.norm = type(norm)(norm.num_features, norm.eps, norm.momentum, affine=False)
        self.of_images = isinstance(norm, nn.BatchNorm2d)
        self.scale, self.shift = (nn.Embedding(n_classes, norm.num_features) for _ in range(2))
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        scale, shift = self.scale(labels), self.shift(labels)
        if self.of_images:
            scale, shift = scale[:, :, None, None], shift[:, :, None, None]
        return self.norm(x) * scale + shift


@extends(dcgan.Generator)
class DCGANGenerator(dcgan.Generator):
    """The generator of :mod:`wganlab.networks.dcgan`, with conditional batch norm."""

    def __init__(self, *, n_classes: PositiveInt, **options: Any) -> None:
        super().__init__(**options)
        if (norm := options.get("norm", "batch")) != "batch":
            raise InvalidValueError("norm", norm, "must be batch: labels reach the network through its batch norm")
        for name, layer in self.layers.named_children():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(self.layers, name, ConditionalBatchNorm(layer, n_classes))

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        x = latents
        for layer in self.layers:
            x = layer(x, labels) if isinstance(layer, ConditionalBatchNorm) else layer(x)
        return x


@extends(dcgan.Critic)
class DCGANCritic(dcgan.Critic):
    """The critic of :mod:`wganlab.networks.dcgan`, whose score is head(features) + <embedding of the label, features>.

    Projection: Miyato and Koyama 2018, arXiv 1802.05637, equation 3.
    """

    def __init__(self, *, n_classes: PositiveInt, **options: Any) -> None:
        super().__init__(**options)
        self.projection = nn.Embedding(n_classes, self.dim)
        nn.init.xavier_uniform_(self.projection.weight)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        features = self.features(images)
        score = self.head[:-1](features).squeeze(1) + (self.projection(labels) * features).sum(1)
        return self.head[-1](score)


class Classifying(FeatureCritic):
    """A critic with a second head: logits of the classes of the images that it scores, which it takes without labels.

    The auxiliary classifier of AC-GAN (Odena et al. 2017, arXiv 1610.09585, section 3).
    """

    classifier: nn.Linear

    def scores_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (batch,) and logits (batch, n_classes)."""
        features = self.features(images)
        return self.head(features).squeeze(1), self.classifier(features)


@extends(mlp.Critic)
class ClassifyingMLPCritic(Classifying, mlp.Critic):
    """The critic of :mod:`wganlab.networks.mlp`, with an auxiliary classifier."""

    def __init__(self, *, n_classes: PositiveInt, **options: Any) -> None:
        super().__init__(**options)
        self.classifier = nn.Linear(self.dim, n_classes)


@extends(dcgan.Critic)
class ClassifyingDCGANCritic(Classifying, dcgan.Critic):
    """The critic of :mod:`wganlab.networks.dcgan`, with an auxiliary classifier."""

    def __init__(self, *, n_classes: PositiveInt, **options: Any) -> None:
        super().__init__(**options)
        self.classifier = nn.Linear(self.dim, n_classes)
