"""How well points in the plane cover the modes of a known mixture (Srivastava et al. 2017, arXiv 1705.07761)."""

import torch
from torch import Tensor

from wganlab.distances import exact, kl


def mode_scores(
    points: Tensor, centers: Tensor, sd: float, *, within: float = 3.0, share: float = 0.1
) -> dict[str, float]:
    """Scores of points (n, d) against equally likely modes at ``centers`` (k, d) of standard deviation ``sd``.

    - ``high_quality``: share of points at most ``within`` standard deviations from a mode; of the mixture itself
      1 - exp(-within^2 / 2) in the plane, 0.989.
    - ``modes``: how many modes have at least ``share`` of the n / k points of high quality that are expected there.
    - ``mode_kl``: KL(share of each mode among the points, by the nearest mode || equal shares), in nats; log k where
      all points are nearest to one mode.

    Not a number where a point is not finite.
    """
    if not torch.isfinite(points).all():
        return dict.fromkeys(("modes", "high_quality", "mode_kl"), float("nan"))
    points = exact(points)
    distances, nearest = torch.cdist(points, centers.to(points)).min(dim=1)
    good = distances <= within * sd
    shares = torch.bincount(nearest, minlength=len(centers)) / len(points)
    found = torch.bincount(nearest[good], minlength=len(centers))
    return {
        "modes": float((found >= share * len(points) / len(centers)).sum()),
        "high_quality": good.float().mean().item(),
        "mode_kl": kl(shares, torch.full_like(shares, 1 / len(centers))),
    }
