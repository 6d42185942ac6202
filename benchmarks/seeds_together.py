"""Would several seeds of one arm train faster as one batched computation? ``python -m benchmarks.seeds_together``

Times critic steps of wgan_gp for N seeds stacked with torch.func and vmap against N seeds one after the other. In
the MLP of S2 batch norm is left without running statistics, which vmap cannot move. Writes results/seeds_together.md.
"""

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, replace_all_batch_norm_modules_, stack_module_state, vmap

from benchmarks.bench import RESULTS, machine
from benchmarks.workloads import WORKLOADS
from wganlab.build import build_module, construct
from wganlab.training import commit


def stacked(
    networks: list[tuple[nn.Module, nn.Module]], shape: tuple[int, ...], n: int, dim: int
) -> Callable[[], None]:
    """One critic step of all seeds at once."""
    critics, of_critics = [critic for _, critic in networks], stack_module_state([critic for _, critic in networks])
    of_generators = stack_module_state([generator for generator, _ in networks])
    skeleton_g, skeleton_c = (copy.deepcopy(network).to("meta") for network in networks[0])
    weights: list[Tensor] = list(of_critics[0].values())
    optimizer = torch.optim.Adam([weight.requires_grad_() for weight in weights], lr=1e-4, betas=(0.0, 0.9), fused=True)

    def loss(critic: dict, generator: dict, buffers: dict, real: Tensor, latents: Tensor, alpha: Tensor) -> Tensor:
        fake = functional_call(skeleton_g, (generator, buffers), (latents,)).detach()

        def score(images: Tensor) -> Tensor:
            return functional_call(skeleton_c, critic, (images,))

        points = torch.lerp(fake, real, alpha)
        gradient = grad(lambda images: score(images).sum())(points).flatten(1)
        penalty = (torch.linalg.vector_norm(gradient, dim=1) - 1).square().mean()
        scores = score(torch.cat([real, fake]))
        return scores[n:].mean() - scores[:n].mean() + 10 * penalty

    gradients = vmap(grad(loss))

    def step() -> None:
        seeds = len(critics)
        real, latents = torch.rand(seeds, n, *shape), torch.randn(seeds, n, dim)
        alpha = torch.rand(seeds, n, *[1] * len(shape))
        detached = {name: weight.detach() for name, weight in of_critics[0].items()}
        found = gradients(detached, of_generators[0], of_generators[1], real, latents, alpha)
        for name, weight in of_critics[0].items():
            weight.grad = found[name]
        optimizer.step()

    return step


def per_second(step: Callable[[], None], seconds: float = 2.0) -> float:
    """Calls per second."""
    count, started = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - started < seconds:
        step()
        count += 1
    return count / (time.perf_counter() - started)


def main() -> None:
    lines = [
        f"Made by `python -m benchmarks.seeds_together` at {commit()}. {machine()}.",
        "",
        "| workload | seeds | critic steps/s, one by one | together | gain |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in ("toy", "s2_mlp"):
        config = WORKLOADS[name].config("wgan_gp", Path())
        pairs = []
        for seed in range(8):
            config.seed = seed
            module = build_module(config, construct(config, "dataset"))
            replace_all_batch_norm_modules_(module.generator)
            pairs.append((module.generator, module.critic))
        size, dim = config.batch_size, config.model.latent_dim
        for seeds in (2, 8):
            alone, together = (stacked(pairs[:n], module.shape, size, dim) for n in (1, seeds))
            alone(), together()
            turns = [(per_second(alone), seeds * per_second(together)) for _ in range(3)]
            one, all_ = (statistics.median(values) for values in zip(*turns, strict=True))
            gain = statistics.median(b / a for a, b in turns)
            lines.append(f"| {name} | {seeds} | {one:.0f} | {all_:.0f} | {gain:.2f} |")
    print("\n".join(lines))
    (RESULTS / "seeds_together.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
