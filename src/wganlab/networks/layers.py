"""Building blocks shared by the networks."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from wganlab import parallel
from wganlab.schema import InvalidValueError

#: The layers that draw which values to keep.
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
#: Of the layers of a network, in their order.
Widths = Annotated[Sequence[PositiveInt], Field(min_length=1)]
Norm = Literal["batch", "layer", "instance", "none"]
Init = Literal["torch", "glorot", "he"]
Output = Literal["tanh", "linear"]
Padding = Literal["symmetric", "tensorflow"]


def at_least_fp32(x: Tensor) -> Tensor:
    """The same in fp32, where it is coarser: bf16 has steps of 2 at a score of 300."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def norm_layer(kind: Norm, channels: int, *, images: bool, eps: float = 1e-5, momentum: float = 0.1) -> nn.Module:
    """Normalisation of (batch, channels) or, with ``images``, of (batch, channels, height, width).

    "layer" is over channels and pixels of one image with a scale per channel, as in the WGAN-GP code: a group
    norm of one group. "instance" is over the pixels of one channel of one image, with a scale per channel.
    ``momentum`` is torch's (the weight of the new batch) and only means something to "batch".
    Raises ValueError for an instance norm of features that have no pixels.
    """
    if kind == "batch":
        batch_norm = nn.BatchNorm2d if images else nn.BatchNorm1d
        return batch_norm(channels, eps=eps, momentum=momentum)
    if kind == "instance":
        if not images:
            raise InvalidValueError("norm", "instance", "normalises over pixels, and this network has none; use layer")
        return nn.InstanceNorm2d(channels, eps=eps, affine=True)
    return nn.GroupNorm(1, channels, eps=eps) if kind == "layer" else nn.Identity()


def output_layer(kind: Output) -> nn.Module:
    """The last activation: tanh, or none."""
    return nn.Tanh() if kind == "tanh" else nn.Identity()


def initialise(network: nn.Module, scheme: Init) -> None:
    """Draw all kernels anew and set all biases to zero; normalisation layers keep scale 1 and shift 0.

    "glorot" is Glorot-uniform, Keras' default; "he" is He-uniform, for ReLU; "torch" leaves torch's own draw, biases
    included.
    """
    if scheme == "torch":
        return
    draw = nn.init.xavier_uniform_ if scheme == "glorot" else nn.init.kaiming_uniform_
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def halving(before: int, after: int, size: tuple[int, int], padding: Padding) -> list[nn.Module]:
    """A 5x5 convolution of stride 2 from (height, width) to half of it, rounded up.

    "tensorflow" is its 'same' padding, which puts the odd pixel below and to the right: the same kernel sees an image
    shifted by a pixel.
    """
    if padding == "symmetric":
        return [nn.Conv2d(before, after, 5, stride=2, padding=2)]
    totals = [max(0, (-(-side // 2) - 1) * 2 + 5 - side) for side in size]
    top, left = (total // 2 for total in totals)
    pad = nn.ZeroPad2d((left, totals[1] - left, top, totals[0] - top))
    return [pad, nn.Conv2d(before, after, 5, stride=2)]


def doubling(before: int, after: int, padding: Padding) -> list[nn.Module]:
    """A transposed 5x5 convolution of stride 2, without bias, that doubles height and width; see :func:`halving`."""
    if padding == "symmetric":
        return [nn.ConvTranspose2d(before, after, 5, stride=2, padding=2, output_padding=1, bias=False)]
    crop = nn.ZeroPad2d((0, -1, 0, -1))
    return [nn.ConvTranspose2d(before, after, 5, stride=2, padding=1, bias=False), crop]


def fall_together(taps: Tensor) -> Tensor:
    """(..., 5) to (..., 2, 3): what a kernel on doubled pixels gives to three single ones, at even and odd places."""
    a, b, c, d, e = taps.unbind(-1)
    return torch.stack([torch.stack([a + b, c + d, e], -1), torch.stack([a, b + c, d + e], -1)], -2)


class DoublingConv2d(nn.Conv2d):
    """Nearest-neighbour doubling of height and width, then a 5x5 convolution that keeps them, without bias, in one.

    On doubled maps a 5x5 kernel meets only 3x3 different pixels. So four 3x3 kernels, sums of the weights
    (after, before, 5, 5), make the four pixels that each one becomes: 9 products for each in place of 25. Equal to the
    two layers up to rounding.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 5, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        columns = fall_together(self.weight)  # after, before, row tap, odd column, column
        kernels = fall_together(columns.movedim(2, -1)).permute(0, 4, 2, 1, 5, 3)
        kernels = kernels.reshape(-1, self.in_channels, 3, 3).contiguous(memory_format=torch.channels_last)
        return nn.functional.pixel_shuffle(nn.functional.conv2d(images, kernels, padding=1), 2)


def check_halvings(n_filters: int, times: int) -> None:
    """Raises ValueError when a width cannot be halved so many times."""
    if n_filters % 2**times:
        raise InvalidValueError(
            "n_filters", n_filters, f"cannot be halved {times} times; must be a multiple of {2**times}"
        )


def initial_size(shape: tuple[int, ...], n_blocks: int, *, fixed: bool = False) -> tuple[int, int]:
    """Height and width before the first of ``n_blocks`` doublings, which in some networks are ``fixed``.

    Raises ValueError when doubling cannot end at ``shape``.
    """
    factor = 2**n_blocks
    if len(shape) != 3 or shape[1] % factor or shape[2] % factor:
        size = "x".join(map(str, shape))
        allowed = f"allowed are (channels, height, width) with height and width multiples of {factor}"
        if fixed:
            raise InvalidValueError("shape", size, f"is none for this network; {allowed}")
        raise InvalidValueError("n_blocks", n_blocks, f"cannot make images of {size}; {allowed}")
    return shape[1] // factor, shape[2] // factor


@contextmanager
def evaluation_mode(*networks: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode for a while: running statistics are used and not moved, dropout is off."""
    before = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, training in before:  # one by one: layers that were frozen stay so
            module.training = training


def takes_labels(network: nn.Module | Callable) -> bool:
    """Whether a network is conditional: its ``forward`` has a parameter ``labels``."""
    return "labels" in inspect.signature(getattr(network, "forward", network)).parameters


class ImageCritic(nn.Module):
    """A critic as a function of images alone: labels (batch,) are bound to it, and it sees images augmented."""

    def __init__(
        self, network: nn.Module, labels: Tensor | None, augmentation: Callable[[Tensor], Tensor] | None
    ) -> None:
        super().__init__()
        self.network, self.augmentation = network, augmentation
        self.training = network.training
        self.given = {} if labels is None else {"labels": labels}

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.augment(images), **self.given)

    def features(self, images: Tensor) -> Tensor:
        """Those of a critic that has some."""
        given = self.given if takes_labels(self.network.features) else {}  # type: ignore[arg-type]
        return self.network.features(self.augment(images), **given)  # type: ignore[operator]

    def scores_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Those of a critic with an auxiliary classifier."""
        return self.network.scores_and_logits(self.augment(images))  # type: ignore[operator]

    def augment(self, images: Tensor) -> Tensor:
        """The images that the network sees."""
        return images if self.augmentation is None else self.augmentation(images)


class Dropout(nn.Dropout):
    """nn.Dropout with masks from uniform numbers: on a CPU torch's own draws take more than twice as long.

    The ranks of a run take their shares of one mask, so that no two have the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        alone = parallel.world_size() == 1
        if not (self.training and 0 < self.p < 1) or (alone and x.device.type != "cpu"):
            return super().forward(x)
        kept = parallel.batch_rand_like(x) >= self.p
        return x * kept.to(x.dtype).div_(1 - self.p)


class MinibatchDiscrimination(nn.Module):
    """Tells each sample how close the others of its batch are (Salimans et al. 2016, arXiv 1606.03498, section 3.2).

    Appends ``kernels`` features to the (batch, features) of a critic: o_b(x_i) = sum over j of
    exp(-|| M_i,b - M_j,b ||_1), where M = features @ T is a (kernels, dims) matrix for each sample. The sum leaves
    out j = i, a constant 1. It couples the images of a batch, on purpose, as batch norm does by accident.
    """

    #: How many differences of two values are taken at a time: their memory grows with the square of the batch.
    most_differences = 2**24

    def __init__(self, features: int, *, kernels: int = 50, dims: int = 5) -> None:
        super().__init__()
        self.project = nn.Linear(features, kernels * dims, bias=False)
        self.shape = (kernels, dims)

    def forward(self, features: Tensor) -> Tensor:
        # (dims, batch, kernels): a sum over what lies innermost would take twice as long
        rows = self.project(features).unflatten(1, self.shape).permute(2, 0, 1).contiguous()
        parts = rows.split(max(1, self.most_differences // max(1, rows.numel())), dim=1)  # one, of batches to train on
        distances = ((part[:, :, None] - rows[:, None]).abs().sum(0) for part in parts)  # (part, batch, kernels)
        closeness = torch.cat([torch.exp(-distance).sum(1) for distance in distances]) - 1
        return torch.cat([features, closeness], dim=1)


def compares_samples(critic: nn.Module) -> bool:
    """Whether the value of a sample depends on the others of its batch in evaluation mode, too."""
    return any(isinstance(module, MinibatchDiscrimination) for module in critic.modules())


class FeatureCritic(nn.Module):
    """A critic in two parts: ``features`` maps images to (batch, dim), a linear ``head`` scores them.

    ``output="tanh"`` bounds the score; ``minibatch_kernels`` above zero puts minibatch discrimination before the head.
    ``samplewise`` says whether each image is scored as if it were alone, so that two batches may pass as one: batch
    norm and minibatch discrimination couple the images of a batch, and dropout would draw other masks.
    """

    def __init__(
        self,
        features: nn.Module,
        dim: int,
        *,
        output: Output = "linear",
        minibatch_kernels: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.features, self.dim = features, dim
        layers: list[nn.Module] = [MinibatchDiscrimination(dim, kernels=minibatch_kernels)] if minibatch_kernels else []
        self.head = nn.Sequential(*layers, nn.Linear(dim + minibatch_kernels, 1, bias=bias), output_layer(output))
        coupling = (*parallel.BATCH_NORMS, *DROPOUTS, MinibatchDiscrimination)
        self.samplewise = not any(isinstance(module, coupling) for module in self.modules())

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)).squeeze(1)
