"""From a composed config to the parts of a run, and what is refused on the way."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, PositiveInt
from torch import nn

from wganlab.adversarial import AdversarialModule, sample_latents
from wganlab.config import written_key
from wganlab.data import Source
from wganlab.schema import ConfigError, check_call, check_shared_values, check_targets, is_node

Seed = Annotated[int, Field(ge=0, lt=2**32)]


def settings(
    *,
    dataset: Mapping,
    model: Mapping,
    loss: Mapping,
    accelerator: Mapping,
    logger: Mapping | None,
    callbacks: Mapping,
    seed: Seed,
    steps: PositiveInt,
    images: PositiveInt | None,
    batch_size: PositiveInt,
    log_every: PositiveInt,
) -> None:
    """The keys of conf/train.yaml and what they may be: its schema."""


def construct(config: DictConfig, key: str, **extra: Any) -> Any:
    """Instantiate a node; what its constructor objects to becomes a ConfigError that names the key."""
    with objections(config, key):
        made = instantiate(OmegaConf.select(config, key), _convert_="all")
        return made(**extra) if extra else made


@contextmanager
def objections(config: DictConfig, key: str) -> Iterator[None]:
    """Turn what a part objects to into a ConfigError that names its key.

    A part may begin its message with ``parameter=value:`` to name the parameter at fault.
    """
    try:
        yield
        return
    except InstantiationException as error:
        cause = error.__cause__ or error
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        cause = error
    at_parameter = re.match(r"(\w+)(=.*)", str(cause), re.DOTALL)
    if at_parameter:
        raise ConfigError(written_key(config, f"{key}.{at_parameter[1]}".lstrip(".")), at_parameter[2]) from cause
    raise ConfigError(key, f": {cause}") from cause


def check(config: DictConfig) -> None:
    """Refuse a composed config that cannot run, before any data is read: raises ConfigError."""
    try:
        plain: dict = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError("", " ".join(str(error).split())) from error
    try:
        check_values(plain)
    except ConfigError as error:
        raise ConfigError(written_key(config, error.key), error.message) from None
    source = construct(config, "dataset")
    if config.batch_size > len(source):
        raise ConfigError(
            "batch_size", f"={config.batch_size}: must be at most the {len(source)} samples of the data set"
        )
    construct(config, "accelerator", max_steps=1)
    construct(config, "callbacks")
    check_networks(config, source)


def check_values(plain: dict[str, Any]) -> None:
    """Check every plain value against the signature that it fills."""
    check_call(settings, plain, "")
    check_targets(plain)
    parts = plain["model"] | plain["loss"]
    check_call(AdversarialModule, plain["model"], "model.", partial=True)
    check_call(AdversarialModule, plain["loss"], "loss.", partial=True)
    check_call(AdversarialModule, parts, "model or loss: ")
    check_shared_values(plain["loss"]["optimizer"], "loss.optimizer.", calls=("generator", "critic"))
    for key, value in plain["callbacks"].items():
        if value is not None and not is_node(value):
            raise ConfigError(f"callbacks.{key}", f"={value}: must be a node with _target_, or null to switch it off")


def check_networks(config: DictConfig, source: Source) -> None:
    """Try the networks and the loss on tensors without storage: shapes must fit."""
    with torch.device("meta"):
        module = build_module(config, source)
        latents = sample_latents(config.batch_size, module.latent_dim, module.latent)
        try:
            fake = module.generator(latents)
            if fake.shape[1:] != source.shape:
                made, wanted = ("x".join(map(str, shape)) for shape in (fake.shape[1:], source.shape))
                raise ConfigError("model.generator", f": makes samples of {made}, the data set has {wanted}")
            scores = module.critic(fake)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                "model", f": the networks cannot run at batch_size={config.batch_size}: {error}"
            ) from error
    if scores.shape != (config.batch_size,):
        raise ConfigError("model.critic", f": must give one score per sample, not {tuple(scores.shape)}")


def build_module(config: DictConfig, source: Source) -> AdversarialModule:
    """Networks, objective, constraint and optimizers; weights depend on the seed alone, network by network."""
    torch.manual_seed(2 * config.seed)
    generator: nn.Module = construct(config, "model.generator", latent_dim=config.model.latent_dim, shape=source.shape)
    torch.manual_seed(2 * config.seed + 1)
    critic: nn.Module = construct(config, "model.critic", shape=source.shape)
    rest = {key: config.model[key] for key in config.model if key not in ("generator", "critic")}
    module = AdversarialModule(generator=generator, critic=critic, **rest, **construct(config, "loss"))
    try:
        module.configure_optimizers()
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError("loss.optimizer", f": {error}") from error
    return module


def generator_steps(config: DictConfig) -> int:
    """The budget in generator steps: ``steps``, or as many as show the critic ``images`` real images."""
    if config.images is None:
        return config.steps
    return math.ceil(config.images / (config.loss.n_critic * config.batch_size))
