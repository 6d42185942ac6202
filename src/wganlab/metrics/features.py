"""Scores of generated images: functions of the features of real and generated images.

Features are tensors (n, dim), real ones first; a row is an image. Scores depend on the extractor, on n and on the
images chosen: compare only scores of one protocol (:mod:`wganlab.metrics.protocol`).
"""

from functools import reduce

import numpy as np
import torch
from torch import Tensor

from wganlab.data.stream import to_unit_range
from wganlab.distances import exact, kl

#: The nearest so many of its own kind make an image's ball, in precision and recall, and in density and coverage.
NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
#: Parts of the images over which the inception score is averaged.
SPLITS = 10
#: The fewest images of which FID, KID and inception scores are published; many papers take 50,000.
PUBLISHED = 10_000
#: Bytes of images in single precision that are held at a time.
LARGEST_BLOCK = 2**28
#: Rows of a matrix of distances, or of features in double precision, that are held at a time.
BLOCK = 256


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Fréchet distance between normal distributions fitted to both (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    FID where the features are Inception's. Biased upwards for few images. By torch-fidelity, in fp64.
    """
    from torch_fidelity import metric_fid

    one, other = moments(real), moments(fake)
    return metric_fid.fid_statistics_to_metric(one, other, verbose=False)[metric_fid.KEY_METRIC_FID]


def moments(features: Tensor) -> dict[str, np.ndarray]:
    """Mean (dim,) and covariance (dim, dim) of features, in fp64, as torch-fidelity takes them."""
    parts = features.split(BLOCK)
    mean = torch.stack([exact(part).sum(0) for part in parts]).sum(0) / len(features)
    centred = (exact(part) - mean for part in parts)
    covariance = reduce(torch.add, (part.T @ part for part in centred)) / (len(features) - 1)
    return {"mu": mean.cpu().numpy(), "sigma": covariance.cpu().numpy()}


def kernel_subsets(images: int) -> tuple[int, int]:
    """Subsets of :func:`kernel_distance`, and their size: 100 of 1,000, as published figures have them, of as many
    images as these score; of fewer 20 of at most 500, which a training run can afford."""
    return (100, 1000) if images >= PUBLISHED else (20, min(500, images))


def kernel_distance(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Squared maximum mean discrepancy, cubic kernel (Binkowski et al. 2018, arXiv 1801.01401): KID.

    ``kid``: the mean over random subsets of the images; unbiased, so it may fall below zero. ``kid_sd``: its standard
    deviation over them, where a subset is not all images. By torch-fidelity.
    """
    from torch_fidelity import metric_kid

    subsets, size = kernel_subsets(min(len(real), len(fake)))
    if size == len(real) == len(fake):  # of which there is one subset, and no deviation
        subsets = 1
    random, found = np.random.RandomState(0), []
    for _ in range(subsets):
        chosen = [
            features[random.choice(len(features), size, replace=False)].cpu().double() for features in (fake, real)
        ]
        one = metric_kid.kid_features_to_metric(*chosen, kid_subsets=1, kid_subset_size=size, verbose=False)
        found.append(one[metric_kid.KEY_METRIC_KID_MEAN])
    return {"kid": float(np.mean(found))} | ({"kid_sd": float(np.std(found))} if subsets > 1 else {})


def precision_recall(real: Tensor, fake: Tensor, *, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """Share of generated images near real ones, and of real near generated ones, both from 0 to 1.

    "Near" is within the distance to the ``neighbours``-th nearest of one's own kind (Kynkäänniemi et al. 2019, arXiv
    1904.06991, equations 1 and 2), of as many images of either kind. By torch-fidelity.
    """
    from torch_fidelity import metric_prc

    options = {"prc_neighborhood": neighbours, "prc_batch_size": BLOCK, "save_cpu_ram": True, "verbose": False}
    n = min(len(real), len(fake))
    found = metric_prc.prc_features_to_metric(fake[:n].cpu(), real[:n].cpu(), **options)
    return {key: found[key] for key in ("precision", "recall")}


def density_coverage(real: Tensor, fake: Tensor, *, neighbours: int = DENSITY_NEIGHBOURS) -> dict[str, float]:
    """Naeem et al. 2020 (arXiv 2002.09797, equations 3 and 4): as precision and recall, less moved by outliers.

    ``density``: balls around real images that hold a generated one, over ``neighbours`` (1 for equal distributions,
    may be larger); ``coverage``: share of real images whose ball holds a generated one, from 0 to 1.
    """
    within, covered = 0, 0  # pairs, real images
    for part in real.split(BLOCK):
        radius = torch.cdist(part, real).kthvalue(neighbours + 1).values  # the nearest is the image itself
        inside = torch.cdist(part, fake) < radius[:, None]
        within += int(inside.sum())
        covered += int(inside.any(1).sum())
    return {"density": within / (len(fake) * neighbours), "coverage": covered / len(real)}


def inception_score(logits: Tensor, *, splits: int = SPLITS) -> float:
    """exp(E[KL(p(class | image) || p(class))]) (Salimans et al. 2016, section 4): from 1 to the number of classes.

    The mean over so many parts of the images; ``logits`` are (n, classes). By torch-fidelity.
    """
    from torch_fidelity import metric_isc

    found = metric_isc.isc_features_to_metric(logits.cpu(), splits, shuffle=True, rng_seed=0)
    return found[metric_isc.KEY_METRIC_ISC_MEAN]


def class_scores(logits: Tensor, shares: Tensor, *, confident: float = 0.9) -> dict[str, float]:
    """Coverage of classes, from a classifier's logits (n, classes) and the classes' shares of real images (classes,).

    - ``confident``: share of images whose likeliest class has a probability of at least ``confident``;
    - ``classes``: how many classes are the likeliest of a confident image;
    - ``class_kl``: KL(classes among generated images || ``shares``), in nats, by the likeliest class.
    """
    probability, likeliest = exact(logits).softmax(1).max(1)
    sure = probability >= confident
    found = torch.bincount(likeliest, minlength=len(shares)) / len(logits)
    return {
        "confident": sure.float().mean().item(),
        "classes": float(len(likeliest[sure].unique())),
        "class_kl": kl(found, shares),
    }


def accuracy_of(logits: Tensor, wanted: Tensor) -> float:
    """Share of images whose likeliest class, of logits (n, classes), is the one that was asked for, (n,)."""
    return (logits.argmax(1) == wanted).double().mean().item()


def intra_frechet_distance(real: Tensor, fake: Tensor, classes: tuple[Tensor, Tensor]) -> float | None:
    """Mean over classes of :func:`frechet_distance` within each (Miyato and Koyama 2018, arXiv 1802.05637, section 4).

    ``classes`` are those of the real and of the generated images, both (n,). None where fewer than two images of a
    class are real, or generated, in all classes.
    """
    of_real, of_fake = classes
    pairs = ((real[of_real == number], fake[of_fake == number]) for number in of_real.unique())
    found = [frechet_distance(*pair) for pair in pairs if min(map(len, pair)) > 1]
    return sum(found) / len(found) if found else None


def nearest(images: Tensor, among: Tensor, *, own: Tensor | None = None, block: int = 4096) -> tuple[Tensor, Tensor]:
    """Euclidean distance of each image (n, *shape) to the nearest ``among`` (m, *shape), and which that is: both (n,).

    Images are in [-1, 1], those ``among`` may be as stored. ``own`` (n,) is the place of each image among them, where
    it does not count as its own neighbour.
    """
    rows = images.flatten(1)
    block = max(1, min(block, LARGEST_BLOCK // (4 * rows.shape[1])))
    distances = rows.new_full((len(rows),), torch.inf)
    indices = torch.zeros(len(rows), dtype=torch.long)
    for start in range(0, len(among), block):
        apart = torch.cdist(rows, to_unit_range(among[start : start + block]).flatten(1))
        if own is not None:
            here = (own >= start) & (own < start + block)
            apart[here, own[here] - start] = torch.inf
        found = apart.min(dim=1)
        closer = found.values < distances
        distances = torch.where(closer, found.values, distances)
        indices = torch.where(closer, found.indices + start, indices)
    return distances, indices


def memorisation(fake: Tensor, training: Tensor) -> float:
    """Median distance of generated images to the nearest training image, over that of training images to each other.

    Generated ones (n, *shape) in [-1, 1], training images (m, *shape) as stored, of which 1,024 at random, always the
    same, are measured. Near 0 where training images are copied, about 1 for fresh images of the same distribution;
    blurred images score low, too. Distances are Euclidean over all pixels, or over features where these are given.
    Images that are there twice have no say in the distance of training images; not a number where all are.
    """
    distances, _ = nearest(fake, training)
    own = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[:1024]  # folders come by class
    rows = to_unit_range(training[own])
    among, _ = nearest(rows, training, own=own)
    apart = among > 2e-3 * rows.flatten(1).norm(dim=1).mean()  # in fp32 copies are not at 0
    return (distances.median() / among[apart].median()).item()
