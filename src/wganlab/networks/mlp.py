"""Fully connected pair after the MLP walk-through of MNIST: 100-128-256-512-1024-784 and 784-512-256-1."""

import math
from collections.abc import Sequence
from itertools import pairwise

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from wganlab.networks.layers import Norm, norm_layer


def perceptron(widths: Sequence[int], norm: Norm, slope: float) -> list[nn.Module]:
    """Linear layers between the widths, LeakyReLU between them, and a norm before each LeakyReLU but the first."""
    layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for i, (before, after) in enumerate(pairwise(widths[1:])):
        layers += [norm_layer(norm if i else "none", before, images=False), nn.LeakyReLU(slope)]
        layers.append(nn.Linear(before, after))
    return layers


class Generator(nn.Module):
    """latent_dim - *hidden - pixels, LeakyReLU, tanh. The first hidden layer is not normalised, the others are."""

    def __init__(
        self,
        *,
        latent_dim: PositiveInt,
        shape: tuple[int, ...],
        hidden: Sequence[PositiveInt] = (128, 256, 512, 1024),
        norm: Norm = "batch",
        slope: NonNegativeFloat = 0.2,
    ) -> None:
        super().__init__()
        widths = [latent_dim, *hidden, math.prod(shape)]
        self.layers = nn.Sequential(*perceptron(widths, norm, slope), nn.Tanh())
        self.shape = tuple(shape)

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents).unflatten(1, self.shape)


class Critic(nn.Module):
    """pixels - *hidden - 1, LeakyReLU, no normalisation unless asked for, no final activation."""

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        hidden: Sequence[PositiveInt] = (512, 256),
        norm: Norm = "none",
        slope: NonNegativeFloat = 0.2,
    ) -> None:
        super().__init__()
        widths = [math.prod(shape), *hidden, 1]
        self.layers = nn.Sequential(nn.Flatten(), *perceptron(widths, norm, slope))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).squeeze(1)
