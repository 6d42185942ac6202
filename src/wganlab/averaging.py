"""Averages of a generator's weights: what is sampled and scored in its place."""

import copy
from collections.abc import Mapping

from torch import Tensor, nn


class Averaging(nn.Module):
    """An average of the generator over training, in ``network``. A new one overrides :meth:`update`.

    Its state is part of every checkpoint.
    """

    network: nn.Module

    def start(self, generator: nn.Module) -> None:
        """Begin with the generator as it is built."""
        self.network = copy.deepcopy(generator).requires_grad_(False)

    def update(self, generator: nn.Module, images_seen: int) -> None:
        """Take in the generator after one of its steps; ``images_seen`` counts real images seen by the critic."""
        raise NotImplementedError


def trained_weights(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Weights of a network, by name, in the state of a module: the averaged ones of a generator where there are any."""
    averaged = name == "generator" and any(key.startswith("averaging.network.") for key in state)
    prefix = "averaging.network." if averaged else f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
