"""One run: check the config, build the parts, fit, and leave a complete folder behind."""

import functools
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
from wganlab import loggers, ranks
from wganlab.accelerator import backend
from wganlab.adversarial import AdversarialModule
from wganlab.build import build_module, check, construct, generator_steps, objections, open_stream
from wganlab.callbacks.checkpoints import Checkpoints, read_checkpoint
from wganlab.callbacks.compilation import Compilation
from wganlab.callbacks.history import History
from wganlab.callbacks.interruption import Deaf, Interruption, StoppedError
from wganlab.callbacks.progress import ProgressReport
from wganlab.config import conf_dir
from wganlab.data import Source
from wganlab.data.stream import BatchStream
from wganlab.files import write_json, write_text
from wganlab.locks import locked
from wganlab.runs import Run, final_and_best
from wganlab.schema import ConfigError

#: What a diverged run returns to a sweeper: large, and finite, since some fail on NaN.
WORST = 1e9


def train(config: DictConfig, *, changed: bool = False) -> float | None:
    """Hydra's job: one run in Hydra's output folder. Returns, for sweepers that minimise, the final ``eval/fid``, or
    where there is no extractor ``eval/emd``.

    A folder that holds a run already goes on from its last checkpoint, or from the start where there is none; what is
    complete is left alone. ``changed`` says that the folder's own config is to be replaced. Raises ConfigError when the
    config cannot run, BusyError when another process is at it; any other exception is written to status.json and
    raised again.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    check(config)
    with objections(config, "accelerator"):
        node = ranks.Node.here(config.accelerator.get("nodes", 1))
    if node.rank:
        on_ranks(config, folder, node)
        return None
    with locked(folder):
        status = read_status(folder)
        summary = finished(folder, status, generator_steps(config))
        if summary is None:
            refuse_to_repeat(status)
            if changed:
                write_text(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(config))
            summary = run(config, folder, status, node)
        else:
            print(f"already completed: {os.path.relpath(folder)}", flush=True)
    value = summary["final"].get("eval/fid", summary["final"].get("eval/emd"))
    return value if value is None or math.isfinite(value) else WORST


def resume(folder: Path, config: DictConfig, *, changed: bool) -> None:
    """``wganlab train run=PATH``: continue a run in its folder, with its own config or one of a higher budget."""
    stored = OmegaConf.load(folder / ".hydra" / "hydra.yaml")
    stored.hydra.runtime.output_dir = str(folder.absolute())  # it may have been moved
    stored.hydra.mode = RunMode[stored.hydra.mode]
    HydraConfig.instance().cfg = stored  # type: ignore[assignment]  # set_config wants types that a file has not
    train(config, changed=changed)


def read_status(folder: Path) -> dict[str, Any]:
    """What status.json says; empty for a new folder."""
    return Run(folder).status if (folder / "status.json").exists() else {}


def finished(folder: Path, status: Mapping[str, Any], steps: int) -> dict[str, Any] | None:
    """The summary of a run that has made its steps, else None."""
    summary = Run(folder).summary if status.get("state") == "completed" else {}
    return summary if summary.get("steps", 0) >= steps else None


def refuse_to_repeat(status: Mapping[str, Any]) -> None:
    """A sweep that is taken up again after a worker has died does not repeat what has failed by itself."""
    sweep = os.environ.get("WGANLAB_SWEEP")
    if sweep and status.get("state") == "failed" and status.get("sweep") == sweep:
        raise RuntimeError(status.get("error"))


def run(config: DictConfig, folder: Path, before: Mapping[str, Any], node: ranks.Node) -> dict[str, Any]:
    """Train, in this process or on ranks of it, and keep status.json at the truth."""
    status: dict[str, Any] = {
        "state": "running",
        "started": before.get("started") or now(),
        "finished": None,
        "error": None,
        "pid": os.getpid(),
        "sweep": os.environ.get("WGANLAB_SWEEP"),
        "wandb_id": before.get("wandb_id") or loggers.new_id(),
    }
    write_json(folder / "status.json", status)
    try:
        identity = run_identity(folder) | {"id": status["wandb_id"]}
        if config.accelerator.get("devices", 1) * config.accelerator.get("nodes", 1) == 1:
            summary = fit(config, folder, identity)
        else:
            on_ranks(config, folder, node, identity)
            summary = json.loads((folder / "summary.json").read_text())
    except BaseException as error:
        stopped = isinstance(error, StoppedError | KeyboardInterrupt)
        message = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))
        state = {"state": "stopped" if stopped else "failed", "finished": now(), "error": message}
        with suppress(OSError):  # a full disk: what went wrong matters more than its record
            write_json(folder / "status.json", status | state)
        raise
    write_json(folder / "status.json", status | {"state": "completed", "finished": now()})
    print(
        f"completed {summary['steps']} generator steps in {summary['seconds']:.1f} s "
        f"({summary['images_per_second']:,.0f} images/s): {os.path.relpath(folder)}",
        flush=True,
    )
    return summary


def on_ranks(config: DictConfig, folder: Path, node: ranks.Node, *arguments: Any) -> None:
    """:func:`fit` on all devices of this node. Raises ChildProcessError where one dies."""
    resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))  # the resolvers of Hydra stay here
    devices, nodes = config.accelerator.devices, config.accelerator.nodes
    talk = backend(config.accelerator.accelerator)
    try:
        ranks.launch(fit, resolved, folder, *arguments, devices=devices, node=node, nodes=nodes, backend=talk)
    except ChildProcessError as error:
        saved = (folder / "checkpoints" / "last.ckpt").exists()
        raise ChildProcessError(
            f"{error}; {'the last checkpoint is good' if saved else 'nothing was saved'}"
        ) from error


def fit(config: DictConfig, folder: Path, identity: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train in ``folder``, from its last checkpoint or from scratch, and return what summary.json holds.

    ``identity`` is what W&B is told of the run. On ranks but the first nothing is written, and nobody observes.
    """
    source: Source = construct(config, "dataset")
    # convolutions like the channels of a pixel side by side; matrices stay as they are
    module = build_module(config, source).to(memory_format=torch.channels_last)
    steps = generator_steps(config)
    history = History(every=config.log_every)
    leads = ranks.HERE.rank == 0
    logger = construct(config, "logger", save_dir=str(folder)) if config.logger and leads else None
    observers = [*filter(None, construct(config, "callbacks").values())]
    interruption = Interruption()
    compilation = Compilation(config.compile)
    own: list[pl.Callback] = [compilation, history, ProgressReport(history), interruption]
    if not leads:  # whoever restores the random numbers is needed
        observers = [callback for callback in observers if isinstance(callback, Checkpoints)]
        own = [compilation, Deaf()]
    trainer: pl.Trainer = construct(
        config,
        "accelerator",
        max_steps=steps,
        folder=str(folder),
        callbacks=[*observers, *own],
        logger=logger or False,
    )
    if config.accelerator.get("sync_batchnorm"):
        ranks.synchronise_batch_norm(module)
    trainer.precision_plugin.convert_module(module)  # Lightning would do so after it has loaded a checkpoint
    last = folder / "checkpoints" / "last.ckpt"
    saved = read_checkpoint(last) if last.exists() else None
    stream = open_stream(config, source, module.n_critic, trainer.strategy.root_device)
    checkpoint = str(last) if saved else None
    if not leads:
        pl.seed_everything(config.seed, verbose=False)
        if not saved or saved["global_step"] < steps:
            trainer.fit(module, train_dataloaders=stream, ckpt_path=checkpoint, weights_only=True)
        return {}
    module.fingerprint = stream.fingerprint()
    announce(config, module, stream, trainer)
    if saved:
        check_continuation(saved, module.fingerprint)
    with recorded(logger, trainer, config, identity or {}) as summary:
        pl.seed_everything(config.seed, verbose=False)  # the noise of training, too, depends on the seed alone
        if saved and saved["global_step"] >= steps:  # killed between its last step and its summary
            history.restore(folder, steps)
        else:
            with interruption:
                continue_or_begin(trainer, module, stream, checkpoint, interruption)
        found = summarise(module, history, trainer) | {"compiled": bool(compilation.decided)}
        write_json(folder / "summary.json", found)
        summary |= found
    return summary


@contextmanager
def recorded(
    logger: Any, trainer: pl.Trainer, config: DictConfig, identity: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """W&B's run, where there is one: it ends with the summary that is put into the dict, or as failed without."""
    summary: dict[str, Any] = {}
    try:
        if isinstance(logger, loggers.WandbLogger):
            started = logger.start(config=OmegaConf.to_container(config, resolve=True), **identity)
            trainer.loggers = [logger] if started else []
        yield summary
        if isinstance(logger, loggers.WandbLogger):
            logger.upload(summary)
    finally:
        if isinstance(logger, loggers.WandbLogger):
            logger.finish(summary or None, 0 if summary else 1)


def continue_or_begin(
    trainer: pl.Trainer,
    module: AdversarialModule,
    stream: BatchStream,
    checkpoint: str | None,
    interruption: Interruption,
) -> None:
    """Lightning's fit, whose ways to leave the process become exceptions."""
    try:
        trainer.fit(module, train_dataloaders=stream, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # a second Ctrl-C
            raise KeyboardInterrupt from error
        if interruption.received is not None:
            raise StoppedError(interruption.received, "before its first step") from error
        raise RuntimeError(f"sys.exit({error.code}) in the middle of training") from error


def check_continuation(saved: Mapping[str, Any], fingerprint: str) -> None:
    """Say from where a run goes on. Raises ConfigError when its data are no longer the same."""
    if saved["fingerprint"] != fingerprint:
        raise ConfigError("dataset", ": its content is not that with which this run began; start a new run")
    print(f"continuing after generator step {saved['global_step']}", flush=True)
    threads, of = saved["wganlab"]["threads"], saved["wganlab"].get("ranks", 1)
    if threads != torch.get_num_threads():
        print(
            f"note: the run had {threads} threads and now has {torch.get_num_threads()}: "
            f"sums in another order, so equal up to rounding only (OMP_NUM_THREADS={threads})",
            flush=True,
        )
    if of != ranks.HERE.world_size:
        print(
            f"note: the run was shared by {of} devices and now by {ranks.HERE.world_size}: equal up to rounding only, "
            "and less where network or loss couple the images of a batch, or with dropout",
            flush=True,
        )


def announce(config: DictConfig, module: AdversarialModule, stream: BatchStream, trainer: pl.Trainer) -> None:
    """One line that says what is about to be trained."""
    generator, critic = (count_parameters(net) / 1e6 for net in (module.generator, module.critic))
    n = "endless" if stream.batches_per_epoch is None else f"{len(stream.samples):,}"
    samples = f"{n} samples of {'x'.join(map(str, module.shape))}"
    print(
        f"{trainer.max_steps} generator steps, n_critic {module.n_critic}, batch {config.batch_size}: "
        f"{samples}, generator {generator:.2f} M and "
        f"critic {critic:.2f} M parameters, on {trainer.strategy.root_device}",
        flush=True,
    )


def run_identity(folder: Path) -> dict[str, Any]:
    """How W&B shows a run: named after its overrides, grouped by its sweep, tagged with its choices.

    A sweep of W&B's names and groups its runs itself.
    """
    hydra = HydraConfig.get()
    in_sweep = hydra.mode == RunMode.MULTIRUN
    choices = [hydra.runtime.choices[group] for group in ("dataset", "model", "loss")]
    if loggers.in_agent():
        return {"tags": choices}
    return {
        "name": hydra.job.override_dirname or folder.name,
        "group": Path(hydra.sweep.dir).name if in_sweep else None,
        "tags": choices,
    }


def summarise(module: AdversarialModule, history: History, trainer: pl.Trainer) -> dict[str, Any]:
    """summary.json: final and best metrics, speed over the whole run, and what produced them."""
    if not history.rows:
        raise OSError("metrics.csv is missing: the run has made its steps, and nothing is known of them")
    steps, images, seconds = (history.rows[-1][key] for key in ("step", "images_seen", "seconds"))
    return {
        "steps": steps,
        "images_seen": images,
        "seconds": seconds,
        "images_per_second": images / seconds,
        **final_and_best(history.rows),
        "parameters": {name: count_parameters(getattr(module, name)) for name in ("generator", "critic")},
        "device": str(trainer.strategy.root_device),
        "ranks": ranks.HERE.world_size,
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
