"""``wganlab sample``: images and a latent interpolation from a trained generator."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision.transforms.functional import to_pil_image

from wganlab.adversarial import sample_latents
from wganlab.averaging import trained_weights
from wganlab.build import Seed, build_critic, build_generator, build_loss, trained_config
from wganlab.config import compose_config, quote_paths, without_hydra
from wganlab.networks.layers import takes_labels
from wganlab.pictures import save_grid, save_samples, save_scatter
from wganlab.runs import Run
from wganlab.schema import ConfigError, check_call


def settings(
    *,
    run: str,
    n: Annotated[int, Field(gt=0, le=100_000)],
    checkpoint: Literal["last", "best"],
    seed: Seed,
    interpolations: PositiveInt,
    frames: PositiveInt,
    output: str,
) -> None:
    """The keys of conf/sample.yaml and what they may be: its schema."""


def main(overrides: Sequence[str]) -> None:
    """Write samples.png, interpolation.png and each sample, all or nothing, and say where."""
    config = without_hydra(compose_config("sample", quote_paths(overrides)))
    if OmegaConf.is_missing(config, "run"):
        raise ConfigError("run", ": is missing; give a run folder, as in wganlab sample run=PATH n=64")
    check_call(settings, OmegaConf.to_container(config, resolve=True), "")  # type: ignore[arg-type]
    run = Run.open(config.run)
    trained = trained_config(run, "draw")
    (generator,) = load_networks(trained, run.checkpoint(config.checkpoint), "generator")
    output = Path(config.output)
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".sample-", dir=output.parent) as part:
            write_samples(generator, trained.model, config, Path(part, "new"))
            if output.exists():
                output.rename(Path(part, "old"))
            Path(part, "new").rename(output)
    except OSError as error:
        raise ConfigError("output", f"={output}: cannot be written ({error})") from error
    print(f"{config.n} samples, a picture of them and an interpolation: {os.path.relpath(output)}")


def check_output(output: Path) -> None:
    """Raises ConfigError unless the folder is new or holds samples and nothing else."""
    ours = {"samples.png", "images", "points.csv", "interpolation.png"}
    if output.exists() and not (output.is_dir() and {path.name for path in output.iterdir()} <= ours):
        raise ConfigError("output", f"={output}: exists and holds something else than samples; name a new folder")


def load_networks(config: DictConfig, checkpoint: Path, *names: str) -> list[nn.Module]:
    """Networks of a run, by name ("generator", "critic"), in inference mode, with the weights of a checkpoint.

    They are on the CPU; data and global random numbers are left alone. Raises ConfigError when the file is damaged or
    does not fit the run's config.
    """
    try:
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
        shape = tuple(loaded["shape"])
        networks: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):  # of the weights that are replaced at once
            for name in names:
                critic = name == "critic"
                network = build_critic(config, shape, build_loss(config)) if critic else build_generator(config, shape)
                network.load_state_dict(trained_weights(loaded["state_dict"], name))
                networks.append(network.eval())
    except Exception as error:  # torch raises a dozen types for foreign, truncated and ill-fitting files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        what = " and ".join(names)
        raise ConfigError("checkpoint", f"={checkpoint}: does not hold this run's {what} ({reason})") from error
    return networks


def draw(generator: nn.Module, model: DictConfig, n: int, random: torch.Generator) -> Tensor:
    """n samples (n, *shape). Raises ConfigError for a generator that takes labels."""
    if takes_labels(generator):
        raise ConfigError(
            "run", ": its generator takes labels, and none are drawn here; evaluate draws those of its data"
        )
    return generator(sample_latents(n, model.latent_dim, model.get("latent", "normal"), generator=random))


@torch.no_grad()
def write_samples(generator: nn.Module, model: DictConfig, config: DictConfig, folder: Path) -> None:
    """samples.png of ``n`` samples, each under images/ or in points.csv; interpolation.png of paths between latents."""
    random = torch.Generator().manual_seed(config.seed)
    samples = draw(generator, model, config.n, random)
    latent = model.get("latent", "normal")
    ends = [sample_latents(config.interpolations, model.latent_dim, latent, generator=random) for _ in range(2)]
    latents = interpolate_latents(*ends, frames=config.frames, spherical=latent == "normal")
    between = generator(latents.flatten(0, 1))
    save_samples(samples, folder / "samples.png")
    if samples.dim() == 2:
        np.savetxt(folder / "points.csv", samples.numpy(), delimiter=",", fmt="%.6g")
        save_scatter(between.unflatten(0, latents.shape[:2]), folder / "interpolation.png", paths=True)
        return
    save_grid(between, folder / "interpolation.png", columns=config.frames)
    (folder / "images").mkdir()
    for i, image in enumerate(samples):
        to_pil_image((image.clamp(-1, 1) + 1) / 2).save(folder / "images" / f"{i:05d}.png")


def interpolate_latents(start: Tensor, end: Tensor, *, frames: int, spherical: bool) -> Tensor:
    """Paths between latents (n, latent_dim): shape (n, frames, latent_dim), both ends included.

    ``spherical`` follows great circles (White 2016, arXiv 1609.04468), since normal latents of many dimensions
    lie near a sphere and the straight line between two leaves it; otherwise straight lines.
    """
    t = torch.linspace(0, 1, frames)[None, :, None]
    start, end = start[:, None], end[:, None]
    if not spherical:
        return torch.lerp(start, end, t)
    cosine = (normalize(start, dim=-1) * normalize(end, dim=-1)).sum(-1, keepdim=True)
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)
