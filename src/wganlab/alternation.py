"""Other orders of updates than Algorithm 1, as published programs and figures have them; choices of conf/training/."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wganlab import parallel
from wganlab.adversarial import AdversarialModule
from wganlab.data.stream import Batch, BatchStream
from wganlab.pair import sample_latents


class SharedPass(AdversarialModule):
    """Takes both gradients from one forward pass: the generator's loss uses the critic before its update.

    So does the walk-through of MNIST with a DCGAN. With ``n_critic`` above one, the last critic step is the shared one.
    Its latents are also tied to the images: they are drawn in the data pipeline under a fixed seed, and so are the same
    for an image in every epoch. ``tied_latents`` draws one latent for each image of the data set, from the run's seed.
    """

    compilable = False

    def __init__(self, *, tied_latents: bool = False, **parts: Any) -> None:
        super().__init__(**parts)
        self.numbers_samples = tied_latents

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.numbers_samples:
            stream: BatchStream = self.trainer.train_dataloader  # type: ignore[assignment]
            random = torch.Generator().manual_seed(stream.seed)
            tied = sample_latents(len(stream.samples), self.latent_dim, self.latent, generator=random)
            self.tied_latents = tied.to(self.device, self.dtype)  # type: ignore[arg-type]

    def critic_latents(self, real: Batch) -> Tensor:
        return super().critic_latents(real) if real.rows is None else self.tied_latents[real.rows]

    def alternate(self, batches: Sequence[Batch], generator_optimizer: Any, critic_optimizer: Any) -> None:
        *before, real = batches
        for earlier in before:
            self.critic_step(earlier, self.critic_latents(earlier), critic_optimizer)
        fake = self.fake(self.critic_latents(real), real.labels)
        (real_scores, of_real), (fake_scores, of_fake) = (
            self.judged(images, real.labels) for images in (real.images, fake)
        )
        active = self.loss.active(self.critic_step_count)
        critic_loss, record = self.critic_loss(active, real, fake.detach(), real_scores, fake_scores, of_real + of_fake)
        generator_loss = self.generator_loss(real, fake, fake_scores, real_scores.detach()) + of_fake
        gradient, loss = self.gradient("generator", generator_loss, retain_graph=True), (generator_loss.detach(),)
        self.window.generator += self.update("generator", generator_optimizer, gradient, loss)
        gradient = self.gradient("critic", critic_loss)  # after that update, which may change the scale of fp16 losses
        self.window.critic.append(self.update("critic", critic_optimizer, gradient, record))
        self.after_critic_step()


class ReusedLatents(AdversarialModule):
    """Shows the generator step the latents of the critic step before it, as the MLP walk-through of MNIST does."""

    def generator_latents(self, last: Tensor) -> Tensor:
        return last

    def generator_labels(self, real: Batch) -> Tensor | None:
        return real.labels


class FixedGenerator(ReusedLatents):
    """Trains the critic alone, against real samples plus unit Gaussian noise (WGAN-GP, arXiv 1704.00028, figure 1a).

    The generator of the model is put aside: its place is taken by the identity, and "latents" are noisy samples.
    """

    trains_generator = False

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts | {"generator": nn.Identity()})

    def make_optimizers(self) -> dict[str, Optimizer]:
        idle = torch.optim.SGD([nn.Parameter(torch.zeros(0))])  # counts the steps
        return {"generator": idle, "critic": self.loss.optimizer["critic"](self.critic.parameters())}

    def latents(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "generator": generator}
        noise = torch.randn(n, *self.shape, **options)
        if self._trainer is None:
            return noise
        # not the first half of the fixed samples: an evaluation compares with these
        real = self.trainer.train_dataloader.fixed_samples(2 * n)  # type: ignore[union-attr]
        rows = (torch.arange(n, device=self.device) + len(real) // 2) % len(real)
        return noise + self.scaled(real[rows])

    def critic_latents(self, real: Batch) -> Tensor:
        images = real.images
        shape = (len(images) * parallel.world_size(), *images.shape[1:])
        return images + parallel.shard(torch.randn(shape, device=images.device, dtype=images.dtype))

    def generator_step(self, real: Batch, latents: Tensor, optimizer: Any) -> None:
        with torch.no_grad():
            self.window.generator.append(self.generator_loss(real, latents, self.judged(latents, real.labels)[0]))
        optimizer.step()
