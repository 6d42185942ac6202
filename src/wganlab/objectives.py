"""Objectives: what critic and generator minimise, as equations over scores.

An objective sees scores only, shape (batch,): unbounded reals, never probabilities. Any object with the two
methods of :class:`Objective` is one; name it in a ``conf/loss/objective/*.yaml`` and it can be trained.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor
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
