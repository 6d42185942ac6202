"""The critic's gradients and weights, measured during training."""

import torch
from pydantic import PositiveInt
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from wganlab.adversarial import AdversarialModule
from wganlab.callbacks import is_due
from wganlab.data.stream import Batch, BatchStream
from wganlab.metrics import critic as of
from wganlab.networks.layers import evaluation_mode
from wganlab.regularizers import critic_weights, gradient_norms, interpolate

#: Real points, and generated ones, between which the exact distance is taken.
POINTS = 1024


class CriticDiagnostics(Callback):
    """``critic/gradient_norm`` and ``critic/weights_at_bound``, every so many generator steps, for every method.

    The first is the mean norm of the critic's gradient at random interpolates between real and generated images (1 is
    what the gradient penalty aims at), measured in evaluation mode, at 64 where each is scored by itself; the second
    the share of weights at the bound.
    Every ``histograms_every`` steps, loggers that can show them receive a histogram of each layer's weights.

    ``detailed`` adds what costs more than a fiftieth of training, where ``every`` is small:

    - ``critic/slope_real``, ``critic/slope_fake``: mean gradient norm there; ``critic/slope_sd``: its spread at the
      interpolates, whose histogram goes to the loggers;
    - ``critic/lipschitz_lower``, ``critic/lipschitz_upper``: between them is its Lipschitz constant;
      ``critic/estimate_per_lipschitz``: the Wasserstein estimate over the first, at most about W1 where that is tight;
    - ``critic/gradient_growth``: of the gradient over the layers, and ``critic/layer_gradient/LAYER``,
      ``critic/layer_at_bound/LAYER``: each layer's gradient norm and share of weights at the bound;
    - of points, ``critic/potential_correlation``: with the best critic, the exact Kantorovich potential between 1,024
      real and 1,024 generated ones; ``critic/distance_found``: the share of their exact W1 that the critic finds, over
      its Lipschitz constant;
    - where samples are held out, ``critic/heldout_loss`` and ``critic/training_loss``: the critic's loss without
      penalty on as many samples of either kind, against the same generated ones; and ``critic/overfitting``, the share
      of its Wasserstein estimate that is gone on held-out samples (WGAN-GP, arXiv 1704.00028, figure 5).
    """

    def __init__(self, *, every: PositiveInt, histograms_every: PositiveInt = 500, detailed: bool = False) -> None:
        self.every, self.histograms_every, self.detailed = every, histograms_every, detailed

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: AdversarialModule, outputs: None, batch: list[Batch], batch_idx: int
    ) -> None:
        if is_due(trainer, self.every):
            images, labels = batch[-1][:2]
            n = 64 if getattr(module.critic, "samplewise", False) and not self.detailed else len(images)
            self._measure(trainer, module, Batch(module.scaled(images[:n]), None if labels is None else labels[:n]))
        if is_due(trainer, self.histograms_every):
            for name, weight in critic_weights(module.critic).items():
                log_histogram(trainer, f"critic/weights/{name.replace('.', '/')}", weight)

    def _measure(self, trainer: Trainer, module: AdversarialModule, batch: Batch) -> None:
        private = torch.Generator(module.device).manual_seed(trainer.global_step)
        real, critic = batch.images, module.scorer(batch.labels, augmented=False)
        with evaluation_mode(module.generator, critic), torch.no_grad():
            fake = module.fake(module.latents(len(real), generator=private), batch.labels)
            points = interpolate(real, fake, generator=private)
            norms = gradient_norms(critic, points)
            module.observed["critic/gradient_norm"] = norms.mean().item()
            if self.detailed:
                log_histogram(trainer, "critic/gradient_norms", norms)
                if len(norms) > 1:
                    module.observed["critic/slope_sd"] = norms.std().item()
                module.observed |= of.critic_report(
                    critic, module.loss.objective, real, fake, points, module.loss.bound
                )
                module.observed |= overfitting(trainer, module)
                if real.dim() == 2 and batch.labels is None:
                    stream: BatchStream = trainer.train_dataloader  # type: ignore[assignment]
                    real = module.scaled(stream.fixed_samples(POINTS))
                    fake = module.fake(module.latents(POINTS, generator=private), None)
                    module.observed |= of.optimality(critic, real, fake)
        weights = torch.cat([weight.detach().flatten() for weight in critic_weights(module.critic).values()])
        module.observed["critic/weights_at_bound"] = (weights.abs() >= module.loss.bound).float().mean().item()


def overfitting(trainer: Trainer, module: AdversarialModule) -> dict[str, float]:
    """The critic, in evaluation mode, on samples that it has not been trained on; empty where none are held out."""
    stream: BatchStream = trainer.train_dataloader  # type: ignore[assignment]
    if not stream.holds_out:
        return {}

    def scores(images: Tensor, labels: Tensor | None) -> Tensor:
        return module.scorer(labels, augmented=False)(images)

    n = min(POINTS, len(stream.samples))  # as many of either kind
    held_out, labels = stream.fixed_held_out(n)
    n = len(held_out)
    private = torch.Generator(module.device).manual_seed(trainer.global_step)
    fake = scores(module.fake(module.latents(n, generator=private), labels), labels)
    unseen = scores(module.scaled(held_out), labels)
    seen = scores(module.scaled(stream.fixed_samples(n)), stream.fixed_labels(n))
    estimate = (seen.mean() - fake.mean()).item()
    return {
        "critic/heldout_loss": module.loss.objective.critic_loss(unseen, fake).item(),
        "critic/training_loss": module.loss.objective.critic_loss(seen, fake).item(),
        "critic/overfitting": (seen.mean() - unseen.mean()).item() / estimate if estimate else 0.0,
    }


def log_histogram(trainer: Trainer, key: str, values: Tensor) -> None:
    """Hand a histogram to the loggers that can show one; nothing for values that are not finite."""
    takers = [logger for logger in trainer.loggers if hasattr(logger, "log_histogram")]
    if not takers or not torch.isfinite(values).all():
        return
    counts, edges = torch.histogram(values.detach().float().cpu().flatten(), bins=64)
    for logger in takers:
        logger.log_histogram(key, counts.tolist(), edges.tolist(), trainer.global_step)
