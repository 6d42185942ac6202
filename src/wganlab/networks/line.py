"""The generator with a single parameter of the parallel lines (WGAN, arXiv 1701.07875, example 1)."""

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from wganlab.schema import InvalidValueError


class Generator(nn.Module):
    """(theta, U) with U uniform in [0, 1] made of a uniform latent in [-1, 1]; learns ``theta`` alone."""

    def __init__(self, *, latent_dim: PositiveInt, shape: tuple[int, ...], theta: float = 1.0) -> None:
        super().__init__()
        if latent_dim != 1:
            raise InvalidValueError("latent_dim", latent_dim, "must be 1, the position on the line")
        self.theta = nn.Parameter(torch.tensor(theta))

    def forward(self, latents: Tensor) -> Tensor:
        return torch.cat([self.theta.expand_as(latents), (latents + 1) / 2], dim=1)
