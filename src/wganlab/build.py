"""From a checked config to the parts of a run."""

import math
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from wganlab import parallel
from wganlab.adversarial import AdversarialModule
from wganlab.config import source_key
from wganlab.contracts import Loss, critic_steps
from wganlab.data import Source, columns_of, size
from wganlab.data.reading import Data, check_draw, hold_out, read_once
from wganlab.data.stream import BatchStream, EndlessStream, same_content
from wganlab.regularizers import Regularizer
from wganlab.runs import Run
from wganlab.schema import ConfigError, InvalidValueError, locate

#: How a note on an exception begins that names the config key of the part that raised it.
RAISED_BY = "raised by the config's "


def construct(config: DictConfig, key: str, **extra: Any) -> Any:
    """Instantiate a node, or call the factory that it makes with ``extra``. Raises what :func:`naming` raises."""
    with naming(config, key):
        part = instantiate(OmegaConf.select(config, key), _convert_="all")
        return part(**extra) if extra else part


def key_of(parameter: str, config: DictConfig, key: str) -> str | None:
    """The key that sets a parameter of the part at a node: there, or above it, as model.latent_dim; None for none."""
    parts = key.split(".") if key else []
    for depth in range(len(parts), -1, -1):
        node = OmegaConf.select(config, ".".join(parts[:depth])) if depth else config
        if isinstance(node, DictConfig) and parameter in node:
            return ".".join([*parts[:depth], parameter])
    return None


@contextmanager
def naming(config: DictConfig, key: str) -> Iterator[None]:
    """Name the key of the part that is at work: a value that it refuses becomes a ConfigError; a bug gets a note."""
    try:
        yield
    except Exception as error:
        cause = error
        if isinstance(error, InstantiationException):
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            if nested := re.search(r"full_key: (\S+)", str(error)):
                key = nested[1]
        if isinstance(cause, ConfigError):
            raise cause from None
        raw = OmegaConf.to_container(config, resolve=False)
        if isinstance(cause, InvalidValueError):
            if set_at := key_of(cause.parameter, config, key):
                raise ConfigError(source_key(raw, set_at), f"={cause.value}: {cause.allowed}") from cause
            raise ConfigError(key, f": {cause}") from cause
        if not any(note.startswith(RAISED_BY) for note in getattr(cause, "__notes__", ())):
            target = OmegaConf.select(config, f"{key}._target_") if key else None
            cause.add_note(f"{RAISED_BY}{key}" + (f" ({target})" if target else ""))
        raise cause from cause.__cause__


def build_module(config: DictConfig, source: Source) -> AdversarialModule:
    """Networks, loss and optimizers; weights depend on the seed alone, network by network."""
    if config.get("averaging") and not trains_generator(config):
        raise ConfigError("averaging", ": this training trains no generator that could be averaged; allowed is none")
    loss = build_loss(config)
    torch.manual_seed(2 * config.seed)
    generator = build_generator(config, source.shape)
    torch.manual_seed(2 * config.seed + 1)
    critic = build_critic(config, source.shape, loss)
    module: AdversarialModule = construct(
        config,
        "training",
        generator=generator,
        critic=critic,
        latent_dim=config.model.latent_dim,
        latent=config.model.get("latent", "normal"),
        loss=loss,
        averaging=construct(config, "averaging") if config.get("averaging") else None,
        augmentation=construct(config, "augmentation") if config.get("augmentation") else None,
    )
    module.shape, module.columns = tuple(source.shape), columns_of(source)
    with refused_by_torch(config, "loss.optimizer"):
        optimizers = module.make_optimizers()
    for name, make in (loss.schedule or {}).items():
        with refused_by_torch(config, f"loss.schedule.{name}"):
            make(optimizers[name])
    return module


@contextmanager
def refused_by_torch(config: DictConfig, key: str) -> Iterator[None]:
    """Raises ConfigError, in torch's words, for values that an optimizer or a schedule of torch's refuses."""
    try:
        with naming(config, key):
            yield
    except (ValueError, RuntimeError, TypeError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        is_torchs = str(OmegaConf.select(config, f"{key}._target_")).startswith("torch.")  # and may lack a parameter
        if not (is_torchs or raised_in.is_relative_to(Path(torch.__file__).parent)):
            raise  # a bug of a user's own
        raise ConfigError(key, f": {error}") from error


def build_loss(config: DictConfig) -> Loss:
    """The parts of ``loss``. Raises ConfigError for a regularizer that is none."""
    if config.images is not None:
        config = config.copy()
        config.steps = generator_steps(config)  # which schedules take for their end
    parts = construct(config, "loss")
    for name, part in (parts.get("regularizer") or {}).items():
        if not isinstance(part, Regularizer):
            raise ConfigError(f"loss.regularizer.{name}", ": must be a subclass of wganlab.regularizers.Regularizer")
        if not (isinstance(part.every, int) and part.every >= 1):
            raise ConfigError(f"loss.regularizer.{name}.every", f"={part.every}: must be an integer > 0")
    return Loss(**{name: part for name, part in parts.items() if part != {}})


def build_generator(config: DictConfig, shape: tuple[int, ...]) -> nn.Module:
    """The generator for samples of a shape, with weights from torch's random numbers."""
    return construct(config, "model.generator", latent_dim=config.model.latent_dim, shape=shape)


def build_critic(config: DictConfig, shape: tuple[int, ...], loss: Loss) -> nn.Module:
    """The critic for samples of a shape, as the regularizers prepare it."""
    critic: nn.Module = construct(config, "model.critic", shape=shape)
    for name, part in loss.regularizer.items():
        with naming(config, f"loss.regularizer.{name}"):
            critic = part.prepare(critic)
    return critic


def trained_config(run: Run, purpose: str) -> DictConfig:
    """The config that a run was trained with. Raises ConfigError where there is none, or no generator was trained."""
    config = config_of(run)
    if not trains_generator(run.config):
        raise ConfigError("run", f"={run.folder}: its generator was fixed, not trained; nothing to {purpose}")
    return config


def config_of(run: Run) -> DictConfig:
    """The config of a run. Raises ConfigError where it lacks what a run is made of."""
    if missing := [name for name in ("dataset", "model", "loss", "training") if not run.config.get(name)]:
        raise ConfigError(
            "run", f"={run.folder}: its .hydra/config.yaml is damaged, or of no run: it has no {missing[0]}"
        )
    return OmegaConf.create(run.config)


def trains_generator(config: Mapping) -> bool:
    """Whether a run of this config trains its generator."""
    return bool(getattr(locate(config["training"]["_target_"]), "trains_generator", True))


def generator_steps(config: DictConfig) -> int:
    """The budget in generator steps: ``steps``, or as many as show the critic ``images`` real images."""
    if config.images is None:
        return config.steps
    batches = math.ceil(config.images / config.batch_size)
    if not config.loss.get("warmup"):
        return math.ceil(batches / config.loss.n_critic)
    of_step, steps = critic_steps_of(config), 0
    while batches > 0:
        batches -= of_step(steps)
        steps += 1
    return steps


def critic_steps_of(config: DictConfig) -> Callable[[int], int]:
    """The critic steps of each generator step."""
    warmup = construct(config, "loss.warmup") if config.loss.get("warmup") else None
    return critic_steps(config.loss.n_critic, warmup)


def open_stream(
    config: DictConfig, source: Source, device: torch.device, module: AdversarialModule | None = None
) -> BatchStream:
    """Read the data, or get ready to draw them; without a module, not for training."""
    labelled = module is not None and module.labelled
    warmup = None if module is None else module.loss.warmup
    options: dict[str, Any] = {
        "device": device,
        "batch_size": config.batch_size,
        "n_critic": config.loss.n_critic if warmup is None else critic_steps(config.loss.n_critic, warmup),
        "steps": generator_steps(config),
        "seed": config.seed,
        "labelled": labelled,
        "numbered": module is not None and module.numbers_samples,
    }
    if size(source) is None:
        check_draw(source)
        return EndlessStream(source, **options)
    with naming(config, "dataset"):
        data = read_once(source, OmegaConf.to_yaml(config.dataset, resolve=True))
    if n := config.get("hold_out", 0):
        kept, apart = hold_out(len(data.samples), n)
        first, second = (
            (data.samples[rows], None if data.labels is None else data.labels[rows]) for rows in (kept, apart)
        )
        data = Data(*first, *second)
    if module is not None:
        check_last_batch(config, module, len(data.samples), parallel.world_size())
    with naming(config, ""):  # broken files may have left fewer samples than a batch
        return BatchStream(
            data.samples,
            source=source,
            labels=data.labels,
            held_out=data.held_out,
            held_out_labels=data.held_out_labels,
            flip=getattr(source, "flip", False),
            drop_last=config.drop_last,
            reshuffle=config.reshuffle,
            **options,
        )


def check_last_batch(config: DictConfig, module: nn.Module, n: int, devices: int) -> None:
    """With drop_last=false, the last batch of n samples must be shared equally, and be enough for batch norm.

    Raises ConfigError where it is not.
    """
    rest = 0 if config.drop_last else n % config.batch_size
    leaves = f"=false: leaves {rest} of {n:,} samples for the last batch, "
    if rest % devices:
        raise ConfigError("drop_last", f"{leaves}which must be a multiple of the {devices} devices that share it")
    synchronised = config.accelerator.get("sync_batchnorm")
    if rest and (rest if synchronised else rest // devices) == 1 and has_batch_norm(module):
        raise ConfigError("drop_last", f"{leaves}and batch norm needs two on each device")


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a layer takes statistics over a batch."""
    return any(isinstance(layer, parallel.BATCH_NORMS) for layer in module.modules())


def same_data(saved: Mapping, fingerprints: Mapping[str, str]) -> None:
    """Raises ConfigError when a run's data are not those of its checkpoint."""
    if not same_content(saved, fingerprints):
        raise ConfigError("dataset", ": its content is not that with which this run began; start a new run")
