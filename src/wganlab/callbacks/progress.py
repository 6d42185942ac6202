"""Progress of training: a bar on a terminal, elsewhere a plain line every few seconds, and lines for epochs."""

import sys
import time
from typing import Any

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from wganlab.callbacks import is_last
from wganlab.callbacks.history import History

#: Seconds between updates of the bar.
REDRAW = 0.2
#: Seconds between plain lines, and between those for epochs.
LINE = 5.0


class ProgressReport(Callback):
    """Shows generator step, losses, Wasserstein estimate, images/s and time left, from the last logged row.

    An epoch that ends with a row (see :class:`History`) also gets a line with its mean losses; short ones share one.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.bar: Progress | None = None
        self.reported = 0  # rows of the history that belong to epochs already reported

    def state_dict(self) -> dict[str, int]:
        return {"reported": self.reported}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.reported = state_dict["reported"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.started = self.shown = self.epoch_shown = time.perf_counter()
        self.first = trainer.global_step
        self.reported = min(self.reported, len(self.history.rows))  # metrics.csv may have been lost
        if sys.stdout is not None and sys.stdout.isatty():
            columns = (
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                BarColumn(bar_width=None),  # shrinks on a narrow terminal
                TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True)),
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
            )
            console = Console(file=sys.stdout)
            self.bar = Progress(*columns, console=console, auto_refresh=False, expand=True)
            self.task = self.bar.add_task("", total=trainer.max_steps, text="")
            self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, step = time.perf_counter(), trainer.global_step
        last = is_last(trainer)
        if self.history.epoch_ended and (now - self.epoch_shown >= LINE or last):
            self.epoch_shown = now
            self._report_epochs()
        if now - self.shown < (REDRAW if self.bar else LINE) and not last:
            return
        self.shown = now
        if self.bar:
            self.bar.update(self.task, completed=step, text=self._text(), refresh=True)
        else:
            left = (now - self.started) / (step - self.first) * (trainer.max_steps - step)
            print(f"step {step}/{trainer.max_steps}  {self._text()}  {left:.0f} s left", flush=True)

    def _report_epochs(self) -> None:
        """Print the means over the epochs that have ended since the last line: of their rows, weighted by steps."""
        rows = self.history.rows
        before = rows[self.reported - 1]["step"] if self.reported else 0
        steps = np.diff([before, *(row["step"] for row in rows[self.reported :])])
        critic, generator, real, fake = (
            np.average([row[key] for row in rows[self.reported :]], weights=steps)
            for key in ("critic/loss", "generator/loss", "critic/real_score", "critic/fake_score")
        )
        first, last = (round(rows[i]["epoch"]) if i >= 0 else 0 for i in (self.reported - 1, len(rows) - 1))
        self.reported = len(rows)
        epochs = f"epoch {last}" if last - first < 2 else f"epochs {first + 1} to {last}"
        line = (
            f"{epochs}  generator {generator:.2f}  critic {critic:.2f}  scores: real {real:.2f}  fake {fake:.2f}  "
            f"{rows[-1]['seconds'] / 60:.1f} min"
        )
        if self.bar:
            self.bar.console.print(line, highlight=False)
        else:
            print(line, flush=True)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar:
            self.bar.stop()

    def _text(self) -> str:
        if not self.history.rows:
            return ""
        row = self.history.rows[-1]
        return (
            f"critic {row['critic/loss']:.3g}  generator {row['generator/loss']:.3g}  "
            f"W {row['critic/wasserstein_estimate']:.3g}  {row['speed/images_per_second']:,.0f} images/s"
        )
