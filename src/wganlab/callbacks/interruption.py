"""Signals: a run that is asked to stop finishes its step, saves, and can be continued."""

import signal
import threading
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from wganlab import environment, parallel
from wganlab.adversarial import AdversarialModule
from wganlab.callbacks import is_last
from wganlab.callbacks.checkpoints import Checkpoints


class StoppedError(Exception):
    """A signal has ended the run after a whole step. ``exit_code`` is the conventional one: 128 + its number."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(number, what)
        self.number, self.exit_code = number, 128 + number

    def __str__(self) -> str:
        number, what = self.args
        return f"stopped by {signal.Signals(number).name} {what}"


class Interruption(Checkpoint):  # a Checkpoint only so that Lightning calls it last
    """On the first of :func:`wganlab.environment.signals` ends the run after its step; a second SIGINT stops at once.

    A context manager: signals are taken inside the block.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # only there does Python let handlers be set
            self.before = {number: signal.signal(number, self._receive) for number in environment.signals()}
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        # what ends one rank makes torchrun signal the others, while rank zero still says why
        ends = kind is not None and environment.place() is not None
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_IGN if ends else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def on_train_start(self, trainer: Trainer, module: AdversarialModule) -> None:  # type: ignore[override]
        for number in self.before:  # Lightning has put a handler of its own before ours
            signal.signal(number, self._receive)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: AdversarialModule, outputs: None, batch: Tensor, batch_idx: int
    ) -> None:
        if self.received is None or is_last(trainer):
            return
        savers = [callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)]  # type: ignore[attr-defined]
        for saver in savers:
            saver.save(trainer, module)
        saved = "saved" if savers else "not saved: there is no callbacks.checkpoints"
        raise StoppedError(self.received, f"after generator step {trainer.global_step} ({saved})")


class StopTogether(Checkpoint):  # a Checkpoint for the same reason
    """On all ranks: they stop after the step at which a callback of rank zero has asked for it."""

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: AdversarialModule, outputs: None, batch: Tensor, batch_idx: int
    ) -> None:
        trainer.should_stop = parallel.broadcast_flag(trainer.should_stop, module.device)


class IgnoreSignals(Callback):
    """On further ranks: signals are for rank zero, and Lightning has put handlers of its own."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        environment.ignore_signals()
