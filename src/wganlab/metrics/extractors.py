"""Feature extractors: hidden activations and logits of networks that classify images.

Any object with the attributes and the two methods of :class:`Extractor` is one; name it in a YAML of conf/extractor/.
"""

import hashlib
import os
import socket
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from wganlab.archive import read_archive
from wganlab.data import Source, labels_of
from wganlab.data.stacked import classes_of
from wganlab.data.stream import to_bytes, to_unit_range
from wganlab.schema import ConfigError, InvalidValueError

#: Images per pass, of the small network and of Inception, whose activations take 6 MB an image.
BATCH, INCEPTION_BATCH = 256, 32


class Extractor(Protocol):
    """A network whose features and logits of images are scored."""

    #: Whether its classes are those of the data set. An image counts for its likeliest class from a probability of 0.9
    #: on, or of ``confident`` where the extractor has that.
    knows_classes: bool

    def prepare(self, samples: Tensor, labels: Tensor | None, fingerprint: str) -> None:
        """Get ready for a data set: all its samples as stored, (n, *shape), their classes (n,), and a hash of
        the samples.

        Raises ConfigError where it cannot be.
        """
        ...

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, dim) of images (n, *shape) in [-1, 1], and logits (n, classes); in fp32 on the CPU."""
        ...

    def describe(self) -> dict[str, str | int | float]:
        """What it is, for the record: its name, a hash of its weights, and how images are resized."""
        ...


class Classifier:
    """A small convolutional network, trained once on the labelled data set: works offline, and knows its classes.

    With ``dataset``, another labelled one with images of the same shape, it is trained on that instead: its features
    then come from images of more kinds than those that are scored.
    Every seventh sample of a fixed permutation is held out; ``accuracy`` is the share of them classified rightly.
    Training is deterministic, on one thread, and its result is kept in ``cache`` under a hash of the data and the
    recipe, so that it happens once: about 10 s for digits, half a minute for MNIST.
    """

    #: Raise it when the recipe changes.
    RECIPE = 2

    def __init__(self, *, dataset: Source | None = None, cache: str = "~/.cache/wganlab") -> None:
        self.dataset, self.cache = dataset, Path(cache).expanduser()
        self.knows_classes = dataset is None

    def prepare(self, samples: Tensor, labels: Tensor | None, fingerprint: str) -> None:
        """Raises ConfigError when what it learns from are no images of two classes or more, of the samples' shape."""
        if self.dataset is not None:
            shape, samples = tuple(samples.shape[1:]), self.dataset.load()
            labels, fingerprint = labels_of(self.dataset), hash_of(samples)
            if samples.shape[1:] != shape:
                sizes = ["x".join(map(str, size)) for size in (samples.shape[1:], shape)]
                raise ConfigError("extractor.dataset", f": has images of {sizes[0]}, and those to score are {sizes[1]}")
        if labels is None or samples.dim() != 4 or len(labels.unique()) < 2:
            n = 0 if labels is None else len(labels.unique())
            fault = f"has {n or 'no'} class{'es' * (n != 1)}" if samples.dim() == 4 else "is no images"
            allowed = "and it takes two; allowed are inception, none"
            raise ConfigError("extractor", f"=classifier: the data set {fault}, {allowed}")
        found, numbers = labels.unique(return_inverse=True)
        key = f"{self.RECIPE} {fingerprint} {hash_of(labels)} {torch.__version__}"
        path = self.cache / f"classifier-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.pt"
        self.network = small_network(samples.shape[1], len(found))
        try:
            saved = read_archive(path)
            self.network.load_state_dict(saved["weights"])
            self.accuracy: float = saved["accuracy"]
        except Exception:  # none yet, or one that a full disk has torn
            print("training a classifier of this data set, once, for its features", flush=True)
            self.network, self.accuracy = train(samples, numbers, len(found))
            print(f"the classifier is right about {self.accuracy:.1%} of the images held out from it", flush=True)
            self.keep(path)
        self.network.eval()
        self.hash = hash_of(*self.network.state_dict().values())

    def keep(self, path: Path) -> None:
        """Write the cache atomically. Without it, when the disk is full, the next run trains the classifier again."""
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=self.cache, suffix=".part", delete=False) as part:
                torch.save({"weights": self.network.state_dict(), "accuracy": self.accuracy}, part)
            os.replace(part.name, path)
        except OSError as error:
            print(f"note: the classifier cannot be kept in {self.cache} ({error})", flush=True)

    @torch.no_grad()
    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The 128 activations before the last layer, and logits of the classes, in ascending order of their numbers."""
        body, head = self.network[:-1], self.network[-1]
        features = torch.cat([body(part.float().cpu()) for part in images.split(BATCH)])
        return features, head(features)

    def describe(self) -> dict[str, str | int | float]:
        return {"extractor": "classifier", "weights": self.hash, "resize": "none", "accuracy": self.accuracy}


class StackedClassifier(Classifier):
    """The classifier of one channel's images, on each channel of a stack: of dataset=stacked, from which it learns.

    Its features are those of all channels (n, channels * 128), its classes all ways to stack those of one. The class
    that is likeliest for an image counts as covered, as in published counts of modes (Metz et al. 2017, 1611.02163).
    """

    confident = 0.0

    def __init__(self, *, cache: str = "~/.cache/wganlab") -> None:
        super().__init__(cache=cache)

    def prepare(self, samples: Tensor, labels: Tensor | None, fingerprint: str) -> None:
        """Raises ConfigError for data that are no stacks of images with classes."""
        depth, modes = samples.shape[1], 0 if labels is None else len(labels.unique())
        classes = round(modes ** (1 / depth))
        if samples.dim() != 4 or labels is None or depth == 1 or classes**depth != modes:
            raise ConfigError("extractor", "=stacked: takes stacks of grey images, dataset=stacked")
        grey = samples.cpu().flatten(0, 1)[:, None]
        first = [*{image.tobytes(): row for row, image in enumerate(grey.numpy())}.values()]  # each image once
        numbers = classes_of(labels, classes, depth).flatten()[first]
        super().prepare(grey[first], numbers, fingerprint)

    @torch.no_grad()
    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = super().features(images.flatten(0, 1)[:, None])
        modes, *others = logits.log_softmax(1).unflatten(0, (len(images), -1)).unbind(1)
        for other in others:
            modes = (modes[:, :, None] + other[:, None]).flatten(1)
        return features.unflatten(0, (len(images), -1)).flatten(1), modes

    def describe(self) -> dict[str, str | int | float]:
        return super().describe() | {"extractor": "stacked"}


def small_network(channels: int, classes: int) -> nn.Sequential:
    """Two strided 5x5 convolutions, means over 7x7 places, 128 features, logits; for images of any size."""

    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    layers = [*block(channels, 24), *block(24, 48), nn.AdaptiveAvgPool2d(7), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(48 * 49, 128), nn.ReLU(), nn.Linear(128, classes))


def train(
    samples: Tensor, labels: Tensor, classes: int, *, updates: int | None = None, batch: int = 128
) -> tuple[nn.Sequential, float]:
    """A network trained by Adam with one cycle of learning rates, and its accuracy on what is held out.

    By default it sees each sample twice, and makes at least 300 updates. The result depends on the data alone: random
    numbers, threads and the precision of products are set aside, and put back.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)  # sums in another order are other weights
    torch.set_float32_matmul_precision("highest")  # a run may have another than a command that scores it
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            network = small_network(samples.shape[1], classes).to(memory_format=torch.channels_last)  # a quarter faster
            order = torch.randperm(len(samples))
            held_out, kept = order[::7], order[torch.arange(len(order)) % 7 != 0]
            updates = updates or max(300, 2 * len(kept) // batch)
            optimizer = torch.optim.Adam(network.parameters(), fused=True)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=updates)
            network.train()
            for _ in range(updates):
                rows = kept[torch.randint(len(kept), (batch,))]
                images = to_unit_range(samples[rows].cpu()).to(memory_format=torch.channels_last)
                loss = cross_entropy(network(images), labels[rows], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            network = network.to(memory_format=torch.contiguous_format)
            return network, accuracy(network, samples[held_out], labels[held_out])
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


@torch.no_grad()
def accuracy(network: nn.Module, samples: Tensor, labels: Tensor) -> float:
    """Share of samples, as stored, whose likeliest class is their label."""
    network.eval()
    right = [
        (network(to_unit_range(part.cpu())).argmax(1) == wanted).sum()
        for part, wanted in zip(samples.split(BATCH), labels.split(BATCH), strict=True)
    ]
    return torch.stack(right).sum().item() / len(labels)


class Inception:
    """Inception v3 with the weights of the published FID, by torch-fidelity: images resized to 299x299, bilinearly.

    ``weights`` is the file that torch-fidelity publishes, weights-inception-2015-12-05-6726825d.pth; without it, it is
    looked for in torch's cache, and else downloaded.
    Raises InvalidValueError when it can neither be read nor downloaded.
    """

    knows_classes = False  # but ImageNet's
    published = True  # papers print scores of its features

    def __init__(self, *, weights: str | None = None) -> None:
        from torch_fidelity import feature_extractor_inceptionv3 as inception

        name = Path(inception.URL_INCEPTION_V3).name
        cached = Path(torch.hub.get_dir(), "checkpoints", name)
        file = Path(weights).expanduser() if weights else cached
        if weights and not file.is_file():
            raise InvalidValueError("weights", weights, f"no such file; it should be torch-fidelity's {name}")
        self.file, self.cached = file, cached
        self.network: Any = None
        if file.is_file():  # else it is fetched when a run begins: what only checks it stays off the network
            self.open()

    def open(self) -> None:
        """Read the weights, downloaded where there is no file. Raises ConfigError where they cannot be had."""
        from torch_fidelity import feature_extractor_inceptionv3 as inception

        file, cached = self.file, self.cached
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(10)  # a silent firewall would hang for ever
        try:
            self.network = inception.FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=str(file) if file.is_file() else None,
            )
        except Exception as error:  # torch, pickle and urllib raise a dozen types
            reason = " ".join(str(error).split())[:120]
            value, what = (file, "cannot be read") if file.is_file() else ("null", f"cannot download {cached.name}")
            advice = f"put the file there, or at {cached}, and name it"
            raise ConfigError("extractor.weights", f"={value}: {what} ({reason}); {advice}") from error
        finally:
            socket.setdefaulttimeout(before)

    def prepare(self, samples: Tensor, labels: Tensor | None, fingerprint: str) -> None:
        """Raises ConfigError when the samples are no images of one or three channels."""
        if samples.dim() != 4 or samples.shape[1] not in (1, 3):
            raise ConfigError("extractor", "=inception: takes images of one or three channels")
        if self.network is None:
            self.open()
        self.hash = hash_of(*self.network.state_dict().values())

    @torch.no_grad()
    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """2048 activations after the last pooling, and logits without bias, as published scores take them."""
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        features, logits = zip(
            *(self.network(to_bytes(part.cpu())) for part in images.split(INCEPTION_BATCH)), strict=True
        )
        return torch.cat(features), torch.cat(logits)

    def describe(self) -> dict[str, str | int | float]:
        return {"extractor": "inception-v3-compat", "weights": self.hash, "resize": "299x299 bilinear, TensorFlow's"}


def hash_of(*tensors: Tensor) -> str:
    """A hash of their content."""
    hashed = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        hashed.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
