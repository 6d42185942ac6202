"""The training loop: who updates when. It knows no method by name.

:class:`AdversarialModule` is Algorithm 1 of the papers. The classes after it are what published programs and figures do
instead, each a choice of conf/training/.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from pydantic import PositiveInt
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from wganlab import parallel
from wganlab.data.stream import to_unit_range
from wganlab.networks.layers import evaluation_mode
from wganlab.objectives import FeatureMatching, Objective
from wganlab.regularizers import Unconstrained

Latent = Literal["normal", "uniform"]
#: What a step leaves for the record: scalars without a graph, on the device.
Noted = tuple[Tensor, ...]


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
    """Alternates ``n_critic`` critic steps, each on fresh real images, with one generator step on fresh latents.

    ``training_step`` receives real images as stored, shape (n_critic, batch, *shape), and makes one generator
    step: the unit of time. ``trainer.global_step`` counts generator steps. ``optimizer`` holds, under
    "generator" and "critic", what makes an optimizer from a network's parameters.

    ``shape`` is that of one sample and ``fingerprint`` a hash of all, both noted in checkpoints. ``observed`` collects
    what observers measured at the current step; :meth:`window_means` yields the training metrics averaged since the
    last call. ``compiled`` holds, by name of the network, functions that stand in for the gradients of its objective.
    """

    #: Whether the two objectives say all that is differentiated, so that they can be compiled.
    compilable = True

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
        feature_matching: FeatureMatching | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = generator, critic
        self.objective, self.lipschitz, self.feature_matching = objective, lipschitz, feature_matching
        self.make_optimizer = optimizer
        self.n_critic, self.latent_dim, self.latent = n_critic, latent_dim, latent
        self.shape: tuple[int, ...] = ()
        self.fingerprint = ""
        self.observed: dict[str, float] = {}
        self.scaler: Any = None  # of fp16 losses
        self.compiled: dict[str, Callable[..., tuple[Sequence[Tensor | None], Noted]]] = {}
        self._critic_window: list[Noted] = []
        self._generator_window: list[Tensor] = []

    def configure_optimizers(self) -> list[Optimizer]:
        return [self.make_optimizer[name](getattr(self, name).parameters()) for name in ("generator", "critic")]

    def on_fit_start(self) -> None:
        self.scaler = getattr(self.trainer.precision_plugin, "scaler", None)

    def on_train_start(self) -> None:
        parallel.broadcast(self.parameters())  # the same already, but where machines differ

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["shape"] = list(self.shape)  # so that the generator can be built without the data set
        checkpoint["fingerprint"] = self.fingerprint
        checkpoint["window"] = [[list(values) for values in self._critic_window], self._generator_window]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        critic, generator = checkpoint["window"]
        self._critic_window = [tuple(value.to(self.device) for value in values) for values in critic]
        self._generator_window = [value.to(self.device) for value in generator]

    def latents(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Latents of shape (n, latent_dim) on the module's device; observers pass a generator of their own.

        Without one they are a rank's share of what all ranks draw.
        """
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "generator": generator}
        if generator is None:
            return parallel.shard(sample_latents(n * parallel.world_size(), self.latent_dim, self.latent, **options))
        return sample_latents(n, self.latent_dim, self.latent, **options)

    @torch.no_grad()
    def generate(self, n: int, *, seed: int = 0) -> Tensor:
        """n samples (n, *shape) of the generator in inference mode, always the same for a seed and its weights."""
        latents = self.latents(n, generator=torch.Generator(self.device).manual_seed(seed))
        with evaluation_mode(self.generator):
            return torch.cat([self.generator(part) for part in latents.split(512)])

    def critic_latents(self, real: Tensor) -> Tensor:
        """Latents of the critic step on ``real``."""
        return self.latents(len(real))

    def generator_latents(self, last: Tensor) -> Tensor:
        """Latents of the generator step, given those of the critic step before it."""
        return self.latents(len(last))

    def scaled(self, real: Tensor) -> Tensor:
        """Real images as stored, in [-1, 1] and in the precision of the networks."""
        return to_unit_range(real, self.dtype)  # type: ignore[arg-type]

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        generator_optimizer, critic_optimizer = self.optimizers()  # type: ignore[attr-defined]
        # Lightning counts every step of its optimizers as a global step: with the critic's out of its sight, the
        # trainer, its checkpoints and its loggers all count generator steps.
        if self.scaler is None:
            critic_optimizer = critic_optimizer.optimizer
        else:
            critic_optimizer._on_before_step = critic_optimizer._on_after_step = lambda: None
        parallel.broadcast(self.buffers())  # running statistics, of which the first rank's are saved
        self.alternate(self.scaled(batch), generator_optimizer, critic_optimizer)

    def alternate(self, reals: Tensor, generator_optimizer: Any, critic_optimizer: Any) -> None:
        """All updates of one generator step, on real images (n_critic, batch, *shape) in [-1, 1]."""
        for real in reals:
            latents = self.critic_latents(real)
            self.critic_step(real, latents, critic_optimizer)
        self.generator_step(real, self.generator_latents(latents), generator_optimizer)

    def critic_step(self, real: Tensor, latents: Tensor, optimizer: Any) -> None:
        """One step of the critic on real images (batch, *shape) and the images of as many latents."""
        self._critic_window.append(self.descend("critic", optimizer, real, latents))
        self.lipschitz.project(self.critic)

    def generator_step(self, real: Tensor, latents: Tensor, optimizer: Any) -> None:
        """One step of the generator on latents; ``real`` are images that the critic has just seen."""
        self._generator_window += self.descend("generator", optimizer, real, latents)

    def descend(self, name: str, optimizer: Any, real: Tensor, latents: Tensor) -> Noted:
        """One optimizer step of a network down the gradient of its objective; returns what is to be noted of it."""
        gradients, noted = self.compiled.get(name, functools.partial(self.differentiate, name))(real, latents)
        return self.update(name, optimizer, gradients, noted)

    def differentiate(self, name: str, real: Tensor, latents: Tensor) -> tuple[Sequence[Tensor | None], Noted]:
        """The gradient of a network's objective, one tensor per parameter, and what is to be noted of the objective."""
        loss, noted = getattr(self, f"{name}_objective")(real, latents)
        return self.gradient(name, loss), noted

    def gradient(self, name: str, loss: Tensor, *, again: bool = False) -> Sequence[Tensor | None]:
        """d loss / d parameters of a network, and of no other; ``again`` keeps the graph for another gradient."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        return torch.autograd.grad(scaled, self.weights[name], retain_graph=again, allow_unused=True)

    def update(self, name: str, optimizer: Any, gradients: Sequence[Tensor | None], noted: Noted) -> Noted:
        """Step the optimizer of a network with these gradients, and return what was noted: means over all ranks."""
        averaged = parallel.all_reduce_mean([*gradients, *noted])
        gradients, noted = averaged[: len(gradients)], tuple(averaged[len(gradients) :])
        for parameter, gradient in zip(self.weights[name], gradients, strict=True):
            # autograd.grad and compiled code may lay a gradient out in another way; fused optimizers would not notice
            if gradient is not None and gradient.stride() != parameter.stride():
                gradient = torch.empty_like(parameter).copy_(gradient)
            parameter.grad = gradient
        optimizer.step()
        return noted

    @functools.cached_property
    def weights(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters of both networks. Cached: to walk the modules takes as long as a small layer."""
        return {
            name: [parameter for parameter in getattr(self, name).parameters() if parameter.requires_grad]
            for name in ("generator", "critic")
        }

    def critic_objective(self, real: Tensor, latents: Tensor) -> tuple[Tensor, Noted]:
        """What the critic minimises, and what is to be noted of it."""
        with torch.no_grad():  # the critic's loss is no business of the generator
            fake = self.generator(latents)
        if getattr(self.critic, "samplewise", False):  # one pass costs less than two
            scores = self.critic(torch.cat([real, fake])).chunk(2)
        else:
            scores = self.critic(real), self.critic(fake)
        return self.critic_loss(real, fake, *scores)

    def generator_objective(self, real: Tensor, latents: Tensor) -> tuple[Tensor, Noted]:
        """What the generator minimises, and what is to be noted of it."""
        fake = self.generator(latents)
        loss = self.generator_loss(real, fake, self.critic(fake))
        return loss, (loss.detach(),)

    def critic_loss(self, real: Tensor, fake: Tensor, real_scores: Tensor, fake_scores: Tensor) -> tuple[Tensor, Noted]:
        """The critic's loss, and for the record: loss, penalty, mean real and mean fake score."""
        penalty = self.lipschitz.penalty(self.critic, real, fake)
        loss = self.objective.critic_loss(real_scores, fake_scores) + penalty
        return loss, (loss.detach(), penalty.detach(), real_scores.detach().mean(), fake_scores.detach().mean())

    def generator_loss(self, real: Tensor, fake: Tensor, fake_scores: Tensor) -> Tensor:
        """The generator's loss."""
        loss = self.objective.generator_loss(fake_scores)
        return self.feature_matching(loss, self.critic, real, fake) if self.feature_matching else loss

    def first_not_finite(self, steps: int) -> tuple[str, float, int] | None:
        """What is not finite in the last so many steps since the last row: its name, its value, and how many steps ago.

        Losses are looked at in the order in which they were computed; gradients are those of the last step, of biases
        and scales alone where there are any: what goes wrong on the way back passes through them, and to read all
        takes a twentieth of a step. None when all is well.
        """
        generator = self._generator_window[-steps:]
        critic = [loss for loss, *_ in self._critic_window[-self.n_critic * len(generator) :]]
        if not torch.isfinite(torch.stack(critic + generator)).all():
            for i in range(len(generator)):
                named = [("critic/loss", loss) for loss in critic[i * self.n_critic : (i + 1) * self.n_critic]]
                for name, loss in [*named, ("generator/loss", generator[i])]:
                    if not math.isfinite(loss.item()):
                        return name, loss.item(), len(generator) - 1 - i
        for name in ("critic", "generator"):
            gradients = [p.grad for p in self.weights[name] if p.grad is not None]
            gradients = [gradient for gradient in gradients if gradient.dim() < 2] or gradients
            norm = torch.stack(torch._foreach_norm(gradients)).sum().item() if gradients else 0.0
            if not math.isfinite(norm):
                return f"the norm of the {name}'s gradient", norm, 0
        return None

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


class SharedPass(AdversarialModule):
    """Takes both gradients from one forward pass: the generator's loss uses the critic before its update.

    So does the walk-through of MNIST with a DCGAN. With ``n_critic`` above one, the last critic step is the shared one.
    """

    compilable = False

    def alternate(self, reals: Tensor, generator_optimizer: Any, critic_optimizer: Any) -> None:
        *before, real = reals
        for earlier in before:
            self.critic_step(earlier, self.critic_latents(earlier), critic_optimizer)
        fake = self.generator(self.critic_latents(real))
        real_scores, fake_scores = self.critic(real), self.critic(fake)
        critic_loss, noted = self.critic_loss(real, fake, real_scores, fake_scores)
        generator_loss = self.generator_loss(real, fake, fake_scores)
        generator_gradient = self.gradient("generator", generator_loss, again=True)
        critic_gradient = self.gradient("critic", critic_loss)
        made = (generator_loss.detach(),)
        self._generator_window += self.update("generator", generator_optimizer, generator_gradient, made)
        self._critic_window.append(self.update("critic", critic_optimizer, critic_gradient, noted))
        self.lipschitz.project(self.critic)


class ReusedLatents(AdversarialModule):
    """Shows the generator step the latents of the critic step before it, as the MLP walk-through of MNIST does."""

    def generator_latents(self, last: Tensor) -> Tensor:
        return last


class FixedGenerator(ReusedLatents):
    """Trains the critic alone, against real samples plus unit Gaussian noise (WGAN-GP, arXiv 1704.00028, figure 1a).

    The generator of the model is put aside: its place is taken by the identity, and "latents" are noisy samples.
    """

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts | {"generator": nn.Identity()})

    def configure_optimizers(self) -> list[Optimizer]:
        idle = torch.optim.SGD([nn.Parameter(torch.zeros(0))])  # counts the steps
        return [idle, self.make_optimizer["critic"](self.critic.parameters())]

    def latents(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "generator": generator}
        noise = torch.randn(n, *self.shape, **options)
        if self._trainer is None:
            return noise
        # not the first half of the reference: it is what an evaluation compares with
        real = self.trainer.train_dataloader.fixed_samples(2 * n)  # type: ignore[union-attr]
        rows = (torch.arange(n, device=self.device) + len(real) // 2) % len(real)
        return noise + self.scaled(real[rows])

    def critic_latents(self, real: Tensor) -> Tensor:
        shape = (len(real) * parallel.world_size(), *real.shape[1:])
        return real + parallel.shard(torch.randn(shape, device=real.device, dtype=real.dtype))

    def generator_step(self, real: Tensor, latents: Tensor, optimizer: Any) -> None:
        with torch.no_grad():
            self._generator_window.append(self.generator_loss(real, latents, self.critic(latents)))
        optimizer.step()


class MakeGenerator(Protocol):
    """What fills ``model.generator``."""

    def __call__(self, *, latent_dim: int, shape: tuple[int, ...]) -> nn.Module: ...


class MakeCritic(Protocol):
    """What fills ``model.critic``."""

    def __call__(self, *, shape: tuple[int, ...]) -> nn.Module: ...


class MakeOptimizer(Protocol):
    """What fills ``loss.optimizer.generator`` and ``loss.optimizer.critic``."""

    def __call__(self, params: Any) -> Optimizer: ...


class MakeModule(Protocol):
    """What fills ``training``."""

    def __call__(
        self,
        *,
        generator: nn.Module,
        critic: nn.Module,
        latent_dim: int,
        latent: str,
        objective: Any,
        lipschitz: Any,
        optimizer: Any,
        n_critic: int,
        feature_matching: Any,
    ) -> AdversarialModule: ...


@dataclass(frozen=True, kw_only=True)
class Networks:
    generator: MakeGenerator
    critic: MakeCritic
    latent_dim: PositiveInt
    latent: Latent = "normal"


@dataclass(frozen=True, kw_only=True)
class Loss:
    objective: Objective
    lipschitz: Unconstrained
    optimizer: Mapping[str, MakeOptimizer]
    n_critic: PositiveInt
    feature_matching: FeatureMatching | None = None
