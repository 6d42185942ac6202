"""Convolutional pair after the DCGAN walk-through of MNIST with gradient penalty, at any size it can double to.

The source is a Keras program, hence its constants: LeakyReLU slope 0.3, batch norm momentum 0.99 (0.01 in torch)
and eps 1e-3, Glorot-uniform kernels and zero biases.
"""

import math
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from wganlab.networks.layers import (
    Dropout,
    FeatureCritic,
    Norm,
    Output,
    Padding,
    check_halvings,
    doubling,
    halving,
    initial_size,
    initialise,
    norm_layer,
)
from wganlab.schema import InvalidValueError

EPS, MOMENTUM = 1e-3, 0.01


class Generator(nn.Module):
    """Dense to n_filters maps, a 5x5 layer, n_blocks stride-2 layers that double the size, a 5x5 layer, tanh.

    The width halves in each block. No layer has a bias: the normalisation that follows would cancel it, and where
    there is none, WGAN's own program has no bias either (arXiv 1701.07875, figure 6).
    ``padding="tensorflow"`` is the source's (see :func:`wganlab.networks.layers.halving`).
    """

    def __init__(
        self,
        *,
        latent_dim: PositiveInt,
        shape: tuple[int, ...],
        n_filters: PositiveInt = 128,
        n_blocks: PositiveInt = 2,
        norm: Norm = "batch",
        slope: NonNegativeFloat = 0.3,
        padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        height, width = initial_size(shape, n_blocks)
        check_halvings(n_filters, n_blocks)
        features = n_filters * height * width

        def norms(channels: int, images: bool = True) -> list[nn.Module]:
            return [
                norm_layer(norm, channels, images=images, eps=EPS, momentum=MOMENTUM),
                nn.LeakyReLU(slope),
            ]

        # the source normalises each of the 6272 features before it folds them into maps
        layers = [nn.Linear(latent_dim, features, bias=False), *norms(features, images=False)]
        layers.append(nn.Unflatten(1, (n_filters, height, width)))
        layers += [nn.ConvTranspose2d(n_filters, n_filters, 5, padding=2, bias=False), *norms(n_filters)]
        for block in range(n_blocks):
            before, after = n_filters // 2**block, n_filters // 2 ** (block + 1)
            layers += [*doubling(before, after, padding), *norms(after)]
        last = nn.ConvTranspose2d(n_filters // 2**n_blocks, shape[0], 5, padding=2, bias=False)
        self.layers = nn.Sequential(*layers, last, nn.Tanh())
        initialise(self, "glorot")

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


class Critic(FeatureCritic):
    """A 5x5 layer of n_filters, n_blocks stride-2 layers that halve the size and double the width, one valid kernel.

    ``norm="batch"`` is the source's; it couples the images of a batch, which the gradient penalty assumes to be
    independent (arXiv 1704.00028, section 4), so the default is the layer norm that the paper recommends.
    ``padding="tensorflow"`` is the source's, too.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        n_filters: PositiveInt = 64,
        n_blocks: PositiveInt = 2,
        norm: Norm = "layer",
        slope: NonNegativeFloat = 0.3,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3,
        output: Output = "linear",
        minibatch_kernels: NonNegativeInt = 0,
        padding: Padding = "symmetric",
    ) -> None:
        height, width = initial_size(shape, n_blocks)
        if norm == "instance" and height * width == 1:
            raise InvalidValueError(
                "norm", norm, "takes maps of more than one pixel, and the last is 1x1; allowed are batch, layer, none"
            )

        def norms(channels: int) -> list[nn.Module]:
            return [norm_layer(norm, channels, images=True, eps=EPS, momentum=MOMENTUM), nn.LeakyReLU(slope)]

        layers: list[nn.Module] = [nn.Conv2d(shape[0], n_filters, 5, padding=2), *norms(n_filters)]
        for block in range(n_blocks):
            before, after = n_filters * 2**block, n_filters * 2 ** (block + 1)
            size = (shape[1] >> block, shape[2] >> block)
            layers += [*halving(before, after, size, padding), *norms(after), Dropout(dropout)]
        dim = n_filters * 2**n_blocks * height * width
        features = nn.Sequential(*layers, nn.Flatten())
        super().__init__(features, dim, output=output, minibatch_kernels=minibatch_kernels)
        initialise(self, "glorot")
        # A valid kernel as large as its map is a linear layer; its Glorot fans are those of the kernel.
        bound = math.sqrt(6 / (dim + minibatch_kernels + height * width))
        nn.init.uniform_(self.head[-2].weight, -bound, bound)  # type: ignore[arg-type]
