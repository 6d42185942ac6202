"""Every fast path gives the results of the plain one."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.loops import gradient_penalty, optimizers
from tests.conftest import NARROW, config
from wganlab.adversarial import AdversarialModule
from wganlab.build import build_module, construct
from wganlab.callbacks.compilation import AUTO_CRITIC_STEPS
from wganlab.data.stream import Batch
from wganlab.networks.mlp import Critic
from wganlab.runs import Run
from wganlab.training import fit

BARE = ["callbacks=none", "logger=csv", "log_every=1", "batch_size=16"]
TOY = ["dataset=gaussians8", "model=toy_mlp", "model.generator.hidden=[32,32]", "model.critic.hidden=[32,32]"]
MLP = ["model.generator.hidden=[32,32]", "model.critic.hidden=[32,16]"]
DCGAN = ["model=dcgan", "model.generator.n_filters=8", "model.critic.n_filters=4"]  # batch norm, layer norm, dropout
WIDTHS = ["model.generator.widths=[16,16]", "model.critic.widths=[16,16]"]
COLUMNS = ("critic/loss", "critic/penalty", "critic/real_score", "generator/loss")


def losses(folder: Path, *overrides: str) -> list[list[float]]:
    """What a run writes for every step."""
    folder.mkdir(exist_ok=True)
    fit(config(*BARE, *overrides), folder)
    return [[row[column] for column in COLUMNS] for row in Run(folder).rows]


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["loss=wgan_gp", *TOY], 50),
        pytest.param(["loss=gan", *MLP], 50, marks=pytest.mark.slow),
        pytest.param(["loss=wgan_clip", *MLP], 50, marks=pytest.mark.slow),
        pytest.param(["loss=wgan_gp", *MLP], 50, marks=pytest.mark.slow),
        pytest.param(["loss=wgan_gp", "loss.n_critic=2", *DCGAN], 10, marks=pytest.mark.slow),
        pytest.param(
            ["loss=wgan_gp", "+loss.regularizer.gradient_penalty.eval_mode=true", *DCGAN], 5, marks=pytest.mark.slow
        ),
        pytest.param(["training=fixed_generator", "loss=wgan_gp", *TOY], 20, marks=pytest.mark.slow),
        pytest.param(["loss=r3gan", "+loss.regularizer.r1.every=3", *MLP], 20, marks=pytest.mark.slow),
        pytest.param(["loss=sngan", *MLP], 20, marks=pytest.mark.slow),
        pytest.param(["loss=wgan_lp", *MLP], 20, marks=pytest.mark.slow),
        pytest.param(["loss=dragan", *MLP], 20, marks=pytest.mark.slow),
        pytest.param(["loss=wgan_div", *MLP], 20, marks=pytest.mark.slow),
        pytest.param(["loss=wgan_gp", "model=conditional_mlp", *MLP], 20, marks=pytest.mark.slow),
        pytest.param(["loss=sngan", "model=conditional_dcgan", *DCGAN[1:]], 10, marks=pytest.mark.slow),
        pytest.param(["loss=r3gan", "model=r3gan", "dataset.size=8", *WIDTHS], 10, marks=pytest.mark.slow),
        pytest.param(["loss=acgan", "model=acgan_mlp", *MLP], 20, marks=pytest.mark.slow),
        pytest.param(["loss=hinge", "augmentation=diffaug", "averaging=ema", *MLP], 20, marks=pytest.mark.slow),
    ],
)
def test_compiled_training_is_plain_training(
    overrides: list[str], steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In fp64: in fp32 a rounding that carries one activation across a kink is blown up by Adam within fifty steps."""
    same = [f"steps={steps}", "precision=64-true", *overrides]
    plain = losses(tmp_path / "off", "compile=off", *same)
    compiled = losses(tmp_path / "on", "compile=on", *same)
    assert "compiled in" in capsys.readouterr().out, "a run that fell back would be compared with itself"
    assert len(compiled) == steps
    assert torch.allclose(torch.tensor(compiled), torch.tensor(plain), rtol=1e-6, atol=1e-8)


def plain_losses(loss: str, settings: DictConfig, module: AdversarialModule, reals: list[Tensor]) -> list[float]:
    """Critic and generator losses of a loop with nothing but torch's defaults, written out by hand."""
    generator, critic, bce = module.generator, module.critic, nn.BCEWithLogitsLoss()
    step_generator, step_critic = optimizers(settings, generator, critic, fused=False)
    losses = []
    for batches in reals:
        for real in batches:
            fake = generator(torch.randn(len(real), module.latent_dim, dtype=torch.float64)).detach()
            scores, fooled = critic(real), critic(fake)
            if loss == "gan":
                of_critic = bce(scores, torch.ones_like(scores)) + bce(fooled, torch.zeros_like(fooled))
            else:
                of_critic = fooled.mean() - scores.mean()
            if loss == "wgan_gp":
                of_critic = of_critic + 10 * gradient_penalty(critic, real, fake)
            step_critic.zero_grad()
            of_critic.backward()
            step_critic.step()
            if loss == "wgan_clip":
                for parameter in critic.parameters():
                    parameter.data.clamp_(-0.01, 0.01)
            losses.append(of_critic.item())
        fooled = critic(generator(torch.randn(len(real), module.latent_dim, dtype=torch.float64)))
        of_generator = bce(fooled, torch.ones_like(fooled)) if loss == "gan" else -fooled.mean()
        step_generator.zero_grad()
        of_generator.backward()
        step_generator.step()
        losses.append(of_generator.item())
    return losses


@pytest.mark.parametrize("loss", ["gan", "wgan_clip", "wgan_gp"])
def test_fifty_steps_are_those_of_a_plain_loop(loss: str) -> None:
    """All that makes training fast at once (own gradients, one pass, constant slopes, fused Adam) changes rounding."""
    settings = config(f"loss={loss}", "model=mlp", "dataset=digits", *NARROW)
    module, plain = (build_module(settings, construct(settings, "dataset")).double() for _ in range(2))
    plain.load_state_dict(module.state_dict())
    random = torch.Generator().manual_seed(0)
    reals = [
        torch.rand(module.loss.n_critic, 16, *construct(settings, "dataset").shape, generator=random).double() * 2 - 1
        for _ in range(50)
    ]
    torch.manual_seed(0)
    optimizers = module.configure_optimizers()
    for batches in reals:
        module.alternate([Batch(real) for real in batches], *optimizers)
    torch.manual_seed(0)
    written_out = plain_losses(loss, settings, plain, reals)
    expected = torch.tensor(written_out, dtype=torch.float64)
    per_step = expected.view(50, module.loss.n_critic + 1)
    torch.testing.assert_close(
        torch.stack([values[0] for values in module.window.critic]), per_step[:, :-1].flatten(), rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(torch.stack(module.window.generator), per_step[:, -1], rtol=1e-10, atol=1e-12)


class Branching(Critic):
    """A critic that no compiler can follow."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * float(str(images.mean().item() * 0 + 1))


class Deceptive(Critic):
    """A critic that is another one when it is compiled."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (2 if torch.compiler.is_compiling() else 1)


@pytest.mark.parametrize(
    ("critic", "why"), [("Branching", "not compiled"), ("Deceptive", "the compiled gradient of the critic differs")]
)
def test_what_cannot_be_compiled_rightly_trains_plainly(
    critic: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*TOY, f"model.critic._target_=tests.test_compilation.{critic}", "steps=3"]
    compiled = losses(tmp_path / "on", "compile=on", *own)
    said = [line for line in capsys.readouterr().out.splitlines() if "compiled" in line]
    assert len(said) == 1
    assert why in said[0]
    assert compiled == losses(tmp_path / "off", "compile=off", *own)


def test_short_runs_are_not_compiled_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses(tmp_path, "steps=3", *TOY)
    assert "compil" not in capsys.readouterr().out
    assert config().steps * config().loss.n_critic < AUTO_CRITIC_STEPS, "the demo is a short run"


def gradients(module: AdversarialModule, name: str) -> list[Tensor]:
    torch.manual_seed(0)
    real = torch.rand(16, *module.shape, dtype=module.dtype) * 2 - 1  # type: ignore[arg-type]
    found, _ = module.gradients(name, module.loss.active(0), Batch(real), module.latents(16))
    return [gradient for gradient in found if gradient is not None]


def differences(change: Callable[[AdversarialModule], object], *overrides: str) -> float:
    """Largest relative difference that a change makes to the gradients of a fresh pair, in fp64."""
    settings = config("loss=wgan_gp", *overrides)
    plain, changed = (build_module(settings, construct(settings, "dataset")).double() for _ in range(2))
    change(changed)
    expected, got = ([g for name in ("critic", "generator") for g in gradients(m, name)] for m in (plain, changed))
    return max(((a - b).norm() / a.norm().clamp(min=1e-3)).item() for a, b in zip(expected, got, strict=True))


def test_real_and_generated_images_in_one_pass_give_the_gradients_of_two() -> None:
    def two_passes(module: AdversarialModule) -> None:
        assert module.critic.samplewise
        module.critic = nn.Sequential(module.critic)  # says nothing of how it scores

    assert differences(two_passes, *MLP) < 1e-10
    for coupled in (["model.critic.norm=batch"], ["model.critic.minibatch_kernels=3"]):
        settings = config(*MLP, *coupled)
        assert not build_module(settings, construct(settings, "dataset")).critic.samplewise, coupled
    settings = config(*DCGAN)
    assert not build_module(settings, construct(settings, "dataset")).critic.samplewise, "dropout would be drawn anew"


def test_channels_last_gives_the_same_gradients() -> None:
    without_dropout = [*DCGAN, "model.critic.dropout=0"]  # its masks are drawn in the order of memory
    assert differences(lambda module: module.to(memory_format=torch.channels_last), *without_dropout) < 1e-10


def test_a_gradient_in_another_layout_is_laid_out_as_its_parameter() -> None:
    """Fused Adam reads both as plain memory."""
    settings = config(*DCGAN)
    module = build_module(settings, construct(settings, "dataset")).to(memory_format=torch.channels_last)
    _, optimizer = module.configure_optimizers()
    wanted = [torch.randn_like(weight) for weight in module.weights["critic"]]
    module.update("critic", optimizer, [gradient.contiguous() for gradient in wanted], ())
    for parameter, gradient in zip(module.weights["critic"], wanted, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to be found")
def test_optimizers_do_not_look_for_a_gpu_at_every_step() -> None:
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ


def test_no_zeros_are_multiplied_in_a_compiled_penalty() -> None:
    """To autograd, the second derivative of LeakyReLU is a tensor of zeros: the compiled critic of WGAN-GP would make
    three more products for it."""
    module = build_module(settings := config("loss=wgan_gp", *MLP), construct(settings, "dataset"))
    real = Batch(torch.randn(4, 1, 28, 28))
    gradients = functools.partial(module.gradients, "critic", ("gradient_penalty",), real, module.critic_latents(real))
    plain, compiled = Products(), list[Any]()

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        compiled.extend(node.target for node in graph.graph.nodes if node.target in Products.KINDS)
        return graph

    with plain:
        gradients()
    torch.compiler.reset()
    torch._dynamo.config.trace_autograd_ops = True
    torch.compile(gradients, fullgraph=True, backend=aot_autograd(fw_compiler=count))()
    assert len(compiled) == plain.seen > 0


class Products(TorchDispatchMode):
    """Counts matrix products."""

    KINDS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += func in self.KINDS
        return func(*args, **(kwargs or {}))
