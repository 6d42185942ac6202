"""Checkpoints: the whole state of a run, from which it continues bit for bit."""

import math
import os
import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from wganlab import parallel
from wganlab.adversarial import AdversarialModule
from wganlab.archive import CHECKPOINT_SCHEMA
from wganlab.callbacks import is_due
from wganlab.metrics import metric_of, objective_of
from wganlab.schema import InvalidValueError
from wganlab.window import MEANS


class Checkpoints(Checkpoint):
    """Writes checkpoints/last.ckpt every so many generator steps and minutes, and best.ckpt at the best ``monitor``.

    That is a column that observers measure, by default ``eval/fid`` where features are scored, else ``eval/emd``; means
    over steps, as losses are, are refused. ``mode`` says which values of ``monitor`` are better: ``min``, ``max``, or
    ``auto``, the direction that :data:`wganlab.metrics.METRICS` gives; of columns without one, lower is better. Every
    ``keep_every`` steps the state is also kept for good, as step_XXXXXXXX.ckpt. One is written before the last step,
    too, whose evaluation may fail: a run that is continued makes that step again.

    Files are written under another name and then renamed, so a checkpoint is always whole. They hold tensors and plain
    containers only and load with ``torch.load(weights_only=True)``. A state that is not finite is never saved.
    """

    # Lightning calls subclasses of its Checkpoint after all other callbacks, so the row of this step is written before.

    def __init__(
        self,
        *,
        every: PositiveInt,
        minutes: PositiveFloat | None = 10.0,
        keep_every: PositiveInt | None = None,
        monitor: str | None = None,
        mode: Literal["auto", "min", "max"] = "auto",
    ) -> None:
        if monitor in MEANS:
            allowed = "is a mean over many steps, of no single state; allowed is what observers measure, as eval/emd"
            raise InvalidValueError("monitor", monitor, allowed)
        self.every, self.minutes, self.keep_every, self.monitor = every, minutes, keep_every, monitor
        self.sign = {"min": 1, "max": -1, "auto": metric_of(monitor or "").sign}[mode]
        self.best: float | None = None
        self.random: dict[str, Any] | None = None
        self.saved = 0

    def on_train_start(self, trainer: Trainer, module: AdversarialModule) -> None:  # type: ignore[override]
        self.time, self.saved = time.monotonic(), trainer.global_step
        if self.random:
            restore_random_state(self.random)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: AdversarialModule, outputs: None, batch: Tensor, batch_idx: int
    ) -> None:
        improved = self._improves(self._monitored(module.observed))
        late = self.minutes is not None and time.monotonic() - self.time > 60 * self.minutes
        kept = self.keep_every is not None and trainer.global_step % self.keep_every == 0
        last_but_one = trainer.global_step == trainer.max_steps - 1
        if improved or late or kept or last_but_one or is_due(trainer, self.every):
            self.save(trainer, module, best=improved, keep=kept)

    def _monitored(self, observed: Mapping[str, float]) -> float | None:
        """The value of the monitor, where it was observed at this step."""
        if self.monitor is not None:
            return observed.get(self.monitor)
        objective = objective_of(observed)
        return objective and objective[1]

    def _improves(self, value: float | None) -> bool:
        """Whether a value of the monitor is the best one so far, and remember it then."""
        if value is None or not math.isfinite(value):
            return False
        improved = self.best is None or self.sign * value < self.sign * self.best
        self.best = value if improved else self.best
        return improved

    def save(self, trainer: Trainer, module: AdversarialModule, *, best: bool = False, keep: bool = False) -> None:
        """Write last.ckpt on rank 0, and the same as best.ckpt and for good; nothing when the state is not finite."""
        if not parallel.is_rank_zero():
            return
        state = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
        if not all(torch.isfinite(tensor).all() for tensor in state):
            return
        folder = Path(trainer.default_root_dir, "checkpoints")
        part = folder / "checkpoint.part"
        names = ["best"] * best + [f"step_{trainer.global_step:08d}"] * keep
        try:
            trainer.save_checkpoint(part)
            for name in names:
                shutil.copyfile(part, folder / f"{name}.part")
                os.replace(folder / f"{name}.part", folder / f"{name}.ckpt")
            os.replace(part, folder / "last.ckpt")
        except RuntimeError as error:  # torch's word for a full disk
            raise OSError(f"{folder} cannot be written: {' '.join(str(error).split())}") from error
        finally:
            for path in folder.glob("*.part"):
                path.unlink()
        self.time, self.saved = time.monotonic(), trainer.global_step

    def on_train_end(self, trainer: Trainer, module: AdversarialModule) -> None:  # type: ignore[override]
        if self.best is None and parallel.is_rank_zero():
            monitor = self.monitor or "eval/fid, eval/emd"
            print(f"callbacks.checkpoints.monitor={monitor} was never observed: there is no best.ckpt", flush=True)

    def on_save_checkpoint(self, trainer: Trainer, module: AdversarialModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        checkpoint["wganlab"] = {
            "schema": CHECKPOINT_SCHEMA,
            "threads": torch.get_num_threads(),
            "ranks": parallel.world_size(),
            "random": random_state(),
        }

    def on_load_checkpoint(self, trainer: Trainer, module: AdversarialModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        self.random = checkpoint["wganlab"]["random"]

    def state_dict(self) -> dict[str, float]:
        return {"best": math.inf if self.best is None else self.best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.best = state_dict["best"] if math.isfinite(state_dict["best"]) else None


def random_state() -> dict[str, Any]:
    """All global random number generators, in tensors and plain containers."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],  # of the device in use
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set all global generators to a state that :func:`random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
    if state.get("mps") and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"][0])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
