"""Checkpoints: the last state of a run and its best one."""

import os
import shutil
from pathlib import Path

import torch
from pydantic import PositiveInt
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from wganlab.adversarial import AdversarialModule
from wganlab.callbacks import is_due


class Checkpoints(Callback):
    """checkpoints/last.ckpt every so many generator steps, best.ckpt whenever ``monitor`` reaches a new minimum.

    Files are written aside and renamed, so what stands under these names is always whole; they hold tensors and
    plain containers only and load with ``torch.load(weights_only=True)``.
    """

    def __init__(self, *, every: PositiveInt, monitor: str = "eval/emd") -> None:
        self.every, self.monitor = every, monitor
        self.best = float("inf")

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: AdversarialModule, outputs: None, batch: Tensor, batch_idx: int
    ) -> None:
        value = module.observed.get(self.monitor, float("inf"))
        improved = value < self.best
        self.best = min(value, self.best)
        if not (improved or is_due(trainer, self.every)):
            return
        if not all(torch.isfinite(parameter).all() for parameter in module.parameters()):
            return  # a diverged state is not worth the last good one
        folder = Path(trainer.default_root_dir, "checkpoints")
        part = folder / "checkpoint.part"
        trainer.save_checkpoint(part)
        if improved:
            shutil.copyfile(part, folder / "best.part")
            os.replace(folder / "best.part", folder / "best.ckpt")
        os.replace(part, folder / "last.ckpt")

    def on_train_end(self, trainer: Trainer, module: AdversarialModule) -> None:  # type: ignore[override]
        if self.best == float("inf"):
            print(f"callbacks.checkpoints.monitor={self.monitor} was never observed: there is no best.ckpt", flush=True)

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.best = state_dict["best"]
