"""What users add from a folder of their own, without opening the package."""

import copy
import itertools
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from tests.conftest import config, wganlab
from tests.test_resume import assert_same, outcome
from wganlab.build import build_loss, build_module, construct, generator_steps, open_stream
from wganlab.data.stream import Batch
from wganlab.notebook import load_run
from wganlab.regularizers import Regularizer
from wganlab.runs import Run
from wganlab.schema import ConfigError
from wganlab.training import fit
from wganlab.validate import validate

PARTS = '''
import torch
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import spectral_norm
from wganlab.averaging import Averaging
from wganlab.regularizers import Regularizer


class Relativistic:
    relativistic = True

    def critic_loss(self, real_scores, fake_scores):
        return softplus(fake_scores - real_scores).mean()

    def generator_loss(self, fake_scores, real_scores):
        return softplus(real_scores - fake_scores).mean()


class ZeroCentred(Regularizer):
    """weight / 2 * E[|| grad f(x) ||^2] at real (R1) or generated (R2) images."""

    def __init__(self, *, weight: float, at: str, every: int = 1) -> None:
        self.weight, self.at, self.every = weight, at, every

    def penalty(self, critic, real, fake):
        images = (real if self.at == "real" else fake).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
        return self.weight / 2 * gradient.flatten(1).square().sum(1).mean()


class SpectralNorm(Regularizer):
    def prepare(self, critic):
        for module in critic.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                spectral_norm(module, n_power_iterations=50)
        return critic


class LeCam(torch.nn.Module, Regularizer):
    """Holds scores near their running means (Tseng et al. 2021, arXiv 2104.03310)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(2))

    def penalty(self, critic, real, fake):
        scores = torch.stack([critic(real).mean(), critic(fake).mean()])
        self.means = 0.9 * self.means + 0.1 * scores.detach()
        return (scores - self.means.flip(0)).square().sum()


class Noisy(torch.nn.Module):
    def __init__(self, *, latent_dim: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(latent_dim, shape[0])

    def forward(self, latents):
        return self.linear(latents + torch.randn_like(latents))


class Warmup:
    def __init__(self, *, first: int, n: int) -> None:
        self.first, self.n = first, n

    def __call__(self, step, n_critic):
        return self.n if step < self.first else n_critic


class Ema(Averaging):
    def __init__(self, *, decay: float) -> None:
        super().__init__()
        self.decay = decay

    @torch.no_grad()
    def update(self, generator, images_seen):
        self.images_seen = images_seen
        for average, weight in zip(self.network.parameters(), generator.parameters(), strict=True):
            average.lerp_(weight, 1 - self.decay)


def brighter(images):
    return images + 0.25


class Generator(torch.nn.Module):
    def __init__(self, *, latent_dim: int, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(classes, latent_dim)
        self.linear = torch.nn.Linear(latent_dim, shape[0])

    def forward(self, latents, labels):
        return self.linear(latents + self.embedding(labels))


class Critic(torch.nn.Module):
    def __init__(self, *, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(shape[0], 8)
        self.embedding = torch.nn.Embedding(classes, 8)

    def forward(self, points, labels):
        return (torch.relu(self.linear(points)) * self.embedding(labels)).sum(1)
'''
YAMLS = {
    "loss/own_r3gan": """
        # R3GAN (Huang et al. 2024, arXiv 2501.05441, equations 1 and 3)
        defaults: [/loss/optimizer@optimizer: adam, regularizer: [own_r1, own_r2], _self_]
        objective: {_target_: parts.Relativistic}
        regularizer: {}
        n_critic: 1
        """,
    "loss/regularizer/own_r1": "r1: {_target_: parts.ZeroCentred, weight: 1.0, at: real}",
    "loss/regularizer/own_r2": "r2: {_target_: parts.ZeroCentred, weight: 1.0, at: fake}",
    "loss/regularizer/own_spectral_norm": "spectral_norm: {_target_: parts.SpectralNorm}",
    "model/conditional": """
        latent_dim: 2
        generator: {_target_: parts.Generator, _partial_: true, classes: 8}
        critic: {_target_: parts.Critic, _partial_: true, classes: 8}
        """,
    "averaging/own_ema": "{_target_: parts.Ema, decay: 0.5}",
    "augmentation/brighter": "{_target_: hydra.utils.get_method, path: parts.brighter}",
}
TOY = ["dataset=gaussians8", "model=toy_mlp", "model.generator.hidden=[16]", "model.critic.hidden=[16]"]
QUICK = ["logger=csv", "steps=18", "log_every=1", "batch_size=16", "callbacks.checkpoints.every=5", "compile=off"]
QUICK += ["callbacks.samples.every=9", "callbacks.samples.n=16", "callbacks.evaluation.every=9"]
QUICK += ["callbacks.evaluation.n=16"]
WARM = "+loss.warmup={_target_: parts.Warmup, first: 4, n: 5}"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: parts.py, and YAMLs in conf/."""
    (tmp_path / "parts.py").write_text(PARTS)
    for name, text in YAMLS.items():
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).strip() + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own(*overrides: str) -> Any:
    """A composed config in the user's folder, checked."""
    settings = config("hydra.searchpath=[file://conf]", *QUICK, *overrides)
    validate(settings)
    return settings


def continued(settings: Any, folder: Path, at: int) -> None:
    """A run that ends at a step as a kill would end it, and goes on, has the bits of one made in one go."""
    (folder / "whole").mkdir()
    (folder / "parts").mkdir()
    fit(settings, folder / "whole")
    bombed = copy.deepcopy(settings)
    bombed.callbacks["bomb"] = {"_target_": "tests.test_resume.Bomb", "at": at}
    with pytest.raises(MemoryError):
        fit(bombed, folder / "parts")
    fit(settings, folder / "parts")
    assert_same(outcome(folder / "whole"), outcome(folder / "parts"))


def load_run_of(settings: Any, folder: Path) -> Any:
    """A run that ``fit`` made, which writes no config, as ``load_run`` returns it."""
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(settings))
    return load_run(folder)


def test_what_a_lazy_module_raises_is_not_taken_for_a_misspelt_name(mine: Path) -> None:
    (mine / "lazy_parts.py").write_text("def __getattr__(name): raise ImportError(f'{name} needs pip install foo')\n")
    with pytest.raises(ConfigError, match=r"lazy_parts\.Loss: cannot be imported \(.*needs pip install foo"):
        own("loss.objective._target_=lazy_parts.Loss")


def test_r3gan_trains_through_the_command(mine: Path) -> None:
    weights = ["loss.regularizer.r1.weight=0.5", "loss.regularizer.r2.weight=2"]
    given = ["--config-dir", "conf", "loss=own_r3gan", *weights, *TOY, *QUICK, "hydra.run.dir=run"]
    done = wganlab("train", *given, cwd=mine)
    assert done.returncode == 0, done.stderr
    run = Run(mine / "run")
    assert [part["weight"] for part in run.config["loss"]["regularizer"].values()] == [0.5, 2]
    assert all(row["critic/penalty"] > 0 for row in run.rows)
    sweep = "loss/regularizer=[own_r1],[own_r1,gradient_penalty],[]"
    done = wganlab("train", "-m", "--config-dir", "conf", "loss=own_r3gan", sweep,
                   *TOY, *QUICK, "steps=2", "hydra.sweep.dir=sweep", cwd=mine)  # fmt: skip
    assert done.returncode == 0, done.stderr
    chosen = [
        list(Run(path.parent.parent).config["loss"]["regularizer"]) for path in mine.glob("sweep/*/.hydra/config.yaml")
    ]
    assert sorted(chosen) == [[], ["r1"], ["r1", "gradient_penalty"]]


def test_state_of_a_part_in_buffers_is_continued(mine: Path) -> None:
    settings = own("loss=wgan_clip", "+loss.regularizer.lecam={_target_: parts.LeCam}", *TOY)
    continued(settings, mine, at=13)
    saved = torch.load(mine / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert saved["loss_parts.regularizer_lecam.means"].abs().min() > 0


def test_a_generator_that_draws_noise_is_shown_always_the_same_and_disturbs_nothing(mine: Path) -> None:
    settings = own("loss=gan", *TOY[:2])
    settings.model.generator = {"_target_": "parts.Noisy", "_partial_": True}
    module = build_module(settings, construct(settings, "dataset"))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    shown = module.generate(600, seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(module.generate(600, seed=2), shown)
    assert not torch.equal(module.generate(600, seed=3), shown)


@pytest.mark.parametrize("training", ["alternating", "shared_pass", "reused_latents", "fixed_generator"])
def test_a_relativistic_loss_sees_the_scores_of_the_last_real_batch(training: str, mine: Path) -> None:
    settings = own("loss=own_r3gan", f"training={training}", "loss.n_critic=2", *TOY, "+loss/feature_matching=added")
    (mine / training).mkdir()
    fit(settings, mine / training)
    settings = own("loss=own_r3gan", "loss/regularizer=[]", f"training={training}", *TOY, "loss.optimizer.lr=1e-30")
    module = build_module(settings, construct(settings, "dataset"))
    seen: list[tuple[Tensor, Tensor]] = []
    real_scores: list[Tensor] = []

    def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
        real_scores.append(real.detach())
        return fake.mean() - real.mean()

    def generator_loss(fake: Tensor, real: Tensor) -> Tensor:
        seen.append((fake, real))
        return real.mean() - fake.mean()

    objective: Any = module.loss.objective
    objective.critic_loss, objective.generator_loss = critic_loss, generator_loss
    module.alternate([Batch(torch.randn(16, 2)) for _ in range(3)], *module.configure_optimizers())
    ((fake, real),) = seen
    assert torch.allclose(real, real_scores[-1], atol=1e-6), "the critic has hardly moved"
    assert not real.requires_grad
    assert len(real_scores) == 3
    assert fake.shape == (16,)


def test_penalties_are_closed_forms(mine: Path) -> None:
    """At f(x) = <w, x> the squared norm is |w|^2 everywhere; at f(x) = |x|^2 / 2 it is |x|^2."""
    parts = build_loss(
        own("loss=own_r3gan", "loss.regularizer.r1.weight=3", "loss.regularizer.r2.weight=5", *TOY)
    ).regularizer
    real, fake, weight = torch.randn(7, 2), torch.randn(7, 2), torch.tensor([3.0, -4.0])
    for name, images, factor in (("r1", real, 1.5), ("r2", fake, 2.5)):
        linear = parts[name].penalty(lambda x: x @ weight, real, fake)  # type: ignore[arg-type]
        assert linear.item() == pytest.approx(factor * 25)
        bowl = parts[name].penalty(lambda x: x.square().sum(1) / 2, real, fake)  # type: ignore[arg-type]
        assert bowl.item() == pytest.approx(factor * images.square().sum(1).mean().item(), rel=1e-5)


def test_gradient_penalty_and_clipping_train_together(mine: Path) -> None:
    summary = fit(own("loss/regularizer=[gradient_penalty,weight_clipping]", *TOY), mine)
    rows = Run(mine).rows
    assert all(row["critic/penalty"] > 0 for row in rows)
    saved = torch.load(mine / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert max(value.abs().max() for key, value in saved.items() if key.startswith("critic.")) <= 0.01
    assert summary["steps"] == 18


def test_spectral_norm_is_put_on_before_training_and_stays(mine: Path) -> None:
    settings = own("loss=gan", "loss/regularizer=own_spectral_norm", *TOY)
    continued(settings, mine, at=13)
    own_norm = ["--config-dir", "conf", "loss=gan", "loss/regularizer=own_spectral_norm"]
    command = [*own_norm, *TOY, *QUICK, "hydra.run.dir=run"]
    for words in (["train", *command], ["sample", "run=run", "n=4", "output=made"], ["evaluate", "run=run", "n=16"]):
        done = wganlab(*words, cwd=mine)
        assert done.returncode == 0, done.stderr
    linear = [module for module in load_run(mine / "run").critic.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 2
    for layer in linear:
        assert torch.linalg.matrix_norm(layer.weight, ord=2).item() == pytest.approx(1, abs=1e-3)


def test_lazy_regularization(mine: Path) -> None:
    """The penalty of every third critic step, three times as large; the count goes on in a continued run."""
    lazy = ["loss=wgan_gp", "loss.n_critic=2", "+loss.regularizer.gradient_penalty.every=3", *TOY]
    settings = own(*lazy)
    continued(settings, mine, at=13)
    steps = iter(range(36))
    taken = [sum(next(steps) % 3 == 0 for _ in range(2)) for _ in range(18)]
    for row, n in zip(Run(mine / "whole").rows, taken, strict=True):
        assert (row["critic/penalty"] > 0) == (n > 0)
    every = build_module(settings, construct(settings, "dataset"))
    part = every.loss.regularizer["gradient_penalty"]
    real, fake = Batch(torch.randn(16, 2)), torch.randn(16, 2)
    torch.manual_seed(0)
    weighted = every.penalty(every.loss.active(3), real, fake)
    torch.manual_seed(0)
    assert weighted.item() == pytest.approx(3 * part.penalty(every.critic, real.images, fake).item())
    assert every.penalty(every.loss.active(4), real, fake) == 0


def test_a_conditional_pair_trains(mine: Path) -> None:
    settings = own("model=conditional", "dataset=gaussians8", "loss=wgan_gp")
    continued(settings, mine, at=13)
    fixed = own("model=conditional", "dataset=gaussians25", "dataset.n=64", "model.generator.classes=25",
                "model.critic.classes=25", "training=shared_pass", "loss=gan")  # fmt: skip
    (mine / "fixed").mkdir()
    fit(fixed, mine / "fixed")
    run = load_run_of(settings, mine / "whole")
    assert run.critic(torch.zeros(3, 2), labels=torch.zeros(3, dtype=torch.long)).shape == (3,)
    assert not torch.equal(run.sample(3, labels=[0]), run.sample(3, labels=[5]))
    with pytest.raises(ConfigError, match=r"^model: its networks take labels, and the data set has none"):
        own("model=conditional", "dataset=swiss_roll")


def test_labels_are_those_of_the_images(mine: Path) -> None:
    settings = own("model=conditional", "dataset=gaussians8", "loss.n_critic=2")
    source = construct(settings, "dataset")
    module = build_module(settings, source)
    for batch in itertools.chain(*open_stream(settings, source, torch.device("cpu"), module)):
        assert batch.labels is not None
        nearest = torch.cdist(batch.images, source.centers / source.scale).argmin(-1)
        assert torch.equal(nearest, batch.labels)
    plain = own("dataset=gaussians8", *TOY)
    stream = open_stream(plain, source, torch.device("cpu"), build_module(plain, source))
    assert [batch.labels for batch in next(iter(stream))] == [None] * plain.loss.n_critic


def test_critic_steps_follow_a_warmup(mine: Path) -> None:
    settings = own("loss=wgan_gp", "loss.n_critic=2", WARM, *TOY, "dataset=gaussians25", "dataset.n=64")
    continued(settings, mine, at=3)
    rows = Run(mine / "whole").rows
    seen = [5 * min(step, 4) * 16 + 2 * max(0, step - 4) * 16 for step in range(1, 19)]
    assert [row["images_seen"] for row in rows] == seen
    assert rows[-1]["epoch"] == seen[-1] / 64
    for images, steps in ((80, 1), (81, 2), (320, 4), (321, 5), (352, 5), (353, 6)):
        settings.images = images
        assert generator_steps(settings) == steps


def test_a_warmup_without_critic_steps_is_refused(mine: Path) -> None:
    settings = config("hydra.searchpath=[file://conf]", *QUICK, *TOY, WARM.replace("5", "0"))
    with pytest.raises(ValueError, match="warmup gives 0 critic steps at generator step 0"):
        fit(settings, mine)


def test_learning_rates_follow_a_schedule(mine: Path) -> None:
    one = "{_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 6, gamma: 0.5}"
    settings = own("loss=gan", *TOY, f"+loss.schedule.generator={one}", f"+loss.schedule.critic={one}")
    continued(settings, mine, at=13)
    saved = torch.load(mine / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    rates = [state["param_groups"][0]["lr"] for state in saved["optimizer_states"]]
    assert rates == pytest.approx([2e-4 / 8] * 2)


def test_a_schedule_that_torch_refuses_is_one_line_of_its_key(mine: Path) -> None:
    schedules = "torch.optim.lr_scheduler"
    for given, said in (
        (f"{{_target_: {schedules}.StepLR, _partial_: true}}", "missing 1 required positional argument: 'step_size'"),
        (f"{{_target_: {schedules}.OneCycleLR, _partial_: true, max_lr: 1}}", "You must define either total_steps OR"),
    ):
        with pytest.raises(ConfigError) as error:
            own("loss=gan", *TOY, f"+loss.schedule.critic={given}")
        assert error.value.key == "loss.schedule.critic"
        assert said in str(error.value)


def test_an_average_is_what_is_generated(mine: Path) -> None:
    settings = own("loss=gan", "averaging=own_ema", *TOY)
    continued(settings, mine, at=13)
    saved = torch.load(mine / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    module = build_module(settings, construct(settings, "dataset"))
    module.load_state_dict(saved)
    assert module.averaging is not None
    latents = module.latents(8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(module.generate(8, seed=3), module.averaging.network(latents))
    assert not torch.equal(module.generate(8, seed=3), module.generator(latents))
    start = {
        key: value.clone() for key, value in build_module(settings, construct(settings, "dataset")).state_dict().items()
    }
    name = "layers.0.weight"
    assert torch.equal(start[f"averaging.network.{name}"], start[f"generator.{name}"])


def test_the_critic_alone_sees_augmented_images(mine: Path) -> None:
    settings = own("loss=wgan_gp", "augmentation=brighter", *TOY)
    module = build_module(settings, construct(settings, "dataset"))
    shown: list[Tensor] = []
    module.critic.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].detach().clone()))
    module.alternate([Batch(torch.zeros(16, 2))], *module.configure_optimizers())
    assert torch.equal(shown[0][:16], torch.full((16, 2), 0.25)), "real images"
    (mine / "run").mkdir()
    fit(settings, mine / "run")


@pytest.mark.slow
def test_compiled_lazy_penalties_are_plain(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = ["loss=own_r3gan", "+loss.regularizer.r1.every=2", "precision=64-true", "callbacks=none", *TOY]
    for name in ("off", "on"):
        (mine / name).mkdir()
        fit(config("hydra.searchpath=[file://conf]", "logger=csv", "steps=8", "log_every=1", "batch_size=16", *same,
                   f"compile={name}"), mine / name)  # fmt: skip
    assert "compiled in" in capsys.readouterr().out
    columns = ("critic/loss", "critic/penalty", "generator/loss")
    losses = [[[row[key] for key in columns] for row in Run(mine / name).rows] for name in ("off", "on")]
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("every", [0, 1.5])
def test_every_is_a_count(every: float, mine: Path) -> None:
    with pytest.raises(ConfigError, match=r"loss\.regularizer\.r1"):
        own("loss=own_r3gan", f"+loss.regularizer.r1.every={every}", *TOY)
    assert Regularizer.every == 1
