"""Regularizers against closed forms: the gradient of a linear critic is its weight, everywhere."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.conftest import config
from wganlab.networks.layers import Dropout
from wganlab.regularizers import (
    Dragan,
    GradientPenalty,
    Regularizer,
    SpectralNorm,
    WeightClipping,
    ZeroCentredPenalty,
    critic_weights,
    gradient_norms,
    interpolate,
)
from wganlab.schema import ConfigError
from wganlab.training import fit
from wganlab.validate import validate

SHAPES = [(2,), (1, 28, 28), (3, 32, 32), (3, 64, 64)]


class LinearCritic(nn.Module):
    """f(x) = <w, x> with a given norm of w."""

    def __init__(self, shape: tuple[int, ...], norm: float) -> None:
        super().__init__()
        direction = torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(norm * direction / direction.norm())

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", [0.25, 1.0, 3.0])
def test_penalty_of_a_linear_critic(shape: tuple[int, ...], norm: float) -> None:
    real, fake = torch.randn(2, 5, *shape)
    penalty = GradientPenalty(weight=10, target=1).penalty(LinearCritic(shape, norm), real, fake)
    assert penalty.item() == pytest.approx(10 * (norm - 1) ** 2, abs=1e-4)


def test_penalty_gradient_of_a_linear_critic() -> None:
    """d/dw weight (|w| - 1)^2 = 2 weight (|w| - 1) w / |w|: the penalty reaches the weights, with the right sign."""
    critic = LinearCritic((3, 4, 4), 3.0)
    GradientPenalty(weight=10).penalty(critic, *torch.randn(2, 5, 3, 4, 4)).backward()
    assert critic.weight.grad is not None
    expected = 2 * 10 * (3 - 1) * critic.weight.detach() / 3
    assert torch.allclose(critic.weight.grad, expected, atol=1e-4)


def test_penalty_takes_the_norm_per_image() -> None:
    """For f(x) = |x|^2 / 2 the slope at x is |x|: images of different norms must not share one."""

    class Quadratic(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1).square().sum(1) / 2

    images = torch.stack([torch.full((3, 2, 2), value) for value in (0.0, 1.0, 2.0)])
    norms = torch.tensor([0.0, 1.0, 2.0]) * math.sqrt(12)
    assert torch.allclose(gradient_norms(Quadratic(), images), norms)
    penalty = GradientPenalty(weight=2, target=1).penalty(Quadratic(), images, images)
    assert penalty.item() == pytest.approx(2 * (norms - 1).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("norm", [0.25, 1.0, 3.0])
def test_norms_that_published_programs_take(norm: float) -> None:
    """At a linear critic w, one norm over n images is sqrt(n) |w|, and norms per pixel are over the channels of w."""
    shape, n = (3, 4, 5), 7
    critic, (real, fake) = LinearCritic(shape, norm), torch.randn(2, n, *shape)
    whole = GradientPenalty(weight=2, norm_over="batch").penalty(critic, real, fake)
    assert whole.item() == pytest.approx(2 * (math.sqrt(n) * norm - 1) ** 2, rel=1e-4)
    per_pixel = GradientPenalty(weight=2, norm_over="pixel").penalty(critic, real, fake)
    channels = critic.weight.detach().view(shape).norm(dim=0)
    assert per_pixel.item() == pytest.approx(2 * (channels - 1).square().mean().item(), rel=1e-4)


def test_penalty_in_evaluation_mode_leaves_the_critic_training() -> None:
    critic = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1), nn.Flatten(0))
    real, fake = torch.randn(2, 16, 4)
    seen: list[bool] = []
    critic[1].register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    before = critic[1].running_mean.clone()  # type: ignore[operator]
    GradientPenalty(eval_mode=True).penalty(critic, real, fake).backward()
    assert torch.equal(critic[1].running_mean, before)  # type: ignore[arg-type]
    GradientPenalty().penalty(critic, real, fake)
    assert seen == [False, True]
    assert critic.training
    assert critic[0].weight.grad is not None


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.3), nn.ReLU(), nn.Tanh()])
def test_constant_slopes_change_neither_penalty_nor_gradient(activation: nn.Module) -> None:
    linear = [nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(8, 1)]
    critic = nn.Sequential(linear[0], nn.LayerNorm(16), activation, linear[1], activation, linear[2], nn.Flatten(0))
    critic.double()
    real, fake = torch.randn(2, 32, 4, dtype=torch.float64)
    torch.manual_seed(1)
    penalty = GradientPenalty(weight=10).penalty(critic, real, fake)
    torch.manual_seed(1)
    points = interpolate(real, fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    plain = 10 * (torch.linalg.vector_norm(gradient, dim=1) - 1).square().mean()
    weights = [layer.weight for layer in linear]
    torch.testing.assert_close(penalty, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(penalty, weights), torch.autograd.grad(plain, weights), rtol=1e-10, atol=1e-14
    )


def test_constant_slopes_spare_a_penalty_the_zeros_of_second_derivatives() -> None:
    """Counted in products of matrices: back through three layers and to their weights, but not through them again."""
    critic = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.LeakyReLU(), nn.Linear(8, 1), nn.Flatten(0))
    with torch.profiler.profile() as seen:
        GradientPenalty().penalty(critic, *torch.randn(2, 6, 4)).backward()
    products = {event.key: event.count for event in seen.key_averages()}
    # forward 3 (addmm); mm: gradient at the images 3, and its gradient to 3 weights and to 3 incoming gradients, of
    # which the last, of the constant ones that the scores are summed with, is not needed
    assert products["aten::addmm"] == 3
    assert products["aten::mm"] == 3 + 3 + 2


def test_slope_of_zero_has_a_finite_gradient() -> None:
    critic = LinearCritic((2,), 0.0)
    GradientPenalty().penalty(critic, *torch.randn(2, 4, 2)).backward()
    assert critic.weight.grad is not None
    assert torch.isfinite(critic.weight.grad).all()


def test_interpolates_lie_between_with_one_alpha_per_image() -> None:
    real, fake = torch.ones(1000, 3, 4, 4), torch.zeros(1000, 3, 4, 4)
    alpha = interpolate(real, fake).flatten(1)
    assert (alpha == alpha[:, :1]).all()
    assert len(alpha[:, 0].unique()) > 900
    assert 0 <= alpha.min() < 0.02
    assert 0.98 < alpha.max() <= 1


def test_penalty_is_fp32_under_mixed_precision() -> None:
    seen = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 1)

        def forward(self, images: Tensor) -> Tensor:
            scores = self.linear(images).squeeze(1)
            seen.append(scores.dtype)
            return scores

    real, fake = torch.randn(2, 8, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty = GradientPenalty().penalty(Watched(), real.bfloat16(), fake.bfloat16())
    assert seen == [torch.float32]
    assert penalty.dtype == torch.float32


def test_penalty_keeps_no_graph_of_the_generator() -> None:
    source = torch.randn(4, 2, requires_grad=True)
    GradientPenalty().penalty(LinearCritic((2,), 2.0), torch.randn(4, 2), source * 2).backward()
    assert source.grad is None


def test_clipping_bounds_weights_and_biases_but_no_normalisation() -> None:
    norms = [nn.BatchNorm2d(4), nn.GroupNorm(1, 4), nn.LayerNorm(3), nn.Linear(3, 1), nn.RMSNorm(3)]
    critic = nn.Sequential(nn.Conv2d(1, 4, 3), *norms)
    for parameter in critic.parameters():
        nn.init.constant_(parameter, 0.7)
    WeightClipping(bound=0.01).project(critic)
    for name, parameter in critic.named_parameters():
        expected = 0.01 if name.startswith(("0.", "4.")) else 0.7
        assert torch.allclose(parameter, torch.tensor(expected)), name
    assert set(critic_weights(critic)) == {"0.weight", "0.bias", "4.weight", "4.bias"}


def test_clipping_leaves_weights_inside_the_bound_alone() -> None:
    critic = nn.Linear(1, 3, bias=False)
    critic.weight.data = torch.tensor([[-0.5], [0.003], [0.5]])
    WeightClipping(bound=0.01).project(critic)
    assert critic.weight.flatten().tolist() == pytest.approx([-0.01, 0.003, 0.01])


class Bowl(nn.Module):
    """f(x) = scale |x|^2 / 2, whose slope at x is scale |x|."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * images.flatten(1).square().sum(1) / 2


@pytest.mark.parametrize("norm", [0.25, 1.0, 3.0])
def test_a_one_sided_penalty_leaves_gentle_slopes_alone(norm: float) -> None:
    critic, (real, fake) = LinearCritic((3, 4, 4), norm), torch.randn(2, 5, 3, 4, 4)
    penalty = GradientPenalty(weight=10, one_sided=True).penalty(critic, real, fake)
    assert penalty.item() == pytest.approx(10 * max(0, norm - 1) ** 2, abs=1e-4)


@pytest.mark.parametrize("power", [2, 6])
def test_zero_centred_penalties_are_powers_of_the_slope_where_they_are_taken(power: float) -> None:
    real, fake = torch.randn(2, 6, 2, 3, 3)
    for place, images in (("real", real), ("fake", fake)):
        part = ZeroCentredPenalty(weight=3, at=place, power=power)  # type: ignore[arg-type]
        expected = 3 * 2**power * images.flatten(1).norm(dim=1).pow(power).mean()
        critic = Bowl(2.0)
        penalty = part.penalty(critic, real, fake)
        assert penalty.item() == pytest.approx(expected.item(), rel=1e-4)
        penalty.backward()  # d/ds of s^power
        assert critic.scale.grad.item() == pytest.approx(power * expected.item() / 2, rel=1e-4)  # type: ignore[union-attr]
    between = ZeroCentredPenalty(weight=3, at="interpolates", power=power)
    torch.manual_seed(4)
    penalty = between.penalty(Bowl(), real, fake)
    torch.manual_seed(4)
    points = interpolate(real, fake)
    assert penalty.item() == pytest.approx(3 * points.flatten(1).norm(dim=1).pow(power).mean().item(), rel=1e-4)
    flat = between.penalty(LinearCritic((2, 3, 3), 0.0), real, fake)
    flat.backward()
    assert flat.item() == 0, "and no division by the slope"


def test_dragan_takes_slopes_within_half_a_deviation_above_real_images() -> None:
    real = torch.randn(64, 1, 4, 4) * 3 + 1
    seen = []
    critic = LinearCritic((1, 4, 4), 3.0)
    critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    assert Dragan(weight=10).penalty(critic, real, real * torch.nan).item() == pytest.approx(40, abs=1e-3)
    moved = (seen[0] - real) / real.std(correction=0)
    assert moved.min() >= 0
    assert 0.4 < moved.max() < 0.5
    assert moved.mean().item() == pytest.approx(0.5 / 4, rel=0.2), "half of half of half: two uniform factors"


def test_spectral_norm_divides_by_the_largest_singular_value() -> None:
    critic = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 5), Dropout(0.5), nn.Linear(5, 1))
    original = [module.weight.detach().clone() for module in critic if isinstance(module, nn.Conv2d | nn.Linear)]
    assert SpectralNorm(n_power_iterations=500).prepare(critic) is critic
    critic(torch.zeros(1, 2, 4, 4))
    critic.eval()
    layers = [module for module in critic if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer, before in zip(layers, original, strict=True):
        sigma = torch.linalg.matrix_norm(before.flatten(1), ord=2)
        assert torch.allclose(layer.weight, before / sigma, atol=1e-5)


def test_batch_norm_beside_spectral_norm_is_allowed_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before training, and not where a trained critic is loaded."""
    words = ["loss=sngan", "steps=1", "callbacks=none", "logger=csv", "dataset.size=8", "model.critic.hidden=[8,8]"]
    for norm, times in (("batch", 1), ("layer", 0)):
        (tmp_path / norm).mkdir()
        settings = config(*words, f"model.critic.norm={norm}")
        validate(settings)
        fit(settings, tmp_path / norm)
        out = capsys.readouterr().out
        assert out.count("note: the critic's batch norm undoes the bound of spectral norm") == times


def test_spectral_norm_of_a_layer_that_begins_at_zero_is_one_line() -> None:
    settings = config("loss=sngan", "model=r3gan", "dataset.size=8", "model.critic.widths=[16,16]",
                      "model.generator.widths=[16,16]")  # fmt: skip
    with pytest.raises(ConfigError) as error:
        validate(settings)
    assert str(error.value).startswith(
        "loss.regularizer.spectral_norm._target_=wganlab.regularizers.SpectralNorm: divides weights by their norm, and "
        "those of the critic's layer features.1.residual.4 begin at zero; choose another loss/regularizer, or"
    )


def test_clipping_of_the_scales_of_norms_is_a_choice() -> None:
    for norm_scales, expected in ((False, 1.0), (True, 0.01)):
        layer, norm = nn.Linear(2, 3), nn.BatchNorm1d(3)
        WeightClipping(bound=0.01, norm_scales=norm_scales).project(nn.Sequential(layer, norm))
        assert norm.weight.tolist() == pytest.approx([expected] * 3)
        assert layer.weight.abs().max() <= 0.01


def test_the_base_class_is_neutral() -> None:
    critic = nn.Linear(2, 1)
    before = [parameter.clone() for parameter in critic.parameters()]
    assert Regularizer().penalty(critic, *torch.randn(2, 3, 2)).item() == 0
    Regularizer().project(critic)
    assert Regularizer().prepare(critic) is critic
    assert all(torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))


class AttentionCritic(nn.Module):
    """Somebody's critic, of an operation whose fast kernels have no second derivative."""

    def __init__(self, *, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(8, 24), nn.Linear(64, 1)

    def forward(self, images: Tensor) -> Tensor:
        queries, keys, values = self.inner(images[:, 0]).chunk(3, dim=-1)
        return self.head(self.attend(queries, keys, values).flatten(1)).squeeze(1)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(queries, keys, values)


class FlashCritic(AttentionCritic):
    """One that insists on such a kernel."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return super().attend(queries[:, None], keys[:, None], values[:, None]).squeeze(1)


class OnceCritic(AttentionCritic):
    """One with an operation of its own, of which autograd.grad would leave the second derivative out in silence."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return Doubled.apply(queries * keys * values)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def of_critic(name: str) -> list[str]:
    ours = ["hidden", "norm", "slope", "output", "init", "minibatch_kernels"]
    own = [f"~model.critic.{key}" for key in ours if key in config().model.critic]
    return [*own, f"model.critic._target_=tests.test_regularizers.{name}", "dataset.size=8", "batch_size=8", "steps=2"]


def test_a_critic_with_attention_is_penalised_by_a_kernel_that_can_be(tmp_path: Path) -> None:
    summary = fit(config(*of_critic("AttentionCritic"), "logger=csv", "callbacks=none"), tmp_path)
    assert summary["final"]["critic/penalty"] > 0


@pytest.mark.parametrize(
    ("critic", "operation", "helps"),
    [
        ("FlashCritic", "_scaled_dot_product_flash_attention_for_cpu_backward", r"sdpa_kernel\(SDPBackend\.MATH\)"),
        ("OnceCritic", "an operation marked as once_differentiable", "another operation"),
    ],
)
def test_a_penalty_without_second_derivative_is_refused_before_training(
    critic: str, operation: str, helps: str
) -> None:
    expected = rf"^loss\.regularizer\.gradient_penalty: .*\.{critic}, and {operation} has no derivative; .*{helps}"
    with pytest.raises(ConfigError, match=expected):
        validate(config(*of_critic(critic)))
    validate(config(*of_critic(critic), "loss=wgan_clip"))  # which has no penalty
