"""``wganlab evaluate``: all scores of a checkpoint, by one protocol."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field
from torch import Tensor

from wganlab.adversarial import AdversarialModule
from wganlab.build import build_module, construct, open_stream, trained_config
from wganlab.callbacks.checkpoints import read_checkpoint
from wganlab.callbacks.diagnostics import inspect
from wganlab.config import compose_config, quote_paths, without_hydra
from wganlab.data.stream import BatchStream, to_unit_range
from wganlab.files import write_json
from wganlab.metrics import METRICS
from wganlab.metrics.features import memorisation, nearest
from wganlab.metrics.protocol import Protocol
from wganlab.networks.layers import evaluation_mode
from wganlab.pictures import save_grid
from wganlab.regularizers import interpolate
from wganlab.runs import Run
from wganlab.schema import ConfigError, check_call
from wganlab.validate import Seed, validate

#: Samples whose nearest training images are shown.
SHOWN = 16


def settings(
    *,
    run: str,
    checkpoint: str,
    n: Annotated[int, Field(gt=1, le=10_000)],
    images: Annotated[int, Field(gt=10, le=1_000_000)],
    split: Literal["training", "held_out"],
    dataset: Mapping,
    seed: Seed,
    extractor: Mapping | None,
) -> None:
    """The keys of conf/evaluate.yaml and what they may be: its schema."""


def main(overrides: Sequence[str]) -> None:
    """Write evaluation/CHECKPOINT_PROTOCOL.json, and of images the nearest training images of some samples."""
    config = without_hydra(compose_config("evaluate", quote_paths(overrides)))
    if OmegaConf.is_missing(config, "run"):
        raise ConfigError("run", ": is missing; give a run folder, as in wganlab evaluate run=PATH")
    plain: dict = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    check_call(settings, plain, "")
    run = Run.open(config.run)
    trained = trained_config(run, "score")
    extractor = construct(config, "extractor") if config.extractor else None
    protocol = Protocol(n=config.n, images=config.images, extractor=extractor)
    module, stream, step = load(trained, run.checkpoint(config.checkpoint))
    protocol.prepare(stream, real_samples(trained, config, stream), split=described_split(config))
    scores, fake = evaluate(module, protocol, config.seed)
    folder = run.folder / "evaluation"
    folder.mkdir(exist_ok=True)
    description = protocol.describe()
    path = folder / f"{config.checkpoint}_{description['id']}.json"
    if fake.dim() == 4:
        draw_neighbours(fake[:SHOWN], stream, path.with_suffix(".png"))
    record = {"checkpoint": config.checkpoint, "step": step, "seed": config.seed}
    write_json(path, record | {"scores": scores, "protocol": description})
    for name, value in scores.items():
        metric = METRICS.get(name)
        if metric:
            print(f"{name:30} {value:{metric.form}}".ljust(44) + metric.title)
    print(f"{config.checkpoint}.ckpt of step {step}, protocol {description['id']}: {os.path.relpath(path)}")


def load(config: DictConfig, checkpoint: Path) -> tuple[AdversarialModule, BatchStream, int]:
    """A run as it was at a checkpoint, in inference mode, with its data; and the generator step.

    Raises ConfigError when the file is damaged, does not fit the config, or the data are not those of the run.
    """
    # it is scored here, wherever and however it was trained
    config = OmegaConf.merge(config, {"accelerator": {"accelerator": "cpu", "devices": 1}, "precision": "32-true"})  # type: ignore[assignment]
    validate(config)
    source = construct(config, "dataset")
    saved = read_checkpoint(checkpoint, "checkpoint")
    module = build_module(config, source)
    try:
        module.load_state_dict(saved["state_dict"])
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError("checkpoint", f"={checkpoint}: does not hold this run's networks ({reason})") from error
    stream = open_stream(config, source, torch.device("cpu"), module)
    module.labels = stream.labels
    if stream.fingerprint() != saved["fingerprint"]:
        raise ConfigError(
            "run", f"={checkpoint.parent.parent}: its data set is no longer the one that it was trained on"
        )
    return module.eval(), stream, saved["global_step"]


def described_split(config: DictConfig) -> str:
    """Which real samples are compared with, for the record."""
    changes = ",".join(f"{key}={value}" for key, value in config.dataset.items())
    return ",".join(filter(None, (config.split, changes)))


def real_samples(trained: DictConfig, config: DictConfig, stream: BatchStream) -> Tensor | None:
    """Real samples to compare with, as stored, in a random order; None for those that were trained on."""
    if config.dataset:
        changed = OmegaConf.merge(trained, {"dataset": config.dataset, "hold_out": 0, "batch_size": 1})
        validate(changed)  # type: ignore[arg-type]
        other = open_stream(changed, construct(changed, "dataset"), torch.device("cpu"))  # type: ignore[arg-type]
        return other.fixed_samples(max(2 * config.n, config.images))
    if config.split == "training":
        return None
    if stream.held_out is None or not len(stream.held_out):
        raise ConfigError("split", "=held_out: the run has held out no samples (hold_out=0); allowed is training")
    return stream.held_out[torch.randperm(len(stream.held_out), generator=torch.Generator().manual_seed(0))]


@torch.no_grad()
def evaluate(module: AdversarialModule, protocol: Protocol, seed: int) -> tuple[dict[str, float], Tensor]:
    """Scores of a module in inference mode, and what it generated."""
    scores = protocol.scores(partial(module.generate, seed=seed))
    real, fake = protocol.real, module.generate(len(protocol.real), seed=seed)
    if fake.dim() == 4:
        scores["eval/memorisation"] = memorisation(fake, protocol.stream.samples)
    if module.conditional["critic"]:
        return scores, fake  # the protocol's real images come without labels
    points = interpolate(real, fake, generator=torch.Generator().manual_seed(seed))
    with evaluation_mode(module.critic):
        scores["critic/wasserstein_estimate"] = (module.critic(real).mean() - module.critic(fake).mean()).item()
        scores |= inspect(module, module.critic, real, fake, points)
    return scores, fake


def draw_neighbours(fake: Tensor, stream: BatchStream, path: Path) -> None:
    """Generated images, and below each the training image nearest to it, as a PNG."""
    _, which = nearest(fake, stream.samples)
    save_grid(torch.cat([fake, to_unit_range(stream.samples[which])]), path, columns=len(fake))
