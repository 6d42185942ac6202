"""Augmentation of what the critic sees."""

from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from wganlab import parallel
from wganlab.schema import ConfigError

Share = Annotated[float, Field(ge=0, lt=1)]


class Augmentation(Protocol):
    """A differentiable change of images (batch, *shape), real and generated alike, just before the critic."""

    def __call__(self, images: Tensor) -> Tensor:
        """The images that the critic sees, of the same shape."""
        ...


class DiffAugment:
    """Colour, translation and cutout, differentiable any number of times (Zhao et al. 2020, arXiv 2006.10738).

    ``colour`` changes brightness, saturation and contrast of each image; ``translation`` shifts it by up to this share
    of its sides, with zeros beyond its edge; ``cutout`` sets a rectangle with this share of its sides to zero.
    """

    def __init__(self, *, colour: bool = True, translation: Share = 0.125, cutout: Share = 0.5) -> None:
        self.colour, self.translation, self.cutout = colour, translation, cutout

    def __call__(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) in [-1, 1], changed. Raises ConfigError for what are no images."""
        if images.dim() != 4:
            raise ConfigError("augmentation", ": changes images, and this data set has none; choose none")
        if self.colour:
            images = change_colour(images)
        if self.translation:
            images = translate(images, self.translation)
        return cut_out(images, self.cutout) if self.cutout else images


def change_colour(images: Tensor) -> Tensor:
    """Brightness moved by up to 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5: all uniform, per image."""
    brightness, saturation, contrast = (
        parallel.batch_rand(len(images), 3, 1, 1, 1, device=images.device).to(images.dtype).unbind(1)
    )
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    level = images.mean((1, 2, 3), keepdim=True)
    return level + (images - level) * (contrast + 0.5)


def offsets(n: int, lowest: tuple[int, int], highest: tuple[int, int], device: torch.device) -> Tensor:
    """Whole numbers from lowest to highest, both included, for rows and for columns of each image; (2, n, 1)."""
    low, high = (torch.tensor(pair, device=device) for pair in (lowest, highest))
    return (low + parallel.batch_rand(n, 2, device=device) * (high - low + 1)).floor().long().T[..., None]


def translate(images: Tensor, share: float) -> Tensor:
    """Images (batch, channels, height, width) shifted by up to a share of their sides, zeros coming in."""
    n, _, height, width = images.shape
    furthest = (round(height * share), round(width * share))
    down, right = offsets(n, (0, 0), (2 * furthest[0], 2 * furthest[1]), images.device)
    rows = torch.arange(height, device=images.device) + down
    columns = torch.arange(width, device=images.device) + right
    wide = pad(images, (furthest[1], furthest[1], furthest[0], furthest[0])).permute(0, 2, 3, 1)
    image = torch.arange(n, device=images.device)[:, None, None]
    return wide[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(images: Tensor, share: float) -> Tensor:
    """Images (batch, channels, height, width) with a rectangle of zeros, whose centre is anywhere in them."""
    n, _, height, width = images.shape
    sides = (round(height * share), round(width * share))
    first = (-(sides[0] // 2), -(sides[1] // 2))
    top, left = offsets(n, first, (first[0] + height - sides[0] % 2, first[1] + width - sides[1] % 2), images.device)
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = (rows >= top) & (rows < top + sides[0])
    in_columns = (columns >= left) & (columns < left + sides[1])
    return images * ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])
