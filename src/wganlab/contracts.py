"""What conf/model and conf/loss hold: their parts, and by which arguments wganlab builds what is built later."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import PositiveInt
from pytorch_lightning import LightningModule
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from wganlab.objectives import Classification, FeatureMatching, Objective
from wganlab.regularizers import Regularizer
from wganlab.schema import Factory

Latent = Literal["normal", "uniform"]


class MakeGenerator(Factory, Protocol):
    """Builds a generator for samples of one shape."""

    def __call__(self, *, latent_dim: int, shape: tuple[int, ...]) -> nn.Module: ...


class MakeCritic(Factory, Protocol):
    """Builds a critic for samples of one shape."""

    def __call__(self, *, shape: tuple[int, ...]) -> nn.Module: ...


class MakeOptimizer(Factory, Protocol):
    """Builds the optimizer of a network's parameters."""

    def __call__(self, params: Any) -> Optimizer: ...


class MakeSchedule(Factory, Protocol):
    """Builds the learning-rate schedule of an optimizer."""

    def __call__(self, optimizer: Optimizer) -> LRScheduler: ...


class MakeModule(Factory, Protocol):
    """Builds what trains the two networks: a class of :mod:`wganlab.adversarial` or :mod:`wganlab.alternation`."""

    def __call__(
        self,
        *,
        generator: nn.Module,
        critic: nn.Module,
        latent_dim: int,
        latent: Latent,
        loss: "Loss",
        averaging: Any,
        augmentation: Any,
    ) -> LightningModule: ...


@runtime_checkable
class Warmup(Protocol):
    """Critic steps in a generator step, counted from 0, where they differ from ``n_critic``."""

    def __call__(self, step: int, n_critic: int) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The keys of conf/model: what builds the two networks, and the latents between them.

    ``n_classes`` is how many classes networks that take labels are built for.
    """

    generator: MakeGenerator
    critic: MakeCritic
    latent_dim: PositiveInt
    latent: Latent = "normal"
    n_classes: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The keys of conf/loss: what both networks minimise, and by what steps.

    ``optimizer`` and ``schedule`` hold parts under "generator" and "critic"; in ``optimizer`` there may also be
    ``clip_norm``, a number.
    """

    objective: Objective
    regularizer: Mapping[str, Regularizer] = field(default_factory=dict)
    optimizer: Mapping[str, MakeOptimizer]
    n_critic: PositiveInt
    warmup: Warmup | None = None
    schedule: Mapping[str, MakeSchedule] | None = None
    feature_matching: FeatureMatching | None = None
    classification: Classification | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """The parts that compute losses and penalties, by names without a dot."""
        own = {name: getattr(self, name) for name in ("objective", "feature_matching", "classification")}
        return own | {f"regularizer_{name}": part for name, part in self.regularizer.items()}

    @property
    def pairs(self) -> bool:
        """Whether the generator's loss compares its images with real ones, which then have the same labels."""
        return getattr(self.objective, "relativistic", False) or self.feature_matching is not None

    @property
    def clip_norm(self) -> float | None:
        """The largest norm of a network's gradient, which is scaled down to it; None for any."""
        return self.optimizer.get("clip_norm")  # type: ignore[return-value]

    @property
    def bound(self) -> float:
        """The largest magnitude that the regularizers let a critic weight have."""
        return min((part.bound for part in self.regularizer.values()), default=math.inf)

    def active(self, critic_step: int) -> tuple[str, ...]:
        """Names of the regularizers whose penalty is taken at a critic step, counted over the whole run."""
        return tuple(name for name, part in self.regularizer.items() if critic_step % part.every == 0)


def critic_steps(n_critic: int, warmup: Warmup | None = None) -> Callable[[int], int]:
    """Critic steps of a generator step, by its number from 0. It raises ValueError where ``warmup`` gives none."""

    def steps(step: int) -> int:
        n = n_critic if warmup is None else warmup(step, n_critic)
        if n < 1:
            raise ValueError(f"warmup gives {n} critic steps at generator step {step}; must be at least 1")
        return n

    return steps
