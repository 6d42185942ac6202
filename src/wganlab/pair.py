"""A generator and a critic, and what is drawn from the one and judged by the other, in training or not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from wganlab import parallel
from wganlab.augmentation import Augmentation
from wganlab.averaging import Averaging, Weights
from wganlab.contracts import Latent
from wganlab.data import Columns
from wganlab.data.stream import to_unit_range
from wganlab.labels import Classes
from wganlab.networks.layers import ImageCritic, evaluation_mode, takes_labels


def sample_latents(
    n: int,
    latent_dim: int,
    distribution: Latent,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Latents of shape (n, latent_dim): standard normal, or uniform in [-1, 1)."""
    if distribution == "normal":
        return torch.randn(n, latent_dim, device=device, dtype=dtype, generator=generator)
    return torch.rand(n, latent_dim, device=device, dtype=dtype, generator=generator) * 2 - 1


#: Tells the random numbers inside a network from those of its latents, with the same seed.
NOISE = 0x0A15E5EE


@contextmanager
def noise_of(seed: int, device: torch.device) -> Iterator[None]:
    """Global random numbers from a seed for a while, for networks that draw noise; then those of before go on."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed ^ NOISE)
        yield


class Pair(LightningModule):
    """The two networks, with the latents between them, an average of the generator, and what the critic sees.

    ``shape`` is that of one sample, ``columns`` says what its values are in a table, and ``fingerprints`` are hashes
    of all samples and labels; they are noted in checkpoints. ``labels`` (n,) are those of the data, where there are
    some.
    """

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        *,
        latent_dim: int,
        latent: Latent,
        averaging: Averaging | None,
        augmentation: Augmentation | None,
    ) -> None:
        super().__init__()
        self.generator, self.critic = generator, critic
        self.latent_dim, self.latent = latent_dim, latent
        self.averaging, self.augmentation = averaging, augmentation
        if averaging is not None:
            averaging.start(generator)
        self.conditional = {"generator": takes_labels(generator), "critic": takes_labels(critic)}
        self.shape: tuple[int, ...] = ()
        self.columns: Columns | None = None
        self.fingerprints: dict[str, str] = {}
        self.labels: Tensor | None = None

    def latents(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Latents of shape (n, latent_dim) on the module's device; observers pass a generator of their own.

        Without one they are a rank's share of what all ranks draw.
        """
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "generator": generator}
        if generator is None:
            return parallel.shard(sample_latents(n * parallel.world_size(), self.latent_dim, self.latent, **options))
        return sample_latents(n, self.latent_dim, self.latent, **options)

    @property
    def classes(self) -> Classes:
        """Those of the data. Raises AttributeError where they have none."""
        return Classes.of(self.labels)  # type: ignore[arg-type]

    def shown_labels(self, n: int, *, seed: int = 0) -> Tensor | None:
        """The labels (n,) of what :meth:`generate` returns, drawn with the frequencies of the data.

        None for a generator that takes none.
        """
        if not self.conditional["generator"]:
            return None
        return self.classes.draw(n, seed=seed).to(self.device)

    def generate(self, n: int, *, seed: int = 0, labels: Tensor | None = None) -> Tensor:
        """n samples (n, *shape) of the generator in evaluation mode, always the same for a seed and its weights.

        They are those of the averaged generator where there is one, and of ``labels`` (n,) or :meth:`shown_labels`.
        """
        return torch.cat([*self.generate_parts(n, seed=seed, labels=labels)])

    def generate_parts(self, n: int, *, seed: int = 0, labels: Tensor | None = None) -> Iterator[Tensor]:
        """What :meth:`generate` returns, in parts of at most 512 samples."""
        latents = self.latents(n, generator=torch.Generator(self.device).manual_seed(seed))
        labels = self.shown_labels(n, seed=seed) if labels is None else labels.to(self.device)
        network = self.shown_network
        for part in (slice(start, start + 512) for start in range(0, n, 512)):
            # all are put back before others are at work
            with torch.no_grad(), evaluation_mode(network), noise_of(seed + part.start, self.device):
                fake = self.fake(latents[part], None if labels is None else labels[part], network)
            yield fake

    @torch.no_grad()
    def take_standing_statistics(self, *, batches: int = 100, size: int = 64) -> None:
        """Give the batch norms of what :meth:`generate` shows the mean of their statistics over fresh batches.

        They are those of the weights as they are, where running statistics are those of weights as they were (BigGAN,
        Brock et al. 2019, arXiv 1809.11096, section 4.1). Raises ValueError where it has none.
        """
        network = self.shown_network
        norms = [layer for layer in network.modules() if isinstance(layer, parallel.BATCH_NORMS)]
        norms = [layer for layer in norms if layer.track_running_stats]
        if not norms:
            raise ValueError("the generator has no batch norm with running statistics")
        with evaluation_mode(network):
            for layer in norms:
                layer.reset_running_stats()
                layer.momentum = None  # torch's word for the mean of all batches
                layer.train()
            for seed in range(batches):
                latents = self.latents(size, generator=torch.Generator(self.device).manual_seed(seed))
                self.fake(latents, self.shown_labels(size, seed=seed), network)

    @property
    def shown_network(self) -> nn.Module:
        """The network of :meth:`generate`: the averaged generator where there is one."""
        return self.generator if self.averaging is None else self.averaging.network

    @property
    def shown_weights(self) -> Weights:
        """Whose samples :meth:`generate` returns; part of the protocol of every score."""
        return "raw" if self.averaging is None else "averaged"

    def fake(self, latents: Tensor, labels: Tensor | None, network: nn.Module | None = None) -> Tensor:
        """Images of the generator; labels (n,) reach it only if its ``forward`` takes them."""
        network = network or self.generator
        return network(latents, labels=labels) if self.conditional["generator"] else network(latents)

    def scorer(self, labels: Tensor | None, *, augmented: bool = True) -> nn.Module:
        """The critic as a function of images alone: labels are bound, and images augmented, where that applies."""
        augmentation = self.augmentation if augmented else None
        labels = labels if self.conditional["critic"] else None
        if labels is None and augmentation is None:
            return self.critic
        return ImageCritic(self.critic, labels, augmentation)

    def scaled(self, real: Tensor) -> Tensor:
        """Real images as stored, in [-1, 1] and in the precision of the networks."""
        return to_unit_range(real, self.dtype)  # type: ignore[arg-type]
