"""Where the data of a run lie: they may have moved since it began, and it may go on from another folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from wganlab.archive import read_checkpoint
from wganlab.build import construct, open_stream, same_data
from wganlab.config import is_text
from wganlab.data import Source
from wganlab.runs import Run
from wganlab.schema import ConfigError, leaves
from wganlab.targets import check_targets
from wganlab.validate import parameters_at

#: Nodes of a config that name files.
NODES = ("dataset", "extractor")


def is_place(config: DictConfig, key: str) -> bool:
    """Whether a key of a config may hold the path of data: it holds any text, below one of :data:`NODES`."""
    parent, _, name = key.rpartition(".")
    return key.startswith(tuple(f"{node}." for node in NODES)) and is_text(parameters_at(config, parent).get(name))


def is_there(value: Any) -> bool:
    """Whether a value is the path of something."""
    return isinstance(value, str) and Path(value).expanduser().exists()


def is_move(config: DictConfig, key: str, was: Any, wanted: Any) -> bool:
    """Whether another value of a key is where its data may have moved to; what they are is for their hash to prove."""
    return isinstance(was, str) and is_there(wanted) and is_place(config, key)


@contextmanager
def at_hand(config: DictConfig, run: Run) -> Iterator[DictConfig]:
    """The config of a run with those relative paths made absolute that lead somewhere only from where it began.

    Raises ConfigError, naming both folders, for what is in the block not found from either.
    """
    began, here = run.began_in, Path.cwd()
    raw = OmegaConf.to_container(config, resolve=False)
    config = config.copy()
    for key, value in leaves({node: raw.get(node) for node in NODES}):  # type: ignore[union-attr]
        elsewhere = began and isinstance(value, str) and not is_there(value) and is_there(str(began / value))
        if elsewhere and is_place(config, key):
            OmegaConf.update(config, key, str(began / value))
    try:
        yield config
    except ConfigError as error:
        value = OmegaConf.select(config, error.key) if error.key.startswith(NODES) else None
        relative = isinstance(value, str) and not Path(value).expanduser().is_absolute() and not is_there(value)
        if not relative or began in (None, here):
            raise
        where = f"looked for in {here} and in {began}, where the run began; give its path as {error.key}=PATH"
        raise ConfigError(error.key, f"{error.message} ({where})") from error


def prove(config: DictConfig, folder: Path) -> None:
    """Raises ConfigError where the data of a config are not those that the run in a folder was trained on so far."""
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists():
        data = open_stream(config, construct(config, "dataset"), torch.device("cpu"))
        same_data(read_checkpoint(last), data.fingerprints())


def moved(config: DictConfig, given: Mapping[str, Any]) -> tuple[DictConfig, dict[str, Any]]:
    """The config of a run, with its data where ``given`` says if they are no longer where they were; and what is left.

    What is given for data that are still there are other data, to compare with.
    """
    moves = {key: value for key, value in given.items() if is_move(config, f"dataset.{key}", "", value)}
    try:
        if moves:
            check_targets(Source, OmegaConf.to_container(config.dataset, resolve=True), "dataset")
            construct(config, "dataset")
        return config, dict(given)
    except ConfigError:
        rest = {key: value for key, value in given.items() if key not in moves}
        return OmegaConf.merge(config, {"dataset": moves}), rest  # type: ignore[return-value]
