"""Shapes and sizes of the networks."""

import pytest
import torch
from torch import nn

from wganlab.networks import dcgan, mlp

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]


def size(network: nn.Module) -> tuple[int, int]:
    """Trainable parameters, and batch-norm statistics beside them."""
    trainable = sum(p.numel() for p in network.parameters())
    statistics = sum(b.numel() for b in network.buffers() if b.dim())
    return trainable, statistics


@pytest.mark.parametrize("module", [mlp, dcgan], ids=["mlp", "dcgan"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_pairs_make_and_score_every_shape(module: object, shape: tuple[int, ...], norm: str) -> None:
    generator = module.Generator(latent_dim=7, shape=shape, norm=norm)  # type: ignore[attr-defined]
    critic = module.Critic(shape=shape, norm=norm)  # type: ignore[attr-defined]
    images = generator(torch.randn(2, 7))
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1
    assert critic(images).shape == (2,)


def test_mlp_is_the_published_one() -> None:
    generator, critic = mlp.Generator(latent_dim=100, shape=(1, 28, 28)), mlp.Critic(shape=(1, 28, 28))
    widths = [layer.out_features for layer in generator.modules() if isinstance(layer, nn.Linear)]
    assert widths == [128, 256, 512, 1024, 784]
    assert [layer.out_features for layer in critic.modules() if isinstance(layer, nn.Linear)] == [512, 256, 1]
    norms = [layer for layer in generator.modules() if isinstance(layer, nn.BatchNorm1d)]
    assert [layer.num_features for layer in norms] == [256, 512, 1024]
    assert {layer.eps for layer in norms} == {1e-5}
    assert not [layer for layer in critic.modules() if isinstance(layer, nn.BatchNorm1d)]


def test_dcgan_has_the_published_parameter_counts() -> None:
    """The walk-through prints 804,832 trainable of 817,824, and 1,039,489 of 1,040,385."""
    assert size(dcgan.Generator(latent_dim=20, shape=(1, 28, 28))) == (804_832, 817_824 - 804_832)
    assert size(dcgan.Critic(shape=(1, 28, 28), norm="batch")) == (1_039_489, 1_040_385 - 1_039_489)


def test_dcgan_keeps_the_constants_of_its_source() -> None:
    generator = dcgan.Generator(latent_dim=20, shape=(1, 28, 28))
    norms = [m for m in generator.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    assert {m.negative_slope for m in generator.modules() if isinstance(m, nn.LeakyReLU)} == {0.3}


def test_dcgan_critic_has_no_batch_norm_by_default() -> None:
    critic = dcgan.Critic(shape=(1, 28, 28)).eval()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in critic.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in critic.modules())
    images = torch.rand(4, 1, 28, 28)
    alone = torch.cat([critic(image[None]) for image in images])
    assert torch.allclose(critic(images), alone, atol=1e-5), "the score of an image depends on its neighbours"


@pytest.mark.parametrize("shape", [(1, 30, 28), (1, 28, 30), (2,)])
def test_dcgan_refuses_sizes_it_cannot_double_to(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        dcgan.Generator(latent_dim=20, shape=shape)
    with pytest.raises(ValueError, match="multiples of 4"):
        dcgan.Critic(shape=shape)


def test_dcgan_refuses_a_width_it_cannot_halve() -> None:
    with pytest.raises(ValueError, match=r"n_filters=6.*multiple of 4"):
        dcgan.Generator(latent_dim=20, shape=(1, 28, 28), n_filters=6)
