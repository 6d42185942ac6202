"""Observers: they look at training and never change it (random numbers come from generators of their own)."""

from collections.abc import Iterator
from contextlib import contextmanager

from pytorch_lightning import Trainer
from torch import nn


def is_due(trainer: Trainer, every: int) -> bool:
    """Whether something done ``every`` so many generator steps is due now; always after the last step."""
    return trainer.global_step % every == 0 or trainer.global_step == trainer.max_steps


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Networks in inference mode for a while: running statistics are used and not moved, dropout is off."""
    before = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, training in zip(networks, before, strict=True):
            network.train(training)
