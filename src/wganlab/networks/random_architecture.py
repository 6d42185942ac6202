"""Architectures drawn at random, as in WGAN-GP's comparison of robustness (arXiv 1704.00028, section 5.1, table 1)."""

import random
from collections.abc import Callable
from typing import NamedTuple

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import softplus

from wganlab.networks.layers import FeatureCritic, Norm, initial_size, norm_layer

#: Doublings between the smallest map and the image: 4x4 to 32x32.
SCALES = 3


class ScaledSoftplus(nn.Module):
    """softplus(2 x + 2) / 2 - 1."""

    def forward(self, x: Tensor) -> Tensor:
        return softplus(2 * x + 2) / 2 - 1


NONLINEARITIES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "softplus": ScaledSoftplus,
    "tanh": nn.Tanh,
}


class Architecture(NamedTuple):
    """One network: its activation, its weight layers, whether it is normalised, and its filters at the largest map."""

    nonlinearity: str
    depth: int
    norm: bool
    filters: int

    @classmethod
    def draw(cls, number: int, network: str) -> "Architecture":
        """Each choice uniformly from the table, the same for the same number; the two networks are sampled apart."""
        choose = random.Random(f"{network} {number}").choice
        return cls(choose(sorted(NONLINEARITIES)), choose([4, 8, 12, 20]), choose([False, True]), choose([32, 64, 128]))

    def extra_layers(self) -> list[int]:
        """Layers that keep the size, at each of the three scales, beyond the four layers that every network has."""
        return [(self.depth - 4 + place) // SCALES for place in range(SCALES)]


class Generator(nn.Module):
    """Dense to 4x4 maps, three transposed convolutions that double the size, and what ``depth`` asks for between them.

    ``number`` is that of the draw, ``width`` a factor on all filters: 1 is the paper's.
    """

    def __init__(
        self, *, latent_dim: PositiveInt, shape: tuple[int, ...], number: NonNegativeInt, width: PositiveFloat = 1.0
    ) -> None:
        super().__init__()
        self.architecture = Architecture.draw(number, "generator")
        height, breadth = initial_size(shape, SCALES, fixed=True)
        filters = [max(1, round(width * self.architecture.filters * 2**i)) for i in (2, 1, 0)]
        norm: Norm = "batch" if self.architecture.norm else "none"

        def after(channels: int) -> list[nn.Module]:
            return [norm_layer(norm, channels, images=True), NONLINEARITIES[self.architecture.nonlinearity]()]

        layers: list[nn.Module] = [nn.Linear(latent_dim, filters[0] * height * breadth)]
        layers += [nn.Unflatten(1, (filters[0], height, breadth)), *after(filters[0])]
        for scale, extra in enumerate(self.architecture.extra_layers()):
            for _ in range(extra):
                layers += [nn.Conv2d(filters[scale], filters[scale], 3, padding=1), *after(filters[scale])]
            last = scale == SCALES - 1
            channels = shape[0] if last else filters[scale + 1]
            layers.append(nn.ConvTranspose2d(filters[scale], channels, 4, stride=2, padding=1))
            layers += [nn.Tanh()] if last else after(channels)
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


class Critic(FeatureCritic):
    """Three convolutions that halve the size, what ``depth`` asks for between them, a dense layer to the score.

    ``norm`` is the kind used where the draw asks for one; the first layer has none.
    """

    def __init__(
        self, *, shape: tuple[int, ...], number: NonNegativeInt, width: PositiveFloat = 1.0, norm: Norm = "batch"
    ) -> None:
        architecture = Architecture.draw(number, "critic")
        height, breadth = initial_size(shape, SCALES, fixed=True)
        filters = [max(1, round(width * architecture.filters * 2**i)) for i in range(SCALES)]
        layers: list[nn.Module] = []
        before = shape[0]
        for scale, extra in enumerate(reversed(architecture.extra_layers())):
            sizes = [(before, 4, 2), *[(filters[scale], 3, 1)] * extra]
            for channels, kernel, stride in sizes:
                kind = norm if architecture.norm and layers else "none"
                layers.append(nn.Conv2d(channels, filters[scale], kernel, stride=stride, padding=1))
                layers += [norm_layer(kind, filters[scale], images=True), NONLINEARITIES[architecture.nonlinearity]()]
            before = filters[scale]
        super().__init__(nn.Sequential(*layers, nn.Flatten()), filters[-1] * height * breadth)
        self.architecture = architecture
