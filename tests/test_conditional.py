"""Labels reach both networks, and what is made of them: losses, scores, grids, samples and exports."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.conftest import config, in_process, wganlab
from tests.test_contracts import continued
from tests.test_metrics import Pixels
from wganlab.build import build_module, construct, open_stream
from wganlab.data.stream import Batch, BatchStream
from wganlab.labels import Classes, random_labels, rows_of
from wganlab.metrics.features import accuracy_of, frechet_distance, intra_frechet_distance
from wganlab.metrics.protocol import Protocol
from wganlab.networks.conditional import ClassifyingMLPCritic, ConditionalBatchNorm, DCGANCritic, MLPCritic
from wganlab.notebook import load_run
from wganlab.objectives import Classification
from wganlab.pictures import save_samples
from wganlab.runs import Run
from wganlab.sample import labels_for
from wganlab.schema import ConfigError
from wganlab.validate import validate

MLP = ["model.generator.hidden=[16]", "model.critic.hidden=[16]", "dataset.size=8", "batch_size=32"]
DCGAN = ["model.generator.n_filters=8", "model.critic.n_filters=4", "model.critic.n_blocks=2", "batch_size=16"]
QUICK = ["logger=csv", "steps=12", "log_every=1", "callbacks.checkpoints.every=5", "compile=off"]
QUICK += ["callbacks.samples.every=6", "callbacks.samples.n=40", "callbacks.evaluation.every=6"]
QUICK += ["callbacks.evaluation.n=16"]
CLASSIFIED = "+loss/classification=auxiliary"


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)], ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("model", ["conditional_mlp", "conditional_dcgan", "acgan_mlp", "acgan_dcgan"])
def test_every_loss_moves_all_weights_at_every_shape(model: str, shape: tuple[int, ...]) -> None:
    """Those of the embeddings in the rows of labels that there were; clipping moves all of them."""
    small = DCGAN if "dcgan" in model else ["model.generator.hidden=[16]", "model.critic.hidden=[16]"]
    for loss in ("acgan", "r3gan", "sngan", "wgan_clip", "wgan_gp"):
        if (loss == "acgan") > model.startswith("acgan"):
            continue
        both = [CLASSIFIED] if model.startswith("acgan") and loss != "acgan" else []
        settings = config(f"model={model}", f"loss={loss}", *small, *both, "augmentation=diffaug")
        module = build_module(settings, SimpleNamespace(shape=shape))
        before = {name: value.clone() for name, value in module.named_parameters()}
        labels = torch.tensor([3, 3, 7, 0])
        batches = [Batch(torch.rand(4, *shape) * 2 - 1, labels, drawn=labels) for _ in range(2)]
        module.alternate(batches, *module.configure_optimizers())
        moved = {name: value.detach() != before[name] for name, value in module.named_parameters()}
        # a bias before batch norm has no gradient; the last one of a Wasserstein critic neither
        assert all(moved[name].any() for name in moved if name.endswith("weight")), loss
        for name, value in moved.items():
            of_classes = any(part in name for part in ("embedding", "projection", "scale", "shift"))
            if of_classes and loss not in ("wgan_clip", "sngan"):
                assert value.any(1).nonzero().flatten().tolist() == [0, 3, 7], (loss, name)


@pytest.mark.parametrize(
    "method",
    [
        ["model=conditional_dcgan", "loss=sngan", "averaging=ema", *DCGAN],
        ["model=acgan_dcgan", "loss=wgan_gp", CLASSIFIED, "augmentation=diffaug", *DCGAN],
        ["model=conditional_mlp", "loss=r3gan", *MLP],
        ["model=acgan_mlp", "loss=acgan", "+loss/feature_matching=added", *MLP],
        ["model=acgan_mlp", "loss=acgan", "training=shared_pass", *MLP],
        ["model=conditional_mlp", "loss=wgan_gp", "dataset=gaussians8", "model.generator.output=linear", *MLP[:2]],
    ],
    ids=lambda method: " ".join(method[:2]),
)
def test_a_killed_run_goes_on_bit_for_bit(method: list[str], tmp_path: Path) -> None:
    settings = config(*QUICK, *method)
    validate(settings)
    continued(settings, tmp_path, at=7)


class Seen:
    """The labels of each pass of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.labels: list[list[int]] = []
        network.register_forward_pre_hook(
            lambda _, latents, given: self.labels.append(given["labels"].tolist()), with_kwargs=True
        )


@pytest.mark.parametrize(("loss", "paired"), [("wgan_gp", False), ("r3gan", True)])
def test_fakes_take_the_labels_of_the_real_batch_and_generator_steps_drawn_ones(loss: str, paired: bool) -> None:
    """But under a loss that compares each image with a real one: they are of one class."""
    module = build_module(config("model=conditional_mlp", f"loss={loss}", *MLP), SimpleNamespace(shape=(1, 8, 8)))
    seen = Seen(module.generator)
    images = torch.zeros(2, 1, 8, 8)
    batches = [Batch(images, torch.tensor([i, i + 1]), drawn=torch.tensor([9, 9])) for i in range(3)]
    module.alternate(batches, *module.configure_optimizers())
    assert seen.labels == [[0, 1], [1, 2], [2, 3], [2, 3] if paired else [9, 9]]


def test_labels_are_drawn_with_the_frequencies_of_the_data_from_a_stream_of_their_own() -> None:
    labels = torch.tensor([0] * 30 + [4] * 10)
    options: dict[str, Any] = {"labels": labels, "batch_size": 20, "n_critic": 2, "steps": 400, "seed": 3}
    batches = [*BatchStream(torch.zeros(40, 1, 2, 2), labelled=True, **options)]
    assert all(step[0].drawn is None for step in batches)
    drawn = torch.stack([step[-1].drawn for step in batches])
    assert set(drawn.unique().tolist()) == {0, 4}
    assert (drawn == 4).double().mean().item() == pytest.approx(1 / 4, abs=4 * (3 / 16 / drawn.numel()) ** 0.5)
    assert len({tuple(row) for row in drawn.tolist()}) > 390
    later = BatchStream(torch.zeros(40, 1, 2, 2), labelled=True, **options)
    later.load_state_dict({"step": 250, "batches": 500, "images_seen": 10_000})
    assert torch.equal(next(iter(later))[-1].drawn, drawn[250])  # type: ignore[arg-type]


def test_labels_latents_and_the_order_of_images_share_no_random_numbers() -> None:
    for seed in (0, 5, 1 << 31, 7 * 1_000_003):
        others = torch.Generator().manual_seed(seed)
        assert not torch.equal(torch.rand(9, generator=random_labels(seed)), torch.rand(9, generator=others))


def test_a_run_without_labels_trains_as_before_beside_them() -> None:
    """Drawn labels take no random numbers of the networks: an unconditional critic sees the same images."""
    source = construct(config("dataset.size=8"), "dataset")
    streams = []
    for model in ("mlp", "conditional_mlp"):
        settings = config(f"model={model}", *MLP)
        streams.append(open_stream(settings, source, torch.device("cpu"), build_module(settings, source)))
    state = torch.get_rng_state()
    for plain, labelled in zip(next(iter(streams[0])), next(iter(streams[1])), strict=True):
        assert torch.equal(plain.images, labelled.images)
        assert (plain.labels, plain.drawn) == (None, None)
    assert torch.equal(torch.get_rng_state(), state)


def test_conditional_batch_norm_is_batch_norm_with_the_scales_of_each_class() -> None:
    norm = ConditionalBatchNorm(nn.BatchNorm2d(3), 4)
    nn.init.normal_(norm.scale.weight)
    nn.init.normal_(norm.shift.weight)
    x, labels = torch.randn(5, 3, 2, 2), torch.tensor([1, 0, 1, 3, 2])
    made = norm(x, labels)
    plain = nn.BatchNorm2d(3, affine=False)(x)
    for i, label in enumerate(labels):
        scale, shift = norm.scale.weight[label], norm.shift.weight[label]
        torch.testing.assert_close(made[i], plain[i] * scale[:, None, None] + shift[:, None, None])


def test_projection_adds_the_product_of_features_and_embedding() -> None:
    critic = DCGANCritic(shape=(1, 8, 8), n_classes=3, n_filters=4, n_blocks=2, dropout=0.0)
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 2, 1, 2])
    features = critic.features(images)
    expected = critic.head[-2](features)[:, 0] + torch.einsum("ni,ni->n", features, critic.projection.weight[labels])
    torch.testing.assert_close(critic(images, labels), expected)
    assert critic(images, labels).shape == (4,)


def test_embeddings_stand_beside_pixels() -> None:
    critic = MLPCritic(shape=(1, 2, 2), n_classes=3, embedding_dim=5, hidden=[4])
    first = next(layer for layer in critic.modules() if isinstance(layer, nn.Linear))
    assert first.in_features == 4 + 5
    image = torch.randn(1, 1, 2, 2)
    scores = [critic(image, torch.tensor([label])).item() for label in range(3)]
    assert len(set(scores)) == 3


def test_the_classifiers_loss_is_the_cross_entropy_of_both_batches() -> None:
    """The sum over real and generated images, weighted; a network that knows nothing pays ln(classes)."""
    assert Classification(weight=3.0)(torch.zeros(5, 10), torch.arange(5)).item() == pytest.approx(3 * math.log(10))
    settings = config("model=acgan_mlp", "loss=acgan", "loss.classification.weight=0.5", *MLP)
    module = build_module(settings, SimpleNamespace(shape=(1, 8, 8)))
    images, labels, drawn = torch.randn(6, 1, 8, 8), torch.arange(6), torch.arange(6) + 4
    batch, latents = Batch(images, labels, drawn=drawn), module.latents(6)
    assert isinstance(module.critic, ClassifyingMLPCritic)
    loss, _ = module.critic_objective((), batch, latents)
    (real_scores, of_real), (fake_scores, of_fake) = (
        module.critic.scores_and_logits(shown) for shown in (images, module.generator(latents, labels))
    )
    expected = module.loss.objective.critic_loss(real_scores, fake_scores)
    expected = expected + 0.5 * cross_entropy(of_real, labels) + 0.5 * cross_entropy(of_fake, labels)
    torch.testing.assert_close(loss, expected)
    loss, _ = module.generator_objective(batch, latents)
    scores, logits = module.critic.scores_and_logits(module.generator(latents, drawn))
    expected = module.loss.objective.generator_loss(scores) + 0.5 * cross_entropy(logits, drawn)
    torch.testing.assert_close(loss, expected)


def test_scores_of_classes_have_their_closed_forms() -> None:
    logits = torch.eye(3)[[0, 1, 2, 2]]
    assert accuracy_of(logits, torch.tensor([0, 1, 1, 2])) == 0.75
    random = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(60, 2, generator=random, dtype=torch.float64) for _ in range(2))
    classes = torch.arange(3).repeat_interleave(20)
    apart = [frechet_distance(real[classes == i], fake[classes == i] + i) for i in range(3)]
    moved = fake + classes[:, None]
    assert intra_frechet_distance(real, moved, (classes, classes)) == pytest.approx(sum(apart) / 3)
    assert intra_frechet_distance(real[:1], fake[:1], (classes[:1], classes[:1])) is None


class Sorted(Pixels):
    """Classes of images by their first pixel."""

    knows_classes = True

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        number = ((images[:, 0, 0, 0] + 1) * 1.5).round().long()
        return images.flatten(1), torch.eye(4)[number] * 9


def test_a_perfect_generator_makes_what_is_asked_of_it_and_a_blind_one_does_not() -> None:
    labels = torch.arange(400) % 4
    images = torch.rand(400, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.1
    images[:, 0, 0, 0] = labels / 1.5 - 1
    protocol = Protocol(n=8, images=400, extractor=Sorted())
    protocol.prepare(BatchStream(images, labels=labels, batch_size=1, n_critic=1, steps=1, seed=0))
    perfect = protocol.scores(lambda n: [images[:n]], lambda n: labels[:n])
    assert perfect["eval/class_accuracy"] == 1
    assert perfect["eval/intra_fid"] == pytest.approx(0, abs=1e-6)
    blind = protocol.scores(lambda n: [images[:n]], lambda n: labels[:n].roll(1))
    assert blind["eval/class_accuracy"] == 0
    assert blind["eval/intra_fid"] > perfect["eval/intra_fid"] + 0.1
    assert blind["eval/fid"] == pytest.approx(perfect["eval/fid"])
    assert "eval/class_accuracy" not in protocol.scores(lambda n: [images[:n]])


def test_grids_have_a_row_for_each_class(tmp_path: Path) -> None:
    classes = Classes.of(torch.tensor([5, 1, 1, 9]))
    labels = classes.in_rows(64)
    assert labels.tolist() == [1] * 21 + [5] * 21 + [9] * 21
    mixed = labels.flip(0)
    save_samples(mixed.view(-1, 1, 1, 1).expand(-1, 1, 4, 4) / 9, tmp_path / "grid.png", labels=mixed)
    grid = mpl.image.imread(tmp_path / "grid.png")
    assert grid.shape[:2] == (3 * 5 + 1, 21 * 5 + 1)
    shown = [{float(value) for value in grid[row * 5 + 1 : row * 5 + 5, 1:5].flatten()[:1]} for row in range(3)]
    assert [round(value * 255) for row in shown for value in row] == [142, 198, 255]
    assert rows_of(torch.tensor([1, 1, 2])) is None, "one of a class makes no row"
    assert Classes.of(torch.arange(100)).in_rows(64).tolist() == [*range(64)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with an auxiliary classifier that knows its digits."""
    folder = tmp_path_factory.mktemp("user")
    long = ["steps=200", "log_every=50", "callbacks.samples.every=100", "callbacks.checkpoints.every=100"]
    long += ["callbacks.evaluation.every=100", "hold_out=97", "hydra.run.dir=run", "loss.optimizer.lr=1e-3"]
    long += ["callbacks.diagnostics.detailed=true"]
    long += ["model.generator.hidden=[64]", "model.critic.hidden=[64]"]
    done = wganlab("train", *QUICK, "model=acgan_mlp", "loss=acgan", *MLP, *long, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_samples_are_of_the_classes_that_are_asked_for(run: Path) -> None:
    loaded = load_run(run)
    images = loaded.sample(12, labels=[3, 7])
    assert torch.equal(images[:6], loaded.sample(12, labels=[3])[:6])
    assert torch.equal(images[6:], loaded.sample(12, labels=[7])[6:])
    done = in_process("sample", f"run={run}", "labels=[1,2,3]", "n=2", "output=few", cwd=run.parent)
    assert done.returncode == 2
    assert "n=2: must be at least one for each of 3 labels" in done.stderr
    assert not torch.equal(images, loaded.sample(12, labels=[7, 3]))
    done = in_process("sample", f"run={run}", "labels=[0,1,2,3,4,5,6,7,8,9]", "n=10", "output=all", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ConfigError, match=r"the data have no class 1\.7"):
        loaded.sample(3, labels=[1.7])  # type: ignore[list-item]
    done = in_process("sample", f"run={run}", "labels=[3,7]", "n=12", "output=asked", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert (run.parent / "asked" / "labels.csv").read_text().split() == ["label", *"333333777777"]
    files = sorted((run.parent / "asked" / "images").iterdir())
    first = mpl.image.imread(files[0])[..., 0] if mpl.image.imread(files[0]).ndim == 3 else mpl.image.imread(files[0])
    assert abs(torch.tensor(first) * 2 - 1 - images[0, 0]).max() < 0.01
    done = in_process("sample", f"run={run}", "n=200", "output=drawn", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert {*(run.parent / "drawn" / "labels.csv").read_text().split()[1:]} == {*"0123456789"}


def test_a_conditional_critic_is_asked_of_held_out_samples_too(run: Path) -> None:
    """Scores of real images with their labels are those of real images: with others, they would be lower."""
    last = Run(run).rows[-1]
    assert last["critic/heldout_loss"] == pytest.approx(last["critic/training_loss"], rel=0.3)
    assert last["critic/heldout_loss"] < 2 * math.log(2), "that of a critic which knows nothing"


def test_evaluate_scores_the_class_that_was_asked_for(run: Path) -> None:
    done = in_process("evaluate", f"run={run}", "images=1000", "extractor=classifier", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    (record,) = Run(run).evaluations.values()
    assert record["scores"]["eval/class_accuracy"] > 0.6, "a tenth by chance"
    assert record["scores"]["eval/intra_fid"] > record["scores"]["eval/fid"] > 0
    done = in_process("evaluate", f"run={run}", "images=1000", "extractor=classifier", "split=held_out", cwd=run.parent)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("format", ["safetensors", "onnx"])
def test_exports_take_labels(format: str, run: Path) -> None:
    """The comparison with the trained network is the command's own; the card's code runs as it stands."""
    done = in_process("export", f"run={run}", f"format={format}", f"output={format}", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    card = (run.parent / format / "README.md").read_text()
    assert "labels of shape (n,), int64, each one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in " ".join(card.split())
    code = card.partition("```python\n")[2].partition("```")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run.parent / format)
        patch.syspath_prepend(str(run.parent / format))
        names: dict[str, Any] = {}
        exec(code, names)  # the text of a card of ours
    assert names["images"].shape == (16, 1, 8, 8)


def test_pictures_of_a_run_have_a_row_for_each_class(run: Path) -> None:
    grid = mpl.image.imread(run / "samples" / "step_00000200.png")
    assert grid.shape[:2] == (10 * 9 + 1, 4 * 9 + 1)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["model=conditional_mlp", "dataset=swiss_roll", "model.generator.output=linear"],
            "model: its networks take labels, and the data set has none; choose another of the two",
        ),
        (
            ["model=acgan_mlp", "loss=acgan", "dataset=swiss_roll", "model.generator.output=linear"],
            "model: its networks take labels, and the data set has none; choose another of the two",
        ),
        (["loss=acgan"], "loss.classification: the critic of this model has no classifier; allowed are model=acgan_"),
        (["model=conditional_mlp", "loss=acgan"], "loss.classification: the critic of this model has no classifier"),
        (["model=acgan_mlp", "loss=hinge"], "model.critic: has a classifier, which this loss does not train; +loss/cl"),
        (
            ["model=conditional_mlp", "model.n_classes=9"],
            "model.n_classes=9: the classes of this data set go up to 9; must be at least 10",
        ),
        (["model=conditional_mlp", "model.n_classes=0"], "model.n_classes=0: must be an integer > 0"),
        (["model=conditional_dcgan", "+model.generator.norm=layer"], "model.generator.norm=layer: must be batch"),
        (["model=acgan_mlp", "loss=acgan", "loss.classification.weight=0"], "loss.classification.weight=0: must be a"),
    ],
)
def test_bad_values_are_one_line(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(config(*overrides))
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["labels=[3,12]"], "labels=[3, 12]: the data have no class 12; allowed are 0 to 9"),
        (["labels=3"], "labels=3: must be a list, each element an integer, or null"),
        (["labels=[]"], "labels=[]: must be"),
    ],
)
def test_labels_that_there_are_not_are_one_line(words: list[str], line: str, run: Path) -> None:
    done = in_process("sample", f"run={run}", "n=4", "output=bad", *words, cwd=run.parent)
    assert done.returncode == 2
    assert done.stderr.startswith(f"wganlab: {line}")
    assert len(done.stderr.splitlines()) == 1
    assert not (run.parent / "bad").exists()


def test_labels_asked_of_a_generator_that_takes_none() -> None:
    assert labels_for(nn.Linear(2, 2), None, None, 4, seed=0) is None
    with pytest.raises(ConfigError, match=r"^labels=\[3\]: the generator of this run takes none$"):
        labels_for(nn.Linear(2, 2), None, [3], 4, seed=0)
