"""What changes in the course of a run by plan: learning rates, and the number of critic steps."""

import math
from typing import Any

from pydantic import NonNegativeFloat, PositiveInt
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Schedule(LambdaLR):
    """A learning rate of ``factor(step)`` times the optimizer's own, from which a continued run goes on.

    torch's would restore the rate itself, of the line before the budget was raised.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for group, first, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = first * factor(self.last_epoch)


class Linear(Schedule):
    """Learning rate that falls on a straight line from the optimizer's to ``end`` times as much, in ``steps`` steps.

    The rate of generator step t depends on t / steps alone, so that a raised budget stretches the line: a continued run
    goes on with the rate of its new line.
    """

    def __init__(self, optimizer: Optimizer, *, steps: PositiveInt, end: NonNegativeFloat = 0.0) -> None:
        super().__init__(optimizer, lambda step: end + (1 - end) * max(0.0, 1 - step / steps))


class Cosine(Schedule):
    """As :class:`Linear`, along half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5)."""

    def __init__(self, optimizer: Optimizer, *, steps: PositiveInt, end: NonNegativeFloat = 0.0) -> None:
        super().__init__(optimizer, lambda step: end + (1 - end) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2)


class PaperWarmup:
    """``n`` critic steps in each of the ``first`` generator steps and in every so many-th, as in WGAN's own program.

    So the critic is near its optimum before the generator learns (Arjovsky et al. 2017, arXiv 1701.07875).
    """

    def __init__(self, *, n: PositiveInt = 100, first: PositiveInt = 25, every: PositiveInt = 500) -> None:
        self.n, self.first, self.every = n, first, every

    def __call__(self, step: int, n_critic: int) -> int:
        """Critic steps of generator step ``step``, counted from 0."""
        return self.n if step < self.first or step % self.every == 0 else n_critic
