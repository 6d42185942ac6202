"""One run: check the config, build the parts, fit, and leave a complete folder behind."""

import functools
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, PositiveInt
from torch import nn

import wganlab
from wganlab.adversarial import AdversarialModule, sample_latents
from wganlab.callbacks.history import History
from wganlab.callbacks.progress import ProgressReport
from wganlab.config import conf_dir, written_key
from wganlab.data import Source
from wganlab.data.stream import BatchStream
from wganlab.files import write_json
from wganlab.loggers import WandbLogger
from wganlab.runs import final_and_best
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
    """Instantiate a node; what its constructor objects to becomes a ConfigError that names the key.

    A constructor may begin its message with ``parameter=value:`` to name the parameter at fault.
    """
    try:
        made = instantiate(OmegaConf.select(config, key), _convert_="all")
        return made(**extra) if extra else made
    except InstantiationException as error:
        cause = error.__cause__ or error
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        cause = error
    at_parameter = re.match(r"(\w+)(=.*)", str(cause), re.DOTALL)
    if at_parameter:
        raise ConfigError(written_key(config, f"{key}.{at_parameter[1]}"), at_parameter[2]) from cause
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


def train(config: DictConfig) -> float | None:
    """Hydra's job: one run in Hydra's output folder. Returns the final ``eval/emd``, for sweepers that minimise.

    Raises ConfigError when the config cannot run; any other exception is written to status.json and raised again.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    check(config)
    status = {"state": "running", "started": now(), "finished": None, "error": None, "pid": os.getpid()}
    write_json(folder / "status.json", status)
    try:
        summary = fit(config, folder)
    except BaseException as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        write_json(folder / "status.json", status | {"state": "failed", "finished": now(), "error": message})
        raise
    write_json(folder / "status.json", status | {"state": "completed", "finished": now()})
    print(
        f"completed {summary['steps']} generator steps in {summary['seconds']:.1f} s "
        f"({summary['images_per_second']:,.0f} images/s): {os.path.relpath(folder)}",
        flush=True,
    )
    return summary["final"].get("eval/emd")


def fit(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Train from scratch in ``folder`` and return what summary.json holds."""
    source: Source = construct(config, "dataset")
    module = build_module(config, source)
    steps = generator_steps(config)
    history = History(every=config.log_every)
    logger = construct(config, "logger", save_dir=str(folder)) if config.logger else None
    trainer: pl.Trainer = construct(
        config,
        "accelerator",
        max_steps=steps,
        folder=str(folder),
        callbacks=[*filter(None, construct(config, "callbacks").values()), history, ProgressReport(history)],
        logger=logger or False,
    )
    stream = BatchStream(
        source.load().to(trainer.strategy.root_device),
        batch_size=config.batch_size,
        n_critic=module.n_critic,
        steps=steps,
        seed=config.seed,
    )
    announce(config, module, source, trainer)
    exit_code, summary = 1, None
    try:
        if isinstance(logger, WandbLogger):
            logger.start(config=OmegaConf.to_container(config, resolve=True), **run_identity(folder))
        pl.seed_everything(config.seed, verbose=False)  # the noise of training, too, depends on the seed alone
        started = time.perf_counter()
        try:
            trainer.fit(module, train_dataloaders=stream)
        except SystemExit as error:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from error
        summary = summarise(module, history, time.perf_counter() - started, trainer)
        write_json(folder / "summary.json", summary)
        exit_code = 0
    finally:
        if isinstance(logger, WandbLogger):
            logger.finish(summary, exit_code)
    return summary


def announce(config: DictConfig, module: AdversarialModule, source: Source, trainer: pl.Trainer) -> None:
    """One line that says what is about to be trained."""
    generator, critic = (count_parameters(net) / 1e6 for net in (module.generator, module.critic))
    print(
        f"{trainer.max_steps} generator steps, n_critic {module.n_critic}, batch {config.batch_size}: "
        f"{len(source):,} samples of {'x'.join(map(str, source.shape))}, generator {generator:.2f} M and "
        f"critic {critic:.2f} M parameters, on {trainer.strategy.root_device}",
        flush=True,
    )


def run_identity(folder: Path) -> dict[str, Any]:
    """How W&B shows a run: named after its overrides, grouped by its sweep, tagged with its choices."""
    hydra = HydraConfig.get()
    in_sweep = hydra.mode == RunMode.MULTIRUN
    choices = [hydra.runtime.choices[group] for group in ("dataset", "model", "loss")]
    return {
        "name": hydra.job.override_dirname or folder.name,
        "group": Path(hydra.sweep.dir).name if in_sweep else None,
        "tags": choices,
    }


def summarise(module: AdversarialModule, history: History, seconds: float, trainer: pl.Trainer) -> dict[str, Any]:
    """summary.json: final and best metrics, speed over the whole run, and what produced them."""
    images = history.rows[-1]["images_seen"]
    return {
        "steps": trainer.global_step,
        "images_seen": images,
        "seconds": seconds,
        "images_per_second": images / seconds,
        **final_and_best(history.rows),
        "parameters": {name: count_parameters(getattr(module, name)) for name in ("generator", "critic")},
        "device": str(trainer.strategy.root_device),
        "threads": torch.get_num_threads(),
        "versions": {
            "wganlab": wganlab.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pytorch_lightning": pl.__version__,
        },
        "commit": commit(),
    }


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


@functools.cache
def commit() -> str | None:
    """Commit of the checkout that this code runs from, with "-dirty" where it was changed; None outside one."""
    checkout = conf_dir().parent
    if not (checkout / ".git").exists():
        return None
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    """The time, to the second, in ISO 8601 with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
