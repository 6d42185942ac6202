"""``wganlab evaluate``: all scores of a checkpoint, by one protocol."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field
from torch import Tensor

from wganlab.adversarial import AdversarialModule
from wganlab.archive import read_checkpoint
from wganlab.averaging import Weights
from wganlab.build import build_module, construct, open_stream, trained_config
from wganlab.data import Columns, columns_of
from wganlab.data.stream import BatchStream, same_content, to_unit_range
from wganlab.files import from_here, write_json
from wganlab.metrics import METRICS
from wganlab.metrics.critic import critic_report
from wganlab.metrics.extractors import Extractor
from wganlab.metrics.features import memorisation, nearest
from wganlab.metrics.protocol import Protocol
from wganlab.networks.layers import evaluation_mode
from wganlab.pictures import save_grid
from wganlab.places import at_hand, moved
from wganlab.regularizers import interpolate
from wganlab.runs import Run
from wganlab.schema import ConfigError
from wganlab.validate import Seed, check_size, command_settings, complete, validate

#: Samples that are shown with their nearest training images.
SHOWN = 16


def main(overrides: Sequence[str]) -> None:
    """The command: evaluate a checkpoint, print its scores, and say where they are."""
    settings = command_settings(evaluate, overrides)
    Run.open(settings["run"])  # the cheapest reason to refuse comes first
    extractor = construct(OmegaConf.create(settings), "extractor") if settings["extractor"] else None
    path, record = evaluate(**settings | {"extractor": extractor})
    for name, value in record["scores"].items():
        if name in METRICS:
            print(f"{name:30} {value:{METRICS[name].format}}".ljust(44) + METRICS[name].title)
    protocol = record["protocol"]["id"]
    print(f"{settings['checkpoint']}.ckpt of step {record['step']}, protocol {protocol}: {from_here(path)}")


def evaluate(
    *,
    run: str,
    checkpoint: str,
    weights: Weights,
    statistics: Literal["running", "standing"] = "running",
    n: Annotated[int, Field(gt=1, le=10_000)],
    images: Annotated[int, Field(gt=10, le=1_000_000)],
    split: Literal["auto", "training", "held_out"],
    dataset: Mapping,
    seed: Seed,
    extractor: Extractor | None,
) -> tuple[Path, dict[str, Any]]:
    """Score a checkpoint of a run folder; returns evaluation/CHECKPOINT_PROTOCOL.json, and what it holds.

    ``n`` samples are compared by exact distances, ``images`` by the features of ``extractor``, with real samples of
    ``split``, or of the run's data set with the changes in ``dataset``; of data that have moved, these say where they
    are. ``statistics`` are those of the generator's batch norms, "standing" ones as
    :meth:`wganlab.pair.Pair.take_standing_statistics` takes them. Of images, a picture beside the file shows some
    samples and the training images nearest to them.
    conf/evaluate.yaml has the same keys.
    """
    opened = Run.open(run)
    if not os.access(opened.folder, os.W_OK):
        raise ConfigError("run", f"={run}: its scores go into it, and it cannot be written to; give a copy")
    with at_hand(trained_config(opened, "score"), opened) as config:
        trained, others = moved(config, dataset)
        if others and split != "auto":
            fault = f"={split}: is of the run's own data, beside dataset.{next(iter(others))}; allowed is auto"
            raise ConfigError("split", fault)
        protocol = Protocol(n=n, images=images, extractor=extractor)
        module, stream, step = load(trained, opened.checkpoint(checkpoint))
    if weights == "raw":
        module.averaging = None
    if statistics == "standing":
        take_standing_statistics(module)
    if others:
        prepare_with_others(protocol, stream, trained, others)
    else:
        protocol.prepare(stream, split=split)
    scores, fake = score(module, protocol, seed)
    taken = protocol.describe(module.shown_weights) | {"statistics": statistics}
    record = {"checkpoint": checkpoint, "step": step, "seed": seed, "scores": scores, "protocol": taken}
    if moves := {key: value for key, value in dataset.items() if key not in others}:
        record["dataset"] = moves
    unusual: list[str] = [value for value in (weights, statistics) if value in ("raw", "standing")]
    unusual += [f"seed{seed}"] if seed else []
    name = "_".join([checkpoint, *unusual])
    path = opened.folder / "evaluation" / f"{name}_{taken['id']}.json"
    path.parent.mkdir(exist_ok=True)
    if fake.dim() == 4:
        draw_neighbours(fake[:SHOWN], stream, path.with_suffix(".png"))
    write_json(path, record)
    return path, record


def load(config: DictConfig, checkpoint: Path) -> tuple[AdversarialModule, BatchStream, int]:
    """A run as it was at a checkpoint, in evaluation mode, with its data; and the generator step.

    Raises ConfigError when the file is damaged, does not fit the config, or the data are not those of the run.
    """
    # scored on this machine's CPU in fp32, wherever and however it was trained
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
    if not same_content(saved, stream.fingerprints()):
        raise ConfigError(
            "run", f"={checkpoint.parent.parent}: its data set is no longer the one that it was trained on"
        )
    return module.eval(), stream, saved["global_step"]


def take_standing_statistics(module: AdversarialModule) -> None:
    """Give the generator's batch norms standing statistics. Raises ConfigError where it has none."""
    try:
        module.take_standing_statistics()
    except ValueError as error:
        raise ConfigError("statistics", f"=standing: {error}; allowed is running") from error


def prepare_with_others(protocol: Protocol, stream: BatchStream, trained: DictConfig, dataset: Mapping) -> None:
    """Have a protocol compare with the whole of the run's data set as it is with other keys.

    Raises ConfigError for keys and values that it cannot have, and for samples of another shape.
    """
    changed: Any = OmegaConf.merge(trained, {"dataset": dict(dataset), "hold_out": 0, "batch_size": 1})
    complete(changed)
    source = construct(changed, "dataset")
    check_size(changed, source)
    if tuple(source.shape) != tuple(stream.source.shape):
        sizes = ["x".join(map(str, shape)) for shape in (source.shape, stream.source.shape)]
        raise ConfigError("dataset", f": its samples would be {sizes[0]}, and the generator makes {sizes[1]}")
    others = open_stream(changed, source, torch.device("cpu"))
    wanted = max(2 * protocol.n, protocol.images)
    named = ",".join(f"{key}={value}" for key, value in dataset.items())
    real = in_units_of(columns_of(stream.source), others.fixed_samples(wanted), columns_of(source))
    protocol.prepare(stream, real, labels=others.fixed_labels(wanted), split=named)


def in_units_of(ours: Columns | None, samples: Tensor, theirs: Columns | None) -> Tensor:
    """Samples (n, columns) of another table, shifted and scaled as the run's is; of images and points as they are.

    Raises ConfigError for a table of other columns.
    """
    if ours is None or theirs is None:
        return samples
    if ours.names != theirs.names:
        names = [", ".join(columns.names) for columns in (theirs, ours)]
        raise ConfigError("dataset", f": its columns are {names[0]}, and the generator makes {names[1]}")
    return ((theirs.in_units(samples) - ours.shift) / ours.scale).to(samples.dtype)


@torch.no_grad()
def score(module: AdversarialModule, protocol: Protocol, seed: int) -> tuple[dict[str, float], Tensor]:
    """All scores of a module in evaluation mode, and the samples that it generated."""
    scores = protocol.scores(partial(module.generate_parts, seed=seed), partial(module.shown_labels, seed=seed))
    real, fake = protocol.real, module.generate(len(protocol.real), seed=seed)
    if fake.dim() == 4 and len(protocol.stream.samples) > 1:
        scores["eval/memorisation"] = memorisation(fake, protocol.stream.samples)
    if module.conditional["critic"]:
        return scores, fake  # the protocol's real images come without labels
    points = interpolate(real, fake, generator=torch.Generator().manual_seed(seed))
    with evaluation_mode(module.critic):
        scores["critic/wasserstein_estimate"] = (module.critic(real).mean() - module.critic(fake).mean()).item()
        scores |= critic_report(module.critic, module.loss.objective, real, fake, points, module.loss.bound)
    return scores, fake


def draw_neighbours(fake: Tensor, stream: BatchStream, path: Path) -> None:
    """Generated images, and below each the training image nearest to it, as a PNG."""
    _, which = nearest(fake, stream.samples)
    save_grid(torch.cat([fake, to_unit_range(stream.samples[which])]), path, columns=len(fake))
