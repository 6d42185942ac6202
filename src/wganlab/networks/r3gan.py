"""The pair of R3GAN (Huang et al. 2024, arXiv 2501.05441, section 4): residual blocks without any normalisation."""

import math
from collections.abc import Sequence

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from wganlab.networks.layers import FeatureCritic, Widths, initial_size
from wganlab.schema import InvalidValueError

#: The paper's leaky ReLU, and the gain that keeps the variance of what passes it.
SLOPE = 0.2
GAIN = math.sqrt(2 / (1 + SLOPE**2))


def scaled_normal(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> nn.Conv2d | nn.Linear:
    """The layer with kernels from N(0, gain^2 / inputs of a unit), and biases of zero (He et al. 2015, 1502.01852)."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """x + convolve(act(convolve(act(convolve(x))))): 1x1 to ``expansion`` times the width, 3x3 in groups, 1x1 back.

    Fix-up initialisation (Zhang et al. 2019, arXiv 1901.09321): each of the ``n_blocks`` blocks of a network begins as
    the identity, and its first two layers are smaller by n_blocks^(1/4).
    """

    def __init__(self, width: int, *, expansion: int, group_width: int, n_blocks: int) -> None:
        super().__init__()
        wide, gain = expansion * width, GAIN * n_blocks**-0.25
        if wide % group_width:
            raise InvalidValueError(
                "group_width", group_width, f"must divide {expansion} times each width, and {wide} is no multiple"
            )
        groups = wide // group_width
        self.residual = nn.Sequential(
            scaled_normal(nn.Conv2d(width, wide, 1), gain),
            nn.LeakyReLU(SLOPE),
            scaled_normal(nn.Conv2d(wide, wide, 3, padding=1, groups=groups), gain),
            nn.LeakyReLU(SLOPE),
            scaled_normal(nn.Conv2d(wide, width, 1, bias=False), 0.0),
        )

    def forward(self, images: Tensor) -> Tensor:
        return images + self.residual(images)


def linear_map(before: int, after: int) -> list[nn.Module]:
    """A 1x1 convolution without bias, if the widths differ."""
    return [] if before == after else [scaled_normal(nn.Conv2d(before, after, 1, bias=False))]


def doubled(before: int, after: int) -> list[nn.Module]:
    """To another width, then to twice the size by the filter [1, 3, 3, 1] / 4, with zeros around the image."""
    return [*linear_map(before, after), nn.ZeroPad2d(1), nn.Upsample(scale_factor=2, mode="bilinear"), nn.ZeroPad2d(-2)]


def halved(before: int, after: int) -> list[nn.Module]:
    """To half the size by the filter [1, 3, 3, 1] / 8, which is three means of neighbours, then to another width."""
    means = [nn.AvgPool2d(2, stride=stride) for stride in (1, 1, 2)]
    return [nn.ZeroPad2d(1), *means, *linear_map(before, after)]


class Basis(nn.Module):
    """Learned maps (width, height, width of the image), each times a number that is linear in the latents."""

    def __init__(self, latent_dim: int, width: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.randn(width, *size))
        self.linear = scaled_normal(nn.Linear(latent_dim, width, bias=False))

    def forward(self, latents: Tensor) -> Tensor:
        return self.maps * self.linear(latents)[:, :, None, None]


class Generator(nn.Module):
    """A basis of maps, then ``n_blocks`` blocks at each of the ``widths``, twice the size from one to the next.

    The last 1x1 layer is linear, without a tanh. Height and width must be multiples of 2^(len(widths) - 1).
    """

    def __init__(
        self,
        *,
        latent_dim: PositiveInt,
        shape: tuple[int, ...],
        widths: Widths = (768, 768, 768, 768),
        n_blocks: PositiveInt = 2,
        expansion: PositiveInt = 2,
        group_width: PositiveInt = 16,
    ) -> None:
        super().__init__()
        blocks = {"expansion": expansion, "group_width": group_width, "n_blocks": n_blocks * len(widths)}
        layers: list[nn.Module] = [Basis(latent_dim, widths[0], smallest(shape, widths))]
        for stage, width in enumerate(widths):
            layers += doubled(widths[stage - 1], width) if stage else []
            layers += [Block(width, **blocks) for _ in range(n_blocks)]
        self.layers = nn.Sequential(*layers, scaled_normal(nn.Conv2d(widths[-1], shape[0], 1, bias=False)))

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


class Critic(FeatureCritic):
    """The generator's mirror: 1x1 layer, ``n_blocks`` blocks at each of the ``widths``, one kernel per map, the score.

    ``widths`` are in the order of its layers, from the image's size down to the smallest.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        widths: Widths = (768, 768, 768, 768),
        n_blocks: PositiveInt = 2,
        expansion: PositiveInt = 2,
        group_width: PositiveInt = 16,
        minibatch_kernels: NonNegativeInt = 0,
    ) -> None:
        blocks = {"expansion": expansion, "group_width": group_width, "n_blocks": n_blocks * len(widths)}
        size, last = smallest(shape, widths), widths[-1]
        layers: list[nn.Module] = [scaled_normal(nn.Conv2d(shape[0], widths[0], 1, bias=False))]
        for stage, width in enumerate(widths):
            layers += halved(widths[stage - 1], width) if stage else []
            layers += [Block(width, **blocks) for _ in range(n_blocks)]
        whole = scaled_normal(nn.Conv2d(last, last, size, groups=last, bias=False))
        super().__init__(
            nn.Sequential(*layers, whole, nn.Flatten()), last, minibatch_kernels=minibatch_kernels, bias=False
        )
        scaled_normal(self.head[-2])  # type: ignore[arg-type]


def smallest(shape: tuple[int, ...], widths: Sequence[int]) -> tuple[int, int]:
    """Height and width at the smallest of so many sizes, each half of the last. Raises ValueError where it is none."""
    try:
        return initial_size(shape, len(widths) - 1)
    except InvalidValueError as error:
        raise InvalidValueError("widths", [*widths], error.allowed) from None
