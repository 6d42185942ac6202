"""What the critic looks like from outside: its slopes and its weights."""

import torch
from pydantic import PositiveInt
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from wganlab.adversarial import AdversarialModule
from wganlab.callbacks import is_due
from wganlab.lipschitz import critic_weights, interpolate, slopes
from wganlab.networks.layers import evaluating


class CriticDiagnostics(Callback):
    """``critic/gradient_norm`` and ``critic/weights_at_bound``, every so many generator steps, for every method.

    The first is the mean slope of the critic at random interpolates between real and generated images (1 is what the
    gradient penalty aims at), measured in inference mode, at 64 where each is scored by itself; the second the share of
    weights at the bound.
    Every ``histograms_every`` steps, loggers that can show them receive a histogram of each layer's weights.
    """

    def __init__(self, *, every: PositiveInt, histograms_every: PositiveInt = 500) -> None:
        self.every, self.histograms_every = every, histograms_every

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: AdversarialModule, outputs: None, batch: Tensor, batch_idx: int
    ) -> None:
        if is_due(trainer, self.every):
            n = 64 if getattr(module.critic, "one_by_one", False) else len(batch[-1])
            self._measure(trainer, module, module.scaled(batch[-1, :n]))
        if is_due(trainer, self.histograms_every):
            self._log_histograms(trainer, module)

    def _measure(self, trainer: Trainer, module: AdversarialModule, real: Tensor) -> None:
        private = torch.Generator(module.device).manual_seed(trainer.global_step)
        with evaluating(module.generator, module.critic), torch.no_grad():
            fake = module.generator(module.latents(len(real), generator=private))
            points = interpolate(real, fake, generator=private)
            module.observed["critic/gradient_norm"] = slopes(module.critic, points).mean().item()
        weights = torch.cat([weight.detach().flatten() for weight in critic_weights(module.critic).values()])
        module.observed["critic/weights_at_bound"] = (weights.abs() >= module.lipschitz.bound).float().mean().item()

    def _log_histograms(self, trainer: Trainer, module: AdversarialModule) -> None:
        takers = [logger for logger in trainer.loggers if hasattr(logger, "log_histogram")]
        for name, weight in critic_weights(module.critic).items() if takers else ():
            if not torch.isfinite(weight).all():
                continue
            key = f"critic/weights/{name.replace('.', '/')}"  # to W&B a dot is a key inside a key
            counts, edges = torch.histogram(weight.detach().float().cpu().flatten(), bins=64)
            for logger in takers:
                logger.log_histogram(key, counts.tolist(), edges.tolist(), trainer.global_step)
