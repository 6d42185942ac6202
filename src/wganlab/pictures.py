"""Pictures of samples: grids of images, scatter plots of points, histograms of tables."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wganlab.data import Columns
from wganlab.data.stream import to_bytes
from wganlab.labels import rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Points and value surfaces are drawn over [-EXTENT, EXTENT] in both directions, farther where real points lie farther,
#: surfaces on SURFACE x SURFACE values.
EXTENT, SURFACE = 3.0, 128
#: Images in one grid, and columns of a table in one picture, at most: the first of them.
GRID, PANELS = 1024, 36


def drawable(shape: Sequence[int], columns: Columns | None) -> bool:
    """Whether samples of a shape are images, rows of a table or points in the plane, of which there are pictures."""
    return len(shape) == 3 or columns is not None or tuple(shape) == (2,)


def save_samples(
    fake: Tensor,
    path: Path,
    *,
    real: Tensor | None = None,
    critic: nn.Module | None = None,
    columns: Columns | None = None,
    labels: Tensor | None = None,
) -> None:
    """Write samples as one PNG: images (n, channels, height, width) as a grid, points (n, 2) as a scatter plot, rows
    of a table (n, columns) as histograms.

    Of images, ``real`` and ``critic`` are not used; with ``labels`` (n,) a row holds one class where each has two.
    Raises ValueError for samples of other shapes.
    """
    if fake.dim() == 4:
        rows = None if labels is None else rows_of(labels[:GRID].cpu())
        if rows is None:
            save_grid(fake[:GRID], path)
        else:
            save_grid(fake[rows[0].to(fake.device)], path, columns=rows[1])
    elif columns is not None:
        save_histograms(fake, path, columns=columns, real=real)
    else:
        save_scatter(fake, path, real=real, critic=critic)


def save_grid(images: Tensor, path: Path, *, columns: int | None = None) -> None:
    """Write images (n, channels, height, width) in [-1, 1] as one PNG, near square unless ``columns`` is given.

    Of more than four channels, the first three are shown.
    """
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    images = images[:, :3] if images.shape[1] > 4 else images
    columns = columns or round(len(images) ** 0.5)
    grid = make_grid(to_bytes(images).cpu(), columns, padding=1, pad_value=128)
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(grid[: images.shape[1]]).save(path, optimize=True)  # grey images in one channel, not in three


@torch.no_grad()
def value_surface(critic: nn.Module, like: Tensor, extent: float = EXTENT) -> tuple[Tensor, Tensor]:
    """The critic on a regular grid of the plane: coordinates (SURFACE,) and values (SURFACE, SURFACE), rows along y.

    As in figure 1a of the WGAN-GP paper (arXiv 1704.00028). ``like`` lends device and dtype.
    """
    ticks = torch.linspace(-extent, extent, SURFACE, device=like.device, dtype=like.dtype)
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
    farthest = 0.0 if real is None else float(real.float().abs().max())
    extent = EXTENT if farthest <= EXTENT else 1.1 * farthest
    axes = figure.add_subplot(aspect="equal", xlim=(-extent, extent), ylim=(-extent, extent))
    if critic is not None:
        ticks, values = value_surface(critic, fake, extent)
        axes.contour(ticks, ticks, values, levels=20, linewidths=0.7, cmap="viridis")
    if real is not None:
        x, y = real.float().cpu().T
        axes.scatter(x, y, s=6, c="tab:orange", linewidths=0, label="real")
    if paths:
        axes.plot(*fake.float().cpu().permute(2, 1, 0), c="tab:green", lw=0.8)
    else:
        x, y = fake.float().cpu().T
        axes.scatter(x, y, s=6, c="tab:green", linewidths=0, label="generated")
    save_figure(figure, path)


def save_histograms(fake: Tensor, path: Path, *, columns: Columns, real: Tensor | None = None) -> None:
    """Write rows of a table (n, columns) as one PNG: a histogram of each column in its units, real ones in orange.

    What lies beyond the hundredth at either end is counted in the last bins.
    """
    shown = [columns.in_units(rows) for rows in (real, fake) if rows is not None]
    colours = ["tab:orange", "tab:green"][-len(shown) :]
    figure, panels = panels_of(columns)
    for column, axes in panels:
        values = [rows[:, column][rows[:, column].isfinite()].cpu().double() for rows in shown]
        ends = [value.quantile(q).item() for value in values if len(value) for q in (0.01, 0.99)]
        low, high = min(ends, default=0.0), max(ends, default=0.0)
        low, high = (low, high) if low < high else (low - 0.5, high + 0.5)
        for value, colour in zip(values, colours, strict=True):
            axes.hist(value.clamp(low, high).numpy(), bins=24, range=(low, high), color=colour, alpha=0.6)
    save_figure(figure, path)


def save_paths(rows: Tensor, path: Path, *, columns: Columns) -> None:
    """Write paths of rows of a table (n, length, columns) as one PNG: each column along the paths."""
    rows = columns.in_units(rows)
    figure, panels = panels_of(columns)
    for column, axes in panels:
        axes.plot(rows[:, :, column].T.numpy(), c="tab:green", lw=0.8)
    save_figure(figure, path)


def panels_of(columns: Columns) -> tuple[Any, Iterator[tuple[int, "Axes"]]]:
    """A figure, and a titled panel of it for each of the first columns, with its number."""
    from matplotlib.figure import Figure

    n = min(len(columns.names), PANELS)
    across = math.ceil(math.sqrt(n))
    down = math.ceil(n / across)
    figure = Figure(figsize=(1.7 * across + 0.3, 1.3 * down + 0.3), layout="constrained")

    def panels() -> Iterator[tuple[int, "Axes"]]:
        for column in range(n):
            axes = figure.add_subplot(down, across, column + 1)
            axes.set_title(columns.names[column].replace("$", r"\$")[:24], fontsize=7)
            axes.tick_params(labelsize=6)
            axes.set_yticks([])
            yield column, axes

    return figure, panels()


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as a PNG whose bytes are the same for the same picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
