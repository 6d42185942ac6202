"""The training loop: who updates when, on what, and in which unit of time."""

import copy
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import LOSSES as ALL_LOSSES
from tests.conftest import config, images
from wganlab.adversarial import AdversarialModule
from wganlab.alternation import ReusedLatents, SharedPass
from wganlab.build import build_loss, build_module, construct, generator_steps
from wganlab.callbacks.divergence import first_not_finite
from wganlab.callbacks.history import History
from wganlab.data.stream import Batch, BatchStream
from wganlab.objectives import FeatureMatching
from wganlab.pair import sample_latents
from wganlab.schema import ConfigError
from wganlab.training import fit
from wganlab.validate import validate

LOSSES = ["gan", "wgan_clip", "wgan_gp"]
GOLDEN = Path(__file__).parent / "golden"


class Points:
    """A data set of 2-D points, small enough to count."""

    shape = (2,)

    def __init__(self, n: int = 10) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def load(self) -> Tensor:
        return torch.arange(2.0 * self.n).view(self.n, 2) / self.n - 1


class Spy(nn.Module):
    """A critic that notes what it is shown, and the state of its weights at that moment."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.events: list[tuple[str, Tensor, float]] = []

    def forward(self, points: Tensor) -> Tensor:
        kind = "generator" if points.grad_fn is not None else "critic"
        self.events.append((kind, points, self.linear.weight.detach().abs().max().item()))
        return self.linear(points).squeeze(1)


def train_spied(loss: str, steps: int, folder: Path, **changes: int) -> tuple[AdversarialModule, Spy, History]:
    """Train a linear pair for some generator steps through the real Trainer."""
    settings = config(f"loss={loss}", "callbacks=none", "logger=csv", *(f"{k}={v}" for k, v in changes.items()))
    critic = Spy()
    module = AdversarialModule(
        generator=nn.Linear(3, 2), critic=critic, latent_dim=3, latent="normal", loss=build_loss(settings)
    )
    history = History(every=1)
    trainer = construct(settings, "accelerator", max_steps=steps, folder=str(folder), callbacks=[history])
    stream = BatchStream(Points().load(), batch_size=4, n_critic=module.loss.n_critic, steps=steps, seed=0)
    trainer.fit(module, train_dataloaders=stream)
    assert trainer.global_step == steps, "the trainer's clock must count generator steps"
    return module, critic, history


@pytest.mark.parametrize(("loss", "n_critic"), [("gan", 1), ("wgan_clip", 5), ("wgan_gp", 5), ("wgan_gp", 3)])
def test_n_critic_steps_on_fresh_data_for_each_generator_step(loss: str, n_critic: int, tmp_path: Path) -> None:
    """Ten points in batches of four are two batches an epoch: every count above two crosses epoch borders."""
    _, critic, history = train_spied(loss, steps=7, folder=tmp_path, **{"loss.n_critic": n_critic})
    per_critic_step = 3 if loss == "wgan_gp" else 2  # real, fake and, for the penalty, interpolates
    kinds = "".join(kind[0] for kind, _, _ in critic.events)
    assert kinds == ("c" * per_critic_step * n_critic + "g") * 7
    seen = [points for kind, points, _ in critic.events if kind == "critic"][::per_critic_step]
    for first, second in zip(seen[::2], seen[1::2], strict=False):
        rows = torch.cat([first, second]).tolist()
        assert len({tuple(row) for row in rows}) == 8, "an epoch must not show a point twice"
    assert [row["step"] for row in history.rows] == list(range(1, 8))
    assert history.rows[-1]["images_seen"] == 7 * n_critic * 4
    assert history.rows[-1]["epoch"] == 7 * n_critic / 2, "two batches are an epoch"


@pytest.mark.parametrize("loss", LOSSES)
def test_each_network_learns_from_its_own_loss_only(loss: str, tmp_path: Path) -> None:
    module, critic, _ = train_spied(loss, steps=0 + 1, folder=tmp_path)
    assert [kind for kind, _, _ in critic.events].count("generator") == 1, "only the generator's step shows fakes of G"
    # after a whole training step, the critic's gradient is still the one of its own last step
    before = [parameter.grad.clone() for parameter in module.critic.parameters() if parameter.grad is not None]
    optimizer = torch.optim.SGD(module.generator.parameters(), lr=0.0)
    module.generator_step(Batch(torch.randn(4, 2)), module.latents(4), optimizer)
    after = [parameter.grad for parameter in module.critic.parameters()]
    assert before
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True) if b is not None)
    assert all(parameter.requires_grad for parameter in module.critic.parameters())


def test_weights_are_clipped_before_they_are_used(tmp_path: Path) -> None:
    _, critic, history = train_spied("wgan_clip", steps=3, folder=tmp_path)
    magnitudes = [largest for _, _, largest in critic.events]
    assert magnitudes[0] > 0.01, "the initial weights are not clipped, the algorithm clips after a step"
    assert max(magnitudes[2:]) <= 0.01 + 1e-9
    assert history.rows[-1]["critic/penalty"] == 0


def test_penalty_is_part_of_one_critic_loss(tmp_path: Path) -> None:
    _, _, history = train_spied("wgan_gp", steps=4, folder=tmp_path)
    for row in history.rows:
        assert row["critic/penalty"] > 0
        expected = -row["critic/wasserstein_estimate"] + row["critic/penalty"]
        assert row["critic/loss"] == pytest.approx(expected, abs=1e-5)
        assert row["critic/wasserstein_estimate"] == pytest.approx(row["critic/real_score"] - row["critic/fake_score"])


def test_arms_share_initial_weights_and_the_order_of_images() -> None:
    source = construct(config(), "dataset")
    modules = [build_module(config(f"loss={loss}", "seed=3"), source) for loss in LOSSES]
    states = [module.state_dict() for module in modules]
    for state in states[1:]:
        assert all(torch.equal(state[key], states[0][key]) for key in states[0])
    other = build_module(config("seed=4"), source).state_dict()
    assert not torch.equal(other["critic.features.1.weight"], states[0]["critic.features.1.weight"])

    data = torch.arange(50)[:, None]
    one = torch.cat(images(BatchStream(data, batch_size=4, n_critic=1, steps=40, seed=3)))
    five = torch.cat(images(BatchStream(data, batch_size=4, n_critic=5, steps=8, seed=3)))
    assert torch.equal(one, five)


def test_initial_weights_of_a_network_do_not_depend_on_the_other() -> None:
    source = construct(config(), "dataset")
    plain, wide = (build_module(config(*o), source) for o in ([], ["model.generator.hidden=[32]"]))
    assert torch.equal(plain.critic.features[1].weight, wide.critic.features[1].weight)  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [(["steps=7"], 7), (["images=640"], 2), (["images=641"], 3), (["loss=gan", "images=640"], 10)],
)
def test_budget_in_steps_or_images(overrides: list[str], steps: int) -> None:
    assert generator_steps(config("batch_size=64", *overrides)) == steps


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_latents(distribution: str) -> None:
    latents = sample_latents(4000, 3, distribution, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert latents.shape == (4000, 3)
    assert latents.mean().abs() < 0.05
    variance = {"normal": 1.0, "uniform": 1 / 3}[distribution]
    assert latents.var().item() == pytest.approx(variance, rel=0.06)
    assert distribution == "normal" or latents.abs().max() <= 1


def fresh(kind: Callable[..., AdversarialModule], **changes: Any) -> AdversarialModule:
    """A small pair with plain SGD of rate 0.1, always with the same weights."""
    torch.manual_seed(0)
    settings = config("loss=wgan_gp", "loss.n_critic=1")
    networks: dict[str, Any] = {
        "generator": nn.Linear(3, 2),
        "critic": nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)),
    }
    sgd = dict.fromkeys(networks, functools.partial(torch.optim.SGD, lr=0.1))
    loss = dataclasses.replace(build_loss(settings), optimizer=sgd, **changes)
    return kind(latent_dim=3, loss=loss, **networks)


def test_a_shared_pass_takes_both_gradients_before_either_update() -> None:
    """Against the two gradients written out, on the same weights, latents and interpolates."""
    real = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    module, by_hand = fresh(SharedPass), fresh(SharedPass)
    torch.manual_seed(7)
    module.alternate([Batch(real)], *module.configure_optimizers())
    torch.manual_seed(7)
    fake = by_hand.generator(by_hand.latents(5))
    penalty = by_hand.loss.regularizer["gradient_penalty"].penalty(by_hand.critic, real, fake.detach())
    critic_loss = by_hand.critic(fake.detach()).mean() - by_hand.critic(real).mean() + penalty
    generator_loss = -by_hand.critic(fake).mean()
    for loss, net in ((generator_loss, "generator"), (critic_loss, "critic")):
        parameters = list(getattr(by_hand, net).parameters())
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        for parameter, gradient, stepped in zip(parameters, gradients, getattr(module, net).parameters(), strict=True):
            assert torch.allclose(stepped, parameter - 0.1 * gradient, atol=1e-6), net


def test_tied_latents_belong_to_an_image(tmp_path: Path) -> None:
    """Ten points, two batches an epoch: in three epochs each is shown with its own latents three times."""
    settings = config("loss=wgan_gp", "loss.n_critic=1", "callbacks=none", "logger=csv")

    def shown(seed: int) -> dict[int, set[tuple[float, ...]]]:
        module = fresh(functools.partial(SharedPass, tied_latents=True))
        latents: list[list[float]] = []
        module.generator.register_forward_pre_hook(lambda _, inputs: latents.extend(inputs[0].tolist()))
        stream = BatchStream(Points().load(), batch_size=5, n_critic=1, steps=6, seed=seed, numbered=True)
        rows = [row for batches in copy.copy(stream) for batch in batches for row in batch.rows.tolist()]  # type: ignore[union-attr]
        trainer = construct(settings, "accelerator", max_steps=6, folder=str(tmp_path), callbacks=[])
        trainer.fit(module, train_dataloaders=stream)
        return {row: {tuple(own) for at, own in zip(rows, latents, strict=True) if at == row} for row in rows}

    one, other = shown(seed=3), shown(seed=4)
    assert sorted(one) == list(range(10))
    assert {len(latents) for latents in one.values()} == {1}
    first, second = ({latents for own in seen.values() for latents in own} for seen in (one, other))
    assert (len(first), first & second) == (10, set())


@pytest.mark.parametrize(("kind", "same"), [(AdversarialModule, False), (ReusedLatents, True)])
def test_latents_of_the_generator_step(kind: type[AdversarialModule], same: bool) -> None:
    module = fresh(kind)
    shown: list[Tensor] = []
    module.generator.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    module.alternate([Batch(torch.randn(5, 2)) for _ in range(2)], *module.configure_optimizers())
    *_, critic_latents, generator_latents = shown
    assert len(shown) == 3
    assert torch.equal(critic_latents, generator_latents) == same


@pytest.mark.parametrize("training", ["shared_pass", "reused_latents"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_schedule_trains_every_loss_with_n_critic(training: str, loss: str, tmp_path: Path) -> None:
    summary = fit(
        config(f"training={training}", f"loss={loss}", "steps=3", "batch_size=8", "callbacks=none", "logger=csv"),
        tmp_path,
    )
    n_critic = 1 if loss == "gan" else 5
    assert (summary["steps"], summary["images_seen"]) == (3, 3 * 8 * n_critic)


def test_feature_matching_is_the_squared_gap_of_mean_features() -> None:
    class Twice(nn.Module):
        def features(self, points: Tensor) -> Tensor:
            return 2 * points

    real, fake = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]], requires_grad=True)
    matching = FeatureMatching(weight=0.5, score_weight=3.0)
    loss = matching(torch.tensor(10.0), Twice(), real, fake)  # means (1, 0) and (0, 2), twice: the gap is (2, -4)
    assert loss.item() == pytest.approx(0.5 * (4 + 16) + 3 * 10)
    (gradient,) = torch.autograd.grad(loss, fake)
    assert gradient[0].tolist() == pytest.approx([-2.0, 4.0]), "down the gradient, towards the real mean"


@pytest.mark.parametrize("model", ["mlp", "dcgan", "upsample_dcgan", "resnet"])
def test_feature_matching_combines_with_any_model(model: str) -> None:
    small = [] if model == "mlp" else ["model.generator.n_filters=8", "model.critic.n_filters=4"]
    for loss in LOSSES:
        validate(config(f"model={model}", f"loss={loss}", "+loss/feature_matching=added", "dataset.size=32", *small))


def test_feature_matching_needs_features(tmp_path: Path) -> None:
    settings = config("+loss/feature_matching=only", "model.critic._target_=tests.test_adversarial.Blind",
                      *(f"~model.critic.{key}" for key in config().model.critic if key[0] != "_"))  # fmt: skip
    with pytest.raises(ConfigError, match=r"loss\.feature_matching: the critic of this model has no features"):
        validate(settings)


class Blind(nn.Module):
    """A critic that shows nobody its features."""

    def __init__(self, *, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.linear = nn.Linear(shape[1] * shape[2], 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1)).squeeze(1)


def test_feature_matching_trains(tmp_path: Path) -> None:
    settings = config("+loss/feature_matching=only", "steps=3", "log_every=1", "callbacks=none", "logger=csv")
    summary = fit(settings, tmp_path)
    assert summary["final"]["generator/loss"] > 0, "a squared distance, not a score"


SMALL = ["dataset.size=8", "batch_size=16", "steps=20"]
FILTERS = ["model.generator.n_filters=8", "model.critic.n_filters=8"]
WIDTHS = ["model.generator.widths=[16,16]", "model.critic.widths=[16,16]"]
#: Name of a trace -> what it is of: every loss, and what else of the vocabulary changes the numbers of a run.
TRACES = {
    loss: [f"loss={loss}", "model=acgan_mlp" if loss == "acgan" else "model=mlp", "steps=20"] for loss in ALL_LOSSES
}
TRACES |= {
    "acgan_dcgan": ["loss=wgan_gp", "model=acgan_dcgan", "+loss/classification=auxiliary", *SMALL, *FILTERS],
    "conditional_dcgan": ["loss=hinge", "model=conditional_dcgan", *SMALL, *FILTERS],
    "conditional_mlp": ["loss=wgan_gp", "model=conditional_mlp", *SMALL],
    "cosine": ["loss=gan", "loss/schedule=cosine", *SMALL],
    "diffaug": ["loss=hinge", "augmentation=diffaug", *SMALL],
    "norm_scales": [
        "loss=wgan_clip",
        "model.critic.norm=layer",
        "loss.regularizer.weight_clipping.norm_scales=true",
        *SMALL,
    ],
    "r3gan_networks": ["loss=r3gan", "model=r3gan", "loss.regularizer.r1.every=2", *SMALL, *WIDTHS],
    "relativistic_average": ["loss=rpgan", "loss/objective=relativistic_average", *SMALL],
    "sngan_resnet": ["loss=sngan", "model=sngan_resnet", "model.generator.n_blocks=2", *SMALL, *FILTERS],
    "stacked": ["loss=gan", "dataset=stacked", "dataset.base.size=8", "dataset.n=1000", *SMALL[1:]],
    "warmup": ["loss=wgan_clip", "loss/warmup=paper", "loss.warmup.first=2", "loss.warmup.n=9", *SMALL],
    "zero_centred": ["loss=gan", "loss/regularizer=zero_centred", *SMALL],
}


@pytest.mark.parametrize("name", TRACES)
def test_golden_trace(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Twenty steps on digits give the stored losses; --write-golden stores new ones, with a reason in the commit.

    In fp64: Adam's first steps are signs of gradients, and in fp32 processors do not agree on those near zero.
    """
    fit(config(*TRACES[name], "precision=64-true", "log_every=1", "callbacks=none", "logger=csv"), tmp_path)
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    columns = ("critic/loss", "critic/penalty", "generator/loss")
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    trace = {column: [float(row[column]) for row in rows] for column in columns}
    path = GOLDEN / f"{name}.json"
    if request.config.getoption("--write-golden"):
        path.write_text(json.dumps(trace, indent=1) + "\n")
    expected = json.loads(path.read_text())
    for column in columns:
        assert trace[column] == pytest.approx(expected[column], rel=1e-6, abs=1e-9), column


def test_what_is_not_finite_is_named_with_its_step() -> None:
    """Two critic losses and one generator loss a step; the second step went wrong first."""
    module = fresh(AdversarialModule)
    one, nan = torch.tensor(1.0), torch.tensor(torch.nan)
    module.window.critic = [(loss, one, one, one) for loss in (one, one, one, nan, nan, nan)]
    module.window.generator, module.window.critic_steps = [one, nan, nan], [2, 2, 2]
    name, value, ago = first_not_finite(module, 3) or ("", 0.0, 0)
    assert (name, str(value), ago) == ("critic/loss", "nan", 1)
    module.window.critic = [(one, one, one, one)] * 6
    assert (first_not_finite(module, 3) or ("",))[0] == "generator/loss"
    module.window.generator = [one] * 3
    assert first_not_finite(module, 1) is None
    module.generator.weight.grad = torch.full((2, 3), torch.inf)
    assert first_not_finite(module, 1) == ("the norm of the generator's gradient", torch.inf, 0)
