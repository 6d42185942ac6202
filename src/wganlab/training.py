"""One run from its parts to its summary."""

import functools
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from torch import nn

import wganlab
from wganlab import loggers, parallel, torchrun
from wganlab.adversarial import AdversarialModule
from wganlab.archive import read_checkpoint
from wganlab.build import build_module, construct, generator_steps, open_stream, same_data
from wganlab.callbacks import is_foreign
from wganlab.callbacks.checkpoints import Checkpoints
from wganlab.callbacks.compilation import Compilation
from wganlab.callbacks.history import History
from wganlab.callbacks.interruption import IgnoreSignals, Interruption, StoppedError, StopTogether
from wganlab.callbacks.progress import ProgressReport
from wganlab.config import conf_dir
from wganlab.data import Source
from wganlab.data.stream import BatchStream
from wganlab.files import write_json
from wganlab.runs import final_and_best


def fit(config: DictConfig, folder: Path, identity: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train in ``folder``, from its last checkpoint or from scratch, and return what summary.json holds.

    ``identity`` is what W&B is told of the run. Further ranks compute their rows of each batch, write nothing, and
    return an empty dict.
    """
    source: Source = construct(config, "dataset")
    history, interruption, compilation = History(every=config.log_every), Interruption(), Compilation(config.compile)
    trainer: pl.Trainer = construct(
        config,
        "accelerator",
        max_steps=generator_steps(config),
        folder=str(folder),
        callbacks=observers(config, history, interruption, compilation),
        logger=open_loggers(config, folder) or False,
    )
    # built after the Trainer, which sets the precision of products, since spectral norm multiplies when it is put on;
    # convolutions like the channels of a pixel side by side, and matrices stay as they are
    module = build_module(config, source).to(memory_format=torch.channels_last)
    if config.accelerator.get("sync_batchnorm"):
        parallel.synchronise_batch_norm(module)
    trainer.precision_plugin.convert_module(module)  # Lightning would do so after it has loaded a checkpoint
    last = folder / "checkpoints" / "last.ckpt"
    saved = read_checkpoint(last) if last.exists() else None
    stream = open_stream(config, source, trainer.strategy.root_device, module)
    module.labels = stream.labels
    if parallel.is_rank_zero():
        module.fingerprints = stream.fingerprints()
        print_overview(config, module, stream, trainer)
        check_continuation(saved, module.fingerprints)
    with recorded(trainer, config, identity or {}) as summary:
        pl.seed_everything(config.seed, verbose=False)  # the noise of training, too, depends on the seed alone
        if saved and saved["global_step"] >= trainer.max_steps:  # killed between its last step and its summary
            history.restore(folder, trainer.max_steps)
        else:
            continue_or_begin(trainer, module, stream, str(last) if saved else None, interruption)
        if parallel.is_rank_zero():
            summary |= summarise(module, history, trainer) | {"compiled": bool(compilation.decided)}
            write_json(folder / "summary.json", summary)
    return summary


def open_loggers(config: DictConfig, folder: Path) -> list[Logger]:
    """The run's loggers, on rank zero."""
    names = [name for name, node in (config.logger or {}).items() if node] if parallel.is_rank_zero() else []
    return [construct(config, f"logger.{name}", save_dir=str(folder)) for name in names]


def observers(
    config: DictConfig, history: History, interruption: Interruption, compilation: Compilation
) -> list[pl.Callback]:
    """The callbacks of a run. Further ranks have those alone that change it: Checkpoints restores random numbers."""
    chosen: list[pl.Callback] = [*filter(None, construct(config, "callbacks").values())]
    together: list[pl.Callback] = []
    if parallel.world_size() > 1 and (config.accelerator.get("max_time") or any(map(is_foreign, chosen))):
        together = [StopTogether()]  # it takes a message a step, which other runs are spared
    if parallel.is_rank_zero():
        return [*chosen, compilation, history, ProgressReport(history), interruption, *together]
    mine = [callback for callback in chosen if isinstance(callback, Checkpoints)]
    return [*mine, compilation, IgnoreSignals(), *together]


@contextmanager
def recorded(trainer: pl.Trainer, config: DictConfig, identity: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The run of each logger: W&B's ends with the summary that is put into the dict, or as failed without."""
    summary: dict[str, Any] = {}
    wandb = [logger for logger in trainer.loggers if isinstance(logger, loggers.WandbLogger)]
    try:
        plain = OmegaConf.to_container(config, resolve=True)
        begun = {"config": plain, **identity}
        trainer.loggers = [one for one in trainer.loggers if not hasattr(one, "start") or one.start(**begun)]
        yield summary
        for logger in wandb:
            logger.upload(summary)
    finally:
        for logger in wandb:
            logger.finish(summary or None, 0 if summary else 1)


def continue_or_begin(
    trainer: pl.Trainer,
    module: AdversarialModule,
    stream: BatchStream,
    checkpoint: str | None,
    interruption: Interruption,
) -> None:
    """Lightning's fit. Its ways to leave the process, and the loss of a rank, become exceptions."""
    try:
        with interruption if parallel.is_rank_zero() else nullcontext():
            trainer.fit(module, train_dataloaders=stream, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # a second Ctrl-C
            raise KeyboardInterrupt from error
        if interruption.received is not None:
            raise StoppedError(interruption.received, "before its first step") from error
        raise RuntimeError(f"sys.exit({error.code}) in the middle of training") from error
    except RuntimeError as error:
        if torchrun.has_lost_another(error):
            raise ChildProcessError(f"rank {parallel.rank()} has lost another rank") from error
        raise


def check_continuation(saved: Mapping[str, Any] | None, fingerprints: Mapping[str, str]) -> None:
    """Say from where a run goes on, if it has begun. Raises ConfigError when its data are no longer the same."""
    if saved is None:
        return
    same_data(saved, fingerprints)
    print(f"continuing after generator step {saved['global_step']}", flush=True)
    threads, of = saved["wganlab"]["threads"], saved["wganlab"].get("ranks", 1)
    if threads != torch.get_num_threads():
        print(
            f"note: the run had {threads} threads and now has {torch.get_num_threads()}: "
            f"sums in another order, so equal up to rounding only (OMP_NUM_THREADS={threads})",
            flush=True,
        )
    if of != parallel.world_size():
        print(
            f"note: the run was shared by {of} devices and now by {parallel.world_size()}: equal up to rounding only, "
            "and less where network or loss couple the images of a batch, or with dropout",
            flush=True,
        )


def print_overview(config: DictConfig, module: AdversarialModule, stream: BatchStream, trainer: pl.Trainer) -> None:
    """One line that says what is about to be trained, and one for each note of a regularizer."""
    generator, critic = (count_parameters(net) / 1e6 for net in (module.generator, module.critic))
    n = "endless" if stream.batches_per_epoch is None else f"{len(stream.samples):,}"
    samples = f"{n} samples of {'x'.join(map(str, module.shape))}"
    print(
        f"{trainer.max_steps} generator steps, n_critic {module.loss.n_critic}, batch {config.batch_size}: "
        f"{samples}, generator {generator:.2f} M and "
        f"critic {critic:.2f} M parameters, on {trainer.strategy.root_device}",
        flush=True,
    )
    if not any(isinstance(callback, Checkpoints) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        print("note: without callbacks.checkpoints the run cannot be continued, sampled or exported", flush=True)
    for note in filter(None, (part.note(module.critic) for part in module.loss.regularizer.values())):
        print(f"note: {note}", flush=True)


def summarise(module: AdversarialModule, history: History, trainer: pl.Trainer) -> dict[str, Any]:
    """summary.json: final and best metrics, speed over the whole run, and what produced them."""
    if not history.rows:
        raise OSError("metrics.csv is missing: the run has made its steps, and nothing is known of them")
    steps, images, seconds = (history.rows[-1][key] for key in ("step", "images_seen", "seconds"))
    return {
        "steps": steps,
        "budget": trainer.max_steps,  # more than the steps where a callback has stopped the run
        "images_seen": images,
        "seconds": seconds,
        "images_per_second": images / seconds,
        **final_and_best(history.rows),
        "parameters": {name: count_parameters(getattr(module, name)) for name in ("generator", "critic")},
        "device": str(trainer.strategy.root_device),
        "ranks": parallel.world_size(),
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
