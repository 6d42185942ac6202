"""The critic as a function: its gradient norms, bounds of its Lipschitz constant, and its gradients by layer."""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from wganlab.distances import exact, kantorovich_potential
from wganlab.networks import r3gan
from wganlab.networks.layers import Dropout, FeatureCritic, ImageCritic, compares_samples, takes_labels
from wganlab.networks.resnet import Block
from wganlab.objectives import Objective
from wganlab.regularizers import NORM_LAYERS, gradient_norms

#: Layers with a Lipschitz constant of at most 1.
CONTRACTIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Flatten, nn.Identity, nn.Dropout, nn.ZeroPad2d)
#: All whose bound is known.
KNOWN = (
    *(FeatureCritic, nn.Sequential, Block, r3gan.Block, *CONTRACTIONS, Dropout, nn.AdaptiveAvgPool2d),
    *(nn.LeakyReLU, nn.Linear, nn.Conv2d, nn.AvgPool2d, *NORM_LAYERS),
)

#: Samples whose gradients are taken at a time: their activations take megabytes each.
BLOCK = 64


def is_one_function(critic: nn.Module) -> bool:
    """Whether the critic judges each sample by itself, and all alike: not by labels of their own."""
    return not (compares_samples(critic) or (isinstance(critic, ImageCritic) and critic.given))


def slopes(critic: nn.Module, points: Tensor) -> Tensor:
    """The critic's gradient norm at each of points (n, *shape): shape (n,)."""
    parts = points.split(BLOCK) if is_one_function(critic) else [points]
    return torch.cat([gradient_norms(critic, part) for part in parts])


def lipschitz_lower_bound(critic: nn.Module, points: Tensor) -> float:
    """A lower bound of the critic's Lipschitz constant, from its values at ``points`` (n, *shape).

    The larger of its largest gradient norm at a point and, where all points have one function, its steepest secant
    between neighbours in the batch. Exact for a linear critic.
    """
    return max(slopes(critic, points).max().item(), steepest_secant(critic, points))


@torch.no_grad()
def steepest_secant(critic: nn.Module, points: Tensor) -> float:
    """The steepest slope between neighbours in a batch; 0 where they have not one function, of which none is known."""
    if not is_one_function(critic):
        return 0.0
    scores, rows = critic(points), points.flatten(1)
    apart = (rows - rows.roll(1, dims=0)).norm(dim=1)
    return max(((scores - scores.roll(1)).abs() / apart)[apart > 0].tolist(), default=0.0)


def lipschitz_upper_bound(network: nn.Module) -> float:
    """An upper bound of the Lipschitz constant in evaluation mode: the product of the layers' spectral norms.

    The spectral norm of a convolution is bounded by sqrt(patches per pixel) times that of its kernels as one matrix
    (out, in * height * width) for each group (Tsuzuku et al. 2018, arXiv 1802.04034, appendix D). Infinite where a
    layer has no known bound. Exact for a linear critic, far above the truth for deep ones.
    """
    if not any(isinstance(network, known) and type(network).forward is known.forward for known in KNOWN):
        return math.inf  # whatever a forward of its own does
    if isinstance(network, FeatureCritic) and not takes_labels(network):
        return lipschitz_upper_bound(network.features) * lipschitz_upper_bound(network.head)
    if isinstance(network, nn.Sequential):
        return math.prod(lipschitz_upper_bound(layer) for layer in network.children())
    if isinstance(network, Block):
        return lipschitz_upper_bound(network.shortcut) + lipschitz_upper_bound(network.residual)
    if isinstance(network, r3gan.Block):
        return 1 + lipschitz_upper_bound(network.residual)
    if isinstance(network, CONTRACTIONS):
        return 1.0
    if isinstance(network, nn.LeakyReLU):
        return max(1.0, network.negative_slope)
    if isinstance(network, nn.Linear):
        return spectral_norm(network.weight.detach())
    if isinstance(network, nn.Conv2d) and network.dilation == (1, 1):
        kernels = network.weight.detach().flatten(1).unflatten(0, (network.groups, -1))
        return math.sqrt(patches(network)) * max(map(spectral_norm, kernels))
    if isinstance(network, nn.AdaptiveAvgPool2d):  # to one pixel: to more of them, they may overlap
        return 1.0 if network.output_size in (1, (1, 1)) else math.inf
    if isinstance(network, nn.AvgPool2d):
        if network.ceil_mode or (network.padding and not network.count_include_pad):  # which divide by less at the rim
            return math.inf
        pixels = math.prod(_pair(network.kernel_size))
        return math.sqrt(patches(network) * pixels) / (network.divisor_override or pixels)
    if isinstance(network, NORM_LAYERS):
        return norm_bound(network)
    return math.inf


def spectral_norm(matrix: Tensor) -> float:
    """The largest singular value; infinite where a value is not finite, of which there are none."""
    if not torch.isfinite(matrix).all():
        return math.inf
    return torch.linalg.matrix_norm(exact(matrix), ord=2).item()


def patches(layer: nn.Conv2d | nn.AvgPool2d) -> int:
    """How many of a layer's kernels may lie over one pixel."""
    pairs = zip(_pair(layer.kernel_size), _pair(layer.stride), strict=True)
    return math.prod(math.ceil(size / stride) for size, stride in pairs)


def _pair(sides: int | tuple[int, ...]) -> tuple[int, ...]:
    return sides if isinstance(sides, tuple) else (sides, sides)


def norm_bound(layer: nn.Module) -> float:
    """Lipschitz constant of a normalisation: its largest scale over the smallest standard deviation it divides by.

    Infinite, for unknown, where that is of each image: 1 / sqrt(eps) would be true, and says nothing.
    """
    weight, variance, eps = (getattr(layer, name, None) for name in ("weight", "running_var", "eps"))
    if variance is None:
        return math.inf
    scale = 1.0 if weight is None else weight.detach().abs().max().item()
    return scale / math.sqrt(variance.min().item() + (eps or 0.0))


def layers(critic: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Linear and convolutional layers by name, in the order of the forward pass of sequential networks."""
    for name, module in critic.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name, module


def layer_gradient_norms(critic: nn.Module, objective: Objective, real: Tensor, fake: Tensor) -> dict[str, float]:
    """Norm of the gradient of the critic's loss with respect to each layer's output, by name of the layer.

    Empty for a critic without such layers. The loss has no penalties. The norms are flat over the layers of a
    well-conditioned critic, and exponential in the depth where gradients explode or vanish (WGAN-GP, arXiv 1704.00028,
    figure 1b). Computed in fp64, since vanishing gradients underflow in fp32.
    """
    real, fake = exact(real), exact(fake)
    critic = copy.deepcopy(critic).to(real)
    outputs: dict[str, list[Tensor]] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: outputs.setdefault(name, []).append(output))
        for name, layer in layers(critic)
    ]
    try:
        with torch.enable_grad():
            # inputs that require gradients give a graph even where all weights are frozen
            scores = [critic(images.detach().requires_grad_()) for images in (real, fake)]
            loss = objective.critic_loss(*scores)
            every = [output for both in outputs.values() for output in both]
            gradients = iter(torch.autograd.grad(loss, every) if every else ())
    finally:
        for hook in hooks:
            hook.remove()
    return {name: math.sqrt(sum(next(gradients).square().sum().item() for _ in both)) for name, both in outputs.items()}


def growth(norms: list[float]) -> float:
    """Slope of log10 of the norms over the layers, by least squares: decades per layer from the input to the score.

    0 where gradients keep their size; negative where they grow on their way back to the input (explode), positive
    where they vanish. Not a number where a norm is zero or not finite.
    """
    if not all(0 < norm < math.inf for norm in norms) or len(norms) < 2:
        return math.nan
    logs = torch.tensor(norms, dtype=torch.float64).log10()
    place = torch.arange(len(norms), dtype=torch.float64)
    place -= place.mean()
    return (place @ logs / place.square().sum()).item()


def optimality(critic: nn.Module, real: Tensor, fake: Tensor) -> dict[str, float]:
    """How near a critic is to the best 1-Lipschitz one between ``real`` and ``fake``, both (n, *shape).

    ``critic/potential_correlation``: Pearson's correlation of its values at all of these points with those of the
    Kantorovich potential, 1 for the best critic at any scale (WGAN-GP, arXiv 1704.00028, figure 1a, as a number).
    ``critic/distance_found``: its estimate over the exact W1 and over the lower bound of its Lipschitz constant; at
    most 1 where that is tight. Empty where points are not finite; a constant critic correlates with nothing.
    """
    points = torch.cat([real, fake])
    if not torch.isfinite(points).all():
        return {}
    values, best = exact(critic(points)).cpu(), kantorovich_potential(real, fake)(points)
    estimate, distance = (f[: len(real)].mean() - f[len(real) :].mean() for f in (values, best))
    steepest = lipschitz_lower_bound(critic, points)
    correlation = torch.corrcoef(torch.stack([values, best]))[0, 1].item()
    return {
        **({"critic/potential_correlation": correlation} if math.isfinite(correlation) else {}),
        "critic/distance_found": (estimate / distance).item() / steepest if steepest else 0.0,
    }


def weights_at_bound(critic: nn.Module, bound: float) -> dict[str, float]:
    """Share of each layer's weights whose magnitude is the bound, by name of the layer."""
    return {name: (layer.weight.detach().abs() >= bound).float().mean().item() for name, layer in layers(critic)}


def critic_report(
    critic: nn.Module, objective: Objective, real: Tensor, fake: Tensor, points: Tensor, bound: float
) -> dict[str, float]:
    """Gradient norms, Lipschitz bounds and per-layer values of a critic in evaluation mode, by column of metrics.csv.

    ``real``, ``fake`` and ``points`` (interpolates, say) are samples (n, *shape), of which BLOCK give the gradients of
    layers; ``bound`` is the clipping bound.
    Values that are not finite (of layers without a known bound, of gradients that are zero) are left out: they would
    be taken for divergence.
    """
    of_real, of_fake, between = (slopes(critic, samples) for samples in (real, fake, points))
    steepest = (norms.max().item() for norms in (of_real, of_fake, between))
    lower = max(*steepest, *(steepest_secant(critic, samples) for samples in (real, fake, points)))
    few = slice(BLOCK if is_one_function(critic) else None)
    norms = layer_gradient_norms(critic, objective, real[few], fake[few])
    estimate = (critic(real).mean() - critic(fake).mean()).item()
    found = {
        "critic/slope_real": of_real.mean().item(),
        "critic/slope_fake": of_fake.mean().item(),
        "critic/lipschitz_lower": lower,
        "critic/lipschitz_upper": lipschitz_upper_bound(critic),
        "critic/estimate_per_lipschitz": estimate / lower if lower else 0.0,
        "critic/gradient_growth": growth(list(norms.values())),
        **{f"critic/layer_gradient/{name}": norm for name, norm in norms.items()},
        **{f"critic/layer_at_bound/{name}": share for name, share in weights_at_bound(critic, bound).items()},
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}
