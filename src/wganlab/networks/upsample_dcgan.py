"""Convolutional pair after the walk-through of CIFAR-10 horses: the generator resizes and convolves.

The source is a Keras program: LeakyReLU slope 0.3, batch norm eps 1e-3 with momentum 0.8 and 0.99 in turn (0.2 and
0.01 in torch), Glorot-uniform kernels and zero biases.
"""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from wganlab.networks.layers import (
    DoublingConv2d,
    Dropout,
    FeatureCritic,
    Norm,
    Output,
    Padding,
    check_halvings,
    halving,
    initial_size,
    initialise,
    norm_layer,
)
from wganlab.schema import InvalidValueError

EPS, MOMENTUM = 1e-3, (0.2, 0.01)


class Generator(nn.Module):
    """Dense to n_filters maps, then n_blocks of: double the size, 5x5 layer; then a 5x5 layer to the image, tanh.

    The width is n_filters in the first block and halves in each later one. No layer has a bias; ``output_bias`` gives
    one to the last, as version 1 of wganlab did.
    """

    def __init__(
        self,
        *,
        latent_dim: PositiveInt,
        shape: tuple[int, ...],
        n_filters: PositiveInt = 128,
        n_blocks: PositiveInt = 3,
        norm: Norm = "batch",
        slope: NonNegativeFloat = 0.3,
        output_bias: bool = False,
    ) -> None:
        super().__init__()
        height, width = initial_size(shape, n_blocks)
        check_halvings(n_filters, n_blocks - 1)
        features = n_filters * height * width

        def norms(channels: int, index: int, images: bool = True) -> list[nn.Module]:
            norm_ = norm_layer(norm, channels, images=images, eps=EPS, momentum=MOMENTUM[index % 2])
            return [norm_, nn.LeakyReLU(slope)]

        layers = [nn.Linear(latent_dim, features, bias=False), *norms(features, 0, images=False)]
        layers.append(nn.Unflatten(1, (n_filters, height, width)))
        before = n_filters
        for block in range(n_blocks):
            after = n_filters // 2**block
            # the source's last block is a transposed convolution of stride 1: a convolution with its kernel turned
            layers += [nn.Identity(), DoublingConv2d(before, after)]  # two, as checkpoints number them
            layers += norms(after, block + 1)
            before = after
        last = nn.Conv2d(before, shape[0], 5, padding=2, bias=output_bias)
        self.layers = nn.Sequential(*layers, last, nn.Tanh())
        initialise(self, "glorot")

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


class Critic(FeatureCritic):
    """Three 5x5 layers of stride 2 (n_filters wide, then doubling), one of stride 1, then a dense layer to the score.

    ``output="tanh"`` is the source's; it bounds the score, and with it every estimate of the distance. So is
    ``padding="tensorflow"`` (see :func:`wganlab.networks.layers.halving`).
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        n_filters: PositiveInt = 32,
        norm: Norm = "none",
        slope: NonNegativeFloat = 0.3,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3,
        output: Output = "linear",
        minibatch_kernels: NonNegativeInt = 0,
        padding: Padding = "symmetric",
    ) -> None:
        channels, height, width = shape if len(shape) == 3 else (0, 0, 0)
        if min(height, width) < 8:
            size = "x".join(map(str, shape))
            raise InvalidValueError("shape", size, "cannot be scored; allowed are images of at least 8x8")
        layers: list[nn.Module] = []
        for i, (factor, stride) in enumerate(((1, 2), (2, 2), (4, 2), (4, 1))):
            after = n_filters * factor
            if stride == 2:
                layers += halving(channels, after, (height, width), padding)
                height, width = -(-height // 2), -(-width // 2)
            else:
                layers.append(nn.Conv2d(channels, after, 5, padding=2))
            layers += [norm_layer(norm if i else "none", after, images=True, eps=EPS), nn.LeakyReLU(slope)]
            layers += [Dropout(dropout)] if i == 1 else []
            channels = after
        features = nn.Sequential(*layers, nn.Flatten())
        dim = channels * height * width
        super().__init__(features, dim, output=output, minibatch_kernels=minibatch_kernels)
        initialise(self, "glorot")
