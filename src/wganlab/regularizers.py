"""Regularizers: what keeps the critic from growing without bound.

They alone see the critic's weights and gradients. :class:`Regularizer` is the contract; a new one overrides
``prepare`` (once, before training), ``penalty`` (a term of the critic's loss) or ``project`` (after each critic step).
"""

import contextlib
import math
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from wganlab import parallel
from wganlab.networks.layers import evaluation_mode

NormOver = Literal["image", "pixel", "batch"]
AlphaPer = Literal["image", "batch"]

#: Their scale and shift normalise activations and are no weights of the critic's function class: clipping a scale
#: of 1 to 0.01 would shrink every layer a hundredfold.
NORM_LAYERS = (
    *parallel.BATCH_NORMS,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
)


def critic_weights(critic: nn.Module) -> dict[str, nn.Parameter]:
    """Weights and biases of the critic by name, without those of normalisation layers."""
    return {
        f"{prefix}.{name}" if prefix else name: parameter
        for prefix, module in critic.named_modules()
        if not isinstance(module, NORM_LAYERS)
        for name, parameter in module.named_parameters(recurse=False)
    }


class Regularizer:
    """The contract, and its neutral element: it changes neither the critic nor its loss."""

    #: The penalty is taken in every so many-th critic step, and weighted by as much: lazy regularization (StyleGAN2,
    #: Karras et al. 2020, arXiv 1912.04958, appendix B).
    every: int = 1
    #: Largest magnitude that a critic weight may have.
    bound: float = math.inf

    def prepare(self, critic: nn.Module) -> nn.Module:
        """The critic that is trained, once, before training; a reparametrization returns another, or changes this."""
        return critic

    def penalty(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Scalar added to the critic's loss; ``real`` and ``fake`` are batches of one shape, without gradients.

        ``critic`` is a function of images alone, differentiable with respect to them and to its weights.
        """
        return real.new_zeros(())

    def project(self, critic: nn.Module) -> None:
        """Change the critic's weights in place, after each of its optimizer steps."""


class WeightClipping(Regularizer):
    """w <- clip(w, -bound, bound) after each critic step (WGAN, arXiv 1701.07875, Algorithm 1, line 7)."""

    def __init__(self, *, bound: PositiveFloat = 0.01) -> None:
        self.bound = bound

    @torch.no_grad()
    def project(self, critic: nn.Module) -> None:
        """Clip every weight and bias, except those of normalisation layers, into [-bound, bound]."""
        for parameter in critic_weights(critic).values():
            parameter.clamp_(-self.bound, self.bound)


def interpolate(
    real: Tensor, fake: Tensor, *, alpha_per: AlphaPer = "image", generator: torch.Generator | None = None
) -> Tensor:
    """alpha * real + (1 - alpha) * fake with alpha ~ U[0, 1) (WGAN-GP, Algorithm 1, lines 4 and 6).

    One alpha per image; some published programs draw one for the whole batch. Without a ``generator``, a rank takes its
    rows of what all ranks draw.
    """
    n = 1 if alpha_per == "batch" else len(real) if generator else len(real) * parallel.world_size()
    alpha = torch.rand((n,) + (1,) * (real.dim() - 1), device=real.device, generator=generator)
    if n > len(real):
        alpha = parallel.shard(alpha)
    return torch.lerp(fake, real, alpha.to(real.dtype))


#: Activations whose slope is constant on either side of zero, with their arguments.
PIECEWISE_LINEAR = {
    functional.relu: ("input", "inplace"),
    functional.leaky_relu: ("input", "negative_slope", "inplace"),
}


class PiecewiseLinear(TorchFunctionMode):
    """Within it, ReLU and LeakyReLU multiply by a constant mask, so that they have no second derivative at all.

    To autograd it is a tensor of zeros, which it would carry back through every layer of the critic: up to a seventh
    of the arithmetic of a step of WGAN-GP. Values and gradients are the same.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in PIECEWISE_LINEAR:
            slope = 0.01 if func is functional.leaky_relu else 0.0
            given = {"negative_slope": slope} | dict(zip(PIECEWISE_LINEAR[func], args, strict=False)) | kwargs
            if not given.get("inplace"):  # else others may count on the changed input
                x = given["input"]
                return x * torch.where(x > 0, 1.0, x.new_full((), given["negative_slope"]))
        return func(*args, **kwargs)


def gradient_norms(
    critic: nn.Module, images: Tensor, *, norm_over: NormOver = "image", create_graph: bool = False
) -> Tensor:
    """Euclidean norm of the critic's gradient at each image, over all its pixels and channels; shape (batch,).

    Two published programs take other norms: "pixel" over the channels of each pixel, shape (batch, height, width),
    and "batch" one over everything, shape ().
    """
    # compilers drop the zeros by themselves
    linear = PiecewiseLinear() if create_graph and not torch.compiler.is_compiling() else contextlib.nullcontext()
    with torch.enable_grad(), linear:
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=create_graph)
    # no epsilon under the root: it would bias the norms, and torch defines the norm's gradient at zero as zero
    if norm_over == "pixel":
        return torch.linalg.vector_norm(gradient, dim=1)
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1 if norm_over == "image" else (0, 1))


class GradientPenalty(Regularizer):
    """weight * E[(|| grad f(x^) || - target)^2] at random interpolates x^ (WGAN-GP, arXiv 1704.00028, equation 3).

    The norm is taken per image over all pixels and channels, and the penalty is computed in fp32 even under
    mixed precision, whose gradients of gradients would lose it. Three faults of published programs are switches:
    ``norm_over`` (see :func:`gradient_norms`), ``alpha_per`` (see :func:`interpolate`), and ``eval_mode``, which passes
    the interpolates through a critic in evaluation mode (running statistics, no dropout) while it scores real and
    generated images in training mode.
    """

    def __init__(
        self,
        *,
        weight: NonNegativeFloat = 10.0,
        target: NonNegativeFloat = 1.0,
        norm_over: NormOver = "image",
        alpha_per: AlphaPer = "image",
        eval_mode: bool = False,
        every: PositiveInt = 1,
    ) -> None:
        self.weight, self.target = weight, target
        self.norm_over, self.alpha_per, self.eval_mode, self.every = norm_over, alpha_per, eval_mode, every

    def penalty(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Scalar, differentiable with respect to the critic's weights."""
        with torch.autocast(real.device.type, enabled=False), evaluation_mode(*([critic] if self.eval_mode else [])):
            full = torch.promote_types(real.dtype, torch.float32)
            points = interpolate(real.to(full), fake.to(full), alpha_per=self.alpha_per)
            norms = gradient_norms(critic, points, norm_over=self.norm_over, create_graph=True)
            return self.weight * (norms - self.target).square().mean()
