"""metrics.csv: a row of metrics per logged generator step."""

import csv
import io
import time
from pathlib import Path

from pydantic import PositiveInt
from pytorch_lightning import Callback, Trainer

from wganlab.adversarial import AdversarialModule
from wganlab.callbacks import is_due, is_foreign
from wganlab.callbacks.divergence import divergence
from wganlab.data.stream import Batch, BatchStream
from wganlab.files import write_text
from wganlab.metrics import METRICS
from wganlab.runs import read_metrics

#: The columns of every metrics.csv; what an observer adds beyond them stands after.
COLUMNS = ["step", "images_seen", "epoch", "seconds", "speed/images_per_second"]
COLUMNS += [name for name, metric in METRICS.items() if metric.always]


def tell_others(trainer: Trainer, module: AdversarialModule, metrics: dict[str, float]) -> None:
    """Put a row into ``trainer.callback_metrics`` for callbacks that are not wganlab's, and say when it has scores.

    To them an evaluation is a validation: EarlyStopping and ModelCheckpoint do after it what their documentation says.
    That takes Lightning 3 ms a row, which runs without such callbacks are spared.
    """
    others = [one for one in trainer.callbacks if is_foreign(one)]  # type: ignore[attr-defined]
    if not others:
        return
    module.log_dict(metrics, logger=False, batch_size=1)
    if any(name.startswith("eval/") for name in metrics):
        for one in others:
            one.on_validation_end(trainer, module)


class History(Callback):
    """Writes a row to metrics.csv and to every logger, every ``every`` generator steps and after each observation.

    An epoch of more than ``every`` steps ends with a row, too. Training metrics are means over the steps since the last
    row. ``images_seen`` counts the real images that the critic has seen, ``epoch`` its passes over the data set
    (empty for endless data), ``seconds`` the time since training began.
    Raises FloatingPointError, after a last row, at a step whose losses or gradients are not finite.
    When a run is continued, rows after its checkpoint are removed; training writes them again.
    """

    def __init__(self, *, every: PositiveInt) -> None:
        self.every = every
        self.rows: list[dict[str, float]] = []
        self.last_images = 0  # seen up to the last row
        self.seconds = (0.0, 0.0)  # of training before this process, in all and since the last row
        self.epoch_ended = False  # at the current step, with a row of its own

    def on_train_start(self, trainer: Trainer, module: AdversarialModule) -> None:  # type: ignore[override]
        now = time.perf_counter()
        self.started, self.last_time = now - self.seconds[0], now - self.seconds[1]
        self._rewrite(self.restore(Path(trainer.default_root_dir), trainer.global_step))

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, module: AdversarialModule, batch: list[Batch], batch_idx: int
    ) -> None:
        module.observed.clear()  # observations of the last step

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: AdversarialModule, outputs: None, batch: list[Batch], batch_idx: int
    ) -> None:
        stream: BatchStream = trainer.train_dataloader  # type: ignore[assignment]
        per_epoch = stream.batches_per_epoch
        step = trainer.global_step
        self.epoch_ended = self._ends_epoch(stream.batches, len(batch), per_epoch)
        diverged = divergence(trainer, module, self.every)
        if not (diverged or module.observed or self.epoch_ended or is_due(trainer, self.every)):
            return
        now, images = time.perf_counter(), stream.images_seen
        row = {
            "step": step,
            "images_seen": images,
            **({"epoch": stream.batches / per_epoch} if per_epoch else {}),
            "seconds": now - self.started,
            "speed/images_per_second": (images - self.last_images) / (now - self.last_time),
            **module.window_means(),
            **module.observed,
        }
        self.last_time, self.last_images = now, images
        self.rows.append(row)
        self._write(row)
        if diverged:
            raise FloatingPointError(diverged)
        metrics = {key: row[key] for key in row if key != "step"}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        tell_others(trainer, module, metrics)

    def _ends_epoch(self, batches: int, critic_steps: int, per_epoch: int | None) -> bool:
        """Whether an epoch of more than ``every`` steps ends within this step."""
        if not per_epoch or per_epoch < self.every * critic_steps:
            return False
        return batches // per_epoch > (batches - critic_steps) // per_epoch

    def state_dict(self) -> dict[str, float]:
        now = time.perf_counter()
        return {"seconds": now - self.started, "since_row": now - self.last_time, "images": self.last_images}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.seconds = (state_dict["seconds"], state_dict["since_row"])
        self.last_images = int(state_dict["images"])

    def restore(self, folder: Path, step: int) -> list[dict[str, str]]:
        """Read the rows that an earlier process wrote up to a step; returns their cells as written."""
        self.path = folder / "metrics.csv"
        kept: list[dict[str, str]] = []
        self.rows, self.columns = [], list(COLUMNS)
        if step and self.path.exists():
            for found in read_metrics(self.path):
                if found is None:
                    continue  # torn by a full disk
                cells, row = found
                if row["step"] <= step:
                    kept.append(cells)
                    self.rows.append(row)
                    self.columns = list(dict.fromkeys([*self.columns, *cells]))
        return kept

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        """Write metrics.csv again, atomically."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())

    def _write(self, row: dict[str, float]) -> None:
        new = [key for key in row if key not in self.columns]
        if new:  # a user's observer: rewrite the file under a longer header
            self.columns += new
            self._rewrite([found[0] for found in read_metrics(self.path) if found])
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)
