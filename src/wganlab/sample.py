"""``wganlab sample``: samples and a latent interpolation from a trained generator."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision.transforms.functional import to_pil_image

from wganlab.archive import read_archive, read_checkpoint, refusing
from wganlab.averaging import Weights, trained_weights
from wganlab.build import build_critic, build_generator, build_loss, trained_config
from wganlab.contracts import Loss, Networks
from wganlab.data import Columns
from wganlab.data.stream import to_bytes
from wganlab.files import from_here, replacing
from wganlab.labels import Classes, inputs
from wganlab.networks.layers import takes_labels
from wganlab.pair import noise_of, sample_latents
from wganlab.pictures import GRID, drawable, save_grid, save_paths, save_samples, save_scatter
from wganlab.runs import Run
from wganlab.schema import ConfigError
from wganlab.targets import check_targets
from wganlab.validate import Seed, command_settings


def main(overrides: Sequence[str]) -> None:
    """The command: draw from a run's generator, and say where the samples are."""
    settings = command_settings(sample, overrides)
    sample(**settings)
    print(f"{settings['n']} samples, a picture of them and an interpolation: {from_here(settings['output'])}")


def sample(
    *,
    run: str,
    n: Annotated[int, Field(gt=0, le=100_000)],
    checkpoint: str,
    weights: Weights,
    seed: Seed,
    labels: Annotated[Sequence[int], Field(min_length=1)] | None = None,
    interpolations: PositiveInt,
    frames: PositiveInt,
    output: str,
) -> None:
    """Write ``n`` samples, a picture of them and one of ``interpolations`` paths of ``frames`` samples to ``output``.

    Of a generator that takes labels they are equally many of each of ``labels``, or else of labels that are drawn with
    the frequencies of its data; labels.csv says which. All or nothing. conf/sample.yaml has the same keys. Raises
    ConfigError for a folder that holds something else.
    """
    opened, folder = Run.open(run), Path(output).expanduser()
    trained = trained_config(opened, "draw")
    path = opened.checkpoint(checkpoint)
    (generator,) = load_networks(trained, path, "generator", weights=weights)
    saved = read_checkpoint(path, "checkpoint")
    columns, classes = columns_in(saved), Classes.restored(saved.get("classes"))
    check_output(folder)
    random = torch.Generator().manual_seed(seed)
    if not drawable(saved["shape"], columns):
        raise ConfigError("run", f"={run}: its samples are no images, rows or points, and cannot be drawn")
    asked = labels_for(generator, classes, labels, n, seed)
    of_paths = labels_for(generator, classes, labels and labels[:interpolations], interpolations, seed)
    try:
        with replacing(folder) as new:
            write_samples(draw_parts(generator, trained.model, n, random, asked), new, columns, asked)
            write_interpolation(generator, trained.model, interpolations, frames, random, new, columns, of_paths)
    except OSError as error:
        raise ConfigError("output", f"={output}: cannot be written ({error})") from error


def check_output(output: Path) -> None:
    """Raises ConfigError unless the folder is new or holds samples and nothing else."""
    ours = {"samples.png", "images", "points.csv", "table.csv", "interpolation.png", "labels.csv"}
    if output.exists() and not (output.is_dir() and {path.name for path in output.iterdir()} <= ours):
        raise ConfigError("output", f"={output}: exists and holds something else than samples; name a new folder")


def load_networks(config: DictConfig, checkpoint: Path, *names: str, weights: Weights = "averaged") -> list[nn.Module]:
    """Networks of a run, by name ("generator", "critic"), in evaluation mode, with the weights of a checkpoint.

    Of a generator they are the averaged ones where there are any, unless ``weights`` is "raw". Networks are on the CPU;
    data and global random numbers are left alone. Raises ConfigError when the file is damaged or does not fit the
    run's config.
    """
    for key, hint in {"model": Networks, "loss": Loss}.items():
        check_targets(hint, OmegaConf.to_container(config[key], resolve=True), key)
    fault = f"={checkpoint}: does not hold this run's {' and '.join(names)}"
    with refusing("checkpoint", fault):  # foreign, truncated and ill-fitting files
        loaded = read_archive(checkpoint)
        shape = tuple(loaded["shape"])
        states = {name: trained_weights(loaded["state_dict"], name, weights) for name in names}
    networks: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):  # of the weights that are replaced at once
        for name in names:
            critic = name == "critic"
            network = build_critic(config, shape, build_loss(config)) if critic else build_generator(config, shape)
            with refusing("checkpoint", fault):
                network.load_state_dict(states[name])
            networks.append(network.eval())
    return networks


def columns_in(checkpoint: Mapping[str, Any]) -> Columns | None:
    """The columns of the table whose rows a generator makes; None where it makes images or points."""
    if "columns" not in checkpoint:
        return None
    names, shift, scale = checkpoint["columns"]
    return Columns(tuple(names), shift, scale)


def labels_for(
    generator: nn.Module, classes: Classes | None, labels: Sequence[int] | Tensor | None, n: int, seed: int
) -> Tensor | None:
    """Labels (n,) for a generator that takes them: those that are asked for, or drawn with the data's frequencies.

    None for another generator. Raises ConfigError for labels that it cannot have.
    """
    if not takes_labels(generator):
        if labels is not None:
            raise ConfigError("labels", f"={[*labels]}: the generator of this run takes none")
        return None
    if classes is None:
        raise ConfigError("run", ": its generator takes labels, and its checkpoint has no classes of its data")
    return classes.draw(n, seed=seed) if labels is None else classes.asked(labels, n)


def draw_parts(
    generator: Callable[..., Tensor],
    model: Mapping[str, Any],
    n: int,
    random: torch.Generator,
    labels: Tensor | None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """n samples (n, *shape), of ``labels`` (n,) where the generator takes them, in parts of at most GRID samples.

    Noise that the generator draws itself is of the seed of ``random``, too.
    """
    latents = sample_latents(n, model["latent_dim"], model.get("latent", "normal"), dtype=dtype, generator=random)
    for start in range(0, n, GRID):
        part = slice(start, start + GRID)
        with torch.no_grad(), noise_of(random.initial_seed() + start, latents.device):
            yield generator(*inputs(latents[part], None if labels is None else labels[part]))


def write_samples(parts: Iterable[Tensor], folder: Path, columns: Columns | None, labels: Tensor | None) -> None:
    """samples.png of the first samples, and all under images/ or, of points and tables, in points.csv or table.csv.

    Images of more than four channels, which no PNG has, are arrays of bytes.

    ``labels`` (n,) are written beside them in labels.csv, in the same order.
    """
    for number, part in enumerate(parts):
        if number == 0:
            first = labels if labels is None else labels[: len(part)]
            save_samples(part, folder / "samples.png", columns=columns, labels=first)
            if labels is not None:
                np.savetxt(folder / "labels.csv", labels.numpy(), fmt="%d", header="label", comments="")
        if part.dim() == 2:
            write_rows(part, folder, columns, begin=number == 0)
            continue
        (folder / "images").mkdir(exist_ok=True)
        for i, image in enumerate(part, start=number * GRID):
            if len(image) > 4:
                np.save(folder / "images" / f"{i:05d}.npy", to_bytes(image).numpy())
            else:
                to_pil_image(to_bytes(image)).save(folder / "images" / f"{i:05d}.png")


def write_rows(samples: Tensor, folder: Path, columns: Columns | None, *, begin: bool) -> None:
    """Points as points.csv, or rows of a table, in its units and under the names of its columns, as table.csv."""
    rows = samples if columns is None else columns.in_units(samples)
    with open(folder / ("points.csv" if columns is None else "table.csv"), "a", newline="", encoding="utf-8") as file:
        if begin and columns is not None:
            csv.writer(file, lineterminator="\n").writerow(columns.names)
        np.savetxt(file, rows.numpy(), delimiter=",", fmt="%.9g" if columns is None else "%.15g")


@torch.no_grad()
def write_interpolation(
    generator: nn.Module,
    model: DictConfig,
    n: int,
    frames: int,
    random: torch.Generator,
    folder: Path,
    columns: Columns | None,
    labels: Tensor | None,
) -> None:
    """interpolation.png of n paths between latents, each of so many frames, and of one of ``labels`` (n,)."""
    latent = model.get("latent", "normal")
    ends = [sample_latents(n, model.latent_dim, latent, generator=random) for _ in range(2)]
    latents = interpolate_latents(*ends, frames=frames, spherical=latent == "normal")
    along = None if labels is None else labels.repeat_interleave(frames)
    with noise_of(random.initial_seed(), latents.device):
        between = generator(*inputs(latents.flatten(0, 1), along))
    if columns is not None:
        save_paths(between.unflatten(0, latents.shape[:2]), folder / "interpolation.png", columns=columns)
    elif between.dim() == 2:
        save_scatter(between.unflatten(0, latents.shape[:2]), folder / "interpolation.png", paths=True)
    else:
        save_grid(between, folder / "interpolation.png", columns=frames)


def interpolate_latents(start: Tensor, end: Tensor, *, frames: int, spherical: bool) -> Tensor:
    """Paths between latents (n, latent_dim): shape (n, frames, latent_dim), both ends included.

    ``spherical`` follows great circles (White 2016, arXiv 1609.04468), since normal latents of many dimensions
    lie near a sphere and the straight line between two leaves it; otherwise straight lines, also between two that lie
    opposite to each other, which no great circle joins rather than another.
    """
    t = torch.linspace(0, 1, frames)[None, :, None]
    start, end = start[:, None], end[:, None]
    straight = torch.lerp(start, end, t)
    if not spherical:
        return straight
    cosine = (normalize(start, dim=-1) * normalize(end, dim=-1)).sum(-1, keepdim=True)
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
    arc = (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)
    return torch.where(cosine.abs() > 1 - 1e-3, straight, arc)
