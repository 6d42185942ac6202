"""Averages of a generator's weights: what is sampled and scored in its place."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

#: Of a run with an average: that, or the generator as it was trained.
Weights = Literal["averaged", "raw"]


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


class Ema(Averaging):
    """Exponential moving average of weights and buffers (StyleGAN2, Karras et al. 2020, arXiv 1912.04958, appendix B).

    ``half_life`` counts real images seen by the critic; in its first steps a run has seen few, and so it is at most
    ``ramp_up`` times as many as have been seen (0: no ramp). Whole numbers, such as the count of batches, are copied.
    To save time, the average takes in the generator at most ten times in a half-life, each time for all the images
    since the last.
    """

    def __init__(self, *, half_life: PositiveInt = 10_000, ramp_up: NonNegativeFloat = 0.05) -> None:
        super().__init__()
        self.half_life, self.ramp_up, self.images_seen = half_life, ramp_up, 0

    @torch.no_grad()
    def update(self, generator: nn.Module, images_seen: int) -> None:
        half_life = min(self.half_life, self.ramp_up * images_seen) if self.ramp_up else self.half_life
        passed = (images_seen - self.images_seen) / half_life
        if passed < 1 / 10:
            return
        decay, self.images_seen = 0.5**passed, images_seen
        averages, values = ([*network.parameters(), *network.buffers()] for network in (self.network, generator))
        smooth = [tensor.is_floating_point() for tensor in values]
        torch._foreach_lerp_(
            [average for average, is_smooth in zip(averages, smooth, strict=True) if is_smooth],
            [value for value, is_smooth in zip(values, smooth, strict=True) if is_smooth],
            1 - decay,
        )
        for average, value, is_smooth in zip(averages, values, smooth, strict=True):
            if not is_smooth:
                average.copy_(value)

    def get_extra_state(self) -> Any:
        return torch.tensor(self.images_seen)

    def set_extra_state(self, state: Any) -> None:
        self.images_seen = int(state)


def trained_weights(state: Mapping[str, Tensor], name: str, weights: Weights = "averaged") -> dict[str, Tensor]:
    """Weights of a network, by name, in the state of a module: the averaged ones of a generator where there are any,
    unless those are asked for as they were trained ("raw")."""
    averaged = (
        weights == "averaged" and name == "generator" and any(key.startswith("averaging.network.") for key in state)
    )
    prefix = "averaging.network." if averaged else f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
