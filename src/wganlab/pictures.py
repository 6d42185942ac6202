"""Pictures of samples: grids of images, scatter plots of points."""

from pathlib import Path

import torch
from torch import Tensor, nn

#: Points and value surfaces are drawn over [-EXTENT, EXTENT] in both directions, surfaces on SURFACE x SURFACE values.
EXTENT, SURFACE = 3.0, 64


def save_samples(fake: Tensor, path: Path, *, real: Tensor | None = None, critic: nn.Module | None = None) -> None:
    """Write samples as one PNG: images (n, channels, height, width) as a grid, points (n, 2) as a scatter plot.

    Of images, ``real`` and ``critic`` are not used. Raises ValueError for samples of other shapes.
    """
    if fake.dim() == 4:
        save_grid(fake, path)
    else:
        save_scatter(fake, path, real=real, critic=critic)


def save_grid(images: Tensor, path: Path, *, columns: int | None = None) -> None:
    """Write images (n, channels, height, width) in [-1, 1] as one PNG, near square unless ``columns`` is given."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    columns = columns or round(len(images) ** 0.5)
    grid = make_grid(images.float().cpu(), columns, padding=1, normalize=True, value_range=(-1, 1), pad_value=0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(grid[: images.shape[1]]).save(path, optimize=True)  # grey images in one channel, not in three


@torch.no_grad()
def value_surface(critic: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """The critic on a regular grid of the plane: coordinates (SURFACE,) and values (SURFACE, SURFACE), rows along y.

    As in figure 1a of the WGAN-GP paper (arXiv 1704.00028). ``like`` lends device and dtype.
    """
    ticks = torch.linspace(-EXTENT, EXTENT, SURFACE, device=like.device, dtype=like.dtype)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    values = critic(torch.stack([x, y], dim=-1).flatten(0, 1)).unflatten(0, (SURFACE, SURFACE))
    return ticks.float().cpu(), values.float().cpu()


def save_scatter(
    fake: Tensor, path: Path, *, real: Tensor | None = None, critic: nn.Module | None = None, paths: bool = False
) -> None:
    """Write points (n, 2) as one PNG: real ones orange, generated ones green, over contours of the critic's value.

    With ``paths``, ``fake`` is (n, length, 2) and drawn as lines. Raises ValueError for other than 2-D points.
    """
    if fake.shape[-1] != 2:
        raise ValueError(
            f"samples of {'x'.join(map(str, fake.shape[1:]))} cannot be drawn: neither images nor 2-D points"
        )
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.add_subplot(aspect="equal", xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT))
    if critic is not None:
        ticks, values = value_surface(critic, fake)
        axes.contour(ticks, ticks, values, levels=20, linewidths=0.7, cmap="viridis")
    if real is not None:
        x, y = real.float().cpu().T
        axes.scatter(x, y, s=6, c="tab:orange", linewidths=0, label="real")
    if paths:
        axes.plot(*fake.float().cpu().permute(2, 1, 0), c="tab:green", lw=0.8)
    else:
        x, y = fake.float().cpu().T
        axes.scatter(x, y, s=6, c="tab:green", linewidths=0, label="generated")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
