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

    Training metrics are means over the steps since the row before. ``images_seen`` counts real images seen by the
    critic, ``epoch`` passes over the data set (less its last partial batch), ``seconds`` the time since training began.
    Raises FloatingPointError after a row whose losses are not finite.
    """

    def __init__(self, *, every: PositiveInt) -> None:
        self.every = every
        self.rows: list[dict[str, float]] = []

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
        if not (module.observed or is_due(trainer, self.every)):
            return
        now, images = time.perf_counter(), trainer.global_step * batch.shape[0] * batch.shape[1]
        row = {
            "step": trainer.global_step,
            "images_seen": images,
            "epoch": trainer.global_step * batch.shape[0] / trainer.train_dataloader.batches_per_epoch,  # type: ignore[union-attr]
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
