"""``wganlab train`` and other loops in turns of about a second, in one process: a shared machine slows them alike."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from wganlab import cli
from wganlab.accelerator import keep_freed_memory
from wganlab.data.stream import Batch


def rate(loop: Iterator[int], seconds: float) -> float:
    """Images per second of a loop over at least so many seconds and one generator step."""
    images, started = 0, time.perf_counter()
    while not images or time.perf_counter() - started < seconds:
        images += next(loop)
    return images / (time.perf_counter() - started)


class Turns(Callback):
    """Stops training after every ``seconds``, and lets each of the loops run half as long.

    ``rates`` has the images per second of each turn, by name; pictures, evaluations and checkpoints fall where they
    fall. The first turn is left out: W&B starts beside it.
    """

    #: The one that takes part in training: a config can name it, but not hold the loops.
    current: "Turns"

    def __init__(self, loops: Mapping[str, Iterator[int]], seconds: float) -> None:
        self.loops, self.seconds = loops, seconds
        self.rates: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.images, self.turn, self.started = 0, 0, time.perf_counter()
        self.matmul_precision = torch.get_float32_matmul_precision()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: list[Batch], batch_idx: int
    ) -> None:
        self.images += sum(len(part.images) for part in batch)
        took = time.perf_counter() - self.started
        if took < self.seconds:
            return
        rates = {"wganlab": self.images / took}
        rates |= {name: rate(loop, self.seconds / 2) for name, loop in self.loops.items()}
        self.rates += [rates] if self.turn else []
        torch.set_float32_matmul_precision(self.matmul_precision)  # these two are settings of the process
        keep_freed_memory()
        self.images, self.turn, self.started = 0, self.turn + 1, time.perf_counter()


def current() -> Turns:
    """What a config of callbacks names."""
    return Turns.current


def train_in_turns(
    arguments: Sequence[str], loops: Mapping[str, Iterator[int]], seconds: float = 1.0
) -> list[dict[str, float]]:
    """Images per second of ``wganlab train`` with these arguments, and of the loops, turn by turn.

    Raises SystemExit where the command does.
    """
    Turns.current = Turns(loops, seconds)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        own = ["+callbacks.turns._target_=benchmarks.turns.current", f"hydra.run.dir={folder}/run"]
        with (
            contextlib.redirect_stdout(nowhere),
            mock.patch.object(sys, "argv", ["wganlab", "train", *arguments, *own]),
        ):
            cli.main()
    return Turns.current.rates
