"""Losses of the generator steps since the last row of metrics.csv."""

import math
from typing import Any

import torch
from torch import Tensor

#: Columns of metrics.csv that are means over the steps since the last row.
MEANS = (
    "critic/loss",
    "critic/wasserstein_estimate",
    "critic/penalty",
    "critic/real_score",
    "critic/fake_score",
    "generator/loss",
)

#: What one update leaves for the record: scalars without a graph, on the device.
Record = tuple[Tensor, ...]


class Window:
    """Records of both networks, in order.

    ``critic`` holds (loss, penalty, mean real score, mean fake score) of every critic step, ``generator`` the loss of
    every generator step, ``critic_steps`` the number of critic steps in each.
    """

    def __init__(self) -> None:
        self.critic: list[Record] = []
        self.generator: list[Tensor] = []
        self.critic_steps: list[int] = []

    def end_step(self, critic_steps: int) -> None:
        """Close a generator step."""
        self.critic_steps.append(critic_steps)

    def state(self) -> list[Any]:
        """Plain containers, for a checkpoint."""
        return [[list(record) for record in self.critic], self.generator, self.critic_steps]

    @classmethod
    def restored(cls, state: list[Any], *, n_critic: int, device: torch.device) -> "Window":
        """From a checkpoint; one of version 1 has no list of critic steps, for all steps had ``n_critic``."""
        critic, generator, *rest = state
        window = cls()
        window.critic = [tuple(value.to(device) for value in record) for record in critic]
        window.generator = [value.to(device) for value in generator]
        window.critic_steps = list(rest[0]) if rest else [n_critic] * len(generator)
        return window

    def first_not_finite(self, steps: int) -> tuple[str, float, int] | None:
        """Name and value of the first loss of the last so many steps that is not finite, and how many steps ago."""
        generator, counts = self.generator[-steps:], self.critic_steps[-steps:]
        critic = [loss for loss, *_ in self.critic[-sum(counts) :]]
        if torch.isfinite(torch.stack(critic + generator)).all():
            return None
        for ago, n in zip(reversed(range(len(counts))), counts, strict=True):
            losses = [("critic/loss", loss) for loss in critic[:n]]
            for name, loss in [*losses, ("generator/loss", generator[-1 - ago])]:
                if not math.isfinite(loss.item()):
                    return name, loss.item(), ago
            del critic[:n]
        return None

    def means(self) -> dict[str, float]:
        """Means over all steps, by column of metrics.csv; empties the window.

        ``critic/wasserstein_estimate`` is the gap between mean real and mean fake score: the W1 distance times
        the critic's Lipschitz constant at best, and not comparable between constraints that leave it free.
        """
        loss, penalty, real, fake = (
            torch.stack([torch.stack(values) for values in zip(*self.critic, strict=True)]).mean(1).tolist()
        )
        generator_loss = torch.stack(self.generator).mean().item()
        self.__init__()  # type: ignore[misc]
        return dict(zip(MEANS, (loss, real - fake, penalty, real, fake, generator_loss), strict=True))
