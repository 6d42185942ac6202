"""Fully connected pair: the walk-through of MNIST (100-128-256-512-1024-784 against 784-512-256-1) and 2-D toys."""

import math
from collections.abc import Sequence
from itertools import pairwise

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from wganlab.networks.layers import FeatureCritic, Init, Norm, Output, Widths, initialise, norm_layer, output_layer


def perceptron(widths: Sequence[int], norm: Norm, slope: float, eps: float = 1e-5) -> list[nn.Module]:
    """Linear layers between the widths, each with a LeakyReLU, and between the two a norm in all but the first."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.Linear(before, after), norm_layer(norm if i else "none", after, images=False, eps=eps)]
        layers.append(nn.LeakyReLU(slope))
    return layers


class Generator(nn.Module):
    """latent_dim - *hidden - pixels, LeakyReLU. The first hidden layer is not normalised, the others are.

    ``norm_eps`` is added to the variance; the walk-through sets 0.8, where a momentum was meant.
    """

    def __init__(
        self,
        *,
        latent_dim: PositiveInt,
        shape: tuple[int, ...],
        hidden: Widths = (128, 256, 512, 1024),
        norm: Norm = "batch",
        norm_eps: PositiveFloat = 1e-5,
        slope: NonNegativeFloat = 0.2,
        output: Output = "tanh",
        init: Init = "torch",
    ) -> None:
        super().__init__()
        body = perceptron([latent_dim, *hidden], norm, slope, norm_eps)
        self.layers: nn.Module = nn.Sequential(*body, nn.Linear(hidden[-1], math.prod(shape)), output_layer(output))
        self.shape = tuple(shape)
        initialise(self, init)

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents).unflatten(1, self.shape)


class Critic(FeatureCritic):
    """pixels - *hidden - 1, LeakyReLU, no normalisation unless asked for."""

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        hidden: Widths = (512, 256),
        norm: Norm = "none",
        slope: NonNegativeFloat = 0.2,
        output: Output = "linear",
        init: Init = "torch",
        minibatch_kernels: NonNegativeInt = 0,
    ) -> None:
        body = perceptron([math.prod(shape), *hidden], norm, slope)
        features = nn.Sequential(nn.Flatten(), *body)
        super().__init__(features, hidden[-1], output=output, minibatch_kernels=minibatch_kernels)
        initialise(self, init)
