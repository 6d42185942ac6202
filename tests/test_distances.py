"""Distances against worked examples and closed forms."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from wganlab import distances as d

P = torch.tensor([0.1, 0.2, 0.3, 0.4])
Q = torch.tensor([0.4, 0.3, 0.2, 0.1])


def normal(mean: float, sd: float, grid: Tensor) -> Tensor:
    """A normal density on a grid, as probabilities."""
    weights = torch.exp(-((grid - mean) ** 2) / (2 * sd**2))
    return weights / weights.sum()


def test_worked_example() -> None:
    """Every number here can be checked by hand."""
    expected = 0.1 * math.log(1 / 4) + 0.2 * math.log(2 / 3) + 0.3 * math.log(3 / 2) + 0.4 * math.log(4)
    assert d.kl(P, Q) == pytest.approx(expected, rel=1e-6)
    assert d.total_variation(P, Q) == pytest.approx((0.3 + 0.1 + 0.1 + 0.3) / 2, rel=1e-6)
    # cumulative sums differ by 0.3, 0.4, 0.3, and W1 on a line is the area between them
    assert d.earth_mover(P, Q, torch.arange(4.0)) == pytest.approx(1.0, rel=1e-6)
    assert d.entropy(torch.full((8,), 1 / 8)) == pytest.approx(math.log(8))


def test_the_best_plan_moves_p_to_q_at_the_least_cost() -> None:
    line = torch.arange(4.0)
    plan, cost = d.transport_plan(P, Q, line), (line[:, None] - line).abs()
    assert torch.allclose(plan.sum(1).float(), P)
    assert torch.allclose(plan.sum(0).float(), Q)
    assert (plan * cost).sum().item() == pytest.approx(d.earth_mover(P, Q, line), rel=1e-6)
    independent = P[:, None] * Q  # a plan, too, and what it costs can be checked by hand
    assert (independent * cost).sum().item() == pytest.approx(1.42, rel=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        d.transport_plan(P, Q, torch.tensor([0.0, 1.0, 2.0, torch.inf]))


def test_kl_is_cross_entropy_less_entropy_and_asymmetric() -> None:
    assert d.kl(P, Q) == pytest.approx(d.cross_entropy(P, Q) - d.entropy(P))
    skewed = torch.tensor([0.7, 0.1, 0.1, 0.1])
    assert abs(d.kl(P, skewed) - d.kl(skewed, P)) > 0.1
    assert d.js(P, skewed) == pytest.approx(d.js(skewed, P))


def test_a_distribution_is_at_no_distance_from_itself() -> None:
    points = torch.randn(4, 3)
    for value in (d.kl(P, P), d.js(P, P), d.total_variation(P, P), d.earth_mover(P, P, points)):
        assert value == pytest.approx(0, abs=1e-9)


def test_zero_probabilities() -> None:
    half, other = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    assert d.kl(half, other) == math.inf
    assert d.cross_entropy(half, other) == math.inf
    assert d.js(half, other) == pytest.approx(math.log(2) / 2)
    assert d.entropy(half) == pytest.approx(math.log(2))


@pytest.mark.parametrize("theta", [-2.0, 0.25, 1.0])
def test_parallel_lines(theta: float) -> None:
    """P on x = 0, Q on x = theta (arXiv 1701.07875, example 1): only the earth mover notices how far they are apart."""
    y = torch.linspace(0, 1, 20)
    points = torch.cat([torch.stack([torch.zeros(20), y], 1), torch.stack([torch.full((20,), theta), y], 1)])
    p = torch.cat([torch.full((20,), 1 / 20), torch.zeros(20)])
    q = p.flip(0)
    assert d.kl(p, q) == math.inf
    assert d.total_variation(p, q) == pytest.approx(1)
    assert d.js(p, q) == pytest.approx(math.log(2)), "log 2, and not the (1/2) log 2 that is printed now and then"
    assert d.earth_mover(p, q, points) == pytest.approx(abs(theta), rel=1e-5)
    assert d.wasserstein(points[:20], points[20:]) == pytest.approx(abs(theta), rel=1e-5)


def test_normal_distributions() -> None:
    """KL of two normals and W2 of their quantiles have closed forms."""
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    expected = math.log(2 / 1) + (1**2 + 0.5**2) / (2 * 2**2) - 0.5
    assert d.kl(normal(0.5, 1, grid), normal(0, 2, grid)) == pytest.approx(expected, rel=1e-4)
    quantiles = torch.special.ndtri((torch.arange(500, dtype=torch.float64) + 0.5) / 500)[:, None]
    spread = quantiles.square().mean().sqrt().item()
    squared = d.wasserstein(quantiles, 2 * quantiles + 3, order=2) ** 2
    assert squared == pytest.approx(3**2 + spread**2, rel=1e-6)


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
@pytest.mark.parametrize("order", [1, 2])
def test_distance_between_shifted_clouds_is_the_shift(shape: tuple[int, ...], order: int) -> None:
    points = torch.randn(40, *shape, generator=torch.Generator().manual_seed(0))
    shift = torch.full(shape, 0.3)
    shuffled = (points + shift)[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    assert d.wasserstein(points, shuffled, order=order) == pytest.approx(shift.norm().item(), rel=1e-6)


@pytest.mark.slow
def test_thousands_of_points_are_transported_at_the_least_cost() -> None:
    """Of clouds of one size that is a matching, which SciPy finds in a way of its own."""
    first, second = torch.randn(2, 3072, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cost = torch.cdist(first, second).numpy()
    assert d.wasserstein(first, second) == pytest.approx(cost[linear_sum_assignment(cost)].mean(), rel=1e-6)


def test_clouds_of_different_sizes() -> None:
    """Half of the mass at 0 stays, the other half moves to 1."""
    assert d.wasserstein(torch.zeros(1, 1), torch.tensor([[0.0], [1.0]])) == pytest.approx(0.5)


def test_potential_of_shifted_clouds_falls_along_the_shift() -> None:
    """All mass moves by one vector, far against the spread: f is nearly linear in its direction, with slope 1."""
    second = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([30.0, 40.0])
    f = d.kantorovich_potential(second + shift, second)
    assert (f(second + shift).mean() - f(second).mean()).item() == pytest.approx(50), "it attains W1"
    along = torch.linspace(0, 1, 20)[:, None] * shift
    assert f(along).diff() == pytest.approx(50 / 19, rel=0.02)
    points = 30 * torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
    slopes = (f(points)[:, None] - f(points)).abs() / torch.cdist(points.double(), points.double()).clamp(min=1e-9)
    assert slopes.max() <= 1 + 1e-6


def test_potential_of_clouds_of_different_sizes() -> None:
    f = d.kantorovich_potential(torch.zeros(1, 1), torch.tensor([[0.0], [1.0]]))
    values = f(torch.tensor([[0.0], [0.5], [1.0]]))
    assert (values - values[0]).tolist() == pytest.approx([0, -0.5, -1])
    with pytest.raises(ValueError, match="not finite"):
        d.kantorovich_potential(torch.zeros(1, 1), torch.tensor([[math.nan]]))


def test_sliced_distance_of_shifted_clouds() -> None:
    """In the plane the mean of |cos| over directions is 2 / pi."""
    points = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(1)
    sliced = d.sliced_wasserstein(points, points + torch.tensor([3.0, 4.0]), projections=20_000, generator=random)
    assert sliced == pytest.approx(5 * 2 / math.pi, rel=0.01)
    other = torch.randn(200, 2, generator=random)
    assert d.sliced_wasserstein(points[:200], other, generator=random) <= d.wasserstein(points[:200], other)


def test_inputs_that_are_no_distributions_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        d.entropy(torch.tensor([0.5, 0.6]))
    with pytest.raises(ValueError, match=">= 0"):
        d.entropy(torch.tensor([1.5, -0.5]))
    with pytest.raises(ValueError, match="4 and 3 outcomes"):
        d.kl(P, torch.full((3,), 1 / 3))
    with pytest.raises(ValueError, match="one size"):
        d.sliced_wasserstein(torch.zeros(2, 1), torch.zeros(3, 1))


def test_points_that_are_not_finite_are_at_no_known_distance() -> None:
    """The solver calls such a problem unbounded and returns zero, the best of all scores."""
    points = torch.zeros(3, 2)
    assert math.isnan(d.wasserstein(points, points + math.nan))
    assert math.isnan(d.wasserstein(points, points + math.inf))


def test_as_many_points_as_probabilities() -> None:
    for distance in (d.earth_mover, d.transport_plan):
        with pytest.raises(ValueError, match="4 points cannot have 2 probabilities"):
            distance(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), torch.zeros(4, 2))
