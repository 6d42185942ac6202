"""2-D toys: the distributions of the WGAN-GP code, endless and fixed, drawn and scored."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from tests.conftest import config, images, in_process, wganlab
from wganlab.build import build_module, construct
from wganlab.data.stream import Batch, EndlessStream
from wganlab.data.toys import Gaussians, Gaussians8, Gaussians25, ParallelLine, Points, SwissRoll
from wganlab.distances import js, sliced_wasserstein
from wganlab.pair import sample_latents
from wganlab.pictures import SURFACE, save_scatter, value_surface
from wganlab.training import fit
from wganlab.validate import validate


def draw(source: Points, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return source.draw(n, torch.Generator().manual_seed(seed))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("source", "modes", "sd"), [(Gaussians8(), 8, 0.02 / 1.414), (Gaussians25(), 25, 0.05 / 2.828)]
)
def test_gaussians(source: Gaussians, modes: int, sd: float) -> None:
    """Equal shares, each normal around its own centre: on a circle of radius 2 / 1.414, or a grid of 2 / 2.828."""
    points, labels = draw(source, 400 * modes)
    means = torch.stack([points[labels == i].mean(0) for i in range(modes)])
    assert torch.bincount(labels).float().div(400).sub(1).abs().max() < 0.25
    spread = (points - means[labels]).std(0)
    assert spread.tolist() == pytest.approx([sd, sd], rel=0.05)
    if modes == 8:
        assert means.norm(dim=1).tolist() == pytest.approx([2 / 1.414] * 8, abs=0.005)
        angles = torch.atan2(means[:, 1], means[:, 0]).sort().values
        assert angles.diff().tolist() == pytest.approx([np.pi / 4] * 7, abs=0.01)
    else:
        ticks = [2 * i / 2.828 for i in range(-2, 3)]
        wanted = torch.tensor([[x, y] for x in ticks for y in ticks])
        assert torch.cdist(means, wanted).min(1).values.max() < 0.01


def test_swiss_roll_is_scikit_learns() -> None:
    from sklearn.datasets import make_swiss_roll

    n = 4000
    theirs = torch.from_numpy(make_swiss_roll(n, noise=0.25, random_state=0)[0][:, [0, 2]] / 7.5)
    again = torch.from_numpy(make_swiss_roll(n, noise=0.25, random_state=1)[0][:, [0, 2]] / 7.5)
    ours, labels = draw(SwissRoll(), n)
    assert labels is None
    random = [torch.Generator().manual_seed(0) for _ in range(2)]
    same = sliced_wasserstein(theirs, again, generator=random[0])
    assert sliced_wasserstein(theirs, ours.double(), generator=random[1]) < 2 * same + 0.01


def test_a_fixed_source_is_drawn_once_with_its_labels() -> None:
    source = Gaussians25(n=100)
    points = source.load()
    labels = source.labels()
    assert points.shape == (100, 2) == (len(source), 2)
    assert labels is not None
    assert torch.bincount(labels).tolist() == [4] * 25
    assert (points - source.centers[labels] / source.scale).abs().max() < 0.1
    assert torch.equal(points, Gaussians25(n=100).load())
    assert not torch.equal(points, Gaussians25(n=100, seed=1).load())
    assert not source.endless
    assert Gaussians8().endless
    with pytest.raises(TypeError, match="endless"):
        len(Gaussians8())


def stream(n_critic: int = 2, steps: int = 50, seed: int = 5) -> EndlessStream:
    options = {"batch_size": 3, "n_critic": n_critic, "steps": steps, "seed": seed}
    return EndlessStream(Gaussians8(), device=torch.device("cpu"), **options)


def test_an_endless_stream_never_repeats_and_continues_where_it_was() -> None:
    whole, stopped, resumed = images(stream(steps=80)), stream(steps=80), stream(steps=80)
    assert len({tuple(point) for step in whole for point in step.tolist()}) == 80 * 2 * 3
    head = images(itertools.islice(stopped, 40))
    resumed.load_state_dict(stopped.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(whole, [*head, *images(resumed)], strict=True))
    assert not torch.equal(whole[0], images(stream(seed=6))[0])


def test_the_real_line_has_other_heights_than_the_generated_one_of_an_evaluation() -> None:
    """Else a perfect generator would make the very points that it is compared with, nearer than real points are."""
    latents = sample_latents(1024, 1, "uniform", generator=torch.Generator().manual_seed(0))
    heights = ParallelLine().draw(1024, torch.Generator().manual_seed(0))[0][:, 1]
    assert not set(((latents.flatten() + 1) / 2).tolist()) & set(heights.tolist())
    assert heights.sort().values.tolist() == pytest.approx([(i + 0.5) / 1024 for i in range(1024)], abs=0.05)


def test_an_endless_stream_shows_the_same_points_whatever_n_critic() -> None:
    """Five batches of one step may lie in two blocks."""
    one, five = (torch.cat(images(stream(n, 100 // n))) for n in (1, 5))
    assert torch.equal(one, five)


def toy(*overrides: str) -> DictConfig:
    quick = [
        "batch_size=32",
        "steps=6",
        "log_every=2",
        "logger=csv",
        "~callbacks.checkpoints",
        "callbacks.samples.n=32",
    ]
    small = ["model=toy_mlp", "model.generator.hidden=[16]", "model.critic.hidden=[16]", "callbacks.evaluation.n=32"]
    every = ["callbacks.samples.every=6", "callbacks.evaluation.every=6"]
    return config("dataset=gaussians8", *small, *quick, *every, *overrides)


@pytest.mark.parametrize("dataset", ["gaussians8", "gaussians25", "swiss_roll"])
def test_toys_train_and_are_drawn(dataset: str, tmp_path: Path) -> None:
    settings = toy(f"dataset={dataset}")
    validate(settings)
    summary = fit(settings, tmp_path)
    assert 0 < summary["final"]["eval/emd"] < 10
    assert summary["final"]["eval/emd_real"] < 1
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert {row["epoch"] == "" for row in csv.DictReader(file)} == {dataset != "gaussians25"}
    picture = Image.open(tmp_path / "samples" / "step_00000006.png").convert("RGB")
    colours = {colour for _, colour in picture.getcolors(2**24) or []}
    assert {(255, 127, 14), (44, 160, 44)} <= colours, "real points are orange, generated ones green"


def test_fixed_generator_trains_the_critic_alone(tmp_path: Path) -> None:
    fit(toy("training=fixed_generator", "dataset.n=32"), tmp_path)  # fewer points than are drawn for a picture
    settings = toy("training=fixed_generator", "dataset=swiss_roll")
    validate(settings)
    module = build_module(settings, construct(settings, "dataset"))
    assert not list(module.generator.parameters())
    (tmp_path / "endless").mkdir()
    summary = fit(settings, tmp_path / "endless")
    assert summary["steps"] == 6
    assert summary["parameters"]["generator"] == 0
    # real points and unit noise: the mean squared distance between a point and its noisy self is the dimension
    real = Batch(torch.zeros(4000, 2))
    assert module.critic_latents(real).square().sum(1).mean().item() == pytest.approx(2.0, rel=0.1)
    assert summary["final"]["eval/emd_raw"] > 0.5, "unit noise moves points by more than that"


def test_value_surface_is_the_critic_on_a_grid() -> None:
    class First(torch.nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return 2 * points[:, 0] - points[:, 1]

    ticks, values = value_surface(First(), torch.zeros(1))
    assert values.shape == (SURFACE, SURFACE) == (128, 128)
    assert (ticks[0], ticks[-1]) == (-3, 3)
    assert values[0, -1].item() == pytest.approx(9), "x is 3 and y is -3: rows run along y"


def test_points_that_lie_far_out_are_in_the_picture(tmp_path: Path) -> None:
    angle = torch.arange(64) / 10
    ring = 8 * torch.stack([angle.cos(), angle.sin()], 1)
    save_scatter(ring * 0, tmp_path / "far.png", real=ring)
    pixels = np.asarray(Image.open(tmp_path / "far.png").convert("RGB"), dtype=int)
    red, green, blue = pixels.reshape(-1, 3).T
    assert ((red > 240) & (green < 240) & (blue < green)).sum() > 200, "orange"


def test_a_trained_toy_can_be_sampled(tmp_path: Path) -> None:
    command = ["dataset=gaussians8", "model=toy_mlp", "steps=2", "batch_size=8", "logger=csv", "hydra.run.dir=run"]
    few = ["callbacks.evaluation.n=8", "callbacks.samples.n=8"]
    assert wganlab("train", *command, *few, cwd=tmp_path).returncode == 0
    done = in_process("sample", "run=run", "n=20", "output=made", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "interpolation.png", "points.csv", "samples.png",
    ]  # fmt: skip
    assert np.loadtxt(tmp_path / "made" / "points.csv", delimiter=",").shape == (20, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.n=8"], "batch_size=32: must be at most the 8 samples"),
        (["dataset.n=0"], "dataset.n=0: must be an integer > 0"),
        (["model=dcgan"], "cannot make images of 2"),
        (["model=parallel_line", "model.latent_dim=2"], "model.latent_dim=2: must be 1|model.generator.latent_dim=2"),
    ],
)
def test_bad_toys_are_refused(overrides: list[str], message: str) -> None:
    from wganlab.schema import ConfigError

    settings = config("dataset=gaussians8", "batch_size=32", *overrides)
    with pytest.raises(ConfigError, match=message):
        validate(settings)


class Normal(Points):
    """Standard normal points; with unit noise added, normal with variance 2."""

    def draw(self, n: int, random: torch.Generator) -> tuple[Tensor, None]:
        return torch.randn(n, 2, generator=random), None


def log_ratio(points: Tensor) -> Tensor:
    """log p/q for p = N(0, I) and q = N(0, 2 I) in the plane: log 2 - |x|^2 / 4."""
    return np.log(2) - points.square().sum(-1) / 4


@pytest.mark.slow
def test_the_optimal_critic_of_the_plain_gan(tmp_path: Path) -> None:
    """It is log p/q, and its value -2 log 2 + 2 JS (Goodfellow et al. 2014, proposition 1 and theorem 1)."""
    ticks = torch.linspace(-8, 8, 401)
    grid = torch.cartesian_prod(ticks, ticks)
    p, q = (torch.exp(-grid.square().sum(1).double() / (2 * v)) for v in (1, 2))
    divergence = js(p / p.sum(), q / q.sum())
    overrides = ["training=fixed_generator", "loss=gan", "model=toy_mlp", "model.critic.hidden=[64,64]", "logger=csv"]
    rates = ["batch_size=1024", "steps=1500", "loss.optimizer.lr=1e-3", "loss.optimizer.betas=[0.9,0.999]"]
    unobserved = [f"~callbacks.{name}" for name in ("diagnostics", "evaluation", "samples")]
    settings = config(*overrides, *rates, *unobserved, "log_every=500")
    settings.dataset = {"_target_": f"{__name__}.Normal"}
    fit(settings, tmp_path)
    module = build_module(settings, construct(settings, "dataset"))
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    module.load_state_dict(saved["state_dict"])
    near = grid[grid.norm(dim=1) < 2][::7]
    with torch.no_grad():
        scores = module.critic(near)
    assert (scores - log_ratio(near)).abs().mean() < 0.1
    with open(tmp_path / "metrics.csv", newline="") as file:
        value = -float(list(csv.DictReader(file))[-1]["critic/loss"])
    assert value == pytest.approx(-2 * np.log(2) + 2 * divergence, abs=0.02)
