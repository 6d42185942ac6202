"""How far the generator's images are from real ones, by the same protocol for every method."""

import torch
from pydantic import PositiveInt
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from wganlab.adversarial import AdversarialModule
from wganlab.callbacks import is_due
from wganlab.distances import wasserstein
from wganlab.networks.layers import evaluating


class Evaluation(Callback):
    """``eval/emd``: exact earth mover's distance between n generated and n real images, every so many steps.

    The real images and the latents are the same at every step and for every method and seed. ``eval/emd_real``
    is the distance between those n real images and n others: what a perfect generator would score, though not
    a lower bound, since blurred images are closer to everything. Images closer to real ones in pixels need not
    look better.
    """

    def __init__(self, *, every: PositiveInt, n: PositiveInt = 512) -> None:
        self.every, self.n = every, n

    def on_train_start(self, trainer: Trainer, module: AdversarialModule) -> None:  # type: ignore[override]
        samples = module.scaled(trainer.train_dataloader.reference(2 * self.n))  # type: ignore[union-attr]
        self.real, others = samples.split(len(samples) // 2)[:2]
        self.real_distance = wasserstein(self.real, others)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: AdversarialModule, outputs: None, batch: Tensor, batch_idx: int
    ) -> None:
        if not is_due(trainer, self.every):
            return
        private = torch.Generator(module.device).manual_seed(0)
        with evaluating(module.generator), torch.no_grad():
            fake = module.generator(module.latents(len(self.real), generator=private))
        module.observed["eval/emd"] = wasserstein(fake, self.real)
        module.observed["eval/emd_real"] = self.real_distance
