"""Every choice of the vocabulary trains and goes on bit for bit; its parts are compared with closed forms."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import LOSSES, config, wganlab
from tests.test_contracts import continued
from wganlab.augmentation import DiffAugment, change_colour, cut_out, translate
from wganlab.averaging import Ema
from wganlab.build import build_module, construct
from wganlab.data.stream import Batch
from wganlab.notebook import load_run
from wganlab.runs import Run
from wganlab.sample import sample
from wganlab.schedules import Cosine, Linear, PaperWarmup
from wganlab.schema import ConfigError
from wganlab.training import fit
from wganlab.validate import validate

SMALL = ["model=dcgan", "model.generator.n_filters=8", "model.critic.n_filters=8", "model.latent_dim=8"]
MLP = ["model.generator.hidden=[16]", "model.critic.hidden=[16]", "dataset.size=8", "batch_size=32"]
QUICK = ["logger=csv", "steps=18", "log_every=1", "callbacks.checkpoints.every=5", "compile=off"]
QUICK += ["callbacks.samples.every=9", "callbacks.samples.n=16", "callbacks.evaluation.every=9"]
QUICK += ["callbacks.evaluation.n=16"]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)], ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "acgan"])  # which needs labels: test_conditional
def test_every_loss_moves_both_networks_at_every_shape(loss: str, shape: tuple[int, ...]) -> None:
    settings = config(f"loss={loss}", *SMALL, "augmentation=diffaug")
    module = build_module(settings, SimpleNamespace(shape=shape))
    before = {name: value.clone() for name, value in module.named_parameters()}
    module.alternate([Batch(torch.rand(4, *shape) * 2 - 1) for _ in range(2)], *module.configure_optimizers())
    still = {name for name, value in module.named_parameters() if torch.equal(value, before[name])}
    # a bias before batch norm has no gradient; the last one of a Wasserstein critic neither
    assert not {name for name in still if name.endswith("weight")}
    assert all(torch.isfinite(value).all() for value in module.parameters())


@pytest.mark.parametrize(
    "method",
    [
        ["loss=r3gan", "loss.regularizer.r1.every=2", "loss/schedule=cosine", "averaging=ema", "augmentation=diffaug"],
        ["loss=sngan", "loss/schedule=linear", "loss/warmup=paper", "loss.warmup.first=3", "loss.warmup.n=6"],
        ["loss=dragan", "averaging=ema"],
        ["loss=wgan_div"],
        ["loss=r3gan", "model=r3gan", "model.generator.widths=[16,16]", "model.critic.widths=[16,16]"],
        ["loss=sngan", "model=sngan_resnet", "model.generator.n_blocks=2", *SMALL[1:3]],
    ],
    ids=lambda method: " ".join(method[:2]),
)
def test_a_killed_run_goes_on_bit_for_bit(method: list[str], tmp_path: Path) -> None:
    networks = MLP[2:] if any(word.startswith("model=") for word in method) else MLP
    settings = config(*QUICK, *networks, *method)
    validate(settings)
    continued(settings, tmp_path, at=13)


def test_any_two_choices_go_together() -> None:
    """All that is refused of them is said of a key; all others are tried on shapes."""
    for loss, regularizer, averaging, augmentation in itertools.product(
        ["hinge", "r3gan", "sngan"], ["[r1,spectral_norm]", "[weight_clipping]"], ["none", "ema"], ["none", "diffaug"]
    ):
        chosen = [f"loss={loss}", f"loss/regularizer={regularizer}", f"averaging={averaging}"]
        validate(config(*MLP, *chosen, f"augmentation={augmentation}", "loss/optimizer=rmsprop"))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["loss/regularizer=r1", "loss.regularizer.r1.every=0"], "loss.regularizer.r1.every=0: must be an integer > 0"),
        (["averaging=ema", "averaging.half_life=0"], "averaging.half_life=0: must be an integer > 0"),
        (["augmentation=diffaug", "augmentation.cutout=1"], "augmentation.cutout=1: must be a number >= 0 and < 1"),
        (["augmentation=diffaug", "dataset=gaussians8", "model=toy_mlp"], "augmentation: changes images, and this"),
        (["loss/warmup=paper", "loss.warmup.n=0"], "loss.warmup.n=0: must be an integer > 0"),
        (["loss=wgan_div", "loss.regularizer.wgan_div.power=0.5"], "loss.regularizer.wgan_div.power=0.5: must be at"),
        (["loss/schedule=linear", "loss.schedule.critic.end=-1"], "loss.schedule.critic.end=-1: must be"),
        (["loss=sngan", "loss.regularizer.spectral_norm.n_power_iterations=0"], "n_power_iterations=0: must be an int"),
    ],
)
def test_bad_values_are_one_line(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(config(*overrides))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def rates(settings: Any, folder: Path) -> list[float]:
    """Learning rates that a run has logged, each of the step after its row."""
    fit(settings, folder)
    for row in Run(folder).rows:
        assert row["generator/learning_rate"] == row["critic/learning_rate"]
    return [row["generator/learning_rate"] for row in Run(folder).rows]


@pytest.mark.parametrize("budget", [["steps=8"], ["images=512"]])
def test_schedules_fall_over_the_budget_and_stretch_with_it(budget: list[str], tmp_path: Path) -> None:
    def settings(*overrides: str) -> Any:
        made = config(*QUICK, *MLP, "loss=gan", "loss.optimizer.lr=1e-3", "loss.n_critic=2", *overrides)
        validate(made)
        return made

    for name, at in (("linear", lambda t: 1 - t), ("cosine", lambda t: (1 + math.cos(math.pi * t)) / 2)):
        (tmp_path / name).mkdir()
        made = rates(settings(*budget, f"loss/schedule={name}"), tmp_path / name)
        assert made == pytest.approx([1e-3 * at(step / 8) for step in range(1, 9)], abs=1e-12)
        longer = ["steps=16"] if budget[0].startswith("steps") else ["images=1024"]
        more = rates(settings(*longer, f"loss/schedule={name}"), tmp_path / name)
        assert more[:8] == made
        assert more[8:] == pytest.approx([1e-3 * at(step / 16) for step in range(9, 17)], abs=1e-12)


def test_schedules_end_and_stay() -> None:
    for make in (Linear, Cosine):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
        schedule = make(optimizer, steps=4, end=0.25)
        for _ in range(6):
            optimizer.step()
            schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)


def test_a_raised_budget_has_the_rate_of_its_own_curve_at_once() -> None:
    for make, half in ((Linear, 0.5), (Cosine, 0.5)):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
        short = make(optimizer, steps=4)
        for _ in range(4):
            optimizer.step()
            short.step()
        assert optimizer.param_groups[0]["lr"] == 0
        saved, of_optimizer = short.state_dict(), optimizer.state_dict()
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
        longer = make(optimizer, steps=8)
        optimizer.load_state_dict(of_optimizer)
        longer.load_state_dict(saved)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * half)


def test_the_warmup_of_the_papers_program() -> None:
    steps = PaperWarmup()
    assert [steps(step, 5) for step in (0, 24, 25, 499, 500, 501, 1000)] == [100, 100, 5, 5, 100, 5, 100]


class Weights(nn.Module):
    """A network of one weight, one running statistic and one count."""

    statistic: Tensor
    count: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.register_buffer("statistic", torch.tensor(value))
        self.register_buffer("count", torch.tensor(int(value)))


def weights_of(average: Ema) -> Weights:
    assert isinstance(average.network, Weights)
    return average.network


def test_half_of_the_average_is_new_after_its_half_life() -> None:
    average = Ema(half_life=100, ramp_up=0)
    average.start(Weights(0.0))
    for images_seen in range(10, 201, 10):
        average.update(Weights(8.0), images_seen)
    assert weights_of(average).weight.item() == pytest.approx(6)
    assert weights_of(average).statistic.item() == pytest.approx(6)
    assert weights_of(average).count.item() == 8
    assert not weights_of(average).weight.requires_grad


def test_the_half_life_ramps_up() -> None:
    average = Ema(half_life=1000, ramp_up=0.5)
    average.start(Weights(0.0))
    average.update(Weights(8.0), 100)  # a half-life of 50
    assert weights_of(average).weight.item() == pytest.approx(6)
    average.update(Weights(8.0), 200)  # of 100
    assert weights_of(average).weight.item() == pytest.approx(7)


def test_averaged_and_raw_weights_are_told_apart(tmp_path: Path) -> None:
    words = [*QUICK, *MLP, "loss=gan", "averaging=ema", "hydra.run.dir=run"]
    done = wganlab("train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    averaged, raw = (load_run(run, weights=weights) for weights in ("averaged", "raw"))
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for loaded, prefix in ((averaged, "averaging.network."), (raw, "generator.")):
        state = loaded.generator.state_dict()
        assert all(torch.equal(value, saved[prefix + key]) for key, value in state.items())
    assert not torch.equal(averaged.sample(4), raw.sample(4))
    with pytest.raises(ConfigError, match=r"weights=mean: allowed are averaged, raw"):
        load_run(run, weights="mean")  # type: ignore[arg-type]
    scores = {}
    for weights in ("averaged", "raw"):
        words = ["evaluate", f"run={run}", "n=16", "extractor=none", f"weights={weights}"]
        done = wganlab(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        words = ["export", f"run={run}", f"weights={weights}", f"output={weights}"]
        done = wganlab(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for record in Run(run).evaluations.values():
        scores[record["protocol"]["generator"]] = (record["protocol"]["id"], record["scores"]["eval/emd"])
    assert scores["averaged"][0] == scores["raw"][0], "one protocol: the two may be compared"
    assert scores["averaged"][1] != scores["raw"][1]


def test_colour_keeps_what_it_says() -> None:
    images = torch.rand(64, 3, 8, 8) * 2 - 1
    torch.manual_seed(0)
    changed = change_colour(images)
    shift = (changed - images).mean((1, 2, 3))  # saturation and contrast keep the mean
    assert shift.abs().max() < 0.5
    assert shift.std() > 0.2
    contrast = changed.mean(1).std((1, 2)) / images.mean(1).std((1, 2))  # saturation keeps the grey image
    assert 0.5 <= contrast.min() < 0.6
    assert 1.4 < contrast.max() <= 1.5


def test_translation_moves_whole_images() -> None:
    images = torch.zeros(512, 2, 8, 16)
    images[:, :, 4, 8] = 1
    moved = translate(images, 0.25)
    assert torch.equal(moved.sum((2, 3)), torch.ones(512, 2)), "no pixel is lost or doubled"
    _, channel, row, column = moved.nonzero().T
    assert (row.min().item(), row.max().item()) == (2, 6)
    assert (column.min().item(), column.max().item()) == (4, 12)
    assert torch.equal(row[channel == 0], row[channel == 1])


def test_cutout_sets_one_rectangle_to_zero() -> None:
    holes = cut_out(torch.ones(512, 1, 8, 8), 0.5) == 0
    areas = holes.sum((1, 2, 3))
    assert areas.max() == 16
    assert areas.min() == 4, "a centre at the corner"
    rows, columns = holes.any(3).sum(2), holes.any(2).sum(2)
    assert torch.equal(rows[:, 0] * columns[:, 0], areas)


def test_augmentation_is_differentiable_twice() -> None:
    def critic(images: Tensor) -> Tensor:
        torch.manual_seed(0)
        return (DiffAugment()(images) ** 3).flatten(1).sum(1)

    images = torch.rand(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(critic, (images,))
    assert torch.autograd.gradgradcheck(critic, (images,))


def test_sampling_of_raw_weights_needs_no_average(tmp_path: Path) -> None:
    done = wganlab("train", *QUICK, *MLP, "loss=hinge", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    options: dict[str, Any] = {"n": 2, "checkpoint": "last", "seed": 0, "interpolations": 1, "frames": 2}
    for weights in ("averaged", "raw"):
        sample(run=str(tmp_path / "run"), weights=weights, output=str(tmp_path / weights), **options)
    first, second = ((tmp_path / name / "samples.png").read_bytes() for name in ("averaged", "raw"))
    assert first == second
    assert construct(config(), "averaging") in (None, {})
