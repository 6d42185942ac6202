"""Building blocks shared by the networks."""

from typing import Literal

from torch import nn

Norm = Literal["batch", "layer", "none"]


def norm_layer(kind: Norm, channels: int, *, images: bool, eps: float = 1e-5, momentum: float = 0.1) -> nn.Module:
    """Normalisation of (batch, channels) or, with ``images``, of (batch, channels, height, width).

    "layer" is over channels and pixels of one image with a scale per channel, as in the WGAN-GP code: a group
    norm of one group. ``momentum`` is torch's (the weight of the new batch) and only means something to "batch".
    """
    if kind == "batch":
        batch_norm = nn.BatchNorm2d if images else nn.BatchNorm1d
        return batch_norm(channels, eps=eps, momentum=momentum)
    return nn.GroupNorm(1, channels, eps=eps) if kind == "layer" else nn.Identity()
