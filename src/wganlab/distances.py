"""Distances between distributions, exact: the divergences that GANs minimise, and the transport they should.

Two kinds of input. Discrete distributions are tensors of probabilities (n,) over the same n outcomes, which must be
non-negative and sum to one. Samples are point clouds (n, *shape), equally weighted. Everything is computed in fp64
and returned as a float, in nats or in units of the samples.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: POT stops after 100,000 iterations unless it is told otherwise, short of the optimum of some 3,000 points.
MOST_ITERATIONS = 10_000_000


def exact(values: Tensor) -> Tensor:
    """The values in fp64; on the CPU where their device has none, as Apple's GPUs."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _probabilities(*distributions: Tensor) -> list[Tensor]:
    """As fp64 vectors. Raises ValueError when they are no distributions over the same outcomes."""
    vectors = [exact(torch.as_tensor(p)).flatten() for p in distributions]
    for p in vectors:
        if len(p) != len(vectors[0]):
            raise ValueError(f"distributions over {len(vectors[0])} and {len(p)} outcomes cannot be compared")
        if (p < 0).any() or not math.isclose(p.sum().item(), 1.0, abs_tol=1e-6):
            raise ValueError(f"probabilities must be >= 0 and sum to 1, not to {p.sum().item():.6g}")
    return vectors


def _locations(points: Tensor, n: int) -> Tensor:
    """Points (n, *shape) as fp64 vectors. Raises ValueError when they are not n."""
    if len(points) != n:
        raise ValueError(f"{len(points)} points cannot have {n} probabilities")
    return exact(points.reshape(n, -1))


def entropy(p: Tensor) -> float:
    """H(P) = - sum p log p, in nats; 0 log 0 = 0."""
    (p,) = _probabilities(p)
    return -torch.xlogy(p, p).sum().item()


def cross_entropy(p: Tensor, q: Tensor) -> float:
    """H(P, Q) = - sum p log q, in nats; infinite where Q is zero and P is not."""
    p, q = _probabilities(p, q)
    return -torch.xlogy(p, q).sum().item()


def kl(p: Tensor, q: Tensor) -> float:
    """Kullback-Leibler divergence KL(P || Q) = H(P, Q) - H(P), in nats; infinite where Q is zero and P is not."""
    p, q = _probabilities(p, q)
    return torch.where(p > 0, p * (p.log() - q.log()), torch.zeros_like(p)).sum().item()


def js(p: Tensor, q: Tensor) -> float:
    """Jensen-Shannon divergence KL(P || M) / 2 + KL(Q || M) / 2 with M = (P + Q) / 2, in nats: from 0 to log 2.

    A GAN with the optimal critic has the value 2 JS - 2 log 2 (Goodfellow et al. 2014, theorem 1).
    """
    p, q = _probabilities(p, q)
    middle = (p + q) / 2
    return (kl(p, middle) + kl(q, middle)) / 2


def total_variation(p: Tensor, q: Tensor) -> float:
    """TV(P, Q) = sup over events of |P(A) - Q(A)| = sum |p - q| / 2: from 0 to 1."""
    p, q = _probabilities(p, q)
    return (p - q).abs().sum().item() / 2


def earth_mover(p: Tensor, q: Tensor, points: Tensor) -> float:
    """W1(P, Q) of distributions over ``points`` (n, *shape), Euclidean ground distance; the optimum, by POT.

    Raises ValueError for another number of points than of outcomes.
    """
    p, q = _probabilities(p, q)
    locations = _locations(points, len(p))
    return _transport(p, q, torch.cdist(locations, locations))


def transport_plan(p: Tensor, q: Tensor, points: Tensor) -> Tensor:
    """The plan (n, n) whose cost is :func:`earth_mover`: how much of each outcome of P goes to each of Q.

    Its row sums are P, its column sums Q; the optimum, by POT. Raises ValueError for points that are not
    finite, and for another number of them than of outcomes.
    """
    import ot

    p, q = _probabilities(p, q)
    locations = _locations(points, len(p)).cpu()
    if not torch.isfinite(locations).all():
        raise ValueError("points that are not finite have no plan")
    cost = torch.cdist(locations, locations).numpy()
    return torch.as_tensor(ot.emd(p.cpu().numpy(), q.cpu().numpy(), cost, numItermax=MOST_ITERATIONS))


def wasserstein(first: Tensor, second: Tensor, *, order: int = 1) -> float:
    """W_order between point clouds (n, *shape) and (m, *shape), Euclidean ground distance; the optimum, by POT.

    For images in [-1, 1], W1 is the mean Euclidean distance between matched images, over all pixels and channels.
    Cost grows as n^3: about 0.1 s for 512 points, so use :func:`sliced_wasserstein` for many thousands. Samples of
    finite size bias it upwards: read it beside the distance between two samples of one distribution.
    """
    cost = torch.cdist(exact(first.flatten(1)), exact(second.flatten(1))) ** order
    n, m = cost.shape
    return _transport(cost.new_full((n,), 1 / n), cost.new_full((m,), 1 / m), cost) ** (1 / order)


def kantorovich_potential(first: Tensor, second: Tensor) -> Callable[[Tensor], Tensor]:
    """The 1-Lipschitz function f that attains W1 = E f(first) - E f(second), what a critic of WGAN approximates.

    Point clouds (n, *shape) and (m, *shape); f takes points (k, *shape) and gives values (k,). The optimum, by POT: f
    is the transform of the dual variables of ``second`` (Villani 2009, Optimal Transport, equation 5.3). Raises
    ValueError for points that are not finite.
    """
    import ot

    rows = exact(second.flatten(1)).cpu()
    cost = torch.cdist(exact(first.flatten(1)).cpu(), rows)
    if not torch.isfinite(cost).all():
        raise ValueError("points that are not finite have no potential")
    weights = [cost.new_full((n,), 1 / n).numpy() for n in cost.shape]
    dual = torch.as_tensor(ot.emd(*weights, cost.numpy(), numItermax=MOST_ITERATIONS, log=True)[1]["v"])
    return lambda points: (torch.cdist(exact(points.flatten(1)).cpu(), rows) - dual).min(1).values


def sliced_wasserstein(
    first: Tensor, second: Tensor, *, order: int = 1, projections: int = 512, generator: torch.Generator | None = None
) -> float:
    """Mean over random directions of W_order between the projected clouds (Rabin et al. 2012); n log n, for large n.

    At most W_order itself. Raises ValueError for clouds of different sizes.
    """
    if len(first) != len(second):
        raise ValueError(f"sliced_wasserstein compares clouds of one size, not {len(first)} and {len(second)}")
    clouds = [exact(cloud.flatten(1)) for cloud in (first, second)]
    directions = torch.randn(clouds[0].shape[1], projections, dtype=torch.float64, generator=generator)
    directions = (directions / directions.norm(dim=0)).to(clouds[0].device)
    low, high = ((cloud @ directions).sort(dim=0).values for cloud in clouds)
    return (low - high).abs().pow(order).mean().item() ** (1 / order)


def _transport(p: Tensor, q: Tensor, cost: Tensor) -> float:
    """Least cost of moving P to Q; NaN where a cost is not finite, of which the solver would make a zero."""
    if not torch.isfinite(cost).all():
        return math.nan
    import ot  # half a second to import, for functions called now and then

    return float(ot.emd2(p.cpu().numpy(), q.cpu().numpy(), cost.cpu().numpy(), numItermax=MOST_ITERATIONS))
