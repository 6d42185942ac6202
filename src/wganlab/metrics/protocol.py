"""The protocol of scores: the real samples, the sample sizes and the features, the same for every method."""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wganlab.data.stream import BatchStream, to_unit_range
from wganlab.distances import wasserstein
from wganlab.metrics import features as of
from wganlab.metrics.extractors import Extractor, hash_of
from wganlab.metrics.points import mode_scores

#: Libraries whose versions may change a score.
LIBRARIES = ("torch", "POT", "torch-fidelity")


class Protocol:
    """Scores ``n`` generated samples by exact distances to ``n`` real ones, and ``images`` images by their features.

    The real samples are the same at every step and for every method and seed.
    """

    def __init__(self, *, n: int, images: int, extractor: Extractor | None) -> None:
        self.n, self.images, self.extractor = n, images, extractor

    def prepare(self, stream: BatchStream, real: Tensor | None = None, *, split: str = "training") -> None:
        """Choose the real samples, and compute their features. Raises ConfigError for data that the extractor refuses.

        The real samples are those of the stream, or ``real`` (m, *shape), as stored; ``split`` is their name.
        """
        self.stream, self.split = stream, split
        wanted = max(2 * self.n, self.images if self.extractor else 0)
        samples = to_unit_range(stream.fixed_samples(wanted) if real is None else real[:wanted])
        half = min(self.n, len(samples) // 2)
        self.real, others = samples[:half], samples[half : 2 * half]
        self.emd_real = wasserstein(self.real, others)
        if self.extractor is None or samples.dim() != 4:
            return
        self.extractor.prepare(stream.samples, stream.labels, stream.fingerprint())
        self.real_features, _ = self.extractor.features(samples[: self.images])
        if stream.labels is not None:
            _, numbers = stream.labels.unique(return_inverse=True)
            self.shares = torch.bincount(numbers) / len(numbers)

    def scores(self, draw: Callable[[int], Tensor]) -> dict[str, float]:
        """All scores of this protocol by name; ``draw(n)`` generates n samples.

        ``eval/emd_real`` is the distance between the real samples and as many other real ones: the score of a perfect
        generator, but not a lower bound, since blurred images score lower. ``eval/emd_debiased`` is the distance less
        the mean of this one and of that between generated samples, as in a Sinkhorn divergence (Feydy et al. 2019,
        arXiv 1810.08278, equation 3): about 0 for a perfect generator, and below only for copies of the real samples.
        """
        half = len(self.real)
        fake = draw(max(2 * half, self.images if self.extractor else 0)).float()
        few, others = fake[:half], fake[half : 2 * half]
        found = {"emd": wasserstein(few, self.real), "emd_real": self.emd_real}
        found["emd_debiased"] = found["emd"] - (self.emd_real + wasserstein(few, others)) / 2
        if few.dim() == 2:
            found["w2"] = wasserstein(few, self.real, order=2)
        if modes := getattr(self.stream.source, "modes", None):
            found |= mode_scores(few, *modes())
        if self.extractor and fake.dim() == 4:
            found |= self.feature_scores(self.extractor, fake[: self.images])
        return {f"eval/{name}": value for name, value in found.items()}

    def feature_scores(self, extractor: Extractor, fake: Tensor) -> dict[str, float]:
        """Scores of the features of generated images."""
        if not torch.isfinite(fake).all():
            return {"fid": float("nan")}
        features, logits = extractor.features(fake)
        found = {"fid": of.frechet_distance(self.real_features, features)}
        found |= {"kid": of.kernel_distance(self.real_features, features)}
        found |= of.precision_recall(self.real_features, features) | of.density_coverage(self.real_features, features)
        found |= {"inception_score": of.inception_score(logits)}
        return found | (of.class_scores(logits, self.shares) if extractor.knows_classes else {})

    def describe(self) -> dict[str, Any]:
        """The protocol, for the record. ``id`` is a hash of the rest: scores with the same id are comparable."""
        content: dict[str, Any] = {
            "split": self.split,
            "real": hash_of(self.real),
            "n": len(self.real),
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }
        if self.extractor and self.real.dim() == 4:
            content |= self.extractor.describe() | {"images": len(self.real_features), "generated": self.images}
        hashed = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=4)
        return {"id": hashed.hexdigest()} | content
