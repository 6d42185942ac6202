"""Observers: they look at training and never change it (random numbers come from generators of their own)."""

from pytorch_lightning import Trainer


def is_due(trainer: Trainer, every: int) -> bool:
    """Whether something done ``every`` so many generator steps is due now; always after the last step."""
    return trainer.global_step % every == 0 or trainer.global_step == trainer.max_steps
