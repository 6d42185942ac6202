"""Metrics against closed forms, extractors against held-out images."""

import copy
import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from tests.conftest import config
from wganlab.build import construct
from wganlab.data.digits import Digits
from wganlab.data.mnist import MNIST
from wganlab.data.stacked import Stacked
from wganlab.data.stream import BatchStream, to_unit_range
from wganlab.data.toys import Gaussians8, Gaussians25
from wganlab.metrics import Metric, metric_of, objective_of
from wganlab.metrics import critic as of_critic
from wganlab.metrics import features as of
from wganlab.metrics.extractors import Classifier, Inception, StackedClassifier, accuracy, hash_of, train
from wganlab.metrics.points import mode_scores
from wganlab.metrics.protocol import Protocol
from wganlab.networks.dcgan import Critic as ConvolutionalCritic
from wganlab.networks.layers import FeatureCritic, ImageCritic
from wganlab.networks.mlp import Critic
from wganlab.networks.r3gan import Critic as ModernCritic
from wganlab.networks.resnet import Critic as ResidualCritic
from wganlab.networks.upsample_dcgan import Critic as UpsampleCritic
from wganlab.objectives import Wasserstein
from wganlab.schema import ConfigError


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("source", [Gaussians8(), Gaussians25()])
def test_modes_of_the_mixture_itself(source: Gaussians8) -> None:
    points, _ = source.draw(50_000, torch.Generator().manual_seed(0))
    scores = mode_scores(points, *source.modes())
    assert scores["modes"] == len(source.centers)
    assert scores["high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=2e-3)
    assert scores["mode_kl"] < 2e-3


def test_modes_of_collapsed_and_of_lost_points() -> None:
    centers, sd = Gaussians25().modes()
    collapsed = mode_scores(centers[3].repeat(100, 1), centers, sd)
    assert collapsed["modes"] == 1
    assert collapsed["high_quality"] == 1
    assert collapsed["mode_kl"] == pytest.approx(math.log(25))
    few = torch.cat([centers[3].repeat(993, 1), centers[4].repeat(4, 1), centers[5].repeat(3, 1)])
    assert mode_scores(few, centers, sd)["modes"] == 2, "a mode is captured with a tenth of its 40 points, not with 3"
    between = mode_scores((centers[:1] + centers[1:2]) / 2, centers, sd)
    assert (between["modes"], between["high_quality"]) == (0, 0)
    assert all(math.isnan(score) for score in mode_scores(torch.tensor([[math.nan, 0.0]]), centers, sd).values())


def test_frechet_distance_of_normal_distributions() -> None:
    """|| mu1 - mu2 ||^2 + sum (sd1 - sd2)^2 for independent coordinates."""
    real = normal(2000, 3)
    real = (real - real.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(real.T.cov())).T  # exactly white
    fake = 2 * real + torch.tensor([3.0, 0.0, 0.0])
    assert of.frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    assert of.frechet_distance(real, fake) == pytest.approx(9 + 3 * (2 - 1) ** 2, rel=1e-6)


def test_kernel_distance_is_unbiased_and_sees_a_shift() -> None:
    real, same = normal(1000, 8), normal(1000, 8, seed=1)
    found = of.kernel_distance(real, same)
    assert abs(found["kid"]) < min(5e-3, found["kid_sd"])
    assert of.kernel_distance(real[:400], same[:400]).keys() == {"kid"}, "of all images there is one subset"
    assert of.kernel_distance(real, same + 1)["kid"] > 0.1
    before = torch.random.get_rng_state()
    assert of.kernel_distance(real, same) == of.kernel_distance(real, same), "the subsets are always the same"
    assert torch.equal(before, torch.random.get_rng_state())


def test_precision_and_recall_tell_lost_modes_from_lost_quality() -> None:
    here, there = normal(200, 2) / 100, normal(200, 2, seed=1) / 100 + 10
    both = torch.cat([here, there])[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    dropped = of.precision_recall(both, here[:100])
    assert dropped["precision"] > 0.95
    assert dropped["recall"] == pytest.approx(0.5, abs=0.1)
    invented = of.precision_recall(here, both)
    assert invented["precision"] == pytest.approx(0.5, abs=0.1)
    assert invented["recall"] > 0.95


def test_density_and_coverage() -> None:
    real, fake = normal(1000, 4), normal(1000, 4, seed=1)
    equal = of.density_coverage(real, fake)
    assert equal["density"] == pytest.approx(1, abs=0.1)
    # expectation of coverage for equal distributions (Naeem et al. 2020, equation 8): 1 - prod (N - j) / (2N - j)
    n, k = 1000, 5
    expected = 1 - math.prod((n - j) / (2 * n - j) for j in range(k))
    assert equal["coverage"] == pytest.approx(expected, abs=0.02)
    far = of.density_coverage(real, fake + 100)
    assert far == {"density": 0, "coverage": 0}
    assert of.density_coverage(real, real[:1].repeat(1000, 1))["coverage"] < 0.05


def test_inception_and_class_scores() -> None:
    sure = 50 * torch.eye(10).repeat(100, 1)
    even = torch.full((10,), 0.1)
    assert of.inception_score(sure) == pytest.approx(10, rel=0.05)
    assert of.inception_score(torch.zeros(1000, 10)) == pytest.approx(1)
    scores = of.class_scores(sure, even)
    assert (scores["confident"], scores["classes"]) == (1, 10)
    assert scores["class_kl"] == pytest.approx(0, abs=1e-6)
    collapsed = of.class_scores(sure[:1].repeat(50, 1), even)
    assert (collapsed["classes"], collapsed["class_kl"]) == (1, pytest.approx(math.log(10)))
    unsure = of.class_scores(torch.zeros(10, 10), even)
    assert (unsure["confident"], unsure["classes"]) == (0, 0)


def test_nearest_and_memorisation() -> None:
    random = torch.Generator().manual_seed(0)
    training = torch.randint(256, (300, 1, 4, 4), generator=random, dtype=torch.uint8)
    scaled = training.float() / 127.5 - 1
    distances, which = of.nearest(scaled[[7, 250]], training, block=100)
    assert which.tolist() == [7, 250]
    assert distances.max() < 1e-2
    apart, others = of.nearest(scaled, training, own=torch.arange(300), block=100)
    exact = torch.cdist(scaled.flatten(1), scaled.flatten(1)).fill_diagonal_(math.inf).min(1)
    assert torch.allclose(apart, exact.values, atol=1e-3)
    assert torch.equal(others, exact.indices)
    fresh = torch.randint(256, (300, 1, 4, 4), generator=random, dtype=torch.uint8).float() / 127.5 - 1
    assert of.memorisation(fresh, training) == pytest.approx(1, abs=0.1)
    assert of.memorisation(scaled[:50], training) < 0.01
    assert of.memorisation(fresh, torch.cat([training, training[:200]])) == pytest.approx(1, abs=0.1), "some are twice"
    assert math.isnan(of.memorisation(fresh, torch.cat([training, training])))
    dark = torch.randint(16, (2, 1100, 1, 4, 4), generator=random, dtype=torch.uint8)
    bright = torch.randint(256, (2, 3300, 1, 4, 4), generator=random, dtype=torch.uint8)
    folders, others = torch.cat([dark, bright], 1)  # class by class
    assert of.memorisation(others.float() / 127.5 - 1, folders) == pytest.approx(1, abs=0.1)


class Linear(nn.Module):
    """f(x) = <w, x>, whose Lipschitz constant is || w ||."""

    def __init__(self, weight: list[float]) -> None:
        super().__init__()
        last = nn.Linear(len(weight), 1)
        last.weight.data = torch.tensor([weight])
        self.layers = nn.Sequential(nn.Flatten(), last)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


def test_both_bounds_are_exact_on_a_linear_critic() -> None:
    critic = Linear([3.0, 4.0])
    assert of_critic.lipschitz_lower_bound(critic, torch.randn(16, 2)) == pytest.approx(5, rel=1e-5)
    assert of_critic.lipschitz_upper_bound(critic.layers) == pytest.approx(5, rel=1e-6)


def test_a_critic_by_labels_is_as_steep_as_its_gradients() -> None:
    """A secant from one function of the samples to another says nothing of either."""

    class ByLabel(nn.Module):
        def forward(self, x: Tensor, *, labels: Tensor) -> Tensor:
            return 100 * labels + x.flatten(1).sum(1)

    critic = ImageCritic(ByLabel(), torch.arange(200) % 2, None)
    points = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    assert of_critic.lipschitz_lower_bound(critic, points) == pytest.approx(2), "and labels stay with their samples"
    report = of_critic.critic_report(critic, Wasserstein(), points, points, points, math.inf)
    assert report["critic/slope_real"] == pytest.approx(2)


def test_weights_that_are_not_finite_have_no_bound_and_stop_no_diagnosis() -> None:
    for critic, shape in CRITICS.values():
        lost = copy.deepcopy(critic).eval()
        for weight in lost.parameters():
            weight.data.fill_(math.nan)
        assert not math.isfinite(of_critic.lipschitz_upper_bound(lost))
        points = torch.randn(4, *shape)
        assert all(map(math.isfinite, of_critic.critic_report(lost, Wasserstein(), points, points, points, 1).values()))


def test_a_constant_critic_correlates_with_nothing() -> None:
    critic = Linear([0.0, 0.0])
    found = of_critic.optimality(critic, torch.randn(64, 2), torch.randn(64, 2) + 1)
    assert found == {"critic/distance_found": 0}


CRITICS: dict[str, tuple[FeatureCritic, tuple[int, ...]]] = {
    "points": (Critic(shape=(2,), hidden=(16, 16)), (2,)),
    "layer norm": (Critic(shape=(1, 8, 8), hidden=(16, 16), norm="layer"), (1, 8, 8)),
    "batch norm, tanh": (Critic(shape=(1, 8, 8), hidden=(16, 16), norm="batch", output="tanh"), (1, 8, 8)),
    "convolutions": (ConvolutionalCritic(shape=(1, 28, 28), n_filters=4), (1, 28, 28)),
    "residual": (ResidualCritic(shape=(3, 16, 16), n_filters=4), (3, 16, 16)),
    "sum over pixels": (ResidualCritic(shape=(3, 16, 16), n_filters=4, pooling="sum"), (3, 16, 16)),
    "dropout": (UpsampleCritic(shape=(1, 32, 32), n_filters=4), (1, 32, 32)),
    "groups": (ModernCritic(shape=(3, 16, 16), widths=(8, 8), group_width=4), (3, 16, 16)),
}


@pytest.mark.parametrize("name", CRITICS)
def test_the_lower_bound_is_below_the_upper(name: str) -> None:
    critic, shape = CRITICS[name]
    critic.eval()
    points = torch.randn(32, *shape, generator=torch.Generator().manual_seed(0))
    lower, upper = of_critic.lipschitz_lower_bound(critic, points), of_critic.lipschitz_upper_bound(critic)
    assert 0 < lower <= upper
    of_each_image = any(isinstance(layer, nn.GroupNorm | nn.InstanceNorm2d) for layer in critic.modules())
    assert math.isinf(upper) == of_each_image, "unknown, rather than a bound of 1 / sqrt(eps)"


def test_the_bound_of_a_convolution_is_above_its_operator_norm() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.AvgPool2d(2), nn.AvgPool2d(2, stride=1), nn.AvgPool2d(3, divisor_override=1)]
    layers += [nn.Conv2d(2, 3, 3, stride=s, padding=p, bias=False) for s, p in ((1, 1), (2, 1), (1, 0))]
    layers += [nn.Conv2d(2, 4, 3, groups=2, bias=False)]
    for layer in layers:
        dense = torch.autograd.functional.jacobian(lambda x: layer(x).flatten(), torch.zeros(1, 2, 6, 6))  # noqa: B023
        exact = torch.linalg.matrix_norm(dense.flatten(1), ord=2).item()
        assert exact <= of_critic.lipschitz_upper_bound(layer) <= 3 * exact


def test_what_has_no_bound_is_infinite() -> None:
    class Steep(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 100 * super().forward(x)

    rim = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)
    for network in (Critic(shape=(2,), minibatch_kernels=3), Steep(2, 1), nn.AdaptiveAvgPool2d(7), rim):
        assert of_critic.lipschitz_upper_bound(network) == math.inf


@pytest.mark.parametrize("factor", [1e-12, 0.1, 1.0, 10.0])
def test_gradients_grow_by_the_factor_of_each_layer(factor: float) -> None:
    """In a linear chain the gradient is multiplied by each layer on its way back."""
    chain = [nn.Linear(1, 1, bias=False) for _ in range(5)]
    for layer in chain:
        layer.weight.data.fill_(factor)
    layers = nn.Sequential(*chain, nn.Flatten(0))
    norms = of_critic.layer_gradient_norms(layers, Wasserstein(), torch.ones(4, 1), torch.zeros(4, 1))
    assert list(norms) == ["0", "1", "2", "3", "4"]
    assert of_critic.growth(list(norms.values())) == pytest.approx(-math.log10(factor), abs=1e-4), "even below fp32"
    # d loss / d scores: 4 real scores of -1/4 each, 4 generated ones of 1/4
    assert norms["4"] == pytest.approx(math.sqrt(8 * (1 / 4) ** 2))


def test_weights_at_the_bound() -> None:
    first, last = nn.Linear(2, 2), nn.Linear(2, 1)
    first.weight.data = torch.tensor([[0.01, -0.01], [0.005, 0.01]])
    last.weight.data.fill_(0.0)
    critic = nn.Sequential(first, last)
    assert of_critic.weights_at_bound(critic, 0.01) == {"0": 0.75, "1": 0.0}


@pytest.mark.parametrize("scale", [0.1, 5.0])
def test_the_best_critic_between_shifted_points_is_linear(scale: float) -> None:
    fake = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    real, critic = fake + torch.tensor([30.0, 40.0]), nn.Sequential(nn.Linear(2, 1, bias=False), nn.Flatten(0))
    critic[0].weight.data = scale * torch.tensor([[0.6, 0.8]])
    found = of_critic.optimality(critic, real, fake)
    assert found["critic/distance_found"] == pytest.approx(1, abs=1e-5), "at any scale"
    assert found["critic/potential_correlation"] == pytest.approx(1, abs=1e-3)
    critic[0].weight.data = torch.tensor([[0.8, -0.6]])
    found = of_critic.optimality(critic, real, fake)
    assert found["critic/distance_found"] == pytest.approx(0, abs=1e-5), "across the shift"
    assert abs(found["critic/potential_correlation"]) < 0.05
    assert of_critic.optimality(critic, real, fake * torch.nan) == {}


@pytest.mark.parametrize("d", [0.0, 3.0])
def test_the_debiased_distance_takes_off_what_samples_are_apart_by_themselves(d: float) -> None:
    """Points on a line that are moved by d: the distance is d, and both halves stay as far apart as the real ones."""
    points = torch.rand(64, 1, generator=torch.Generator().manual_seed(0))
    protocol = Protocol(n=32, images=1, extractor=None)
    protocol.prepare(BatchStream(points, batch_size=8, n_critic=1, steps=1, seed=0))
    real, others = BatchStream(points, batch_size=8, n_critic=1, steps=1, seed=0).fixed_samples(64).chunk(2)
    apart = scipy.stats.wasserstein_distance(real.flatten(), others.flatten())
    scores = protocol.scores(lambda n: (torch.cat([real, others]) + d)[:n].split(7))
    assert scores["eval/emd_raw"] == pytest.approx(d, abs=1e-6)
    assert scores["eval/emd_real"] == pytest.approx(apart, rel=1e-5)
    assert scores["eval/emd"] == pytest.approx(d - apart, rel=1e-5)
    perfect = protocol.scores(lambda n: [torch.cat([others, real])[:n]])
    assert perfect["eval/emd"] == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    source = Digits()
    return source.load(), source.labels()


def test_the_classifier_of_digits(digits: tuple[Tensor, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    samples, labels = digits
    first = Classifier(cache=str(tmp_path / "cache"))
    first.prepare(samples, labels, "digits")
    assert first.accuracy >= 0.97
    assert "training a classifier" in capsys.readouterr().out
    again = Classifier(cache=str(tmp_path / "cache"))
    again.prepare(samples, labels, "digits")
    assert capsys.readouterr().out == "", "the second comes from the cache"
    assert again.describe() == first.describe()
    images = samples[:70].float() / 127.5 - 1
    features, logits = again.features(images)
    assert features.shape == (70, 128)
    assert logits.shape == (70, 10)
    assert (logits.argmax(1) == labels[:70]).float().mean() > 0.95


def test_modes_of_stacks_are_counted(digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    """All of them in the data, and those of one digit alone where all others are lost."""
    source = Stacked(base=Digits(), n=2000)
    stream = BatchStream(source.load(), labels=source.labels(), batch_size=1, n_critic=1, steps=1, seed=0)
    protocol = Protocol(n=8, images=2000, extractor=StackedClassifier(cache=str(tmp_path)))
    protocol.prepare(stream)
    real = to_unit_range(stream.samples)
    found = protocol.scores(lambda n: [real])
    assert found["eval/classes"] > 985
    assert 0 <= found["eval/class_kl"] < 0.02
    assert found["eval/fid"] == pytest.approx(0, abs=1e-3)
    sevens = to_unit_range(digits[0][digits[1] == 7])[:, 0]
    few = sevens[torch.randint(len(sevens), (2000, 3), generator=torch.Generator().manual_seed(0))]
    found = protocol.scores(lambda n: [few])
    assert found["eval/classes"] < 30, "one, but for images that are taken for other digits"
    assert found["eval/class_kl"] == pytest.approx(math.log(1000), rel=0.1)
    with pytest.raises(ConfigError, match="extractor=stacked: takes stacks of grey images, dataset=stacked"):
        StackedClassifier(cache=str(tmp_path)).prepare(*digits, "digits")


def test_a_classifier_can_learn_from_another_data_set(digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    samples, labels = digits
    own, other = (
        Classifier(cache=str(tmp_path), dataset=dataset) for dataset in (None, construct(config(), "dataset"))
    )
    own.prepare(samples, labels, hash_of(samples))
    other.prepare(samples[labels == 7], None, "sevens")  # of one class, which no classifier can learn
    assert other.describe() == own.describe()
    assert (own.knows_classes, other.knows_classes) == (True, False)
    with pytest.raises(ConfigError, match=r"^extractor.dataset: has images of 1x28x28, and those to score are 3x8x8$"):
        other.prepare(torch.zeros(4, 3, 8, 8), None, "small")


def test_training_a_classifier_is_deterministic_and_leaves_no_trace(digits: tuple[Tensor, Tensor]) -> None:
    samples, labels = digits
    hashes, threads = set(), torch.get_num_threads()
    for n, precision in ((1, "highest"), (2, "medium")):
        torch.set_num_threads(n)
        torch.set_float32_matmul_precision(precision)
        torch.manual_seed(n)
        before = torch.random.get_rng_state()
        network, _ = train(samples, labels, 10, updates=10)
        assert torch.equal(before, torch.random.get_rng_state())
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (n, precision)
        hashes.add(hash_of(*network.state_dict().values()))
    torch.set_num_threads(threads)
    assert len(hashes) == 1


@pytest.mark.slow
def test_the_classifier_of_mnist(real_data: Path, tmp_path: Path) -> None:
    source, test = MNIST(root=str(real_data)), MNIST(root=str(real_data), train=False)
    samples = source.load()
    classifier = Classifier(cache=str(tmp_path))
    classifier.prepare(samples, source.labels(), "mnist")
    images = test.load()
    assert accuracy(classifier.network, images, test.labels()) >= 0.99


def test_data_that_no_classifier_can_learn_are_refused(digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    samples, labels = digits
    for images, classes, expected in (
        (samples, None, "has no classes"),
        (samples, torch.zeros_like(labels), "has 1 class,"),
        (torch.zeros(10, 2), torch.arange(10), "is no images"),
    ):
        with pytest.raises(ConfigError, match=f"extractor=classifier: the data set {expected}"):
            Classifier(cache=str(tmp_path)).prepare(images, classes, "x")
    assert not list(tmp_path.iterdir())


def test_inception_without_weights_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(ConfigError, match=r"extractor.weights=null: cannot download weights-inception-2015") as error:
        construct(config("extractor=inception"), "extractor").prepare(torch.zeros(2, 3, 8, 8), None, "")
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"weights=nowhere\.pth: no such file"):
        construct(config("extractor=inception", "extractor.weights=nowhere.pth"), "extractor")
    (tmp_path / "torn.pth").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="cannot be read"):
        construct(config("extractor=inception", f"extractor.weights={tmp_path}/torn.pth"), "extractor")


def test_inception_with_a_file_of_weights(tmp_path: Path) -> None:
    """The architecture of the published weights, here with random ones: they cannot be had offline."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    extractor = Inception(weights=str(tmp_path / "weights.pth"))
    images = torch.rand(2, 1, 28, 28) * 2 - 1
    extractor.prepare(images, None, "x")
    features, logits = extractor.features(images)
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    assert extractor.describe()["weights"] == hash_of(*network.state_dict().values())


def test_a_search_minimises_fid_or_else_emd() -> None:
    assert objective_of({"eval/emd": 2.0, "eval/precision": 0.1, "critic/loss": -9.0}) == ("eval/emd", 2.0)
    assert objective_of({"eval/emd": 2.0, "eval/fid": 30.0, "eval/kid": 0.1}) == ("eval/fid", 30.0)
    assert objective_of({"critic/loss": -9.0, "mine": 0.0}) is None
    name, value = objective_of({"eval/fid": None}) or ("", 0.0)
    assert (name, math.isnan(value)) == ("eval/fid", True), "summary.json has null for what is not finite"


def test_unknown_columns_are_neutral() -> None:
    assert metric_of("mine/score") == Metric("mine/score")
    assert (metric_of("mine/score").direction, metric_of("mine/score").sign) == (None, 1)


class Pixels:
    """An extractor whose features are the pixels, and their first three the logits."""

    knows_classes = False

    def prepare(self, samples: Tensor, labels: Tensor | None, fingerprint: str) -> None:
        pass

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        rows = images.flatten(1)
        return rows, rows[:, :3]

    def describe(self) -> dict[str, str | int | float]:
        return {"extractor": "pixels"}


FEATURES = {"fid", "kid", "kid_sd", "precision", "recall", "density", "coverage", "inception_score"}
DISTANCES = {"emd", "emd_raw", "emd_real"}


@pytest.mark.parametrize(
    ("real", "generated", "expected", "said"),
    [
        (
            1,
            12,
            {"emd_raw", "inception_score"},
            "1 real and 12 generated samples: eval/emd_real (2 real, 0 generated), ",
        ),
        (
            2,
            2,
            {*DISTANCES, "fid", "kid"},
            "2 real and 2 generated samples: eval/precision (4 real, 4 generated), ",
        ),
        (
            4,
            8,
            (FEATURES | DISTANCES) - {"density", "coverage", "inception_score"},
            "eval/density (6 real, 1 generated)",
        ),
        (6, 10, FEATURES | DISTANCES, ""),
        (6, 1, set(), ""),
    ],
)
def test_scores_that_samples_are_too_few_for_are_named_and_left_out(
    real: int, generated: int, expected: set[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All others are finite."""
    images = torch.rand(real, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    protocol = Protocol(n=8, images=generated, extractor=Pixels())
    stream = BatchStream(images, batch_size=1, n_critic=1, steps=1, seed=0)
    if generated == 1:
        with pytest.raises(ConfigError, match="extractor: 6 real and 1 generated samples are too few for any"):
            protocol.prepare(stream)
        return
    protocol.prepare(stream)
    scores = protocol.scores(lambda n: torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1)).split(3))
    assert {name.removeprefix("eval/") for name in scores} == expected
    assert all(map(math.isfinite, scores.values()))
    out = capsys.readouterr().out
    assert said in out
    assert out.count("\n") == bool(said)


def test_too_few_other_real_images_have_no_scores() -> None:
    images = torch.rand(102, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    protocol = Protocol(n=1, images=100, extractor=Pixels())
    protocol.prepare(BatchStream(images, batch_size=1, n_critic=1, steps=1, seed=0))
    assert protocol.real_scores == {}, "two images are left to be scored, and precision takes four"


def test_features_that_are_not_finite_have_no_score() -> None:
    """Of images that are: large values overflow on their way through a network."""
    protocol = Protocol(n=8, images=16, extractor=Pixels())
    images = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    protocol.prepare(BatchStream(images, batch_size=1, n_critic=1, steps=1, seed=0))
    protocol.extractor = Overflowing()
    assert math.isnan(protocol.scores(lambda n: images[:n].split(8))["eval/fid"])


class Overflowing(Pixels):
    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return (images.flatten(1) * math.inf), images.flatten(1)[:, :3]


def test_a_protocol_keeps_all_that_an_extractor_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"extractor": "pixels", "weights": "a hash"}
    monkeypatch.setattr(Pixels, "describe", lambda self: said)
    protocol = Protocol(n=8, images=10, extractor=Pixels())
    protocol.prepare(BatchStream(torch.rand(16, 1, 4, 4), batch_size=1, n_critic=1, steps=1, seed=0))
    raw, averaged = protocol.describe("raw"), protocol.describe("averaged")
    assert raw.items() >= said.items()
    assert (raw["generator"], averaged["generator"]) == ("raw", "averaged")
    assert raw["id"] == averaged["id"], "scores of both may be compared"


def test_scores_in_blocks_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity import metric_fid, metric_kid, metric_prc

    real, fake = normal(300, 8).float(), normal(250, 8, seed=1).float() * 1.2
    monkeypatch.setattr(of, "BLOCK", 64)
    statistics = [metric_fid.fid_features_to_statistics(rows.double()) for rows in (real, fake)]
    fid = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]
    assert of.frechet_distance(real, fake) == pytest.approx(fid, rel=1e-10)
    options = {"kid_subsets": 20, "kid_subset_size": 250, "rng_seed": 0, "verbose": False}
    kid = metric_kid.kid_features_to_metric(fake.double(), real.double(), **options)
    assert of.kernel_distance(real, fake) == pytest.approx(
        {"kid": kid[metric_kid.KEY_METRIC_KID_MEAN], "kid_sd": kid[metric_kid.KEY_METRIC_KID_STD]}, rel=1e-10
    )
    whole = metric_prc.prc_features_to_metric(fake, real[:250], prc_neighborhood=3, verbose=False)
    assert of.precision_recall(real, fake) == {key: whole[key] for key in ("precision", "recall")}
    radius = torch.cdist(real, real).kthvalue(6).values
    inside = torch.cdist(real, fake) < radius[:, None]
    assert of.density_coverage(real, fake) == pytest.approx(
        {"density": inside.sum().item() / (5 * 250), "coverage": inside.any(1).float().mean().item()}
    )
