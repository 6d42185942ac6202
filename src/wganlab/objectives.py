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
from torch.nn.functional import cross_entropy, relu, softplus

from wganlab import parallel
from wganlab.networks.layers import at_least_fp32


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


class Hinge:
    """GAN with hinge losses (Lim and Ye 2017, arXiv 1705.02894): scores count only within the margin of 1."""

    def critic_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """E[max(0, 1 - f(x))] + E[max(0, 1 + f(G(z)))]."""
        return relu(1 - real_scores).mean() + relu(1 + fake_scores).mean()

    def generator_loss(self, fake_scores: Tensor) -> Tensor:
        """- E[f(G(z))]."""
        return -fake_scores.mean()


class LeastSquares:
    """LSGAN (Mao et al. 2017, arXiv 1611.04076, equation 2): scores are drawn to ``b`` for real images, to ``a`` for
    generated ones, and by the generator to ``c``. The defaults are those of equation 9."""

    def __init__(self, *, a: float = 0.0, b: float = 1.0, c: float = 1.0) -> None:
        self.a, self.b, self.c = a, b, c

    def critic_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """1/2 E[(D(x) - b)^2] + 1/2 E[(D(G(z)) - a)^2]."""
        return ((real_scores - self.b).square().mean() + (fake_scores - self.a).square().mean()) / 2

    def generator_loss(self, fake_scores: Tensor) -> Tensor:
        """1/2 E[(D(G(z)) - c)^2]."""
        return (fake_scores - self.c).square().mean() / 2


class Relativistic:
    """RpGAN with the logistic loss: each real image is compared with a generated one.

    Jolicoeur-Martineau 2019, arXiv 1807.00734, section 4.1; R3GAN (Huang et al. 2024, arXiv 2501.05441, equation 1).
    """

    relativistic = True

    def critic_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """- E[log sigmoid(f(x) - f(G(z)))]."""
        return softplus(fake_scores - real_scores).mean()

    def generator_loss(self, fake_scores: Tensor, real_scores: Tensor) -> Tensor:
        """- E[log sigmoid(f(G(z)) - f(x))]."""
        return softplus(real_scores - fake_scores).mean()


class RelativisticAverage:
    """RaGAN with the logistic loss: each image is compared with the average of the other kind.

    Jolicoeur-Martineau 2019, arXiv 1807.00734, section 4.2. The averages are those of the whole batch on several ranks.
    """

    relativistic = True

    def critic_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """- E[log sigmoid(f(x) - E f(G(z)))] - E[log(1 - sigmoid(f(G(z)) - E f(x)))]."""
        above_fake = real_scores - parallel.rank_mean(fake_scores.mean())
        above_real = fake_scores - parallel.rank_mean(real_scores.mean())
        return softplus(-above_fake).mean() + softplus(above_real).mean()

    def generator_loss(self, fake_scores: Tensor, real_scores: Tensor) -> Tensor:
        """The critic's, with real and generated images in each other's place."""
        return self.critic_loss(fake_scores, real_scores)


class FeatureMatching:
    """weight * || E[f(x)] - E[f(G(z))] ||^2 over the critic's last features f (Salimans et al. 2016, section 3.1).

    arXiv 1606.03498 puts it in the place of the generator's loss (``score_weight`` 0); above zero, that much of the
    loss over scores is added. The critic keeps its own loss. The means are those of the whole batch on several ranks.
    """

    def __init__(self, *, weight: PositiveFloat = 1.0, score_weight: NonNegativeFloat = 0.0) -> None:
        self.weight, self.score_weight = weight, score_weight

    def __call__(self, score_loss: Tensor, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Scalar that the generator minimises. Raises AttributeError for a critic without ``features``."""
        with torch.no_grad():
            wanted = at_least_fp32(critic.features(real)).mean(0)  # type: ignore[operator]
        gap = parallel.rank_mean(wanted - at_least_fp32(critic.features(fake)).mean(0))  # type: ignore[operator]
        return self.weight * gap.square().sum() + self.score_weight * score_loss


class Classification:
    """weight * E[- log P(class | image)] of an auxiliary classifier, which both networks minimise.

    AC-GAN (Odena et al. 2017, arXiv 1610.09585, equation 3): the critic on real and on generated images, the sum of
    both; the generator on its own. The critic has ``scores_and_logits``.
    """

    def __init__(self, *, weight: PositiveFloat = 1.0) -> None:
        self.weight = weight

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar, of logits (batch, n_classes) and labels (batch,)."""
        return self.weight * cross_entropy(logits, labels)
