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
from torch.nn.utils.parametrizations import spectral_norm
from torch.overrides import TorchFunctionMode

from wganlab import parallel
from wganlab.networks.layers import at_least_fp32, evaluation_mode
from wganlab.schema import InvalidValueError

NormOver = Literal["image", "pixel", "batch"]
AlphaPer = Literal["image", "batch"]
Place = Literal["real", "fake", "interpolates"]

#: Their scale and shift normalise activations and are no weights of the critic's function class: clipping a scale
#: of 1 to 0.01 would shrink every layer a hundredfold.
NORM_LAYERS = (
    *parallel.BATCH_NORMS,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.RMSNorm,
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

    def note(self, critic: nn.Module) -> str | None:
        """What a user is to know of it beside this critic, in one line, before training."""
        return None

    def penalty(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Scalar added to the critic's loss; ``real`` and ``fake`` are batches of one shape, without gradients.

        ``critic`` is a function of images alone, differentiable with respect to them and to its weights.
        """
        return real.new_zeros(())

    def project(self, critic: nn.Module) -> None:
        """Change the critic's weights in place, after each of its optimizer steps."""


class WeightClipping(Regularizer):
    """w <- clip(w, -bound, bound) after each critic step (WGAN, arXiv 1701.07875, Algorithm 1, line 7).

    Scales and shifts of normalisation layers are left alone, unless ``norm_scales``: the paper's own program clips
    them, too.
    """

    def __init__(self, *, bound: PositiveFloat = 0.01, norm_scales: bool = False) -> None:
        self.bound, self.norm_scales = bound, norm_scales

    @torch.no_grad()
    def project(self, critic: nn.Module) -> None:
        """Clip every weight and bias into [-bound, bound]."""
        for parameter in critic.parameters() if self.norm_scales else critic_weights(critic).values():
            parameter.clamp_(-self.bound, self.bound)


def interpolate(
    real: Tensor, fake: Tensor, *, alpha_per: AlphaPer = "image", generator: torch.Generator | None = None
) -> Tensor:
    """alpha * real + (1 - alpha) * fake with alpha ~ U[0, 1) (WGAN-GP, Algorithm 1, lines 4 and 6).

    One alpha per image; some published programs draw one for the whole batch. Without a ``generator``, a rank takes its
    rows of what all ranks draw.
    """
    shape = (1,) * (real.dim() - 1)
    if alpha_per == "batch" or generator:
        n = 1 if alpha_per == "batch" else len(real)
        alpha = torch.rand(n, *shape, device=real.device, generator=generator)
    else:
        alpha = parallel.batch_rand(len(real), *shape, device=real.device)
    return torch.lerp(fake, real, alpha.to(real.dtype))


#: Activations whose slope is constant on either side of zero, with their arguments.
PIECEWISE_LINEAR = {
    functional.relu: ("input", "inplace"),
    functional.leaky_relu: ("input", "negative_slope", "inplace"),
}


class PiecewiseLinear(TorchFunctionMode):
    """Within it, ReLU and LeakyReLU scale by constant slopes, so that they have no second derivative at all.

    To autograd it is a tensor of zeros, which it would carry back through every layer of the critic: up to a seventh
    of the arithmetic of a step of WGAN-GP. A compiler does not see that they are zeros, and multiplies them, too.
    Values and gradients are the same.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in PIECEWISE_LINEAR:
            slope = 0.01 if func is functional.leaky_relu else 0.0
            given = {"negative_slope": slope} | dict(zip(PIECEWISE_LINEAR[func], args, strict=False)) | kwargs
            if not given.get("inplace"):  # else others may count on the changed input
                x = given["input"]
                # x where x > 0, else slope * x: the kernel of LeakyReLU's gradient, which is linear in what it scales
                return torch.ops.aten.leaky_relu_backward(x, x.detach(), given["negative_slope"], False)
        return func(*args, **kwargs)


def gradient_norms(
    critic: nn.Module, images: Tensor, *, norm_over: NormOver = "image", create_graph: bool = False
) -> Tensor:
    """Euclidean norm of the critic's gradient at each image, over all its pixels and channels; shape (batch,).

    Two published programs take other norms: "pixel" over the channels of each pixel, shape (batch, height, width),
    and "batch" one over everything, shape ().
    """
    linear = PiecewiseLinear() if create_graph else contextlib.nullcontext()
    with torch.enable_grad(), linear:
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=create_graph)
    # no epsilon under the root: it would bias the norms, and torch defines the norm's gradient at zero as zero
    if norm_over == "pixel":
        return torch.linalg.vector_norm(gradient, dim=1)
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1 if norm_over == "image" else (0, 1))


class SlopePenalty(Regularizer):
    """weight * E[term(|| grad f ||)] at some points, a function of the slope; a new one overrides ``points``, ``term``.

    It is computed in fp32 even under mixed precision, whose gradients of gradients would lose it.
    """

    norm_over: NormOver = "image"
    eval_mode = False

    def __init__(self, *, weight: NonNegativeFloat, every: PositiveInt = 1) -> None:
        self.weight, self.every = weight, every

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        """Where the slope is taken, (batch, *shape)."""
        raise NotImplementedError

    def term(self, norms: Tensor) -> Tensor:
        """What is averaged, of the norms of the gradient."""
        raise NotImplementedError

    def penalty(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Scalar, differentiable with respect to the critic's weights."""
        with torch.autocast(real.device.type, enabled=False), evaluation_mode(*([critic] if self.eval_mode else [])):
            points = self.points(at_least_fp32(real), at_least_fp32(fake))
            norms = gradient_norms(critic, points, norm_over=self.norm_over, create_graph=True)
            return self.weight * self.term(norms).mean()


class GradientPenalty(SlopePenalty):
    """weight * E[(|| grad f(x^) || - target)^2] at random interpolates x^ (WGAN-GP, arXiv 1704.00028, equation 3).

    The norm is taken per image over all pixels and channels. Three faults of published programs are switches:
    ``norm_over`` (see :func:`gradient_norms`), ``alpha_per`` (see :func:`interpolate`), and ``eval_mode``, which passes
    the interpolates through a critic in evaluation mode (running statistics, no dropout) while it scores real and
    generated images in training mode. ``one_sided`` leaves slopes below the target alone (WGAN-LP, Petzka et al. 2018,
    arXiv 1709.08894, equation 8).
    """

    def __init__(
        self,
        *,
        weight: NonNegativeFloat = 10.0,
        target: NonNegativeFloat = 1.0,
        norm_over: NormOver = "image",
        alpha_per: AlphaPer = "image",
        eval_mode: bool = False,
        one_sided: bool = False,
        every: PositiveInt = 1,
    ) -> None:
        super().__init__(weight=weight, every=every)
        self.target, self.one_sided = target, one_sided
        self.norm_over, self.alpha_per, self.eval_mode = norm_over, alpha_per, eval_mode

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        return interpolate(real, fake, alpha_per=self.alpha_per)

    def term(self, norms: Tensor) -> Tensor:
        excess = norms - self.target
        return (excess.clamp(min=0) if self.one_sided else excess).square()


class Dragan(GradientPenalty):
    """weight * E[(|| grad f(x^) || - target)^2] near real images (DRAGAN, Kodali et al. 2017, arXiv 1705.07215).

    As in the paper's program: x^ lies at random between x and x + spread * sd * u, where u ~ U[0, 1) per value, and sd
    is the standard deviation of all values of the batch.
    """

    def __init__(
        self,
        *,
        weight: NonNegativeFloat = 10.0,
        target: NonNegativeFloat = 1.0,
        spread: PositiveFloat = 0.5,
        every: PositiveInt = 1,
    ) -> None:
        super().__init__(weight=weight, target=target, every=every)
        self.spread = spread

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        mean, square = parallel.rank_mean(real.mean()), parallel.rank_mean(real.square().mean())
        sd = (square - mean.square()).clamp(min=0).sqrt()
        noise = parallel.batch_rand(*real.shape, device=real.device).to(real.dtype)
        return interpolate(real, real + self.spread * sd * noise)


class ZeroCentredPenalty(SlopePenalty):
    """weight * E[|| grad f ||^power] at real images, at generated ones, or at interpolates of both.

    At real images it is R1, at generated ones R2 (Mescheder et al. 2018, arXiv 1801.04406, equations 9 and 10), with
    half the paper's gamma as weight; at interpolates with power 2 that of Thanh-Tung et al. 2019 (arXiv 1902.03984),
    with power 6 and weight 2 that of WGAN-div (Wu et al. 2018, arXiv 1712.01026, equation 10).
    """

    def __init__(
        self, *, weight: NonNegativeFloat, at: Place, power: PositiveFloat = 2.0, every: PositiveInt = 1
    ) -> None:
        if power < 1:
            raise InvalidValueError("power", power, "must be at least 1: below, the slope at 0 is infinite")
        super().__init__(weight=weight, every=every)
        self.at, self.power = at, power

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        return real if self.at == "real" else fake if self.at == "fake" else interpolate(real, fake)

    def term(self, norms: Tensor) -> Tensor:
        return norms.pow(self.power)


#: The layers whose weights are matrices, of which spectral norm divides by the largest singular value; an embedding is
#: one over indicators of classes, and is divided in the programs of conditional SNGANs.
MATRIX_LAYERS = (
    nn.Linear,
    nn.Embedding,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class SpectralNorm(Regularizer):
    """W / sigma(W) in every linear, convolutional and embedding layer (SNGAN, Miyato et al. 2018, arXiv 1802.05957).

    Algorithm 1 of the paper. The largest singular value sigma is that of the kernel as a matrix of
    (out, in * height * width). Its estimate moves by ``n_power_iterations`` in every pass of a critic in training mode,
    and is part of the checkpoint.
    """

    def __init__(self, *, n_power_iterations: PositiveInt = 1) -> None:
        self.n_power_iterations = n_power_iterations

    def prepare(self, critic: nn.Module) -> nn.Module:
        """Put the norm on all layers of the critic, in place. Raises ValueError for a layer that begins at zero."""
        for name, module in [*critic.named_modules()]:
            if isinstance(module, MATRIX_LAYERS):
                if not (module.weight.is_meta or module.weight.any()):
                    divides = f"divides weights by their norm, and those of the critic's layer {name} begin at zero; "
                    allowed = "choose another loss/regularizer, or another critic"
                    raise InvalidValueError("_target_", "wganlab.regularizers.SpectralNorm", divides + allowed)
                spectral_norm(module, n_power_iterations=self.n_power_iterations)
        return critic

    def note(self, critic: nn.Module) -> str | None:
        if not any(isinstance(module, parallel.BATCH_NORMS) for module in critic.modules()):
            return None
        return "the critic's batch norm undoes the bound of spectral norm; model.critic.norm=none leaves it out"
