"""Residual pair after the CIFAR-10 networks of WGAN-GP (arXiv 1704.00028, appendix F, unsupervised).

SNGAN's (Miyato et al. 2018, arXiv 1802.05957, table 4) are the same but for widths, the critic's sum over pixels, and
the scale of the kernels.
"""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from wganlab.networks.layers import FeatureCritic, Init, Norm, Output, initial_size, initialise, norm_layer

Resample = Literal["up", "down", "none"]
Pooling = Literal["mean", "sum"]


def convolution(before: int, after: int, size: int, resample: Resample = "none") -> nn.Module:
    """A convolution that keeps the size, after nearest-neighbour doubling or before mean pooling by two."""
    layer = nn.Conv2d(before, after, size, padding=size // 2)
    if resample == "up":
        return nn.Sequential(nn.Upsample(scale_factor=2), layer)
    return nn.Sequential(layer, nn.AvgPool2d(2)) if resample == "down" else layer


class Block(nn.Module):
    """shortcut(x) + convolve(relu(norm(convolve(relu(norm(x)))))), pre-activated; resampling in one of the two.

    ``first`` is a critic's first block: no activation before the first convolution, for it would cut off half of
    the image's values.
    """

    def __init__(
        self, before: int, after: int, *, norm: Norm, resample: Resample = "none", first: bool = False
    ) -> None:
        super().__init__()
        # growing happens in the first convolution, shrinking in the second
        sampling: tuple[Resample, Resample] = (resample, "none") if resample == "up" else ("none", resample)
        entry = [] if first else [norm_layer(norm, before, images=True), nn.ReLU()]
        self.residual = nn.Sequential(
            *entry,
            convolution(before, after, 3, sampling[0]),
            norm_layer("none" if first else norm, after, images=True),
            nn.ReLU(),
            convolution(after, after, 3, sampling[1]),
        )
        plain = before == after and resample == "none"
        self.shortcut = nn.Identity() if plain else convolution(before, after, 1, resample)

    def forward(self, images: Tensor) -> Tensor:
        return self.shortcut(images) + self.residual(images)


def initialise_blocks(network: nn.Module, scheme: Init) -> None:
    """:func:`initialise`; "glorot" as in SNGAN's program, with the residual layers of a block larger by sqrt(2)."""
    initialise(network, scheme)
    if scheme == "glorot":
        for block in (module for module in network.modules() if isinstance(module, Block)):
            for layer in (module for module in block.residual.modules() if isinstance(module, nn.Conv2d)):
                layer.weight.data.mul_(2**0.5)


class Generator(nn.Module):
    """Dense to n_filters maps, n_blocks residual blocks that double the size, norm, ReLU, 3x3 layer, tanh."""

    def __init__(
        self,
        *,
        latent_dim: PositiveInt,
        shape: tuple[int, ...],
        n_filters: PositiveInt = 128,
        n_blocks: PositiveInt = 3,
        norm: Norm = "batch",
        init: Init = "he",
    ) -> None:
        super().__init__()
        height, width = initial_size(shape, n_blocks)
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, n_filters * height * width),
            nn.Unflatten(1, (n_filters, height, width)),
            *[Block(n_filters, n_filters, norm=norm, resample="up") for _ in range(n_blocks)],
            norm_layer(norm, n_filters, images=True),
            nn.ReLU(),
            nn.Conv2d(n_filters, shape[0], 3, padding=1),
            nn.Tanh(),
        )
        initialise_blocks(self, init)

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


class Critic(FeatureCritic):
    """Two residual blocks that halve the size, two that keep it, ReLU, ``pooling`` over pixels, dense layer."""

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        n_filters: PositiveInt = 128,
        norm: Norm = "none",
        pooling: Pooling = "mean",
        init: Init = "he",
        output: Output = "linear",
        minibatch_kernels: NonNegativeInt = 0,
    ) -> None:
        size = initial_size(shape, 2, fixed=True)
        features = nn.Sequential(
            Block(shape[0], n_filters, norm=norm, resample="down", first=True),
            Block(n_filters, n_filters, norm=norm, resample="down"),
            Block(n_filters, n_filters, norm=norm),
            Block(n_filters, n_filters, norm=norm),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1) if pooling == "mean" else nn.AvgPool2d(size, divisor_override=1),
            nn.Flatten(),
        )
        super().__init__(features, n_filters, output=output, minibatch_kernels=minibatch_kernels)
        initialise_blocks(self, init)
