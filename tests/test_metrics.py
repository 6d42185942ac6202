"""Metrics against known distances."""

import pytest
import torch

from wganlab.metrics.emd import earth_movers_distance


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_distance_between_shifted_clouds_is_the_shift(shape: tuple[int, ...]) -> None:
    points = torch.randn(40, *shape, generator=torch.Generator().manual_seed(0))
    shift = torch.full(shape, 0.3)
    shuffled = (points + shift)[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    assert earth_movers_distance(points, shuffled) == pytest.approx(shift.norm().item(), rel=1e-6)


def test_distance_of_unequal_numbers() -> None:
    """Half of the mass at 0 stays, the other half moves to 1."""
    assert earth_movers_distance(torch.zeros(1, 1), torch.tensor([[0.0], [1.0]])) == pytest.approx(0.5)
