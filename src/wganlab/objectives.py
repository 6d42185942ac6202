"""Objectives: what critic and generator minimise, as equations over scores.

An objective sees scores only, shape (batch,): unbounded reals, never probabilities. Any object with the two
methods of :class:`Objective` is one; name it in a ``conf/loss/objective/*.yaml`` and it can be trained. One whose
generator is judged against real images has ``relativistic = True`` and ``generator_loss(fake_scores, real_scores)``,
with the scores of the real images that the critic has just seen.
"""

from typing import Protocol, runtime_checkable

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn.functional import softplus


@runtime_checkable
class Objective(Protocol):
    """The contract between a loss and the training loop."""

    def critic_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """Scalar that the critic minimises; lower when real and generated images are told apart better."""
        ...

    def generator_loss(self, fake_scores: Tensor) -> Tensor:
        """Scalar that the generator minimises; lower when generated images are scored as real ones are."""
        ...


class NonSaturating:
    """GAN with the non-saturating generator loss (Goodfellow et al. 2014, arXiv 1406.2661, section 3).

    Scores are logits: D = sigmoid(score), so -log D = softplus(-score) and -log(1 - D) = softplus(score).
    """

    def critic_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """- E[log D(x)] - E[log(1 - D(G(z)))]  (equation 1, negated)."""
        return softplus(-real_scores).mean() + softplus(fake_scores).mean()

    def generator_loss(self, fake_scores: Tensor) -> Tensor:
        """- E[log D(G(z))]  (section 3, "maximize log D(G(z))")."""
        return softplus(-fake_scores).mean()


class Minimax(NonSaturating):
    """GAN exactly as the two-player game of Goodfellow et al. 2014, equation 1: the generator's loss saturates."""

    def generator_loss(self, fake_scores: Tensor) -> Tensor:
        """E[log(1 - D(G(z)))]  (equation 1); its gradient vanishes where the critic is sure."""
        return -softplus(fake_scores).mean()


class Wasserstein:
    """The dual form of the Wasserstein-1 distance (Arjovsky et al. 2017, arXiv 1701.07875, equations 2 and 3)."""

    def critic_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """E[f(G(z))] - E[f(x)]: minus the estimate of the distance."""
        return fake_scores.mean() - real_scores.mean()

    def generator_loss(self, fake_scores: Tensor) -> Tensor:
        """- E[f(G(z))]  (Algorithm 1, line 10)."""
        return -fake_scores.mean()


class FeatureMatching:
    """weight * || E[f(x)] - E[f(G(z))] ||^2 over the critic's last features f (Salimans et al. 2016, section 3.1).

    arXiv 1606.03498 puts it in the place of the generator's loss (``score_weight`` 0); above zero, that much of the
    loss over scores is added. The critic keeps its own loss.
    """

    def __init__(self, *, weight: PositiveFloat = 1.0, score_weight: NonNegativeFloat = 0.0) -> None:
        self.weight, self.score_weight = weight, score_weight

    def __call__(self, score_loss: Tensor, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Scalar that the generator minimises. Raises AttributeError for a critic without ``features``."""
        with torch.no_grad():
            wanted = critic.features(real).mean(0)  # type: ignore[operator]
        gap = wanted - critic.features(fake).mean(0)  # type: ignore[operator]
        return self.weight * gap.square().sum() + self.score_weight * score_loss
