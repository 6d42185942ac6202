"""The loops that wganlab is compared with. Each yields the number of real images after every generator step.

``textbook`` is written as widely used scripts and tutorials write it: a DataLoader with transforms, optimizers at
torch's defaults, gradients of whatever backward() reaches, ``.item()`` for a print. ``bare`` computes the same
mathematics with nothing that can be left out, and no framework.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, autograd, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from wganlab.accelerator import fastest_exact_matmul, keep_freed_memory
from wganlab.build import build_module, construct
from wganlab.data.toys import Gaussians8
from wganlab.networks.layers import DoublingConv2d, Dropout
from wganlab.regularizers import PiecewiseLinear


def optimizers(config: DictConfig, *networks: nn.Module, fused: bool) -> list[torch.optim.Optimizer]:
    """Adam or RMSProp with the rates of the config."""
    made: list[torch.optim.Optimizer] = []
    for network, name in zip(networks, ("generator", "critic"), strict=True):
        settings = config.loss.optimizer[name]
        if "betas" in settings:
            more: dict[str, Any] = {"fused": True} if fused else {}
            made.append(torch.optim.Adam(network.parameters(), lr=settings.lr, betas=tuple(settings.betas), **more))
        else:
            made.append(torch.optim.RMSprop(network.parameters(), lr=settings.lr))
    return made


# --- the textbook


class Digits(Dataset):
    """Images in memory that pass through PIL and transforms one by one, as torchvision's MNIST."""

    def __init__(self, images: Tensor) -> None:
        self.images = [transforms.functional.to_pil_image(image) for image in images]
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), 0


def points(batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """Eight Gaussians, a batch at a time, point by point."""
    centers = Gaussians8.centers.tolist()
    while True:
        batch = []
        for _ in range(batch_size):
            x, y = random.choice(centers)
            batch.append([(x + random.gauss(0, 0.02)) / 1.414, (y + random.gauss(0, 0.02)) / 1.414])
        yield torch.tensor(batch), 0


def textbook_data(config: DictConfig, data: Path) -> Iterator[tuple[Tensor, int]]:
    """Batches for ever."""
    source = construct(config, "dataset")
    if source.shape == (2,):
        return points(config.batch_size)
    normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    images: Dataset = Digits(source.load()) if source.shape[0] == 1 else ImageFolder(str(data), normalise)
    loader = DataLoader(images, batch_size=config.batch_size, shuffle=True, drop_last=True)
    return chain.from_iterable(repeat(loader))


def use_torchs_dropout(network: nn.Module) -> None:
    """In place of wganlab's."""
    for layer in network.modules():
        if isinstance(layer, Dropout):
            layer.__class__ = nn.Dropout  # type: ignore[assignment]


class DoubledConv2d(nn.Conv2d):
    """What a 5x5 DoublingConv2d does, in two layers."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.conv2d(nn.functional.interpolate(images, scale_factor=2), self.weight, padding=2)


def double_and_convolve(network: nn.Module) -> None:
    """One after the other, in place of both in one."""
    for layer in network.modules():
        if isinstance(layer, DoublingConv2d):
            layer.__class__ = DoubledConv2d  # type: ignore[assignment]


def weight_and_bound(loss: DictConfig) -> tuple[float | None, float | None]:
    """The penalty's weight and the clipping bound; None where there is none."""
    parts = loss.regularizer
    return parts.get("gradient_penalty", {}).get("weight"), parts.get("weight_clipping", {}).get("bound")


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """As in every tutorial."""
    alpha = torch.rand(real.size(0), *[1] * (real.dim() - 1))
    interpolates = (alpha * real + (1 - alpha) * fake).requires_grad_(True)
    scores = critic(interpolates)
    gradients = autograd.grad(
        outputs=scores, inputs=interpolates, grad_outputs=torch.ones_like(scores), create_graph=True, retain_graph=True
    )[0]
    return ((gradients.view(gradients.size(0), -1).norm(2, dim=1) - 1) ** 2).mean()


def textbook(config: DictConfig, data: Path) -> Iterator[int]:
    """A script from the web: PyTorch's defaults, and no thought for what is computed in vain."""
    module = build_module(config, construct(config, "dataset"))
    generator, critic = module.generator, module.critic
    use_torchs_dropout(critic)
    double_and_convolve(generator)
    optimizer_g, optimizer_c = optimizers(config, generator, critic, fused=False)
    loss, n_critic, latent_dim = config.loss, config.loss.n_critic, config.model.latent_dim
    weight, bound = weight_and_bound(loss)
    adversarial = nn.BCEWithLogitsLoss()
    plain_gan = not (weight or bound)
    for i, (real, _) in enumerate(textbook_data(config, data), start=1):
        torch.set_float32_matmul_precision("highest")  # the bare loop, which takes turns with this one, sets others
        keep_freed_memory(False)
        optimizer_c.zero_grad()
        fake = generator(torch.randn(real.size(0), latent_dim))
        if weight:
            loss_c = critic(fake).mean() - critic(real).mean() + weight * gradient_penalty(critic, real, fake.data)
        elif bound:
            loss_c = critic(fake.detach()).mean() - critic(real).mean()
        else:
            ones, zeros = torch.ones(real.size(0)), torch.zeros(real.size(0))
            loss_c = adversarial(critic(real), ones) + adversarial(critic(fake.detach()), zeros)
        loss_c.backward()
        optimizer_c.step()
        if bound:
            for parameter in critic.parameters():
                parameter.data.clamp_(-bound, bound)
        if i % n_critic == 0:
            optimizer_g.zero_grad()
            scores = critic(generator(torch.randn(real.size(0), latent_dim)))
            loss_g = adversarial(scores, torch.ones_like(scores)) if plain_gan else -scores.mean()
            loss_g.backward()
            optimizer_g.step()
            _ = f"[{i}] [D loss: {loss_c.item()}] [G loss: {loss_g.item()}]"  # printed
            yield n_critic * real.size(0)


# --- the bare loop


def resident(config: DictConfig) -> Callable[[], Tensor]:
    """Batches in [-1, 1] from one tensor of bytes, or drawn 64 at a time."""
    source, size, seed = construct(config, "dataset"), config.batch_size, torch.Generator().manual_seed(0)
    if source.shape == (2,):
        drawn = chain.from_iterable(source.draw(64 * size, seed)[0].split(size) for _ in repeat(None))
        return lambda: next(drawn)
    images = source.load()
    order = chain.from_iterable(torch.randperm(len(images)).split(size)[:-1] for _ in repeat(None))
    return lambda: images[next(order)].float().div_(127.5).sub_(1)


TRICKS = (
    "own gradients only", "one pass", "constant slopes", "fused Adam",
    "channels last", "doubling in one", "uniform dropout", "kept memory",
)  # fmt: skip


def bare(config: DictConfig, *, compiled: bool = False, without: str = "") -> Iterator[int]:
    """Every trick that keeps the mathematics, or all but one of TRICKS."""
    module = build_module(config, construct(config, "dataset"))
    if without != "channels last":
        module = module.to(memory_format=torch.channels_last)
    generator, critic, objective = module.generator, module.critic, module.loss.objective
    if without == "uniform dropout":
        use_torchs_dropout(critic)
    if without == "doubling in one":
        double_and_convolve(generator)
    optimizer_g, optimizer_c = optimizers(config, generator, critic, fused=without != "fused Adam")
    wasteful, one_pass = without == "own gradients only", critic.samplewise and without != "one pass"
    constant_slopes = nullcontext() if without == "constant slopes" else PiecewiseLinear()
    of_generator: list[Tensor] = list(generator.parameters())
    of_critic: list[Tensor] = list(critic.parameters())
    size, n_critic, latent_dim = config.batch_size, config.loss.n_critic, config.model.latent_dim
    weight, bound = weight_and_bound(config.loss)

    def critic_loss(real: Tensor, latents: Tensor) -> Tensor:
        with torch.set_grad_enabled(wasteful):
            fake = generator(latents)
        scores = critic(torch.cat([real, fake])).chunk(2) if one_pass else (critic(real), critic(fake))
        loss = objective.critic_loss(*scores)
        if weight:
            points = torch.lerp(fake.detach(), real, torch.rand(size, *[1] * (real.dim() - 1))).requires_grad_()
            with constant_slopes:
                (gradient,) = autograd.grad(critic(points).sum(), points, create_graph=True)
            loss = loss + weight * (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - 1).square().mean()
        return loss

    def generator_loss(latents: Tensor) -> Tensor:
        return objective.generator_loss(critic(generator(latents)))

    def update(optimizer: torch.optim.Optimizer, gradients: Callable, parameters: list, *inputs: Tensor) -> None:
        for parameter, gradient in zip(parameters, gradients(*inputs), strict=True):
            same = gradient.stride() == parameter.stride()  # fused Adam takes that for granted
            parameter.grad = gradient if same else torch.empty_like(parameter).copy_(gradient)
        optimizer.step()

    def plain(loss: Callable, parameters: list) -> Callable:
        everything = of_generator + of_critic if wasteful else parameters
        first = 0 if parameters is not of_critic or not wasteful else len(of_generator)
        return lambda *inputs: autograd.grad(loss(*inputs), everything)[first : first + len(parameters)]

    critic_gradients, generator_gradients = plain(critic_loss, of_critic), plain(generator_loss, of_generator)
    if compiled:
        torch.compiler.reset()  # loops compiled before count against a limit
        torch._dynamo.config.trace_autograd_ops = True
        critic_gradients = torch.compile(critic_gradients, fullgraph=True, dynamic=False)
        generator_gradients = torch.compile(generator_gradients, fullgraph=True, dynamic=False)
    draw = resident(config)
    while True:
        torch.set_float32_matmul_precision(fastest_exact_matmul())
        keep_freed_memory(without != "kept memory")
        for _ in range(n_critic):
            update(optimizer_c, critic_gradients, of_critic, draw(), torch.randn(size, latent_dim))
            if bound:
                with torch.no_grad():
                    torch._foreach_clamp_min_(of_critic, -bound)
                    torch._foreach_clamp_max_(of_critic, bound)
        update(optimizer_g, generator_gradients, of_generator, torch.randn(size, latent_dim))
        yield n_critic * size
