"""Shapes and sizes of the networks."""

import math
import resource
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import config
from wganlab.build import construct
from wganlab.networks import dcgan, mlp, r3gan, random_architecture, resnet, upsample_dcgan
from wganlab.networks.layers import (
    DoublingConv2d,
    Dropout,
    MinibatchDiscrimination,
    Padding,
    doubling,
    evaluation_mode,
    halving,
)

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 48, 64)]


def size(network: nn.Module) -> tuple[int, int]:
    """Trainable parameters, and batch-norm statistics beside them."""
    trainable = sum(p.numel() for p in network.parameters())
    statistics = sum(b.numel() for b in network.buffers() if b.dim())
    return trainable, statistics


@pytest.mark.parametrize("module", [mlp, dcgan, upsample_dcgan, resnet], ids=lambda m: m.__name__.split(".")[-1])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "none"])
def test_pairs_make_and_score_every_shape(module: Any, shape: tuple[int, ...], norm: str) -> None:
    blocks = {"n_blocks": 2} if module in (upsample_dcgan, resnet) and shape[1] == 28 else {}
    narrow = {} if module is mlp else {"n_filters": 8}
    if module is not resnet and norm == "instance":  # their generators normalise features, too
        with pytest.raises(ValueError, match="norm=instance"):
            module.Generator(latent_dim=7, shape=shape, norm=norm, **narrow, **blocks)
        generator = module.Generator(latent_dim=7, shape=shape, **narrow, **blocks)
    else:
        generator = module.Generator(latent_dim=7, shape=shape, norm=norm, **narrow, **blocks)
    critic = module.Critic(shape=shape, norm="layer" if module is mlp and norm == "instance" else norm, **narrow)
    images = generator(torch.randn(2, 7))
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1
    assert critic(images).shape == (2,)


def layers(network: nn.Module, kind: type | tuple[type, ...]) -> list:
    return [module for module in network.modules() if isinstance(module, kind)]


def test_doubling_and_convolving_in_one_equals_the_two_layers() -> None:
    in_one = DoublingConv2d(3, 2).double()
    two = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 2, 5, padding=2, bias=False)).double()
    two[1].weight = in_one.weight
    maps = torch.randn(4, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(in_one(maps), two(maps), atol=1e-12)
    towards = torch.randn(4, 2, 10, 14, dtype=torch.float64)
    gradients = [torch.autograd.grad((layer(maps) * towards).sum(), [maps, in_one.weight]) for layer in (in_one, two)]
    for found, expected in zip(*gradients, strict=True):
        assert torch.allclose(found, expected, atol=1e-12)


def test_upsample_dcgan_is_the_published_one() -> None:
    """5x5 layers of 128, 64, 32, 3 maps at 8, 16, 32, 32 pixels against 32, 64, 128, 128 maps at 16, 8, 4, 4."""
    generator = upsample_dcgan.Generator(latent_dim=100, shape=(3, 32, 32))
    critic = upsample_dcgan.Critic(shape=(3, 32, 32), output="tanh")
    seen: list[tuple[int, ...]] = []
    for module in (*layers(generator, nn.Conv2d), *layers(critic, nn.Conv2d)):
        module.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    scores = critic(generator(torch.randn(2, 100)))
    assert seen[:4] == [(128, 8, 8), (64, 16, 16), (32, 32, 32), (3, 32, 32)]
    assert seen[4:] == [(32, 16, 16), (64, 8, 8), (128, 4, 4), (128, 4, 4)]
    assert layers(generator, nn.Linear)[0].out_features == 2048
    assert [round(1 - m.momentum, 2) for m in layers(generator, (nn.BatchNorm1d, nn.BatchNorm2d))] == [
        0.8,
        0.99,
        0.8,
        0.99,
    ]
    assert {m.kernel_size for m in (*layers(generator, nn.Conv2d), *layers(critic, nn.Conv2d))} == {(5, 5)}
    assert [m.bias is not None for m in layers(generator, nn.Conv2d)] == [False] * 4
    assert layers(critic, nn.Dropout)[0].p == 0.3
    assert layers(critic, nn.Linear)[-1].in_features == 2048
    assert (size(generator)[0], size(critic)[0]) == (877_344, 670_401)
    assert scores.abs().max() < 1
    with torch.no_grad():
        layers(critic, nn.Linear)[-1].weight.fill_(10.0)
        assert critic(torch.ones(2, 3, 32, 32)).abs().max() <= 1, "the source's critic is bounded"


@pytest.mark.parametrize(("n", "padded_before"), [(8, 1), (7, 2), (28, 1), (2, 1), (1, 2)])
def test_tensorflow_pads_below_and_to_the_right(n: int, padded_before: int) -> None:
    """Against its rule: ceil(n / 2) outputs, of which the i-th sees pixels from 2i - padded_before on."""
    convolve = nn.Sequential(*halving(1, 1, (n, n), "tensorflow"))
    image = torch.arange(1.0, n * n + 1).view(1, 1, n, n)
    with torch.no_grad():
        for layer in layers(convolve, nn.Conv2d):
            layer.weight.zero_()[0, 0, 0, 0] = 1  # passes on the first pixel that it sees
            layer.bias.zero_()
    expected = torch.zeros(1, 1, -(-n // 2), -(-n // 2))
    for i in range(expected.shape[2]):
        for j in range(expected.shape[3]):
            if 2 * i >= padded_before and 2 * j >= padded_before:
                expected[0, 0, i, j] = image[0, 0, 2 * i - padded_before, 2 * j - padded_before]
    assert torch.equal(convolve(image), expected)


@pytest.mark.parametrize("padding", ["symmetric", "tensorflow"])
def test_doubling_is_the_transpose_of_halving(padding: Padding) -> None:
    down, up = nn.Sequential(*halving(2, 3, (8, 6), padding)), nn.Sequential(*doubling(3, 2, padding))
    (convolution,), (transposed,) = layers(down, nn.Conv2d), layers(up, nn.ConvTranspose2d)
    with torch.no_grad():
        convolution.bias.zero_()
        transposed.weight.copy_(convolution.weight)
    images, maps = torch.randn(4, 2, 8, 6), torch.randn(4, 3, 4, 3)
    assert torch.allclose((down(images) * maps).sum(), (images * up(maps)).sum(), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_scales_the_rest(dtype: torch.dtype) -> None:
    layer, ones = Dropout(0.3), torch.ones(64, 16, 14, 14, dtype=dtype).to(memory_format=torch.channels_last)
    dropped = layer(ones)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / ones.numel()) ** 0.5)
    assert dropped.max().item() == pytest.approx(1 / 0.7, rel=1e-6 if dtype == torch.float32 else 1e-2)
    assert dropped.dtype == dtype
    assert dropped.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.eval()(ones), ones)


def test_resnet_is_the_papers() -> None:
    """WGAN-GP, appendix F: 128 maps throughout, three doublings from 4x4, two halvings to 8x8."""
    generator = resnet.Generator(latent_dim=128, shape=(3, 32, 32))
    critic = resnet.Critic(shape=(3, 32, 32))
    assert layers(generator, nn.Linear)[0].out_features == 4 * 4 * 128
    assert len(layers(generator, resnet.Block)) == 3
    assert len(layers(critic, resnet.Block)) == 4
    assert critic.features[3](critic.features[:3](torch.randn(1, 3, 32, 32))).shape == (1, 128, 8, 8)  # type: ignore[index]
    assert not layers(critic, (nn.BatchNorm1d, nn.BatchNorm2d))


def test_sngan_resnet_is_the_papers() -> None:
    """Table 4 at 32x32: 256 maps and three doublings from 4x4, against 128 maps, summed over 8x8."""
    settings = config("model=sngan_resnet")
    generator = construct(settings, "model.generator", latent_dim=128, shape=(3, 32, 32))
    critic = construct(settings, "model.critic", shape=(3, 32, 32))
    assert size(generator)[0] == 4_276_739
    assert size(critic)[0] == 1_053_825
    maps = nn.Sequential(*critic.features[:5])(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(critic.features[5:](maps), maps.sum((2, 3)))
    for network in (generator, critic):
        for block in layers(network, resnet.Block):
            for layer in layers(block.residual, nn.Conv2d):
                outputs, inputs = layer.weight.shape[:2]
                bound = math.sqrt(2 * 6 / (9 * (inputs + outputs)))
                assert 0.98 * bound < layer.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("widths", "shape", "of_generator", "of_critic"),
    [([768] * 4, (3, 32, 32), 20_732_160, 20_683_776), ([768] * 4 + [384], (3, 64, 64), 22_429_824, 22_381_440)],
)
def test_r3gan_has_the_parameters_of_the_papers_program(
    widths: list[int], shape: tuple[int, ...], of_generator: int, of_critic: int
) -> None:
    """Of its presets CIFAR10 and FFHQ-64, latent 64."""
    with torch.device("meta"):
        assert size(r3gan.Generator(latent_dim=64, shape=shape, widths=widths))[0] == of_generator
        assert size(r3gan.Critic(shape=shape, widths=widths[::-1]))[0] == of_critic


def test_r3gan_begins_as_a_linear_map_with_kernels_of_known_scale() -> None:
    """Blocks begin as the identity; their first layers have sd gain * n_blocks^(-1/4) / sqrt(inputs of a unit)."""
    generator = r3gan.Generator(latent_dim=8, shape=(3, 32, 32), widths=(64, 64, 32), n_blocks=2)
    one, other = torch.randn(2, 4, 8)
    torch.testing.assert_close(generator(one + other), generator(one) + generator(other), rtol=1e-4, atol=1e-4)
    assert generator.layers[0](one).shape == (4, 64, 8, 8)
    for block in layers(generator, r3gan.Block):
        first, _, second, _, last = block.residual
        for layer in (first, second):
            sd = (2 / 1.04) ** 0.5 * 6**-0.25 / layer.weight[0].numel() ** 0.5
            assert layer.weight.std().item() == pytest.approx(sd, rel=0.05)
        assert second.weight.shape[1] == 16, "the width of a group"
        assert not last.weight.any()


def test_r3gan_resamples_by_its_filter() -> None:
    """[1, 3, 3, 1] with zeros around the image: the critic's way down is a quarter of the generator's transposed."""
    up, down = (nn.Sequential(*make(1, 1)) for make in (r3gan.doubled, r3gan.halved))
    kernel = torch.outer(line := torch.tensor([1.0, 3, 3, 1]), line)[None, None]
    images, maps = torch.randn(2, 1, 6, 4), torch.randn(2, 1, 12, 8)
    expected = nn.functional.conv_transpose2d(images, kernel / 16, stride=2, padding=1)
    torch.testing.assert_close(up(images), expected)
    torch.testing.assert_close(down(maps), nn.functional.conv2d(maps, kernel / 64, stride=2, padding=1))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_r3gan_makes_and_scores_every_shape(shape: tuple[int, ...]) -> None:
    settings = config("model=r3gan")
    generator = construct(settings, "model.generator", latent_dim=64, shape=shape)
    critic = construct(settings, "model.critic", shape=shape)
    images = generator(torch.randn(2, 64))
    assert images.shape == (2, *shape)
    assert critic(images).shape == (2,)
    assert size(generator)[0] < 500_000
    with pytest.raises(ValueError, match=r"widths=\[8, 8, 8, 8, 8, 8, 8, 8\]: cannot make images of"):
        r3gan.Generator(latent_dim=2, shape=shape, widths=[8] * 8)
    with pytest.raises(ValueError, match=r"group_width=16: must divide 2 times each width, and 24 is no multiple"):
        r3gan.Critic(shape=shape, widths=[12])


def test_toy_mlp_is_the_papers() -> None:
    """Four linear layers, three ReLU of width 512, in both networks; the generator's output is not bounded."""
    settings = config("model=toy_mlp")
    generator = construct(settings, "model.generator", latent_dim=2, shape=(2,))
    critic = construct(settings, "model.critic", shape=(2,))
    for network, widths in ((generator, [512, 512, 512, 2]), (critic, [512, 512, 512, 1])):
        assert [m.out_features for m in layers(network, nn.Linear)] == widths
        assert {m.negative_slope for m in layers(network, nn.LeakyReLU)} == {0.0}
        assert not layers(network, nn.Tanh)
    assert generator(100 * torch.randn(50, 2)).abs().max() > 1


def test_minibatch_discrimination_of_many_samples_takes_little_memory() -> None:
    """In parts it gives what it gives at once; at once, the differences of 2,000 samples would be 4 GB."""
    layer = MinibatchDiscrimination(3)
    features = torch.randn(11, 3)
    whole = layer(features)
    layer.most_differences = 2 * 11 * 250
    assert torch.allclose(layer(features), whole, atol=1e-6)
    del layer.most_differences
    with torch.no_grad():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        layer(torch.randn(2000, 3))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6, "in kB"


def test_minibatch_discrimination_sees_the_batch() -> None:
    """Equal samples are at distance zero: each of the others adds exp(0) = 1 to every kernel."""
    layer = MinibatchDiscrimination(3, kernels=4, dims=2)
    alike = layer(torch.ones(5, 3))
    assert torch.equal(alike[:, :3], torch.ones(5, 3))
    assert torch.allclose(alike[:, 3:], torch.full((5, 4), 4.0))
    features = torch.randn(2, 3)
    rows = layer.project(features).view(2, 4, 2)
    expected = torch.exp(-(rows[0] - rows[1]).abs().sum(1))
    assert torch.allclose(layer(features)[:, 3:], expected.expand(2, 4), atol=1e-6)
    critic = mlp.Critic(shape=(1, 8, 8), minibatch_kernels=6)
    together, alone = critic(torch.randn(4, 1, 8, 8)), critic(torch.randn(1, 1, 8, 8))
    assert (together.shape, alone.shape) == ((4,), (1,))


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


def test_drawn_architectures_are_those_of_the_table() -> None:
    """Every choice occurs; depth is the number of weight layers; the same number draws the same pair again."""
    draws = [
        random_architecture.Architecture.draw(number, network)
        for number in range(200)
        for network in ("generator", "critic")
    ]
    assert {draw.depth for draw in draws} == {4, 8, 12, 20}
    assert {draw.filters for draw in draws} == {32, 64, 128}
    assert {draw.nonlinearity for draw in draws} == {"relu", "leaky_relu", "softplus", "tanh"}
    assert {draw.norm for draw in draws} == {False, True}
    assert len(set(draws)) > 80, "of 4 * 4 * 2 * 3"
    weights = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    for number in range(12):
        generator = random_architecture.Generator(latent_dim=8, shape=(1, 32, 32), number=number, width=1 / 16)
        critic = random_architecture.Critic(shape=(1, 32, 32), number=number, width=1 / 16, norm="layer")
        for network in (generator, critic):
            assert sum(isinstance(layer, weights) for layer in network.modules()) == network.architecture.depth
            normed = any(isinstance(layer, nn.BatchNorm2d | nn.GroupNorm) for layer in network.modules())
            assert normed == network.architecture.norm
        images = generator(torch.randn(2, 8))
        assert images.shape == (2, 1, 32, 32)
        assert critic(images).shape == (2,)
        again = random_architecture.Critic(shape=(1, 32, 32), number=number)
        assert again.architecture == critic.architecture


def test_scaled_softplus() -> None:
    """softplus(2) / 2 - 1 at zero, -1 far to the left, x far to the right."""
    x = torch.tensor([0.0, -50.0, 50.0])
    expected = torch.tensor([math.log(1 + math.exp(2)) / 2 - 1, -1.0, 50.0])
    assert torch.allclose(random_architecture.ScaledSoftplus()(x), expected)


def test_evaluation_mode_leaves_frozen_layers_frozen() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    network[0].eval()
    with evaluation_mode(network):
        assert [module.training for module in network.modules()] == [False, False, False]
    assert [module.training for module in network.modules()] == [True, False, True]
