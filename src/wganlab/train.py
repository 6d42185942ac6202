"""One run: check the config, build the parts, fit, and leave a complete folder behind."""

import functools
import math
import os
import platform
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch import nn

import wganlab
from wganlab.adversarial import AdversarialModule
from wganlab.build import build_module, check, construct, generator_steps, objections
from wganlab.callbacks.history import History
from wganlab.callbacks.progress import ProgressReport
from wganlab.config import conf_dir
from wganlab.data import Source, size
from wganlab.data.stream import BatchStream, EndlessStream
from wganlab.files import write_json
from wganlab.loggers import WandbLogger
from wganlab.runs import final_and_best

#: What a diverged run returns to a sweeper: large, and finite, since some fail on NaN.
WORST = 1e9


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
        message = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))
        write_json(folder / "status.json", status | {"state": "failed", "finished": now(), "error": message})
        raise
    write_json(folder / "status.json", status | {"state": "completed", "finished": now()})
    print(
        f"completed {summary['steps']} generator steps in {summary['seconds']:.1f} s "
        f"({summary['images_per_second']:,.0f} images/s): {os.path.relpath(folder)}",
        flush=True,
    )
    value = summary["final"].get("eval/emd")
    return value if value is None or math.isfinite(value) else WORST


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
    device = trainer.strategy.root_device
    options = {"batch_size": config.batch_size, "n_critic": module.n_critic, "steps": steps, "seed": config.seed}
    with objections(config, "dataset"):
        samples = None if size(source) is None else source.load().to(device)
    with objections(config, ""):  # broken files may have left fewer samples than a batch
        if samples is None:
            stream: BatchStream = EndlessStream(source.draw, device=device, **options)  # type: ignore[attr-defined]
        else:
            stream = BatchStream(samples, **options)
    announce(config, module, source, trainer)
    exit_code, summary = 1, None
    try:
        if isinstance(logger, WandbLogger):
            started = logger.start(config=OmegaConf.to_container(config, resolve=True), **run_identity(folder))
            trainer.loggers = [logger] if started else []
        pl.seed_everything(config.seed, verbose=False)  # the noise of training, too, depends on the seed alone
        try:
            trainer.fit(module, train_dataloaders=stream)
        except SystemExit as error:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from error
        summary = summarise(module, history, trainer)
        write_json(folder / "summary.json", summary)
        exit_code = 0
    finally:
        if isinstance(logger, WandbLogger):
            logger.finish(summary, exit_code)
    return summary


def announce(config: DictConfig, module: AdversarialModule, source: Source, trainer: pl.Trainer) -> None:
    """One line that says what is about to be trained."""
    generator, critic = (count_parameters(net) / 1e6 for net in (module.generator, module.critic))
    n = size(source)
    samples = f"{'endless' if n is None else format(n, ',')} samples of {'x'.join(map(str, source.shape))}"
    print(
        f"{trainer.max_steps} generator steps, n_critic {module.n_critic}, batch {config.batch_size}: "
        f"{samples}, generator {generator:.2f} M and "
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


def summarise(module: AdversarialModule, history: History, trainer: pl.Trainer) -> dict[str, Any]:
    """summary.json: final and best metrics, speed over the whole run, and what produced them."""
    images, seconds = (history.rows[-1][key] for key in ("images_seen", "seconds"))
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
