"""The training loop: who updates when. It knows no method by name."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from wganlab.data.stream import to_unit_range
from wganlab.lipschitz import Unconstrained
from wganlab.objectives import Objective

Latent = Literal["normal", "uniform"]


def sample_latents(
    n: int,
    latent_dim: int,
    distribution: Latent,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Latents of shape (n, latent_dim): standard normal, or uniform in [-1, 1)."""
    if distribution == "normal":
        return torch.randn(n, latent_dim, device=device, dtype=dtype, generator=generator)
    return torch.rand(n, latent_dim, device=device, dtype=dtype, generator=generator) * 2 - 1


class AdversarialModule(LightningModule):
    """Alternates ``n_critic`` critic steps, each on fresh real images, with one generator step.

    ``training_step`` receives real images as stored, shape (n_critic, batch, *shape), and makes one generator
    step: the unit of time. ``trainer.global_step`` counts generator steps. ``optimizer`` holds, under
    "generator" and "critic", what makes an optimizer from a network's parameters.

    ``shape`` is that of one sample, noted in checkpoints. ``observed`` collects what observers measured at the
    current step; :meth:`window_means` yields the training metrics averaged since the last call.
    """

    def __init__(
        self,
        *,
        generator: nn.Module,
        critic: nn.Module,
        objective: Objective,
        lipschitz: Unconstrained,
        optimizer: Mapping[str, Any],
        n_critic: PositiveInt,
        latent_dim: PositiveInt,
        latent: Latent = "normal",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = generator, critic
        self.objective, self.lipschitz = objective, lipschitz
        self.make_optimizer = optimizer
        self.n_critic, self.latent_dim, self.latent = n_critic, latent_dim, latent
        self.shape: tuple[int, ...] = ()
        self.observed: dict[str, float] = {}
        self._critic_window: list[tuple[Tensor, ...]] = []
        self._generator_window: list[Tensor] = []

    def configure_optimizers(self) -> list[Optimizer]:
        return [self.make_optimizer[name](getattr(self, name).parameters()) for name in ("generator", "critic")]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["shape"] = list(self.shape)  # so that the generator can be built without the data set

    def latents(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Latents of shape (n, latent_dim) on the module's device; observers pass a generator of their own."""
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "generator": generator}
        return sample_latents(n, self.latent_dim, self.latent, **options)

    def scaled(self, real: Tensor) -> Tensor:
        """Real images as stored, in [-1, 1] and in the precision of the networks."""
        return to_unit_range(real, self.dtype)  # type: ignore[arg-type]

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        generator_optimizer, critic_optimizer = self.optimizers()  # type: ignore[attr-defined]
        # Lightning counts every optimizer's steps as global steps: silence the critic's, so that the trainer,
        # its checkpoints and its loggers all count generator steps.
        critic_optimizer._on_before_step = critic_optimizer._on_after_step = lambda: None
        for real in self.scaled(batch):
            self.critic_step(real, critic_optimizer)
        self.generator_step(batch.shape[1], generator_optimizer)

    def critic_step(self, real: Tensor, optimizer: Any) -> None:
        """One step of the critic on real images (batch, *shape) and as many generated ones."""
        with torch.no_grad():  # the critic's loss is no business of the generator
            fake = self.generator(self.latents(len(real)))
        real_scores, fake_scores = self.critic(real), self.critic(fake)
        penalty = self.lipschitz.penalty(self.critic, real, fake)
        loss = self.objective.critic_loss(real_scores, fake_scores) + penalty
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.lipschitz.project(self.critic)
        self._critic_window.append(
            (loss.detach(), penalty.detach(), real_scores.detach().mean(), fake_scores.detach().mean())
        )

    def generator_step(self, batch_size: int, optimizer: Any) -> None:
        """One step of the generator on ``batch_size`` fresh latents."""
        self.critic.requires_grad_(False)  # gradients flow through the critic, not into its weights
        loss = self.objective.generator_loss(self.critic(self.generator(self.latents(batch_size))))
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.critic.requires_grad_(True)
        self._generator_window.append(loss.detach())

    def window_means(self) -> dict[str, float]:
        """Training metrics averaged over all steps since the last call (one transfer from the device).

        ``critic/wasserstein_estimate`` is the gap between mean real and mean fake score: the W1 distance times
        the critic's Lipschitz constant at best, and not comparable between constraints that leave it free.
        """
        loss, penalty, real, fake = (
            torch.stack([torch.stack(values) for values in zip(*self._critic_window, strict=True)]).mean(1).tolist()
        )
        generator_loss = torch.stack(self._generator_window).mean().item()
        self._critic_window, self._generator_window = [], []
        return {
            "critic/loss": loss,
            "critic/wasserstein_estimate": real - fake,
            "critic/penalty": penalty,
            "critic/real_score": real,
            "critic/fake_score": fake,
            "generator/loss": generator_loss,
        }
