"""Losses on scores computed by hand."""

import math

import pytest
import torch

from wganlab.objectives import Minimax, NonSaturating, Objective, Wasserstein

ALL: list[Objective] = [NonSaturating(), Minimax(), Wasserstein()]


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
def test_generator_loss_falls_when_fakes_score_higher(objective: Objective) -> None:
    scores = torch.linspace(-3, 3, 7, requires_grad=True)
    objective.generator_loss(scores).backward()
    assert scores.grad is not None
    assert (scores.grad < 0).all()


@pytest.mark.parametrize("objective", ALL, ids=lambda o: type(o).__name__)
def test_critic_loss_falls_when_real_and_fake_scores_part(objective: Objective) -> None:
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
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
        assert torch.isfinite(objective.generator_loss(far))
