"""Would eight seeds of the S2 MLP train faster as one batched computation? ``python -m benchmarks.seeds_together``

Times generator steps with their critic steps, optimizers included: of each seed by wganlab's own module, one after the
other with all threads; in two processes of one thread (on a CPU); and of all seeds at once, in products of batches of
matrices, written out here by hand. Writes results/seeds_together.md.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.bench import RESULTS, machine
from benchmarks.workloads import WORKLOADS
from wganlab.adversarial import AdversarialModule
from wganlab.build import build_module, construct
from wganlab.data.stream import Batch
from wganlab.regularizers import PiecewiseLinear
from wganlab.training import commit

SEEDS, BATCH = 8, 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def modules(loss: str, seeds: range) -> list[AdversarialModule]:
    """The S2 MLP with each seed."""
    config = WORKLOADS["s2_mlp"].config(loss, Path())
    made = []
    for seed in seeds:
        config.seed = seed
        made.append(build_module(config, construct(config, "dataset")).to(DEVICE))
    return made


def one_by_one(loss: str, seeds: range) -> Callable[[], None]:
    """A generator step of each seed."""
    parts = []
    for module in modules(loss, seeds):
        optimizers = [
            module.loss.optimizer[name](getattr(module, name).parameters()) for name in ("generator", "critic")
        ]
        parts.append((module, [Batch(torch.rand(BATCH, *module.shape, device=DEVICE))] * 5, optimizers))

    def step() -> None:
        for module, batches, optimizers in parts:
            module.alternate(batches, *optimizers)
            module.window.critic.clear()
            module.window.generator.clear()

    return step


def together(loss: str) -> Callable[[], None]:
    """A generator step of all seeds."""
    every = modules(loss, range(SEEDS))
    generators, critics = (stacked(every, name) for name in ("generator", "critic"))
    optimizer_g, optimizer_c = (
        every[0].loss.optimizer[name](weights) for name, weights in (("generator", generators), ("critic", critics))
    )
    pixels, latent_dim = every[0].shape[-1] ** 2, every[0].latent_dim
    real = torch.rand(SEEDS, BATCH, pixels, device=DEVICE)

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    def generate() -> Tensor:
        x, weights = torch.randn(SEEDS, BATCH, latent_dim, device=DEVICE), iter(generators)
        x = functional.leaky_relu(linear(x, next(weights), next(weights)), 0.2)
        for _ in range(3):
            x = linear(x, next(weights), next(weights)).transpose(0, 1).flatten(1)
            x = functional.batch_norm(x, None, None, next(weights).flatten(), next(weights).flatten(), training=True)
            x = functional.leaky_relu(x.unflatten(1, (SEEDS, -1)).transpose(0, 1), 0.2)
        return linear(x, next(weights), next(weights)).tanh()

    def score(x: Tensor) -> Tensor:
        weights = iter(critics)
        for _ in range(2):
            x = functional.leaky_relu(linear(x, next(weights), next(weights)), 0.2)
        return linear(x, next(weights), next(weights))

    def critic_loss() -> Tensor:
        with torch.no_grad():
            fake = generate()
        scores = score(torch.cat([real, fake], 1))
        wasserstein = scores[:, BATCH:].mean() - scores[:, :BATCH].mean()
        if loss == "wgan_clip":
            return wasserstein
        points = torch.lerp(fake, real, torch.rand(SEEDS, BATCH, 1, device=DEVICE)).requires_grad_()
        with PiecewiseLinear():
            (gradient,) = torch.autograd.grad(score(points).sum(), points, create_graph=True)
        return wasserstein + 10 * (torch.linalg.vector_norm(gradient, dim=2) - 1).square().mean()

    def update(value: Tensor, weights: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
        for weight, gradient in zip(weights, torch.autograd.grad(value * SEEDS, weights), strict=True):
            weight.grad = gradient
        optimizer.step()

    def step() -> None:
        for _ in range(5):
            update(critic_loss(), critics, optimizer_c)
            if loss == "wgan_clip":
                for weight in critics:
                    weight.data.clamp_(-0.01, 0.01)
        update(-score(generate()).mean(), generators, optimizer_g)

    return step


def stacked(every: list[AdversarialModule], name: str) -> list[Tensor]:
    """The weights of a network with all seeds, (seeds, *shape) each."""
    networks = zip(*(getattr(module, name).parameters() for module in every), strict=True)
    return [torch.stack([*one]).detach().requires_grad_() for one in networks]


def serve(loss: str, seeds: range, calls: Connection) -> None:
    """Make a generator step of each seed whenever one is asked for."""
    torch.set_num_threads(1)
    step = one_by_one(loss, seeds)
    while calls.recv():
        step()
        calls.send(True)


@contextmanager
def in_two_processes(loss: str) -> Iterator[Callable[[], None]]:
    """A generator step of each seed, half of them in each of two processes of one thread."""
    context, half = multiprocessing.get_context("spawn"), SEEDS // 2
    workers = []
    for seeds in (range(half), range(half, SEEDS)):
        ours, theirs = context.Pipe()
        worker = context.Process(target=serve, args=(loss, seeds, theirs), daemon=True)
        worker.start()
        workers.append((worker, ours))

    def step() -> None:
        for answer in (Connection.send, lambda calls, _: calls.recv()):
            for _, calls in workers:
                answer(calls, True)

    yield step
    for worker, calls in workers:
        calls.send(False)
        worker.join()


def seconds(step: Callable[[], None]) -> float:
    """What a call takes."""
    started = time.perf_counter()
    step()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    names = ["one by one", "two processes", "together"][:: 1 if DEVICE == "cpu" else 2]
    lines = [
        f"Made by `python -m benchmarks.seeds_together` at {commit()}. {machine()}, {DEVICE}.",
        f"Generator steps per second of {SEEDS} seeds of the S2 MLP, in turns; medians, and gains of medians of turns.",
        "",
        f"| loss | {' | '.join(names)} | {' | '.join(f'gain, {name}' for name in names[1:])} |",
        "|---|" + "---:|" * (2 * len(names) - 1),
    ]
    for loss in ("wgan_clip", "wgan_gp"):
        with in_two_processes(loss) as processes:
            steps = {
                "one by one": one_by_one(loss, range(SEEDS)),
                "two processes": processes,
                "together": together(loss),
            }
            turns = [{name: seconds(steps[name]) for name in names} for _ in range(23)][3:]
        rates = [f"{SEEDS / statistics.median(turn[name] for turn in turns):.1f}" for name in names]
        gains = [f"{statistics.median(turn['one by one'] / turn[name] for turn in turns):.2f}" for name in names[1:]]
        lines.append(f"| {loss} | {' | '.join([*rates, *gains])} |")
    print("\n".join(lines))
    (RESULTS / "seeds_together.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
