"""Data sets and the stream of batches."""

import hashlib
import itertools
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits

from tests.conftest import config, images, wganlab
from wganlab.build import construct, open_stream
from wganlab.data import cifar
from wganlab.data.digits import Digits
from wganlab.data.mnist import FILES, IMAGES, MNIST, FashionMNIST
from wganlab.data.reading import check_draw, read_once
from wganlab.data.stacked import Stacked
from wganlab.data.stream import BatchStream, content_hash, to_unit_range
from wganlab.metrics.protocol import reference
from wganlab.schema import ConfigError, InvalidValueError


@pytest.mark.parametrize("size", [28, 32, 8])
def test_digits(size: int) -> None:
    source = Digits(size=size)
    images = source.load()
    assert images.shape == (1797, *source.shape) == (len(source), 1, size, size)
    assert images.dtype == torch.uint8
    scaled = to_unit_range(images)
    assert scaled.min() == -1
    assert scaled.max() == 1
    assert scaled.mean().item() == pytest.approx(4.88 / 8 - 1, abs=0.02), "the mean grey value is 4.88 of 16"


def test_digits_are_those_of_scikit_learn() -> None:
    theirs, source = load_digits(), Digits(size=8)
    assert source.load()[:, 0].numpy() == pytest.approx((theirs.images * (255 / 16)).round())
    assert source.labels().tolist() == theirs.target.tolist()


def test_mnist_reads_the_original_format(tiny_mnist: Path) -> None:
    source = MNIST(root=str(tiny_mnist))
    images = source.load()
    assert images.shape == (len(source), *source.shape) == (6, 1, 28, 28)
    assert images[2, 0, 0, :3].tolist() == [74, 75, 76]
    assert len(MNIST(root=str(tiny_mnist), train=False).load()) == 3


def test_scores_compare_with_the_split_that_is_not_trained_on(tiny_mnist: Path) -> None:
    root, options = str(tiny_mnist), ["dataset=mnist", f"dataset.root={tiny_mnist}", "batch_size=2"]
    test = MNIST(root=root, train=False)
    for overrides, held_out, trained in (([], test.load(), 6), (["dataset.train=false"], MNIST(root=root).load(), 3)):
        settings = config(*options, *overrides)
        stream = open_stream(settings, construct(settings, "dataset"), torch.device("cpu"))
        assert stream.held_out is not None
        assert torch.equal(stream.held_out, held_out)
        assert len(stream.samples) == trained
        name, samples, labels = reference(stream, "auto", 2)
        assert (name, len(samples), len(labels)) == ("held_out", 2, 2)  # type: ignore[arg-type]
        assert all(any(torch.equal(sample, image) for image in held_out) for sample in samples)
        assert reference(stream, "training", 2)[0] == "training"
    settings = config(*options, "hold_out=2")
    stream = open_stream(settings, construct(settings, "dataset"), torch.device("cpu"))
    assert (len(stream.held_out), len(stream.samples)) == (2, 4), "asked for: those of the training images"  # type: ignore[arg-type]


def test_fashion_mnist_is_mnist_in_a_folder_of_its_own(tiny_mnist: Path) -> None:
    (tiny_mnist / "MNIST").rename(tiny_mnist / "FashionMNIST")
    source = FashionMNIST(root=str(tiny_mnist))
    assert len(source.load()) == len(source) == len(source.labels())
    with pytest.raises(InvalidValueError, match=r"MNIST/raw lacks train-images-idx3-ubyte"):
        MNIST(root=str(tiny_mnist))
    (tiny_mnist / "FashionMNIST").rename(tiny_mnist / "elsewhere")
    with pytest.raises(InvalidValueError, match=r"FashionMNIST/raw lacks .*; unpack the four FashionMNIST files"):
        FashionMNIST(root=str(tiny_mnist))


def test_mnist_missing_says_which_files_and_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="root=") as error:
        MNIST(root=str(tmp_path / "nowhere"))
    assert all(name in str(error.value) for name in FILES)
    assert "download=true" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"garbage", (2051).to_bytes(4, "big") + (6).to_bytes(4, "big")])
def test_mnist_damaged_is_refused(tiny_mnist: Path, content: bytes) -> None:
    (tiny_mnist / "MNIST" / "raw" / IMAGES[True]).write_bytes(content)
    with pytest.raises(ValueError, match="root="):
        MNIST(root=str(tiny_mnist)).load()


def test_real_mnist(real_data: Path) -> None:
    source = MNIST(root=str(real_data))
    images = source.load()
    assert images.shape == (60_000, 1, 28, 28)
    assert images.float().mean().item() == pytest.approx(33.318, abs=1e-3)


def test_what_a_stream_shows_observers_is_of_all_classes_however_they_are_ordered() -> None:
    images, labels = torch.arange(4000), torch.arange(4000) // 1000
    options: dict[str, Any] = {"held_out": images, "held_out_labels": labels, "n_critic": 1, "steps": 1, "seed": 0}
    stream = BatchStream(images, labels=labels, batch_size=1, **options)
    for shown, of_them in (stream.fixed_held_out(800), (stream.fixed_samples(800), stream.fixed_labels(800))):
        assert of_them is not None
        assert len(shown.unique()) == 800
        assert torch.equal(shown // 1000, of_them)
        assert of_them.bincount() / 200 == pytest.approx([1.0] * 4, abs=0.2)
    assert len(stream.fixed_held_out(5000)[0]) == 4000


def test_stream_shows_every_image_once_an_epoch_in_a_new_order() -> None:
    stream = BatchStream(torch.arange(12), batch_size=4, n_critic=3, steps=3, seed=0)
    epochs = [step.tolist() for step in images(stream)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_stream_drops_the_partial_batch_and_depends_on_the_seed() -> None:
    def first(seed: int) -> list[int]:
        stream = BatchStream(torch.arange(11), batch_size=4, n_critic=2, steps=1, seed=seed)
        return images(stream)[0].tolist()

    assert len(set(first(0))) == 8
    assert first(0) == first(0)
    assert first(0) != first(1)


def test_stream_can_keep_the_partial_batch() -> None:
    """As torch's DataLoader and tf.data do by default: 11 samples in batches of 4 are 4, 4 and 3."""
    stream = BatchStream(torch.arange(11), batch_size=4, n_critic=2, steps=6, seed=0, drop_last=False)
    sizes, seen = [], []
    for batches in stream:
        sizes += [len(batch.images) for batch in batches]
        seen += [row for batch in batches for row in batch.images.tolist()]
        assert stream.images_seen == len(seen)
    assert sizes == [4, 4, 3] * 4
    assert [sorted(seen[i : i + 11]) for i in range(0, 44, 11)] == [list(range(11))] * 4
    assert stream.batches_per_epoch == 3
    kept = BatchStream(torch.arange(11), batch_size=4, n_critic=1, steps=2, seed=0)
    assert torch.equal(torch.cat(images(kept)), torch.tensor(seen[:8])), "the same order, but for the last batch"


def test_stream_can_shuffle_anew_for_every_step() -> None:
    """The first five batches of a fresh shuffle, each time: nothing twice within a step, all but the same between."""
    stream = BatchStream(torch.arange(1000), batch_size=20, n_critic=5, steps=40, seed=0, reshuffle="step")
    steps = [set(step.tolist()) for step in images(stream)]
    assert {len(step) for step in steps} == {100}
    shared = [len(one & other) for one, other in itertools.pairwise(steps)]
    assert sum(shared) / len(shared) == pytest.approx(10, abs=1.5), "a tenth of 100, by chance"
    short = BatchStream(torch.arange(10), batch_size=4, n_critic=3, steps=1, seed=0, reshuffle="step")
    first, second, third = next(iter(short))
    assert torch.equal(first.images, third.images), "there are two batches in a shuffle"
    assert not set(first.images.tolist()) & set(second.images.tolist())


@pytest.mark.parametrize("options", [{}, {"drop_last": False}, {"reshuffle": "step"}])
def test_stream_continues_where_it_was(options: dict[str, Any]) -> None:
    def stream() -> BatchStream:
        return BatchStream(torch.arange(10), batch_size=3, n_critic=2, steps=9, seed=5, **options)

    whole, stopped, resumed = images(stream()), stream(), stream()
    head = images(itertools.islice(stopped, 4))
    resumed.load_state_dict(stopped.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(whole, [*head, *images(resumed)], strict=True))
    assert resumed.images_seen == sum(map(len, whole))


def test_stream_refuses_a_batch_larger_than_the_data() -> None:
    with pytest.raises(ValueError, match="batch_size=5"):
        BatchStream(torch.arange(4), batch_size=5, n_critic=1, steps=1, seed=0)


def test_points_pass_unscaled() -> None:
    points = torch.tensor([[3.0, -200.0]])
    assert torch.equal(to_unit_range(points), points)


@pytest.fixture
def tiny_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with files in the format of the originals, and torchvision told their md5 sums instead."""
    folder = tmp_path / cifar.FOLDER
    folder.mkdir()

    def write(name: str, content: dict) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name: str, n: int, start: int) -> list[str]:
        pixels = np.stack([np.full(3072, (start + i) % 256, dtype=np.uint8) for i in range(n)])
        pixels[:, :1024] = 255  # the red plane comes first
        return write(name, {"data": pixels, "labels": [(start + i) % 10 for i in range(n)]})

    train = [batch(f"data_batch_{i}", 10, 10 * i) for i in range(1, 6)]
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [batch("test_batch", 10, 60)])
    meta = write("batches.meta", {"label_names": list(cifar.CLASSES)})
    monkeypatch.setattr(
        torchvision.datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    monkeypatch.setattr(cifar, "PER_CLASS", {"train": 5, "test": 1})
    return tmp_path


@pytest.mark.parametrize(
    ("classes", "split", "n", "labels"),
    [
        (["horse"], "both", 6, {7}),
        (7, "train", 5, {7}),
        ([7, "horse"], "both", 6, {7}),
        (["cat", 7], "test", 2, {3, 7}),
        (None, "both", 60, set(range(10))),
    ],
)
def test_cifar_classes_and_splits(tiny_cifar: Path, classes: Any, split: Any, n: int, labels: set[int]) -> None:
    source = cifar.CIFAR10(root=str(tiny_cifar), classes=classes, split=split)
    images = source.load()
    assert images.shape == (n, 3, 32, 32) == (len(source), *source.shape)
    assert set(source.labels().tolist()) == labels
    assert (images[:, 0] == 255).all()
    assert ((images[:, 1, 0, 0] % 10) == source.labels()).all()


def test_cifar_holds_out_its_test_images(tiny_cifar: Path) -> None:
    options: dict[str, Any] = {"root": str(tiny_cifar), "classes": ["cat", 7]}
    held_out = cifar.CIFAR10(**options, split="train").held_out()
    assert held_out is not None
    test = cifar.CIFAR10(**options, split="test")
    assert torch.equal(held_out[0], test.load())
    assert torch.equal(held_out[1], test.labels())
    assert cifar.CIFAR10(**options).held_out() is None


def test_cifar_refusals(tiny_cifar: Path, tmp_path: Path) -> None:
    for wrong in ("unicorn", 10, -1):
        with pytest.raises(ValueError, match=f"classes={wrong}: no such class; allowed are 0 airplane"):
            cifar.CIFAR10(root=str(tiny_cifar), classes=[wrong])
    with pytest.raises(InvalidValueError, match=r"root=.*cifar-10-python\.tar\.gz.*download=true"):
        cifar.CIFAR10(root=str(tmp_path / "nowhere"))
    (tiny_cifar / cifar.FOLDER / "data_batch_3").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"root=.*not whole, by its md5 sums"):
        cifar.CIFAR10(root=str(tiny_cifar)).load()


def test_flips_mirror_half_of_the_images_and_are_part_of_the_stream() -> None:
    samples = torch.arange(4000 * 3, dtype=torch.uint8).view(4000, 1, 1, 3)
    options = {"batch_size": 400, "n_critic": 1, "steps": 20, "seed": 0}
    plain = torch.stack(images(BatchStream(samples, **options)))  # type: ignore[arg-type]
    flipped = torch.stack(images(BatchStream(samples, flip=True, **options)))  # type: ignore[arg-type]
    mirrored = (flipped != plain).flatten(2).any(2)
    assert torch.equal(flipped[mirrored], plain[mirrored].flip(-1))
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.03)
    again = BatchStream(samples, flip=True, **options)  # type: ignore[arg-type]
    again.load_state_dict({"step": 13})  # in the second epoch
    assert torch.equal(torch.stack(images(again)), flipped[13:])


def test_batches_are_sent_where_the_samples_are_not() -> None:
    samples = torch.zeros(10, 2)
    stream = BatchStream(samples, batch_size=4, n_critic=2, steps=3, seed=0, device=torch.device("meta"))
    stream.samples = samples  # as on a GPU that is too small for them
    assert {(batch.images.device.type, batch.images.shape) for step in stream for batch in step} == {("meta", (4, 2))}
    assert stream.fixed_samples(5).device.type == "meta"


def test_stacks_have_every_mode_equally_often() -> None:
    """Each channel is an image of the digit that its place of the mode says."""
    base = Digits(size=8)
    stacked = Stacked(base=base, n=2000)
    images, modes = stacked.load(), stacked.labels()
    assert images.shape == (len(stacked), *stacked.shape) == (2000, 3, 8, 8)
    assert torch.bincount(modes).tolist() == [2] * 1000
    digit = {image.tobytes(): int(label) for image, label in zip(base.load().numpy(), base.labels(), strict=True)}
    for channel, place in enumerate((100, 10, 1)):
        found = [digit[image.tobytes()] for image in images[:, channel : channel + 1].numpy()]
        assert found == (modes // place % 10).tolist()
    assert torch.equal(Stacked(base=base, n=2000).load(), images)
    assert len(images.flatten(1).unique(dim=0)) > 1990
    with pytest.raises(ValueError, match="n=1500: must be a multiple of the 1,000 modes"):
        Stacked(base=base, n=1500).load()
    with pytest.raises(ValueError, match="base=Stacked: must be a data set of grey images"):
        Stacked(base=Stacked(base=base))


class Own:
    """A user's data set of 8x8 images in colour."""

    shape: tuple[int, ...] = (3, 8, 8)

    def __init__(self, samples: Any, labels: Any = None) -> None:
        self.samples, self._labels = samples, labels

    def __len__(self) -> int:
        return 6

    def load(self) -> Any:
        return self.samples

    def labels(self) -> Any:
        return self._labels


IMAGES_OF_OWN = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("samples", "labels", "said"),
    [
        (torch.zeros(6, 8, 8, 3), None, r"torch.float32 of \(6, 8, 8, 3\); must be a tensor \(n, 3x8x8\), uint8 or"),
        (IMAGES_OF_OWN.long(), None, r"torch.int64 of \(6, 3, 8, 8\); must be"),
        (IMAGES_OF_OWN.numpy(), None, r"what its load\(\) returns is a ndarray; must be"),
        (IMAGES_OF_OWN, torch.zeros(6, 1, dtype=torch.long), "labels must be a tensor of 6 whole numbers"),
        (IMAGES_OF_OWN, torch.zeros(12, dtype=torch.long), "labels must be a tensor of 6 whole numbers"),
        (IMAGES_OF_OWN, torch.zeros(6), "labels must be a tensor of 6 whole numbers"),
        (IMAGES_OF_OWN[:4], None, r"load\(\) returns 4 samples, and its length is 6"),
        (IMAGES_OF_OWN / torch.arange(6).view(6, 1, 1, 1), None, "is not finite in 1 samples, the first of them 0"),
    ],
)
def test_what_a_users_data_set_returns_is_checked(samples: Any, labels: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^dataset: .*{said}"):
        read_once(Own(samples, labels), "a user's own")


def test_images_in_another_range_are_noted(capsys: pytest.CaptureFixture[str]) -> None:
    for scale, said in ((255.0, "note: the images are 0 to 255, and generators"), (1.0, "are 0 to 1"), (-1.0, "")):
        samples = torch.ones(6, 3, 8, 8) * abs(scale)
        samples[0] = -1 if scale < 0 else 0
        read_once(Own(samples), f"of {scale}")
        out = capsys.readouterr().out
        assert said in out
        assert bool(out) == bool(said)


def test_half_precision_has_a_fingerprint_of_its_own() -> None:
    half = torch.ones(2, 3, dtype=torch.bfloat16)
    assert content_hash(half) != content_hash(half.half())
    assert content_hash(half) == content_hash(half.clone())


OWN = """
import torch

class Own:
    shape = (1, 8, 8)
    def __init__(self, n: int = 64): self.n = n
    def __len__(self): return self.n
    def load(self): return torch.zeros(64, 1, 8, 8, dtype=torch.uint8)

class Shapeless:
    def __len__(self): return 64
    def load(self): return torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
"""


def test_refused_data_leave_no_folder_and_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "own_data.py").write_text(OWN)
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    for name, content in (("own", "_target_: own_data.Own\nn: 70"), ("shapeless", "_target_: own_data.Shapeless")):
        (tmp_path / "conf" / "dataset" / f"{name}.yaml").write_text(content + "\n")
    for name, said in (
        ("own", "dataset: its load() returns 64 samples, and its length is 70"),
        ("shapeless", "dataset: a Shapeless has no shape; a data set has shape, __len__ and load(), or endless, shape"),
    ):
        given = ["--config-dir", "conf", f"dataset={name}", "model=mlp", "steps=2", "logger=none", "hydra.run.dir=run"]
        done = wganlab("train", *given, cwd=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "run").exists()
    jobs = ["--config-dir", "conf", "dataset=own", "model=mlp", "steps=2", "logger=none", "hydra.sweep.dir=out"]
    done = wganlab("train", "-m", *jobs, "dataset.n=70,64", "batch_size=8", "callbacks=none", cwd=tmp_path)
    assert done.returncode == 1
    status = json.loads((tmp_path / "out" / "dataset.n=70" / "status.json").read_text())
    assert status["state"] == "failed", "a sweep shows what its jobs were refused for, and does not begin them again"
    assert status["error"].endswith("its load() returns 64 samples, and its length is 70")
    assert "1 of 2 jobs completed" in done.stdout


class Drawn:
    """A user's endless data set, which draws whatever it was given."""

    shape, endless = (2,), True

    def __init__(self, drawn: Any) -> None:
        self.drawn = drawn

    def draw(self, n: int, random: torch.Generator) -> Any:
        return self.drawn


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        (torch.zeros(2, 2), r"what its draw\(\) returns is a Tensor; must be a pair of samples and labels"),
        ((torch.zeros(2, 3), None), r"what its draw\(\) returns is torch.float32 of \(2, 3\); must be a tensor"),
        ((torch.zeros(2, 2, dtype=torch.long), None), r"what its draw\(\) returns is torch.int64"),
        ((torch.full((2, 2), math.inf), None), r"what its draw\(\) returns is not finite"),
    ],
)
def test_what_a_users_endless_data_set_draws_is_checked(drawn: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^dataset: .*{said}"):
        check_draw(Drawn(drawn))


def test_labels_of_a_users_data_set_may_be_of_any_integer_type() -> None:
    data = read_once(Own(IMAGES_OF_OWN, torch.arange(6, dtype=torch.uint8)), "bytes")
    assert data.labels is not None
    assert (data.labels.dtype, data.labels.tolist()) == (torch.int64, [*range(6)])
