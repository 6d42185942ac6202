"""Data sets and the stream of batches."""

from pathlib import Path

import pytest
import torch

from wganlab.data.digits import Digits
from wganlab.data.mnist import FILES, IMAGES, MNIST
from wganlab.data.stream import BatchStream, to_unit_range


@pytest.fixture
def tiny_mnist(tmp_path: Path) -> Path:
    """A root with well-formed MNIST files of a few images, in the format of the originals."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        n = 6 if name.startswith("train") else 3
        if "images" in name:
            sizes = [2051, n, 28, 28]
            body = bytes((i * 37 + j) % 256 for i in range(n) for j in range(784))
        else:
            sizes, body = [2049, n], bytes(range(n))
        (raw / name).write_bytes(b"".join(size.to_bytes(4, "big") for size in sizes) + body)
    return tmp_path


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


def test_mnist_reads_the_original_format(tiny_mnist: Path) -> None:
    source = MNIST(root=str(tiny_mnist))
    images = source.load()
    assert images.shape == (len(source), *source.shape) == (6, 1, 28, 28)
    assert images[2, 0, 0, :3].tolist() == [74, 75, 76]
    assert len(MNIST(root=str(tiny_mnist), train=False).load()) == 3


def test_mnist_missing_says_which_files_and_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="root=") as error:
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


def test_stream_shows_every_image_once_an_epoch_in_a_new_order() -> None:
    stream = BatchStream(torch.arange(12), batch_size=4, n_critic=3, steps=3, seed=0)
    epochs = [batch.flatten().tolist() for batch in stream]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_stream_drops_the_partial_batch_and_depends_on_the_seed() -> None:
    def first(seed: int) -> list[int]:
        return (
            next(iter(BatchStream(torch.arange(11), batch_size=4, n_critic=2, steps=1, seed=seed))).flatten().tolist()
        )

    assert len(set(first(0))) == 8
    assert first(0) == first(0)
    assert first(0) != first(1)


def test_stream_continues_where_it_was() -> None:
    def stream() -> BatchStream:
        return BatchStream(torch.arange(10), batch_size=3, n_critic=2, steps=9, seed=5)

    whole, stopped, resumed = list(stream()), stream(), stream()
    batches = iter(stopped)
    head = [next(batches) for _ in range(4)]
    resumed.load_state_dict(stopped.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(whole, [*head, *resumed], strict=True))


def test_stream_refuses_a_batch_larger_than_the_data() -> None:
    with pytest.raises(ValueError, match="batch_size=5"):
        BatchStream(torch.arange(4), batch_size=5, n_critic=1, steps=1, seed=0)


def test_points_pass_unscaled() -> None:
    points = torch.tensor([[3.0, -200.0]])
    assert torch.equal(to_unit_range(points), points)
