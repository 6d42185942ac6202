"""wganlab from Python: train as the command does, and have a run as objects."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from wganlab import launch
from wganlab.archive import read_checkpoint
from wganlab.averaging import Weights
from wganlab.build import config_of, trained_config, trains_generator
from wganlab.callbacks.checkpoints import random_state, restore_random_state
from wganlab.data import Columns
from wganlab.data.reading import LAST_READ
from wganlab.labels import Classes
from wganlab.loggers import own_session
from wganlab.runs import Run
from wganlab.sample import columns_in, draw_parts, labels_for, load_networks
from wganlab.schema import ConfigError, locate

if TYPE_CHECKING:
    import pandas


@dataclass
class LoadedRun:
    """A run folder as objects, read when they are first asked for; ``run`` has the rest of what it holds."""

    run: Run
    checkpoint: str
    weights: Weights = "averaged"

    @property
    def folder(self) -> Path:
        return self.run.folder

    @cached_property
    def config(self) -> DictConfig:
        """The composed config, interpolations resolved. Raises ConfigError where it is damaged or cannot be."""
        config = self._config.copy()
        try:
            OmegaConf.resolve(config)
        except OmegaConfBaseException as error:
            raise ConfigError("run", f"={self.folder}: {' '.join(str(error).split())}") from error
        return config

    @cached_property
    def history(self) -> "pandas.DataFrame":
        """metrics.csv: a row per logged generator step, which is the index. Raises ImportError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("history needs pandas: pip install 'wganlab[notebook]'") from error
        rows = self.run.rows
        steps = pandas.Index([int(row["step"]) for row in rows], name="step", dtype="int64")
        return pandas.DataFrame(rows, index=steps).drop(columns="step", errors="ignore")

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json; empty for a run that has not completed."""
        return self.run.summary

    @property
    def generator(self) -> nn.Module:
        """In evaluation mode, on the CPU. Raises ConfigError when none was trained, but a fixed one."""
        trained_config(self.run, "draw")
        return self.networks["generator"]

    @property
    def critic(self) -> nn.Module:
        """In evaluation mode, on the CPU."""
        return self.networks["critic"]

    @torch.no_grad()
    def sample(self, n: int, *, seed: int = 0, labels: Sequence[int] | Tensor | None = None) -> Tensor:
        """n samples (n, *shape), images in [-1, 1]: those of ``wganlab sample`` with the same seed and labels.

        Rows of a table are shifted and scaled as in training: ``columns.in_units(rows)`` has them as in its file.
        """
        asked = labels_for(self.generator, self._of_data[1], labels, n, seed)
        random = torch.Generator().manual_seed(seed)
        return torch.cat([*draw_parts(self.generator, self._config.model, n, random, asked)])

    @cached_property
    def networks(self) -> dict[str, nn.Module]:
        """Those that were trained, with the checkpoint's weights. Raises ConfigError where it is missing or damaged."""
        names = ["generator", "critic"] if trains_generator(self._config) else ["critic"]
        path = self.run.checkpoint(self.checkpoint)
        return dict(zip(names, load_networks(self._config, path, *names, weights=self.weights), strict=True))

    @property
    def columns(self) -> Columns | None:
        """Names, shift and scale of the columns of the table that was learned; None of images and points."""
        return self._of_data[0]

    @cached_property
    def _of_data(self) -> tuple[Columns | None, Classes | None]:
        """What the checkpoint knows of the data."""
        saved = read_checkpoint(self.run.checkpoint(self.checkpoint), "checkpoint")
        return columns_in(saved), Classes.restored(saved.get("classes"))

    @cached_property
    def _config(self) -> DictConfig:
        return config_of(self.run)


def load_run(path: str | Path, checkpoint: str = "last", *, weights: Weights = "averaged") -> LoadedRun:
    """The run in a folder, with the networks of a checkpoint ("last", "best", ...). Its data are not needed.

    The generator has its averaged weights where there are such, unless ``weights`` is "raw". Raises ConfigError when
    the folder is no run, or the checkpoint missing or damaged.
    """
    if weights not in get_args(Weights):
        raise ConfigError("weights", f"={weights}: allowed are {', '.join(get_args(Weights))}")
    loaded = LoadedRun(Run.open(path), checkpoint, weights)
    _ = loaded.networks  # what is wrong with them is said now
    return loaded


def train(overrides: Sequence[str] | str = (), *, config_dir: str | None = None) -> LoadedRun:
    """Make one run as ``wganlab train`` does with these overrides, and load it: the same folder, the same bits.

    A string is split as by a shell. ``run=PATH`` continues a run. ``config_dir`` is the command's --config-dir.
    Interrupting the kernel ends the run after its step, saved: StoppedError. Raises ConfigError before any data are
    read, FloatingPointError when the run diverges, BusyError when another process is at it; never SystemExit.

    Left as they were: working directory, sys.argv, log handlers, Hydra's and W&B's state, global random numbers.
    Changed for the process, as by the command: torch's matmul precision and with accelerator.deterministic its kernels,
    malloc's limits, PL_GLOBAL_SEED, the level of Lightning's loggers and some of its warnings.
    """
    given = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    if not any(text.startswith("run=") for text in given):
        refuse_sweeps(given)
    LAST_READ.clear()  # files may have changed since the last run of this process, and so may classes
    locate.cache_clear()
    with own_session(), same_random_numbers():
        try:
            return LoadedRun(Run(launch.run(given, config_dir=config_dir)), "last")
        except SystemExit as error:  # of a user's class
            raise RuntimeError(f"sys.exit({error.code})") from error


def refuse_sweeps(overrides: Sequence[str]) -> None:
    """Raises ConfigError for flags, and for overrides that make several runs."""
    wrong = [text for text in overrides if text.startswith("-") or text.lstrip("+").startswith("hydra.mode=")]
    if wrong:
        raise ConfigError(" ".join(wrong), ": wganlab.train makes one run of key=value; sweeps: wganlab train -m ...")


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """The global generators afterwards are what they were."""
    before = random_state()
    try:
        yield
    finally:
        restore_random_state(before)
