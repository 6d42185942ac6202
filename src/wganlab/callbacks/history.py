"""metrics.csv: what happened, a row per logged generator step."""

import csv
import math
import time
from pathlib import Path

from pydantic import PositiveInt
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from wganlab.adversarial import AdversarialModule
from wganlab.callbacks import is_due

#: The columns of metrics.csv; what an observer adds beyond them stands after.
COLUMNS = [
    "step",
    "images_seen",
    "epoch",
    "seconds",
    "speed/images_per_second",
    "critic/loss",
    "critic/wasserstein_estimate",
    "critic/penalty",
    "critic/real_score",
    "critic/fake_score",
    "critic/gradient_norm",
    "critic/weights_at_bound",
    "generator/loss",
    "eval/emd",
    "eval/emd_real",
]


class History(Callback):
    """Writes a row to metrics.csv, and to every logger, every so many generator steps and whenever something was
    observed in between.

    An epoch that is longer than that ends with a row, too. Training metrics are means over the steps since the row
    before. ``images_seen`` counts real images seen by the critic, ``epoch`` passes over the data set (less its last
    partial batch; none of an endless one), ``seconds`` the time since training began.
    Raises FloatingPointError after a row whose losses are not finite.
    """

    def __init__(self, *, every: PositiveInt) -> None:
        self.every = every
        self.rows: list[dict[str, float]] = []
        self.epoch_ended = False  # at the current step, with a row of its own

    def on_train_start(self, trainer: Trainer, module: AdversarialModule) -> None:  # type: ignore[override]
        self.path = Path(trainer.default_root_dir, "metrics.csv")
        self.columns = list(COLUMNS)
        self.started = self.last_time = time.perf_counter()
        self.last_images = 0
        with open(self.path, "w", newline="") as file:
            csv.writer(file).writerow(self.columns)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: AdversarialModule, outputs: None, batch: Tensor, batch_idx: int
    ) -> None:
        per_epoch = trainer.train_dataloader.batches_per_epoch  # type: ignore[union-attr]
        step, n_critic, batch_size = trainer.global_step, *batch.shape[:2]
        if not (
            module.observed or is_due(trainer, self.every) or self._ends_epoch(step * n_critic, n_critic, per_epoch)
        ):
            return
        now, images = time.perf_counter(), step * n_critic * batch_size
        row = {
            "step": step,
            "images_seen": images,
            **({"epoch": step * n_critic / per_epoch} if per_epoch else {}),
            "seconds": now - self.started,
            "speed/images_per_second": (images - self.last_images) / (now - self.last_time),
            **module.window_means(),
            **module.observed,
        }
        self.last_time, self.last_images = now, images
        module.observed.clear()
        self.rows.append(row)
        self._write(row)
        for key in ("critic/loss", "generator/loss"):
            if not math.isfinite(row[key]):
                raise FloatingPointError(f"{key} is {row[key]} at generator step {row['step']}: training has diverged")
        for logger in trainer.loggers:
            logger.log_metrics({key: row[key] for key in row if key != "step"}, step=trainer.global_step)

    def _ends_epoch(self, batches: int, n_critic: int, per_epoch: int | None) -> bool:
        """Whether this step has seen the end of an epoch that is longer than the steps between rows."""
        if not per_epoch or per_epoch < self.every * n_critic:
            return False
        return batches // per_epoch > (batches - n_critic) // per_epoch

    def _write(self, row: dict[str, float]) -> None:
        new = [key for key in row if key not in self.columns]
        if new:  # a user's observer: rewrite the file under a longer header
            self.columns += new
            with open(self.path, newline="") as file:
                old = list(csv.DictReader(file))
            with open(self.path, "w", newline="") as file:
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows(old)
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)
