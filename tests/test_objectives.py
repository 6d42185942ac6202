"""Losses on scores computed by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from wganlab.objectives import (
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    Relativistic,
    RelativisticAverage,
    Wasserstein,
)

ALL: list[Any] = [
    NonSaturating(), Minimax(), Wasserstein(), Hinge(), LeastSquares(), Relativistic(), RelativisticAverage()
]  # fmt: skip


def of_generator(objective: Any, fake: Tensor, real: Tensor | None = None) -> Tensor:
    """The generator's loss; real scores are 0 unless given, where it asks for them."""
    if getattr(objective, "relativistic", False):
        return objective.generator_loss(fake, torch.zeros_like(fake) if real is None else real)
    return objective.generator_loss(fake)


def test_wasserstein_is_the_gap_of_mean_scores() -> None:
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])
    assert Wasserstein().critic_loss(real, fake).item() == pytest.approx(-0.5 - 2.0)
    assert Wasserstein().generator_loss(fake).item() == pytest.approx(0.5)


def test_gan_is_the_cross_entropy_of_probabilities() -> None:
    real, fake = torch.tensor([0.5, -2.0]), torch.tensor([1.0, 0.0])
    d_real, d_fake = torch.sigmoid(real), torch.sigmoid(fake)
    expected = -(d_real.log().mean() + (1 - d_fake).log().mean())
    assert NonSaturating().critic_loss(real, fake).item() == pytest.approx(expected.item())
    assert NonSaturating().generator_loss(fake).item() == pytest.approx(-d_fake.log().mean().item())
    assert Minimax().generator_loss(fake).item() == pytest.approx((1 - d_fake).log().mean().item())
    assert Minimax().critic_loss(real, fake).item() == pytest.approx(expected.item())


def test_undecided_gan_critic_scores_twice_log_two() -> None:
    """At D = 1/2 the value of the game is -2 log 2 (arXiv 1406.2661, theorem 1)."""
    zeros = torch.zeros(4)
    assert NonSaturating().critic_loss(zeros, zeros).item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("objective", ALL, ids=lambda o: type(o).__name__)
def test_generator_loss_falls_when_fakes_score_higher(objective: Any) -> None:
    scores = torch.linspace(-3, 0.5, 8, requires_grad=True)
    of_generator(objective, scores).backward()
    assert scores.grad is not None
    assert (scores.grad < 0).all()


@pytest.mark.parametrize("objective", ALL, ids=lambda o: type(o).__name__)
def test_critic_loss_falls_when_real_and_fake_scores_part(objective: Any) -> None:
    real, fake = torch.full((2, 3), 0.25).unbind()
    real, fake = real.requires_grad_(), fake.requires_grad_()
    objective.critic_loss(real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()


def test_saturating_loss_gives_the_generator_no_gradient_where_the_critic_is_sure() -> None:
    gradients = []
    for objective in (Minimax(), NonSaturating()):
        scores = torch.full((1,), -20.0, requires_grad=True)
        objective.generator_loss(scores).backward()
        assert scores.grad is not None
        gradients.append(abs(scores.grad.item()))
    assert gradients[0] < 1e-8
    assert gradients[1] == pytest.approx(1.0)


def test_scores_far_out_stay_finite() -> None:
    far = torch.tensor([1e4, -1e4])
    for objective in ALL:
        assert torch.isfinite(objective.critic_loss(far, -far))
        assert torch.isfinite(of_generator(objective, far))


def test_hinge_ends_at_the_margin() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert Hinge().critic_loss(real, fake).item() == pytest.approx((0 + 0.5) / 2 + (0 + 1) / 2)
    assert Hinge().generator_loss(fake).item() == pytest.approx(1.5)
    assert Hinge().critic_loss(torch.full((4,), 1.0), torch.full((4,), -1.0)).item() == 0


def test_least_squares_are_distances_to_labels() -> None:
    real, fake = torch.tensor([2.0, 1.0]), torch.tensor([0.0, -1.0])
    assert LeastSquares().critic_loss(real, fake).item() == pytest.approx((0.5 + 0.5) / 2)
    assert LeastSquares().generator_loss(fake).item() == pytest.approx((1 + 4) / 2 / 2)
    pearson = LeastSquares(a=-1, b=1, c=0)  # equation 8: the Pearson chi-squared divergence
    assert pearson.critic_loss(real, fake).item() == pytest.approx(((1 + 0) / 2 + (1 + 0) / 2) / 2)
    assert pearson.generator_loss(fake).item() == pytest.approx((0 + 1) / 2 / 2)


def test_relativistic_losses_compare_pairs_or_averages() -> None:
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x))

    pairs = Relativistic()
    assert pairs.critic_loss(real, fake).item() == pytest.approx(-(log_sigmoid(1) + log_sigmoid(-1)) / 2)
    assert pairs.generator_loss(fake, real).item() == pytest.approx(-(log_sigmoid(-1) + log_sigmoid(1)) / 2)
    average = RelativisticAverage()
    of_real = -(log_sigmoid(2 - 0.5) + log_sigmoid(-1 - 0.5)) / 2
    of_fake = -(log_sigmoid(-(1 - 0.5)) + log_sigmoid(-(0 - 0.5))) / 2
    assert average.critic_loss(real, fake).item() == pytest.approx(of_real + of_fake)
    swapped = -(log_sigmoid(1 - 0.5) + log_sigmoid(0 - 0.5)) / 2 - (log_sigmoid(-1.5) + log_sigmoid(1.5)) / 2
    assert average.generator_loss(fake, real).item() == pytest.approx(swapped)
    level = torch.tensor(7.0)  # only differences of scores count
    for one in (pairs, average):
        assert one.critic_loss(real + level, fake + level).item() == pytest.approx(one.critic_loss(real, fake).item())
