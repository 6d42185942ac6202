"""The protocol of scores: the real samples, the sample sizes and the features, the same for every method."""

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from wganlab.averaging import Weights
from wganlab.data.stream import BatchStream, to_unit_range
from wganlab.distances import wasserstein
from wganlab.metrics import features as of
from wganlab.metrics.extractors import Extractor, hash_of
from wganlab.metrics.points import mode_scores
from wganlab.schema import ConfigError

#: Libraries whose versions may change a score.
LIBRARIES = ("torch", "POT", "torch-fidelity")
#: Real samples whose features are computed at a time.
BLOCK = 512
#: How many real and how many generated samples a score takes: with fewer it is no number, or its library fails.
DISTANCES_TAKE = {"emd_real": (2, 0), "emd": (2, 0)}
#: Scores of real samples in the place of generated ones, by the id of their protocol.
REAL_SCORES: dict[str, dict[str, float]] = {}
#: Points whose modes are counted.
MODE_POINTS = 10_000
FEATURES_TAKE = {
    "fid": (2, 2),
    "kid": (2, 2),
    "precision": (of.NEIGHBOURS + 1, of.NEIGHBOURS + 1),
    "recall": (of.NEIGHBOURS + 1, of.NEIGHBOURS + 1),
    "density": (of.DENSITY_NEIGHBOURS + 1, 1),
    "coverage": (of.DENSITY_NEIGHBOURS + 1, 1),
    "inception_score": (0, of.SPLITS),
}


class Rows:
    """The first n rows of tensors that come in parts, in one block of memory."""

    def __init__(self, n: int) -> None:
        self.missing = n

    def add(self, part: Tensor) -> None:
        """Append as many rows as are missing."""
        part = part[: self.missing]
        if not hasattr(self, "block"):
            self.block = part.new_empty((self.missing, *part.shape[1:]))
        begin = len(self.block) - self.missing
        self.block[begin : begin + len(part)] = part
        self.missing -= len(part)

    @property
    def rows(self) -> Tensor:
        """Those that have come."""
        return self.block[: len(self.block) - self.missing]


class Protocol:
    """Scores ``n`` generated samples by exact distances to ``n`` real ones, and ``images`` images by their features.

    The real samples are the same at every step and for every method and seed. Scores that take more samples than there
    are, real or generated, are left out. ``real_scores`` are those of other real samples in the place of generated
    ones: what a perfect generator would get.
    """

    def __init__(self, *, n: int, images: int, extractor: Extractor | None) -> None:
        self.n, self.images, self.extractor = n, images, extractor
        self.real_scores: dict[str, float] = {}

    def prepare(
        self,
        stream: BatchStream,
        real: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        split: str = "auto",
    ) -> None:
        """Choose the real samples, compute their features, and say which scores are left out for want of samples.

        The real samples are those of a split of the stream (:func:`reference`), or ``real`` (m, *shape), as stored,
        with their ``labels`` (m,), of which ``split`` is then the name.
        Raises ConfigError for data that the extractor refuses, and where they leave it no score at all.
        """
        wanted = max(2 * self.n, self.images if self.extractor else 0)
        if real is None:
            split, real, labels = reference(stream, split, wanted)
        self.stream, self.split = stream, split
        stored, self.real_labels = real[:wanted], labels
        half = max(1, min(self.n, len(stored) // 2))
        self.real, others = to_unit_range(stored[:half]), to_unit_range(stored[half : 2 * half])
        self.left_out = self.too_few(len(stored))
        if self.left_out:
            taken = [f"eval/{name} ({real} real, {fake} generated)" for name, (real, fake) in self.left_out.items()]
            generated = f" and {self.images} generated" if self.scores_features else ""
            there = f"{len(stored)} real{generated} samples"
            print(f"note: left out, for they take more than {there}: {', '.join(taken)}", flush=True)
        if self.extractor is not None and not self.scores_features:
            print("note: points have no features, and the extractor is not used", flush=True)
        if self.scores_features and getattr(self.extractor, "published", False) and self.images < of.PUBLISHED:
            print(
                f"note: scores of {self.images} images are no published ones, which take {of.PUBLISHED} or more",
                flush=True,
            )
        self.emd_real = None if "emd_real" in self.left_out else wasserstein(self.real, others)
        if self.extractor is not None and self.scores_features:
            self.prepare_features(self.extractor, stored)
        described = self.describe("raw")["id"]
        if described not in REAL_SCORES:  # jobs of a sweep share them
            REAL_SCORES[described] = self.scores_of_real(stored)
        self.real_scores = REAL_SCORES[described]

    def prepare_features(self, extractor: Extractor, stored: Tensor) -> None:
        """Compute the features of real images (m, *shape), as stored."""
        stream = self.stream
        extractor.prepare(stream.samples, stream.labels, stream.fingerprint())
        if self.left_out.keys() >= FEATURES_TAKE.keys() and not extractor.knows_classes:
            there = f"{len(stored)} real and {self.images} generated samples"
            raise ConfigError("extractor", f": {there} are too few for any of its scores; allowed is none")
        images = stored[: self.images]
        features = Rows(len(images))
        for part in images.split(BLOCK):
            features.add(extractor.features(to_unit_range(part))[0])
        self.real_features = features.rows
        if stream.labels is not None:
            self.classes, numbers = stream.labels.unique(return_inverse=True)
            self.shares = torch.bincount(numbers) / len(numbers)

    def scores_of_real(self, compared: Tensor) -> dict[str, float]:
        """The scores of real samples that are not ``compared`` with, in the place of generated ones.

        They are the training samples where others are held out, else what is left of these, and may be fewer than are
        generated, which raises their FID a little; empty where they are too few for a score.
        """
        beside = 0 if self.split == "held_out" else len(compared)
        wanted = max(2 * self.n, self.images if self.scores_features else 0)
        others = self.stream.fixed_samples(beside + wanted)[beside:]
        taken = FEATURES_TAKE.keys() - self.left_out.keys() if self.scores_features else ()
        if len(others) < max([2 * len(self.real), *(FEATURES_TAKE[name][1] for name in taken)]):
            return {}
        return self.scores(lambda n: map(to_unit_range, others[:n].split(BLOCK)))

    @property
    def modes(self) -> Any:
        """The centers and the standard deviation of a mixture; None of other data."""
        modes = getattr(self.stream.source, "modes", None)
        return modes() if modes else None

    @property
    def scores_features(self) -> bool:
        """Whether features are scored: of images, where there is an extractor."""
        return self.extractor is not None and self.real.dim() == 4

    def too_few(self, real: int) -> dict[str, tuple[int, int]]:
        """The scores that so many real samples, or the images that are generated, are too few for."""
        found = {name: takes for name, takes in DISTANCES_TAKE.items() if real < takes[0]}
        if self.scores_features:
            there = min(real, self.images), self.images
            found |= {name: (r, g) for name, (r, g) in FEATURES_TAKE.items() if there[0] < r or there[1] < g}
        return found

    def scores(
        self, draw: Callable[[int], Iterable[Tensor]], labels: Callable[[int], Tensor | None] = lambda n: None
    ) -> dict[str, float]:
        """All scores of this protocol by name; ``draw(n)`` generates n samples, in parts of any size.

        ``labels(n)`` are those that were asked for, (n,), or None.

        ``eval/emd_raw`` is the distance itself, and ``eval/emd_real`` that between the real samples and as many other
        real ones: the score of a perfect generator, but not a lower bound, since blurred images score lower.
        ``eval/emd`` is the distance less the mean of this one and of that between generated samples, as in a Sinkhorn
        divergence (Feydy et al. 2019, arXiv 1810.08278, equation 3): about 0 for a perfect generator, and below only
        for copies of the real samples.
        """
        half = len(self.real)
        points = max(2 * half, MODE_POINTS if self.modes else 0)
        samples, features, logits = Rows(points), Rows(self.images), Rows(self.images)
        finite = True
        drawn = max(points, self.images if self.scores_features else 0)
        for part in draw(drawn):
            part = part.float()
            samples.add(part)
            if self.extractor and self.scores_features and features.missing:
                images = part[: features.missing]
                finite = finite and bool(torch.isfinite(images).all())
                for rows, new in zip((features, logits), self.extractor.features(images.nan_to_num()), strict=True):
                    rows.add(new)
                    finite = finite and bool(torch.isfinite(new).all())
        few, others = samples.rows[: 2 * half].split(half)
        found = {"emd_raw": wasserstein(few, self.real)}
        if self.emd_real is not None:
            found["emd_real"] = self.emd_real
            found["emd"] = found["emd_raw"] - (self.emd_real + wasserstein(few, others)) / 2
        if few.dim() == 2:
            found["w2"] = wasserstein(few, self.real, order=2)
        if self.modes:
            found |= mode_scores(samples.rows, *self.modes)
        if self.scores_features:
            found |= self.feature_scores(features.rows, logits.rows) if finite else {"fid": math.nan}
            asked = labels(drawn)
            if finite and asked is not None:
                found |= self.class_scores(features.rows, logits.rows, asked[: self.images].cpu())
        return {f"eval/{name}": value for name, value in found.items()}

    def feature_scores(self, features: Tensor, logits: Tensor) -> dict[str, float]:
        """Scores of the features (n, dim) and the logits (n, classes) of generated images."""
        assert self.extractor is not None
        real, keep = self.real_features, FEATURES_TAKE.keys() - self.left_out.keys()
        found: dict[str, float] = {}
        if "fid" in keep:
            found["fid"] = of.frechet_distance(real, features)
        if "kid" in keep:
            found |= of.kernel_distance(real, features)
        if "precision" in keep:
            found |= of.precision_recall(real, features)
        if "density" in keep:
            found |= of.density_coverage(real, features)
        if "inception_score" in keep:
            found["inception_score"] = of.inception_score(logits)
        if self.extractor.knows_classes:
            found |= of.class_scores(logits, self.shares, confident=getattr(self.extractor, "confident", 0.9))
        return found

    def class_scores(self, features: Tensor, logits: Tensor, asked: Tensor) -> dict[str, float]:
        """Scores of images (n,) of which each was asked to be of a class."""
        assert self.extractor is not None
        found: dict[str, float] = {}
        if self.extractor.knows_classes:
            found["class_accuracy"] = of.accuracy_of(logits, torch.searchsorted(self.classes, asked))
        if self.real_labels is not None:
            real = self.real_labels[: len(self.real_features)].cpu()
            within = of.intra_frechet_distance(self.real_features, features, (real, asked))
            found |= {} if within is None else {"intra_fid": within}
        return found

    def describe(self, weights: Weights) -> dict[str, Any]:
        """The protocol, for the record, and which weights of the generator were scored.

        ``id`` is a hash of all but the weights: scores with the same id are comparable.
        """
        content: dict[str, Any] = {
            "split": self.split,
            "real": hash_of(self.real),
            "n": len(self.real),
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }
        if self.modes:
            content["points"] = MODE_POINTS
        if self.extractor and self.scores_features:
            content |= self.extractor.describe() | {"images": len(self.real_features), "generated": self.images}
            content["kid"] = of.kernel_subsets(min(len(self.real_features), self.images))  # how many, and of which size
        hashed = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=4)
        return {"id": hashed.hexdigest()} | content | {"generator": weights, "real_scores": self.real_scores}


def reference(stream: BatchStream, split: str, n: int) -> tuple[str, Tensor, Tensor | None]:
    """The name of a split of the data, n of its samples, always the same, and their labels.

    "auto" is "held_out" where samples were held out from training, else "training".
    Raises ConfigError for "held_out" without such.
    """
    if split == "training" or (split == "auto" and not stream.holds_out):
        return "training", stream.fixed_samples(n), stream.fixed_labels(n)
    if not stream.holds_out:
        raise ConfigError("split", "=held_out: the run has held out no samples (hold_out=0); allowed is training")
    return "held_out", *stream.fixed_held_out(n)
