"""Observers: they look at training and never change it (random numbers come from generators of their own)."""

from pytorch_lightning import Callback, Trainer


def is_last(trainer: Trainer) -> bool:
    """Whether this generator step is the last: the budget is spent, or a callback has asked for a stop."""
    return trainer.global_step == trainer.max_steps or trainer.should_stop


def is_due(trainer: Trainer, every: int) -> bool:
    """Whether something done ``every`` so many generator steps is due now; always after the last step."""
    return trainer.global_step % every == 0 or is_last(trainer)


def is_foreign(callback: Callback) -> bool:
    """Whether a callback is none of wganlab's."""
    return not type(callback).__module__.startswith("wganlab.")


def is_lightnings(callback: Callback) -> bool:
    """Whether a callback is one of Lightning's own, such as EarlyStopping."""
    return type(callback).__module__.startswith(("pytorch_lightning.", "lightning."))
