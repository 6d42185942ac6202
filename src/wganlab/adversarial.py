"""The training loop: Algorithm 1 of the papers. It knows no method by name.

:mod:`wganlab.alternation` holds other orders in which the two networks are updated.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from wganlab import parallel
from wganlab.augmentation import Augmentation
from wganlab.averaging import Averaging
from wganlab.contracts import Latent, Loss, critic_steps
from wganlab.data.stream import Batch
from wganlab.networks.layers import at_least_fp32
from wganlab.pair import Pair
from wganlab.window import Record, Window

Gradients = Sequence[Tensor | None]


class AdversarialModule(Pair):
    """Alternates ``n_critic`` critic steps, each on fresh real images, with one generator step on fresh latents.

    ``training_step`` receives the real images of one generator step, the unit of time: ``trainer.global_step`` counts
    generator steps. ``observed`` collects what observers measured at the current step; :meth:`window_means` yields the
    training metrics averaged since the last call. ``compiled`` holds, by network and active regularizers, functions
    that stand in for the gradients of its objective.
    """

    #: Whether the two objectives say all that is differentiated, so that they can be compiled.
    compilable = True
    #: Whether the generator is trained, and there is one to sample from afterwards.
    trains_generator = True
    #: Whether it wants to know which samples of the data set are in a batch.
    numbers_samples = False

    def __init__(
        self,
        *,
        generator: nn.Module,
        critic: nn.Module,
        latent_dim: PositiveInt,
        latent: Latent = "normal",
        loss: Loss,
        averaging: Averaging | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(
            generator, critic, latent_dim=latent_dim, latent=latent, averaging=averaging, augmentation=augmentation
        )
        self.automatic_optimization = False
        self.loss = loss
        #: Parts of the loss that hold state: in checkpoints, and on the device.
        self.loss_parts = nn.ModuleDict(
            {name: part for name, part in loss.parts.items() if isinstance(part, nn.Module)}
        )
        self.critic_steps = critic_steps(loss.n_critic, loss.warmup)
        self.critic_step_count = 0
        #: Whether batches are to have labels.
        self.labelled = any(self.conditional.values()) or loss.classification is not None
        self.observed: dict[str, float] = {}
        self.scaler: Any = None  # of fp16 losses
        self.compiled: dict[tuple[str, tuple[str, ...]], Callable[..., tuple[Gradients, Record]]] = {}
        self.window = Window()

    def make_optimizers(self) -> dict[str, Optimizer]:
        """The optimizers of generator and critic, by name and in this order."""
        return {name: self.loss.optimizer[name](getattr(self, name).parameters()) for name in ("generator", "critic")}

    def configure_optimizers(self) -> Any:
        optimizers = self.make_optimizers()
        in_order = list(optimizers.values())
        if not self.loss.schedule:
            return in_order
        return in_order, [make(optimizers[name]) for name, make in self.loss.schedule.items()]

    def on_fit_start(self) -> None:
        self.scaler = getattr(self.trainer.precision_plugin, "scaler", None)

    def on_train_start(self) -> None:
        parallel.broadcast(self.parameters())  # the same already, but where machines differ

    def transfer_batch_to_device(self, batch: list[Batch], device: torch.device, dataloader_idx: int) -> list[Batch]:
        return batch  # the stream has sent it

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["shape"] = list(self.shape)  # so that the generator can be built without the data set
        if self.columns is not None:
            checkpoint["columns"] = [list(self.columns.names), self.columns.shift, self.columns.scale]
        checkpoint.update(self.fingerprints)
        if self.labels is not None and self.conditional["generator"]:
            checkpoint["classes"] = list(self.classes)
        checkpoint["window"] = self.window.state()
        checkpoint["critic_steps"] = self.critic_step_count
        checkpoint["images_seen"] = self.trainer.train_dataloader.images_seen  # type: ignore[union-attr]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        n_critic = self.loss.n_critic
        device = self.trainer.strategy.root_device  # to which Lightning has not sent the module yet
        self.window = Window.restored(checkpoint["window"], n_critic=n_critic, device=device)
        # version 1 did not count, for it had no other number of critic steps than n_critic
        self.critic_step_count = checkpoint.get("critic_steps", checkpoint["global_step"] * n_critic)

    def critic_latents(self, real: Batch) -> Tensor:
        """Latents of the critic step on ``real``."""
        return self.latents(len(real.images))

    def generator_latents(self, last: Tensor) -> Tensor:
        """Latents of the generator step, given those of the critic step before it."""
        return self.latents(len(last))

    def generator_labels(self, real: Batch) -> Tensor | None:
        """Labels of the generator step: drawn, or those of the real images that its loss compares with."""
        return real.labels if self.loss.pairs else real.drawn

    def training_step(self, batches: list[Batch], batch_idx: int) -> None:
        generator_optimizer, critic_optimizer = self.optimizers()  # type: ignore[attr-defined]
        # Lightning counts every step of its optimizers as a global step: with the critic's out of its sight, the
        # trainer, its checkpoints and its loggers all count generator steps.
        if self.scaler is None:
            critic_optimizer = critic_optimizer.optimizer
        else:
            critic_optimizer._on_before_step = critic_optimizer._on_after_step = lambda: None
        parallel.broadcast(self.buffers())  # running statistics, of which the first rank's are saved
        scaled = [batch._replace(images=self.scaled(batch.images)) for batch in batches]
        self.alternate(scaled, generator_optimizer, critic_optimizer)
        self.window.end_step(len(batches))
        if self.loss.schedule:
            schedules = self.lr_schedulers()
            for schedule in schedules if isinstance(schedules, list) else [schedules]:
                schedule.step()  # type: ignore[union-attr]
        if self.averaging is not None:
            self.averaging.update(self.generator, self.trainer.train_dataloader.images_seen)  # type: ignore[union-attr]

    def alternate(self, batches: Sequence[Batch], generator_optimizer: Any, critic_optimizer: Any) -> None:
        """All updates of one generator step, on a batch of real images in [-1, 1] for each critic step."""
        for real in batches:
            latents = self.critic_latents(real)
            self.critic_step(real, latents, critic_optimizer)
        self.generator_step(real, self.generator_latents(latents), generator_optimizer)

    def critic_step(self, real: Batch, latents: Tensor, optimizer: Any) -> None:
        """One step of the critic on real images (batch, *shape) and the images of as many latents."""
        active = self.loss.active(self.critic_step_count)
        self.window.critic.append(self.step("critic", optimizer, real, latents, active))
        self.after_critic_step()

    def after_critic_step(self) -> None:
        """Project the weights of the critic, and count its step."""
        for part in self.loss.regularizer.values():
            part.project(self.critic)
        self.critic_step_count += 1

    def generator_step(self, real: Batch, latents: Tensor, optimizer: Any) -> None:
        """One step of the generator on latents; ``real`` are images that the critic has just seen."""
        self.window.generator += self.step("generator", optimizer, real, latents)

    def step(self, name: str, optimizer: Any, real: Batch, latents: Tensor, active: tuple[str, ...] = ()) -> Record:
        """One optimizer step of a network down the gradient of its objective."""
        gradients_of = self.compiled.get((name, active)) or functools.partial(self.gradients, name, active)
        gradients, record = gradients_of(real, latents)
        return self.update(name, optimizer, gradients, record)

    def gradients(self, name: str, active: tuple[str, ...], real: Batch, latents: Tensor) -> tuple[Gradients, Record]:
        """The gradient of a network's objective, one tensor per parameter, and the record of the objective."""
        objective = functools.partial(self.critic_objective, active) if name == "critic" else self.generator_objective
        loss, record = objective(real, latents)
        return self.gradient(name, loss), record

    def gradient(self, name: str, loss: Tensor, *, retain_graph: bool = False) -> Gradients:
        """d loss / d parameters of a network, and of no other."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        return torch.autograd.grad(scaled, self.weights[name], retain_graph=retain_graph, allow_unused=True)

    def update(self, name: str, optimizer: Any, gradients: Gradients, record: Record) -> Record:
        """Step the optimizer of a network with these gradients, and return the record: means over all ranks."""
        averaged = parallel.all_reduce_mean([*gradients, *record])
        gradients, record = averaged[: len(gradients)], tuple(averaged[len(gradients) :])
        for parameter, gradient in zip(self.weights[name], gradients, strict=True):
            # autograd.grad and compiled code may lay a gradient out in another way; fused optimizers would not notice
            if gradient is not None and gradient.stride() != parameter.stride():
                gradient = torch.empty_like(parameter).copy_(gradient)
            parameter.grad = gradient
        if self.loss.clip_norm is not None:
            scale = 1.0 if self.scaler is None else self.scaler.get_scale()  # by which fp16 gradients are larger
            nn.utils.clip_grad_norm_(self.weights[name], self.loss.clip_norm * scale)
        optimizer.step()
        return record

    @functools.cached_property
    def weights(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters of both networks. Cached: to walk the modules takes as long as a small layer."""
        return {
            name: [parameter for parameter in getattr(self, name).parameters() if parameter.requires_grad]
            for name in ("generator", "critic")
        }

    def critic_objective(self, active: tuple[str, ...], real: Batch, latents: Tensor) -> tuple[Tensor, Record]:
        """What the critic minimises, and the record of it."""
        with torch.no_grad():  # the critic's loss is no business of the generator
            fake = self.fake(latents, real.labels)
        if getattr(self.critic, "samplewise", False) and self.augmentation is None:  # one pass costs less than two
            labels = None if real.labels is None else real.labels.repeat(2)
            scores, classification = self.judged(torch.cat([real.images, fake]), labels)
            real_scores, fake_scores = scores.chunk(2)
            return self.critic_loss(active, real, fake, real_scores, fake_scores, 2 * classification)
        (real_scores, of_real), (fake_scores, of_fake) = (
            self.judged(images, real.labels) for images in (real.images, fake)
        )
        return self.critic_loss(active, real, fake, real_scores, fake_scores, of_real + of_fake)

    def generator_objective(self, real: Batch, latents: Tensor) -> tuple[Tensor, Record]:
        """What the generator minimises, and the record of it."""
        labels = self.generator_labels(real)
        fake = self.fake(latents, labels)
        scores, classification = self.judged(fake, labels)
        loss = self.generator_loss(real, fake, scores) + classification
        return loss, (loss.detach(),)

    def judged(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """The critic's scores of images with these labels, and the loss of its auxiliary classifier, if it is asked."""
        critic = self.scorer(labels)
        if self.loss.classification is None:
            return at_least_fp32(critic(images)), 0.0
        scores, logits = critic.scores_and_logits(images)  # type: ignore[operator]
        return at_least_fp32(scores), self.loss.classification(logits, labels)  # type: ignore[arg-type]

    def critic_loss(
        self,
        active: tuple[str, ...],
        real: Batch,
        fake: Tensor,
        real_scores: Tensor,
        fake_scores: Tensor,
        classification: Tensor | float,
    ) -> tuple[Tensor, Record]:
        """The critic's loss, and the record of it: loss, penalty, mean real and mean fake score."""
        penalty = self.penalty(active, real, fake)
        loss = self.loss.objective.critic_loss(real_scores, fake_scores) + penalty + classification
        return loss, (loss.detach(), penalty.detach(), real_scores.detach().mean(), fake_scores.detach().mean())

    def penalty(self, active: tuple[str, ...], real: Batch, fake: Tensor) -> Tensor:
        """The sum of the active penalties, each weighted by the number of steps that it stands for."""
        total: Tensor | None = None
        critic = self.scorer(real.labels)
        for part in (self.loss.regularizer[name] for name in active):
            with sdpa_kernel(SDPBackend.MATH):  # the gradients of attention's other kernels have none of their own
                term = part.penalty(critic, real.images, fake)
            term = term if part.every == 1 else part.every * term
            total = term if total is None else total + term
        return real.images.new_zeros(()) if total is None else total

    def generator_loss(
        self, real: Batch, fake: Tensor, fake_scores: Tensor, real_scores: Tensor | None = None
    ) -> Tensor:
        """The generator's loss over scores; a relativistic one takes real ones, computed here if they are not given."""
        objective, critic = self.loss.objective, self.scorer(real.labels)
        if getattr(objective, "relativistic", False):
            if real_scores is None:
                with torch.no_grad():
                    real_scores = at_least_fp32(critic(real.images))
            loss = objective.generator_loss(fake_scores, real_scores)  # type: ignore[call-arg]
        else:
            loss = objective.generator_loss(fake_scores)
        matching = self.loss.feature_matching
        return matching(loss, critic, real.images, fake) if matching else loss

    def window_means(self) -> dict[str, float]:
        """Training metrics averaged over all steps since the last call (one transfer from the device)."""
        means = self.window.means()
        if self.loss.schedule:
            for name, optimizer in zip(("generator", "critic"), self.trainer.optimizers, strict=True):
                means[f"{name}/learning_rate"] = optimizer.param_groups[0]["lr"]
        return means
